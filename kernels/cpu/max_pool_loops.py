"""Max pooling's loops, over rows of windows (forward) or over planes (backward), from `start` to `stop`.

Arrays are flat: (planes, depth, height, width, channels). `sizes` are those of the arrays: depth, height, width of x,
then of y, and the channels; `taps` the window's height and width, `steps` its dilations. Tables `d h w` have for each
window along an axis: in forward its first cell, its number of cells and the tap over the first (pool_window.cells_of);
in backward the cell under its first tap, be it there or not, and its number of cells (pool_window.starts_of).

Each window begins with −inf under its first tap that meets the input, so that no cell is written where none is met; a
cell replaces what is held if it is larger, or the first NaN: `not (value <= held)` and held is a number.
Inner loops have unsigned offsets from whole arrays, which is what lets them be vectorised.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel

Array = Any
Kernel = Any
U = np.uintp
BLOCKS = (32, 16)  # windows of a row whose taps are all taken at once
AHEAD = 256  # cells, at least, that backward clears at a time
LANES = 8  # a line's length is a multiple of it, so that vectorised loops leave nothing over


@functools.cache
def forward(width: int, stride: int, save: bool) -> Kernel:
    """The loops for one channel a cell: y, and with `save` the place of each maximum within its window.

    Each row of x is laid out in a line first, in parts of `pitch`, so that a tap's cells for neighbouring windows are
    neighbours there too. What no cell is laid on stays −inf, which replaces nothing. So neither the edges nor what a
    vectorised loop would leave over cost a loop of their own, and no branch hangs on a value.

    `width` and `stride` are the window's along a row, in loops that are unrolled; 0: any, the stride is `every`. `w`:
    the first taps of the first windows, those of all others being 0; `before`: the place of a row's first cell."""

    @kernel()
    def max_pool(
        x: Array, y: Array, place: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
        pitch: int, every: int, before: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, _ = sizes
        parts, number = stride if stride > 0 else every, U(-(-out_w // LANES) * LANES)
        line, best = np.full(parts * pitch, -np.inf, x.dtype), np.empty(number, x.dtype)
        best_tap, first_tap = np.empty(number, np.int32), np.zeros(number, np.int32)
        first_tap[: w.size] = w
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit % (out_d * out_h) // out_h, unit % out_h
            first = (plane * depth + d[0, od]) * height + h[0, oh]
            base = (d[2, od] * taps[0] + h[2, oh]) * taps[1]
            for o in range(number):
                best[o] = -np.inf
                best_tap[o] = first_tap[o] + np.int32(base)
            for i in range(d[1, od] * h[1, oh]):
                td, th = i // h[1, oh], i % h[1, oh]
                row = U((first + td * steps[0] * height + th * steps[1]) * length)
                for r in range(parts):  # cell j * parts + r goes to the j-th place of its part
                    to = U((r + before) % parts * pitch + (r + before) // parts)
                    for j in range(U((length - r + parts - 1) // parts)):
                        line[to + j] = x[row + U(r) + j * U(parts)]
                tap = base + (td * taps[0] + th) * taps[1]
                if width > 0:
                    for o in range(number):
                        held, held_tap = best[o], best_tap[o]
                        for t in range(width):
                            value = line[U(t % stride * pitch + t // stride) + o]
                            better = (not (value <= held)) & (held == held)
                            held = value if better else held
                            held_tap = np.int32(tap + t) if better else held_tap
                        best[o] = held
                        if save:
                            best_tap[o] = held_tap
                else:
                    for t in range(taps[1]):
                        cell, this = t * steps[2], np.int32(tap + t)
                        at = U(cell % parts * pitch + cell // parts)
                        for o in range(number):
                            value, held = line[at + o], best[o]
                            better = (not (value <= held)) & (held == held)
                            best[o] = value if better else held
                            if save:
                                best_tap[o] = this if better else best_tap[o]
            for o in range(U(out_w)):
                y[U(unit * out_w) + o] = best[o]
                if save:
                    place[U(unit * out_w) + o] = best_tap[o]

    return max_pool


@functools.cache
def forward_pairs(rows: int, size: int, save: bool) -> Kernel:
    """The same for windows of one or two rows of two neighbours, side by side, that all lie inside the input, at least
    `size` of them a row: by blocks of so many, without a line between."""

    @kernel()
    def max_pool(
        x: Array, y: Array, place: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
        start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, _ = sizes
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit % (out_d * out_h) // out_h, unit % out_h
            row = ((plane * depth + d[0, od]) * height + h[0, oh]) * length
            for block in range((out_w + size - 1) // size):
                first = min(block * size, out_w - size)  # the last one may overlap the one before
                above, to = U(row + 2 * first), U(unit * out_w + first)
                below = above + U(steps[1] * length)
                for o in range(U(size)):
                    held, held_tap = x[above + o * U(2)], np.int32(0)
                    for i in range(1, 2 * rows):
                        value = x[(above if i < 2 else below) + o * U(2) + U(i % 2)]
                        better = (not (value <= held)) & (held == held)
                        held = value if better else held
                        if save:
                            held_tap = np.int32(i) if better else held_tap
                    y[to + o] = held
                    if save:
                        place[to + o] = held_tap

    return max_pool


@functools.cache
def forward_cells(save: bool) -> Kernel:
    """The same for any windows, and cells of several channels: tap by tap over a cell's channels."""

    @kernel()
    def max_pool(
        x: Array, y: Array, place: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
        start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, channels = sizes
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit % (out_d * out_h) // out_h, unit % out_h
            first = (plane * depth + d[0, od]) * height + h[0, oh]
            base = (d[2, od] * taps[0] + h[2, oh]) * taps[1]
            for o in range(out_w):
                to = U((unit * out_w + o) * channels)
                for c in range(U(channels)):
                    y[to + c] = -np.inf
                    if save:
                        place[to + c] = base + w[2, o]
                for td in range(d[1, od]):
                    for th in range(h[1, oh]):
                        row = first + td * steps[0] * height + th * steps[1]
                        for t in range(w[1, o]):
                            at = U((row * length + w[0, o] + t * steps[2]) * channels)
                            tap = place.dtype.type(base + (td * taps[0] + th) * taps[1] + w[2, o] + t)
                            for c in range(U(channels)):
                                value, best = x[at + c], y[to + c]
                                better = (not (value <= best)) & (best == best)
                                y[to + c] = value if better else best
                                if save:
                                    place[to + c] = tap if better else place[to + c]

    return max_pool


@kernel()
def ties(
    x: Array, y: Array, bits: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """The bits, (bytes, *y): bit `place` is set where that cell equals the window's maximum, or both are NaN."""
    depth, height, length, out_d, out_h, out_w, channels = sizes
    number = bits.size // y.size  # bytes of a window
    for unit in range(start, stop):
        plane, row = unit // (out_d * out_h), unit % (out_d * out_h)
        od, oh = row // out_h, row % out_h
        to = U(unit * out_w * channels)
        for byte in range(number):
            for c in range(U(out_w * channels)):
                bits[U(byte * y.size) + to + c] = 0
        for i in range(d[1, od] * h[1, oh]):
            td, th = i // h[1, oh], i % h[1, oh]
            at = (plane * depth + d[0, od] + td * steps[0]) * height + h[0, oh] + th * steps[1]
            base = ((d[2, od] + td) * taps[0] + h[2, oh] + th) * taps[1]
            for o in range(out_w):
                here = to + U(o * channels)
                for t in range(w[1, o]):
                    cell = U((at * length + w[0, o] + t * steps[2]) * channels)
                    tap = base + w[2, o] + t
                    into, bit = U(tap // 8 * y.size) + here, np.uint8(1 << tap % 8)
                    for c in range(U(channels)):
                        value, best = x[cell + c], y[here + c]
                        equal = (value == best) | ((value != value) & (best != best))
                        bits[into + c] |= bit if equal else np.uint8(0)


@kernel()
def backward_plain(
    dy: Array, place: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, d: Array, h: Array, w: Array,
    every: int, before: int, start: int, stop: int,
) -> None:  # fmt: skip
    """`backward` for one channel a cell, where every window meets a cell: a third of its time. dx is cleared not far
    ahead of the windows, so that it is still in the cache when they come. `every`: from the start of a row's window to
    the next one's, `before` the padding of the first; 0: they are in `w`."""
    depth, height, length, out_d, out_h, out_w, _ = sizes
    size, rows = depth * height * length, out_d * out_h
    last = (out_w - 1) * every - before if every > 0 else w[0, out_w - 1]
    far = last + offsets[offsets.size - 1] + 1  # from a row's start to behind its last window's last tap
    for plane in range(start, stop):
        clear, end = plane * size, (plane + 1) * size
        for row in range(rows):
            od, oh = row // out_h, row % out_h
            begin = ((plane * depth + d[0, od]) * height + h[0, oh]) * length
            reach = begin + far if row + 1 < rows else end
            if reach > clear:
                until = min(max(reach, clear + AHEAD), end)
                for i in range(U(clear), U(until)):
                    dx[i] = 0
                clear = until
            first = U((plane * rows + row) * out_w)
            for o in range(U(out_w)):
                from_row = np.int64(o) * every - before if every > 0 else np.int64(w[0, o])
                cell = U(begin + from_row + offsets[U(place[first + o])])
                dx[cell] = dy[first + o] if disjoint else dx[cell] + dy[first + o]


@kernel()
def backward(
    dy: Array, place: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, d: Array, h: Array, w: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """dx: each plane is cleared, which brings it into the cache, then its windows, in C order, add dy where their
    maximum lies. `offsets` are the cells of a window's taps relative to its start."""
    depth, height, length, out_d, out_h, out_w, channels = sizes
    size = depth * height * length * channels
    for plane in range(start, stop):
        for i in range(U(plane * size), U((plane + 1) * size)):
            dx[i] = 0
        for row in range(out_d * out_h):
            od, oh = row // out_h, row % out_h
            if d[1, od] == 0 or h[1, oh] == 0:
                continue
            begin = ((plane * depth + d[0, od]) * height + h[0, oh]) * length
            first = (plane * out_d * out_h + row) * out_w
            for o in range(U(out_w)):
                if w[1, o] == 0:
                    continue
                here = (U(first) + o) * U(channels)
                for c in range(U(channels)):
                    cell = U(begin + w[0, o] + offsets[U(place[here + c])]) * U(channels) + c
                    dx[cell] = dy[here + c] if disjoint else dx[cell] + dy[here + c]


@kernel()
def ties_backward(
    dy: Array, bits: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, split: bool,
    d: Array, h: Array, w: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """The same from tie bits: to each cell whose bit is set dy, or its equal share of it."""
    depth, height, length, out_d, out_h, out_w, channels = sizes
    size = depth * height * length * channels
    for plane in range(start, stop):
        for i in range(U(plane * size), U((plane + 1) * size)):
            dx[i] = 0
        for row in range(out_d * out_h):
            od, oh = row // out_h, row % out_h
            begin = ((plane * depth + d[0, od]) * height + h[0, oh]) * length
            first = (plane * out_d * out_h + row) * out_w
            for o in range(out_w):
                for c in range(channels):
                    at = (first + o) * channels + c
                    share = dy[at]
                    if split:
                        number = 0
                        for tap in range(offsets.size):
                            number += bits[tap // 8 * dy.size + at] >> tap % 8 & 1
                        share = share / dy.dtype.type(max(number, 1))
                    for tap in range(offsets.size):
                        if bits[tap // 8 * dy.size + at] >> tap % 8 & 1:
                            cell = (begin + w[0, o] + offsets[tap]) * channels + c
                            dx[cell] = share if disjoint else dx[cell] + share


@kernel()
def numbered(
    place: Array, indices: Array, sizes: Any, offsets: Array, d: Array, h: Array, w: Array, start: int, stop: int
) -> None:
    """The flat cell of each maximum in its plane, from its place in the window; -1 where a window meets none."""
    _, height, length, out_d, out_h, out_w, channels = sizes
    for unit in range(start, stop):
        od, oh = unit % (out_d * out_h) // out_h, unit % out_h
        begin = (d[0, od] * height + h[0, oh]) * length
        for o in range(out_w):
            meets = d[1, od] > 0 and h[1, oh] > 0 and w[1, o] > 0
            for at in range(U((unit * out_w + o) * channels), U((unit * out_w + o + 1) * channels)):
                indices[at] = begin + w[0, o] + offsets[U(place[at])] if meets else -1
