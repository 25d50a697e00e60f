"""Max pooling's forward loops, over rows of windows from `start` to `stop`.

Arrays are flat: (planes, depth, height, width, channels), half types as their bits (vectors.py). `sizes` are depth,
height and width of x, those of y, and channels; `taps` the sizes of a window, `dilations` the distances of its taps.
`argmax` is the tap of each window's maximum. The tables `d h w` have, for each window of an axis, its first cell, its
number of cells and the tap over the first (windows.cells_under_windows). `like`: an empty array of the lanes' dtype.

Each window starts with −inf at its first tap inside the input, so that a window without cells gives −inf. In C order a
cell replaces the maximum if it is larger, or if it is the first NaN (`exceeds`)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .past_caches import copy_past_caches, stored_past_caches
from .vectors import (
    LANES,
    add,
    any_lane,
    bit_and,
    bit_or,
    broadcast,
    equal,
    evens,
    exceeds,
    fence,
    first_lanes,
    first_true,
    gather,
    integers,
    is_nan,
    lane,
    less,
    load,
    load_every_bit,
    load_first_every_bit,
    maximum,
    odds,
    select,
    slide,
    store,
    store_every_bit,
    store_first,
    store_first_every_bit,
    sub,
)

Array = Any
Vector = Any
Kernel = Any
U = np.uintp


@kernel(inlined=True)
def _load(x: Array, i: Any) -> Vector:
    """16 cells, with all bits of a NaN: the CPU's conversion of a half number would change one of them."""
    value = load(x, i)
    return load_every_bit(x, i) if any_lane(is_nan(value)) else value


@kernel(inlined=True)
def _load_until(x: Array, i: Any, stop: Any, filling: Vector) -> Vector:
    """The cells from i on; the lanes from `stop` on are the filling's."""
    if i + LANES <= stop:
        return _load(x, i)
    value = _load(x, i) if i + LANES <= x.size else load_first_every_bit(x, i, stop - i)
    return select(first_lanes(stop - i), value, filling)


@kernel(inlined=True)
def _store_until(y: Array, i: Any, value: Vector, stop: Any) -> None:
    """Store maxima, without the lanes from `stop` on. What lies past a row's end is overwritten by the next row."""
    if i + LANES > stop:
        store_first_every_bit(y, i, value, stop - i)
    elif any_lane(is_nan(value)):
        store_every_bit(y, i, value)
    else:
        store(y, i, value)


@kernel(inlined=True)
def _store_places(argmax: Array, i: Any, place: Vector, stop: Any) -> None:
    """Store taps, without the lanes from `stop` on."""
    if i + LANES <= stop:
        store(argmax, i, place)
    else:
        store_first(argmax, i, place, stop - i)


