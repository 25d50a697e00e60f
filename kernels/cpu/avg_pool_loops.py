"""The loop of average and sum pooling, forward and backward, over rows of y from `start` to `stop`.

A row of y is summed in two steps: first the rows of x under it, cell by cell, then the cells along the row. Backward is
the same with x = dy and y = dx: each cell of dx sums the windows over it. For each axis and each cell of y, `ranges`
has the first cell of x in its sum and the number of cells; `steps` has the distance from one to the next. Sums have
`total`'s dtype.

Arrays are flat: (planes, depth, height, width, channels). `sizes` are depth, height and width of x, those of y, and
channels. Inner loops index complete arrays with unsigned offsets, so that the compiler can vectorise them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel

Array = Any
Kernel = Any
U = np.uintp
RUN_CELLS = 256  # cells that are summed in x's dtype


@functools.cache
def make_window_sums(width: int, stride: int, backward: bool) -> Kernel:
    """The kernel for one form of window, which is unrolled.

    In forward, divisors belong to the cells of y, and sums are divided by them. If `backward`, they belong to the cells
    of x, which are divided before they are summed. An axis whose divisors are equal has one.

    Cells `low` to `high` of a row of y are sums of `width` neighbours in x, `stride` apart. With stride 0, `width`
    neighbours in y are copies of one cell of x. Width 0: nothing is unrolled."""

    @kernel()
    def window_sums(
        x: Array, y: Array, total: Array, sizes: Any, ranges: Any, steps: Any, divisors: Any,
        low: int, high: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, channels = sizes
        row = U(length * channels)
        line, cell = np.empty(length * channels, total.dtype), np.empty(channels, total.dtype)
        varies_d, varies_h, varies_w = divisors[0].size > 1, divisors[1].size > 1, divisors[2].size > 1
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit % (out_d * out_h) // out_h, unit % out_h
            to = U(unit * out_w * channels)
            line[:] = 0
            for i in range(ranges[0][1, od]):
                d = ranges[0][0, od] + i * steps[0]
                for j in range(ranges[1][1, oh]):
                    h = ranges[1][0, oh] + j * steps[1]
                    at = U((plane * depth + d) * height + h) * row
                    divisor = divisors[0][d * varies_d] * divisors[1][h * varies_h] if backward else divisors[0][0]
                    if backward and divisor != 1:
                        for c in range(row):
                            line[c] += x[at + c] / divisor
                    else:
                        for c in range(row):
                            line[c] += x[at + c]
            if backward and not varies_w:
                if divisors[2][0] != 1:
                    for w in range(row):
                        line[w] /= divisors[2][0]
            elif backward and channels == 1:
                for w in range(row):
                    line[w] /= divisors[2][w]
            elif backward:
                for w in range(U(length)):
                    if divisors[2][w] != 1:
                        for c in range(w * U(channels), (w + U(1)) * U(channels)):
                            line[c] /= divisors[2][w]
            row_divisor = total.dtype.type(1) if backward else divisors[0][od * varies_d] * divisors[1][oh * varies_h]
            if width > 0:
                first = U(ranges[2][0, low])
                if stride > 0:
                    divisor = row_divisor if backward else row_divisor * divisors[2][low * varies_w]
                    for o in range(U(high - low)):
                        sum_ = line[first + o * U(stride)]
                        for t in range(1, width):
                            sum_ += line[first + o * U(stride) + U(t)]
                        y[to + U(low) + o] = sum_ / divisor
                else:
                    for w in range(U((high - low) // width)):
                        for t in range(width):
                            y[to + U(low) + w * U(width) + U(t)] = line[first + w]
            for n in range(out_w - (high - low)):  # the other cells, one by one
                o = n if n < low else n + high - low
                divisor = row_divisor if backward else row_divisor * divisors[2][o * varies_w]
                first_cell, number = ranges[2][0, o], ranges[2][1, o]
                if channels == 1:
                    sum_ = total.dtype.type(0)
                    for i in range(number):
                        sum_ += line[U(first_cell + i * steps[2])]
                    y[to + U(o)] = sum_ / divisor
                else:
                    cell[:] = 0
                    for i in range(number):
                        at = U((first_cell + i * steps[2]) * channels)
                        for c in range(U(channels)):
                            cell[c] += line[at + c]
                    for c in range(U(channels)):
                        y[to + U(o * channels) + c] = cell[c] / divisor

    return window_sums


@kernel(relaxed=True)
def plane_sums(x: Array, y: Array, cells: int, divisor: float, start: int, stop: int) -> None:
    """The sum of each plane of `cells` contiguous cells, divided by the divisor: one window a plane.

    Sums over RUN_CELLS cells are in x's dtype, so that the loop is vectorised; the sums of these are in float64."""
    for plane in range(start, stop):
        sum_, at, remaining = 0.0, U(plane * cells), cells
        while remaining > 0:
            part, number = x.dtype.type(0), U(min(remaining, RUN_CELLS))
            for i in range(number):
                part += x[at + i]
            sum_ += np.float64(part)
            at, remaining = at + number, remaining - RUN_CELLS
        y[plane] = sum_ / divisor


@kernel()
def plane_sums_backward(dy: Array, dx: Array, cells: int, divisor: float, start: int, stop: int) -> None:
    """The backward of `plane_sums`: each cell of a plane of dx is dy / divisor."""
    for plane in range(start, stop):
        share = dy[plane] / dy.dtype.type(divisor)
        for i in range(U(plane * cells), U((plane + 1) * cells)):
            dx[i] = share
