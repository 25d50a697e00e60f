"""The loops of direct convolution on vectors of filters: for channels last, and for many filters on small maps.

A *unit* is some samples of a group, or a band of windows of one sample. Its cells are copied to a *sheet*: rows with
zeros for the padding, and the channels of a cell one after another. Then

    target[p, f] = bias[f] + the sum over k of weight[k, f] * sheet[places[p] + offsets[k]]

for a tile of windows p and vectors of filters f, where k goes over taps and channels. The weight's gradient is the same
sum with other parts: places are taps and channels, offsets windows, and the maps take the place of the weight. For a
depthwise convolution (`depthwise`) k is a tap, and a vector of channels takes the place of each number of the sheet.
Each sum is in order of k, so the bits depend on nothing but the shapes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .conv_direct_loops import copy, zero
from .jit import kernel
from .vector_tiles import (
    WINDOWS_BY_FILTERS,
    transpose,
    windows_by_channels,
    windows_by_one_vector,
    windows_by_two_vectors,
)
from .vectors import LANES, add, broadcast, load, load_first, store, sub, to_float64, total

Array = Any
Kernel = Any
U = np.uint64  # unsigned offsets need no test for negative ones
TERMS = 256  # of a sum of a weight's gradient in float32, at most; the sums of these are in float64
MOST_TERMS = 512  # of other sums, at most; longer ones are added up from such parts
RESULTS = 48  # windows whose results are held together: a multiple of the windows of every tile, and of LANES

# Columns of `axes`. LENGTH: the source's cells. FIRST: the source's cell in cell 0 of the sheet. STEP: the source's
# cells from one of the sheet's to the next. BAND: the source's cells from one band to the next. EXTENT: of the sheet.
LENGTH, FIRST, STEP, BAND, EXTENT = range(5)
# Columns of `phases`. WINDOW: where the phase's windows begin in `places`. NUMBER, LAST: windows of a sample (of a
# band), and of the last band. TERM: its first offset. COUNT: its offsets.
WINDOW, NUMBER, LAST, TERM, COUNT = range(5)
# Entries of `sizes`. A stride: elements from one to the next.
SAMPLES, GROUPS, CHANNELS, FILTERS, BATCH, BANDS = range(6)
SOURCE_SAMPLE, SOURCE_CHANNEL, SOURCE_CELL, TARGET_SAMPLE, TARGET_CHANNEL, TARGET_BAND = range(6, 12)


# --------------------------------------------------------------------------------------------------------------- sheets
@kernel(allocates=False)
def _copy_cells(
    source: Array, at: int, by_channel: int, by_cell: int, sheet: Array, to: int, channels: int, count: int
) -> None:
    """Copy the channels of `count` cells."""
    if by_channel == 1 and by_cell == channels:
        copy(source, at, sheet, to, count * channels)
    elif by_channel == 1:
        for i in range(count):
            copy(source, at + i * by_cell, sheet, to + i * channels, channels)
    elif by_cell == 1:
        for c in range(0, channels, LANES):
            for i in range(0, count, LANES):
                here, there = at + c * by_channel + i, to + i * channels + c
                transpose(source, here, by_channel, channels - c, count - i, sheet, there, channels)
    else:
        for c in range(U(channels)):
            for i in range(U(count)):
                sheet[U(to) + i * U(channels) + c] = source[U(at) + c * U(by_channel) + i * U(by_cell)]


@kernel(allocates=False)
def _fill(source: Array, base: int, samples: int, band: int, axes: Array, sizes: Array, sheet: Array) -> None:
    """Copy a unit's cells to the sheet. base: the element of the first channel of cell 0 of the first sample."""
    channels, by_channel, by_cell = sizes[CHANNELS], sizes[SOURCE_CHANNEL], sizes[SOURCE_CELL]
    depth, height, width = axes[0, EXTENT], axes[1, EXTENT], axes[2, EXTENT]
    step, x = axes[2, STEP], axes[2, FIRST] + band * axes[2, BAND]
    left = min(width, max(0, -(x // step)))
    right = max(left, min(width, (axes[2, LENGTH] - 1 - x) // step + 1))
    to = 0
    for n in range(samples):
        for i in range(depth):
            z = axes[0, FIRST] + band * axes[0, BAND] + i * axes[0, STEP]
            for j in range(height):
                y = axes[1, FIRST] + band * axes[1, BAND] + j * axes[1, STEP]
                if z < 0 or z >= axes[0, LENGTH] or y < 0 or y >= axes[1, LENGTH]:
                    zero(sheet, to, width * channels)
                else:
                    row = (z * axes[1, LENGTH] + y) * axes[2, LENGTH]
                    at = base + n * sizes[SOURCE_SAMPLE] + (row + x + left * step) * by_cell
                    zero(sheet, to, left * channels)
                    _copy_cells(
                        source, at, by_channel, step * by_cell, sheet, to + left * channels, channels, right - left
                    )  # fmt: skip
                    zero(sheet, to + right * channels, (width - right) * channels)
                to += width * channels


@kernel(allocates=False)
def _run_of(targets: Array, q: int, end: int) -> int:
    """How many windows from q on, up to LANES, are neighbours in the target."""
    number = min(LANES, end - q)
    while targets[q + number - 1] - targets[q] != number - 1:
        number -= 1
    return number


# ------------------------------------------------------------------------------------------------------------ the loops
@kernel()
def pack(weight: Array, strides: Array, sizes: Array, slots: Array, terms: int, packed: Array) -> bool:
    """Copy a weight's numbers to (groups, blocks of 16 filters, k, 16), with `terms` k. Returns whether all are finite.

    strides: elements from one group, filter and row to the next. slots: the k of each element of the rows, or -1."""
    filters, blocks, (rows, columns) = sizes[FILTERS], (sizes[FILTERS] + LANES - 1) // LANES, slots.shape
    block, zeros = np.zeros(LANES * LANES, weight.dtype), broadcast(weight, 0)
    for b in range(sizes[GROUPS] * blocks):
        f = b % blocks * LANES
        for row in range(rows):
            at = b // blocks * strides[0] + f * strides[1] + row * strides[2]
            for i in range(0, columns, LANES):
                transpose(weight, at + i, strides[1], filters - f, columns - i, block, 0, LANES)
                for j in range(min(LANES, columns - i)):
                    numbers, k = load(block, j * LANES), slots[row, i + j]
                    zeros = add(zeros, sub(numbers, numbers))
                    if k >= 0:
                        store(packed, (b * terms + k) * LANES, numbers)
    finite: bool = total(zeros) == 0.0
    return finite


@kernel(allocates=False)
def _store_results(
    out: Array, at: int, vectors: int, target: Array, targets: Array, q: int, end: int, to: int, by_channel: int,
    filters: int,
) -> None:  # fmt: skip
    """Copy the results of windows q to end, each `vectors` vectors of filters, to the target."""
    i = 0
    while q + i < end:
        run, here, there = 1, at + i * vectors * LANES, to + targets[q + i]
        if by_channel == 1:
            copy(out, here, target, there, filters)
        else:
            run = _run_of(targets, q + i, end)
            for f in range(0, filters, LANES):
                transpose(
                    out, here + f, vectors * LANES, run, filters - f, target, there + f * by_channel, by_channel
                )  # fmt: skip
        i += run


@functools.cache
def _make_tile(depthwise: bool, itemsize: int) -> tuple[Kernel, int, bool]:
    """The kernel that computes a tile of one or two vectors of filters, its windows, and whether it may have two."""
    rows, width = WINDOWS_BY_FILTERS[itemsize]
    pairs = width == 2 and not depthwise

    @kernel(allocates=False, inlined=True)
    def tile(
        vectors: int, sheet: Array, starts: Array, q: int, f: int, offsets: Array, first: int, count: int,
        weight: Array, w: int, second: int, bias: Array, b: int, target: Array, targets: Array, to: int, out: Array,
        at: int, direct: bool, more: bool,
    ) -> None:  # fmt: skip
        if depthwise:
            windows_by_channels(
                sheet, starts, q, f, offsets, first, count, weight, w, second, bias, b, target, targets, to, out, at,
                direct, more,
            )  # fmt: skip
        elif pairs and vectors == 2:
            windows_by_two_vectors(
                sheet, starts, q, 0, offsets, first, count, weight, w, second, bias, b, target, targets, to, out, at,
                direct, more,
            )  # fmt: skip
        else:
            windows_by_one_vector(
                sheet, starts, q, 0, offsets, first, count, weight, w, second, bias, b, target, targets, to, out, at,
                direct, more,
            )  # fmt: skip

    return tile, rows, pairs


@functools.cache
def make_correlate(depthwise: bool, itemsize: int) -> Kernel:
    """The kernel for the target of units `start` to `stop`, for numbers of `itemsize` bytes. weight: as `pack` gives
    it; bias: (groups, blocks of 16 filters, 16). targets: where the results of a unit's windows go, from the unit's
    first element on."""
    tile, rows, pairs = _make_tile(depthwise, itemsize)

    @kernel()
    def correlate(
        source: Array, weight: Array, bias: Array, target: Array, sizes: Array, axes: Array, phases: Array,
        offsets: Array, places: Array, targets: Array, start: int, stop: int, sheet: Array,
    ) -> None:  # fmt: skip
        channels, filters, by_channel = sizes[CHANNELS], sizes[FILTERS], sizes[TARGET_CHANNEL]
        groups, bands, blocks = sizes[GROUPS], sizes[BANDS], (filters + LANES - 1) // LANES
        terms, second = len(weight) // (groups * blocks * LANES), len(weight) // (groups * blocks)
        out = np.empty(RESULTS * 2 * LANES, source.dtype)
        for unit in range(start, stop):
            group, band, n = unit % groups, unit // groups % bands, unit // (groups * bands) * sizes[BATCH]
            samples = min(sizes[BATCH], sizes[SAMPLES] - n)
            base = n * sizes[SOURCE_SAMPLE] + group * channels * sizes[SOURCE_CHANNEL]
            _fill(source, base, samples, band, axes, sizes, sheet)
            base = n * sizes[TARGET_SAMPLE] + band * sizes[TARGET_BAND] + group * filters * by_channel
            for phase in range(len(phases)):
                window, first, count = phases[phase, WINDOW], phases[phase, TERM], phases[phase, COUNT]
                number = phases[phase, LAST if band == bands - 1 else NUMBER]
                end, block = window + samples * number, 0
                parts = max(1, -(-count // MOST_TERMS))
                while block < blocks:
                    vectors = 2 if pairs and block + 1 < blocks else 1
                    f, b = block * LANES, (group * blocks + block) * LANES
                    w, to = b * terms + first * LANES, base + f * by_channel
                    here = min(vectors * LANES, filters - f)
                    copies = parts == 1 and by_channel == 1 and here == vectors * LANES
                    for q in range(window, end, RESULTS):
                        last = min(q + RESULTS, end)
                        for part in range(parts):
                            k, stop_k = count * part // parts, count * (part + 1) // parts
                            v, term = w + k * LANES, first + k
                            for p in range(q, last, rows):
                                direct = copies and p + rows <= last
                                at = (p - q) * vectors * LANES
                                tile(
                                    vectors, sheet, places, p, f, offsets, term, stop_k - k, weight, v, second, bias,
                                    b, target, targets, to, out, at, direct, k > 0,
                                )  # fmt: skip
                        done = (last - q) // rows * rows if copies else 0
                        _store_results(
                            out, done * vectors * LANES, vectors, target, targets, q + done, last, to, by_channel, here
                        )  # fmt: skip
                    block += vectors

    return correlate


@kernel(allocates=False)
def _pack_maps(
    maps: Array, base: int, targets: Array, number: int, by_channel: int, first: int, filters: int, cells: Array,
    pitch: int,
) -> None:  # fmt: skip
    """Copy the maps of filters from `first` on at some windows to (blocks of 16 filters, windows, 16). pitch: elements
    of a block."""
    for f in range(first, filters, LANES):
        q, to = 0, f // LANES * pitch
        if by_channel == 1:
            for q in range(number):
                store(cells, to + q * LANES, load_first(maps, base + targets[q] + f, filters - f))
        else:
            while q < number:
                run, at = _run_of(targets, q, number), base + targets[q] + f * by_channel
                transpose(maps, at, by_channel, filters - f, run, cells, to + q * LANES, LANES)
                q += run


@functools.cache
def make_weight_gradient(depthwise: bool, itemsize: int) -> Kernel:
    """The kernel for partial sums of the weight's gradient (parts, groups, blocks of 16 filters, k, 16), which are in
    float64 and begin as zeros. A part is a range of the units. Jobs `start` to `stop` are of (parts, groups, shares); a
    share is a range of the blocks."""
    tile, rows, pairs = _make_tile(depthwise, itemsize)

    @kernel()
    def weight_gradient(
        image: Array, maps: Array, partial: Array, sizes: Array, axes: Array, phases: Array, offsets: Array,
        places: Array, targets: Array, parts: int, shares: int, start: int, stop: int, sheet: Array, cells: Array,
    ) -> None:  # fmt: skip
        channels, filters, by_channel = sizes[CHANNELS], sizes[FILTERS], sizes[TARGET_CHANNEL]
        groups, bands, blocks, terms = sizes[GROUPS], sizes[BANDS], (filters + LANES - 1) // LANES, phases[0, COUNT]
        units, pitch = -(-sizes[SAMPLES] // sizes[BATCH]) * bands, len(cells) // blocks
        out, zeros = np.empty(rows * 2 * LANES, image.dtype), np.zeros(2 * LANES, image.dtype)
        zero(cells, 0, len(cells))  # also the lanes of missing filters: garbage may be slow to multiply
        for job in range(start, stop):
            part, group, share = job // shares // groups, job // shares % groups, job % shares
            first_block, last_block = blocks * share // shares, blocks * (share + 1) // shares
            for unit in range(units * part // parts, units * (part + 1) // parts):
                band, n = unit % bands, unit // bands * sizes[BATCH]
                samples = min(sizes[BATCH], sizes[SAMPLES] - n)
                base = n * sizes[SOURCE_SAMPLE] + group * channels * sizes[SOURCE_CHANNEL]
                _fill(image, base, samples, band, axes, sizes, sheet)
                base = n * sizes[TARGET_SAMPLE] + band * sizes[TARGET_BAND] + group * filters * by_channel
                number = samples * phases[0, LAST if band == bands - 1 else NUMBER]
                last = min(filters, last_block * LANES)
                _pack_maps(maps, base, targets, number, by_channel, first_block * LANES, last, cells, pitch)
                for q in range(0, number, TERMS):
                    count, block = min(TERMS, number - q), first_block
                    while block < last_block:
                        vectors = 2 if pairs and block + 1 < last_block else 1
                        w, f = block * pitch + q * LANES, block * LANES
                        for k in range(0, terms, rows):
                            tile(
                                vectors, sheet, offsets, k, f, places, q, count, cells, w, pitch, zeros, 0, out,
                                offsets, 0, out, 0, False, False,
                            )  # fmt: skip
                            for j in range(vectors):
                                to = ((job // shares * blocks + block + j) * terms + k) * LANES
                                for i in range(min(rows, terms - k)):
                                    sums = to_float64(load(out, (i * vectors + j) * LANES))
                                    store(partial, to + i * LANES, add(load(partial, to + i * LANES), sums))
                        block += vectors

    return weight_gradient


@kernel()
def finish_weight_gradient(partial: Array, parts: int, sizes: Array, slots: Array, dweight: Array) -> bool:
    """Add up the parts, and store the sums in the weight's order. Returns whether all are finite. slots: as of `pack`,
    with one row."""
    filters, blocks, terms = sizes[FILTERS], (sizes[FILTERS] + LANES - 1) // LANES, slots.shape[1]
    block, size, zeros = np.empty(LANES * LANES, np.float64), len(partial) // parts, broadcast(partial, 0)
    for b in range(sizes[GROUPS] * blocks):
        f, to = b % blocks * LANES, (b // blocks * filters + b % blocks * LANES) * terms
        for i in range(0, terms, LANES):
            for k in range(min(LANES, terms - i)):
                at = (b * terms + slots[0, i + k]) * LANES
                sums = load_first(partial, at, filters - f)  # lanes without a filter may have anything
                for part in range(1, parts):
                    sums = add(sums, load_first(partial, at + part * size, filters - f))
                store(block, k * LANES, sums)
                zeros = add(zeros, sub(sums, sums))
            transpose(block, 0, LANES, terms - i, filters - f, dweight, to + i, terms)
    finite: bool = total(zeros) == 0.0
    return finite
