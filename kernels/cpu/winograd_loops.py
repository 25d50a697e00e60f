"""Winograd's transforms of 3×3 convolution, F(4×4, 3×3), with the points 0, ±√½, ±√2 and infinity.

y = A^T (G w G^T · B^T d B) A for each tile of 4×4 windows, which sees a patch d of 6×6 cells; · is a product element by
element, and over channels a matrix product. The weight's gradient is the same algorithm with the maps' 4×4 tiles as its
kernel: G^T (A dy A^T · B^T d B) G. Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015.

The usual points 0, ±1, ±2 need no factors with a root, but their largest error is four times larger, because their
powers differ more.

Arrays are flat float32; images and maps are (samples, channels, height, width). A *strip* is a row of tiles; strips are
counted over all samples. A transformed array is (36, channels, tiles). All inner loops run over the tiles of many
strips, because one strip is too short for an efficient loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any
f4, U = np.float32, np.uint64  # unsigned offsets need no test for negative ones, so the compiler can vectorise

SMALL_POINT, LARGE_POINT = f4(0.5**0.5), f4(2**0.5)  # the absolute values of the points
TILE, PATCH = 4, 6  # windows of a tile, and cells of its patch, along an axis
OVERLAP = PATCH - TILE  # columns of a patch that are also the next one's first
# Workspace for each tile: results between the two axes' transforms (6 rows of 4 cells, or 4 of 6), the last columns of
# a strip, and the columns of one row of patches.
BETWEEN_FLOATS = PATCH * TILE
WORK_FLOATS = BETWEEN_FLOATS + OVERLAP * PATCH + PATCH
# Entries of `sizes`. STRIPS: in a sample. TILES: in a strip.
CHANNELS, HEIGHT, WIDTH, TOP, LEFT, STRIPS, TILES = range(7)


# ------------------------------------------------------------------------------------------- the transforms of one axis
@kernel(relaxed=True)
def _input_transform(s: Array, at: int, step: int, d: Array, to: int, pitch: int, n: int) -> None:
    """B^T for n neighbours: 6 numbers `step` apart become 6 numbers `pitch` apart."""
    at, step, to, pitch = U(at), U(step), U(to), U(pitch)
    for i in range(n):
        p, q = at + U(i), to + U(i)
        x0, x1, x2 = s[p], s[p + step], s[p + U(2) * step]
        x3, x4, x5 = s[p + U(3) * step], s[p + U(4) * step], s[p + U(5) * step]
        even, odd = x4 - f4(2) * x2, SMALL_POINT * (x3 - f4(2) * x1)
        large_even, large_odd = x4 - f4(0.5) * x2, LARGE_POINT * (x3 - f4(0.5) * x1)
        d[q] = x0 - f4(2.5) * x2 + x4
        d[q + pitch] = even + odd
        d[q + U(2) * pitch] = even - odd
        d[q + U(3) * pitch] = large_even + large_odd
        d[q + U(4) * pitch] = large_even - large_odd
        d[q + U(5) * pitch] = x1 - f4(2.5) * x3 + x5


@kernel(relaxed=True)
def _output_transform(s: Array, at: int, step: int, d: Array, to: int, pitch: int, n: int) -> None:
    """A^T for n neighbours: 6 numbers `step` apart become 4 numbers `pitch` apart."""
    at, step, to, pitch = U(at), U(step), U(to), U(pitch)
    for i in range(n):
        p, q = at + U(i), to + U(i)
        x0, x1, x2 = s[p], s[p + step], s[p + U(2) * step]
        x3, x4, x5 = s[p + U(3) * step], s[p + U(4) * step], s[p + U(5) * step]
        even, odd, large_even, large_odd = x1 + x2, SMALL_POINT * (x1 - x2), x3 + x4, LARGE_POINT * (x3 - x4)
        d[q] = x0 + even + large_even
        d[q + pitch] = odd + large_odd
        d[q + U(2) * pitch] = f4(0.5) * even + f4(2) * large_even
        d[q + U(3) * pitch] = f4(0.5) * odd + f4(2) * large_odd + x5


@kernel(relaxed=True)
def _gradient_transform(s: Array, at: int, step: int, d: Array, to: int, pitch: int, n: int) -> None:
    """A for n neighbours: 4 numbers `step` apart become 6 numbers `pitch` apart."""
    at, step, to, pitch = U(at), U(step), U(to), U(pitch)
    for i in range(n):
        p, q = at + U(i), to + U(i)
        x0, x1, x2, x3 = s[p], s[p + step], s[p + U(2) * step], s[p + U(3) * step]
        even, odd = x0 + f4(0.5) * x2, SMALL_POINT * (x1 + f4(0.5) * x3)
        large_even, large_odd = x0 + f4(2) * x2, LARGE_POINT * (x1 + f4(2) * x3)
        d[q] = x0
        d[q + pitch] = even + odd
        d[q + U(2) * pitch] = even - odd
        d[q + U(3) * pitch] = large_even + large_odd
        d[q + U(4) * pitch] = large_even - large_odd
        d[q + U(5) * pitch] = x3


# ---------------------------------------------------------------------------------------------------------------- runs
@kernel()
def _copy(d: Array, to: int, s: Array, at: int, n: int) -> None:
    """Copy n numbers."""
    to, at = U(to), U(at)
    for i in range(n):
        d[to + U(i)] = s[at + U(i)]


@kernel()
def _zero(d: Array, to: int, n: int) -> None:
    """Set n numbers to 0."""
    to = U(to)
    for i in range(n):
        d[to + U(i)] = f4(0)


@kernel()
def _split_phases(s: Array, at: int, d: Array, to: int, pitch: int, n: int) -> None:
    """Cell 4 t + k becomes cell t of phase k. Phases are `pitch` apart."""
    at, to, pitch = U(at), U(to), U(pitch)
    for i in range(n):
        p, q = at + U(4) * U(i), to + U(i)
        a, b, c, e = s[p], s[p + U(1)], s[p + U(2)], s[p + U(3)]
        d[q], d[q + pitch], d[q + U(2) * pitch], d[q + U(3) * pitch] = a, b, c, e


@kernel(relaxed=True)
def _join_phases(s: Array, at: int, pitch: int, d: Array, bias: float, n: int) -> Any:
    """The inverse of `_split_phases`, plus a bias. Returns 0, or NaN if a number is not finite."""
    at, pitch, check = U(at), U(pitch), f4(0)
    for i in range(n):
        p, q = at + U(i), U(4) * U(i)
        a, b, c, e = s[p], s[p + pitch], s[p + U(2) * pitch], s[p + U(3) * pitch]
        check += f4(0) * a + f4(0) * b + f4(0) * c + f4(0) * e
        d[q], d[q + U(1)], d[q + U(2)], d[q + U(3)] = a + bias, b + bias, c + bias, e + bias
    return check


# ----------------------------------------------------------------------------------------------------- whole transforms
@kernel()
def _input_rows(image: Array, plane: int, strip: int, sizes: Array, rows: Array) -> None:
    """Copy the six padded rows under a strip of one channel; `rows` already has zeros on both sides of them."""
    height, width, left = sizes[HEIGHT], sizes[WIDTH], sizes[LEFT]
    pitch = TILE * sizes[TILES] + OVERLAP
    first = max(0, left)
    n = max(0, min(width + left, pitch) - first)
    for k in range(PATCH):
        y = TILE * (strip % sizes[STRIPS]) - sizes[TOP] + k
        if 0 <= y < height:
            _copy(rows, k * pitch + first, image, (plane + y) * width + first - left, n)
        else:
            _zero(rows, k * pitch + first, n)


@kernel()
def transform_inputs(
    image: Array, to: Array, sizes: Array, strip: int, strips: int, start: int, stop: int, work: Array, rows: Array
) -> None:
    """B^T d B of the patches of some strips, channels `start` to `stop`, to (36, channels, tiles).

    `rows`: workspace for the padded rows of a strip, 6 rows of 4 cells a tile and 2 more."""
    channels, tiles = sizes[CHANNELS], sizes[TILES]
    n, wide = strips * tiles, TILE * tiles
    # Workspace: rows transformed vertically (6, strips, 4 a tile); the last two columns of the last tile of each strip
    # (2, 6, strips); the six columns of the tiles of one such row (6, n).
    last_columns, pitch = BETWEEN_FLOATS * n, wide + OVERLAP
    phases = last_columns + OVERLAP * PATCH * strips
    _zero(rows, 0, PATCH * pitch)
    for c in range(start, stop):
        for r in range(strips):
            plane = ((strip + r) // sizes[STRIPS] * channels + c) * sizes[HEIGHT]
            _input_rows(image, plane, strip + r, sizes, rows)
            _input_transform(rows, 0, pitch, work, r * wide, TILE * n, wide)
            _input_transform(rows, wide, pitch, work, last_columns + r, strips, 1)
            _input_transform(rows, wide + 1, pitch, work, last_columns + PATCH * strips + r, strips, 1)
        for a in range(PATCH):
            _split_phases(work, TILE * n * a, work, phases, n, n)
            # A tile's fifth and sixth column are the next one's first two.
            _copy(work, phases + 4 * n, work, phases + 1, n - 1)
            _copy(work, phases + 5 * n, work, phases + n + 1, n - 1)
            for r in range(strips):
                work[phases + 4 * n + r * tiles + tiles - 1] = work[last_columns + a * strips + r]
                work[phases + 5 * n + r * tiles + tiles - 1] = work[last_columns + (PATCH + a) * strips + r]
            _input_transform(work, phases, n, to, (PATCH * a * channels + c) * n, channels * n, n)


@kernel()
def transform_outputs(
    products: Array, maps: Array, bias: Array, sizes: Array, strip: int, strips: int, work: Array, rows: Array
) -> Any:
    """A^T m A of (36, channels, tiles), plus the bias, to the maps. Returns 0, or NaN if a number is not finite.

    `rows`: workspace for a row of each strip, 4 cells a tile."""
    channels, height, width, tiles = sizes[CHANNELS], sizes[HEIGHT], sizes[WIDTH], sizes[TILES]
    n, check = strips * tiles, f4(0)
    phases = BETWEEN_FLOATS * n
    for c in range(channels):
        for b in range(PATCH):
            _output_transform(products, (b * channels + c) * n, PATCH * channels * n, work, b * n, PATCH * n, n)
        for a in range(TILE):
            _output_transform(work, PATCH * a * n, n, work, phases, n, n)
            check += _join_phases(work, phases, n, rows, bias[c], n)
            for r in range(strips):
                y = TILE * ((strip + r) % sizes[STRIPS]) + a
                if y < height:
                    plane = ((strip + r) // sizes[STRIPS] * channels + c) * height
                    _copy(maps, (plane + y) * width, rows, r * TILE * tiles, width)
    return check


@kernel()
def transform_gradients(
    maps: Array, to: Array, sizes: Array, strip: int, strips: int, start: int, stop: int, work: Array, rows: Array
) -> None:
    """A dy A^T of the tiles of some strips, channels `start` to `stop`, to (36, channels, tiles)."""
    channels, height, width, tiles = sizes[CHANNELS], sizes[HEIGHT], sizes[WIDTH], sizes[TILES]
    n, wide = strips * tiles, TILE * tiles
    phases = BETWEEN_FLOATS * n
    _zero(rows, 0, strips * wide)
    for c in range(start, stop):
        for a in range(TILE):
            for r in range(strips):
                y = TILE * ((strip + r) % sizes[STRIPS]) + a
                if y < height:
                    plane = ((strip + r) // sizes[STRIPS] * channels + c) * height
                    _copy(rows, r * wide, maps, (plane + y) * width, width)
                else:
                    _zero(rows, r * wide, width)
            _split_phases(rows, 0, work, phases, n, n)
            _gradient_transform(work, phases, n, work, PATCH * a * n, n, n)
        for b in range(PATCH):
            _gradient_transform(work, b * n, PATCH * n, to, (b * channels + c) * n, PATCH * channels * n, n)
