"""Launchers of max_pool_loops.py and max_pool_backward_loops.py: max and adaptive max pooling.

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

from . import max_pool_backward_loops as backward_loops
from . import max_pool_loops as loops
from .parallel import as_lines, flat, parallel_chunks, parallel_over_planes
from .vectors import LANES, as_bits
from .window_lines import fits_line, line_layout
from .windows import (
    AnyAxis,
    AnyWindow,
    cells_under_windows,
    dilation_of,
    merged,
    planes_and_channels,
    refusal,
    three_axes,
    window_extents,
    window_starts,
)

Array = Any
Tables = tuple[Array, Array, Array]
MOST_NOT_SEPARATED = 9  # taps of a window that is not separated into rows and columns
LEAST_CHANNELS = 8  # of a cell, for loops over channels


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
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
class WindowPlan:
    """The sizes of some windows, as the loops take them; max_pool_loops.py and max_pool_backward_loops.py explain them.

    disjoint: no cell has two windows. simple_backward: `backward_simple` serves."""

    out_shape: tuple[int, ...]
    planes: int
    window_rows: int  # of a plane
    sizes: tuple[int, ...]
    taps: tuple[int, int, int]
    dilations: tuple[int, int, int]
    disjoint: bool
    argmax_dtype: Any  # the smallest unsigned dtype for the number of a tap in the window
    simple_backward: bool
    stride_and_padding: tuple[int, int]


@dataclass(frozen=True, eq=False)
class ForwardPlan:
    """make: the kernel, with or without the argmax. loop_arguments: between the arrays and the range."""

    make: Callable[[bool], Callable[..., None]]
    loop_arguments: tuple[Any, ...]
    window_rows: int  # of all planes


def _plan(window: AnyWindow) -> WindowPlan:
    axes, (planes, channels) = three_axes(window), planes_and_channels(window)
    depth, height, width = axes
    number = math.prod(window.kernel)
    return WindowPlan(
        out_shape=window.out_shape,
        planes=planes,
        window_rows=depth.out * height.out,
        sizes=(*(a.length for a in axes), *(a.out for a in axes), channels),
        taps=(depth.kernel, height.kernel, width.kernel),
        dilations=(dilation_of(depth), dilation_of(height), dilation_of(width)),
        disjoint=all(isinstance(a, Axis) and a.disjoint for a in axes),
        argmax_dtype=np.uint8 if number <= 2**8 else np.uint16 if number <= 2**16 else np.uint32,
        simple_backward=channels == 1 and all(_all_windows_have_cells(a) for a in axes),
        stride_and_padding=(0, 0) if isinstance(width, AdaptiveAxis) else (width.stride, width.before),
    )


def _all_windows_have_cells(axis: AnyAxis) -> bool:
    """Whether every window sees a cell of the input. Only a dilated window can miss it."""
    if isinstance(axis, AdaptiveAxis) or axis.dilation == 1 or axis.whole:
        return True
    return bool((window_extents(axis)[2] > 0).all())


@backends.planned
def _forward_plan(window: AnyWindow, dtype: Any) -> ForwardPlan:
    """dtype: of the lanes."""
    axes, (planes, channels) = merged(three_axes(window)), planes_and_channels(window)
    depth, height, width = axes
    like, taps = np.empty(0, dtype), tuple(a.kernel for a in axes)
    sizes = (*(a.length for a in axes), *(a.out for a in axes), channels)
    dilations, window_rows = tuple(map(dilation_of, axes)), planes * depth.out * height.out
    tables = [cells_under_windows(axis, taps=True) for axis in (depth, height)]
    form = _form(depth, height, width, channels)
    if form != "lines":
        tables.append(cells_under_windows(width, taps=True))
        by_cell = functools.partial(loops.make_forward_by_cell, channels < LANES)
        make = by_cell if form == "by cell" else loops.make_forward_by_window
        return ForwardPlan(make, (like, sizes, taps, dilations, *tables), window_rows)
    assert isinstance(width, Axis)
    line = line_layout(width, channels)
    taps_inside = window_extents(width)[1]
    taps_inside = np.repeat(taps_inside[: np.max(np.flatnonzero(taps_inside), initial=-1) + 1], channels)
    first_taps = np.zeros(-(-taps_inside.size // LANES) * LANES + LANES, np.int32)
    first_taps[: taps_inside.size] = taps_inside
    ring = 1 << (dilation_of(height) * (height.kernel - 1)).bit_length()
    separable = height.kernel * width.kernel > MOST_NOT_SEPARATED and width.kernel > 1
    unrolled = width.kernel if width.kernel <= 3 and channels == 1 and not separable else 0
    stride = width.stride if width.stride <= 2 else 0
    layout = (line.parts, line.pitch, line.padding, line.size)
    arguments = (like, sizes, taps, dilations, *tables, first_taps, line.offsets, layout, ring)
    return ForwardPlan(
        functools.partial(loops.make_forward, unrolled, stride, channels == 1, separable), arguments, window_rows
    )


def _form(depth: AnyAxis, height: AnyAxis, width: AnyAxis, channels: int) -> str:
    """The loops that serve: "lines", "by cell" or "by window"."""
    regular = isinstance(width, Axis) and fits_line(width) and all(isinstance(a, Axis) for a in (depth, height))
    if channels > 1:
        taps = height.kernel * width.kernel
        # Loops by cell read a cell once for each window over it, loops on lines once: they serve where these are few.
        distances = [min(a.stride if isinstance(a, Axis) else a.length, a.kernel) for a in (height, width)]
        few = channels >= LEAST_CHANNELS and taps <= MOST_NOT_SEPARATED * math.prod(distances)
        return "by cell" if few or not regular else "lines"
    wide = width.kernel >= 4 and (
        width.out == 1 or (isinstance(width, Axis) and width.stride >= 4 and width.kernel >= 7)
    )
    return "by window" if wide or not regular else "lines"


@backends.planned
def _tables(window: AnyWindow) -> Tables:
    """`cells_under_windows` of depth, height and width."""
    depth, height, width = (cells_under_windows(axis, taps=True) for axis in three_axes(window))
    return depth, height, width


_window_plan = backends.planned(_plan)


@backends.planned
def _backward_plan(window: AnyWindow, complete: bool) -> tuple[WindowPlan, Array, Tables]:
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


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(window: AnyWindow, x: Array, ties: str | None, with_indices: bool) -> tuple[Array, Array, Array | None]:
    """y, what the backward of this tie rule needs (None: nothing), and the indices, or None."""
    plan, forward = _window_plan(window), _forward_plan(window, np.float64 if x.dtype == np.float64 else np.float32)
    y = backends.result(plan.out_shape, x.dtype)
    save = ties == "first" or with_indices
    argmax = np.empty(y.shape if save else (0,), plan.argmax_dtype)
    if y.size:
        run, arrays = forward.make(save), (flat(as_bits(x)), as_bits(y).reshape(-1), argmax.reshape(-1))

        def maxima(start: int, stop: int) -> None:
            run(*arrays, *forward.loop_arguments, start, stop)

        parallel_chunks(forward.window_rows, x.nbytes + y.nbytes + argmax.nbytes, maxima)
    indices = _indices(window, argmax) if with_indices else None
    if ties in (None, "first"):
        return y, argmax, indices
    number = (math.prod(window.kernel) + 7) // 8
    bits, complete = np.empty((number, *y.shape), np.uint8), _tables(window)

    def find_ties(x: Array, y: Array, bits: Array, start: int, stop: int) -> None:
        backward_loops.tie_bits(x, y, bits, plan.sizes, plan.taps[1:], plan.dilations, *complete, start, stop)

    parallel_over_planes(
        plan.planes, plan.window_rows, (as_lines(x), as_lines(y)), (as_lines(bits, number),), find_ties
    )
    return y, bits, indices


def _indices(window: AnyWindow, argmax: Array) -> Array:
    """The flat cell of each maximum in its plane; -1 if the window sees no cell."""
    indices = np.empty(argmax.shape, np.int64)
    plan, offsets, tables = _backward_plan(window, True)

    def fill(argmax: Array, indices: Array, start: int, stop: int) -> None:
        backward_loops.flat_indices(argmax, indices, plan.sizes, offsets, *tables, start, stop)

    parallel_over_planes(plan.planes, plan.window_rows, (as_lines(argmax),), (as_lines(indices),), fill)
    return indices


def _backward(window: AnyWindow, dy: Array, saved: Array, ties: str) -> Array:
    plan, offsets, tables = _backward_plan(window, ties != "first")
    dx = backends.result(window.layout.shape, dy.dtype)
    loop_arguments = (plan.sizes, offsets, plan.disjoint)

    def from_ties(dy: Array, bits: Array, dx: Array, start: int, stop: int) -> None:
        backward_loops.ties_backward(dy, bits, dx, *loop_arguments, ties == "split", *tables, start, stop)

    def from_argmax(dy: Array, argmax: Array, dx: Array, start: int, stop: int) -> None:
        backward_loops.backward(dy, argmax, dx, *loop_arguments, *tables, start, stop)

    def from_argmax_simple(dy: Array, argmax: Array, dx: Array, start: int, stop: int) -> None:
        backward_loops.backward_simple(dy, argmax, dx, *loop_arguments, *tables, *plan.stride_and_padding, start, stop)

    run: Callable[..., None] = (
        from_ties if ties != "first" else from_argmax_simple if plan.simple_backward else from_argmax
    )
    lines_of_saved = 1 if ties == "first" else saved.shape[0]
    moved = ties == "first" and plan.disjoint  # numbers are only moved: half types need no conversion
    source, target = (as_bits(dy), as_bits(dx)) if moved else (dy, dx)
    parallel_over_planes(plan.planes, 1, (as_lines(source), as_lines(saved, lines_of_saved)), (as_lines(target),), run)
    return dx
