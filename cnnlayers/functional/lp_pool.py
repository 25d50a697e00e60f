"""Lp pooling: y = (sum of abs(x)**p over a window) ** (1/p), with p > 0.

Rules: everything is computed in float64. Cells outside the input count as 0. The gradient is
dx = dy * sign(x) * (abs(x) / y)**(p - 1), and 0 where x or y is 0.

Range: a power may leave float64's range where the norm does not. Where that is possible (float64 itself, and large p)
norms are taken axis by axis, each of the norms along the axis before, and what lies in a window is divided by the
largest of it first, so that all powers are at most 1. Of other calls (float32 and half types, p up to POWER) every
power fits, and the powers are added up as they are.

NaN and infinity: a window with a NaN gives NaN; of the others one with an infinity gives infinity. Unless p is 1 the
gradient is NaN at an infinity, whose quotient with y is not defined.

Conventions are those of torch.nn.functional.lp_pool2d, which lacks the abs.
"""

from __future__ import annotations

import math
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import Axis, LpPool, Window, pool_window
from cnnlayers.specs.arguments import DataFormat, Padding, Size, real

from .arrays import Array, cast
from .call_plan import CallPlan, Context, inference_of, on_device, plan_of, run_backward
from .checks import check_floating
from .plane_chunks import in_planes
from .window_arrays import axis_index, loops_over_windows, resized, window_adjoint, window_parts, window_sums

POWER = 6.0  # float64 holds every power up to this one of 1e-45 and 3e38, float32's smallest and largest numbers


def lp_pool_spec(b: Backend, window: Window, p: float, dtype: Any) -> LpPool:
    """The spec of an Lp pool of an x of this dtype."""
    return LpPool(window, p, p != 1 and (dtype == b.xp.float64 or p > POWER))


def _power(b: Backend, x: Array, p: float) -> Array:
    """x ** p of numbers that are not negative."""
    return x * x if p == 2 else x if p == 1 else x**p


def _root(b: Backend, x: Array, p: float) -> Array:
    return b.xp.sqrt(x) if p == 2 else x if p == 1 else x ** (1 / p)


# ------------------------------------------------------------------------------------------- powers added as they are
def _norms(b: Backend, spec: LpPool, x: Array) -> Array:
    return _root(b, window_sums(b, spec.window, _power(b, b.xp.abs(x), spec.p)), spec.p)


def _gradient(b: Backend, spec: LpPool, dy: Array, x: Array) -> Array:
    y, size, one, zero = _norms(b, spec, x), b.xp.abs(x), b.full((), 1.0, x.dtype), b.zeros((), x.dtype)
    scale = b.xp.where(y == 0, zero, dy * b.xp.where(y == 0, one, y) ** (1 - spec.p))
    slope = _power(b, b.xp.where(size == 0, one, size), spec.p - 1)
    return b.xp.where(size == 0, zero, window_adjoint(b, spec.window, scale) * slope)


# -------------------------------------------------------------------------------------------- by the window's largest
def _slope(b: Backend, inner: Array, outer: Array, p: float) -> Array:
    """(inner / outer)**(p - 1) of 0 <= inner <= outer. Below p = 2 the quotient may leave float64's range and the power
    not: then roots of both powers are multiplied, and squared."""
    if p >= 2:
        return _power(b, inner / outer, p - 1)
    root = inner ** ((p - 1) / 2) * outer ** ((1 - p) / 2)
    return root * root


def _axis_norms(b: Backend, x: Array, dim: int, axis: Axis, p: float) -> Array:
    """The norms of windows along one axis, of numbers that are not negative."""
    largest, sums = (b.zeros(resized(x, dim, axis.out), x.dtype) for _ in range(2))
    by_window = loops_over_windows(axis)
    for windows, cells in window_parts(axis):
        at, values = axis_index(dim, windows), x[axis_index(dim, cells)]
        values = b.xp.max(values, axis=dim, keepdims=True) if by_window else values
        largest[at] = b.xp.maximum(largest[at], values)
    one = b.full((), 1.0, x.dtype)
    scale = b.xp.where((largest == 0) | b.xp.isinf(largest), one, largest)
    for windows, cells in window_parts(axis):
        at = axis_index(dim, windows)
        powers = _power(b, x[axis_index(dim, cells)] / scale[at], p)
        sums[at] += b.xp.sum(powers, axis=dim, keepdims=True) if by_window else powers
    return scale * _root(b, sums, p)


def _scaled_norms(b: Backend, spec: LpPool, x: Array) -> list[Array]:
    """abs(x), the norms along the first axis, the norms of those along the second, and so on."""
    found = [b.xp.abs(x)]
    for dim, axis in spec.window.placed:
        found.append(_axis_norms(b, found[-1], dim, axis, spec.p))
    return found


