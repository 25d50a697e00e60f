"""Convolution, transposed convolution and linear maps. They save their inputs, and of a bias its dtype alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cnnlayers import functional as F
from cnnlayers.functional.conv import _weight_shape
from cnnlayers.specs import conv_window, transposed_window
from cnnlayers.specs.conv import Conv, interned

from .batching import LOOP, Rule
from .library import Op, context, dtype_holder
from .windows import FORMAT, one_or_all, sides

Shape = Sequence[int]
INPUTS = "Tensor x, Tensor weight, Tensor? bias=None"


def _register(op: str, options: str, call: Callable[..., Any], spec: Callable[..., Any], rule: Rule) -> Op:
    """Register an op of x, weight, bias and options. `call(x, weight, bias, *options)` runs it on arrays.
    `spec(x_shape, weight_shape, *options)` gives the shape of y, and a function that gives what its context holds."""

    def fake(x: torch.Tensor, weight: torch.Tensor, bias: Any, *given: Any) -> torch.Tensor:
        return x.new_empty(spec(tuple(x.shape), tuple(weight.shape), *given)[0])

    def backward(dy: Any, x: Any, weight: Any, bias_like: Any, needs_dx: bool, *given: Any) -> Any:
        y_shape, context_spec = spec(tuple(x.shape), tuple(weight.shape), *given)
        ctx = context(op, x, context_spec(), y_shape, x=x, weight=weight, bias=bias_like)
        return getattr(F, f"{op}_backward")(dy, ctx, needs_dx=needs_dx)

    def fake_backward(
        dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias_like: Any, needs_dx: bool, *given: Any
    ) -> Any:
        channels = dy.shape[1 if "channels_first" in given else -1]
        dbias = dy.new_empty(0) if bias_like is None else bias_like.new_empty(channels)
        return x.new_empty(x.shape if needs_dx else 0), weight.new_empty(weight.shape), dbias

    forward = Op(f"{op}({INPUTS}{options}) -> Tensor", call, fake, rule)
    gradient = Op(
        f"{op}_backward(Tensor dy, Tensor x, Tensor weight, Tensor? bias_like, bool needs_dx=True{options})"
        " -> (Tensor, Tensor, Tensor)",
        backward,
        fake_backward,
        LOOP,
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, bias, *ctx.options = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype

    def derive(ctx: Any, dy: torch.Tensor | None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * ctx.number
        needs_dx = ctx.needs_input_grad[1]  # the first is the set of dispatch keys
        bias_like = dtype_holder(dy, ctx.bias_dtype)
        dx, dweight, dbias = gradient(dy, *ctx.saved_tensors, bias_like, needs_dx, *ctx.options)
        found = dx if needs_dx else None, dweight, None if bias_like is None else dbias
        return *found, *(None,) * (ctx.number - 3)

    forward.differentiable(save, derive)
    gradient.refuse_second_derivative(op)
    return forward


# ---------------------------------------------------------------------------------------------------------------- conv
# Options are those of the schemas CONV and TRANSPOSE, in their order.
def _conv_sizes(axes: int, stride: Shape, padding: Shape, auto: str, dilation: Shape) -> tuple[Any, Any, Any]:
    return one_or_all(stride), sides(padding, auto, axes), one_or_all(dilation)


def _conv(x: Any, weight: Any, bias: Any, *options: Any) -> Any:
    *sizes, groups, data_format = options
    return F.conv(x, weight, bias, *_conv_sizes(x.ndim - 2, *sizes), groups, data_format=data_format)


def _conv_spec(x: Shape, weight: Shape, *options: Any) -> Any:
    *sizes, groups, data_format = options
    kernel = _weight_shape(tuple(x), tuple(weight), groups, data_format, channel_axis=1)
    window = conv_window(tuple(x), kernel, *_conv_sizes(len(x) - 2, *sizes), data_format)
    return window.layout.with_spatial(window.out_lengths, weight[0]), lambda: interned(Conv(window, weight[0], groups))


CONV = "int[1] stride=1, int[1] padding=0, str auto_pad='', int[1] dilation=1, int groups=1"
conv = _register("conv", f", {CONV}, {FORMAT}", _conv, _conv_spec, Rule({0: 0}))


# ------------------------------------------------------------------------------------------------------ conv_transpose
def _transpose_sizes(
    axes: int, stride: Shape, padding: Shape, output_padding: Shape, dilation: Shape
) -> tuple[Any, Any, Any, Any]:
    return one_or_all(stride), sides(padding, "", axes), one_or_all(output_padding), one_or_all(dilation)


def _conv_transpose(x: Any, weight: Any, bias: Any, *options: Any) -> Any:
    *sizes, groups, data_format = options
    return F.conv_transpose(x, weight, bias, *_transpose_sizes(x.ndim - 2, *sizes), groups, data_format=data_format)


def _conv_transpose_spec(x: Shape, weight: Shape, *options: Any) -> Any:
    *sizes, groups, data_format = options
    kernel = _weight_shape(tuple(x), tuple(weight), groups, data_format, channel_axis=0)
    found = _transpose_sizes(len(x) - 2, *sizes)
    window = transposed_window(tuple(x), kernel, *found, data_format, channels=weight[1] * groups)
    return window.layout.shape, lambda: interned(Conv(window, weight[0], groups))


TRANSPOSE = "int[1] stride=1, int[1] padding=0, int[1] output_padding=0, int[1] dilation=1, int groups=1"
conv_transpose = _register(
    "conv_transpose", f", {TRANSPOSE}, {FORMAT}", _conv_transpose, _conv_transpose_spec, Rule({0: 0})
)


# -------------------------------------------------------------------------------------------------------------- linear
def _linear_spec(x: Shape, weight: Shape) -> Any:
    if len(weight) != 2 or not x or weight[1] != x[-1]:
        raise ValueError(f"weight must be (out, in) and x (..., in), got shapes {tuple(weight)} and {tuple(x)}")
    return (*x[:-1], weight[0]), lambda: None


linear = _register("linear", "", F.linear, _linear_spec, Rule({0: 0}, stacked=True))
