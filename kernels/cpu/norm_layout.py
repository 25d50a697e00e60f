"""The memory layout of norms over channels, and how their loops are cut into pieces.

Both depend on the shape and the memory order of x alone.

Between two passes over x, a norm is NumPy code on float64 arrays with the axes (samples, groups, channels of a group,
pieces), which broadcast. A statistics group of batch norm, whose groups have one channel, extends over samples and
pieces; one of group or instance norm over the channels of a group and pieces. A statistics group is called a row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from cnnlayers import backends

from . import channels_last_norm, norm_loops
from .parallel import chunked, to_lanes

Array = Any
F = TypeVar("F", bound=Callable[..., Any])
PIECE_BYTES = 300_000  # of x in a piece, about
SHORT_SEGMENT = 16  # cells; shorter segments are not worth an inner loop
MIN_PARALLEL_ROWS = 16  # enough to occupy all threads
CACHED_ROW_BYTES = 2**20  # of a row of x that is still in a core's cache at the next pass
BLOCK_BYTES = 400_000  # of a block of channels of x, at most
MIN_LINE_CELLS = 64  # shorter lines are joined, if their number allows it


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
    def row_axes(self) -> tuple[int, int]:
        """The axes (see the module) that a row extends over."""
        return (0, 3) if self.across_samples else (2, 3)

    @property
    def short_segments(self) -> bool:
        """Whether one channel of one sample is too short for an inner loop."""
        return not self.channels_last and self.length < SHORT_SEGMENT

    @property
    def parameters_per_cell(self) -> bool:
        """Whether rows are computed as in layer norm, with gamma and beta repeated for each cell."""
        return self.short_segments and not self.across_samples

    @property
    def uses_channels_last_loops(self) -> bool:
        """Whether channels_last_norm.py serves, and not norm_loops.py: for channels last, and in batch norm also for
        channels first with segments that are too short for an inner loop."""
        return self.channels_last or (self.short_segments and self.across_samples)

    @property
    def segments_per_row(self) -> int:
        """Segments of a row. A segment is one channel of one sample."""
        return self.samples if self.across_samples else self.group_size

    def rows_per_block(self, itemsize: int) -> int:
        """Rows that go through all steps together, from the sums to the result, because they fit a core's cache.

        All rows of a small array. 0 if rows are larger, stored otherwise or too few for all threads."""
        row = self.segments_per_row * self.length * itemsize
        if self.uses_channels_last_loops:
            return 0
        if self.rows * row <= PIECE_BYTES:
            return self.rows
        if self.rows < MIN_PARALLEL_ROWS or row > CACHED_ROW_BYTES:
            return 0
        return max(1, min(BLOCK_BYTES // row, -(-self.rows // MIN_PARALLEL_ROWS)))

    @property
    def block_arguments(self) -> tuple[int, int, int]:
        """How many samples a row extends over, its segments in each, and their cells (`blocks_forward`)."""
        return (self.samples, 1, self.length) if self.across_samples else (1, self.group_size, self.length)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.groups if self.across_samples else self.samples * self.groups

    @property
    def row_shape(self) -> tuple[int, int, int, int]:
        """The shape of an array with one number for each row, with the axes that the module names."""
        return 1 if self.across_samples else self.samples, self.groups, 1, 1

    def per_channel(self, neutral: float) -> Callable[[Array | None], Array]:
        """A function that gives an array of one number for each channel with the axes that the module names. None
        becomes `neutral`."""
        shape = (1, self.groups, self.group_size, 1)
        missing = np.full(shape, neutral)

        def of(array: Array | None) -> Array:
            return missing if array is None else np.ascontiguousarray(array, np.float64).reshape(shape)

        return of

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


def piece_lengths(cells: int, pieces: int) -> Array:
    """The lengths of `pieces` pieces of a number of cells."""
    edges = [cells * i // pieces for i in range(pieces + 1)]
    return np.array([float(stop - start) for start, stop in itertools.pairwise(edges)])


def broadcast_flat(values: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array broadcast to a shape, flat."""
    broadcast = values if values.shape == shape else np.broadcast_to(values, shape)
    return np.ascontiguousarray(broadcast, dtype).reshape(-1)


