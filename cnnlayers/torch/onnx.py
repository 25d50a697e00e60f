"""`torch.onnx.export(dynamo=True)` of models with this library's ops: each as standard operators of ONNX, opset 18.

Rules of the family: sizes of spatial axes must be fixed (the batch may be open), so that windows, paddings and divisors
are worked out here and ceil mode plays no part. What the standard has no operator for is an error that says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers.specs import conv_window

from . import onnx_windows
from .onnx_windows import Shape, Value, constant, geometry, in_channels_first, opset, refuse, scalar, static_shape
from .ops.library import OPS
from .ops.windows import one_or_all, sides


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """The translations of `torch.ops.cnnlayers.*` to ONNX, for torch.onnx.export.

    Give them as `custom_translation_table` (with `dynamo=True`; needs the package onnxscript).

    Returns
    -------
    dict
        op of PyTorch -> function that builds its ONNX operators.

    Raises
    ------
    ModuleNotFoundError
        onnxscript is not installed.

    Notes
    -----
    The model must be in evaluation (`model.eval()`). An op or an option that ONNX has no operator for makes the export
    fail with the reason: training, dropout, losses, indices of maxima, adaptive sizes that do not divide their axis,
    lp_pool with a fractional norm, local_response_norm over an even number of channels, open spatial sizes.

    Examples
    --------
    >>> program = torch.onnx.export(  # doctest: +SKIP
    ...     convert(model).eval(), (x,), dynamo=True, custom_translation_table=onnx_translations()
    ... )
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "torch.onnx.export needs onnxscript: pip install onnxscript", name=error.name
        ) from None
    table = {OPS[f.__name__].overload: _translation(f) for f in TRANSLATED}
    return table | {OPS[name].overload: _refusal(name) for name in REFUSED}


def _translation(build: Callable[..., Value]) -> Callable[..., Value]:
    """What torch.onnx.export calls with an op's arguments: `build` on x in channels first, without data_format."""
    op = OPS[build.__name__]

    def run(*args: Any) -> Value:
        x, *options = op.filled(args)
        if not op.has_format:
            return build(x, *options)
        *options, data_format = options
        return in_channels_first(lambda y: build(y, *options), x, data_format)

    return run


def _refusal(op: str) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        raise refuse(op, "the standard has no operator with this result (is the model in evaluation, model.eval()?)")

    return run


# Arguments are x, in channels first, and those of the op's schema in its order, without data_format.
# --------------------------------------------------------------------------------------------------------------- norms
def _parameters(x: Value, shape: Shape, gamma: Value | None, beta: Value | None) -> tuple[Value, Value]:
    dtype = x.dtype.numpy()
    return (
        constant(np.ones(shape, dtype)) if gamma is None else gamma,
        constant(np.zeros(shape, dtype)) if beta is None else beta,
    )


def batch_norm(
    x: Value, gamma: Any, beta: Any, running_mean: Any, running_var: Any, training: bool, *options: Any
) -> Value:
    _, eps, *_ = options
    if training or running_mean is None:
        raise refuse("batch_norm", "only evaluation with running statistics is one operator (model.eval())")
    given = *_parameters(x, running_mean.shape, gamma, beta), running_mean, running_var
    return opset().BatchNormalization(x, *given, epsilon=eps)


def instance_norm(x: Value, gamma: Value | None, beta: Value | None, eps: float) -> Value:
    given = _parameters(x, (static_shape("instance_norm", x)[1],), gamma, beta)
    return opset().InstanceNormalization(x, *given, epsilon=eps)


def group_norm(x: Value, num_groups: int, gamma: Value | None, beta: Value | None, eps: float) -> Value:
    """By InstanceNormalization of groups: GroupNormalization of opset 18 has one scale a group."""
    op, shape = opset(), static_shape("group_norm", x)
    ends = constant(np.array([shape[1], *[1] * (len(shape) - 2)], "int64"))
    grouped = op.Reshape(x, constant(np.array([0, num_groups, -1], "int64")))
    one_a_group = _parameters(x, (num_groups,), None, None)
    y = op.Reshape(op.InstanceNormalization(grouped, *one_a_group, epsilon=eps), op.Shape(x))
    y = y if gamma is None else op.Mul(y, op.Reshape(gamma, ends))
    return y if beta is None else op.Add(y, op.Reshape(beta, ends))


