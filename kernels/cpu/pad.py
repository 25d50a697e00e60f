"""Launchers of pad_loops.py: padding and its backward, called as the portable code is.

A mode is handed over as tables, one an axis: the cell of x that each cell of y shows, or the cells of dy that each cell
of dx gathers. Forward moves bits, as unsigned integers. The chunks are runs of rows along the last axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import Pad, Pair

from . import pad_loops as loops
from .compile import chunks, flat
from .pool_window import HALVES, WIDENED

Array = Any
Side = tuple[int, Pair, Pair]  # of an axis: its length, grow and crop
ModedSide = tuple[str, int, Pair, Pair]  # and the mode
MISSING: Side = (1, (0, 0), (0, 0))


def refuses(op: str, spec: Pad, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None: they take every dtype that the op does."""
    return None


# ----------------------------------------------------------------------------------------------------------------- ops
def pad_forward(b: Backend, spec: Pad, x: Array, value: Any) -> Array:
    """y."""
    return _forward(spec, x, value)


def pad_backward(b: Backend, spec: Pad, dy: Array) -> Array:
    """dx."""
    return _backward(spec, dy)


# -------------------------------------------------------------------------------------------------------------- tables
def _sides(spec: Pad) -> list[Side]:
    """Of depth, height and width."""
    sides: list[Side] = [(length, grow, crop) for _, length, grow, crop in spec.sides]
    return [MISSING] * (3 - len(sides)) + sides


def _shown(side: ModedSide, cells: Array) -> Array:
    """The cell of x that these cells of y show; -1 for none."""
    mode, length, grow, crop = side
    at = cells - grow[0] + crop[0]  # in x; beyond its ends in the borders
    if mode == "constant":
        return np.where((at >= 0) & (at < length), at, -1)
    if mode == "edge":
        return np.clip(at, 0, length - 1)
    if mode == "wrap":  # repeats what the crop leaves; the others do not notice it
        return (at - crop[0]) % max(1, length - sum(crop)) + crop[0]
    own = 1 if mode == "symmetric" else 0  # whether the mirror shows the cell at the end itself
    at = np.where(at < 0, -own - at, at)
    return np.where(at >= length, 2 * (length - 1) + own - at, at)


def _out_length(side: ModedSide) -> int:
    _, length, grow, crop = side
    return length + sum(grow) - sum(crop)


def _border(side: ModedSide) -> Array:
    """The cells of y that are not x's own."""
    _, _, grow, _ = side
    out = _out_length(side)
    return np.concatenate([np.arange(grow[0]), np.arange(out - grow[1], out)])


def _showing(side: ModedSide, low: int, high: int) -> tuple[Array, Array]:
    """Where the entries of each cell outside `low` to `high` begin (and the last one's end), and the entries, one cell
    after another: the cell of y that is its own, -1 if that was cropped, and those of the border before and behind that
    show it, each from the outermost inwards."""
    _, length, grow, crop = side
    out = _out_length(side)
    cells = np.concatenate([np.arange(low), np.arange(high, length)])
    own = np.where((cells >= crop[0]) & (cells < length - crop[1]), cells + grow[0] - crop[0], -1)
    border = np.concatenate([np.arange(grow[0]), np.arange(out - 1, out - 1 - grow[1], -1)])
    shown = _shown(side, border)
    place = np.concatenate([np.arange(cells.size), np.where(shown < low, shown, shown - (high - low))])
    begin = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(place, minlength=cells.size))])
    return begin, np.concatenate([own, border])[np.argsort(place, kind="stable")]


def _plain(side: ModedSide) -> Pair:
    """The longest run of cells, from the first to behind the last, that no border shows and no crop took."""
    _, length, grow, crop = side
    out = _out_length(side)
    others = [(0, crop[0]), (length - crop[1], length)]
    for first, last in ((0, grow[0] - 1), (out - grow[1], out - 1)):
        if first <= last:  # what a border shows is one run
            ends = _shown(side, np.array([first, last]))
            others.append((int(ends.min()), int(ends.max()) + 1))
    best, start = (0, 0), 0
    for begin, end in sorted(others):
        if begin - start > best[1] - best[0]:
            best = start, begin
        start = max(start, end)
    return (start, length) if length - start > best[1] - best[0] else best


