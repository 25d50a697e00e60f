"""A pool's windows as CPU kernels take them: three spatial axes, the first missing ones of one cell, and tables of what
each window meets, computed by NumPy from an axis's few numbers. Plans keep them.

An array is (planes, depth, height, width, channels of a cell): channels first has a plane for each sample and channel,
and one channel a cell; channels last a plane for each sample. Tables are shared by calls and only read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Axis, Window

from .compile import chunks, flat

Array = Any
HALVES = ("float16", "bfloat16")
MOST_TAPS = 2**24  # a table has a number for each
WIDENED = 6  # times the bytes of half types that a tile of float32 counts for: it stays in a core's second-level cache

AnyAxis: TypeAlias = Axis | AdaptiveAxis
AnyWindow: TypeAlias = Window | AdaptiveWindow
MISSING = Axis(1, 1, 1)  # an axis that is not there: one window of one cell


def refusal(window: AnyWindow, array: Array | None) -> str | None:
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
def _taps(window: AnyWindow) -> int:
    return math.prod(window.kernel)


def axes_of(window: AnyWindow) -> tuple[AnyAxis, AnyAxis, AnyAxis]:
    """Depth, height and width."""
    axes: list[AnyAxis] = [MISSING] * (3 - len(window.axes))
    axes.extend(window.axes)
    return axes[0], axes[1], axes[2]


def planes_of(window: AnyWindow) -> tuple[int, int]:
    """The number of planes, and the channels of a cell."""
    samples, channels = int(window.layout.shape[0]), int(window.layout.channels)
    return (samples * channels, 1) if window.layout.channel == 1 else (samples, channels)


# -------------------------------------------------------------------------------------------------------------- tables
def step(axis: AnyAxis) -> int:
    """Cells from a window's tap to the next."""
    return 1 if isinstance(axis, AdaptiveAxis) else int(axis.dilation)


def windows_on(axis: AnyAxis) -> tuple[Array, Array, Array]:
    """For each window the cell under its first tap (outside [0, length) it is padding), its first tap that meets a
    cell, and how many taps do: (out,) each. A window that meets none has 0 and 0."""
    if isinstance(axis, AdaptiveAxis):
        start, end = adaptive_bounds(axis)
        return start, np.zeros_like(start), end - start
    start = np.arange(-axis.before, (axis.out - 1) * axis.stride - axis.before + 1, axis.stride)
    if axis.whole:
        return start, np.zeros_like(start), np.full_like(start, axis.kernel)
    first = np.maximum(0, -(start // axis.dilation))
    number = np.minimum(axis.kernel, -((start - axis.length) // axis.dilation)) - first
    meets = number > 0
    return start, first * meets, number * meets


def adaptive_bounds(axis: AdaptiveAxis) -> tuple[Array, Array]:
    """The first cell of each window of an adaptive pool and the cell behind its last: (out,) each."""
    window = np.arange(axis.out + 1)
    quotient, rest = divmod(axis.length, axis.out)  # the product of window and length might overflow
    whole, part = np.divmod(window * rest, axis.out)
    edges = window * quotient + whole
    return edges[:-1], edges[1:] + (part[1:] > 0)


def cells_of(axis: AnyAxis, *, taps: bool = False) -> Array:
    """The first cell that each window meets, how many it meets, `step` apart, and (with `taps`) the tap over the first:
    (2 or 3, out)."""
    start, tap, number = windows_on(axis)
    first = (start + tap * step(axis)) * (number > 0)
    return _table(axis, first, number, tap) if taps else _table(axis, first, number)


def starts_of(axis: AnyAxis) -> Array:
    """The cell under each window's first tap, and how many cells the window meets: (2, out)."""
    start, _, number = windows_on(axis)
    return _table(axis, start, number)


def windows_of(axis: AnyAxis) -> tuple[Array, int]:
    """The first window over each cell, and how many there are: (2, length); and from one of them to the next."""
    if isinstance(axis, AdaptiveAxis):
        return cells_of(axis.adjoint), 1
    # Window o is over cell c where c + before = o * stride + tap * dilation. Modulo the dilation that has a solution if
    # their common divisor divides c + before, and then one in every `every` windows is one.
    shared = math.gcd(axis.stride, axis.dilation)
    every = axis.dilation // shared
    inverse = pow(axis.stride // shared, -1, every)
    place = np.arange(axis.length) + axis.before
    low = np.maximum(0, -((axis.dilation * (axis.kernel - 1) - place) // axis.stride))
    high = np.minimum(axis.out - 1, place // axis.stride)
    if every > 1:
        low += (place // shared % every * inverse - low) % every
    meets = (place % shared == 0) & (low <= high)
    return _table(axis, low * meets, ((high - low) // every + 1) * meets), every


def _table(axis: AnyAxis, *rows: Array) -> Array:
    """These rows as one array, of int32 where that holds twice the axis's cells."""
    table = np.empty((len(rows), rows[0].size), np.int32 if max(axis.length, axis.out) < 2**30 else np.int64)
    for i, row in enumerate(rows):
        table[i] = row
    return table


# --------------------------------------------------------------------------------------------------------------- chunks
def over(
    planes: int,
    units: int,
    inputs: tuple[Array, ...],
    outputs: tuple[Array, ...],
    run: Callable[..., None],
    *,
    least: int = 1,
) -> None:
    """`run(*inputs, *outputs, start, stop)` on flat arrays, over chunks of planes of `units` each, `least` in a chunk.

    An array is given as lines, each of them all planes: one line, or one for every byte of tie bits. Half types go in
    and out as float32, in tiles of whole planes.
    """
    if not outputs[0].size:
        return
    arrays = inputs + outputs
    nbytes = sum(a.nbytes for a in arrays)
    if not _is_half(inputs[0].dtype):
        whole = [a.reshape(-1) for a in arrays]
        chunks(planes * units, nbytes, lambda start, stop: run(*whole, start, stop), least=least)
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

    chunks(planes, WIDENED * nbytes, tile)


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
