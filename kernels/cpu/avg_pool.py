"""Launchers of avg_pool_loops.py: average, sum and adaptive average pooling. Arguments are the portable code's.

Sums of up to MAX_FLOAT32_TAPS taps are in x's compute dtype, longer ones in float64. Of a whole plane each lane's sum,
of up to 64 cells, is in the compute dtype. Chunks are rows of y, or planes where each plane is one window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import AdaptiveWindow, Axis, LpPool, Window

from . import avg_pool_loops as loops
from .lp_pool_loops import power_name
from .parallel import chunked, launcher, to_lanes
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
MAX_OVERLAP = 25  # windows over a cell, at most, where loops over channels read it from the L1 cache for each of them
MAX_UNROLLED_TAPS = 3  # along a row: up to 3 taps are added one by one, without a loop
MANY_TAPS = 12  # along a row: for 12 and more, sums of 2, 4, 8, … neighbours are computed first and then combined
LINE_ELEMENTS = 4096  # of the lines of up to 12 rows, so that they are in the L1 cache
FEW_WINDOWS = 16  # cells a window: y is then so small that chunks of fewer bytes of x are worth a thread


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return refusal(_window(spec), arrays[0] if arrays else None)


# ----------------------------------------------------------------------------------------------------------------- ops
@launcher
def avg_pool_forward(spec: Any, x: Array) -> Callable[[Array], Array]:
    """y."""
    return prepared_loop(x, pooling_plan(spec, False, x.dtype != np.float64))


@launcher
def avg_pool_backward(spec: Any, dy: Array) -> Callable[[Array], Array]:
    """dx."""
    return prepared_loop(dy, pooling_plan(spec, True, dy.dtype != np.float64))


sum_pool_forward = adaptive_avg_pool_forward = avg_pool_forward
sum_pool_backward = adaptive_avg_pool_backward = avg_pool_backward


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
    """A loop of avg_pool_loops.py and its arguments: the loop is called `(x, y, arguments, start, stop)`.

    shape: of the result. units: rows of it, or planes. cost: of a byte; a chunk has CHUNK_BYTES / cost bytes."""

    shape: tuple[int, ...]
    run: Callable[..., None]
    arguments: tuple[Any, ...]
    units: int
    cost: float = 1.0


@backends.planned
def pooling_plan(spec: Any, backward: bool, float32_sums: bool) -> LoopPlan:
    """float32_sums: short sums may be in float32. Of an LpPool, the forward gives the norms, and the backward the sums
    over each cell's windows."""
    window, divisors = _window(spec), _divisors(spec)
    power, exponent = ("", 1.0) if not isinstance(spec, LpPool) else (power_name(spec.p), float(spec.p))
    shape = window.layout.shape if backward else window.out_shape
    axes, (planes, channels) = three_axes(window), planes_and_channels(window)
    cost = 1.5 if FEW_WINDOWS * math.prod(a.out for a in axes) <= math.prod(a.length for a in axes) else 1.0
    if not power and channels == 1 and all(a.out == 1 and cells_under_windows(a)[1, 0] == a.length for a in axes):
        cells, divisor = math.prod(a.length for a in axes), math.prod(float(d[0]) for d in divisors)
        loop = loops.plane_sums_backward if backward else loops.plane_sums
        return LoopPlan(shape, loop, (cells, divisor), planes, 1.0 if backward else cost)
    overlap = math.prod(a.overlap for a in axes)
    taps = overlap if backward else math.prod(window.kernel)
    dtype = np.float32 if float32_sums and taps <= MAX_FLOAT32_TAPS else np.float64
    ranges, steps = zip(*(_cells_in_sums(a, backward) for a in axes[:2]), strict=True)
    ranges = ranges[0], np.vstack([ranges[1], _repeats(ranges[1])])
    sizes = [(a.length, a.out)[:: -1 if backward else 1] for a in axes]
    x_sizes, y_sizes = ((d, h, w * channels) for d, h, w in zip(*sizes, strict=True))
    last = divisors[2]
    if last.size > 1:
        last = np.append(np.repeat(last, channels), np.ones(LANES))
    numbers = tuple(d.astype(dtype) for d in (*divisors[:2], last))
    rows, most_rows = planes * math.prod(y_sizes[:2]), int(ranges[0][1].max() * ranges[1][1].max())
    common = (np.empty(0, dtype), (*x_sizes, *y_sizes), ranges, steps, numbers, exponent)
    if channels >= LANES and overlap <= (MAX_OVERLAP if power in ("", "absolute", "square") else 1):
        loop = loops.make_sums_by_cell(4 if channels >= 4 * LANES else 1, backward, power)
        return LoopPlan(shape, loop, (*common, *_cells_in_sums(axes[2], backward), channels, most_rows), rows, cost)
    specialised, tables, layout = _along_rows(axes[2], channels, backward)
    loop = loops.make_sums(*specialised, backward, power)
    return LoopPlan(shape, loop, (*common, tables, layout, most_rows), rows, cost)


def _cells_in_sums(axis: AnyAxis, backward: bool) -> tuple[Array, int]:
    """For each cell of y the first cell of x in its sum and the number of cells, (2, cells), and the step between."""
    return windows_over_cells(axis) if backward else (cells_under_windows(axis), dilation_of(axis))


