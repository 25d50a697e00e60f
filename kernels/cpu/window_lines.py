"""Rows of an array as *lines*, in which the cells under one tap of neighbouring windows are neighbours.

A line has a part for each cell of a stride, `pitch` elements apart: cell i of a padded row is the i // stride-th of
part i % stride. A cell has one or more channels. What the row does not fill stays as the caller has set it (padding).
So a window's tap t is at `offsets[t]` plus the window's place, for all windows of a row, and edges need no code."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cnnlayers.specs import Axis

from .jit import kernel
from .vectors import LANES, evens, load_strided, odds, store, store_first
from .vectors import load_every_bit as load  # max pooling copies cells
from .vectors import load_first_every_bit as load_first

Array = Any
U = np.uintp


@dataclasses.dataclass(frozen=True, eq=False)
class LineLayout:
    """A line for the windows of an axis. padding: the place of a row's first cell. size: elements, with some to spare,
    because vectors are loaded and stored past the last window. offsets: of the taps."""

    parts: int
    pitch: int
    padding: int
    size: int
    offsets: Array


def line_layout(axis: Axis, channels: int) -> LineLayout:
    """The layout for windows of one size, a stride apart."""
    reach = (axis.kernel - 1) * axis.dilation
    cells = max(axis.out + reach // axis.stride, -(-(axis.length + axis.before) // axis.stride))
    pitch = -(-cells * channels // LANES) * LANES + LANES
    taps = np.arange(axis.kernel) * axis.dilation
    offsets = taps % axis.stride * pitch + taps // axis.stride * channels
    return LineLayout(axis.stride, pitch, axis.before, (axis.stride + 1) * pitch, offsets)


def fits_line(axis: Axis) -> bool:
    """Whether a line is not much longer than a row: taps may reach far outside of it, or windows may be few."""
    cells = axis.out * axis.stride + (axis.kernel - 1) * axis.dilation
    return axis.kernel <= 4 * -(axis.length // -axis.dilation) and cells <= 4 * (axis.length + axis.out) + 256


def make_split(parts: int, single: bool) -> Any:
    """The kernel that copies a row of x to a line, for one or two parts (0: any) and one channel or any number."""
    return {(1, True): _copy, (1, False): _copy, (2, True): _evens_and_odds, (0, True): _strided}.get(
        (parts, single), _cell_by_cell
    )


@kernel(inlined=True)
def _copy(
    x: Array, at: int, cells: int, channels: int, line: Array, to: int, parts: int, pitch: int, padding: int
) -> None:
    first, number = U(to + padding * channels), U(cells * channels)
    whole = number - number % U(LANES)
    for i in range(U(0), whole, U(LANES)):
        store(line, first + i, load(x, U(at) + i))
    if whole < number:
        store_first(line, first + whole, load_first(x, U(at) + whole, number - whole), number - whole)


@kernel(inlined=True)
def _evens_and_odds(
    x: Array, at: int, cells: int, channels: int, line: Array, to: int, parts: int, pitch: int, padding: int
) -> None:
    even = U(to + (padding & 1) * pitch + (padding >> 1))
    odd = U(to + ((padding + 1) & 1) * pitch + ((padding + 1) >> 1))
    whole = U(cells) - U(cells) % U(2 * LANES)
    for i in range(U(0), whole, U(2 * LANES)):
        left, right = load(x, U(at) + i), load(x, U(at) + i + U(LANES))
        store(line, even + i // U(2), evens(left, right))
        store(line, odd + i // U(2), odds(left, right))
    rest = U(cells) - whole
    if rest > 0:
        left, right = (
            load_first(x, U(at) + whole, rest),
            load_first(x, U(at) + whole + U(LANES), max(rest, U(LANES)) - U(LANES)),
        )
        store_first(line, even + whole // U(2), evens(left, right), (rest + U(1)) // U(2))
        store_first(line, odd + whole // U(2), odds(left, right), rest // U(2))


@kernel(inlined=True)
def _strided(
    x: Array, at: int, cells: int, channels: int, line: Array, to: int, parts: int, pitch: int, padding: int
) -> None:
    for part in range(min(parts, cells)):
        first = U(to + (part + padding) % parts * pitch + (part + padding) // parts)
        number = U((cells - part + parts - 1) // parts)
        for i in range(U(0), number, U(LANES)):
            n = min(number - i, U(LANES))
            store_first(line, first + i, load_strided(x, U(at + part) + i * U(parts), parts, n), n)


@kernel(inlined=True)
def _cell_by_cell(
    x: Array, at: int, cells: int, channels: int, line: Array, to: int, parts: int, pitch: int, padding: int
) -> None:
    number = U(channels)
    for part in range(min(parts, cells)):
        first = U(to + (part + padding) % parts * pitch + (part + padding) // parts * channels)
        for i in range(U((cells - part + parts - 1) // parts)):
            cell = U(at) + (U(part) + i * U(parts)) * number
            for c in range(U(0), number, U(LANES)):
                n = min(number - c, U(LANES))
                store_first(line, first + i * number + c, load_first(x, cell + c, n), n)