# --------------------------------------------------------------------------------------------------------------- plans
@backends.planned
def _move_tables(sides: tuple[ModedSide, ...]) -> tuple[Array, Array, Array, Array]:
    """What each cell of y shows along depth and height; along the width the cells that are not x's own, and what they
    show."""
    depth, height, width = sides
    border = _border(width)
    shown = [_shown(side, np.arange(_out_length(side))) for side in (depth, height)]
    return shown[0], shown[1], border, _shown(width, border)


@backends.planned
def _fold_tables(sides: tuple[ModedSide, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...], Pair]:
    """`begin` and `sources` of the loop `fold`, and the plain run of the width, which they leave out."""
    low, high = _plain(sides[2])
    begin, sources = zip(*(_showing(side, 0, 0) for side in sides[:2]), _showing(sides[2], low, high), strict=True)
    return begin, sources, (low, high)


# ------------------------------------------------------------------------------------------------------------ launches
def _inner(spec: Pad) -> int:
    """Elements of a cell."""
    return 1 if spec.layout.channel == 1 else int(spec.layout.channels)


def _forward(spec: Pad, x: Array, value: Any) -> Array:
    y = backends.result(spec.out_shape, x.dtype)
    _move(x, y, [(spec.mode, *side) for side in _sides(spec)], _inner(spec), np.array(value, x.dtype))
    return y


def _backward(spec: Pad, dy: Array) -> Array:
    dx = backends.result(spec.layout.shape, dy.dtype)
    sides = _sides(spec)
    if spec.mode == "constant":  # forward, x and y having changed places: what was cropped is filled with 0
        turned = [("constant", length + sum(grow) - sum(crop), crop, grow) for length, grow, crop in sides]
        _move(dy, dx, turned, _inner(spec), np.zeros((), dy.dtype))
    else:
        _fold(dy, dx, [(spec.mode, *side) for side in sides], _inner(spec))
    return dx


def _bits(array: Array) -> Array:
    """Its elements in C order, as unsigned integers."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def _move(x: Array, y: Array, sides: list[ModedSide], inner: int, fill: Array) -> None:
    """Fill y with what it shows of x."""
    if not y.size:
        return
    depths, heights, border, shown = _move_tables(tuple(sides))
    lengths = [length for _, length, _, _ in sides]
    _, length, grow, crop = sides[2]
    out = _out_length(sides[2])
    shape = (*lengths, out, grow[0], grow[0] + length - sum(crop), crop[0], inner)
    source, result, value = flat(_bits(x)), y.reshape(-1).view(f"u{y.dtype.itemsize}"), _bits(fill)[0]

    def run(start: int, stop: int) -> None:
        loops.move(source, result, value, shape, depths, heights, border, shown, start, stop)

    chunks(y.size // (out * inner), x.nbytes + y.nbytes, run)


def _fold(dy: Array, dx: Array, sides: list[ModedSide], inner: int) -> None:
    """Fill dx with the sums of what shows each of its cells in dy."""
    if not dx.size:
        return
    begin, sources, (low, high) = _fold_tables(tuple(sides))
    _, length, grow, crop = sides[2]
    shape = (*map(_out_length, sides), length, low, high, low + grow[0] - crop[0], inner)
    lines = sides[0][1] * sides[1][1]
    planes, nbytes = dx.size // (lines * sides[2][1] * inner), dy.nbytes + dx.nbytes
    if str(dy.dtype) not in HALVES:
        floats = dy.dtype.kind == "f"
        source, result = (flat(dy), dx.reshape(-1)) if floats else (flat(_bits(dy)), _bits(dx))  # unsigned sums wrap
        chunks(planes * lines, nbytes, lambda i, j: loops.fold(source, result, shape, begin, sources, i, j))
        return
    source, result = np.ascontiguousarray(dy).reshape(planes, -1), dx.reshape(planes, -1)

    def tile(start: int, stop: int) -> None:
        wide = np.empty((stop - start, result.shape[1]), np.float32)
        loops.fold(
            source[start:stop].astype(np.float32).reshape(-1),
            wide.reshape(-1),
            shape,
            begin,
            sources,
            0,
            (stop - start) * lines,
        )
        result[start:stop] = wide.astype(dx.dtype)

    chunks(planes, WIDENED * nbytes, tile)
