"""How the rows of a norm over channels lie in memory, and how its loops are cut: by shape and memory order alone.

Between two passes over an array its norm is plain array code on the numbers of channels: float64 arrays with the axes
(samples, groups, channels of a group, parts), which broadcast. A row of batch norm, whose groups are of one channel,
runs over samples and parts; a row of group or instance norm over the channels of a group and parts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from . import norm_columns, norm_loops
from .norm_arrays import converted

Array = Any
PIECE = 300_000  # bytes of x in a piece, about
SHORT = 16  # cells of a segment that are too few for a loop of their own
ENOUGH = 16  # rows that keep all threads busy
CACHED = 2**20  # bytes of a row of x that stay in a core's cache from one pass to the next
BLOCK = 400_000  # bytes of a block of channels of x, at most
WIDE = 64  # cells of a line of columns that are enough for one


@dataclass(frozen=True)
class Channels:
    """An array as samples of groups of channels, each of `length` cells.

    `order`: the array's axes as they lie in memory; `last`: the channels come last there; `joined`: rows run over the
    samples too.
    """

    order: tuple[int, ...]
    samples: int
    groups: int
    group: int
    length: int
    last: bool
    joined: bool

    @property
    def row_axes(self) -> tuple[int, int]:
        return (0, 3) if self.joined else (2, 3)

    @property
    def short(self) -> bool:
        """Whether a channel of a sample is too short for a loop of its own."""
        return not self.last and self.length < SHORT

    @property
    def in_cells(self) -> bool:
        """Whether rows are worked on as those of layer norm are, each cell having a parameter of its own."""
        return self.short and not self.joined

    @property
    def in_columns(self) -> bool:
        return self.last or (self.short and self.joined)

    @property
    def segments(self) -> int:
        """How many channels of a sample a row has."""
        return self.samples if self.joined else self.group

    @property
    def step(self) -> int:
        """How far apart they are: batch norm's are all of one channel."""
        return self.groups if self.joined else 1

    def at_once(self, itemsize: int) -> bool:
        """Whether rows are worked on each in one go, from the sums to the end: those of a small array, and those that
        lie on end, are enough for all threads and stay in a core's cache."""
        row = self.segments * self.length * itemsize
        enough = not self.joined and self.rows >= ENOUGH and row <= CACHED
        return not self.in_columns and (enough or self.rows * row <= PIECE)

    def block(self, itemsize: int) -> int:
        """Channels that batch norm works on together, from the sums to the end: as many as stay in a core's cache. 0
        where they lie otherwise, or there are too few for all threads."""
        if not self.joined or self.in_columns or self.groups < ENOUGH:
            return 0
        return min(BLOCK // (self.segments * self.length * itemsize), -(-self.groups // ENOUGH))

    @property
    def rows(self) -> int:
        return self.groups if self.joined else self.samples * self.groups

    @property
    def row_shape(self) -> tuple[int, int, int, int]:
        """The shape of a number of each row, by the axes that the module's docstring names."""
        return 1 if self.joined else self.samples, self.groups, 1, 1

    def numbers(self, array: Array | None, neutral: float) -> Array:
        """A parameter, or another array of a number each channel, by the axes that the module's docstring names."""
        if array is None:
            return np.full((1, self.groups, self.group, 1), neutral)
        return np.ascontiguousarray(array, np.float64).reshape(1, self.groups, self.group, 1)

    @property
    def straight(self) -> bool:
        """Whether the axes lie in their order."""
        return self.order == tuple(range(len(self.order)))

    def laid(self, array: Array, dtype: Any) -> Array:
        """An array of x's shape in memory order, flat and in a dtype."""
        return converted(array if self.straight else array.transpose(self.order), dtype)

    def restored(self, flat: Array, x: Array) -> Array:
        """What is computed, in memory order, by x's axes and in x's dtype."""
        flat = converted(flat, x.dtype)
        if self.straight:
            return flat.reshape(x.shape)
        return flat.reshape([x.shape[a] for a in self.order]).transpose(np.argsort(self.order))


def lengths(whole: int, pieces: int) -> Array:
    """Of the pieces that a whole is cut into."""
    edges = [whole * i // pieces for i in range(pieces + 1)]
    return np.array([float(stop - start) for start, stop in itertools.pairwise(edges)])


def repeated(numbers: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Numbers broadcast to a shape, flat."""
    whole = numbers if numbers.shape == shape else np.broadcast_to(numbers, shape)
    return np.ascontiguousarray(whole, dtype).reshape(-1)


@dataclass(frozen=True)
class Segments:
    """The cells of a channel of a sample lie on end; each such segment is cut into pieces. `own`: the samples that have
    numbers of their own, all or, where rows run over them, 1."""

    samples: int
    groups: int
    group: int
    length: int
    pieces: int
    own: int

    loops = norm_loops

    @property
    def units(self) -> int:
        return self.samples * self.groups * self.group * self.pieces

    @property
    def geometry(self) -> tuple[int, ...]:
        """What every loop is told, after its arrays."""
        return self.length, self.pieces

    @property
    def sums(self) -> int:
        """How many sums the loops over all pieces make."""
        return self.units

    @property
    def counts(self) -> Array:
        """The cells of each part."""
        return lengths(self.length, self.pieces)

    def parts(self, sums: Array) -> Array:
        """Sums as the loops leave them, by the axes that the module's docstring names."""
        return sums.reshape(self.samples, self.groups, self.group, self.pieces)

    def spread(self, numbers: Array, dtype: Any) -> Array:
        """Numbers of channels as the loops want them: they begin anew after their end."""
        return repeated(numbers, (self.own, self.groups, self.group, 1), dtype)


@dataclass(frozen=True)
class Columns:
    """Places of a sample, each a line of `fold` times all channels, `inner` cells a channel; cut into runs of lines."""

    samples: int
    groups: int
    group: int
    depth: int
    fold: int
    inner: int
    pieces: int

    loops = norm_columns

    @property
    def width(self) -> int:
        return self.fold * self.groups * self.group * self.inner

    @property
    def units(self) -> int:
        return self.samples * self.pieces

    @property
    def geometry(self) -> tuple[int, ...]:
        return self.width, self.depth, self.pieces

    @property
    def sums(self) -> int:
        return self.units * self.width

    @property
    def counts(self) -> Array:
        return np.repeat(lengths(self.depth, self.pieces), self.fold * self.inner)

    def parts(self, sums: Array) -> Array:
        a = sums.reshape(self.samples, self.pieces, self.fold, self.groups, self.group, self.inner)
        return a.transpose(0, 3, 4, 1, 2, 5).reshape(self.samples, self.groups, self.group, -1)

    def spread(self, numbers: Array, dtype: Any) -> Array:
        lines = numbers.reshape(-1, 1, *numbers.shape[1:3], 1)
        return repeated(lines, (self.samples, self.fold, self.groups, self.group, self.inner), dtype)


Cut: TypeAlias = Segments | Columns


def memory_order(x: Array, channel: int) -> tuple[int, ...]:
    """The order of x's axes in memory, if only the channels were moved: to the end, or from there. Else as they are."""
    straight = tuple(range(x.ndim))
    rest = tuple(a for a in straight if a != channel)
    moved = (*rest, channel) if channel == 1 else (rest[0], channel, *rest[1:])
    aside = not x.flags.c_contiguous and x.transpose(moved).flags.c_contiguous
    return moved if aside else straight


def channels_of(rows: Any, x: Array) -> Channels:
    """How the rows of functional/rows.py, x being of their shape and not empty, lie in memory."""
    channel, channels = rows.own[0], math.prod(rows.parameter)
    order = memory_order(x, channel)
    length = x.size // x.shape[0] // channels
    groups = rows.view[channel]
    last = order[-1] == channel and 1 not in (length, channels)
    return Channels(order, x.shape[0], groups, channels // groups, length, last, 0 in rows.axes)


def cut_of(lie: Channels, itemsize: int) -> Cut:
    """The pieces, as many as the bytes of an array of such elements say."""
    channels = lie.groups * lie.group
    if not lie.in_columns:
        pieces = max(1, min(lie.length, lie.length * itemsize // PIECE))
        return Segments(lie.samples, lie.groups, lie.group, lie.length, pieces, lie.row_shape[0])
    if lie.joined:  # all samples are one
        depth, samples = lie.samples * (lie.length if lie.last else 1), 1
    else:
        depth, samples = lie.length, lie.samples
    inner = 1 if lie.last else lie.length
    fold = 1
    while fold * channels * inner < WIDE and depth % (2 * fold) == 0:
        fold *= 2
    depth //= fold
    pieces = max(1, min(depth, depth * fold * channels * inner * itemsize // PIECE))
    return Columns(samples, lie.groups, lie.group, depth, fold, inner, pieces)
