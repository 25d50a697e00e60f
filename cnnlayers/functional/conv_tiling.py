"""How a convolution is cut up: tiles of windows, and blocks of kernel taps.

A tile is some samples, or some rows of one; tile by tile and block by block the image's cells are gathered into columns
of a bounded size. The cuts follow from shapes alone, never from the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from cnnlayers.backends import Backend, planned
from cnnlayers.specs import Conv, Window, window_taps
from cnnlayers.specs.arguments import Shape

from . import blas

WORKSPACE = 4 << 20  # bytes of columns on the CPU, where each thread's should stay in its core's cache
DEVICE_WORKSPACE = 128 << 20  # elsewhere few large launches matter more
TILE_FLOPS = 100_000_000  # of a tile on the CPU, about: less is too little for what Python does for each
# Windows of one matrix product on the CPU, at least: with fewer, packing the weight takes most of BLAS's time.
MIN_PRODUCT_WINDOWS = 128
# From this many windows on, a sample with channels first has a matrix product of its own on the CPU.
MIN_WINDOWS_PER_SAMPLE_PRODUCT = 256
MIN_TILES = 4  # tiles on the CPU, at least: some threads can then be busy to the end

ALL = slice(None)
# The tap's place in C order, the windows that have an input cell under it, and those cells.
Tap: TypeAlias = tuple[int, tuple[slice, ...], tuple[slice, ...]]


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
    per_sample = host and not spec.last and windows >= MIN_WINDOWS_PER_SAMPLE_PRODUCT
    if host:
        least = MIN_TILES if spec.flops > blas.MIN_PARALLEL_FLOPS else 1
        together = max(math.ceil(samples * TILE_FLOPS / max(spec.flops, 1)), -(-MIN_PRODUCT_WINDOWS // windows))
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
    block_taps = math.ceil(len(found) / math.ceil(len(found) / most)) if found else 1  # blocks of about one size
    blocks: list[list[Tap]] = []
    for tap in found:
        if not blocks or len(blocks[-1]) == block_taps or tap[0] != blocks[-1][-1][0] + 1:
            blocks.append([])
        blocks[-1].append(tap)
    return blocks
