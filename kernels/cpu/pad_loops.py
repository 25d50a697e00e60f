"""The loops of padding and of its backward, over rows of y (of dx) from `start` to `stop`.

Arrays are flat: (planes, depth, height, elements of a row). Tables say, for each axis but the last, which row of x a
row of y copies, or which rows of dy a row of dx sums. Within a row they have places of elements."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .past_caches import copy_past_caches, stored_past_caches
from .vectors import (
    LANES,
    as_lanes_of,
    copy_lanes,
    fence,
    load_every_bit,
    load_first_every_bit,
    store_every_bit,
    store_first_every_bit,
)

Array = Any
Kernel = Any
U = np.uintp
BLOCK = 4096  # elements that are computed in the L1 cache, about


@kernel(inlined=True)
def _copy(y: Array, to: Any, x: Array, at: Any, number: Any, step: Any, room: Any) -> None:
    """Copy neighbours; the last vector may overlap the one before. step: 0 to copy the same 16 elements again. room:
    there are 16 elements of both arrays from `to` and `at` on, and those of y behind `number` are stored later."""
    if number >= U(LANES):
        last = number - U(LANES)
        for i in range(U(0), last, U(LANES)):
            copy_lanes(y, to + i, x, at + i * step)
        copy_lanes(y, to + last, x, at + last * step)
    elif room:
        copy_lanes(y, to, x, at)
    else:
        for i in range(number):
            y[to + i] = x[at + i * step]


@kernel()
def pad_rows(
    x: Array, y: Array, fill: Array, shape: Any, depths: Array, heights: Array, runs: Array, singles: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Row (d, h) of y copies row (depths[d], heights[h]) of x, or is all `fill` (16 of it) if one of these is -1.

    `runs` of elements in a row: the place in y, that in x or -1 for `fill`, and the number. `singles`: the first two.
    Each is copied in a block of rows before the next one. The first run is the only one that may be shorter than 16; it
    may overwrite what is behind it."""
    in_d, in_h, in_row, out_row = shape
    out_d, out_h = depths.size, heights.size
    h, d, plane = start % out_h, start // out_h % out_d, start // (out_h * out_d)
    past_caches, block = stored_past_caches(y), max(1, BLOCK // out_row)
    target, row_at = np.empty(block * out_row if past_caches else 0, y.dtype), np.empty(block, np.int64)
    target, end = (target, U(target.size)) if past_caches else (y, U(stop * out_row))
    for begin in range(start, stop, block):
        rows, origin = U(min(block, stop - begin)), U(0 if past_caches else begin * out_row)
        for i in range(rows):
            row = ((plane * in_d + depths[d]) * in_h + heights[h]) * in_row
            row_at[i] = -1 if depths[d] < 0 or heights[h] < 0 else row
            h += 1
            if h == out_h:
                h, d = 0, d + 1
                if d == out_d:
                    d, plane = 0, plane + 1
        for k in range(U(0), U(runs.size), U(3)):
            source, number = runs[k + U(1)], U(runs[k + U(2)])
            for i in range(rows):
                row, to = origin + i * U(out_row), origin + i * U(out_row) + U(runs[k])
                at, room = U(row_at[i] + source), k == U(0) and to + U(LANES) <= end
                if row_at[i] >= 0 and source >= 0:
                    _copy(target, to, x, at, number, U(1), room and at + U(LANES) <= U(x.size))
                elif row_at[i] >= 0:
                    _copy(target, to, fill, U(0), number, U(0), room)
                elif k == U(0):
                    _copy(target, row, fill, U(0), U(out_row), U(0), row + U(LANES) <= end)
        for k in range(U(0), U(singles.size), U(2)):
            place, source = origin + U(singles[k]), singles[k + U(1)]
            for i in range(rows):
                if row_at[i] >= 0:
                    target[place + i * U(out_row)] = fill[0] if source < 0 else x[U(row_at[i] + source)]
        if past_caches:
            copy_past_caches(target, y, begin * out_row, np.int64(rows) * out_row)
    if past_caches:
        fence()


@kernel(allocates=False)
def _convert(x: Array, at: Any, y: Array, to: Any, number: Any) -> None:
    """Copy neighbours between half types and float32."""
    for i in range(U(0), number, U(LANES)):
        if i + U(LANES) <= number:
            store_every_bit(y, to + i, as_lanes_of(y, load_every_bit(x, at + i)))
        else:
            value = as_lanes_of(y, load_first_every_bit(x, at + i, number - i))
            store_first_every_bit(y, to + i, value, number - i)


@functools.cache
def make_fold_rows(half: bool) -> Kernel:
    """The kernel of the backward; half: of half types, which are summed in float32. The dtype of sums is `total`'s.

    To *fold* a row of dy is to undo its padding: what is in a cell of the padding is added to the cell that this is a
    copy of, and the row is then as long as one of dx. Rows in the padding above, below, before and behind are added to
    the rows that they are copies of.

    Row (d, h) of dx is the sum over its depths of the sums over its heights of folded rows of dy, in the order of
    `sources`; `begin` has the first source of each. -1, which comes only first, stands for zeros. To fold a row of dy,
    its elements from `first` on are copied to the `kept` ones of dx from `cropped` on, the others are 0. Then of each
    pair of `terms` the second place, in dy, is added to the first, in dx."""

    @kernel()
    def fold_rows(
        dy: Array, dx: Array, total: Array, shape: Any, begin: Any, sources: Any, terms: Array, start: int, stop: int
    ) -> None:
        out_d, out_h, out_row, row, first, cropped, kept = shape
        height, depth = begin[1].size - 1, begin[0].size - 1
        h, d, plane = start % height, start // height % depth, start // (height * depth)
        line, sums = np.zeros(row, total.dtype), np.zeros(2 * row, total.dtype)
        row_of_dy = np.empty(out_row if half else 0, total.dtype)
        for unit in range(start, stop):
            if half:
                result, base = sums, U(row)
            else:
                result, base = dx, U(unit * row)
            for i in range(begin[0][d], begin[0][d + 1]):
                into, to = (result, base) if i == begin[0][d] else (sums, U(0))
                for j in range(begin[1][h], begin[1][h + 1]):
                    od, oh = sources[0][i], sources[1][j]
                    if od < 0 or oh < 0:
                        for c in range(U(row)):
                            into[to + c] = 0
                        continue
                    target, place = (line, U(0)) if j > begin[1][h] else (into, to)
                    if half:
                        cells, at = row_of_dy, U(0)
                        _convert(dy, U(((plane * out_d + od) * out_h + oh) * out_row), cells, U(0), U(out_row))
                    else:
                        cells, at = dy, U(((plane * out_d + od) * out_h + oh) * out_row)
                    _copy(target, place + U(cropped), cells, at + U(first), U(kept), U(1), False)
                    for c in range(U(cropped)):
                        target[place + c] = 0
                    for c in range(U(cropped + kept), U(row)):
                        target[place + c] = 0
                    for k in range(U(0), U(terms.size), U(2)):
                        target[place + U(terms[k])] += cells[at + U(terms[k + U(1)])]
                    if j > begin[1][h]:
                        for c in range(U(row)):
                            into[to + c] += line[c]
                if i > begin[0][d]:
                    for c in range(U(row)):
                        result[base + c] += sums[c]
            if half:
                _convert(result, base, dx, U(unit * row), U(row))
            h += 1
            if h == height:
                h, d = 0, d + 1
                if d == depth:
                    d, plane = 0, plane + 1

    return fold_rows
