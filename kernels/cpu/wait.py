"""A loop that waits for other threads, where the system has `sched_yield`."""

from __future__ import annotations

import importlib
from typing import Any

from .jit import kernel

Array = Any
LOOKS = 500  # at a number that is to become 1, each with a call to the system

types: Any = importlib.import_module("numba").types
sched_yield = types.ExternalFunction("sched_yield", types.int32())


@kernel()
def watch(done: Array) -> None:
    """Give way to other threads until `done[0]` is 1, or for a fifth of a millisecond."""
    for _ in range(LOOKS):
        if done[0] == 1:
            break
        sched_yield()
