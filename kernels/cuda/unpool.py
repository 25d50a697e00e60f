"""Launchers of unpool.cu: max unpooling, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from . import compile as kernels
from .arrays import BLOCK, contiguous, ctype, grid, offsets
from .window import inner

Array = Any
FLOATS = ("float16", "bfloat16", "float32", "float64")


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None: they serve all."""
    return None


def max_unpool_forward(b: Backend, window: Any, x: Array, indices: Array) -> tuple[Array, Array]:
    """y, and for each entry of x the cell of its plane that shows it, or -1."""
    x, y = contiguous(b, x), b.empty(window.layout.shape, x.dtype)
    indices, reached = _indices(b, indices), b.empty(window.out_shape, _counted(b, window))
    if not x.size:
        return y, reached
    place, integer, sizes = _sizes(window, x, y)
    owner = b.full(window.layout.shape, -1, b.xp.int32 if place == "int" else b.xp.int64)
    claim = kernels.name("max_unpool_claim", ctype(b, indices), ctype(b, reached), place)
    kernels.launch("unpool", claim, grid(b, x.size), BLOCK, (indices, owner, reached, integer(x.size), *sizes))
    show = kernels.name("max_unpool_show", ctype(b, x), ctype(b, reached), place)
    kernels.launch("unpool", show, grid(b, y.size), BLOCK, (x, owner, y, reached, integer(y.size), *sizes[1:]))
    return y, reached


def max_unpool_backward(b: Backend, window: Any, dy: Array, reached: Array) -> Array:
    """dx."""
    dy, dx, reached = contiguous(b, dy), b.empty(window.out_shape, dy.dtype), contiguous(b, reached)
    if dx.size:
        place, integer, sizes = _sizes(window, dx, dy)
        instance = kernels.name("max_unpool_backward", ctype(b, dy), ctype(b, reached), place)
        kernels.launch("unpool", instance, grid(b, dx.size), BLOCK, (dy, reached, dx, integer(dx.size), *sizes))
    return dx


def _indices(b: Backend, indices: Array) -> Array:
    """Contiguous int32 or int64 indices; what int64 cannot hold becomes negative, and is dropped."""
    wide = indices.dtype not in (b.xp.int32, b.xp.int64)
    return contiguous(b, b.xp.astype(indices, b.xp.int64) if wide else indices)


def _counted(b: Backend, window: Any) -> Any:
    """The dtype that holds a cell's place in its plane."""
    return b.xp.int32 if math.prod(window.layout.lengths) < 2**31 else b.xp.int64


def _sizes(window: Any, x: Array, y: Array) -> tuple[str, type[np.uint32] | type[np.uint64], list[Any]]:
    """The C++ type of places, NumPy's of offsets, and the sizes entries, plane and inner."""
    offset, integer = offsets(x.size, y.size)
    sizes = (math.prod(window.out_lengths), math.prod(window.layout.lengths), inner(window))
    return "int" if offset == "unsigned" else "long long", integer, [integer(size) for size in sizes]
