"""Launchers of the CPU norms' backward. Arguments are the portable code's.

| norm | loops |
| --- | --- |
| layer and RMS norm | layer_norm_loops.per_cell_backward: dx and the parameters' partial sums, row by row |
| group and instance norm of short segments | the same, with gamma repeated for each cell |
| rows that fit a core's cache | the kernel of norm_blocks.make_backward: sums and dx of some rows together |
| other rows, statistics computed from x | gradient_sums, then input_gradient, of norm_loops or channels_last_norm |
| running statistics | gradient_sums, then scale_shift, of the same two |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from . import layer_norm_loops, norm_blocks, norm_factors
from .norm_arguments import accumulator, gradient, parameter, refuses
from .norm_layout import ChannelLayout, for_each_layout, pieces_of
from .parallel import chunked, flat, prepared, to_lanes
from .row_sums import SHORT_ROW

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


# ----------------------------------------------------------------------------------------------------------------- ops
@prepared
def layer_norm_backward(
    norm: Any, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
) -> Callable[..., tuple[Array, Array | None, Array | None]]:
    """Of these arrays: `(dx, dgamma, dbeta)` of layer and RMS norm."""
    rows = norm.rows
    if not dy.size:
        return _empty(norm)
    of_gamma = parameter(1.0, rows.parameter, accumulator(x.dtype))
    new, per_cell = backends.new_result(x.shape, x.dtype), per_cell_backward(x.size, x.dtype, rows, rows.count)

    def run(
        dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        dx = new()
        return _gradients(norm, dx, *per_cell(to_lanes(dy), to_lanes(x), to_lanes(dx), of_gamma(gamma), mean, rstd))

    return run


rms_norm_backward = layer_norm_backward


def _empty(norm: Any) -> Callable[..., tuple[Array, Array | None, Array | None]]:
    """A function of an empty dy and other arrays."""
    zeros = np.zeros(norm.rows.parameter)
    return lambda dy, *arrays: _gradients(norm, np.empty(dy.shape, dy.dtype), zeros, zeros)


def _gradients(norm: Any, dx: Array, sum_dy_xhat: Array, sum_dy: Array) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)`, None for a missing parameter."""
    shape = norm.rows.parameter
    return dx, gradient(sum_dy_xhat, shape, norm.gamma_dtype), gradient(sum_dy, shape, norm.beta_dtype)


