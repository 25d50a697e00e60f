"""Launchers of norm_last.cu and norm_last_backward.cu: batch, instance and group norm where channels come last.

Called by norm.py and norm_backward.py, whose arrays they are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import compile as kernels
from .arrays import ctype, offsets
from .norm_arrays import itemsize, keep
from .norm_plan import Columns, Device, Plan, device_here, device_of, pack_of, slabs, through

Array = Any
HELD = {
    "float16": 8,
    "bfloat16": 6,
    "float32": 8,
    "float64": 8,
}  # packs of an array a thread; bfloat16's are kept widened
ENDS = 128  # threads of a block whose warps have a channel or group each


def warmup(op: str, spec: Any, shape: Columns) -> None:
    """Compile what `op` needs for this shape and any floating dtype, on aligned arrays of fewer than 2**31 elements."""
    backward = op.endswith("_backward")
    stem = "norm_last_backward" if backward else "norm_last"
    for dtype in HELD:
        how = plan(device_here(), shape, dtype, pack_of(shape, itemsize(dtype)), 2 if backward else 1, spec.given)
        instances = backward_instances if backward else forward_instances
        for instance in instances(how, kernels.CUDA_TYPE[dtype], "unsigned", spec.given):
            kernels.kernel(stem, instance, cooperative=how.way == "grid")


def plan(device: Device, shape: Columns, dtype: str, pack: int, arrays: int, given: bool) -> Plan:
    """The plan for a call on columns; `given`: their statistics are."""
    if given:
        return through(device, shape, pack)
    return slabs(device, shape, itemsize(dtype), pack, HELD[dtype], arrays)


# ------------------------------------------------------------------------------------------------------------- forward
def forward(
    b: Backend, spec: Any, shape: Columns, arrays: list[Array], mean: Array, rstd: Array, running: tuple[Array, ...]
) -> None:
    """Fill y, mean and rstd; `arrays`: x, gamma, beta (cast, or None) and y."""
    x, gamma, beta, y = arrays
    kept = keep(b, spec, gamma, beta, mean, rstd, running)
    pack = pack_of(shape, x.dtype.itemsize, x.data.ptr)
    how = plan(device_of(b), shape, backends.dtype_name(b, x), pack, 1, spec.given)
    instances = forward_instances(how, ctype(b, x), offsets(x.size)[0], spec.given)
    arrays = [x, *(rstd if p is None else p for p in (gamma, beta)), y]
    if how.way != "parts":
        partial = _partial(b, shape, how) if how.way == "grid" else rstd
        last = [np.uint32(n) for n in (how.parts, how.turn)]
        _launch(instances[0], how.grid, how, [*arrays, partial, *kept, *_shape(shape, how), *last])
        return
    partial = rstd if spec.given else _partial(b, shape, how)
    *moments, finish, apply = instances
    for instance in moments:
        _launch(instance, how.rows * how.parts, how, [x, partial, *_shape(shape, how), np.uint32(how.parts)])
    groups = shape.samples * shape.channels // shape.own
    numbers = shape.samples, shape.depth, shape.channels, shape.own, how.parts
    arguments = [partial, *kept, *(np.uint32(n) for n in numbers)]
    kernels.launch("norm_last", finish, -(-groups * 32 // ENDS), ENDS, arguments)
    last = [np.uint32(n) for n in (shape.own, how.stream)]
    arguments = [*arrays, mean, rstd, kept[4], *_shape(shape, how), *last]
    _launch(apply, how.rows * how.stream, how, arguments)


def forward_instances(how: Plan, element: str, offset: str, given: bool) -> list[str]:
    """norm_last.cu's kernels of a plan, in their order."""
    if how.way != "parts":
        return [kernels.name("last_forward", element, how.pack, how.held, offset, how.mode)]
    moments = [] if given else [kernels.name("last_moments", element, how.pack, how.held, offset)]
    finish = kernels.name("last_finish", offset, given)
    return [*moments, finish, kernels.name("last_apply", element, how.pack, offset)]


def _launch(instance: str, grid: int, how: Plan, arguments: list[Any], stem: str = "norm_last") -> None:
    kernels.launch(stem, instance, grid, how.threads, arguments, shared=how.shared, cooperative=how.way == "grid")


def _partial(b: Backend, shape: Columns, how: Plan) -> Array:
    return b.empty((shape.samples * how.parts, shape.channels, 2), b.xp.float64)


def _shape(shape: Columns, how: Plan) -> list[Any]:
    """The kernels' SHAPE, but for `given`."""
    return [np.uint32(n) for n in (shape.samples, shape.depth, shape.channels // how.pack, how.lanes)]


# ------------------------------------------------------------------------------------------------------------ backward
def backward(b: Backend, spec: Any, shape: Columns, arrays: list[Array], ends: list[Array], given: int) -> Array:
    """Fill dx, and dgamma and dbeta where there is one sample; the channels' sums otherwise. `arrays`: x, dy, mean,
    rstd, gamma, dx, of which an absent one is another; `ends`: dgamma and dbeta, likewise; `given`: the kernels'
    Given."""
    x, dy, rstd, gamma = arrays[0], arrays[1], arrays[3], arrays[4]
    pack = pack_of(shape, dy.dtype.itemsize, x.data.ptr, dy.data.ptr)
    how = plan(device_of(b), shape, backends.dtype_name(b, dy), pack, 2, spec.given)
    instances = backward_instances(how, ctype(b, dy), offsets(dy.size)[0], spec.given)
    sums = b.empty((shape.samples * shape.channels, 2), b.xp.float64)
    flags, stem = np.int32(given), "norm_last_backward"
    if how.way != "parts":
        partial = _partial(b, shape, how) if how.way == "grid" else rstd
        last = [flags, *_shape(shape, how), *(np.uint32(n) for n in (how.parts, how.turn))]
        _launch(instances[0], how.grid, how, [*arrays, *ends, sums, partial, *last], stem)
        return sums
    sums_of, finish, *apply = instances
    partial, groups = _partial(b, shape, how), shape.samples * shape.channels // shape.own
    numbers = [flags, *_shape(shape, how), np.uint32(shape.own)]
    _launch(sums_of, how.rows * how.parts, how, [*arrays, partial, *numbers, np.uint32(how.parts)], stem)
    told = b.empty((groups, 2), b.xp.float64)
    last = [np.uint32(n) for n in (shape.samples, shape.channels, shape.own, how.parts)]
    arguments = [partial, gamma, *ends, sums, told, flags, *last]
    kernels.launch(stem, finish, -(-groups * 32 // ENDS), ENDS, arguments)
    for instance in apply:
        _launch(instance, how.rows * how.stream, how, [*arrays, told, *numbers, np.uint32(how.stream)], stem)
    return sums


def backward_instances(how: Plan, element: str, offset: str, given: bool) -> list[str]:
    """norm_last_backward.cu's kernels of a plan, in their order."""
    if how.way != "parts":
        return [kernels.name("last_backward", element, how.pack, how.held, offset, how.mode)]
    accumulator = "double" if element == "double" else "float"
    apply = [] if given else [kernels.name("last_backward_apply", element, how.pack, offset)]
    finish = kernels.name("last_backward_finish", accumulator, offset)
    return [kernels.name("last_sums", element, how.pack, offset, given), finish, *apply]
