"""The README's Python runs as typed, on NumPy and, with the one change it names, on CuPy's stand-in."""

import re
from pathlib import Path

import pytest

from . import standin_cupy

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_block_runs(block, capsys):
    if "import torch" in block:
        pytest.importorskip("torch")
    exec(compile(block, "README.md", "exec"), {})
    if "print(" in block:
        assert capsys.readouterr().out.strip()


def test_three_lines_on_cupy(capsys):
    three = next(block for block in BLOCKS if "import numpy as xp" in block)
    exec(compile(three, "README.md", "exec"), {})
    on_numpy = capsys.readouterr().out
    with standin_cupy.installed():
        exec(compile(three.replace("import numpy as xp", "import cupy as xp"), "README.md", "exec"), {})
    assert capsys.readouterr().out == on_numpy != ""


def test_what_no_gpu_has_run_is_said_before_anything_else():
    first = " ".join(README.partition("\n## ")[0].split())
    assert "no GPU has run the CuPy code or the CUDA kernels yet" in first
    assert "CUDA" not in re.findall(r"\*\*Fast.*?\*\*", first)[0]


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_claims_about_others_have_their_limits(file):
    text = " ".join((ROOT / file).read_text().split())
    assert "any other array-API library" not in text  # those whose arrays can be written to
    assert not re.search(r"PyTorch: eight", text)  # eager PyTorch; torch.compile saves one byte
    if file == "README.md":
        assert re.search(r"Eager PyTorch saves eight bytes .*torch\.compile` one byte", text)
        assert re.search(r"curve is that of one process up to rounding", text)
        assert "array-api-strict is the one that is tested" in text
