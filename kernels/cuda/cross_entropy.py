"""Launchers of cross_entropy.cu: the softmax cross-entropy and its gradient, called as the portable code is."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import BLOCK, Launch, cached_plan, contiguous, grid_size, offset_types

Array = Any
LONG_ROW = 1024  # from so many classes on a block takes a row, not a warp
PIECE = 1024  # scores of a row that a warp takes in the backward
WARPS = BLOCK // 32
LIMIT = 2**30  # the kernels count rows and classes by ints


def refuses(step: str, spec: None, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    most = max(max(a.shape, default=0) for a in arrays)
    return f"{most} rows or classes; the kernels take fewer than {LIMIT}" if most >= LIMIT else None


def _types(b: Backend, *dtypes: Any) -> list[str]:
    return [CUDA_TYPE[backends.name_of_dtype(b, dtype)] for dtype in dtypes]


def _make_forward(b: Backend, spec: None, rows: int, classes: int, dtype: Any, labels: Any) -> Launch:
    warps = WARPS if classes >= LONG_ROW else 1
    offset, _ = offset_types(rows * classes)
    instance = instance_name("cross_entropy", *_types(b, dtype, labels), warps, offset)
    return Launch("cross_entropy", instance, grid_size(b, 32 * warps * rows), (np.int32(rows), np.int32(classes)))


def _make_backward(b: Backend, spec: None, rows: int, classes: int, dtype: Any, labels: Any) -> Launch:
    piece = min(PIECE, -(-classes // 32) * 32)
    units = rows * -(-classes // piece)
    offset, integer = offset_types(rows * classes)
    instance = instance_name("cross_entropy_backward", *_types(b, dtype, labels), offset)
    scalars = (np.int32(rows), np.int32(classes), np.int32(piece), integer(units))
    return Launch("cross_entropy", instance, grid_size(b, 32 * units), scalars)


def softmax_cross_entropy_forward(b: Backend, spec: None, x: Array, labels: Array) -> tuple[Array, Array, Array]:
    """The mean loss, and of each row the largest score and the sum of the other exponentials."""
    x, labels = contiguous(b, x), contiguous(b, labels)
    rows, classes = x.shape
    wide = b.xp.float64 if x.dtype == b.xp.float64 else b.xp.float32
    top, rest = (b.empty((rows, 1), wide) for _ in range(2))
    losses, loss = b.empty((rows,), b.xp.float64), b.empty((), x.dtype)
    ended = b.zeros((1,), b.xp.uint32)
    launch = cached_plan(_make_forward, b, spec, rows, classes, x.dtype, labels.dtype)
    launch(x, labels, top, rest, losses, loss, ended)
    return loss, top, rest


def softmax_cross_entropy_backward(
    b: Backend, spec: None, dy: Array, x: Array, labels: Array, top: Array, rest: Array
) -> Array:
    """dx."""
    x, labels, top, rest = (contiguous(b, a) for a in (x, labels, top, rest))
    dx = b.empty(x.shape, x.dtype)
    launch = cached_plan(_make_backward, b, spec, *x.shape, x.dtype, labels.dtype)
    launch(x, labels, top, rest, dy, dx)
    return dx
