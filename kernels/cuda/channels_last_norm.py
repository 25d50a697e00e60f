"""Launchers of channels_last_norm.cu and channels_last_norm_backward.cu: batch, instance and group norm where channels
are the last axis. Called by norm_forward.py and norm_backward.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import instance_name
from .launch import cuda_type, launch, offset_types
from .norm_arguments import stats_arguments
from .norm_plan import ColumnLayout, LaunchPlan, device_of, make_plan, pack_of

Array = Any
GRADIENT_THREADS = 128  # threads of a block whose warps each process one channel or group


# ------------------------------------------------------------------------------------------------------------- forward
def forward(
    b: Backend,
    spec: Any,
    shape: ColumnLayout,
    arrays: list[Array],
    mean: Array,
    rstd: Array,
    running: tuple[Array, ...],
) -> None:
    """Fill y, mean and rstd; `arrays`: x, gamma, beta (cast, or None) and y."""
    x, gamma, beta, y = arrays
    stats = stats_arguments(b, spec, gamma, beta, mean, rstd, running)
    pack = pack_of(shape, x.dtype.itemsize, x.data.ptr)
    plan = make_plan(device_of(b), shape, backends.dtype_name(b, x), pack, use_running_stats=spec.use_running_stats)
    instances = forward_instances(plan, cuda_type(b, x), offset_types(x.size)[0], spec.use_running_stats)
    arrays = [x, *(rstd if p is None else p for p in (gamma, beta)), y]
    if plan.mapping != "three_launches":
        arguments = [*arrays, *stats, *_shape(shape, plan)]
        launch("channels_last_norm", instances[0], plan.grid_size, plan.threads, arguments)
        return
    partial = rstd if spec.use_running_stats else _partial(b, shape, plan)
    *moments, finish, apply = instances
    for instance in moments:
        arguments = [x, partial, *_shape(shape, plan), np.uint32(plan.parts)]
        launch("channels_last_norm", instance, plan.rows * plan.parts, plan.threads, arguments)
    groups = shape.samples * shape.channels // shape.group_channels
    numbers = shape.samples, shape.depth, shape.channels, shape.group_channels, plan.parts
    arguments = [partial, *stats, *(np.uint32(n) for n in numbers)]
    launch("channels_last_norm", finish, -(-groups * 32 // GRADIENT_THREADS), GRADIENT_THREADS, arguments)
    last = [np.uint32(n) for n in (shape.group_channels, plan.stream_blocks)]
    arguments = [*arrays, mean, rstd, stats[4], *_shape(shape, plan), *last]
    launch("channels_last_norm", apply, plan.rows * plan.stream_blocks, plan.threads, arguments)


def forward_instances(plan: LaunchPlan, element: str, offset: str, use_running_stats: bool) -> list[str]:
    """channels_last_norm.cu's kernels of a plan, in their order."""
    if plan.mapping != "three_launches":
        return [instance_name("channels_last_forward", element, plan.pack, plan.register_packs, offset)]
    moments = [] if use_running_stats else [instance_name("channels_last_moments", element, plan.pack, offset)]
    finish = instance_name("channels_last_finish", offset, use_running_stats)
    return [*moments, finish, instance_name("channels_last_apply", element, plan.pack, offset)]


def _partial(b: Backend, shape: ColumnLayout, plan: LaunchPlan) -> Array:
    return b.empty((shape.samples * plan.parts, shape.channels, 2), b.xp.float64)


def _shape(shape: ColumnLayout, plan: LaunchPlan) -> list[Any]:
    """The kernels' SHAPE arguments, without `flags`."""
    return [np.uint32(n) for n in (shape.samples, shape.depth, shape.channels // plan.pack, plan.lanes)]


# ------------------------------------------------------------------------------------------------------------ backward
def backward(
    b: Backend, spec: Any, shape: ColumnLayout, arrays: list[Array], gradients: list[Array], flags: int
) -> Array:
    """Fill dx, and dgamma and dbeta where there is one sample; the channels' sums otherwise. `arrays`: x, dy, mean,
    rstd, gamma, dx, and `gradients`: dgamma and dbeta, where any array stands for a missing one. `flags`: the kernels'
    Flags, which say what is missing."""
    x, dy, gamma = arrays[0], arrays[1], arrays[4]
    pack = pack_of(shape, dy.dtype.itemsize, x.data.ptr, dy.data.ptr)
    plan = make_plan(
        device_of(b), shape, backends.dtype_name(b, dy), pack, arrays=2, use_running_stats=spec.use_running_stats
    )
    instances = backward_instances(plan, cuda_type(b, dy), offset_types(dy.size)[0], spec.use_running_stats)
    sums = b.empty((shape.samples * shape.channels, 2), b.xp.float64)
    packed, stem = np.int32(flags), "channels_last_norm_backward"
    if plan.mapping != "three_launches":
        arguments = [*arrays, *gradients, sums, packed, *_shape(shape, plan)]
        launch(stem, instances[0], plan.grid_size, plan.threads, arguments)
        return sums
    sums_of, finish, *apply = instances
    partial, groups = _partial(b, shape, plan), shape.samples * shape.channels // shape.group_channels
    numbers = [packed, *_shape(shape, plan), np.uint32(shape.group_channels)]
    arguments = [*arrays, partial, *numbers, np.uint32(plan.parts)]
    launch(stem, sums_of, plan.rows * plan.parts, plan.threads, arguments)
    group_sums = b.empty((groups, 2), b.xp.float64)
    last = [np.uint32(n) for n in (shape.samples, shape.channels, shape.group_channels, plan.parts)]
    arguments = [partial, gamma, *gradients, sums, group_sums, packed, *last]
    launch(stem, finish, -(-groups * 32 // GRADIENT_THREADS), GRADIENT_THREADS, arguments)
    for instance in apply:
        arguments = [*arrays, group_sums, *numbers, np.uint32(plan.stream_blocks)]
        launch(stem, instance, plan.rows * plan.stream_blocks, plan.threads, arguments)
    return sums


def backward_instances(plan: LaunchPlan, element: str, offset: str, use_running_stats: bool) -> list[str]:
    """channels_last_norm_backward.cu's kernels of a plan, in their order."""
    if plan.mapping != "three_launches":
        return [instance_name("channels_last_backward", element, plan.pack, plan.register_packs, offset)]
    accumulator = "double" if element == "double" else "float"
    apply = [] if use_running_stats else [instance_name("channels_last_backward_apply", element, plan.pack, offset)]
    finish = instance_name("channels_last_backward_finish", accumulator, offset)
    return [instance_name("channels_last_sums", element, plan.pack, offset, use_running_stats), finish, *apply]
