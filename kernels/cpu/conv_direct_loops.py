"""The loops of direct convolution, on vectors of 16 windows.

The cells that some windows read are first copied to *sheets*: for each channel of the source rows of cells with zeros
for the padding. With a stride s, cells that are s apart go to one sheet, so that neighbouring windows read neighbouring
cells under every tap. Then a convolution is, for any rank, stride, dilation and padding,

    out[f, p] = bias[f] + the sum over k of weight[f, k] * sheets[offsets[k] + p]

where k counts channels and taps, and p is where a window begins in a sheet. A vector has the windows p to p + 15, of
one row or of several. Those between two rows are no windows; their results are not copied to the target.

A *unit* is a group of channels, a band of windows (on one axis) and a batch of samples, so that its sheets stay in the
cache of a core. A *strip* is some vectors of windows, whose cells stay in the first-level cache for all filters.
conv_direct_plan.py makes the tables: `copies` from the source to the sheets, `places` p of vectors, and `pieces` of
rows of the target; `copy_ends` and `piece_ends` have where those of a band (a phase, a strip) begin and end. `sizes`
has the entries named below. Each sum is over k in order, so the bits depend on nothing but the shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .vector_tiles import (
    PACKED,
    PIECE_AT,
    PIECE_CELLS,
    PIECE_COLUMNS,
    PIECE_SAMPLE,
    PIECE_STRIP,
    PIECE_TARGET,
    PIECES,
    STRIP,
    TAPS,
    TILE_FILTERS,
    TILE_VECTORS,
    filters_by_windows,
    half_as_many_filters_by_windows,
    map_by_taps,
    one_filter_by_rows,
    one_filter_by_windows,
)
from .vectors import (
    LANES,
    evens,
    interleave_high,
    interleave_low,
    load,
    load_first,
    store,
    store_first,
    total,
)

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones

# Entries of `sizes`. SAMPLE_PITCH: from a sample to the next in a sheet. SHEETS: of a channel. SOURCE_STEP and
# TARGET_STEP: elements from a cell of a row to the next. TOGETHER: 2 if phases of the target come in pairs of even and
# odd cells, which are stored together, else 1.
SAMPLES, GROUPS, CHANNELS, FILTERS, BATCH, BANDS, SHEET, SAMPLE_PITCH, SHEETS = range(9)
SOURCE_SAMPLE, SOURCE_CHANNEL, SOURCE_STEP, TARGET_SAMPLE, TARGET_CHANNEL, TARGET_STEP, TOGETHER = range(9, 16)
# Columns of `copies` (conv_direct_plan.copies_of).
COPY_FROM, COPY_TO, COPY_CELLS = range(3)
# Columns of `outputs`: for each phase of the target its first k, their number, and where its weights (groups, blocks of
# 8 filters, k, 8) begin.
FIRST, COUNT, WEIGHTS = range(3)

VECTORS = STRIP // LANES  # of a strip
LANE_TERMS = 1024  # of a sum in float32, at most; the sums of these are in float64
RUN = 48  # vectors of windows whose maps stay in the first-level cache while all taps' cells are multiplied by them


# -------------------------------------------------------------------------------------------------------- rows of cells
@kernel(allocates=False)
def copy(source: Array, at: int, target: Array, to: int, count: int) -> None:
    """Copy neighbours."""
    done = count & ~15
    for i in range(0, done, LANES):
        store(target, to + i, load(source, at + i))
    if done < count:
        store_first(target, to + done, load_first(source, at + done, count - done), count - done)


@kernel(allocates=False)
def _copy_with_zeros(source: Array, at: int, target: Array, to: int, count: int) -> None:
    """Copy neighbours, and put up to 15 zeros after them."""
    done = count & ~15
    for i in range(0, done, LANES):
        store(target, to + i, load(source, at + i))
    if done < count:
        store(target, to + done, load_first(source, at + done, count - done))


@kernel(allocates=False)
def _copy_every_second(source: Array, at: int, target: Array, to: int, count: int) -> None:
    """Copy every second cell to neighbours, and put up to 15 zeros after them."""
    cells = 2 * count - 1
    for i in range(0, cells, 2 * LANES):
        low, high = load_first(source, at + i, cells - i), load_first(source, at + i + LANES, cells - i - LANES)
        store(target, to + i // 2, evens(low, high))


@kernel(allocates=False)
def _gather(source: Array, at: int, step: int, target: Array, to: int, count: int) -> None:
    """Copy cells, `step` apart, to neighbours."""
    for i in range(U(count)):
        target[U(to) + i] = source[U(at) + i * U(step)]


@kernel(allocates=False)
def _scatter(source: Array, at: int, target: Array, to: int, step: int, count: int) -> None:
    """Copy neighbours to cells that are `step` apart."""
    for i in range(U(count)):
        target[U(to) + i * U(step)] = source[U(at) + i]


@kernel(allocates=False)
def _scatter_pairs(source: Array, even: int, odd: int, target: Array, to: int, count: int) -> None:
    """Copy neighbours at two places to `count` cells, alternately."""
    for i in range(0, count, 2 * LANES):
        x, y = load(source, even + i // 2), load(source, odd + i // 2)
        store_first(target, to + i, interleave_low(x, y), count - i)
        store_first(target, to + i + LANES, interleave_high(x, y), count - i - LANES)


@kernel(allocates=False)
def zero(array: Array, to: int, count: int) -> None:
    for i in range(U(to), U(to + count)):
        array[i] = 0.0


@kernel(allocates=False)
def _fill_sheets(
    source: Array, base: int, samples: int, sizes: Array, copies: Array, copy_ends: Array, band: int, sheets: Array
) -> None:
    """Copy the cells that the windows of a unit see. base: the unit's first element of the source."""
    step = sizes[SOURCE_STEP]
    if sizes[BANDS] > 1:  # cells of another band may be where this one has padding
        zero(sheets, 0, len(sheets))
    for n in range(samples):
        for c in range(sizes[CHANNELS]):
            at = base + n * sizes[SOURCE_SAMPLE] + c * sizes[SOURCE_CHANNEL]
            to = n * sizes[SAMPLE_PITCH] + c * sizes[SHEETS] * sizes[SHEET]
            for i in range(copy_ends[band], copy_ends[band + 1]):  # in order: zeros after a row may be in the next
                first, here, cells = at + copies[i, COPY_FROM], to + copies[i, COPY_TO], copies[i, COPY_CELLS]
                if step == 1:
                    _copy_with_zeros(source, first, sheets, here, cells)
                elif step == 2:
                    _copy_every_second(source, first, sheets, here, cells)
                else:
                    _gather(source, first, step, sheets, here, cells)


