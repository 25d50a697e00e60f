"""What a process can tell of the launcher that started it (mpiexec, srun), without MPI."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from typing import IO

__all__ = ["launched_rank", "launched_size", "size_variable", "wait_for_reader"]

# What the launchers of MPICH, Intel MPI, Open MPI, MVAPICH and Slurm (srun) tell a process, before MPI is started.
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def _from_environment(variables: Sequence[str], otherwise: int) -> int:
    found = (os.environ.get(name, "") for name in variables)
    return next((int(text) for text in found if text.isdecimal()), otherwise)


def launched_rank() -> int:
    """This process's rank as its launcher says; 0 without one. Needs no MPI.

    Returns
    -------
    int
    """
    return _from_environment(RANK_VARIABLES, 0)


def size_variable() -> str:
    """The name of the variable that `launched_size` reads; empty without a launcher.

    Returns
    -------
    str
    """
    return next((name for name in SIZE_VARIABLES if os.environ.get(name, "").isdecimal()), "")


def launched_size() -> int:
    """How many processes the launcher says it started; 1 without one. Needs no MPI.

    Returns
    -------
    int
    """
    return _from_environment(SIZE_VARIABLES, 1)


def wait_for_reader(stream: IO[str], seconds: float = 2.0) -> None:
    """Wait until the reader of a pipe has read all that was written, for a limited time. A launcher that ends a job
    drops what it has not read yet (MPICH's lost the last line of 1 traceback in 16). Other streams do not wait."""
    try:
        from fcntl import ioctl
        from termios import FIONREAD

        fd, end = stream.fileno(), time.monotonic() + seconds
        while stat.S_ISFIFO(os.fstat(fd).st_mode) and time.monotonic() < end and any(ioctl(fd, FIONREAD, bytes(4))):
            time.sleep(0.005)
    except (ImportError, OSError, ValueError):  # no such calls on this system, or no file behind the stream
        return
