"""The loop of average and sum pooling, forward and backward, over rows of y from `start` to `stop`.

A row is summed in two steps: first the rows of x that it is made of, cell by cell, then the cells along it. Backward is
the same with the parts changed: x is then dy, and each cell of y, which is dx, gathers from the windows over it. Along
each axis `sources` has for each cell of y the first cell of x that it is the sum of and the number of them, `steps` the
way from one to the next. Sums are of `total`'s dtype.

Arrays are flat: (planes, depth, height, width, channels); `sizes` are depth, height, width of x and of y, and channels.
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
RUN = 256


@functools.cache
def sums(width: int, stride: int, before: bool) -> Kernel:
    """Divisors lie along the axes of x, whose cells are divided `before` they are summed (backward), or of y; an axis
    on which all are equal has one.

    Cells `low` to `high` of a row of y are sums of `width` neighbours in x, `stride` from one to the next; with stride
    0, each cell of x is shown by `width` neighbours in y. Width 0: neither."""

    @kernel()
    def window_sums(
        x: Array, y: Array, total: Array, sizes: Any, sources: Any, steps: Any, divisors: Any,
        low: int, high: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        depth, height, length, out_d, out_h, out_w, channels = sizes
        row = U(length * channels)
        line, cell = np.empty(length * channels, total.dtype), np.empty(channels, total.dtype)
        by_d, by_h, by_w = divisors[0].size > 1, divisors[1].size > 1, divisors[2].size > 1
        for unit in range(start, stop):
            plane, od, oh = unit // (out_d * out_h), unit % (out_d * out_h) // out_h, unit % out_h
            to = U(unit * out_w * channels)
            line[:] = 0
            for i in range(sources[0][1, od]):
                d = sources[0][0, od] + i * steps[0]
                for j in range(sources[1][1, oh]):
                    h = sources[1][0, oh] + j * steps[1]
                    at = U((plane * depth + d) * height + h) * row
                    divisor = divisors[0][d * by_d] * divisors[1][h * by_h] if before else divisors[0][0]
                    if before and divisor != 1:
                        for c in range(row):
                            line[c] += x[at + c] / divisor
                    else:
                        for c in range(row):
                            line[c] += x[at + c]
            if before and not by_w:
                if divisors[2][0] != 1:
                    for w in range(row):
                        line[w] /= divisors[2][0]
            elif before and channels == 1:
                for w in range(row):
                    line[w] /= divisors[2][w]
            elif before:
                for w in range(U(length)):
                    if divisors[2][w] != 1:
                        for c in range(w * U(channels), (w + U(1)) * U(channels)):
                            line[c] /= divisors[2][w]
            shared = total.dtype.type(1) if before else divisors[0][od * by_d] * divisors[1][oh * by_h]
            if width > 0:
                first = U(sources[2][0, low])
                if stride > 0:
                    divisor = shared if before else shared * divisors[2][low * by_w]
                    for o in range(U(high - low)):
                        sum_ = line[first + o * U(stride)]
                        for t in range(1, width):
                            sum_ += line[first + o * U(stride) + U(t)]
                        y[to + U(low) + o] = sum_ / divisor
                else:
                    for w in range(U((high - low) // width)):
                        for t in range(width):
                            y[to + U(low) + w * U(width) + U(t)] = line[first + w]
            for n in range(out_w - (high - low)):  # the others, cell by cell
                o = n if n < low else n + high - low
                divisor = shared if before else shared * divisors[2][o * by_w]
                first_cell, number = sources[2][0, o], sources[2][1, o]
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
    """One window a plane of `cells`, which lie together. Sums are x's dtype over RUN cells, which a vectorised loop
    shares out among its lanes, and float64 over these."""
    for plane in range(start, stop):
        sum_, at, left = 0.0, U(plane * cells), cells
        while left > 0:
            part, number = x.dtype.type(0), U(min(left, RUN))
            for i in range(number):
                part += x[at + i]
            sum_ += np.float64(part)
            at, left = at + number, left - RUN
        y[plane] = sum_ / divisor


@kernel()
def plane_spread(dy: Array, dx: Array, cells: int, divisor: float, start: int, stop: int) -> None:
    """Its adjoint: dy over the divisor at every cell."""
    for plane in range(start, stop):
        share = dy[plane] / dy.dtype.type(divisor)
        for i in range(U(plane * cells), U((plane + 1) * cells)):
            dx[i] = share
