"""A pool's windows for the CPU kernels: always three spatial axes, and tables of the cells that each window sees.

A spatial axis that the array lacks has one window of one cell. NumPy computes the tables from an axis's few numbers;
the plan cache stores them, and calls only read them.

An array is (planes, depth, height, width, channels of a cell). Channels first: a plane for each channel of each sample,
and one channel in a cell. Channels last: a plane for each sample."""

from __future__ import annotations

import functools
import math
from typing import Any, TypeAlias

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis, Window

Array = Any
AnyAxis: TypeAlias = Axis | AdaptiveAxis
AnyWindow: TypeAlias = Window | AdaptiveWindow
MAX_TAPS = 2**24  # of a window: a table has a number for each
MISSING_AXIS = Axis(1, 1, 1)  # for a spatial axis that the array lacks: one window of one cell


def refusal(window: AnyWindow, array: Array | None) -> str | None:
    """Why no kernel serves windows of this array, or None."""
    if array is not None:
        name = backends.dtype_name(backends.of(array), array)
        if name not in backends.FLOATS:
            return f"arrays of {name}; kernels take {', '.join(backends.FLOATS)}"
        if not array.dtype.isnative:
            return "an array of foreign byte order"
    taps = _number_of_taps(window)
    return f"windows of {taps} taps; kernels take at most {MAX_TAPS}" if taps > MAX_TAPS else None


@functools.lru_cache(maxsize=256)  # not in the plan cache, which counts bytes: results are small
def _number_of_taps(window: AnyWindow) -> int:
    """Taps of a window."""
    return math.prod(window.kernel)


def three_axes(window: AnyWindow) -> tuple[AnyAxis, AnyAxis, AnyAxis]:
    """Depth, height and width."""
    axes: list[AnyAxis] = [MISSING_AXIS] * (3 - len(window.axes))
    axes += window.axes
    depth, height, width = axes
    return depth, height, width


def merged(axes: tuple[AnyAxis, AnyAxis, AnyAxis]) -> tuple[AnyAxis, AnyAxis, AnyAxis]:
    """The same windows with fewer axes, where all windows cover the last axis: its rows are then one row."""
    depth, height, width = axes
    for _ in range(2):
        if not isinstance(width, Axis) or not isinstance(height, Axis):
            break
        covers = width.out == 1 and width.whole and width.kernel == width.length
        if not covers or (height.dilation > 1 and height.kernel > 1):
            break
        cells = width.length
        kernel, stride = height.kernel * cells, height.stride * cells
        width = Axis(height.length * cells, height.out, kernel, stride, 1, height.before * cells, height.after * cells)
        depth, height = MISSING_AXIS, depth
    return depth, height, width


def planes_and_channels(window: AnyWindow) -> tuple[int, int]:
    """The number of planes, and the channels of a cell, at least 1: an array without channels has no planes."""
    samples, channels = int(window.layout.shape[0]), int(window.layout.channels)
    return (samples, channels) if window.layout.channel > 1 and channels > 0 else (samples * channels, 1)


# -------------------------------------------------------------------------------------------------------------- tables
def dilation_of(axis: AnyAxis) -> int:
    """Cells from one tap of a window to the next."""
    return 1 if isinstance(axis, AdaptiveAxis) else int(axis.dilation)


def window_extents(axis: AnyAxis) -> tuple[Array, Array, Array]:
    """For each window the cell under its first tap, its first tap inside the input, and the number of taps inside:
    (out,) each.

    A cell outside [0, length) is padding. A window without taps inside the input has 0 for the last two."""
    if isinstance(axis, AdaptiveAxis):
        start, end = _adaptive_bounds(axis)
        return start, np.zeros_like(start), end - start
    start = np.arange(-axis.before, (axis.out - 1) * axis.stride - axis.before + 1, axis.stride)
    if axis.whole:
        return start, np.zeros_like(start), np.full_like(start, axis.kernel)
    first = np.maximum(0, -(start // axis.dilation))
    number = np.minimum(axis.kernel, -((start - axis.length) // axis.dilation)) - first
    has_cells = number > 0
    return start, first * has_cells, number * has_cells


def _adaptive_bounds(axis: AdaptiveAxis) -> tuple[Array, Array]:
    """The first cell of each window of an adaptive pool, and the cell after its last: (out,) each."""
    window = np.arange(axis.out + 1)
    quotient, rest = divmod(axis.length, axis.out)  # the product of window and length might overflow
    multiples, remainders = np.divmod(window * rest, axis.out)
    edges = window * quotient + multiples
    return edges[:-1], edges[1:] + (remainders[1:] > 0)


def cells_under_windows(axis: AnyAxis, *, taps: bool = False) -> Array:
    """For each window its first cell inside the input, the number of such cells, `dilation_of(axis)` apart, and (with
    `taps`) the tap over the first one: (2 or 3, out)."""
    start, tap, number = window_extents(axis)
    first = (start + tap * dilation_of(axis)) * (number > 0)
    return _table(axis, first, number, tap) if taps else _table(axis, first, number)


def starts_and_counts(axis: AnyAxis) -> Array:
    """For each window the cell under its first tap, and the number of its cells inside the input: (2, out)."""
    start, _, number = window_extents(axis)
    return _table(axis, start, number)


def windows_over_cells(axis: AnyAxis) -> tuple[Array, int]:
    """For each cell the first window over it and the number of windows: (2, length); and the step between these."""
    if isinstance(axis, AdaptiveAxis):
        return cells_under_windows(axis.adjoint), 1
    # Window o covers cell c if c + before = o * stride + tap * dilation. Modulo the dilation there are solutions if the
    # greatest common divisor of stride and dilation divides c + before; they are then `period` windows apart.
    divisor = math.gcd(axis.stride, axis.dilation)
    period = axis.dilation // divisor
    inverse = pow(axis.stride // divisor, -1, period)
    place = np.arange(axis.length) + axis.before
    low = np.maximum(0, -((axis.dilation * (axis.kernel - 1) - place) // axis.stride))
    high = np.minimum(axis.out - 1, place // axis.stride)
    if period > 1:
        low += (place // divisor % period * inverse - low) % period
    has_windows = (place % divisor == 0) & (low <= high)
    return _table(axis, low * has_windows, ((high - low) // period + 1) * has_windows), period


def _table(axis: AnyAxis, *rows: Array) -> Array:
    """These rows as one array, of int32 if that can represent twice the axis's cells."""
    table = np.empty((len(rows), rows[0].size), np.int32 if max(axis.length, axis.out) < 2**30 else np.int64)
    for i, row in enumerate(rows):
        table[i] = row
    return table
