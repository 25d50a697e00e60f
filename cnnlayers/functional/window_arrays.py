"""Where the windows of an axis begin and end, as arrays of the caller's backend: computed from the axis's few numbers,
by array operations, whenever portable code needs them. Nothing is kept.
"""

from __future__ import annotations

from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, Axis

from ._common import Array


def on_axis(b: Backend, array: Array, where: int, ndim: int) -> Array:
    """A line of numbers as an array with `ndim` axes, along axis `where`."""
    return b.xp.reshape(array, (1,) * where + (-1,) + (1,) * (ndim - where - 1))


def window_starts(b: Backend, axis: Axis | AdaptiveAxis) -> Array:
    """The cell under each window's first tap, int64; outside [0, length) it is padding."""
    window = b.arange(axis.out)
    if isinstance(axis, Axis):
        return window * axis.stride - axis.before
    quotient, rest = divmod(axis.length, axis.out)  # the product of window and length might overflow
    return window * quotient + window * rest // axis.out


def window_ends(b: Backend, axis: AdaptiveAxis) -> Array:
    """The cell behind each window's last one, int64."""
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
