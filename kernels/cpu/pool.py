"""Launchers of pool_loops.py: average, sum and adaptive average pooling, called as the portable code is.

Sums of up to SHORT taps are kept in x's compute dtype, longer ones in float64. The chunks are runs of rows of y, or of
planes where each is one window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis

from . import pool_loops as loops
from .pool_window import (
    AnyAxis,
    AnyWindow,
    axes_of,
    cells_of,
    lines,
    over,
    planes_of,
    refusal,
    step,
    windows_of,
    windows_on,
)

Array = Any
SHORT = 32
READ = 6_000_000  # bytes of a chunk that is only summed up: done before another thread has woken up
UNROLLED = ((2, 2), (3, 1), (3, 2))  # width and stride of windows whose sums along a row are unrolled


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return refusal(_window(spec), arrays[0] if arrays else None)


# ----------------------------------------------------------------------------------------------------------------- ops
def avg_pool_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _pooled(spec, x, False)


def avg_pool_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    return _pooled(spec, dy, True)


def sum_pool_forward(b: Backend, window: Any, x: Array) -> Array:
    """y."""
    return _pooled(window, x, False)


def sum_pool_backward(b: Backend, window: Any, dy: Array) -> Array:
    """dx."""
    return _pooled(window, dy, True)


def adaptive_avg_pool_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _pooled(spec, x, False)


def adaptive_avg_pool_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    return _pooled(spec, dy, True)


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> AnyWindow:
    window: AnyWindow = getattr(spec, "window", spec)
    return window


def _divisors(spec: Any) -> tuple[Array, Array, Array]:
    """What the sum of a window is divided by, as a product over the axes: a number for each window of an axis, or one
    for all. Those axes that have one for all give it to the last of them."""
    window = _window(spec)
    axes, one = axes_of(window), np.ones(1)
    if hasattr(spec, "override"):
        if spec.override is not None:
            return one, one, one * spec.override
        numbers = [_counts(a, spec.include_pad) for a in axes if isinstance(a, Axis)]
    elif isinstance(window, AdaptiveWindow):
        numbers = [windows_on(a)[2].astype(np.float64) for a in axes]
    else:
        return one, one, one
    factor = 1.0
    for i, number in enumerate(numbers):
        if number.min() == number.max():
            factor, numbers[i] = factor * number[0], one
    return numbers[0], numbers[1], numbers[2] * factor


def _counts(axis: Axis, include_pad: bool) -> Array:
    """For each window its taps inside the input (and its declared padding); 1 where there is none."""
    before, after = (axis.before, axis.after) if include_pad else (0, 0)
    if axis.whole_with(before, after):
        return np.full(1, float(axis.kernel))
    start = windows_on(axis)[0]
    below = [np.clip(-((start - bound) // axis.dilation), 0, axis.kernel) for bound in (-before, axis.length + after)]
    return np.maximum(below[1] - below[0], 1).astype(np.float64)


def _unrolled(axis: AnyAxis, channels: int, backward: bool, number: Array) -> tuple[int, int, int, int]:
    """Width and stride of the runs along a row to unroll, and from which cell to which; width 0 for none. `number`: of
    the cells that each cell of the result is the sum of."""
    none = (0, 1, 0, 0)
    if channels > 1 or isinstance(axis, AdaptiveAxis) or axis.dilation > 1:
        return none
    if (axis.kernel, axis.stride) not in UNROLLED:
        return none
    if backward and axis.stride == axis.kernel:
        low = (axis.before + axis.stride - 1) // axis.stride * axis.stride - axis.before  # where a whole window begins
        high = low + (min(axis.length, axis.out * axis.stride - axis.before) - low) // axis.kernel * axis.kernel
        return (axis.kernel, 0, low, high) if low < high else none
    if backward and axis.stride > 1:
        return none
    whole = np.flatnonzero(number == axis.kernel)
    return (axis.kernel, axis.stride, int(whole[0]), int(whole[-1]) + 1) if whole.size else none


@dataclass(frozen=True, eq=False)
class Plan:
    """A loop of pool_loops.py and what it is told, over `planes` of `units` rows (1: the loop takes whole planes), at
    least `least` of these in a chunk; `shape`: of what it makes."""

    shape: tuple[int, ...]
    run: Callable[..., None]
    known: tuple[Any, ...]
    planes: int
    units: int
    least: int = 1


@backends.planned
def _plan(spec: Any, backward: bool, single: bool) -> Plan:
    """`single`: sums may be kept in float32."""
    window, divisors = _window(spec), _divisors(spec)
    shape = window.layout.shape if backward else window.out_shape
    axes, (planes, channels) = axes_of(window), planes_of(window)
    if channels == 1 and all(a.out == 1 and cells_of(a)[1, 0] == a.length for a in axes):
        cells, divisor = math.prod(a.length for a in axes), math.prod(float(d[0]) for d in divisors)
        if backward:
            return Plan(shape, loops.plane_spread, (cells, divisor), planes, 1)
        return Plan(shape, loops.plane_sums, (cells, divisor), planes, 1, -(-READ // (4 * cells)))
    number = math.prod(a.overlap for a in axes) if backward else math.prod(window.kernel)
    dtype = np.float32 if single and number <= SHORT else np.float64
    divisors = tuple(divisor.astype(dtype) for divisor in divisors)
    if backward:
        sources, steps = zip(*map(windows_of, axes), strict=True)
    else:
        sources, steps = tuple(map(cells_of, axes)), tuple(map(step, axes))
    lengths, outs = tuple(a.length for a in axes), tuple(a.out for a in axes)
    sizes = (*outs, *lengths, channels) if backward else (*lengths, *outs, channels)
    width, stride, low, high = _unrolled(axes[2], channels, backward, sources[2][1])
    known = (np.empty(0, dtype), sizes, sources, steps, divisors, low, high)
    return Plan(shape, loops.sums(width, stride, backward), known, planes, sizes[3] * sizes[4])


# ------------------------------------------------------------------------------------------------------------ launches
def _pooled(spec: Any, x: Array, backward: bool) -> Array:
    """y of x, or dx of dy."""
    plan = _plan(spec, backward, x.dtype != np.float64)
    y = backends.result(plan.shape, x.dtype)

    def sums(x: Array, y: Array, start: int, stop: int) -> None:
        plan.run(x, y, *plan.known, start, stop)

    over(plan.planes, plan.units, (lines(x),), (lines(y),), sums, least=plan.least)
    return y
