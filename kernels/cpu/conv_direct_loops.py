"""The loops of direct convolution, on vectors of 16 neighbouring windows.

The cells that some windows read are first copied to a *sheet* for each channel of the source: rows of `PITCH` cells
with zeros for the padding. With a stride s, cells that are s apart go to one sheet, so that neighbouring windows read
neighbouring cells under every tap. Then a convolution is, for any rank, stride, dilation and padding,

    out[f, p] = bias[f] + the sum over k of weight[f, k] * sheets[offsets[k] + p]

where k counts channels and taps, and p runs over the windows of all rows, rows of sheets and samples in one line. A few
positions p between two rows are no windows; their results are not copied to the target.

A *unit* is a group of channels, a band of windows (on one axis) and a batch of samples, so that its sheets stay in the
cache of a core. conv_direct_sheets.py says what `axes`, `sizes` and a box are. Each sum is over k in order, so the bits
depend on nothing but the shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .conv_direct_sheets import (
    BANDS,
    BATCH,
    CHANNELS,
    FILTERS,
    GROUPS,
    SAMPLES,
    SHEET,
    SOURCE_CELL,
    SOURCE_CHANNEL,
    SOURCE_SAMPLE,
    TARGET_CELL,
    TARGET_CHANNEL,
    TARGET_SAMPLE,
    TARGET_STEP,
    fill_sheets,
    list_rows,
    positions,
    set_box,
    store_rows,
    zero,
)  # fmt: skip
from .jit import kernel
from .vector_tiles import (
    LINE,
    MAPS,
    PACKED,
    ROWS,
    STRIP,
    TAPS,
    WINDOWS,
    filters_by_windows,
    maps_by_taps,
    one_filter_by_windows,
    one_map_by_taps,
)
from .vectors import LANES, load, total

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones

LANE_TERMS = 1024  # of a sum in float32, at most; the sums of these are in float64
RUN = 768  # windows whose maps stay in the first-level cache while they are multiplied by all taps' cells


# ------------------------------------------------------------------------------------------------------------ correlate
@kernel(allocates=False)
def _filter_block(
    sheets: Array, p: int, offsets: Array, first: int, count: int, weight: Array, w: int, bias: Array, b: int,
    number: int, out: Array, to: int, windows: int,
) -> None:  # fmt: skip
    """The results of up to 8 filters, `number`, for up to `STRIP` windows from p on.

    A tile has several rows, so up to half as many filters are computed one by one."""
    i = 0
    while i < number:
        if number - i > ROWS // 2:
            for q in range(0, windows, WINDOWS):
                filters_by_windows(
                    weight, w + i, bias, b + i, sheets, p + q, offsets, first, count, out, to + i * STRIP + q, STRIP
                )  # fmt: skip
            i += ROWS
        else:
            one_filter_by_windows(
                weight, w + i, bias, b + i, sheets, p, offsets, first, count, out, to + i * STRIP, STRIP
            )  # fmt: skip
            i += 1


@kernel(allocates=False)
def _compute_unit(
    sheets: Array, weight: Array, bias: Array, target: Array, axes: Array, sizes: Array, outputs: Array, offsets: Array,
    group: int, base: int, samples: int, box: Array, rows: Array, out: Array,
) -> None:  # fmt: skip
    """The target of a unit, from its sheets. base: the unit's first element of the target.

    The sheets' cells that a strip of windows sees stay in the first-level cache for all filters, and while one tile is
    computed the CPU writes the results of the last."""
    filters, windows = sizes[FILTERS], positions(axes, box, samples)
    pairs = axes[2, TARGET_STEP] == 2 and sizes[TARGET_CELL] == 1 and len(outputs) % 2 == 0
    together, step = 2 if pairs else 1, axes[2, TARGET_STEP] * sizes[TARGET_CELL]
    blocks = (filters + PACKED - 1) // PACKED
    for p in range(0, windows, STRIP):
        end = min(windows, p + STRIP)
        for phase in range(0, len(outputs), together):
            number = list_rows(axes, box, samples, outputs, phase, sizes, pairs, p, end, rows)
            for block in range(group * blocks, (group + 1) * blocks):
                f = (block - group * blocks) * PACKED
                filters_here = min(PACKED, filters - f)
                for i in range(together):
                    first, count, w = outputs[phase + i, 3], outputs[phase + i, 4], outputs[phase + i, 5]
                    _filter_block(
                        sheets, p, offsets, first, count, weight, w + block * count * PACKED, bias, block * PACKED,
                        filters_here, out, i * PACKED * STRIP, end - p,
                    )  # fmt: skip
                for i in range(filters_here):
                    at, to = i * STRIP, base + (f + i) * sizes[TARGET_CHANNEL]
                    store_rows(out, at, PACKED * STRIP + at if pairs else -1, target, to, step, rows, number)


@kernel()
def correlate(
    source: Array, weight: Array, bias: Array, target: Array, axes: Array, sizes: Array, starts: Array, outputs: Array,
    offsets: Array, start: int, stop: int, sheets: Array,
) -> None:  # fmt: skip
    """The target of units `start` to `stop`.

    outputs: for each phase of the target its first cell on the three axes, its first k, their number, and where its
    weights (groups, blocks of 8 filters, k, 8) start; bias: (groups, blocks, 8). If phases come in pairs of even and
    odd cells, the pair is stored together."""
    channels, filters, sheet = sizes[CHANNELS], sizes[FILTERS], sizes[SHEET]
    box, rows = np.zeros((3, 2), np.int64), np.zeros((STRIP, 3), np.int64)
    out = np.zeros(2 * PACKED * STRIP, bias.dtype)
    from_strides = sizes[SOURCE_SAMPLE : SOURCE_CELL + 1]
    zero(sheets, 0, len(sheets))
    for unit in range(start, stop):
        group, band = unit % sizes[GROUPS], unit // sizes[GROUPS] % sizes[BANDS]
        n = unit // (sizes[GROUPS] * sizes[BANDS]) * sizes[BATCH]
        samples = min(sizes[BATCH], sizes[SAMPLES] - n)
        set_box(axes, sizes, band, box)
        if sizes[BANDS] > 1:  # cells of another band may be where this one has padding
            zero(sheets, 0, len(sheets))
        base = n * sizes[SOURCE_SAMPLE] + group * channels * sizes[SOURCE_CHANNEL]
        fill_sheets(source, base, channels, samples, from_strides, axes, box, starts, sheets, sheet, False)
        base = n * sizes[TARGET_SAMPLE] + group * filters * sizes[TARGET_CHANNEL]
        _compute_unit(sheets, weight, bias, target, axes, sizes, outputs, offsets, group, base, samples, box, rows, out)


# ------------------------------------------------------------------------------------------------------ weight gradient
@kernel(allocates=False)
def _add_run(
    sheets: Array, offsets: Array, maps: Array, pitch: int, filters: int, begin: int, end: int, sums: Array
) -> None:  # fmt: skip
    """Add the products of all maps at windows `begin` to `end` and all taps' cells to sums."""
    taps, count, f = len(offsets), (end - begin + LANES - 1) // LANES, 0
    while f < filters:
        m, to = f * pitch + begin, LANES * f * taps
        if filters - f > MAPS // 2:
            for k in range(0, taps, TAPS):
                maps_by_taps(maps, m, pitch, sheets, begin, offsets, k, count, sums, to + LANES * k, LANES * taps)
            f += MAPS
        else:
            for k in range(0, taps, LINE):
                one_map_by_taps(maps, m, pitch, sheets, begin, offsets, k, count, sums, to + LANES * k, LANES * taps)
            f += 1


