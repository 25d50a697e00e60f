"""Softmax and the exponentials of the cross-entropy, on vectors. Arguments are the portable code's.

Of a row, `top` is its maximum, and `rest` the sum of exp(x - top) without one maximum, whose own exponential is 1. Sums
are float64, in the order of the source. Half types are computed in float32 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from .elementwise import refuses
from .jit import kernel
from .parallel import chunked, prepared, to_lanes
from .row_sums import largest, totals
from .vector_ends import load_until as read
from .vector_ends import store_until as write
from .vector_math import apply
from .vectors import (
    LANES,
    add,
    as_lanes_of,
    bit_and,
    broadcast,
    div,
    equal,
    first_lanes,
    lane,
    load,
    load_first,
    maximum,
    mul,
    select,
    store,
    store_first,
    sub,
    to_float64,
    total,
)

__all__ = ["refuses", "scaled_exponentials", "softmax_backward", "softmax_forward", "softmax_statistics"]

Array = Any
Vector = Any
TOPS = LANES * LANES  # elements: 16 vectors
ROW_POWERS = 4096  # exponentials that stay in the first cache
POWERS = 32_768  # in the second
MOST_POWERS = 1 << 20  # in memory: 4 MB of float32 a thread
MAX_WIDTH = 256  # rows


# ------------------------------------------------------------------------------------------------------ contiguous rows
# Up to 16 rows are computed together, so that `top` and `rest` are vectors of a number for each. Their exponentials
# are stored in `powers`, `count` elements rounded up to whole vectors for each row.
@kernel()
def _workspace(x: Array, number: int) -> Array:
    """An array of the dtype that x is computed in."""
    return np.full(number, lane(broadcast(x, 0.0), 0))


@kernel(allocates=False)
def _largest_lanes(x: Array, at: int, count: int) -> Vector:
    """The largest of `count` elements in each lane."""
    lowest = broadcast(x, -np.inf)
    a, b, c, d, i = lowest, lowest, lowest, lowest, at
    while i + 4 * LANES <= at + count:
        a, b = maximum(a, load(x, i)), maximum(b, load(x, i + LANES))
        c, d = maximum(c, load(x, i + 2 * LANES)), maximum(d, load(x, i + 3 * LANES))
        i += 4 * LANES
    while i < at + count:
        a, i = maximum(a, select(first_lanes(at + count - i), read(x, i, at + count), lowest)), i + LANES
    return maximum(maximum(a, b), maximum(c, d))


@kernel(allocates=False)
def _row_powers(x: Array, powers: Array, room: Array, sums: Array, count: int, first: int, number: int) -> None:
    """exp(x - top) of some rows. `top` is in room from TOPS on, `rest` in sums; both are NaN if the row has one, or if
    its maximum is infinite."""
    zero, one, whole = broadcast(x, 0.0), broadcast(x, 1.0), count - count % LANES
    inside = first_lanes(count - whole)
    for k in range(number):
        store(room, k * LANES, _largest_lanes(x, (first + k) * count, count))
    row_tops = largest(room, 0)
    store(room, TOPS, row_tops)
    to = 0
    for k in range(number):
        tops, s, maxima = broadcast(x, room[TOPS + k]), to_float64(zero), zero
        at = (first + k) * count
        for i in range(at, at + whole, LANES):
            value = load(x, i)
            is_top, power = equal(value, tops), apply("exp", sub(value, tops))
            store(powers, to, power)
            s = add(s, to_float64(select(is_top, zero, power)))
            maxima, to = add(maxima, select(is_top, one, zero)), to + LANES
        if whole < count:  # the lanes past the row's end are `top`: exp takes a microsecond for results below 1e-38
            value = select(inside, load_first(x, at + whole, count - whole), tops)
            is_top, power = equal(value, tops), apply("exp", sub(value, tops))
            store(powers, to, power)
            s = add(s, to_float64(select(is_top, zero, power)))
            maxima, to = add(maxima, select(bit_and(is_top, inside), one, zero)), to + LANES
        store(sums, k * LANES, s)
        store(room, k * LANES, maxima)
    others = sub(to_float64(totals(room, 0)), to_float64(one))
    store(sums, 0, add(add(totals(sums, 0), others), to_float64(sub(row_tops, row_tops))))


@kernel()
def softmax_rows(x: Array, y: Array, count: int, start: int, stop: int) -> None:
    """Softmax of rows start to stop, each of `count` elements."""
    at_once = max(1, min(LANES, ROW_POWERS // count))
    powers, room, sums = _workspace(x, at_once * (count + LANES)), _workspace(x, TOPS + LANES), np.zeros(TOPS)
    for first in range(start, stop, at_once):
        number, one, taken = min(at_once, stop - first), broadcast(sums, 1.0), 0
        _row_powers(x, powers, room, sums, count, first, number)
        store(room, 0, as_lanes_of(x, div(one, add(one, load(sums, 0)))))
        for k in range(number):
            scale, at = broadcast(x, room[k]), (first + k) * count
            for i in range(at, at + count, LANES):
                write(y, i, mul(load(powers, taken), scale), at + count)
                taken += LANES


@kernel()
def softmax_rows_gradient(dy: Array, y: Array, dx: Array, count: int, start: int, stop: int) -> None:
    """dx = y * (dy - sum(dy * y)) of rows start to stop."""
    for r in range(start, stop):
        first, row_stop = r * count, (r + 1) * count
        sums = to_float64(broadcast(y, 0.0))
        for i in range(first, row_stop, LANES):
            sums = add(sums, to_float64(mul(read(dy, i, row_stop), read(y, i, row_stop))))
        dot = broadcast(y, total(sums))
        for i in range(first, row_stop, LANES):
            write(dx, i, mul(read(y, i, row_stop), sub(read(dy, i, row_stop), dot)), row_stop)


@kernel()
def row_statistics(x: Array, top: Array, rest: Array, count: int, start: int, stop: int) -> None:
    """`top` and `rest` of rows start to stop."""
    at_once = max(1, min(LANES, ROW_POWERS // count))
    powers, room, sums = _workspace(x, at_once * (count + LANES)), _workspace(x, TOPS + LANES), np.zeros(TOPS)
    for first in range(start, stop, at_once):
        number = min(at_once, stop - first)
        _row_powers(x, powers, room, sums, count, first, number)
        store_first(top, first, load(room, TOPS), number)
        store_first(rest, first, load(sums, 0), number)


@kernel()
def row_exponentials(x: Array, y: Array, top: Array, scale: Array, count: int, start: int, stop: int) -> None:
    """y = exp(x - top) * scale of rows start to stop."""
    for r in range(start, stop):
        tops, scales, row_stop = broadcast(x, top[r]), broadcast(x, scale[r]), (r + 1) * count
        for i in range(r * count, row_stop, LANES):
            write(y, i, mul(apply("exp", sub(read(x, i, row_stop), tops)), scales), row_stop)


# --------------------------------------------------------------------------------------------- rows beside each other
# Element k of a row is `inner` elements after element k - 1. A unit of work is up to `width` neighbouring rows, whose
# sums are in an array: so the elements of a unit are neighbours in memory, up to a kilobyte at a time.
@kernel(allocates=False)
def _unit(u: int, count: int, inner: int, width: int) -> tuple[int, int]:
    """The first element of a unit, and its number of rows."""
    units = (inner + width - 1) // width
    column = u % units * width
    return u // units * count * inner + column, min(width, inner - column)


@kernel()
def softmax_columns(x: Array, y: Array, count: int, inner: int, width: int, start: int, stop: int) -> None:
    """Softmax of units start to stop. Exponentials that `MOST_POWERS` has no room for are computed twice."""
    saved = count * width <= MOST_POWERS
    powers, scales = _workspace(x, count * width if saved else 0), _workspace(x, width)
    tops, sums = _workspace(x, width), np.zeros(width)
    for u in range(start, stop):
        first, cells = _unit(u, count, inner, width)
        for c in range(0, cells, LANES):
            store(tops, c, broadcast(x, -np.inf))
            store(sums, c, broadcast(sums, 0.0))
        for k in range(count):
            at = first + k * inner
            for c in range(0, cells, LANES):
                store(tops, c, maximum(load(tops, c), read(x, at + c, at + cells)))
        for k in range(count):
            at = first + k * inner
            for c in range(0, cells, LANES):
                power = apply("exp", sub(read(x, at + c, at + cells), load(tops, c)))
                if saved:
                    store(powers, k * width + c, power)
                store(sums, c, add(load(sums, c), to_float64(power)))
        for c in range(0, cells, LANES):
            store(scales, c, as_lanes_of(x, div(broadcast(sums, 1.0), load(sums, c))))
        for k in range(count):
            at = first + k * inner
            for c in range(0, cells, LANES):
                power = read(x, at + c, at + cells)
                power = load(powers, k * width + c) if saved else apply("exp", sub(power, load(tops, c)))
                write(y, at + c, mul(power, load(scales, c)), at + cells)


@kernel()
def softmax_columns_gradient(
    dy: Array, y: Array, dx: Array, count: int, inner: int, width: int, start: int, stop: int
) -> None:
    """dx = y * (dy - sum(dy * y)) of units start to stop."""
    sums, dot = np.zeros(width), _workspace(y, width)
    for u in range(start, stop):
        first, cells = _unit(u, count, inner, width)
        for c in range(0, cells, LANES):
            store(sums, c, broadcast(sums, 0.0))
        for k in range(count):
            at = first + k * inner
            for c in range(0, cells, LANES):
                product = mul(read(dy, at + c, at + cells), read(y, at + c, at + cells))
                store(sums, c, add(load(sums, c), to_float64(product)))
        for c in range(0, cells, LANES):
            store(dot, c, as_lanes_of(y, load(sums, c)))
        for k in range(count):
            at = first + k * inner
            for c in range(0, cells, LANES):
                difference = sub(read(dy, at + c, at + cells), load(dot, c))
                write(dx, at + c, mul(read(y, at + c, at + cells), difference), at + cells)


# ----------------------------------------------------------------------------------------------------------------- ops
def _along_axis(by_rows: Any, by_columns: Any, axis: int, arrays: tuple[Array, ...]) -> Callable[..., Array]:
    """A function of arrays like these: the result of a kernel along an axis, in their shape and the first one's
    dtype."""
    shape = arrays[0].shape
    axis %= len(shape)
    count, inner, size = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape)
    width = max(LANES, min(MAX_WIDTH, POWERS // max(count, 1) // LANES * LANES, -(-inner // LANES) * LANES))
    units = 0 if not size else size // count if inner == 1 else size // (count * inner) * -(-inner // width)
    new = backends.new_result(shape, arrays[0].dtype)
    in_chunks = chunked(units, sum(a.nbytes for a in (*arrays, arrays[0])))
    loop, sizes = (by_rows, (count,)) if inner == 1 else (by_columns, (count, inner, width))

    def run(*arrays: Array) -> Array:
        result = new()
        in_chunks(loop, *map(to_lanes, arrays), to_lanes(result), *sizes)
        return result

    return run


@prepared
def softmax_forward(axis: int, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _along_axis(softmax_rows, softmax_columns, axis, (x,))


@prepared
def softmax_backward(axis: int, dy: Array, y: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _along_axis(softmax_rows_gradient, softmax_columns_gradient, axis, (dy, y))


@prepared
def softmax_statistics(spec: None, x: Array) -> Callable[[Array], tuple[Array, Array]]:
    """`top`, in the dtype that x is computed in, and `rest`: (N, 1)."""
    rows, count = x.shape
    dtype, in_chunks = np.float64 if x.dtype == np.float64 else np.float32, chunked(rows, x.nbytes)

    def run(x: Array) -> tuple[Array, Array]:
        top, rest = np.empty(rows, dtype), np.empty(rows)
        in_chunks(row_statistics, to_lanes(x), top, rest, count)
        return top.reshape(-1, 1), rest.reshape(-1, 1)

    return run


@prepared
def scaled_exponentials(spec: None, x: Array, top: Array, scale: Array) -> Callable[[Array, Array, Array], Array]:
    """exp(x - top) * scale, in x's dtype. top, scale: (N, 1)."""
    rows, count = x.shape
    new, in_chunks = backends.new_result(x.shape, x.dtype), chunked(rows, 2 * x.nbytes)

    def run(x: Array, top: Array, scale: Array) -> Array:
        result = new()
        in_chunks(row_exponentials, to_lanes(x), to_lanes(result), to_lanes(top), to_lanes(scale), count)
        return result

    return run
