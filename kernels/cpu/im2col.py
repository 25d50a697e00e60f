"""The steps of a convolution that copy cells ("im2col" and its adjoint "col2im"), and sums over channels.

Specs are those of specs/conv.py, tiles and taps those of functional/conv_tiling.py. Images and columns are contiguous,
float32 or float64; only one tile writes to a part of them. Columns are (groups, channels, taps, samples, *windows);
with a matrix for each sample (samples, groups, channels, taps, *windows); with contiguous channels (groups, samples,
*windows, taps, channels). A missing spatial axis has one cell.

In a row of windows, those from `first` to `stop` see cells under a tap, and the others see padding."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from .jit import kernel
from .parallel import flat, parallel_chunks
from .vectors import LANES, add, broadcast, load, load_first, to_float64, total

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones, so the compiler can vectorise

LENGTH, OUT, KERNEL, STRIDE, DILATION, BEFORE = range(6)  # columns of `_axes`
CACHE_LINE_CHANNELS = 16  # channels in a cache line
SAMPLE, CHANNEL, CELL = range(3)  # entries of `steps`: elements of the image from one to the next


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if any(a.dtype not in (np.float32, np.float64) for a in arrays):
        return f"{step} is compiled for float32 and float64"
    return None


def im2col(b: Backend, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    """Fill the columns with what the tile's windows see of an image under the block's taps."""
    _copy_tile(spec, image, tile, block, columns, False)


def col2im(b: Backend, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    """Add the columns to the cells that the tile's windows see of an image under the block's taps."""
    _copy_tile(spec, image, tile, block, columns, True)


def _copy_tile(spec: Any, image: Array, tile: Any, block: list[Any], columns: Array, add: bool) -> None:
    """Image to columns, or if `add` columns to image."""
    plane = math.prod(spec.window.layout.lengths)
    steps = (plane * spec.channels, 1, spec.channels) if spec.last else (plane * spec.channels, plane, 1)
    counts = (spec.groups, spec.weight_shape[2], len(image[tile.samples]), tile.per_sample)
    copy = _copy_channels_last if spec.channels_contiguous else _copy_rows
    part = flat(image[tile.samples])
    copy(part, flat(columns), _axes(tile.window), np.array(steps), np.array(counts), block[0][0], len(block), add)


def channel_sums(b: Backend, spec: Any, array: Array) -> Array:
    """The sum of an image or of maps over all axes but the channels, in float64."""
    channels = array.shape[-1] if spec.last else array.shape[1]
    samples, cells = array.shape[0], math.prod(array.shape[1:]) // max(1, channels)
    values, sums, add = flat(array), np.zeros(channels), _sums_channels_last if spec.last else _sums_channels_first
    # Channels that are neighbours are in one cache line.
    least = CACHE_LINE_CHANNELS if spec.last else 1
    parallel_chunks(
        channels, array.nbytes, lambda start, stop: add(values, sums, samples, cells, start, stop), least=least
    )
    return sums


@functools.lru_cache(maxsize=256)  # by number: results have a fixed size
def _axes(window: Any) -> Array:
    """The sizes of three spatial axes, (3, 6). The columns are LENGTH to BEFORE."""
    rows = [(1, 1, 1, 1, 1, 0)] * (3 - len(window.axes))
    rows += [(a.length, a.out, a.kernel, a.stride, a.dilation, a.before) for a in window.axes]
    return np.array(rows, np.int64)


# ------------------------------------------------------------------------------------------------------------- kernels
@kernel()
def _window_ranges(axes: Array, first: int, taps: int) -> Array:
    """For each tap and axis: the first window that sees a cell, the one after the last, and the cell under window 0,
    which may be outside the image."""
    ranges = np.empty((taps, 3, 3), np.int64)
    for tap in range(taps):
        rest = first + tap
        for axis in range(2, -1, -1):
            out, stride = axes[axis, OUT], axes[axis, STRIDE]
            cell = rest % axes[axis, KERNEL] * axes[axis, DILATION] - axes[axis, BEFORE]
            rest //= axes[axis, KERNEL]
            start = min(max(0, -(cell // stride)), out)
            ranges[tap, axis, 0] = start
            ranges[tap, axis, 1] = max(start, min(out, (axes[axis, LENGTH] - 1 - cell) // stride + 1))
            ranges[tap, axis, 2] = cell
    return ranges


@kernel()
def _shared_rows(axes: Array) -> Any:
    """Distance in taps to the nearest earlier tap that sees the same rows of cells, and how many rows of windows later.

    All rows but that many of a tap's columns can be copied from the earlier tap's."""
    stride, dilation, rows = axes[1, STRIDE], axes[1, DILATION], 1
    while rows * stride % dilation:
        rows += 1
    return rows * stride // dilation * axes[2, KERNEL], rows


@kernel()
def _zero(d: Array, start: int, n: int) -> None:
    at = U(start)
    for i in range(n):
        d[at + U(i)] = 0.0


@kernel()
def _gather(s: Array, start: int, step: int, d: Array, to: int, n: int) -> None:
    """Copy n cells of the image, `step` apart, to a row of columns. The common steps have vector loads."""
    so, do = U(start), U(to)
    if step == 1:
        for i in range(n):
            d[do + U(i)] = s[so + U(i)]
    elif step == 2:
        for i in range(n):
            d[do + U(i)] = s[so + U(2) * U(i)]
    else:
        for i in range(n):
            d[do + U(i)] = s[so + U(step) * U(i)]


@kernel()
def _scatter_add(d: Array, start: int, step: int, s: Array, at: int, n: int) -> None:
    """Add a row of columns to n cells of the image, `step` apart."""
    do, so = U(start), U(at)
    if step == 1:
        for i in range(n):
            d[do + U(i)] += s[so + U(i)]
    elif step == 2:
        for i in range(n):
            d[do + U(2) * U(i)] += s[so + U(i)]
    else:
        for i in range(n):
            d[do + U(step) * U(i)] += s[so + U(i)]


@kernel()
def _copy_rows(
    image: Array, columns: Array, axes: Array, steps: Array, counts: Array, first: int, taps: int, add: bool
) -> None:
    """Columns (groups, channels, taps, samples, *windows), or with the samples first: a row of windows is contiguous.

    Rows that an earlier tap also sees are copied from its columns. If `add`, taps come in reverse order, and such rows
    are added to the earlier tap's."""
    channels, samples, cell = counts[0] * counts[1], counts[2], steps[CELL]
    depth, height, width, across = axes[0, OUT], axes[1, OUT], axes[2, OUT], axes[2, STRIDE]
    plane = depth * height * width
    # Distances from one sample's columns to the next one's, and from one tap's.
    by_sample, by_tap = (channels * taps * plane, plane) if counts[3] else (plane, samples * plane)
    line, step = axes[2, LENGTH] * cell, across * cell
    down, deep = axes[1, STRIDE] * line, axes[0, STRIDE] * axes[1, LENGTH] * line
    ranges, (back, later) = _window_ranges(axes, first, taps), _shared_rows(axes)
    for n in range(samples):
        for c in range(channels):
            for i in range(taps):
                tap = taps - 1 - i if add else i
                (front, behind, z0), (top, bottom, y0), (left, right, x0) = ranges[tap]
                shares = back <= tap and back <= (first + tap) % (axes[1, KERNEL] * axes[2, KERNEL]) and later < height
                corner = n * steps[SAMPLE] + c * steps[CHANNEL]
                corner += z0 * axes[1, LENGTH] * line + y0 * line + (x0 + left * across) * cell
                for z in range(depth):
                    to = n * by_sample + (c * taps + tap) * by_tap + z * height * width
                    if z < front or z >= behind:
                        if not add:
                            _zero(columns, to, height * width)
                        continue
                    copied = height - later if shares else 0
                    other = to + later * width - back * by_tap
                    if add:
                        _scatter_add(columns, other, 1, columns, to, copied * width)
                    else:
                        _gather(columns, other, 1, columns, to, copied * width)
                    for y in range(copied, height):
                        at, row = corner + z * deep + y * down, to + y * width
                        if y < top or y >= bottom:
                            if not add:
                                _zero(columns, row, width)
                        elif add:
                            _scatter_add(image, at, step, columns, row + left, right - left)
                        else:
                            _zero(columns, row, left)
                            _gather(image, at, step, columns, row + left, right - left)
                            _zero(columns, row + right, width - right)


