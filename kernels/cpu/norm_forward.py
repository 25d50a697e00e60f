"""Launchers of the CPU norms' forward: batch, group, instance, layer and RMS norm. Arguments are the portable code's.

A row is a statistics group. Which loops serve:

| rows                                                            | loops                                             |
| --------------------------------------------------------------- | ------------------------------------------------- |
| layer and RMS norm; group norm with very short channels         | `per_cell_forward`, row by row                    |
| small arrays; many rows that fit a core's cache                 | `blocks_forward`, some rows at a time             |
| all others                                                      | `moments` of pieces, then `scale_shift`           |

Half types are computed in float32, and converted when they are loaded and stored."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import layer_norm_loops, norm_loops
from .norm_arguments import accumulator, from_lanes, parameter, refuses, row_shape
from .norm_layout import ChannelLayout, Partition, channel_layout, partition_of, run_over_pieces
from .parallel import parallel_chunks, to_lanes

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
def batch_norm_forward(
    b: Backend,
    norm: Any,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
) -> tuple[Array, Array | None, Array]:
    """y, mean and rstd; in training the running statistics are updated."""
    shape = row_shape(norm.rows)
    if norm.use_running_stats:
        mean, var = (np.array(r, np.float64).reshape(shape) for r in (running_mean, running_var))
        rstd = 1.0 / np.sqrt(var + norm.rows.eps)
        return _forward_by_running_stats(norm, x, gamma, beta, mean, rstd), mean, rstd
    y, mean, var, rstd = _forward_by_own_stats(norm, x, gamma, beta)
    n = norm.rows.count
    if norm.training and running_mean is not None and running_var is not None and n:
        var = var * (n / (n - 1)) if norm.unbiased and n > 1 else var
        for running, batch in ((running_mean, mean), (running_var, var)):
            running[...] = (1.0 - norm.momentum) * running.astype(np.float64) + norm.momentum * batch.reshape(
                running.shape
            )
    return y, mean, rstd


def _group_forward(
    b: Backend, norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array]:
    """y, mean and rstd."""
    y, mean, _, rstd = _forward_by_own_stats(norm, x, gamma, beta)
    return y, mean, rstd


group_norm_forward = instance_norm_forward = _group_forward


def _layer_norm_forward(
    b: Backend, norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array]:
    """y, mean (None in RMS norm) and rstd."""
    dtype, rows, shape = accumulator(x.dtype), norm.rows, row_shape(norm.rows)
    if not x.size:
        mean, rstd = np.zeros(shape), np.full(shape, 1.0 / np.sqrt(1.0 + rows.eps))
        return np.empty(x.shape, x.dtype), mean if rows.centred else None, rstd
    gamma, beta = parameter(gamma, 1.0, rows.parameter, dtype), parameter(beta, 0.0, rows.parameter, dtype)
    y, mean, rstd = per_cell_forward(x, gamma, beta, rows.eps, rows.centred, rows.count)
    return y, mean.reshape(shape) if rows.centred else None, rstd.reshape(shape)


layer_norm_forward = rms_norm_forward = _layer_norm_forward


# ------------------------------------------------------------------------------------------------- parameters per cell
def per_cell_forward(
    x: Array, gamma: Array, beta: Array, eps: float, centred: bool, count: int
) -> tuple[Array, Array, Array]:
    """y, mean and rstd of rows of `count` cells.

    gamma and beta have x's compute dtype; their length is a multiple of `count`, and after it they start again."""
    source, number_of_rows = to_lanes(x), x.size // count
    y = backends.result(source.shape, source.dtype)
    mean, rstd = np.empty(number_of_rows), np.empty(number_of_rows)
    run = functools.partial(layer_norm_loops.per_cell_forward, source, y, gamma, beta, mean, rstd, eps, centred, count)
    parallel_chunks(number_of_rows, 2 * source.nbytes, run)
    return from_lanes(y, x.shape, x.dtype), mean, rstd


