"""Sums of short contiguous rows, 16 rows at a time: their lanes are added as a tree of vectors, for all rows at once.
The largest of their cells likewise.

Sums are in the dtype of x's lanes; each adds up to 16 numbers in each lane of four sums, then by pairs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .vectors import LANES, add, broadcast, evens, load, load_first, maximum, odds, store

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


@functools.cache
def _make_tree(of_maxima: bool) -> Any:
    """The kernel for the sums of the lanes of 16 vectors, stored from `at` on, or for the largest of each; the vectors
    are overwritten."""

    @kernel(allocates=False)
    def tree(values: Array, at: Any) -> Vector:
        width = LANES
        while width > 1:
            width //= 2
            for k in range(U(width)):
                pair = U(at) + U(2 * LANES) * k
                low, high = load(values, pair), load(values, pair + U(LANES))
                even, odd = evens(low, high), odds(low, high)
                store(values, U(at) + U(LANES) * k, maximum(even, odd) if of_maxima else add(even, odd))
        return load(values, at)

    return tree


totals, largest = _make_tree(False), _make_tree(True)