# ------------------------------------------------------------------------------------------------------------ correlate
@kernel(allocates=False)
def _compute_filters(
    sheets: Array, places: Array, p: int, vectors: int, offsets: Array, first: int, count: int, weight: Array, w: int,
    bias: Array, b: int, filters: int, out: Array, to: int,
) -> None:  # fmt: skip
    """The results of up to 8 filters for some vectors of windows, from places[p] on: a strip for each filter."""
    i = 0
    while i < filters:
        if filters - i > TILE_FILTERS // 2:
            for v in range(0, vectors, TILE_VECTORS):
                filters_by_windows(
                    weight, w + i, bias, b + i, sheets, places, p + v, offsets, first, count, out,
                    to + i * STRIP + v * LANES, STRIP,
                )  # fmt: skip
            i += TILE_FILTERS
        elif filters - i > 1:
            for v in range(0, vectors, 2 * TILE_VECTORS):
                half_as_many_filters_by_windows(
                    weight, w + i, bias, b + i, sheets, places, p + v, offsets, first, count, out,
                    to + i * STRIP + v * LANES, STRIP,
                )  # fmt: skip
            i += TILE_FILTERS // 2
        else:
            one_filter_by_windows(
                weight, w + i, bias, b + i, sheets, places, p, offsets, first, count, out, to + i * STRIP, STRIP
            )  # fmt: skip
            i += 1


@kernel(allocates=False)
def _store_row(out: Array, at: int, target: Array, to: int, between: int, cells: int, filters: int) -> None:
    """Copy some cells of the results of filters, a strip apart, to rows of the target, `between` apart."""
    done = cells & ~(LANES - 1)
    for i in range(filters):
        for j in range(0, done, LANES):
            store(target, to + i * between + j, load(out, at + i * STRIP + j))
    if done < cells:
        for i in range(filters):
            store_first(target, to + i * between + done, load(out, at + i * STRIP + done), cells - done)


@kernel(allocates=False)
def _store_pieces(
    out: Array, odd: int, target: Array, base: int, sizes: Array, pieces: Array, start: int, stop: int, filters: int
) -> None:
    """Copy the results of some filters to pieces of the target's rows. odd: where those of odd cells begin."""
    between = sizes[TARGET_CHANNEL]
    for piece in range(start, stop):
        at, to, cells = pieces[piece, PIECE_AT], base + pieces[piece, PIECE_TARGET], pieces[piece, PIECE_CELLS]
        if sizes[TOGETHER] == 1 and sizes[TARGET_STEP] == 1:
            _store_row(out, at, target, to, between, cells, filters)
            continue
        for i in range(filters):
            if sizes[TOGETHER] == 2:
                _scatter_pairs(out, at + i * STRIP, odd + at + i * STRIP, target, to + i * between, cells)
            else:
                _scatter(out, at + i * STRIP, target, to + i * between, sizes[TARGET_STEP], cells)


