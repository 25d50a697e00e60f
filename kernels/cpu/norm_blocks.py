"""Loops of the norms over rows that fit a core's cache: a block of rows goes through all its steps there.

Arrays are as in norm_loops.py. A row has `group_size` neighbouring segments in each of `samples` samples, or all its
cells in one. Rows and segments of up to SHORT_ROW cells are summed 16 at a time (row_sums.py), which takes a third of
the time. What a kernel needs of this is constant, so that it is compiled for nothing else."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import (
    input_gradient_segments,
    scale_shift_segments,
    segment_gradient_sums,
    segment_moments,
    sum_of_squares,
)
from .past_caches import stored_past_caches
from .row_sums import ROOM, totals
from .vectors import (
    LANES,
    add,
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
    stream,
    sub,
    to_float64,
)

Array = Any
Kernel = Any
U = np.uintp
ROOMS = 2 * ROOM + LANES  # numbers: two sums of 16 rows' lanes, and a number for each row


# -------------------------------------------------------------------------------------- short rows, 16 at a time
@kernel(allocates=False)
def _short_row_moments(x: Array, mean: Array, squares: Array, room: Array, size: int, low: int, high: int) -> None:
    """`segment_moments` of up to 16 rows, low to high, each of `size` cells."""
    number, shifts, zero, small = high - low, ROOM + ROOM, broadcast(x, 0.0), broadcast(x, 1.0 / size)
    tail = size % LANES
    inside = first_lanes(tail)
    for k in range(number):
        at, s, q = (low + k) * size, zero, zero
        whole = at + size - tail
        for i in range(at, whole, LANES):
            s, q = fma(load(x, i), small, q), s  # two sums in turn
        if tail > 0:
            s = fma(load_first(x, whole, tail), small, s)
        store(room, k * LANES, add(s, q))
    centre = totals(room, U(0))
    store(room, shifts, centre)
    for k in range(number):
        at, shift, s, q = (low + k) * size, broadcast(x, room[shifts + k]), zero, zero
        whole = at + size - tail
        for i in range(at, whole, LANES):
            d = sub(load(x, i), shift)
            s, q = add(s, d), fma(d, d, q)
        if tail > 0:
            d = select(inside, sub(load_first(x, whole, tail), shift), zero)
            s, q = add(s, d), fma(d, d, q)
        store(room, k * LANES, s)
        store(room, ROOM + k * LANES, q)
    rest, none = to_float64(totals(room, U(0))), broadcast(mean, 0.0)
    rest = select(equal(sub(rest, rest), none), rest, none)  # where it is finite
    distance = div(rest, broadcast(mean, size))
    about_mean = sub(to_float64(totals(room, U(ROOM))), mul(rest, distance))
    store_first(mean, low, add(to_float64(centre), distance), number)
    store_first(squares, low, maximum(none, about_mean), number)


@kernel(allocates=False)
def _finish_variance(var: Array, rstd: Array, n: Any, eps: float, low: int, high: int) -> None:
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
    """`segment_gradient_sums` of segments low to high, each of at most SHORT_ROW cells. room: float64."""
    zero, tail = broadcast(x, 0.0), length % LANES
    inside = first_lanes(tail)
    for first in range(low, high, LANES):
        number = min(LANES, high - first)
        for k in range(number):
            at, shift, s, q = (first + k) * length, broadcast(x, mean[(first + k) // group_size]), zero, zero
            whole = at + length - tail
            for i in range(at, whole, LANES):
                g = load(dy, i)
                s, q = add(s, g), fma(g, sub(load(x, i), shift), q)
            if tail > 0:
                g = load_first(dy, whole, tail)
                s, q = add(s, g), select(inside, fma(g, sub(load_first(x, whole, tail), shift), q), q)
            store(room, k * LANES, to_float64(s))
            store(room, ROOM + k * LANES, to_float64(q))
        store_first(sum_dy, first, totals(room, U(0)), number)
        store_first(sum_products, first, totals(room, U(ROOM)), number)


# ------------------------------------------------------------------------------------------------- results of rows
@kernel(allocates=False)
def _scale_shift_cells(
    x: Array, y: Array, gamma: Array, beta: Array, at: int, parameter_start: int, cells: int, mean: float,
    rstd: float, past_caches: bool,
) -> None:  # fmt: skip
    """y = (x - mean) * rstd * gamma + beta of a row with parameters for each cell."""
    shift, scale = broadcast(x, mean), broadcast(x, rstd)
    offset, whole = broadcast(x, (lane(shift, 0) - mean) * rstd), cells - cells % LANES
    for j in range(0, whole, LANES):
        xhat = fma(sub(load(x, at + j), shift), scale, offset)
        value = fma(xhat, load(gamma, parameter_start + j), load(beta, parameter_start + j))
        if past_caches:
            stream(y, at + j, value)
        else:
            store(y, at + j, value)
    if whole < cells:
        count, j = cells - whole, parameter_start + whole
        xhat = fma(sub(load_first(x, at + whole, count), shift), scale, offset)
        store_first(y, at + whole, fma(xhat, load_first(gamma, j, count), load_first(beta, j, count)), count)


@functools.cache
def make_forward(short: bool, centred: bool, per_cell: bool) -> Kernel:
    """The kernel that fills y and the statistics of blocks start to stop, each of `block` rows or, the last, fewer.

    short: rows have up to SHORT_ROW cells, in one sample. centred: False for RMS norm. per_cell: gamma and beta have a
    number for each cell of a row (of x's compute dtype), not of a channel; var and rstd may then be one array. Where
    the parameters end, they start again."""

    @kernel()
    def blocks_forward(
        x: Array, y: Array, gamma: Array, beta: Array, mean: Array, var: Array, rstd: Array, eps: float,
        samples: int, group_size: int, length: int, block: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        rows, size, past_caches = mean.size, group_size * length, stored_past_caches(y)
        if per_cell:
            past_caches = past_caches and size % LANES == 0
        if short:
            room = np.full(ROOMS, lane(broadcast(x, 0.0), 0))
        for u in range(start, stop):
            low, high = u * block, min((u + 1) * block, rows)
            if short:
                for r in range(low, high, LANES):
                    _short_row_moments(x, mean, var, room, size, r, min(r + LANES, high))
            else:
                for r in range(low, high):
                    if centred:
                        mean[r], var[r] = segment_moments(x, r * size, samples, rows * size, size)
                    else:
                        mean[r], var[r] = 0.0, sum_of_squares(x, r * size, size)
            _finish_variance(var, rstd, samples * size, eps, low, high)
            for r in range(low, high):
                if per_cell:
                    at = r * size
                    _scale_shift_cells(x, y, gamma, beta, at, at % gamma.size, size, mean[r], rstd[r], past_caches)
                else:
                    delta, channel = mean[r] - lane(broadcast(x, mean[r]), 0), r * group_size % gamma.size
                    for i in range(group_size):
                        first, scale = r * size + i * length, rstd[r] * gamma[channel + i]
                        offset = beta[channel + i] - delta * scale
                        scale_shift_segments(
                            x, y, first, samples, rows * size, length, mean[r], scale, offset, past_caches
                        )
        if past_caches:
            fence()

    return blocks_forward


@functools.cache
def make_backward(short: bool) -> Kernel:
    """The kernel that fills dx of blocks start to stop, and of each of their segments the sums of dy and of dy * xhat.

    short: segments have up to SHORT_ROW cells, and rows are in one sample."""

    @kernel()
    def blocks_backward(
        dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, sum_dy: Array, sum_dy_xhat: Array,
        samples: int, group_size: int, length: int, block: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        rows, size, past_caches = mean.size, group_size * length, stored_past_caches(dx)
        if short:
            room = np.zeros(ROOM + ROOM)
        for u in range(start, stop):
            low, high = u * block, min((u + 1) * block, rows)
            # At first sum_dy_xhat has the sums of dy * (x - shift).
            if short:
                first, last = low * group_size, high * group_size
                _short_gradient_sums(dy, x, mean, sum_dy, sum_dy_xhat, room, group_size, length, first, last)
            else:
                for s in range(low * group_size, high * group_size):
                    sum_dy[s], sum_dy_xhat[s] = segment_gradient_sums(
                        dy, x, s * length, samples, rows * size, length, mean[s // group_size]
                    )
            for r in range(low, high):
                delta, row_dy, row_dy_xhat = mean[r] - lane(broadcast(x, mean[r]), 0), 0.0, 0.0
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

    return blocks_backward
