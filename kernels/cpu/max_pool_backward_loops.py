"""Max pooling's loops from the argmax or the tie bits, over planes from `start` to `stop`, and the tie bits themselves.

Arrays and `sizes` are as in max_pool_loops.py. `offsets` are the cells under a window's taps, relative to its start.
The tables `d h w` have, for each window of an axis, the cell under its first tap, which may be outside, and its number
of cells (windows.starts_and_counts); for `tie_bits` and its rows of windows those of the forward."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .past_caches import copy_past_caches, stored_past_caches
from .vectors import fence

Array = Any
Kernel = Any
U = np.uintp
PLANE_BYTES = 1 << 18  # of a plane that is computed in a core's cache, at most
CLEAR_AHEAD = 256  # elements that backward sets to 0 at a time, at least


@kernel()
def tie_bits(
    x: Array, y: Array, bits: Array, sizes: Any, taps: Any, dilations: Any, d: Array, h: Array, w: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """The tie bits, (bytes, *y): bit `tap` is set if that cell equals the window's maximum, or both are NaN."""
    depth, height, length, out_d, out_h, out_w, channels = sizes
    number = bits.size // y.size  # bytes for each window
    for unit in range(start, stop):
        plane, od, oh = unit // (out_d * out_h), unit // out_h % out_d, unit % out_h
        to = U(unit * out_w * channels)
        for byte in range(number):
            for c in range(U(out_w * channels)):
                bits[U(byte * y.size) + to + c] = 0
        for i in range(d[1, od] * h[1, oh]):
            td, th = i // h[1, oh], i % h[1, oh]
            at = (plane * depth + d[0, od] + td * dilations[0]) * height + h[0, oh] + th * dilations[1]
            base = ((d[2, od] + td) * taps[1] + h[2, oh] + th) * taps[2]
            for o in range(out_w):
                here = to + U(o * channels)
                for t in range(w[1, o]):
                    cell = U((at * length + w[0, o] + t * dilations[2]) * channels)
                    tap = base + w[2, o] + t
                    into, bit = U(tap // 8 * y.size) + here, np.uint8(1 << tap % 8)
                    for c in range(U(channels)):
                        value, best = x[cell + c], y[here + c]
                        equal = (value == best) | ((value != value) & (best != best))
                        bits[into + c] |= bit if equal else np.uint8(0)


@functools.cache
def make_backward(ties: str, simple: bool) -> Kernel:
    """The kernel of dx from dy and what was saved: at each cell the windows over it are added in C order.

    ties: "first" for the argmax; "all" or "split" for the tie bits: each cell whose bit is set gets dy, or an equal
    part of it. simple: one channel a cell, and every window sees a cell: it takes a third of the time. `stride`: from
    one window of a row to the next, and `padding` before the first one; if stride is 0, `w` has the starts.

    dx is set to 0 only shortly before the windows come, so that it is still in the cache."""

    @kernel()
    def backward(
        dy: Array, saved: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, d: Array, h: Array, w: Array,
        stride: int, padding: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, channels = sizes
        size = depth * height * length * channels
        last = (out_w - 1) * stride - padding if stride > 0 else w[0, out_w - 1]
        row_extent = last + offsets[offsets.size - 1] + 1  # cells from the start of a row to the end of its last window
        past_caches = stored_past_caches(dx) and size * dx.itemsize <= PLANE_BYTES
        target = np.empty(size, dx.dtype) if past_caches else dx
        cleared, limit = start * size, stop * size
        for plane in range(start, stop):
            origin = plane * size
            if past_caches:
                origin, cleared, limit = 0, 0, size
            od, oh = 0, -1
            for row in range(out_d * out_h):
                oh += 1
                if oh == out_h:
                    oh, od = 0, od + 1
                begin = (d[0, od] * height + h[0, oh]) * length
                needed = origin + (begin + row_extent) * channels if row + 1 < out_d * out_h else origin + size
                if needed > cleared:
                    until = min(max(needed, cleared + CLEAR_AHEAD), limit)
                    for i in range(U(cleared), U(until)):
                        target[i] = 0
                    cleared = until
                if not simple and (d[1, od] == 0 or h[1, oh] == 0):
                    continue
                first = U(((plane * out_d * out_h) + row) * out_w)
                for o in range(U(out_w)):
                    from_row = np.int64(o) * stride - padding if stride > 0 else np.int64(w[0, o])
                    if not simple and w[1, o] == 0:
                        continue
                    for c in range(U(1 if simple else channels)):
                        at = first + o if simple else (first + o) * U(channels) + c
                        share = dy[at]
                        if ties == "first":
                            cell = U(begin + from_row + offsets[U(saved[at])])
                            cell = U(origin) + (cell if simple else cell * U(channels) + c)
                            target[cell] = share if disjoint else target[cell] + share
                        else:
                            number = 0
                            for tap in range(offsets.size if ties == "split" else 0):
                                number += saved[tap // 8 * dy.size + np.int64(at)] >> tap % 8 & 1
                            share = share / dy.dtype.type(max(number, 1)) if ties == "split" else share
                            for tap in range(offsets.size):
                                if saved[tap // 8 * dy.size + np.int64(at)] >> tap % 8 & 1:
                                    cell = U(origin + (begin + from_row + offsets[tap]) * channels) + c
                                    target[cell] = share if disjoint else target[cell] + share
            if past_caches:
                copy_past_caches(target, dx, plane * size, size)
        if past_caches:
            fence()

    return backward


@kernel()
def flat_indices(
    argmax: Array, indices: Array, sizes: Any, offsets: Array, d: Array, h: Array, w: Array, start: int, stop: int
) -> None:
    """The flat cell of each maximum in its plane; -1 if the window sees no cell."""
    _, height, length, out_d, out_h, out_w, channels = sizes
    for unit in range(start, stop):
        od, oh = unit // out_h % out_d, unit % out_h
        begin = (d[0, od] * height + h[0, oh]) * length
        for o in range(out_w):
            has_cells = d[1, od] > 0 and h[1, oh] > 0 and w[1, o] > 0
            for at in range(U((unit * out_w + o) * channels), U((unit * out_w + o + 1) * channels)):
                indices[at] = begin + w[0, o] + offsets[U(argmax[at])] if has_cells else -1
