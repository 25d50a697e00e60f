"""Sums of short contiguous rows, 16 rows at a time: their lanes are added as a tree of vectors, for all rows at once.

Sums are in the dtype of x's lanes; each adds up to 16 numbers in each lane of four sums, then by pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .vectors import LANES, add, broadcast, evens, load, load_first, odds, store

Array = Any
Vector = Any
U = np.uintp
ROOM = LANES * LANES  # numbers that the sums of 16 rows' lanes take
SHORT_ROW = 1024  # cells, at most


@kernel(allocates=False)
def lane_sums(x: Array, first: Any, number: Any) -> Vector:
    """The sums of the lanes over some contiguous cells."""
    a = b = c = d = broadcast(x, 0)
    whole = number - number % U(4 * LANES)
    for i in range(first, first + whole, U(4 * LANES)):
        a, b = add(a, load(x, i)), add(b, load(x, i + U(LANES)))
        c, d = add(c, load(x, i + U(2 * LANES))), add(d, load(x, i + U(3 * LANES)))
    for i in range(first + whole, first + number - number % U(LANES), U(LANES)):
        a = add(a, load(x, i))
    rest = number % U(LANES)
    if rest > 0:
        b = add(b, load_first(x, first + number - rest, rest))
    return add(add(a, b), add(c, d))


@kernel(allocates=False)
def totals(sums: Array, at: Any) -> Vector:
    """The sums of the lanes of 16 vectors, stored from `at` on; these are overwritten."""
    width = LANES
    while width > 1:
        width //= 2
        for k in range(U(width)):
            pair = U(at) + U(2 * LANES) * k
            low, high = load(sums, pair), load(sums, pair + U(LANES))
            store(sums, U(at) + U(LANES) * k, add(evens(low, high), odds(low, high)))
    return load(sums, at)
