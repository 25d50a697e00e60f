"""Softmax and the exponentials of the cross-entropy, on vectors. Arguments are the portable code's.

Of a row, `top` is its maximum, and `rest` the sum of exp(x - top) without one maximum, whose own exponential is 1. Sums
are float64, in the order of the source. Half types are computed in float32 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from .elementwise import read, refuses, write
from .jit import kernel
from .parallel import chunked, prepared, to_lanes
from .vector_math import exp, lanes_like
from .vectors import (
    LANES,
    add,
    broadcast,
    div,
    equal,
    first_lanes,
    lane,
    maximum,
    mul,
    select,
    slide,
    sub,
    to_float64,
    total,
)

__all__ = ["refuses", "scaled_exponentials", "softmax_backward", "softmax_forward", "softmax_statistics"]

Array = Any
Number = Any


# ------------------------------------------------------------------------------------------------------ contiguous rows
@kernel()
def _row_statistics(x: Array, first: int, row_stop: int) -> tuple[Number, float]:
    """`top` and `rest` of a row. NaN if the row has one, or if its maximum is infinite."""
    lowest = broadcast(x, -np.inf)
    tops = lowest
    for i in range(first, row_stop, LANES):
        tops = maximum(tops, select(first_lanes(row_stop - i), read(x, i, row_stop), lowest))
    tops = maximum(tops, slide(tops, tops, 8))
    tops = maximum(tops, slide(tops, tops, 4))
    tops = maximum(tops, slide(tops, tops, 2))
    tops = maximum(tops, slide(tops, tops, 1))
    top = lane(tops, 0)
    tops, zero, one = broadcast(x, top), broadcast(x, 0.0), broadcast(x, 1.0)
    sums, maxima = to_float64(zero), zero
    for i in range(first, row_stop, LANES):
        value = select(first_lanes(row_stop - i), read(x, i, row_stop), lowest)
        is_top = equal(value, tops)
        sums = add(sums, to_float64(select(is_top, zero, exp(sub(value, tops)))))
        maxima = add(maxima, select(is_top, one, zero))
    return top, total(sums) + (total(maxima) - 1.0) + (top - top)


@kernel()
def _row_exponentials(x: Array, y: Array, first: int, row_stop: int, top: Number, scale: float) -> None:
    """y = exp(x - top) * scale."""
    tops, scales = broadcast(x, top), broadcast(x, scale)
    for i in range(first, row_stop, LANES):
        write(y, i, mul(exp(sub(read(x, i, row_stop), tops)), scales), row_stop)


@kernel()
def softmax_rows(x: Array, y: Array, count: int, start: int, stop: int) -> None:
    """Softmax of rows start to stop, each of `count` elements."""
    for r in range(start, stop):
        top, rest = _row_statistics(x, r * count, (r + 1) * count)
        _row_exponentials(x, y, r * count, (r + 1) * count, top, 1.0 / (1.0 + rest))


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
    for r in range(start, stop):
        top[r], rest[r] = _row_statistics(x, r * count, (r + 1) * count)


@kernel()
def row_exponentials(x: Array, y: Array, top: Array, scale: Array, count: int, start: int, stop: int) -> None:
    """y = exp(x - top) * scale of rows start to stop."""
    for r in range(start, stop):
        _row_exponentials(x, y, r * count, (r + 1) * count, top[r], scale[r])


# --------------------------------------------------------------------------------------------- rows beside each other
# Element k of a row is `inner` elements after element k - 1. A unit of work is up to 16 neighbouring rows.
@kernel()
def softmax_columns(x: Array, y: Array, count: int, inner: int, start: int, stop: int) -> None:
    """Softmax of units start to stop."""
    units = (inner + LANES - 1) // LANES
    for u in range(start, stop):
        first = u // units * count * inner + u % units * LANES
        width = min(LANES, inner - u % units * LANES)
        tops, sums = broadcast(x, -np.inf), to_float64(broadcast(x, 0.0))
        for i in range(first, first + count * inner, inner):
            tops = maximum(tops, read(x, i, i + width))
        for i in range(first, first + count * inner, inner):
            sums = add(sums, to_float64(exp(sub(read(x, i, i + width), tops))))
        scales = lanes_like(x, div(to_float64(broadcast(x, 1.0)), sums))
        for i in range(first, first + count * inner, inner):
            write(y, i, mul(exp(sub(read(x, i, i + width), tops)), scales), i + width)


@kernel()
def softmax_columns_gradient(dy: Array, y: Array, dx: Array, count: int, inner: int, start: int, stop: int) -> None:
    """dx = y * (dy - sum(dy * y)) of units start to stop."""
    units = (inner + LANES - 1) // LANES
    for u in range(start, stop):
        first = u // units * count * inner + u % units * LANES
        width, sums = min(LANES, inner - u % units * LANES), to_float64(broadcast(y, 0.0))
        for i in range(first, first + count * inner, inner):
            sums = add(sums, to_float64(mul(read(dy, i, i + width), read(y, i, i + width))))
        dot = lanes_like(y, sums)
        for i in range(first, first + count * inner, inner):
            write(dx, i, mul(read(y, i, i + width), sub(read(dy, i, i + width), dot)), i + width)


# ----------------------------------------------------------------------------------------------------------------- ops
def _along_axis(by_rows: Any, by_columns: Any, axis: int, arrays: tuple[Array, ...]) -> Callable[..., Array]:
    """A function of arrays like these: the result of a kernel along an axis, in their shape and the first one's
    dtype."""
    shape = arrays[0].shape
    axis %= len(shape)
    count, inner, size = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape)
    units = 0 if not size else size // count if inner == 1 else size // (count * inner) * -(-inner // LANES)
    new = backends.new_result(shape, arrays[0].dtype)
    in_chunks = chunked(units, sum(a.nbytes for a in (*arrays, arrays[0])))
    loop, sizes = (by_rows, (count,)) if inner == 1 else (by_columns, (count, inner))

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
