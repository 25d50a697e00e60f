"""Softmax and its cross-entropy on vectors. Arguments are the portable code's.

A *unit* is what is computed at once: a contiguous row, `width` elements after `width` elements; or, along another axis,
up to `width` rows that are beside each other in memory, of which one element after another is read. Either way a step
reads up to `width` neighbours, and there is a maximum and a sum for each place of a step; those of a contiguous row are
then combined. Short rows are copied to where 16 of them are beside each other, and their results back. Sums are
float64, in this order. Half types are computed in float32 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from .elementwise import refuses
from .jit import kernel
from .parallel import chunked, flat, launcher, to_lanes
from .vector_ends import read, store_until
from .vector_math import apply
from .vectors import (
    LANES,
    add,
    as_lanes_of,
    broadcast,
    div,
    equal,
    evens,
    first_lanes,
    gather,
    lane,
    load,
    load_first,
    maximum,
    mul,
    odds,
    select,
    store,
    store_first,
    sub,
    to_float64,
)

__all__ = ["refuses", "softmax_backward", "softmax_cross_entropy_backward", "softmax_cross_entropy_forward",
           "softmax_forward"]  # fmt: skip

Array = Any
Vector = Any
ROW_WIDTH = 4 * LANES  # of contiguous rows
MAX_WIDTH = 256  # of others
POWERS = 32_768  # exponentials that stay in the second cache
MOST_POWERS = 1 << 20  # in memory: 4 MB of float32 a thread


@kernel(inlined=True)
def _unit(u: int, count: int, inner: int, width: int) -> tuple[int, int, int, int, int]:
    """A unit's first element, its steps and how far apart they are, the elements of a step, and of the last one."""
    if inner == 1:
        steps = (count + width - 1) // width
        return u * count, steps, width, width, count - (steps - 1) * width
    units = (inner + width - 1) // width
    column = u % units * width
    cells = min(width, inner - column)
    return u // units * count * inner + column, count, inner, cells, cells


@kernel()
def _workspace(x: Array, number: int) -> Array:
    """An array of the dtype that x is computed in."""
    return np.full(number, lane(broadcast(x, 0.0), 0))


def _make_combine(how: str) -> Any:
    @kernel(allocates=False)
    def combine(values: Array, width: int) -> None:
        """Put the maximum, or the sum, of all values in the place of each."""
        v = load(values, 0)
        for c in range(LANES, width, LANES):
            v = maximum(v, load(values, c)) if how == "largest" else add(v, load(values, c))
        for _ in range(4):
            v = maximum(evens(v, v), odds(v, v)) if how == "largest" else add(evens(v, v), odds(v, v))
        for c in range(0, width, LANES):
            store(values, c, v)

    return combine


largest_of_all, sum_of_all = _make_combine("largest"), _make_combine("sum")


@kernel(inlined=True)
def _read_or(x: Array, i: int, count: int, other: Vector) -> Vector:
    """The elements from i on; the lanes from `count` on are those of `other`."""
    return load(x, i) if count >= LANES else select(first_lanes(count), load_first(x, i, count), other)


