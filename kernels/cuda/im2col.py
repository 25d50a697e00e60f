"""Launchers of im2col.cu: the steps "im2col" and "col2im" of a convolution, called as the portable code is.

Specs are those of specs/conv.py, tiles and taps those of functional/conv_tiling.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from .compile import instance_name
from .launch import BLOCK, PACK_BYTES, aligned, contiguous, grid_size, launch, offset_types
from .window import axes, too_large

Array = Any
FLOAT = {4: "float", 8: "double"}  # by their bytes
WORD = {2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return too_large(spec.window)


def im2col(b: Backend, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    """Fill the columns with what the tile's windows see of a split image under the block's taps."""
    _launch(b, "im2col", spec, contiguous(b, image[tile.samples]), tile, block, columns)


def col2im(b: Backend, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    """Add the columns to what the tile's windows see of a split image under the block's taps."""
    _launch(b, "col2im", spec, image[tile.samples], tile, block, contiguous(b, columns))


def _launch(b: Backend, op: str, spec: Any, image: Array, tile: Any, block: list[Any], columns: Array) -> None:
    window, cut = _reached_rows(tile.window)
    plane, size = math.prod(spec.window.layout.lengths), image.dtype.itemsize
    cell = spec.channels if spec.last else 1
    region = b.xp.reshape(image, (-1,))[cut * cell :]
    pack_channels = _pack_channels(spec, size, region, columns)
    cells = image.shape[0] * math.prod(a.length for a in window.axes)
    n = columns.size if op == "im2col" else cells * spec.channels
    index, offset = offset_types(image.size // pack_channels, columns.size // pack_channels)
    steps = (plane * spec.channels // pack_channels, 1 if spec.last else plane, cell // pack_channels)
    counts = [
        offset(count) for count in (n // pack_channels, image.shape[0], spec.weight_shape[2] // pack_channels, *steps)
    ]
    taps = [np.int32(block[0][0]), np.int32(len(block))]
    arrays = (region, columns) if op == "im2col" else (columns, region)
    threads = -(-columns.nbytes // PACK_BYTES) if op == "im2col" else n // pack_channels
    instance = _instance(op, spec, size, pack_channels, index)
    launch("im2col", instance, grid_size(b, threads), BLOCK, (*arrays, *counts, *taps, *axes(window)))


def _reached_rows(window: Any) -> tuple[Any, int]:
    """The windows on the rows of the image that they read, and the number of cells before these rows."""
    first, *others = window.axes
    top = max(0, -first.before)
    end = (first.out - 1) * first.stride + first.dilation * (first.kernel - 1) + 1 - first.before
    rows = dataclasses.replace(first, length=min(first.length, end) - top, before=first.before + top)
    return dataclasses.replace(window, axes=(rows, *others)), top * math.prod(a.length for a in others)


def _pack_channels(spec: Any, size: int, *arrays: Array) -> int:
    """Channels of a pack: contiguous ones, up to 16 bytes, as far as the arrays are aligned; 1 in channels first."""
    pack_channels = PACK_BYTES // size if spec.channels_contiguous else 1
    while spec.weight_shape[2] % pack_channels or not all(aligned(a, pack_channels * size) for a in arrays):
        pack_channels //= 2
    return pack_channels


def _instance(op: str, spec: Any, size: int, pack_channels: int, index: str) -> str:
    return instance_name(op, (WORD if op == "im2col" else FLOAT)[size], pack_channels, spec.channels_contiguous, index)
