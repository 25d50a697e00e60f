"""Launchers of max_unpool_loops.py. Arguments are the portable code's: the window is that of the pool that is undone,
so its input is y and its output x."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import Window

from . import max_unpool_loops as loops
from .parallel import flat, parallel_chunks
from .windows import planes_and_channels

Array = Any


def refuses(step: str, window: Window, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return None if all(a.dtype.isnative for a in arrays) else "an array of foreign byte order"


def max_unpool_forward(b: Backend, window: Window, x: Array, indices: Array) -> tuple[Array, Array]:
    """y, and the cell that each entry of x reached, or −1."""
    entries, cells, channels, planes = _counts(window)
    y = backends.result(window.layout.shape, x.dtype)
    reached = np.empty(window.out_shape, np.int32 if cells < 2**31 else np.int64)
    arrays = _bits(x), flat(indices), _bits(y), reached.reshape(-1)

    def run(start: int, stop: int) -> None:
        loops.forward(*arrays, entries, cells, channels, start, stop)

    parallel_chunks(planes, sum(a.nbytes for a in arrays), run)
    return y, reached


def max_unpool_backward(b: Backend, window: Window, dy: Array, reached: Array) -> Array:
    """dx."""
    entries, cells, channels, planes = _counts(window)
    dx = backends.result(window.out_shape, dy.dtype)
    arrays = _bits(dy), flat(reached), _bits(dx)

    def run(start: int, stop: int) -> None:
        loops.backward(*arrays, entries, cells, channels, start, stop)

    parallel_chunks(planes, sum(a.nbytes for a in arrays), run)
    return dx


def _bits(array: Array) -> Array:
    """The array's elements as unsigned integers, flat."""
    return flat(np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}"))


def _counts(window: Window) -> tuple[int, int, int, int]:
    """Entries and cells of a plane, channels of a cell, and planes."""
    samples, channels = planes_and_channels(window)
    return math.prod(window.out_lengths), math.prod(window.layout.lengths), channels, samples * channels