@kernel(allocates=False)
def _flush(sums: Array, filters: int, taps: int, pitch: int, dweight: Array, to: int) -> None:
    """Add the totals of vectors of sums, `pitch` vectors a filter, to the weight's gradient, and set all sums to 0."""
    for f in range(filters):
        for k in range(taps):
            dweight[U(to + f * taps + k)] += total(load(sums, LANES * (f * pitch + k)))
    zero(sums, 0, len(sums))


@kernel()
def weight_gradient(
    image: Array, maps: Array, dweight: Array, axes: Array, sizes: Array, starts: Array, offsets: Array, taps: int,
    map_axes: Array, parts: int, start: int, stop: int, sheets: Array, map_sheets: Array, sums: Array,
) -> None:  # fmt: skip
    """The partial sums `start` to `stop` of the weight's gradient (parts, groups, filters, taps), which are in float64.

    A part is a range of the units of one group. offsets: of the taps (of all channels), and more for complete tiles.
    map_axes: `axes` to copy the maps to sheets as they are."""
    channels, filters, sheet = sizes[CHANNELS], sizes[FILTERS], sizes[SHEET]
    box, no_starts = np.empty((3, 2), np.int64), np.zeros((1, 3), np.int64)
    image_strides, maps_strides = sizes[SOURCE_SAMPLE : SOURCE_CELL + 1], sizes[TARGET_SAMPLE : TARGET_CELL + 1]
    units = -(-sizes[SAMPLES] // sizes[BATCH]) * sizes[BANDS]
    zero(sheets, 0, len(sheets))
    zero(map_sheets, 0, len(map_sheets))
    zero(sums, 0, len(sums))
    for job in range(start, stop):
        part, group = job // sizes[GROUPS], job % sizes[GROUPS]
        result, terms = job * filters * taps, 0
        for unit in range(units * part // parts, units * (part + 1) // parts):
            n = unit // sizes[BANDS] * sizes[BATCH]
            samples = min(sizes[BATCH], sizes[SAMPLES] - n)
            set_box(axes, sizes, unit % sizes[BANDS], box)
            if sizes[BANDS] > 1:
                zero(sheets, 0, len(sheets))
                zero(map_sheets, 0, len(map_sheets))
            windows = positions(axes, box, samples)
            base = n * sizes[SOURCE_SAMPLE] + group * channels * sizes[SOURCE_CHANNEL]
            fill_sheets(image, base, channels, samples, image_strides, axes, box, starts, sheets, sheet, False)
            base = n * sizes[TARGET_SAMPLE] + group * filters * sizes[TARGET_CHANNEL]
            fill_sheets(maps, base, filters, samples, maps_strides, map_axes, box, no_starts, map_sheets, sheet, False)
            for f in range(filters):  # no window of an earlier unit
                zero(map_sheets, f * sheet + windows, LANES)
            if terms + windows // LANES + 1 > LANE_TERMS:
                _flush(sums, filters, taps, len(offsets), dweight, result)
                terms = 0
            terms += windows // LANES + 1
            for begin in range(0, windows, RUN):
                _add_run(sheets, offsets, map_sheets, sheet, filters, begin, min(windows, begin + RUN), sums)
        _flush(sums, filters, taps, len(offsets), dweight, result)
