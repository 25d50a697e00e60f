"""Launchers of max_pool.cu and max_pool_tiled.cu: max pooling and its adaptive form, called as the portable code is.

max_pool_tiled.cu takes planes, channels first, two spatial axes, with windows of 2x2 stride 2 or 3x3 stride 1 or 2, no
dilation and (kernel - stride + 1) // 2 cells of padding before, if rows are whole aligned packs. All other windows,
integers, and calls that return indices go to max_pool.cu.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import instance_name
from .launch import BLOCK, contiguous, cuda_type, grid_size, launch, offset_types
from .window import aligned_pack_cells, axes, inner, is_adaptive, is_wide, planes, too_large

Array = Any
ARGMAX, TIES, INDICES = 1, 2, 4  # max_pool.cu's Save
TIE_RULE = {"first": 0, "all": 1, "split": 2}  # max_pool.cu's TieRule
MAX_SCATTER_CELLS = (
    64  # the most cells that one thread writes; for larger disjoint windows one thread a cell uses the device better
)
FLOATS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}  # and their itemsize


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return too_large(_window(spec))


# ----------------------------------------------------------------------------------------------------------------- ops
def max_pool(b: Backend, spec: Any, x: Array) -> tuple[Array, Array | None]:
    """y, and the indices if the spec asks for them."""
    y, _, indices = _forward(b, spec.window, x, None, spec.indices)
    return y, indices


def max_pool_forward(b: Backend, spec: Any, x: Array) -> tuple[Array, Array, Array | None]:
    """y, the argmax or tie bits, and the indices if the spec asks for them."""
    return _forward(b, spec.window, x, spec.ties, spec.indices)


def max_pool_backward(b: Backend, spec: Any, dy: Array, saved: Array) -> Array:
    """dx."""
    return _backward(b, spec.window, dy, saved, spec.ties)


def adaptive_max_pool(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _forward(b, _window(spec), x, None, False)[0]


def adaptive_max_pool_forward(b: Backend, spec: Any, x: Array) -> tuple[Array, Array]:
    """y and the argmax."""
    y, argmax, _ = _forward(b, _window(spec), x, "first", False)
    return y, argmax


def adaptive_max_pool_backward(b: Backend, spec: Any, dy: Array, argmax: Array) -> Array:
    """dx."""
    return _backward(b, _window(spec), dy, argmax, "first")


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> Any:
    """The windows of a spec; those of an adaptive pool as ordinary ones if the lengths divide."""
    return spec.window if hasattr(spec, "window") else spec.regular() or spec


def _argmax_dtype(window: Any) -> str:
    """The smallest unsigned dtype for the position of a tap in the window."""
    taps = math.prod(window.kernel)
    return "uint8" if taps <= 2**8 else "uint16" if taps <= 2**16 else "uint32"


def _aligned_pack_cells(b: Backend, window: Any, wide: Array, *narrow: Array) -> int:
    """Cells of a pack of max_pool_tiled.cu, which serves floats; 0 if it does not serve this call."""
    return aligned_pack_cells(window, wide, *narrow) if backends.dtype_name(b, wide) in FLOATS else 0


def _disjoint(window: Any) -> bool:
    return not is_adaptive(window) and all(axis.disjoint for axis in window.axes)


def _forward_kernel(
    window: Any, element: str, saved: str, offset: str, cells: int, ties: str | None
) -> tuple[str, str]:
    """The stem and name of the kernel; `cells` as `_aligned_pack_cells` returns them; `ties` None to save nothing."""
    if cells:
        w = window.axes[1]
        shape = (w.kernel, w.stride, cells, _save_flags(ties))
        return "max_pool_tiled", instance_name("max_pool_tiled", element, *shape, offset)
    return "max_pool", instance_name(
        "max_pool_wide" if _warp_per_window(window, ties) else "max_pool", element, saved, offset
    )


def _save_flags(ties: str | None) -> int:
    """The kernels' Save flag for a tie rule."""
    return 0 if ties is None else ARGMAX if ties == "first" else TIES


def _warp_per_window(window: Any, ties: str | None) -> bool:
    """Whether one warp computes one window."""
    return is_wide(window) and ties in (None, "first")


