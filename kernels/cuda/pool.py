"""Launchers of pool.cu and max_pool_tile.cu: max pooling and its adaptive form, called as the portable code is.

Windows that max_pool_tile.cu knows (planes, channels first, 2x2 stride 2 or 3x3 stride 1 or 2) go there where rows are
whole packs and lie on their boundaries; all others, integers and calls for indices go to pool.cu.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import compile as kernels
from .arrays import BLOCK, aligned, contiguous, ctype, grid, offsets
from .window import axes, inner, is_adaptive, is_wide, planes, too_large

Array = Any
ARGMAX, TIES, INDICES = 1, 2, 4  # pool.cu's Keep
RULE = {"first": 0, "all": 1, "split": 2}  # its Rule
TILES = ((2, 2), (3, 1), (3, 2))  # kernel and stride of max_pool_tile.cu's windows
SCATTERED = 64  # cells that one thread writes at most: with larger disjoint windows a thread for each cell is busier
FLOATS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}  # and their bytes


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return too_large(_window(spec))


# ----------------------------------------------------------------------------------------------------------------- ops
def max_pool(b: Backend, spec: Any, x: Array) -> tuple[Array, Array | None]:
    """y, and the indices if they are wanted."""
    y, _, indices = _forward(b, spec.window, x, None, spec.indices)
    return y, indices


def max_pool_forward(b: Backend, spec: Any, x: Array) -> tuple[Array, Array, Array | None]:
    """y, the argmax or tie bits, and the indices if they are wanted."""
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
    """The windows of a spec; an adaptive pool's as ordinary ones where the lengths divide."""
    return spec.window if hasattr(spec, "window") else spec.regular() or spec


def _argmax(window: Any) -> str:
    """The smallest unsigned dtype that holds a tap's place in the window."""
    taps = math.prod(window.kernel)
    return "uint8" if taps <= 2**8 else "uint16" if taps <= 2**16 else "uint32"


def _tile(window: Any, itemsize: int) -> int:
    """Cells of a pack of max_pool_tile.cu, 16 bytes of them at most; 0 where it does not know these windows."""
    if is_adaptive(window) or len(window.axes) != 2 or window.layout.channel != 1:
        return 0
    h, w = window.axes
    same = (h.kernel, h.stride, h.dilation, h.before) == (w.kernel, w.stride, 1, w.before) and w.dilation == 1
    fits = w.before == (w.kernel - w.stride + 1) // 2 and w.out * w.stride == w.length
    if not (same and fits and (w.kernel, w.stride) in TILES):
        return 0
    cells = 16 // itemsize
    while w.length % cells:
        cells //= 2
    return cells if cells > 1 else 0


def _aligned_tile(b: Backend, window: Any, wide: Array, *narrow: Array) -> int:
    """`_tile`, narrowed until arrays of cells (`wide`) and of windows (`narrow`) lie on boundaries of their packs."""
    itemsize = FLOATS.get(backends.dtype_name(b, wide), 0)
    cells = _tile(window, itemsize) if itemsize else 0
    while cells > 1:
        windows = cells // window.axes[1].stride
        if aligned(wide, cells * itemsize) and all(aligned(a, windows * int(a.dtype.itemsize)) for a in narrow):
            return cells
        cells //= 2
    return 0


def _disjoint(window: Any) -> bool:
    return not is_adaptive(window) and all(axis.disjoint for axis in window.axes)


def _forward_kernel(
    window: Any, element: str, saved: str, offset: str, cells: int, ties: str | None
) -> tuple[str, str]:
    """The stem and name of the kernel; `cells` as `_tile` gives them, `ties` None to save nothing."""
    if cells:
        w = window.axes[1]
        shape = (w.kernel, w.stride, cells, _keep(ties))
        return "max_pool_tile", kernels.name("max_pool_tile", element, *shape, offset)
    return "pool", kernels.name("max_pool_wide" if _shared(window, ties) else "max_pool", element, saved, offset)


def _keep(ties: str | None) -> int:
    """What the kernels call what this tie rule saves."""
    return 0 if ties is None else ARGMAX if ties == "first" else TIES


