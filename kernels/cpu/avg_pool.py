"""Launchers of avg_pool_loops.py: average, sum and adaptive average pooling. Arguments are the portable code's.

Sums of up to MAX_FLOAT32_TAPS taps are in x's compute dtype, longer ones in float64. Of a whole plane each lane's sum,
of up to 64 cells, is in the compute dtype. Chunks are rows of y, or planes where each plane is one window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import AdaptiveWindow, Axis, LpPool, Window

from . import avg_pool_loops as loops
from .lp_pool_loops import power_name
from .parallel import chunked, prepared, to_lanes
from .vectors import LANES
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
MAX_OVERLAP = 25  # windows over a cell that are summed tap by tap where channels are last; they are in the L1 cache
LINE_ELEMENTS = 4096  # of the lines of up to 8 rows, so that they are in the L1 cache
FEW_WINDOWS = 16  # cells a window: y is then so small that chunks of fewer bytes of x are worth a thread


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return refusal(_window(spec), arrays[0] if arrays else None)


# ----------------------------------------------------------------------------------------------------------------- ops
@prepared
def avg_pool_forward(spec: Any, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _pool(spec, x, False)


@prepared
def avg_pool_backward(spec: Any, dy: Array) -> Callable[[Array], Array]:
    """dx."""
    return _pool(spec, dy, True)


@prepared
def sum_pool_forward(window: Window, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _pool(window, x, False)


@prepared
def sum_pool_backward(window: Window, dy: Array) -> Callable[[Array], Array]:
    """dx."""
    return _pool(window, dy, True)


@prepared
def adaptive_avg_pool_forward(window: AdaptiveWindow, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _pool(window, x, False)


@prepared
def adaptive_avg_pool_backward(window: AdaptiveWindow, dy: Array) -> Callable[[Array], Array]:
    """dx."""
    return _pool(window, dy, True)


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> AnyWindow:
    """The windows of a spec."""
    if isinstance(spec, AdaptiveWindow):
        return spec.regular() or spec
    if isinstance(spec, Window):
        return spec
    window: Window = spec.window
    return window


def _divisors(spec: Any) -> tuple[Array, Array, Array]:
    """What the sum of a window is divided by, as a product over the axes: for each axis one number, or one for each
    window.

    If an axis has the same divisor for all windows, the last axis includes it."""
    window = _window(spec)
    axes, one = three_axes(window), np.ones(1)
    if isinstance(spec, Window | LpPool):
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


@dataclass(frozen=True, eq=False)
class LoopPlan:
    """A loop of avg_pool_loops.py and its arguments.

    shape: of the result. units: rows of it, or planes. weight: of the bytes; a chunk has CHUNK_BYTES / weight."""

    shape: tuple[int, ...]
    run: Callable[..., None]
    loop_arguments: tuple[Any, ...]
    units: int
    weight: float = 1.0


@backends.planned
def pooling_plan(spec: Any, backward: bool, float32_sums: bool) -> LoopPlan:
    """float32_sums: short sums may be in float32. Of an LpPool, the forward gives the norms, and the backward the sums
    over each cell's windows."""
    window, divisors = _window(spec), _divisors(spec)
    power, exponent = ("", 1.0) if not isinstance(spec, LpPool) else (power_name(spec.p), float(spec.p))
    shape = window.layout.shape if backward else window.out_shape
    axes, (planes, channels) = three_axes(window), planes_and_channels(window)
    weight = 1.5 if FEW_WINDOWS * math.prod(a.out for a in axes) <= math.prod(a.length for a in axes) else 1.0
    if not power and channels == 1 and all(a.out == 1 and cells_under_windows(a)[1, 0] == a.length for a in axes):
        cells, divisor = math.prod(a.length for a in axes), math.prod(float(d[0]) for d in divisors)
        if backward:
            return LoopPlan(shape, loops.plane_sums_backward, (cells, divisor), planes)
        return LoopPlan(shape, loops.plane_sums, (cells, divisor), planes, weight)
    overlap = math.prod(a.overlap for a in axes)
    dtype = np.float32
    if not float32_sums or (overlap if backward else math.prod(window.kernel)) > MAX_FLOAT32_TAPS:
        dtype = np.float64
    if backward:
        ranges, steps = zip(*map(windows_over_cells, axes), strict=True)
    else:
        ranges, steps = tuple(map(cells_under_windows, axes)), tuple(map(dilation_of, axes))
    lengths, outs = tuple(a.length for a in axes), tuple(a.out for a in axes)
    sizes = (*outs, *lengths, channels) if backward else (*lengths, *outs, channels)
    rows, most_rows = planes * sizes[3] * sizes[4], int(ranges[0][1].max() * ranges[1][1].max())
    last = divisors[2]
    if last.size > 1:
        last = np.append(np.repeat(last, channels), np.ones(LANES))
    common = (sizes, ranges, steps, tuple(d.astype(dtype) for d in (*divisors[:2], last)), exponent)
    if channels >= LANES and overlap <= (MAX_OVERLAP if power in ("", "absolute", "square") else 1):
        by_cell = loops.make_sums_by_cell(4 if channels >= 4 * LANES else 1, backward, power)
        return LoopPlan(shape, by_cell, (np.empty(0, dtype), *common, most_rows), rows, weight)
    counts = np.empty(0, np.int64)
    stride, offsets, layout = _line(axes[2], channels, backward)
    if not stride:
        cells = _element_ranges(ranges[2], channels)
        common = (sizes, (*ranges[:2], cells), *common[2:])
        offsets, counts, layout = _places(cells, sizes[2] * channels, steps[2] * channels, channels)
    layout = (*layout, most_rows, max(1, min(8, LINE_ELEMENTS // layout[1])))
    arguments = (np.empty(0, dtype), *common, offsets, counts, layout)
    return LoopPlan(shape, loops.make_sums(stride, backward, power), arguments, rows, weight)


def _line(axis: AnyAxis, channels: int, backward: bool) -> tuple[int, Array, tuple[int, int, int]]:
    """`stride`, `offsets`, and `before`, `size` and `number` of `make_sums`; without offsets where stride is 0."""
    cells, results = (axis.out, axis.length) if backward else (axis.length, axis.out)
    if isinstance(axis, Axis) and axis.stride <= (2 if channels == 1 else 1):
        taps, groups = np.arange(axis.kernel) * axis.dilation, 1
        before, number, offsets = axis.before, 0, taps
        if backward:  # cell 2 j + i is under the taps whose windows begin a whole number of strides before it
            groups = axis.stride
            distances = [(i + axis.before - taps[::-1]) for i in range(groups)]
            distances = [d[d % groups == 0] // groups for d in distances]
            offsets, number = np.concatenate(distances), distances[0].size
            before = max(0, -int(offsets.min()))
            offsets = offsets + before
        apart = 1 if backward else axis.stride
        reach = int(offsets.max()) + apart * -(-results // groups)
        size = (max(reach, before + cells) + apart) * channels + (2 * apart + 1) * LANES
        if size <= 4 * (cells + results) * channels + 16 * LANES:
            return axis.stride, offsets * channels, (before * channels, size, number)
    return 0, np.empty(0, np.int64), (0, 0, 0)


def _element_ranges(ranges: Array, channels: int) -> Array:
    """For each element of a row of y the first element of x in its sum, and the number of cells."""
    first, number = np.repeat(ranges.astype(np.int64), channels, axis=1)
    first = first * channels + np.tile(np.arange(channels), ranges.shape[1])
    return np.stack([first, number])


def _places(cells: Array, row: int, step: int, channels: int) -> tuple[Array, Array, tuple[int, int, int]]:
    """`offsets`, `counts`, and `before`, `size` and `number` of `make_sums` for any windows along a row of x."""
    counts, count_of = np.unique(cells[1], return_inverse=True)
    most, number, elements = int(cells[1].max(initial=0)), int(cells[0].max(initial=0)) + LANES, cells.shape[1]
    number -= number % LANES
    of_window = min(most, LANES) / 3 if channels == 1 else most * -(-channels // LANES)  # additions of vectors
    if elements // max(channels, 1) * of_window < number // LANES * most:  # fewer than for all places
        return counts[:0], counts[:0], (0, max(row, elements) + LANES, 0)
    return count_of * number + cells[0], counts, (0, max(number + most * step, elements, row) + LANES, number)


# ------------------------------------------------------------------------------------------------------------ launches
def pool(x: Array, plan: LoopPlan) -> Callable[[Array], Array]:
    """A function of arrays like x: the loop's result."""
    new, size = backends.new_result(plan.shape, x.dtype), math.prod(plan.shape)
    nbytes = round(plan.weight * (x.nbytes + size * x.itemsize))
    in_chunks = chunked(plan.units if size else 0, nbytes)
    loop, arguments = plan.run, plan.loop_arguments

    def run(x: Array) -> Array:
        y = new()
        in_chunks(loop, to_lanes(x), to_lanes(y), *arguments)
        return y

    return run


def _pool(spec: Any, x: Array, backward: bool) -> Callable[[Array], Array]:
    """A function of arrays like x: y of x, or with `backward` dx of dy."""
    return pool(x, pooling_plan(spec, backward, x.dtype != np.float64))
