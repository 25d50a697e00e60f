"""Launchers of local_response_norm.cu: local response normalisation, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import BLOCK, Launch, alignment, cached_plan, contiguous, divisor, grid_size, offset_types

Array = Any
NARROW = 9  # the largest window that is a template argument, whose threads take
CHANNELS = 8  # channels of
PLACE_BYTES = 4  # bytes of places
SHORT = 32  # channels of a window that are added up in the type that is computed in; more in double
RUN = 32  # channels that a thread of the backward takes, at least
RING_BYTES = 48 << 10  # of shared memory for a block's rings
LIMIT = 2**30  # the kernels count channels by ints


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if spec.layout.channels >= LIMIT:
        return f"{spec.layout.channels} channels; the kernels take fewer than {LIMIT}"
    size, itemsize = _window(spec)[2], 8
    if step.endswith("_backward") and spec.size > NARROW and 32 * size * itemsize > RING_BYTES:
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


def _make(b: Backend, spec: Any, name: str, dtype: Any, aligned_to: int) -> Launch:
    """The launch of a pass, for arrays of this alignment."""
    size, channels, inner = math.prod(spec.layout.shape), spec.layout.channels, _inner(spec)
    offset, integer = offset_types(size)
    element, sums, real = _types(b, spec, dtype)
    parameters, three_quarters = _parameters(spec, real), spec.beta == 0.75
    if spec.size <= NARROW:
        pack = math.gcd(inner, max(1, min(PLACE_BYTES, aligned_to) // dtype.itemsize))
        places, runs = inner // pack, -(-channels // CHANNELS)
        n = size // channels // pack * runs
        instance = instance_name(name, element, spec.size, CHANNELS, pack, three_quarters, offset)
        numbers = integer(n), integer(places), *divisor(places), integer(runs), *divisor(runs), np.int32(channels)
        return Launch("local_response_norm", instance, -(-n // BLOCK), (*numbers, *parameters))
    before, after, window = _window(spec)
    instance = instance_name(f"wide_{name}", element, sums, three_quarters, offset)
    if not name.endswith("_backward"):
        counts = integer(size), integer(inner), *map(np.int32, (channels, before, after))
        return Launch("local_response_norm", instance, grid_size(b, size), (*counts, *parameters))
    run = max(RUN, 2 * window)
    runs = size // channels * -(-channels // run)
    ring = window * real().itemsize
    block = min(BLOCK, RING_BYTES // ring // 32 * 32)
    counts = integer(runs), integer(inner), *map(np.int32, (channels, before, after, window, run))
    return Launch(
        "local_response_norm", instance, grid_size(b, runs, block), (*counts, *parameters), block, block * ring
    )


def local_response_norm_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    x = contiguous(b, x)
    y = b.empty(x.shape, x.dtype)
    if x.size:
        cached_plan(_make, b, spec, "local_response_norm", x.dtype, alignment(x))(x, y)
    return y


def local_response_norm_backward(b: Backend, spec: Any, dy: Array, x: Array) -> Array:
    """dx."""
    dy, x = contiguous(b, dy), contiguous(b, x)
    dx = b.empty(x.shape, x.dtype)
    if x.size:
        launch = cached_plan(_make, b, spec, "local_response_norm_backward", x.dtype, alignment(dy, x))
        launch(dy, x, dx)
    return dx
