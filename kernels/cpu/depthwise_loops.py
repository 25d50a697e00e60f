"""The loops of depthwise convolution, over planes (samples and channels) or, for the weight's gradient, over channels.

The cells that a column of the kernel sees of a channel are first copied to a *sheet*. A row of a sheet has one cell for
each window, 0 where the window sees padding. With a vertical stride s, the rows 0, s, 2 s, ... come first, then 1, s +
1, and so on. So the cells under a tap are contiguous in a sheet, for all windows. Therefore a few long loops serve for
the forward, for the weight's gradient and for the image's gradient (which adds to sheets, and these to the image at the
end), with any stride, padding and dilation.

Arrays are flat. `sizes` has the entries named below. `ranges` has, for each column of the kernel, the first window that
sees a cell, the one after the last, and the cell under window 0, which may be outside the image."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones, so the compiler can vectorise
RUN_WINDOWS = 4096  # windows whose products are summed in the maps' dtype; the sums of these are in float64

# Entries of `sizes`. BAND_ROWS: rows of the maps in a band. PITCH: rows of a sheet that are one stride apart.
HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, KERNEL_H, KERNEL_W, FILTERS = range(7)
STRIDE_H, STRIDE_W, DILATION_H, PADDING_TOP, BAND_ROWS, PITCH = range(7, 13)


# ---------------------------------------------------------------------------------------------------------------- runs
@kernel()
def _fill(d: Array, to: int, value: float, n: int) -> None:
    """Set n elements to a value."""
    to = U(to)
    for i in range(n):
        d[to + U(i)] = value


@kernel()
def _gather(s: Array, at: int, step: int, d: Array, to: int, n: int) -> None:
    """Copy n elements, `step` apart, to contiguous ones."""
    at, to = U(at), U(to)
    if step == 1:
        for i in range(n):
            d[to + U(i)] = s[at + U(i)]
    elif step == 2:
        for i in range(n):
            d[to + U(i)] = s[at + U(2) * U(i)]
    else:
        for i in range(n):
            d[to + U(i)] = s[at + U(step) * U(i)]


@kernel()
def _scatter_add(d: Array, to: int, step: int, s: Array, at: int, n: int) -> None:
    """Add contiguous elements to n elements, `step` apart."""
    at, to = U(at), U(to)
    if step == 1:
        for i in range(n):
            d[to + U(i)] += s[at + U(i)]
    elif step == 2:
        for i in range(n):
            d[to + U(2) * U(i)] += s[at + U(i)]
    else:
        for i in range(n):
            d[to + U(step) * U(i)] += s[at + U(i)]


@kernel(relaxed=True)
def _add_three_taps(d: Array, to: int, s: Array, w: Array, k: int, a: int, b: int, c: int, n: int) -> None:
    """Add three taps, from weight k on: the maps are then read and written a third as often."""
    to, a, b, c = U(to), U(a), U(b), U(c)
    u, v, z = w[k], w[k + 1], w[k + 2]
    for i in range(n):
        d[to + U(i)] += u * s[a + U(i)] + v * s[b + U(i)] + z * s[c + U(i)]


@kernel(relaxed=True)
def _add_nine_taps(d: Array, to: int, s: Array, w: Array, k: int, starts: Array, n: int) -> None:
    """Add nine taps, from weight k on. `starts` are where their cells begin. The maps are read and written a ninth as
    often."""
    to = U(to)
    a, b, c, e, f, g = U(starts[0]), U(starts[1]), U(starts[2]), U(starts[3]), U(starts[4]), U(starts[5])
    h, p, q = U(starts[6]), U(starts[7]), U(starts[8])
    w0, w1, w2, w3, w4, w5 = w[k], w[k + 1], w[k + 2], w[k + 3], w[k + 4], w[k + 5]
    w6, w7, w8 = w[k + 6], w[k + 7], w[k + 8]
    for j in range(n):
        i = U(j)
        first = w0 * s[a + i] + w1 * s[b + i] + w2 * s[c + i]
        second = w3 * s[e + i] + w4 * s[f + i] + w5 * s[g + i]
        d[to + i] += first + second + w6 * s[h + i] + w7 * s[p + i] + w8 * s[q + i]


@kernel(relaxed=True)
def _add_one_tap(d: Array, to: int, s: Array, at: int, factor: float, n: int) -> None:
    """Add one tap."""
    to, at = U(to), U(at)
    for i in range(n):
        d[to + U(i)] += factor * s[at + U(i)]


@kernel(relaxed=True)
def _dot(x: Array, at: int, y: Array, by: int, start: int, stop: int) -> Any:
    """The sum of the products of elements `start` to `stop`."""
    at, by, total = U(at), U(by), x.dtype.type(0)
    for i in range(start, stop):
        total += x[at + U(i)] * y[by + U(i)]
    return total


@kernel(relaxed=True)
def _three_dots(x: Array, at: int, y: Array, a: int, b: int, c: int, start: int, stop: int) -> Any:
    """Three sums of products with the same elements of x, which are then read a third as often."""
    at, a, b, c = U(at), U(a), U(b), U(c)
    first = second = third = x.dtype.type(0)
    for i in range(start, stop):
        value = x[at + U(i)]
        first += value * y[a + U(i)]
        second += value * y[b + U(i)]
        third += value * y[c + U(i)]
    return first, second, third


@kernel(relaxed=True)
def _nine_dots(x: Array, at: int, y: Array, starts: Array, totals: Array, to: int, start: int, stop: int) -> None:
    """Add nine sums of products to nine totals."""
    at = U(at)
    a, b, c, e, f, g = U(starts[0]), U(starts[1]), U(starts[2]), U(starts[3]), U(starts[4]), U(starts[5])
    h, p, q = U(starts[6]), U(starts[7]), U(starts[8])
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = x.dtype.type(0)
    for j in range(start, stop):
        i = U(j)
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
def _tap_starts(sizes: Array) -> Array:
    """Where the cells under each tap begin in the sheets."""
    starts = np.empty(sizes[KERNEL_H] * sizes[KERNEL_W], np.int64)
    for tap in range(len(starts)):
        starts[tap] = _tap_start(sizes, tap)
    return starts


@kernel()
def _tap_start(sizes: Array, tap: int) -> Any:
    """Where the cells under a tap begin in the sheets."""
    row = tap // sizes[KERNEL_W] * sizes[DILATION_H]
    sheet = tap % sizes[KERNEL_W] * sizes[STRIDE_H] + row % sizes[STRIDE_H]
    return (sheet * sizes[PITCH] + row // sizes[STRIDE_H]) * sizes[OUT_WIDTH]


@kernel()
def _sheets(image: Array, plane: int, sizes: Array, ranges: Array, band: int, sheets: Array, add: bool) -> None:
    """Fill the sheets for a band of one channel; or, if `add`, add them to the image."""
    height, width, columns, step = sizes[HEIGHT], sizes[WIDTH], sizes[OUT_WIDTH], sizes[STRIDE_H]
    top = band * step - sizes[PADDING_TOP]  # the image's row for the sheet's first row
    rows = sizes[PITCH] * step
    first, last = max(0, -top), max(0, min(rows, height - top))
    one_run = step == 1 and sizes[STRIDE_W] == 1 and columns == width
    for j in range(sizes[KERNEL_W]):
        left, right, cell = ranges[j]
        sheet = j * rows * columns
        if one_run:
            # Rows of one length are copied in one run; cells that come from another row are then set to 0.
            at = (top + first) * width + cell
            skip = max(0, -at)
            n = min((last - first) * width, height * width - at) - skip
            if not add:
                _fill(sheets, sheet, 0.0, first * columns)
                _fill(sheets, sheet + last * columns, 0.0, (rows - last) * columns)
                _gather(image, plane + at + skip, 1, sheets, sheet + first * columns + skip, n)
            for c in range(columns):
                if c < left or c >= right:
                    for r in range(first, last):
                        sheets[U(sheet + r * columns + c)] = 0.0
            if add:
                _scatter_add(image, plane + at + skip, 1, sheets, sheet + first * columns + skip, n)
            continue
        for r in range(rows):
            to = sheet + (r % step * sizes[PITCH] + r // step) * columns
            at = plane + (top + r) * width + cell + left * sizes[STRIDE_W]
            if r < first or r >= last:
                if not add:
                    _fill(sheets, to, 0.0, columns)
            elif add:
                _scatter_add(image, at, sizes[STRIDE_W], sheets, to + left, right - left)
            else:
                _fill(sheets, to, 0.0, left)
                _gather(image, at, sizes[STRIDE_W], sheets, to + left, right - left)
                _fill(sheets, to + right, 0.0, columns - right)


# ------------------------------------------------------------------------------------------------------------- kernels
@kernel()
def correlate(
    image: Array,
    weight: Array,
    bias: Array,
    maps: Array,
    sizes: Array,
    ranges: Array,
    start: int,
    stop: int,
    channels: int,
    sheets: Array,
) -> None:
    """The maps of planes `start` to `stop`, counted over samples and channels."""
    out, columns, filters, taps = sizes[OUT_HEIGHT], sizes[OUT_WIDTH], sizes[FILTERS], sizes[KERNEL_H] * sizes[KERNEL_W]
    starts = _tap_starts(sizes)
    for plane in range(start, stop):
        for band in range(0, out, sizes[BAND_ROWS]):
            _sheets(image, plane * sizes[HEIGHT] * sizes[WIDTH], sizes, ranges, band, sheets, False)
            n = min(sizes[BAND_ROWS], out - band) * columns
            for q in range(filters):
                f = plane % channels * filters + q
                to = ((plane * filters + q) * out + band) * columns
                _fill(maps, to, bias[f], n)
                for tap in range(0, taps - 8, 9):
                    _add_nine_taps(maps, to, sheets, weight, f * taps + tap, starts[tap:], n)
                for tap in range(taps - taps % 9, taps - 2, 3):
                    _add_three_taps(
                        maps, to, sheets, weight, f * taps + tap, starts[tap], starts[tap + 1], starts[tap + 2], n
                    )
                for tap in range(taps - taps % 3, taps):
                    _add_one_tap(maps, to, sheets, starts[tap], weight[f * taps + tap], n)


@kernel()
def correlate_adjoint(
    maps: Array,
    weight: Array,
    bias: Array,
    image: Array,
    sizes: Array,
    ranges: Array,
    start: int,
    stop: int,
    channels: int,
    sheets: Array,
) -> None:
    """The image of planes `start` to `stop`, counted over samples and channels."""
    out, columns, filters, taps = sizes[OUT_HEIGHT], sizes[OUT_WIDTH], sizes[FILTERS], sizes[KERNEL_H] * sizes[KERNEL_W]
    cells, starts = sizes[HEIGHT] * sizes[WIDTH], _tap_starts(sizes)
    for plane in range(start, stop):
        _fill(image, plane * cells, bias[plane % channels], cells)
        for band in range(0, out, sizes[BAND_ROWS]):
            _fill(sheets, 0, 0.0, len(sheets))
            n = min(sizes[BAND_ROWS], out - band) * columns
            for q in range(filters):
                f = plane % channels * filters + q
                at = ((plane * filters + q) * out + band) * columns
                for tap in range(taps):
                    _add_one_tap(sheets, starts[tap], maps, at, weight[f * taps + tap], n)
            _sheets(image, plane * cells, sizes, ranges, band, sheets, True)


@kernel()
def weight_gradient(
    image: Array,
    maps: Array,
    dweight: Array,
    sizes: Array,
    ranges: Array,
    start: int,
    stop: int,
    samples: int,
    channels: int,
    sheets: Array,
) -> None:
    """The gradient of the weights of channels `start` to `stop`."""
    out, columns, filters, taps = sizes[OUT_HEIGHT], sizes[OUT_WIDTH], sizes[FILTERS], sizes[KERNEL_H] * sizes[KERNEL_W]
    starts = _tap_starts(sizes)
    for sample in range(samples):
        for c in range(start, stop):
            plane = sample * channels + c
            for band in range(0, out, sizes[BAND_ROWS]):
                _sheets(image, plane * sizes[HEIGHT] * sizes[WIDTH], sizes, ranges, band, sheets, False)
                n = min(sizes[BAND_ROWS], out - band) * columns
                for q in range(filters):
                    at = ((plane * filters + q) * out + band) * columns
                    to = (c * filters + q) * taps
                    for first in range(0, n, RUN_WINDOWS):
                        last = min(first + RUN_WINDOWS, n)
                        for tap in range(0, taps - 8, 9):
                            _nine_dots(maps, at, sheets, starts[tap:], dweight, to + tap, first, last)
                        for tap in range(taps - taps % 9, taps - 2, 3):
                            sums = _three_dots(
                                maps, at, sheets, starts[tap], starts[tap + 1], starts[tap + 2], first, last
                            )
                            for k in range(3):
                                dweight[to + tap + k] += sums[k]
                        for tap in range(taps - taps % 3, taps):
                            dweight[to + tap] += _dot(maps, at, sheets, starts[tap], first, last)
