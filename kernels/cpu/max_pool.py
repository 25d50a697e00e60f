"""Launchers of max_pool_loops.py: max pooling and adaptive max pooling. Arguments are the portable code's.

The chunks of forward are rows of windows. The chunks of backward are planes, because windows that overlap add to the
same cells."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis, Window

from . import max_pool_loops as loops
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
    window_starts,
)

Array = Any
Tables = tuple[Array, Array, Array]
UNROLLED = ((2, 2), (3, 1), (3, 2))  # width and stride of windows whose loops along a row are unrolled


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return refusal(_window(spec), arrays[0] if arrays else None)


# ----------------------------------------------------------------------------------------------------------------- ops
def max_pool(b: Backend, spec: Any, x: Array) -> tuple[Array, Array | None]:
    """y, and the indices or None."""
    y, _, indices = _forward(spec.window, x, None, spec.indices)
    return y, indices


def max_pool_forward(b: Backend, spec: Any, x: Array) -> tuple[Array, Array, Array | None]:
    """y, the argmax or tie bits, and the indices or None."""
    return _forward(spec.window, x, spec.ties, spec.indices)


def max_pool_backward(b: Backend, spec: Any, dy: Array, saved: Array) -> Array:
    """dx."""
    return _backward(spec.window, dy, saved, spec.ties)


def adaptive_max_pool(b: Backend, window: AdaptiveWindow, x: Array) -> Array:
    """y."""
    return _forward(_regular(window), x, None, False)[0]


def adaptive_max_pool_forward(b: Backend, window: AdaptiveWindow, x: Array) -> tuple[Array, Array]:
    """y and the argmax."""
    y, argmax, _ = _forward(_regular(window), x, "first", False)
    return y, argmax


def adaptive_max_pool_backward(b: Backend, window: AdaptiveWindow, dy: Array, argmax: Array) -> Array:
    """dx."""
    return _backward(window, dy, argmax, "first")  # the adaptive windows: adds, as the portable code does


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> AnyWindow:
    """The windows of a spec."""
    if not isinstance(spec, AdaptiveWindow):
        window: Window = spec.window
        return window
    return _regular(spec)


@functools.lru_cache(maxsize=256)  # by number: results have a fixed size
def _regular(window: AdaptiveWindow) -> AnyWindow:
    """The windows of an adaptive pool, as ordinary ones where the lengths divide."""
    return window.regular() or window


@dataclass(frozen=True, eq=False)
class Plan:
    """The arguments of the loops for some windows, without the tables; max_pool_loops.py explains each.

    line: pitch, parts and the place of the first cell of a row's line; empty if no line serves. unrolled: width and
    stride of the windows that `make_forward` unrolls, or zeros. pair_block: windows in a block of `make_forward_pairs`,
    or 0 if it does not serve. simple_backward: whether `backward_simple` serves. stride_and_padding: along a row; zeros
    if windows differ."""

    out_shape: tuple[int, ...]
    planes: int
    rows: int
    sizes: tuple[int, ...]
    taps: tuple[int, int]
    steps: tuple[int, int, int]
    disjoint: bool
    argmax_dtype: Any  # the smallest unsigned dtype for the number of a tap in the window
    line: tuple[int, ...]
    unrolled: tuple[int, int]
    pair_block: int
    simple_backward: bool
    stride_and_padding: tuple[int, int]


def _plan(window: AnyWindow) -> Plan:
    axes, (planes, channels) = three_axes(window), planes_and_channels(window)
    depth, height, width = axes
    number = math.prod(window.kernel)
    return Plan(
        out_shape=window.out_shape,
        planes=planes,
        rows=depth.out * height.out,
        sizes=(*(a.length for a in axes), *(a.out for a in axes), channels),
        taps=(height.kernel, width.kernel),
        steps=(dilation_of(depth), dilation_of(height), dilation_of(width)),
        disjoint=all(isinstance(a, Axis) and a.disjoint for a in axes),
        argmax_dtype=np.uint8 if number <= 2**8 else np.uint16 if number <= 2**16 else np.uint32,
        line=_line_layout(width) if channels == 1 else (),
        unrolled=_unrolled(width),
        pair_block=_pair_block(*axes) if channels == 1 else 0,
        simple_backward=channels == 1 and all(_all_windows_have_cells(a) for a in axes),
        stride_and_padding=(0, 0) if isinstance(width, AdaptiveAxis) else (width.stride, width.before),
    )


def _all_windows_have_cells(axis: AnyAxis) -> bool:
    """Whether every window sees a cell of the input. Only a dilated window can miss it."""
    if isinstance(axis, AdaptiveAxis) or axis.dilation == 1 or axis.whole:
        return True
    return bool((window_extents(axis)[2] > 0).all())


@backends.planned
def _forward_plan(window: AnyWindow, complete: bool) -> tuple[Plan, Tables]:
    """The plan, and `cells_under_windows` of depth, height and width.

    If not `complete`, the width has only what the plan's loop reads: nothing for pairs, the first taps for lines."""
    plan, (depth, height, width) = _plan(window), three_axes(window)
    if complete or not (plan.pair_block or plan.line):
        last = cells_under_windows(width, taps=True)
    else:
        last = np.empty(0, np.int32) if plan.pair_block else _first_taps(width)
    return plan, (cells_under_windows(depth, taps=True), cells_under_windows(height, taps=True), last)


