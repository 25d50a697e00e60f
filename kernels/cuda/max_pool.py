"""Launchers of max_pool.cu, max_pool_tiled.cu and max_pool_narrow.cu: max pooling and its adaptive form, called as the
portable code is.

max_pool_tiled.cu takes two spatial axes, channels first, with windows of 2x2 stride 2 or 3x3 stride 1 or 2, no dilation
and (kernel - stride + 1) // 2 cells of padding before, if rows have a window for each stride and are whole aligned
packs; max_pool_narrow.cu such windows of any place, on one to three axes. All other windows, integers, and calls that
return indices go to max_pool.cu.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import PACK_BYTES, Launch, Pass, alignment, cached_plan, contiguous, divisor, grid_size, offset_types
from .window import MAX_SUMS, axes, cells_of, inner_of, is_adaptive, is_wide, narrow_of, planes, tile_of, too_large

Array = Any
ARGMAX, TIES, INDICES = 1, 2, 4  # max_pool.cu's Save
TIE_RULE = {"first": 0, "all": 1, "split": 2}  # max_pool.cu's TieRule
# The most cells that one thread writes: for larger disjoint windows one thread a cell uses the device better.
MAX_SCATTER_CELLS = 64


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return too_large(_window(spec))


# ----------------------------------------------------------------------------------------------------------------- ops
def max_pool(b: Backend, spec: Any, x: Array) -> tuple[Array, Array | None]:
    """y, and the indices if the spec asks for them."""
    y, _, indices = _forward(b, spec, x, None, spec.indices)
    return y, indices


def max_pool_forward(b: Backend, spec: Any, x: Array) -> tuple[Array, Array, Array | None]:
    """y, the argmax or tie bits, and the indices if the spec asks for them."""
    return _forward(b, spec, x, spec.ties, spec.indices)


def max_pool_backward(b: Backend, spec: Any, dy: Array, saved: Array) -> Array:
    """dx."""
    return _backward(b, spec, dy, saved, spec.ties)


def adaptive_max_pool(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _forward(b, spec, x, None, False)[0]


def adaptive_max_pool_forward(b: Backend, spec: Any, x: Array) -> tuple[Array, Array]:
    """y and the argmax."""
    y, argmax, _ = _forward(b, spec, x, "first", False)
    return y, argmax


def adaptive_max_pool_backward(b: Backend, spec: Any, dy: Array, argmax: Array) -> Array:
    """dx."""
    return _backward(b, spec, dy, argmax, "first")


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> Any:
    """The windows of a spec; those of an adaptive pool as ordinary ones if the lengths divide."""
    return spec.window if hasattr(spec, "window") else spec.regular() or spec


def _argmax_dtype(window: Any) -> str:
    """The smallest unsigned dtype for the position of a tap in the window."""
    taps = math.prod(window.kernel)
    return "uint8" if taps <= 2**8 else "uint16" if taps <= 2**16 else "uint32"


def _disjoint(window: Any) -> bool:
    return not is_adaptive(window) and all(axis.disjoint for axis in window.axes)


def _save_flags(ties: str | None) -> int:
    """The kernels' Save flag for a tie rule."""
    return 0 if ties is None else ARGMAX if ties == "first" else TIES


def _uses_scatter(window: Any) -> bool:
    """Whether one thread writes all cells of a window: for disjoint, small windows."""
    if not _disjoint(window):
        return False
    return bool(math.prod(axis.stride if axis.out > 1 else axis.length for axis in window.axes) <= MAX_SCATTER_CELLS)


class Forward(NamedTuple):
    """The launch of a forward, and the arrays that it makes; `launch` None where there is nothing to compute."""

    launch: Launch | None
    y: tuple[int, ...]
    saved: tuple[int, ...]
    saved_dtype: Any


def _make_forward(
    b: Backend, spec: Any, dtype: Any, aligned_to: int, ties: str | None, return_indices: bool
) -> Forward:
    window, name = _window(spec), backends.name_of_dtype(b, dtype)
    x_size, y = math.prod(window.layout.shape), tuple(window.out_shape)
    shape, saved_dtype = _saved_array(window, ties)
    if not math.prod(y):
        return Forward(None, y, shape, getattr(b.xp, saved_dtype))
    offset, integer = offset_types(x_size, math.prod(y), math.prod(shape))
    element, floats = CUDA_TYPE[name], name in backends.FLOATS and not return_indices
    tile = tile_of(window, dtype.itemsize, aligned_to) if floats else None
    narrow = narrow_of(window, dtype.itemsize, (aligned_to, dtype.itemsize)) if floats else None
    flags, number = _save_flags(ties), math.prod(y)
    kernel: tuple[str, tuple[Any, ...]]
    scalars: tuple[Any, ...]
    if tile:
        h, w = window.axes
        kernel = "max_pool_tiled", (w.kernel, w.stride, tile.cells, flags)
        number = tile.planes * h.out * tile.row
        heights = map(np.int32, (h.length, h.out))
        scalars = (integer(number), integer(tile.row), *heights, *divisor(tile.row), *divisor(h.out))
    elif narrow:
        kernel = "max_pool_narrow", (*narrow.kernels, narrow.stride, narrow.lanes, flags)
        lanes = max(1, narrow.lanes)
        number //= lanes
        scalars = (integer(number), *inner_of(window, integer, lanes), *axes(window))
    else:
        lanes = 32 if is_wide(window) and ties in (None, "first") else 1  # of a warp, for a window
        kernel = "max_pool", (CUDA_TYPE[saved_dtype], lanes)
        save = np.int32(flags | (INDICES if return_indices else 0))
        scalars = (save, integer(number), *inner_of(window, integer), *axes(window, line=lanes > 1))
        number *= lanes
    stem, shape_arguments = kernel
    instance = instance_name(stem, element, *shape_arguments, offset)
    return Forward(Launch(stem, instance, grid_size(b, number), scalars), y, shape, getattr(b.xp, saved_dtype))


