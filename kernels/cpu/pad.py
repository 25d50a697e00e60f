"""Launchers of pad_loops.py: padding and its backward. Arguments are the portable code's.

A table for each axis describes the mode: the cell of x that each cell of y copies, or the cells of dy that each cell of
dx sums. Forward copies bits, as unsigned integers. Chunks are rows along the last axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import Pad, Pair

from . import pad_loops as loops
from .convert import convert
from .parallel import HALF_TILE_FACTOR, HALF_TYPES, chunked, flat, prepared, to_lanes

Array = Any
Side = tuple[int, Pair, Pair]  # an axis: its length, cells added and cells cropped (before, after)
ModedSide = tuple[str, int, Pair, Pair]  # and the mode
MISSING_SIDE: Side = (1, (0, 0), (0, 0))


def refuses(step: str, spec: Pad, *arrays: Array) -> str | None:
    """Why no kernel here serves this call: never, they take every dtype that the op takes."""
    return None


# ----------------------------------------------------------------------------------------------------------------- ops
@prepared
def pad_forward(spec: Pad, x: Array, value: Any) -> Callable[[Array, Any], Array]:
    """y."""
    copied, dtype = _copied_rows(spec, False, x), x.dtype
    return lambda x, value: copied(x, np.array(value, dtype))


@prepared
def pad_backward(spec: Pad, dy: Array) -> Callable[[Array], Array]:
    """dx."""
    if spec.mode != "constant":
        return _folded(spec, dy)
    copied, zero = _copied_rows(spec, True, dy), np.zeros((), dy.dtype)
    return lambda dy: copied(dy, zero)


# -------------------------------------------------------------------------------------------------------------- tables
def _sides(spec: Pad) -> list[Side]:
    """The sides of depth, height and width."""
    sides: list[Side] = [(length, grow, crop) for _, length, grow, crop in spec.sides]
    return [MISSING_SIDE] * (3 - len(sides)) + sides


def _source_cells(side: ModedSide, cells: Array) -> Array:
    """The cell of x that each of these cells of y copies; -1 for none."""
    mode, length, grow, crop = side
    at = cells - grow[0] + crop[0]  # in x; outside of it in the padding
    if mode == "constant":
        return np.where((at >= 0) & (at < length), at, -1)
    if mode == "edge":
        return np.clip(at, 0, length - 1)
    if mode == "wrap":  # repeats what the crop leaves; the other modes ignore the crop
        return (at - crop[0]) % max(1, length - sum(crop)) + crop[0]
    repeats_end = 1 if mode == "symmetric" else 0  # whether the mirror image contains the cell at the end
    at = np.where(at < 0, -repeats_end - at, at)
    return np.where(at >= length, 2 * (length - 1) + repeats_end - at, at)


def _out_length(side: ModedSide) -> int:
    """The length of y along an axis."""
    _, length, grow, crop = side
    return length + sum(grow) - sum(crop)


def _border_cells(side: ModedSide) -> Array:
    """The cells of y in the padding."""
    _, _, grow, _ = side
    out = _out_length(side)
    return np.concatenate([np.arange(grow[0]), np.arange(out - grow[1], out)])


def _gather_lists(side: ModedSide, low: int, high: int) -> tuple[Array, Array]:
    """The cells of y that each cell of x outside `low` to `high` was copied to, in lists one after another.

    Returns where the list of each cell begins (and the last one ends), and the lists. A list has first the copy inside
    the input, -1 if it was cropped; then the copies in the padding before and after it, each from the outermost
    inwards."""
    _, length, grow, crop = side
    out = _out_length(side)
    cells = np.concatenate([np.arange(low), np.arange(high, length)])
    own_cell = np.where((cells >= crop[0]) & (cells < length - crop[1]), cells + grow[0] - crop[0], -1)
    border = np.concatenate([np.arange(grow[0]), np.arange(out - 1, out - 1 - grow[1], -1)])
    sources = _source_cells(side, border)
    place = np.concatenate([np.arange(cells.size), np.where(sources < low, sources, sources - (high - low))])
    begin = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(place, minlength=cells.size))])
    return begin, np.concatenate([own_cell, border])[np.argsort(place, kind="stable")]


def _interior(side: ModedSide) -> Pair:
    """The longest run of cells that were copied once: no padding repeats them, no crop removed them. (start, end)."""
    _, length, grow, crop = side
    out = _out_length(side)
    excluded = [(0, crop[0]), (length - crop[1], length)]
    for first, last in ((0, grow[0] - 1), (out - grow[1], out - 1)):
        if first <= last:  # the sources of one side are one run
            ends = _source_cells(side, np.array([first, last]))
            excluded.append((int(ends.min()), int(ends.max()) + 1))
    best, start = (0, 0), 0
    for begin, end in sorted(excluded):
        if begin - start > best[1] - best[0]:
            best = start, begin
        start = max(start, end)
    return (start, length) if length - start > best[1] - best[0] else best


# --------------------------------------------------------------------------------------------------------------- plans
def _elements_of_cell(spec: Pad) -> int:
    """Elements of a cell: the channels if they are last, else 1."""
    return 1 if spec.layout.channel == 1 else int(spec.layout.channels)


@backends.planned
def _copy_plan(spec: Pad, backward: bool) -> tuple[tuple[int, ...], tuple[Array, Array, Array, Array], int]:
    """`shape` of the loop `pad_rows`, its tables, and the elements of a row of its result.

    The backward of constant padding is padding with growing and cropping exchanged: cropped cells get 0."""
    sides = [(spec.mode, *side) for side in _sides(spec)]
    if backward:
        sides = [(mode, _out_length((mode, length, grow, crop)), crop, grow) for mode, length, grow, crop in sides]
    depth, height, width = sides
    border, inner, out = _border_cells(width), _elements_of_cell(spec), _out_length(width)
    sources = [_source_cells(side, np.arange(_out_length(side))) for side in (depth, height)]
    _, length, grow, crop = width
    lengths = (depth[1], height[1], length)
    shape = (*lengths, out, grow[0], grow[0] + length - sum(crop), crop[0], inner)
    return shape, (sources[0], sources[1], border, _source_cells(width, border)), out * inner


@backends.planned
def _fold_plan(spec: Pad) -> tuple[tuple[int, ...], tuple[Array, ...], tuple[Array, ...], int]:
    """`shape`, `begin` and `sources` of the loop `fold_rows`, and the rows of a plane."""
    sides = [(spec.mode, *side) for side in _sides(spec)]
    width = sides[2]
    low, high = _interior(width)
    begin, sources = zip(
        *(_gather_lists(side, 0, 0) for side in sides[:2]), _gather_lists(width, low, high), strict=True
    )
    _, length, grow, crop = width
    shape = (*map(_out_length, sides), length, low, high, low + grow[0] - crop[0], _elements_of_cell(spec))
    return shape, begin, sources, sides[0][1] * sides[1][1]


# ------------------------------------------------------------------------------------------------------------ launches
def _bits(array: Array) -> Array:
    """The array's elements in C order, as unsigned integers."""
    return flat(array).view(f"u{array.dtype.itemsize}")


