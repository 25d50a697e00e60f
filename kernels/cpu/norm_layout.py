"""Arguments of the CPU norms, the memory layout of x, and how their loops are cut into pieces.

Layout and pieces depend on the shape and the memory order of x alone.

A statistics group is called a row. In batch norm, whose groups have one channel, it extends over all samples; in group
and instance norm over the channels of a group. A *segment* is one channel of one sample. A *piece* is what one step of
a loop over x sums: a part of a segment, or with channels last some lines of a sample, for all of its channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cnnlayers import backends

from . import channels_last_norm, norm_loops
from .parallel import flat, to_lanes

Array = Any
F = TypeVar("F", bound=Callable[..., Any])
PIECE_BYTES = 300_000  # of x in a piece, about
MAX_REPEATS = 63  # of a parameter
SHORT_SEGMENT = 16  # cells; shorter segments are not worth an inner loop
MAX_SHORT_SEGMENTS = 8  # of a row: then sums of lines of columns take up to three times as long
MIN_PARALLEL_ROWS = 16  # enough to occupy all threads
CACHED_ROW_BYTES = 2**20  # of a row of x that is still in a core's cache at the next pass
BLOCK_BYTES = 400_000  # of a block of channels of x, at most
MIN_LINE_CELLS = 64  # shorter lines are joined two by two, if at least MIN_LINES are left
MIN_LINES = 8
MAX_LINE_CELLS = 4096  # of all channels of a sample, whose factors are read for each cell


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel of the norms serves this call, or None."""
    if spec.comm is not None:
        return "the sums go over several ranks"
    return None if all(a is None or a.dtype.isnative for a in arrays) else "an array of foreign byte order"


def accumulator(dtype: Any) -> Any:
    """The dtype that arrays of a dtype, or of a half type's bits, are computed in."""
    return np.float64 if dtype == np.float64 else np.float32


