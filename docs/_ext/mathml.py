"""Mathematics as MathML, which browsers draw themselves: no script, no fonts to fetch."""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator


def mathml(text: str, *, block: bool) -> str:
    """MathML of an equation in LaTeX; an equation that docutils cannot read ends the build."""
    try:
        return tex2mathml(text.strip(), as_block=block)
    except Exception as error:
        raise ExtensionError(f"not LaTeX that docutils turns into MathML: {text!r}: {error}") from error


def visit_inline(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def visit_block(writer: HTML5Translator, node: nodes.math_block) -> None:
    text = node.astext().strip()
    if "\\\\" in text and "\\begin" not in text:
        text = f"\\begin{{aligned}}{text}\\end{{aligned}}"
    writer.body.append(writer.starttag(node, "div", CLASS="math", IDS=node.get("ids", [])))
    writer.body.append(mathml(text, block=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
