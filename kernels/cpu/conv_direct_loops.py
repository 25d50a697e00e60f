"""The loops of direct convolution: sums of products of a weight and of the cells that windows see.

The cells that the windows of a *unit* see are first copied to *sheets*: rows of cells of the source, with zeros for the
padding. With a stride s, cells that are s apart go to one sheet, so that neighbouring windows read neighbouring cells
under every tap. Then a convolution is, for any rank, stride, dilation and padding,

    out[f, p] = bias[f] + the sum over k of weight[f, k] * sheets[places[p] + offsets[k]]

where k counts channels and taps. A unit is a group of channels, a band of windows (on one axis) and a batch of samples,
so that its sheets stay in the cache of a core. A *strip* is some windows whose cells stay in the first-level cache for
all filters. Vectors are of 16 windows or of 16 filters: conv_window_loops.py and conv_filter_loops.py compute a strip.

The *forms*: "windows", "steps" (the same, where neighbouring windows are no neighbours in the target) and "filters"
have one sheet for each channel. "cells", vectors of filters for channels last and for many channels, has the channels
of each cell of a sheet together; so has "channels", for depthwise convolutions with channels last.

conv_direct_plan.py makes the tables. `copies`: rows from the source to the sheets; those of a band begin at
`copy_ends`. `phases`: for each phase of the target (for the first bands, and for the last) which places and which terms
it has. `places` p of windows, or of vectors of windows; `targets`: where their results go, counted from the unit's
first cell. Each sum is over k in order, so the bits depend on nothing but the shapes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import conv_filter_loops as by_filters
from . import conv_window_loops as by_windows
from .conv_rows import (
    BANDS,
    BATCH,
    CHANNEL_PITCH,
    CHANNELS,
    COUNT,
    FILTERS,
    FIRST,
    GROUPS,
    NUMBER,
    PHASES,
    SAMPLE_PITCH,
    SAMPLES,
    SOURCE_CHANNEL,
    SOURCE_SAMPLE,
    SOURCE_STEP,
    TARGET_BAND,
    TARGET_CHANNEL,
    TARGET_SAMPLE,
    TOGETHER,
    copy,
    gather,
    transpose_block,
    zero,
)  # fmt: skip
from .jit import kernel
from .vector_tiles import TAPS
from .vectors import LANES, add, broadcast, evens, load, load_first, store, sub, total

Array = Any
Kernel = Any

# Columns of `copies`.
COPY_FROM, COPY_TO, COPY_CELLS, COPY_ZEROS = range(4)
WINDOWS = "windows", "steps"  # the forms of vectors of windows


# --------------------------------------------------------------------------------------------------------------- sheets
@kernel(allocates=False, inlined=True)
def _copy_row(source: Array, at: int, step: int, sheets: Array, to: int, cells: int) -> None:
    """Copy cells, `step` apart, to neighbours, and put up to 15 zeros after them."""
    if step == 1:
        whole = cells & -LANES
        for i in range(0, whole, LANES):
            store(sheets, to + i, load(source, at + i))
        if whole < cells:
            store(sheets, to + whole, load_first(source, at + whole, cells - whole))
    elif step == 2:
        for i in range(0, cells, LANES):
            left = 2 * (cells - i) - 1
            low, high = load_first(source, at + 2 * i, left), load_first(source, at + 2 * i + LANES, left - LANES)
            store(sheets, to + i, evens(low, high))
    else:
        gather(source, at, step, sheets, to, cells)


@kernel(allocates=False)
def _fill_planes(
    source: Array, base: int, samples: int, sizes: Array, copies: Array, copy_ends: Array, band: int, sheets: Array
) -> None:
    """Copy the cells that the windows of a unit see. base: the unit's first element of the source."""
    zeros, step = broadcast(sheets, 0), sizes[SOURCE_STEP]
    for n in range(samples):
        for c in range(sizes[CHANNELS]):
            at = base + n * sizes[SOURCE_SAMPLE] + c * sizes[SOURCE_CHANNEL]
            to = n * sizes[SAMPLE_PITCH] + c * sizes[CHANNEL_PITCH]
            for i in range(copy_ends[band], copy_ends[band + 1]):  # in order: zeros after a row may be in the next
                here, cells = to + copies[i, COPY_TO], copies[i, COPY_CELLS]
                _copy_row(source, at + copies[i, COPY_FROM], step, sheets, here, cells)
                if sizes[BANDS] > 1:  # else zeros of the unit before are there
                    done = (cells + LANES - 1) & -LANES if step <= 2 else cells
                    for j in range(done, cells + copies[i, COPY_ZEROS], LANES):
                        store(sheets, here + j, zeros)


