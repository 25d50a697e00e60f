"""Launchers of pad_loops.py: padding and its backward. Arguments are the portable code's.

A table for each axis describes the mode: the cell of x that each cell of y copies, or the cells of dy that each cell of
dx sums. Forward copies bits, as unsigned integers. Chunks are rows along the last axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import Pad, Pair

from . import pad_loops as loops
from .parallel import HALF_TYPES, chunked, flat, launcher, to_lanes
from .vectors import LANES

Array = Any


def refuses(step: str, spec: Pad, *arrays: Array) -> str | None:
    """Why no kernel here serves this call: never, they take every dtype that the op takes."""
    return None


# -------------------------------------------------------------------------------------------------------------- tables
@dataclass(frozen=True)
class PaddedAxis:
    """A spatial axis: its length, and the cells that are added (`grow`) and cropped, before and after."""

    mode: str
    length: int
    grow: Pair
    crop: Pair

    @property
    def out(self) -> int:
        """The length of y."""
        return self.length + sum(self.grow) - sum(self.crop)

    @property
    def border(self) -> Array:
        """The cells of y in the padding, from the outermost inwards, first those before."""
        return np.concatenate([np.arange(self.grow[0]), np.arange(self.out)[::-1][: self.grow[1]]])

    @property
    def reversed(self) -> PaddedAxis:
        """The backward of constant padding: cropped cells get 0."""
        return PaddedAxis(self.mode, self.out, self.crop, self.grow)

    def sources(self, cells: Array) -> Array:
        """The cell of x that each of these cells of y copies; -1 for none."""
        at, length, crop = cells - self.grow[0] + self.crop[0], self.length, self.crop
        if self.mode == "constant":
            return np.where((at >= 0) & (at < length), at, -1)
        if self.mode == "edge":
            return np.clip(at, 0, length - 1)
        if self.mode == "wrap":  # repeats what the crop leaves; the other modes ignore the crop
            return (at - crop[0]) % max(1, length - sum(crop)) + crop[0]
        repeats_end = 1 if self.mode == "symmetric" else 0  # whether the mirror image contains the cell at the end
        at = np.where(at < 0, -repeats_end - at, at)
        return np.where(at >= length, 2 * (length - 1) + repeats_end - at, at)


def _padded_axes(spec: Pad) -> list[PaddedAxis]:
    """Depth, height and width."""
    axes = [PaddedAxis(spec.mode, *side[1:]) for side in spec.sides]
    return [PaddedAxis(spec.mode, 1, (0, 0), (0, 0))] * (3 - len(axes)) + axes


def _elements_of_cell(spec: Pad) -> int:
    """Elements of a cell: the channels if they are last, else 1."""
    return 1 if spec.layout.channel == 1 else int(spec.layout.channels)


def _elements(cells: Array, inner: int) -> Array:
    """The place of each element of these cells, in a new last axis; -1 for each of cell -1."""
    return np.where(cells[..., None] < 0, -1, cells[..., None] * inner + np.arange(inner))


def _runs(axis: PaddedAxis, inner: int) -> tuple[Array, Array]:
    """`runs` and `singles` of the loop `pad_rows`: how a row copies cells that are neighbours, or none, in x too."""
    sources = axis.sources(np.arange(axis.out))
    breaks = np.where(sources[:-1] < 0, sources[1:] >= 0, np.diff(sources) != 1)
    begin = np.concatenate([np.zeros(min(1, sources.size), np.int64), np.flatnonzero(breaks) + 1])
    number = np.diff(begin, append=sources.size)
    runs = np.stack([begin * inner, np.where(sources[begin] < 0, -1, sources[begin] * inner), number * inner], axis=1)
    order = np.argsort(-number, kind="stable")  # the longest run first
    order = order[(number[order] * inner >= LANES) | (np.arange(order.size) == 0)]
    cells = np.flatnonzero(np.isin(np.repeat(np.arange(number.size), number), order, invert=True))
    singles = np.stack([_elements(cells, inner), _elements(sources[cells], inner)], axis=-1)
    return runs[order].reshape(-1), singles.reshape(-1)


def _row_sources(axis: PaddedAxis) -> tuple[Array, Array]:
    """`begin` and `sources` of the loop `fold_rows`: each cell's own copy, then those in the padding."""
    cells, border = np.arange(axis.length), axis.border
    own = np.where((cells >= axis.crop[0]) & (cells < axis.length - axis.crop[1]), cells, -1)
    own = np.where(own < 0, -1, own + axis.grow[0] - axis.crop[0])
    place = np.concatenate([cells, axis.sources(border)])
    begin = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(place, minlength=axis.length))])
    return begin, np.concatenate([own, border])[np.argsort(place, kind="stable")]