def _first_taps(axis: AnyAxis) -> Array:
    """Each window's first tap inside the input, up to the last window where it is not 0."""
    tap = window_extents(axis)[1].astype(np.int32)
    return tap[: np.max(np.flatnonzero(tap), initial=-1) + 1].copy()


@backends.planned
def _backward_plan(window: AnyWindow, complete: bool) -> tuple[Plan, Array, Tables]:
    """The plan, the offsets of a window's taps, and `window_starts` of depth, height and width.

    If not `complete`, and if `backward_simple` serves, the width has nothing if the stride gives its window starts."""
    plan, (depth, height, width) = _plan(window), three_axes(window)
    needed = complete or not plan.simple_backward or isinstance(width, AdaptiveAxis)
    last = window_starts(width) if needed else np.empty((2, 0), np.int32)
    return plan, _tap_offsets(window), (window_starts(depth), window_starts(height), last)


def _tap_offsets(window: AnyWindow) -> Array:
    """The cell under each tap of a window, in C order, relative to the window's start in the plane."""
    offsets = np.zeros(1, np.int64)
    for axis in three_axes(window):
        taps = np.arange(axis.kernel) * dilation_of(axis)
        offsets = (offsets[:, None] * axis.length + taps).reshape(-1)
    return offsets


def _unrolled(axis: AnyAxis) -> tuple[int, int]:
    """Width and stride of the windows if the loops for them are unrolled, else zeros."""
    if isinstance(axis, AdaptiveAxis) or axis.dilation > 1 or (axis.kernel, axis.stride) not in UNROLLED:
        return 0, 0
    return axis.kernel, axis.stride


def _pair_block(depth: AnyAxis, height: AnyAxis, width: AnyAxis) -> int:
    """Windows in a block of `make_forward_pairs`, which serves windows of one or two rows of two neighbours, side by
    side and inside the input; 0 if it does not serve these."""
    inside = all(isinstance(a, Axis) and a.whole for a in (depth, height, width))
    if not inside or _unrolled(width) != (2, 2) or depth.kernel != 1 or height.kernel > 2:
        return 0
    return next((n for n in loops.BLOCK_WINDOWS if width.out >= n), 0)