@kernel(allocates=False)
def _fill_cells(
    source: Array, base: int, samples: int, sizes: Array, copies: Array, copy_ends: Array, band: int, sheets: Array
) -> None:
    """The same for sheets that have the channels of each cell together."""
    channels, by_channel, step = sizes[CHANNELS], sizes[SOURCE_CHANNEL], sizes[SOURCE_STEP]
    for n in range(samples):
        at, to = base + n * sizes[SOURCE_SAMPLE], n * sizes[SAMPLE_PITCH]
        for i in range(copy_ends[band], copy_ends[band + 1]):
            first, here, cells = at + copies[i, COPY_FROM], to + copies[i, COPY_TO], copies[i, COPY_CELLS]
            if step == channels:
                copy(source, first, sheets, here, cells * channels)
            elif by_channel == 1:
                for j in range(cells):
                    copy(source, first + j * step, sheets, here + j * channels, channels)
            else:  # `step` is 1
                for c in range(0, channels, LANES):
                    for j in range(0, cells, LANES):
                        begin, there = first + c * by_channel + j, here + j * channels + c
                        transpose_block(source, begin, by_channel, channels - c, cells - j, sheets, there, channels)
            zero(sheets, here + cells * channels, copies[i, COPY_ZEROS] * channels)


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
                transpose_block(weight, at + i, strides[1], filters - f, columns - i, block, 0, LANES)
                for j in range(min(LANES, columns - i)):
                    numbers, k = load(block, j * LANES), slots[row, i + j]
                    zeros = add(zeros, sub(numbers, numbers))
                    if k >= 0:
                        store(packed, (b * terms + k) * LANES, numbers)
    finite: bool = total(zeros) == 0.0
    return finite


@functools.cache
def make_correlate(form: str, single: bool, itemsize: int) -> Kernel:
    """The kernel for the target of units `start` to `stop`, for numbers of `itemsize` bytes. weight: as `pack` gives
    it; bias: (groups, blocks of 16 filters, 16)."""
    fill = _fill_cells if form in ("cells", "channels") else _fill_planes
    if form in WINDOWS:
        compute, strip, step = by_windows.make_compute(form == "windows", single), by_windows.STRIP, LANES
        results = by_windows.PITCH if form == "windows" else by_windows.RESULTS
    else:
        compute, strip, step = by_filters.make_compute(form == "channels", itemsize), by_filters.STRIP, by_filters.STEP
        results = by_filters.RESULTS

    @kernel()
    def correlate(
        source: Array, weight: Array, bias: Array, target: Array, sizes: Array, copies: Array, copy_ends: Array,
        phases: Array, offsets: Array, places: Array, targets: Array, start: int, stop: int, sheets: Array,
    ) -> None:  # fmt: skip
        filters, groups, bands = sizes[FILTERS], sizes[GROUPS], sizes[BANDS]
        blocks = (filters + LANES - 1) // LANES
        pitch, out = len(weight) // (groups * blocks), np.empty(results, bias.dtype)
        zero(sheets, 0, len(sheets))
        for unit in range(start, stop):
            group, band, n = unit % groups, unit // groups % bands, unit // (groups * bands) * sizes[BATCH]
            samples = min(sizes[BATCH], sizes[SAMPLES] - n)
            base = n * sizes[SOURCE_SAMPLE] + group * sizes[CHANNELS] * sizes[SOURCE_CHANNEL]
            fill(source, base, samples, sizes, copies, copy_ends, band, sheets)
            base = n * sizes[TARGET_SAMPLE] + band * sizes[TARGET_BAND] + group * filters * sizes[TARGET_CHANNEL]
            row = sizes[PHASES] if band > 0 and band == bands - 1 else 0
            for phase in range(row, row + sizes[PHASES], sizes[TOGETHER]):
                first, end = phases[phase, FIRST], phases[phase, FIRST] + samples * phases[phase, NUMBER]
                for f in range(0, filters, step):
                    block = group * blocks + f // LANES
                    for p in range(first, end, strip):
                        compute(
                            sheets, places, p, min(p + strip, end), f, filters, offsets, phases, phase, weight,
                            block * pitch, pitch, bias, block * LANES, target, targets,
                            base + f * sizes[TARGET_CHANNEL], sizes, out,
                        )  # fmt: skip

    return correlate


