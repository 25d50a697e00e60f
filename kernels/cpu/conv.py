"""The steps of a convolution that move cells: image to columns and back ("im2col", "col2im"), and sums over channels.

Specs, tiles and taps are taken as they come from functional/tiles.py; images and columns are contiguous, float32 or
float64, and written to by one tile at a time. Columns are (groups, channels, taps, samples, *windows), of samples apart
(samples, groups, channels, taps, *windows), or, where channels lie in runs, (groups, samples, *windows, taps,
channels). A missing spatial axis is one of one cell.

What a window's tap sees is worked out per row of windows: from `first` to `stop` they see cells, the others padding.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from .compile import chunks, flat
from .jit import kernel

Array = Any
u8 = np.uint64  # unsigned offsets: the compiler then needs no test for negative ones, and vectorises

LENGTH, OUT, KERNEL, STRIDE, DILATION, BEFORE = range(6)  # columns of `_axes`
LINE = 16  # channels that fill a cache line
SAMPLE, CHANNEL, CELL = range(3)  # entries of the steps, in elements of the image


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if any(a.dtype not in (np.float32, np.float64) for a in arrays):
        return f"{op} is compiled for float32 and float64"
    return None


def im2col(b: Backend, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    """Fill the columns with what the tile's windows see of a split image under the block's taps."""
    _move(spec, image, tile, block, columns, False)


def col2im(b: Backend, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    """Add the columns to what the tile's windows see of a split image under the block's taps."""
    _move(spec, image, tile, block, columns, True)


def _move(spec: Any, image: Array, tile: Any, block: list[Any], columns: Array, add: bool) -> None:
    plane = math.prod(spec.window.layout.lengths)
    steps = (plane * spec.channels, 1, spec.channels) if spec.last else (plane * spec.channels, plane, 1)
    counts = (spec.groups, spec.weight_shape[2], len(image[tile.samples]), tile.apart)
    move = _runs if spec.in_runs else _rows
    part = flat(image[tile.samples])
    move(part, flat(columns), _axes(tile.window), np.array(steps), np.array(counts), block[0][0], len(block), add)


def channel_sums(b: Backend, spec: Any, array: Array) -> Array:
    """An image's or maps' sum over all but the channels, in float64."""
    channels = array.shape[-1] if spec.last else array.shape[1]
    samples, cells = array.shape[0], math.prod(array.shape[1:]) // max(1, channels)
    values, sums, add = flat(array), np.zeros(channels), _sums_last if spec.last else _sums_first
    # Channels that are neighbours share cache lines.
    least = LINE if spec.last else 1
    chunks(channels, array.nbytes, lambda start, stop: add(values, sums, samples, cells, start, stop), least=least)
    return sums


@functools.lru_cache(maxsize=256)
def _axes(window: Any) -> Array:
    """The sizes of three spatial axes, a row an axis."""
    rows = [(1, 1, 1, 1, 1, 0)] * (3 - len(window.axes))
    rows += [(a.length, a.out, a.kernel, a.stride, a.dilation, a.before) for a in window.axes]
    return np.array(rows, np.int64)


# ------------------------------------------------------------------------------------------------------------- kernels
@kernel()
def _seen(axes: Array, first: int, taps: int) -> Array:
    """For each tap and axis: the first window that sees a cell, the one after the last, and the cell that window 0
    sees, be it there or not."""
    seen = np.empty((taps, 3, 3), np.int64)
    for tap in range(taps):
        rest = first + tap
        for axis in range(2, -1, -1):
            out, stride = axes[axis, OUT], axes[axis, STRIDE]
            cell = rest % axes[axis, KERNEL] * axes[axis, DILATION] - axes[axis, BEFORE]
            rest //= axes[axis, KERNEL]
            start = min(max(0, -(cell // stride)), out)
            seen[tap, axis, 0] = start
            seen[tap, axis, 1] = max(start, min(out, (axes[axis, LENGTH] - 1 - cell) // stride + 1))
            seen[tap, axis, 2] = cell
    return seen


@kernel()
def _shared(axes: Array) -> Any:
    """How many taps back the nearest one is that sees the same rows of cells, and how many rows of windows later: all
    but so many rows of a tap's columns lie there already."""
    stride, dilation, rows = axes[1, STRIDE], axes[1, DILATION], 1
    while rows * stride % dilation:
        rows += 1
    return rows * stride // dilation * axes[2, KERNEL], rows


@kernel()
def _zero(d: Array, start: int, n: int) -> None:
    at = u8(start)
    for i in range(n):
        d[at + u8(i)] = 0.0


@kernel()
def _read(s: Array, start: int, step: int, d: Array, to: int, n: int) -> None:
    """n cells of the image, `step` apart, as a row of columns; the common steps with vector loads."""
    so, do = u8(start), u8(to)
    if step == 1:
        for i in range(n):
            d[do + u8(i)] = s[so + u8(i)]
    elif step == 2:
        for i in range(n):
            d[do + u8(i)] = s[so + u8(2) * u8(i)]
    else:
        for i in range(n):
            d[do + u8(i)] = s[so + u8(step) * u8(i)]


