"""A pool's windows as CPU kernels take them: three spatial axes, the first missing ones of one cell, and tables of what
each window meets.

An array is (planes, depth, height, width, channels of a cell): channels first has a plane for each sample and channel,
and one channel a cell; channels last a plane for each sample. Tables are shared by calls and only read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cnnlayers import backends

from .compile import flat, slabs

Array = Any
HALVES = ("float16", "bfloat16")
MOST_TAPS = 2**24  # a table has a number for each
WIDENED = 6  # times the bytes of half types that a tile of float32 counts for: it stays in a core's second-level cache


@dataclass(frozen=True)
class Single:
    """An axis that is not there: one window of one cell."""

    length: int = 1
    out: int = 1
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    starts: tuple[int, ...] = (0,)
    disjoint: bool = True
    whole: bool = True


def refusal(window: Any, array: Array | None) -> str | None:
    """Why no kernel serves windows of this array, or None."""
    if array is not None:
        name = backends.dtype_name(backends.of(array), array)
        if name not in backends.FLOATS:
            return f"arrays of {name}; kernels take {', '.join(backends.FLOATS)}"
        if not array.dtype.isnative:
            return "an array of foreign byte order"
    taps = _taps(window)
    return f"windows of {taps} taps; kernels take at most {MOST_TAPS}" if taps > MOST_TAPS else None


@functools.lru_cache(maxsize=256)
def _taps(window: Any) -> int:
    return math.prod(window.kernel)


def is_adaptive(axis: Any) -> bool:
    """Whether windows of this axis differ in size, as AdaptiveAxis's do."""
    return not hasattr(axis, "dilation")


def axes_of(window: Any) -> tuple[Any, Any, Any]:
    """Depth, height and width."""
    first, second, third = (Single(),) * (3 - len(window.axes)) + tuple(window.axes)
    return first, second, third


def planes_of(window: Any) -> tuple[int, int]:
    """The number of planes, and the channels of a cell."""
    samples, channels = int(window.layout.shape[0]), int(window.layout.channels)
    return (samples * channels, 1) if window.layout.channel == 1 else (samples, channels)


def small(window: Any) -> Any:
    """The same windows on one sample with few channels: enough to compile for."""
    shape, at = list(window.layout.shape), window.layout.channel
    shape[0], shape[at] = 1, 1 if at == 1 else min(shape[at], 2)  # a cell of one channel has loops of its own
    return replace(window, layout=replace(window.layout, shape=tuple(shape)))


# -------------------------------------------------------------------------------------------------------------- tables
def step(axis: Any) -> int:
    """Cells from a window's tap to the next."""
    return 1 if is_adaptive(axis) else int(axis.dilation)


@functools.lru_cache(maxsize=256)
def met(axis: Any) -> Array:
    """Of each window the first cell that it meets, how many of its taps meet one, the first of these, and the cell or
    padding under its first tap: (4, out)."""
    starts = np.array(axis.starts, np.int64)
    if is_adaptive(axis):
        return np.stack([starts, np.array(axis.ends, np.int64) - starts, np.zeros_like(starts), starts])
    first = np.maximum(0, -(starts // axis.dilation))
    end = np.minimum(axis.kernel, -((starts - axis.length) // axis.dilation))
    number = np.maximum(end - first, 0)
    first[number == 0] = 0
    return np.stack([np.where(number > 0, starts + first * axis.dilation, 0), number, first, starts])


@functools.lru_cache(maxsize=256)
def cells_of(axis: Any) -> tuple[Array, Array]:
    """Where each window's cells begin (and the last one's end), and the cells, one window after another."""
    first, number, _, _ = met(axis)
    edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(number)])
    tap = np.arange(edges[-1]) - np.repeat(edges[:-1], number)
    return edges, np.repeat(first, number) + tap * step(axis)


@functools.lru_cache(maxsize=256)
def windows_of(axis: Any) -> tuple[Array, Array]:
    """Where each cell's windows begin (and the last one's end), and the windows in order, one cell after another."""
    edges, cells = cells_of(axis)
    windows = np.repeat(np.arange(axis.out), np.diff(edges))
    number = np.bincount(cells, minlength=axis.length)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(number)]), windows[np.argsort(cells, kind="stable")]


# --------------------------------------------------------------------------------------------------------------- slabs
def over(
    planes: int,
    units: int,
    inputs: tuple[Array, ...],
    outputs: tuple[Array, ...],
    run: Callable[..., None],
    *,
    least: int = 1,
) -> None:
    """`run(*inputs, *outputs, start, stop)` on flat arrays, over slabs of planes of `units` each, `least` in a slab.

    An array is given as lines, each of them all planes: one line, or one for every byte of tie bits. Half types go in
    and out as float32, in tiles of whole planes.
    """
    if not outputs[0].size:
        return
    arrays = inputs + outputs
    nbytes = sum(a.nbytes for a in arrays)
    if not _is_half(inputs[0].dtype):
        whole = [a.reshape(-1) for a in arrays]
        slabs(planes * units, nbytes, lambda start, stop: run(*whole, start, stop), least=least)
        return
    half = inputs[0].dtype

    def tile(start: int, stop: int) -> None:
        tiles = [a[:, _part(a, planes, start, stop)] for a in arrays]
        for i, a in enumerate(tiles):
            dtype = np.float32 if a.dtype == half else a.dtype
            tiles[i] = a.astype(dtype) if i < len(inputs) else np.empty(a.shape, dtype)
        run(*(a.reshape(-1) for a in tiles), 0, (stop - start) * units)
        for out, done in zip(outputs, tiles[len(inputs) :], strict=True):
            out[:, _part(out, planes, start, stop)] = _narrowed(done, out.dtype)

    slabs(planes, WIDENED * nbytes, tile)


@functools.cache
def _is_half(dtype: Any) -> bool:
    return str(dtype) in HALVES


def _narrowed(tile: Array, dtype: Any) -> Array:
    """A tile in an output's dtype; a NaN of bfloat16 with the bits it had, which the cast would not keep."""
    out = tile.astype(dtype, copy=False)
    if str(dtype) == "bfloat16" and tile.dtype == np.float32:
        nan = np.isnan(tile)
        out.view(np.uint16)[nan] = tile.view(np.uint32)[nan] >> 16
    return out


def _part(array: Array, planes: int, start: int, stop: int) -> slice:
    """Where planes start to stop lie in a line."""
    plane = array.shape[1] // planes
    return slice(plane * start, plane * stop)


def lines(array: Array, number: int = 1) -> Array:
    """An array as `over` takes it."""
    if _is_half(array.dtype):  # never a kernel's own argument
        return np.ascontiguousarray(array).reshape(number, -1)
    return flat(array).reshape(number, -1)