def _scaled_gradient(b: Backend, spec: LpPool, dy: Array, x: Array) -> Array:
    norms, one, zero = _scaled_norms(b, spec, x), b.full((), 1.0, x.dtype), b.zeros((), x.dtype)
    for index, (dim, axis) in reversed(list(enumerate(spec.window.placed))):
        inner, outer = norms[index], norms[index + 1]
        dy, outer = b.xp.where(outer == 0, zero, dy), b.xp.where(outer == 0, one, outer)
        finite = b.xp.where(b.xp.isinf(inner), one, inner)
        dx = b.zeros(tuple(inner.shape), x.dtype)
        for windows, cells in window_parts(axis):
            at, seen = axis_index(dim, windows), axis_index(dim, cells)
            dx[seen] += dy[at] * _slope(b, finite[seen], outer[at], spec.p)
        dy = b.xp.where(inner == 0, zero, dx)
    return b.xp.where(b.xp.isinf(x), b.full((), math.nan, x.dtype), dy)


# ----------------------------------------------------------------------------------------------------------------- op
@in_planes
def _lp_pool_forward(b: Backend, spec: LpPool, x: Array) -> Array:
    wide = cast(b, x, b.xp.float64)
    return cast(b, _scaled_norms(b, spec, wide)[-1] if spec.scaled else _norms(b, spec, wide), x.dtype)


@in_planes
def _lp_pool_backward(b: Backend, spec: LpPool, dy: Array, x: Array) -> Array:
    wide = cast(b, x, b.xp.float64)
    gradient = (_scaled_gradient if spec.scaled else _gradient)(b, spec, cast(b, dy, b.xp.float64), wide)
    return cast(b, gradient * b.xp.sign(wide), x.dtype)


def norm_exponent(norm_type: Any) -> float:
    """The exponent, positive and finite. ValueError otherwise."""
    p = real(norm_type, "norm_type", finite=False)
    if p == math.inf:
        raise ValueError("norm_type must be finite, got inf: that norm is max_pool of abs(x)")
    if not p > 0:
        raise ValueError(f"norm_type must be positive, got {norm_type!r}")
    return p


def _lp_pool_plan(x: Array, norm_type: Any, *options: Any) -> CallPlan:
    """The plan of an Lp pool. options: the arguments of `pool_window`."""
    b = backends.of(x)
    check_floating(b, x, "x")
    p = norm_exponent(norm_type)
    window = pool_window(tuple(x.shape), *options)
    return CallPlan("lp_pool", b, x.dtype, window.out_shape, lp_pool_spec(b, window, p, x.dtype))


@on_device
def lp_pool_forward(
    x: Array,
    kernel_size: Size,
    norm_type: float = 2.0,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Lp pooling: y = (sum of abs(x)**p over a window) ** (1 / p), with p = norm_type.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating.
    norm_type : float
        The exponent p, positive and finite.
    kernel_size, stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis. stride None is kernel_size.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full". Padding
        cells are zeros.
    ceil_mode : bool
        Also windows that overhang the end, if they start inside the input or its left padding.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        (N, C, *windows), or channels last; x's dtype. It is finite where the norm is, however far the powers leave the
        dtype's range.
    ctx : Context
        For `lp_pool_backward`; `lp_pool` returns y alone. It refers to x: do not change x in place before the backward.

    Raises
    ------
    ValueError
        As `avg_pool`, and a norm_type that is not positive and finite: with infinity the norm is the largest
        magnitude, max_pool(abs(x)).
    TypeError
        Another dtype or kind of argument.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.lp_pool(np.array([[[3.0, 4.0, -6.0, 8.0]]]), 2)
    array([[[ 5., 10.]]])

    References
    ----------
    torch.nn.functional.lp_pool2d, which lacks the abs.
    """
    options = kernel_size, stride, padding, dilation, ceil_mode, data_format
    plan = plan_of(_lp_pool_plan, (x,), norm_type, *options)
    y = plan.run("lp_pool_forward", _lp_pool_forward, x)
    return y, Context(plan, {"x": x})


lp_pool = inference_of(lp_pool_forward)


@on_device
def lp_pool_backward(dy: Array, ctx: Context) -> Array:
    """dx of `lp_pool`: each cell adds dy * sign(x) * (abs(x) / y)**(p - 1) of the windows over it.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `lp_pool_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.

    Notes
    -----
    The gradient is 0 at x = 0, and that of a window whose y is 0.
    """
    return run_backward("lp_pool", _lp_pool_backward, dy, ctx, "x")
