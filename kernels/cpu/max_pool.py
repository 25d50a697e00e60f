"""Launchers of max_pool_loops.py: max pooling and its adaptive form, called as the portable code is.

Forward is cut into runs of rows of windows; backward, which writes where each maximum lies, into runs of planes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis

from . import max_pool_loops as loops
from .pool_window import (
    AnyAxis,
    AnyWindow,
    axes_of,
    cells_of,
    lines,
    over,
    planes_of,
    refusal,
    starts_of,
    step,
    windows_on,
)

Array = Any
Tables = tuple[Array, Array, Array]
UNROLLED = ((2, 2), (3, 1), (3, 2))  # width and stride of windows for which max_pool_loops.py has loops of their own


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return refusal(_window(spec), arrays[0] if arrays else None)


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
def _window(spec: Any) -> AnyWindow:
    """The windows of a spec; an adaptive pool's as ordinary ones where the lengths divide."""
    return _regular(spec) if isinstance(spec, AdaptiveWindow) else spec.window


@functools.lru_cache(maxsize=256)
def _regular(spec: AdaptiveWindow) -> AnyWindow:
    return spec.regular() or spec


@dataclass(frozen=True, eq=False)
class Plan:
    """What the loops are told of a window besides its tables; max_pool_loops.py says what each is. `line`: of a row's
    line its pitch, parts and first cell, where one serves; `form`: which of that loop's forms; `pairs`: windows of a
    block, 0 where they are no pairs; `plain`: whether backward's plainer loop serves; `stride`: along a row, with the
    padding before it, or zeros where windows differ."""

    out_shape: tuple[int, ...]
    planes: int
    rows: int
    sizes: tuple[int, ...]
    taps: tuple[int, int]
    steps: tuple[int, int, int]
    disjoint: bool
    place: Any  # the smallest unsigned dtype that holds a tap's place in the window
    line: tuple[int, ...]
    form: tuple[int, int]
    pairs: int
    plain: bool
    stride: tuple[int, int]


def _plan(window: AnyWindow) -> Plan:
    axes, (planes, channels) = axes_of(window), planes_of(window)
    depth, height, width = axes
    number = math.prod(window.kernel)
    return Plan(
        out_shape=window.out_shape,
        planes=planes,
        rows=depth.out * height.out,
        sizes=(*(a.length for a in axes), *(a.out for a in axes), channels),
        taps=(height.kernel, width.kernel),
        steps=(step(depth), step(height), step(width)),
        disjoint=all(isinstance(a, Axis) and a.disjoint for a in axes),
        place=np.uint8 if number <= 2**8 else np.uint16 if number <= 2**16 else np.uint32,
        line=_line(width) if channels == 1 else (),
        form=_form(width),
        pairs=next((n for n in loops.BLOCKS if width.out >= n), 0) if channels == 1 and _paired(*axes) else 0,
        plain=channels == 1 and all(_meets(a) for a in axes),
        stride=(0, 0) if isinstance(width, AdaptiveAxis) else (width.stride, width.before),
    )


def _meets(axis: AnyAxis) -> bool:
    """Whether every window meets a cell: only dilation can pass over the input."""
    return step(axis) == 1 or (isinstance(axis, Axis) and axis.whole) or bool((windows_on(axis)[2] > 0).all())


@backends.planned
def _forward_plan(window: AnyWindow, whole: bool) -> tuple[Plan, Tables]:
    """The plan, and `cells_of` depth, height and width. Unless `whole`, of the width only what the plan's loop reads:
    nothing for pairs, and where rows are laid out in a line the first taps."""
    plan, (depth, height, width) = _plan(window), axes_of(window)
    if whole or not (plan.pairs or plan.line):
        last = cells_of(width, taps=True)
    else:
        last = np.empty(0, np.int32) if plan.pairs else _first_taps(width)
    return plan, (cells_of(depth, taps=True), cells_of(height, taps=True), last)


def _first_taps(axis: AnyAxis) -> Array:
    """Each window's first tap that meets a cell, up to the last window where it is not 0."""
    tap = windows_on(axis)[1].astype(np.int32)
    return tap[: np.max(np.flatnonzero(tap), initial=-1) + 1].copy()


@backends.planned
def _backward_plan(window: AnyWindow, whole: bool) -> tuple[Plan, Array, Tables]:
    """The plan, the cells under a window's taps, and `starts_of` depth, height and width. Unless `whole`, and where the
    plainer loop serves, nothing of a width whose windows are a stride apart."""
    plan, (depth, height, width) = _plan(window), axes_of(window)
    needed = whole or not plan.plain or isinstance(width, AdaptiveAxis)
    last = starts_of(width) if needed else np.empty((2, 0), np.int32)
    return plan, _offsets(window), (starts_of(depth), starts_of(height), last)


