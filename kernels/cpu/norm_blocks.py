"""Loops of the norms whose rows, or some of them, fit a core's cache: a block of rows goes through all its steps there.

Arrays are as in norm_loops.py. Rows and segments of up to SHORT_ROW cells are summed 16 at a time (row_sums.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import cell_gradient_sums, cell_moments, input_gradient_cells, scale_shift_cells
from .past_caches import stored_past_caches
from .row_sums import ROOM, SHORT_ROW, lane_sums, totals
from .vectors import (
    LANES,
    add,
    any_lane,
    bit_not,
    broadcast,
    div,
    equal,
    fence,
    first_lanes,
    fma,
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
)

Array = Any
U = np.uintp
ROOMS = 2 * ROOM + LANES  # numbers: two sums of 16 rows' lanes, and a number for each row


# -------------------------------------------------------------------------------------- short rows, 16 at a time
@kernel(allocates=False)
def _all_finite(x: Any) -> Any:
    """Whether no lane is infinite or a NaN."""
    return not any_lane(bit_not(equal(sub(x, x), sub(x, x))))


@kernel(allocates=False)
def short_row_moments(x: Array, mean: Array, squares: Array, room: Array, size: int, low: int, high: int) -> None:
    """`cell_moments` of rows low to high, each of `size` cells, at most SHORT_ROW. Takes a third of the time."""
    zero = broadcast(x, 0.0)
    for first in range(low, high, LANES):
        number, shifts = min(LANES, high - first), 2 * ROOM
        for k in range(number):
            store(room, U(k * LANES), lane_sums(x, U((first + k) * size), U(size)))
        centre = div(totals(room, 0), broadcast(x, size))
        store(room, shifts, centre)
        for k in range(number):
            at, shift, s, q = (first + k) * size, broadcast(x, room[shifts + k]), zero, zero
            whole = at + size - size % LANES
            for i in range(U(at), U(whole), U(LANES)):
                d = sub(load(x, i), shift)
                s, q = add(s, d), fma(d, d, q)
            if size % LANES > 0:
                d = select(first_lanes(size % LANES), sub(load_first(x, whole, size % LANES), shift), zero)
                s, q = add(s, d), fma(d, d, q)
            store(room, U(k * LANES), s)
            store(room, U(ROOM + k * LANES), q)
        rest, count = to_float64(totals(room, 0)), broadcast(mean, size)
        distance = div(rest, count)
        about_mean = sub(to_float64(totals(room, ROOM)), mul(rest, distance))
        store_first(mean, first, add(to_float64(centre), distance), number)
        store_first(squares, first, maximum(broadcast(mean, 0.0), about_mean), number)
        if not _all_finite(rest):
            for r in range(first, first + number):
                if not np.isfinite(mean[r]):
                    mean[r], squares[r] = cell_moments(x, r * size, (r + 1) * size)


@kernel(allocates=False)
def _add_short_gradient_sums(
    dy: Array, x: Array, mean: Array, sum_dy: Array, sum_products: Array, room: Array, group_size: int, length: int,
    offset: int, low: int, high: int,
) -> None:  # fmt: skip
    """Add `cell_gradient_sums` of segments low to high, of at most SHORT_ROW cells; the first starts `offset` segments
    later in dy and x."""
    zero = broadcast(x, 0.0)
    for first in range(low, high, LANES):
        number = min(LANES, high - first)
        for k in range(number):
            at, shift, s, q = (offset + first + k) * length, broadcast(x, mean[(first + k) // group_size]), zero, zero
            whole = at + length - length % LANES
            for i in range(U(at), U(whole), U(LANES)):
                g = load(dy, i)
                s, q = add(s, g), fma(g, sub(load(x, i), shift), q)
            if length % LANES > 0:
                g = load_first(dy, whole, length % LANES)
                last = fma(g, sub(load_first(x, whole, length % LANES), shift), q)
                s, q = add(s, g), select(first_lanes(length % LANES), last, q)
            store(room, U(k * LANES), s)
            store(room, U(ROOM + k * LANES), q)
        part_dy, part_products = to_float64(totals(room, 0)), to_float64(totals(room, ROOM))
        if _all_finite(part_dy) and _all_finite(part_products):
            store_first(sum_dy, first, add(load_first(sum_dy, first, number), part_dy), number)
            products = add(load_first(sum_products, first, number), part_products)
            store_first(sum_products, first, products, number)
        else:
            for k in range(number):
                s_dy, s_products, segment = lane(part_dy, k), lane(part_products, k), first + k
                if not (np.isfinite(s_dy) and np.isfinite(s_products)):
                    at = (offset + segment) * length
                    s_dy, s_products = cell_gradient_sums(dy, x, at, at + length, mean[segment // group_size])
                sum_dy[segment] += s_dy
                sum_products[segment] += s_products


# ------------------------------------------------------------------------------------------------- blocks of rows
# Each block of rows goes through all its steps while a core's cache holds it. A row has a part in each of `samples`
# samples (1 where rows lie in one sample): `group_size` neighbouring segments. There are `rows` rows; segments are
# counted within a sample. gamma and beta start again where they end.
@kernel(allocates=False)
def _blocks_forward(
    x: Array, y: Array, gamma: Array, beta: Array, mean: Array, var: Array, rstd: Array, room: Array, eps: float,
    samples: int, group_size: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    rows, size, past_caches = mean.size, group_size * length, stored_past_caches(y)
    for u in range(start, stop):
        low, high = u * block, min((u + 1) * block, rows)
        short = samples == 1 and size <= SHORT_ROW
        if short:
            short_row_moments(x, mean, var, room, size, low, high)
        for n in range(0 if short else samples):
            for r in range(low, high):
                first = (n * rows + r) * size
                part_mean, squares = cell_moments(x, first, first + size)
                if n == 0:
                    mean[r], var[r] = part_mean, squares
                else:
                    distance = part_mean - mean[r]
                    var[r] += squares + distance * distance * size * n / (n + 1)
                    mean[r] = (mean[r] * n + part_mean) / (n + 1)
        for r in range(low, high):
            var[r] /= samples * size
            rstd[r] = 1.0 / np.sqrt(var[r] + eps)
        for n in range(samples):
            for r in range(low, high):
                delta = mean[r] - np.float64(lane(broadcast(x, mean[r]), 0))
                channel = r * group_size % gamma.size
                for i in range(group_size):
                    c = channel + i
                    first, scale = (n * rows + r) * size + i * length, rstd[r] * gamma[c]
                    scale_shift_cells(x, y, first, first + length, mean[r], scale, beta[c] - delta * scale, past_caches)
    if past_caches:
        fence()


@kernel()
def blocks_forward(
    x: Array, y: Array, gamma: Array, beta: Array, mean: Array, var: Array, rstd: Array, eps: float,
    samples: int, group_size: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """y and the statistics of blocks start to stop, each of `block` rows; the last one may have fewer."""
    room = np.full(ROOMS, lane(broadcast(x, 0.0), 0))
    _blocks_forward(
        x, y, gamma, beta, mean, var, rstd, room, eps, samples, group_size, length, block, start, stop
    )  # fmt: skip


@kernel(allocates=False)
def _blocks_backward(
    dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, sum_dy: Array, sum_dy_xhat: Array,
    room: Array, samples: int, group_size: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    rows, size, past_caches = mean.size, group_size * length, stored_past_caches(dx)
    for u in range(start, stop):
        low, high = u * block, min((u + 1) * block, rows)
        sum_dy[low * group_size : high * group_size] = 0.0
        sum_dy_xhat[low * group_size : high * group_size] = 0.0  # at first the sums of dy * (x - shift)
        for n in range(samples):
            if length <= SHORT_ROW:
                _add_short_gradient_sums(
                    dy, x, mean, sum_dy, sum_dy_xhat, room, group_size, length, n * rows * group_size,
                    low * group_size, high * group_size,
                )  # fmt: skip
                continue
            for s in range(low * group_size, high * group_size):
                first = (n * rows * group_size + s) * length
                part, products = cell_gradient_sums(dy, x, first, first + length, mean[s // group_size])
                sum_dy[s] += part
                sum_dy_xhat[s] += products
        for r in range(low, high):
            delta, row_dy, row_dy_xhat = mean[r] - np.float64(lane(broadcast(x, mean[r]), 0)), 0.0, 0.0
            channel = r * group_size % gamma.size
            for i in range(group_size):
                s, weight = r * group_size + i, gamma[channel + i]
                sum_dy_xhat[s] = (sum_dy_xhat[s] - delta * sum_dy[s]) * rstd[r]
                row_dy += sum_dy[s] * weight
                row_dy_xhat += sum_dy_xhat[s] * weight
            x_factor = rstd[r] * row_dy_xhat / (samples * size)
            constant = row_dy / (samples * size) - delta * x_factor
            for n in range(samples):
                for i in range(group_size):
                    first, weight = ((n * rows + r) * group_size + i) * length, gamma[channel + i]
                    input_gradient_cells(
                        dy, x, dx, first, first + length, mean[r], weight, x_factor, constant, rstd[r], past_caches
                    )
    if past_caches:
        fence()


@kernel()
def blocks_backward(
    dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, sum_dy: Array, sum_dy_xhat: Array,
    samples: int, group_size: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dx of blocks start to stop, and for each of their segments the sums of dy and of dy * xhat."""
    room = np.full(ROOMS, lane(broadcast(x, 0.0), 0))
    _blocks_backward(
        dy, x, dx, gamma, mean, rstd, sum_dy, sum_dy_xhat, room, samples, group_size, length, block, start, stop
    )  # fmt: skip
