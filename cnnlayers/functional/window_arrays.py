"""What the portable pools share: where the windows of an axis begin and end, as arrays of the caller's backend, and the
sums of windows. All is computed from an axis's few numbers, by array operations, when it is needed. Nothing is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, Axis, Window, taps

from .arrays import SHORT_SUM, Array, sum_dtype


def on_axis(b: Backend, array: Array, dim: int, ndim: int) -> Array:
    """A line of numbers as an array with `ndim` axes, along axis `dim`."""
    return b.xp.reshape(array, (1,) * dim + (-1,) + (1,) * (ndim - dim - 1))


def window_starts(b: Backend, axis: Axis | AdaptiveAxis) -> Array:
    """The cell under each window's first tap, int64; outside [0, length) it is padding."""
    window = b.arange(axis.out)
    if isinstance(axis, Axis):
        return window * axis.stride - axis.before
    quotient, rest = divmod(axis.length, axis.out)  # the product of window and length might overflow
    return window * quotient + window * rest // axis.out


def window_ends(b: Backend, axis: AdaptiveAxis) -> Array:
    """The cell after each window's last one, int64."""
    window = b.arange(axis.out) + 1
    quotient, rest = divmod(axis.length, axis.out)
    return window * quotient + (window * rest + (axis.out - 1)) // axis.out


def first_taps(b: Backend, axis: Axis) -> tuple[Array, Array, Array]:
    """For each window its first tap that meets the input, the cell under it, and whether there is one; where there is
    none, tap 0 and cell 0."""
    start = window_starts(b, axis)
    zero = b.zeros((), b.xp.int64)
    tap = b.xp.maximum(-(start // axis.dilation), zero)
    cell = start + tap * axis.dilation
    meets = (tap < axis.kernel) & (cell < axis.length)
    return b.xp.where(meets, tap, zero), b.xp.where(meets, cell, zero), meets


def tap_counts(b: Backend, axis: Axis, include_pad: bool) -> int | Array:
    """The taps of each window that are inside the input (and its declared padding): one number where all windows have
    as many, else int64 numbers. Ceil mode's overhang never counts."""
    before, after = (axis.before, axis.after) if include_pad else (0, 0)
    if axis.whole_with(before, after):
        return axis.kernel
    start = window_starts(b, axis)
    end, begin = (_taps_below(b, axis, start, bound) for bound in (axis.length + after, -before))
    return end - begin


def _taps_below(b: Backend, axis: Axis, start: Array, bound: int) -> Array:
    return b.xp.clip(-((start - bound) // axis.dilation), 0, axis.kernel)


def axis_index(dim: int, part: Any) -> tuple[Any, ...]:
    """The index that takes `part` of axis `dim` and everything of the others."""
    return (slice(None),) * dim + (part, ...)


def resized(array: Array, dim: int, length: int) -> tuple[int, ...]:
    shape = tuple(array.shape)
    return (*shape[:dim], length, *shape[dim + 1 :])


# ----------------------------------------------------------------------------------------------------- sums of windows
def loops_over_windows(axis: Axis) -> bool:
    """Whether a loop over the axis's windows is shorter than one over taps: for one window, and for long kernels."""
    return axis.out == 1 or axis.out < axis.kernel > SHORT_SUM


def window_parts(axis: Axis) -> Iterator[tuple[slice, slice]]:
    """Windows and the cells that they see: of all windows the cells under one tap, tap by tap, or where the loop is
    over windows all cells of one window."""
    if not loops_over_windows(axis):
        for _, windows, cells in taps(axis):
            yield windows, cells
        return
    for window in range(axis.out):
        start = window * axis.stride - axis.before
        first = start + max(0, -(start // axis.dilation)) * axis.dilation
        stop = min(start + axis.dilation * (axis.kernel - 1) + 1, axis.length)
        if first < stop:
            yield slice(window, window + 1), slice(first, stop, axis.dilation)


def _sum_axis(b: Backend, x: Array, dim: int, axis: Axis, dtype: Any) -> Array:
    """Window sums along one axis, in `dtype`."""
    y, by_window = b.zeros(resized(x, dim, axis.out), dtype), loops_over_windows(axis)
    for windows, cells in window_parts(axis):
        part = x[axis_index(dim, cells)]
        y[axis_index(dim, windows)] += b.xp.sum(part, axis=dim, keepdims=True, dtype=dtype) if by_window else part
    return y


def _axis_adjoint(b: Backend, dy: Array, dim: int, axis: Axis, dtype: Any) -> Array:
    """The adjoint: each cell adds up the windows over it."""
    dx = b.zeros(resized(dy, dim, axis.length), dtype)
    for windows, cells in window_parts(axis):
        dx[axis_index(dim, cells)] += dy[axis_index(dim, windows)]
    return dx


def window_sums(b: Backend, window: Window, x: Array) -> Array:
    """The sum of each window's cells; long sums are float64."""
    dtype = sum_dtype(b, math.prod(window.kernel), x.dtype)
    for dim, axis in window.placed:
        x = _sum_axis(b, x, dim, axis, dtype)
    return x


def window_adjoint(b: Backend, window: Window, dy: Array) -> Array:
    """The adjoint of `window_sums`."""
    dtype = sum_dtype(b, math.prod(a.overlap for a in window.axes), dy.dtype)
    for dim, axis in reversed(window.placed):
        dy = _axis_adjoint(b, dy, dim, axis, dtype)
    return dy
