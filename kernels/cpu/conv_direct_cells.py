"""The loops of direct convolution on vectors of 16 filters: for channels last, and for many channels on small maps.

The cells that some windows read are copied to sheets as in conv_direct_loops.py, but a cell of a sheet has all channels
of a group, one after another. `places` has where each window of a unit begins in the sheets, in elements, and `targets`
where its result goes. Then

    target[p, f] = bias[f] + the sum over taps t and channels c of weight[t, c, f] * sheets[place[p] + offset[t] + c]

for four windows and 32 filters at a time, or for eight and 16; if `depthwise`, the channel c is f alone, and cells are
loaded as vectors.
Each sum is over t and c in order, so the bits depend on nothing but the shapes."""

from __future__ import annotations

import functools
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
    fill_sheets,
    list_windows,
    set_box,
    zero,
)
from .jit import kernel
from .vectors import LANES, add, broadcast, fma, load, load_first, store, store_first, to_float64

Array = Any
Kernel = Any
U = np.uint64
EIGHT = 8  # windows (taps, of a weight's gradient) that are computed together
TERMS = 256  # of a sum in float32, at most; the sums of these are in float64


@functools.cache
def _make_eight_windows(depthwise: bool) -> Kernel:
    @kernel(inlined=True)
    def eight_windows(
        sheets: Array, offsets: Array, first: int, count: int, cell: int, weight: Array, w: int, bias: Array, b: int,
        places: Array, q: int, last: int, channel: int, out: Array,
    ) -> None:  # fmt: skip
        """The results for 16 filters of windows q to q + 7, or of window `last` in place of those after it."""
        p0, p1 = U(places[q] + channel), U(places[min(q + 1, last)] + channel)
        p2, p3 = U(places[min(q + 2, last)] + channel), U(places[min(q + 3, last)] + channel)
        p4, p5 = U(places[min(q + 4, last)] + channel), U(places[min(q + 5, last)] + channel)
        p6, p7 = U(places[min(q + 6, last)] + channel), U(places[min(q + 7, last)] + channel)
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = load(bias, b)
        for t in range(U(count)):
            at = U(offsets[U(first) + t]) * U(cell)
            if depthwise:
                v = load(weight, U(w) + t * U(LANES))
                a0, a1 = fma(v, load(sheets, p0 + at), a0), fma(v, load(sheets, p1 + at), a1)
                a2, a3 = fma(v, load(sheets, p2 + at), a2), fma(v, load(sheets, p3 + at), a3)
                a4, a5 = fma(v, load(sheets, p4 + at), a4), fma(v, load(sheets, p5 + at), a5)
                a6, a7 = fma(v, load(sheets, p6 + at), a6), fma(v, load(sheets, p7 + at), a7)
            else:
                for c in range(at, at + U(cell)):
                    v = load(weight, U(w) + (t * U(cell) + c - at) * U(LANES))
                    a0 = fma(v, broadcast(sheets, sheets[p0 + c]), a0)
                    a1 = fma(v, broadcast(sheets, sheets[p1 + c]), a1)
                    a2 = fma(v, broadcast(sheets, sheets[p2 + c]), a2)
                    a3 = fma(v, broadcast(sheets, sheets[p3 + c]), a3)
                    a4 = fma(v, broadcast(sheets, sheets[p4 + c]), a4)
                    a5 = fma(v, broadcast(sheets, sheets[p5 + c]), a5)
                    a6 = fma(v, broadcast(sheets, sheets[p6 + c]), a6)
                    a7 = fma(v, broadcast(sheets, sheets[p7 + c]), a7)
        store(out, 0, a0)
        store(out, 16, a1)
        store(out, 32, a2)
        store(out, 48, a3)
        store(out, 64, a4)
        store(out, 80, a5)
        store(out, 96, a6)
        store(out, 112, a7)

    return eight_windows


