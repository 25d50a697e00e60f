"""Launchers of conv.cu: the steps "im2col" and "col2im" of a convolution, called as the portable code is.

Specs, tiles and taps are taken as they come from functional/tiles.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from . import compile as kernels
from .arrays import BLOCK, aligned, contiguous, grid, offsets
from .window import axes, too_large

Array = Any
WIDEST = 16  # bytes that a thread loads or stores at once
FLOAT, WORD = {4: "float", 8: "double"}, {4: "unsigned", 8: "unsigned long long"}  # by their bytes


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return too_large(spec.window)


def im2col(b: Backend, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    """Fill the columns with what the tile's windows see of a split image under the block's taps."""
    _launch(b, "im2col", spec, contiguous(b, image[tile.samples]), tile, block, columns)


def col2im(b: Backend, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    """Add the columns to what the tile's windows see of a split image under the block's taps."""
    _launch(b, "col2im", spec, image[tile.samples], tile, block, contiguous(b, columns))


def _launch(b: Backend, op: str, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    window, cut = _reached(tile.window)
    plane, size = math.prod(spec.window.layout.lengths), image.dtype.itemsize
    cell = spec.channels if spec.last else 1
    region = b.xp.reshape(image, (-1,))[cut * cell :]
    lanes = _lanes(spec, size, region, columns)
    cells = image.shape[0] * math.prod(a.length for a in window.axes)
    n = columns.size if op == "im2col" else cells * spec.channels
    index, offset = offsets(image.size // lanes, columns.size // lanes)
    steps = (plane * spec.channels // lanes, 1 if spec.last else plane, cell // lanes)
    counts = [offset(count) for count in (n // lanes, image.shape[0], spec.weight_shape[2] // lanes, *steps)]
    taps = [np.int32(block[0][0]), np.int32(len(block))]
    arrays = (region, columns) if op == "im2col" else (columns, region)
    threads = -(-columns.nbytes // WIDEST) if op == "im2col" else n // lanes
    instance = _instance(op, spec, size, lanes, index)
    kernels.launch("conv", instance, grid(b, threads), BLOCK, (*arrays, *counts, *taps, *axes(window)))


def _reached(window: Any) -> tuple[Any, int]:
    """The windows on those rows of the image that they reach, and the cells before these."""
    first, *others = window.axes
    top = max(0, -first.before)
    end = (first.out - 1) * first.stride + first.dilation * (first.kernel - 1) + 1 - first.before
    rows = dataclasses.replace(first, length=min(first.length, end) - top, before=first.before + top)
    return dataclasses.replace(window, axes=(rows, *others)), top * math.prod(a.length for a in others)


def _lanes(spec: Any, size: int, *arrays: Array) -> int:
    """Channels that are moved as one: those of a run, up to 16 bytes, where arrays lie on boundaries of so many."""
    lanes = WIDEST // size if spec.in_runs else 1
    while spec.weight_shape[2] % lanes or not all(aligned(a, lanes * size) for a in arrays):
        lanes //= 2
    return lanes


def _instance(op: str, spec: Any, size: int, lanes: int, index: str) -> str:
    return kernels.name(op, (WORD if op == "im2col" else FLOAT)[size], lanes, spec.in_runs, index)