def _line_layout(axis: AnyAxis) -> tuple[int, ...]:
    """Pitch, parts and the place of the first cell of a row that is copied to a line, with a part for each cell of a
    stride.

    Empty if windows differ; if most taps of every window are padding, which the line's loops read; and if taps reach so
    far outside the row, or windows are so few, that the line would be much longer than the row."""
    if isinstance(axis, AdaptiveAxis) or axis.kernel > 4 * -(axis.length // -axis.dilation):
        return ()
    length = -(-axis.out // loops.LANES) * loops.LANES + (axis.kernel - 1) * axis.dilation // axis.stride
    pitch = max(length, (axis.length - 1 + axis.before) // axis.stride + 1)
    return (pitch, axis.stride, axis.before) if pitch * axis.stride <= 4 * (axis.length + axis.out) + 256 else ()


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(window: AnyWindow, x: Array, ties: str | None, with_indices: bool) -> tuple[Array, Array, Array | None]:
    """y, what the backward of this tie rule needs (None: nothing), and the indices, or None."""
    plan, tables = _forward_plan(window, False)
    y = backends.result(plan.out_shape, x.dtype)
    save = ties == "first" or with_indices
    argmax = np.empty(y.shape if save else (0,), plan.argmax_dtype)
    loop_arguments = (plan.sizes, plan.taps, plan.steps)
    line: tuple[int, ...] = ()
    if plan.pair_block:
        run = loops.make_forward_pairs(plan.taps[0], plan.pair_block, save)
    elif plan.line:
        run, line = loops.make_forward(*plan.unrolled, save), plan.line
    else:
        run = loops.make_forward_per_tap(save)

    def maxima(x: Array, y: Array, argmax: Array, start: int, stop: int) -> None:
        run(x, y, argmax, *loop_arguments, *tables, *line, start, stop)

    parallel_over_planes(plan.planes, plan.rows, (as_lines(x),), (as_lines(y), as_lines(argmax)), maxima)
    indices = _indices(window, argmax) if with_indices else None
    if ties in (None, "first"):
        return y, argmax, indices
    number = (math.prod(window.kernel) + 7) // 8
    bits, (_, complete) = np.empty((number, *y.shape), np.uint8), _forward_plan(window, True)

    def find_ties(x: Array, y: Array, bits: Array, start: int, stop: int) -> None:
        loops.tie_bits(x, y, bits, *loop_arguments, *complete, start, stop)

    parallel_over_planes(plan.planes, plan.rows, (as_lines(x), as_lines(y)), (as_lines(bits, number),), find_ties)
    return y, bits, indices


def _indices(window: AnyWindow, argmax: Array) -> Array:
    """The flat cell of each maximum in its plane; -1 if the window sees no cell."""
    indices = np.empty(argmax.shape, np.int64)
    plan, offsets, tables = _backward_plan(window, True)

    def cells(argmax: Array, indices: Array, start: int, stop: int) -> None:
        loops.flat_indices(argmax, indices, plan.sizes, offsets, *tables, start, stop)

    parallel_over_planes(plan.planes, plan.rows, (as_lines(argmax),), (as_lines(indices),), cells)
    return indices


def _backward(window: AnyWindow, dy: Array, saved: Array, ties: str) -> Array:
    plan, offsets, tables = _backward_plan(window, ties != "first")
    dx = backends.result(window.layout.shape, dy.dtype)
    loop_arguments = (plan.sizes, offsets, plan.disjoint)

    def from_ties(dy: Array, bits: Array, dx: Array, start: int, stop: int) -> None:
        loops.ties_backward(dy, bits, dx, *loop_arguments, ties == "split", *tables, start, stop)

    def from_argmax(dy: Array, argmax: Array, dx: Array, start: int, stop: int) -> None:
        loops.backward(dy, argmax, dx, *loop_arguments, *tables, start, stop)

    def from_argmax_simple(dy: Array, argmax: Array, dx: Array, start: int, stop: int) -> None:
        loops.backward_simple(dy, argmax, dx, *loop_arguments, *tables, *plan.stride_and_padding, start, stop)

    run: Callable[..., None] = (
        from_ties if ties != "first" else from_argmax_simple if plan.simple_backward else from_argmax
    )
    lines_of_saved = 1 if ties == "first" else saved.shape[0]
    parallel_over_planes(plan.planes, 1, (as_lines(dy), as_lines(saved, lines_of_saved)), (as_lines(dx),), run)
    return dx
