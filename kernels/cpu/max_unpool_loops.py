"""Max unpooling's loops, over planes (a channel of a sample) from `start` to `stop`.

Arrays are flat: (samples, cells, channels). Numbers are only moved, so arrays of any dtype come as unsigned integers of
its size. `cells` are those of a plane of y (in backward of dy), `entries` those of x."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any
U = np.uintp


@kernel()
def forward(
    x: Array, indices: Array, y: Array, reached: Array, entries: int, cells: int, channels: int, start: int, stop: int
) -> None:
    """y, and for each entry the cell that shows it, or −1: where an index comes twice, the last entry is shown."""
    owner = np.empty(cells, np.int64)
    for plane in range(start, stop):
        sample, channel = plane // channels, plane % channels
        first, step = U(sample * entries * channels + channel), U(channels)
        to = U(sample * cells * channels + channel)
        for cell in range(U(cells)):
            y[to + cell * step] = 0
            owner[cell] = -1
        for i in range(U(entries)):
            cell = U(indices[first + i * step])
            y[to + cell * step] = x[first + i * step]
            owner[cell] = np.int64(i)
        for i in range(U(entries)):
            cell = U(indices[first + i * step])
            reached[first + i * step] = cell if owner[cell] == np.int64(i) else -1


@kernel()
def backward(
    dy: Array, reached: Array, dx: Array, entries: int, cells: int, channels: int, start: int, stop: int
) -> None:
    """dx: dy at the cell that shows the entry, else 0."""
    for plane in range(start, stop):
        sample, channel = plane // channels, plane % channels
        first, step = U(sample * entries * channels + channel), U(channels)
        at = U(sample * cells * channels + channel)
        for i in range(U(entries)):
            cell = reached[first + i * step]
            if cell >= 0:
                dx[first + i * step] = dy[at + U(cell) * step]
            else:
                dx[first + i * step] = 0
