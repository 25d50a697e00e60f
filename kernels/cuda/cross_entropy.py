"""Launchers of cross_entropy.cu: the softmax cross-entropy and its gradient, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import BLOCK, PACK_BYTES, Launch, alignment, cached_plan, contiguous, offset_types
from .norm_plan import lanes_of

Array = Any
LONG_ROW = 4  # turns of a warp down a row; a block takes a longer one
MOST_BLOCKS = 1024  # of the forward, on any device: the last one has few sums to add up, always the same ones
LONG_THREADS = 512  # of that block
LIMIT = 2**30  # the kernels count rows and classes by ints


def refuses(step: str, spec: None, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    most = max(max(a.shape, default=0) for a in arrays)
    return f"{most} rows or classes; the kernels take fewer than {LIMIT}" if most >= LIMIT else None


def _types(b: Backend, *dtypes: Any) -> list[str]:
    return [CUDA_TYPE[backends.name_of_dtype(b, dtype)] for dtype in dtypes]


def _rows(shape: tuple[int, int], dtype: Any, aligned_to: int) -> tuple[int, int, int, int]:
    """Scores of a pack, packs of a row, those of them that a thread has in registers, and lanes of a warp for a row."""
    pack = math.gcd(shape[1], min(PACK_BYTES, aligned_to) // dtype.itemsize)
    packs, register_packs = shape[1] // pack, min(8, 64 // (pack * dtype.itemsize))
    return pack, packs, register_packs, lanes_of(-(-packs // register_packs))


def _make_forward(b: Backend, spec: None, shape: tuple[int, int], dtype: Any, labels: Any, aligned_to: int) -> Launch:
    rows, (pack, packs, register_packs, lanes) = shape[0], _rows(shape, dtype, aligned_to)
    long = packs > 32 * register_packs * LONG_ROW
    teams = 1 if long else BLOCK // lanes  # of a block
    turns = -(-rows // (teams * MOST_BLOCKS))
    arguments = *_types(b, dtype, labels), pack, register_packs, offset_types(math.prod(shape))[0], int(long)
    scalars = np.uint32(rows), np.uint32(packs), np.int32(lanes), np.uint32(turns)
    instance, grid = instance_name("cross_entropy", *arguments), -(-rows // (teams * turns))
    return Launch("cross_entropy", instance, grid, scalars, LONG_THREADS if long else BLOCK)


def _make_backward(b: Backend, spec: None, shape: tuple[int, int], dtype: Any, labels: Any, aligned_to: int) -> Launch:
    rows, (pack, packs, register_packs, lanes) = shape[0], _rows(shape, dtype, aligned_to)
    pieces = -(-packs // (register_packs * lanes))
    arguments = *_types(b, dtype, labels), pack, register_packs, offset_types(math.prod(shape))[0]
    scalars = np.uint32(rows), np.uint32(packs), np.int32(lanes), np.uint32(pieces)
    grid = -(-rows * pieces * lanes // BLOCK)
    return Launch("cross_entropy", instance_name("cross_entropy_backward", *arguments), grid, scalars)


def softmax_cross_entropy_forward(b: Backend, spec: None, x: Array, labels: Array) -> tuple[Array, Array, Array]:
    """The mean loss, and of each row the largest score and the sum of the other exponentials."""
    x, labels = contiguous(b, x), contiguous(b, labels)
    wide = b.xp.float64 if x.dtype == b.xp.float64 else b.xp.float32
    top, rest = (b.empty((len(x), 1), wide) for _ in range(2))
    launch = cached_plan(_make_forward, b, spec, x.shape, x.dtype, labels.dtype, alignment(x))
    losses, loss = b.empty((launch.grid,), b.xp.float64), b.empty((), x.dtype)
    ended = b.zeros((1,), b.xp.uint32)
    launch(x, labels, top, rest, losses, loss, ended)
    return loss, top, rest


def softmax_cross_entropy_backward(
    b: Backend, spec: None, dy: Array, x: Array, labels: Array, top: Array, rest: Array
) -> Array:
    """dx."""
    x, labels, top, rest = (contiguous(b, a) for a in (x, labels, top, rest))
    dx = b.empty(x.shape, x.dtype)
    launch = cached_plan(_make_backward, b, spec, x.shape, x.dtype, labels.dtype, alignment(x))
    launch(x, labels, top, rest, dy, dx)
    return dx
