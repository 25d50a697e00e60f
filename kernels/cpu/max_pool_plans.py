"""Which loops of max_pool_loops.py serve some windows, and their arguments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import AdaptiveAxis, Axis

from . import max_pool_loops as loops
from .vectors import LANES
from .windows import (
    MISSING_AXIS,
    AnyAxis,
    AnyWindow,
    cells_under_windows,
    dilation_of,
    merged,
    planes_and_channels,
    three_axes,
    window_extents,
)

Array = Any
# Taps of a window, at most, that are all compared: of larger windows the maxima along each row come first, then the
# maxima of these. Loops over channels read each cell this many times at most.
MAX_COMPARED_TAPS = 9
LEAST_CHANNELS = 8  # of a cell, for loops over channels
LINE_ELEMENTS = 4_000  # of the lines of a band, so that they are in the L1 cache
CELL_LINE_ELEMENTS = 16_000  # with several channels, whose rows are long: in the L2 cache
LINE_WINDOWS = 4_096  # of a row of windows in a line, at most
FULL_ROW = 8 * LANES  # elements: in a longer row, the empty lanes of its last vector cost at most an eighth
MAX_TABLE = 1 << 24  # elements of a table for one row
TABLE_ELEMENTS = 1 << 14  # of a table for several rows, so that it is in the cache


@functools.lru_cache(maxsize=256)  # not in the plan cache, which counts bytes: results are small
def table_refusal(window: AnyWindow) -> str | None:
    """Why a table of `_elements` would be too large, or None."""
    axes, channels = merged(three_axes(window)), planes_and_channels(window)[1]
    width = axes[2]
    size = max(width.length, width.kernel * width.out) * channels
    if size <= MAX_TABLE or _form(axes, channels) != "elements":
        return None
    return f"rows whose windows have {size} elements together, of irregular windows; kernels take at most {MAX_TABLE}"


@backends.planned
def forward_plan(window: AnyWindow, dtype: Any) -> tuple[Callable[[bool], Any], tuple[Any, ...], int]:
    """The maker of the kernel (with or without the argmax), its arguments between the arrays and the range, and the
    number of rows of windows. dtype: of the lanes."""
    axes, (planes, channels) = merged(three_axes(window)), planes_and_channels(window)
    depth, height, width = axes
    like, form = np.empty(0, dtype), _form(axes, channels)
    if form == "bands":
        make, arguments = _bands(axes, planes, channels)
        return make, (like, *arguments), planes * depth.out * height.out
    if form == "elements":
        number, arguments = _elements(axes, planes, channels)
        return functools.partial(loops.make_forward_by_tap, "elements"), (like, *arguments), number
    *tables, w = (cells_under_windows(axis, taps=True) for axis in axes)
    sizes = (depth.length, height.length, width.length * channels, depth.out, height.out, width.out, channels)
    tables += [w.reshape(-1), np.arange(LANES, dtype=np.int32)]
    arguments = (like, sizes, _taps(axes), tuple(map(dilation_of, axes)), *tables)
    return functools.partial(loops.make_forward_by_tap, form), arguments, planes * depth.out * height.out


def _taps(axes: Sequence[AnyAxis]) -> tuple[int, ...]:
    return tuple(a.kernel for a in axes)


def _form(axes: Sequence[AnyAxis], channels: int) -> str:
    """The loops that serve: "bands", or those by tap whose vectors are the "channels" of a cell, the "taps" of a window
    or any "elements"."""
    height, width = axes[1:]
    regular = all(map(_fits_lines, axes))
    if isinstance(width, Axis) and width.stride > (2 if channels == 1 else 1):  # rows are copied cell by cell
        regular = regular and 1 < channels < LANES and (channels >= LEAST_CHANNELS or width.stride < width.kernel)
    if channels >= (LANES if regular else LEAST_CHANNELS):
        # Loops over channels read a cell once for each window over it, and bands read it once. So loops over channels
        # serve where few windows overlap.
        distances = [min(a.stride if isinstance(a, Axis) else a.length, a.kernel) for a in (height, width)]
        few_overlap = height.kernel * width.kernel <= MAX_COMPARED_TAPS * math.prod(distances)
        return "channels" if few_overlap or not regular else "bands"
    narrowest = width.narrowest if isinstance(width, AdaptiveAxis) else width.kernel
    if channels == 1 and narrowest >= LANES and dilation_of(width) == 1 and (width.out == 1 or not regular):
        return "taps"
    return "bands" if regular else "elements"


def _fits_lines(axis: AnyAxis) -> bool:
    """Whether lines are not much longer than rows: taps may reach far outside of x, or windows may be few."""
    if not isinstance(axis, Axis):
        return False
    cells = axis.out * axis.stride + (axis.kernel - 1) * axis.dilation
    return axis.kernel <= 4 * -(axis.length // -axis.dilation) and cells <= 4 * (axis.length + axis.out) + 256


def _bands(axes: Sequence[Any], planes: int, channels: int) -> tuple[Any, tuple[Any, ...]]:
    """The maker of `make_forward`'s kernels, and their arguments. That docstring says what bands and lines are.

    A band has up to `rows` rows of windows, or `most_planes` planes where all rows of a plane fit, so that its lines
    have about `elements` elements and stay in the cache. Of a long row it has `row_windows` windows. From one row to
    the next a line goes `pitch` elements on: the windows of a row, and the cells beside them that only its last windows
    see. `offsets`: where in the lines a window's taps are."""
    depth, height, width = axes
    taps_h, taps_w = (np.arange(a.kernel) * a.dilation for a in axes[1:])
    row_windows, rows_below = min(width.out, -(-LINE_WINDOWS // channels)), int(taps_h[-1]) // height.stride
    beside, lines_down = int(taps_w[-1]) // width.stride, min(height.stride, int(taps_h[-1]) + 1)
    elements = LINE_ELEMENTS if channels == 1 else CELL_LINE_ELEMENTS
    room = elements // (depth.kernel * lines_down * width.stride) - 2 * LANES
    if room < 2 * rows_below * (row_windows + beside) * channels:  # bands of few rows would compute most rows twice
        row_windows = min(row_windows, max(math.isqrt(max(room, 0) // channels) - beside, 1))
    pitch, padded = (row_windows + beside) * channels, not all(a.whole for a in axes)
    contiguous = not padded and rows_below == 0 and pitch == width.out * channels
    direct = contiguous or -row_windows * channels % LANES < row_windows * channels / 6
    if not contiguous and -pitch % LANES < pitch / 8:  # vectors in cache lines are faster, if few lanes are lost
        pitch += -pitch % LANES
    rows = min(max(room // pitch - rows_below, 1), height.out)
    complete = rows >= height.out and depth.out <= 1  # planes
    most_planes = min(max(room // ((rows + rows_below) * pitch), 1), planes) if complete else 1
    size = -(-most_planes * (rows + rows_below) * pitch // LANES) * LANES + LANES
    separable = math.prod(_taps(axes)) > MAX_COMPARED_TAPS and width.kernel > 1
    line = (np.arange(depth.kernel)[:, None] * lines_down + taps_h % height.stride).reshape(-1)
    of_rows = np.tile(taps_h // height.stride * pitch, depth.kernel)
    of_cells = taps_w % width.stride * size + taps_w // width.stride * channels
    if separable:
        offsets = np.concatenate([of_cells, line * size + of_rows])
    else:
        offsets = ((line * width.stride * size + of_rows)[:, None] + of_cells).reshape(-1)
    firsts = [window_extents(a)[1].astype(np.int32) if padded else np.empty(0, np.int32) for a in axes]
    last = np.repeat(firsts[2][: np.max(np.flatnonzero(firsts[2]), initial=-1) + 1], channels)
    firsts[2] = np.append(last, np.zeros(-last.size % LANES + LANES, np.int32))
    sizes = (*(a.length for a in axes), *(a.out for a in axes), channels)
    reach = (depth.dilation, int(taps_h[-1]), int(taps_w[-1]))
    geometry = tuple(number for a, r in zip(axes, reach, strict=True) for number in (a.stride, a.before, r))
    layout = (most_planes, rows, row_windows, pitch, size, lines_down, width.stride)
    unrolled = 0 if offsets.size > MAX_COMPARED_TAPS or separable else offsets.size
    split = "none" if width.stride == 1 else "pairs" if channels == 1 else "cells"
    make = functools.partial(loops.make_forward, unrolled, split, separable, direct, padded)
    return make, (sizes, geometry, _taps(axes), layout, offsets, np.concatenate(firsts))


def _elements(axes: Sequence[AnyAxis], planes: int, channels: int) -> tuple[int, tuple[Any, ...]]:
    """The number of rows of windows, and the arguments of `make_forward_by_tap` for any elements.

    If rows are short, those of a plane, and of several planes, are one row: vectors are then full."""
    (length, cells), rest = _joined(_cells_of_taps(axes[2]), (channels, np.arange(channels)[None])), list(axes[:2])
    while rest and cells.shape[1] < FULL_ROW and cells.size * rest[-1].kernel * rest[-1].out <= TABLE_ELEMENTS:
        length, cells = _joined(_cells_of_taps(rest.pop()), (length, cells))
    if not rest:
        most = min(FULL_ROW // cells.shape[1], TABLE_ELEMENTS // cells.size)
        most_planes = next((n for n in range(most, 1, -1) if planes % n == 0), 1)
        length, cells = _joined((most_planes, np.arange(most_planes)[None]), (length, cells))
        planes //= most_planes
    axes = [MISSING_AXIS] * (2 - len(rest)) + rest
    has_cells, first = (cells >= 0).any(0), (cells >= 0).argmax(0)
    cells = np.maximum(np.where(cells >= 0, cells, np.take_along_axis(cells, first[None], 0)), 0)
    (taps, elements), space = cells.shape, -cells.shape[1] % LANES
    first = np.pad(np.where(has_cells, first, -1), (0, space)).astype(np.int32)
    cells = np.pad(cells, ((0, 0), (0, space))).astype(np.int32).reshape(-1)
    sizes = (axes[0].length, axes[1].length, length, axes[0].out, axes[1].out, 1, elements)
    dilations, tables = (*map(dilation_of, axes), 0), [cells_under_windows(axis, taps=True) for axis in axes]
    return planes * sizes[3] * sizes[4], (sizes, (*_taps(axes), taps), dilations, *tables, first, cells)


def _cells_of_taps(axis: AnyAxis) -> tuple[int, Array]:
    """The cells of an axis, and the one under each tap of each window, −1 outside of x: (taps, out)."""
    start, first, number = (row[None] for row in window_extents(axis))
    tap = np.arange(axis.kernel)[:, None]
    inside = (first <= tap) & (tap < first + number)
    return axis.length, np.where(inside, start + tap * dilation_of(axis), -1)


def _joined(outer: tuple[int, Array], inner: tuple[int, Array]) -> tuple[int, Array]:
    """`_cells_of_taps` of two axes as one."""
    a, b = outer[1][:, None, :, None], inner[1][None, :, None, :]
    cells = np.where((a >= 0) & (b >= 0), a * inner[0] + b, -1)
    return outer[0] * inner[0], cells.reshape(cells.shape[0] * cells.shape[1], -1)
