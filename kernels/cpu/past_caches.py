"""Which results are stored past the caches (vectors.stream): the CPU then does not first read what it overwrites."""

from __future__ import annotations

from typing import Any

from .jit import kernel

STREAM_BYTES = 12 << 20  # of a result that is: relu and the norms then take 0.4 to 0.7 of the time


@kernel(allocates=False)
def stored_past_caches(y: Any) -> bool:
    """Whether a result is: it is large, and starts at a cache line."""
    past: bool = y.size * y.itemsize >= STREAM_BYTES and y.ctypes.data % 64 == 0
    return past
