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

from typing import Any

from torch import Tensor

from cnnlayers.specs.arguments import entries_of, flag

from .activations import (
    dropout,
    gelu,
    leaky_relu,
    mse_loss,
    relu,
    sigmoid,
    softmax,
    softmax_cross_entropy,
    tanh,
)
from .arguments import (
    a_real,
    an_integer,
    as_channels_last,
    as_stored,
    autocast,
    channels_first_again,
    check_tensors,
    normalized_list,
    output_sizes,
    padding_list,
    padding_name,
    size_list,
    window_options,
)
from .ops import batch_norm as batch_norm_ops
from .ops import convs, norms, pools, windows
from .public import public

__all__ = ["adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "lp_pool", "max_pool", "max_unpool", "pad", "sum_pool"]
__all__ += ["batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm"]
__all__ += ["conv", "conv_transpose", "linear"]
__all__ += ["dropout", "gelu", "leaky_relu", "mse_loss", "relu", "sigmoid", "softmax", "softmax_cross_entropy", "tanh"]


# ------------------------------------------------------------------------------------------------------------- pooling
@public
def max_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    ceil_mode: bool = False,
    ties: str = "first",
    return_indices: bool = False,
    data_format: str = "channels_first",
) -> Any:
    check_tensors(x=x)
    options = window_options(x, kernel_size, stride, padding, dilation, ceil_mode)
    if not flag(return_indices, "return_indices"):
        return as_stored(pools.max_pool, x, *options, ties, data_format=data_format)
    x, data_format, moved = as_channels_last(x, data_format)
    y, _, indices = pools.max_pool_forward(x, *options, ties, data_format, True)
    return channels_first_again(y, moved), channels_first_again(indices, moved)


@public
def avg_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x)
    options = window_options(x, kernel_size, stride, padding, dilation, ceil_mode)
    include = flag(count_include_pad, "count_include_pad")
    divisor = None if divisor_override is None else an_integer(divisor_override, "divisor_override")
    return as_stored(windows.avg_pool, x, *options, include, divisor, data_format=data_format)


@public
def sum_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    ceil_mode: bool = False,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x)
    options = window_options(x, kernel_size, stride, padding, dilation, ceil_mode)
    return as_stored(windows.sum_pool, x, *options, data_format=data_format)


@public
def lp_pool(
    x: Tensor,
    kernel_size: Any,
    norm_type: float = 2.0,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    ceil_mode: bool = False,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x)
    options = window_options(x, kernel_size, stride, padding, dilation, ceil_mode)
    return as_stored(pools.lp_pool, x, *options, a_real(norm_type, "norm_type"), data_format=data_format)


@public
def adaptive_avg_pool(x: Tensor, output_size: Any, *, data_format: str = "channels_first") -> Tensor:
    check_tensors(x=x)
    size = output_sizes(output_size, x if data_format == "channels_first" else x.movedim(-1, 1))
    return as_stored(windows.adaptive_avg_pool, x, size, data_format=data_format)


@public
def adaptive_max_pool(x: Tensor, output_size: Any, *, data_format: str = "channels_first") -> Tensor:
    check_tensors(x=x)
    size = output_sizes(output_size, x if data_format == "channels_first" else x.movedim(-1, 1))
    return as_stored(pools.adaptive_max_pool, x, size, data_format=data_format)


@public
def max_unpool(
    x: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    *,
    output_size: Any = None,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x, indices=indices)
    size = None if output_size is None else entries_of(output_size, "output_size") or [output_size] * (x.ndim - 2)
    strides = [] if stride is None else size_list(stride, "stride", x)
    options = size_list(kernel_size, "kernel_size", x), strides, padding_list(padding, x)
    x, data_format, moved = as_channels_last(x, data_format)
    if moved:
        indices = indices.movedim(1, -1)
        if size is not None and len(size) == x.ndim:  # the whole shape, as PyTorch also takes
            size = (size[0], *size[2:], size[1])
    return channels_first_again(
        pools.max_unpool(x, indices, *options, None if size is None else list(size), data_format), moved
    )


