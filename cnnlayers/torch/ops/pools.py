"""Max pooling, which saves its argmax, and unpooling, which saves where each entry went."""

from __future__ import annotations

import math
from typing import Any

import torch

from cnnlayers import functional as F
from cnnlayers.specs import MaxPoolSpec, unpool_window
from cnnlayers.specs.arguments import DataFormat

from .batching import LOOP, Rule
from .library import Op, context, differentiable_by_x, second_output
from .windows import FORMAT, WINDOW, Shape, adaptive, one_or_all, shape_and_options, sides, window_arguments, window_of


def _argmax_dtype(taps: int) -> torch.dtype:
    """The smallest unsigned type that holds a place in a window of so many taps."""
    sizes = ((8, torch.uint8), (16, torch.uint16), (32, torch.uint32))
    return next((dtype for bits, dtype in sizes if taps <= 2**bits), torch.uint64)


# ------------------------------------------------------------------------------------------------------------ max_pool
MAX = f"{WINDOW}, str ties='first', {FORMAT}"


def _max_arguments(x: Any, options: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    *sizes, ceil, ties, data_format = options
    named = {"ceil_mode": ceil, "ties": ties, "data_format": data_format}
    return window_arguments(len(x.shape) - 2, *sizes), named


def _max_window(shape: Shape, options: tuple[Any, ...]) -> Any:
    *sizes, ceil, _, data_format = options
    return window_of(shape, sizes, ceil, data_format)


def _max_pool(x: Any, *options: Any) -> Any:
    sizes, named = _max_arguments(x, options)
    return F.max_pool(x, *sizes, **named)


def _max_pool_forward(x: Any, *args: Any) -> Any:
    *options, indices = args
    sizes, named = _max_arguments(x, tuple(options))
    y, ctx = F.max_pool_forward(x, *sizes, return_indices=indices, **named)
    values, places = y if indices else (y, None)
    return values, ctx.arrays["saved"], places


def _max_pool_backward(dy: Any, saved: Any, shape: Shape, *options: Any) -> Any:
    window, ties = _max_window(shape, options), options[-2]
    return F.max_pool_backward(dy, context("max_pool", dy, MaxPoolSpec(window, ties), window.out_shape, saved=saved))


def _fake_max_pool_forward(x: torch.Tensor, *args: Any) -> Any:
    *options, indices = args
    window, ties = _max_window(x.shape, tuple(options)), options[-2]
    taps, out = math.prod(window.kernel), window.out_shape
    kept = (out, _argmax_dtype(taps)) if ties == "first" else (((taps + 7) // 8, *out), torch.uint8)
    places = x.new_empty(out if indices else (0,), dtype=torch.int64 if indices else None)
    return x.new_empty(out), x.new_empty(kept[0], dtype=kept[1]), places


def _by_first(place: int) -> Any:
    return lambda args: args[place] == "first"  # the bits of ties have another axis first


max_pool = Op(
    f"max_pool(Tensor x, {MAX}) -> Tensor",
    _max_pool,
    lambda x, *options: x.new_empty(_max_window(x.shape, options).out_shape),
    Rule({0: 0}),
)
max_pool_forward = Op(
    f"max_pool_forward(Tensor x, {MAX}, bool return_indices=False) -> (Tensor, Tensor, Tensor)",
    _max_pool_forward,
    _fake_max_pool_forward,
    Rule({0: 0}, (0, 0, 0), when=_by_first(7)),
)
max_pool_backward = Op(
    f"max_pool_backward(Tensor dy, Tensor saved, SymInt[] shape, {MAX}) -> Tensor",
    _max_pool_backward,
    lambda dy, saved, shape, *options: dy.new_empty(shape),
    Rule({0: 0, 1: 0}, shape=2, when=_by_first(9)),
)
differentiable_by_x(
    max_pool, max_pool_backward, second_output, lambda inputs: shape_and_options(inputs[:-1]), max_pool_forward
)


# --------------------------------------------------------------------------------------------------- adaptive_max_pool
ADAPTIVE = f"SymInt[1] output_size, {FORMAT}"


def _adaptive_max_pool_forward(x: Any, output_size: Shape, data_format: DataFormat) -> Any:
    y, ctx = F.adaptive_max_pool_forward(x, one_or_all(output_size), data_format=data_format)
    return y, ctx.arrays["argmax"]


def _adaptive_max_pool_backward(dy: Any, argmax: Any, shape: Shape, output_size: Shape, data_format: DataFormat) -> Any:
    y_shape, spec = adaptive(shape, output_size, data_format)
    return F.adaptive_max_pool_backward(dy, context("adaptive_max_pool", dy, spec, y_shape, argmax=argmax))


def _fake_adaptive_max_pool_forward(x: torch.Tensor, output_size: Shape, data_format: DataFormat) -> Any:
    known = x.shape[0], *map(int, x.shape[1:])  # the argmax's type depends on the widest window
    _, spec = adaptive((1, *known[1:]), [int(n) for n in output_size], data_format)
    out = (x.shape[0], *spec.out_shape[1:])
    return x.new_empty(out), x.new_empty(out, dtype=_argmax_dtype(math.prod(spec.kernel)))


adaptive_max_pool = Op(
    f"adaptive_max_pool(Tensor x, {ADAPTIVE}) -> Tensor",
    lambda x, size, data_format: F.adaptive_max_pool(x, one_or_all(size), data_format=data_format),
    lambda x, *options: x.new_empty(adaptive(tuple(x.shape), *options)[0]),
    Rule({0: 0}),
)
adaptive_max_pool_forward = Op(
    f"adaptive_max_pool_forward(Tensor x, {ADAPTIVE}) -> (Tensor, Tensor)",
    _adaptive_max_pool_forward,
    _fake_adaptive_max_pool_forward,
    Rule({0: 0}, (0, 0)),
)
adaptive_max_pool_backward = Op(
    f"adaptive_max_pool_backward(Tensor dy, Tensor argmax, SymInt[] shape, {ADAPTIVE}) -> Tensor",
    _adaptive_max_pool_backward,
    lambda dy, argmax, shape, *options: dy.new_empty(shape),
    Rule({0: 0, 1: 0}, shape=2),
)
differentiable_by_x(
    adaptive_max_pool, adaptive_max_pool_backward, second_output, shape_and_options, adaptive_max_pool_forward
)


# ---------------------------------------------------------------------------------------------------------- max_unpool
UNPOOL = f"int[1] kernel_size, int[1] stride=[], int[1] padding=0, SymInt[]? output_size=None, {FORMAT}"


def _unpool_window(shape: Shape, options: tuple[Any, ...]) -> Any:
    kernel, stride, padding, output_size, data_format = options
    sizes = one_or_all(kernel), one_or_all(stride), sides(padding, "", len(shape) - 2)
    return unpool_window(tuple(shape), *sizes, None if output_size is None else tuple(output_size), data_format)


def _max_unpool_forward(x: Any, indices: Any, *options: Any) -> Any:
    kernel, stride, padding, output_size, data_format = options
    sizes = one_or_all(kernel), one_or_all(stride), sides(padding, "", x.ndim - 2)
    y, ctx = F.max_unpool_forward(x, indices, *sizes, output_size=output_size, data_format=data_format)
    return y, ctx.arrays["reached"]


def _max_unpool_backward(dy: Any, reached: Any, shape: Shape, *options: Any) -> Any:
    window = _unpool_window(shape, options)
    return F.max_unpool_backward(dy, context("max_unpool", dy, window, window.layout.shape, reached=reached))


def _fake_max_unpool_forward(x: torch.Tensor, indices: torch.Tensor, *options: Any) -> Any:
    window = _unpool_window(x.shape, options)
    small = math.prod(window.layout.lengths) < 2**31
    return x.new_empty(window.layout.shape), x.new_empty(x.shape, dtype=torch.int32 if small else torch.int64)


max_unpool = Op(
    f"max_unpool(Tensor x, Tensor indices, {UNPOOL}) -> Tensor",
    lambda *args: _max_unpool_forward(*args)[0],
    lambda x, indices, *options: x.new_empty(_unpool_window(x.shape, options).layout.shape),
    Rule({0: 0, 1: 0}, when=lambda args: args[5] is None or len(args[5]) == args[0].ndim - 2),
)
max_unpool_forward = Op(
    f"max_unpool_forward(Tensor x, Tensor indices, {UNPOOL}) -> (Tensor, Tensor)",
    _max_unpool_forward,
    _fake_max_unpool_forward,
    LOOP,
)
max_unpool_backward = Op(
    f"max_unpool_backward(Tensor dy, Tensor reached, SymInt[] shape, {UNPOOL}) -> Tensor",
    _max_unpool_backward,
    lambda dy, reached, shape, *options: dy.new_empty(shape),
    LOOP,
)
differentiable_by_x(
    max_unpool,
    max_unpool_backward,
    second_output,
    lambda inputs: shape_and_options((inputs[0], *inputs[2:])),
    max_unpool_forward,
)