def _saved_array(window: Any, ties: str | None) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of the argmax ("first"), of tie bits (the other rules), or of an empty array (None)."""
    if ties == "first":
        return tuple(window.out_shape), _argmax_dtype(window)
    return (0,) if ties is None else ((math.prod(window.kernel) + 7) // 8, *window.out_shape), "uint8"


def _make_backward(
    b: Backend, spec: Any, dtype: Any, dy_aligned: int, saved_dtype: Any, saved_aligned: int, ties: str
) -> Pass:
    window, name = _window(spec), backends.name_of_dtype(b, dtype)
    dx, (shape, _) = tuple(window.layout.shape), _saved_array(window, ties)
    number, windows = math.prod(dx), math.prod(window.out_shape)
    if not number:
        return Pass(None, dx)
    offset, integer = offset_types(number, windows, math.prod(shape))
    arrays = (dy_aligned, dtype.itemsize), (saved_aligned, saved_dtype.itemsize)
    floats, element = name in backends.FLOATS, CUDA_TYPE[name]
    tile = tile_of(window, dtype.itemsize, PACK_BYTES, *arrays) if floats else None
    split, flags = np.int32(ties == "split"), _save_flags(ties)
    sums = MAX_SUMS // 2 if flags == TIES else MAX_SUMS  # tie bits take registers too
    narrow = narrow_of(window, dtype.itemsize, *arrays, sums=sums) if floats else None
    kernel: tuple[str, str, tuple[Any, ...]]
    scalars: tuple[Any, ...]
    if tile:
        h, w = window.axes
        kernel = "max_pool_tiled", "max_pool_tiled_backward", (w.kernel, w.stride, tile.cells, flags)
        tile_rows = -(-h.length // h.stride)
        number, in_all = (tile.planes * rows * tile.row for rows in (tile_rows, h.out))
        heights = map(np.int32, (h.length, tile_rows, h.out))
        numbers = (split, integer(number), integer(in_all), integer(tile.row), *heights)
        scalars = (*numbers, *divisor(tile.row), *divisor(tile_rows))
    elif narrow:
        kernel = "max_pool_narrow", "max_pool_narrow_backward", (*narrow.kernels, narrow.stride, narrow.lanes, flags)
        lanes, tiles = max(1, narrow.lanes), narrow.tiles(window)
        number = planes(window) * math.prod(tiles) // lanes
        numbers = split, integer(number), integer(windows // lanes)
        scalars = (*numbers, *inner_of(window, integer, lanes), *axes(window, places=tiles))
    else:
        scatter = _uses_scatter(window)
        kernel = "max_pool", "max_pool_scatter" if scatter else "max_pool_gather", (CUDA_TYPE[saved_dtype.name],)
        number = windows if scatter else number
        counts = (integer(number),) if scatter else (np.int32(_disjoint(window)), integer(number), integer(windows))
        places = None if scatter else cells_of(window)
        scalars = (np.int32(TIE_RULE[ties]), *counts, *inner_of(window, integer), *axes(window, places=places))
    stem, template, shape_arguments = kernel
    instance = instance_name(template, element, *shape_arguments, offset)
    return Pass(Launch(stem, instance, grid_size(b, number), scalars), dx)


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(
    b: Backend, spec: Any, x: Array, ties: str | None, return_indices: bool
) -> tuple[Array, Array, Array | None]:
    """y, the argmax or tie bits (empty for ties None), and the indices if `return_indices`."""
    x = contiguous(b, x)
    plan = cached_plan(_make_forward, b, spec, x.dtype, alignment(x), ties, return_indices)
    y, saved = b.empty(plan.y, x.dtype), b.empty(plan.saved, plan.saved_dtype)
    indices = b.empty(plan.y, b.xp.int64) if return_indices else None
    if plan.launch is not None:
        plan.launch(x, y, saved, *((indices,) if plan.launch.stem == "max_pool" else ()))
    return y, saved, indices


def _backward(b: Backend, spec: Any, dy: Array, saved: Array, ties: str) -> Array:
    dy, saved = contiguous(b, dy), contiguous(b, saved)
    facts = (dy.dtype, alignment(dy), saved.dtype, alignment(saved), ties)
    plan = cached_plan(_make_backward, b, spec, *facts)
    dx = b.empty(plan.shape, dy.dtype)
    if plan.launch is not None:
        plan.launch(dy, saved, dx)
    return dx
