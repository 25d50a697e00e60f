"""Softmax and its cross-entropy on vectors. Arguments are the portable code's.

A *unit* is what is computed at once, a vector a step: a contiguous row; or, along another axis, up to 16 rows that are
beside each other in memory, a row a lane. Short rows, and long ones far apart, are first copied to where 16 of them are
beside each other, and their results back. Sums are float64, in the order of the source. Half types are computed in
float32 and rounded once."""

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
    copy_lanes,
    div,
    equal,
    evens,
    first_lanes,
    gather,
    lane,
    less,
    load,
    load_first,
    mul,
    odds,
    select,
    store,
    store_first,
    sub,
    to_float64,
    total,
)

__all__ = ["refuses", "softmax_backward", "softmax_cross_entropy_backward", "softmax_cross_entropy_forward",
           "softmax_forward"]  # fmt: skip

Array = Any
Vector = Any
U = np.uintp
MOST_POWERS = 1 << 20  # exponentials in memory: 4 MB of float32 a thread
# Of float32, 4096 rows of 10 take a quarter of the time of rows computed one by one (the cross-entropy a third).
SHORT_ROW = 24  # elements, at most
# Along another axis than the last, the elements of a sum are in rows of memory that are far apart. From FAR_ROWS such
# rows on, with FAR_ELEMENTS elements in all, reading 16 neighbours of one row after another is slow: 16×150×128² took
# 1.6 times as long as with copies, for which up to MAX_WIDTH neighbours of a row are read at once.
FAR_ROWS, FAR_ELEMENTS, MAX_WIDTH = 40, 1 << 17, 256
COPIED = 32_768  # elements of a copy that stay in the second cache


@kernel(inlined=True)
def _unit(u: int, count: int, inner: int) -> tuple[int, int, int, int, int]:
    """A unit's first element, its steps and how far apart they are, the elements of a step, and of the last one. The
    last rows along another axis may be in two units."""
    if inner == 1:
        steps = (count + LANES - 1) // LANES
        return u * count, steps, LANES, LANES, count - (steps - 1) * LANES
    units, cells = (inner + LANES - 1) // LANES, min(LANES, inner)
    return u // units * count * inner + min(u % units * LANES, inner - cells), count, inner, cells, cells


@kernel()
def _workspace(x: Array, number: int) -> Array:
    """An array of the dtype that x is computed in."""
    return np.full(number, lane(broadcast(x, 0.0), 0))


@kernel(inlined=True)
def _read_or(x: Array, i: int, count: int, other: Vector) -> Vector:
    """The elements from i on; the lanes from `count` on are those of `other`."""
    return load(x, i) if count >= LANES else select(first_lanes(count), load_first(x, i, count), other)


@kernel(inlined=True)
def _sum_of_rows(x: Vector, like: Array, inner: int) -> Vector:
    """The sums of the unit's rows, each in its lane: of the one row of a unit in all lanes."""
    return broadcast(like, total(x)) if inner == 1 else x


@kernel(inlined=True)
def _larger(x: Vector, y: Vector) -> Vector:
    """The maxima; of y and a NaN, either."""
    return select(less(x, y), y, x)


def _make_powers(rest: bool) -> Any:
    @kernel(inlined=True)
    def powers_of_unit(x: Array, powers: Array, like: Array, u: int, count: int, inner: int) -> tuple[Vector, Vector]:
        """The maxima of a unit's rows, and the sums of exp(x - top). Exponentials are stored if there is room. `rest`:
        a sum is without one maximum, whose exponential is 1: it has all its digits however small it is."""
        first, steps, pitch, cells, last = _unit(u, count, inner)
        top, zero = broadcast(x, -np.inf), broadcast(x, 0.0)
        for k in range(steps):  # a NaN is passed over: its exponential makes the sum a NaN
            top = _larger(top, _read_or(x, first + k * pitch, cells if k < steps - 1 else last, top))
        for _ in range(4 if inner == 1 else 0):
            top = _larger(evens(top, top), odds(top, top))
        result = maxima = broadcast(like, 0.0)
        for k in range(steps):
            number = cells if k < steps - 1 else last
            value = _read_or(x, first + k * pitch, number, top)  # exp takes a microsecond for results below 1e-38
            power = apply("exp", sub(value, top))
            if powers.size > 0:
                store(powers, k * LANES, power)
            power = power if number >= LANES else select(first_lanes(number), power, zero)
            if rest:
                others = select(equal(value, top), zero, power)
                maxima, power = add(maxima, to_float64(sub(power, others))), others
            result = add(result, to_float64(power))
        result = _sum_of_rows(result, like, inner)
        return top, add(result, sub(_sum_of_rows(maxima, like, inner), broadcast(like, 1.0))) if rest else result

    return powers_of_unit