def _make_powers(rest: bool) -> Any:
    @kernel(allocates=False)
    def powers_of_unit(
        x: Array, powers: Array, tops: Array, sums: Array, maxima: Array, u: int, count: int, inner: int, width: int
    ) -> None:
        """tops, and the sums of exp(x - top). Exponentials are stored if there is room. `rest`: a sum is without one
        maximum, whose exponential is 1: it has all its digits however small it is."""
        first, steps, pitch, cells, last = _unit(u, count, inner, width)
        lowest, zero = broadcast(x, -np.inf), broadcast(x, 0.0)
        for c in range(0, width, LANES):
            store(tops, c, lowest)
            store(sums, c, broadcast(sums, 0.0))
            if rest:
                store(maxima, c, broadcast(maxima, 0.0))
        for k in range(steps):
            at, number = first + k * pitch, cells if k < steps - 1 else last
            for c in range(0, number, LANES):
                store(tops, c, maximum(load(tops, c), _read_or(x, at + c, number - c, lowest)))
        if inner == 1:
            largest_of_all(tops, width)
        for k in range(steps):
            at, number = first + k * pitch, cells if k < steps - 1 else last
            for c in range(0, number, LANES):
                top = load(tops, c)
                value = _read_or(x, at + c, number - c, top)  # exp takes a microsecond for results below 1e-38
                power = apply("exp", sub(value, top))
                if powers.size > 0:
                    store(powers, k * width + c, power)
                power = power if number - c >= LANES else select(first_lanes(number - c), power, zero)
                if rest:
                    others = select(equal(value, top), zero, power)
                    store(maxima, c, add(load(maxima, c), to_float64(sub(power, others))))
                    power = others
                store(sums, c, add(load(sums, c), to_float64(power)))
        if inner == 1:
            sum_of_all(sums, width)
            if rest:
                sum_of_all(maxima, width)
        if rest:
            for c in range(0, width, LANES):
                store(sums, c, add(load(sums, c), sub(load(maxima, c), broadcast(maxima, 1.0))))

    return powers_of_unit


powers_of_unit, rest_of_unit = _make_powers(False), _make_powers(True)


# ----------------------------------------------------------------------------------------------------------- short rows
# Of float32, 4096 rows of 10 take a quarter of the time of rows computed one by one (the cross-entropy a third, the
# gradient three quarters), rows of 24 less than half.
SHORT_ROW, SHORT_GRADIENT = 24, 10  # elements, at most: rows of 16 make the gradient slower


@kernel(allocates=False)
def _copy(x: Array, at: int, places: Array, y: Array, to: int, number: int) -> None:
    """y[to + i] = x[at + places[i]], for i < number."""
    for i in range(0, number, LANES):
        store_until(y, to + i, gather(x, at, places, i), to + number)


