"""The loops of depthwise convolution, over planes (samples and channels) or, for the weight's gradient, over channels.

What a column of the kernel sees of a channel is gathered once, as a *sheet*: a row of it has one cell a window, 0 where
the window sees padding, and with a vertical stride s come first the rows 0, s, 2 s, ..., then 1, s + 1, and so on. So
each tap sees one unbroken run of a sheet, as long as there are windows. Forward, the weight's gradient and, by adding
to sheets that are spread in the end, the image's are the same few long loops for any stride, padding and dilation.

Arrays are flat. `sizes` has the entries named below; `seen` for each column of the kernel the first window that sees a
cell, the one after the last, and the cell that window 0 sees, be it there or not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any
u8 = np.uint64  # unsigned offsets: the compiler then needs no test for negative ones, and vectorises
RUN = 4096  # windows whose products are added up in the maps' dtype, before they are added to float64 sums

# Entries of `sizes`: of the image, of the maps, of the kernel; PITCH is the rows of a sheet that are one stride apart.
HEIGHT, WIDTH, ROWS, COLUMNS, TALL, WIDE, FILTERS, STEP, STEP_X, REACH, TOP, BANDED, PITCH = range(13)


# ---------------------------------------------------------------------------------------------------------------- runs
@kernel()
def _fill(d: Array, to: int, value: float, n: int) -> None:
    to = u8(to)
    for i in range(n):
        d[to + u8(i)] = value


@kernel()
def _read(s: Array, at: int, step: int, d: Array, to: int, n: int) -> None:
    at, to = u8(at), u8(to)
    if step == 1:
        for i in range(n):
            d[to + u8(i)] = s[at + u8(i)]
    elif step == 2:
        for i in range(n):
            d[to + u8(i)] = s[at + u8(2) * u8(i)]
    else:
        for i in range(n):
            d[to + u8(i)] = s[at + u8(step) * u8(i)]


@kernel()
def _add(d: Array, to: int, step: int, s: Array, at: int, n: int) -> None:
    at, to = u8(at), u8(to)
    if step == 1:
        for i in range(n):
            d[to + u8(i)] += s[at + u8(i)]
    elif step == 2:
        for i in range(n):
            d[to + u8(2) * u8(i)] += s[at + u8(i)]
    else:
        for i in range(n):
            d[to + u8(step) * u8(i)] += s[at + u8(i)]


@kernel(relaxed=True)
def _three(d: Array, to: int, s: Array, w: Array, k: int, a: int, b: int, c: int, n: int) -> None:
    """Three taps at once, from weight k on: the maps are then read and written a third as often."""
    to, a, b, c = u8(to), u8(a), u8(b), u8(c)
    u, v, z = w[k], w[k + 1], w[k + 2]
    for i in range(n):
        d[to + u8(i)] += u * s[a + u8(i)] + v * s[b + u8(i)] + z * s[c + u8(i)]


@kernel(relaxed=True)
def _nine(d: Array, to: int, s: Array, w: Array, k: int, runs: Array, n: int) -> None:
    """Nine taps at once, from weight k on, what they see from `runs` on: the maps are read and written a ninth as
    often."""
    to = u8(to)
    a, b, c, e, f, g = u8(runs[0]), u8(runs[1]), u8(runs[2]), u8(runs[3]), u8(runs[4]), u8(runs[5])
    h, p, q = u8(runs[6]), u8(runs[7]), u8(runs[8])
    w0, w1, w2, w3, w4, w5 = w[k], w[k + 1], w[k + 2], w[k + 3], w[k + 4], w[k + 5]
    w6, w7, w8 = w[k + 6], w[k + 7], w[k + 8]
    for j in range(n):
        i = u8(j)
        first = w0 * s[a + i] + w1 * s[b + i] + w2 * s[c + i]
        second = w3 * s[e + i] + w4 * s[f + i] + w5 * s[g + i]
        d[to + i] += first + second + w6 * s[h + i] + w7 * s[p + i] + w8 * s[q + i]


@kernel(relaxed=True)
def _scaled(d: Array, to: int, s: Array, at: int, factor: float, n: int) -> None:
    to, at = u8(to), u8(at)
    for i in range(n):
        d[to + u8(i)] += factor * s[at + u8(i)]


@kernel(relaxed=True)
def _product(x: Array, at: int, y: Array, by: int, start: int, stop: int) -> Any:
    at, by, total = u8(at), u8(by), x.dtype.type(0)
    for i in range(start, stop):
        total += x[at + u8(i)] * y[by + u8(i)]
    return total


@kernel(relaxed=True)
def _products(x: Array, at: int, y: Array, a: int, b: int, c: int, start: int, stop: int) -> Any:
    """Three products at once: a run of x is then read a third as often."""
    at, a, b, c = u8(at), u8(a), u8(b), u8(c)
    first = second = third = x.dtype.type(0)
    for i in range(start, stop):
        value = x[at + u8(i)]
        first += value * y[a + u8(i)]
        second += value * y[b + u8(i)]
        third += value * y[c + u8(i)]
    return first, second, third


@kernel(relaxed=True)
def _nine_products(
    x: Array, at: int, y: Array, runs: Array, totals: Array, to: int, start: int, stop: int
) -> None:  # fmt: skip
    """Nine products at once, added to nine totals."""
    at = u8(at)
    a, b, c, e, f, g = u8(runs[0]), u8(runs[1]), u8(runs[2]), u8(runs[3]), u8(runs[4]), u8(runs[5])
    h, p, q = u8(runs[6]), u8(runs[7]), u8(runs[8])
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = x.dtype.type(0)
    for j in range(start, stop):
        i = u8(j)
        value = x[at + i]
        s0 += value * y[a + i]
        s1 += value * y[b + i]
        s2 += value * y[c + i]
        s3 += value * y[e + i]
        s4 += value * y[f + i]
        s5 += value * y[g + i]
        s6 += value * y[h + i]
        s7 += value * y[p + i]
        s8 += value * y[q + i]
    for k, total in enumerate((s0, s1, s2, s3, s4, s5, s6, s7, s8)):
        totals[to + k] += total


# -------------------------------------------------------------------------------------------------------------- sheets
@kernel()
def _runs(sizes: Array) -> Array:
    """Where the run that each tap sees begins in the sheets."""
    runs = np.empty(sizes[TALL] * sizes[WIDE], np.int64)
    for tap in range(len(runs)):
        runs[tap] = _tap(sizes, tap)
    return runs


@kernel()
def _tap(sizes: Array, tap: int) -> Any:
    """Where the run that a tap sees begins in the sheets."""
    row = tap // sizes[WIDE] * sizes[REACH]
    sheet = tap % sizes[WIDE] * sizes[STEP] + row % sizes[STEP]
    return (sheet * sizes[PITCH] + row // sizes[STEP]) * sizes[COLUMNS]


@kernel()
def _sheets(image: Array, plane: int, sizes: Array, seen: Array, band: int, sheets: Array, add: bool) -> None:
    """The sheets of a band of one channel; or, to `add`, they are added to the image."""
    height, width, columns, step = sizes[HEIGHT], sizes[WIDTH], sizes[COLUMNS], sizes[STEP]
    top = band * step - sizes[TOP]  # the image's row that is the sheet's first
    rows = sizes[PITCH] * step
    first, last = max(0, -top), max(0, min(rows, height - top))
    alike = step == 1 and sizes[STEP_X] == 1 and columns == width
    for j in range(sizes[WIDE]):
        left, right, cell = seen[j]
        sheet = j * rows * columns
        if alike:
            # Rows of one length: all of them are one run, and the cells that then come from another row are cleared.
            at = (top + first) * width + cell
            skip = max(0, -at)
            n = min((last - first) * width, height * width - at) - skip
            if not add:
                _fill(sheets, sheet, 0.0, first * columns)
                _fill(sheets, sheet + last * columns, 0.0, (rows - last) * columns)
                _read(image, plane + at + skip, 1, sheets, sheet + first * columns + skip, n)
            for c in range(columns):
                if c < left or c >= right:
                    for r in range(first, last):
                        sheets[u8(sheet + r * columns + c)] = 0.0
            if add:
                _add(image, plane + at + skip, 1, sheets, sheet + first * columns + skip, n)
            continue
        for r in range(rows):
            to = sheet + (r % step * sizes[PITCH] + r // step) * columns
            at = plane + (top + r) * width + cell + left * sizes[STEP_X]
            if r < first or r >= last:
                if not add:
                    _fill(sheets, to, 0.0, columns)
            elif add:
                _add(image, at, sizes[STEP_X], sheets, to + left, right - left)
            else:
                _fill(sheets, to, 0.0, left)
                _read(image, at, sizes[STEP_X], sheets, to + left, right - left)
                _fill(sheets, to + right, 0.0, columns - right)


# ------------------------------------------------------------------------------------------------------------- kernels
@kernel()
def correlate(
    image: Array,
    weight: Array,
    bias: Array,
    maps: Array,
    sizes: Array,
    seen: Array,
    start: int,
    stop: int,
    channels: int,
    sheets: Array,
) -> None:
    """The maps of planes `start` to `stop`, counted through samples and channels."""
    out, columns, filters, taps = sizes[ROWS], sizes[COLUMNS], sizes[FILTERS], sizes[TALL] * sizes[WIDE]
    runs = _runs(sizes)
    for plane in range(start, stop):
        for band in range(0, out, sizes[BANDED]):
            _sheets(image, plane * sizes[HEIGHT] * sizes[WIDTH], sizes, seen, band, sheets, False)
            n = min(sizes[BANDED], out - band) * columns
            for q in range(filters):
                f = plane % channels * filters + q
                to = ((plane * filters + q) * out + band) * columns
                _fill(maps, to, bias[f], n)
                for tap in range(0, taps - 8, 9):
                    _nine(maps, to, sheets, weight, f * taps + tap, runs[tap:], n)
                for tap in range(taps - taps % 9, taps - 2, 3):
                    _three(maps, to, sheets, weight, f * taps + tap, runs[tap], runs[tap + 1], runs[tap + 2], n)
                for tap in range(taps - taps % 3, taps):
                    _scaled(maps, to, sheets, runs[tap], weight[f * taps + tap], n)


@kernel()
def spread(
    maps: Array,
    weight: Array,
    bias: Array,
    image: Array,
    sizes: Array,
    seen: Array,
    start: int,
    stop: int,
    channels: int,
    sheets: Array,
) -> None:
    """The image of planes `start` to `stop`, counted through samples and channels."""
    out, columns, filters, taps = sizes[ROWS], sizes[COLUMNS], sizes[FILTERS], sizes[TALL] * sizes[WIDE]
    cells, runs = sizes[HEIGHT] * sizes[WIDTH], _runs(sizes)
    for plane in range(start, stop):
        _fill(image, plane * cells, bias[plane % channels], cells)
        for band in range(0, out, sizes[BANDED]):
            _fill(sheets, 0, 0.0, len(sheets))
            n = min(sizes[BANDED], out - band) * columns
            for q in range(filters):
                f = plane % channels * filters + q
                at = ((plane * filters + q) * out + band) * columns
                for tap in range(taps):
                    _scaled(sheets, runs[tap], maps, at, weight[f * taps + tap], n)
            _sheets(image, plane * cells, sizes, seen, band, sheets, True)


@kernel()
def weight_gradient(
    image: Array,
    maps: Array,
    dweight: Array,
    sizes: Array,
    seen: Array,
    start: int,
    stop: int,
    samples: int,
    channels: int,
    sheets: Array,
) -> None:
    """The gradient of the weights of channels `start` to `stop`."""
    out, columns, filters, taps = sizes[ROWS], sizes[COLUMNS], sizes[FILTERS], sizes[TALL] * sizes[WIDE]
    runs = _runs(sizes)
    for sample in range(samples):
        for c in range(start, stop):
            plane = sample * channels + c
            for band in range(0, out, sizes[BANDED]):
                _sheets(image, plane * sizes[HEIGHT] * sizes[WIDTH], sizes, seen, band, sheets, False)
                n = min(sizes[BANDED], out - band) * columns
                for q in range(filters):
                    at = ((plane * filters + q) * out + band) * columns
                    to = (c * filters + q) * taps
                    for first in range(0, n, RUN):
                        last = min(first + RUN, n)
                        for tap in range(0, taps - 8, 9):
                            _nine_products(maps, at, sheets, runs[tap:], dweight, to + tap, first, last)
                        for tap in range(taps - taps % 9, taps - 2, 3):
                            more = _products(maps, at, sheets, runs[tap], runs[tap + 1], runs[tap + 2], first, last)
                            for k in range(3):
                                dweight[to + tap + k] += more[k]
                        for tap in range(taps - taps % 3, taps):
                            dweight[to + tap] += _product(maps, at, sheets, runs[tap], first, last)
