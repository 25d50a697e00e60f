"""Launchers of avg_pool_loops.py: average, sum and adaptive average pooling. Arguments are the portable code's.

Sums of up to MAX_FLOAT32_TAPS taps are in x's compute dtype, longer ones in float64. Chunks are rows of y, or planes
where each plane is one window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis, Window

from . import avg_pool_loops as loops
from .parallel import as_lines, parallel_over_planes
from .windows import (
    AnyAxis,
    AnyWindow,
    cells_under_windows,
    dilation_of,
    planes_and_channels,
    refusal,
    three_axes,
    window_extents,
    windows_over_cells,
)

Array = Any
MAX_FLOAT32_TAPS = 32  # in a sum: float32 sums of more lose precision
READ_CHUNK_BYTES = 6_000_000  # of a chunk that is only read: a smaller one ends before another thread wakes up
UNROLLED = ((2, 2), (3, 1), (3, 2))  # width and stride of windows whose sums along a row are unrolled


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return refusal(_window(spec), arrays[0] if arrays else None)


# ----------------------------------------------------------------------------------------------------------------- ops
def avg_pool_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _pool(spec, x, False)


def avg_pool_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    return _pool(spec, dy, True)


def sum_pool_forward(b: Backend, window: Window, x: Array) -> Array:
    """y."""
    return _pool(window, x, False)


def sum_pool_backward(b: Backend, window: Window, dy: Array) -> Array:
    """dx."""
    return _pool(window, dy, True)


def adaptive_avg_pool_forward(b: Backend, window: AdaptiveWindow, x: Array) -> Array:
    """y."""
    return _pool(window, x, False)


def adaptive_avg_pool_backward(b: Backend, window: AdaptiveWindow, dy: Array) -> Array:
    """dx."""
    return _pool(window, dy, True)


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> AnyWindow:
    """The windows of a spec."""
    if isinstance(spec, Window | AdaptiveWindow):
        return spec
    window: Window = spec.window
    return window


def _divisors(spec: Any) -> tuple[Array, Array, Array]:
    """What the sum of a window is divided by, as a product over the axes: for each axis one number, or one for each
    window.

    If an axis has the same divisor for all windows, the last axis includes it."""
    window = _window(spec)
    axes, one = three_axes(window), np.ones(1)
    if isinstance(spec, Window):
        return one, one, one
    if isinstance(spec, AdaptiveWindow):
        divisors = [window_extents(a)[2].astype(np.float64) for a in axes]
    elif spec.override is not None:
        return one, one, one * spec.override
    else:
        divisors = [_tap_counts(a, spec.include_pad) for a in axes if isinstance(a, Axis)]
    factor = 1.0
    for i, divisor in enumerate(divisors):
        if divisor.min() == divisor.max():
            factor, divisors[i] = factor * divisor[0], one
    return divisors[0], divisors[1], divisors[2] * factor


def _tap_counts(axis: Axis, include_pad: bool) -> Array:
    """The number of each window's taps inside the input, or with `include_pad` inside its declared padding too; at
    least 1."""
    before, after = (axis.before, axis.after) if include_pad else (0, 0)
    if axis.whole_with(before, after):
        return np.full(1, float(axis.kernel))
    start = window_extents(axis)[0]
    taps_before = [
        np.clip(-((start - bound) // axis.dilation), 0, axis.kernel) for bound in (-before, axis.length + after)
    ]
    return np.maximum(taps_before[1] - taps_before[0], 1).astype(np.float64)


def _unrolled(axis: AnyAxis, channels: int, backward: bool, cell_counts: Array) -> tuple[int, int, int, int]:
    """Width and stride of the sums along a row that are unrolled, and the first cell and the end of these; width 0:
    none.

    cell_counts: for each cell of the result the number of cells that it is the sum of."""
    not_unrolled = (0, 1, 0, 0)
    if (
        channels > 1
        or isinstance(axis, AdaptiveAxis)
        or axis.dilation > 1
        or (axis.kernel, axis.stride) not in UNROLLED
    ):
        return not_unrolled
    if backward and axis.stride == axis.kernel:
        low = (
            axis.before + axis.stride - 1
        ) // axis.stride * axis.stride - axis.before  # start of the first complete window
        high = low + (min(axis.length, axis.out * axis.stride - axis.before) - low) // axis.kernel * axis.kernel
        return (axis.kernel, 0, low, high) if low < high else not_unrolled
    if backward and axis.stride > 1:
        return not_unrolled
    complete = np.flatnonzero(cell_counts == axis.kernel)
    return (axis.kernel, axis.stride, int(complete[0]), int(complete[-1]) + 1) if complete.size else not_unrolled


@dataclass(frozen=True, eq=False)
class Plan:
    """A loop of avg_pool_loops.py and its arguments.

    shape: of the result. planes, rows_per_plane: the work; rows_per_plane is 1 if the loop takes complete planes.
    least: rows in a chunk, at least."""

    shape: tuple[int, ...]
    run: Callable[..., None]
    loop_arguments: tuple[Any, ...]
    planes: int
    rows_per_plane: int
    least: int = 1


@backends.planned
def _plan(spec: Any, backward: bool, float32_sums: bool) -> Plan:
    """float32_sums: short sums may be in float32."""
    window, divisors = _window(spec), _divisors(spec)
    shape = window.layout.shape if backward else window.out_shape
    axes, (planes, channels) = three_axes(window), planes_and_channels(window)
    if channels == 1 and all(a.out == 1 and cells_under_windows(a)[1, 0] == a.length for a in axes):
        cells, divisor = math.prod(a.length for a in axes), math.prod(float(d[0]) for d in divisors)
        if backward:
            return Plan(shape, loops.plane_sums_backward, (cells, divisor), planes, 1)
        return Plan(shape, loops.plane_sums, (cells, divisor), planes, 1, -(-READ_CHUNK_BYTES // (4 * cells)))
    number = math.prod(a.overlap for a in axes) if backward else math.prod(window.kernel)
    dtype = np.float32 if float32_sums and number <= MAX_FLOAT32_TAPS else np.float64
    divisors = tuple(divisor.astype(dtype) for divisor in divisors)
    if backward:
        ranges, steps = zip(*map(windows_over_cells, axes), strict=True)
    else:
        ranges, steps = tuple(map(cells_under_windows, axes)), tuple(map(dilation_of, axes))
    lengths, outs = tuple(a.length for a in axes), tuple(a.out for a in axes)
    sizes = (*outs, *lengths, channels) if backward else (*lengths, *outs, channels)
    width, stride, low, high = _unrolled(axes[2], channels, backward, ranges[2][1])
    loop_arguments = (np.empty(0, dtype), sizes, ranges, steps, divisors, low, high)
    return Plan(shape, loops.make_window_sums(width, stride, backward), loop_arguments, planes, sizes[3] * sizes[4])


# ------------------------------------------------------------------------------------------------------------ launches
def _pool(spec: Any, x: Array, backward: bool) -> Array:
    """y of x, or dx of dy."""
    plan = _plan(spec, backward, x.dtype != np.float64)
    y = backends.result(plan.shape, x.dtype)

    def sums(x: Array, y: Array, start: int, stop: int) -> None:
        plan.run(x, y, *plan.loop_arguments, start, stop)

    parallel_over_planes(plan.planes, plan.rows_per_plane, (as_lines(x),), (as_lines(y),), sums, least=plan.least)
    return y
