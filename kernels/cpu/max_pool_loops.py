"""Max pooling's loops, over rows of windows (forward) or over planes (backward), from `start` to `stop`.

Arrays are flat: (planes, depth, height, width, channels). `sizes` are depth, height and width of x, those of y, and
channels; `taps` the window's height and width; `steps` its dilations. `argmax` is the tap of each window's maximum. The
tables `d h w` have, for each window of an axis: in forward its first cell, its number of cells and the tap over the
first (windows.cells_under_windows); in backward the cell under its first tap, which may be outside, and its number of
cells (windows.window_starts).

Each window starts with −inf at its first tap inside the input, so that a window without cells gives −inf. A cell
replaces the maximum if it is larger, or if it is the first NaN: `not (value <= maximum)`, and maximum is a number.
Inner loops index complete arrays with unsigned offsets, so that the compiler can vectorise them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel

Array = Any
Kernel = Any
U = np.uintp
BLOCK_WINDOWS = (32, 16)  # windows of a row that are computed together
CLEAR_AHEAD = 256  # cells that backward sets to 0 at a time, at least
LANES = 8  # of a vector; a line's length is a multiple, so that vectorised loops need no remainder


@functools.cache
def make_forward(width: int, stride: int, save: bool) -> Kernel:
    """The kernel for one channel a cell: y, and with `save` the argmax.

    Each row of x is first copied to a line, in parts of `pitch` cells, so that the cells under one tap of neighbouring
    windows are neighbours in the line. The rest of the line is −inf, which replaces nothing. So edges and the ends of
    vectors need no loops of their own, and no branch depends on a value.

    width, stride: of the window along a row, in loops that are unrolled; 0 stands for any, and the stride is then
    `stride_w`. `w`: the first taps of the first windows; those of all others are 0. `padding_w`: the place of a row's
    first cell."""

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
        pitch: int, stride_w: int, padding_w: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, _ = sizes
        parts, number = stride if stride > 0 else stride_w, U(-(-out_w // LANES) * LANES)
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
                    to = U((r + padding_w) % parts * pitch + (r + padding_w) // parts)
                    for j in range(U((length - r + parts - 1) // parts)):
                        line[to + j] = x[row + U(r) + j * U(parts)]
                tap = base + (td * taps[0] + th) * taps[1]
                if width > 0:
                    for o in range(number):
                        maximum, maximum_tap = best[o], best_tap[o]
                        for t in range(width):
                            value = line[U(t % stride * pitch + t // stride) + o]
                            better = (not (value <= maximum)) & (maximum == maximum)
                            maximum = value if better else maximum
                            maximum_tap = np.int32(tap + t) if better else maximum_tap
                        best[o] = maximum
                        if save:
                            best_tap[o] = maximum_tap
                else:
                    for t in range(taps[1]):
                        cell, this = t * steps[2], np.int32(tap + t)
                        at = U(cell % parts * pitch + cell // parts)
                        for o in range(number):
                            value, maximum = line[at + o], best[o]
                            better = (not (value <= maximum)) & (maximum == maximum)
                            best[o] = value if better else maximum
                            if save:
                                best_tap[o] = this if better else best_tap[o]
            for o in range(U(out_w)):
                y[U(unit * out_w) + o] = best[o]
                if save:
                    argmax[U(unit * out_w) + o] = best_tap[o]

    return max_pool


@functools.cache
def make_forward_pairs(rows: int, size: int, save: bool) -> Kernel:
    """The kernel for windows of one or two rows of two neighbours, side by side and inside the input.

    A row has at least `size` windows. They are computed in blocks of `size`, without copying the row to a line."""

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
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
                    maximum, maximum_tap = x[above + o * U(2)], np.int32(0)
                    for i in range(1, 2 * rows):
                        value = x[(above if i < 2 else below) + o * U(2) + U(i % 2)]
                        better = (not (value <= maximum)) & (maximum == maximum)
                        maximum = value if better else maximum
                        if save:
                            maximum_tap = np.int32(i) if better else maximum_tap
                    y[to + o] = maximum
                    if save:
                        argmax[to + o] = maximum_tap

    return max_pool


@functools.cache
def make_forward_per_tap(save: bool) -> Kernel:
    """The kernel for any windows and any number of channels: tap by tap, over the channels of a cell."""

    @kernel()
    def max_pool(
        x: Array, y: Array, argmax: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
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
                        argmax[to + c] = base + w[2, o]
                for td in range(d[1, od]):
                    for th in range(h[1, oh]):
                        row = first + td * steps[0] * height + th * steps[1]
                        for t in range(w[1, o]):
                            at = U((row * length + w[0, o] + t * steps[2]) * channels)
                            tap = argmax.dtype.type(base + (td * taps[0] + th) * taps[1] + w[2, o] + t)
                            for c in range(U(channels)):
                                value, best = x[at + c], y[to + c]
                                better = (not (value <= best)) & (best == best)
                                y[to + c] = value if better else best
                                if save:
                                    argmax[to + c] = tap if better else argmax[to + c]

    return max_pool


@kernel()
def tie_bits(
    x: Array, y: Array, bits: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """The tie bits, (bytes, *y): bit `tap` is set if that cell equals the window's maximum, or both are NaN."""
    depth, height, length, out_d, out_h, out_w, channels = sizes
    number = bits.size // y.size  # bytes for each window
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
def backward_simple(
    dy: Array, argmax: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, d: Array, h: Array, w: Array,
    stride_w: int, padding_w: int, start: int, stop: int,
) -> None:  # fmt: skip
    """`backward` for one channel a cell if every window sees a cell: it takes a third of the time.

    dx is set to 0 only shortly before the windows come, so that it is still in the cache. `stride_w`: from one window
    of a row to the next; `padding_w`: the padding before the first one. If stride_w is 0, `w` has the starts."""
    depth, height, length, out_d, out_h, out_w, _ = sizes
    size, rows = depth * height * length, out_d * out_h
    last = (out_w - 1) * stride_w - padding_w if stride_w > 0 else w[0, out_w - 1]
    row_extent = last + offsets[offsets.size - 1] + 1  # cells from the start of a row to the end of its last window
    for plane in range(start, stop):
        cleared, end = plane * size, (plane + 1) * size
        for row in range(rows):
            od, oh = row // out_h, row % out_h
            begin = ((plane * depth + d[0, od]) * height + h[0, oh]) * length
            needed = begin + row_extent if row + 1 < rows else end
            if needed > cleared:
                until = min(max(needed, cleared + CLEAR_AHEAD), end)
                for i in range(U(cleared), U(until)):
                    dx[i] = 0
                cleared = until
            first = U((plane * rows + row) * out_w)
            for o in range(U(out_w)):
                from_row = np.int64(o) * stride_w - padding_w if stride_w > 0 else np.int64(w[0, o])
                cell = U(begin + from_row + offsets[U(argmax[first + o])])
                dx[cell] = dy[first + o] if disjoint else dx[cell] + dy[first + o]


