"""Launchers of softmax.cu: softmax along one axis and its gradient, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import PACK_BYTES, Launch, alignment, cached_plan, contiguous, offset_types
from .norm_plan import STREAM_THREADS, THREADS, WARP_THREADS, lanes_of, threads_of

Array = Any
LIMIT = 2**31  # of rows, of packs of a row, and of blocks


def refuses(step: str, spec: int, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    most = max(_sizes(spec, arrays[0].shape))
    return f"{most:,} rows or cells of a row; the kernels take fewer than {LIMIT:,}" if most >= LIMIT else None


def _sizes(axis: int, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Cells before the axis, along it and after it."""
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _make(b: Backend, axis: int, kernel: str, shape: tuple[int, ...], dtype: Any, aligned_to: int) -> Launch:
    samples, depth, inner = _sizes(axis, shape)
    pack = min(PACK_BYTES, aligned_to) // dtype.itemsize
    while (depth if inner == 1 else inner) % pack:
        pack //= 2
    fewer = dtype.itemsize == 2 and (inner == 1 or kernel == "_backward")  # halves are widened there
    register_packs = 2 if fewer else 4  # of each array in a thread's registers
    element, offset = CUDA_TYPE[backends.name_of_dtype(b, dtype)], offset_types(math.prod(shape))[0]
    if inner > 1:
        columns = inner // pack
        width = lanes_of(columns)
        while width > 8 and depth * width > register_packs * STREAM_THREADS:
            width //= 2  # 8 packs are 128 bytes
        instance = instance_name(f"softmax_columns{kernel}", element, pack, register_packs, offset)
        grid = samples * -(-columns // width)
        return Launch("softmax", instance, grid, tuple(map(np.uint32, (depth, columns, width))), STREAM_THREADS)
    packs = depth // pack
    if packs <= 32 * register_packs:
        threads, lanes, mapping = WARP_THREADS, lanes_of(packs), 0
    else:
        threads, lanes, mapping = threads_of(packs, register_packs, THREADS), 32, 1
    instance = instance_name(f"softmax_rows{kernel}", element, pack, register_packs, offset, mapping)
    grid = samples if mapping else -(-samples * lanes // threads)
    return Launch("softmax", instance, grid, (np.uint32(samples), np.uint32(packs), np.int32(lanes)), threads)


def softmax_forward(b: Backend, spec: int, x: Array) -> Array:
    """y."""
    x = contiguous(b, x)
    y = b.empty(x.shape, x.dtype)
    if x.size:
        cached_plan(_make, b, spec, "", x.shape, x.dtype, alignment(x))(x, y)
    return y


def softmax_backward(b: Backend, spec: int, dy: Array, y: Array) -> Array:
    """dx."""
    dy, y = contiguous(b, dy), contiguous(b, y)
    dx = b.empty(y.shape, y.dtype)
    if y.size:
        cached_plan(_make, b, spec, "_backward", y.shape, y.dtype, alignment(dy, y))(dy, y, dx)
    return dx
