"""The memory layout of norms over channels, and how their loops are cut into pieces.

Both depend on the shape and the memory order of x alone.

A statistics group is called a row. In batch norm, whose groups have one channel, it extends over all samples; in group
and instance norm over the channels of a group. A *segment* is one channel of one sample. A *piece* is what one step of
a loop over x sums: a part of a segment, or with channels last some lines of a sample, for all of its channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cnnlayers import backends

from . import channels_last_norm, norm_loops
from .parallel import chunked, to_lanes

Array = Any
F = TypeVar("F", bound=Callable[..., Any])
PIECE_BYTES = 300_000  # of x in a piece, about
MAX_REPEATS = 63  # of a parameter
SHORT_SEGMENT = 16  # cells; shorter segments are not worth an inner loop
MIN_PARALLEL_ROWS = 16  # enough to occupy all threads
CACHED_ROW_BYTES = 2**20  # of a row of x that is still in a core's cache at the next pass
BLOCK_BYTES = 400_000  # of a block of channels of x, at most
MIN_LINE_CELLS = 64  # shorter lines are joined, if their number allows it
MIN_LINES = 8  # so many are left
MAX_LINE_CELLS = 4096  # of all channels of a sample, whose factors are read for each cell


@dataclass(frozen=True)
class ChannelLayout:
    """An array as samples of groups of channels, each of `length` cells.

    axis_order: the array's axes in memory order. group_size: channels of a group. channels_last: the channels are last
    in memory. across_samples: rows extend over all samples (batch norm)."""

    axis_order: tuple[int, ...]
    samples: int
    groups: int
    group_size: int
    length: int
    channels_last: bool
    across_samples: bool

    @property
    def short_segments(self) -> bool:
        """Whether one channel of one sample is too short for an inner loop."""
        return not self.channels_last and self.length < SHORT_SEGMENT

    @property
    def parameters_per_cell(self) -> bool:
        """Whether rows are computed as in layer norm, with gamma and beta repeated for each cell: groups of channels
        of up to MAX_REPEATS cells then take 0.6 to 0.9 of the time."""
        repeated = self.short_segments or (self.group_size > 1 and self.length <= MAX_REPEATS)
        return repeated and not self.channels_last and not self.across_samples

    def rows_per_block(self, itemsize: int) -> int:
        """Rows that go through all steps together, from the sums to the result, because they fit a core's cache.

        All rows of a small array. 0 if rows are larger, stored otherwise or too few for all threads."""
        row = math.prod(self.block_arguments) * itemsize
        if self.channels_last or (self.short_segments and self.across_samples):
            return 0
        if self.rows * row <= PIECE_BYTES:
            return self.rows
        if self.rows < MIN_PARALLEL_ROWS or row > CACHED_ROW_BYTES:
            return 0
        return max(1, min(BLOCK_BYTES // row, -(-self.rows // MIN_PARALLEL_ROWS)))

    @property
    def block_arguments(self) -> tuple[int, int, int]:
        """How many samples a row extends over, its segments in each, and their cells (norm_blocks.py)."""
        return (self.samples, 1, self.length) if self.across_samples else (1, self.group_size, self.length)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.groups if self.across_samples else self.samples * self.groups

    @property
    def in_memory_order(self) -> bool:
        """Whether the order of the axes is their order in memory."""
        return self.axis_order == tuple(range(len(self.axis_order)))

    def new_result(self, shape: tuple[int, ...], dtype: Any) -> Callable[[], tuple[Array, Array]]:
        """A function that makes an array of x's shape: as the kernels take it, and with x's axes."""
        new, inverse = backends.new_result(tuple(shape[a] for a in self.axis_order), dtype), np.argsort(self.axis_order)
        transposed = not self.in_memory_order

        def make() -> tuple[Array, Array]:
            array = new()
            return to_lanes(array), array.transpose(inverse) if transposed else array

        return make

    def to_memory_order(self) -> Callable[[Array], Array]:
        """A function that gives an array of x's shape flat in memory order, as kernels take it."""
        order = self.axis_order
        return to_lanes if self.in_memory_order else lambda array: to_lanes(array.transpose(order))


