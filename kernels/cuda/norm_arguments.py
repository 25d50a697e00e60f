"""What the launchers of all norms share: how an array is divided into rows or columns, and its parameters.

Arrays are in C order. Parameters are cast to the dtype x is computed in; running statistics are read and updated in
place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .launch import aligned, cached_plan, contiguous
from .norm_plan import ColumnLayout, RowLayout

Array = Any
GAMMA, BETA, DGAMMA, DBETA, HAS_X, CENTRED, RUNNING, UNBIASED = (1 << i for i in range(8))  # row_reduce.cuh's Flags
KINDS = ("float16", "bfloat16", "float32", "float64")  # stats_writer.cuh's kinds, in order
LIMIT = 2**31  # of rows, and of cells of a row
TINY = 2.0**-126  # smaller numbers are 0 in the kernels' float32 arithmetic


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel of this family serves this call, or None."""
    if spec.comm is not None:
        return "the sums go over several ranks"
    if 0 < spec.rows.eps < TINY and arrays[0].dtype != np.float64:
        return f"an eps of {spec.rows.eps:g} is 0 in float32"
    shape = memory_layout(spec.rows)
    numbers = (
        (shape.samples * shape.channels, shape.depth)
        if isinstance(shape, ColumnLayout)
        else (shape.rows, shape.segments * shape.cells)
    )
    if max(numbers) >= LIMIT:
        return f"{numbers[0]:,} rows of {numbers[1]:,} cells are too many for 32-bit numbers"
    return None


def memory_layout(rows: Any) -> RowLayout | ColumnLayout:
    """The rows of specs/norm.py, as rows or columns of memory."""
    cells = rows.count
    if 0 in rows.shape:
        return RowLayout(0, 1, 1, 1, 1)
    if rows.parameter_axes == rows.axes:
        return trailing_rows(rows)
    samples, channels = rows.shape[0], math.prod(rows.parameter)
    spatial, group = math.prod(rows.shape) // samples // channels, channels // rows.view[rows.parameter_axes[0]]
    channels_last = spatial > 1 and channels > 1 and rows.parameter_axes[0] > 1  # channels last
    if 0 in rows.axes:
        if channels == 1:
            return RowLayout(1, 1, cells, 1, cells)
        if channels_last or spatial == 1:
            return ColumnLayout(1, samples * spatial, channels, 1)
        return RowLayout(channels, samples, spatial, channels, spatial)
    if channels_last:
        return ColumnLayout(samples, spatial, channels, group)
    return RowLayout(samples * channels // group, 1, group * spatial, channels // group, spatial)


def trailing_rows(rows: Any) -> RowLayout:
    """The rows of layer and RMS norm, which are not empty."""
    return RowLayout(math.prod(rows.shape) // rows.count, 1, rows.count, 1, rows.count, per_element=True)


def as_dtype(array: Array, dtype: Any) -> Array:
    """`array` in `dtype`, itself where it has that already."""
    return array if array.dtype == dtype else array.astype(dtype)


def parameter(b: Backend, array: Array | None, dtype: Any, alignment: int = 1) -> Array | None:
    """A parameter in C order and `dtype`, aligned to `alignment` bytes."""
    if array is None:
        return None
    array = contiguous(b, as_dtype(array, dtype))
    return array if aligned(array, alignment) else array.copy()


def make_layout(b: Backend, spec: Any, dtype: Any) -> tuple[RowLayout | ColumnLayout, Any, tuple[int, ...]]:
    """How the array is divided, the dtype it is computed in, and the shape of statistics: one number a group."""
    rows = spec.rows
    shape = tuple(1 if a in rows.axes else length for a, length in enumerate(rows.view))
    return memory_layout(rows), b.xp.float64 if dtype == np.float64 else b.xp.float32, shape


def stats_arguments(
    b: Backend,
    norm: Any,
    gamma: Array | None,
    beta: Array | None,
    mean: Array | None,
    rstd: Array,
    running: tuple[Array, ...],
) -> list[Any]:
    """The arguments STATS_PARAMS of stats_writer.cuh."""
    dtypes = tuple(a.dtype for a in running)
    numbers = cached_plan(_stats_numbers, b, norm, gamma is not None, beta is not None, dtypes)
    return [rstd if mean is None else mean, rstd, *(running or (rstd, rstd)), *numbers]


def _stats_numbers(b: Backend, norm: Any, has_gamma: bool, has_beta: bool, running: tuple[Any, ...]) -> list[Any]:
    flags = has_gamma * GAMMA | has_beta * BETA | norm.rows.centred * CENTRED
    flags |= bool(running and not norm.use_running_stats) * RUNNING | norm.unbiased * UNBIASED
    kinds = [np.int32(KINDS.index(backends.name_of_dtype(b, dtype))) for dtype in running] or [np.int32(0)] * 2
    return [np.int32(flags), *kinds, np.float64(norm.rows.eps), np.float64(norm.momentum)]
