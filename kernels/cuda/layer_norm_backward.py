"""Launchers of layer_norm_backward.cu: the backward of layer and RMS norm, called as the portable code is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import norm_arguments
from .compile import CUDA_TYPE, instance_name
from .launch import alignment, cached_plan, contiguous, cuda_type, launch, offset_types
from .norm_arguments import CENTRED, DBETA, DGAMMA, GAMMA
from .norm_plan import STREAM_THREADS, Device, RowLayout, device_of, lanes_of, pack_of, threads_of

Array = Any
REGISTER_PACKS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 4}  # packs of x, dy, dgamma and dbeta a thread
MAX_DEPTH = 64  # the most rows that a block of layer_norm_apply goes down
MIN_ROWS_PER_TEAM = 4  # the fewest rows of a team; with fewer, its sums for dgamma and dbeta cost too much
COLUMNS = 32  # of a block of reduce_parameter_gradients, which has at most as many warps
ROWS = 16  # that a warp of it loads at once


@dataclass(frozen=True)
class LayerNormPlan:
    """How rows with one parameter an element are assigned to a device; `str()` says it in words.

    mapping: "warp" (`lanes` of a warp a row) and "block" (whole warps a row) read each array once; "two_launches" reads
    it twice, first by `parts` blocks a row. blocks: each of them sums its part of dgamma and dbeta, and another launch
    adds these up; with "two_launches" each goes down `depth` rows.
    """

    mapping: str
    rows: int
    packs: int
    pack: int
    register_packs: int
    threads: int
    lanes: int
    blocks: int
    parts: int = 1
    depth: int = 1

    def __str__(self) -> str:
        row = f"{self.rows:,} rows of {self.packs:,} packs of {self.pack}"
        if self.mapping == "two_launches":
            return f"{row}: two launches, {self.parts} blocks a row and {self.blocks} down {self.depth} rows each"
        return (
            f"{row}: one launch, {self.lanes} threads a row, {self.blocks} blocks of {self.threads} threads that go "
            "down the rows"
        )


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return norm_arguments.refuses(step, spec, *arrays)


def make_plan(device: Device, rows: RowLayout, dtype: str, pack: int) -> LayerNormPlan:
    """The plan for these rows."""
    packs, register_packs = rows.cells // pack, REGISTER_PACKS[dtype]
    fills_device = 2 * rows.rows >= device.multiprocessors or packs <= 2 * device.threads
    if packs <= device.threads * register_packs and fills_device:
        team = packs <= 32 * register_packs
        lanes = lanes_of(packs) if team else threads_of(packs, register_packs, device.threads)
        teams = max(1, min(device.threads // 2, 256) // lanes)  # of a block
        blocks = -(-rows.rows // teams)
        resident = device.multiprocessors * max(1, device.threads // (teams * lanes))  # with 128 registers a thread
        blocks = min(blocks, resident, max(-(-blocks // MIN_ROWS_PER_TEAM), device.multiprocessors))
        return LayerNormPlan(
            "warp" if team else "block", rows.rows, packs, pack, register_packs, teams * lanes, lanes, blocks
        )
    parts = max(1, min(-(-8 * device.multiprocessors // rows.rows), -(-packs // (STREAM_THREADS * 4))))
    parts = -(-packs // -(-packs // parts))  # no part is empty
    depth = min(rows.rows, MAX_DEPTH)
    return LayerNormPlan(
        "two_launches", rows.rows, packs, pack, 0, STREAM_THREADS, 32, -(-rows.rows // depth), parts, depth
    )


def _backward(
    b: Backend, spec: Any, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)`."""
    dtypes = spec.gamma_dtype, spec.beta_dtype
    dy, x, rstd = contiguous(b, dy), contiguous(b, x), contiguous(b, rstd)
    mean = None if mean is None else contiguous(b, mean)  # array code's statistics may be in another order
    dx = b.empty(spec.rows.shape, dy.dtype)
    if not dy.size:
        return dx, *(None if p is None else b.zeros(spec.rows.parameter, p) for p in dtypes)
    rows, dtype, plan, instances = cached_plan(_make, b, spec, dy.dtype, alignment(x, dy))
    gamma = norm_arguments.parameter(b, gamma, dtype, plan.pack * dtype().itemsize)
    columns = b.empty((2, plan.blocks, rows.cells), dtype)
    flags = (gamma is not None) * GAMMA | (mean is not None) * CENTRED
    arrays = [x, dy, rstd if mean is None else mean, rstd, rstd if gamma is None else gamma]
    _launch(b, rows, plan, instances, arrays, dx, columns, flags)
    return dx, *_launch_parameter_gradients(b, spec, plan, columns)


