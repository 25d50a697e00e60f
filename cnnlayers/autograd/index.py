"""Indexing, and its adjoint: where one element was taken several times its gradients add up.

A basic index or a boolean mask takes each element at most once: its adjoint is an assignment. Integer arrays may
repeat. NumPy has `add.at` for that. Elsewhere (a GPU's float atomics would add in another order every time) the taken
elements are sorted by the cell they came from, each run of one cell is summed in a tree of fixed shape, and each cell
looks its run's sum up: the same bits every time, in array-API code, in about log2(n) passes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.functional.arrays import Array, accumulator_dtype, cast

from .ops import Result


def _is_array(entry: Any) -> bool:
    return hasattr(entry, "dtype") and hasattr(entry, "shape")


def _entry(b: Backend, x: Array, entry: Any) -> Any:
    """One entry of an index, as x's library takes it. TypeError for an array that lives elsewhere."""
    if isinstance(entry, numpy.integer):
        return int(entry)
    if isinstance(entry, list | tuple | range):
        host = numpy.asarray(entry)
        if host.size and host.dtype.kind not in "biu":
            raise TypeError(f"an index must be made of integers or bools, got {entry!r}")
        return b.array(host, b.xp.bool if host.dtype.kind == "b" else b.xp.int64)
    if _is_array(entry):
        backends.of(x, entry)
    return entry


def plain_index(b: Backend, x: Array, index: Any) -> tuple[Any, ...]:
    """The index as a tuple of what x's own library takes. TypeError for an array that lives elsewhere."""
    return tuple(_entry(b, x, entry) for entry in (index if isinstance(index, tuple) else (index,)))


def take(b: Backend, x: Array, index: tuple[Any, ...]) -> Result:
    """x[index]: ints, slices, ellipsis, None, and integer and boolean arrays."""
    shape = tuple(x.shape)
    repeats = any(_is_array(e) and backends.dtype_name(b, e) in backends.INTEGERS for e in index)

    def dx(dy: Array) -> Array:
        if repeats:
            return _scattered(b, dy, shape, index)
        found = b.zeros(shape, dy.dtype)
        found[index] = dy
        return found

    return x[index], (dx,)


def _scattered(b: Backend, dy: Array, shape: tuple[int, ...], index: tuple[Any, ...]) -> Array:
    dy = cast(b, dy, accumulator_dtype(b, dy.dtype))
    if b.name == "numpy":
        found = numpy.zeros(shape)  # float64, however often one element was taken
        numpy.add.at(found, index, dy.astype(numpy.float64))
        return found.astype(dy.dtype)
    size = math.prod(shape)
    cells = b.xp.reshape(b.xp.reshape(b.arange(size), shape)[index], (-1,))
    if not int(cells.size):
        return b.zeros(shape, dy.dtype)
    return b.xp.reshape(_sums_by_cell(b, cells, b.xp.reshape(dy, (-1,)), size), shape)


def _sums_by_cell(b: Backend, cells: Array, values: Array, size: int) -> Array:
    """For every cell 0, …, size - 1 the sum of the values that belong to it, in an order that is always the same."""
    order = b.xp.argsort(cells)
    cells, sums = b.xp.take(cells, order, axis=0), b.xp.take(values, order, axis=0)
    count, reach, nothing = int(cells.size), 1, b.zeros((), values.dtype)
    while reach < count:  # sums[i] is that of its run's next `reach` values
        more = b.xp.where(cells[:-reach] == cells[reach:], sums[reach:], nothing)
        sums = b.xp.concat([sums[:-reach] + more, sums[-reach:]])
        reach *= 2
    every = b.arange(size)
    first = b.xp.clip(b.xp.searchsorted(cells, every), 0, count - 1)
    return b.xp.where(b.xp.take(cells, first, axis=0) == every, b.xp.take(sums, first, axis=0), nothing)
