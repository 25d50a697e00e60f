"""Launchers of max_pool_loops.py: max pooling and its adaptive form, called as the portable code is.

Forward is cut into runs of rows of windows. Backward of windows that are UNROLLED gathers, in runs of rows of dx; that
of others writes where each maximum lies, in runs of planes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from . import max_pool_loops as loops
from .pool_window import axes_of, inside, is_adaptive, lines, met, over, planes_of, refusal, small, step, windows_of

Array = Any
UNROLLED = ((2, 2), (3, 1), (3, 2))  # width and stride of windows whose rows max_pool_loops.py takes in one go


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return refusal(_window(spec), arrays[0] if arrays else None)


def warmup(op: str, spec: Any) -> None:
    """Compile what `op` needs for this spec, by pooling one plane of ones in either dtype."""
    window = small(_window(spec))
    ties, numbered = getattr(spec, "ties", "first"), getattr(spec, "indices", False)
    for dtype in (np.float32, np.float64):
        x = np.ones(window.layout.shape, dtype)
        if op.endswith("_backward"):
            y, saved, _ = _forward(window, x, ties, False)
            _backward(window, y, saved, ties)
        else:
            _forward(window, x, ties if op.endswith("_forward") else None, numbered)


# ----------------------------------------------------------------------------------------------------------------- ops
def max_pool(b: Backend, spec: Any, x: Array) -> tuple[Array, Array | None]:
    """y, and the indices if they are wanted."""
    y, _, indices = _forward(spec.window, x, None, spec.indices)
    return y, indices


def max_pool_forward(b: Backend, spec: Any, x: Array) -> tuple[Array, Array, Array | None]:
    """y, the argmax or tie bits, and the indices if they are wanted."""
    return _forward(spec.window, x, spec.ties, spec.indices)


def max_pool_backward(b: Backend, spec: Any, dy: Array, saved: Array) -> Array:
    """dx."""
    return _backward(spec.window, dy, saved, spec.ties)


def adaptive_max_pool(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _forward(_window(spec), x, None, False)[0]


def adaptive_max_pool_forward(b: Backend, spec: Any, x: Array) -> tuple[Array, Array]:
    """y and the argmax."""
    y, argmax, _ = _forward(_window(spec), x, "first", False)
    return y, argmax


def adaptive_max_pool_backward(b: Backend, spec: Any, dy: Array, argmax: Array) -> Array:
    """dx."""
    return _backward(spec, dy, argmax, "first")  # adds up, as the portable code does also where windows are disjoint


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> Any:
    """The windows of a spec; an adaptive pool's as ordinary ones where the lengths divide."""
    return spec.window if hasattr(spec, "window") else spec.regular() or spec


def _sizes(window: Any) -> tuple[int, ...]:
    axes = axes_of(window)
    return (*(a.length for a in axes), *(a.out for a in axes), planes_of(window)[1])


def _place_dtype(window: Any) -> Any:
    """The smallest unsigned dtype that holds a tap's place in the window."""
    taps = math.prod(window.kernel)
    return np.uint8 if taps <= 2**8 else np.uint16 if taps <= 2**16 else np.uint32


def _offsets(window: Any) -> Array:
    """The cell under each tap of a window, in C order, relative to the window's start in the plane."""
    offsets = np.zeros(1, np.int64)
    for axis in axes_of(window):
        taps = np.arange(axis.kernel) * step(axis)
        offsets = (offsets[:, None] * axis.length + taps).reshape(-1)
    return offsets