def _backward_kernel(window: Any, element: str, saved: str, offset: str, cells: int, ties: str) -> tuple[str, str]:
    """The stem and name of the backward kernel; arguments as `_forward_kernel`'s."""
    if cells:
        w = window.axes[1]
        shape = (w.kernel, w.stride, cells, _save_flags(ties))
        return "max_pool_tiled", instance_name("max_pool_tiled_backward", element, *shape, offset)
    return "max_pool", instance_name(
        "max_pool_scatter" if _uses_scatter(window) else "max_pool_gather", element, saved, offset
    )


def _uses_scatter(window: Any) -> bool:
    """Whether one thread writes all cells of a window: for disjoint, small windows."""
    if not _disjoint(window):
        return False
    return bool(math.prod(axis.stride if axis.out > 1 else axis.length for axis in window.axes) <= MAX_SCATTER_CELLS)


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(
    b: Backend, window: Any, x: Array, ties: str | None, return_indices: bool
) -> tuple[Array, Array, Array | None]:
    """y, the argmax or tie bits (empty for ties None), and the indices if `return_indices`."""
    x, y = contiguous(b, x), b.empty(window.out_shape, x.dtype)
    saved = _saved_array(b, window, ties)
    indices = b.empty(window.out_shape if return_indices else (0,), b.xp.int64)
    arguments: tuple[Any, ...]
    if y.size:
        offset, integer = offset_types(x.size, y.size, saved.size)
        cells = 0 if return_indices else _aligned_pack_cells(b, window, x, y, saved)
        kernel = _forward_kernel(window, cuda_type(b, x), cuda_type(b, saved), offset, cells, ties)
        if cells:
            h, row = window.axes[0], x.shape[-1] // cells
            threads = planes(window) * h.out * row
            sizes = (integer(threads), integer(row), np.int32(h.length), np.int32(h.out))
            arguments = (x, y, saved, *sizes)
        else:
            warp = _warp_per_window(window, ties)
            threads = y.size * (32 if warp else 1)
            save = np.int32(_save_flags(ties) | (INDICES if return_indices else 0))
            scalars = (save, integer(y.size), integer(inner(window)), *axes(window, line=warp))
            arguments = (x, y, saved, indices, *scalars)
        launch(*kernel, grid_size(b, threads), BLOCK, arguments)
    return y, saved, indices if return_indices else None


def _saved_array(b: Backend, window: Any, ties: str | None) -> Array:
    """An array for the argmax ("first"), for tie bits (the other rules), or empty (None)."""
    if ties == "first":
        return b.empty(window.out_shape, getattr(b.xp, _argmax_dtype(window)))
    shape = (0,) if ties is None else ((math.prod(window.kernel) + 7) // 8, *window.out_shape)
    return b.empty(shape, b.xp.uint8)


def _backward(b: Backend, window: Any, dy: Array, saved: Array, ties: str) -> Array:
    dy, saved, dx = contiguous(b, dy), contiguous(b, saved), b.empty(window.layout.shape, dy.dtype)
    if not dx.size:
        return dx
    offset, integer = offset_types(dx.size, dy.size, saved.size)
    cells = _aligned_pack_cells(b, window, dx, dy, saved)
    kernel = _backward_kernel(window, cuda_type(b, dy), cuda_type(b, saved), offset, cells, ties)
    rule = np.int32(TIE_RULE[ties])
    arguments: tuple[Any, ...]
    if cells:
        h, row = window.axes[0], dx.shape[-1] // cells
        tile_rows = -(-h.length // h.stride)
        threads, packs = planes(window) * tile_rows * row, planes(window) * h.out * row
        sizes = (
            integer(threads),
            integer(packs),
            integer(row),
            np.int32(h.length),
            np.int32(tile_rows),
            np.int32(h.out),
        )
        arguments = (dy, saved, dx, np.int32(ties == "split"), *sizes)
    elif _uses_scatter(window):
        threads = dy.size
        arguments = (dy, saved, dx, rule, integer(threads), integer(inner(window)), *axes(window))
    else:
        threads = dx.size
        counts = (integer(threads), integer(dy.size), integer(inner(window)))
        arguments = (dy, saved, dx, rule, np.int32(_disjoint(window)), *counts, *axes(window))
    launch(*kernel, grid_size(b, threads), BLOCK, arguments)
    return dx