@kernel()
def _copy_channels_last(
    image: Array, columns: Array, axes: Array, steps: Array, counts: Array, first: int, taps: int, add: bool
) -> None:
    """Columns (groups, samples, *windows, taps, channels): the channels of a cell are contiguous."""
    groups, channels, samples, cell = counts[0], counts[1], counts[2], steps[CELL]
    height, width = axes[1, OUT], axes[2, OUT]
    windows = axes[0, OUT] * height * width
    step_z, step_y = axes[1, LENGTH] * axes[2, LENGTH] * cell, axes[2, LENGTH] * cell
    ranges = _window_ranges(axes, first, taps)
    for n in range(samples):
        for window in range(windows):
            z, y, x = window // (height * width), window // width % height, window % width
            for tap in range(taps):
                (front, back, z0), (top, bottom, y0), (left, right, x0) = ranges[tap]
                inside = front <= z < back and top <= y < bottom and left <= x < right
                at = n * steps[SAMPLE] + (x0 + x * axes[2, STRIDE]) * cell
                at += (z0 + z * axes[0, STRIDE]) * step_z + (y0 + y * axes[1, STRIDE]) * step_y
                for g in range(groups):
                    to = (((g * samples + n) * windows + window) * taps + tap) * channels
                    if add and inside:
                        _scatter_add(image, at + g * channels, 1, columns, to, channels)
                    elif inside:
                        _gather(image, at + g * channels, 1, columns, to, channels)
                    elif not add:
                        _zero(columns, to, channels)


@kernel()
def _sums_channels_first(values: Array, sums: Array, samples: int, cells: int, start: int, stop: int) -> None:
    """Sums of channels `start` to `stop` of (samples, channels, cells)."""
    whole = cells - cells % LANES
    for n in range(samples):
        for c in range(start, stop):
            at, lanes = (n * len(sums) + c) * cells, broadcast(sums, 0)
            for i in range(U(at), U(at + whole), U(LANES)):
                lanes = add(lanes, to_float64(load(values, i)))
            sums[c] += total(add(lanes, to_float64(load_first(values, at + whole, cells - whole))))


@kernel()
def _sums_channels_last(values: Array, sums: Array, samples: int, cells: int, start: int, stop: int) -> None:
    """Sums of channels `start` to `stop` of (samples, cells, channels)."""
    for row in range(samples * cells):
        at = U(row * len(sums))
        for c in range(start, stop):
            sums[U(c)] += values[at + U(c)]