@dataclass(frozen=True)
class Pieces:
    """How the loops of a module go over x, and the axes of their sums and factors (norm_factors.py).

    loops: norm_loops or channels_last_norm. counts: the cells of a sum, with the axes (pieces, inner). arguments: of
    every loop after its arrays. repeats: how often a factor is repeated for the cells of a channel."""

    loops: Any
    number: int
    arguments: tuple[int, ...]
    samples: int
    counts: Array
    fold: int
    groups: int
    group_size: int
    inner: int
    repeats: int

    @property
    def channels(self) -> int:
        return self.groups * self.group_size

    @property
    def number_of_sums(self) -> int:
        number: int = self.samples * self.counts.size * self.fold * self.channels
        return number

    @property
    def sum_axes(self) -> tuple[int, ...]:
        return self.fold, self.groups, self.group_size, self.inner

    @property
    def factor_axes(self) -> tuple[int, ...]:
        return self.fold, self.groups, self.group_size, self.repeats

    def new_factors(self, number: int, dtype: Any) -> Array:
        return np.empty((number, self.samples * self.fold * self.channels * self.repeats), dtype)

    def over(self, nbytes: int) -> Callable[..., None]:
        """A function `(loop, *arrays)` that runs a loop over chunks of all pieces. nbytes: read and written in all."""
        in_chunks, arguments = chunked(self.number, nbytes), self.arguments
        return lambda loop, *arrays: in_chunks(loop, *arrays, *arguments)


def memory_order(x: Array, channel: int) -> tuple[int, ...]:
    """The axes of x in memory order, if only the channel axis was moved to the end or from there; else as they are."""
    as_declared = tuple(range(x.ndim))
    rest = tuple(a for a in as_declared if a != channel)
    moved = (*rest, channel) if channel == 1 else (rest[0], channel, *rest[1:])
    moved_is_contiguous = not x.flags.c_contiguous and x.transpose(moved).flags.c_contiguous
    return moved if moved_is_contiguous else as_declared


def channel_layout(rows: Any, order: tuple[int, ...]) -> ChannelLayout:
    """The layout of an x that is not empty, has the shape of `rows` (specs/norm.py) and its axes in this memory
    order."""
    channel, channels, samples = rows.parameter_axes[0], math.prod(rows.parameter), rows.shape[0]
    length = math.prod(rows.shape) // samples // channels
    groups = rows.view[channel]
    channels_last = order[-1] == channel and 1 not in (length, channels)
    return ChannelLayout(order, samples, groups, channels // groups, length, channels_last, 0 in rows.axes)


def for_each_layout(rows: Any, prepare: Callable[[ChannelLayout], F]) -> Callable[[Array], F]:
    """A function of x: what `prepare` gives for its layout, made once for each order of its axes in memory."""
    channel, as_declared = rows.parameter_axes[0], tuple(range(len(rows.shape)))
    found: dict[tuple[int, ...], F] = {}

    def of(x: Array) -> F:
        order = as_declared if x.flags.c_contiguous else memory_order(x, channel)
        if order not in found:
            found[order] = prepare(channel_layout(rows, order))
        return found[order]

    return of


def pieces_of(layout: ChannelLayout, itemsize: int) -> Pieces:
    """The pieces of an array with this layout. Their number follows from its bytes.

    channels_last_norm.py serves channels last, and in batch norm also channels first with short segments: a line has
    the cells of all channels of a sample, and each cell has factors of its own."""
    length, channels, axes = layout.length, layout.groups * layout.group_size, (layout.groups, layout.group_size)
    joined = layout.across_samples and (layout.short_segments or channels * length <= MAX_LINE_CELLS)
    if not (layout.channels_last or joined):
        pieces = max(1, min(length, length * itemsize // PIECE_BYTES))
        samples, counts = (1 if layout.across_samples else layout.samples), _lengths(length, pieces)
        if layout.across_samples:
            counts = np.tile(counts, layout.samples)
        number = layout.samples * channels * pieces
        return Pieces(norm_loops, number, (length, pieces), samples, counts, 1, *axes, pieces, 1)
    samples, lines = layout.samples, length
    if layout.across_samples:  # the samples are joined
        samples, lines = 1, layout.samples * (length if layout.channels_last else 1)
    inner = 1 if layout.channels_last else length
    fold = 1
    while fold * channels * inner < MIN_LINE_CELLS and lines % (2 * fold) == 0 and lines >= 2 * fold * MIN_LINES:
        fold *= 2
    lines, width = lines // fold, fold * channels * inner
    pieces = max(1, min(lines, lines * width * itemsize // PIECE_BYTES))
    counts = np.repeat(_lengths(lines, pieces), inner)
    number, arguments = samples * pieces, (width, lines, pieces)
    return Pieces(channels_last_norm, number, arguments, samples, counts, fold, *axes, inner, inner)


def _lengths(cells: int, pieces: int) -> Array:
    """The lengths of `pieces` pieces of a number of cells."""
    return np.diff(np.arange(pieces + 1) * cells // pieces).astype(np.float64)
