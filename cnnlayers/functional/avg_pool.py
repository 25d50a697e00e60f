"""Average, sum and adaptive average pooling: everything that adds up windows.

Rules of the family: a window's sum is taken axis by axis (first spatial axis first), each over slices of the array, in
float32 for half types; in float64 where more than SHORT_SUM cells, or in backward windows, are added up. Cells
outside the input add nothing.
The divisor of an average counts the cells inside the input and its declared padding, never ceil mode's overhang; a
window that meets no cell gives 0 and passes no gradient. Backward is the sum's adjoint, axis by axis in the other
direction.

Conventions are those of torch.nn.functional's avg_pool and adaptive_avg_pool.
"""

from __future__ import annotations

from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import Average, pool_window
from cnnlayers.specs.arguments import DataFormat, Padding, Size, flag, integer

from .arrays import Array, cast, in_accumulator_dtype
from .call_plan import CallPlan, Context, check_backward, inference_of, on_device, plan_of
from .checks import check_linear
from .complex_arrays import run_planes
from .plane_chunks import in_planes
from .window_arrays import on_axis, tap_counts, window_adjoint, window_sums


# ------------------------------------------------------------------------------------------------------------- average
def _divided(b: Backend, spec: Average, sums: Array) -> Array:
    """Sums (or gradients) over each window's divisor; windows without a cell count 1, as their sum is 0 anyway."""
    if spec.override is not None:
        return sums / spec.override
    ndim = len(spec.window.layout.shape)
    for dim, axis in spec.window.placed:
        number = tap_counts(b, axis, spec.include_pad)
        if isinstance(number, int):
            sums = sums / number
        else:
            sums = sums / on_axis(b, cast(b, b.xp.clip(number, 1, None), sums.dtype), dim, ndim)
    return sums


@in_planes
@in_accumulator_dtype
def portable_avg_pool(b: Backend, spec: Average, x: Array) -> Array:
    """The averages of x in array code."""
    return _divided(b, spec, window_sums(b, spec.window, x))


@in_planes
@in_accumulator_dtype
def _avg_pool_backward(b: Backend, spec: Average, dy: Array) -> Array:
    return window_adjoint(b, spec.window, _divided(b, spec, dy))


def _avg_pool_plan(x: Array, include_pad: Any, override: Any, *options: Any) -> CallPlan:
    """The plan of an average pool. options: the arguments of `pool_window`."""
    b = backends.of(x)
    check_linear(b, x, "x")
    if override is not None and integer(override, "divisor_override") == 0:
        raise ValueError("divisor_override must be any int but 0, got 0")
    window = pool_window(tuple(x.shape), *options)
    spec = Average(window, flag(include_pad, "count_include_pad"), None if override is None else int(override))
    return CallPlan("avg_pool", b, x.dtype, window.out_shape, spec)


@on_device
def avg_pool_forward(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Average pooling: y = (sum of a window's cells) / (their number).

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating or
        complex.
    kernel_size, stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis. stride None is kernel_size.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full". Padding
        cells are zeros.
    ceil_mode : bool
        Also windows that overhang the end, if they start inside the input or its left padding.
    count_include_pad : bool
        Whether cells of the declared padding count in the divisor. The overhang of ceil mode never does.
    divisor_override : int or None
        The divisor of all windows, any int but 0 and below 2**31 in size.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        (N, C, *windows), or channels last; x's dtype. Half types are summed in float32, long sums in float64.
    ctx : Context
        For `avg_pool_backward`; `avg_pool` returns y alone. It has no array.

    Raises
    ------
    ValueError
        A size below 1, padding not smaller than the effective kernel, a window larger than the padded input, another
        number of axes.
    TypeError
        Another dtype or kind of argument.

    Notes
    -----
    A window that meets no cell gives 0. A NaN makes its windows NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.avg_pool(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2)
    array([[[3., 3.]]])

    References
    ----------
    torch.nn.functional.avg_pool2d
    """
    options = kernel_size, stride, padding, dilation, ceil_mode, data_format
    plan = plan_of(_avg_pool_plan, (x,), count_include_pad, divisor_override, *options)
    return run_planes(plan, "avg_pool_forward", portable_avg_pool, x), Context(plan)


avg_pool = inference_of(avg_pool_forward)


@on_device
def avg_pool_backward(dy: Array, ctx: Context) -> Array:
    """dx of `avg_pool`: each cell adds dy / divisor of the windows over it.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `avg_pool_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    _, dy = check_backward("avg_pool", dy, ctx, exact=True)
    return run_planes(ctx.plan, "avg_pool_backward", _avg_pool_backward, dy)


# ----------------------------------------------------------------------------------------------------------------- sum
_sum_pool_forward = in_planes(in_accumulator_dtype(window_sums))
_sum_pool_backward = in_planes(in_accumulator_dtype(window_adjoint))


def _sum_pool_plan(x: Array, *options: Any) -> CallPlan:
    """The plan of a sum pool. options: the arguments of `pool_window`."""
    b = backends.of(x)
    check_linear(b, x, "x")
    window = pool_window(tuple(x.shape), *options)
    return CallPlan("sum_pool", b, x.dtype, window.out_shape, window)


@on_device
def sum_pool_forward(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Sum pooling: y = the sum of a window's cells.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating or
        complex.
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
        (N, C, *windows), or channels last; x's dtype. Half types are summed in float32, long sums in float64.
    ctx : Context
        For `sum_pool_backward`; `sum_pool` returns y alone. It has no array.

    Raises
    ------
    ValueError
        A size below 1, padding not smaller than the effective kernel, a window larger than the padded input, another
        number of axes.
    TypeError
        Another dtype or kind of argument.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.sum_pool(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2)
    array([[[6., 6.]]])

    References
    ----------
    torch.nn.functional.avg_pool2d with divisor_override=1
    """
    plan = plan_of(_sum_pool_plan, (x,), kernel_size, stride, padding, dilation, ceil_mode, data_format)
    return run_planes(plan, "sum_pool_forward", _sum_pool_forward, x), Context(plan)


sum_pool = inference_of(sum_pool_forward)


@on_device
def sum_pool_backward(dy: Array, ctx: Context) -> Array:
    """dx of `sum_pool`: each cell adds dy of the windows over it.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `sum_pool_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    _, dy = check_backward("sum_pool", dy, ctx, exact=True)
    return run_planes(ctx.plan, "sum_pool_backward", _sum_pool_backward, dy)
