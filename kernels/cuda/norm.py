"""Launchers of the forward in norm.cu and norm_grid.cu: batch, group, instance, layer and RMS norm, called as the
portable code is.

Where channels come last, norm_last.py serves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import compile as kernels
from . import norm_last
from .arrays import contiguous, ctype, offsets
from .norm_arrays import accumulator, keep, lie, parameter, refuses, statistics
from .norm_plan import Columns, Plan, Rows, device_of, pack_of, plan

__all__ = [
    "batch_norm_forward",
    "group_norm_forward",
    "instance_norm_forward",
    "layer_norm_forward",
    "refuses",
    "rms_norm_forward",
]

Array = Any
ROW, CHANNEL, CELL = 0, 1, 2  # forward.cuh's Own


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
    if running_mean is None or not (norm.given or norm.training):
        return _forward(b, norm, x, gamma, beta)
    running = [contiguous(b, a) for a in (running_mean, running_var)]
    result = _forward(b, norm, x, gamma, beta, *running)
    for array, updated in zip((running_mean, running_var), running, strict=True):
        if updated is not array and not norm.given:
            array[...] = updated
    return result


def _own_forward(
    b: Backend, norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array]:
    """y, mean (None in RMS norm) and rstd."""
    return _forward(b, norm, x, gamma, beta)


group_norm_forward = instance_norm_forward = layer_norm_forward = rms_norm_forward = _own_forward


def _forward(
    b: Backend, norm: Any, x: Array, gamma: Array | None, beta: Array | None, *running: Array
) -> tuple[Array, Array | None, Array]:
    x, y = contiguous(b, x), b.empty(norm.rows.shape, x.dtype)
    make = b.empty if x.size else b.zeros
    mean, rstd = statistics(norm.rows, make, b) if norm.rows.centred else None, statistics(norm.rows, make, b)
    if not x.size:
        return y, mean, rstd
    rows, dtype = lie(norm.rows), accumulator(b, x)
    if isinstance(rows, Columns):
        norm_last.forward(b, norm, rows, [x, *(parameter(b, p, dtype) for p in (gamma, beta)), y], mean, rstd, running)
        return y, mean, rstd
    pack = pack_of(rows, x.dtype.itemsize, x.data.ptr)
    gamma, beta = (parameter(b, p, dtype, pack * dtype().itemsize) for p in (gamma, beta))
    arrays = [rstd if a is None else a for a in (x, gamma, beta, y)]
    kept = keep(b, norm, gamma, beta, mean, rstd, running)
    how = plan(device_of(b), rows, backends.dtype_name(b, x), pack, given=norm.given)
    instances = _instances(norm, rows, how, ctype(b, x), offsets(x.size)[0])
    (_twice if how.way == "parts" else _at_once)(b, rows, how, instances, arrays, kept)
    return y, mean, rstd


# ------------------------------------------------------------------------------------------------------------- launches
def _stem(how: Plan) -> str:
    return "norm_grid" if how.way == "grid" else "norm"


def _instances(norm: Any, rows: Rows, how: Plan, element: str, offset: str) -> list[str]:
    """The kernels of a plan, in their order."""
    own, centred = CELL if rows.each else ROW if rows.own == rows.cells else CHANNEL, norm.rows.centred
    if how.way == "grid":
        return [kernels.name("grid_forward", element, how.pack, how.held, offset, own, centred)]
    if how.way != "parts":
        way = ("team", "block").index(how.way)  # rows.cuh's Way
        return [kernels.name("norm_forward", element, how.pack, how.held, offset, own, centred, way)]
    apply = kernels.name("norm_apply", element, how.pack, offset, own, norm.given)
    if norm.given:
        return [apply]
    return [kernels.name("norm_moments", element, how.pack, how.held, offset, centred), apply]


def _geometry(rows: Rows, how: Plan) -> list[Any]:
    numbers = rows.rows, rows.segments, rows.cells // how.pack, rows.period, max(1, rows.own // how.pack)
    return [np.uint32(n) for n in numbers]


def _at_once(b: Backend, rows: Rows, how: Plan, instances: list[str], arrays: list[Array], kept: list[Any]) -> None:
    if how.way == "grid":
        partial = b.empty((how.rows * how.parts, 2), b.xp.float64)
        arguments = [*arrays, partial, *kept, *_geometry(rows, how), np.uint32(how.parts), np.uint32(how.turn)]
    else:
        arguments = [*arrays, *kept, *_geometry(rows, how), np.int32(how.lanes)]
    cooperative = how.way == "grid"
    kernels.launch(
        _stem(how), instances[0], how.grid, how.threads, arguments, shared=how.shared, cooperative=cooperative
    )


def _twice(b: Backend, rows: Rows, how: Plan, instances: list[str], arrays: list[Array], kept: list[Any]) -> None:
    """Moments, then y, for as many rows at a time as the plan says; or y alone, where statistics were given."""
    *moments, apply = instances
    partial = b.empty((how.rows * how.parts, 2), b.xp.float64) if moments else kept[1]
    geometry, parts = _geometry(rows, how), np.uint32(how.parts)
    for first in range(0, how.rows, how.turn):
        turn = min(how.turn, how.rows - first)
        for instance in moments:
            arguments = [arrays[0], partial, *geometry[:3], parts, np.uint32(first)]
            kernels.launch("norm", instance, turn * how.parts, how.threads, arguments)
        arguments = [*arrays, partial, *kept, *geometry, parts, np.uint32(how.stream), np.uint32(first)]
        kernels.launch("norm", apply, turn * how.stream, how.threads, arguments)
