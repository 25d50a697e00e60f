"""Loops of the norms whose rows, or whose channels of a sample, are contiguous in memory, on vectors of cells.

A row is a statistics group. Arrays are flat, in C order. A *segment* has `length` contiguous cells in each of
`samples` samples: it is one channel of one sample, or of all samples. Segment n belongs to row n // group_size, and
where the rows end, they start again. It is cut into `parts`; part u is number u % parts of segment u // parts. Large
arrays have x's dtype, halves as bits (vectors.py). Statistics are float64.

Sums over RUN_CELLS cells are in the dtype that x is computed in, lane by lane; the sums of these are in float64, in a
fixed order. The lanes of up to 16 short segments are added together (row_sums.py), in a third of the time."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .jit import kernel
from .past_caches import stored_past_caches
from .row_sums import ROOM, SHORT_ROW, totals
from .vectors import (
    LANES,
    add,
    as_lanes_of,
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
    total,
)

Array = Any
Kernel = Any
Vector = Any
U = np.uintp
# Cells that are summed lane by lane: in float32, with 16 lanes and two accumulators, 128 in each.
RUN_CELLS = 4096
# A row's first run is summed about the mean of so many of its cells, a later one about the mean of the runs before it.
# Where that is far from the run's own mean, the distance is a large part of the row's variance, so few digits are lost.
# To find each run's mean first took 1.4 to 1.7 times as long for rows of 4096 cells and more.
SHIFT_CELLS = 128


@kernel(allocates=False)
def _part(u: int, length: int, parts: int) -> tuple[int, int, int]:
    """The segment of a part, its first cell, and the number of its cells in a sample."""
    if parts == 1:
        return u, u * length, length
    segment, low = u // parts, length * (u % parts) // parts
    return segment, segment * length + low, length * (u % parts + 1) // parts - low


@kernel(inlined=True)
def write(y: Array, i: int, value: Vector, count: int, past_caches: bool) -> None:
    """Store the first `count` lanes from cell i on, a whole vector past the caches, if it starts at a cache line."""
    if count < LANES:
        store_first(y, i, value, count)
    elif past_caches:
        stream(y, i, value)
    else:
        store(y, i, value)


@kernel(inlined=True)
def _modulo(i: int, n: int) -> int:
    """i % n, without a division where i is less."""
    return i if i < n else i % n


@kernel(inlined=True)
def _to_parameters(begin: int, length: int, gamma: Array) -> int:
    """What is added to a cell's number to get that of its parameter, in a segment from cell `begin` on; without
    a division where a row has all parameters."""
    return (0 if gamma.size == length else begin % gamma.size) - begin


# ---------------------------------------------------------------------------------------------------------------- sums
@functools.cache
def _make_lane_sums(backward: bool, per_cell: bool) -> Kernel:
    """The kernel for the sums of g * weight and of g * (x - shift), lane by lane, over `length` cells in each of some
    samples, from cell `start` on. g: x - shift; backward dy, times a parameter for each cell where there is one: that
    of cell i is at `parameter` + i. Vectors are added to two sums in turn."""

    @kernel(inlined=True, allocates=False)
    def lane_sums(
        dy: Array, x: Array, gamma: Array, shift: Vector, weight: Vector, start: int, samples: int, stride: int,
        length: int, parameter: int,
    ) -> tuple[Vector, Vector]:  # fmt: skip
        s = t = q = p = zero = broadcast(x, 0.0)
        for sample in range(samples):
            i, end = start + sample * stride, start + sample * stride + length
            while i + LANES <= end:
                d = sub(load(x, i), shift)
                g = load(dy, i) if backward else d
                if per_cell:
                    g = mul(g, load(gamma, parameter + i))
                s, t, q, p, i = t, fma(g, weight, s), p, fma(g, d, q), i + LANES
            if i < end:
                count = end - i
                d = select(first_lanes(count), sub(load_first(x, i, count), shift), zero)
                g = load_first(dy, i, count) if backward else d
                if per_cell:
                    g = mul(g, load_first(gamma, parameter + i, count))
                s, q = fma(g, weight, s), fma(g, d, q)
        return add(s, t), add(q, p)

    return lane_sums


@functools.cache
def make_moments(centred: bool) -> Kernel:
    """The kernel for the mean of each part from `start` to `stop`, and the sum of squares about it (Chan, Golub and
    LeVeque 1979); not centred: 0, and the sum of squares."""
    lane_sums = _make_lane_sums(False, False)

    @kernel()
    def moments_of_parts(
        x: Array, mean: Array, squares: Array, samples: int, length: int, parts: int, start: int, stop: int
    ) -> None:
        room = np.full(2 * ROOM + LANES, lane(broadcast(x, 0.0), 0))  # the means are last
        stride, together = x.size // samples, LANES if parts == 1 and samples * length <= SHORT_ROW else 1
        none, zero, one = broadcast(mean, 0.0), broadcast(x, 0.0), broadcast(x, 1.0)
        for u in range(start, stop, together):
            number, means, sums, cells = min(together, stop - u), none, none, 0.0
            _, first, width = _part(u, length, parts)
            per_run = max(1, RUN_CELLS // width)
            for k in range(0, samples, per_run):
                for c in range(0, width, RUN_CELLS):
                    begin, run, cut = first + k * stride + c, min(per_run, samples - k), min(RUN_CELLS, width - c)
                    of_shift = 0 if cells > 0.0 else SHIFT_CELLS
                    while True:
                        if centred and of_shift == 0:
                            store(room, 2 * ROOM, as_lanes_of(room, means))
                        elif centred:
                            head, few = min(cut, of_shift), min(run, max(1, of_shift // cut))
                            small = broadcast(x, 1.0 / (few * head))  # the sum of the cells may be too large
                            for v in range(number):
                                s, _ = lane_sums(x, x, x, zero, small, begin + v * length, few, stride, head, 0)
                                store(room, v * LANES, s)
                            store(room, 2 * ROOM, totals(room, U(0)))
                        for v in range(number):
                            shift = broadcast(x, room[2 * ROOM + v])
                            s, q = lane_sums(x, x, x, shift, one, begin + v * length, run, stride, cut, 0)
                            store(room, v * LANES, s)
                            store(room, ROOM + v * LANES, q)
                        about_mean = to_float64(totals(room, U(ROOM)))
                        if not centred or of_shift >= run * cut or total(sub(about_mean, about_mean)) == 0.0:
                            break
                        of_shift = run * cut  # an infinity, or cells too far from the shift: about the run's own mean
                    if centred:
                        n, rest = 1.0 * run * cut, to_float64(totals(room, U(0)))
                        rest = select(equal(sub(rest, rest), none), rest, none)  # where it is finite
                        beyond = div(rest, broadcast(mean, n))
                        about_mean = maximum(none, sub(about_mean, mul(rest, beyond)))
                        distance = sub(add(to_float64(load(room, 2 * ROOM)), beyond), means)
                        if cells > 0.0:
                            sums = fma(mul(distance, distance), broadcast(mean, cells * n / (cells + n)), sums)
                        means = fma(distance, broadcast(mean, n / (cells + n)), means)
                        cells += n
                    sums = add(sums, about_mean)
            store_first(mean, u, means, number)
            store_first(squares, u, sums, number)

    return moments_of_parts


@functools.cache
def make_gradient_sums(per_cell: bool) -> Kernel:
    """The kernel for the sums of dy and of dy * (x - shift) of each part from `start` to `stop`; per_cell: of
    dy * gamma. shift: the mean as x's lanes round it."""
    lane_sums = _make_lane_sums(True, per_cell)

    @kernel()
    def gradient_sums_of_parts(
        dy: Array, x: Array, gamma: Array, mean: Array, sum_dy: Array, sum_products: Array,
        group_size: int, samples: int, length: int, parts: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        none, one = broadcast(mean, 0.0), broadcast(x, 1.0)
        room = np.full(2 * ROOM, lane(one, 0))
        stride, together = x.size // samples, LANES if parts == 1 and samples * length <= SHORT_ROW else 1
        for u in range(start, stop, together):
            number, sums, products = min(together, stop - u), none, none
            segment, first, width = _part(u, length, parts)
            per_run = max(1, RUN_CELLS // width)
            for k in range(0, samples, per_run):
                for c in range(0, width, RUN_CELLS):
                    run, cut = min(per_run, samples - k), min(RUN_CELLS, width - c)
                    for v in range(number):
                        row, begin = segment + v, first + v * length
                        row = _modulo(row if group_size == 1 else row // group_size, mean.size)
                        shift, parameter = broadcast(x, mean[row]), _to_parameters(begin, length, gamma)
                        at = begin + k * stride + c
                        s, q = lane_sums(dy, x, gamma, shift, one, at, run, stride, cut, parameter)
                        store(room, v * LANES, s)
                        store(room, ROOM + v * LANES, q)
                    sums = add(sums, to_float64(totals(room, U(0))))
                    products = add(products, to_float64(totals(room, U(ROOM))))
            store_first(sum_dy, u, sums, number)
            store_first(sum_products, u, products, number)

    return gradient_sums_of_parts


moments, gradient_sums = make_moments(True), make_gradient_sums(False)


@kernel(allocates=False)
def finish_variance(var: Array, rstd: Array, n: float, eps: float, low: int, high: int) -> None:
    """The variance and rstd of rows low to high; `var` has sums of squares before. Both may be one array."""
    one, count, epsilon = broadcast(var, 1.0), broadcast(var, n), broadcast(var, eps)
    for r in range(low, high, LANES):
        lanes = min(LANES, high - r)
        variance = div(load_first(var, r, lanes), count)
        store_first(var, r, variance, lanes)
        store_first(rstd, r, div(one, square_root(add(variance, epsilon))), lanes)


# ------------------------------------------------------------------------------------------------------------- results
@functools.cache
def make_results(backward: bool, per_cell: bool = False) -> Kernel:
    """The kernel that fills y of parts start to stop, or backward dx:

        y = (x - mean) * rstd * gamma + addend
        dx = (dy * gamma - (x - shift) * x_factor - addend) * rstd

    shift: the mean as x's lanes round it. addend: beta; backward `constant` of norm_blocks.combine_gradient_sums, which
    has a number for each row, as x_factor has. What forward does not use may be any array. per_cell: gamma and beta
    have a number for each cell, in the dtype that x is computed in; where they end, they start again. Past the caches
    only whole cache lines are stored."""

    @kernel(allocates=False)
    def results(
        dy: Array, x: Array, y: Array, gamma: Array, addend: Array, x_factor: Array, mean: Array, rstd: Array,
        group_size: int, samples: int, length: int, parts: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        past_caches, stride = stored_past_caches(y), x.size // samples
        for u in range(start, stop):
            segment, begin, width = _part(u, length, parts)
            r = _modulo(segment if group_size == 1 else segment // group_size, mean.size)
            channel = _modulo(segment, gamma.size)
            parameter = _to_parameters(begin, length, gamma)
            shifts, scale = broadcast(x, mean[r]), rstd[r]
            offset = (lane(shifts, 0) - mean[r]) * scale
            if backward:
                weights, x_slopes, offset = broadcast(x, gamma[channel]), broadcast(x, -x_factor[r]), -addend[r]
            elif not per_cell:
                scale, offset = scale * gamma[channel], addend[channel] + offset * gamma[channel]
            scales, offsets = broadcast(x, scale), broadcast(x, offset)
            for sample in range(samples):
                i, end = begin + sample * stride, begin + sample * stride + width
                head = -i % LANES if past_caches else 0  # cells before the first whole cache line
                while i < end:
                    while head == 0 and i + LANES <= end:
                        d = sub(load(x, i), shifts)
                        if backward:  # not multiplied out: rstd**3 may overflow although no term of dx does
                            value = mul(fma(load(dy, i), weights, fma(d, x_slopes, offsets)), scales)
                        else:
                            value = fma(d, scales, offsets)
                        if per_cell:
                            value = fma(value, load(gamma, parameter + i), load(addend, parameter + i))
                        if past_caches:
                            stream(y, i, value)
                        else:
                            store(y, i, value)
                        i += LANES
                    count = min(head, end - i) if head > 0 else end - i
                    if count > 0:
                        d = sub(load_first(x, i, count), shifts)
                        if backward:
                            value = mul(fma(load_first(dy, i, count), weights, fma(d, x_slopes, offsets)), scales)
                        else:
                            value = fma(d, scales, offsets)
                        if per_cell:
                            at = parameter + i
                            value = fma(value, load_first(gamma, at, count), load_first(addend, at, count))
                        store_first(y, i, value, count)
                    i, head = i + count, 0
        if past_caches:
            fence()

    return results


@kernel(allocates=False)
def of_running(running_mean: Array, running_var: Array, eps: float, mean: Array, rstd: Array) -> None:
    """The running mean and rstd in float64."""
    for i in range(mean.size):
        mean[i], rstd[i] = running_mean[i], 1.0 / math.sqrt(np.float64(running_var[i]) + eps)


@kernel(allocates=False)
def update_running(
    running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: float, factor: float
) -> None:
    """running = (1 - momentum) * running + momentum * batch, in float64, the batch's variance times `factor`."""
    for i in range(mean.size):
        running_mean[i] = (1.0 - momentum) * np.float64(running_mean[i]) + momentum * mean[i]
        running_var[i] = (1.0 - momentum) * np.float64(running_var[i]) + momentum * (var[i] * factor)
