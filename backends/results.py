"""Room for large results, kept from one call to the next.

The allocator of the C library gives an array of more than 32 MB back to the system as soon as it is freed, and a fresh
one costs a page fault, and a clearing, for every page: as long as many an op takes. So a large result of an op lies in
a block that goes to a shelf when the last array that looks at it is gone, and the next result of its size takes it. The
shelf holds half a gigabyte at most, and no more than a thirty-second of the machine's memory; what lay longest goes
first.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy

LEAST = 32 << 20  # bytes of the smallest result: the C library itself keeps smaller ones

# Blocks, the latest last. Who finds the lock taken does without the shelf: nobody waits, not in a collected array's
# last moment and not in a forked child.
_shelf: list[Any] = []
_lock = threading.Lock()


def _machine() -> int:
    """Bytes of the machine's memory; where the system does not say, 4 GB."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


KEPT = min(512 << 20, _machine() // 32)  # a container may have far less memory than its machine


class _Lent:
    """A block's owner while arrays look at it: they hold on to this, and so it lives as long as the last of them."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        if _lock.acquire(blocking=False):
            try:
                _shelf.append(self.block)
                while sum(block.nbytes for block in _shelf) > KEPT:
                    del _shelf[0]
            finally:
                _lock.release()


def result(shape: tuple[int, ...], dtype: Any) -> Any:
    """A NumPy array with any content, C-contiguous, for a result that is given away."""
    dtype = numpy.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < LEAST or nbytes > KEPT:
        return numpy.empty(shape, dtype)
    return numpy.asarray(_Lent(_block(nbytes))).view(dtype).reshape(shape)


def _block(nbytes: int) -> Any:
    """The latest block of this size on the shelf, or a new one."""
    if _lock.acquire(blocking=False):
        try:
            for i in reversed(range(len(_shelf))):
                if _shelf[i].nbytes == nbytes:
                    return _shelf.pop(i)
        finally:
            _lock.release()
    return numpy.empty(nbytes, numpy.uint8)
