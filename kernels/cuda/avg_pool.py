"""Launchers of avg_pool.cu: sum, average and adaptive average pooling, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

from .compile import instance_name
from .launch import BLOCK, contiguous, cuda_type, grid_size, launch, offset_types
from .window import axes, axes_of, inner, is_adaptive, is_wide, too_large

Array = Any


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
    sizes = [*axes(window, line=is_wide(window)), *_bounds(window, include_pad)]
    if is_wide(window):
        _launch(b, "sum_pool_wide", x, y, divisor, 32 * y.size, sizes, inner(window))
    else:
        _launch(b, "sum_pool", x, y, divisor, y.size, sizes, inner(window))
    return y


def _backward(b: Backend, window: Any, dy: Array, divisor: int | None, include_pad: bool = False) -> Array:
    dy, dx = contiguous(b, dy), b.empty(window.layout.shape, dy.dtype)
    if dx.size:
        sizes = [*axes(window), *_bounds(window, include_pad)]
        _launch(b, "sum_pool_backward", dy, dx, divisor, dx.size, sizes, inner(window))
    return dx


def _launch(
    b: Backend, kind: str, x: Array, y: Array, divisor: int | None, threads: int, sizes: list[np.int32], channels: int
) -> None:
    """Launch `kind` from x to y with `threads` threads; a cell has `channels` elements."""
    offset, integer = offset_types(x.size, y.size)
    real = np.float64 if x.dtype == b.xp.float64 else np.float32
    scalars = (real(divisor or 1), np.int32(divisor is None), integer(y.size), integer(channels))
    instance = instance_name(kind, cuda_type(b, x), offset)
    launch("avg_pool", instance, grid_size(b, threads), BLOCK, (x, y, *scalars, *sizes))
