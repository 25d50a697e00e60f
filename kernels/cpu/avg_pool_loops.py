"""The loops of average, sum and lp pooling, forward and backward, over rows of y from `start` to `stop`.

A row of y is summed in two steps: first the rows of x under it, cell by cell, then the cells along the row. Backward is
the same with x = dy and y = dx: each cell of dx sums the windows over it. For each axis and each cell of y, `ranges`
has the first cell of x in its sum and the number of cells; `steps` has the distance from one to the next. Sums are in
C order and have `total`'s dtype.

Arrays are flat: (planes, depth, height, width, channels), half types as their bits (vectors.py). `sizes` are depth,
height and width of x, those of y, and channels."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .lp_pool_loops import make_power, make_root
from .row_sums import ROOM, SHORT_ROW, lane_sums, totals
from .vectors import (
    LANES,
    add,
    any_lane,
    as_lanes_of,
    broadcast,
    div,
    evens,
    gather,
    integers,
    interleave_high,
    interleave_low,
    lane,
    less,
    load,
    load_first,
    load_int_first,
    mul,
    odds,
    store,
    store_first,
    to_float64,
)
from .vectors import (
    total as sum_of_lanes,
)
from .window_lines import make_split

Array = Any
Kernel = Any
U = np.uintp


@kernel(inlined=True)
def _store(y: Array, to: Any, value: Any, end: Any) -> None:
    """Store 16 lanes, or fewer at the end of a chunk. What lies past a row's end is overwritten by the next row."""
    narrow = as_lanes_of(y, value)
    if to + LANES <= end:
        store(y, to, narrow)
    else:
        store_first(y, to, narrow, end - to)


@functools.cache
def _make_sum_rows(power: str) -> Kernel:
    """The kernel for the sum of the rows under row (d, h) of y, or of their powers (lp_pool_loops.py), from `to`
    of the line on. Divided by the divisors of depth and height if `backward`."""
    raised = make_power(power)

    @kernel(inlined=True)
    def sum_rows(
        x: Array, line: Array, to: int, row: int, first_row: Any, sizes: Any, ranges: Any, steps: Any, divisors: Any,
        exponent: float, d: int, h: int, backward: bool,
    ) -> None:  # fmt: skip
        varies_d, varies_h = divisors[0].size > 1, divisors[1].size > 1
        first_d, first_h = np.int64(ranges[0][0, d]), np.int64(ranges[1][0, h])
        for c in range(U(0), U(row), U(LANES)):
            acc, rest = broadcast(line, 0), U(row) - c
            for i in range(ranges[0][1, d]):
                at_d = first_d + i * steps[0]
                for j in range(ranges[1][1, h]):
                    at_h = first_h + j * steps[1]
                    at = U(((first_row + at_d) * sizes[1] + at_h) * row) + c
                    if rest >= U(LANES):
                        value = as_lanes_of(line, load(x, at))
                    else:
                        value = as_lanes_of(line, load_first(x, at, rest))
                    if backward and (varies_d or varies_h):
                        value = div(value, broadcast(line, divisors[0][at_d * varies_d] * divisors[1][at_h * varies_h]))
                    acc = add(acc, raised(value, line, exponent))
            if rest >= U(LANES):
                store(line, U(to) + c, acc)
            else:
                store_first(line, U(to) + c, acc, rest)

    return sum_rows


@kernel(inlined=True)
def _divide(line: Array, at: int, number: int, divisors: Array) -> None:
    """Divide elements of a line, by a divisor each or by one for all."""
    for i in range(0, number, LANES):
        n, divisor = min(LANES, number - i), broadcast(line, divisors[0])
        if divisors.size > 1:
            divisor = load_first(divisors, i, n)
        store_first(line, at + i, div(load_first(line, at + i, n), divisor), n)


