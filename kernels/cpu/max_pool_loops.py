"""Max pooling's loops, over rows of windows (forward) or over planes (backward), from `start` to `stop`.

Arrays are flat: (planes, depth, height, width, channels). `sizes` are those of the arrays: depth, height, width of x,
then of y, and the channels; `taps` the window's height and width, `steps` its dilations. Tables `d h w` are those of
pool_window.met: of each window along an axis its first cell, number of cells, first tap, and start.

Each window begins with −inf under its first tap that meets the input, so that no cell is written where none is met; a
cell replaces what is held if it is larger, or the first NaN: `not (value <= held)` and held is a number.
Inner loops have unsigned offsets from whole arrays, which is what lets them be vectorised.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .compile import kernel

Array = Any
Kernel = Any
U = np.uintp
LANES = 32  # windows that a vectorised loop takes at a time; what is left over it takes one by one


@functools.cache
def forward(width: int, stride: int, save: bool) -> Kernel:
    """The loops for one channel a cell: y, and with `save` the place of each maximum within its window. Windows from
    `low` to `high` of a row have all of their `width` taps side by side inside the input, and begin `stride` cells
    apart: they are taken together, row of taps after row of taps. Width 0: there are none."""

    @kernel()
    def max_pool(
        x: Array, y: Array, place: Array, sizes: Any, taps: Any, steps: Any, d: Array, h: Array, w: Array,
        low: int, high: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, _ = sizes
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit % (out_d * out_h) // out_h, unit % out_h
            first = (plane * depth + d[0, od]) * height + h[0, oh]
            base = (d[2, od] * taps[0] + h[2, oh]) * taps[1]
            to = U(unit * out_w)
            rows = d[1, od] * h[1, oh]
            number = high - low if rows > 0 else 0
            for i in range(2 * rows if number > 0 else 0):
                # Each row of taps in two runs: as many windows as the vectorised loop takes, then the last LANES, some
                # of them again, which changes nothing. One by one they would cost as much as all others.
                td, th = i // 2 // h[1, oh], i // 2 % h[1, oh]
                rest = number % LANES
                begin = U(low if i % 2 == 0 else high - LANES if number >= LANES and rest > 0 else high - rest)
                end = U(high - rest if i % 2 == 0 else high)
                cells = U((first + td * steps[0] * height + th * steps[1]) * length + w[0, low])
                tap = place.dtype.type(base + (td * taps[0] + th) * taps[1])
                if i < 2:
                    for o in range(begin, end):
                        at = cells + (o - U(low)) * U(stride)
                        best, best_tap = x[at], tap
                        for t in range(1, width):
                            value = x[at + U(t)]
                            better = (not (value <= best)) & (best == best)
                            best = value if better else best
                            best_tap = place.dtype.type(tap + place.dtype.type(t)) if better else best_tap
                        y[to + o] = best
                        if save:
                            place[to + o] = best_tap
                elif begin < end:
                    for o in range(begin, end):
                        at = cells + (o - U(low)) * U(stride)
                        best, best_tap = y[to + o], (place[to + o] if save else tap)
                        for t in range(width):
                            value = x[at + U(t)]
                            better = (not (value <= best)) & (best == best)
                            best = value if better else best
                            best_tap = place.dtype.type(tap + place.dtype.type(t)) if better else best_tap
                        y[to + o] = best
                        if save:
                            place[to + o] = best_tap
            for n in range(out_w - number):  # the others, window by window
                o = n if n < low else n + number
                best, best_tap = y.dtype.type(-np.inf), base + w[2, o]
                for td in range(d[1, od]):
                    for th in range(h[1, oh]):
                        cells = U((first + td * steps[0] * height + th * steps[1]) * length + w[0, o])
                        tap = base + (td * taps[0] + th) * taps[1] + w[2, o]
                        for t in range(w[1, o]):
                            value = x[cells + U(t * steps[2])]
                            better = (not (value <= best)) & (best == best)
                            best = value if better else best
                            best_tap = tap + t if better else best_tap
                y[to + U(o)] = best
                if save:
                    place[to + U(o)] = best_tap

    return max_pool


@functools.cache
def forward_last(save: bool) -> Kernel:
    """The same for cells of several channels: tap by tap over a cell's channels."""

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
                to, number = U((unit * out_w + o) * channels), w[1, o]
                for c in range(U(channels)):
                    y[to + c] = -np.inf
                    if save:
                        place[to + c] = base + w[2, o]
                for i in range(d[1, od] * h[1, oh] * number):
                    td, th, t = i // (h[1, oh] * number), i // number % h[1, oh], i % number
                    row = first + td * steps[0] * height + th * steps[1]
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
def backward(
    dy: Array, place: Array, dx: Array, sizes: Any, offsets: Array, disjoint: bool, d: Array, h: Array, w: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """dx: each plane is cleared, then its windows, in C order, add dy where their maximum lies. `offsets` are the
    cells of a window's taps relative to its start."""
    depth, height, length, out_d, out_h, out_w, channels = sizes
    size = depth * height * length * channels
    for plane in range(start, stop):
        for i in range(U(plane * size), U((plane + 1) * size)):
            dx[i] = 0
        for row in range(out_d * out_h):
            od, oh = row // out_h, row % out_h
            if d[1, od] == 0 or h[1, oh] == 0:
                continue
            begin = ((plane * depth + d[3, od]) * height + h[3, oh]) * length
            first = (plane * out_d * out_h + row) * out_w
            for o in range(out_w):
                if w[1, o] == 0:
                    continue
                here = U((first + o) * channels)
                for c in range(channels):
                    at = here + U(c)
                    cell = U((begin + w[3, o] + offsets[U(place[at])]) * channels + c)
                    dx[cell] = dy[at] if disjoint else dx[cell] + dy[at]


@functools.cache
def backward_rows(width: int, stride: int, disjoint: bool) -> Kernel:
    """The same, gathered: rows of dx from `start` to `stop`, for one channel a cell. Windows from `low` to `high` of a
    row have `width` taps side by side and begin `stride` cells apart; those are the taps of this many windows before
    them too: each writes to its first `stride` cells. `begin` and `windows` name the windows over each cell of an axis,
    in order; the tables of `pool_window.met` say under which of their taps it lies."""
    back = (width - 1) // stride

    @kernel()
    def max_pool_backward(
        dy: Array, place: Array, dx: Array, sizes: Any, taps: Any, steps: Any, begin: Any, windows: Any,
        d: Array, h: Array, w: Array, low: int, high: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, _ = sizes
        first, last, number = w[3, low], w[3, low] + (high - low) * stride, U(high - low)
        line = np.empty(length, dx.dtype)  # the row's cells, first ones of windows first
        for unit in range(start, stop):
            plane, cell_d, cell_h = unit // (depth * height), unit % (depth * height) // height, unit % height
            to = U(unit * length)
            line[:] = 0
            for c in range(U(length)):
                dx[to + c] = 0
            for i in range(begin[0][cell_d], begin[0][cell_d + 1]):
                for j in range(begin[1][cell_h], begin[1][cell_h + 1]):
                    od, oh = windows[0][i], windows[1][j]
                    row = (cell_d - d[3, od]) // steps[0] * taps[0] + (cell_h - h[3, oh]) // steps[1]
                    at = U(((plane * out_d + od) * out_h + oh) * out_w)
                    for r in range(stride):
                        base = number * U(r)
                        for n in range(back, -1, -1):
                            if r + n * stride < width:
                                tap = place.dtype.type(row * width + r + n * stride)
                                near = at + U(low - n)
                                for o in range(number):
                                    given = dy[near + o]  # read in any case, lest the loop branch
                                    given = given if place[near + o] == tap else dx.dtype.type(0)
                                    line[base + o] = given if disjoint else line[base + o] + given
                    for n in range(length - (last - first)):  # the others, cell by cell
                        c = n if n < first else n + last - first
                        for k in range(begin[2][c], begin[2][c + 1]):
                            window = at + U(windows[2][k])
                            if place[window] == row * width + c - w[3, windows[2][k]]:
                                share = dy[window] if disjoint else dx[to + U(c)] + dy[window]
                                dx[to + U(c)] = share
            cells = to + U(first)
            for o in range(number):
                for r in range(stride):
                    dx[cells + o * U(stride) + U(r)] = line[number * U(r) + o]

    return max_pool_backward


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
            begin = ((plane * depth + d[3, od]) * height + h[3, oh]) * length
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
                            cell = (begin + w[3, o] + offsets[tap]) * channels + c
                            dx[cell] = share if disjoint else dx[cell] + share


@kernel()
def numbered(
    place: Array, indices: Array, sizes: Any, offsets: Array, d: Array, h: Array, w: Array, start: int, stop: int
) -> None:
    """The flat cell of each maximum in its plane, from its place in the window; -1 where a window meets none."""
    _, height, length, out_d, out_h, out_w, channels = sizes
    for unit in range(start, stop):
        od, oh = unit % (out_d * out_h) // out_h, unit % out_h
        begin = (d[3, od] * height + h[3, oh]) * length
        for o in range(out_w):
            meets = d[1, od] > 0 and h[1, oh] > 0 and w[1, o] > 0
            for at in range(U((unit * out_w + o) * channels), U((unit * out_w + o + 1) * channels)):
                indices[at] = begin + w[3, o] + offsets[U(place[at])] if meets else -1
