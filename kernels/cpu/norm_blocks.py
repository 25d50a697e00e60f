"""Loops of the norms whose rows, or some of them, fit a core's cache: a block of rows goes through all its steps there.

Arrays are as in norm_loops.py. Rows and segments of up to SHORT_ROW cells are summed 16 at a time (row_sums.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import input_gradient_segments, scale_shift_segments, segment_gradient_sums, segment_moments
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
    square_root,
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
def _short_row_moments(x: Array, mean: Array, squares: Array, room: Array, size: int, low: int, high: int) -> None:
    """`segment_moments` of rows low to high, each of `size` cells, at most SHORT_ROW. Takes a third of the time."""
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
                    mean[r], squares[r] = segment_moments(x, r * size, 1, 0, size)


@kernel(allocates=False)
def row_moments(
    x: Array, mean: Array, squares: Array, room: Array, size: int, samples: int, stride: int, low: int, high: int
) -> None:
    """`segment_moments` of rows low to high; each has `size` cells in each of `samples` samples, `stride` apart."""
    if samples == 1 and size <= SHORT_ROW:
        _short_row_moments(x, mean, squares, room, size, low, high)
        return
    for r in range(low, high):
        mean[r], squares[r] = segment_moments(x, r * size, samples, stride, size)


@kernel(allocates=False)
def finish_variance(var: Array, rstd: Array, n: Any, eps: float, low: int, high: int) -> None:
    """The variance and rstd of rows low to high; `var` has sums of squares before. Both may be one array."""
    one, count, epsilon = broadcast(var, 1.0), broadcast(var, n), broadcast(var, eps)
    for r in range(low, high, LANES):
        lanes = min(LANES, high - r)
        variance = div(load_first(var, r, lanes), count)
        store_first(var, r, variance, lanes)
        store_first(rstd, r, div(one, square_root(add(variance, epsilon))), lanes)


@kernel(allocates=False)
def _short_gradient_sums(
    dy: Array, x: Array, mean: Array, sum_dy: Array, sum_products: Array, room: Array, group_size: int, length: int,
    low: int, high: int,
) -> None:  # fmt: skip
    """`segment_gradient_sums` of segments low to high, each of at most SHORT_ROW cells."""
    zero = broadcast(x, 0.0)
    for first in range(low, high, LANES):
        number = min(LANES, high - first)
        for k in range(number):
            at, shift, s, q = (first + k) * length, broadcast(x, mean[(first + k) // group_size]), zero, zero
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
        store_first(sum_dy, first, part_dy, number)
        store_first(sum_products, first, part_products, number)
        if not (_all_finite(part_dy) and _all_finite(part_products)):
            for segment in range(first, first + number):
                if not (np.isfinite(sum_dy[segment]) and np.isfinite(sum_products[segment])):
                    sum_dy[segment], sum_products[segment] = segment_gradient_sums(
                        dy, x, segment * length, 1, 0, length, mean[segment // group_size]
                    )


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
        row_moments(x, mean, var, room, size, samples, rows * size, low, high)
        finish_variance(var, rstd, samples * size, eps, low, high)
        for r in range(low, high):
            delta = mean[r] - np.float64(lane(broadcast(x, mean[r]), 0))
            channel = r * group_size % gamma.size
            for i in range(group_size):
                first, c = r * size + i * length, channel + i
                scale = rstd[r] * gamma[c]
                offset = beta[c] - delta * scale
                scale_shift_segments(x, y, first, samples, rows * size, length, mean[r], scale, offset, past_caches)
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
        # At first the sums of dy * (x - shift) are in sum_dy_xhat.
        short = samples == 1 and length <= SHORT_ROW
        if short:
            _short_gradient_sums(
                dy, x, mean, sum_dy, sum_dy_xhat, room, group_size, length, low * group_size, high * group_size
            )
        for s in range((high if short else low) * group_size, high * group_size):
            sum_dy[s], sum_dy_xhat[s] = segment_gradient_sums(
                dy, x, s * length, samples, rows * size, length, mean[s // group_size]
            )
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
            for i in range(group_size):
                input_gradient_segments(
                    dy, x, dx, r * size + i * length, samples, rows * size, length, mean[r], gamma[channel + i],
                    x_factor, constant, rstd[r], past_caches,
                )  # fmt: skip
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
