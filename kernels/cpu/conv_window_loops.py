"""A strip of a direct convolution on vectors of 16 windows, which conv_direct_loops.py calls.

A vector has the windows p to p + 15 of a sheet, of one row or of two. Those between two rows are no windows; their
results are not stored."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .conv_rows import COUNT, TARGET_CHANNEL, TARGET_STEP, TERM, TOGETHER, gather, zero
from .jit import kernel
from .vector_tiles import (
    CELLS,
    LANE,
    ROWS,
    TAPS,
    TARGET,
    TARGET_COLUMNS,
    VECTORS,
    WIDTH,
    filters_by_windows,
    map_by_taps,
)
from .vectors import LANES, interleave_high, interleave_low, load, load_first, store, store_first, total

Array = Any
Kernel = Any
U = np.uint64

STRIP = 24  # vectors of windows: a multiple of those of every tile
PITCH = STRIP * LANES  # of the results of a filter
RESULTS = 2 * ROWS * PITCH + LANES
LANE_TERMS = 1024  # of a sum in float32, at most; the sums of these are in float64
RUN = 48  # vectors of windows whose maps stay in the first-level cache while all taps' cells are multiplied by them


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
def _store_cells(
    out: Array, filters: int, p: int, last: int, target: Array, targets: Array, to: int, sizes: Array
) -> None:
    """Copy the results of some filters for the vectors p to last to the target's cells."""
    step = sizes[TARGET_STEP]
    for i in range(filters):
        for v in range(p, last):
            for column in range(v * TARGET_COLUMNS, (v + 1) * TARGET_COLUMNS, LANE + 1):
                at = i * PITCH + (v - p) * LANES + targets[column + LANE]
                there, cells = to + i * sizes[TARGET_CHANNEL] + targets[column + TARGET], targets[column + CELLS]
                if sizes[TOGETHER] == 2:
                    _scatter_pairs(out, at, at + ROWS * PITCH, target, there, cells)
                else:
                    _scatter(out, at, target, there, step, cells)


@functools.cache
def make_compute(direct: bool, single: bool) -> Kernel:
    """The kernel for the results of up to 16 filters from f on for the vectors places[p] to places[stop]. w, b, to:
    where the weights, the bias and the target of filter f begin. direct: neighbouring windows are neighbours in the
    target. single: there is one filter, and no vector has windows of two rows."""
    rows, width = (1, VECTORS) if single else (ROWS, WIDTH)
    segments, half, twice = (1 if single else 2) if direct else 0, ROWS // 2, 2 * WIDTH

    @kernel(allocates=False, inlined=True)
    def compute(
        sheets: Array, places: Array, p: int, stop: int, f: int, filters: int, offsets: Array, phases: Array,
        phase: int, weight: Array, w: int, pitch: int, bias: Array, b: int, target: Array, targets: Array, to: int,
        sizes: Array, out: Array,
    ) -> None:  # fmt: skip
        between, last, i, filters = sizes[TARGET_CHANNEL], stop - 1, 0, min(filters - f, LANES)
        results, step = (target, between) if direct else (out, PITCH)
        while i < filters:
            here, number = filters - i, rows
            for j in range(sizes[TOGETHER]):
                term, count = phases[phase + j, TERM], phases[phase + j, COUNT]
                v, at, onward = (
                    w + term * LANES + i,
                    to + i * between if direct else j * ROWS * PITCH,
                    0 if direct else LANES,
                )
                if not single and here <= half:
                    number = half
                    for q in range(p, stop, twice):
                        filters_by_windows(
                            half, twice, segments, weight, v, bias, b + i, sheets, places, q, last, offsets, term,
                            count, results, targets, at + (q - p) * onward, step, here,
                        )  # fmt: skip
                else:
                    for q in range(p, stop, width):
                        filters_by_windows(
                            rows, width, segments, weight, v, bias, b + i, sheets, places, q, last, offsets, term,
                            count, results, targets, at + (q - p) * onward, step, here,
                        )  # fmt: skip
            if not direct:
                _store_cells(out, min(here, number), p, stop, target, targets, to + i * between, sizes)
            i += number

    return compute


# ------------------------------------------------------------------------------------------------------ weight gradient
@kernel(allocates=False, inlined=True)
def pack_maps(
    maps: Array, base: int, targets: Array, p: int, number: int, sizes: Array, block: int, last_block: int,
    packed: Array, pitch: int,
) -> None:  # fmt: skip
    """Copy the maps of `number` vectors of windows from p on to (filters, vectors, 16), with zeros between rows. base:
    the unit's first element of the maps. pitch: from a filter to the next."""
    step = sizes[TARGET_STEP]
    for f in range(len(packed) // pitch):
        at, to = base + f * sizes[TARGET_CHANNEL], f * pitch
        for v in range(number):
            column = (p + v) * TARGET_COLUMNS
            first, second, here = at + targets[column + TARGET], column + LANE + 1, to + v * LANES
            after, there = targets[second + CELLS], here + targets[second + LANE]
            if step == 1:
                store(packed, here, load_first(maps, first, targets[column + CELLS]))
                if after > 0:
                    store_first(packed, there, load_first(maps, at + targets[second + TARGET], after), after)
            else:
                zero(packed, here, LANES)
                gather(maps, first, step, packed, here, targets[column + CELLS])
                gather(maps, at + targets[second + TARGET], step, packed, there, after)


@kernel(allocates=False, inlined=True)
def add_products(
    sheets: Array, places: Array, p: int, number: int, offsets: Array, terms: int, maps: Array, pitch: int, block: int,
    last_block: int, partial: Array, result: int, sums: Array,
) -> None:  # fmt: skip
    """Add the products of all maps at `number` vectors of windows, from places[p] on, and all terms' cells to sums."""
    for q in range(0, number, RUN):
        for f in range(len(maps) // pitch):
            for k in range(0, terms, TAPS):
                to = (f * -(-terms // TAPS) * TAPS + k) * LANES
                map_by_taps(
                    maps, f * pitch + q * LANES, sheets, places, p + q, offsets, k, min(RUN, number - q), sums, to
                )  # fmt: skip


@kernel(allocates=False)
def flush(sums: Array, filters: int, terms: int, partial: Array, to: int) -> None:
    """Add the totals of vectors of sums to partial sums of the weight's gradient, and set all sums to 0."""
    for f in range(filters):
        for k in range(terms):
            at = to + (f // LANES * terms + k) * LANES + f % LANES
            partial[U(at)] += total(load(sums, LANES * (f * (-(-terms // TAPS) * TAPS) + k)))
    zero(sums, 0, len(sums))
