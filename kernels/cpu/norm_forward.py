"""Launchers of the CPU norms' forward: batch, group, instance, layer and RMS norm. Arguments are the portable code's.

A row is a statistics group. Which loops serve:

| rows                                                            | loops                                             |
| --------------------------------------------------------------- | ------------------------------------------------- |
| layer and RMS norm; group norm with very short channels         | `make_forward` of norm_blocks                     |
| small arrays; many rows that fit a core's cache                 | the same, without parameters per cell             |
| all others                                                      | `moments` of pieces, then `results`, of           |
|                                                                 | norm_loops or channels_last_norm                  |
| running statistics                                              | `results` alone                                   |

Half types are computed in float32, and converted when they are loaded and stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import norm_blocks, norm_loops
from .norm_layout import ChannelLayout, accumulator, for_each_layout, parameter, pieces_of, refuses
from .parallel import chunked, flat, launcher
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


@launcher
def batch_norm_forward(
    norm: Any, x: Array, *parameters: Array | None
) -> Callable[..., tuple[Array, Array | None, Array]]:
    """Of x, gamma and beta: y, mean (None in RMS norm) and rstd. In batch norm also of the running mean and variance,
    which are updated in training."""
    rows, dtype = norm.rows, x.dtype
    shape = tuple(1 if a in rows.axes else length for a, length in enumerate(rows.view))
    size, empty, running = (3, math.prod(shape)), not x.size, norm.use_running_stats
    for_layout = for_each_layout(rows, lambda layout: _of_layout(norm, dtype, layout))

    def run(
        x: Array, gamma: Array | None, beta: Array | None, running_mean: Array = None, running_var: Array = None
    ) -> tuple[Array, Array | None, Array]:
        mean, var, rstd = np.empty(size)
        if running:
            norm_loops.of_running(_as_lanes(running_mean), _as_lanes(running_var), rows.eps, mean, rstd)
        elif empty:
            mean[...], rstd[...] = 0.0, 1.0 / math.sqrt(1.0 + rows.eps)
        y = np.empty(x.shape, dtype) if empty else for_layout(x)(x, gamma, beta, mean, var, rstd)
        if norm.training and running_mean is not None and not empty:
            _update(norm, running_mean, running_var, mean, var)
        return y, mean.reshape(shape) if rows.centred else None, rstd.reshape(shape)

    return run


group_norm_forward = instance_norm_forward = layer_norm_forward = rms_norm_forward = batch_norm_forward


def _as_lanes(running: Array) -> Array:
    """Running statistics, flat in C order; half types as float32."""
    return flat(running if running.dtype.itemsize > 2 else running.astype(np.float32))


def _update(norm: Any, running_mean: Array, running_var: Array, mean: Array, var: Array) -> None:
    """running = (1 - momentum) * running + momentum * batch, in float64, the variance as `norm.unbiased` says."""
    n, momentum, running = norm.rows.count, norm.momentum, (running_mean, running_var)
    factor = n / (n - 1) if norm.unbiased and n > 1 else 1.0
    if all(r.dtype.itemsize > 2 and r.flags.c_contiguous for r in running):
        norm_loops.update_running(running_mean, running_var, mean, var, momentum, factor)
        return
    for old, new in zip(running, (mean, var * factor), strict=True):
        old[...] = (1.0 - momentum) * old.astype(np.float64) + momentum * new


def _of_layout(norm: Any, dtype: Any, layout: ChannelLayout) -> Callable[..., Array]:
    """A function of x, gamma, beta, mean, var and rstd that gives y and fills the statistics, unless they are given."""
    rows, size, per_cell = norm.rows, math.prod(norm.rows.shape), layout.parameters_per_cell
    (new, flat_of), block = layout.arrays(rows.shape, dtype), layout.rows_per_block(dtype.itemsize)
    of_gamma, of_beta = (
        parameter(neutral, rows.parameter, own, accumulator(dtype if per_cell or own is None else own))
        for neutral, own in ((1.0, norm.gamma_dtype), (0.0, norm.beta_dtype))
    )
    if norm.use_running_stats or not (block or per_cell):
        fill = _in_pieces(norm, dtype, layout)
    else:
        row_axes = (1, 1, rows.count) if per_cell else layout.row_axes
        block = LANES * max(1, SHORT_ROW // rows.count) if per_cell else block
        repeats = layout.length if per_cell else 1
        in_chunks = chunked(-(-layout.rows // block), 2 * size * dtype.itemsize)
        arguments, loop = (rows.eps, *row_axes, block), norm_blocks.make_forward(rows.centred, per_cell)

        def fill(x: Array, y: Array, gamma: Array, beta: Array, *statistics: Array) -> None:
            if repeats > 1:
                gamma, beta = np.repeat(gamma, repeats), np.repeat(beta, repeats)
            in_chunks(loop, x, y, gamma, beta, *statistics, *arguments)

    def run(x: Array, gamma: Array | None, beta: Array | None, *statistics: Array) -> Array:
        y = new()
        fill(flat_of(x), flat_of(y), of_gamma(gamma), of_beta(beta), *statistics)
        return y

    return run


def _in_pieces(norm: Any, dtype: Any, layout: ChannelLayout) -> Callable[..., None]:
    """A function of x and y, flat in memory order, gamma, beta, mean, var and rstd that fills y and the statistics."""
    loops, number, arguments, skipped, number_of_sums, counts, axes = pieces_of(layout, dtype.itemsize)
    nbytes = math.prod(norm.rows.shape) * dtype.itemsize
    of_moments, results = arguments[skipped:], loops.make_results(False)
    sums_in_chunks, in_chunks = chunked(number, nbytes), chunked(number, 2 * nbytes)

    def fill(x: Array, y: Array, gamma: Array, beta: Array, mean: Array, var: Array, rstd: Array) -> None:
        if not norm.use_running_stats:
            means, squares = np.zeros((2, number_of_sums))
            sums_in_chunks(loops.moments, x, means, squares, *of_moments)
            norm_blocks.combine_moments(means, squares, counts, mean, var, rstd, norm.rows.eps, 0, mean.size, *axes)
        in_chunks(results, x, x, y, gamma, beta, beta, mean, rstd, *arguments)

    return fill
