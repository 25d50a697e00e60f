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
    PITCH,
    SAMPLES,
    SHEET,
    SOURCE_CELL,
    SOURCE_CHANNEL,
    SOURCE_SAMPLE,
    TARGET_CELL,
    TARGET_CHANNEL,
    TARGET_LENGTH,
    TARGET_SAMPLE,
    TARGET_STEP,
    fill_sheets,
    list_rows,
    positions,
    scatter,
    scatter_pairs,
    set_box,
    store_rows,
    target_cell,
    target_windows,
    zero,
)  # fmt: skip
from .jit import kernel
from .vector_tiles import (
    LINE,
    MAPS,
    NARROW,
    PACKED,
    ROWS,
    STRIP,
    TAPS,
    WINDOWS,
    filters_by_windows,
    maps_by_taps,
    one_filter_by_rows,
    one_filter_by_windows,
    one_map_by_taps,
)
from .vectors import LANES, load, total

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones

FEW = ROWS // 2  # filters of a group that are computed one by one: a tile of several would be half empty
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
        if number - i > FEW:
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
def _in_pairs(axes: Array, sizes: Array, outputs: Array) -> bool:
    """Whether phases of the target come in pairs of even and odd cells of rows."""
    return axes[2, TARGET_STEP] == 2 and sizes[TARGET_CELL] == 1 and len(outputs) % 2 == 0


@kernel(allocates=False)
def _compute_unit(
    sheets: Array, weight: Array, bias: Array, target: Array, axes: Array, sizes: Array, outputs: Array, offsets: Array,
    group: int, base: int, samples: int, box: Array, rows: Array, out: Array,
) -> None:  # fmt: skip
    """The target of a unit, from its sheets. base: the unit's first element of the target.

    The sheets' cells that a strip of windows sees stay in the first-level cache for all filters, and while one tile is
    computed the CPU writes the results of the last."""
    filters, windows = sizes[FILTERS], positions(axes, box, samples)
    pairs = _in_pairs(axes, sizes, outputs)
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


@kernel(allocates=False)
def _compute_few(
    sheets: Array, weight: Array, bias: Array, target: Array, axes: Array, sizes: Array, outputs: Array, offsets: Array,
    group: int, base: int, samples: int, box: Array, out: Array,
) -> None:  # fmt: skip
    """The same for up to `FEW` filters, as a depthwise convolution has: tiles of several rows of windows, which are
    stored in the target's rows. weight: (groups, filters, k); bias: (groups, filters).

    `beside`: where rows are long, or there is one, a tile's rows are neighbours on it."""
    filters, step = sizes[FILTERS], axes[2, TARGET_STEP] * sizes[TARGET_CELL]
    together = 2 if _in_pairs(axes, sizes, outputs) else 1
    beside = box[1, 1] == 1 or axes[2, PITCH] > NARROW
    rows_at_once, columns_at_once = (1, ROWS * LANES) if beside else (ROWS, LANES)
    distance, less = (LANES, LANES) if beside else (axes[2, PITCH], 0)
    down = LANES * step if beside else axes[1, TARGET_STEP] * axes[2, TARGET_LENGTH] * sizes[TARGET_CELL]
    for phase in range(0, len(outputs), together):
        depth, height = target_windows(axes, box, outputs, phase, 0), target_windows(axes, box, outputs, phase, 1)
        width, cells = target_windows(axes, box, outputs, phase, 2), axes[2, TARGET_LENGTH] - 2 * box[2, 0]
        for f, n, z in np.ndindex(filters, samples, depth):
            for y in range(0, height, rows_at_once):
                at = ((n * axes[0, PITCH] + z) * axes[1, PITCH] + y) * axes[2, PITCH]
                to = base + f * sizes[TARGET_CHANNEL] + n * sizes[TARGET_SAMPLE]
                to += target_cell(axes, box, outputs, phase, z, y) * sizes[TARGET_CELL]
                number, b = ROWS if beside else min(ROWS, height - y), group * filters + f
                for x in range(0, width, columns_at_once):
                    if step == 1:
                        one_filter_by_rows(
                            weight, outputs[phase, 5] + b * outputs[phase, 4], bias, b, sheets, at + x, distance,
                            offsets, outputs[phase, 3], outputs[phase, 4], target, to + x, down, width - x, number,
                            less,
                        )  # fmt: skip
                        continue
                    for i in range(together):
                        first, count, w = outputs[phase + i, 3], outputs[phase + i, 4], outputs[phase + i, 5]
                        one_filter_by_rows(
                            weight, w + b * count, bias, b, sheets, at + x, distance, offsets, first, count, out,
                            i * ROWS * LANES, LANES, LANES, ROWS, 0,
                        )  # fmt: skip
                    for i in range(number):
                        here, row, left = to + x * step + i * down, i * LANES, width - x - less * i
                        if together == 2:
                            left = min(2 * LANES, min(2 * left, cells - 2 * x - 2 * less * i))
                            scatter_pairs(out, row, ROWS * LANES + row, target, here, left)
                        else:
                            scatter(out, row, target, here, step, max(0, min(LANES, left)))


@kernel()
def correlate(
    source: Array, weight: Array, bias: Array, target: Array, axes: Array, sizes: Array, starts: Array, outputs: Array,
    offsets: Array, start: int, stop: int, sheets: Array,
) -> None:  # fmt: skip
    """The target of units `start` to `stop`.

    outputs: for each phase of the target its first cell on the three axes, its first k, their number, and where its
    weights (groups, blocks of 8 filters, k, 8) start; bias: (groups, blocks, 8); without blocks for up to `FEW` filters
    in a group. If phases come in pairs of even and
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
        fill_sheets(source, base, channels, samples, from_strides, axes, box, starts, sheets, sheet)
        base = n * sizes[TARGET_SAMPLE] + group * filters * sizes[TARGET_CHANNEL]
        if filters <= FEW:
            _compute_few(sheets, weight, bias, target, axes, sizes, outputs, offsets, group, base, samples, box, out)
        else:
            _compute_unit(
                sheets, weight, bias, target, axes, sizes, outputs, offsets, group, base, samples, box, rows, out
            )  # fmt: skip


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
            fill_sheets(image, base, channels, samples, image_strides, axes, box, starts, sheets, sheet)
            base = n * sizes[TARGET_SAMPLE] + group * filters * sizes[TARGET_CHANNEL]
            fill_sheets(maps, base, filters, samples, maps_strides, map_axes, box, no_starts, map_sheets, sheet)
            for f in range(filters):  # no window of an earlier unit
                zero(map_sheets, f * sheet + windows, LANES)
            if terms + windows // LANES + 1 > LANE_TERMS:
                _flush(sums, filters, taps, len(offsets), dweight, result)
                terms = 0
            terms += windows // LANES + 1
            for begin in range(0, windows, RUN):
                _add_run(sheets, offsets, map_sheets, sheet, filters, begin, min(windows, begin + RUN), sums)
        _flush(sums, filters, taps, len(offsets), dweight, result)
