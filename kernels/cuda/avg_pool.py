"""Launchers of avg_pool.cu, avg_pool_tiled.cu (narrow windows) and avg_pool_planes.cu (global pooling): sum, average
and adaptive average pooling, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from .compile import instance_name
from .launch import BLOCK, aligned, contiguous, cuda_type, grid_size, launch, offset_types
from .window import (
    PACK_BYTES,
    aligned_pack_cells,
    axes,
    axes_of,
    inner,
    is_adaptive,
    is_plane,
    is_wide,
    planes,
    too_large,
)

Array = Any
WARPS = 8  # of a long plane


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return too_large(_window(spec))


# ----------------------------------------------------------------------------------------------------------------- ops
def avg_pool_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _forward(b, spec.window, x, _divisor(spec), spec.include_pad)


def avg_pool_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    return _backward(b, spec.window, dy, _divisor(spec), spec.include_pad)


def sum_pool_forward(b: Backend, window: Any, x: Array) -> Array:
    """y."""
    return _forward(b, window, x, 1)


def sum_pool_backward(b: Backend, window: Any, dy: Array) -> Array:
    """dx."""
    return _backward(b, window, dy, 1)


def adaptive_avg_pool_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    window = _window(spec)
    return _forward(b, window, x, None if is_adaptive(window) else math.prod(window.kernel))


def adaptive_avg_pool_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    window = _window(spec)
    return _backward(b, window, dy, None if is_adaptive(window) else math.prod(window.kernel))


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> Any:
    """The windows of a spec; those of an adaptive pool as ordinary ones if the lengths divide."""
    if hasattr(spec, "window"):
        return spec.window
    return spec.regular() or spec if is_adaptive(spec) else spec


def _divisor(spec: Any) -> int | None:
    """The divisor of every window of an average, or None if windows differ."""
    if spec.override is not None:
        return int(spec.override)
    same = all(_within(axis) if spec.include_pad else axis.whole for axis in spec.window.axes)
    return math.prod(spec.window.kernel) if same else None


def _within(axis: Any) -> bool:
    """Whether no window reaches beyond the declared padding, as it may in ceil mode."""
    last = (axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1) - axis.before
    return bool(last < axis.length + axis.after)


def _bounds(window: Any, include_pad: bool) -> list[np.int32]:
    """The kernels' BOUNDS: for each axis the first cell that counts, and the cell behind the last."""
    found = []
    for axis in axes_of(window):
        before, after = (axis.before, axis.after) if axis and include_pad else (0, 0)
        found += [np.int32(-before), np.int32((axis.length if axis else 1) + after)]
    return found


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(b: Backend, window: Any, x: Array, divisor: int | None, include_pad: bool = False) -> Array:
    """`divisor` None: each window's own count."""
    x, y = contiguous(b, x), b.empty(window.out_shape, x.dtype)
    if not y.size:
        return y
    cells = aligned_pack_cells(window, x, y) if divisor is not None else 0
    if cells:
        h = window.axes[0]
        _launch_tiled(b, "sum_pool_tiled", x, y, divisor, window, cells, (h.length, h.out), h.out)
    elif divisor is not None and _whole_planes(window):
        _launch_planes(b, "sum_planes", x, y, x, divisor, window)
    else:
        sizes = [*axes(window), *_bounds(window, include_pad)]
        kind, threads = ("sum_pool_wide", 32 * y.size) if is_wide(window) else ("sum_pool", y.size)
        _launch(b, kind, x, y, divisor, threads, sizes, inner(window))
    return y


def _backward(b: Backend, window: Any, dy: Array, divisor: int | None, include_pad: bool = False) -> Array:
    dy, dx = contiguous(b, dy), b.empty(window.layout.shape, dy.dtype)
    if not dx.size:
        return dx
    cells = aligned_pack_cells(window, dx, dy) if divisor is not None else 0
    if cells:
        h = window.axes[0]
        tile_rows = -(-h.length // h.stride)
        heights = h.length, tile_rows, h.out
        _launch_tiled(b, "sum_pool_tiled_backward", dy, dx, divisor, window, cells, heights, tile_rows)
    elif divisor is not None and _whole_planes(window):
        _launch_planes(b, "fill_planes", dy, dx, dx, divisor, window)
    else:
        sizes = [*axes(window), *_bounds(window, include_pad)]
        _launch(b, "sum_pool_backward", dy, dx, divisor, dx.size, sizes, inner(window))
    return dx


def _whole_planes(window: Any) -> bool:
    """Whether avg_pool_planes.cu serves these windows."""
    return is_plane(window) and inner(window) == 1


def _real(b: Backend, x: Array) -> type[np.float32] | type[np.float64]:
    """The type of the kernels' divisor."""
    return np.float64 if x.dtype == b.xp.float64 else np.float32


def _launch_tiled(
    b: Backend, kind: str, source: Array, result: Array, divisor: int | None, window: Any, cells: int,
    heights: tuple[int, ...], rows: int,
) -> None:  # fmt: skip
    """Launch a kernel of avg_pool_tiled.cu: a thread a pack of `cells` cells, in `rows` rows of each plane."""
    offset, integer = offset_types(source.size, result.size)
    w = window.axes[1]
    packs = w.length // cells
    threads = planes(window) * rows * packs
    sizes = (_real(b, source)(divisor), integer(threads), integer(packs), *map(np.int32, heights))
    instance = instance_name(kind, cuda_type(b, source), w.kernel, w.stride, cells, offset)
    launch("avg_pool_tiled", instance, grid_size(b, threads), BLOCK, (source, result, *sizes))


def _launch_planes(
    b: Backend, kind: str, source: Array, result: Array, wide: Array, divisor: int | None, window: Any
) -> None:
    """Launch a kernel of avg_pool_planes.cu; `wide`: the array of whole planes. Long planes get a block each."""
    offset, integer = offset_types(source.size, result.size)
    number, size, itemsize = planes(window), math.prod(window.kernel), int(wide.dtype.itemsize)
    cells = PACK_BYTES // itemsize
    while size % cells or not aligned(wide, cells * itemsize):
        cells //= 2
    warps = WARPS if size // cells >= 32 * WARPS else 1
    instance = instance_name(kind, cuda_type(b, source), cells, warps, offset)
    sizes = (_real(b, source)(divisor), integer(number), np.int32(size // cells))
    launch("avg_pool_planes", instance, grid_size(b, 32 * warps * number), BLOCK, (source, result, *sizes))


def _launch(
    b: Backend, kind: str, x: Array, y: Array, divisor: int | None, threads: int, sizes: list[np.int32], channels: int
) -> None:
    """Launch `kind` of avg_pool.cu from x to y with `threads` threads; a cell has `channels` elements."""
    offset, integer = offset_types(x.size, y.size)
    scalars = (_real(b, x)(divisor or 1), np.int32(divisor is None), integer(y.size), integer(channels))
    instance = instance_name(kind, cuda_type(b, x), offset)
    launch("avg_pool", instance, grid_size(b, threads), BLOCK, (x, y, *scalars, *sizes))
