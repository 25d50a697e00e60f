"""Ops over windows and borders that save nothing, or x: average, sum, adaptive average and Lp pooling, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.functional.lp_pool import lp_pool_spec
from cnnlayers.specs import Average, Window, adaptive_window, pool_window
from cnnlayers.specs.arguments import DataFormat, PadMode, layout
from cnnlayers.specs.padding import pad_spec

from .batching import Rule
from .library import Op, context, differentiable_by_x

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


def windows_of(shape: Shape, options: Sequence[Any]) -> Window:
    """The windows of a pool on an array of this shape. `options`: those of WINDOW, and others with the format last."""
    kernel, stride, padding, dilation = window_arguments(len(shape) - 2, *options[:5])
    return pool_window(tuple(shape), kernel, stride, padding, dilation, options[5], options[-1])


def pool(name: str, *between: str) -> Callable[..., Any]:
    """A function of `cnnlayers.functional`, called with the options of WINDOW, those `between`, and the format."""

    def call(x: Any, *options: Any, **more: Any) -> Any:
        sizes = zip(
            ("kernel_size", "stride", "padding", "dilation"), window_arguments(x.ndim - 2, *options[:5]), strict=True
        )
        others = zip(("ceil_mode", *between, "data_format"), options[5:], strict=True)
        return getattr(F, name)(x, **dict(sizes), **dict(others), **more)

    return call


def register(op: str, options: str, call: Callable[..., Any], spec: Callable[..., Any], saved: str = "") -> Op:
    """Register an op of x and options, and its gradient, which needs x ("x") or its shape alone ("").

    `call(x, *options)` runs it on arrays. `spec(shape, *options)` gives y's shape, and what the context holds: for
    "x" a function of x, as x's dtype may count.
    """

    def backward(dy: Any, x_or_shape: Any, *given: Any) -> Any:
        y_shape, context_spec = spec(tuple(x_or_shape.shape if saved else x_or_shape), *given)
        if saved:
            ctx = context(op, x_or_shape, context_spec(x_or_shape), y_shape, x=x_or_shape)
        else:
            ctx = context(op, dy, context_spec, y_shape)
        return getattr(F, f"{op}_backward")(dy, ctx)

    def fake_backward(dy: torch.Tensor, x_or_shape: Any, *given: Any) -> torch.Tensor:
        return dy.new_empty(x_or_shape.shape if saved else x_or_shape)

    forward = Op(
        f"{op}(Tensor x, {options}) -> Tensor",
        call,
        lambda x, *given: x.new_empty(spec(tuple(x.shape), *given)[0]),
        Rule({0: 0}),
    )
    kept, rule = ("Tensor x", Rule({0: 0, 1: 0})) if saved else ("SymInt[] shape", Rule({0: 0}, shape=1))
    gradient = Op(f"{op}_backward(Tensor dy, {kept}, {options}) -> Tensor", backward, fake_backward, rule)
    if saved:
        differentiable_by_x(forward, gradient)
    else:
        differentiable_by_x(forward, gradient, lambda x, y: (), lambda given: (list(given[0].shape), *given[1:]))
    return forward


# ------------------------------------------------------------------------------------------------------------- pooling
def _average(shape: Shape, *options: Any) -> tuple[Shape, Average]:
    window = windows_of(shape, options)
    return window.out_shape, Average(window, *options[6:8])


def _sum(shape: Shape, *options: Any) -> tuple[Shape, Window]:
    window = windows_of(shape, options)
    return window.out_shape, window


def _lp(shape: Shape, *options: Any) -> tuple[Shape, Callable[[Any], Any]]:
    window = windows_of(shape, options)
    return window.out_shape, lambda x: lp_pool_spec(backends.of(x), window, options[6], x.dtype)


def adaptive(shape: Shape, output_size: Shape, data_format: DataFormat) -> tuple[Shape, Any]:
    """The shape of an adaptive pool's y, and its windows; sizes that a trace leaves open need none."""
    sizes = one_or_all(output_size)
    if all(type(n) is int for n in (*shape, *output_size)):
        window = adaptive_window(tuple(shape), sizes, data_format)
        return window.out_shape, window
    lay = layout(tuple(shape), data_format)
    return lay.with_spatial(list(output_size) * (len(lay.spatial) if len(output_size) == 1 else 1)), None


def _adaptive_avg_pool(x: Any, output_size: Shape, data_format: DataFormat) -> Any:
    return F.adaptive_avg_pool(x, one_or_all(output_size), data_format=data_format)


AVERAGE = f"{WINDOW}, bool count_include_pad=True, int? divisor_override=None, {FORMAT}"
avg_pool = register("avg_pool", AVERAGE, pool("avg_pool", "count_include_pad", "divisor_override"), _average)
sum_pool = register("sum_pool", f"{WINDOW}, {FORMAT}", pool("sum_pool"), _sum)
lp_pool = register("lp_pool", f"{WINDOW}, float norm_type=2.0, {FORMAT}", pool("lp_pool", "norm_type"), _lp, "x")
adaptive_avg_pool = register("adaptive_avg_pool", f"SymInt[1] output_size, {FORMAT}", _adaptive_avg_pool, adaptive)


# ------------------------------------------------------------------------------------------------------------- padding
def _pad(x: Any, padding: Shape, mode: PadMode, value: float, data_format: DataFormat) -> Any:
    return F.pad(x, sides(padding, "", x.ndim - 2), mode, value, data_format=data_format)


def _padded(shape: Shape, padding: Shape, mode: PadMode, value: float, data_format: DataFormat) -> tuple[Shape, Any]:
    spec = pad_spec(tuple(shape), sides(padding, "", len(shape) - 2), mode, data_format)
    return spec.out_shape, spec


pad = register("pad", f"int[1] padding, str mode='constant', Scalar value=0, {FORMAT}", _pad, _padded)
