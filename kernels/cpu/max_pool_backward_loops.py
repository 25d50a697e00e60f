"""Max pooling's loops from the argmax or the tie bits, over planes from `start` to `stop`, and the tie bits themselves.

Arrays are as in max_pool_loops.py, and so are `sizes` and the tables `d h w` of `tie_bits`. `offsets` are the cells
under a window's taps, relative to its start. The table `w` has, for each window of a row, the cell under its first tap,
which may be outside, and its number of cells (windows.starts_and_counts). `rows` has, for each row of windows of a
plane, the cell where its `w` begin, the end of the elements that it and the rows before it add to, and whether its
windows see cells."""

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
CLEAR_AHEAD = 2048  # elements that backward sets to 0 at a time, at least


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
def make_backward(ties: str, simple: bool, disjoint: bool) -> Kernel:
    """The kernel of dx from dy and what was saved: at each cell the windows over it are added in C order.

    ties: "first" for the argmax; "all" or "split" for the tie bits: each cell whose bit is set gets dy, or an equal
    part of it. simple: one channel a cell, and every window sees a cell: it takes a third of the time. disjoint: no two
    windows have a cell in common. `size`: the elements of a plane of dx.

    dx is set to 0 only shortly before the windows come, so that it is still in the cache."""

    @kernel(allocates=False)  # so that no references are counted in its loops
    def add_planes(
        dy: Array, saved: Array, dx: Array, target: Array, past_caches: bool, size: int, channels: int, offsets: Array,
        rows: Array, w: Array, start: int, stop: int,
    ) -> None:  # fmt: skip
        out_rows, out_w = rows.shape[1], w.shape[1]
        cleared, limit = start * size, stop * size
        for plane in range(start, stop):
            origin = plane * size
            if past_caches:
                origin, cleared, limit = 0, 0, size
            for row in range(U(out_rows)):
                if origin + rows[1, row] > cleared:
                    until = min(max(origin + rows[1, row], cleared + CLEAR_AHEAD), limit)
                    for i in range(U(cleared), U(until)):
                        target[i] = 0
                    cleared = until
                if not simple and rows[2, row] == 0:
                    continue
                begin, first = rows[0, row] + (origin if simple else 0), (U(plane * out_rows) + row) * U(out_w)
                for o in range(U(out_w)):
                    if not simple and w[1, o] == 0:
                        continue
                    for c in range(U(1 if simple else channels)):
                        at = first + o if simple else (first + o) * U(channels) + c
                        share = dy[at]
                        if ties == "first":
                            cell = U(begin + w[0, o] + offsets[U(saved[at])])
                            cell = cell if simple else U(origin) + cell * U(channels) + c
                            target[cell] = share if disjoint else target[cell] + share
                        else:
                            number = 0
                            for tap in range(offsets.size if ties == "split" else 0):
                                number += saved[tap // 8 * dy.size + np.int64(at)] >> tap % 8 & 1
                            share = share / dy.dtype.type(max(number, 1)) if ties == "split" else share
                            for tap in range(offsets.size):
                                if saved[tap // 8 * dy.size + np.int64(at)] >> tap % 8 & 1:
                                    cell = U(begin + w[0, o] + offsets[tap])
                                    cell = cell if simple else U(origin) + cell * U(channels) + c
                                    target[cell] = share if disjoint else target[cell] + share
            if past_caches:
                copy_past_caches(target, dx, plane * size, size)
        if past_caches:
            fence()

    @kernel()
    def backward(
        dy: Array, saved: Array, dx: Array, size: int, channels: int, offsets: Array, rows: Array, w: Array,
        start: int, stop: int,
    ) -> None:  # fmt: skip
        past_caches = stored_past_caches(dx) and size * dx.itemsize <= PLANE_BYTES
        target = np.empty(size, dx.dtype) if past_caches else dx
        add_planes(dy, saved, dx, target, past_caches, size, channels, offsets, rows, w, start, stop)

    return backward


@kernel()
def flat_indices(
    argmax: Array, indices: Array, channels: int, offsets: Array, rows: Array, w: Array, start: int, stop: int
) -> None:
    """The flat cell of each maximum in its plane; -1 if the window sees no cell."""
    out_w = w.shape[1]
    for unit in range(start, stop):
        row = unit % rows.shape[1]
        for o in range(out_w):
            has_cells = rows[2, row] > 0 and w[1, o] > 0
            for at in range(U((unit * out_w + o) * channels), U((unit * out_w + o + 1) * channels)):
                indices[at] = rows[0, row] + w[0, o] + offsets[U(argmax[at])] if has_cells else -1
