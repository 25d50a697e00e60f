"""Launchers of the CPU norms' backward. Arguments are the portable code's.

| norm | loops |
| --- | --- |
| layer and RMS norm | layer_norm_loops.per_cell_backward: dx and the parameters' partial sums, row by row |
| group and instance norm of short segments | the same, with gamma repeated for each cell |
| rows that fit a core's cache | blocks_backward of norm_blocks: sums and dx of some rows together |
| other rows, and running statistics | gradient_sums, then results, of norm_loops or channels_last_norm |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import layer_norm_loops, norm_blocks
from .norm_layout import ChannelLayout, accumulator, for_each_layout, parameter, pieces_of, refuses
from .parallel import chunked, flat, launcher

__all__ = [
    "batch_norm_backward",
    "group_norm_backward",
    "instance_norm_backward",
    "layer_norm_backward",
    "refuses",
    "rms_norm_backward",
]

Array = Any
MAX_PARTIAL_SUMS = 64  # of a parameter's gradient, at most
MIN_ROWS_PER_PARAMETER = 8  # summed in each partial sum, at least, so that the partial sums are small beside x


@launcher
def batch_norm_backward(norm: Any, dy: Array, *arrays: Array | None) -> Callable[..., tuple[Array, Any, Any]]:
    """Of dy, x, mean, rstd and gamma: `(dx, dgamma, dbeta)`, None for a missing parameter. With running statistics and
    without gamma, x may be None, and in RMS norm mean is."""
    dtype, shape, parameters = dy.dtype, norm.rows.parameter, (norm.gamma_dtype, norm.beta_dtype)
    for_layout = for_each_layout(norm.rows, lambda layout: _of_layout(norm, dtype, layout))
    zeros = np.zeros((2, math.prod(shape)))

    def run(
        dy: Array, x: Array | None, mean: Array | None, rstd: Array, gamma: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        x = dy if x is None else x  # only dgamma depends on x, and there is no gamma
        dx, sums = for_layout(x)(dy, x, mean, rstd, gamma) if dy.size else (np.empty(dy.shape, dtype), zeros)
        dgamma, dbeta = (
            None if p is None else s.reshape(shape).astype(p) for s, p in zip(sums, parameters, strict=True)
        )
        return dx, dgamma, dbeta

    return run


group_norm_backward = instance_norm_backward = layer_norm_backward = rms_norm_backward = batch_norm_backward


def _of_layout(norm: Any, dtype: Any, layout: ChannelLayout) -> Callable[..., tuple[Array, Array]]:
    """A function of dy, x, mean, rstd and gamma: dx, and for each parameter the sums of dy * xhat and of dy."""
    rows, per_cell, own = norm.rows, layout.parameters_per_cell, norm.gamma_dtype
    new, flat_of = layout.arrays(rows.shape, dtype)
    wide = accumulator(dtype if per_cell or own is None else own)
    of_gamma, no_mean = parameter(1.0, rows.parameter, own, wide), np.zeros(0 if rows.centred else layout.rows)
    block = 0 if norm.use_running_stats else layout.rows_per_block(dtype.itemsize)
    make = _per_cell if per_cell else _in_blocks if block else _in_pieces
    fill_dx_and_sum = make(norm, dtype, layout, math.prod(rows.shape) * dtype.itemsize)

    def run(dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None) -> tuple[Array, Array]:
        dx, means = new(), no_mean if mean is None else flat(mean)
        return dx, fill_dx_and_sum(flat_of(dy), flat_of(x), flat_of(dx), of_gamma(gamma), means, flat(rstd))

    return run


# These give functions of dy, x and dx, flat in memory order, gamma, mean and rstd that fill dx, and give the sums of
# dy * xhat and of dy for each parameter.
def _per_cell(norm: Any, dtype: Any, layout: ChannelLayout, nbytes: int) -> Callable[..., Array]:
    rows, length, parameters = norm.rows, layout.length, math.prod(norm.rows.parameter) * layout.length
    partial_sums = max(1, min(MAX_PARTIAL_SUMS, layout.rows * rows.count // parameters // MIN_ROWS_PER_PARAMETER))
    in_chunks, shape = chunked(partial_sums, 3 * nbytes), (2, partial_sums, parameters)
    arguments, loop = (rows.centred, rows.count, partial_sums), layer_norm_loops.per_cell_backward

    def run(dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array) -> Array:
        sums, gamma = np.zeros(shape), np.repeat(gamma, length) if length > 1 else gamma
        in_chunks(loop, dy, x, dx, gamma, mean, rstd, *sums.reshape(2, -1), *arguments)
        sums = sums[:, 0] if partial_sums == 1 else sums.sum(axis=1)
        return sums.reshape(2, -1, length).sum(axis=2) if length > 1 else sums

    return run


def _in_blocks(norm: Any, dtype: Any, layout: ChannelLayout, nbytes: int) -> Callable[..., Array]:
    block, rows = layout.rows_per_block(dtype.itemsize), layout.rows
    in_chunks = chunked(-(-rows // block), 3 * nbytes)
    shape = 2, rows // layout.groups, layout.groups * layout.group_size
    arguments, loop = (*layout.row_axes, block), norm_blocks.blocks_backward

    def run(*arrays: Array) -> Array:
        sums = np.empty(shape)
        in_chunks(loop, *arrays, *sums.reshape(2, -1), *np.empty((2, rows)), *arguments)
        return sums[::-1, 0] if shape[1] == 1 else sums[::-1].sum(axis=1)

    return run


def _in_pieces(norm: Any, dtype: Any, layout: ChannelLayout, nbytes: int) -> Callable[..., Array]:
    loops, number, arguments, _, number_of_sums, _, axes = pieces_of(layout, dtype.itemsize)
    sums_in_chunks, in_chunks = chunked(number, 2 * nbytes), chunked(number, 3 * nbytes)
    n, rows, channels = math.prod(norm.rows.shape) / layout.rows, layout.rows, layout.groups * layout.group_size
    results, sample = loops.make_results(not norm.use_running_stats), rows // layout.groups
    shape = 2, sample, axes[0], channels, axes[3]

    def run(dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array) -> Array:
        sums, (x_factor, constant) = np.zeros((2, number_of_sums)), np.empty((2, rows))
        sums_in_chunks(loops.gradient_sums, dy, x, gamma, mean, *sums, *arguments)
        sums = sums.reshape(shape).sum(axis=(2, 4)) if number_of_sums > sample * channels else sums
        sum_dy, sum_products = sums.reshape(2, -1)
        norm_blocks.combine_gradient_sums(
            x, sum_dy, sum_products, gamma, mean, rstd, x_factor, constant, n, layout.group_size, 0, rows
        )
        if norm.use_running_stats:  # they do not depend on x: dx = dy * rstd * gamma
            zeros = np.zeros(channels, gamma.dtype)
            in_chunks(results, dy, dy, dx, gamma, zeros, zeros, np.zeros(rows), rstd, *arguments)
        else:
            in_chunks(results, dy, x, dx, gamma, constant, x_factor, mean, rstd, *arguments)
        return sums.reshape(2, sample, channels)[::-1].sum(axis=1)

    return run
