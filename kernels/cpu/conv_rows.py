"""Rows of cells, which the loops of direct convolution copy, and the names of what is in their tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .vector_tiles import transpose
from .vectors import LANES, load, load_first, store, store_first

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones

# Entries of `sizes`. PHASES: of the target. SAMPLE_PITCH, CHANNEL_PITCH: elements of the sheets from one to the next.
# SOURCE_…, TARGET_…: elements from a sample, channel, cell of a row (STEP) or band to the next. TOGETHER: 2 if phases
# of the target come in pairs of even and odd cells, which are stored together, else 1.
SAMPLES, GROUPS, CHANNELS, FILTERS, BATCH, BANDS, PHASES, SAMPLE_PITCH, CHANNEL_PITCH = range(9)
SOURCE_SAMPLE, SOURCE_CHANNEL, SOURCE_STEP = range(9, 12)
TARGET_SAMPLE, TARGET_CHANNEL, TARGET_STEP, TARGET_BAND, TOGETHER = range(12, 17)
# Columns of `phases`. FIRST: the first place. NUMBER: places of a sample. TERM: the first term. COUNT: terms.
FIRST, NUMBER, TERM, COUNT = range(4)


@kernel(allocates=False)
def zero(array: Array, to: int, count: int) -> None:
    for i in range(U(to), U(to + count)):
        array[i] = 0.0


@kernel(allocates=False)
def copy(source: Array, at: int, target: Array, to: int, count: int) -> None:
    """Copy neighbours."""
    done = count & ~(LANES - 1)
    for i in range(0, done, LANES):
        store(target, to + i, load(source, at + i))
    if done < count:
        store_first(target, to + done, load_first(source, at + done, count - done), count - done)


@kernel(allocates=False)
def gather(source: Array, at: int, step: int, target: Array, to: int, count: int) -> None:
    """Copy cells, `step` apart, to neighbours."""
    for i in range(U(count)):
        target[U(to) + i] = source[U(at) + i * U(step)]


@kernel(allocates=False)
def transpose_block(
    source: Array, at: int, pitch: int, rows: int, columns: int, target: Array, to: int, between: int
) -> None:
    """`transpose`, which takes a third of the time where it is a constant that all lanes are there. A function, so that
    both are compiled once for all who call it."""
    if rows >= LANES and columns >= LANES:
        transpose(source, at, pitch, LANES, LANES, target, to, between)
    else:
        transpose(source, at, pitch, rows, columns, target, to, between)
