"""Launchers of lp_pool.cu: Lp pooling, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import Launch, cached_plan, contiguous, grid_size, offset_types
from .window import axes, cells_of, inner_of, is_wide, too_large

Array = Any


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return too_large(spec.window)


def _scatters(window: Any) -> bool:
    """Whether a window writes its own cells: where windows are disjoint and without gaps."""
    return all(axis.disjoint and axis.dilation == 1 for axis in window.axes)


def _make(b: Backend, spec: Any, kernel: str, dtype: Any, *more: str) -> Launch:
    """The launch of a kernel; `more`: its template arguments after the type."""
    window = spec.window
    cells, windows = math.prod(window.layout.shape), math.prod(window.out_shape)
    offset, integer = offset_types(cells, windows)
    lanes = (32 if is_wide(window) else 1,) if kernel != "lp_pool_gather" else ()
    number = cells if kernel == "lp_pool_gather" else windows
    instance = instance_name(kernel, CUDA_TYPE[backends.name_of_dtype(b, dtype)], *more, *lanes, offset)
    numbers = integer(number), *inner_of(window, integer), np.float64(spec.p), np.int32(spec.scaled)
    grid = grid_size(b, number * (lanes[0] if lanes else 1))
    places = axes(window, places=None if lanes else cells_of(window), line=kernel == "lp_pool" and lanes == (32,))
    return Launch("lp_pool", instance, grid, (*numbers, *places))


def _norms(b: Backend, spec: Any, x: Array, dtype: Any) -> Array:
    """The norms of all windows."""
    y = b.empty(spec.window.out_shape, dtype)
    if y.size:
        cached_plan(_make, b, spec, "lp_pool", x.dtype, CUDA_TYPE[backends.name_of_dtype(b, dtype)])(x, y)
    return y


def lp_pool_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _norms(b, spec, contiguous(b, x), x.dtype)


def lp_pool_backward(b: Backend, spec: Any, dy: Array, x: Array) -> Array:
    """dx."""
    dy, x = contiguous(b, dy), contiguous(b, x)
    dx = b.empty(x.shape, x.dtype)
    if not dx.size:
        return dx
    if _scatters(spec.window):
        cached_plan(_make, b, spec, "lp_pool_scatter", x.dtype)(dy, x, dx)
        return dx
    norms = _norms(b, spec, x, b.xp.float64)
    cached_plan(_make, b, spec, "lp_pool_gather", x.dtype)(dy, x, norms, dx)
    return dx