@kernel(inlined=True)
def _split(
    x: Array, at: int, cells: int, lines: Array, to: int, split: str, lines_across: int, size: int, before: int,
    channels: int,
) -> None:  # fmt: skip
    """Copy a row of x to as many lines as the stride is, `size` elements apart: places 0, stride, … are in the first.
    `before`: elements, from the start of the row on, that are not copied. Vectors' other lanes are filled with −inf."""
    lowest, stop = broadcast(lines, -np.inf), at + cells
    if split == "none":
        for i in range(0, cells, LANES):
            store(lines, to + before + i, _load_until(x, at + i, stop, lowest))
    elif split == "cells":
        first = before // channels
        line, place = first % lines_across * size, first // lines_across * channels
        for i in range(at, stop, channels):
            store(lines, to + line + place, _load_until(x, i, i + channels, lowest))
            line += size
            if line == lines_across * size:
                line, place = 0, place + channels
    else:
        even = to + (before & 1) * size + (before >> 1)
        odd = to + ((before + 1) & 1) * size + ((before + 1) >> 1)
        for i in range(0, cells, 2 * LANES):
            left, right = _load_until(x, at + i, stop, lowest), lowest
            if i + LANES < cells:
                right = _load_until(x, at + i + LANES, stop, lowest)
            store(lines, even + i // 2, evens(left, right))
            store(lines, odd + i // 2, odds(left, right))


@functools.cache
def make_forward(unrolled_taps: int, split: str, separable: bool, direct: bool, padded: bool, save: bool) -> Kernel:
    """The kernel for windows of one size on each axis: y, and with `save` the argmax.

    A *band* of rows of windows, or some planes of them, is computed together. The cells under it are copied to lines,
    with −inf where there is padding, so that edges need no code. The cells under one tap of neighbouring windows are
    neighbours in a line. The rows of a line follow each other without space, so that short rows fill vectors: vectors
    also take what lies between the windows of two rows, which is not stored. If `separable`, the maxima along each row
    come first, and then the maxima of these: the work for a window is the sum of its sizes, not the product.

    unrolled_taps: the number of a window's taps if loops over them are unrolled, else 0. split: how a row is copied to
    lines: "none" with stride 1, "pairs" of elements with stride 2, "cells" with any, of fewer than 16 channels. direct:
    vectors have windows of one row only, and are stored at once, because few lanes are lost. padded: windows may have
    taps outside of x; `firsts` then has their first taps inside, axis by axis. Its last vector has zeros, for the
    further windows of rows.

    `geometry`: for depth the stride, the padding and the distance of taps; for height and width the stride, the padding
    and the cells from a window's first tap to its last. `layout`: the most planes and rows of a band, and windows of a
    row; the elements of a line from one row to the next, and of the whole line; the lines for the rows under a band
    (row h of these is in line h % stride), and for each of these the lines along a row. `offsets`: of each tap in the
    lines. If `separable`: of the taps along a row, then of those of rows (lines of maxima have the same sizes)."""

    @kernel(inlined=True)
    def maximum_at(
        lines: Array, places: Array, of_rows: bool, offsets: Array, first: int, number: int, factor: int, at: Any
    ) -> tuple[Vector, Vector]:
        """The maxima of 16 windows, and their taps."""
        best, place = broadcast(lines, -np.inf), integers(0)
        for t in range(U(unrolled_taps) if unrolled_taps > 0 else U(number)):
            where = U(offsets[U(first) + t]) + U(at)
            value = load(lines, where)
            better = exceeds(value, best)
            best = select(better, value, best)
            if save:
                tap = integers(t * U(factor))
                if separable and of_rows:
                    tap = add(tap, load(places, where))
                place = select(better, tap, place)
        return best, place

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, like: Array, sizes: Any, geometry: Any, taps: Any, layout: Any,
        offsets: Array, firsts: Array, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, out_d, out_h, out_w, channels = sizes[0], sizes[1], sizes[3], sizes[4], sizes[5], sizes[6]
        most_planes, most_rows, most_windows, pitch, size, lines_down, lines_across = layout
        stride_d, before_d, step_d, stride_h, before_h, reach_h, stride_w, before_w, reach_w = geometry
        blocks = taps[0] * lines_down
        lines = np.full(blocks * lines_across * size, -np.inf, like.dtype)
        row_maxima = np.empty(blocks * size if separable else 0, like.dtype)
        row_places = np.empty(row_maxima.size if save else 0, np.int32)
        best_of = np.empty(0 if direct else size, like.dtype)
        place_of = np.empty(best_of.size if save else 0, np.int32)
        lowest, out_row, zeros_at = broadcast(like, -np.inf), out_w * channels, firsts.size - LANES
        past_caches = stored_past_caches(y)
        target = np.empty(most_planes * most_rows * out_row, y.dtype) if past_caches else y
        unit = start
        while unit < stop:
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            rows, planes = min(min(most_rows, out_h - oh), stop - unit), 1
            if rows == out_h:
                planes = min(most_planes, (stop - unit) // rows)
            slots = rows + reach_h // stride_h  # of a plane in a line
            origin = unit * out_row if past_caches else 0
            limit = (unit + planes * rows) * out_row if past_caches else stop * out_row
            for left in range(0, out_w, most_windows):
                windows = min(most_windows, out_w - left)
                first = left * stride_w - before_w
                last = min(sizes[2], first + (windows - 1) * stride_w + reach_w + 1)
                cells_before = max(0, -first)
                first += cells_before
                if padded and most_windows < out_w:
                    for i in range(0, lines.size, LANES):
                        store(lines, i, lowest)
                for block in range(planes * taps[0]):
                    p, td = block // taps[0], block % taps[0]
                    z, down, slot = od * stride_d - before_d + td * step_d, 0, p * slots
                    for h in range(oh * stride_h - before_h, (oh + rows - 1) * stride_h - before_h + reach_h + 1):
                        if down < lines_down:
                            to = (td * lines_down + down) * lines_across * size + slot * pitch
                            if (z >= 0) & (z < depth) & (h >= 0) & (h < height) & (first < last):
                                at = ((((plane + p) * depth + z) * height + h) * sizes[2] + first) * channels
                                cells, before = (last - first) * channels, cells_before * channels
                                _split(x, at, cells, lines, to, split, lines_across, size, before, channels)
                            elif padded:
                                for line in range(lines_across):
                                    for i in range(0, pitch, LANES):
                                        store(lines, to + line * size + i, lowest)
                        down += 1
                        if down == stride_h:
                            down, slot = 0, slot + 1
                run = windows * channels
                number = ((planes - 1) * slots + rows - 1) * pitch + run
                source, first_tap, taps_in_lines, factor = lines, 0, offsets.size, 1
                if separable:
                    for block in range(blocks):
                        base, to = block * lines_across * size, block * size
                        for o in range(U(0), U(number + (slots - rows) * pitch), U(LANES)):
                            best, place = maximum_at(lines, row_places, False, offsets, 0, taps[2], 1, U(base) + o)
                            store(row_maxima, U(to) + o, best)
                            if save:
                                store(row_places, U(to) + o, place)
                    source, first_tap, taps_in_lines, factor = row_maxima, taps[2], taps[0] * taps[1], taps[2]
                if not direct:
                    for o in range(U(0), U(number), U(LANES)):
                        best, place = maximum_at(source, row_places, True, offsets, first_tap, taps_in_lines, factor, o)
                        store(best_of, o, best)
                        if save:
                            store(place_of, o, place)
                shape = planes, rows
                if not padded and slots == rows and pitch == out_row:  # the windows follow each other without space
                    shape, run = (1, 1), planes * rows * out_row
                for p in range(shape[0]):
                    for row in range(shape[1]):
                        at, to = (p * slots + row) * pitch, (unit + p * rows + row) * out_row + left * channels
                        base = (firsts[od] * taps[1] + firsts[out_d + oh + row]) * taps[2] if padded else 0
                        # The last vector may reach into the next row, unless the windows there are stored already.
                        end, places_end = limit, stop * out_row
                        if most_windows < out_w:
                            end, places_end = to + run, to + run
                        for c in range(0, run, LANES):
                            if direct:
                                best, place = maximum_at(
                                    source, row_places, True, offsets, first_tap, taps_in_lines, factor, at + c
                                )
                            else:
                                best, place = load(best_of, at + c), load(place_of, at + c) if save else integers(0)
                            if save and padded:  # of −inf alone the first
                                first_of = load(firsts, min(out_d + out_h + left * channels + c, zeros_at))
                                first_of = add(first_of, integers(base))
                                place = select(equal(best, lowest), first_of, place)
                            _store_until(target, to + c - origin, best, end - origin)
                            if save:
                                _store_places(argmax, to + c, place, places_end)
            if past_caches:
                copy_past_caches(target, y, origin, limit - origin)
            unit += planes * rows
        if past_caches:
            fence()

    return max_pool


@kernel(inlined=True)
def _largest_lane(x: Any) -> Any:
    """The maximum of the lanes. Of equal ones, any."""
    x = maximum(x, slide(x, x, 8))
    x = maximum(x, slide(x, x, 4))
    x = maximum(x, slide(x, x, 2))
    return lane(maximum(x, slide(x, x, 1)), 0)


@kernel(inlined=True)
def _first_largest(best: Vector, place: Vector, like: Array) -> tuple[Vector, Vector]:
    """The maximum of the lanes, and of those that have it the lowest place."""
    largest = broadcast(like, _largest_lane(best))
    found = bit_or(equal(best, largest), bit_and(is_nan(best), is_nan(largest)))
    order = select(found, sub(integers(0), place), integers(-(2**31)))
    lowest = _largest_lane(order)
    return broadcast(like, lane(best, first_true(equal(order, integers(lowest))))), integers(-lowest)


@functools.cache
def make_forward_by_tap(lanes: str, save: bool) -> Kernel:
    """The kernel for any windows: 16 elements of y at a time, tap by tap, or one element, 16 taps at a time.

    lanes: "channels" of a cell; what is read past a cell is overwritten by the next. Or "taps" of a window of one
    channel without dilation, in rows of many; `index` has the numbers of the lanes. Or any "elements": `index` has
    those of a row of x, tap by tap, for all elements of a row of y (one "cell"), whole vectors of them. `w` then has
    each element's first tap, −1 if it has none. A tap outside of x has the element of the first tap inside."""
    elements, step = lanes == "elements", LANES if lanes == "taps" else 1

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, like: Array, sizes: Any, taps: Any, dilations: Any, d: Array, h: Array,
        w: Array, index: Array, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, row_size, out_d, out_h, out_w, channels = sizes
        lowest, end = broadcast(like, -np.inf), stop * out_w * channels
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            first_row = (plane * depth + d[0, od]) * height + h[0, oh]
            base = (d[2, od] * taps[1] + h[2, oh]) * taps[2]
            for o in range(out_w):
                for block in range(0, channels, LANES):
                    c = block if elements else min(block, max(channels - LANES, 0))  # the last may overlap another
                    before = base if elements else base + w[2 * out_w + o]  # taps
                    first, best = load(w, c) if elements else load(index, 0) if lanes == "taps" else integers(0), lowest
                    place = add(first, integers(before))
                    for td in range(d[1, od]):
                        for th in range(h[1, oh]):
                            at = (first_row + td * dilations[0] * height + th * dilations[1]) * row_size
                            tap = before + (td * taps[1] + th) * taps[2]
                            if not elements:
                                at += w[o] * channels + c
                            for t in range(0, taps[2] if elements else np.int64(w[out_w + o]), step):
                                if elements:
                                    value = gather(x, at, index, t * w.size + c)
                                elif lanes == "taps":
                                    value = _load_until(x, at + t, at + w[out_w + o], lowest)
                                elif channels >= LANES:
                                    value = _load(x, U(at) + U(t) * U(dilations[2] * channels))
                                else:
                                    value = _load_until(x, at + t * dilations[2] * channels, x.size, best)
                                better = exceeds(value, best)
                                best = select(better, value, best)
                                if save or lanes == "taps":
                                    if elements:  # not before the first tap inside of x
                                        here = add(integers(tap), maximum(integers(t), first))
                                    else:
                                        here = integers(tap + t)
                                        here = add(here, first) if lanes == "taps" else here
                                    place = select(better, here, place)
                    if elements:
                        best = select(less(first, integers(0)), lowest, best)
                    elif lanes == "taps":
                        best, place = _first_largest(best, place, like)
                    to = (unit * out_w + o) * channels + c
                    _store_until(y, to, best, end)
                    if save:
                        _store_places(argmax, to, place, end)

    return max_pool