def layer_norm(x: Value, normalized_shape: Shape, gamma: Value | None, beta: Value | None, eps: float) -> Value:
    given = _parameters(x, tuple(normalized_shape), gamma, beta)
    y = opset().LayerNormalization(x, *given, axis=-len(normalized_shape), epsilon=eps)
    return y[0] if isinstance(y, tuple) else y


def rms_norm(x: Value, normalized_shape: Shape, gamma: Value | None, eps: float | None) -> Value:
    op = opset()
    eps = float(np.finfo(np.float64 if x.dtype.name == "DOUBLE" else np.float32).eps) if eps is None else eps
    axes = constant(np.arange(-len(normalized_shape), 0))
    y = op.Div(x, op.Sqrt(op.Add(op.ReduceMean(op.Mul(x, x), axes, keepdims=1), scalar(x, eps))))
    return y if gamma is None else op.Mul(y, gamma)


def local_response_norm(x: Value, size: int, alpha: float, beta: float, k: float) -> Value:
    if size % 2 == 0:
        raise refuse("local_response_norm", f"LRN's window lies otherwise for an even size, got size={size}")
    return opset().LRN(x, alpha=alpha, beta=beta, bias=k, size=size)


# ---------------------------------------------------------------------------------------------------------- linear maps
def conv(x: Value, weight: Value, bias: Value | None, *options: Any) -> Value:
    stride, padding, auto_pad, dilation, groups = options
    shape, kernel = static_shape("conv", x), tuple(weight.shape[2:])
    pads = sides(padding, auto_pad, len(kernel))
    axes = conv_window(shape, kernel, one_or_all(stride), pads, one_or_all(dilation), "channels_first").axes
    return opset().Conv(x, weight, bias, **geometry(axes), dilations=[a.dilation for a in axes], group=groups)


def conv_transpose(x: Value, weight: Value, bias: Value | None, *options: Any) -> Value:
    stride, padding, output_padding, dilation, groups = options
    axes = len(x.shape) - 2

    def full(sizes: Shape) -> list[int]:
        return list(sizes) * (axes if len(sizes) == 1 else 1)

    given = list(padding) if len(padding) == 2 * axes else [p for p in full(padding) for _ in range(2)]
    named: dict[str, Any] = {"strides": full(stride), "dilations": full(dilation), "group": groups}
    named |= {"output_padding": full(output_padding), "pads": [*given[::2], *given[1::2]]}
    return opset().ConvTranspose(x, weight, bias, **named)


def linear(x: Value, weight: Value, bias: Value | None) -> Value:
    y = opset().MatMul(x, opset().Transpose(weight, perm=[1, 0]))
    return y if bias is None else opset().Add(y, bias)


# ---------------------------------------------------------------------------------------------------------- activations
def relu(x: Value) -> Value:
    return opset().Relu(x)


def leaky_relu(x: Value, negative_slope: float) -> Value:
    return opset().LeakyRelu(x, alpha=negative_slope)


def sigmoid(x: Value) -> Value:
    return opset().Sigmoid(x)


def tanh(x: Value) -> Value:
    return opset().Tanh(x)


def softmax(x: Value, axis: int) -> Value:
    return opset().Softmax(x, axis=axis)


def gelu(x: Value, approximate: str) -> Value:
    """By its equation: Gelu is an operator from opset 20 on."""
    op, one, half = opset(), scalar(x, 1.0), scalar(x, 0.5)
    if approximate == "none":
        part = op.Erf(op.Mul(x, scalar(x, math.sqrt(0.5))))
    else:
        cube = op.Mul(scalar(x, 0.044715), op.Mul(x, op.Mul(x, x)))
        part = op.Tanh(op.Mul(scalar(x, math.sqrt(2 / math.pi)), op.Add(x, cube)))
    return op.Mul(op.Mul(half, x), op.Add(one, part))


TRANSLATED = (
    *onnx_windows.TRANSLATED,
    *(batch_norm, instance_norm, group_norm, layer_norm, rms_norm, local_response_norm),
    *(conv, conv_transpose, linear, relu, leaky_relu, sigmoid, tanh, softmax, gelu),
)
REFUSED = (
    *("max_unpool", "dropout", "mse_loss", "softmax_cross_entropy"),
    *("max_pool_forward", "max_unpool_forward", "adaptive_max_pool_forward", "batch_norm_forward"),
)
