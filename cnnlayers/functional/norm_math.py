"""The one piece of mathematics in batch, group, instance, layer and RMS norm: an array falls into rows, each row is
brought to mean 0 and variance 1 (in RMS norm to mean square 1), then scaled by gamma and shifted by beta.

    xhat = (x - mean) * rstd,    rstd = 1 / sqrt(var + eps),    y = xhat * gamma + beta

    dx = rstd * (dxhat - sum(dxhat) / n - xhat * sum(dxhat * xhat) / n),    dxhat = dy * gamma

with sums over a row's n cells. Where mean and variance are given (batch norm in evaluation), dx = rstd * dxhat.

Sums run in float64 (those of products along a short last axis first in the compute dtype, `sum_products_keepdims`),
and the variance is centred: mean(x**2) - mean(x)**2 would lose every digit at a large mean.
The arrays stay in x's compute dtype all the same: x is centred by `shift`, the mean rounded to that dtype, and what the
rounding left out, `delta`, is put right in the numbers of a row: x - mean = (x - shift) - delta. Squares are in the
compute dtype, so in float32 a spread beyond 1e19 overflows.

A row that holds a NaN becomes NaN, and no other does. Nothing here writes into an argument.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import Shape
from cnnlayers.specs.norm import Norm, Rows

from .arrays import Array, accumulator_dtype, cast

MAX_CELLS_IN_OWN_DTYPE = 1024  # products along the last axis are summed in their own dtype up to this many cells
Centred: TypeAlias = tuple[Array, Array | None]  # (x - shift, delta); (x, None) in RMS norm


class Statistics(NamedTuple):
    """Of each row, in float64 and of the view's rank; `n`: the cells it has, over all ranks. In RMS norm `mean` is None
    and `var` the mean square."""

    mean: Array | None
    rstd: Array
    var: Array
    n: int


# ---------------------------------------------------------------------------------------------------------------- sums
def float64_sum_keepdims(b: Backend, a: Array, axes: Shape) -> Array:
    """Sums in float64, the axes kept at length 1; `a` itself where there is no axis to sum over."""
    return b.xp.sum(a, axis=axes, dtype=b.xp.float64, keepdims=True) if axes else a


def sum_products_keepdims(b: Backend, a: Array, axes: Shape) -> Array:
    """`float64_sum_keepdims` of products. Along a last axis of at most MAX_CELLS_IN_OWN_DTYPE cells the sum is in the
    products' own dtype, which is several times as fast; over the other axes it is in float64."""
    last = a.ndim - 1
    together = b.name != "numpy" or a.strides[last] == a.itemsize  # else NumPy adds one after another
    if last in axes and a.shape[last] <= MAX_CELLS_IN_OWN_DTYPE and together:
        a = b.xp.sum(a, axis=last, keepdims=True)
    return float64_sum_keepdims(b, a, axes)


def over_ranks(b: Backend, comm: Any, count: int, *sums: Array) -> tuple[int, list[Array]]:
    """A count and float64 sums, added up over the ranks of `comm` in one call; as they are where it is None."""
    if comm is None:
        return count, list(sums)
    parts = [backends.to_numpy(s) for s in sums]
    packed = numpy.concatenate([numpy.full(1, count, numpy.float64), *(p.reshape(-1) for p in parts)])
    added = numpy.asarray(comm.allreduce(packed), dtype=numpy.float64)
    pieces = numpy.split(added[1:], numpy.cumsum([p.size for p in parts])[:-1])
    return int(added[0]), [b.array(s.reshape(p.shape), b.xp.float64) for s, p in zip(pieces, parts, strict=True)]


# ------------------------------------------------------------------------------------------------------------- pieces
def to_view(b: Backend, rows: Rows, x: Array) -> Array:
    """x in the rows' view, and in the dtype it is computed in."""
    return cast(b, b.xp.reshape(x, rows.view), accumulator_dtype(b, x.dtype))


def as_parameter(b: Backend, rows: Rows, p: Array | None) -> Array | None:
    """gamma or beta, so that it broadcasts against the view."""
    return None if p is None else b.xp.reshape(p, rows.parameter_view)


def centre(b: Backend, v: Array, mean: Array | None) -> Centred:
    """`(v - shift, delta)`, as the module's docstring has them; `(v, None)` where there is no mean to take away."""
    if mean is None:
        return v, None
    shift = cast(b, mean, v.dtype)
    return v - shift, mean - cast(b, shift, mean.dtype)


def scale_shift(b: Backend, x: Array, scale: Array | None, offset: Array | None = None) -> Array:
    """x * scale + offset in x's dtype; what is None is left out."""
    if scale is None:
        return x if offset is None else x + cast(b, offset, x.dtype)
    y = x * cast(b, scale, x.dtype)
    if offset is not None:
        y += cast(b, offset, x.dtype)  # y is new, and this saves another
    return y


def standardise(
    b: Backend, rows: Rows, centred: Centred, rstd: Array, gamma: Array | None, beta: Array | None
) -> Array:
    """y in the view: xhat * gamma + beta."""
    xc, delta = centred
    gamma, beta = as_parameter(b, rows, gamma), as_parameter(b, rows, beta)
    offset = None if delta is None else -delta * rstd
    if not rows.shared or offset is None:
        return scale_shift(b, scale_shift(b, xc, rstd, offset), gamma, beta)
    # All factors are small arrays: put together in float64, they pass over the large one once.
    return scale_shift(b, xc, scale_shift(b, rstd, gamma), scale_shift(b, offset, gamma, beta))


def reciprocal_std(b: Backend, var: Array, eps: float) -> Array:
    """rstd of a float64 variance."""
    return 1.0 / b.xp.sqrt(var + eps)