powers_of_unit, rest_of_unit = _make_powers(False), _make_powers(True)


# --------------------------------------------------------------------------------------------------------------- loops
@kernel(allocates=False)
def _softmax(x: Array, y: Array, powers: Array, like: Array, count: int, inner: int, start: int, stop: int) -> None:
    for u in range(start, stop):
        top, all_powers = powers_of_unit(x, powers, like, u, count, inner)
        one = broadcast(like, 1.0)
        scale = broadcast(x, 1.0 / lane(all_powers, 0)) if inner == 1 else as_lanes_of(x, div(one, all_powers))
        first, steps, pitch, cells, last = _unit(u, count, inner)
        for k in range(steps):
            at, number = first + k * pitch, cells if k < steps - 1 else last
            power = load(powers, k * LANES) if powers.size > 0 else apply("exp", sub(read(x, at, number), top))
            store_until(y, at, mul(power, scale), at + number)


@kernel()
def softmax(x: Array, y: Array, count: int, inner: int, start: int, stop: int) -> None:
    """Softmax of units start to stop. Exponentials that `MOST_POWERS` has no room for are computed twice."""
    room = count + LANES if inner == 1 else count * LANES
    _softmax(x, y, _workspace(x, room if room <= MOST_POWERS else 0), np.empty(0), count, inner, start, stop)


@kernel()
def softmax_gradient(dy: Array, y: Array, dx: Array, count: int, inner: int, start: int, stop: int) -> None:
    """dx = y * (dy - sum(dy * y)) of units start to stop."""
    like = np.empty(0)
    for u in range(start, stop):
        first, steps, pitch, cells, last = _unit(u, count, inner)
        products = broadcast(like, 0.0)
        for k in range(steps):
            at, number = first + k * pitch, cells if k < steps - 1 else last
            products = add(products, to_float64(mul(read(dy, at, number), read(y, at, number))))
        dot = broadcast(y, total(products)) if inner == 1 else as_lanes_of(y, products)
        for k in range(steps):
            at, number = first + k * pitch, cells if k < steps - 1 else last
            store_until(dx, at, mul(read(y, at, number), sub(read(dy, at, number), dot)), at + number)


# -------------------------------------------------------------------------------------------------------------- copies
@kernel()
def _places(count: int) -> Array:
    """The first element of each of 16 short rows."""
    places = np.empty(LANES, np.int32)
    for r in range(LANES):
        places[r] = r * count
    return places


@kernel(allocates=False)
def _to_units(x: Array, units: Array, places: Array, count: int, inner: int, width: int, u: int) -> None:
    """Copy `width` rows of x to units of 16. Of the last short rows the last one is copied as often as it takes."""
    first = _first_of_copy(x, count, inner, width, u)
    for k in range(count):
        if inner == 1:
            store(units, k * LANES, gather(x, first + k, places, 0))
        for c in range(0, width if inner > 1 else 0, LANES):
            copy_lanes(units, c * count + k * LANES, x, first + k * inner + c)


@kernel(allocates=False)
def _from_units(units: Array, y: Array, count: int, inner: int, width: int, u: int) -> None:
    """Copy `width` rows of y from units of 16."""
    first = _first_of_copy(y, count, inner, width, u)
    if inner == 1:
        for r in range(U(LANES)):
            for k in range(U(count)):
                y[U(first) + r * U(count) + k] = units[k * U(LANES) + r]
    else:
        for k in range(count):
            for c in range(0, width, LANES):
                copy_lanes(y, first + k * inner + c, units, c * count + k * LANES)


