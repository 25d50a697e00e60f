"""What the tests of the command line share: running it, and its one-line refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnnlayers import cli

ENVIRONMENT = os.environ | {"CNNLAYERS_BACKEND": "numpy", "PYTHONWARNINGS": "error::RuntimeWarning"}
RUN = Path("runs/digits-three-layer")  # where `train` writes without --out


def command(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`python -m cnnlayers` with these words, in a process of its own."""
    line = [sys.executable, "-m", "cnnlayers", *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=120)


def refusal(capsys: pytest.CaptureFixture, *words: str | Path) -> str:
    """The one line on standard error with which a command line is refused."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1
    return said.err
