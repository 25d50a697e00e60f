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
    integers,
    is_nan,
    lane,
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
)

Array = Any
Vector = Any
Kernel = Any
U = np.uintp


@kernel(inlined=True)
def _load(x: Array, i: Any) -> Vector:
    """16 cells. Halves are converted as the CPU does it, unless a NaN is among them, of which every bit is kept."""
    value = load(x, i)
    return load_every_bit(x, i) if any_lane(is_nan(value)) else value


@kernel(inlined=True)
def _load_until(x: Array, i: Any, stop: Any) -> Vector:
    """The cells from i on; the lanes from `stop` on are 0."""
    return _load(x, i) if i + LANES <= stop else load_first_every_bit(x, i, stop - i)


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
def _split(x: Array, at: int, cells: int, line: Array, to: int, stride: int, pitch: int, padding: int) -> None:
    """Copy a row of x to a line: one after another, or (stride 2) the even cells first and then the odd ones, `pitch`
    elements apart. padding: cells of the line before the first one."""
    if stride == 1:
        for i in range(0, cells, LANES):
            value = _load_until(x, at + i, at + cells)
            if i + LANES <= cells:
                store(line, to + padding + i, value)
            else:
                store_first(line, to + padding + i, value, cells - i)
    else:
        even = to + (padding & 1) * pitch + (padding >> 1)
        odd = to + ((padding + 1) & 1) * pitch + ((padding + 1) >> 1)
        for i in range(0, cells, 2 * LANES):
            left, rest = _load_until(x, at + i, at + cells), cells - i
            right = left
            if rest > LANES:
                right = _load_until(x, at + i + LANES, at + cells)
            if rest >= 2 * LANES:
                store(line, even + i // 2, evens(left, right))
                store(line, odd + i // 2, odds(left, right))
            else:
                store_first(line, even + i // 2, evens(left, right), (rest + 1) // 2)
                store_first(line, odd + i // 2, odds(left, right), rest // 2)


@functools.cache
def make_forward(width: int, stride: int, separable: bool, save: bool) -> Kernel:
    """The kernel for windows of one size, a stride (1 or 2) apart: y, and with `save` the argmax.

    The rows of x under a window are copied to lines, each one once. A line holds −inf outside of the input, and the
    cells under one tap of neighbouring windows are neighbours in it (`_split`): tap t is `offsets[t]` after the place
    of the window, and edges need no code. If `separable`, the maxima along each row come first, and then the maxima of
    these: the work for a window is the sum of its sizes, not the product.

    width: the window's along a row, in loops that are unrolled; 0: any. `first_taps`: of the windows along a row the
    first taps inside the input, and zeros at the end, which stand for all further windows. `layout`: pitch, padding in
    cells (with channels: in elements) and size of a line; lines that are kept for each depth of a window, a power of
    two; rows of y that are computed together, because what has just been stored cannot be loaded at another place until
    it is in the cache."""

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, like: Array, sizes: Any, taps: Any, dilations: Any, d: Array, h: Array,
        first_taps: Array, offsets: Array, layout: Any, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, out_d, out_h = sizes[0], sizes[1], sizes[3], sizes[4]
        row_size, out_row, lowest = sizes[2] * sizes[6], sizes[5] * sizes[6], broadcast(like, -np.inf)
        pitch, padding, size, ring, together = layout
        number, no_more = U(out_row), U(first_taps.size - LANES)
        kw = U(width) if width > 0 else U(offsets.size)
        lines = np.full(size if separable else taps[0] * ring * size, -np.inf, like.dtype)
        pitch_of_maxima = out_row + LANES
        maxima = np.empty(taps[0] * ring * pitch_of_maxima if separable else 0, like.dtype)
        places = np.empty(maxima.size if save else 0, np.int32)
        rows = together * taps[0] * taps[1]
        row_at, row_tap, begins = np.empty(rows, np.int64), np.empty(rows, np.int32), np.empty(together + 1, np.int64)
        past_caches = stored_past_caches(y)
        target = np.empty(together * out_row, y.dtype) if past_caches else y
        plane, od, oh = start // (out_d * out_h), start // out_h % out_d, start % out_h
        done, unit = 0, start  # rows before `done` are in the ring
        while unit < stop:
            count, rows = min(min(together, stop - unit), out_h - oh), 0
            for i in range(count):
                first_row, cells, tap = np.int64(h[0, oh + i]), np.int64(h[1, oh + i]), np.int64(h[2, oh + i])
                done = max(done, first_row - tap * dilations[1])  # another window may need rows between
                next_row = first_row + (cells - 1) * dilations[1] + 1
                begins[i] = rows
                for td in range(d[1, od]):
                    plane_row = (plane * depth + d[0, od] + td * dilations[0]) * height
                    for row in range(done, next_row):
                        slot = td * ring + (row & (ring - 1))
                        at = 0 if separable else slot * size
                        _split(x, (plane_row + row) * row_size, row_size, lines, at, stride, pitch, padding)
                        if separable:
                            for o in range(U(0), number, U(LANES)):
                                best, place = lowest, load(first_taps, min(o, no_more))
                                for t in range(kw):
                                    value = load(lines, U(offsets[t]) + o)
                                    better = exceeds(value, best)
                                    best = select(better, value, best)
                                    if save:
                                        place = select(better, integers(t), place)
                                store(maxima, U(slot * pitch_of_maxima) + o, best)
                                if save:
                                    store(places, U(slot * pitch_of_maxima) + o, place)
                    for th in range(cells):
                        slot = td * ring + ((first_row + th * dilations[1]) & (ring - 1))
                        row_at[rows] = slot * (pitch_of_maxima if separable else size)
                        row_tap[rows] = ((d[2, od] + td) * taps[1] + tap + th) * taps[2]
                        rows += 1
                done = max(done, next_row)
            begins[count] = rows
            origin = 0 if past_caches else unit * out_row
            for i in range(count):
                begin, end = begins[i], begins[i + 1]
                base = row_tap[begin] if begin < end else 0
                for o in range(U(0), number, U(LANES)):
                    best, place = lowest, add(load(first_taps, min(o, no_more)), integers(base))
                    for k in range(U(begin), U(end)):
                        at = U(row_at[k]) + o
                        if separable:
                            value = load(maxima, at)
                            better = exceeds(value, best)
                            if save:
                                tap = add(load(places, at), integers(row_tap[k]))
                                place = tap if k == U(begin) else select(better, tap, place)  # if all are −inf
                            best = select(better, value, best)
                        else:
                            for t in range(kw):
                                value = load(lines, at + U(offsets[t]))
                                better = exceeds(value, best)
                                best = select(better, value, best)
                                if save:
                                    place = select(better, integers(row_tap[k] + np.int32(t)), place)
                    _store_until(target, origin + i * out_row + np.int64(o), best, origin + count * out_row)
                    if save:
                        to = (unit + i) * out_row + np.int64(o)
                        if to + LANES <= stop * out_row:
                            store(argmax, to, place)
                        else:
                            store_first(argmax, to, place, stop * out_row - to)
            if past_caches:
                copy_past_caches(target, y, unit * out_row, count * out_row)
            unit, oh = unit + count, oh + count
            if oh == out_h:
                oh, od, done = 0, od + 1, 0
                if od == out_d:
                    od, plane = 0, plane + 1
        if past_caches:
            fence()

    return max_pool


@kernel(inlined=True)
def _largest(array: Array, at: Any, number: Any) -> Any:
    """The maximum of 16 contiguous elements or more. Of equal ones, any."""
    best = _load(array, at)
    if number >= 4 * LANES:
        b1, b2, b3 = _load(array, at + LANES), _load(array, at + 2 * LANES), _load(array, at + 3 * LANES)
        for i in range(U(at + 4 * LANES), U(at + number - 4 * LANES + 1), U(4 * LANES)):
            best, b1 = maximum(best, _load(array, i)), maximum(b1, _load(array, i + U(LANES)))
            b2, b3 = maximum(b2, _load(array, i + U(2 * LANES))), maximum(b3, _load(array, i + U(3 * LANES)))
        best = maximum(maximum(best, b1), maximum(b2, b3))
    for i in range(U(at + number - number % (4 * LANES)), U(at + number - LANES + 1), U(LANES)):
        best = maximum(best, _load(array, i))
    return _largest_lane(maximum(best, _load(array, at + number - LANES)))


@kernel(inlined=True)
def _largest_lane(x: Any) -> Any:
    x = maximum(x, slide(x, x, 8))
    x = maximum(x, slide(x, x, 4))
    x = maximum(x, slide(x, x, 2))
    return lane(maximum(x, slide(x, x, 1)), 0)


@kernel(inlined=True)
def _find(x: Array, like: Array, at: Any, number: Any, best: Any) -> Any:
    """Where among `number` elements the first is that equals `best`, or is a NaN as best is: −1 if nowhere. And that
    element: a zero has a sign."""
    sought = broadcast(like, best)
    for i in range(0, number, LANES):
        value = _load_until(x, at + i, at + number)
        found = bit_or(equal(value, sought), bit_and(is_nan(value), is_nan(sought)))
        found = bit_and(found, first_lanes(number - i))
        if any_lane(found):
            place = first_true(found)
            return i + place, lane(value, place)
    return -1, best


@functools.cache
def make_forward_by_window(wide: bool, save: bool) -> Kernel:
    """The kernel for wide windows, and for those that are not 1 or 2 cells apart, of one channel: one after another.

    First the maximum of each column of the rows under a window, then along these. wide: windows are 16 cells wide or
    more, without dilation; the first cell that has the maximum is then found at last, where it matters. Else columns
    have the taps of their maxima, and the lowest tap with the maximum of a window wins."""

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, like: Array, sizes: Any, taps: Any, dilations: Any, d: Array, h: Array,
        w: Array, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, _ = sizes
        line, lowest = np.empty(length + LANES, like.dtype), like.dtype.type(-np.inf)
        tap_of = np.empty(0 if wide else length + LANES, np.int32)
        best_of, place_of = np.empty(out_w + LANES, like.dtype), np.empty(out_w + LANES, np.int32)
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            first_row = (plane * depth + d[0, od]) * height + h[0, oh]
            base = (d[2, od] * taps[1] + h[2, oh]) * taps[2]
            rows_under = d[1, od] * h[1, oh]
            direct = wide and rows_under == 1  # without the maxima of columns
            for c in range(0, 0 if direct else length, LANES):
                best, tap = broadcast(like, -np.inf), integers(base)
                for td in range(d[1, od]):
                    at = (first_row + td * dilations[0] * height) * length + c
                    for th in range(h[1, oh]):
                        row = at + th * dilations[1] * length
                        value = _load_until(x, row, row + length - c)
                        if wide:
                            best = maximum(best, value)
                        else:
                            better = exceeds(value, best)
                            best = select(better, value, best)
                            tap = select(better, integers(base + (td * taps[1] + th) * taps[2]), tap)
                store(line, c, best)
                if not wide:
                    store(tap_of, c, tap)
            for o in range(out_w):
                first, cells, place = np.int64(w[0, o]), np.int64(w[1, o]), np.int64(base + w[2, o])
                best = lowest
                if rows_under == 0:
                    cells = 0
                if wide and cells > 0:
                    if direct and cells >= LANES:
                        best = _largest(x, first_row * length + first, cells)
                    elif cells >= LANES:
                        best = _largest(line, first, cells)
                    else:  # a window that overhangs the input
                        for i in range(cells):
                            value = load_first_every_bit(x, first_row * length + first + i, 1)
                            one = lane(value, 0) if direct else line[U(first + i)]
                            best = one if (not (one <= best)) & (best == best) else best
                    if save or best == 0 or best != best:
                        i, found = 0, -1
                        while found < 0 and i < rows_under:
                            td, th = i // h[1, oh], i % h[1, oh]
                            at = (first_row + td * dilations[0] * height + th * dilations[1]) * length + first
                            found, value = _find(x, like, at, cells, best)
                            if found >= 0:
                                best, place = value, place + (td * taps[1] + th) * taps[2] + found
                            i += 1
                elif not wide:
                    for i in range(cells):
                        column = U(first + i * dilations[2])
                        value, tap = line[column], np.int64(tap_of[column]) + w[2, o] + i
                        larger = (not (value <= best)) & (best == best)
                        same = (value == best) | ((value != value) & (best != best))
                        if larger | (same & (tap < place)) | (i == 0):
                            best, place = value, tap
                best_of[o], place_of[o] = best, place
            for o in range(0, out_w, LANES):
                to, end = unit * out_w + o, stop * out_w
                _store_until(y, to, load(best_of, o), end)
                if save and to + LANES <= end:
                    store(argmax, to, load(place_of, o))
                elif save:
                    store_first(argmax, to, load(place_of, o), end - to)

    return max_pool


@functools.cache
def make_forward_by_cell(narrow: bool, save: bool) -> Kernel:
    """The kernel for any windows of cells of many channels: 16 channels at a time, tap by tap.

    narrow: cells have fewer than 16 channels."""

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, like: Array, sizes: Any, taps: Any, dilations: Any, d: Array, h: Array,
        w: Array, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, channels = sizes
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            first_row = (plane * depth + d[0, od]) * height + h[0, oh]
            base = (d[2, od] * taps[1] + h[2, oh]) * taps[2]
            for o in range(out_w):
                to = (unit * out_w + o) * channels
                for block in range(0, channels, LANES):
                    c = block if narrow else min(block, channels - LANES)  # the last may overlap the one before
                    best, place = broadcast(like, -np.inf), integers(base + w[2, o])
                    for td in range(d[1, od]):
                        for th in range(h[1, oh]):
                            row = (first_row + td * dilations[0] * height + th * dilations[1]) * length + w[0, o]
                            at, tap = U(row * channels + c), base + (td * taps[1] + th) * taps[2] + w[2, o]
                            for t in range(U(w[1, o])):
                                here = at + t * U(dilations[2] * channels)
                                value = load_first_every_bit(x, here, channels) if narrow else _load(x, here)
                                better = exceeds(value, best)
                                best = select(better, value, best)
                                if save:
                                    place = select(better, integers(tap + np.int64(t)), place)
                    if narrow:
                        store_first_every_bit(y, to, best, channels)
                        if save:
                            store_first(argmax, to, place, channels)
                    else:
                        _store_until(y, to + c, best, to + channels)
                        if save:
                            store(argmax, to + c, place)

    return max_pool
