"""The loops of Winograd's 3×3 convolution, F(4×4, 3×3), with the points 0, ±√½, ±√2 and infinity.

y = A^T (G w G^T · B^T d B) A for each tile of 4×4 windows, which sees a patch d of 6×6 cells; · is a product element by
element, and over channels a matrix product at each of the 36 points. The weight's gradient is the same algorithm with
the maps' 4×4 tiles as its kernel: G^T (A dy A^T · B^T d B) G. Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, 2015. The usual points 0, ±1, ±2 need no factors with a root, but their powers differ more, and so more digits
are lost.

Vectors go over 16 channels or filters, a *block*. A *unit* is some samples of a group, or a band of rows of tiles of
one. Block by block its cells are transposed to a *sheet*, (samples, rows, columns, 16), with zeros for the padding. The
transformed tiles are (36, blocks, `room` tiles, 16). A product's blocks come in pairs where the tile of vector_tiles.py
has two vectors: (36, pairs, rows, 2, 16). Each sum is in order, so the bits depend on nothing but the shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .conv_rows import transpose_block
from .jit import kernel
from .vector_tiles import WINDOWS_BY_FILTERS, transpose, two_axis_transform, windows_by_filters
from .vectors import LANES, add, broadcast, load, store, total

Array = Any
Kernel = Any

TILE, PATCH, POINTS = 4, 6, 36  # windows of a tile and cells of its patch along an axis; points of both axes
TILE_ROWS, TILE_VECTORS = WINDOWS_BY_FILTERS[4]
STRETCH = 32  # units of a weight's gradient that are summed up before they are added to others: less is rounded
# Entries of `sizes`. BAND: rows of tiles of a unit; ACROSS: tiles of a row. ROOM: tiles for which a unit has room;
# ROW_ROOM: filters, for a weight's gradient. Those of the maps are MAPS further than the image's; they have no padding.
SAMPLES, GROUPS, BATCH, BAND, BANDS, ACROSS, ROOM, ROW_ROOM, CHANNELS, HEIGHT, WIDTH, TOP, LEFT = range(13)
MAPS = 5
FILTERS, MAP_HEIGHT, MAP_WIDTH = CHANNELS + MAPS, HEIGHT + MAPS, WIDTH + MAPS

# ------------------------------------------------------------------------------------------------------ the transforms
FINITE_POINTS = [0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)]


def _others(point: float | None) -> Array:
    """The polynomial with leading coefficient 1 whose roots are the other finite points; the constant first."""
    return np.poly([q for q in FINITE_POINTS if q != point])[::-1]


AT = np.array([[p**k for p in FINITE_POINTS] + [float(k == 3)] for k in range(4)])
G = np.array([[p**k / np.polyval(_others(p)[::-1], p) for k in range(3)] for p in FINITE_POINTS] + [[0, 0, 1]])
BT = np.array([[*_others(p), 0] for p in FINITE_POINTS] + [_others(None)])


transform_image, transform_maps, transform_gradient = (two_axis_transform(m) for m in (BT, AT.T, G.T))
transform_weight, transform_products = two_axis_transform(G), two_axis_transform(AT)


@kernel()
def transform_weights(weight: Array, sizes: Array, strides: Array, points: Array) -> None:
    """G w G^T of a weight, as (groups, blocks of 16 filters, 36, channels, 16).

    strides: elements of the weight from one group, filter, channel and tap to the next. The last is -1 for the adjoint,
    whose kernel is the flipped one."""
    channels, filters, taps = sizes[CHANNELS], sizes[FILTERS], np.zeros(9 * LANES, weight.dtype)
    blocks, step, tap = (filters + LANES - 1) // LANES, channels * LANES, strides[3] * LANES
    first = 0 if tap > 0 else 8 * LANES
    for b in range(sizes[GROUPS] * blocks):
        f = b % blocks * LANES
        for c in range(channels):
            at = b // blocks * strides[0] + f * strides[1] + c * strides[2]
            transpose(weight, at, strides[1], filters - f, 9, taps, 0, LANES)
            to = b * POINTS * step + c * LANES
            transform_weight(taps, first, 3 * tap, tap, points, to, PATCH * step, step)


# ------------------------------------------------------------------------------------------------------ sheets of cells
@kernel(allocates=False)
def _zero(array: Array, to: int, count: int) -> None:
    zeros = broadcast(array, 0)
    for i in range(to, to + count, LANES):
        store(array, i, zeros)


@kernel(allocates=False)
def _fill(
    source: Array, at: int, channels: int, height: int, width: int, top: int, left: int, sheet: Array, rows: int,
    columns: int,
) -> None:  # fmt: skip
    """Rows of a sample to the sheet: its cell (y, x) is cell (top + y, left + x) of the planes of up to 16 channels."""
    first, stop, to = min(columns, max(0, -left)), max(0, min(columns, width - left)), 0
    for y in range(top, top + rows):
        if y < 0 or y >= height or first >= stop:
            _zero(sheet, to, columns * LANES)
        else:
            _zero(sheet, to, first * LANES)
            for x in range(first, stop, LANES):
                place = at + y * width + left + x
                transpose_block(source, place, height * width, channels, stop - x, sheet, to + x * LANES, LANES)
            _zero(sheet, to + stop * LANES, (columns - stop) * LANES)
        to += columns * LANES


@kernel(allocates=False)
def _place(sizes: Array, unit: int) -> Any:
    """A unit's group, first sample, samples, first row of tiles and rows of tiles."""
    group, band, n = unit % sizes[GROUPS], unit // sizes[GROUPS] % sizes[BANDS], unit // (sizes[GROUPS] * sizes[BANDS])
    n, row = n * sizes[BATCH], band * sizes[BAND]
    rows = min(sizes[BAND], (sizes[MAP_HEIGHT] + TILE - 1) // TILE - row)
    return group, n, min(sizes[BATCH], sizes[SAMPLES] - n), row, rows


def _make_transform_tiles(of_maps: bool) -> Kernel:
    """The kernel that transforms the tiles of a unit, of the blocks `first` to `stop`: the image's patches, B^T d B, or
    the maps' tiles, A dy A^T."""
    side, border = (MAPS, 0) if of_maps else (0, PATCH - TILE)

    @kernel(allocates=False)
    def transform_tiles(
        source: Array, sizes: Array, unit: int, first: int, stop: int, sheet: Array, tiles: Array
    ) -> None:  # fmt: skip
        group, n, samples, row, rows = _place(sizes, unit)
        channels, height, width = sizes[CHANNELS + side], sizes[HEIGHT + side], sizes[WIDTH + side]
        top, left = TILE * row - sizes[TOP + side], -sizes[LEFT + side]
        columns, pitch = TILE * sizes[ACROSS] + border, (stop - first) * sizes[ROOM] * LANES
        for block in range(first, stop):
            to = (block - first) * sizes[ROOM] * LANES
            for s in range(n, n + samples):
                at = ((s * sizes[GROUPS] + group) * channels + block * LANES) * height * width
                rest = channels - block * LANES
                _fill(source, at, rest, height, width, top, left, sheet, TILE * rows + border, columns)
                for y in range(rows):
                    for x in range(sizes[ACROSS]):
                        here = TILE * (y * columns + x) * LANES
                        if of_maps:
                            transform_maps(sheet, here, columns * LANES, LANES, tiles, to, PATCH * pitch, pitch)
                        else:
                            transform_image(sheet, here, columns * LANES, LANES, tiles, to, PATCH * pitch, pitch)
                        to += LANES

    return transform_tiles


_transform_images, _transform_maps = _make_transform_tiles(False), _make_transform_tiles(True)


# ------------------------------------------------------------------------------------------------------------- products
@kernel(allocates=False)
def _multiply(
    factors: Array, starts: Array, number: int, at: int, offsets: Array, count: int, vectors: Array, w: int,
    second: int, blocks: int, zeros: Array, out: Array, to: int, room: int, more: bool,
) -> None:  # fmt: skip
    """For each block, the sums over k < count of factors[at + starts[i] + offsets[k]] * vectors[w + LANES * k], for
    i < number; from block to block of the vectors it is `second`. If `more`, they are added to what is in `out`."""
    block = 0
    while block < blocks:
        width = min(TILE_VECTORS, blocks - block)
        for i in range(0, number, TILE_ROWS):
            here = to + (block * room + i * width) * LANES
            if width == 2:
                windows_by_filters(
                    2, 0, factors, starts, i, at, offsets, 0, count, vectors, w + block * second, second, zeros, 0, out,
                    starts, 0, out, here, False, more,
                )  # fmt: skip
            else:
                windows_by_filters(
                    1, 0, factors, starts, i, at, offsets, 0, count, vectors, w + block * second, second, zeros, 0, out,
                    starts, 0, out, here, False, more,
                )  # fmt: skip
        block += width


@kernel(allocates=False)
def _width_and_place(block: int, blocks: int, room: int) -> Any:
    """Vectors of a row of a block's pair in a product, and where row 0 of the block is."""
    first = block - block % TILE_VECTORS
    return min(TILE_VECTORS, blocks - first), (first * room + block - first) * LANES


@kernel(allocates=False)
def _share(blocks: int, share: int, shares: int) -> int:
    """The first block of a share of the blocks: of whole pairs."""
    first: int = min(blocks, 2 * ((blocks + 1) // 2 * share // shares))
    return first


@kernel(allocates=False)
def _add_and_zero(sums: Array, first: int, count: int, distance: int) -> None:
    """Add numbers to those that are `distance` further, and make them 0."""
    zeros = broadcast(sums, 0)
    for i in range(first, first + count, LANES):
        store(sums, i + distance, add(load(sums, i + distance), load(sums, i)))
        store(sums, i, zeros)


# ---------------------------------------------------------------------------------------------------- the two functions
@kernel()
def correlate(
    image: Array, points: Array, bias: Array, maps: Array, sizes: Array, tiles: Array, terms: Array, zeros: Array,
    checks: Array, start: int, stop: int, patches: Array, products: Array, sheet: Array,
) -> None:  # fmt: skip
    """The maps of units `start` to `stop`. points: as `transform_weights` gives them; bias: (groups, blocks, 16).

    checks: for each unit 0, or NaN if a number is not finite. tiles: where each tile's vectors begin; terms: where each
    channel's numbers do."""
    channels, filters, across, room = sizes[CHANNELS], sizes[FILTERS], sizes[ACROSS], sizes[ROOM]
    blocks, channel_blocks = (filters + LANES - 1) // LANES, (channels + LANES - 1) // LANES
    height, width, columns, step = sizes[MAP_HEIGHT], sizes[MAP_WIDTH], TILE * across, channels * LANES
    pitch, check = blocks * room * LANES, np.empty(LANES, image.dtype)
    for unit in range(start, stop):
        group, n, samples, row, rows = _place(sizes, unit)
        _transform_images(image, sizes, unit, 0, channel_blocks, sheet, patches)
        for point in range(POINTS):
            w = (group * blocks * POINTS + point) * step
            _multiply(
                patches, tiles, samples * rows * across, point * channel_blocks * room * LANES, terms, channels, points,
                w, POINTS * step, blocks, zeros, products, point * pitch, room, False,
            )  # fmt: skip
        store(check, 0, broadcast(check, 0))
        for block in range(blocks):
            vectors, at = _width_and_place(block, blocks, room)
            for s in range(n, n + samples):
                for y in range(rows):
                    for x in range(across):
                        to, b = TILE * (y * columns + x) * LANES, (group * blocks + block) * LANES
                        transform_products(
                            products, at, PATCH * pitch, pitch, sheet, to, columns * LANES, LANES, bias, b, check
                        )  # fmt: skip
                        at += vectors * LANES
                base = ((s * sizes[GROUPS] + group) * filters + block * LANES) * height
                for y in range(min(TILE * rows, height - TILE * row)):
                    for x in range(0, width, LANES):
                        transpose_block(
                            sheet, (y * columns + x) * LANES, LANES, width - x, filters - block * LANES, maps,
                            (base + TILE * row + y) * width + x, height * width,
                        )  # fmt: skip
        checks[unit] = total(load(check, 0))


@kernel(allocates=False)
def weight_gradient(
    image: Array, maps: Array, partial: Array, sizes: Array, tiles: Array, terms: Array, zeros: Array, parts: int,
    shares: int, start: int, stop: int, patches: Array, gradients: Array, sheet: Array,
) -> None:  # fmt: skip
    """Partial sums of the weight's gradient at the points, (parts, groups, shares, 36, blocks of channels, filters, 16)
    with pairs of blocks. A job is a part of the units and a share of the channels. terms: where each filter's numbers
    begin. Where a part has more units than a stretch, `partial` has room for the sums of its earlier stretches."""
    groups, room, row_room = sizes[GROUPS], sizes[ROOM], sizes[ROW_ROOM]
    channel_blocks, filter_blocks = (sizes[CHANNELS] + LANES - 1) // LANES, (sizes[FILTERS] + LANES - 1) // LANES
    units = (sizes[SAMPLES] + sizes[BATCH] - 1) // sizes[BATCH] * sizes[BANDS]
    for job in range(start, stop):
        share, group, part = job % shares, job // shares % groups, job // (shares * groups)
        first, last = _share(channel_blocks, share, shares), _share(channel_blocks, share + 1, shares)
        blocks, result = last - first, ((part * groups + group) * channel_blocks + first) * POINTS * row_room * LANES
        first_unit, size = units * part // parts, blocks * POINTS * row_room * LANES
        for unit in range(first_unit, units * (part + 1) // parts):
            if unit > first_unit and (unit - first_unit) % STRETCH == 0:
                _add_and_zero(partial, result, size, parts * groups * channel_blocks * POINTS * row_room * LANES)
            place = unit * groups + group
            _, _, samples, _, rows = _place(sizes, place)
            _transform_images(image, sizes, place, first, last, sheet, patches)
            _transform_maps(maps, sizes, place, 0, filter_blocks, sheet, gradients)
            for point in range(POINTS):
                _multiply(
                    gradients, terms, sizes[FILTERS], point * filter_blocks * room * LANES, tiles,
                    samples * rows * sizes[ACROSS], patches, point * blocks * room * LANES, room * LANES, blocks, zeros,
                    partial, result + point * blocks * row_room * LANES, row_room, True,
                )  # fmt: skip


@kernel()
def finish_weight_gradient(totals: Array, sizes: Array, shares: int, dweight: Array) -> None:
    """G^T S G of the sums over all parts, (groups, shares, 36, blocks of channels, filters, 16), to the weight's
    gradient (groups, filters, channels, 9)."""
    channels, filters, row_room = sizes[CHANNELS], sizes[FILTERS], sizes[ROW_ROOM]
    channel_blocks, taps = (channels + LANES - 1) // LANES, np.empty(9 * LANES, totals.dtype)
    for group in range(sizes[GROUPS]):
        for share in range(shares):
            first, last = _share(channel_blocks, share, shares), _share(channel_blocks, share + 1, shares)
            pitch = (last - first) * row_room * LANES
            base = (group * channel_blocks + first) * POINTS * row_room * LANES
            for block in range(last - first):
                width, at = _width_and_place(block, last - first, row_room)
                c = (first + block) * LANES
                for f in range(filters):
                    here, to = base + at + f * width * LANES, ((group * filters + f) * channels + c) * 9
                    transform_gradient(totals, here, PATCH * pitch, pitch, taps, 0, 3 * LANES, LANES)
                    transpose_block(taps, 0, LANES, 9, channels - c, dweight, to, 9)
