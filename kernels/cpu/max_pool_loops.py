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
from .vectors import (
    LANES,
    add,
    any_lane,
    bit_and,
    bit_or,
    broadcast,
    equal,
    exceeds,
    first_lanes,
    first_true,
    integers,
    is_nan,
    lane,
    maximum,
    select,
    slide,
)
from .vectors import load_every_bit as load
from .vectors import load_first_every_bit as load_first
from .vectors import store_every_bit as store
from .vectors import store_first_every_bit as store_first
from .window_lines import make_split

Array = Any
Kernel = Any
U = np.uintp


@kernel(inlined=True)
def _store(y: Array, to: Any, value: Any, end: Any) -> None:
    """Store 16 lanes, or fewer at the end of a chunk. What lies past a row's end is overwritten by the next row."""
    if to + LANES <= end:
        store(y, to, value)
    else:
        store_first(y, to, value, end - to)


@functools.cache
def make_forward(width: int, stride: int, single: bool, separable: bool, save: bool) -> Kernel:
    """The kernel for windows of one size, a stride apart: y, and with `save` the argmax.

    The rows of x under a window are copied to lines (window_lines.py), each one once. If `separable`, the maxima along
    each row come first, and then the maxima of these: the work for a window is the sum of its sizes, not the product.

    width: the window's along a row, in loops that are unrolled; 0: any. stride: 1, 2, or 0 for any. single: a cell has
    one channel. `first_taps`: of the windows along a row the first taps inside the input, and zeros at the end, which
    stand for all further windows. `layout`: parts, pitch, padding and size of a line. `ring`: lines that are kept for
    each depth of a window, a power of two."""
    split = make_split(stride, single)

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, like: Array, sizes: Any, taps: Any, dilations: Any, d: Array, h: Array,
        first_taps: Array, offsets: Array, layout: Any, ring: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, channels = sizes
        if single:
            channels = 1
        number, end, lowest = U(out_w * channels), stop * out_w * channels, broadcast(like, -np.inf)
        parts, pitch, padding, size = layout
        no_more = U(first_taps.size - LANES)
        kw = U(width) if width > 0 else U(offsets.size)
        lines = np.full(size if separable else taps[0] * ring * size, -np.inf, like.dtype)
        pitch_of_maxima = out_w * channels + LANES
        maxima = np.empty(taps[0] * ring * pitch_of_maxima if separable else 0, like.dtype)
        places = np.empty(maxima.size if save else 0, np.int32)
        row_at, row_tap = np.empty(taps[0] * taps[1], np.int64), np.empty(taps[0] * taps[1], np.int32)
        plane, od, oh = start // (out_d * out_h), start // out_h % out_d, start % out_h
        done = 0  # rows before this one are in the ring
        for unit in range(start, stop):
            first = max(0, h[0, oh] - h[2, oh] * dilations[1])  # a later window may need rows that this one passes over
            done = first if unit == start or oh == 0 else max(done, first)
            rows_under, next_row = 0, h[0, oh] + (h[1, oh] - 1) * dilations[1] + 1
            for td in range(d[1, od]):
                first_row = (plane * depth + d[0, od] + td * dilations[0]) * height
                for row in range(done, next_row):
                    slot = td * ring + (row & (ring - 1))
                    at = 0 if separable else slot * size
                    split(x, (first_row + row) * length * channels, length, channels, lines, at, parts, pitch, padding)
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
                for th in range(h[1, oh]):
                    slot = td * ring + ((h[0, oh] + th * dilations[1]) & (ring - 1))
                    row_at[rows_under] = slot * (pitch_of_maxima if separable else size)
                    row_tap[rows_under] = ((d[2, od] + td) * taps[1] + h[2, oh] + th) * taps[2]
                    rows_under += 1
            done = max(done, next_row)
            base = row_tap[0] if rows_under > 0 else 0
            for o in range(U(0), number, U(LANES)):
                best, place = lowest, add(load(first_taps, min(o, no_more)), integers(base))
                for i in range(U(rows_under)):
                    at = U(row_at[i]) + o
                    if separable:
                        value = load(maxima, at)
                        better = exceeds(value, best)
                        if save:
                            tap = add(load(places, at), integers(row_tap[i]))
                            place = tap if i == U(0) else select(better, tap, place)  # the first, if all are −inf
                        best = select(better, value, best)
                    else:
                        for t in range(kw):
                            value = load(lines, at + U(offsets[t]))
                            better = exceeds(value, best)
                            best = select(better, value, best)
                            if save:
                                place = select(better, integers(row_tap[i] + np.int32(t)), place)
                to = unit * out_w * channels + np.int64(o)
                _store(y, to, best, end)
                if save:
                    _store(argmax, to, place, end)
            oh += 1
            if oh == out_h:
                oh, od = 0, od + 1
                if od == out_d:
                    od, plane = 0, plane + 1

    return max_pool


