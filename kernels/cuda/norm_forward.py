"""Launchers of norm_forward.cu and of the forward in norm_cooperative.cu: batch, group, instance, layer and RMS norm,
called as the portable code is. Arrays whose channels are the last axis go to channels_last_norm.py.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import channels_last_norm
from .compile import CUDA_TYPE, instance_name
from .launch import alignment, cached_plan, contiguous, launch, offset_types
from .norm_arguments import make_layout, parameter, refuses, stats_arguments
from .norm_plan import STREAMING_MAPPINGS, ColumnLayout, LaunchPlan, RowLayout, device_of, make_plan, pack_of

__all__ = [
    "batch_norm_forward",
    "group_norm_forward",
    "instance_norm_forward",
    "layer_norm_forward",
    "refuses",
    "rms_norm_forward",
]

Array = Any
PER_ROW, PER_CHANNEL, PER_ELEMENT = 0, 1, 2  # scale_shift.cuh's ParameterMode


# ----------------------------------------------------------------------------------------------------------------- ops
def batch_norm_forward(
    b: Backend,
    norm: Any,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
) -> tuple[Array, Array | None, Array]:
    """y, mean and rstd; running statistics are updated in the same launch."""
    if running_mean is None or not (norm.use_running_stats or norm.training):
        return _forward(b, norm, x, gamma, beta)
    running = [contiguous(b, a) for a in (running_mean, running_var)]
    result = _forward(b, norm, x, gamma, beta, *running)
    for array, updated in zip((running_mean, running_var), running, strict=True):
        if updated is not array and not norm.use_running_stats:
            array[...] = updated
    return result


def _forward_own_statistics(
    b: Backend, norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array]:
    """y, mean (None in RMS norm) and rstd."""
    return _forward(b, norm, x, gamma, beta)


group_norm_forward = instance_norm_forward = layer_norm_forward = rms_norm_forward = _forward_own_statistics


def _forward(
    b: Backend, norm: Any, x: Array, gamma: Array | None, beta: Array | None, *running: Array
) -> tuple[Array, Array | None, Array]:
    x, y = contiguous(b, x), b.empty(norm.rows.shape, x.dtype)
    rows, dtype, shape = cached_plan(make_layout, b, norm, x.dtype)
    allocate = b.empty if x.size else b.zeros
    mean = allocate(shape, b.xp.float64) if norm.rows.centred else None
    rstd = allocate(shape, b.xp.float64)
    if not x.size:
        return y, mean, rstd
    if isinstance(rows, ColumnLayout):
        channels_last_norm.forward(
            b, norm, rows, [x, *(parameter(b, p, dtype) for p in (gamma, beta)), y], mean, rstd, running
        )
        return y, mean, rstd
    plan, instances, geometry, packed = cached_plan(_make, b, norm, x.dtype, alignment(x))
    gamma, beta = (parameter(b, p, dtype, packed) for p in (gamma, beta))
    arrays = [rstd if a is None else a for a in (x, gamma, beta, y)]
    stats = stats_arguments(b, norm, gamma, beta, mean, rstd, running)
    (_launch_in_waves if plan.mapping in STREAMING_MAPPINGS else _launch_once)(
        b, plan, instances, geometry, arrays, stats
    )
    return y, mean, rstd


def _make(b: Backend, norm: Any, dtype: Any, aligned_to: int) -> tuple[LaunchPlan, list[str], list[Any], int]:
    """The plan for rows, its kernels, the numbers that they take, and the bytes to which parameters are aligned."""
    layout, wide, _ = make_layout(b, norm, dtype)
    rows = cast(RowLayout, layout)
    name = backends.name_of_dtype(b, dtype)
    pack = pack_of(rows, dtype.itemsize, aligned_to)
    plan = make_plan(device_of(b), rows, name, pack, use_running_stats=norm.use_running_stats)
    instances = _instances(norm, rows, plan, CUDA_TYPE[name], offset_types(rows.size)[0])
    return plan, instances, _geometry(rows, plan), pack * wide().itemsize


# ------------------------------------------------------------------------------------------------------------- launches
def _stem(plan: LaunchPlan) -> str:
    return "norm_cooperative" if plan.mapping == "grid" else "norm_forward"


def _instances(norm: Any, rows: RowLayout, plan: LaunchPlan, element: str, offset: str) -> list[str]:
    """The kernels of a plan, in their order."""
    mode = PER_ELEMENT if rows.per_element else PER_ROW if rows.channel_cells == rows.cells else PER_CHANNEL
    centred = norm.rows.centred
    if plan.mapping == "grid":
        return [instance_name("cooperative_forward", element, plan.pack, plan.register_packs, offset, mode, centred)]
    if plan.mapping not in STREAMING_MAPPINGS:
        mapping = ("warp", "block").index(plan.mapping)  # row_reduce.cuh's Mapping
        return [instance_name("norm_forward", element, plan.pack, plan.register_packs, offset, mode, centred, mapping)]
    apply = instance_name("norm_apply", element, plan.pack, offset, mode, norm.use_running_stats)
    if norm.use_running_stats:
        return [apply]
    return [instance_name("norm_moments", element, plan.pack, plan.register_packs, offset, centred), apply]


def _geometry(rows: RowLayout, plan: LaunchPlan) -> list[Any]:
    numbers = rows.rows, rows.segments, rows.cells // plan.pack, rows.period, max(1, rows.channel_cells // plan.pack)
    return [np.uint32(n) for n in numbers]


def _launch_once(
    b: Backend, plan: LaunchPlan, instances: list[str], geometry: list[Any], arrays: list[Array], stats: list[Any]
) -> None:
    if plan.mapping == "grid":
        partial = b.empty((plan.rows * plan.parts, 2), b.xp.float64)
        arguments = [*arrays, partial, *stats, *geometry, np.uint32(plan.parts), np.uint32(plan.wave)]
    else:
        arguments = [*arrays, *stats, *geometry, np.int32(plan.lanes)]
    cooperative = plan.mapping == "grid"
    launch(
        _stem(plan), instances[0], plan.grid_size, plan.threads, arguments, shared=plan.shared, cooperative=cooperative
    )


def _launch_in_waves(
    b: Backend, plan: LaunchPlan, instances: list[str], geometry: list[Any], arrays: list[Array], stats: list[Any]
) -> None:
    """Moments, then y, for as many rows at a time as the plan says; or y alone, if running statistics are used."""
    *moments, apply = instances
    partial = b.empty((plan.rows * plan.parts, 2), b.xp.float64) if moments else stats[1]
    parts = np.uint32(plan.parts)
    for first in range(0, plan.rows, plan.wave):
        wave = min(plan.wave, plan.rows - first)
        for instance in moments:
            arguments = [arrays[0], partial, *geometry[:3], parts, np.uint32(first)]
            launch("norm_forward", instance, wave * plan.parts, plan.threads, arguments)
        arguments = [*arrays, partial, *stats, *geometry, parts, np.uint32(plan.stream_blocks), np.uint32(first)]
        launch("norm_forward", apply, wave * plan.stream_blocks, plan.threads, arguments)