@kernel(inlined=True)
def _four_windows(
    sheets: Array, offsets: Array, first: int, count: int, cell: int, weight: Array, w: int, second: int, bias: Array,
    b: int, places: Array, q: int, last: int, out: Array,
) -> None:  # fmt: skip
    """The same for 32 filters and four windows: half as many loads. second: from the weights of 16 filters to those of
    the next 16."""
    p0, p1 = U(places[q]), U(places[min(q + 1, last)])
    p2, p3 = U(places[min(q + 2, last)]), U(places[min(q + 3, last)])
    a0 = a1 = a2 = a3 = load(bias, b)
    b0 = b1 = b2 = b3 = load(bias, b + LANES)
    for t in range(U(count)):
        at = U(offsets[U(first) + t]) * U(cell)
        for c in range(at, at + U(cell)):
            here = U(w) + (t * U(cell) + c - at) * U(LANES)
            u, v = load(weight, here), load(weight, here + U(second))
            x = broadcast(sheets, sheets[p0 + c])
            a0, b0 = fma(u, x, a0), fma(v, x, b0)
            x = broadcast(sheets, sheets[p1 + c])
            a1, b1 = fma(u, x, a1), fma(v, x, b1)
            x = broadcast(sheets, sheets[p2 + c])
            a2, b2 = fma(u, x, a2), fma(v, x, b2)
            x = broadcast(sheets, sheets[p3 + c])
            a3, b3 = fma(u, x, a3), fma(v, x, b3)
    store(out, 0, a0)
    store(out, 16, a1)
    store(out, 32, a2)
    store(out, 48, a3)
    store(out, 64, b0)
    store(out, 80, b1)
    store(out, 96, b2)
    store(out, 112, b3)


@kernel(allocates=False)
def _store_results(
    out: Array, at: int, windows: int, target: Array, to: int, targets: Array, q: int, by_channel: int, filters: int
) -> None:
    """Copy the results of up to 16 filters for some windows, from window q on, to the target."""
    if by_channel == 1:
        for i in range(windows):
            store_first(target, to + targets[q + i], load(out, at + LANES * i), filters)
    else:
        for f in range(U(filters)):
            for i in range(U(windows)):
                target[U(to + targets[U(q) + i]) + f * U(by_channel)] = out[U(at) + U(LANES) * i + f]


