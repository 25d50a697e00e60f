"""Convolution (cross-correlation, as the field means it) and transposed convolution.

Rules of the family: the weight is (F, C/groups, *k), for a transposed convolution (C, F/groups, *k), in both data
formats. Cells outside x count as 0. Sums are kept in float32 (float64 for float64), and parameters are cast to that.
On the CPU, with compiled kernels, vector loops compute convolutions, with the same bits on every CPU; large 1×1 ones
from or to few channels are products by BLAS (`form_of` in conv_form.py chooses). 3×3 ones of float32 with stride 1,
channels first and 16 channels or more take Winograd's form where it is faster; it is exact to 5e-6 of the largest
result, direct loops to 1e-6. `kernels.winograd("off")`, or the variable CNNLAYERS_WINOGRAD=off, switches it off. Where
a kernel would carry a NaN or an infinity to other cells, the code of correlation.py computes the result.

On a GPU cuDNN computes them where it is installed and not switched off (`kernels.cudnn`), else columns and cuBLAS.

conv_transpose is conv's adjoint, the map from dy to dx, so both ops are made of the same three functions (`correlate`).

Conventions are those of torch.nn.functional's conv1d, conv2d, conv3d and conv_transpose1d, 2d, 3d.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from cnnlayers import kernels
from cnnlayers.backends import Backend
from cnnlayers.specs import conv_window, transposed_window
from cnnlayers.specs.arguments import DataFormat, Padding, Shape, Size, flag, integer, layout, sizes
from cnnlayers.specs.conv import Conv, interned

from .arrays import Array, accumulator_dtype, cast, is_complex
from .blas import single_threaded_blas
from .call_plan import CallPlan, Context, check_backward, inference_of, on_device, plan_of
from .checks import check_shape, check_weighted, common_backend
from .complex_arrays import cast_gradient, conjugate, run_weighted, run_weighted_backward
from .conv_form import form_of
from .correlation import correlate, correlate_adjoint, multiplies_halves, weight_gradient


def _weight_shape(x: Shape, weight: Shape, groups: int, data_format: DataFormat, channel_axis: int) -> Shape:
    """Check a weight's shape and give its kernel. `channel_axis`: the weight's axis that goes with x's channels."""
    lay = layout(x, data_format)
    meaning = "(filters, channels / groups, *kernel)" if channel_axis else "(channels, filters / groups, *kernel)"
    if len(weight) != len(x):
        raise ValueError(f"weight must be {meaning}, with as many axes as x of shape {x}: got shape {weight}")
    kernel = sizes(weight[2:], len(lay.spatial), "weight's kernel")
    wanted = weight[1] * groups if channel_axis else weight[0]
    if lay.channels != wanted:
        raise ValueError(
            f"x must have {wanted} channels for a weight {meaning} of shape {weight} and {groups} groups, got"
            f" {lay.channels} in x of shape {x} ({data_format})"
        )
    if weight[0] % groups:
        raise ValueError(f"groups must divide weight's first axis: {weight[0]} % {groups} = {weight[0] % groups}")
    return kernel


def _checked_backend(x: Array, weight: Array, bias: Array | None) -> Backend:
    """The owner of the call's arrays; TypeError where one is missing, or of a dtype that does not go with x's."""
    b = common_backend(x=x, weight=weight, bias=bias)
    check_weighted(b, x, weight=weight, bias=bias)
    return b


def _in_compute_dtype(
    b: Backend, step: str, spec: Conv, x: Array, weight: Array, first: Array, second: Array
) -> tuple[Array, Array]:
    """Two arrays in the dtype in which a step of a convolution computes: float32 or float64, but x's own, a half type,
    where cuDNN or cuBLAS multiplies it as it is and x and weight share it."""
    dtype = accumulator_dtype(b, x.dtype)
    if b.name == "cupy" and x.dtype == weight.dtype != dtype:
        by_cudnn = kernels.find(f"cudnn_{step}", b, spec, x, weight, required=False) is not None
        dtype = x.dtype if by_cudnn or multiplies_halves(b, spec, x.dtype) else dtype
    return cast(b, first, dtype), cast(b, second, dtype)


def _blas_for(b: Backend, spec: Conv, dtype: Any) -> contextlib.AbstractContextManager[None]:
    """A block with BLAS on one thread for both steps of a backward. Loops of vectors do not use BLAS, and get a block
    that does nothing: switching BLAS takes a tenth of a small call's time."""
    dtype = accumulator_dtype(b, dtype)
    vectors = b.name == "numpy" and (
        not spec.pointwise or all(form_of(b, spec, dtype, step) == "direct" for step in spec.terms)
    )
    return contextlib.nullcontext() if vectors else single_threaded_blas(b)


def _bias(b: Backend, x: Array, bias: Array | None) -> Array | None:
    return None if bias is None else cast(b, bias, accumulator_dtype(b, x.dtype))