@kernel()
def _to_units(x: Array, count: int, start: int, stop: int) -> Array:
    """Rows start to stop of x as units of 16 rows beside each other; the last row is there as often as it takes."""
    room = count * LANES
    places, result = np.empty(room, np.int32), np.empty((stop - start + LANES - 1) // LANES * room, x.dtype)
    for first in range(start, stop, LANES):
        if first == start or stop - first < LANES:
            for k in range(count):
                for r in range(LANES):
                    places[k * LANES + r] = min(r, stop - first - 1) * count + k
        _copy(x, first * count, places, result, (first - start) * count, room)
    return result


@kernel()
def _to_rows(units: Array, y: Array, count: int, start: int, stop: int) -> None:
    """Units as rows start to stop of y."""
    places = np.empty(count * LANES, np.int32)
    for r in range(LANES):
        for k in range(count):
            places[r * count + k] = k * LANES + r
    for first in range(start, stop, LANES):
        _copy(units, (first - start) * count, places, y, first * count, min(LANES, stop - first) * count)


# --------------------------------------------------------------------------------------------------------------- loops
@kernel()
def softmax(x: Array, y: Array, count: int, inner: int, width: int, start: int, stop: int) -> None:
    """Softmax of units start to stop. Exponentials that `MOST_POWERS` has no room for are computed twice."""
    room = count + width if inner == 1 else count * width
    powers, tops, sums = _workspace(x, room if room <= MOST_POWERS else 0), _workspace(x, width), np.zeros(width)
    for u in range(start, stop):
        powers_of_unit(x, powers, tops, sums, sums, u, count, inner, width)
        first, steps, pitch, cells, last = _unit(u, count, inner, width)
        for c in range(0, width, LANES):
            store(sums, c, div(broadcast(sums, 1.0), load(sums, c)))
        for k in range(steps):
            at, number = first + k * pitch, cells if k < steps - 1 else last
            for c in range(0, number, LANES):
                if powers.size > 0:
                    power = load(powers, k * width + c)
                else:
                    power = apply("exp", sub(read(x, at + c, number - c), load(tops, c)))
                store_until(y, at + c, mul(power, as_lanes_of(x, load(sums, c))), at + number)


@kernel()
def softmax_of_short_rows(x: Array, y: Array, count: int, start: int, stop: int) -> None:
    """Softmax of rows start to stop."""
    units = _to_units(x, count, start, stop)
    softmax(units, units, count, LANES, LANES, 0, units.size // (count * LANES))
    _to_rows(units, y, count, start, stop)


@kernel()
def softmax_gradient(dy: Array, y: Array, dx: Array, count: int, inner: int, width: int, start: int, stop: int) -> None:
    """dx = y * (dy - sum(dy * y)) of units start to stop."""
    sums = np.zeros(width)
    for u in range(start, stop):
        first, steps, pitch, cells, last = _unit(u, count, inner, width)
        for c in range(0, width, LANES):
            store(sums, c, broadcast(sums, 0.0))
        for k in range(steps):
            at, number = first + k * pitch, cells if k < steps - 1 else last
            for c in range(0, number, LANES):
                product = mul(read(dy, at + c, number - c), read(y, at + c, number - c))
                store(sums, c, add(load(sums, c), to_float64(product)))
        if inner == 1:
            sum_of_all(sums, width)
        for k in range(steps):
            at, number = first + k * pitch, cells if k < steps - 1 else last
            for c in range(0, number, LANES):
                difference = sub(read(dy, at + c, number - c), as_lanes_of(y, load(sums, c)))
                store_until(dx, at + c, mul(read(y, at + c, number - c), difference), at + number)


@kernel()
def gradient_of_short_rows(dy: Array, y: Array, dx: Array, count: int, start: int, stop: int) -> None:
    """dx of rows start to stop."""
    units, factors = _to_units(dy, count, start, stop), _to_units(y, count, start, stop)
    softmax_gradient(units, factors, units, count, LANES, LANES, 0, units.size // (count * LANES))
    _to_rows(units, dx, count, start, stop)


def _make_losses(short: bool) -> Any:
    inner = LANES if short else 1

    @kernel()
    def row_losses(
        x: Array, labels: Array, top: Array, rest: Array, losses: Array, count: int, width: int, start: int, stop: int
    ) -> None:
        """The losses of rows start to stop, and of each its maximum, `top`, and the sum of the other exponentials."""
        powers, tops, sums, maxima = _workspace(x, 0), _workspace(x, width), np.zeros(width), np.zeros(width)
        units, begin = (_to_units(x, count, start, stop), start) if short else (x, 0)
        for first in range(start, stop, inner):
            rest_of_unit(units, powers, tops, sums, maxima, (first - begin) // inner, count, inner, width)
            for r in range(first, min(first + inner, stop)):
                score, largest = lane(load_first(x, r * count + labels[r], 1), 0), tops[r - first]
                top[r], rest[r] = largest, sums[r - first] + (largest - largest)  # NaN where the maximum is infinite
                losses[r] = math.log1p(rest[r]) + (largest - score)

    return row_losses


row_losses, losses_of_short_rows = _make_losses(False), _make_losses(True)


@kernel(allocates=False)
def row_gradients(
    x: Array, labels: Array, top: Array, rest: Array, dx: Array, factor: float, count: int, start: int, stop: int
) -> None:
    """dx = exp(x - top) * scale of rows start to stop, and at the label ((exp(x - top) - 1) - rest) * scale."""
    for r in range(start, stop):
        tops, scale = broadcast(x, top[r]), broadcast(x, factor / (1.0 + rest[r]))
        for i in range(r * count, (r + 1) * count, LANES):
            power = apply("exp", sub(_read_or(x, i, (r + 1) * count - i, tops), tops))
            store_until(dx, i, mul(power, scale), (r + 1) * count)
        label = r * count + labels[r]
        others = sub(sub(apply("exp", sub(read(x, label, 1), tops)), broadcast(x, 1.0)), broadcast(x, rest[r]))
        store_first(dx, label, mul(others, scale), 1)


# ----------------------------------------------------------------------------------------------------------------- ops
def row_width(count: int) -> int:
    """The width of the steps of a contiguous row."""
    return min(ROW_WIDTH, -(-count // LANES) * LANES)


def _by_sixteens(rows: int, nbytes: int) -> Callable[..., None]:
    """`chunked` of rows of which 16 are computed together."""
    return chunked(-(-rows // LANES), nbytes, unit=LANES, end=rows)


def _along_axis(loop: Any, of_short_rows: Any, most: int, axis: int, arrays: tuple[Array, ...]) -> Callable[..., Array]:
    """A function of arrays like these: the result of a loop along an axis, in their shape and the first one's dtype.

    most: the elements of a short row, at most."""
    shape = arrays[0].shape
    axis %= len(shape)
    count, inner, size = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape)
    width = max(LANES, min(MAX_WIDTH, POWERS // max(count, 1) // LANES * LANES, -(-inner // LANES) * LANES))
    width = row_width(count) if inner == 1 else width
    units = 0 if not size else size // count if inner == 1 else size // (count * inner) * -(-inner // width)
    new, nbytes = backends.new_result(shape, arrays[0].dtype), sum(a.nbytes for a in (*arrays, arrays[0]))
    short = inner == 1 and count <= most
    in_chunks = _by_sixteens(units, nbytes) if short else chunked(units, nbytes)
    loop, sizes = (of_short_rows, (count,)) if short else (loop, (count, inner, width))

    def run(*arrays: Array) -> Array:
        result = new()
        in_chunks(loop, *map(to_lanes, arrays), to_lanes(result), *sizes)
        return result

    return run


@launcher
def softmax_forward(axis: int, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _along_axis(softmax, softmax_of_short_rows, SHORT_ROW, axis, (x,))


@launcher
def softmax_backward(axis: int, dy: Array, y: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _along_axis(softmax_gradient, gradient_of_short_rows, SHORT_GRADIENT, axis, (dy, y))


@launcher
def softmax_cross_entropy_forward(
    spec: None, x: Array, labels: Array
) -> Callable[[Array, Array], tuple[Array, Array, Array]]:
    """The mean loss, and of each row `top` and `rest`, (N, 1), in the dtype that x is computed in."""
    (rows, count), dtype = x.shape, np.float64 if x.dtype == np.float64 else np.float32
    short = count <= SHORT_ROW
    width = LANES if short else row_width(count)
    in_chunks = (_by_sixteens if short else chunked)(rows, x.nbytes)
    loop = losses_of_short_rows if short else row_losses

    def run(x: Array, labels: Array) -> tuple[Array, Array, Array]:
        top, rest, losses = np.empty(rows, dtype), np.empty(rows, dtype), np.empty(rows)
        in_chunks(loop, to_lanes(x), flat(labels), top, rest, losses, count, width)
        loss = (losses.sum() / rows).astype(dtype)
        return np.asarray(loss.astype(x.dtype)), top.reshape(-1, 1), rest.reshape(-1, 1)

    return run


@launcher
def softmax_cross_entropy_backward(spec: None, dy: Array, x: Array, *saved: Array) -> Callable[..., Array]:
    """dx of dy, x, labels, top and rest."""
    (rows, count), new = x.shape, backends.new_result(x.shape, x.dtype)
    in_chunks = chunked(rows, 2 * x.nbytes)

    def run(dy: Array, x: Array, labels: Array, top: Array, rest: Array) -> Array:
        dx, factor = new(), float(dy) / rows
        in_chunks(row_gradients, to_lanes(x), flat(labels), flat(top), flat(rest), to_lanes(dx), factor, count)
        return dx

    return run
