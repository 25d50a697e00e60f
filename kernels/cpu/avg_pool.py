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
from .window_lines import fits_line, line_layout
from .windows import (
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
MAX_CELLS = 2**31 - 1  # along an axis: lanes of int32 have their numbers
MAX_OVERLAP = 9  # windows over a cell that are summed tap by tap where channels are last
FEW_WINDOWS = 16  # cells a window: y is then so small that chunks of fewer bytes of x are worth a thread


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    window = _window(spec)
    if max((a.length for a in window.axes), default=0) > MAX_CELLS:
        return f"axes of {max(a.length for a in window.axes)} cells; kernels take at most {MAX_CELLS}"
    return refusal(window, arrays[0] if arrays else None)


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
    number = math.prod(a.overlap for a in axes) if backward else math.prod(window.kernel)
    dtype = np.float32 if float32_sums and number <= MAX_FLOAT32_TAPS else np.float64
    last = divisors[2] if divisors[2].size == 1 else np.repeat(divisors[2], channels)
    divisors = (divisors[0].astype(dtype), divisors[1].astype(dtype), last.astype(dtype))
    if backward:
        ranges, steps = zip(*map(windows_over_cells, axes), strict=True)
    else:
        ranges, steps = tuple(map(cells_under_windows, axes)), tuple(map(dilation_of, axes))
    lengths, outs = tuple(a.length for a in axes), tuple(a.out for a in axes)
    sizes = (*outs, *lengths, channels) if backward else (*lengths, *outs, channels)
    rows, common = planes * sizes[3] * sizes[4], (np.empty(0, dtype), sizes, ranges, steps, divisors, exponent)
    width, uniform = axes[2], all(d.size == 1 for d in divisors)
    overlap = math.prod(a.overlap for a in axes)
    few_taps = overlap <= MAX_OVERLAP and (not backward or (uniform and overlap > 1))
    if channels >= LANES and few_taps and not isinstance(spec, LpPool):
        return LoopPlan(shape, loops.sums_by_cell, common, rows, weight)
    if not isinstance(width, Axis) or not fits_line(width):
        return LoopPlan(shape, loops.make_uneven(backward, "" if backward else power), common, rows, weight)
    stride = width.stride if width.stride <= 2 else 0
    if backward:
        return LoopPlan(shape, loops.make_backward(stride, channels == 1), (*common, *_adjoint(width, channels)), rows)
    line, unrolled = line_layout(width, channels), width.kernel if width.kernel <= 3 and channels == 1 else 0
    layout = (line.parts, line.pitch, line.padding, line.size)
    paired = channels == 1 and width.kernel == width.stride == 2 and width.whole and width.dilation == 1
    run = loops.make_forward(unrolled, stride, channels == 1, power, paired)
    return LoopPlan(shape, run, (*common, line.offsets, layout), rows, weight)


def _adjoint(axis: Axis, channels: int) -> tuple[Array, Array, tuple[int, ...]]:
    """`taps`, `offsets` and `layout` of `make_backward`."""
    tap = np.arange(axis.kernel)[::-1] * axis.dilation  # the window of the last tap comes first
    order = np.argsort(tap % axis.stride, kind="stable")
    taps = np.searchsorted((tap % axis.stride)[order], np.arange(axis.stride + 1))
    before = (axis.kernel - 1) * axis.dilation // axis.stride
    cells = -(-(axis.length + axis.before) // axis.stride)
    size = (before + max(cells, axis.out)) * channels + 3 * LANES
    offsets = (before - (tap // axis.stride)[order]) * channels
    return taps, offsets, (before * channels, axis.before, axis.stride, cells, size)


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
