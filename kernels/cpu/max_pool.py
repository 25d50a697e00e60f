"""Launchers of max_pool_loops.py and max_pool_backward_loops.py: max and adaptive max pooling.

The chunks of forward are rows of windows. The chunks of backward are planes, because windows that overlap add to the
same cells."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis, Window
from cnnlayers.specs.windows import argmax_dtype_name

from . import max_pool_backward_loops as backward_loops
from .max_pool_plans import forward_plan, table_refusal
from .parallel import chunked, flat, launcher, over_planes, to_lanes
from .vectors import as_bits
from .windows import (
    AnyWindow,
    cells_under_windows,
    dilation_of,
    planes_and_channels,
    refusal,
    starts_and_counts,
    three_axes,
    window_extents,
)

Array = Any


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    window = _window(spec)
    return refusal(window, arrays[0] if arrays else None) or table_refusal(window)


# ----------------------------------------------------------------------------------------------------------------- ops
@launcher
def max_pool(spec: Any, x: Array) -> Callable[[Array], tuple[Array, Array | None]]:
    """y, and the indices or None."""
    run = _forward(spec.window, x, None, spec.indices)
    return lambda x: run(x)[::2]


@launcher
def max_pool_forward(spec: Any, x: Array) -> Callable[[Array], tuple[Array, Array, Array | None]]:
    """y, the argmax or tie bits, and the indices or None."""
    return _forward(spec.window, x, spec.ties, spec.indices)


@launcher
def max_pool_backward(spec: Any, dy: Array, saved: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _backward(spec.window, dy, saved, spec.ties)


@launcher
def adaptive_max_pool(window: AdaptiveWindow, x: Array) -> Callable[[Array], Array]:
    """y."""
    run = _forward(_regular(window), x, None, False)
    return lambda x: run(x)[0]


@launcher
def adaptive_max_pool_forward(window: AdaptiveWindow, x: Array) -> Callable[[Array], tuple[Array, Array]]:
    """y and the argmax."""
    run = _forward(_regular(window), x, "first", False)
    return lambda x: run(x)[:2]


@launcher
def adaptive_max_pool_backward(window: AdaptiveWindow, dy: Array, argmax: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _backward(window, dy, argmax, "first")  # the adaptive windows: adds, as the portable code does


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> AnyWindow:
    """The windows of a spec."""
    if not isinstance(spec, AdaptiveWindow):
        window: Window = spec.window
        return window
    return _regular(spec)


@functools.lru_cache(maxsize=256)  # not in the plan cache, which counts bytes: results are small
def _regular(window: AdaptiveWindow) -> AnyWindow:
    """The windows of an adaptive pool, as ordinary ones where the lengths divide."""
    return window.regular() or window


def _sizes(window: AnyWindow) -> tuple[int, ...]:
    """`sizes` of the loops."""
    axes = three_axes(window)
    return (*(a.length for a in axes), *(a.out for a in axes), planes_and_channels(window)[1])


@backends.planned
def _tie_tables(window: AnyWindow) -> tuple[Any, ...]:
    """The arguments of `tie_bits` between the arrays and the range."""
    axes = three_axes(window)
    dilations, tables = tuple(map(dilation_of, axes)), (cells_under_windows(axis, taps=True) for axis in axes)
    return _sizes(window), tuple(a.kernel for a in axes), dilations, *tables


@backends.planned
def _backward_tables(window: AnyWindow) -> tuple[Array, Array, Array]:
    """`offsets rows w` of the loops."""
    axes, offsets, channels = three_axes(window), np.zeros(1, np.int64), planes_and_channels(window)[1]
    for axis in axes:
        taps = np.arange(axis.kernel) * dilation_of(axis)
        offsets = (offsets[:, None] * axis.length + taps).reshape(-1)
    (d, in_d), (h, in_h), w = map(starts_and_counts, axes)
    d, h = d.astype(np.int64), h.astype(np.int64)
    begin = ((d[:, None] * axes[1].length + h) * axes[2].length).reshape(-1)
    rows = np.stack([begin, (begin + w[0, -1:] + offsets[-1] + 1) * channels, (in_d[:, None] * in_h > 0).reshape(-1)])
    rows[1, -1:] = math.prod(a.length for a in axes) * channels  # the last row sets what is left to 0
    return offsets, rows, w


@backends.planned
def _simple(window: AnyWindow) -> bool:
    """Whether every window sees a cell of the input, and cells have one channel. Only a dilated window can miss it."""
    return planes_and_channels(window)[1] == 1 and all(
        isinstance(a, AdaptiveAxis) or a.dilation == 1 or a.whole or bool((window_extents(a)[2] > 0).all())
        for a in window.axes
    )


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(
    window: AnyWindow, x: Array, ties: str | None, with_indices: bool
) -> Callable[[Array], tuple[Array, Array, Array | None]]:
    """A function of arrays like x: y, what the backward of this tie rule needs (None: nothing), and the indices, or
    None."""
    make, arguments, rows = forward_plan(window, np.float64 if x.dtype == np.float64 else np.float32)
    save, dtype, shape = ties == "first" or with_indices, np.dtype(argmax_dtype_name(window.kernel)), window.out_shape
    new, new_argmax = backends.new_result(shape, x.dtype), functools.partial(np.empty, shape if save else 0, dtype)
    size, loop = math.prod(shape), make(save)
    in_chunks = chunked(rows if size else 0, x.nbytes + size * (x.itemsize + (dtype.itemsize if save else 0)))
    indices = _indices(window, dtype) if with_indices else None
    bits = _tie_bits(window, x) if ties not in (None, "first") else None

    def run(x: Array) -> tuple[Array, Array, Array | None]:
        y, argmax = new(), new_argmax()
        in_chunks(loop, to_lanes(x), to_lanes(y), argmax.ravel(), *arguments)
        return y, argmax if bits is None else bits(x, y), None if indices is None else indices(argmax)

    return run


def _tie_bits(window: AnyWindow, x: Array) -> Callable[[Array, Array], Array]:
    """A function of x and y: one bit a tap, set where the cell equals the maximum; shape (bytes, *y.shape)."""
    arguments, number, size = _tie_tables(window), (math.prod(window.kernel) + 7) // 8, math.prod(window.out_shape)
    nbytes, rows = x.nbytes + size * (x.itemsize + number), math.prod(arguments[0][3:5])
    over = over_planes(planes_and_channels(window)[0], rows, x.dtype, nbytes if size else 0, (1, 1, number))

    def run(x: Array, y: Array) -> Array:
        bits = np.empty((number, *y.shape), np.uint8)
        if size:
            over(backward_loops.tie_bits, (x, y), (bits,), *arguments)
        return bits

    return run


def _indices(window: AnyWindow, dtype: Any) -> Callable[[Array], Array]:
    """A function of the argmax: the flat cell of each maximum in its plane; -1 if the window sees no cell."""
    tables, number = _backward_tables(window), math.prod(window.out_shape)
    planes, channels = planes_and_channels(window)
    in_chunks = chunked(planes * tables[1].shape[1] if number else 0, number * (8 + dtype.itemsize))

    def run(argmax: Array) -> Array:
        indices = np.empty(argmax.shape, np.int64)
        in_chunks(backward_loops.flat_indices, flat(argmax), flat(indices), channels, *tables)
        return indices

    return run


def _backward(window: AnyWindow, dy: Array, saved: Array, ties: str) -> Callable[[Array, Array], Array]:
    """A function of arrays like dy and what was saved: dx."""
    shape, (planes, channels) = window.layout.shape, planes_and_channels(window)
    disjoint, size = all(isinstance(a, Axis) and a.disjoint for a in window.axes), math.prod(shape)
    arguments = size // max(planes, 1), channels, *_backward_tables(window)
    loop = backward_loops.make_backward(ties, _simple(window), disjoint)
    moved = ties == "first" and disjoint  # numbers are only moved: half types need no conversion
    of_bits: Callable[[Array], Array] = as_bits if moved else lambda array: array
    rows = (1, 1 if ties == "first" else saved.shape[0], 1)
    nbytes = dy.nbytes + saved.nbytes + size * dy.itemsize
    new, over = backends.new_result(shape, dy.dtype), over_planes(planes, 1, of_bits(dy).dtype, nbytes, rows)

    def run(dy: Array, saved: Array) -> Array:
        dx = new()
        if size:
            over(loop, (of_bits(dy), saved), (of_bits(dx),), *arguments)
        return dx

    return run
