"""The loops of average, sum and lp pooling, forward and backward, over rows of y from `start` to `stop`.

A row of y is summed in two steps: first the rows of x under it, cell by cell, then the cells along the row. Backward is
the same with x = dy and y = dx: each cell of dx sums the windows over it. For each axis and each cell of y, `ranges`
has the first cell of x in its sum and the number of cells; `steps` has the distance from one to the next. Sums are in
C order and have `total`'s dtype.

Arrays are flat: (planes, depth, height, width, channels), half types as their bits (vectors.py). `sizes` are depth,
height and width of x, those of y, and channels. `divisors`: of depth, height and the elements of a row, each one number
for all windows or a number for each (for a row with ones to spare). Backward divides dy before it sums."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .lp_pool_loops import make_power, make_root
from .past_caches import copy_past_caches, stored_past_caches
from .row_sums import ROOM, SHORT_ROW, lane_sums, totals
from .vector_ends import load_until, store_until
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
    to_float64,
)
from .vectors import (
    total as sum_of_lanes,
)

Array = Any
Kernel = Any
Vector = Any
U = np.uintp


@kernel(inlined=True)
def _rows_under(
    row_at: Array, row_divisors: Array, plane: int, od: int, oh: int, sizes: Any, ranges: Any, steps: Any, divisors: Any
) -> int:
    """The number of rows of x under a row of y, and where each begins. If there is room for them, their divisors."""
    depth, height, row, rows = sizes[0], sizes[1], sizes[2] * sizes[6], 0
    for i in range(ranges[0][1, od]):
        d = ranges[0][0, od] + i * steps[0]
        for j in range(ranges[1][1, oh]):
            h = ranges[1][0, oh] + j * steps[1]
            row_at[rows] = ((plane * depth + d) * height + h) * row
            if row_divisors.size > 0:
                row_divisors[rows] = divisors[0][d % divisors[0].size] * divisors[1][h % divisors[1].size]
            rows += 1
    return rows


@kernel(inlined=True)
def _sum_taps(line: Array, offsets: Array, at: Any, first: Any, last: Any, step: int) -> Vector:
    """The sums of the cells at some of the offsets from `at` on, for 16 windows, `step` (1 or 2) cells apart."""
    acc = broadcast(line, 0)
    for t in range(first, last):
        place = U(offsets[t]) + at
        value = load(line, place)
        if step == 2:
            value = evens(value, load(line, place + U(LANES)))
        acc = add(acc, value)
    return acc


@functools.cache
def make_sums(stride: int, backward: bool, power: str = "") -> Kernel:
    """The kernel for the sums of windows, of x or of its powers (lp_pool_loops.py).

    The sums of the rows under a row of y are a line with zeros around it, from element `before` of `size` on. stride:
    1 or 2 for windows of one size so far apart, whose taps are at `offsets` of the line; backward with 2 has the first
    `number` offsets for the even cells of a row, and the others for the odd ones. 0: any windows. With `counts` they
    are summed by `_sum_places` (`number`: of places), else one after another.

    `together` rows of y are computed together: what has just been stored cannot be loaded at another place until it is
    in the cache. Those that see the same rows of x have one line. `most_rows`: of x under a row of y."""
    raised, root = make_power("" if backward else power), make_root("" if backward else power)

    @kernel(inlined=True)
    def sum_rows(
        x: Array, line: Array, row_at: Array, row_divisors: Array, rows: int, c: Any, count: Any, exponent: float
    ) -> Vector:
        acc = broadcast(line, 0)
        for k in range(U(rows)):
            at = U(row_at[k]) + c
            value = as_lanes_of(line, load(x, at) if count >= U(LANES) else load_first(x, at, count))
            if backward and row_divisors.size > 0:
                value = div(value, broadcast(line, row_divisors[k]))
            acc = add(acc, raised(value, line, exponent))
        return acc

    @kernel(allocates=False)  # so that no references are counted in its loops
    def sum_windows(
        x: Array, y: Array, rooms: Any, past_caches: bool, sizes: Any, ranges: Any, steps: Any, divisors: Any,
        exponent: float, offsets: Array, counts: Array, layout: Any, start: int, stop: int,
    ) -> None:  # fmt: skip
        lines, results, sums, row_at, row_divisors, line_of, divisor_of, target = rooms
        out_d, out_h, channels, h, one = sizes[3], sizes[4], sizes[6], ranges[1], lines.dtype.type(1)
        before, size, number, _, together = layout
        row, out_row, line = U(sizes[2] * channels), sizes[5] * channels, 0
        varies_d, varies_h, varies_w = divisors[0].size > 1, divisors[1].size > 1, divisors[2].size > 1
        plane, od, oh = start // (out_d * out_h), start // out_h % out_d, start % out_h - 1
        for first in range(start, stop, together):
            rows_of_y, new = min(together, stop - first), 0
            for i in range(rows_of_y):
                oh += 1
                if oh == out_h:
                    oh, od = 0, od + 1
                if od == out_d:
                    od, plane = 0, plane + 1
                if not backward:
                    divisor_of[i] = divisors[0][od * varies_d] * divisors[1][oh * varies_h]
                if first + i > start and oh > 0 and h[0, oh] == h[0, oh - 1] and h[1, oh] == h[1, oh - 1]:
                    line_of[i] = line
                    continue
                line, new = (line + size) % (together * size), new + 1
                line_of[i] = line
                rows = _rows_under(row_at, row_divisors, plane, od, oh, sizes, ranges, steps, divisors)
                for c in range(U(0), row, U(LANES)):
                    if c + U(LANES) <= row:
                        acc = sum_rows(x, lines, row_at, row_divisors, rows, c, U(LANES), exponent)
                    else:
                        acc = sum_rows(x, lines, row_at, row_divisors, rows, c, row - c, exponent)
                    if backward and varies_w:
                        acc = div(acc, load(divisors[2], c))
                    elif backward and divisors[2][0] != one:
                        acc = div(acc, broadcast(lines, divisors[2][0]))
                    store(lines, U(line + before) + c, acc)
                if stride == 0 and counts.size == 0:
                    _sum_cells(lines, results, line, ranges[2], steps[2] * channels, channels)
            for i in range(new if stride == 0 and counts.size > 0 else 0):
                at = (line + (together - i) * size) % (together * size)
                _sum_places(lines, sums, results, at, counts, number, steps[2] * channels, offsets)
            origin = 0 if past_caches else first * out_row
            end = origin + rows_of_y * out_row
            for i in range(rows_of_y):
                line_at, to = U(line_of[i]), origin + i * out_row
                if backward and stride == 2:
                    for o in range(0, out_row, 2 * LANES):
                        even = _sum_taps(lines, offsets, line_at + U(o // 2), U(0), U(number), 1)
                        odd = _sum_taps(lines, offsets, line_at + U(o // 2), U(number), U(offsets.size), 1)
                        store_until(target, to + o, interleave_low(even, odd), end)
                        if o + LANES < out_row:
                            store_until(target, to + o + LANES, interleave_high(even, odd), end)
                    continue
                divisor = divisor_of[i] * (one if varies_w or backward else divisors[2][0])
                for o in range(0, out_row, LANES):
                    if stride == 0:
                        acc = load(results, line_at + U(o))
                    else:
                        acc = _sum_taps(lines, offsets, line_at + U(o * stride), U(0), U(offsets.size), stride)
                    if not backward:
                        if varies_w:
                            acc = div(acc, mul(broadcast(lines, divisor), load(divisors[2], o)))
                        elif divisor != one:
                            acc = div(acc, broadcast(lines, divisor))
                        acc = root(acc, lines, exponent)
                    store_until(target, to + o, acc, end)
            if past_caches:
                copy_past_caches(target, y, first * out_row, end)
        if past_caches:
            fence()

    @kernel()
    def window_sums(
        x: Array, y: Array, total: Array, sizes: Any, ranges: Any, steps: Any, divisors: Any, exponent: float,
        offsets: Array, counts: Array, layout: Any, start: int, stop: int,
    ) -> None:  # fmt: skip
        _, size, number, most_rows, together = layout
        lines = np.zeros(together * size, total.dtype)
        results = np.zeros(together * size if stride == 0 else 0, total.dtype)
        sums = np.empty(counts.size * number, total.dtype)
        of_rows = backward and (divisors[0].size > 1 or divisors[1].size > 1)
        row_at, row_divisors = np.empty(most_rows, np.int64), np.empty(most_rows if of_rows else 0, total.dtype)
        line_of, divisor_of = np.empty(together, np.int64), np.ones(together, total.dtype)
        past_caches = stored_past_caches(y)
        target = np.empty(together * sizes[5] * sizes[6], y.dtype) if past_caches else y
        rooms = (lines, results, sums, row_at, row_divisors, line_of, divisor_of, target)
        sum_windows(
            x, y, rooms, past_caches, sizes, ranges, steps, divisors, exponent, offsets, counts, layout, start, stop
        )

    return window_sums


@kernel(inlined=True)
def _sum_places(
    lines: Array, sums: Array, results: Array, line: int, counts: Array, number: int, step: int, offsets: Array
) -> None:
    """The sums of the windows along a row: of some cells from each of the first `number` places on, 16 places at a
    time. `counts`: of a window's cells, from few to many. A window's sum is at one of the `offsets` of these."""
    for c in range(U(0), U(number), U(LANES)):
        acc, taps = broadcast(lines, 0), U(0)
        for k in range(counts.size):
            for t in range(taps, U(counts[k])):
                acc = add(acc, load(lines, U(line) + c + t * U(step)))
            store(sums, U(k * number) + c, acc)
            taps = U(counts[k])
    for o in range(U(offsets.size)):
        results[U(line) + o] = sums[U(offsets[o])]


@kernel(inlined=True)
def _sum_cells(lines: Array, results: Array, line: int, cells: Array, step: int, channels: int) -> None:
    """The sums of the windows along a row, one after another. `cells` has the first element and their number."""
    for o in range(0, cells.shape[1], channels):
        first, number, to = line + cells[0, o], cells[1, o], line + o
        if step == 1 and number >= LANES:
            acc = broadcast(lines, 0)
            for i in range(first, first + number, LANES):
                acc = add(acc, load_until(lines, i, first + number))
            results[U(to)] = sum_of_lanes(acc)
        elif channels == 1:
            sum_ = lines.dtype.type(0)
            for t in range(number):
                sum_ += lines[U(first + t * step)]
            results[U(to)] = sum_
        else:
            for c in range(0, channels, LANES):  # past the end, where the next window comes
                acc = broadcast(lines, 0)
                for t in range(number):
                    acc = add(acc, load(lines, first + c + t * step))
                store(results, to + c, acc)


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
    def sums_by_cell(
        x: Array, y: Array, total: Array, sizes: Any, ranges: Any, steps: Any, divisors: Any, exponent: float,
        most_rows: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        out_d, out_h, out_w, channels, w, one = sizes[3], sizes[4], sizes[5], sizes[6], ranges[2], total.dtype.type(1)
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
                            cell, of_tap = (np.int64(w[0, o]) + t * steps[2]) * channels, one
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
def _sums_of_short_planes(x: Array, y: Array, sums: Array, cells: int, divisor: float, start: int, stop: int) -> None:
    """`plane_sums` of planes of up to SHORT_ROW cells."""
    for first in range(start, stop, LANES):
        number = min(LANES, stop - first)
        for k in range(number):
            store(sums, U(k * LANES), to_float64(lane_sums(x, U((first + k) * cells), U(cells))))
        store_first(y, first, as_lanes_of(y, div(totals(sums, 0), broadcast(sums, divisor))), number)


@kernel()
def plane_sums(x: Array, y: Array, cells: int, divisor: float, start: int, stop: int) -> None:
    """The sum of each plane of `cells` contiguous cells, divided by the divisor: one window a plane.

    The sums of the lanes over up to SHORT_ROW cells are in x's compute dtype; the sums of these in float64."""
    if cells <= SHORT_ROW:
        _sums_of_short_planes(x, y, np.zeros(ROOM, np.float64), cells, divisor, start, stop)
        return
    for plane in range(start, stop):
        sum_ = 0.0
        for run in range(0, cells, SHORT_ROW):
            sum_ += sum_of_lanes(lane_sums(x, U(plane * cells + run), U(min(SHORT_ROW, cells - run))))
        store_first(y, plane, broadcast(y, sum_ / divisor), 1)


@kernel()
def plane_sums_backward(dy: Array, dx: Array, cells: int, divisor: float, start: int, stop: int) -> None:
    """The backward of `plane_sums`: each cell of a plane of dx is dy / divisor."""
    for plane in range(start, stop):
        value = div(load_first(dy, plane, 1), broadcast(dy, divisor))
        share = broadcast(dx, lane(value, 0))
        for i in range(plane * cells, (plane + 1) * cells, LANES):
            store_until(dx, i, share, stop * cells)
