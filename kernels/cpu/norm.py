"""Launchers of the CPU norms' forward: batch, group, instance, layer and RMS norm, called as the portable code is.

| rows                                                     | loops                                                   |
| -------------------------------------------------------- | ------------------------------------------------------- |
| each cell has a parameter; groups of very short channels | `cells_forward`: a row at once                          |
| channels of all samples, many, a few of them in cache    | `blocks_forward`: some channels at once                 |
| those of a small array; groups on end, each in cache     | `rows_forward`: a row at once                           |
| all others                                               | `moments` of pieces, put together here; then `lines`    |

Half types are computed in float32 (norm_arrays.py converts float16).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import norm_joined, norm_loops
from .compile import chunks
from .norm_arrays import accumulator, converted, parameter, refuses, row_shape
from .norm_lie import Channels, Cut, channels_of, cut_of

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
    if norm.given:
        mean, var = (np.array(r, np.float64).reshape(shape) for r in (running_mean, running_var))
        rstd = 1.0 / np.sqrt(var + norm.rows.eps)
        return _given_forward(norm, x, gamma, beta, mean, rstd), mean, rstd
    y, mean, var, rstd = _channels_forward(norm, x, gamma, beta)
    n = norm.rows.count
    if norm.training and running_mean is not None and running_var is not None and n:
        var = var * (n / (n - 1)) if norm.unbiased and n > 1 else var
        for old, new in ((running_mean, mean), (running_var, var)):
            old[...] = (1.0 - norm.momentum) * old.astype(np.float64) + norm.momentum * new.reshape(old.shape)
    return y, mean, rstd


def _group_forward(
    b: Backend, norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array]:
    """y, mean and rstd."""
    y, mean, _, rstd = _channels_forward(norm, x, gamma, beta)
    return y, mean, rstd


group_norm_forward = instance_norm_forward = _group_forward


def _cells_forward(
    b: Backend, norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array]:
    """y, mean (None in RMS norm) and rstd."""
    dtype, rows, shape = accumulator(x.dtype), norm.rows, row_shape(norm.rows)
    if not x.size:
        mean, rstd = np.zeros(shape), np.full(shape, 1.0 / np.sqrt(1.0 + rows.eps))
        return np.empty(x.shape, x.dtype), mean if rows.centred else None, rstd
    gamma, beta = parameter(gamma, 1.0, rows.parameter, dtype), parameter(beta, 0.0, rows.parameter, dtype)
    y, mean, rstd = cells(x, gamma, beta, rows.eps, rows.centred, rows.count)
    return y, mean.reshape(shape) if rows.centred else None, rstd.reshape(shape)


layer_norm_forward = rms_norm_forward = _cells_forward


# --------------------------------------------------------------------------------------------------- parameters a cell
def cells(x: Array, gamma: Array, beta: Array, eps: float, centred: bool, count: int) -> tuple[Array, Array, Array]:
    """y, mean and rstd of rows of `count` cells, gamma and beta of x's compute dtype beginning anew after their end."""
    flat = converted(x, gamma.dtype)
    y, number = backends.result(flat.shape, flat.dtype), x.size // count
    mean, rstd = np.empty(number), np.empty(number)
    run = functools.partial(norm_loops.cells_forward, flat, y, gamma, beta, mean, rstd, eps, centred, count)
    chunks(number, 2 * flat.nbytes, run)
    return converted(y, x.dtype).reshape(x.shape), mean, rstd


# ------------------------------------------------------------------------------------------------ parameters a channel
def _channels_forward(
    norm: Any, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array, Array, Array]:
    """y, mean, var and rstd by the array's own statistics."""
    rows, shape, dtype = norm.rows, row_shape(norm.rows), accumulator(x.dtype)
    if not x.size:
        mean, var = np.zeros(shape), np.ones(shape)
        return np.empty(x.shape, x.dtype), mean, var, 1.0 / np.sqrt(var + rows.eps)
    lie = channels_of(rows, x)
    gamma, beta = lie.numbers(gamma, 1.0), lie.numbers(beta, 0.0)
    if lie.in_cells:
        gamma, beta = (np.repeat(p.astype(dtype), lie.length) for p in (gamma, beta))
        y, mean, rstd = cells(x.transpose(lie.order), gamma, beta, rows.eps, True, rows.count)
        return lie.restored(y, x), mean.reshape(shape), rstd, rstd.reshape(shape)  # only batch norm asks for var
    source = lie.laid(x, dtype)
    y = backends.result(source.shape, source.dtype)
    block = lie.block(source.itemsize)
    if block:
        mean, var, rstd = np.empty((3, lie.rows))
        run = functools.partial(norm_joined.blocks_forward, source, y, gamma.reshape(-1), beta.reshape(-1))
        run = functools.partial(run, mean, var, rstd, rows.eps, lie.samples, lie.length, block)
        chunks(-(-lie.rows // block), 2 * source.nbytes, run)
    elif lie.at_once(source.itemsize):
        mean, var, rstd = np.empty((3, lie.rows))
        run = functools.partial(norm_loops.rows_forward, source, y, gamma.reshape(-1), beta.reshape(-1))
        run = functools.partial(run, mean, var, rstd, rows.eps, lie.segments, lie.step, lie.length)
        chunks(lie.rows, 2 * source.nbytes, run)
    else:
        cut = cut_of(lie, source.itemsize)
        mean, var = _moments(lie, cut, source)
        rstd = 1.0 / np.sqrt(var + rows.eps)
        _lines(cut, source, y, gamma, beta, mean, rstd)
    return lie.restored(y, x), mean.reshape(shape), var.reshape(shape), rstd.reshape(shape)


def _given_forward(norm: Any, x: Array, gamma: Array | None, beta: Array | None, mean: Array, rstd: Array) -> Array:
    """y of batch norm by the running statistics."""
    if not x.size:
        return np.empty(x.shape, x.dtype)
    lie = channels_of(norm.rows, x)
    source = lie.laid(x, accumulator(x.dtype))
    y, cut = backends.result(source.shape, source.dtype), cut_of(lie, source.itemsize)
    statistics = lie.numbers(mean, 0.0), lie.numbers(rstd, 1.0)
    _lines(cut, source, y, lie.numbers(gamma, 1.0), lie.numbers(beta, 0.0), *statistics)
    return lie.restored(y, x)


def _moments(lie: Channels, cut: Cut, x: Array) -> tuple[Array, Array]:
    """Mean and variance of each row, from those of its parts (Chan, Golub and LeVeque 1979)."""
    means, squares = np.zeros((2, cut.sums))
    chunks(cut.units, x.nbytes, functools.partial(cut.loops.moments, x, means, squares, *cut.geometry))
    means, squares, counts = cut.parts(means), cut.parts(squares), cut.counts
    n = x.size / lie.rows
    mean = np.sum(means * counts, axis=lie.row_axes, keepdims=True) / n
    var = np.sum(squares + counts * (means - mean) ** 2, axis=lie.row_axes, keepdims=True) / n
    return mean, var


def _lines(cut: Cut, x: Array, y: Array, gamma: Array, beta: Array, mean: Array, rstd: Array) -> None:
    """y, from the numbers of channels and rows."""
    shift = mean.astype(x.dtype)
    scale = rstd * gamma
    numbers = [cut.spread(a, x.dtype) for a in (shift, scale, beta - (mean - shift) * scale)]
    chunks(cut.units, 2 * x.nbytes, functools.partial(cut.loops.lines, x, y, *numbers, *cut.geometry))
