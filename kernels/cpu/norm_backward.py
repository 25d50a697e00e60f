"""Launchers of the CPU norms' backward. Arguments are the portable code's. norm_forward.py says which loops serve."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import layer_norm_loops, norm_loops
from .norm_arguments import accumulator, from_lanes, gradient, parameter, refuses
from .norm_layout import ChannelLayout, Partition, channel_layout, partition_of, run_over_pieces
from .parallel import parallel_chunks, to_lanes

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
def _layer_norm_backward(
    b: Backend, norm: Any, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)` of layer and RMS norm."""
    rows = norm.rows
    if not dy.size:
        zeros = np.zeros(rows.parameter)
        return _gradients(norm, np.empty(dy.shape, dy.dtype), zeros, zeros)
    weight = parameter(gamma, 1.0, rows.parameter, accumulator(x.dtype))
    dx, sum_dy_xhat, sum_dy = per_cell_backward(dy, x, weight, mean, rstd, rows.count)
    return _gradients(norm, dx, sum_dy_xhat, sum_dy)


def _gradients(norm: Any, dx: Array, sum_dy_xhat: Array, sum_dy: Array) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)`, None for a missing parameter."""
    shape = norm.rows.parameter
    return dx, gradient(sum_dy_xhat, shape, norm.gamma_dtype), gradient(sum_dy, shape, norm.beta_dtype)


layer_norm_backward = rms_norm_backward = _layer_norm_backward


def _channel_norm_backward(
    b: Backend, norm: Any, dy: Array, x: Array | None, mean: Array, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)` of batch, group and instance norm. With running statistics and without gamma, x may be
    None."""
    rows = norm.rows
    if not dy.size:
        zeros = np.zeros(rows.parameter)
        return _gradients(norm, np.empty(dy.shape, dy.dtype), zeros, zeros)
    x = dy if x is None else x  # only dgamma depends on x, and there is no gamma
    layout = channel_layout(rows, x)
    weight = layout.per_channel(gamma, 1.0)
    if layout.parameters_per_cell:
        repeated = np.repeat(weight.astype(accumulator(dy.dtype)), layout.length)
        flat, *sums = per_cell_backward(
            dy.transpose(layout.axis_order), x.transpose(layout.axis_order), repeated, mean, rstd, rows.count
        )
        sum_dy_xhat, sum_dy = (s.reshape(-1, layout.length).sum(axis=1) for s in sums)
    else:
        g, source = (layout.to_memory_order(a) for a in (dy, x))
        backward = _backward_with_fixed_stats if norm.use_running_stats else _backward_through_stats
        flat, sum_dy_xhat, sum_dy = backward(layout, g, source, weight, mean, rstd)
    dx = layout.from_memory_order(flat, dy)
    return _gradients(norm, dx, sum_dy_xhat, sum_dy)


batch_norm_backward = group_norm_backward = instance_norm_backward = _channel_norm_backward


# ------------------------------------------------------------------------------------------------- parameters per cell
def per_cell_backward(
    dy: Array, x: Array, gamma: Array, mean: Array | None, rstd: Array, count: int
) -> tuple[Array, Array, Array]:
    """dx, dgamma and dbeta of rows of `count` cells, gamma as in `per_cell_forward`. mean None: it is 0."""
    g, source = to_lanes(dy), to_lanes(x)
    dx, rstd = backends.result(source.shape, source.dtype), np.ascontiguousarray(rstd).reshape(-1)
    centred = mean is not None
    mean = np.ascontiguousarray(mean).reshape(-1) if centred else np.zeros_like(rstd)
    partial_sums = max(1, min(MAX_PARTIAL_SUMS, x.size // gamma.size // MIN_ROWS_PER_PARAMETER))
    dgamma, dbeta = np.zeros((2, partial_sums, gamma.size))
    run = functools.partial(layer_norm_loops.per_cell_backward, g, source, dx, gamma, mean, rstd)
    run = functools.partial(run, dgamma.reshape(-1), dbeta.reshape(-1), centred, count, partial_sums)
    parallel_chunks(partial_sums, 3 * source.nbytes, run)
    return from_lanes(dx, x.shape, dy.dtype), dgamma.sum(axis=0), dbeta.sum(axis=0)


# ---------------------------------------------------------------------------------------------- parameters per channel
def _backward_through_stats(
    layout: ChannelLayout, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array]:
    """dx and the sums of dy * xhat and of dy of each channel, where the statistics were computed from x."""
    block, dtype = layout.rows_per_block(x.itemsize), accumulator(x.dtype)
    if block:
        dx, (_, group_size, _) = backends.result(x.shape, x.dtype), layout.block_arguments
        sum_dy, sum_dy_xhat = np.empty((2, layout.rows * group_size))
        run = functools.partial(norm_loops.blocks_backward, dy, x, dx, gamma.reshape(-1), mean.reshape(-1))
        run = functools.partial(run, rstd.reshape(-1), sum_dy, sum_dy_xhat, *layout.block_arguments, block)
        parallel_chunks(-(-layout.rows // block), 3 * x.nbytes, run)
        return dx, *(s.reshape(-1, gamma.size).sum(axis=0) for s in (sum_dy_xhat, sum_dy))
    partition, dx, n = partition_of(layout, x.itemsize), backends.result(x.shape, x.dtype), x.size / layout.rows
    mean, rstd = (a.reshape(layout.row_shape) for a in (mean, rstd))
    shift = mean.astype(dtype)
    sum_dy_xhat, sum_dy = _gradient_sums(partition, dy, x, shift, mean, rstd)
    row_dy_xhat, row_dy = (np.sum(s * gamma, axis=layout.row_axes, keepdims=True) for s in (sum_dy_xhat, sum_dy))
    x_factor = rstd * row_dy_xhat / n
    factors = shift, gamma, x_factor, row_dy / n - (mean - shift) * x_factor, rstd
    loop_factors = [partition.broadcast_to_loops(a, dtype) for a in factors]
    run_over_pieces(partition, 3 * x.nbytes, partition.loops.input_gradient, dy, x, dx, *loop_factors)
    return dx, sum_dy_xhat.sum(axis=(0, 3)), sum_dy.sum(axis=(0, 3))


def _backward_with_fixed_stats(
    layout: ChannelLayout, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array]:
    """The same with running statistics, which do not depend on x: dx = dy * gamma * rstd."""
    partition, dx = partition_of(layout, x.itemsize), backends.result(x.shape, x.dtype)
    mean, rstd = (a.reshape(layout.row_shape) for a in (mean, rstd))
    sum_dy_xhat, sum_dy = _gradient_sums(partition, dy, x, mean.astype(accumulator(x.dtype)), mean, rstd)
    zeros = np.zeros_like(rstd)
    loop_factors = [partition.broadcast_to_loops(a, accumulator(x.dtype)) for a in (zeros, rstd * gamma, zeros)]
    run_over_pieces(partition, 2 * x.nbytes, partition.loops.scale_shift, dy, dx, *loop_factors)
    return dx, sum_dy_xhat.sum(axis=(0, 3)), sum_dy.sum(axis=(0, 3))


def _gradient_sums(
    partition: Partition, dy: Array, x: Array, shift: Array, mean: Array, rstd: Array
) -> tuple[Array, Array]:
    """The sums of dy * xhat and of dy, over each piece of each channel."""
    sum_dy, sum_dy_shifted = np.zeros((2, partition.number_of_sums))
    loop_shift = partition.broadcast_to_loops(shift, shift.dtype)
    run_over_pieces(partition, 2 * x.nbytes, partition.loops.gradient_sums, dy, x, loop_shift, sum_dy, sum_dy_shifted)
    sum_dy = partition.by_channel(sum_dy)
    return (partition.by_channel(sum_dy_shifted) - (mean - shift) * sum_dy) * rstd, sum_dy
