"""Launchers of norm_forward.cu: batch, group, instance, layer and RMS norm, called as the portable code is. Arrays
whose channels are the last axis go to channels_last_norm.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import channels_last_norm
from .compile import CUDA_TYPE, instance_name
from .launch import alignment, cached_plan, contiguous, divisor, launch, offset_types
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
    made = cached_plan(_make, b, norm, x.dtype, alignment(x))
    gamma, beta = (parameter(b, p, dtype, made.parameter_alignment) for p in (gamma, beta))
    arrays = [rstd if a is None else a for a in (x, gamma, beta, y)]
    _launch(b, made, arrays, stats_arguments(b, norm, gamma, beta, mean, rstd, running))
    return y, mean, rstd


class Made(NamedTuple):
    """What a forward of rows needs. numbers: of the kernels' NUMBERS; parameter_alignment: bytes."""

    plan: LaunchPlan
    instances: list[str]
    numbers: list[Any]
    parameter_alignment: int


def _make(b: Backend, norm: Any, dtype: Any, aligned_to: int) -> Made:
    layout, wide, _ = make_layout(b, norm, dtype)
    rows = cast(RowLayout, layout)
    name = backends.name_of_dtype(b, dtype)
    pack = pack_of(rows, dtype.itemsize, aligned_to)
    plan = make_plan(device_of(b), rows, name, pack, use_running_stats=norm.use_running_stats)
    instances = _instances(norm, rows, plan, CUDA_TYPE[name], offset_types(rows.size)[0])
    length, channel_packs = rows.cells // pack, max(1, rows.channel_cells // pack)
    numbers = [np.uint32(n) for n in (rows.rows, rows.segments, length)]
    numbers += [*divisor(length), np.uint32(rows.period), np.uint32(channel_packs), *divisor(channel_packs)]
    return Made(plan, instances, numbers, pack * wide().itemsize)


def _instances(norm: Any, rows: RowLayout, plan: LaunchPlan, element: str, offset: str) -> list[str]:
    """The kernels of a plan, in their order."""
    mode = PER_ELEMENT if rows.per_element else PER_ROW if rows.channel_cells == rows.cells else PER_CHANNEL
    centred = norm.rows.centred
    if plan.mapping not in STREAMING_MAPPINGS:
        mapping = ("warp", "block").index(plan.mapping)  # row_reduce.cuh's Mapping
        return [instance_name("norm_forward", element, plan.pack, plan.register_packs, offset, mode, centred, mapping)]
    apply = instance_name("norm_apply", element, plan.pack, offset, mode, norm.use_running_stats)
    if norm.use_running_stats:
        return [apply]
    return [instance_name("norm_moments", element, plan.pack, plan.register_packs, offset, centred), apply]


def _launch(b: Backend, made: Made, arrays: list[Array], stats: list[Any]) -> None:
    """One launch; or moments, then y."""
    plan, [*moments, last], numbers, _ = made
    if plan.mapping not in STREAMING_MAPPINGS:
        arguments = [*arrays, *stats, *numbers, np.int32(plan.lanes)]
        launch("norm_forward", last, plan.grid_size, plan.threads, arguments)
        return
    partial, parts = stats[1], np.uint32(plan.parts)  # rstd is not read in its place
    for instance in moments:
        partial = b.empty((plan.rows * plan.parts, 2), b.xp.float64)
        launch(
            "norm_forward", instance, plan.rows * plan.parts, plan.threads, [arrays[0], partial, *numbers[:5], parts]
        )
    arguments = [*arrays, partial, *stats, *numbers, parts, np.uint32(plan.stream_blocks)]
    launch("norm_forward", last, plan.rows * plan.stream_blocks, plan.threads, arguments)