@kernel()
def correlate(
    source: Array, weight: Array, bias: Array, target: Array, sizes: Array, copies: Array, copy_ends: Array,
    places: Array, pieces: Array, piece_ends: Array, outputs: Array, offsets: Array, start: int, stop: int,
    sheets: Array,
) -> None:  # fmt: skip
    """The target of units `start` to `stop`. weight: for each phase (groups, blocks of 8 filters, k, 8); bias: (groups,
    blocks, 8).

    While one tile is computed the CPU writes the results of the last."""
    filters, together = sizes[FILTERS], sizes[TOGETHER]
    blocks, strips = (filters + PACKED - 1) // PACKED, len(places) // VECTORS
    out = np.zeros(2 * PACKED * STRIP + LANES, bias.dtype)
    zero(sheets, 0, len(sheets))
    for unit in range(start, stop):
        group, band = unit % sizes[GROUPS], unit // sizes[GROUPS] % sizes[BANDS]
        n = unit // (sizes[GROUPS] * sizes[BANDS]) * sizes[BATCH]
        samples = min(sizes[BATCH], sizes[SAMPLES] - n)
        base = n * sizes[SOURCE_SAMPLE] + group * sizes[CHANNELS] * sizes[SOURCE_CHANNEL]
        _fill_sheets(source, base, samples, sizes, copies, copy_ends, band, sheets)
        base = n * sizes[TARGET_SAMPLE] + group * filters * sizes[TARGET_CHANNEL]
        for strip in range(strips):
            for phase in range(0, len(outputs), together):
                row = (band * len(outputs) + phase) // together
                first_piece, stop_piece = piece_ends[row, strip], piece_ends[row, strip + 1]
                while stop_piece > first_piece and pieces[stop_piece - 1, PIECE_SAMPLE] >= samples:
                    stop_piece -= 1
                if stop_piece == first_piece:
                    continue
                end = (
                    pieces[stop_piece - 1, PIECE_AT] + (pieces[stop_piece - 1, PIECE_CELLS] + together - 1) // together
                )
                vectors = (end + LANES - 1) // LANES
                for block in range(blocks):
                    f = block * PACKED
                    filters_here, b = min(PACKED, filters - f), group * blocks + block
                    for i in range(together):
                        first, count = outputs[phase + i, FIRST], outputs[phase + i, COUNT]
                        _compute_filters(
                            sheets, places, strip * VECTORS, vectors, offsets, first, count, weight,
                            outputs[phase + i, WEIGHTS] + b * count * PACKED, bias, b * PACKED, filters_here, out,
                            i * PACKED * STRIP,
                        )  # fmt: skip
                    to = base + f * sizes[TARGET_CHANNEL]
                    _store_pieces(out, PACKED * STRIP, target, to, sizes, pieces, first_piece, stop_piece, filters_here)


