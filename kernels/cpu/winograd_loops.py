"""Winograd's transforms of 3×3 convolution, F(4×4, 3×3), with the points 0, ±√½, ±√2 and infinity.

y = A^T (G w G^T · B^T d B) A for each tile of 4×4 windows, which sees a patch d of 6×6 cells; · is a product element by
element, over channels a matrix product. The weight's gradient is the same algorithm with the maps' 4×4 tiles as its
kernel: G^T (A dy A^T · B^T d B) G. Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015.

The usual points 0, ±1, ±2 need no factors with a root, and have four times the largest error: their powers differ more.

Arrays are flat float32, images and maps (samples, channels, height, width). A *strip* is a row of tiles; they are
counted through all samples. A transformed array is (36, channels, tiles). All inner loops run over the tiles of many
strips, because one strip is too short a run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any
f4, u8 = np.float32, np.uint64  # unsigned offsets: the compiler then needs no test for negative ones, and vectorises

NEAR, FAR = f4(0.5**0.5), f4(2**0.5)  # the points, but for their signs
TILE, PATCH = 4, 6  # windows of a tile, and cells of its patch, on an axis
WORK = 42  # floats of work a tile: what lies between the two directions
# Entries of `sizes`. STRIPS: of a sample; TILES: of a strip.
CHANNELS, HEIGHT, WIDTH, TOP, LEFT, STRIPS, TILES = range(7)


# ------------------------------------------------------------------------------------------- the transforms of one axis
@kernel(relaxed=True)
def _patch(s: Array, at: int, step: int, d: Array, to: int, pitch: int, n: int) -> None:
    """B^T for n neighbours: 6 numbers `step` apart become 6 numbers `pitch` apart."""
    at, step, to, pitch = u8(at), u8(step), u8(to), u8(pitch)
    for i in range(n):
        p, q = at + u8(i), to + u8(i)
        x0, x1, x2 = s[p], s[p + step], s[p + u8(2) * step]
        x3, x4, x5 = s[p + u8(3) * step], s[p + u8(4) * step], s[p + u8(5) * step]
        even, odd = x4 - f4(2) * x2, NEAR * (x3 - f4(2) * x1)
        far_even, far_odd = x4 - f4(0.5) * x2, FAR * (x3 - f4(0.5) * x1)
        d[q] = x0 - f4(2.5) * x2 + x4
        d[q + pitch] = even + odd
        d[q + u8(2) * pitch] = even - odd
        d[q + u8(3) * pitch] = far_even + far_odd
        d[q + u8(4) * pitch] = far_even - far_odd
        d[q + u8(5) * pitch] = x1 - f4(2.5) * x3 + x5


@kernel(relaxed=True)
def _tile(s: Array, at: int, step: int, d: Array, to: int, pitch: int, n: int) -> None:
    """A^T for n neighbours: 6 numbers `step` apart become 4 numbers `pitch` apart."""
    at, step, to, pitch = u8(at), u8(step), u8(to), u8(pitch)
    for i in range(n):
        p, q = at + u8(i), to + u8(i)
        x0, x1, x2 = s[p], s[p + step], s[p + u8(2) * step]
        x3, x4, x5 = s[p + u8(3) * step], s[p + u8(4) * step], s[p + u8(5) * step]
        even, odd, far_even, far_odd = x1 + x2, NEAR * (x1 - x2), x3 + x4, FAR * (x3 - x4)
        d[q] = x0 + even + far_even
        d[q + pitch] = odd + far_odd
        d[q + u8(2) * pitch] = f4(0.5) * even + f4(2) * far_even
        d[q + u8(3) * pitch] = f4(0.5) * odd + f4(2) * far_odd + x5


@kernel(relaxed=True)
def _spread(s: Array, at: int, step: int, d: Array, to: int, pitch: int, n: int) -> None:
    """A for n neighbours: 4 numbers `step` apart become 6 numbers `pitch` apart."""
    at, step, to, pitch = u8(at), u8(step), u8(to), u8(pitch)
    for i in range(n):
        p, q = at + u8(i), to + u8(i)
        x0, x1, x2, x3 = s[p], s[p + step], s[p + u8(2) * step], s[p + u8(3) * step]
        even, odd = x0 + f4(0.5) * x2, NEAR * (x1 + f4(0.5) * x3)
        far_even, far_odd = x0 + f4(2) * x2, FAR * (x1 + f4(2) * x3)
        d[q] = x0
        d[q + pitch] = even + odd
        d[q + u8(2) * pitch] = even - odd
        d[q + u8(3) * pitch] = far_even + far_odd
        d[q + u8(4) * pitch] = far_even - far_odd
        d[q + u8(5) * pitch] = x3


# ---------------------------------------------------------------------------------------------------------------- runs
@kernel()
def _copy(d: Array, to: int, s: Array, at: int, n: int) -> None:
    to, at = u8(to), u8(at)
    for i in range(n):
        d[to + u8(i)] = s[at + u8(i)]


@kernel()
def _zero(d: Array, to: int, n: int) -> None:
    to = u8(to)
    for i in range(n):
        d[to + u8(i)] = f4(0)


@kernel()
def _split(s: Array, at: int, d: Array, to: int, pitch: int, n: int) -> None:
    """Cell 4 t + k becomes cell t of phase k, phases `pitch` apart."""
    at, to, pitch = u8(at), u8(to), u8(pitch)
    for i in range(n):
        p, q = at + u8(4) * u8(i), to + u8(i)
        a, b, c, e = s[p], s[p + u8(1)], s[p + u8(2)], s[p + u8(3)]
        d[q], d[q + pitch], d[q + u8(2) * pitch], d[q + u8(3) * pitch] = a, b, c, e


@kernel(relaxed=True)
def _join(s: Array, at: int, pitch: int, d: Array, bias: float, n: int) -> Any:
    """`_split` undone, plus a bias. Gives 0, or NaN if a number is not finite."""
    at, pitch, odd = u8(at), u8(pitch), f4(0)
    for i in range(n):
        p, q = at + u8(i), u8(4) * u8(i)
        a, b, c, e = s[p], s[p + pitch], s[p + u8(2) * pitch], s[p + u8(3) * pitch]
        odd += f4(0) * a + f4(0) * b + f4(0) * c + f4(0) * e
        d[q], d[q + u8(1)], d[q + u8(2)], d[q + u8(3)] = a + bias, b + bias, c + bias, e + bias
    return odd


# ----------------------------------------------------------------------------------------------------- whole transforms
@kernel()
def _patch_rows(image: Array, plane: int, strip: int, sizes: Array, rows: Array) -> None:
    """The six padded rows that a strip sees of one channel; `rows` has zeros to both sides of them already."""
    height, width, left = sizes[HEIGHT], sizes[WIDTH], sizes[LEFT]
    pitch = TILE * sizes[TILES] + 2
    first = max(0, left)
    n = max(0, min(width + left, pitch) - first)
    for k in range(PATCH):
        y = TILE * (strip % sizes[STRIPS]) - sizes[TOP] + k
        if 0 <= y < height:
            _copy(rows, k * pitch + first, image, (plane + y) * width + first - left, n)
        else:
            _zero(rows, k * pitch + first, n)


@kernel()
def patches(
    image: Array, to: Array, sizes: Array, strip: int, strips: int, start: int, stop: int, work: Array, rows: Array
) -> None:
    """B^T d B of the patches of some strips, channels from `start` to `stop`, into (36, channels, tiles).

    `rows`: room for the padded rows of a strip, 6 of 4 cells a tile and 2 more.
    """
    channels, tiles = sizes[CHANNELS], sizes[TILES]
    n, wide = strips * tiles, TILE * tiles
    # Work: rows transformed vertically (6, strips, 4 a tile); the two columns that the last tile of a strip sees beyond
    # its own four (2, 6, strips); the six columns of the tiles of one such row (6, n).
    beyond = 24 * n
    phases = beyond + 12 * strips
    _zero(rows, 0, PATCH * (wide + 2))
    for c in range(start, stop):
        for r in range(strips):
            plane = ((strip + r) // sizes[STRIPS] * channels + c) * sizes[HEIGHT]
            _patch_rows(image, plane, strip + r, sizes, rows)
            _patch(rows, 0, wide + 2, work, r * wide, 4 * n, wide)
            _patch(rows, wide, wide + 2, work, beyond + r, strips, 1)
            _patch(rows, wide + 1, wide + 2, work, beyond + 6 * strips + r, strips, 1)
        for a in range(PATCH):
            _split(work, 4 * n * a, work, phases, n, n)
            # A tile's fifth and sixth column are the next one's first two.
            _copy(work, phases + 4 * n, work, phases + 1, n - 1)
            _copy(work, phases + 5 * n, work, phases + n + 1, n - 1)
            for r in range(strips):
                work[phases + 4 * n + r * tiles + tiles - 1] = work[beyond + a * strips + r]
                work[phases + 5 * n + r * tiles + tiles - 1] = work[beyond + (6 + a) * strips + r]
            _patch(work, phases, n, to, (6 * a * channels + c) * n, channels * n, n)


@kernel()
def outputs(
    products: Array, maps: Array, bias: Array, sizes: Array, strip: int, strips: int, work: Array, line: Array
) -> Any:
    """A^T m A of (36, channels, tiles), plus the bias, into the maps. Gives NaN if a number is not finite, else 0.

    `line`: room for a row of each strip, 4 cells a tile.
    """
    channels, height, width, tiles = sizes[CHANNELS], sizes[HEIGHT], sizes[WIDTH], sizes[TILES]
    n, odd = strips * tiles, f4(0)
    phases = 24 * n
    for c in range(channels):
        for b in range(PATCH):
            _tile(products, (b * channels + c) * n, 6 * channels * n, work, b * n, 6 * n, n)
        for a in range(TILE):
            _tile(work, 6 * a * n, n, work, phases, n, n)
            odd += _join(work, phases, n, line, bias[c], n)
            for r in range(strips):
                y = TILE * ((strip + r) % sizes[STRIPS]) + a
                if y < height:
                    plane = ((strip + r) // sizes[STRIPS] * channels + c) * height
                    _copy(maps, (plane + y) * width, line, r * TILE * tiles, width)
    return odd


@kernel()
def gradients(
    maps: Array, to: Array, sizes: Array, strip: int, strips: int, start: int, stop: int, work: Array, line: Array
) -> None:
    """A dy A^T of the tiles of some strips, channels from `start` to `stop`, into (36, channels, tiles)."""
    channels, height, width, tiles = sizes[CHANNELS], sizes[HEIGHT], sizes[WIDTH], sizes[TILES]
    n, wide = strips * tiles, TILE * tiles
    phases = 24 * n
    _zero(line, 0, strips * wide)
    for c in range(start, stop):
        for a in range(TILE):
            for r in range(strips):
                y = TILE * ((strip + r) % sizes[STRIPS]) + a
                if y < height:
                    plane = ((strip + r) // sizes[STRIPS] * channels + c) * height
                    _copy(line, r * wide, maps, (plane + y) * width, width)
                else:
                    _zero(line, r * wide, width)
            _split(line, 0, work, phases, n, n)
            _spread(work, phases, n, work, 6 * a * n, n, n)
        for b in range(PATCH):
            _spread(work, b * n, 6 * n, to, (b * channels + c) * n, 6 * channels * n, n)
