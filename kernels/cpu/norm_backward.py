"""Launchers of the CPU norms' backward, called as the portable code is. Which loops serve is as norm.py says."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import norm_joined, norm_loops
from .compile import chunks
from .norm_arrays import accumulator, converted, gradient, parameter, refuses
from .norm_lie import Channels, Cut, channels_of, cut_of

__all__ = [
    "batch_norm_backward",
    "group_norm_backward",
    "instance_norm_backward",
    "layer_norm_backward",
    "refuses",
    "rms_norm_backward",
]

Array = Any
PARTS = 64  # that the sums of parameters' gradients are made in, at most
TURNS = 8  # times that a part runs over the parameters, at least: the parts are small beside x


# ----------------------------------------------------------------------------------------------------------------- ops
def _cells_backward(
    b: Backend, norm: Any, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)` of layer and RMS norm."""
    rows = norm.rows
    if not dy.size:
        return _empty(norm, dy)
    weight = parameter(gamma, 1.0, rows.parameter, accumulator(x.dtype))
    dx, along, plain = cells(dy, x, weight, mean, rstd, rows.count)
    return dx, gradient(along, rows.parameter, norm.gamma_dtype), gradient(plain, rows.parameter, norm.beta_dtype)


def _empty(norm: Any, dy: Array) -> tuple[Array, Array | None, Array | None]:
    """The gradients of an empty array."""
    none, shape = np.zeros(norm.rows.parameter), norm.rows.parameter
    return np.empty(dy.shape, dy.dtype), gradient(none, shape, norm.gamma_dtype), gradient(none, shape, norm.beta_dtype)


layer_norm_backward = rms_norm_backward = _cells_backward


def _channels_backward(
    b: Backend, norm: Any, dy: Array, x: Array | None, mean: Array, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)` of batch, group and instance norm; where statistics were given, x may be None."""
    rows = norm.rows
    if not dy.size:
        return _empty(norm, dy)
    x = dy if x is None else x  # whatever it is: it makes dgamma alone, which is not asked for
    lie = channels_of(rows, x)
    weight = lie.numbers(gamma, 1.0)
    if lie.in_cells:
        repeated = np.repeat(weight.astype(accumulator(dy.dtype)), lie.length)
        flat, *sums = cells(dy.transpose(lie.order), x.transpose(lie.order), repeated, mean, rstd, rows.count)
        along, plain = (s.reshape(-1, lie.length).sum(axis=1) for s in sums)
    else:
        g, source = (lie.laid(a, accumulator(dy.dtype)) for a in (dy, x))
        flat, along, plain = (_given if norm.given else _own)(lie, g, source, weight, mean, rstd)
    dx = lie.restored(flat, dy)
    return dx, gradient(along, rows.parameter, norm.gamma_dtype), gradient(plain, rows.parameter, norm.beta_dtype)


batch_norm_backward = group_norm_backward = instance_norm_backward = _channels_backward


# --------------------------------------------------------------------------------------------------- parameters a cell
def cells(dy: Array, x: Array, gamma: Array, mean: Array | None, rstd: Array, count: int) -> tuple[Array, Array, Array]:
    """dx, dgamma and dbeta, as norm.py's `cells` has gamma; mean None: it was taken to be 0."""
    g, source = converted(dy, gamma.dtype), converted(x, gamma.dtype)
    dx, rstd = backends.result(source.shape, source.dtype), np.ascontiguousarray(rstd).reshape(-1)
    centred = mean is not None
    mean = np.ascontiguousarray(mean).reshape(-1) if centred else np.zeros_like(rstd)
    parts = max(1, min(PARTS, x.size // gamma.size // TURNS))
    dgamma, dbeta = np.zeros((2, parts, gamma.size))
    run = functools.partial(norm_loops.cells_backward, g, source, dx, gamma, mean, rstd)
    run = functools.partial(run, dgamma.reshape(-1), dbeta.reshape(-1), centred, count, parts)
    chunks(parts, 3 * source.nbytes, run)
    return converted(dx, dy.dtype).reshape(x.shape), dgamma.sum(axis=0), dbeta.sum(axis=0)


# ------------------------------------------------------------------------------------------------ parameters a channel
def _own(lie: Channels, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """dx and the sums of dy * xhat and of dy of each channel, the statistics being the array's own."""
    block = lie.block(x.itemsize)
    if block:
        dx = backends.result(x.shape, x.dtype)
        plain, along = np.empty((2, lie.rows))
        run = functools.partial(norm_joined.blocks_backward, dy, x, dx, gamma.reshape(-1), mean.reshape(-1))
        run = functools.partial(run, rstd.reshape(-1), plain, along, lie.samples, lie.length, block)
        chunks(-(-lie.rows // block), 3 * x.nbytes, run)
        return dx, along, plain
    if lie.at_once(x.itemsize):
        dx = backends.result(x.shape, x.dtype)
        plain, along = np.empty((2, lie.samples * lie.groups * lie.group))
        run = functools.partial(norm_loops.rows_backward, dy, x, dx, gamma.reshape(-1), mean.reshape(-1))
        run = functools.partial(run, rstd.reshape(-1), plain, along, lie.segments, lie.step, lie.length)
        chunks(lie.rows, 3 * x.nbytes, run)
        return dx, *(s.reshape(lie.samples, -1).sum(axis=0) for s in (along, plain))
    cut, dx, n = cut_of(lie, x.itemsize), backends.result(x.shape, x.dtype), x.size / lie.rows
    mean, rstd = (a.reshape(lie.row_shape) for a in (mean, rstd))
    shift = mean.astype(x.dtype)
    along, plain = _sums(cut, dy, x, shift, mean, rstd)
    row_along, row_plain = (np.sum(s * gamma, axis=lie.row_axes, keepdims=True) for s in (along, plain))
    slope = rstd * row_along / n
    numbers = shift, gamma, slope, row_plain / n - (mean - shift) * slope, rstd
    spread = [cut.spread(a, x.dtype) for a in numbers]
    chunks(cut.units, 3 * x.nbytes, functools.partial(cut.loops.slopes, dy, x, dx, *spread, *cut.geometry))
    return dx, along.sum(axis=(0, 3)), plain.sum(axis=(0, 3))


def _given(lie: Channels, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """The same, dx not reaching through the statistics."""
    cut, dx = cut_of(lie, x.itemsize), backends.result(x.shape, x.dtype)
    mean, rstd = (a.reshape(lie.row_shape) for a in (mean, rstd))
    along, plain = _sums(cut, dy, x, mean.astype(x.dtype), mean, rstd)
    spread = [cut.spread(a, x.dtype) for a in (np.zeros_like(rstd), rstd * gamma, np.zeros_like(rstd))]
    chunks(cut.units, 2 * x.nbytes, functools.partial(cut.loops.lines, dy, dx, *spread, *cut.geometry))
    return dx, along.sum(axis=(0, 3)), plain.sum(axis=(0, 3))


def _sums(cut: Cut, dy: Array, x: Array, shift: Array, mean: Array, rstd: Array) -> tuple[Array, Array]:
    """The sums of dy * xhat and of dy, of each part of each channel."""
    plain, along = np.zeros((2, cut.sums))
    spread = cut.spread(shift, x.dtype)
    chunks(cut.units, 2 * x.nbytes, functools.partial(cut.loops.sums, dy, x, spread, plain, along, *cut.geometry))
    plain = cut.parts(plain)
    return (cut.parts(along) - (mean - shift) * plain) * rstd, plain
