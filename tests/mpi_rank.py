"""What the tests of several processes run under mpiexec: `mpiexec -n N python -m tests.mpi_rank WHAT ARGUMENT…`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cnnlayers import cli, data, distributed, models, train


@contextlib.contextmanager
def in_float64() -> Any:
    """`train` computes in float64: its rounding hides nothing."""
    load, build = data.load, models.build

    def wide(a: Any) -> Any:
        return a.astype(np.float64) if a.dtype == np.float32 else a

    def load_wide(name: str) -> Any:
        found = load(name)
        object.__setattr__(found, "x", wide(found.x))
        return found

    data.load, models.build = load_wide, lambda *a, **k: build(*a, **k).map_arrays(wide)
    yield
    data.load, models.build = load, build


def command(*words: str) -> int:
    """`cnnlayers` with these words, in float64."""
    with in_float64():
        return cli.main(list(words))


def dying(how: str, out: str) -> int:
    """Rank 1 fails in the second epoch, in the given way, once rank 0 has come there too."""
    go_on, steps = train.Run._step, 0

    def step(self: train.Run, *arrays: Any) -> Any:
        nonlocal steps
        steps += len(self.records)
        if self.ranks.rank == 1 and steps == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"error": ZeroDivisionError, "oserror": OSError}[how]("rank 1 cannot go on")
        return go_on(self, *arrays)

    train.Run._step = step
    return cli.main(["train", "--distributed", "--epochs", "9", "--batch-size", "256", "--out", out])


def failing_alone(out: str) -> int:
    """Rank 1 alone cannot load the data."""
    load = data.load

    def broken(name: str) -> Any:
        if distributed.launched_rank() == 1:
            raise FileNotFoundError("no such disk on this machine")
        return load(name)

    data.load = broken
    return cli.main(["train", "--distributed", "--out", out])


def drifting(out: str) -> int:
    """Rank 1's weights are changed by the last bit after the first step."""
    step = train.Run._step

    def drift(self: train.Run, *arrays: Any) -> Any:
        found = step(self, *arrays)
        if self.ranks.rank == 1:
            weight = self.model.params["7.weight"]
            weight[0, 0] = np.nextafter(weight[0, 0], np.float32(9))
        return found

    train.Run._step = drift
    return cli.main(["train", "--distributed", "--epochs", "1", "--batch-size", "512", "--out", out])


def slow(out: str) -> int:
    """A run of many epochs that waits a while in each step, and says by a file when the first epoch is done."""
    step = train.Run._step

    def wait(self: train.Run, *arrays: Any) -> Any:
        time.sleep(0.05)
        if len(self.records) == 1:
            Path(out, f"rank{self.ranks.rank}").touch()
        return step(self, *arrays)

    train.Run._step = wait
    return cli.main(["train", "--distributed", "--epochs", "400", "--batch-size", "256", "--out", out])


if __name__ == "__main__":
    what = {f.__name__: f for f in (command, dying, failing_alone, drifting, slow)}[sys.argv[1]]
    sys.exit(what(*sys.argv[2:]))