@backends.planned
def _copy_plan(spec: Pad, backward: bool) -> tuple[tuple[int, ...], tuple[Array, ...]]:
    """`shape` and the tables of the loop `pad_rows`."""
    depth, height, width = (axis.reversed if backward else axis for axis in _padded_axes(spec))
    inner = _elements_of_cell(spec)
    tables = [axis.sources(np.arange(axis.out)) for axis in (depth, height)]
    return (depth.length, height.length, width.length * inner, width.out * inner), (*tables, *_runs(width, inner))


@backends.planned
def _fold_plan(spec: Pad) -> tuple[tuple[int, ...], tuple[Array, ...], tuple[Array, ...], Array]:
    """`shape`, `begin`, `sources` and `terms` of the loop `fold_rows`."""
    depth, height, width = _padded_axes(spec)
    begin, sources = zip(_row_sources(depth), _row_sources(height), strict=True)
    inner, cropped = _elements_of_cell(spec), min(width.crop[0], width.length)
    kept = max(width.length - cropped - width.crop[1], 0)
    terms = np.stack([width.sources(width.border), width.border])
    shape = (depth.out, height.out, *(n * inner for n in (width.out, width.length, width.grow[0], cropped, kept)))
    return shape, begin, sources, np.moveaxis(_elements(terms, inner), 0, -1).reshape(-1)


# ----------------------------------------------------------------------------------------------------------------- ops
def _copied_rows(spec: Pad, backward: bool, x: Array) -> Callable[..., Array]:
    """A function of arrays like x and of the fill value: the padded x."""
    y_shape, bits = spec.layout.shape if backward else spec.out_shape, np.dtype(f"u{x.dtype.itemsize}")
    size, (shape, tables) = math.prod(y_shape), _copy_plan(spec, backward)
    new, dtype, zeros = backends.new_result(y_shape, x.dtype), x.dtype, np.zeros(LANES, bits)
    in_chunks = chunked(size // max(1, shape[3]), x.nbytes + size * x.itemsize)

    def run(x: Array, value: Any = 0) -> Array:
        y = new()
        fill = zeros if type(value) is int and value == 0 else np.full(LANES, value, dtype).view(bits)
        in_chunks(loops.pad_rows, flat(x).view(bits), y.reshape(-1).view(bits), fill, shape, *tables)
        return y

    return run


@launcher
def pad_forward(spec: Pad, x: Array, value: Any) -> Callable[[Array, Any], Array]:
    """y."""
    return _copied_rows(spec, False, x)


@launcher
def pad_backward(spec: Pad, dy: Array) -> Callable[[Array], Array]:
    """dx: each cell is the sum of the cells of dy that are its copies."""
    if spec.mode == "constant":
        return _copied_rows(spec, True, dy)
    new, size, half = backends.new_result(spec.layout.shape, dy.dtype), math.prod(spec.layout.shape), False
    if str(dy.dtype) in HALF_TYPES:
        lanes, half, total = to_lanes, True, np.empty(0, np.float32)
    else:  # sums of integers wrap around
        kind = dy.dtype if dy.dtype.kind == "f" else np.dtype(f"u{dy.dtype.itemsize}")
        lanes, total = lambda array: flat(array).view(kind), np.empty(0, kind)
    shape, *tables = _fold_plan(spec)
    in_chunks, fold = chunked(size // max(1, shape[3]), dy.nbytes + size * dy.itemsize), loops.make_fold_rows(half)

    def run(dy: Array) -> Array:
        dx = new()
        in_chunks(fold, lanes(dy), lanes(dx), total, shape, *tables)
        return dx

    return run