@public
def pad(
    x: Tensor, padding: Any, mode: str = "constant", value: Any = 0, *, data_format: str = "channels_first"
) -> Tensor:
    check_tensors(x=x)
    if type(value) not in (int, float, bool):
        value = a_real(value, "value", finite=False)
    return as_stored(windows.pad, x, padding_list(padding, x, None), mode, value, data_format=data_format)


# --------------------------------------------------------------------------------------------------------------- norms
@public
def batch_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased: bool = True,
    comm: Any = None,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x, gamma=gamma, beta=beta, running_mean=running_mean, running_var=running_var)
    options = flag(training, "training"), a_real(momentum, "momentum"), a_real(eps, "eps"), flag(unbiased, "unbiased")
    x, data_format, moved = as_channels_last(x, data_format)
    given = x, gamma, beta, running_mean, running_var, *options, batch_norm_ops.number_of(comm), data_format
    if not training or running_mean is None or running_var is None:
        return channels_first_again(batch_norm_ops.batch_norm(*given), moved)
    y, _, _, mean, var = batch_norm_ops.batch_norm_forward(*given)
    running_mean.detach().copy_(mean.detach())  # not under no_grad: torch.export.load cannot read such a block
    running_var.detach().copy_(var.detach())
    return channels_first_again(y, moved)


@public
def group_norm(
    x: Tensor,
    num_groups: int,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    eps: float = 1e-5,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x, gamma=gamma, beta=beta)
    groups, number = an_integer(num_groups, "num_groups", 1), a_real(eps, "eps")
    return as_stored(norms.group_norm, x, groups, gamma, beta, number, data_format=data_format)


@public
def instance_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    eps: float = 1e-5,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x, gamma=gamma, beta=beta)
    return as_stored(norms.instance_norm, x, gamma, beta, a_real(eps, "eps"), data_format=data_format)


@public
def layer_norm(
    x: Tensor, normalized_shape: Any, gamma: Tensor | None = None, beta: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    check_tensors(x=x, gamma=gamma, beta=beta)
    return norms.layer_norm(x, normalized_list(normalized_shape), gamma, beta, a_real(eps, "eps"))


@public
def rms_norm(x: Tensor, normalized_shape: Any, gamma: Tensor | None = None, *, eps: float | None = None) -> Tensor:
    check_tensors(x=x, gamma=gamma)
    return norms.rms_norm(x, normalized_list(normalized_shape), gamma, None if eps is None else a_real(eps, "eps"))


@public
def local_response_norm(
    x: Tensor,
    size: int,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x)
    options = an_integer(size, "size", 1), a_real(alpha, "alpha"), a_real(beta, "beta"), a_real(k, "k")
    return as_stored(norms.local_response_norm, x, *options, data_format=data_format)


# ---------------------------------------------------------------------------------------------------------- linear maps
@public
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x, weight=weight, bias=bias)
    named = isinstance(padding, str)
    sides = ([0], padding_name(padding)) if named else (padding_list(padding, x), "")
    options = (
        size_list(stride, "stride", x),
        *sides,
        size_list(dilation, "dilation", x),
        an_integer(groups, "groups", 1),
    )
    x, weight, bias = autocast(x, None, weight, bias)
    return as_stored(convs.conv, x, weight, bias, *options, data_format=data_format)


@public
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    data_format: str = "channels_first",
) -> Tensor:
    check_tensors(x=x, weight=weight, bias=bias)
    extra = size_list(output_padding, "output_padding", x), size_list(dilation, "dilation", x)
    options = size_list(stride, "stride", x), padding_list(padding, x), *extra, an_integer(groups, "groups", 1)
    x, weight, bias = autocast(x, None, weight, bias)
    return as_stored(convs.conv_transpose, x, weight, bias, *options, data_format=data_format)


@public
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    check_tensors(x=x, weight=weight, bias=bias)
    return convs.linear(*autocast(x, None, weight, bias))