def _offsets(window: AnyWindow) -> Array:
    """The cell under each tap of a window, in C order, relative to the window's start in the plane."""
    offsets = np.zeros(1, np.int64)
    for axis in axes_of(window):
        taps = np.arange(axis.kernel) * step(axis)
        offsets = (offsets[:, None] * axis.length + taps).reshape(-1)
    return offsets


def _form(axis: AnyAxis) -> tuple[int, int]:
    """Width and stride of the loop's own form for these windows; zeros for the general one."""
    if isinstance(axis, Axis) and axis.dilation == 1 and (axis.kernel, axis.stride) in UNROLLED:
        return axis.kernel, axis.stride
    return 0, 0


def _paired(depth: AnyAxis, height: AnyAxis, width: AnyAxis) -> bool:
    """Whether windows are one or two rows of two neighbours, side by side and inside the input."""
    regular = isinstance(width, Axis) and (width.kernel, width.stride, width.dilation) == (2, 2, 1)
    inside = regular and all(isinstance(a, Axis) and a.whole for a in (depth, height, width))
    return inside and depth.kernel == 1 and height.kernel <= 2


def _line(axis: AnyAxis) -> tuple[int, ...]:
    """Pitch and parts of a row laid out in a line, a part for each cell of a stride, and the place of the row's first
    cell. None for windows that differ, nor where most taps of every window see padding, which the line's loops read,
    nor where taps reach so far beyond the row, or windows are so few, that the line would be much longer than it."""
    if isinstance(axis, AdaptiveAxis) or axis.kernel > 4 * -(axis.length // -axis.dilation):
        return ()
    taken = -(-axis.out // loops.LANES) * loops.LANES + (axis.kernel - 1) * axis.dilation // axis.stride
    pitch = max(taken, (axis.length - 1 + axis.before) // axis.stride + 1)
    return (pitch, axis.stride, axis.before) if pitch * axis.stride <= 4 * (axis.length + axis.out) + 256 else ()


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(window: AnyWindow, x: Array, ties: str | None, numbered: bool) -> tuple[Array, Array, Array | None]:
    """y, what backward needs of this tie rule (None: nothing), and the indices where they are wanted."""
    plan, tables = _forward_plan(window, False)
    y = backends.result(plan.out_shape, x.dtype)
    save = ties == "first" or numbered
    place = np.empty(y.shape if save else (0,), plan.place)
    known = (plan.sizes, plan.taps, plan.steps)
    line: tuple[int, ...] = ()
    if plan.pairs:
        run = loops.forward_pairs(plan.taps[0], plan.pairs, save)
    elif plan.line:
        run, line = loops.forward(*plan.form, save), plan.line
    else:
        run = loops.forward_cells(save)

    def maxima(x: Array, y: Array, place: Array, start: int, stop: int) -> None:
        run(x, y, place, *known, *tables, *line, start, stop)

    over(plan.planes, plan.rows, (lines(x),), (lines(y), lines(place)), maxima)
    indices = _indices(window, place) if numbered else None
    if ties in (None, "first"):
        return y, place, indices
    number = (math.prod(window.kernel) + 7) // 8
    bits, (_, whole) = np.empty((number, *y.shape), np.uint8), _forward_plan(window, True)

    def equal(x: Array, y: Array, bits: Array, start: int, stop: int) -> None:
        loops.ties(x, y, bits, *known, *whole, start, stop)

    over(plan.planes, plan.rows, (lines(x), lines(y)), (lines(bits, number),), equal)
    return y, bits, indices


def _indices(window: AnyWindow, place: Array) -> Array:
    indices = np.empty(place.shape, np.int64)
    plan, offsets, tables = _backward_plan(window, True)

    def cells(place: Array, indices: Array, start: int, stop: int) -> None:
        loops.numbered(place, indices, plan.sizes, offsets, *tables, start, stop)

    over(plan.planes, plan.rows, (lines(place),), (lines(indices),), cells)
    return indices


def _backward(window: AnyWindow, dy: Array, saved: Array, ties: str) -> Array:
    plan, offsets, tables = _backward_plan(window, ties != "first")
    dx = backends.result(window.layout.shape, dy.dtype)
    known = (plan.sizes, offsets, plan.disjoint)

    def equal(dy: Array, bits: Array, dx: Array, start: int, stop: int) -> None:
        loops.ties_backward(dy, bits, dx, *known, ties == "split", *tables, start, stop)

    def first(dy: Array, place: Array, dx: Array, start: int, stop: int) -> None:
        loops.backward(dy, place, dx, *known, *tables, start, stop)

    def first_plain(dy: Array, place: Array, dx: Array, start: int, stop: int) -> None:
        loops.backward_plain(dy, place, dx, *known, *tables, *plan.stride, start, stop)

    run: Callable[..., None] = equal if ties != "first" else first_plain if plan.plain else first
    number = 1 if ties == "first" else saved.shape[0]
    over(plan.planes, 1, (lines(dy), lines(saved, number)), (lines(dx),), run)
    return dx
