"""Room for a slab's temporary arrays, kept from one slab to the next.

Fresh pages cost more than what a slab writes to them. So a buffer that has served goes back to a shelf, which holds one
of each size for each of the library's threads, and none larger than KEPT.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy

from .threads import num_threads

KEPT = 32 << 20  # bytes of the largest buffer that waits for its next use
LEAST = 1 << 16  # bytes of the smallest
ALIGNED = 64  # bytes: a cache line

# Buffers by their size, a power of two. Their lists' append and pop are atomic: any thread may come at any time.
_shelf: defaultdict[int, list[Any]] = defaultdict(list)


@contextlib.contextmanager
def scratch(dtype: Any, *shapes: tuple[int, ...]) -> Iterator[list[Any]]:
    """NumPy arrays of these shapes with any content, the caller's until the block ends."""
    counts, size = [math.prod(shape) for shape in shapes], numpy.dtype(dtype).itemsize
    room = [-(-count * size // ALIGNED) * ALIGNED for count in counts]
    total = max(LEAST, 1 << (sum(room) - 1).bit_length())
    shelf = _shelf[total]
    try:
        buffer = shelf.pop()
    except IndexError:
        buffer = numpy.empty(total + ALIGNED, numpy.uint8)
        buffer = buffer[-buffer.ctypes.data % ALIGNED :][:total]
    arrays, start = [], 0
    for shape, count, nbytes in zip(shapes, counts, room, strict=True):
        arrays.append(buffer[start : start + count * size].view(dtype).reshape(shape))
        start += nbytes
    yield arrays
    # Not after an error: a thread that was not waited for (a second Ctrl-C) may write to it still.
    if total <= KEPT and len(shelf) < num_threads():
        shelf.append(buffer)