@prepared
def batch_norm_backward(
    norm: Any, dy: Array, *arrays: Array | None
) -> Callable[..., tuple[Array, Array | None, Array | None]]:
    """Of dy, x, mean, rstd and gamma: `(dx, dgamma, dbeta)` of batch, group and instance norm. With running statistics
    and without gamma, x may be None."""
    if not dy.size:
        return _empty(norm)
    dtype = dy.dtype
    for_layout = for_each_layout(norm.rows, lambda layout: _of_layout(norm, dtype, layout))

    def run(
        dy: Array, x: Array | None, mean: Array, rstd: Array, gamma: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        x = dy if x is None else x  # only dgamma depends on x, and there is no gamma
        return _gradients(norm, *for_layout(x)(dy, x, mean, rstd, gamma))

    return run


group_norm_backward = instance_norm_backward = batch_norm_backward


def _of_layout(norm: Any, dtype: Any, layout: ChannelLayout) -> Callable[..., tuple[Array, Array, Array]]:
    """A function of dy, x, mean, rstd and gamma: dx, and the sums of dy * xhat and of dy of each channel."""
    rows, size = norm.rows, math.prod(norm.rows.shape)
    flat_of, new = layout.to_memory_order(), layout.new_result(rows.shape, dtype)
    of_gamma = parameter(1.0, rows.parameter, np.float64)
    if layout.parameters_per_cell:
        per_cell, wide = (
            per_cell_backward(size, dtype, rows, layout.groups * layout.group_size * layout.length),
            accumulator(dtype),
        )

        def fill_dx_and_sum(*arrays: Array) -> tuple[Array, Array]:
            dy, x, dx, gamma, mean, rstd = arrays
            sums = per_cell(dy, x, dx, np.repeat(gamma.astype(wide), layout.length), mean, rstd)
            return sums[0].reshape(-1, layout.length).sum(axis=1), sums[1].reshape(-1, layout.length).sum(axis=1)

    else:
        block = 0 if norm.use_running_stats else layout.rows_per_block(dtype.itemsize)
        fill_dx_and_sum = _in_blocks(layout, size, dtype, block) if block else _in_pieces(norm, layout, size, dtype)

    def run(dy: Array, x: Array, mean: Array, rstd: Array, gamma: Array | None) -> tuple[Array, Array, Array]:
        flat_dx, dx = new()
        return dx, *fill_dx_and_sum(flat_of(dy), flat_of(x), flat_dx, of_gamma(gamma), flat(mean), flat(rstd))

    return run


# ------------------------------------------------------------------------------------------------- parameters per cell
def per_cell_backward(
    size: int, dtype: Any, rows: Any, parameters: int
) -> Callable[[Array, Array, Array, Array, Array | None, Array], tuple[Array, Array]]:
    """A function of dy, x and dx, flat, gamma with numbers for each cell, mean and rstd that fills dx, and gives dgamma
    and dbeta. mean None: it is 0. parameters: the length of gamma."""
    partial_sums = max(1, min(MAX_PARTIAL_SUMS, size // parameters // MIN_ROWS_PER_PARAMETER))
    in_chunks, shape = chunked(partial_sums, 3 * size * dtype.itemsize), (2, partial_sums, parameters)
    count, loop, zeros = (
        rows.count,
        layer_norm_loops.per_cell_backward,
        np.zeros(0 if rows.centred else size // rows.count),
    )

    def run(dy: Array, x: Array, dx: Array, gamma: Array, mean: Array | None, rstd: Array) -> tuple[Array, Array]:
        sums, means = np.zeros(shape), zeros if mean is None else flat(mean)
        dgamma, dbeta = sums.reshape(2, -1)
        in_chunks(loop, dy, x, dx, gamma, means, flat(rstd), dgamma, dbeta, mean is not None, count, partial_sums)
        dgamma, dbeta = sums[:, 0] if partial_sums == 1 else sums.sum(axis=1)
        return dgamma, dbeta

    return run


# ---------------------------------------------------------------------------------------------- parameters per channel
# Both are functions of dy, x and dx, flat in memory order, gamma, mean and rstd that fill dx, and give the sums of
# dy * xhat and of dy of each channel.
def _in_blocks(layout: ChannelLayout, size: int, dtype: Any, block: int) -> Callable[..., tuple[Array, Array]]:
    arguments = (*layout.block_arguments, block)
    in_chunks = chunked(-(-layout.rows // block), 3 * size * dtype.itemsize)
    loop = norm_blocks.make_backward(not layout.across_samples and layout.length <= SHORT_ROW)
    shape = 2, layout.rows * arguments[1] // (layout.groups * layout.group_size), layout.groups * layout.group_size

    def run(*arrays: Array) -> tuple[Array, Array]:
        sums = np.empty(shape)
        in_chunks(loop, *arrays, *sums.reshape(2, -1), *arguments)
        sum_dy, sum_dy_xhat = sums[:, 0] if shape[1] == 1 else sums.sum(axis=1)
        return sum_dy_xhat, sum_dy

    return run


def _in_pieces(norm: Any, layout: ChannelLayout, size: int, dtype: Any) -> Callable[..., tuple[Array, Array]]:
    pieces, nbytes, n = pieces_of(layout, dtype.itemsize), 3 * size * dtype.itemsize, size / layout.rows
    over_sums, over_dx, loops = pieces.over(nbytes // 3 * 2), pieces.over(nbytes), pieces.loops
    number_of_pieces, zeros = pieces.counts.size // pieces.inner, np.zeros(pieces.channels)
    sum_axes: tuple[int, ...] = (*pieces.sum_axes, pieces.repeats)
    axes, running = pieces.factor_axes, norm.use_running_stats

    def run(dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array) -> tuple[Array, Array]:
        factors = pieces.new_factors(5, accumulator(dtype))
        sum_dy, sum_dy_shifted = np.zeros((2, pieces.number_of_sums))
        shift, scale, offset = factors[:3]
        norm_factors.scale_shift_factors(mean, rstd, gamma, zeros, shift, scale, offset, *axes)
        over_sums(loops.gradient_sums, dy, x, shift, sum_dy, sum_dy_shifted)
        dgamma, dbeta = np.zeros((2, pieces.channels))
        row_dy, row_dy_xhat = np.zeros((2, layout.rows))
        statistics = gamma, mean, rstd
        norm_factors.combine_gradient_sums(
            sum_dy, sum_dy_shifted, shift, *statistics, dgamma, dbeta, row_dy, row_dy_xhat, number_of_pieces, *sum_axes
        )
        if running:  # they do not depend on x: dx = dy * gamma * rstd
            shift[...] = offset[...] = 0.0
            over_dx(loops.scale_shift, dy, dx, shift, scale, offset)
        else:
            norm_factors.input_gradient_factors(mean, rstd, gamma, row_dy, row_dy_xhat, n, *factors, *axes)
            over_dx(loops.input_gradient, dy, x, dx, *factors)
        return dgamma, dbeta

    return run
