"""The Python of README and docs runs as typed, on NumPy and, with the change README names, on the stand-in for CuPy."""

import importlib.util
import re
from pathlib import Path

import pytest

from . import standin_cupy

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts)]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)\)")


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block, capsys):
    for package in ("torch", "scipy"):
        if (
            f"import {package}" in block
            or f"from {package}" in block
            or (package == "scipy" and "linear_operator" in block)
        ):
            pytest.importorskip(package)
    if "import keras" in block and importlib.util.find_spec("keras") is None:  # importing it may need JAX
        pytest.skip("Keras is not installed")
    exec(compile(block, "a page of the documentation", "exec"), {})
    if "print(" in block:
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_array_code_on_cupy(capsys):
    code = next(param.values[0] for param in BLOCKS if "import numpy as xp" in param.values[0])
    exec(compile(code, "README.md", "exec"), {})
    on_numpy = capsys.readouterr().out
    with standin_cupy.installed():
        exec(compile(code.replace("import numpy as xp", "import cupy as xp"), "README.md", "exec"), {})
    assert capsys.readouterr().out == on_numpy != ""


def text_of(page):
    return " ".join(page.read_text().split())


def test_what_no_gpu_has_run_is_said_before_anything_else():
    first = text_of(ROOT / "README.md").partition(" ## ")[0]
    assert "no GPU has run the CuPy code or the CUDA kernels yet" in first
    assert "CUDA" not in re.findall(r"\*\*Fast.*?\*\*", first)[0]


def test_claims_about_others_have_their_limits():
    pages = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    pages = {str(page.relative_to(ROOT)): text_of(page) for page in pages}
    for text in pages.values():
        assert "any other array-API library" not in text  # those whose arrays can be written to
        assert not re.search(r"PyTorch: eight", text)  # eager PyTorch; torch.compile saves one byte
    assert re.search(r"Eager PyTorch saves eight bytes .*torch\.compile` one byte", pages["README.md"])
    assert "curve is that of one process up to rounding" in pages["docs/how-to/distributed.md"]
    assert "array-api-strict is the one that the tests use" in pages["docs/how-to/backends.md"]
