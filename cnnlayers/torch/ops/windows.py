"""Linear ops over windows and borders: average, sum and adaptive average pooling, padding. They save nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.functional._common import CallPlan, Context
from cnnlayers.specs import Average, Window, adaptive_window, pool_window
from cnnlayers.specs.arguments import DataFormat, PadMode, layout
from cnnlayers.specs.padding import pad_spec

from .batching import Rule
from .library import Op, differentiable_by_x

Shape = Sequence[int]
WINDOW = (
    "int[1] kernel_size, int[1] stride=[], int[1] padding=0, str auto_pad='', int[1] dilation=1, bool ceil_mode=False"
)
FORMAT = "str data_format='channels_first'"


def one_or_all(sizes: Shape) -> Any:
    """A size as the functional ops take it: an int for all axes, one an axis, or None for an empty list."""
    return (tuple(sizes) or None) if len(sizes) != 1 else sizes[0]


def sides(padding: Shape, auto_pad: str, axes: int) -> Any:
    """Padding as the functional ops take it."""
    if auto_pad:
        return auto_pad
    if len(padding) == 2 * axes:
        return tuple(zip(padding[::2], padding[1::2], strict=True))
    return one_or_all(padding)


def window_arguments(axes: int, kernel: Shape, stride: Shape, padding: Shape, auto: str, dilation: Shape) -> Any:
    """kernel_size, stride, padding and dilation as the functional ops take them."""
    return one_or_all(kernel), one_or_all(stride), sides(padding, auto, axes), one_or_all(dilation)


def window_of(shape: Shape, sizes: Sequence[Any], ceil: bool, data_format: DataFormat) -> Window:
    """The windows of a pool on an array of this shape. `sizes`: kernel_size to dilation, as an op takes them."""
    kernel, stride, padding, dilation = window_arguments(len(shape) - 2, *sizes)
    return pool_window(tuple(shape), kernel, stride, padding, dilation, ceil, data_format)


def shape_and_options(inputs: Any) -> tuple[Any, ...]:
    """x's shape and all options of a call."""
    return list(inputs[0].shape), *inputs[1:]


def _linear(op: str, options: str, call: Callable[..., Any], spec: Callable[..., Any]) -> Op:
    """Register an op of x and options. `call(x, *options)` runs it; `spec(shape, *options)` gives what its context
    holds, and the shape of y."""

    def fake(x: torch.Tensor, *given: Any) -> torch.Tensor:
        return x.new_empty(spec(tuple(x.shape), *given)[1])

    def backward(dy: Any, shape: Shape, *given: Any) -> Any:
        held, y_shape = spec(tuple(shape), *given)
        context = Context(CallPlan(op, backends.of(dy), dy.dtype, tuple(y_shape), held))
        return getattr(F, f"{op}_backward")(dy, context)

    forward = Op(f"{op}(Tensor x, {options}) -> Tensor", call, fake, Rule({0: 0}))
    gradient = Op(
        f"{op}_backward(Tensor dy, SymInt[] shape, {options}) -> Tensor",
        backward,
        lambda dy, shape, *given: dy.new_empty(shape),
        Rule({0: 0}, shape=1),
    )

    differentiable_by_x(forward, gradient, lambda inputs, y: (), shape_and_options)
    return forward


# ------------------------------------------------------------------------------------------------------------- pooling
def _avg_pool(x: Any, *options: Any) -> Any:
    *sizes, ceil, include, divisor, data_format = options
    named = {"ceil_mode": ceil, "count_include_pad": include, "divisor_override": divisor, "data_format": data_format}
    return F.avg_pool(x, *window_arguments(x.ndim - 2, *sizes), **named)


def _average(shape: Shape, *options: Any) -> tuple[Average, Shape]:
    *sizes, ceil, count_include_pad, divisor_override, data_format = options
    window = window_of(shape, sizes, ceil, data_format)
    return Average(window, count_include_pad, divisor_override), window.out_shape


def _sum_pool(x: Any, *options: Any) -> Any:
    *sizes, ceil, data_format = options
    return F.sum_pool(x, *window_arguments(x.ndim - 2, *sizes), ceil_mode=ceil, data_format=data_format)


def _sum(shape: Shape, *options: Any) -> tuple[Any, Shape]:
    *sizes, ceil, data_format = options
    window = window_of(shape, sizes, ceil, data_format)
    return window, window.out_shape


def adaptive(shape: Shape, output_size: Shape, data_format: DataFormat) -> tuple[Any, Shape]:
    """The windows of an adaptive pool and the shape of y; sizes that a trace leaves open need no windows."""
    sizes = one_or_all(output_size)
    if all(type(n) is int for n in (*shape, *output_size)):
        window = adaptive_window(tuple(shape), sizes, data_format)
        return window, window.out_shape
    lay = layout(tuple(shape), data_format)
    return None, lay.with_spatial(list(output_size) * (len(lay.spatial) if len(output_size) == 1 else 1))


def _adaptive_avg_pool(x: Any, output_size: Shape, data_format: DataFormat) -> Any:
    return F.adaptive_avg_pool(x, one_or_all(output_size), data_format=data_format)


avg_pool = _linear(
    "avg_pool",
    f"{WINDOW}, bool count_include_pad=True, int? divisor_override=None, {FORMAT}",
    _avg_pool,
    _average,
)
sum_pool = _linear("sum_pool", f"{WINDOW}, {FORMAT}", _sum_pool, _sum)
adaptive_avg_pool = _linear("adaptive_avg_pool", f"SymInt[1] output_size, {FORMAT}", _adaptive_avg_pool, adaptive)


# ------------------------------------------------------------------------------------------------------------- padding
def _pad(x: Any, padding: Shape, mode: PadMode, value: float, data_format: DataFormat) -> Any:
    return F.pad(x, sides(padding, "", x.ndim - 2), mode, value, data_format=data_format)


def _padded(shape: Shape, padding: Shape, mode: PadMode, value: float, data_format: DataFormat) -> tuple[Any, Shape]:
    spec = pad_spec(tuple(shape), sides(padding, "", len(shape) - 2), mode, data_format)
    return spec, spec.out_shape


pad = _linear("pad", f"int[1] padding, str mode='constant', Scalar value=0, {FORMAT}", _pad, _padded)
