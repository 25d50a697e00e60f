"""Max pooling, which saves its argmax, and unpooling, which saves where each entry went."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cnnlayers import functional as F
from cnnlayers.specs import MaxPoolSpec, unpool_window
from cnnlayers.specs.arguments import DataFormat
from cnnlayers.specs.windows import argmax_dtype_name

from .batching import LOOP, Rule
from .library import Op, context, differentiable_by_x, second_output
from .windows import FORMAT, WINDOW, Shape, adaptive, one_or_all, pool, sides, windows_of

Runs = Sequence[Callable[..., Any]]


def _argmax_dtype(kernel: Sequence[int]) -> torch.dtype:
    return getattr(torch, argmax_dtype_name(kernel))


def _register(
    op: str, inputs: str, saved: str, options: str, run: Runs, fake: Runs, rules: Sequence[Rule], more: str = ""
) -> tuple[Op, Op, Op]:
    """Register an op that saves one array, `saved`, and x's shape for its gradient, which is that of x.

    `inputs`, `options`: of the schema. `run`: the op, its forward (of `more` options too) and its backward on arrays;
    `fake`: the first two on fake tensors. `rules`: of all three.
    """
    tensors, results = inputs.count("Tensor"), "Tensor, Tensor, Tensor" if more else "Tensor, Tensor"
    ops = (
        Op(f"{op}({inputs}, {options}) -> Tensor", run[0], fake[0], rules[0]),
        Op(f"{op}_forward({inputs}, {options}{more}) -> ({results})", run[1], fake[1], rules[1]),
        Op(
            f"{op}_backward(Tensor dy, Tensor {saved}, SymInt[] shape, {options}) -> Tensor",
            run[2],
            lambda dy, saved, shape, *_: dy.new_empty(shape),
            rules[2],
        ),
    )
    end = len(ops[0].defaults)

    def shape_and_options(given: Any) -> tuple[Any, ...]:
        return list(given[0].shape), *given[tensors:end]

    differentiable_by_x(ops[0], ops[2], second_output, shape_and_options, ops[1])
    return ops


# ------------------------------------------------------------------------------------------------------------ max_pool
MAX = f"{WINDOW}, str ties='first', {FORMAT}"


_max_pool, _recorded_max_pool = pool("max_pool", "ties"), pool("max_pool_forward", "ties")


def _max_pool_forward(x: Any, *args: Any) -> Any:
    *options, indices = args
    y, ctx = _recorded_max_pool(x, *options, return_indices=indices)
    values, places = y if indices else (y, None)
    return values, ctx.arrays["saved"], places


def _max_pool_backward(dy: Any, saved: Any, shape: Shape, *options: Any) -> Any:
    window, ties = windows_of(shape, options), options[-2]
    return F.max_pool_backward(dy, context("max_pool", dy, MaxPoolSpec(window, ties), window.out_shape, saved=saved))


def _fake_max_pool_forward(x: torch.Tensor, *args: Any) -> Any:
    *options, indices = args
    window, ties = windows_of(x.shape, options), options[-2]
    taps, out = math.prod(window.kernel), window.out_shape
    kept = (out, _argmax_dtype(window.kernel)) if ties == "first" else (((taps + 7) // 8, *out), torch.uint8)
    places = x.new_empty(out if indices else (0,), dtype=torch.int64 if indices else None)
    return x.new_empty(out), x.new_empty(kept[0], dtype=kept[1]), places


def _by_first(place: int) -> Any:
    return lambda args: args[place] == "first"  # the bits of ties have another axis first


max_pool, max_pool_forward, max_pool_backward = _register(
    "max_pool",
    "Tensor x",
    "saved",
    MAX,
    (_max_pool, _max_pool_forward, _max_pool_backward),
    (lambda x, *options: x.new_empty(windows_of(x.shape, options).out_shape), _fake_max_pool_forward),
    (Rule({0: 0}), Rule({0: 0}, (0, 0, 0), when=_by_first(7)), Rule({0: 0, 1: 0}, shape=2, when=_by_first(9))),
    ", bool return_indices=False",
)


# --------------------------------------------------------------------------------------------------- adaptive_max_pool
ADAPTIVE = f"SymInt[1] output_size, {FORMAT}"


def _adaptive_max_pool(x: Any, output_size: Shape, data_format: DataFormat) -> Any:
    return F.adaptive_max_pool(x, one_or_all(output_size), data_format=data_format)


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
    return x.new_empty(out), x.new_empty(out, dtype=_argmax_dtype(spec.kernel))


adaptive_max_pool, adaptive_max_pool_forward, adaptive_max_pool_backward = _register(
    "adaptive_max_pool",
    "Tensor x",
    "argmax",
    ADAPTIVE,
    (_adaptive_max_pool, _adaptive_max_pool_forward, _adaptive_max_pool_backward),
    (lambda x, *options: x.new_empty(adaptive(tuple(x.shape), *options)[0]), _fake_adaptive_max_pool_forward),
    (Rule({0: 0}), Rule({0: 0}, (0, 0)), Rule({0: 0, 1: 0}, shape=2)),
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


max_unpool, max_unpool_forward, max_unpool_backward = _register(
    "max_unpool",
    "Tensor x, Tensor indices",
    "reached",
    UNPOOL,
    (lambda *args: _max_unpool_forward(*args)[0], _max_unpool_forward, _max_unpool_backward),
    (lambda *args: _fake_max_unpool_forward(*args)[0], _fake_max_unpool_forward),
    (Rule({0: 0, 1: 0}, when=lambda args: args[5] is None or len(args[5]) == args[0].ndim - 2), LOOP, LOOP),
)
