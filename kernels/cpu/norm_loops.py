"""Loops of the norms whose rows, or whose channels of a sample, are contiguous in memory, on vectors.

A row is a statistics group. Arrays are flat, in C order. A *segment* is one channel of one sample: `length` contiguous
cells; segment n * channels + c is channel c of sample n. Large arrays have x's dtype, halves as bits (vectors.py).
Statistics and the parameters of channels are float64.

Sums over RUN_CELLS cells are in the dtype that x is computed in, lane by lane; the sums of these are in float64, in a
fixed order. Each run is summed twice, while it is in the first cache: for its mean, then for the squares about it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .past_caches import stored_past_caches
from .vectors import (
    LANES,
    add,
    broadcast,
    fence,
    first_lanes,
    fma,
    lane,
    load,
    load_first,
    mul,
    select,
    store,
    store_first,
    stream,
    sub,
    total,
)

Array = Any
Number = Any  # of the dtype that x is computed in, or float64
# Cells that are summed lane by lane: in float32, with 16 lanes, 64 in each of four accumulators; squares and gradients
# have two accumulators, with 128 each.
RUN_CELLS = 4096


# ------------------------------------------------------------------------------------- sums over segments of a row
# `segments` segments of `length` cells, `stride` cells apart, from cell `first` on. A run is a part of one segment, or
# some whole ones.
@kernel(allocates=False)
def segment_moments(x: Array, first: int, segments: int, stride: int, length: int) -> tuple[float, float]:
    """The mean of some segments, and the sum of squares about it (Chan, Golub and LeVeque 1979)."""
    mean, squares, cells, per_run, zero = 0.0, 0.0, 0.0, max(1, RUN_CELLS // length), broadcast(x, 0.0)
    for k in range(0, segments, per_run):
        for c in range(0, length, RUN_CELLS):
            start, part = first + k * stride + c, min(RUN_CELLS, length - c)
            end, n = start + min(per_run, segments - k) * stride, 1.0 * min(per_run, segments - k) * part
            # Cells are divided before they are added, because their sum may be too large.
            small, s0, s1, q0, q1 = broadcast(x, 1.0 / n), zero, zero, zero, zero
            for at in range(start, end, stride):
                i, stop = at, at + part
                while i + 2 * LANES <= stop:
                    s0, s1, i = fma(load(x, i), small, s0), fma(load(x, i + LANES), small, s1), i + 2 * LANES
                while i < stop:
                    s0, i = fma(load_first(x, i, min(LANES, stop - i)), small, s0), i + LANES
            shift = broadcast(x, total(add(s0, s1)))
            s0 = s1 = zero
            for at in range(start, end, stride):
                i, stop = at, at + part
                while i + 2 * LANES <= stop:
                    d0, d1 = sub(load(x, i), shift), sub(load(x, i + LANES), shift)
                    s0, s1, q0, q1 = add(s0, d0), add(s1, d1), fma(d0, d0, q0), fma(d1, d1, q1)
                    i += 2 * LANES
                while i < stop:
                    count = min(LANES, stop - i)
                    d0 = select(first_lanes(count), sub(load_first(x, i, count), shift), zero)
                    s0, q0, i = add(s0, d0), fma(d0, d0, q0), i + LANES
            rest, run_squares, run_mean = total(add(s0, s1)), total(add(q0, q1)), 1.0 * lane(shift, 0)
            if rest - rest == 0.0:  # finite
                run_squares -= rest * rest / n
                run_mean += rest / n
            distance = run_mean - mean if cells > 0.0 else 0.0
            squares += run_squares + distance * distance * cells * n / (cells + n)
            mean = (mean * cells + run_mean * n) / (cells + n)
            cells += n
    return mean, 0.0 if squares < 0.0 else squares


@kernel(allocates=False)
def sum_of_squares(x: Array, first: int, length: int) -> float:
    """The sum of x**2 over some contiguous cells."""
    squares = 0.0
    for run in range(first, first + length, RUN_CELLS):
        i, stop, q0, q1 = run, min(run + RUN_CELLS, first + length), broadcast(x, 0.0), broadcast(x, 0.0)
        while i + 2 * LANES <= stop:
            x0, x1 = load(x, i), load(x, i + LANES)
            q0, q1, i = fma(x0, x0, q0), fma(x1, x1, q1), i + 2 * LANES
        while i < stop:
            x0 = load_first(x, i, min(LANES, stop - i))
            q0, i = fma(x0, x0, q0), i + LANES
        squares += total(add(q0, q1))
    return squares


@kernel(allocates=False)
def segment_gradient_sums(
    dy: Array, x: Array, first: int, segments: int, stride: int, length: int, shift: Number
) -> tuple[float, float]:
    """The sums of dy and of dy * (x - shift) over some segments."""
    sum_dy, sum_products, shifts, per_run = 0.0, 0.0, broadcast(x, shift), max(1, RUN_CELLS // length)
    for k in range(0, segments, per_run):
        for start in range(0, length, RUN_CELLS):
            s0 = s1 = q0 = q1 = broadcast(x, 0.0)
            for segment in range(k, min(k + per_run, segments)):
                i = first + segment * stride + start
                stop = i + min(RUN_CELLS, length - start)
                while i + 2 * LANES <= stop:
                    g0, g1 = load(dy, i), load(dy, i + LANES)
                    s0, s1 = add(s0, g0), add(s1, g1)
                    q0 = fma(g0, sub(load(x, i), shifts), q0)
                    q1 = fma(g1, sub(load(x, i + LANES), shifts), q1)
                    i += 2 * LANES
                while i < stop:
                    count = min(LANES, stop - i)
                    g0 = load_first(dy, i, count)
                    products = fma(g0, sub(load_first(x, i, count), shifts), q0)
                    s0, q0 = add(s0, g0), select(first_lanes(count), products, q0)
                    i += LANES
            sum_dy += total(add(s0, s1))
            sum_products += total(add(q0, q1))
    return sum_dy, sum_products


# ------------------------------------------------------------------------------------------- results of segments
# Past the caches only whole cache lines are stored; the cells before the first and after the last take the caches.
@kernel(allocates=False)
def scale_shift_segments(
    x: Array, y: Array, first: int, segments: int, stride: int, length: int,
    shift: Number, scale: Number, offset: Number, past_caches: bool,
) -> None:  # fmt: skip
    """y = (x - shift) * scale + offset."""
    shifts, scales, offsets = broadcast(x, shift), broadcast(x, scale), broadcast(x, offset)
    for start in range(first, first + segments * stride, stride):
        stop = start + length
        line = min(stop, start + -start % LANES) if past_caches else start
        whole = stop - (stop - line) % LANES
        for i in range(line, whole, LANES):
            value = fma(sub(load(x, i), shifts), scales, offsets)
            if past_caches:
                stream(y, i, value)
            else:
                store(y, i, value)
        for at, count in ((start, line - start), (whole, stop - whole)):
            if count > 0:
                store_first(y, at, fma(sub(load_first(x, at, count), shifts), scales, offsets), count)


@kernel(allocates=False)
def input_gradient_segments(
    dy: Array, x: Array, dx: Array, first: int, segments: int, stride: int, length: int,
    shift: Number, gamma: Number, x_factor: Number, constant: Number, rstd: Number, past_caches: bool,
) -> None:  # fmt: skip
    # Not multiplied out: rstd**3 may overflow float32 although no term of dx does.
    """dx = (dy * gamma - (x - shift) * x_factor - constant) * rstd."""
    shifts, gammas, scales = broadcast(x, shift), broadcast(x, gamma), broadcast(x, rstd)
    x_factors, constants = broadcast(x, -x_factor), broadcast(x, -constant)
    for start in range(first, first + segments * stride, stride):
        stop = start + length
        line = min(stop, start + -start % LANES) if past_caches else start
        whole = stop - (stop - line) % LANES
        for i in range(line, whole, LANES):
            rest = fma(sub(load(x, i), shifts), x_factors, constants)
            value = mul(fma(load(dy, i), gammas, rest), scales)
            if past_caches:
                stream(dx, i, value)
            else:
                store(dx, i, value)
        for at, count in ((start, line - start), (whole, stop - whole)):
            if count > 0:
                rest = fma(sub(load_first(x, at, count), shifts), x_factors, constants)
                store_first(dx, at, mul(fma(load_first(dy, at, count), gammas, rest), scales), count)


# ----------------------------------------------------------------------------------------------- pieces of segments
@kernel(allocates=False)
def piece_bounds(piece: int, length: int, pieces: int) -> tuple[int, int, int]:
    """The segment that a piece belongs to, its first cell, and the cell after its last. Segments have `pieces` each."""
    segment, part = piece // pieces, piece % pieces
    first = segment * length
    return segment, first + length * part // pieces, first + length * (part + 1) // pieces


@kernel(allocates=False)
def moments(x: Array, mean: Array, squares: Array, length: int, pieces: int, start: int, stop: int) -> None:
    """The mean of each piece from start to stop, and the sum of squares about it."""
    for u in range(start, stop):
        _, first, end = piece_bounds(u, length, pieces)
        mean[u], squares[u] = segment_moments(x, first, 1, length, end - first)


@kernel(allocates=False)
def gradient_sums(
    dy: Array, x: Array, shift: Array, sum_dy: Array, sum_dy_shifted: Array, length: int, pieces: int, start: int,
    stop: int,
) -> None:  # fmt: skip
    """The sums of dy and of dy * (x - shift) of pieces start to stop. `shift` has a number for each segment; where it
    ends, the loop starts again from its first."""
    for u in range(start, stop):
        segment, first, end = piece_bounds(u, length, pieces)
        sum_dy[u], sum_dy_shifted[u] = segment_gradient_sums(
            dy, x, first, 1, length, end - first, shift[segment % shift.size]
        )


@kernel(allocates=False)
def scale_shift(
    x: Array, y: Array, shift: Array, scale: Array, offset: Array, length: int, pieces: int, start: int, stop: int
) -> None:
    """y = (x - shift) * scale + offset for pieces start to stop; the factors as in `gradient_sums`."""
    past_caches = stored_past_caches(y)
    for u in range(start, stop):
        segment, first, end = piece_bounds(u, length, pieces)
        c = segment % shift.size
        scale_shift_segments(x, y, first, 1, length, end - first, shift[c], scale[c], offset[c], past_caches)
    if past_caches:
        fence()


@kernel(allocates=False)
def input_gradient(
    dy: Array, x: Array, dx: Array, shift: Array, gamma: Array, x_factor: Array, constant: Array, rstd: Array,
    length: int, pieces: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dx = (dy * gamma - (x - shift) * x_factor - constant) * rstd for pieces start to stop, as `scale_shift`."""
    past_caches = stored_past_caches(dx)
    for u in range(start, stop):
        segment, first, end = piece_bounds(u, length, pieces)
        c = segment % shift.size
        input_gradient_segments(
            dy, x, dx, first, 1, length, end - first, shift[c], gamma[c], x_factor[c], constant[c], rstd[c], past_caches
        )
    if past_caches:
        fence()


@kernel(allocates=False)
def update_running(running: Array, batch: Array, momentum: float, factor: float) -> None:
    """running = (1 - momentum) * running + momentum * (batch * factor), in float64."""
    for i in range(running.size):
        running[i] = (1.0 - momentum) * np.float64(running[i]) + momentum * (batch[i] * factor)
