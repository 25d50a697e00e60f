"""Launchers of norm_backward.cu: batch, instance and group norm, called as the portable code is. Arrays whose channels
are the last axis go to channels_last_norm.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import channels_last_norm, norm_arguments
from .compile import CUDA_TYPE, instance_name
from .launch import alignment, cached_plan, contiguous, divisor, launch, offset_types
from .norm_arguments import DBETA, DGAMMA, GAMMA, HAS_X
from .norm_plan import STREAMING_MAPPINGS, ColumnLayout, LaunchPlan, RowLayout, device_of, make_plan, pack_of

Array = Any
GRADIENT_THREADS = 128  # threads of a block of parameter_gradients: one warp a channel


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return norm_arguments.refuses(step, spec, *arrays)


def _backward(
    b: Backend, spec: Any, dy: Array, x: Array | None, mean: Array, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)`."""
    dtypes, dy = (spec.gamma_dtype, spec.beta_dtype), contiguous(b, dy)
    shape, dtype, _ = cached_plan(norm_arguments.make_layout, b, spec, dy.dtype)
    dx = b.empty(spec.rows.shape, dy.dtype)
    if not dy.size:
        return dx, *(None if p is None else b.zeros(spec.rows.parameter, p) for p in dtypes)
    x = None if x is None else contiguous(b, x)
    mean, rstd = contiguous(b, mean), contiguous(b, rstd)  # array code's statistics may be in another order
    gamma = norm_arguments.parameter(b, gamma, dtype)
    gradients = [None if p is None else b.empty(spec.rows.parameter, dtype) for p in dtypes]
    present = ((GAMMA, gamma), (DGAMMA, gradients[0]), (DBETA, gradients[1]), (HAS_X, x))
    flags = sum(bit for bit, array in present if array is not None)
    arrays = [dy if x is None else x, dy, mean, rstd, rstd if gamma is None else gamma, dx]  # rstd: not read then
    gradient_arrays = [rstd if a is None else a for a in gradients]
    if isinstance(shape, ColumnLayout):
        sums = channels_last_norm.backward(b, spec, shape, arrays, gradient_arrays, flags)
        channels, samples, parts = shape.channels, shape.samples, 1
        reduce_samples = samples > 1
    else:
        made = cached_plan(_make, b, spec, dy.dtype, alignment(arrays[0], dy), flags)
        rows, plan = made.rows, made.plan
        sums = (_launch_streaming if plan.mapping in STREAMING_MAPPINGS else _launch_once)(
            b, made, [*arrays, *gradient_arrays]
        )
        channels, samples, parts = rows.period, rows.rows // rows.period, plan.parts
        reduce_samples = samples > 1 or spec.use_running_stats
    if reduce_samples and flags & (DGAMMA | DBETA):
        _launch_parameter_gradients(channels, samples, parts, dtype, sums, gradient_arrays, flags)
    return dx, *(a if a is None else norm_arguments.as_dtype(a, p) for a, p in zip(gradients, dtypes, strict=True))


batch_norm_backward = instance_norm_backward = group_norm_backward = _backward


class Made(NamedTuple):
    """What a backward of rows needs. numbers: of the kernels' NUMBERS."""

    rows: RowLayout
    plan: LaunchPlan
    instances: list[str]
    numbers: list[Any]


def _make(b: Backend, spec: Any, dtype: Any, aligned_to: int, flags: int) -> Made:
    rows, group = channel_rows(cast(RowLayout, norm_arguments.memory_layout(spec.rows)))
    name = backends.name_of_dtype(b, dtype)
    pack = pack_of(rows, dtype.itemsize, aligned_to)
    running = spec.use_running_stats
    plan = make_plan(device_of(b), rows, name, pack, arrays=2, group=group, use_running_stats=running)
    instances = _instances(spec, plan, CUDA_TYPE[name], offset_types(rows.size)[0])
    return Made(rows, plan, instances, _numbers(rows, group, plan, flags))


def channel_rows(whole: RowLayout) -> tuple[RowLayout, int]:
    """The channels of a norm's rows, as rows; and how many of them share one mean and variance."""
    channels = whole.cells // whole.channel_cells
    return RowLayout(
        whole.rows * channels, whole.segments, whole.channel_cells, whole.period * channels, whole.channel_cells
    ), channels


def _instances(spec: Any, plan: LaunchPlan, element: str, offset: str) -> list[str]:
    """The kernels of a plan, in their order."""
    if plan.mapping == "group":
        return [instance_name("group_norm_backward", element, plan.pack, plan.register_packs, offset)]
    if plan.mapping not in STREAMING_MAPPINGS:
        mapping = ("warp", "block").index(plan.mapping)  # row_reduce.cuh's Mapping
        return [instance_name("norm_backward", element, plan.pack, plan.register_packs, offset, mapping)]
    apply = [] if spec.use_running_stats else [instance_name("norm_backward_apply", element, plan.pack, offset)]
    return [instance_name("norm_sums", element, plan.pack, offset, spec.use_running_stats), *apply]


def _numbers(rows: RowLayout, group: int, plan: LaunchPlan, flags: int) -> list[Any]:
    """The kernels' NUMBERS."""
    length = rows.cells // plan.pack
    sizes = [np.uint32(n) for n in (rows.rows, rows.segments, length)]
    return [np.int32(flags), *sizes, *divisor(length), np.uint32(rows.period), np.uint32(group)]


def _launch_once(b: Backend, made: Made, arrays: list[Array]) -> Array:
    """One launch; the rows' sums, if there are several of a channel."""
    rows, plan, [instance], numbers = made
    unused = arrays[3]  # rstd: where a channel is one row, the kernel writes no sums
    sums = b.empty((rows.rows, 2), b.xp.float64) if rows.rows > rows.period else unused
    arguments = [*arrays, sums, *numbers, np.int32(plan.lanes)]
    if plan.mapping == "group":
        runs = -(-rows.cells // plan.pack // plan.lanes)  # of a channel
        arguments += [np.uint32(plan.packs), np.uint32(plan.lanes.bit_length() - 1), *divisor(runs)]
    launch("norm_backward", instance, plan.grid_size, plan.threads, arguments, shared=plan.shared)
    return sums


def _launch_streaming(b: Backend, made: Made, arrays: list[Array]) -> Array:
    """The sums, then dx; or both at once, if running statistics are used."""
    rows, plan, (sums_of, *apply), numbers = made
    sums, parts = b.empty((rows.rows * plan.parts, 2), b.xp.float64), np.uint32(plan.parts)
    arguments = [*arrays, sums, *numbers, parts]
    launch("norm_backward", sums_of, rows.rows * plan.parts, plan.threads, arguments)
    for instance in apply:
        arguments = [*arrays, sums, *numbers, parts, np.uint32(plan.stream_blocks)]
        launch("norm_backward", instance, rows.rows * plan.stream_blocks, plan.threads, arguments)
    return sums


def _launch_parameter_gradients(
    channels: int, samples: int, parts: int, dtype: Any, sums: Array, gradients: list[Array], flags: int
) -> None:
    """dgamma and dbeta, from the sums of the channels of each sample, or of their parts."""
    accumulator = CUDA_TYPE[np.dtype(dtype).name]
    instance = instance_name("parameter_gradients", accumulator, offset_types(channels * samples * parts)[0])
    numbers = [np.uint32(n) for n in (channels, samples, parts)]
    grid_size = -(-channels * 32 // GRADIENT_THREADS)
    launch("norm_backward", instance, grid_size, GRADIENT_THREADS, [sums, *gradients, np.int32(flags), *numbers])
