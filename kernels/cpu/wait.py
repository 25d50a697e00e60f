"""A compiled loop in which a thread waits for the others, on systems that have `sched_yield`."""

from __future__ import annotations

import importlib
from typing import Any

from .jit import kernel

Array = Any
MAX_POLLS = 500  # reads of done[0], with one system call each

types: Any = importlib.import_module("numba").types
sched_yield = types.ExternalFunction("sched_yield", types.int32())


@kernel()
def wait_until_done(done: Array) -> None:
    """Yield the processor until `done[0]` is 1, for a fifth of a millisecond at most."""
    for _ in range(MAX_POLLS):
        if done[0] == 1:
            break
        sched_yield()