@functools.cache
def make_forward(width: int, stride: int, single: bool, power: str = "", paired: bool = False) -> Kernel:
    """The kernel for windows of one size, a stride apart. The sums of rows become a line (window_lines.py).

    width: the window's along a row, in loops that are unrolled; 0: any. stride: 1, 2, or 0 for any. single: a cell has
    one channel. paired: windows are pairs of cells of one channel, without padding: no line is needed, which takes 2/3
    of the time. `layout`: parts, pitch, padding and size of a line. divisors: of depth, height and all elements of a
    row, or one number if they are the same."""
    split, sum_rows, root = make_split(stride, single), _make_sum_rows(power), make_root(power)

    @kernel()
    def window_sums(
        x: Array, y: Array, total: Array, sizes: Any, ranges: Any, steps: Any, divisors: Any, exponent: float,
        offsets: Array, layout: Any, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, _, length, out_d, out_h, out_w, channels = sizes
        if single:
            channels = 1
        parts, pitch, padding, size = layout
        kw, row, number, end = (
            U(width) if width > 0 else U(offsets.size),
            length * channels,
            out_w * channels,
            stop * out_w * channels,
        )
        line, sums = np.zeros(size, total.dtype), np.zeros(0 if stride == 1 else row + 3 * LANES, total.dtype)
        one = total.dtype.type(1)
        varies_d, varies_h, varies_w = divisors[0].size > 1, divisors[1].size > 1, divisors[2].size > 1
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            if stride == 1:
                at = padding * channels
                sum_rows(x, line, at, row, plane * depth, sizes, ranges, steps, divisors, exponent, od, oh, False)
            else:
                sum_rows(x, sums, 0, row, plane * depth, sizes, ranges, steps, divisors, exponent, od, oh, False)
                if not paired:
                    split(sums, 0, length, channels, line, 0, parts, pitch, padding)
            row_divisor = divisors[0][od * varies_d] * divisors[1][oh * varies_h]
            divisor = row_divisor * (one if varies_w else divisors[2][0])
            for o in range(U(0), U(number), U(LANES)):
                if paired:
                    left, right = load(sums, U(2) * o), load(sums, U(2) * o + U(LANES))
                    acc = add(evens(left, right), odds(left, right))
                else:
                    acc = load(line, U(offsets[0]) + o)
                    for t in range(U(1), kw):
                        acc = add(acc, load(line, U(offsets[t]) + o))
                if varies_w:
                    rest = U(number) - o
                    for_windows = load(divisors[2], o) if rest >= U(LANES) else load_first(divisors[2], o, rest)
                    acc = div(acc, mul(broadcast(line, row_divisor), for_windows))
                elif divisor != one:
                    acc = div(acc, broadcast(line, divisor))
                _store(y, unit * number + np.int64(o), root(acc, line, exponent), end)

    return window_sums


@functools.cache
def make_backward(stride: int, single: bool) -> Kernel:
    """The kernel for the adjoint of windows of one size, a stride apart.

    The cells of y that lie under the same taps, those a stride apart, are computed together: from `taps[i]` to
    `taps[i + 1]` are the `offsets` of the windows over the i-th cell of a stride, in a row of x with `before` zeros in
    front. Rows of y that see the same rows of x are equal, and computed once.
    Then the cells of a row get their places: the first is at `padding`. `cells`: of one kind, with the padding."""
    sum_rows = _make_sum_rows("")

    @kernel()
    def window_sums(
        x: Array, y: Array, total: Array, sizes: Any, ranges: Any, steps: Any, divisors: Any, exponent: float,
        taps: Array, offsets: Array, layout: Any, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, _, length, out_d, out_h, out_w, channels = sizes
        if single:
            channels = 1
        before, padding, parts, cells, size = layout
        row, number, end = length * channels, cells * channels, stop * out_w * channels
        pitch = number + LANES
        line, result = np.zeros(size, total.dtype), np.empty(parts * pitch + 2 * LANES, total.dtype)
        kinds = np.zeros(0 if stride in (1, 2) and single else parts * pitch, total.dtype)
        one, varies_w = total.dtype.type(1), divisors[2].size > 1
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            h = ranges[1]
            if unit == start or oh == 0 or h[0, oh] != h[0, oh - 1] or h[1, oh] != h[1, oh - 1]:
                sum_rows(x, line, before, row, plane * depth, sizes, ranges, steps, divisors, exponent, od, oh, True)
                if varies_w or divisors[2][0] != one:
                    _divide(line, before, row, divisors[2])
                if stride == 2 and single:
                    for j in range(U(0), U(cells), U(LANES)):
                        even, odd = broadcast(line, 0), broadcast(line, 0)
                        for t in range(taps[0], taps[1]):
                            even = add(even, load(line, U(offsets[t]) + j))
                        for t in range(taps[1], taps[2]):
                            odd = add(odd, load(line, U(offsets[t]) + j))
                        store(result, U(2) * j, interleave_low(even, odd))
                        store(result, U(2) * j + U(LANES), interleave_high(even, odd))
                else:
                    for kind in range(parts):
                        for j in range(U(0), U(number), U(LANES)):
                            acc = broadcast(line, 0)
                            for t in range(taps[kind], taps[kind + 1]):
                                acc = add(acc, load(line, U(offsets[t]) + j))
                            if parts == 1:
                                store(result, j, acc)
                            else:
                                store(kinds, U(kind * pitch) + j, acc)
                    if parts > 1 and channels == 1:
                        for kind in range(U(parts)):
                            for j in range(U(cells)):
                                result[j * U(parts) + kind] = kinds[kind * U(pitch) + j]
                    elif parts > 1:
                        for j in range(cells):
                            for kind in range(parts):
                                for c in range(U(0), U(channels), U(LANES)):  # past the end, where the next cell comes
                                    at = U((j * parts + kind) * channels) + c
                                    store(result, at, load(kinds, U(kind * pitch + j * channels) + c))
            for o in range(U(0), U(out_w * channels), U(LANES)):
                value = load(result, U(padding * channels) + o)
                _store(y, unit * out_w * channels + np.int64(o), value, end)

    return window_sums


@functools.cache
def make_uneven(backward: bool, power: str = "") -> Kernel:
    """The kernel for windows that are not a stride apart, or far outside of the input: cell by cell along a row.

    Rows of y that see the same rows of x and have the same divisor are equal, and computed once."""
    sum_rows, root = _make_sum_rows(power), make_root(power)

    @kernel()
    def window_sums(
        x: Array, y: Array, total: Array, sizes: Any, ranges: Any, steps: Any, divisors: Any, exponent: float,
        start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, _, length, out_d, out_h, out_w, channels = sizes
        row, number, end = length * channels, out_w * channels, stop * out_w * channels
        line, result = np.empty(row + LANES, total.dtype), np.empty(out_w * channels + LANES, total.dtype)
        one = total.dtype.type(1)
        varies_d, varies_h, varies_w = divisors[0].size > 1, divisors[1].size > 1, divisors[2].size > 1
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            h = ranges[1]
            again = unit != start and oh != 0 and h[0, oh] == h[0, oh - 1] and h[1, oh] == h[1, oh - 1]
            if again and not backward:
                again = divisors[1][oh * varies_h] == divisors[1][(oh - 1) * varies_h]
            if not again:
                sum_rows(x, line, 0, row, plane * depth, sizes, ranges, steps, divisors, exponent, od, oh, backward)
                if backward and (varies_w or divisors[2][0] != one):
                    _divide(line, 0, row, divisors[2])
                if channels == 1:
                    _sum_cells(line, result, ranges[2], steps[2])
                else:
                    for o in range(out_w):
                        first, cells = np.int64(ranges[2][0, o]), np.int64(ranges[2][1, o])
                        for c in range(U(0), U(channels), U(LANES)):
                            acc = broadcast(line, 0)
                            for i in range(cells):
                                acc = add(acc, load(line, U((first + i * steps[2]) * channels) + c))
                            store(result, U(o * channels) + c, acc)
                divisor = one if backward else divisors[0][od * varies_d] * divisors[1][oh * varies_h]
                for o in range(0, 0 if backward else number, LANES):
                    for_windows = broadcast(line, divisors[2][0])
                    if varies_w:
                        for_windows = load_first(divisors[2], o, min(number - o, LANES))
                    value = div(load(result, o), mul(broadcast(line, divisor), for_windows))
                    store(result, o, root(value, line, exponent))
            for o in range(0, number, LANES):
                _store(y, unit * number + o, load(result, o), end)

    return window_sums


@kernel(inlined=True)
def _sum_cells(line: Array, result: Array, cells: Array, step: int) -> None:
    """The sums of the windows along a row, of one channel. cells: the first one of each window, and their number."""
    windows = cells.shape[1]
    for o in range(0, windows, LANES):
        if step == 1 and cells[1, o] >= 2 * LANES:
            for window in range(o, min(o + LANES, windows)):
                first, number = np.int64(cells[0, window]), np.int64(cells[1, window])
                acc, rest = broadcast(line, 0), number % LANES
                for i in range(U(first), U(first + number - rest), U(LANES)):
                    acc = add(acc, load(line, i))
                acc = add(acc, load_first(line, first + number - rest, rest))
                result[window] = sum_of_lanes(acc)
        else:
            n = min(windows - o, LANES)
            place, number = load_int_first(cells[0], o, n), load_int_first(cells[1], o, n)
            acc, tap = broadcast(line, 0), integers(0)
            inside = less(tap, number)
            while any_lane(inside):
                acc = add(acc, gather(line, place, inside))
                place, tap = add(place, integers(step)), add(tap, integers(1))
                inside = less(tap, number)
            store(result, o, acc)


@kernel(allocates=False)
def sums_by_cell(
    x: Array, y: Array, total: Array, sizes: Any, ranges: Any, steps: Any, divisors: Any, exponent: float,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Any windows of cells of at least 16 channels: 16 channels at a time, tap by tap. In half the time of the other
    loops where windows overlap little. In the backward all windows have the same divisor."""
    depth, height, length, out_d, out_h, out_w, channels = sizes
    varies_d, varies_h, varies_w = divisors[0].size > 1, divisors[1].size > 1, divisors[2].size > 1
    step = U(steps[2] * channels)
    for unit in range(start, stop):
        plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
        first_row = (plane * depth + ranges[0][0, od]) * height + ranges[1][0, oh]
        row_divisor = divisors[0][od * varies_d] * divisors[1][oh * varies_h]
        for o in range(out_w):
            divisor = broadcast(total, row_divisor * divisors[2][o * channels * varies_w])
            for block in range(0, channels, LANES):
                c, acc = min(block, channels - LANES), broadcast(total, 0)  # the last may overlap the one before
                for i in range(ranges[0][1, od]):
                    for j in range(ranges[1][1, oh]):
                        row = first_row + i * steps[0] * height + j * steps[1]
                        at = U((row * length + ranges[2][0, o]) * channels + c)
                        for t in range(U(ranges[2][1, o])):
                            acc = add(acc, as_lanes_of(total, load(x, at + t * step)))
                store(y, (unit * out_w + o) * channels + c, as_lanes_of(y, div(acc, divisor)))


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
        for i in range(U(plane * cells), U((plane + 1) * cells), U(LANES)):
            _store(dx, i, share, stop * cells)