@kernel()
def _add(d: Array, start: int, step: int, s: Array, of: int, n: int) -> None:
    """A row of columns added to n cells of the image, `step` apart."""
    do, so = u8(start), u8(of)
    if step == 1:
        for i in range(n):
            d[do + u8(i)] += s[so + u8(i)]
    elif step == 2:
        for i in range(n):
            d[do + u8(2) * u8(i)] += s[so + u8(i)]
    else:
        for i in range(n):
            d[do + u8(step) * u8(i)] += s[so + u8(i)]


@kernel()
def _rows(
    image: Array, columns: Array, axes: Array, steps: Array, counts: Array, first: int, taps: int, add: bool
) -> None:
    """Columns (groups, channels, taps, samples, *windows), or with the samples first: a row of windows is a run. Rows
    that an earlier tap sees too are copied from it; those to `add`, the taps in reverse, are added to its."""
    channels, samples, cell = counts[0] * counts[1], counts[2], steps[CELL]
    depth, height, width, across = axes[0, OUT], axes[1, OUT], axes[2, OUT], axes[2, STRIDE]
    plane = depth * height * width
    # From a sample's columns to the next one's, and from a tap's.
    by_sample, by_tap = (channels * taps * plane, plane) if counts[3] else (plane, samples * plane)
    line, step = axes[2, LENGTH] * cell, across * cell
    down, deep = axes[1, STRIDE] * line, axes[0, STRIDE] * axes[1, LENGTH] * line
    seen, (back, later) = _seen(axes, first, taps), _shared(axes)
    for n in range(samples):
        for c in range(channels):
            for i in range(taps):
                tap = taps - 1 - i if add else i
                (front, behind, z0), (top, bottom, y0), (left, right, x0) = seen[tap]
                shares = back <= tap and back <= (first + tap) % (axes[1, KERNEL] * axes[2, KERNEL]) and later < height
                corner = n * steps[SAMPLE] + c * steps[CHANNEL]
                corner += z0 * axes[1, LENGTH] * line + y0 * line + (x0 + left * across) * cell
                for z in range(depth):
                    to = n * by_sample + (c * taps + tap) * by_tap + z * height * width
                    if z < front or z >= behind:
                        if not add:
                            _zero(columns, to, height * width)
                        continue
                    known = height - later if shares else 0
                    other = to + later * width - back * by_tap
                    if add:
                        _add(columns, other, 1, columns, to, known * width)
                    else:
                        _read(columns, other, 1, columns, to, known * width)
                    for y in range(known, height):
                        at, row = corner + z * deep + y * down, to + y * width
                        if y < top or y >= bottom:
                            if not add:
                                _zero(columns, row, width)
                        elif add:
                            _add(image, at, step, columns, row + left, right - left)
                        else:
                            _zero(columns, row, left)
                            _read(image, at, step, columns, row + left, right - left)
                            _zero(columns, row + right, width - right)


@kernel()
def _runs(
    image: Array, columns: Array, axes: Array, steps: Array, counts: Array, first: int, taps: int, add: bool
) -> None:
    """Columns (groups, samples, *windows, taps, channels): the channels of a cell are a run."""
    groups, channels, samples, cell = counts[0], counts[1], counts[2], steps[CELL]
    height, width = axes[1, OUT], axes[2, OUT]
    windows = axes[0, OUT] * height * width
    step_z, step_y = axes[1, LENGTH] * axes[2, LENGTH] * cell, axes[2, LENGTH] * cell
    seen = _seen(axes, first, taps)
    for n in range(samples):
        for window in range(windows):
            z, y, x = window // (height * width), window // width % height, window % width
            for tap in range(taps):
                (front, back, z0), (top, bottom, y0), (left, right, x0) = seen[tap]
                inside = front <= z < back and top <= y < bottom and left <= x < right
                at = n * steps[SAMPLE] + (x0 + x * axes[2, STRIDE]) * cell
                at += (z0 + z * axes[0, STRIDE]) * step_z + (y0 + y * axes[1, STRIDE]) * step_y
                for g in range(groups):
                    to = (((g * samples + n) * windows + window) * taps + tap) * channels
                    if add and inside:
                        _add(image, at + g * channels, 1, columns, to, channels)
                    elif inside:
                        _read(image, at + g * channels, 1, columns, to, channels)
                    elif not add:
                        _zero(columns, to, channels)


@kernel(relaxed=True)
def _sums_first(values: Array, sums: Array, samples: int, cells: int, start: int, stop: int) -> None:
    """Channels from `start` to `stop` of (samples, channels, cells)."""
    for n in range(samples):
        for c in range(start, stop):
            at, total = u8((n * len(sums) + c) * cells), 0.0
            for i in range(cells):
                total += values[at + u8(i)]
            sums[c] += total


@kernel()
def _sums_last(values: Array, sums: Array, samples: int, cells: int, start: int, stop: int) -> None:
    """Channels from `start` to `stop` of (samples, cells, channels)."""
    for row in range(samples * cells):
        at = u8(row * len(sums))
        for c in range(start, stop):
            sums[u8(c)] += values[at + u8(c)]
