"""Which results are stored past the caches (vectors.stream): the CPU then does not first read what it overwrites."""

from __future__ import annotations

from typing import Any

from .jit import kernel
from .vectors import LANES, load, load_first, store_first, stream

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
    for i in range(head, whole, LANES):
        stream(y, at + i, load(x, i))
    for first, count in ((0, head), (whole, number - whole)):
        if count > 0:
            store_first(y, at + first, load_first(x, first, count), count)
