"""Launchers of pad_loops.py: padding and its backward, called as the portable code is.

A mode is handed over as tables, one an axis: the cell of x that each cell of y shows, or the cells of dy that each cell
of dx gathers. Forward moves bits, as unsigned integers. The slabs are runs of rows along the last axis.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import pad_loops as loops
from .compile import flat, slabs
from .pool_window import HALVES, WIDENED, small

Array = Any
Pair = tuple[int, int]
Side = tuple[int, Pair, Pair]  # of an axis: its length, grow and crop
MISSING: Side = (1, (0, 0), (0, 0))


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None: they take every dtype that the op does."""
    return None


def warmup(op: str, spec: Any) -> None:
    """Compile what `op` needs for this spec and any floating dtype, by padding one plane."""
    spec = small(spec)
    for dtype in (np.float16, np.float32, np.float64):
        if op.endswith("_backward"):
            _backward(spec, np.ones(spec.out_shape, dtype))
        else:
            _forward(spec, np.ones(spec.layout.shape, dtype), 0)


# ----------------------------------------------------------------------------------------------------------------- ops
def pad_forward(b: Backend, spec: Any, x: Array, value: Any) -> Array:
    """y."""
    return _forward(spec, x, value)


def pad_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    return _backward(spec, dy)


# -------------------------------------------------------------------------------------------------------------- tables
def _sides(spec: Any) -> list[Side]:
    """Of depth, height and width."""
    sides: list[Side] = [(length, grow, crop) for _, length, grow, crop in spec.sides]
    return [MISSING] * (3 - len(sides)) + sides


@functools.lru_cache(maxsize=256)
def _shown(mode: str, length: int, grow: Pair, crop: Pair) -> Array:
    """The cell of x that each cell of y shows; -1 for none."""
    cells, (before, after) = np.arange(length), crop
    pad: Any = np.pad  # whose annotations want a mode that they can read
    if mode == "constant":
        return pad(cells[before : length - after], grow, constant_values=-1)
    if mode == "wrap":  # repeats what the crop leaves; the others do not notice it
        return pad(cells[before : length - after], grow, mode="wrap")
    return pad(cells, grow, mode=mode)[before : length + sum(grow) - after]


@functools.lru_cache(maxsize=256)
def _border(mode: str, length: int, grow: Pair, crop: Pair) -> Array:
    """The cells of y that are not x's own."""
    return np.r_[: grow[0], grow[0] + length - sum(crop) : length + sum(grow) - sum(crop)]


@functools.lru_cache(maxsize=256)
def _showing(mode: str, length: int, grow: Pair, crop: Pair) -> tuple[Array, Array]:
    """Where each cell's entries begin (and the last one's end), and the entries, one cell after another: the cell of y
    that is its own, -1 if that was cropped, and those of the border before and behind that show it, each from the
    outermost inwards."""
    shown = _shown(mode, length, grow, crop)
    front, back = np.arange(grow[0]), np.arange(shown.size - 1, shown.size - 1 - grow[1], -1)
    own = np.arange(length) + grow[0] - crop[0]
    own[: crop[0]] = own[length - crop[1] :] = -1
    entries = np.concatenate([own, front, back])
    cells = np.concatenate([np.arange(length), shown[front], shown[back]])
    begin = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(cells, minlength=length))])
    return begin, entries[np.argsort(cells, kind="stable")]


@functools.lru_cache(maxsize=256)
def _plain(mode: str, length: int, grow: Pair, crop: Pair) -> Pair:
    """The longest run of cells, from the first to behind the last, that no border shows and no crop took."""
    begin, entries = _showing(mode, length, grow, crop)
    others = np.flatnonzero((np.diff(begin) > 1) | (entries[begin[:-1]] < 0))
    ends = np.concatenate([np.full(1, -1), others, np.full(1, length)])
    longest = int(np.argmax(np.diff(ends)))
    return int(ends[longest]) + 1, int(ends[longest + 1])


# ------------------------------------------------------------------------------------------------------------ launches
def _inner(spec: Any) -> int:
    """Elements of a cell."""
    return 1 if spec.layout.channel == 1 else int(spec.layout.channels)


def _forward(spec: Any, x: Array, value: Any) -> Array:
    y = backends.result(spec.out_shape, x.dtype)
    _move(x, y, [(spec.mode, *side) for side in _sides(spec)], _inner(spec), np.array(value, x.dtype))
    return y


def _backward(spec: Any, dy: Array) -> Array:
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


def _move(x: Array, y: Array, sides: list[tuple[str, int, Pair, Pair]], inner: int, fill: Array) -> None:
    """Fill y with what it shows of x."""
    (depths, heights, widths), border = (_shown(*side) for side in sides), _border(*sides[2])
    lengths = [length for _, length, _, _ in sides]
    _, length, grow, crop = sides[2]
    shape = (*lengths, widths.size, grow[0], grow[0] + length - sum(crop), crop[0], inner)
    source, result, value = flat(_bits(x)), y.reshape(-1).view(f"u{y.dtype.itemsize}"), _bits(fill)[0]

    def run(start: int, stop: int) -> None:
        loops.move(source, result, value, shape, depths, heights, border, widths[border], start, stop)

    if y.size:
        slabs(y.size // (widths.size * inner), x.nbytes + y.nbytes, run)


def _fold(dy: Array, dx: Array, sides: list[tuple[str, int, Pair, Pair]], inner: int) -> None:
    """Fill dx with the sums of what shows each of its cells in dy."""
    if not dx.size:
        return
    begin, sources = zip(*(_showing(*side) for side in sides), strict=True)
    low, high = _plain(*sides[2])
    first = int(sources[2][begin[2][low]]) if low < high else 0
    shape = (*(length + sum(grow) - sum(crop) for _, length, grow, crop in sides), low, high, first, inner)
    lines = sides[0][1] * sides[1][1]
    planes, nbytes = dx.size // (lines * sides[2][1] * inner), dy.nbytes + dx.nbytes
    if str(dy.dtype) not in HALVES:
        floats = dy.dtype.kind == "f"
        source, result = (flat(dy), dx.reshape(-1)) if floats else (flat(_bits(dy)), _bits(dx))  # unsigned sums wrap
        slabs(planes * lines, nbytes, lambda i, j: loops.fold(source, result, shape, begin, sources, i, j))
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

    slabs(planes, WIDENED * nbytes, tile)
