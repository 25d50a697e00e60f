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
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis, Window

from . import max_pool_backward_loops as backward_loops
from . import max_pool_loops as loops
from .parallel import chunked, flat, over_planes, prepared, to_lanes
from .vectors import LANES, as_bits
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
MAX_TAPS_TOGETHER = 9  # of a window whose taps are all compared; larger windows are separated into rows and columns,
# and loops over channels may take as many taps for each cell that the stride goes on
LEAST_CHANNELS = 8  # of a cell, for loops over channels
LINE_ELEMENTS = 12_000  # of the lines that are used together, so that they are in the L1 cache


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return refusal(_window(spec), arrays[0] if arrays else None)


# ----------------------------------------------------------------------------------------------------------------- ops
@prepared
def max_pool(spec: Any, x: Array) -> Callable[[Array], tuple[Array, Array | None]]:
    """y, and the indices or None."""
    run = _forward(spec.window, x, None, spec.indices)
    return lambda x: run(x)[::2]


@prepared
def max_pool_forward(spec: Any, x: Array) -> Callable[[Array], tuple[Array, Array, Array | None]]:
    """y, the argmax or tie bits, and the indices or None."""
    return _forward(spec.window, x, spec.ties, spec.indices)


@prepared
def max_pool_backward(spec: Any, dy: Array, saved: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _backward(spec.window, dy, saved, spec.ties)


@prepared
def adaptive_max_pool(window: AdaptiveWindow, x: Array) -> Callable[[Array], Array]:
    """y."""
    run = _forward(_regular(window), x, None, False)
    return lambda x: run(x)[0]


@prepared
def adaptive_max_pool_forward(window: AdaptiveWindow, x: Array) -> Callable[[Array], tuple[Array, Array]]:
    """y and the argmax."""
    run = _forward(_regular(window), x, "first", False)
    return lambda x: run(x)[:2]


@prepared
def adaptive_max_pool_backward(window: AdaptiveWindow, dy: Array, argmax: Array) -> Callable[[Array, Array], Array]:
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
    rows_per_plane: int  # rows of windows
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
    total_rows: int  # rows of windows, of all planes


def _plan(window: AnyWindow) -> WindowPlan:
    axes, (planes, channels) = three_axes(window), planes_and_channels(window)
    depth, height, width = axes
    number = math.prod(window.kernel)
    return WindowPlan(
        out_shape=window.out_shape,
        planes=planes,
        rows_per_plane=depth.out * height.out,
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
    dilations, total_rows = tuple(map(dilation_of, axes)), planes * depth.out * height.out
    tables = [cells_under_windows(axis, taps=True) for axis in (depth, height)]
    form = _form(depth, height, width, channels)
    if form != "lines":
        tables.append(cells_under_windows(width, taps=True))
        if form == "by cell":
            make = functools.partial(loops.make_forward_by_cell, channels < LANES)  # vectors of a cell's channels
        else:
            narrowest = width.narrowest if isinstance(width, AdaptiveAxis) else width.kernel
            make = functools.partial(loops.make_forward_by_window, narrowest >= LANES and dilations[2] == 1)
        return ForwardPlan(make, (like, sizes, taps, dilations, *tables), total_rows)
    assert isinstance(width, Axis)
    assert isinstance(height, Axis)
    pitch, size, offsets = _line(width, channels)
    taps_inside = window_extents(width)[1]
    taps_inside = np.repeat(taps_inside[: np.max(np.flatnonzero(taps_inside), initial=-1) + 1], channels)
    first_taps = np.zeros(-(-taps_inside.size // LANES) * LANES + LANES, np.int32)
    first_taps[: taps_inside.size] = taps_inside
    extent, together = dilation_of(height) * (height.kernel - 1), 4
    while together > 1 and (extent + together * height.stride) * depth.kernel * size > LINE_ELEMENTS:
        together //= 2
    ring = 1 << (extent + (together - 1) * height.stride).bit_length()
    separable = height.kernel * width.kernel > MAX_TAPS_TOGETHER and width.kernel > 1
    unrolled = width.kernel if width.kernel <= 3 and channels == 1 and not separable else 0
    layout = (pitch, width.before * channels, size, ring, together)
    arguments = (like, sizes, taps, dilations, *tables, first_taps, offsets, layout)
    return ForwardPlan(functools.partial(loops.make_forward, unrolled, width.stride, separable), arguments, total_rows)


def _line(axis: Axis, channels: int) -> tuple[int, int, Array]:
    """`pitch`, `size` and `offsets` of `make_forward`."""
    reach = (axis.kernel - 1) * axis.dilation
    cells = max(axis.out + reach // axis.stride, -(-(axis.length + axis.before) // axis.stride))
    pitch = -(-cells * channels // LANES) * LANES + LANES  # vectors are loaded and stored past the last window
    taps = np.arange(axis.kernel) * axis.dilation
    return pitch, (axis.stride + 1) * pitch, taps % axis.stride * pitch + taps // axis.stride * channels


def _fits_line(axis: AnyAxis, channels: int) -> bool:
    """Whether windows are 1 or 2 cells apart, and a line is not much longer than a row: taps may reach far outside of
    it, or windows may be few."""
    if not isinstance(axis, Axis) or axis.stride > (2 if channels == 1 else 1):
        return False
    cells = axis.out * axis.stride + (axis.kernel - 1) * axis.dilation
    return axis.kernel <= 4 * -(axis.length // -axis.dilation) and cells <= 4 * (axis.length + axis.out) + 256


def _form(depth: AnyAxis, height: AnyAxis, width: AnyAxis, channels: int) -> str:
    """The loops that serve: "lines" (vectors of neighbouring windows), "by cell" (vectors of the channels of a cell) or
    "by window" (vectors of the cells in a row of one window)."""
    regular = _fits_line(width, channels) and all(isinstance(a, Axis) for a in (depth, height))
    if channels > 1:
        taps = height.kernel * width.kernel
        # Loops by cell read a cell once for each window over it, loops on lines once: they serve where these are few.
        distances = [min(a.stride if isinstance(a, Axis) else a.length, a.kernel) for a in (height, width)]
        few = channels >= LEAST_CHANNELS and taps <= MAX_TAPS_TOGETHER * math.prod(distances)
        return "by cell" if few or not regular else "lines"
    return "by window" if not regular or (width.kernel >= 4 and width.out == 1) else "lines"


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
def _forward(
    window: AnyWindow, x: Array, ties: str | None, with_indices: bool
) -> Callable[[Array], tuple[Array, Array, Array | None]]:
    """A function of arrays like x: y, what the backward of this tie rule needs (None: nothing), and the indices, or
    None."""
    plan, forward = _window_plan(window), _forward_plan(window, np.float64 if x.dtype == np.float64 else np.float32)
    save, size = ties == "first" or with_indices, math.prod(plan.out_shape)
    new, new_argmax = backends.new_result(plan.out_shape, x.dtype), _new_argmax(plan, save)
    nbytes = x.nbytes + size * (x.itemsize + (plan.argmax_dtype().itemsize if save else 0))
    in_chunks, loop, arguments = (
        chunked(forward.total_rows if size else 0, nbytes),
        forward.make(save),
        forward.loop_arguments,
    )

    def maxima(x: Array) -> tuple[Array, Array, None]:
        y, argmax = new(), new_argmax()
        in_chunks(loop, to_lanes(x), to_lanes(y), argmax.ravel(), *arguments)
        return y, argmax, None

    if ties in (None, "first") and not with_indices:
        return maxima
    indices = _indices(window) if with_indices else lambda argmax: None
    bits = _tie_bits(window, x) if ties not in (None, "first") else None

    def maxima_and_more(x: Array) -> tuple[Array, Array, Array | None]:
        y, argmax, _ = maxima(x)
        return y, argmax if bits is None else bits(x, y), indices(argmax)

    return maxima_and_more


def _new_argmax(plan: WindowPlan, save: bool) -> Callable[[], Array]:
    """A function that makes the array of the argmax, or an empty one."""
    return functools.partial(np.empty, plan.out_shape if save else (0,), plan.argmax_dtype)


def _tie_bits(window: AnyWindow, x: Array) -> Callable[[Array, Array], Array]:
    """A function of x and y: one bit a tap, set where the cell equals the maximum; shape (bytes, *y.shape)."""
    plan, number = _window_plan(window), (math.prod(window.kernel) + 7) // 8
    size = math.prod(plan.out_shape)
    nbytes = x.nbytes + size * (x.itemsize + number)
    over = over_planes(plan.planes, plan.rows_per_plane, x.dtype, nbytes if size else 0, (1, 1, number))
    arguments = plan.sizes, plan.taps[1:], plan.dilations, *_tables(window)

    def run(x: Array, y: Array) -> Array:
        bits = np.empty((number, *y.shape), np.uint8)
        if size:
            over(backward_loops.tie_bits, (x, y), (bits,), *arguments)
        return bits

    return run


def _indices(window: AnyWindow) -> Callable[[Array], Array]:
    """A function of the argmax: the flat cell of each maximum in its plane; -1 if the window sees no cell."""
    plan, offsets, tables = _backward_plan(window, True)
    nbytes = math.prod(plan.out_shape) * (8 + plan.argmax_dtype().itemsize)
    in_chunks = chunked(plan.planes * plan.rows_per_plane, nbytes)

    def run(argmax: Array) -> Array:
        indices = np.empty(argmax.shape, np.int64)
        if indices.size:
            in_chunks(backward_loops.flat_indices, flat(argmax), flat(indices), plan.sizes, offsets, *tables)
        return indices

    return run


def _backward(window: AnyWindow, dy: Array, saved: Array, ties: str) -> Callable[[Array, Array], Array]:
    """A function of arrays like dy and what was saved: dx."""
    plan, offsets, tables = _backward_plan(window, ties != "first")
    shape, common = window.layout.shape, (plan.sizes, offsets, plan.disjoint)
    loop, arguments = backward_loops.backward, (*common, *tables)
    if ties != "first":
        loop, arguments = backward_loops.ties_backward, (*common, ties == "split", *tables)
    elif plan.simple_backward:
        loop, arguments = backward_loops.backward_simple, (*arguments, *plan.stride_and_padding)
    moved = ties == "first" and plan.disjoint  # numbers are only moved: half types need no conversion
    of_bits: Callable[[Array], Array] = as_bits if moved else lambda array: array
    size = math.prod(shape)
    lines = (1, 1 if ties == "first" else saved.shape[0], 1)
    nbytes = dy.nbytes + saved.nbytes + size * dy.itemsize
    new, over = backends.new_result(shape, dy.dtype), over_planes(plan.planes, 1, of_bits(dy).dtype, nbytes, lines)

    def run(dy: Array, saved: Array) -> Array:
        dx = new()
        if size:
            over(loop, (of_bits(dy), saved), (of_bits(dx),), *arguments)
        return dx

    return run
