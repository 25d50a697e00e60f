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
from .vector_tiles import PACKED, ROWS, STRIP, WINDOWS, filters_by_windows, one_filter_by_windows
from .vectors import add, broadcast, fma, load, store, total

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones

LANE_TERMS = 1024  # of a sum in float32, at most; the sums of these are in float64


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
@kernel()
def _four_by_three(
    sheets: Array, a: int, b: int, c: int, maps: Array, to: int, pitch: int, windows: int, sums: Array, at: int,
    by_filter: int, number: int,
) -> None:  # fmt: skip
    """Add the products of four maps and the cells under three taps to twelve vectors of sums, of which `number` taps
    count."""
    p0 = p1 = p2 = q0 = q1 = q2 = r0 = r1 = r2 = s0 = s1 = s2 = broadcast(sums, sums[0] - sums[0])
    for p in range(0, windows, 16):
        x, y, z = load(sheets, a + p), load(sheets, b + p), load(sheets, c + p)
        v = load(maps, to + p)
        p0, p1, p2 = fma(v, x, p0), fma(v, y, p1), fma(v, z, p2)
        v = load(maps, to + pitch + p)
        q0, q1, q2 = fma(v, x, q0), fma(v, y, q1), fma(v, z, q2)
        v = load(maps, to + 2 * pitch + p)
        r0, r1, r2 = fma(v, x, r0), fma(v, y, r1), fma(v, z, r2)
        v = load(maps, to + 3 * pitch + p)
        s0, s1, s2 = fma(v, x, s0), fma(v, y, s1), fma(v, z, s2)
    _add_three(sums, at, p0, p1, p2, number)
    _add_three(sums, at + by_filter, q0, q1, q2, number)
    _add_three(sums, at + 2 * by_filter, r0, r1, r2, number)
    _add_three(sums, at + 3 * by_filter, s0, s1, s2, number)


@kernel()
def _one_by_three(
    sheets: Array, a: int, b: int, c: int, maps: Array, to: int, windows: int, sums: Array, at: int, number: int
) -> None:
    """The same for one map, 32 windows at a time."""
    p0 = p1 = p2 = q0 = q1 = q2 = broadcast(sums, sums[0] - sums[0])
    for p in range(0, windows, 32):
        v, w = load(maps, to + p), load(maps, to + p + 16)
        p0, q0 = fma(v, load(sheets, a + p), p0), fma(w, load(sheets, a + p + 16), q0)
        p1, q1 = fma(v, load(sheets, b + p), p1), fma(w, load(sheets, b + p + 16), q1)
        p2, q2 = fma(v, load(sheets, c + p), p2), fma(w, load(sheets, c + p + 16), q2)
    _add_three(sums, at, add(p0, q0), add(p1, q1), add(p2, q2), number)


@kernel()
def _add_three(sums: Array, at: int, x: Any, y: Any, z: Any, number: int) -> None:
    """Add the first `number` of three vectors to neighbouring vectors of sums."""
    store(sums, at, add(load(sums, at), x))
    if number > 1:
        store(sums, at + 16, add(load(sums, at + 16), y))
    if number > 2:
        store(sums, at + 32, add(load(sums, at + 32), z))


@kernel()
def _flush(sums: Array, count: int, dweight: Array, to: int) -> None:
    """Add the totals of `count` vectors of sums to the weight's gradient, and set the vectors to 0."""
    for i in range(count):
        dweight[U(to + i)] += total(load(sums, 16 * i))
    zero(sums, 0, 16 * count)


@kernel()
def weight_gradient(
    image: Array, maps: Array, dweight: Array, axes: Array, sizes: Array, starts: Array, offsets: Array,
    map_axes: Array, parts: int, start: int, stop: int, sheets: Array, map_sheets: Array, sums: Array,
) -> None:  # fmt: skip
    """The partial sums `start` to `stop` of the weight's gradient (parts, groups, filters, k), which are in float64.

    A part is a range of the units of one group. map_axes: `axes` to copy the maps to sheets as they are."""
    channels, filters, sheet, taps = sizes[CHANNELS], sizes[FILTERS], sizes[SHEET], len(offsets)
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
                zero(map_sheets, f * sheet + windows, 32)
            if terms + windows // 16 + 1 > LANE_TERMS:
                _flush(sums, filters * taps, dweight, result)
                terms = 0
            terms += windows // 16 + 1
            for k in range(0, taps, 3):
                number = min(3, taps - k)
                a, b, c = offsets[k], offsets[k + min(1, number - 1)], offsets[k + number - 1]
                f = 0
                while f + 4 <= filters:
                    at = 16 * (f * taps + k)
                    _four_by_three(sheets, a, b, c, map_sheets, f * sheet, sheet, windows, sums, at, 16 * taps, number)
                    f += 4
                while f < filters:
                    _one_by_three(sheets, a, b, c, map_sheets, f * sheet, windows, sums, 16 * (f * taps + k), number)
                    f += 1
        _flush(sums, filters * taps, dweight, result)
