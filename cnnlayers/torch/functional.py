"""The ops of `cnnlayers.functional` on PyTorch's tensors, by the same names and arguments.

`y = op(x, ...)`; a gradient flows to x and, where given, to weight and bias, gamma and beta. Each runs
`torch.ops.cnnlayers.<op>` (see `ops`), so torch.compile, torch.export, torch.func and vmap see one op. Rules of the
family:

- Nothing is copied: an op reads PyTorch's own memory, on its current stream.
- What backward needs is saved by PyTorch itself, so its checks of changes in place, its hooks and checkpoints work, and
  its memory is freed as ever. Where no gradient is wanted nothing is saved.
- A tensor that is stored channels last is worked on as it is stored, and so is y.
- In an autocast region convolutions and `linear` run in its dtype and the loss in float32, as PyTorch's; other ops in
  x's dtype, sums of half types being float32.
- There is no second and no forward-mode derivative: asking for one is a RuntimeError, and so is torch.jit.trace.
- dropout draws from PyTorch's generator: torch.manual_seed counts, and a checkpoint repeats the draw. `rng` may also be
  a seed, or a torch.Generator (which no checkpoint restores, as for PyTorch's own ops).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cnnlayers import functional as F
from cnnlayers.specs.arguments import choice, entries_of, flag

from .arguments import (
    as_channels_last,
    as_integer,
    as_real,
    as_stored,
    autocast,
    channels_first_again,
    normalized_list,
    output_sizes,
    padding_list,
    padding_name,
    size_list,
    window_options,
)
from .ops import activations, convs, norms, pools, windows
from .ops import batch_norm as batch_norm_ops
from .public import public

__all__ = ["adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "lp_pool", "max_pool", "max_unpool", "pad", "sum_pool"]
__all__ += ["batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm"]
__all__ += ["conv", "conv_transpose", "linear"]
__all__ += ["dropout", "gelu", "leaky_relu", "mse_loss", "relu", "sigmoid", "softmax", "softmax_cross_entropy", "tanh"]

_max_pool: Callable[..., Any] = F.max_pool  # without its overloads


# ------------------------------------------------------------------------------------------------------------- pooling
@public(_max_pool)
def max_pool(x: Tensor, ties: str, return_indices: bool, data_format: str, **sizes: Any) -> Any:
    options = window_options(x, **sizes)
    if not flag(return_indices, "return_indices"):
        return as_stored(pools.max_pool, x, *options, ties, data_format=data_format)
    x, data_format, moved = as_channels_last(x, data_format)
    y, _, indices = pools.max_pool_forward(x, *options, ties, data_format, True)
    return channels_first_again(y, moved), channels_first_again(indices, moved)


@public(F.avg_pool)
def avg_pool(x: Tensor, count_include_pad: bool, divisor_override: Any, data_format: str, **sizes: Any) -> Tensor:
    include = flag(count_include_pad, "count_include_pad")
    divisor = None if divisor_override is None else as_integer(divisor_override, "divisor_override")
    return as_stored(windows.avg_pool, x, *window_options(x, **sizes), include, divisor, data_format=data_format)


@public(F.sum_pool)
def sum_pool(x: Tensor, data_format: str, **sizes: Any) -> Tensor:
    return as_stored(windows.sum_pool, x, *window_options(x, **sizes), data_format=data_format)


@public(F.lp_pool)
def lp_pool(x: Tensor, norm_type: float, data_format: str, **sizes: Any) -> Tensor:
    options = *window_options(x, **sizes), as_real(norm_type, "norm_type")
    return as_stored(windows.lp_pool, x, *options, data_format=data_format)


@public(F.adaptive_avg_pool)
def adaptive_avg_pool(x: Tensor, output_size: Any, data_format: str) -> Tensor:
    return as_stored(windows.adaptive_avg_pool, x, output_sizes(output_size, x, data_format), data_format=data_format)


@public(F.adaptive_max_pool)
def adaptive_max_pool(x: Tensor, output_size: Any, data_format: str) -> Tensor:
    return as_stored(pools.adaptive_max_pool, x, output_sizes(output_size, x, data_format), data_format=data_format)


@public(F.max_unpool)
def max_unpool(
    x: Tensor, indices: Tensor, kernel_size: Any, stride: Any, padding: Any, output_size: Any, data_format: str
) -> Tensor:
    size = None if output_size is None else entries_of(output_size, "output_size") or [output_size] * (x.ndim - 2)
    strides = [] if stride is None else size_list(stride, "stride", x)
    options = size_list(kernel_size, "kernel_size", x), strides, padding_list(padding, x)
    x, data_format, moved = as_channels_last(x, data_format)
    if moved:
        indices = indices.movedim(1, -1)
        if size is not None and len(size) == x.ndim:  # the whole shape, as PyTorch also takes
            size = (size[0], *size[2:], size[1])
    y = pools.max_unpool(x, indices, *options, None if size is None else list(size), data_format)
    return channels_first_again(y, moved)


@public(F.pad)
def pad(x: Tensor, padding: Any, mode: str, value: Any, data_format: str) -> Tensor:
    if type(value) not in (int, float, bool):
        value = as_real(value, "value", finite=False)
    return as_stored(windows.pad, x, padding_list(padding, x, None), mode, value, data_format=data_format)


# --------------------------------------------------------------------------------------------------------------- norms
@public(F.batch_norm)
def batch_norm(
    x: Tensor, gamma: Any, beta: Any, running_mean: Any, running_var: Any, comm: Any, data_format: str, **options: Any
) -> Tensor:
    training = flag(options["training"], "training")
    numbers = as_real(options["momentum"], "momentum"), as_real(options["eps"], "eps")
    x, data_format, moved = as_channels_last(x, data_format)
    arrays, unbiased = (x, gamma, beta, running_mean, running_var), flag(options["unbiased"], "unbiased")
    given = *arrays, training, *numbers, unbiased, batch_norm_ops.number_of(comm), data_format
    if not training or running_mean is None or running_var is None:
        return channels_first_again(batch_norm_ops.batch_norm(*given), moved)
    y, _, _, mean, var = batch_norm_ops.batch_norm_forward(*given)
    running_mean.detach().copy_(mean.detach())  # not under no_grad: torch.export.load cannot read such a block
    running_var.detach().copy_(var.detach())
    return channels_first_again(y, moved)


@public(F.group_norm)
def group_norm(x: Tensor, num_groups: int, gamma: Any, beta: Any, eps: float, data_format: str) -> Tensor:
    groups, number = as_integer(num_groups, "num_groups", 1), as_real(eps, "eps")
    return as_stored(norms.group_norm, x, groups, gamma, beta, number, data_format=data_format)


@public(F.instance_norm)
def instance_norm(x: Tensor, gamma: Any, beta: Any, eps: float, data_format: str) -> Tensor:
    return as_stored(norms.instance_norm, x, gamma, beta, as_real(eps, "eps"), data_format=data_format)


@public(F.layer_norm)
def layer_norm(x: Tensor, normalized_shape: Any, gamma: Any, beta: Any, eps: float) -> Any:
    return norms.layer_norm(x, normalized_list(normalized_shape), gamma, beta, as_real(eps, "eps"))


@public(F.rms_norm)
def rms_norm(x: Tensor, normalized_shape: Any, gamma: Any, eps: float | None) -> Any:
    return norms.rms_norm(x, normalized_list(normalized_shape), gamma, None if eps is None else as_real(eps, "eps"))


@public(F.local_response_norm)
def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, data_format: str) -> Tensor:
    options = as_integer(size, "size", 1), as_real(alpha, "alpha"), as_real(beta, "beta"), as_real(k, "k")
    return as_stored(norms.local_response_norm, x, *options, data_format=data_format)


# ---------------------------------------------------------------------------------------------------------- linear maps
@public(F.conv)
def conv(x: Tensor, weight: Tensor, bias: Any, padding: Any, groups: int, data_format: str, **sizes: Any) -> Tensor:
    sides = ([0], padding_name(padding)) if isinstance(padding, str) else (padding_list(padding, x), "")
    stride, dilation = (size_list(sizes[name], name, x) for name in ("stride", "dilation"))
    options = stride, *sides, dilation, as_integer(groups, "groups", 1)
    x, weight, bias = autocast(x, None, weight, bias)
    return as_stored(convs.conv, x, weight, bias, *options, data_format=data_format)


@public(F.conv_transpose)
def conv_transpose(
    x: Tensor, weight: Tensor, bias: Any, padding: Any, groups: int, data_format: str, **sizes: Any
) -> Tensor:
    stride, extra, dilation = (size_list(sizes[name], name, x) for name in ("stride", "output_padding", "dilation"))
    options = stride, padding_list(padding, x), extra, dilation, as_integer(groups, "groups", 1)
    x, weight, bias = autocast(x, None, weight, bias)
    return as_stored(convs.conv_transpose, x, weight, bias, *options, data_format=data_format)


@public(F.linear)
def linear(x: Tensor, weight: Tensor, bias: Any) -> Any:
    return convs.linear(*autocast(x, None, weight, bias))


# --------------------------------------------------------------------------------------------- activations and dropout
@public(F.relu)
def relu(x: Tensor) -> Any:
    return activations.relu(x)


@public(F.leaky_relu)
def leaky_relu(x: Tensor, negative_slope: float) -> Any:
    return activations.leaky_relu(x, as_real(negative_slope, "negative_slope"))


@public(F.gelu)
def gelu(x: Tensor, approximate: str) -> Any:
    return activations.gelu(x, choice(approximate, "approximate", ("none", "tanh")))


@public(F.sigmoid)
def sigmoid(x: Tensor) -> Any:
    return activations.sigmoid(x)


@public(F.tanh)
def tanh(x: Tensor) -> Any:
    return activations.tanh(x)


@public(F.softmax)
def softmax(x: Tensor, axis: int) -> Tensor:
    axis = as_integer(axis, "axis")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be an axis of x, whose shape is {tuple(x.shape)}, got {axis}")
    return activations.softmax(x, axis)


@public(F.dropout)
def dropout(x: Tensor, p: float, training: bool, rng: Any) -> Tensor:
    p = as_real(p, "p")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability, from 0 to 1, got {p}")
    if not flag(training, "training") or p == 0:
        return x  # itself, as PyTorch's: a view would forbid changes in place
    return activations.dropout(x, _mask(x, p, rng), p)


def _mask(x: Tensor, p: float, rng: Any) -> Tensor:
    """What dropout keeps: drawn by PyTorch's generator, whose state a checkpoint restores, by another, or from a
    seed."""
    if rng is None:
        return torch.rand_like(x, dtype=torch.float32) >= p
    if isinstance(rng, torch.Generator):
        return torch.rand(x.shape, generator=rng, device=rng.device).to(x.device) >= p
    if isinstance(rng, bool) or not isinstance(rng, int):
        raise TypeError(
            f"rng must be a seed, a torch.Generator or None (PyTorch's own), got {type(rng).__name__}: a checkpoint"
            " could not repeat its draw"
        )
    if rng < 0:
        raise ValueError(f"rng must be a seed of at least 0, got {rng}")
    return activations.dropout_mask(x, p, rng)


# -------------------------------------------------------------------------------------------------------------- losses
@public(F.softmax_cross_entropy)
def softmax_cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    return activations.softmax_cross_entropy(*autocast(x, torch.float32), labels)


@public(F.mse_loss)
def mse_loss(x: Tensor, target: Tensor) -> Tensor:
    if x.shape != target.shape:
        raise ValueError(f"target must have x's shape {tuple(x.shape)}, got {tuple(target.shape)}")
    if x.numel() == 0:
        raise ValueError(f"the loss of nothing is not defined: x must have elements, got shape {tuple(x.shape)}")
    return activations.mse_loss(*autocast(x, torch.float32, target))