layer_norm_backward = rms_norm_backward = _backward


def _make(b: Backend, spec: Any, dtype: Any, aligned_to: int) -> tuple[RowLayout, Any, LayerNormPlan, list[str]]:
    """The rows, the dtype they are computed in, their plan and its kernels."""
    rows, name = norm_arguments.trailing_rows(spec.rows), backends.name_of_dtype(b, dtype)
    plan = make_plan(device_of(b), rows, name, pack_of(rows, dtype.itemsize, aligned_to))
    instances = _instances(plan, CUDA_TYPE[name], offset_types(rows.size)[0])
    return rows, b.xp.float64 if name == "float64" else b.xp.float32, plan, instances


def _instances(plan: LayerNormPlan, element: str, offset: str) -> list[str]:
    """The kernels of a plan, in their order."""
    if plan.mapping == "two_launches":
        return [
            instance_name("layer_norm_sums", element, plan.pack, offset),
            instance_name("layer_norm_apply", element, plan.pack, offset, MAX_DEPTH),
        ]
    return [
        instance_name(
            "layer_norm_backward",
            element,
            plan.pack,
            plan.register_packs,
            offset,
            ("warp", "block").index(plan.mapping),
        )
    ]


def _launch(
    b: Backend, rows: RowLayout, plan: LayerNormPlan, instances: list[str], arrays: list[Array], dx: Array,
    columns: Array, flags: int,
) -> None:  # fmt: skip
    numbers = [np.int32(flags), np.uint32(rows.rows), np.uint32(plan.packs)]
    if plan.mapping != "two_launches":
        last = [np.int32(plan.lanes)]
        launch("layer_norm_backward", instances[0], plan.blocks, plan.threads, [*arrays, dx, columns, *numbers, *last])
        return
    partial, parts = b.empty((rows.rows, plan.parts, 2), b.xp.float64), np.uint32(plan.parts)
    launch(
        "layer_norm_backward", instances[0], rows.rows * plan.parts, plan.threads, [*arrays, partial, *numbers, parts]
    )
    width = -(-plan.packs // plan.threads)
    arguments = [*arrays, partial, dx, columns, *numbers, parts]
    launch("layer_norm_backward", instances[1], plan.blocks * width, plan.threads, arguments)


def _launch_parameter_gradients(
    b: Backend, spec: Any, plan: LayerNormPlan, columns: Array
) -> tuple[Array | None, Array | None]:
    """dgamma and dbeta, from the blocks' sums."""
    dtypes = spec.gamma_dtype, spec.beta_dtype
    if plan.blocks == 1:
        gradients = [None if p is None else columns[i, 0] for i, p in enumerate(dtypes)]
    else:
        gradients = [None if p is None else b.empty(columns.shape[2:], columns.dtype) for p in dtypes]
        flags = (gradients[0] is not None) * DGAMMA | (gradients[1] is not None) * DBETA
        instance = instance_name("reduce_parameter_gradients", cuda_type(b, columns), offset_types(columns.size)[0])
        arrays = [columns, *(columns if a is None else a for a in gradients)]
        numbers = [np.int32(flags), np.uint32(plan.blocks), np.uint32(columns.shape[2])]
        grid_size = 2 * -(-columns.shape[2] // COLUMNS) if flags else 0
        threads = 32 * min(COLUMNS, -(-plan.blocks // ROWS))
        launch("layer_norm_backward", instance, grid_size, threads, [*arrays, *numbers])
    dgamma, dbeta = (
        None if a is None else norm_arguments.as_dtype(a, p).reshape(spec.rows.parameter)
        for a, p in zip(gradients, dtypes, strict=True)
    )
    return dgamma, dbeta