@kernel(inlined=True)
def _largest(array: Array, at: Any, number: Any) -> Any:
    """The maximum of 16 contiguous elements or more. Of equal ones, any."""
    best = load(array, at)
    if number >= 4 * LANES:
        b1, b2, b3 = load(array, at + LANES), load(array, at + 2 * LANES), load(array, at + 3 * LANES)
        for i in range(U(at + 4 * LANES), U(at + number - 4 * LANES + 1), U(4 * LANES)):
            best, b1 = maximum(best, load(array, i)), maximum(b1, load(array, i + U(LANES)))
            b2, b3 = maximum(b2, load(array, i + U(2 * LANES))), maximum(b3, load(array, i + U(3 * LANES)))
        best = maximum(maximum(best, b1), maximum(b2, b3))
    for i in range(U(at + number - number % (4 * LANES)), U(at + number - LANES + 1), U(LANES)):
        best = maximum(best, load(array, i))
    return _largest_lane(maximum(best, load(array, at + number - LANES)))


@kernel(inlined=True)
def _largest_lane(x: Any) -> Any:
    x = maximum(x, slide(x, x, 8))
    x = maximum(x, slide(x, x, 4))
    x = maximum(x, slide(x, x, 2))
    return lane(maximum(x, slide(x, x, 1)), 0)


@kernel(inlined=True)
def _find(x: Array, like: Array, at: Any, number: Any, step: Any, best: Any) -> Any:
    """Where among `number` elements, `step` apart, the first is that equals `best`, or is a NaN as best is: −1 if
    nowhere. And that element: a zero has a sign."""
    sought = broadcast(like, best)
    for i in range(0, number, LANES if step == 1 else 1):
        count = min(number - i, LANES) if step == 1 else 1
        value = load_first(x, at + i * step, count)
        found = bit_or(equal(value, sought), bit_and(is_nan(value), is_nan(sought)))
        found = bit_and(found, first_lanes(count))
        if any_lane(found):
            place = first_true(found)
            return i + place, lane(value, place)
    return -1, best


@functools.cache
def make_forward_by_window(save: bool) -> Kernel:
    """The kernel for wide windows, and for those that are not a stride apart, of one channel: one after another.

    First the maximum of each column of the rows under a window, then along these, and last, where it matters, the first
    cell that has this value."""

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, like: Array, sizes: Any, taps: Any, dilations: Any, d: Array, h: Array,
        w: Array, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, _ = sizes
        line, lowest = np.empty(length + LANES, like.dtype), like.dtype.type(-np.inf)
        best_of, place_of = np.empty(out_w + LANES, like.dtype), np.empty(out_w + LANES, np.int32)
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
            first_row = (plane * depth + d[0, od]) * height + h[0, oh]
            base = (d[2, od] * taps[1] + h[2, oh]) * taps[2]
            rows_under = d[1, od] * h[1, oh]
            direct = rows_under == 1 and taps[2] >= LANES and dilations[2] == 1  # without the maxima of columns
            if rows_under > 0 and not direct:
                for c in range(0, length, LANES):
                    best = broadcast(like, -np.inf)
                    for td in range(d[1, od]):
                        at = (first_row + td * dilations[0] * height) * length + c
                        for th in range(h[1, oh]):
                            row = at + th * dilations[1] * length
                            if c + LANES <= length:
                                best = maximum(best, load(x, row))
                            else:
                                best = maximum(best, load_first(x, row, length - c))
                    store(line, c, best)
            for o in range(out_w):
                first, cells_in_row, place = w[0, o], np.int64(w[1, o]), np.int64(base + w[2, o])
                best = lowest
                if rows_under > 0 and cells_in_row >= LANES and dilations[2] == 1:
                    if direct:
                        best = _largest(x, first_row * length + first, cells_in_row)
                    else:
                        best = _largest(line, np.int64(first), cells_in_row)
                elif direct:
                    value = load_first(x, first_row * length + first, cells_in_row)
                    best = _largest_lane(select(first_lanes(cells_in_row), value, broadcast(like, -np.inf)))
                elif rows_under > 0:
                    for i in range(cells_in_row):
                        value = line[U(first + i * dilations[2])]
                        best = value if (not (value <= best)) & (best == best) else best
                if rows_under > 0 and (save or best == 0 or best != best):
                    i, found = 0, -1
                    while found < 0 and i < rows_under:
                        td, th = i // h[1, oh], i % h[1, oh]
                        at = (first_row + td * dilations[0] * height + th * dilations[1]) * length + first
                        found, value = _find(x, like, at, cells_in_row, dilations[2], best)
                        if found >= 0:
                            best, place = value, place + (td * taps[1] + th) * taps[2] + found
                        i += 1
                best_of[o], place_of[o] = best, place
            for o in range(0, out_w, LANES):
                _store(y, unit * out_w + o, load(best_of, o), stop * out_w)
                if save:
                    _store(argmax, unit * out_w + o, load(place_of, o), stop * out_w)

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
                                value = load_first(x, here, channels) if narrow else load(x, here)
                                better = exceeds(value, best)
                                best = select(better, value, best)
                                if save:
                                    place = select(better, integers(tap + np.int64(t)), place)
                    if narrow:
                        store_first(y, to, best, channels)
                        if save:
                            store_first(argmax, to, place, channels)
                    else:
                        store(y, to + c, best)
                        if save:
                            store(argmax, to + c, place)

    return max_pool