def _unrolled(window: Any) -> tuple[int, int, int, int]:
    """Width and stride of rows of taps to unroll, and from which window to which; width 0 for none."""
    axis = axes_of(window)[2]
    if planes_of(window)[1] > 1 or is_adaptive(axis) or step(axis) > 1 or (axis.kernel, axis.stride) not in UNROLLED:
        return 0, 1, 0, 0
    return (axis.kernel, axis.stride, *inside(axis))


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(window: Any, x: Array, ties: str | None, numbered: bool) -> tuple[Array, Array, Array | None]:
    """y, what backward needs of this tie rule (None: nothing), and the indices where they are wanted."""
    axes, y = axes_of(window), np.empty(window.out_shape, x.dtype)
    save = ties == "first" or numbered
    place = np.empty(window.out_shape if save else (0,), _place_dtype(window))
    sizes, (d, h, w) = _sizes(window), map(met, axes)
    taps, steps = (axes[1].kernel, axes[2].kernel), tuple(step(axis) for axis in axes)
    planes, channels = planes_of(window)
    rows = axes[0].out * axes[1].out
    width, stride, low, high = _unrolled(window)

    def maxima(x: Array, y: Array, place: Array, start: int, stop: int) -> None:
        if channels == 1:
            loops.forward(width, stride, save)(x, y, place, sizes, taps, steps, d, h, w, low, high, start, stop)
        else:
            loops.forward_last(save)(x, y, place, sizes, taps, steps, d, h, w, start, stop)

    over(planes, rows, (lines(x),), (lines(y), lines(place)), maxima)
    indices = _indices(window, place) if numbered else None
    if ties in (None, "first"):
        return y, place, indices
    number = (math.prod(window.kernel) + 7) // 8
    bits = np.empty((number, *window.out_shape), np.uint8)

    def equal(x: Array, y: Array, bits: Array, start: int, stop: int) -> None:
        loops.ties(x, y, bits, sizes, taps, steps, d, h, w, start, stop)

    over(planes, rows, (lines(x), lines(y)), (lines(bits, number),), equal)
    return y, bits, indices


def _indices(window: Any, place: Array) -> Array:
    indices = np.empty(window.out_shape, np.int64)
    axes, sizes, offsets = axes_of(window), _sizes(window), _offsets(window)
    d, h, w = map(met, axes)

    def cells(place: Array, indices: Array, start: int, stop: int) -> None:
        loops.numbered(place, indices, sizes, offsets, d, h, w, start, stop)

    over(planes_of(window)[0], axes[0].out * axes[1].out, (lines(place),), (lines(indices),), cells)
    return indices


def _backward(window: Any, dy: Array, saved: Array, ties: str) -> Array:
    dx = np.empty(window.layout.shape, dy.dtype)
    axes, sizes, offsets = axes_of(window), _sizes(window), _offsets(window)
    disjoint = not is_adaptive(window.axes[0]) and all(axis.disjoint for axis in axes)
    (d, h, w), planes = map(met, axes), planes_of(window)[0]

    def first(dy: Array, place: Array, dx: Array, start: int, stop: int) -> None:
        loops.backward(dy, place, dx, sizes, offsets, disjoint, d, h, w, start, stop)

    def equal(dy: Array, bits: Array, dx: Array, start: int, stop: int) -> None:
        loops.ties_backward(dy, bits, dx, sizes, offsets, disjoint, ties == "split", d, h, w, start, stop)

    number = 1 if ties == "first" else saved.shape[0]
    arrays = (lines(dy), lines(saved, number)), (lines(dx),)
    if ties == "first" and _unrolled(window)[0]:
        over(planes, axes[0].length * axes[1].length, *arrays, _gathered(window, disjoint))
    else:
        over(planes, 1, *arrays, first if ties == "first" else equal)
    return dx


def _gathered(window: Any, disjoint: bool) -> Callable[..., None]:
    """The run of rows of dx for windows whose rows of taps are unrolled."""
    axes, sizes = axes_of(window), _sizes(window)
    taps, steps = (axes[1].kernel, axes[2].kernel), tuple(step(axis) for axis in axes)
    begin, windows = zip(*map(windows_of, axes), strict=True)
    width, stride = axes[2].kernel, axes[2].stride
    starts = met(axes[2])[3]
    # Windows with the cells that they write to inside the row, and with all the windows that share these.
    whole = np.flatnonzero((starts >= 0) & (starts + stride <= axes[2].length))
    whole = whole[whole >= (width - 1) // stride]
    low, high = (int(whole[0]), int(whole[-1]) + 1) if whole.size else (0, 0)
    run, (d, h, w) = loops.backward_rows(width, stride, disjoint), map(met, axes)

    def rows(dy: Array, place: Array, dx: Array, start: int, stop: int) -> None:
        run(dy, place, dx, sizes, taps, steps, begin, windows, d, h, w, low, high, start, stop)

    return rows