@kernel(allocates=False)
def correlate_one_filter(
    source: Array, weight: Array, bias: Array, target: Array, sizes: Array, copies: Array, copy_ends: Array,
    pieces: Array, piece_ends: Array, offsets: Array, start: int, stop: int, sheets: Array,
) -> None:  # fmt: skip
    """The same for one filter in a group (a depthwise convolution) and one phase of the target. Vectors end with their
    row and are stored where they belong: 1.5 to 3 times as fast as strips, which save little time with one filter."""
    zero(sheets, 0, len(sheets))
    for unit in range(start, stop):
        group, band = unit % sizes[GROUPS], unit // sizes[GROUPS] % sizes[BANDS]
        n = unit // (sizes[GROUPS] * sizes[BANDS]) * sizes[BATCH]
        samples = min(sizes[BATCH], sizes[SAMPLES] - n)
        base = n * sizes[SOURCE_SAMPLE] + group * sizes[CHANNELS] * sizes[SOURCE_CHANNEL]
        _fill_sheets(source, base, samples, sizes, copies, copy_ends, band, sheets)
        base = n * sizes[TARGET_SAMPLE] + group * sizes[TARGET_CHANNEL]
        first_piece, last = piece_ends[band, 0], piece_ends[band, 1] - 1
        while pieces[last * PIECE_COLUMNS + PIECE_SAMPLE] >= samples:
            last -= 1
        for piece in range(first_piece, last + 1, PIECES):
            one_filter_by_rows(
                weight, group * PACKED * len(offsets), bias, group * PACKED, sheets, offsets, 0, len(offsets), pieces,
                piece, last, target, base,
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ weight gradient
@kernel(allocates=False)
def _pack_maps(
    maps: Array, base: int, samples: int, sizes: Array, pieces: Array, start: int, stop: int, packed: Array, pitch: int
) -> Any:
    """Copy the maps of a unit's windows to the positions of the vectors of windows, with zeros between rows. Returns
    the number of these vectors. base: the unit's first element of the maps. pitch: from a filter to the next."""
    if sizes[BANDS] > 1 or samples < sizes[BATCH]:
        zero(packed, 0, len(packed))
    while stop > start and pieces[stop - 1, PIECE_SAMPLE] >= samples:
        stop -= 1
    for f in range(sizes[FILTERS]):
        for i in range(start, stop):
            to = f * pitch + pieces[i, PIECE_STRIP] * STRIP + pieces[i, PIECE_AT]
            at, cells = base + f * sizes[TARGET_CHANNEL] + pieces[i, PIECE_TARGET], pieces[i, PIECE_CELLS]
            if sizes[TARGET_STEP] == 1:
                copy(maps, at, packed, to, cells)
            else:
                _gather(maps, at, sizes[TARGET_STEP], packed, to, cells)
    last = stop - 1
    return (pieces[last, PIECE_STRIP] * STRIP + pieces[last, PIECE_AT] + pieces[last, PIECE_CELLS] + LANES - 1) // LANES


@kernel(allocates=False)
def _add_products(
    sheets: Array, places: Array, p: int, count: int, offsets: Array, taps: int, maps: Array, pitch: int, filters: int,
    sums: Array,
) -> None:  # fmt: skip
    """Add the products of all maps at `count` vectors of windows, from places[p] on, and all taps' cells to sums."""
    for f in range(filters):
        for k in range(0, taps, TAPS):
            to = (f * len(offsets) + k) * LANES
            map_by_taps(maps, f * pitch + p * LANES, sheets, places, p, offsets, k, count, sums, to)


@kernel(allocates=False)
def _flush(sums: Array, filters: int, taps: int, pitch: int, dweight: Array, to: int) -> None:
    """Add the totals of vectors of sums, `pitch` vectors a filter, to the weight's gradient, and set all sums to 0."""
    for f in range(filters):
        for k in range(taps):
            dweight[U(to + f * taps + k)] += total(load(sums, LANES * (f * pitch + k)))
    zero(sums, 0, len(sums))


@kernel(allocates=False)
def weight_gradient(
    image: Array, maps: Array, dweight: Array, sizes: Array, copies: Array, copy_ends: Array, places: Array,
    pieces: Array, piece_ends: Array, offsets: Array, taps: int, parts: int, start: int, stop: int, sheets: Array,
    packed: Array, sums: Array,
) -> None:  # fmt: skip
    """The partial sums `start` to `stop` of the weight's gradient (parts, groups, filters, taps), which are in float64.

    A part is a range of the units of one group. taps: of all channels; `offsets` has more, for complete tiles. packed:
    the maps as vectors of windows."""
    filters, pitch = sizes[FILTERS], len(places) * LANES
    units = -(-sizes[SAMPLES] // sizes[BATCH]) * sizes[BANDS]
    zero(sheets, 0, len(sheets))
    zero(packed, 0, len(packed))
    zero(sums, 0, len(sums))
    for job in range(start, stop):
        part, group = job // sizes[GROUPS], job % sizes[GROUPS]
        result, terms = job * filters * taps, 0
        for unit in range(units * part // parts, units * (part + 1) // parts):
            band, n = unit % sizes[BANDS], unit // sizes[BANDS] * sizes[BATCH]
            samples = min(sizes[BATCH], sizes[SAMPLES] - n)
            base = n * sizes[SOURCE_SAMPLE] + group * sizes[CHANNELS] * sizes[SOURCE_CHANNEL]
            _fill_sheets(image, base, samples, sizes, copies, copy_ends, band, sheets)
            base = n * sizes[TARGET_SAMPLE] + group * filters * sizes[TARGET_CHANNEL]
            first, last = piece_ends[band, 0], piece_ends[band, piece_ends.shape[1] - 1]
            vectors = _pack_maps(maps, base, samples, sizes, pieces, first, last, packed, pitch)
            if terms + vectors > LANE_TERMS:
                _flush(sums, filters, taps, len(offsets), dweight, result)
                terms = 0
            terms += vectors
            for p in range(0, vectors, RUN):
                _add_products(sheets, places, p, min(RUN, vectors - p), offsets, taps, packed, pitch, filters, sums)
        _flush(sums, filters, taps, len(offsets), dweight, result)
