"""The README's Python runs as typed, on NumPy and, with the one change it names, on CuPy's stand-in."""

import re
from pathlib import Path

import pytest

from . import standin_cupy

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


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
