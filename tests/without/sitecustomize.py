"""Python started with tests/without on PYTHONPATH runs as if the packages that WITHOUT names were not installed.

WITHOUT=numba,sklearn PYTHONPATH=tests/without .venv/bin/python -m pytest
"""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

ABSENT = frozenset(filter(None, os.environ.get("WITHOUT", "").split(",")))
find_spec = PathFinder.find_spec


def find_what_is_left(cls: Any, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
    return None if name.partition(".")[0] in ABSENT else find_spec(name, path, target)


PathFinder.find_spec = classmethod(find_what_is_left)  # type: ignore[assignment, method-assign]  # in the class: pytest calls it there
