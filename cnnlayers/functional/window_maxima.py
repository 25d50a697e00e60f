"""The maxima of windows, and their places, in array-API code: what max pooling and adaptive max pooling share.

A maximum is taken axis by axis, the last axis first. Its rules (the first among equals, NaN beats every number) are in
max_pool.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis, Window, taps
from cnnlayers.specs.windows import argmax_dtype_name

from .arrays import Array, cast, select
from .window_arrays import axis_index, first_taps, on_axis, window_ends, window_starts


def _lowest(b: Backend, x: Array) -> Any:
    return -math.inf if backends.dtype_name(b, x) in backends.FLOATS else b.xp.iinfo(x.dtype).min


# ------------------------------------------------------------------------------------------------------------- forward
# A maximum over a window is taken axis by axis, the last first: then "first in C order" is "first on this axis", and
# the place within the window grows with each axis: tap * (taps of the later axes) + place on those.
Read = tuple[int, tuple[Any, ...], Callable[[Array], Array], "Array | None"]


def read_slice(at: tuple[Any, ...]) -> Callable[[Array], Array]:
    return lambda a: a[at]


def read_cells(b: Backend, cells: Array, dim: int) -> Callable[[Array], Array]:
    return lambda a: b.xp.take(a, cells, axis=dim)


def _reads(b: Backend, dim: int, ndim: int, axis: Axis | AdaptiveAxis) -> Iterator[Read]:
    """For each tap: the tap, the windows it serves, how to read their cells, and which of these count (None: all)."""
    if isinstance(axis, Axis):
        for tap, windows, cells in taps(axis):
            yield tap, axis_index(dim, windows), read_slice(axis_index(dim, cells)), None
        return
    start, end = window_starts(b, axis), window_ends(b, axis)
    for tap in range(axis.kernel):
        cells = b.xp.clip(start + tap, None, axis.length - 1)
        counted = None if tap < axis.narrowest else on_axis(b, start + tap < end, dim, ndim)
        yield tap, axis_index(dim, slice(None)), read_cells(b, cells, dim), counted


def _seed(
    b: Backend, x: Array, places: Array | None, dim: int, axis: Axis | AdaptiveAxis, argmax: Any, later: int
) -> tuple[Array, Array | None]:
    """Each window's first cell inside the input, and its place: no sentinel can be taken for a cell that way."""
    ndim, whole = len(x.shape), isinstance(axis, AdaptiveAxis) or axis.whole
    if isinstance(axis, AdaptiveAxis):
        cells = window_starts(b, axis)
    elif axis.whole:
        cells = None
    else:
        tap, cells, meets = first_taps(b, axis)
    best = _first_cells(b, x, dim, axis, cells)
    if not whole:
        best = select(b, on_axis(b, meets, dim, ndim), best, b.full((), _lowest(b, x), x.dtype))
    if argmax is None:
        return best, None
    place = b.zeros((1,) * ndim, argmax) if whole else on_axis(b, cast(b, tap * later, argmax), dim, ndim)
    if places is None:
        return best, b.xp.broadcast_to(place, best.shape) + b.zeros(tuple(best.shape), argmax)
    return best, _first_cells(b, places, dim, axis, cells) + place


def _first_cells(b: Backend, x: Array, dim: int, axis: Axis | AdaptiveAxis, cells: Array | None) -> Array:
    """A copy of the cells of x along an axis; None: those under tap 0 of an ordinary axis, which are a slice."""
    if cells is None and isinstance(axis, Axis):
        _, _, under = next(taps(axis))
        return b.xp.asarray(x[axis_index(dim, under)], copy=True)
    return b.xp.take(x, cells, axis=dim)


def _max_axis(
    b: Backend, x: Array, places: Array | None, dim: int, axis: Axis | AdaptiveAxis, argmax: Any, later: int
) -> tuple[Array, Array | None]:
    """The maximum along one axis, and its place where `argmax` (a dtype) is given."""
    best, place = _seed(b, x, places, dim, axis, argmax, later)
    floats = backends.dtype_name(b, x) in backends.FLOATS
    seeded = isinstance(axis, AdaptiveAxis) or axis.whole  # then every window's first cell is under tap 0
    for tap, windows, read, counted in _reads(b, dim, len(x.shape), axis):
        if tap == 0 and seeded:
            continue
        value, current = read(x), best[windows]
        better = ~(value <= current) & (current == current) if floats else value > current
        if counted is not None:
            better = better & counted
        best[windows] = select(b, better, value, current)
        if place is not None:
            step = b.full((), tap * later, argmax)
            new = step if places is None else read(places) + step
            place[windows] = select(b, better, new, place[windows])
    return best, place


def maxima(b: Backend, window: Window | AdaptiveWindow, x: Array, *, save: bool) -> tuple[Array, Array | None]:
    """Windows' maxima, and (with `save`) their places within the window."""
    argmax = getattr(b.xp, argmax_dtype_name(window.kernel)) if save else None
    places, later = None, 1
    placed: list[tuple[int, Axis | AdaptiveAxis]] = [*window.placed]
    for dim, axis in reversed(placed):
        x, places = _max_axis(b, x, places, dim, axis, argmax, later)
        later *= axis.kernel
    return x, places


def flat_cells(b: Backend, window: Window | AdaptiveWindow, argmax: Array, dtype: Any) -> Array:
    """The flat place in the unpadded spatial plane of each window's maximum, from its place in the window; or −1."""
    rest, plane = cast(b, argmax, dtype), 1
    flat, exists = b.zeros(tuple(argmax.shape), dtype), b.xp.ones_like(argmax, dtype=b.xp.bool)
    placed: list[tuple[int, Axis | AdaptiveAxis]] = [*window.placed]
    for dim, axis in reversed(placed):
        step = axis.dilation if isinstance(axis, Axis) else 1
        start = on_axis(b, cast(b, window_starts(b, axis), dtype), dim, len(argmax.shape))
        cell = start + rest % axis.kernel * step
        exists = exists & (cell >= 0)  # a window's maximum is never beyond the end
        flat, rest, plane = flat + cell * plane, rest // axis.kernel, plane * axis.length
    return b.xp.where(exists, flat, b.full((), -1, dtype))