def _channel_sums(b: Backend, spec: Conv, array: Array) -> Array:
    """The sum of an image or of maps over all but the channels, in float64 (or complex128)."""
    others = tuple(axis for axis in range(array.ndim) if axis != spec.window.layout.channel)
    return b.xp.sum(array, axis=others, dtype=b.xp.complex128 if is_complex(b, array.dtype) else b.xp.float64)


def _gradients(
    b: Backend, ctx: Context, dx: Array | None, dweight: Array, dy: Array
) -> tuple[Array | None, Array, Array | None]:
    weight: Array = ctx.arrays["weight"]
    bias, dbias = ctx.arrays["bias"], None
    if bias is not None:
        sums = _channel_sums(b, ctx.spec, dy) if ctx.plan.complex else ctx.plan.run("channel_sums", _channel_sums, dy)
        dbias = cast_gradient(b, sums, bias.dtype)
    return None if dx is None else cast(b, dx, ctx.dtype), cast_gradient(b, dweight, weight.dtype), dbias


# ---------------------------------------------------------------------------------------------------------- convolution
def _conv_forward(b: Backend, spec: Conv, x: Array, weight: Array, bias: Array | None) -> Array:
    arrays = _in_compute_dtype(b, "correlate", spec, x, weight, x, weight)
    return cast(b, correlate(b, spec, *arrays, _bias(b, x, bias)), x.dtype)


def _conv_backward(
    b: Backend, spec: Conv, dy: Array, x: Array, weight: Array, needs_dx: bool, transposed: bool = False
) -> tuple[Array | None, Array]:
    """dx and dweight. A transposed convolution is the adjoint, so x and dy change places."""
    adjoint, image, maps = (correlate, dy, x) if transposed else (correlate_adjoint, x, dy)
    with _blas_for(b, spec, x.dtype):
        dx = None
        if needs_dx:
            dx = adjoint(b, spec, *_in_compute_dtype(b, adjoint.__name__, spec, x, weight, dy, weight))
        return dx, weight_gradient(b, spec, *_in_compute_dtype(b, "weight_gradient", spec, x, weight, image, maps))


def _conv_plan(
    x: Array, weight: Array, bias: Array | None, stride: Any, padding: Any, dilation: Any, groups: Any, data_format: Any
) -> CallPlan:
    b = _checked_backend(x, weight, bias)
    groups = integer(groups, "groups", 1)
    kernel = _weight_shape(tuple(x.shape), tuple(weight.shape), groups, data_format, channel_axis=1)
    window = conv_window(tuple(x.shape), kernel, stride, padding, dilation, data_format)
    spec = interned(Conv(window, weight.shape[0], groups))
    check_shape(bias, "bias", (spec.filters,))
    return CallPlan("conv", b, x.dtype, spec.maps_shape, spec)


@on_device
def conv_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Convolution (cross-correlation), with groups.

        y[n, f, o] = bias[f] + sum over c, t of weight[f, c, t] * x[n, c, o * stride + t * dilation - before]

    c runs over the channels of f's group and t over the taps; o, t and the options are per spatial axis.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating or
        complex.
    weight : array
        (F, C / groups, *kernel) in both formats; floating, or complex for a complex x.
    bias : array or None
        (F,).
    stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis, at least 1.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full". Padding cells
        are zeros.
    groups : int
        x's channels and the filters are divided into this many groups; filters see the channels of their own group.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        (N, F, *windows), or channels last; x's dtype. Half types are summed in float32.
    ctx : Context
        For `conv_backward`; `conv` returns y alone. It refers to x and weight: do not change them in place before the
        backward.

    Raises
    ------
    ValueError
        Shapes that do not go together, groups that do not divide, a window larger than the padded x, a size below 1.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> x, weight = np.array([[[1.0, 2.0, 4.0]]]), np.array([[[-1.0, 1.0]]])
    >>> F.conv(x, weight, np.array([10.0]))
    array([[[11., 12.]]])

    References
    ----------
    torch.nn.functional.conv2d
    """
    plan = plan_of(_conv_plan, (x, weight, bias), stride, padding, dilation, groups, data_format)
    y = run_weighted(plan, _conv_forward, x, weight, bias)
    return y, Context(plan, {"x": x, "weight": weight, "bias": bias})


conv = inference_of(conv_forward)


def conv_dx(plan: CallPlan, dy: Array, weight: Array) -> Array:
    """dx of `conv` alone, for a dy of the plan's dtype."""
    return run_weighted(plan, _conv_transpose_forward, dy, weight, None)