@kernel(inlined=True)
def _first_of_copy(x: Array, count: int, inner: int, width: int, u: int) -> int:
    """The first element of `width` neighbouring rows; the last ones may be in two copies."""
    if inner == 1:
        first: int = min(u * width, x.size // count - width) * count
    else:
        copies = (inner + width - 1) // width
        first = u // copies * count * inner + min(u % copies * width, inner - width)
    return first


@kernel()
def softmax_of_copies(x: Array, y: Array, count: int, inner: int, width: int, start: int, stop: int) -> None:
    """Softmax of `width` rows after `width` rows."""
    units, powers, like = np.empty(count * width, x.dtype), _workspace(x, count * LANES), np.empty(0)
    places = _places(count)
    for u in range(start, stop):
        _to_units(x, units, places, count, inner, width, u)
        _softmax(units, units, powers, like, count, LANES, 0, width // LANES)
        _from_units(units, y, count, inner, width, u)


@kernel()
def gradient_of_columns(
    dy: Array, y: Array, dx: Array, count: int, inner: int, width: int, start: int, stop: int
) -> None:
    """dx of `width` rows that are beside each other, after `width` rows."""
    sums, dots = np.empty(width), _workspace(y, width)
    for u in range(start, stop):
        first = _first_of_copy(dy, count, inner, width, u)
        for c in range(U(0), U(width), U(LANES)):
            store(sums, c, broadcast(sums, 0.0))
        for at in range(U(first), U(first + count * inner), U(inner)):
            for c in range(U(0), U(width), U(LANES)):
                product = mul(load(dy, at + c), load(y, at + c))
                store(sums, c, add(load(sums, c), to_float64(product)))
        for c in range(U(0), U(width), U(LANES)):
            store(dots, c, as_lanes_of(y, load(sums, c)))
        for at in range(U(first), U(first + count * inner), U(inner)):
            for c in range(U(0), U(width), U(LANES)):
                store(dx, at + c, mul(load(y, at + c), sub(load(dy, at + c), load(dots, c))))


# ------------------------------------------------------------------------------------------------------- cross-entropy
@kernel()
def row_losses(
    x: Array, labels: Array, top: Array, rest: Array, losses: Array, count: int, inner: int, start: int, stop: int
) -> None:
    """The losses of rows, and of each its maximum, `top`, and the sum of the other exponentials. inner: 1, and start
    and stop count rows; or 16, and they count copies of 16 short rows."""
    units, powers, places = np.empty(count * inner, x.dtype), _workspace(x, 0), _places(count)
    tops, sums = _workspace(x, LANES), np.zeros(LANES)
    for u in range(start, stop):
        if inner > 1:
            first = min(u * LANES, losses.size - LANES)
            _to_units(x, units, places, count, 1, LANES, u)
            largest, others = rest_of_unit(units, powers, sums, 0, count, inner)
        else:
            first = u
            largest, others = rest_of_unit(x, powers, sums, u, count, inner)
        store(tops, 0, largest)
        store(sums, 0, others)
        for r in range(first, first + inner):
            score, best = lane(load_first(x, r * count + labels[r], 1), 0), tops[r - first]
            top[r], rest[r] = best, sums[r - first] + (best - best)  # NaN where the maximum is infinite
            losses[r] = math.log1p(rest[r]) + (best - score)


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
def _along_axis(loop: Any, of_many: Any, forward: bool, axis: int, arrays: tuple[Array, ...]) -> Callable[..., Array]:
    """A function of arrays like these: the result of a loop along an axis, in their shape and the first one's dtype.

    of_many: the loop of many rows at once, which are copied in `forward`: far or short ones. Backward takes all that
    are beside each other."""
    shape = arrays[0].shape
    axis %= len(shape)
    count, inner, size = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape)
    rows, copied = size // max(count, 1), False
    if inner > 1:
        far = count >= FAR_ROWS and count * inner >= FAR_ELEMENTS and count * LANES <= MOST_POWERS
        copied = inner >= LANES and (far or not forward)
    elif forward:
        copied = count <= SHORT_ROW and rows >= LANES
    width = max(LANES, min(MAX_WIDTH, COPIED // max(count, 1), inner) // LANES * LANES) if copied else LANES
    units = (
        rows if inner == 1 and not copied else rows // inner * -(-inner // width) if inner > 1 else -(-rows // width)
    )
    new, nbytes = backends.new_result(shape, arrays[0].dtype), sum(a.nbytes for a in (*arrays, arrays[0]))
    in_chunks = chunked(units if size else 0, nbytes)
    loop, sizes = (of_many, (count, inner, width)) if copied else (loop, (count, inner))

    def run(*arrays: Array) -> Array:
        result = new()
        in_chunks(loop, *map(to_lanes, arrays), to_lanes(result), *sizes)
        return result

    return run


@launcher
def softmax_forward(axis: int, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _along_axis(softmax, softmax_of_copies, True, axis, (x,))


@launcher
def softmax_backward(axis: int, dy: Array, y: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _along_axis(softmax_gradient, gradient_of_columns, False, axis, (dy, y))


@launcher
def softmax_cross_entropy_forward(
    spec: None, x: Array, labels: Array
) -> Callable[[Array, Array], tuple[Array, Array, Array]]:
    """The mean loss, and of each row `top` and `rest`, (N, 1), in the dtype that x is computed in."""
    (rows, count), dtype = x.shape, np.float64 if x.dtype == np.float64 else np.float32
    inner = LANES if count <= SHORT_ROW and rows >= LANES else 1
    in_chunks = chunked(-(-rows // inner), x.nbytes)

    def run(x: Array, labels: Array) -> tuple[Array, Array, Array]:
        top, rest, losses = np.empty(rows, dtype), np.empty(rows, dtype), np.empty(rows)
        in_chunks(row_losses, to_lanes(x), flat(labels), top, rest, losses, count, inner)
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
