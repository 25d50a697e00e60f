"""Loops of the norms over channels where channels are last in memory, or where there is no spatial axis, on vectors of
columns.

Arrays are flat, in C order: each sample has `lines` lines of contiguous cells, with the axes (fold, groups, channels of
a group, inner). `fold` lines of few cells are joined to one. `inner` is 1 with channels last; else all cells of a
channel. A column is a cell of a line. The lines of a sample are cut into `pieces`; piece u is number u % pieces
of sample u // pieces. Sums have a number for each piece and column, in this order. Large arrays have x's dtype, halves
as bits.

Sums over RUN_LINES lines are in the dtype that x is computed in; the sums of these are in float64. Moments are about
`shift`, the mean of a piece's first lines, so that a large mean costs no digits."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import write
from .past_caches import stored_past_caches
from .vector_ends import read
from .vectors import LANES, add, broadcast, fence, fma, lane, mul, store, sub, to_float64

Array = Any
Kernel = Any
Vector = Any
RUN_LINES = 64  # lines that are summed in the dtype that x is computed in
SHIFT_LINES = 16  # the first lines of a piece, whose mean is the shift of its moments
LINES_AT_ONCE = 8  # a column's sums, or its factors, stay in registers for 8 lines


@kernel()
def _zeros(x: Array, number: int) -> Array:
    """Zeros of the dtype that x is computed in."""
    return np.full(number, lane(broadcast(x, 0.0), 0))


@kernel(allocates=False)
def _piece(piece: int, lines: int, pieces: int) -> tuple[int, int, int]:
    """The sample of a piece, its first line and the line after its last, counted over all samples."""
    sample, part = piece // pieces, piece % pieces
    return sample, sample * lines + lines * part // pieces, sample * lines + lines * (part + 1) // pieces


# ---------------------------------------------------------------------------------------------------------------- sums
@kernel(allocates=False)
def _store_means(x: Array, mean: Array, first: int, last: int) -> None:
    """Store the means of the columns over lines first to last. Cells are divided first: their sum may be too large."""
    width, small = mean.size, broadcast(x, 1.0 / (last - first))
    for c in range(0, width, LANES):
        s, count = broadcast(x, 0.0), width - c
        for i in range(first, last):
            s = fma(read(x, i * width + c, count), small, s)
        write(mean, c, s, count, False)


@kernel(allocates=False)
def _flush(source: Array, target: Array, start: int) -> None:
    """Add the source to the target, from `start` on, and set the source to 0."""
    for c in range(0, source.size, LANES):
        count = source.size - c
        write(target, start + c, add(read(target, start + c, count), to_float64(read(source, c, count))), count, False)
        write(source, c, broadcast(source, 0.0), count, False)


@functools.cache
def _make_add_sums(backward: bool) -> Kernel:
    """The kernel that adds the sums of g and of g * (x - shift) over lines first to last to those of a piece, which
    begin at `to`. g: dy backward, else x - shift. s and q: zeros before and after."""

    @kernel(allocates=False)
    def add_sums(
        dy: Array, x: Array, shift: Array, s: Array, q: Array, sums: Array, products: Array, to: int, first: int,
        last: int,
    ) -> None:  # fmt: skip
        width = shift.size
        for run in range(first, last, RUN_LINES):
            end = min(run + RUN_LINES, last)
            for block in range(run, end, LINES_AT_ONCE):
                for c in range(0, width, LANES):
                    count = width - c
                    shifts, total, total_products = read(shift, c, count), read(s, c, count), read(q, c, count)
                    for i in range(block, min(block + LINES_AT_ONCE, end)):
                        d = sub(read(x, i * width + c, count), shifts)
                        g = read(dy, i * width + c, count) if backward else d
                        total, total_products = add(total, g), fma(g, d, total_products)
                    write(s, c, total, count, False)
                    write(q, c, total_products, count, False)
            _flush(s, sums, to)
            _flush(q, products, to)

    return add_sums


_add_moments, _add_gradient_sums = _make_add_sums(False), _make_add_sums(True)


@kernel()
def moments(
    x: Array, mean: Array, squares: Array, lines: int, pieces: int, fold: int, groups: int, group_size: int,
    inner: int, start: int, stop: int,
) -> None:  # fmt: skip
    """The means of the columns of pieces start to stop, and the sums of squares about them. Both must be 0 before."""
    width = fold * groups * group_size * inner
    shift, s, q = _zeros(x, width), _zeros(x, width), _zeros(x, width)
    for u in range(start, stop):
        _, first, last = _piece(u, lines, pieces)
        _store_means(x, shift, first, min(first + SHIFT_LINES, last))
        _add_moments(x, x, shift, s, q, mean, squares, u * width, first, last)
        overflows = 0.0
        for c in range(width):
            at, delta = u * width + c, mean[u * width + c] / (last - first)
            mean[at] = shift[c] + delta
            about_mean = squares[at] - (last - first) * delta * delta
            squares[at] = 0.0 if about_mean < 0.0 else about_mean
            overflows += delta - delta
        if overflows != 0.0:  # finite values may be too large to be added up; their squares overflow
            _store_means(x, shift, first, last)
            for c in range(width):
                at = u * width + c
                if mean[at] - mean[at] != 0.0 and shift[c] - shift[c] == 0.0:
                    mean[at], squares[at] = shift[c], np.inf


@kernel()
def gradient_sums(
    dy: Array, x: Array, gamma: Array, mean: Array, sum_dy: Array, sum_products: Array,
    lines: int, pieces: int, fold: int, groups: int, group_size: int, inner: int, start: int, stop: int,
) -> None:  # fmt: skip
    """The sums of dy and of dy * (x - shift) over the columns of pieces start to stop. Both must be 0 before. shift:
    the mean as x's lanes round it."""
    width = fold * groups * group_size * inner
    shift, s, q, of_sample = _zeros(x, width), _zeros(x, width), _zeros(x, width), -1
    for u in range(start, stop):
        sample, first, last = _piece(u, lines, pieces)
        if sample != of_sample:
            of_sample, c = sample, 0
            for channel in range(fold * groups * group_size):
                for _ in range(inner):
                    shift[c] = mean[sample * groups + channel // group_size % groups]
                    c += 1
        _add_gradient_sums(dy, x, shift, s, q, sum_dy, sum_products, u * width, first, last)


# ------------------------------------------------------------------------------------------------------------- results
@functools.cache
def make_results(backward: bool) -> Kernel:
    """The kernel that fills y of pieces start to stop, or backward dx:

        y = (x - mean) * rstd * gamma + addend
        dx = (dy * gamma - (x - shift) * x_factor - addend) * rstd

    addend: beta; backward `constant` of norm_blocks.combine_gradient_sums, which has a number for each row, as x_factor
    has. What forward does not use may be any array."""

    @kernel()
    def results(
        dy: Array, x: Array, y: Array, gamma: Array, addend: Array, x_factor: Array, mean: Array, rstd: Array,
        lines: int, pieces: int, fold: int, groups: int, group_size: int, inner: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        width = fold * groups * group_size * inner
        past_caches = stored_past_caches(y) and width % LANES == 0
        room, of_sample = width + LANES, -1
        shift, scale, offset = _zeros(x, room), _zeros(x, room), _zeros(x, room)
        if backward:
            weight, x_slope = _zeros(x, room), _zeros(x, room)
        for u in range(start, stop):
            sample, first, last = _piece(u, lines, pieces)
            if sample != of_sample:
                of_sample, c = sample, 0
                for group in range(fold * groups):
                    r, k = sample * groups + group % groups, group % groups * group_size
                    center = broadcast(x, mean[r])
                    beyond = mean[r] - lane(center, 0)
                    for channel in range(k, k + group_size):
                        if backward:
                            scales, offsets = broadcast(x, rstd[r]), broadcast(x, -addend[r])
                            weights, x_slopes = broadcast(x, gamma[channel]), broadcast(x, -x_factor[r])
                        else:
                            factor = rstd[r] * gamma[channel]
                            scales, offsets = broadcast(x, factor), broadcast(x, addend[channel] - beyond * factor)
                        for i in range(c, c + inner, LANES):  # the next channel overwrites what is beyond
                            store(shift, i, center)
                            store(scale, i, scales)
                            store(offset, i, offsets)
                            if backward:
                                store(weight, i, weights)
                                store(x_slope, i, x_slopes)
                        c += inner
            for block in range(first, last, LINES_AT_ONCE):
                for c in range(0, width, LANES):
                    count = width - c
                    shifts, scales, offsets = read(shift, c, count), read(scale, c, count), read(offset, c, count)
                    if backward:
                        weights, x_slopes = read(weight, c, count), read(x_slope, c, count)
                    for line in range(block, min(block + LINES_AT_ONCE, last)):
                        at = line * width + c
                        d = sub(read(x, at, count), shifts)
                        if backward:
                            value = mul(fma(read(dy, at, count), weights, fma(d, x_slopes, offsets)), scales)
                        else:
                            value = fma(d, scales, offsets)
                        write(y, at, value, count, past_caches)
        if past_caches:
            fence()

    return results
