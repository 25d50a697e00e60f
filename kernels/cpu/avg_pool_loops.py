"""The loops of average, sum and lp pooling, forward and backward, over rows of y from `start` to `stop`.

A row of y is summed in two steps: first the rows of x under it, cell by cell, as a *line*, then the cells along the
line. Backward is the same with x = dy and y = dx: each cell of dx sums the windows over it. For depth, height and each
row of y, `ranges` has the first row of x in its sum and the number of rows; `steps` has the distance from one to the
next. Sums have the dtype of `total`.

Arrays are flat: (planes, depth, height, elements of a row), half types as their bits (vectors.py). `sizes`: the first
three axes of x, then of y. `divisors`: of depth, height and the elements of a row, each one number for all windows or a
number for each (for a row with ones to spare). Backward divides dy before it sums."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .lp_pool_loops import make_power, make_root
from .past_caches import copy_past_caches, stored_past_caches
from .row_sums import SHORT_ROW, lane_sums
from .vector_ends import store_until
from .vectors import (
    LANES,
    add,
    as_lanes_of,
    broadcast,
    div,
    evens,
    fence,
    interleave_high,
    interleave_low,
    lane,
    load,
    load_first,
    mul,
    store,
    store_first,
    stream,
    total,
)

Array = Any
Kernel = Any
Vector = Any
U = np.uintp
FEW_CELLS = 128  # of fewer, the lanes of a plane have one sum: averages of 7x7 then take half of the time


@kernel(inlined=True)
def _rows_under(
    row_at: Array, row_divisors: Array, plane: int, d: int, h: int, sizes: Any, ranges: Any, steps: Any, divisors: Any
) -> Any:
    """The number of rows of x under a row of y. Stores where each begins, and its divisor, unless `row_divisors` is
    empty."""
    rows = U(0)
    for i in range(ranges[0][1, d]):
        x_d = ranges[0][0, d] + i * steps[0]
        for j in range(ranges[1][1, h]):
            x_h = ranges[1][0, h] + j * steps[1]
            row_at[rows] = ((plane * sizes[0] + x_d) * sizes[1] + x_h) * sizes[2]
            if row_divisors.size > 0:
                row_divisors[rows] = divisors[0][x_d % divisors[0].size] * divisors[1][x_h % divisors[1].size]
            rows += U(1)
    return rows


@functools.cache
def make_sums(form: str, unrolled_taps: int, backward: bool, power: str = "") -> Kernel:
    """The kernel for the sums of windows, of x or of its powers (lp_pool_loops.py).

    Lines are `size` long, with zeros before element `before`, and after the row of x. `together` rows of y have their
    lines one after another, because what has just been stored cannot be loaded at another place until it is in the
    cache. Level k + 1 of the lines, `level` elements on, has the sums of two numbers of level k, 2**k * `step` apart.

    A sum is of the numbers at some of the `offsets` from a place of a line on; those of kind k are from bounds[k] on.
    The form says how 16 results come from sums of neighbours. "blocks": as they are. `blocks` has the place in a row of
    y, in a line, and the kind. "evens": every second one of 32. "pairs": alternately of kind 0 and 1. "picks": of all
    places and kinds, `picks` has that of each result; without levels, the sums of a kind begin with those of the kind
    before. Rows of y with the same sum have one line.

    unrolled_taps: the number of `offsets` of every kind, if they are at most 3 and have no loop; else 0."""
    raised, root = make_power("" if backward else power), make_root("" if backward else power)

    @kernel(inlined=True)
    def power_of_cells(lines: Array, x: Array, at: Any, count: Any, divisor: Any, exponent: float) -> Vector:
        value = as_lanes_of(lines, load(x, at) if count >= LANES else load_first(x, at, count))
        return raised(div(value, broadcast(lines, divisor)) if backward and divisor != 1 else value, lines, exponent)

    @kernel(inlined=True)
    def sum_rows(
        lines: Array, to: Any, x: Array, row_at: Array, divisors: Array, rows: Any, c: Any, count: Any, exponent: float
    ) -> None:
        a = b = broadcast(lines, 0)
        for k in range(rows):
            at, divisor = U(row_at[k]) + c, divisors[k] if backward and divisors.size > 0 else lines.dtype.type(1)
            a = add(a, power_of_cells(lines, x, at, count, divisor, exponent))
            b = add(b, power_of_cells(lines, x, at + U(LANES), count - LANES, divisor, exponent))
        store(lines, to + c, a)
        store(lines, to + c + U(LANES), b)

    @kernel(inlined=True)
    def sum_taps(lines: Array, offsets: Array, at: Any, first: Any, last: Any, acc: Vector) -> Vector:
        if unrolled_taps == 0:
            for t in range(U(first), U(last)):
                acc = add(acc, load(lines, at + U(offsets[t])))
        else:
            acc = load(lines, at + U(offsets[U(first)]))
            if unrolled_taps > 1:
                acc = add(acc, load(lines, at + U(offsets[U(first) + U(1)])))
            if unrolled_taps > 2:
                acc = add(acc, load(lines, at + U(offsets[U(first) + U(2)])))
        return acc

    @kernel(inlined=True)
    def divided(lines: Array, acc: Vector, divisor: Any, of_row: Array, o: Any, exponent: float) -> Vector:
        if not backward:
            if of_row.size > 1:
                acc = div(acc, mul(broadcast(lines, divisor), load(of_row, o)))
            elif divisor != lines.dtype.type(1):
                acc = div(acc, broadcast(lines, divisor))
        return root(acc, lines, exponent)

    @kernel(allocates=False)  # so that no references are counted in its loops
    def sum_windows(
        x: Array, y: Array, buffers: Any, past_caches: bool, sizes: Any, ranges: Any, steps: Any, divisors: Any,
        exponent: float, tables: Any, layout: Any, start: int, stop: int,
    ) -> None:  # fmt: skip
        lines, divisor_of, row_divisors, row_at, line_of, target = buffers
        offsets, bounds, blocks, picks = tables
        row, out_d, out_h, out_row, heights, of_row = U(sizes[2]), sizes[3], sizes[4], sizes[5], ranges[1], divisors[2]
        before, size, together, level, levels, step, _ = layout
        one, zero = lines.dtype.type(1), broadcast(lines, 0)
        varies_d, varies_h = divisors[0].size > 1, divisors[1].size > 1
        kinds, sums = bounds.size - 1, (levels + 1) * level
        h, d, plane = start % out_h - 1, start // out_h % out_d, start // (out_d * out_h)
        first = start
        while first < stop:
            number, used = min(together, stop - first), 0
            if backward:
                repeats = heights[2, (first + number) % out_h]
                number -= repeats if repeats < number else 0
            for i in range(number):
                h += 1
                if h == out_h:
                    h, d = 0, d + 1
                    if d == out_d:
                        d, plane = 0, plane + 1
                if not backward:
                    divisor_of[i] = (
                        divisors[0][d * varies_d] * divisors[1][h * varies_h] * (one if of_row.size > 1 else of_row[0])
                    )
                if backward and heights[2, h] > 0 and first + i > start:  # the line before, or the only one before
                    used = max(used, 1)
                    line_of[i] = used - 1
                    continue
                line_of[i], line = used, U(used * size + before)
                used += 1
                rows = _rows_under(row_at, row_divisors, plane, d, h, sizes, ranges, steps, divisors)
                for c in range(U(0), row, U(2 * LANES)):
                    if c + U(2 * LANES) <= row:
                        sum_rows(lines, line, x, row_at, row_divisors, rows, c, 2 * LANES, exponent)
                    else:
                        sum_rows(lines, line, x, row_at, row_divisors, rows, c, np.int64(row - c), exponent)
                if backward and (of_row.size > 1 or of_row[0] != one):
                    for c in range(U(0), row, U(LANES)):
                        divisor = load(of_row, c) if of_row.size > 1 else broadcast(lines, of_row[0])
                        store(lines, line + c, div(load(lines, line + c), divisor))
            for k in range(levels):
                for c in range(U(k * level), U(k * level + used * size), U(LANES)):
                    store(lines, c + U(level), add(load(lines, c), load(lines, c + U(step << k))))
            origin = 0 if past_caches else first * out_row
            end = origin + number * out_row
            if form == "picks":
                for c in range(U(0), U(used * size), U(LANES)):
                    acc = zero
                    for k in range(kinds):
                        acc = sum_taps(lines, offsets, c, bounds[k], bounds[k + 1], zero if levels > 0 else acc)
                        store(lines, U(sums + k * level) + c, acc)
                for i in range(used):
                    for o in range(U(out_row)):
                        lines[U(sums + kinds * level + i * out_row) + o] = lines[U(sums + i * size + picks[o])]
            for i in range(number):
                to, at = U(origin + i * out_row), U(line_of[i] * size)
                if form == "picks":
                    for o in range(U(0), U(out_row), U(LANES)):
                        acc = load(lines, U(sums + kinds * level + line_of[i] * out_row) + o)
                        store_until(target, to + o, divided(lines, acc, divisor_of[i], of_row, o, exponent), U(end))
                else:
                    for b in range(U(0), U(blocks.size), U(4)):
                        o, place, k = U(blocks[b]), at + U(blocks[b + U(1)]), blocks[b + U(2)]
                        for c in range(o, U(blocks[b + U(3)]), U(2 * LANES if form == "pairs" else LANES)):
                            acc = sum_taps(lines, offsets, place, bounds[k], bounds[k + 1], zero)
                            place += U(2 * LANES if form == "evens" else LANES)
                            if form == "evens":
                                more = sum_taps(lines, offsets, place - U(LANES), bounds[k], bounds[k + 1], zero)
                                acc = evens(acc, more)
                            if form == "pairs":
                                odd = sum_taps(lines, offsets, place - U(LANES), bounds[1], bounds[2], zero)
                                if c + U(LANES) < U(out_row):
                                    o = c + U(LANES)
                                    more = divided(lines, interleave_high(acc, odd), divisor_of[i], of_row, o, exponent)
                                    store_until(target, to + o, more, U(end))
                                acc = interleave_low(acc, odd)
                            store_until(target, to + c, divided(lines, acc, divisor_of[i], of_row, c, exponent), U(end))
            if past_caches:
                copy_past_caches(target, y, first * out_row, end)
            first += number
        if past_caches:
            fence()

    @kernel()
    def window_sums(x: Array, y: Array, plan: Any, start: int, stop: int) -> None:
        total, sizes, ranges, steps, divisors, exponent, tables, layout, most_rows = plan
        together, past_caches = layout[2], stored_past_caches(y)
        lines, divisor_of = np.zeros(layout[6], total.dtype), np.zeros(together, total.dtype)
        of_rows = backward and (divisors[0].size > 1 or divisors[1].size > 1)
        row_divisors = np.empty(most_rows if of_rows else 0, total.dtype)
        row_at, line_of = np.empty(most_rows, np.int64), np.empty(together, np.int64)
        target = np.empty(together * sizes[5], y.dtype) if past_caches else y
        buffers = (lines, divisor_of, row_divisors, row_at, line_of, target)
        sum_windows(x, y, buffers, past_caches, sizes, ranges, steps, divisors, exponent, tables, layout, start, stop)

    return window_sums


@functools.cache
def make_sums_by_cell(vectors: int, backward: bool, power: str = "") -> Kernel:
    """The kernel for any windows of cells of many channels: tap by tap, 1 or 4 vectors of channels at a time. 4 are
    whole cache lines one after another, which the CPU fetches ahead; cells must have as many channels."""
    raised, root = make_power("" if backward else power), make_root("" if backward else power)
    width = vectors * LANES

    @kernel(inlined=True)
    def plus(acc: Vector, x: Array, at: Any, total: Array, exponent: float, divisor: float) -> Vector:
        value = as_lanes_of(total, load(x, at))
        if backward and divisor != total.dtype.type(1):
            value = div(value, broadcast(total, divisor))
        return add(acc, raised(value, total, exponent))

    @kernel(inlined=True)
    def put(y: Array, to: int, acc: Vector, total: Array, divisor: float, exponent: float, past_caches: bool) -> None:
        result = as_lanes_of(y, root(div(acc, broadcast(total, divisor)), total, exponent))
        if past_caches:
            stream(y, to, result)
        else:
            store(y, to, result)

    @kernel()
    def sums_by_cell(x: Array, y: Array, plan: Any, start: int, stop: int) -> None:
        total, sizes, ranges, steps, divisors, exponent, w, step, channels, most_rows = plan
        out_d, out_h, out_w, one = sizes[3], sizes[4], w.shape[1], total.dtype.type(1)
        varies_d, varies_h, varies_w = divisors[0].size > 1, divisors[1].size > 1, divisors[2].size > 1
        of_taps = backward and (varies_d or varies_h or varies_w)  # whether cells of x have different divisors
        row_at, row_divisors = np.empty(most_rows, np.int64), np.empty(most_rows if of_taps else 0, total.dtype)
        past_caches = stored_past_caches(y) and channels % LANES == 0
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            rows = _rows_under(row_at, row_divisors, plane, od, oh, sizes, ranges, steps, divisors)
            for o in range(out_w):
                divisor = one
                if not of_taps:
                    divisor = divisors[0][od * varies_d] * divisors[1][oh * varies_h]
                    divisor *= divisors[2][o * channels * varies_w]
                for first in range(0, channels, width):
                    c = min(first, channels - width)  # the last may overlap the one before
                    a0 = a1 = a2 = a3 = broadcast(total, 0)
                    for k in range(rows):
                        for t in range(w[1, o]):
                            cell, of_tap = (np.int64(w[0, o]) + t * step) * channels, one
                            if of_taps:
                                of_tap = row_divisors[k] * divisors[2][cell * varies_w]
                            at = U(row_at[k] + cell + c)
                            a0 = plus(a0, x, at, total, exponent, of_tap)
                            if vectors == 4:
                                a1 = plus(a1, x, at + U(LANES), total, exponent, of_tap)
                                a2 = plus(a2, x, at + U(2 * LANES), total, exponent, of_tap)
                                a3 = plus(a3, x, at + U(3 * LANES), total, exponent, of_tap)
                    to = (unit * out_w + o) * channels + c
                    put(y, to, a0, total, divisor, exponent, past_caches)
                    if vectors == 4:
                        put(y, to + LANES, a1, total, divisor, exponent, past_caches)
                        put(y, to + 2 * LANES, a2, total, divisor, exponent, past_caches)
                        put(y, to + 3 * LANES, a3, total, divisor, exponent, past_caches)
        if past_caches:
            fence()

    return sums_by_cell


@kernel(allocates=False)
def plane_sums(x: Array, y: Array, plan: Any, start: int, stop: int) -> None:
    """The sum of each plane of `cells` contiguous cells, divided by the divisor: one window a plane.

    The sums of the lanes over up to SHORT_ROW cells are in x's compute dtype; the sums of these in float64."""
    cells, divisor = plan
    rest = cells % LANES
    for plane in range(U(start), U(stop)):
        at, acc = plane * U(cells), 0.0
        if cells < FEW_CELLS:
            lanes = broadcast(x, 0)
            for i in range(at, at + U(cells - rest), U(LANES)):
                lanes = add(lanes, load(x, i))
            acc = total(add(lanes, load_first(x, at + U(cells - rest), rest)) if rest > 0 else lanes)
        else:
            for run in range(0, cells, SHORT_ROW):
                acc += total(lane_sums(x, at + U(run), U(min(SHORT_ROW, cells - run))))
        store_first(y, plane, broadcast(y, acc / divisor), 1)


@kernel(allocates=False)
def plane_sums_backward(dy: Array, dx: Array, plan: Any, start: int, stop: int) -> None:
    """The backward of `plane_sums`: each cell of a plane of dx is dy / divisor."""
    cells, divisor = plan
    for plane in range(start, stop):
        value = div(load_first(dy, plane, 1), broadcast(dy, divisor))
        share = broadcast(dx, lane(value, 0))
        for i in range(plane * cells, (plane + 1) * cells, LANES):
            store_until(dx, i, share, stop * cells)