def _copied_rows(spec: Pad, backward: bool, x: Array) -> Callable[[Array, Array], Array]:
    """A function of arrays like x and of the fill value, an array of no axes: the padded x."""
    y_shape = spec.layout.shape if backward else spec.out_shape
    size, (shape, tables, row) = math.prod(y_shape), _copy_plan(spec, backward)
    new, in_chunks = backends.new_result(y_shape, x.dtype), chunked(size // max(1, row), x.nbytes + size * x.itemsize)

    def run(x: Array, fill: Array) -> Array:
        y = new()
        in_chunks(loops.pad_rows, _bits(x), _bits(y), _bits(fill)[0], shape, *tables)
        return y

    return run


def _folded(spec: Pad, dy: Array) -> Callable[[Array], Array]:
    """A function of arrays like dy: dx, each cell the sum of the cells of dy that are its copies."""
    new, size = backends.new_result(spec.layout.shape, dy.dtype), math.prod(spec.layout.shape)
    if not size:
        return lambda dy: new()
    shape, begin, sources, lines = _fold_plan(spec)
    planes, nbytes = size // (lines * shape[3] * shape[7]), dy.nbytes + size * dy.itemsize
    if str(dy.dtype) in HALF_TYPES:
        in_tiles = chunked(planes, HALF_TILE_FACTOR * nbytes, python=True)

        def tile(source: Array, result: Array, start: int, stop: int) -> None:
            narrow, wide = source[start:stop].reshape(-1), np.empty(result[start:stop].size, np.float32)
            wide_source = np.empty(narrow.size, np.float32)
            convert(narrow, wide_source)
            loops.fold_rows(wide_source, wide, shape, begin, sources, 0, (stop - start) * lines)
            convert(wide, result[start:stop].reshape(-1))

        def run_in_tiles(dy: Array) -> Array:
            dx = new()
            in_tiles(tile, to_lanes(dy).reshape(planes, -1), to_lanes(dx).reshape(planes, -1))
            return dx

        return run_in_tiles
    in_chunks = chunked(planes * lines, nbytes)
    elements = flat if dy.dtype.kind == "f" else _bits  # sums of integers wrap around

    def run(dy: Array) -> Array:
        dx = new()
        in_chunks(loops.fold_rows, elements(dy), elements(dx), shape, begin, sources)
        return dx

    return run
