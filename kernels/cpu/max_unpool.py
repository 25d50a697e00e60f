"""Launchers of max_unpool_loops.py. Arguments are the portable code's: the window is that of the pool that is undone,
so its input is y and its output x."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import Window

from . import max_unpool_loops as loops
from .parallel import chunked, flat, launcher
from .windows import planes_and_channels

Array = Any


def refuses(step: str, window: Window, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return None if all(a.dtype.isnative for a in arrays) else "an array of foreign byte order"


@launcher
def max_unpool_forward(window: Window, x: Array, indices: Array) -> Callable[[Array, Array], tuple[Array, Array]]:
    """y, and the cell that each entry of x reached, or −1."""
    entries, cells, channels, planes = _counts(window)
    shape, dtype = window.layout.shape, np.int32 if cells < 2**31 else np.int64
    new, new_reached = backends.new_result(shape, x.dtype), functools.partial(np.empty, window.out_shape, dtype)
    in_chunks = chunked(planes, x.size * (x.itemsize + 8 + dtype().itemsize) + math.prod(shape) * x.itemsize)

    def run(x: Array, indices: Array) -> tuple[Array, Array]:
        y, reached = new(), new_reached()
        arrays = _bits(x), flat(indices), _bits(y), reached.ravel()
        in_chunks(loops.forward, *arrays, entries, cells, channels)
        return y, reached

    return run


@launcher
def max_unpool_backward(window: Window, dy: Array, reached: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    entries, cells, channels, planes = _counts(window)
    new = backends.new_result(window.out_shape, dy.dtype)
    in_chunks = chunked(planes, dy.nbytes + reached.nbytes + reached.size * dy.itemsize)

    def run(dy: Array, reached: Array) -> Array:
        dx = new()
        in_chunks(loops.backward, _bits(dy), flat(reached), _bits(dx), entries, cells, channels)
        return dx

    return run


def _bits(array: Array) -> Array:
    """The array's elements as unsigned integers, flat."""
    return flat(array).view(f"u{array.dtype.itemsize}")


def _counts(window: Window) -> tuple[int, int, int, int]:
    """Entries and cells of a plane, channels of a cell, and planes."""
    samples, channels = planes_and_channels(window)
    return math.prod(window.out_lengths), math.prod(window.layout.lengths), channels, samples * channels
