"""Launchers of the CPU norms' forward: batch, group, instance, layer and RMS norm. Arguments are the portable code's.

A row is a statistics group. Which loops serve:

| rows                                                            | loops                                             |
| --------------------------------------------------------------- | ------------------------------------------------- |
| layer and RMS norm; group norm with very short channels         | `make_forward` of norm_blocks                     |
| small arrays; many rows that fit a core's cache                 | the same, without parameters per cell             |
| all others                                                      | `moments` of pieces, then `scale_shift`           |

Half types are computed in float32, and converted when they are loaded and stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from . import norm_blocks, norm_factors, norm_loops
from .norm_arguments import accumulator, parameter, refuses, row_shape
from .norm_layout import ChannelLayout, Pieces, for_each_layout, pieces_of
from .parallel import chunked, prepared, to_lanes
from .row_sums import SHORT_ROW
from .vectors import LANES

__all__ = [
    "batch_norm_forward",
    "group_norm_forward",
    "instance_norm_forward",
    "layer_norm_forward",
    "refuses",
    "rms_norm_forward",
]

Array = Any


# ----------------------------------------------------------------------------------------------------------------- ops
@prepared
def batch_norm_forward(norm: Any, x: Array, *parameters: Array | None) -> Callable[..., tuple[Array, Array, Array]]:
    """Of x, gamma, beta, running_mean and running_var: y, mean and rstd; in training the running statistics are
    updated."""
    if norm.use_running_stats:
        return _by_running_stats(norm, x.dtype)
    by_own_stats, n = _by_own_stats(norm, x.dtype), norm.rows.count
    if not (norm.training and n):
        return lambda x, gamma, beta, running_mean, running_var: by_own_stats(x, gamma, beta)[:3]
    factor = n / (n - 1) if norm.unbiased and n > 1 else 1.0

    def run(
        x: Array, gamma: Array | None, beta: Array | None, running_mean: Array | None, running_var: Array | None
    ) -> tuple[Array, Array, Array]:
        y, mean, rstd, var = by_own_stats(x, gamma, beta)
        if running_mean is not None and running_var is not None:
            _update(running_mean, mean, norm.momentum, 1.0)
            _update(running_var, var, norm.momentum, factor)
        return y, mean, rstd

    return run


def _update(running: Array, batch: Array, momentum: float, factor: float) -> None:
    """running = (1 - momentum) * running + momentum * batch * factor, in float64."""
    if running.dtype.itemsize > 2 and running.flags.c_contiguous:
        norm_loops.update_running(running, batch.ravel(), momentum, factor)
        return
    new = batch.reshape(running.shape) * factor
    running[...] = (1.0 - momentum) * running.astype(np.float64) + momentum * new


@prepared
def group_norm_forward(
    norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> Callable[..., tuple[Array, Array, Array]]:
    """Of x, gamma and beta: y, mean and rstd."""
    by_own_stats = _by_own_stats(norm, x.dtype)
    return lambda x, gamma, beta: by_own_stats(x, gamma, beta)[:3]


instance_norm_forward = group_norm_forward


@prepared
def layer_norm_forward(
    norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> Callable[..., tuple[Array, Array | None, Array]]:
    """Of x, gamma and beta: y, mean (None in RMS norm) and rstd."""
    dtype, rows, shape = accumulator(x.dtype), norm.rows, row_shape(norm.rows)
    if not x.size:
        return lambda x, gamma, beta: _empty(norm, x)[:3]
    of_gamma, of_beta = parameter(1.0, rows.parameter, dtype), parameter(0.0, rows.parameter, dtype)
    fill, number = _per_cell(x.size, x.dtype, rows), x.size // rows.count
    new = backends.new_result(x.shape, x.dtype)

    def run(x: Array, gamma: Array | None, beta: Array | None) -> tuple[Array, Array | None, Array]:
        y, mean, rstd = new(), np.empty(number), np.empty(number)
        fill(to_lanes(x), to_lanes(y), of_gamma(gamma), of_beta(beta), mean, rstd, rstd)
        return y, mean.reshape(shape) if rows.centred else None, rstd.reshape(shape)

    return run


rms_norm_forward = layer_norm_forward


def _empty(norm: Any, x: Array) -> tuple[Array, Array | None, Array, Array]:
    """y, mean, rstd and var of an empty x."""
    rows, shape = norm.rows, row_shape(norm.rows)
    mean, rstd = np.zeros(shape), np.full(shape, 1.0 / np.sqrt(1.0 + rows.eps))
    return np.empty(x.shape, x.dtype), mean if rows.centred else None, rstd, np.ones(shape)


# ------------------------------------------------------------------------------------------------- parameters per cell
def _per_cell(size: int, dtype: Any, rows: Any) -> Callable[..., None]:
    """A function of x and y, flat, gamma, beta, mean, var and rstd that fills y and the statistics.

    gamma and beta have x's compute dtype; their length is a multiple of a row's, and after it they start again."""
    blocks, arguments = -(-(size // rows.count) // LANES), (rows.eps, 1, 1, rows.count, LANES)
    in_chunks = chunked(blocks, 2 * size * dtype.itemsize)
    loop = norm_blocks.make_forward(rows.centred and rows.count <= SHORT_ROW, rows.centred, True)
    return lambda *arrays: in_chunks(loop, *arrays, *arguments)


# ---------------------------------------------------------------------------------------------- parameters per channel
def _by_own_stats(norm: Any, dtype: Any) -> Callable[..., tuple[Array, Array | None, Array, Array]]:
    """A function of x, gamma and beta: y, mean, rstd and var, with statistics computed from x."""
    if 0 in norm.rows.shape:
        return lambda x, gamma, beta: _empty(norm, x)
    for_layout = for_each_layout(norm.rows, lambda layout: _of_layout(norm, dtype, layout))
    return lambda x, gamma, beta: for_layout(x)(x, gamma, beta)


def _of_layout(
    norm: Any, dtype: Any, layout: ChannelLayout
) -> Callable[[Array, Array | None, Array | None], tuple[Array, Array, Array, Array]]:
    rows, shape, size = norm.rows, row_shape(norm.rows), math.prod(norm.rows.shape)
    source_of, new = layout.to_memory_order(), layout.new_result(rows.shape, dtype)
    of_gamma, of_beta = parameter(1.0, rows.parameter, np.float64), parameter(0.0, rows.parameter, np.float64)
    nbytes, block, eps = 2 * size * dtype.itemsize, layout.rows_per_block(dtype.itemsize), rows.eps
    if layout.parameters_per_cell:
        per_cell, wide, repeats = _per_cell(size, dtype, rows), accumulator(dtype), layout.length

        def fill(x: Array, y: Array, gamma: Array, beta: Array, *statistics: Array) -> None:
            repeated = (np.repeat(p.astype(wide), repeats) for p in (gamma, beta))
            per_cell(x, y, *repeated, *statistics)

    elif block:
        in_chunks, arguments = chunked(-(-layout.rows // block), nbytes), (eps, *layout.block_arguments, block)
        short = not layout.across_samples and rows.count <= SHORT_ROW
        loop = norm_blocks.make_forward(short, True, False)

        def fill(x: Array, y: Array, gamma: Array, beta: Array, *statistics: Array) -> None:
            in_chunks(loop, x, y, gamma, beta, *statistics, *arguments)

    else:
        fill = _in_pieces(pieces_of(layout, dtype.itemsize), nbytes, dtype, eps)
    number, of_shape = (3, layout.rows), (3, *shape)

    def run(x: Array, gamma: Array | None, beta: Array | None) -> tuple[Array, Array, Array, Array]:
        (flat_y, y), statistics = new(), np.empty(number)
        fill(source_of(x), flat_y, of_gamma(gamma), of_beta(beta), *statistics)
        mean, var, rstd = statistics.reshape(of_shape)
        return y, mean, rstd, var

    return run


def _in_pieces(pieces: Pieces, nbytes: int, dtype: Any, eps: float) -> Callable[..., None]:
    """A function of x and y, flat in memory order, gamma, beta, mean, var and rstd that fills y and the statistics."""
    over, moments, number = pieces.over(nbytes // 2), pieces.loops.moments, (2, pieces.number_of_sums)
    scale_shift, counts, axes = _scale_shift(pieces, nbytes, dtype), pieces.counts, pieces.sum_axes

    def run(x: Array, y: Array, gamma: Array, beta: Array, mean: Array, var: Array, rstd: Array) -> None:
        means, squares = np.zeros(number)
        over(moments, x, means, squares)
        norm_factors.combine_moments(means, squares, counts, mean, var, rstd, eps, *axes)
        scale_shift(x, y, gamma, beta, mean, rstd)

    return run


def _by_running_stats(norm: Any, dtype: Any) -> Callable[..., tuple[Array, Array, Array]]:
    """A function of x, gamma, beta, running_mean and running_var: y by these statistics, mean and rstd."""
    rows, shape, nbytes = norm.rows, row_shape(norm.rows), 2 * math.prod(norm.rows.shape) * dtype.itemsize
    of_gamma, of_beta = parameter(1.0, rows.parameter, np.float64), parameter(0.0, rows.parameter, np.float64)

    def of_layout(layout: ChannelLayout) -> Callable[..., Array]:
        source_of, new = layout.to_memory_order(), layout.new_result(rows.shape, dtype)
        scale_shift = _scale_shift(pieces_of(layout, dtype.itemsize), nbytes, dtype)

        def run(x: Array, *factors: Array) -> Array:
            flat_y, y = new()
            scale_shift(source_of(x), flat_y, *factors)
            return y

        return run

    for_layout = for_each_layout(rows, of_layout)

    def run(
        x: Array, gamma: Array | None, beta: Array | None, running_mean: Array, running_var: Array
    ) -> tuple[Array, Array, Array]:
        mean = np.array(running_mean, np.float64).reshape(-1)
        rstd = 1.0 / np.sqrt(np.asarray(running_var, np.float64).reshape(-1) + rows.eps)
        y = for_layout(x)(x, of_gamma(gamma), of_beta(beta), mean, rstd) if x.size else np.empty(x.shape, x.dtype)
        return y, mean.reshape(shape), rstd.reshape(shape)

    return run


def _scale_shift(pieces: Pieces, nbytes: int, dtype: Any) -> Callable[..., None]:
    """A function of x and y, flat in memory order, gamma, beta, mean and rstd: y = (x - mean) * rstd * gamma + beta."""
    wide, over, loop, axes = accumulator(dtype), pieces.over(nbytes), pieces.loops.scale_shift, pieces.factor_axes

    def run(x: Array, y: Array, gamma: Array, beta: Array, mean: Array, rstd: Array) -> None:
        factors = pieces.new_factors(3, wide)
        norm_factors.scale_shift_factors(mean, rstd, gamma, beta, *factors, *axes)
        over(loop, x, y, *factors)

    return run
