"""Adaptive average pooling: the average of windows that divide an axis as evenly as can be.

Sums are taken axis by axis, in float32 for half types, of more than SHORT_SUM cells in float64. Where all windows have
one size and one stride this is average pooling. Backward is the adjoint, axis by axis in the other direction.

Source: torch.nn.functional.adaptive_avg_pool2d.
"""

from __future__ import annotations

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, Average, adaptive_window
from cnnlayers.specs.arguments import DataFormat, OutputSize

from .arrays import Array, cast, in_accumulator_dtype, sum_dtype
from .avg_pool import portable_avg_pool
from .call_plan import CallPlan, Context, check_backward, inference_of, on_device, plan_of
from .checks import check_linear
from .complex_arrays import run_planes
from .plane_chunks import in_planes
from .window_arrays import axis_index, on_axis, resized, window_ends, window_starts


def _adaptive_sums(b: Backend, x: Array, dim: int, axis: AdaptiveAxis) -> Array:
    """Window sums along one axis whose windows differ in size: a gather for each tap of the widest, or a sum for each
    window where these are fewer."""
    dtype, ndim = sum_dtype(b, axis.kernel, x.dtype), len(x.shape)
    y, zero = b.zeros(resized(x, dim, axis.out), dtype), b.zeros((), x.dtype)
    if axis.out < axis.kernel:
        for window in range(axis.out):
            part = b.xp.sum(x[axis_index(dim, axis.cells(window))], axis=dim, keepdims=True, dtype=dtype)
            y[axis_index(dim, slice(window, window + 1))] = part
        return y
    cell, end = window_starts(b, axis), window_ends(b, axis)
    for tap in range(axis.kernel):
        if tap < axis.narrowest:
            y += b.xp.take(x, cell + tap, axis=dim)
        else:
            inside = cell + tap < end
            values = b.xp.take(x, b.xp.clip(cell + tap, None, axis.length - 1), axis=dim)
            y += b.xp.where(on_axis(b, inside, dim, ndim), values, zero)
    return y


def _adaptive_divided(b: Backend, spec: AdaptiveWindow, sums: Array) -> Array:
    for dim, axis in spec.placed:
        number = window_ends(b, axis) - window_starts(b, axis)
        sums = sums / on_axis(b, cast(b, number, sums.dtype), dim, len(spec.layout.shape))
    return sums


@in_planes
@in_accumulator_dtype
def _adaptive_avg_pool_forward(b: Backend, spec: AdaptiveWindow, x: Array) -> Array:
    regular = spec.regular()
    if regular is not None:
        return portable_avg_pool(b, Average(regular), x)
    for dim, axis in spec.placed:
        x = _adaptive_sums(b, x, dim, axis)
    return _adaptive_divided(b, spec, x)


@in_planes
@in_accumulator_dtype
def _adaptive_avg_pool_backward(b: Backend, spec: AdaptiveWindow, dy: Array) -> Array:
    dy = _adaptive_divided(b, spec, dy)
    for dim, axis in reversed(spec.placed):
        dy = _adaptive_sums(b, dy, dim, axis.adjoint)  # each cell adds up the windows over it, the first one first
    return dy


def _adaptive_avg_pool_plan(x: Array, output_size: OutputSize, data_format: DataFormat) -> CallPlan:
    b = backends.of(x)
    check_linear(b, x, "x")
    spec = adaptive_window(tuple(x.shape), output_size, data_format)
    return CallPlan("adaptive_avg_pool", b, x.dtype, spec.out_shape, spec)


@on_device
def adaptive_avg_pool_forward(
    x: Array, output_size: OutputSize, *, data_format: DataFormat = "channels_first"
) -> tuple[Array, Context]:
    """Average pooling to a given size: window o of an axis is the cells floor(o*L/out) to ceil((o+1)*L/out).

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating or
        complex.
    output_size : int, None or sequence of them
        Windows, for all spatial axes or one per axis; None keeps an axis.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        (N, C, *output_size), or channels last; x's dtype.
    ctx : Context
        For `adaptive_avg_pool_backward`; `adaptive_avg_pool` returns y alone. It has no array.

    Raises
    ------
    ValueError
        A size below 1, or another number of axes.
    TypeError
        Another dtype or kind of argument.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.adaptive_avg_pool(np.array([[[1.0, 5.0, 3.0, 4.0, 2.0]]]), 2)
    array([[[3., 3.]]])

    References
    ----------
    torch.nn.functional.adaptive_avg_pool2d
    """
    plan = plan_of(_adaptive_avg_pool_plan, (x,), output_size, data_format)
    return run_planes(plan, "adaptive_avg_pool_forward", _adaptive_avg_pool_forward, x), Context(plan)


adaptive_avg_pool = inference_of(adaptive_avg_pool_forward)


@on_device
def adaptive_avg_pool_backward(dy: Array, ctx: Context) -> Array:
    """dx of `adaptive_avg_pool`: each cell adds dy / (cells of the window) of the windows over it.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `adaptive_avg_pool_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    _, dy = check_backward("adaptive_avg_pool", dy, ctx, exact=True)
    return run_planes(ctx.plan, "adaptive_avg_pool_backward", _adaptive_avg_pool_backward, dy)
