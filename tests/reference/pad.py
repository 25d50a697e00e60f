"""Padding cell by cell: which cell of x does a cell of y show?"""

from __future__ import annotations

import numpy as np

Pairs = list[tuple[int, int]]
MODES = ("constant", "edge", "reflect", "symmetric", "wrap")


def shown(i: int, length: int, pair: tuple[int, int], mode: str) -> int | None:
    """The cell that place `i` of the extended axis shows (the axis itself is 0 … length - 1); None: the fill value."""
    if 0 <= i < length:
        return i
    first, last = max(-pair[0], 0), length - 1 - max(-pair[1], 0)  # what cropping leaves, for wrap
    if i < 0:
        return {"constant": None, "edge": 0, "reflect": -i, "symmetric": -i - 1, "wrap": last + 1 + i}[mode]
    over = i - length
    mirrored = {"reflect": length - 2 - over, "symmetric": length - 1 - over}
    return {"constant": None, "edge": length - 1, "wrap": first + over, **mirrored}[mode]


def _cells(x_shape: tuple[int, ...], pairs: Pairs, mode: str) -> dict[tuple[int, ...], tuple[int, ...] | None]:
    """For each spatial place of y, the one of x that it shows."""
    lengths = x_shape[2:]
    out = [n + sum(pair) for n, pair in zip(lengths, pairs, strict=True)]
    found: dict[tuple[int, ...], tuple[int, ...] | None] = {}
    for place in np.ndindex(*out):
        axes = zip(place, lengths, pairs, strict=True)
        at = [shown(o - pair[0], n, pair, mode) for o, n, pair in axes]
        found[place] = None if None in at else tuple(at)
    return found


def pad(x: np.ndarray, pairs: Pairs, mode: str, value: float = 0) -> np.ndarray:
    y = np.full((*x.shape[:2], *(n + sum(p) for n, p in zip(x.shape[2:], pairs, strict=True))), value, x.dtype)
    for place, cell in _cells(x.shape, pairs, mode).items():
        if cell is not None:
            y[(..., *place)] = x[(..., *cell)]
    return y


def pad_backward(dy: np.ndarray, x_shape: tuple[int, ...], pairs: Pairs, mode: str) -> np.ndarray:
    dx = np.zeros(x_shape, dy.dtype)
    for place, cell in _cells(x_shape, pairs, mode).items():
        if cell is not None:
            dx[(..., *cell)] += dy[(..., *place)]
    return dx
