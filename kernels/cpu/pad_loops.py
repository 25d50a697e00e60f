"""The loops of padding and of its backward, over rows of y (of dx) from `start` to `stop`.

Arrays are flat: (planes, depth, height, width, elements of a cell); `inner` elements make a cell of the last axis.
Forward looks up, along each axis, which cell of x a cell of y copies. Backward looks up which cells of dy a cell of dx
sums, in order. Along the last axis, cells `low` to `high` are copied in one piece: the tables leave them out.

Inner loops index complete arrays with unsigned offsets, so that the compiler can vectorise them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .past_caches import copy_past_caches, stored_past_caches
from .vectors import LANES, copy_lanes, fence

Array = Any
U = np.uintp
BLOCK = 4096  # elements that are computed in the L1 cache before they are stored past the caches, about


@kernel()
def pad_rows(
    x: Array, y: Array, fill: Any, shape: Any, depths: Array, heights: Array, border: Array, border_sources: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """y[d, h, w] = x[depths[d], heights[h], widths[w]], or `fill` if one of these is -1.

    `border`: the cells w in the padding; `border_sources`: their widths[w]."""
    in_d, in_h, in_w, out_w, low, high, first, inner = shape
    out_d, out_h = len(depths), len(heights)
    size, row, out_row, copied = U(inner), U(in_w * inner), out_w * inner, (high - low) * inner
    h, d, plane = start % out_h, start // out_h % out_d, start // (out_h * out_d)
    past_caches = stored_past_caches(y)
    block = max(1, BLOCK // out_row) if past_caches else stop - start
    target = np.empty(block * out_row, y.dtype) if past_caches else y
    for begin in range(start, stop, block):
        rows, origin = min(block, stop - begin), 0 if past_caches else begin * out_row
        for to in range(U(origin), U(origin + rows * out_row), U(out_row)):
            if depths[d] < 0 or heights[h] < 0:
                for i in range(to, to + U(out_row)):
                    target[i] = fill
            else:
                at = U((plane * in_d + depths[d]) * in_h + heights[h]) * row
                _copy(target, to + U(low) * size, x, at + U(first) * size, copied)
                for k in range(U(border.size)):
                    cell, source = to + U(border[k]) * size, at + U(border_sources[k]) * size
                    if border_sources[k] >= 0:
                        for i in range(size):
                            target[cell + i] = x[source + i]
                    else:
                        for i in range(size):
                            target[cell + i] = fill
            h += 1
            if h == out_h:
                h = 0
                d += 1
                if d == out_d:
                    d = 0
                    plane += 1
        if past_caches:
            copy_past_caches(target, y, begin * out_row, rows * out_row)
    if past_caches:
        fence()


@kernel(inlined=True)
def _copy(y: Array, to: Any, x: Array, at: Any, number: int) -> None:
    """Copy neighbours; the last vector may overlap the one before."""
    if number >= LANES:
        last = U(number - LANES)
        for i in range(U(0), last, U(LANES)):
            copy_lanes(y, to + i, x, at + i)
        copy_lanes(y, to + last, x, at + last)
    else:
        for i in range(U(max(0, number))):
            y[to + i] = x[at + i]


@kernel()
def fold_rows(
    dy: Array, dx: Array, shape: Any, begin: Any, sources: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """dx[d, h, w]: the sum over its depths of the sums over its heights of the sums over its widths, in the order of
    `sources`.

    -1 stands for a cell of zeros, and comes only first in a list."""
    out_d, out_h, out_w, length, low, high, first, inner = shape
    depth, height = len(begin[0]) - 1, len(begin[1]) - 1
    size = U(inner)
    row, out_row = U(length) * size, U(out_w) * size
    depth_sum = np.empty(row, dy.dtype)  # the sum for a depth after the first one
    zero = dy.dtype.type(0)
    h, d, plane = start % height, start // height % depth, start // (height * depth)
    for unit in range(start, stop):
        for i in range(begin[0][d], begin[0][d + 1]):
            into, to = (dx, U(unit) * row) if i == begin[0][d] else (depth_sum, U(0))
            for j in range(begin[1][h], begin[1][h + 1]):
                od, oh, add = sources[0][i], sources[1][j], j > begin[1][h]
                if od < 0 or oh < 0:
                    for c in range(row):
                        into[to + c] = zero
                    continue
                at = U((plane * out_d + od) * out_h + oh) * out_row
                from_inner, to_inner = at + U(first) * size, to + U(low) * size
                if add:
                    for c in range(U(high - low) * size):
                        into[to_inner + c] += dy[from_inner + c]
                else:
                    for c in range(U(high - low) * size):
                        into[to_inner + c] = dy[from_inner + c]
                # Cells that the padding repeats or the crop removed; the tables leave out those from low to high.
                for begin_w, end_w, left_out in ((U(0), U(low), U(0)), (U(high), U(length), U(high - low))):
                    for w in range(begin_w, end_w):
                        k0, k1 = U(begin[2][w - left_out]), U(begin[2][w - left_out + U(1)])
                        if inner == 1:
                            sum_ = zero if sources[2][k0] < 0 else dy[at + U(sources[2][k0])]
                            for k in range(k0 + U(1), k1):
                                sum_ += dy[at + U(sources[2][k])]
                            into[to + w] = into[to + w] + sum_ if add else sum_
                        else:
                            for c in range(size):
                                sum_ = zero if sources[2][k0] < 0 else dy[at + U(sources[2][k0]) * size + c]
                                for k in range(k0 + U(1), k1):
                                    sum_ += dy[at + U(sources[2][k]) * size + c]
                                cell = to + w * size + c
                                into[cell] = into[cell] + sum_ if add else sum_
            if i > begin[0][d]:
                for c in range(row):
                    dx[U(unit) * row + c] += depth_sum[c]
        h += 1
        if h == height:
            h = 0
            d += 1
            if d == depth:
                d = 0
                plane += 1