def _repeats(cells: Array) -> Array:
    """For each of some `_cells_in_sums`, how many just before it have the same sum."""
    at, same = np.arange(cells.shape[1]), (cells[:, 1:] == cells[:, :-1]).all(0)
    return (at - np.maximum.accumulate(np.where(np.append(False, same), 0, at))).astype(cells.dtype)


def _with_zeros(axis: AnyAxis, backward: bool) -> tuple[Array, Array, int]:
    """`_cells_in_sums`, also those before and after the row, unless they are many: then fewer numbers are different."""
    (first, number), step = _cells_in_sums(axis, backward)
    if isinstance(axis, Axis):
        extent = axis.dilation * (axis.kernel - 1)
        cells, more = (axis.out, extent // axis.stride + 1) if backward else (axis.length, extent)
        if more <= cells + LANES:
            if backward:
                before, after = (n + more * axis.stride for n in (axis.before, axis.after))
                axis = replace(axis, out=axis.out + 2 * more, before=before, after=after)
                first, number = windows_over_cells(axis)[0]
                first = (first - more) * (number > 0)
            else:
                first = window_extents(axis)[0]
                number = np.full_like(first, axis.kernel)
    return first.astype(np.int64), number.astype(np.int64), step


def _along_rows(
    axis: AnyAxis, channels: int, backward: bool
) -> tuple[tuple[str, int], tuple[Array, ...], tuple[int, ...]]:
    """How sums go along rows: `form` and `unrolled_taps`, `tables` and `layout` of `make_sums`, which explains them.

    Neighbours of y are sums of neighbours of x in the form "blocks"; with stride 2 in "evens"; where every second one
    is so, in "pairs" (the two phases of a stride's backward, say); otherwise each sum is looked up, "picks"."""
    first, number, step = _with_zeros(axis, backward)
    row = (axis.out if backward else axis.length) * channels
    before = max(0, -int(first.min()))
    reach = int((first + np.maximum(number - 1, 0) * step).max()) + 1
    place, size = (first + before) * channels, max(before * channels + row, (before + reach) * channels)
    kinds, kind_of = np.unique(number, return_inverse=True)
    distances, shifts, end = np.diff(place), np.zeros(kinds.size, np.int64), first.size * channels
    form, blocks = "blocks", np.array([[0, place[0], 0, end]])
    if channels >= LANES:
        o = np.arange(first.size) * channels
        blocks = np.stack([o, place, kind_of, o + channels], axis=-1)
    elif kinds.size > 1 or (distances != channels).any():
        if kinds.size == 1 and channels == 1 and (distances == 2).all():
            form = "evens"
        elif channels == 1 and all((np.diff(place[i::2]) == 1).all() and np.ptp(kind_of[i::2]) == 0 for i in (0, 1)):
            form, kinds, shifts = "pairs", number[:2], place[:2] - place[0]
        else:
            form = "picks"
    step *= channels
    together = max(1, min(12, LINE_ELEMENTS // size))
    level = (together + 1) * size + 3 * LANES
    levels = int(kinds.max()).bit_length() - 1 if kinds.max() >= MANY_TAPS and channels < LANES else 0
    offsets = [_offsets(int(n), step, levels, level) + shift for n, shift in zip(kinds, shifts, strict=True)]
    bounds = np.cumsum([0, *(o.size for o in offsets)])
    unrolled_taps = offsets[0].size if all(o.size == offsets[0].size <= MAX_UNROLLED_TAPS for o in offsets) else 0
    if form == "picks" and not levels:  # each kind's sums continue those of the kind before
        offsets, bounds = offsets[-1:], np.append(0, kinds)
    elements, picks = level * (levels + 1), bounds[:0]
    if form == "picks":
        picks = np.repeat(kind_of * level + place, channels) + np.tile(np.arange(channels), first.size)
        elements += kinds.size * level + together * picks.size + LANES
    tables = (np.concatenate(offsets), bounds, blocks.reshape(-1), picks)
    return (form, unrolled_taps), tables, (before * channels, size, together, level, levels, step, elements)


def _offsets(number: int, step: int, levels: int, level: int) -> Array:
    """The places of the numbers that are added up for a window of `number` cells.

    Without levels they are the cells. Level k has the sums of 2**k neighbours, from `k * level` on: a window of 13
    cells is then the sum of three numbers, one each of levels 3, 2 and 0."""
    if not levels:
        return np.arange(number) * step
    bits = [k for k in reversed(range(levels + 1)) if number >> k & 1]
    return np.array([k * level + (number >> k + 1 << k + 1) * step for k in bits], np.int64)


# ------------------------------------------------------------------------------------------------------------ launches
def prepared_loop(x: Array, plan: LoopPlan) -> Callable[[Array], Array]:
    """A function of arrays like x: the loop's result."""
    new, size = backends.new_result(plan.shape, x.dtype), math.prod(plan.shape)
    nbytes = round(plan.cost * (x.nbytes + size * x.itemsize))
    in_chunks = chunked(plan.units if size else 0, nbytes)
    loop, arguments = plan.run, plan.arguments

    def run(x: Array) -> Array:
        y = new()
        in_chunks(loop, to_lanes(x), to_lanes(y), arguments)
        return y

    return run
