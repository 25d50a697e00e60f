"""A strip of a direct convolution on vectors of 16 filters, which conv_direct_loops.py calls.

The weight's gradient is the same sum as the target with other parts: places are taps and channels, offsets windows, and
the maps take the place of the weight. For a depthwise convolution (`depthwise`) k is a tap, and a vector of channels
takes the place of each number of the sheets."""

from __future__ import annotations

import functools
from typing import Any

from .conv_rows import COUNT, FILTERS, TARGET_CHANNEL, TERM, copy, transpose_block
from .jit import kernel
from .vector_tiles import WINDOWS_BY_FILTERS, windows_by_filters
from .vectors import LANES, add, load, load_first, store, to_float64

Array = Any
Kernel = Any

STRIP = 48  # windows whose results are held together: a multiple of the windows of every tile, and of LANES
STEP = 2 * LANES  # filters that are computed together
RESULTS = STRIP * STEP
TERMS = 256  # of a sum of a weight's gradient in float32, at most; the sums of these are in float64
MOST_TERMS = 160  # of other sums, at most, so that their cells stay in the first-level cache; longer ones have parts


@kernel(allocates=False)
def _run_of(targets: Array, q: int, end: int) -> int:
    """How many windows from q on, up to LANES, are neighbours in the target."""
    number = min(LANES, end - q)
    while targets[q + number - 1] - targets[q] != number - 1:
        number -= 1
    return number


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
                transpose_block(
                    out, here + f, vectors * LANES, run, filters - f, target, there + f * by_channel, by_channel
                )  # fmt: skip
        i += run


@functools.cache
def _make_tile(depthwise: bool, itemsize: int) -> tuple[Kernel, int, bool]:
    """The kernel that computes a tile with one or two vectors of filters, its windows, and whether it has two."""
    rows, width = WINDOWS_BY_FILTERS[itemsize]
    pairs, by_channel = width == 2 and not depthwise, int(depthwise)

    @kernel(allocates=False, inlined=True)
    def tile(
        vectors: int, sheets: Array, starts: Array, q: int, f: int, offsets: Array, first: int, count: int,
        weight: Array, w: int, second: int, bias: Array, b: int, target: Array, targets: Array, to: int, out: Array,
        at: int, direct: bool, more: bool,
    ) -> None:  # fmt: skip
        if pairs and vectors == 2:
            windows_by_filters(
                2, 0, sheets, starts, q, 0, offsets, first, count, weight, w, second, bias, b, target, targets, to, out,
                at, direct, more,
            )  # fmt: skip
        else:
            windows_by_filters(
                1, by_channel, sheets, starts, q, f * by_channel, offsets, first, count, weight, w, second, bias, b,
                target, targets, to, out, at, direct, more,
            )  # fmt: skip

    return tile, rows, pairs


@functools.cache
def make_compute(depthwise: bool, itemsize: int) -> Kernel:
    """The kernel for the results of up to 32 filters from f on for the windows places[p] to places[stop]. w, b, to:
    where the weights, the bias and the target of filter f begin. pitch: from a block of 16 filters' weights to the
    next."""
    tile, rows, pairs = _make_tile(depthwise, itemsize)

    @kernel(allocates=False, inlined=True)
    def compute(
        sheets: Array, places: Array, p: int, stop: int, f: int, filters: int, offsets: Array, phases: Array,
        phase: int, weight: Array, w: int, pitch: int, bias: Array, b: int, target: Array, targets: Array, to: int,
        sizes: Array, out: Array,
    ) -> None:  # fmt: skip
        by_channel, first, count = sizes[TARGET_CHANNEL], phases[phase, TERM], phases[phase, COUNT]
        parts, end = max(1, -(-count // MOST_TERMS)), min(filters, f + STEP)
        while f < end:
            vectors = 2 if pairs and f + LANES < end else 1
            here = min(vectors * LANES, end - f)
            copies = parts == 1 and by_channel == 1 and here == vectors * LANES
            for part in range(parts):
                k, stop_k = first + count * part // parts, first + count * (part + 1) // parts
                for q in range(p, stop, rows):
                    tile(
                        vectors, sheets, places, q, f, offsets, k, stop_k - k, weight, w + k * LANES, pitch, bias, b,
                        target, targets, to, out, (q - p) * vectors * LANES, copies and q + rows <= stop, part > 0,
                    )  # fmt: skip
            done = (stop - p) // rows * rows if copies else 0
            _store_results(
                out, done * vectors * LANES, vectors, target, targets, p + done, stop, to, by_channel, here
            )  # fmt: skip
            f, w, b = f + vectors * LANES, w + vectors * pitch, b + vectors * LANES
            to += vectors * LANES * by_channel

    return compute


# ------------------------------------------------------------------------------------------------------ weight gradient
@kernel(allocates=False, inlined=True)
def pack_maps(
    maps: Array, base: int, targets: Array, p: int, number: int, sizes: Array, block: int, last_block: int,
    packed: Array, pitch: int,
) -> None:  # fmt: skip
    """Copy the maps of some blocks of 16 filters at `number` windows from p on to (blocks, windows, 16). base: the
    unit's first element of the maps. pitch: elements of a block."""
    by_channel = sizes[TARGET_CHANNEL]
    for f in range(block * LANES, min(sizes[FILTERS], last_block * LANES), LANES):
        q, to, filters = 0, f // LANES * pitch, sizes[FILTERS] - f
        if by_channel == 1:
            for q in range(number):
                store(packed, to + q * LANES, load_first(maps, base + targets[p + q] + f, filters))
        else:
            while q < number:
                run, at = _run_of(targets, p + q, p + number), base + targets[p + q] + f * by_channel
                transpose_block(maps, at, by_channel, filters, run, packed, to + q * LANES, LANES)
                q += run


@functools.cache
def make_add_products(depthwise: bool, itemsize: int) -> Kernel:
    """The kernel that adds the products of the maps at `number` windows, from places[p] on, and the terms' cells to
    partial sums of the weight's gradient."""
    tile, rows, pairs = _make_tile(depthwise, itemsize)

    @kernel(allocates=False, inlined=True)
    def add_products(
        sheets: Array, places: Array, p: int, number: int, offsets: Array, terms: int, maps: Array, pitch: int,
        block: int, last_block: int, partial: Array, result: int, out: Array,
    ) -> None:  # fmt: skip
        """out: begins with zeros, which take the place of a bias."""
        for q in range(0, number, TERMS):
            count, b = min(TERMS, number - q), block
            while b < last_block:
                vectors = 2 if pairs and b + 1 < last_block else 1
                for k in range(0, terms, rows):
                    tile(
                        vectors, sheets, offsets, k, b * LANES, places, p + q, count, maps, b * pitch + q * LANES,
                        pitch, out, 0, out, offsets, 0, out, STEP, False, False,
                    )  # fmt: skip
                    for j in range(vectors):
                        to = result + ((b + j) * terms + k) * LANES
                        for i in range(min(rows, terms - k)):
                            sums = to_float64(load(out, STEP + (i * vectors + j) * LANES))
                            store(partial, to + i * LANES, add(load(partial, to + i * LANES), sums))
                b += vectors

    return add_products