def parameter(neutral: float, shape: tuple[int, ...], own: Any, dtype: Any) -> Callable[[Array | None], Array]:
    """A function that converts a parameter to `dtype`, flat in C order. own: its own dtype, or None if there is no
    parameter: then the function gives an array of `neutral` (1 for gamma, 0 for beta)."""
    if own is None:
        missing = np.full(math.prod(shape), neutral, dtype)
        return lambda array: missing
    return flat if own == dtype else lambda array: flat(np.asarray(array, dtype))


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
        row = math.prod(self.row_axes) * itemsize
        many_segments = self.across_samples and self.samples > min(MAX_SHORT_SEGMENTS, 4 * self.length)
        if self.channels_last or (self.short_segments and many_segments):
            return 0
        if self.rows * row <= PIECE_BYTES:
            return self.rows
        if self.rows < MIN_PARALLEL_ROWS or row > CACHED_ROW_BYTES:
            return 0
        return max(1, min(BLOCK_BYTES // row, -(-self.rows // MIN_PARALLEL_ROWS)))

    @property
    def row_axes(self) -> tuple[int, int, int]:
        """A row's segments in a sample, the samples that it extends over, and a segment's cells (norm_loops.py)."""
        return (1, self.samples, self.length) if self.across_samples else (self.group_size, 1, self.length)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.groups if self.across_samples else self.samples * self.groups

    def arrays(self, shape: tuple[int, ...], dtype: Any) -> tuple[Callable[[], Array], Callable[[Array], Array]]:
        """A function that makes an array of x's shape and memory order, and one that gives such an array flat in memory
        order, as kernels take it."""
        order, new = self.axis_order, backends.new_result(tuple(shape[a] for a in self.axis_order), dtype)
        if order == tuple(range(len(order))):
            return new, to_lanes
        inverse = np.argsort(order)
        return lambda: new().transpose(inverse), lambda array: to_lanes(array.transpose(order))


class Pieces(NamedTuple):
    """How the loops of norm_loops or channels_last_norm go over x, and the axes of their sums (norm_blocks.py): those
    of one row in `axes`. moments, gradient_sums and results(backward): the loops, with their `arguments` after the
    arrays; `moments` takes them without the first `skipped`. counts: the cells of a sum, with the axes (lines,
    inner)."""

    loops: Any
    number: int
    arguments: tuple[int, ...]
    skipped: int
    number_of_sums: int
    counts: Array
    axes: tuple[int, ...]


def memory_order(x: Array, channel: int) -> tuple[int, ...]:
    """The axes of x in memory order, if only the channel axis was moved to the end or from there; else as they are."""
    as_declared = tuple(range(x.ndim))
    rest = tuple(a for a in as_declared if a != channel)
    moved = (*rest, channel) if channel == 1 else (*rest[:1], channel, *rest[1:])
    moved_is_contiguous = not x.flags.c_contiguous and x.transpose(moved).flags.c_contiguous
    return moved if moved_is_contiguous else as_declared


def channel_layout(rows: Any, order: tuple[int, ...]) -> ChannelLayout:
    """The layout of an x that is not empty, has the shape of `rows` (specs/norm.py) and its axes in this memory
    order. In layer and RMS norm each cell of a row is a channel."""
    channel, channels = rows.parameter_axes[0], math.prod(rows.parameter)
    samples, size = rows.shape[0], math.prod(rows.shape)
    if rows.axes == rows.parameter_axes:
        return ChannelLayout(order, size // channels, 1, channels, 1, False, False)
    length, groups = size // samples // channels, rows.view[channel]
    channels_last = order[-1] == channel and 1 not in (length, channels)
    return ChannelLayout(order, samples, groups, channels // groups, length, channels_last, 0 in rows.axes)


def for_each_layout(rows: Any, prepare: Callable[[ChannelLayout], F]) -> Callable[[Array], F]:
    """A function of x: what `prepare` gives for its layout, made once for each order of its axes in memory."""
    channel, as_declared = rows.parameter_axes[0], tuple(range(len(rows.shape)))
    found: dict[tuple[int, ...], F] = {}

    def of(x: Array) -> F:
        whole = x.flags.c_contiguous or rows.axes == rows.parameter_axes
        order = as_declared if whole else memory_order(x, channel)
        if order not in found:
            found[order] = prepare(channel_layout(rows, order))
        return found[order]

    return of


def pieces_of(layout: ChannelLayout, itemsize: int) -> Pieces:
    """The pieces of an array with this layout. Their number follows from its bytes.

    channels_last_norm.py serves channels last, and in batch norm also channels first with short segments: a line has
    the cells of all channels of a sample, and each cell has factors of its own."""
    length, channels, axes = layout.length, layout.groups * layout.group_size, (layout.groups, layout.group_size)
    sample_lines = layout.across_samples and (layout.short_segments or channels * length <= MAX_LINE_CELLS)
    if not (layout.channels_last or sample_lines):
        group_size, parts = layout.row_axes[0], max(1, min(length, length * itemsize // PIECE_BYTES))
        number, lines = layout.samples * channels * parts, layout.samples if layout.across_samples else 1
        counts, arguments = np.tile(_lengths(length, parts), lines), (group_size, 1, length, parts)
        return Pieces(norm_loops, number, arguments, 1, number, counts, (lines, *axes, parts))
    samples, lines = layout.samples, length
    if layout.across_samples:  # the lines of all samples are those of one
        samples, lines = 1, layout.samples * (length if layout.channels_last else 1)
    inner = 1 if layout.channels_last else length
    fold = 1
    while fold * channels * inner < MIN_LINE_CELLS and lines % (2 * fold) == 0 and lines >= 2 * fold * MIN_LINES:
        fold *= 2
    lines, width = lines // fold, fold * channels * inner
    pieces = max(1, min(lines, lines * width * itemsize // PIECE_BYTES))
    number, arguments = samples * pieces, (lines, pieces, fold, *axes, inner)
    counts = np.repeat(_lengths(lines, pieces), fold * inner)
    return Pieces(channels_last_norm, number, arguments, 0, number * width, counts, (pieces * fold, *axes, inner))


def _lengths(cells: int, pieces: int) -> Array:
    """The lengths of `pieces` pieces of a number of cells."""
    return np.diff(np.arange(pieces + 1) * cells // pieces).astype(np.float64)