def dy_xhat_sums(b: Backend, rows: Rows, dy: Array, centred: Centred, rstd: Array, sum_dy: Array) -> Array:
    """dy * xhat, summed over the cells that share a parameter. The result is small, except in layer norm, where each
    cell has its own parameter.

    sum_dy: dy, summed likewise.
    """
    xc, delta = centred
    sums = sum_products_keepdims(b, dy * xc, rows.shared)
    if delta is not None:
        sums = sums - cast(b, delta, sums.dtype) * sum_dy
    return sums * cast(b, rstd, sums.dtype)


def parameter_gradient(b: Backend, rows: Rows, sums: Array, dtype: Any) -> Array | None:
    """dgamma or dbeta, from sums over the cells that share a parameter; None for a parameter that was not given."""
    if dtype is None:
        return None
    total = b.xp.reshape(float64_sum_keepdims(b, sums, rows.summed_axes), rows.parameter)
    return b.xp.astype(total, dtype)  # a copy: where a parameter has one cell, its sum may be dy itself


# -------------------------------------------------------------------------------------------------- forward, backward
def forward_with_computed_stats(
    b: Backend, norm: Norm, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Statistics]:
    """y in x's shape and dtype, and the statistics that made it."""
    rows = norm.rows
    v, n, mean = to_view(b, rows, x), rows.count, None
    if rows.centred:
        n, [sums] = over_ranks(b, norm.comm, n, float64_sum_keepdims(b, v, rows.axes))
        mean = sums / max(n, 1)
    centred = xc, delta = centre(b, v, mean)
    _, [squares] = over_ranks(b, norm.comm, rows.count, sum_products_keepdims(b, xc * xc, rows.axes))
    var = squares / n if n else squares + 1.0  # without a cell any number will do, but 0 where eps is 0
    if delta is not None:
        var = b.xp.maximum(var - delta * delta, b.zeros((), var.dtype))  # delta is the mean of xc
    rstd = reciprocal_std(b, var, rows.eps)
    y = standardise(b, rows, centred, rstd, gamma, beta)
    return b.xp.reshape(cast(b, y, x.dtype), rows.shape), Statistics(mean, rstd, var, n)


def backward_with_computed_stats(
    b: Backend, norm: Norm, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)`: dx in x's shape and compute dtype, the others in the parameters'."""
    rows = norm.rows
    dy, centred = to_view(b, rows, dy), centre(b, to_view(b, rows, x), mean)
    sum_dy = float64_sum_keepdims(b, dy, rows.shared)
    sum_dy_xhat = dy_xhat_sums(b, rows, dy, centred, rstd, sum_dy)
    dgamma = parameter_gradient(b, rows, sum_dy_xhat, norm.gamma_dtype)
    dbeta = parameter_gradient(b, rows, sum_dy, norm.beta_dtype)
    gamma = as_parameter(b, rows, gamma)
    through = _through_statistics(
        b, norm, centred, rstd, scale_shift(b, sum_dy_xhat, gamma), scale_shift(b, sum_dy, gamma)
    )
    dx = scale_shift(b, scale_shift(b, dy, gamma) - through, rstd)
    return b.xp.reshape(dx, rows.shape), dgamma, dbeta


def _through_statistics(
    b: Backend, norm: Norm, centred: Centred, rstd: Array, sum_dxhat_xhat: Array, sum_dxhat: Array
) -> Array:
    """(sum(dxhat) + xhat * sum(dxhat * xhat)) / n: the part of dx that comes through the row's mean and variance,
    without the factor -rstd.

    sum_dxhat_xhat, sum_dxhat: dxhat * xhat and dxhat, already summed over the cells that share a parameter.
    """
    axes, (xc, delta) = norm.rows.axes, centred
    n, [sum_dxhat_xhat, sum_dxhat] = over_ranks(
        b,
        norm.comm,
        norm.rows.count,
        sum_products_keepdims(b, sum_dxhat_xhat, axes),
        sum_products_keepdims(b, sum_dxhat, axes),
    )
    slope = rstd * sum_dxhat_xhat / max(n, 1)
    return scale_shift(b, xc, slope, None if delta is None else sum_dxhat / max(n, 1) - delta * slope)


# ------------------------------------------------------------------------------------------- where statistics are given
def forward_with_running_stats(
    b: Backend, norm: Norm, x: Array, gamma: Array | None, beta: Array | None, mean: Array, rstd: Array
) -> Array:
    """y, from float64 statistics of the view's rank. x is centred here too: x * scale + (beta - mean * scale) would
    lose the digits that a large mean takes."""
    y = standardise(b, norm.rows, centre(b, to_view(b, norm.rows, x), mean), rstd, gamma, beta)
    return b.xp.reshape(cast(b, y, x.dtype), norm.rows.shape)


def backward_with_running_stats(
    b: Backend, norm: Norm, dy: Array, x: Array | None, mean: Array, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """As `backward_with_computed_stats`, but x has no part in the statistics, and is needed for dgamma alone."""
    rows, dy, dgamma = norm.rows, to_view(b, norm.rows, dy), None
    sum_dy = float64_sum_keepdims(b, dy, rows.shared)
    if x is not None:
        sum_dy_xhat = dy_xhat_sums(b, rows, dy, centre(b, to_view(b, rows, x), mean), rstd, sum_dy)
        dgamma = parameter_gradient(b, rows, sum_dy_xhat, norm.gamma_dtype)
    dx = scale_shift(b, dy, scale_shift(b, rstd, as_parameter(b, rows, gamma)))
    return b.xp.reshape(dx, rows.shape), dgamma, parameter_gradient(b, rows, sum_dy, norm.beta_dtype)