@functools.cache
def make_weight_gradient(form: str, itemsize: int) -> Kernel:
    """The kernel for partial sums of the weight's gradient (parts, groups, blocks of 16 filters, k, 16), which are in
    float64 and begin as zeros. A part is a range of the units. Jobs `start` to `stop` are of (parts, groups, shares); a
    share is a range of the blocks. cells: for the maps, packed as the products need them."""
    fill = _fill_cells if form in ("cells", "channels") else _fill_planes
    windows, flush, taps = form in WINDOWS, by_windows.flush, TAPS
    pack_maps = by_windows.pack_maps if windows else by_filters.pack_maps
    add_products = by_windows.add_products if windows else by_filters.make_add_products(form == "channels", itemsize)
    most, results = by_windows.LANE_TERMS, by_filters.RESULTS

    @kernel()
    def weight_gradient(
        image: Array, maps: Array, partial: Array, sizes: Array, copies: Array, copy_ends: Array, phases: Array,
        offsets: Array, places: Array, targets: Array, parts: int, shares: int, start: int, stop: int, sheets: Array,
        cells: Array,
    ) -> None:  # fmt: skip
        filters, groups, bands, terms = sizes[FILTERS], sizes[GROUPS], sizes[BANDS], phases[0, COUNT]
        blocks, units = (filters + LANES - 1) // LANES, -(-sizes[SAMPLES] // sizes[BATCH]) * bands
        pitch = len(cells) // (filters if windows else blocks)
        sums = np.zeros(filters * (terms + taps) * LANES if windows else results, image.dtype)
        zero(sheets, 0, len(sheets))
        zero(cells, 0, len(cells))  # also the lanes of missing filters: garbage may be slow to multiply
        for job in range(start, stop):
            part, group, share = job // shares // groups, job // shares % groups, job % shares
            block, last_block = blocks * share // shares, blocks * (share + 1) // shares
            result, added = job // shares * blocks * terms * LANES, 0
            for unit in range(units * part // parts, units * (part + 1) // parts):
                band, n = unit % bands, unit // bands * sizes[BATCH]
                samples = min(sizes[BATCH], sizes[SAMPLES] - n)
                base = n * sizes[SOURCE_SAMPLE] + group * sizes[CHANNELS] * sizes[SOURCE_CHANNEL]
                fill(image, base, samples, sizes, copies, copy_ends, band, sheets)
                base = n * sizes[TARGET_SAMPLE] + band * sizes[TARGET_BAND] + group * filters * sizes[TARGET_CHANNEL]
                row = 1 if band > 0 and band == bands - 1 else 0
                p, number = phases[row, FIRST], samples * phases[row, NUMBER]
                pack_maps(maps, base, targets, p, number, sizes, block, last_block, cells, pitch)
                if windows and added + number > most:
                    flush(sums, filters, terms, partial, result)
                    added = 0
                added += number
                add_products(
                    sheets, places, p, number, offsets, terms, cells, pitch, block, last_block, partial, result, sums
                )  # fmt: skip
            if windows:
                flush(sums, filters, terms, partial, result)

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
            transpose_block(block, 0, LANES, terms - i, filters - f, dweight, to + i, terms)
    finite: bool = total(zeros) == 0.0
    return finite