@functools.cache
def make_correlate(depthwise: bool) -> Kernel:
    """The kernel for the target of units `start` to `stop`. weight: (groups, blocks of 16 filters, taps, channels, 16);
    bias: (groups, blocks, 16). `outputs` is that of conv_direct_loops.correlate; `offsets` are cells of the sheets."""
    eight_windows = _make_eight_windows(depthwise)

    @kernel()
    def correlate(
        source: Array, weight: Array, bias: Array, target: Array, axes: Array, sizes: Array, starts: Array,
        outputs: Array, offsets: Array, windows: int, start: int, stop: int, sheets: Array,
    ) -> None:  # fmt: skip
        cell, filters, sheet = sizes[CHANNELS], sizes[FILTERS], sizes[SHEET]
        by_channel = sizes[TARGET_CHANNEL]
        box, out = np.empty((3, 2), np.int64), np.empty(EIGHT * LANES, source.dtype)
        places, targets = np.empty(windows, np.int64), np.empty(windows, np.int64)
        from_strides, to_strides = sizes[SOURCE_SAMPLE : SOURCE_CELL + 1], sizes[TARGET_SAMPLE : TARGET_CELL + 1]
        blocks, rows = (filters + LANES - 1) // LANES, 1 if depthwise else cell  # rows of weights for a tap
        zero(sheets, 0, len(sheets))
        for unit in range(start, stop):
            group, band = unit % sizes[GROUPS], unit // sizes[GROUPS] % sizes[BANDS]
            n = unit // (sizes[GROUPS] * sizes[BANDS]) * sizes[BATCH]
            samples = min(sizes[BATCH], sizes[SAMPLES] - n)
            set_box(axes, sizes, band, box)
            if sizes[BANDS] > 1:  # cells of another band may be where this one has padding
                zero(sheets, 0, len(sheets))
            base = n * sizes[SOURCE_SAMPLE] + group * cell * sizes[SOURCE_CHANNEL]
            fill_sheets(source, base, cell, samples, from_strides, axes, box, starts, sheets, sheet, True)
            base = n * sizes[TARGET_SAMPLE] + group * filters * by_channel
            for phase in range(len(outputs)):
                first, count = outputs[phase, 3], outputs[phase, 4]
                number = list_windows(axes, box, samples, outputs[phase], to_strides, cell, places, targets)
                second = len(offsets) * rows * LANES
                block = 0
                while block < blocks:
                    pair = not depthwise and block + 1 < blocks
                    b, windows_at_once = (group * blocks + block) * LANES, EIGHT // 2 if pair else EIGHT
                    w, channel = (b * len(offsets) + first * LANES) * rows, block * LANES if depthwise else 0
                    for q in range(0, number, windows_at_once):
                        if pair:
                            _four_windows(
                                sheets, offsets, first, count, cell, weight, w, second, bias, b, places, q, number - 1,
                                out,
                            )  # fmt: skip
                        else:
                            eight_windows(
                                sheets, offsets, first, count, cell, weight, w, bias, b, places, q, number - 1,
                                channel, out,
                            )  # fmt: skip
                        for i in range(2 if pair else 1):
                            f, here = (block + i) * LANES, i * (EIGHT // 2) * LANES
                            to, lanes = base + f * by_channel, min(LANES, filters - f)
                            n_windows = min(windows_at_once, number - q)
                            _store_results(out, here, n_windows, target, to, targets, q, by_channel, lanes)
                    block += 2 if pair else 1

    return correlate


@functools.cache
def _make_eight_taps(depthwise: bool) -> Kernel:
    @kernel(inlined=True)
    def eight_taps(
        sheets: Array, places: Array, start: int, stop: int, at: Array, maps: Array, m: int, pitch: int, sums: Array
    ) -> None:
        """Sums of products of 16 maps with the cells under eight taps (and channels), over some windows."""
        o0, o1, o2, o3, o4, o5, o6, o7 = (
            U(at[0]), U(at[1]), U(at[2]), U(at[3]), U(at[4]), U(at[5]), U(at[6]), U(at[7]),
        )  # fmt: skip
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = broadcast(sheets, 0)
        for q in range(U(start), U(stop)):
            p, v = U(places[q]), load(maps, U(m) + q * U(pitch))
            if depthwise:
                a0, a1 = fma(v, load(sheets, p + o0), a0), fma(v, load(sheets, p + o1), a1)
                a2, a3 = fma(v, load(sheets, p + o2), a2), fma(v, load(sheets, p + o3), a3)
                a4, a5 = fma(v, load(sheets, p + o4), a4), fma(v, load(sheets, p + o5), a5)
                a6, a7 = fma(v, load(sheets, p + o6), a6), fma(v, load(sheets, p + o7), a7)
            else:
                a0 = fma(v, broadcast(sheets, sheets[p + o0]), a0)
                a1 = fma(v, broadcast(sheets, sheets[p + o1]), a1)
                a2 = fma(v, broadcast(sheets, sheets[p + o2]), a2)
                a3 = fma(v, broadcast(sheets, sheets[p + o3]), a3)
                a4 = fma(v, broadcast(sheets, sheets[p + o4]), a4)
                a5 = fma(v, broadcast(sheets, sheets[p + o5]), a5)
                a6 = fma(v, broadcast(sheets, sheets[p + o6]), a6)
                a7 = fma(v, broadcast(sheets, sheets[p + o7]), a7)
        store(sums, 0, to_float64(a0))
        store(sums, 16, to_float64(a1))
        store(sums, 32, to_float64(a2))
        store(sums, 48, to_float64(a3))
        store(sums, 64, to_float64(a4))
        store(sums, 80, to_float64(a5))
        store(sums, 96, to_float64(a6))
        store(sums, 112, to_float64(a7))

    return eight_taps


@kernel(inlined=True)
def _four_taps(
    sheets: Array, places: Array, start: int, stop: int, at: Array, maps: Array, m: int, pitch: int, sums: Array
) -> None:
    """The same for 32 maps and four taps."""
    o0, o1, o2, o3 = U(at[0]), U(at[1]), U(at[2]), U(at[3])
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = broadcast(sheets, 0)
    for q in range(U(start), U(stop)):
        p, here = U(places[q]), U(m) + q * U(pitch)
        u, v = load(maps, here), load(maps, here + U(LANES))
        x = broadcast(sheets, sheets[p + o0])
        a0, b0 = fma(u, x, a0), fma(v, x, b0)
        x = broadcast(sheets, sheets[p + o1])
        a1, b1 = fma(u, x, a1), fma(v, x, b1)
        x = broadcast(sheets, sheets[p + o2])
        a2, b2 = fma(u, x, a2), fma(v, x, b2)
        x = broadcast(sheets, sheets[p + o3])
        a3, b3 = fma(u, x, a3), fma(v, x, b3)
    store(sums, 0, to_float64(a0))
    store(sums, 16, to_float64(a1))
    store(sums, 32, to_float64(a2))
    store(sums, 48, to_float64(a3))
    store(sums, 64, to_float64(b0))
    store(sums, 80, to_float64(b1))
    store(sums, 96, to_float64(b2))
    store(sums, 112, to_float64(b3))


@functools.cache
def make_weight_gradient(depthwise: bool) -> Kernel:
    """The kernel for the partial sums `start` to `stop` of the weight's gradient (parts, groups, blocks of 16 filters,
    taps and channels, 16), which are in float64. A part is a range of the units of one group."""
    eight_taps = _make_eight_taps(depthwise)

    @kernel()
    def weight_gradient(
        image: Array, maps: Array, dweight: Array, axes: Array, sizes: Array, starts: Array, outputs: Array,
        offsets: Array, windows: int, parts: int, start: int, stop: int, sheets: Array, map_cells: Array,
    ) -> None:  # fmt: skip
        cell, filters, sheet = sizes[CHANNELS], sizes[FILTERS], sizes[SHEET]
        blocks = (filters + LANES - 1) // LANES
        pitch, rows = blocks * LANES, len(offsets) * (1 if depthwise else cell)
        box, at, sums = np.empty((3, 2), np.int64), np.empty(EIGHT, np.int64), np.empty(EIGHT * LANES, np.float64)
        places, targets = np.empty(windows, np.int64), np.empty(windows, np.int64)
        image_strides, map_strides = sizes[SOURCE_SAMPLE : SOURCE_CELL + 1], sizes[TARGET_SAMPLE : TARGET_CELL + 1]
        by_channel, units = sizes[TARGET_CHANNEL], -(-sizes[SAMPLES] // sizes[BATCH]) * sizes[BANDS]
        zero(sheets, 0, len(sheets))
        zero(map_cells, 0, len(map_cells))
        for job in range(start, stop):
            part, group = job // sizes[GROUPS], job % sizes[GROUPS]
            for unit in range(units * part // parts, units * (part + 1) // parts):
                n = unit // sizes[BANDS] * sizes[BATCH]
                samples = min(sizes[BATCH], sizes[SAMPLES] - n)
                set_box(axes, sizes, unit % sizes[BANDS], box)
                if sizes[BANDS] > 1:
                    zero(sheets, 0, len(sheets))
                base = n * sizes[SOURCE_SAMPLE] + group * cell * sizes[SOURCE_CHANNEL]
                fill_sheets(image, base, cell, samples, image_strides, axes, box, starts, sheets, sheet, True)
                number = list_windows(axes, box, samples, outputs[0], map_strides, cell, places, targets)
                base = n * sizes[TARGET_SAMPLE] + group * filters * by_channel
                for q in range(number):
                    if by_channel == 1:
                        for f in range(0, filters, LANES):
                            lanes = min(LANES, filters - f)
                            store(map_cells, q * pitch + f, load_first(maps, base + targets[q] + f, lanes))
                    else:
                        for f in range(U(filters)):
                            map_cells[U(q * pitch) + f] = maps[U(base + targets[q]) + f * U(by_channel)]
                for q in range(0, number, TERMS):
                    end, block = min(q + TERMS, number), 0
                    while block < blocks:
                        pair = not depthwise and block + 1 < blocks
                        taps = EIGHT // 2 if pair else EIGHT
                        to, channel = (job * blocks + block) * rows * LANES, block * LANES
                        for k in range(0, rows, taps):
                            for i in range(taps):
                                row = min(k + i, rows - 1)
                                if depthwise:
                                    at[i] = offsets[row] * cell + channel
                                else:
                                    at[i] = offsets[row // cell] * cell + row % cell
                            if pair:
                                _four_taps(sheets, places, q, end, at, map_cells, channel, pitch, sums)
                            else:
                                eight_taps(sheets, places, q, end, at, map_cells, channel, pitch, sums)
                            for v in range(2 if pair else 1):
                                for i in range(min(taps, rows - k)):
                                    here, found = to + (v * rows + k + i) * LANES, (v * taps + i) * LANES
                                    store(dweight, here, add(load(dweight, here), load(sums, found)))
                        block += 2 if pair else 1

    return weight_gradient
