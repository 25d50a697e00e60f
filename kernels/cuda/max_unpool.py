"""Launchers of max_unpool.cu: max unpooling, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from .compile import instance_name
from .launch import BLOCK, contiguous, cuda_type, grid_size, launch, offset_types
from .window import inner

Array = Any


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """None: the kernels serve every call."""
    return None


def max_unpool_forward(b: Backend, window: Any, x: Array, indices: Array) -> tuple[Array, Array]:
    """y, and for each entry of x the cell of its plane that holds it, or -1."""
    x, y = contiguous(b, x), b.empty(window.layout.shape, x.dtype)
    indices, reached = _indices(b, indices), b.empty(window.out_shape, _cell_dtype(b, window))
    if not x.size:
        return y, reached
    position_type, integer, sizes = _sizes(window, x, y)
    owner = b.full(window.layout.shape, -1, b.xp.int32 if position_type == "int" else b.xp.int64)
    claim = instance_name("max_unpool_claim", cuda_type(b, indices), cuda_type(b, reached), position_type)
    launch("max_unpool", claim, grid_size(b, x.size), BLOCK, (indices, owner, reached, integer(x.size), *sizes))
    write = instance_name("max_unpool_write", cuda_type(b, x), cuda_type(b, reached), position_type)
    launch("max_unpool", write, grid_size(b, y.size), BLOCK, (x, owner, y, reached, integer(y.size), *sizes[1:]))
    return y, reached


def max_unpool_backward(b: Backend, window: Any, dy: Array, reached: Array) -> Array:
    """dx."""
    dy, dx, reached = contiguous(b, dy), b.empty(window.out_shape, dy.dtype), contiguous(b, reached)
    if dx.size:
        position_type, integer, sizes = _sizes(window, dx, dy)
        instance = instance_name("max_unpool_backward", cuda_type(b, dy), cuda_type(b, reached), position_type)
        launch("max_unpool", instance, grid_size(b, dx.size), BLOCK, (dy, reached, dx, integer(dx.size), *sizes))
    return dx


def _indices(b: Backend, indices: Array) -> Array:
    """Contiguous int32 or int64 indices; a value beyond int64 becomes negative, and is dropped."""
    wide = indices.dtype not in (b.xp.int32, b.xp.int64)
    return contiguous(b, b.xp.astype(indices, b.xp.int64) if wide else indices)


def _cell_dtype(b: Backend, window: Any) -> Any:
    """The dtype for the position of a cell in its plane."""
    return b.xp.int32 if math.prod(window.layout.lengths) < 2**31 else b.xp.int64


def _sizes(window: Any, x: Array, y: Array) -> tuple[str, type[np.uint32] | type[np.uint64], list[Any]]:
    """The C++ type of positions, NumPy's type of offsets, and the sizes entries, plane and inner."""
    offset, integer = offset_types(x.size, y.size)
    sizes = (math.prod(window.out_lengths), math.prod(window.layout.lengths), inner(window))
    return "int" if offset == "unsigned" else "long long", integer, [integer(size) for size in sizes]