# ---------------------------------------------------------------------------------------------- parameters per channel
def _forward_by_own_stats(
    norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array, Array, Array]:
    """y, mean, var and rstd, with statistics computed from x."""
    rows, shape, dtype = norm.rows, row_shape(norm.rows), accumulator(x.dtype)
    if not x.size:
        mean, var = np.zeros(shape), np.ones(shape)
        return np.empty(x.shape, x.dtype), mean, var, 1.0 / np.sqrt(var + rows.eps)
    layout = channel_layout(rows, x)
    gamma, beta = layout.per_channel(gamma, 1.0), layout.per_channel(beta, 0.0)
    if layout.parameters_per_cell:
        gamma, beta = (np.repeat(p.astype(dtype), layout.length) for p in (gamma, beta))
        y, mean, rstd = per_cell_forward(x.transpose(layout.axis_order), gamma, beta, rows.eps, True, rows.count)
        var = rstd  # not computed: batch norm alone needs it, and never comes here
        return layout.from_memory_order(y, x), mean.reshape(shape), var, rstd.reshape(shape)
    source = layout.to_memory_order(x)
    y = backends.result(source.shape, source.dtype)
    block = layout.rows_per_block(source.itemsize)
    if block:
        mean, var, rstd = np.empty((3, layout.rows))
        run = functools.partial(norm_loops.blocks_forward, source, y, gamma.reshape(-1), beta.reshape(-1), mean)
        run = functools.partial(run, var, rstd, rows.eps, *layout.block_arguments, block)
        parallel_chunks(-(-layout.rows // block), 2 * source.nbytes, run)
    else:
        partition = partition_of(layout, source.itemsize)
        mean, var = _moments(layout, partition, source)
        rstd = 1.0 / np.sqrt(var + rows.eps)
        _scale_shift(partition, source, y, gamma, beta, mean, rstd)
    return layout.from_memory_order(y, x), mean.reshape(shape), var.reshape(shape), rstd.reshape(shape)


def _forward_by_running_stats(
    norm: Any, x: Array, gamma: Array | None, beta: Array | None, mean: Array, rstd: Array
) -> Array:
    """y of batch norm with the running statistics."""
    if not x.size:
        return np.empty(x.shape, x.dtype)
    layout = channel_layout(norm.rows, x)
    source = layout.to_memory_order(x)
    y, partition = backends.result(source.shape, source.dtype), partition_of(layout, source.itemsize)
    statistics = layout.per_channel(mean, 0.0), layout.per_channel(rstd, 1.0)
    _scale_shift(partition, source, y, layout.per_channel(gamma, 1.0), layout.per_channel(beta, 0.0), *statistics)
    return layout.from_memory_order(y, x)


def _moments(layout: ChannelLayout, partition: Partition, x: Array) -> tuple[Array, Array]:
    """Mean and variance of each row, combined from those of its pieces (Chan, Golub and LeVeque 1979)."""
    means, squares = np.zeros((2, partition.number_of_sums))
    run_over_pieces(partition, x.nbytes, partition.loops.moments, x, means, squares)
    means, squares, counts = partition.by_channel(means), partition.by_channel(squares), partition.cell_counts
    n = x.size / layout.rows
    mean = np.sum(means * counts, axis=layout.row_axes, keepdims=True) / n
    var = np.sum(squares + counts * (means - mean) ** 2, axis=layout.row_axes, keepdims=True) / n
    return mean, var


def _scale_shift(partition: Partition, x: Array, y: Array, gamma: Array, beta: Array, mean: Array, rstd: Array) -> None:
    """Fill y with (x - mean) * rstd * gamma + beta."""
    dtype = accumulator(x.dtype)
    shift, scale = mean.astype(dtype), rstd * gamma
    factors = [partition.broadcast_to_loops(a, dtype) for a in (shift, scale, beta - (mean - shift) * scale)]
    run_over_pieces(partition, 2 * x.nbytes, partition.loops.scale_shift, x, y, *factors)
