"""Launchers of norm_backward.cu and of the backward in norm_grid.cu: batch, instance and group norm, called as the
portable code is.

Where channels come last, norm_last.py serves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import compile as kernels
from . import norm_arrays, norm_last
from .arrays import contiguous, ctype, offsets
from .norm_arrays import DBETA, DGAMMA, GAMMA, X
from .norm_plan import Columns, Plan, Rows, device_of, pack_of, plan

Array = Any
ENDS = 128  # threads of a block of norm_gradients, a warp for each channel


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return norm_arrays.refuses(op, spec, *arrays)


def _backward(
    b: Backend, spec: Any, dy: Array, x: Array | None, mean: Array, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)`."""
    wanted = spec.gamma_dtype, spec.beta_dtype
    dy, dtype = contiguous(b, dy), norm_arrays.accumulator(b, dy)
    dx = b.empty(spec.rows.shape, dy.dtype)
    if not dy.size:
        return dx, *(None if p is None else b.zeros(spec.rows.parameter, p) for p in wanted)
    x = None if x is None else contiguous(b, x)
    gamma = norm_arrays.parameter(b, gamma, dtype)
    ends = [None if p is None else b.empty(spec.rows.parameter, dtype) for p in wanted]
    given = sum(bit for bit, a in ((GAMMA, gamma), (DGAMMA, ends[0]), (DBETA, ends[1]), (X, x)) if a is not None)
    arrays = [dy if x is None else x, dy, mean, rstd, *(rstd if a is None else a for a in (gamma, dx, *ends))]
    shape = norm_arrays.lie(spec.rows)
    if isinstance(shape, Columns):
        sums = norm_last.backward(b, spec, shape, arrays[:6], arrays[6:], given)
        channels, samples, parts = shape.channels, shape.samples, 1
        left = samples > 1
    else:
        rows, group = units_of(shape)
        pack = pack_of(rows, dy.dtype.itemsize, arrays[0].data.ptr, dy.data.ptr)
        dtype_name = backends.dtype_name(b, dy)
        how = plan(device_of(b), rows, dtype_name, pack, arrays=2, group=group, given=spec.given)
        sums = (_sums if how.way == "parts" else _at_once)(b, spec, rows, group, how, arrays, given)
        channels, samples, parts = rows.period, rows.rows // rows.period, how.parts if how.way == "parts" else 1
        left = samples > 1 or spec.given
    if left and given & (DGAMMA | DBETA):
        _gradients(channels, samples, parts, dtype, sums, arrays[6:], given)
    return dx, *(a if a is None else norm_arrays.cast(a, p) for a, p in zip(ends, wanted, strict=True))


batch_norm_backward = instance_norm_backward = group_norm_backward = _backward


def units_of(whole: Rows) -> tuple[Rows, int]:
    """The channels of a norm's rows, as rows; and how many of them share their statistics."""
    channels = whole.cells // whole.own
    return Rows(whole.rows * channels, whole.segments, whole.own, whole.period * channels, whole.own), channels


def _stem(how: Plan) -> str:
    return "norm_grid" if how.way == "grid" else "norm_backward"


def _instances(spec: Any, how: Plan, element: str, offset: str) -> list[str]:
    """The kernels of a plan, in their order."""
    if how.way == "group":
        return [kernels.name("group_norm_backward", element, how.pack, how.held, offset)]
    if how.way == "grid":
        return [kernels.name("grid_backward", element, how.pack, how.held, offset)]
    if how.way != "parts":
        way = ("team", "block").index(how.way)  # rows.cuh's Way
        return [kernels.name("norm_backward", element, how.pack, how.held, offset, way)]
    apply = [] if spec.given else [kernels.name("norm_backward_apply", element, how.pack, offset)]
    return [kernels.name("norm_sums", element, how.pack, offset, spec.given), *apply]


def _numbers(rows: Rows, how: Plan, given: int) -> list[Any]:
    numbers = rows.rows, rows.segments, rows.cells // how.pack, rows.period
    return [np.int32(given), *(np.uint32(n) for n in numbers)]


def _at_once(b: Backend, spec: Any, rows: Rows, group: int, how: Plan, arrays: list[Array], given: int) -> Array:
    """One launch; the rows' sums, if there are several of a channel."""
    [instance] = _instances(spec, how, ctype(b, arrays[1]), offsets(rows.size)[0])
    sums = b.empty((rows.rows, 2), b.xp.float64) if rows.rows > rows.period else arrays[3]
    numbers, cooperative = _numbers(rows, how, given), how.way == "grid"
    if cooperative:
        partial = b.empty((rows.rows * how.parts, 2), b.xp.float64)
        arguments = [*arrays, sums, partial, *numbers, np.uint32(how.parts), np.uint32(how.turn)]
    else:
        arguments = [*arrays, sums, *numbers, np.uint32(group), np.int32(how.lanes)]
        arguments += [np.uint32(how.packs)] if how.way == "group" else []
    kernels.launch(_stem(how), instance, how.grid, how.threads, arguments, shared=how.shared, cooperative=cooperative)
    return sums


def _sums(b: Backend, spec: Any, rows: Rows, group: int, how: Plan, arrays: list[Array], given: int) -> Array:
    """The sums, then dx, for as many rows at a time as the plan says; or both at once, where statistics were given."""
    sums_of, *apply = _instances(spec, how, ctype(b, arrays[1]), offsets(rows.size)[0])
    sums = b.empty((rows.rows * how.parts, 2), b.xp.float64)
    numbers = [*_numbers(rows, how, given), np.uint32(group)]
    for first in range(0, rows.rows, how.turn):
        turn = min(how.turn, rows.rows - first)
        last = [np.uint32(how.parts), np.uint32(first)]
        kernels.launch("norm_backward", sums_of, turn * how.parts, how.threads, [*arrays, sums, *numbers, *last])
        for instance in apply:
            last = [np.uint32(how.parts), np.uint32(how.stream), np.uint32(first)]
            kernels.launch("norm_backward", instance, turn * how.stream, how.threads, [*arrays, sums, *numbers, *last])
    return sums


def _gradients(channels: int, samples: int, parts: int, dtype: Any, sums: Array, ends: list[Array], given: int) -> None:
    """dgamma and dbeta, from the sums of the channels of each sample, or of their parts."""
    accumulator = kernels.CUDA_TYPE[np.dtype(dtype).name]
    instance = kernels.name("norm_gradients", accumulator, offsets(channels * samples * parts)[0])
    numbers = [np.uint32(n) for n in (channels, samples, parts)]
    grid = -(-channels * 32 // ENDS)
    kernels.launch("norm_backward", instance, grid, ENDS, [sums, *ends, np.int32(given), *numbers])
