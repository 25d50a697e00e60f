"""Launchers of norm_last.cu, norm_last_backward.cu and the columns in norm_grid.cu: batch, instance and group norm
where channels come last.

Called by norm.py and norm_backward.py, whose arrays they are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import compile as kernels
from .arrays import ctype, offsets
from .norm_arrays import keep
from .norm_plan import Columns, Plan, device_of, pack_of, plan

Array = Any
ENDS = 128  # threads of a block whose warps have a channel or group each


# ------------------------------------------------------------------------------------------------------------- forward
def forward(
    b: Backend, spec: Any, shape: Columns, arrays: list[Array], mean: Array, rstd: Array, running: tuple[Array, ...]
) -> None:
    """Fill y, mean and rstd; `arrays`: x, gamma, beta (cast, or None) and y."""
    x, gamma, beta, y = arrays
    kept = keep(b, spec, gamma, beta, mean, rstd, running)
    pack = pack_of(shape, x.dtype.itemsize, x.data.ptr)
    how = plan(device_of(b), shape, backends.dtype_name(b, x), pack, given=spec.given)
    instances = forward_instances(how, ctype(b, x), offsets(x.size)[0], spec.given)
    arrays = [x, *(rstd if p is None else p for p in (gamma, beta)), y]
    if how.way != "parts":
        _at_once(b, shape, how, "norm_last", instances[0], arrays, kept)
        return
    partial = rstd if spec.given else _partial(b, shape, how)
    *moments, finish, apply = instances
    for instance in moments:
        arguments = [x, partial, *_shape(shape, how), np.uint32(how.parts)]
        kernels.launch("norm_last", instance, how.rows * how.parts, how.threads, arguments)
    groups = shape.samples * shape.channels // shape.own
    numbers = shape.samples, shape.depth, shape.channels, shape.own, how.parts
    arguments = [partial, *kept, *(np.uint32(n) for n in numbers)]
    kernels.launch("norm_last", finish, -(-groups * 32 // ENDS), ENDS, arguments)
    last = [np.uint32(n) for n in (shape.own, how.stream)]
    arguments = [*arrays, mean, rstd, kept[4], *_shape(shape, how), *last]
    kernels.launch("norm_last", apply, how.rows * how.stream, how.threads, arguments)


def forward_instances(how: Plan, element: str, offset: str, given: bool) -> list[str]:
    """norm_last.cu's kernels of a plan, in their order."""
    if how.way != "parts":
        kernel = "last_grid_forward" if how.way == "grid" else "last_forward"
        return [kernels.name(kernel, element, how.pack, how.held, offset)]
    moments = [] if given else [kernels.name("last_moments", element, how.pack, how.held, offset)]
    finish = kernels.name("last_finish", offset, given)
    return [*moments, finish, kernels.name("last_apply", element, how.pack, offset)]


def _at_once(
    b: Backend, shape: Columns, how: Plan, stem: str, instance: str, arrays: list[Array], more: list[Any]
) -> None:
    """The one launch of a plan; `more`: what the kernel takes between its arrays and its shape."""
    if how.way == "grid":
        last = [np.uint32(n) for n in (how.parts, how.turn)]
        arguments = [*arrays, _partial(b, shape, how), *more, *_shape(shape, how), *last]
        kernels.launch("norm_grid", instance, how.grid, how.threads, arguments, shared=how.shared, cooperative=True)
    else:
        arguments = [*arrays, *more, *_shape(shape, how)]
        kernels.launch(stem, instance, how.grid, how.threads, arguments, shared=how.shared)


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
    x, dy, gamma = arrays[0], arrays[1], arrays[4]
    pack = pack_of(shape, dy.dtype.itemsize, x.data.ptr, dy.data.ptr)
    how = plan(device_of(b), shape, backends.dtype_name(b, dy), pack, arrays=2, given=spec.given)
    instances = backward_instances(how, ctype(b, dy), offsets(dy.size)[0], spec.given)
    sums = b.empty((shape.samples * shape.channels, 2), b.xp.float64)
    flags, stem = np.int32(given), "norm_last_backward"
    if how.way != "parts":
        _at_once(b, shape, how, stem, instances[0], [*arrays, *ends, sums], [flags])
        return sums
    sums_of, finish, *apply = instances
    partial, groups = _partial(b, shape, how), shape.samples * shape.channels // shape.own
    numbers = [flags, *_shape(shape, how), np.uint32(shape.own)]
    arguments = [*arrays, partial, *numbers, np.uint32(how.parts)]
    kernels.launch(stem, sums_of, how.rows * how.parts, how.threads, arguments)
    told = b.empty((groups, 2), b.xp.float64)
    last = [np.uint32(n) for n in (shape.samples, shape.channels, shape.own, how.parts)]
    arguments = [partial, gamma, *ends, sums, told, flags, *last]
    kernels.launch(stem, finish, -(-groups * 32 // ENDS), ENDS, arguments)
    for instance in apply:
        arguments = [*arrays, told, *numbers, np.uint32(how.stream)]
        kernels.launch(stem, instance, how.rows * how.stream, how.threads, arguments)
    return sums


def backward_instances(how: Plan, element: str, offset: str, given: bool) -> list[str]:
    """norm_last_backward.cu's kernels of a plan, in their order."""
    if how.way != "parts":
        kernel = "last_grid_backward" if how.way == "grid" else "last_backward"
        return [kernels.name(kernel, element, how.pack, how.held, offset)]
    accumulator = "double" if element == "double" else "float"
    apply = [] if given else [kernels.name("last_backward_apply", element, how.pack, offset)]
    finish = kernels.name("last_backward_finish", accumulator, offset)
    return [kernels.name("last_sums", element, how.pack, offset, given), finish, *apply]
