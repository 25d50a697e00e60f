"""Pooling window by window, cell by cell. Arrays are (N, C, *spatial); a window's cells come in C order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Cell = tuple[int, ...]


def windows_of(
    length: int, kernel: int, stride: int, dilation: int, pad: tuple[int, int], ceil: bool
) -> list[list[int]]:
    """The cells of every window of one axis, in input coordinates. In ceil mode a window that overhangs counts if it
    starts inside the input or its left padding."""
    found: list[list[int]] = []
    reach = dilation * (kernel - 1) + 1
    end = length + pad[1]
    while True:
        start = len(found) * stride - pad[0]
        fits = start + reach <= end
        overhangs = ceil and start < length and (not found or found[-1][-1] < end - 1)
        if not fits and not (found and overhangs):
            return found
        found.append([start + tap * dilation for tap in range(kernel)])


@dataclass(frozen=True)
class Pool:
    """A pool of arrays with these spatial lengths; every option is one per axis."""

    lengths: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    ceil_mode: bool = False

    @property
    def axes(self) -> list[list[list[int]]]:
        options = zip(self.lengths, self.kernel, self.stride, self.dilation, self.padding, strict=True)
        return [windows_of(*o, self.ceil_mode) for o in options]

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes))

    def windows(self) -> Iterator[tuple[Cell, list[Cell]]]:
        """(place of the window, its cells inside the input in C order)."""
        for place in np.ndindex(*self.out):
            lines = [axis[o] for axis, o in zip(self.axes, place, strict=True)]
            cells = itertools.product(*lines)
            yield place, [c for c in cells if all(0 <= i < n for i, n in zip(c, self.lengths, strict=True))]

    def declared(self, place: Cell) -> int:
        """How many taps of a window are in the input or its declared padding."""
        number = 1
        for axis, o, n, (before, after) in zip(self.axes, place, self.lengths, self.padding, strict=True):
            number *= sum(-before <= cell < n + after for cell in axis[o])
        return number


@dataclass(frozen=True)
class Adaptive:
    """An adaptive pool: window o of an axis is the cells floor(o * length / out) to ceil((o + 1) * length / out)."""

    lengths: tuple[int, ...]
    out: tuple[int, ...]

    def windows(self) -> Iterator[tuple[Cell, list[Cell]]]:
        for place in np.ndindex(*self.out):
            sides = zip(place, self.lengths, self.out, strict=True)
            yield place, list(itertools.product(*(range(o * n // m, -((-(o + 1) * n) // m)) for o, n, m in sides)))


def lowest(dtype: np.dtype) -> Any:
    if dtype.kind == "b":
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else -math.inf


def _is_nan(v: Any) -> bool:
    return bool(v != v)


def _maximum(values: list[Any]) -> int:
    """Which of these is the maximum: the first NaN, else the first of the largest."""
    best = 0
    for k, v in enumerate(values):
        if _is_nan(values[best]):
            break
        if _is_nan(v) or v > values[best]:
            best = k
    return best


def max_pool(x: np.ndarray, pool: Pool | Adaptive) -> tuple[np.ndarray, np.ndarray]:
    """(y, indices): the maximum's own bits, and its flat place in the unpadded plane; −1 where there is no cell."""
    y = np.full((*x.shape[:2], *pool.out), lowest(x.dtype), x.dtype)
    indices = np.full(y.shape, -1, np.int64)
    for n, c in np.ndindex(*x.shape[:2]):
        for place, cells in pool.windows():
            if cells:
                cell = cells[_maximum([x[(n, c, *at)] for at in cells])]
                y[(n, c, *place)] = x[(n, c, *cell)]
                indices[(n, c, *place)] = np.ravel_multi_index(cell, pool.lengths)
    return y, indices


def max_pool_backward(dy: np.ndarray, x: np.ndarray, pool: Pool | Adaptive, ties: str = "first") -> np.ndarray:
    dx = np.zeros(x.shape, dy.dtype)
    for n, c in np.ndindex(*x.shape[:2]):
        for place, cells in pool.windows():
            if not cells:
                continue
            values = [x[(n, c, *at)] for at in cells]
            best = values[_maximum(values)]
            winners = [at for at, v in zip(cells, values, strict=True) if v == best or (_is_nan(v) and _is_nan(best))]
            share = dy[(n, c, *place)] / (len(winners) if ties == "split" else 1)
            for at in winners[:1] if ties == "first" else winners:
                dx[(n, c, *at)] += share
    return dx


def _divisor(pool: Pool | Adaptive, place: Cell, cells: list[Cell], include_pad: bool, override: int | None) -> int:
    if override is not None:
        return override
    return pool.declared(place) if include_pad and isinstance(pool, Pool) else len(cells)


def avg_pool(x: np.ndarray, pool: Pool | Adaptive, include_pad: bool = True, override: int | None = None) -> np.ndarray:
    y = np.zeros((*x.shape[:2], *pool.out), x.dtype)
    for place, cells in pool.windows():
        for at in cells:
            y[(..., *place)] += x[(..., *at)]
        if cells:
            y[(..., *place)] /= _divisor(pool, place, cells, include_pad, override)
    return y


def avg_pool_backward(
    dy: np.ndarray, pool: Pool | Adaptive, include_pad: bool = True, override: int | None = None
) -> np.ndarray:
    dx = np.zeros((*dy.shape[:2], *pool.lengths), dy.dtype)
    for place, cells in pool.windows():
        for at in cells:
            dx[(..., *at)] += dy[(..., *place)] / _divisor(pool, place, cells, include_pad, override)
    return dx


def sum_pool(x: np.ndarray, pool: Pool) -> np.ndarray:
    return avg_pool(x, pool, override=1)


def sum_pool_backward(dy: np.ndarray, pool: Pool) -> np.ndarray:
    return avg_pool_backward(dy, pool, override=1)


def lp_pool(x: np.ndarray, pool: Pool, p: float) -> np.ndarray:
    return sum_pool(np.abs(x) ** p, pool) ** (1 / p)


def lp_pool_backward(dy: np.ndarray, x: np.ndarray, pool: Pool, p: float) -> np.ndarray:
    """dy * sign(x) * (abs(x) / y) ** (p - 1); 0 at x = 0."""
    y, dx = lp_pool(x, pool, p), np.zeros(x.shape, dy.dtype)
    for n, c in np.ndindex(*x.shape[:2]):
        for place, cells in pool.windows():
            for at in cells:
                v = x[(n, c, *at)]
                if v != 0:
                    slope = np.sign(v) * (abs(v) / y[(n, c, *place)]) ** (p - 1)
                    dx[(n, c, *at)] += dy[(n, c, *place)] * slope
    return dx


def max_unpool(x: np.ndarray, indices: np.ndarray, out: tuple[int, ...]) -> np.ndarray:
    y = np.zeros((*x.shape[:2], *out), x.dtype)
    for n, c, *at in np.ndindex(*x.shape):  # in C order: a later entry overwrites
        y[n, c].reshape(-1)[indices[(n, c, *at)]] = x[(n, c, *at)]
    return y


def max_unpool_backward(dy: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """dy at the cell that an entry reached, 0 where a later entry overwrote it."""
    dx, last = np.zeros(indices.shape, dy.dtype), {}
    for n, c, *at in np.ndindex(*indices.shape):
        last[n, c, int(indices[(n, c, *at)])] = (n, c, *at)
    for (n, c, index), place in last.items():
        dx[place] = dy[n, c].reshape(-1)[index]
    return dx
