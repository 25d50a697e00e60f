"""Products of two matrices, of a size for which it takes BLAS as long to begin as to compute: y = x @ w + plus.

w is copied in panels of as many columns as a tile of products has (vector_tiles.py), for up to TERMS terms at a time. A
unit of work is a panel and a block of rows. Each sum has one FMA a term, in order, in the dtype of the matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .jit import kernel
from .parallel import chunked, flat
from .vector_ends import read
from .vector_tiles import PANEL, ROWS, rows_by_columns, transpose
from .vectors import LANES, broadcast, store

Array = Any
TERMS = 256  # of a panel: 48 KB of float32
BLOCKS, MANY_PANELS = 2, 4  # blocks of rows, where there are fewer panels
PRODUCTS_PER_BYTE = 8  # multiplications that take as long as a byte of memory
MOST_PRODUCTS = 1 << 26  # multiplications; of more, Python and BLAS take as long


def refuses(step: str, spec: None, x: Array, w: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if x.ndim != 2 or w.ndim != 2 or x.dtype.kind != "f" or x.itemsize < 4:
        return "not two matrices of float32 or float64"
    (rows, terms), columns = x.shape, w.shape[1]
    if not 0 < rows * terms * columns <= MOST_PRODUCTS:
        return "a product that is empty, or faster in BLAS"
    if -rows % ROWS > rows / 2 or -columns % PANEL > columns / 2:
        return "a product of which tiles would compute much that is not there"
    return None


@kernel(allocates=False)
def fill_panel(
    w: Array, transposed: bool, pitch: int, first: int, count: int, column: int, most: int, panel: Array
) -> None:
    """Copy terms first to first + count of `most` columns from `column` on. The panel's other columns are 0."""
    for j in range(0, PANEL, LANES):
        if transposed and most - j >= LANES:
            for k in range(0, count, LANES):
                at = (column + j) * pitch + first + k
                transpose(w, at, pitch, LANES, count - k, panel, PANEL * k + j, PANEL)
        elif transposed:
            for k in range(count):
                store(panel, PANEL * k + j, broadcast(panel, 0.0))
                for i in range(max(0, most - j)):
                    panel[PANEL * k + j + i] = w[(column + j + i) * pitch + first + k]
        else:
            for k in range(count):
                store(panel, PANEL * k + j, read(w, (first + k) * pitch + column + j, most - j))


@kernel(allocates=False)
def products(
    x: Array, w: Array, plus: Array, y: Array, rows: int, columns: int, begin: int, end: int, row: int, term: int,
    terms: int, transposed: bool, block: int, blocks: int, start: int, stop: int, panel: Array,
) -> None:  # fmt: skip
    """Units start to stop: panel unit // blocks of w, block unit % blocks of rows. Sums are of terms begin to end, of
    `terms` in all. x has its rows `row` apart, and their terms `term`."""
    for unit in range(start, stop):
        column, top = unit // blocks * PANEL, unit % blocks * block
        bottom, most = min(top + block, rows), min(PANEL, columns - column)
        for first in range(begin, end, TERMS):
            count = min(TERMS, end - first)
            fill_panel(w, transposed, terms if transposed else columns, first, count, column, most, panel)
            for r in range(top, bottom, ROWS):
                rows_by_columns(
                    x, r * row + first * term, row, term, bottom - r, panel, count, plus, column,
                    y, r * columns + column, columns, most, first > begin,
                )  # fmt: skip


@functools.lru_cache(maxsize=256)  # a limit on their number is enough: results have a fixed size
def _units(rows: int, terms: int, columns: int) -> tuple[Callable[..., None], int, int]:
    """What runs `products`, and the rows of a block and the number of blocks."""
    panels = -(-columns // PANEL)
    block = -(-rows // (ROWS * (BLOCKS if panels < MANY_PANELS else 1))) * ROWS
    blocks = -(-rows // block)
    return chunked(panels * blocks, rows * terms * columns // PRODUCTS_PER_BYTE), block, blocks


def matmul(b: Any, spec: None, x: Array, w: Array, plus: Array | None, y: Array, run: slice) -> None:
    """y = x @ w + plus, of a run of the terms alone. plus: a row or None."""
    (rows, terms), columns = x.shape, w.shape[1]
    in_chunks, block, blocks = _units(rows, run.stop - run.start, columns)
    added = np.zeros(-(-columns // PANEL) * PANEL, y.dtype)
    if plus is not None:
        added[:columns] = plus
    by_rows, transposed = x.flags.c_contiguous, not w.flags.c_contiguous
    arrays = flat(x if by_rows else x.T), flat(w.T if transposed else w), added, y.ravel()
    pitches = (terms, 1, terms) if by_rows else (1, rows, terms)
    sizes = rows, columns, run.start, run.stop, *pitches, transposed, block, blocks
    in_chunks(products, *arrays, *sizes, workspace=(TERMS * PANEL,))
