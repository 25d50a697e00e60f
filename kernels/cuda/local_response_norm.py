"""Launchers of local_response_norm.cu: local response normalisation, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import BLOCK, Launch, cached_plan, contiguous, grid_size, offset_types

Array = Any
SHORT = 32  # channels of a window that are added up in the type that is computed in; more in double
RUN = 32  # channels that a thread of the backward takes, at least
RING_BYTES = 48 << 10  # of shared memory for a block's rings
LIMIT = 2**30  # the kernels count channels by ints


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if spec.layout.channels >= LIMIT:
        return f"{spec.layout.channels} channels; the kernels take fewer than {LIMIT}"
    size, itemsize = _window(spec)[2], 8
    if step.endswith("_backward") and 32 * size * itemsize > RING_BYTES:
        return f"windows of {size} channels; the backward's kernel takes {RING_BYTES // (32 * itemsize)}"
    return None


def _window(spec: Any) -> tuple[int, int, int]:
    """Channels of a window before and after its own, and all that lie within the array."""
    most = max(0, spec.layout.channels - 1)
    before, after = min(spec.size // 2, most), min((spec.size - 1) // 2, most)
    return before, after, before + 1 + after


def _types(b: Backend, spec: Any, dtype: Any) -> tuple[str, str, Any]:
    """The C++ types of elements and of sums, and NumPy's of the parameters."""
    element = CUDA_TYPE[backends.name_of_dtype(b, dtype)]
    double = element == "double"
    return element, "double" if double or _window(spec)[2] > SHORT else "float", np.float64 if double else np.float32


def _inner(spec: Any) -> int:
    return 1 if spec.layout.channel != 1 else math.prod(spec.layout.shape[2:])


def _parameters(spec: Any, real: Any) -> tuple[Any, ...]:
    return real(spec.alpha / spec.size), real(spec.beta), real(spec.k)


def _make_forward(b: Backend, spec: Any, dtype: Any) -> Launch:
    size = math.prod(spec.layout.shape)
    offset, integer = offset_types(size)
    element, sums, real = _types(b, spec, dtype)
    before, after, _ = _window(spec)
    counts = integer(size), integer(_inner(spec)), *map(np.int32, (spec.layout.channels, before, after))
    instance = instance_name("local_response_norm", element, sums, offset)
    return Launch("local_response_norm", instance, grid_size(b, size), (*counts, *_parameters(spec, real)))


def _make_backward(b: Backend, spec: Any, dtype: Any) -> Launch:
    size, channels, inner = math.prod(spec.layout.shape), spec.layout.channels, _inner(spec)
    offset, integer = offset_types(size)
    element, sums, real = _types(b, spec, dtype)
    before, after, window = _window(spec)
    run = max(RUN, 2 * window)
    runs = size // channels * -(-channels // run)
    ring = window * real().itemsize
    block = min(BLOCK, RING_BYTES // ring // 32 * 32)
    numbers = integer(runs), integer(inner), *map(np.int32, (channels, before, after, window, run))
    instance = instance_name("local_response_norm_backward", element, sums, offset)
    scalars = (*numbers, *_parameters(spec, real))
    return Launch("local_response_norm", instance, grid_size(b, runs, block), scalars, block, block * ring)


def local_response_norm_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    x = contiguous(b, x)
    y = b.empty(x.shape, x.dtype)
    if x.size:
        cached_plan(_make_forward, b, spec, x.dtype)(x, y)
    return y


def local_response_norm_backward(b: Backend, spec: Any, dy: Array, x: Array) -> Array:
    """dx."""
    dy, x = contiguous(b, dy), contiguous(b, x)
    dx = b.empty(x.shape, x.dtype)
    if x.size:
        cached_plan(_make_backward, b, spec, x.dtype)(dy, x, dx)
    return dx