@dataclass(frozen=True)
class SegmentPieces:
    """Pieces for norm_loops.py: each segment (one channel of one sample, contiguous) is cut into `pieces`.

    statistics_samples: samples that have statistics of their own; 1 if rows extend over all samples."""

    samples: int
    groups: int
    group_size: int
    length: int
    pieces: int
    statistics_samples: int

    loops = norm_loops

    @property
    def number_of_pieces(self) -> int:
        return self.samples * self.groups * self.group_size * self.pieces

    @property
    def loop_arguments(self) -> tuple[int, ...]:
        """The arguments of every loop after its arrays."""
        return self.length, self.pieces

    @property
    def number_of_sums(self) -> int:
        """How many sums the loops over all pieces write."""
        return self.number_of_pieces

    @property
    def cell_counts(self) -> Array:
        """The number of cells in each piece."""
        return piece_lengths(self.length, self.pieces)

    def reshape_sums(self, sums: Array) -> Array:
        """Sums as the loops write them, with the axes that the module names."""
        return sums.reshape(self.samples, self.groups, self.group_size, self.pieces)

    def broadcast_to_loops(self, values: Array, dtype: Any) -> Array:
        """Numbers of channels as the loops read them. Where they end, the loops start again from the first."""
        return broadcast_flat(values, (self.statistics_samples, self.groups, self.group_size, 1), dtype)


@dataclass(frozen=True)
class ChannelsLastPieces:
    """Pieces for channels_last_norm.py: the lines of each sample are cut into `pieces`.

    A line has `fold` times all channels, with `inner` cells for each channel."""

    samples: int
    groups: int
    group_size: int
    lines: int
    fold: int
    inner: int
    pieces: int

    loops = channels_last_norm

    @property
    def width(self) -> int:
        return self.fold * self.groups * self.group_size * self.inner

    @property
    def number_of_pieces(self) -> int:
        return self.samples * self.pieces

    @property
    def loop_arguments(self) -> tuple[int, ...]:
        return self.width, self.lines, self.pieces

    @property
    def number_of_sums(self) -> int:
        return self.number_of_pieces * self.width

    @property
    def cell_counts(self) -> Array:
        return np.repeat(piece_lengths(self.lines, self.pieces), self.fold * self.inner)

    def reshape_sums(self, sums: Array) -> Array:
        sums_by_axis = sums.reshape(self.samples, self.pieces, self.fold, self.groups, self.group_size, self.inner)
        return sums_by_axis.transpose(0, 3, 4, 1, 2, 5).reshape(self.samples, self.groups, self.group_size, -1)

    def broadcast_to_loops(self, values: Array, dtype: Any) -> Array:
        per_line = values.reshape(-1, 1, *values.shape[1:3], 1)
        return broadcast_flat(per_line, (self.samples, self.fold, self.groups, self.group_size, self.inner), dtype)


Partition: TypeAlias = SegmentPieces | ChannelsLastPieces


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


def partition_of(layout: ChannelLayout, itemsize: int) -> Partition:
    """The pieces of an array with this layout. Their number follows from its bytes."""
    channels = layout.groups * layout.group_size
    if not layout.uses_channels_last_loops:
        pieces = max(1, min(layout.length, layout.length * itemsize // PIECE_BYTES))
        return SegmentPieces(
            layout.samples, layout.groups, layout.group_size, layout.length, pieces, layout.row_shape[0]
        )
    if layout.across_samples:  # the samples are joined
        lines, samples = layout.samples * (layout.length if layout.channels_last else 1), 1
    else:
        lines, samples = layout.length, layout.samples
    inner = 1 if layout.channels_last else layout.length
    fold = 1
    while fold * channels * inner < MIN_LINE_CELLS and lines % (2 * fold) == 0:
        fold *= 2
    lines //= fold
    pieces = max(1, min(lines, lines * fold * channels * inner * itemsize // PIECE_BYTES))
    return ChannelsLastPieces(samples, layout.groups, layout.group_size, lines, fold, inner, pieces)


def over_pieces(partition: Partition, nbytes: int) -> Callable[..., None]:
    """A function `(loop, *arrays)` that runs a loop of `partition.loops` over chunks of all pieces. nbytes: read and
    written in all."""
    in_chunks, arguments = chunked(partition.number_of_pieces, nbytes), partition.loop_arguments
    return lambda loop, *arrays: in_chunks(loop, *arrays, *arguments)
