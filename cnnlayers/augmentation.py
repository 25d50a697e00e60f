"""Random changes of training pictures, which leave their class as it is. Randomness is drawn on the host.

Every picture of a batch draws its own numbers, all at once and in the batch's order. A process that works on a part of
the batch draws for the whole batch and keeps its part, so a picture changes alike however many processes there are.
Each cell of the result depends on its own picture alone: neither threads nor processes change a bit.
"""

from __future__ import annotations

from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers import functional as F

Array = Any

# How far `distort` goes, at most. Chosen by the digits' own test split and the drawn digits of the tests.
SHARE = 0.8  # of the pictures are moved, and as many get another width of stroke
ROTATION = 15.0  # degrees
SHEAR = 0.3  # cells across for a cell down
STRETCH = 0.2  # of height and of width
SHIFT = 0.7  # cells
THICKNESS = 0.6  # of the way to the largest, or smallest, of the cells around


def crop_and_flip(
    x: Array,
    rng: numpy.random.Generator,
    crop: int,
    flip: bool,
    blank: float,
    whole: int | None = None,
    part: slice = slice(None),
) -> Array:
    """The pictures `x` (N, C, H, W), half of them cropped at random from their padded selves; half mirrored, if `flip`.

    The others stay where they were, as test pictures do. One gather over the batch: output cell (i, j) of picture n is
    padded cell (i + down[n], j' + right[n]), where j' runs backwards in a mirrored picture.
    crop: the cells of the padding, on every side, whose value is `blank`. whole, part: `x` is that part of a batch of
    so many pictures.
    """
    b = backends.of(x)
    n, channels, height, width = x.shape
    drawn = (2, n if whole is None else whole, 1, 1, 1)
    moved, mirrored = rng.integers(0, 2, drawn)[:, part]
    down, right = crop + moved * rng.integers(-crop, crop + 1, drawn)[:, part]
    padded = F.pad(x, crop, value=blank)
    tall, wide = padded.shape[2:]

    def there(numbers: Any) -> Array:
        return b.array(numbers, b.xp.int64)

    i, j = there(numpy.arange(height)[:, None]), there(numpy.arange(width))
    planes = there(numpy.arange(n * channels).reshape(n, channels, 1, 1))
    columns = there(right) + j + there(mirrored * flip) * (width - 1 - 2 * j)
    cells = (planes * tall + there(down) + i) * wide + columns
    return _take(b, padded, cells)


def distort(
    x: Array, rng: numpy.random.Generator, blank: float, whole: int | None = None, part: slice = slice(None)
) -> Array:
    """The light strokes `x` (N, C, H, W) on a ground of value `blank`, as another hand and pen might have drawn them.

    Most are rotated, slanted, stretched and shifted a little, by bilinear interpolation, and get thicker or thinner
    strokes. whole, part: as in `crop_and_flip`.
    """
    b = backends.of(x)
    n, _, height, width = x.shape
    drawn = (n if whole is None else whole, 1, 1, 1)
    moved, thickened = (rng.random((2, *drawn)) < SHARE)[:, part]
    turn, slant, tall, wide, down, right, thickness = rng.uniform(-1, 1, (7, *drawn))[:, part]
    rows, columns = _source(
        height, width, moved * numpy.deg2rad(ROTATION) * turn, moved * SHEAR * slant, 1 + moved * STRETCH * tall,
        1 + moved * STRETCH * wide, moved * SHIFT * down, moved * SHIFT * right,
    )  # fmt: skip
    y = _interpolate(b, x, rows, columns, blank)
    share = b.array(thickened * THICKNESS * thickness, x.dtype)
    lowered: Any = F.max_pool(-y, 3, 1, 1)
    largest, smallest = F.max_pool(y, 3, 1, 1), -lowered
    return y + b.xp.where(share > 0, share * (largest - y), share * (y - smallest))


def _source(
    height: int, width: int, turn: Any, slant: Any, tall: Any, wide: Any, down: Any, right: Any
) -> tuple[Any, Any]:
    """Where in its picture each cell comes from: its row and column, (N, 1, H, W) floats, at most one cell outside."""
    i = numpy.arange(height)[:, None] - (height - 1) / 2
    j = numpy.arange(width) - (width - 1) / 2
    rows = (numpy.cos(turn) * i - numpy.sin(turn) * j) * tall + down + (height - 1) / 2
    columns = (numpy.sin(turn) * i + numpy.cos(turn) * j) * wide + slant * i + right + (width - 1) / 2
    return numpy.clip(rows, -1, height), numpy.clip(columns, -1, width)


def _interpolate(b: Any, x: Array, rows: Any, columns: Any, blank: float) -> Array:
    """`x` at these rows and columns (N, 1, H, W), bilinearly; outside, every cell is `blank`."""
    n, channels, height, width = x.shape
    padded = F.pad(x, 1, value=blank)
    tall, wide = padded.shape[2:]
    up, before = (numpy.minimum(numpy.floor(a), last - 1) for a, last in ((rows, height), (columns, width)))
    planes = numpy.arange(n * channels).reshape(n, channels, 1, 1)
    corner = b.array((planes * tall + up + 1) * wide + before + 1, b.xp.int64)
    lower, later = b.array(rows - up, x.dtype), b.array(columns - before, x.dtype)
    upper_row = _take(b, padded, corner) * (1 - later) + _take(b, padded, corner + 1) * later
    lower_row = _take(b, padded, corner + wide) * (1 - later) + _take(b, padded, corner + wide + 1) * later
    return upper_row * (1 - lower) + lower_row * lower


def _take(b: Any, x: Array, cells: Array) -> Array:
    """The cells of `x` with these flat numbers, in the numbers' shape."""
    return b.xp.reshape(b.xp.take(b.xp.reshape(x, (-1,)), b.xp.reshape(cells, (-1,)), axis=0), cells.shape)
