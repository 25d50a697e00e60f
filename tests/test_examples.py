"""Every program in examples/ runs as a user starts it, and prints what its docstring promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PARTS = {"median_pool_kernel"}  # imported by another one
# What a program prints; the packages without which it is skipped; arguments that make it short.
PROGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "cs231n_checks": (r"all checks passed\n$", (), ()),
    "deblur": (r"restored, reflected border +relative error 0\.0\d+", ("scipy",), ()),
    "deblur_pylops": (r"restored, total variation +relative error 0\.0\d+", ("scipy", "pylops"), ()),
    "from_cupy_cudnn": (r".", (), ()),
    "median_pool": (r"the same bits: True\n", (), ()),
    "move_pytorch_model": (r"gradients of 10 parameters", ("torch",), ()),
    "own_training_loop": (r"test accuracy [89]\d\.\d %", ("sklearn",), ("--epochs", "3")),
    "train_on_pictures": (r"the loaded model: test accuracy \d+\.\d %", ("PIL", "matplotlib"), ("--epochs", "1")),
    "train_with_autograd": (r"accuracy on new pictures (9\d|100)\.\d %", (), ()),
}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_every_program_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PROGRAMS, *PARTS}


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name: str) -> None:
    expected, packages, arguments = PROGRAMS[name]
    for package in packages:
        pytest.importorskip(package)
    done = run(name, *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout), done.stdout


@pytest.mark.parametrize("name", [name for name in PROGRAMS if "argparse" in (EXAMPLES / f"{name}.py").read_text()])
def test_its_help_is_its_docstring(name: str) -> None:
    if name == "train_on_pictures":
        pytest.importorskip("PIL")
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    first = (EXAMPLES / f"{name}.py").read_text().partition('"""')[2].partition("\n")[0]
    assert first in done.stdout


def test_without_pytorch_the_move_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WITHOUT", "torch")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "without"))
    done = run("move_pytorch_model")
    assert done.returncode == 1
    assert done.stderr == "PyTorch is not installed, so there is nothing to move: pip install 'cnnlayers[torch]'\n"


def test_without_numba_the_operation_runs_its_array_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WITHOUT", "numba")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "without"))
    done = run("median_pool")
    assert done.returncode == 0, done.stderr
    assert "there is no kernel here: Numba cannot be imported" in done.stdout
