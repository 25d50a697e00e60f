"""Docstrings as Sphinx's markup: the star of (N, C, *spatial) or **options is text, not the start of emphasis."""

import re
from typing import Any

from sphinx.application import Sphinx

STARS = re.compile(r"(?<![`*\w\\])(\*{1,2})(?=[a-z]\w*(?!\w|\*))")


def escape_stars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = STARS.sub(lambda found: found[0].replace("*", "\\*"), line)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", escape_stars, priority=100)  # before numpydoc
    return {"parallel_read_safe": True, "parallel_write_safe": True}