@kernel()
def backward(
    dy: Array, argmax: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, d: Array, h: Array, w: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """dx from dy and the argmax: each plane is set to 0, which loads it into the cache, then its windows are added in C
    order.

    `offsets` are the cells under a window's taps, relative to its start."""
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
                    cell = U(begin + w[0, o] + offsets[U(argmax[here + c])]) * U(channels) + c
                    dx[cell] = dy[here + c] if disjoint else dx[cell] + dy[here + c]


@kernel()
def ties_backward(
    dy: Array, bits: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, split: bool,
    d: Array, h: Array, w: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """dx from dy and the tie bits: each cell whose bit is set gets dy, or if `split` an equal share of it."""
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
def flat_indices(
    argmax: Array, indices: Array, sizes: Any, offsets: Array, d: Array, h: Array, w: Array, start: int, stop: int
) -> None:
    """The flat cell of each maximum in its plane; -1 if the window sees no cell."""
    _, height, length, out_d, out_h, out_w, channels = sizes
    for unit in range(start, stop):
        od, oh = unit % (out_d * out_h) // out_h, unit % out_h
        begin = (d[0, od] * height + h[0, oh]) * length
        for o in range(out_w):
            has_cells = d[1, od] > 0 and h[1, oh] > 0 and w[1, o] > 0
            for at in range(U((unit * out_w + o) * channels), U((unit * out_w + o + 1) * channels)):
                indices[at] = begin + w[0, o] + offsets[U(argmax[at])] if has_cells else -1
