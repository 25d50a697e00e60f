"""Launchers of max_unpool.cu: max unpooling, called as the portable code is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import PACK_BYTES, Launch, Pass, alignment, cached_plan, contiguous, divisor, grid_size, offset_types
from .window import inner

Array = Any


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """None: the kernels serve every call."""
    return None


def max_unpool_forward(b: Backend, window: Any, x: Array, indices: Array) -> tuple[Array, Array]:
    """y, and for each entry of x the cell of its plane that holds it, or -1."""
    x, indices = contiguous(b, x), _indices(b, indices)
    plan = cached_plan(_make_forward, b, window, x.dtype, indices.dtype)
    y, reached = b.empty(window.layout.shape, x.dtype), b.empty(window.out_shape, plan.cell)
    if x.size:
        owner = b.full(window.layout.shape, -1, plan.position)
        plan.claim(indices, owner, reached)
        plan.write(x, owner, y, reached)
    return y, reached


def max_unpool_backward(b: Backend, window: Any, dy: Array, reached: Array) -> Array:
    """dx."""
    dy, reached = contiguous(b, dy), contiguous(b, reached)
    plan = cached_plan(_make_backward, b, window, dy.dtype, reached.dtype, alignment(reached))
    dx = b.empty(plan.shape, dy.dtype)
    if plan.launch is not None:
        plan.launch(dy, reached, dx)
    return dx


# --------------------------------------------------------------------------------------------------------------- plans
class Forward(NamedTuple):
    """The launches of a forward. position: the dtype of positions in x; cell: of those in a plane of y."""

    claim: Launch
    write: Launch
    position: Any
    cell: Any


def _make_forward(b: Backend, window: Any, dtype: Any, index_dtype: Any) -> Forward:
    sizes = _sizes(window)
    cell = np.dtype(np.int32 if sizes.plane < 2**31 else np.int64)
    element, index, reached = (_type(b, d) for d in (dtype, index_dtype, cell))
    n, cells = math.prod(window.out_shape), math.prod(window.layout.shape)
    claim = instance_name("max_unpool_claim", index, reached, sizes.position)
    numbers = [sizes.integer(size) for size in (n, sizes.entries, sizes.plane, sizes.inner)]
    pack = math.gcd(cells, PACK_BYTES // np.dtype(sizes.position_dtype).itemsize)
    write = instance_name("max_unpool_write", element, reached, sizes.position, pack)
    scalars = [sizes.integer(size) for size in (cells // pack, sizes.plane, sizes.inner)]
    scalars += [*divisor(sizes.plane), *divisor(sizes.inner)] if cells else []
    return Forward(
        Launch("max_unpool", claim, grid_size(b, n), tuple(numbers)),
        Launch("max_unpool", write, grid_size(b, cells // pack), tuple(scalars)),
        sizes.position_dtype,
        cell,
    )


def _make_backward(b: Backend, window: Any, dtype: Any, cell: Any, aligned_to: int) -> Pass:
    """`aligned_to`: bytes to which `reached` is aligned; dx is new."""
    sizes, n = _sizes(window), math.prod(window.out_shape)
    if not n:
        return Pass(None, tuple(window.out_shape))
    pack = math.gcd(n, max(1, min(aligned_to, PACK_BYTES) // cell.itemsize))
    instance = instance_name("max_unpool_backward", _type(b, dtype), _type(b, cell), sizes.position, pack)
    scalars = [sizes.integer(size) for size in (n // pack, sizes.plane, sizes.inner, sizes.entries)]
    scalars += [*divisor(sizes.entries), *divisor(sizes.inner)]
    return Pass(Launch("max_unpool", instance, grid_size(b, n // pack), tuple(scalars)), tuple(window.out_shape))


def _type(b: Backend, dtype: Any) -> str:
    return CUDA_TYPE[backends.name_of_dtype(b, dtype)]


def _indices(b: Backend, indices: Array) -> Array:
    """Contiguous int32 or int64 indices; a value beyond int64 becomes negative, and is dropped."""
    wide = indices.dtype not in (b.xp.int32, b.xp.int64)
    return contiguous(b, b.xp.astype(indices, b.xp.int64) if wide else indices)


class Sizes(NamedTuple):
    """Of a plane before and after, and of inner; the C++ type and dtype of positions, NumPy's type of offsets."""

    entries: int
    plane: int
    inner: int
    position: str
    position_dtype: Any
    integer: Any


def _sizes(window: Any) -> Sizes:
    offset, integer = offset_types(math.prod(window.out_shape), math.prod(window.layout.shape))
    name, dtype = ("int", np.int32) if offset == "unsigned" else ("long long", np.int64)
    entries, plane = math.prod(window.out_lengths), math.prod(window.layout.lengths)
    return Sizes(entries, plane, inner(window), name, dtype, integer)
