"""Which results are stored past the caches (vectors.stream): the CPU then does not first read what it overwrites."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .vectors import LANES, stream_copy

U = np.uintp
STREAM_BYTES = 12 << 20  # of a result that is: relu and the norms then take 0.4 to 0.7 of the time


@kernel(allocates=False)
def stored_past_caches(y: Any) -> bool:
    """Whether a result is: it is large, and starts at a cache line."""
    past: bool = y.size * y.itemsize >= STREAM_BYTES and y.ctypes.data % 64 == 0
    return past


@kernel(allocates=False)
def copy_past_caches(x: Any, y: Any, at: int, number: int) -> None:
    """Copy the first cells of x to y, from cell `at` on, whole cache lines of it past the caches. Then: `fence`."""
    head = min(number, -at % LANES)
    whole = number - (number - head) % LANES
    for i in range(U(head)):
        y[U(at) + i] = x[i]
    for i in range(U(head), U(whole), U(LANES)):
        stream_copy(y, U(at) + i, x, i)
    for i in range(U(whole), U(number)):
        y[U(at) + i] = x[i]
