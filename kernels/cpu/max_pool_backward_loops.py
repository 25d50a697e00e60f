"""Max pooling's loops from the argmax or the tie bits, over planes from `start` to `stop`, and the tie bits themselves.

Arrays and `sizes` are as in max_pool_loops.py. `offsets` are the cells under a window's taps, relative to its start.
The tables `d h w` have, for each window of an axis, the cell under its first tap, which may be outside, and its number
of cells (windows.window_starts); for `tie_bits` and its rows of windows those of the forward."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .past_caches import copy_past_caches, stored_past_caches
from .vectors import fence

Array = Any
U = np.uintp
PLANE_BYTES = 1 << 18  # of a plane that is computed in a core's cache, at most
CLEAR_AHEAD = 256  # cells that backward sets to 0 at a time, at least


@kernel()
def tie_bits(
    x: Array, y: Array, bits: Array, sizes: Any, taps: Any, dilations: Any, d: Array, h: Array, w: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """The tie bits, (bytes, *y): bit `tap` is set if that cell equals the window's maximum, or both are NaN.

    taps: of a window's height and width."""
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
            at = (plane * depth + d[0, od] + td * dilations[0]) * height + h[0, oh] + th * dilations[1]
            base = ((d[2, od] + td) * taps[0] + h[2, oh] + th) * taps[1]
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


@kernel()
def backward_simple(
    dy: Array, argmax: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, d: Array, h: Array, w: Array,
    stride_w: int, padding_w: int, start: int, stop: int,
) -> None:  # fmt: skip
    """`backward` for one channel a cell if every window sees a cell: it takes a third of the time.

    dx is set to 0 only shortly before the windows come, so that it is still in the cache. `stride_w`: from one window
    of a row to the next; `padding_w`: the padding before the first one. If stride_w is 0, `w` has the starts."""
    depth, height, length, out_d, out_h, out_w, _ = sizes
    size, window_rows = depth * height * length, out_d * out_h
    last = (out_w - 1) * stride_w - padding_w if stride_w > 0 else w[0, out_w - 1]
    row_extent = last + offsets[offsets.size - 1] + 1  # cells from the start of a row to the end of its last window
    past_caches = stored_past_caches(dx) and size * dx.itemsize <= PLANE_BYTES
    target = np.empty(size, dx.dtype) if past_caches else dx
    cleared, limit = start * size, stop * size
    for plane in range(start, stop):
        origin = plane * size
        if past_caches:
            origin, cleared, limit = 0, 0, size
        od, oh = 0, -1
        for row in range(window_rows):
            oh += 1
            if oh == out_h:
                oh, od = 0, od + 1
            begin = origin + (d[0, od] * height + h[0, oh]) * length
            needed = begin + row_extent if row + 1 < window_rows else origin + size
            if needed > cleared:
                until = min(max(needed, cleared + CLEAR_AHEAD), limit)
                for i in range(U(cleared), U(until)):
                    target[i] = 0
                cleared = until
            first = U((plane * window_rows + row) * out_w)
            for o in range(U(out_w)):
                from_row = np.int64(o) * stride_w - padding_w if stride_w > 0 else np.int64(w[0, o])
                cell = U(begin + from_row + offsets[U(argmax[first + o])])
                target[cell] = dy[first + o] if disjoint else target[cell] + dy[first + o]
        if past_caches:
            copy_past_caches(target, dx, plane * size, size)
    if past_caches:
        fence()


@kernel()
def backward(
    dy: Array, argmax: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, d: Array, h: Array, w: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """dx from dy and the argmax: each plane is set to 0, which loads it into the cache, then its windows are added in C
    order."""
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
