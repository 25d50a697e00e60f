"""How a convolution is cut up: tiles of windows, and blocks of kernel taps.

A tile is some samples, or some rows of one; tile by tile and block by block the image's cells are gathered into columns
of a bounded size. The cuts follow from shapes alone, never from the number of threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from cnnlayers.backends import Backend, planned
from cnnlayers.specs import Window, window_taps
from cnnlayers.specs.arguments import Shape

from . import blas

WORKSPACE = 4 << 20  # bytes of columns on the CPU, where each thread's should stay in its core's cache
DEVICE_WORKSPACE = 128 << 20  # elsewhere few large launches matter more
TILE_FLOPS = 100_000_000  # of a tile on the CPU, about: less is too little for what Python does for each
ENOUGH = 128  # windows that a product is of on the CPU, at least: with fewer BLAS is busy with packing the weight
APART = 256  # windows of a sample, channels first, that on the CPU are a product of their own
SHARES = 4  # tiles on the CPU, at least: some threads can then be busy to the end
LEAST_WINOGRAD = 16  # channels and filters of a group: with fewer the transforms cost more than they save
DIRECT_WEIGHT = 20_000  # numbers in a group's weight, at most, for the direct form
DIRECT_TERMS = 2048  # of a sum, at most: it is in the array's dtype
LEAST_RUN = 16  # channels: shorter runs are not worth copying as runs

ALL = slice(None)
Tap: TypeAlias = tuple[
    int, tuple[slice, ...], tuple[slice, ...]
]  # flat tap, windows that see cells under it, those cells


@dataclass(frozen=True)
class Conv:
    """A convolution from an image to its maps. `window`: on the image; `filters`: the maps' channels.

    A *split* array of either has its channel axis split into (groups, channels of a group).
    """

    window: Window
    filters: int
    groups: int

    @property
    def ndim(self) -> int:
        return len(self.window.axes)

    @property
    def channels(self) -> int:
        """The image's."""
        return self.window.layout.channels

    @functools.cached_property
    def last(self) -> bool:
        """Whether channels are the last axis."""
        return self.window.layout.channel > 1

    @functools.cached_property
    def maps_shape(self) -> Shape:
        return self.window.layout.with_spatial(self.window.out_lengths, self.filters)

    @functools.cached_property
    def weight_shape(self) -> Shape:
        """The weight by group: (groups, filters of a group, channels of a group, taps)."""
        taps = math.prod(self.window.kernel)
        return (self.groups, self.filters // self.groups, self.channels // self.groups, taps)

    @functools.cached_property
    def channels_contiguous(self) -> bool:
        """Whether columns have channels that lie in runs as runs: rows are (tap, channel), stored cell by cell. Else
        they are (channel, tap), so that a weight need not be turned."""
        return self.last and self.weight_shape[2] >= LEAST_RUN

    @functools.cached_property
    def empty(self) -> bool:
        """Nothing to multiply: no samples, or no channels on one side."""
        return 0 in self.window.layout.shape or self.filters == 0

    @functools.cached_property
    def depthwise(self) -> bool:
        """One channel a group, and few filters: too little for matrix products."""
        _, filters, channels, _ = self.weight_shape
        return self.groups > 1 and channels == 1 and filters <= 4

    @functools.cached_property
    def pointwise(self) -> bool:
        """A 1×1 kernel that reads every cell once: the columns are the image."""
        return all(a.kernel == a.stride == 1 and a.before == 0 and a.out == a.length for a in self.window.axes)

    @functools.cached_property
    def winograd(self) -> bool:
        """A 3×3 kernel with stride 1 on enough channels for Winograd's form, which needs float32 and a kernel."""
        fits = self.ndim == 2 and all(a.kernel == 3 and a.stride == a.dilation == 1 for a in self.window.axes)
        return fits and not self.last and min(self.weight_shape[1:3]) >= LEAST_WINOGRAD

    @functools.cached_property
    def direct(self) -> bool:
        """A weight that is small enough for the direct form, whose sums are then short enough for float32."""
        _, filters, channels, taps = self.weight_shape
        terms = max(channels, filters) * taps
        return terms <= DIRECT_TERMS and filters * channels * taps <= DIRECT_WEIGHT

    @functools.cached_property
    def flops(self) -> float:
        """Of any of the three functions: multiplications and additions."""
        windows = self.window.layout.shape[0] * math.prod(self.window.out_lengths)
        return 2.0 * windows * self.filters * self.weight_shape[2] * math.prod(self.window.kernel)

    def split(self, shape: Shape) -> Shape:
        """The shape of a split array."""
        at = self.window.layout.channel
        return (*shape[:at], self.groups, shape[at] // self.groups, *shape[at + 1 :])

    def at(self, samples: slice, spatial: Sequence[slice]) -> tuple[slice, ...]:
        """These samples and cells of a split array."""
        return (samples, *spatial, ALL, ALL) if self.last else (samples, ALL, ALL, *spatial)


@functools.lru_cache(maxsize=256)  # by number: results have a fixed size
def interned(spec: Conv) -> Conv:
    """The first one equal to this: what it has worked out of itself serves later calls."""
    return spec


@dataclass(frozen=True)
class Tile:
    """Some windows: those of some samples, in some rows (cells of the first spatial axis) of the maps. `per_sample`:
    each sample has a matrix of columns of its own, and its maps are a matrix as they are stored."""

    samples: slice
    rows: slice
    window: Window  # of these rows alone
    per_sample: bool = False

    @property
    def shape(self) -> Shape:
        """Samples and windows."""
        return (self.samples.stop - self.samples.start, *self.window.out_lengths)

    @property
    def maps(self) -> tuple[slice, ...]:
        """Where its windows are in the maps."""
        return (self.rows, *(ALL for _ in self.window.axes[1:]))


def workspace(b: Backend) -> int:
    """Bytes that the columns of one tile may take."""
    return WORKSPACE if b.name == "numpy" else DEVICE_WORKSPACE


def tiles_of(b: Backend, spec: Conv, itemsize: int) -> tuple[tuple[Tile, ...], ...]:
    """For each run of samples its tiles, in order; the columns of one tap fill a quarter of the workspace, and on the
    CPU those of several samples no more than all of it."""
    return _tiles(spec, workspace(b) // itemsize, b.name == "numpy")


@planned
def _tiles(spec: Conv, cells: int, host: bool) -> tuple[tuple[Tile, ...], ...]:
    room = max(1, cells // (4 * max(spec.channels, spec.filters)))  # windows
    windows, samples = math.prod(spec.window.out_lengths), spec.window.layout.shape[0]
    rows = [
        (cut, _rows_of(spec.window, cut)) for cut in blas.split_evenly(spec.window.axes[0].out, -(-windows // room))
    ]
    per_sample = host and not spec.last and windows >= APART
    if host:
        least = SHARES if spec.flops > blas.SHARED_FLOPS else 1
        together = max(math.ceil(samples * TILE_FLOPS / max(spec.flops, 1)), -(-ENOUGH // windows))
        together = min(together, -(-samples // least))
        room = min(room, cells // (spec.channels * math.prod(spec.window.kernel)), windows * together)
    runs = blas.split_evenly(samples, -(-samples // max(1, room // windows)))
    return tuple(tuple(Tile(run, cut, window, per_sample) for cut, window in rows) for run in runs)


def _rows_of(window: Window, rows: slice) -> Window:
    """Some rows of windows, as a window of its own on the same image."""
    first = window.axes[0]
    axis = replace(first, out=rows.stop - rows.start, before=first.before - rows.start * first.stride)
    return Window(window.layout, (axis, *window.axes[1:]))


@planned
def taps_of(window: Window) -> tuple[Tap, ...]:
    """Every kernel tap that meets the image, in C order."""
    return tuple(window_taps(window.axes))


def blocks_of(b: Backend, spec: Conv, tile: Tile, itemsize: int) -> Sequence[Sequence[Tap]]:
    """The tile's taps in blocks of neighbours whose columns fit the workspace, one tap at least."""
    return _blocks(tile.window, max(1, workspace(b) // (spec.channels * math.prod(tile.shape) * itemsize)))


@planned
def _blocks(window: Window, most: int) -> Sequence[Sequence[Tap]]:
    found = taps_of(window)
    step = math.ceil(len(found) / math.ceil(len(found) / most)) if found else 1  # blocks of about one size
    blocks: list[list[Tap]] = []
    for tap in found:
        if not blocks or len(blocks[-1]) == step or tap[0] != blocks[-1][-1][0] + 1:
            blocks.append([])
        blocks[-1].append(tap)
    return blocks