def _shared(window: Any, ties: str | None) -> bool:
    """Whether a warp shares a window."""
    return is_wide(window) and ties in (None, "first")


def _backward_kernel(window: Any, element: str, saved: str, offset: str, cells: int, ties: str) -> tuple[str, str]:
    """The same for backward."""
    if cells:
        w = window.axes[1]
        shape = (w.kernel, w.stride, cells, _keep(ties))
        return "max_pool_tile", kernels.name("max_pool_tile_backward", element, *shape, offset)
    return "pool", kernels.name("max_pool_scatter" if _scatters(window) else "max_pool_gather", element, saved, offset)


def _scatters(window: Any) -> bool:
    """Whether a thread writes all cells of its window: where windows are disjoint and small."""
    if not _disjoint(window):
        return False
    return bool(math.prod(axis.stride if axis.out > 1 else axis.length for axis in window.axes) <= SCATTERED)


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(b: Backend, window: Any, x: Array, ties: str | None, numbered: bool) -> tuple[Array, Array, Array | None]:
    """y, what backward needs of this tie rule (None: nothing), and the indices where they are wanted."""
    x, y = contiguous(b, x), b.empty(window.out_shape, x.dtype)
    saved = _room(b, window, ties)
    indices = b.empty(window.out_shape if numbered else (0,), b.xp.int64)
    arguments: tuple[Any, ...]
    if y.size:
        offset, integer = offsets(x.size, y.size, saved.size)
        cells = 0 if numbered else _aligned_tile(b, window, x, y, saved)
        kernel = _forward_kernel(window, ctype(b, x), ctype(b, saved), offset, cells, ties)
        if cells:
            h, row = window.axes[0], x.shape[-1] // cells
            threads = planes(window) * h.out * row
            sizes = (integer(threads), integer(row), np.int32(h.length), np.int32(h.out))
            arguments = (x, y, saved, *sizes)
        else:
            warp = _shared(window, ties)
            threads = y.size * (32 if warp else 1)
            keep = np.int32(_keep(ties) | (INDICES if numbered else 0))
            scalars = (keep, integer(y.size), integer(inner(window)), *axes(window, line=warp))
            arguments = (x, y, saved, indices, *scalars)
        kernels.launch(*kernel, grid(b, threads), BLOCK, arguments)
    return y, saved, indices if numbered else None


def _room(b: Backend, window: Any, ties: str | None) -> Array:
    """An array for the argmax ("first"), for tie bits (the other rules), or empty (None)."""
    if ties == "first":
        return b.empty(window.out_shape, getattr(b.xp, _argmax(window)))
    shape = (0,) if ties is None else ((math.prod(window.kernel) + 7) // 8, *window.out_shape)
    return b.empty(shape, b.xp.uint8)


def _backward(b: Backend, window: Any, dy: Array, saved: Array, ties: str) -> Array:
    dy, saved, dx = contiguous(b, dy), contiguous(b, saved), b.empty(window.layout.shape, dy.dtype)
    if not dx.size:
        return dx
    offset, integer = offsets(dx.size, dy.size, saved.size)
    cells = _aligned_tile(b, window, dx, dy, saved)
    kernel = _backward_kernel(window, ctype(b, dy), ctype(b, saved), offset, cells, ties)
    rule = np.int32(RULE[ties])
    arguments: tuple[Any, ...]
    if cells:
        h, row = window.axes[0], dx.shape[-1] // cells
        down = -(-h.length // h.stride)
        threads, packs = planes(window) * down * row, planes(window) * h.out * row
        sizes = (integer(threads), integer(packs), integer(row), np.int32(h.length), np.int32(down), np.int32(h.out))
        arguments = (dy, saved, dx, np.int32(ties == "split"), *sizes)
    elif _scatters(window):
        threads = dy.size
        arguments = (dy, saved, dx, rule, integer(threads), integer(inner(window)), *axes(window))
    else:
        threads = dx.size
        counts = (integer(threads), integer(dy.size), integer(inner(window)))
        arguments = (dy, saved, dx, rule, np.int32(_disjoint(window)), *counts, *axes(window))
    kernels.launch(*kernel, grid(b, threads), BLOCK, arguments)
    return dx