@on_device
def conv_backward(dy: Array, ctx: Context, *, needs_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
    """Gradients of `conv`: the adjoints of its sum, and for the bias dy summed over all but the channels.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `conv_forward`; it may serve more than once.
    needs_dx : bool
        False where x is data, no layer's output: dx is then None, and its work is left out.

    Returns
    -------
    dx : array or None
        x's shape and dtype; None with needs_dx=False.
    dweight : array
        weight's shape and dtype.
    dbias : array or None
        bias's shape and dtype; None without a bias.
    """
    b, dy = check_backward("conv", dy, ctx)
    x, weight = ctx.arrays["x"], ctx.arrays["weight"]
    found = run_weighted_backward(ctx.plan, _conv_backward, dy, x, weight, flag(needs_dx, "needs_dx"))
    return _gradients(b, ctx, *found, dy)


# ----------------------------------------------------------------------------------------------- transposed convolution
def _conv_transpose_forward(b: Backend, spec: Conv, x: Array, weight: Array, bias: Array | None) -> Array:
    arrays = _in_compute_dtype(b, "correlate_adjoint", spec, x, weight, x, weight)
    return cast(b, correlate_adjoint(b, spec, *arrays, _bias(b, x, bias)), x.dtype)


_conv_transpose_backward = functools.partial(_conv_backward, transposed=True)


def _conv_transpose_plan(x: Array, weight: Array, bias: Array | None, *options: Any) -> CallPlan:
    """The plan of a transposed convolution. options: stride, padding, output_padding, dilation, groups, data_format."""
    stride, padding, output_padding, dilation, groups, data_format = options
    b = _checked_backend(x, weight, bias)
    groups = integer(groups, "groups", 1)
    kernel = _weight_shape(tuple(x.shape), tuple(weight.shape), groups, data_format, channel_axis=0)
    filters = weight.shape[1] * groups
    moves = stride, padding, output_padding, dilation
    window = transposed_window(tuple(x.shape), kernel, *moves, data_format, channels=filters)
    spec = interned(Conv(window, weight.shape[0], groups))
    check_shape(bias, "bias", (filters,))
    return CallPlan("conv_transpose", b, x.dtype, window.layout.shape, spec)


@on_device
def conv_transpose_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Transposed convolution: the adjoint of a convolution, with groups.

        y[n, f, i] = bias[f] + sum over c, o, t of weight[c, f, t] * x[n, c, o]

    where o * stride + t * dilation - before = i.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating or
        complex.
    weight : array
        (C, F / groups, *kernel) in both formats; floating, or complex for a complex x.
    bias : array or None
        (F,).
    stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis, at least 1.
    padding : int, sequence of int or of pairs
        Cells that are cut off y: an int, one per axis or a (before, after) pair per axis.
    output_padding : int or sequence of int
        Cells more at the end of y, fewer than the stride or the dilation.
    groups : int
        x's channels and the filters are divided into this many groups.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        (N, F, *out), or channels last, with
        out = (length - 1) * stride + dilation * (kernel - 1) + 1 + output_padding - before - after; x's dtype.
    ctx : Context
        For `conv_transpose_backward`; `conv_transpose` returns y alone. It refers to x and weight: do not change them
        in place before the backward.

    Raises
    ------
    ValueError
        Shapes that do not go together, groups that do not divide, an output without cells, padding by name, a size
        below 1.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.conv_transpose(np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0]]]), stride=2)
    array([[[ 1., 10.,  2., 20.]]])

    References
    ----------
    torch.nn.functional.conv_transpose2d
    """
    options = stride, padding, output_padding, dilation, groups, data_format
    plan = plan_of(_conv_transpose_plan, (x, weight, bias), *options)
    y = run_weighted(plan, _conv_transpose_forward, x, conjugate(plan.backend, weight), bias)
    return y, Context(plan, {"x": x, "weight": weight, "bias": bias})


conv_transpose = inference_of(conv_transpose_forward)


def conv_transpose_dx(plan: CallPlan, dy: Array, weight: Array) -> Array:
    """dx of `conv_transpose` alone, for a dy of the plan's dtype."""
    return run_weighted(plan, _conv_forward, dy, conjugate(plan.backend, weight), None)


@on_device
def conv_transpose_backward(
    dy: Array, ctx: Context, *, needs_dx: bool = True
) -> tuple[Array | None, Array, Array | None]:
    """Gradients of `conv_transpose`: dx is the convolution of dy.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `conv_transpose_forward`; it may serve more than once.
    needs_dx : bool
        False where x is data, no layer's output: dx is then None, and its work is left out.

    Returns
    -------
    dx : array or None
        x's shape and dtype; None with needs_dx=False.
    dweight : array
        weight's shape and dtype.
    dbias : array or None
        bias's shape and dtype; None without a bias.
    """
    b, dy = check_backward("conv_transpose", dy, ctx)
    x, weight = ctx.arrays["x"], conjugate(b, ctx.arrays["weight"])
    needs_dx = flag(needs_dx, "needs_dx")
    dx, dweight = run_weighted_backward(ctx.plan, _conv_transpose_backward, dy, x, weight, needs_dx)
    return _gradients(b, ctx, dx, conjugate(b, dweight), dy)
