"""PyTorch's pooling, padding and normalisation modules with this library's ops inside, and `convert`, which swaps a
model's own for them.

Each is a subclass of torch.nn's module of the same name: the same arguments, state_dict, repr and isinstance. What
differs: max pooling keeps one byte an output for backward (PyTorch: eight, and x), and every gradient is gathered, so
it has the same bits every time. The few inputs that PyTorch's modules compute and this library's ops refuse (see
`served`) go to PyTorch's own code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import nn

from cnnlayers.specs.arguments import PadMode

from . import functional as T
from .served import per_axis, rule_of, widened_by_autocast

Run = Callable[..., Any]


# ------------------------------------------------------------------- what each module does, given itself and its inputs
def _max_pool(m: Any, x: torch.Tensor) -> Any:
    options = {"ceil_mode": m.ceil_mode, "return_indices": m.return_indices}
    return T.max_pool(x, *_sizes(m, x, "kernel_size", "stride", "padding", "dilation"), **options)


def _avg_pool(m: Any, x: torch.Tensor) -> Any:
    divisor = getattr(m, "divisor_override", None)  # AvgPool1d has none
    options = {"ceil_mode": m.ceil_mode, "count_include_pad": m.count_include_pad, "divisor_override": divisor}
    return T.avg_pool(x, *_sizes(m, x, "kernel_size", "stride", "padding"), **options)


def _adaptive_avg_pool(m: Any, x: torch.Tensor) -> Any:
    return T.adaptive_avg_pool(x, m.output_size)


def _adaptive_max_pool(m: Any, x: torch.Tensor) -> Any:
    if m.return_indices:
        raise ValueError(f"{type(m).__name__} of cnnlayers.torch has no return_indices: use torch.nn's")
    return T.adaptive_max_pool(x, m.output_size)


def _max_unpool(m: Any, x: torch.Tensor, indices: torch.Tensor, output_size: Any = None) -> Any:
    size = None if output_size is None else tuple(output_size)[2 - x.ndim :]
    return T.max_unpool(x, indices, *_sizes(m, x, "kernel_size", "stride", "padding"), output_size=size)


def _sizes(m: Any, x: torch.Tensor, *names: str) -> list[Any]:
    """Sizes of a pool by their names, None where there is none (an empty stride, which stands for the kernel's)."""
    return [per_axis(getattr(m, name), x.ndim - 2) or None for name in names]


def _pad(mode: PadMode) -> Run:
    def run(m: Any, x: torch.Tensor) -> Any:
        return T.pad(x, _pairs(m), mode)

    return run


def _constant_pad(m: Any, input: torch.Tensor) -> Any:
    """As PyTorch's, with any number of axes before those that it pads."""
    axes, value = len(m.padding) // 2, getattr(m, "value", 0) or 0
    if input.ndim == axes + 2:
        return T.pad(input, _pairs(m), "constant", value)
    if input.ndim < axes:
        raise ValueError(f"{type(m).__name__} needs at least {axes} axes, got shape {tuple(input.shape)}")
    before, padded = input.shape[: input.ndim - axes], input.shape[input.ndim - axes :]
    y = T.pad(input.reshape(1, math.prod(before), *padded), _pairs(m), "constant", value)
    return y.reshape(*before, *y.shape[2:])


def _pairs(m: Any) -> list[tuple[int, int]]:
    return list(zip(m.padding[::2], m.padding[1::2], strict=True))[::-1]  # PyTorch begins with the last axis


def _batch_norm(m: Any, input: torch.Tensor) -> Any:
    m._check_input_dim(input)
    momentum = 0.0 if m.momentum is None else m.momentum
    tracking = m.training and m.track_running_stats
    counting = tracking and m.num_batches_tracked is not None
    if counting and m.momentum is None:  # the plain average of all batches
        momentum = 1.0 / (float(m.num_batches_tracked) + 1)
    running = (m.running_mean, m.running_var) if tracking or not m.training else (None, None)
    by_batch = m.training or running == (None, None)
    y = T.batch_norm(input, m.weight, m.bias, *running, training=by_batch, momentum=momentum, eps=m.eps)
    if counting:  # not where the input was refused
        m.num_batches_tracked.add_(1)
    return y


def _instance_norm(m: Any, x: torch.Tensor) -> Any:
    if m.track_running_stats:
        raise ValueError(f"{type(m).__name__} of cnnlayers.torch has no running statistics: use torch.nn's")
    return T.instance_norm(x, m.weight, m.bias, eps=m.eps)


def _group_norm(m: Any, input: torch.Tensor) -> Any:
    return _any_rank(lambda x: T.group_norm(x, m.num_groups, m.weight, m.bias, eps=m.eps), input)


def _any_rank(run: Run, x: torch.Tensor) -> Any:
    """`run` of x, whose spatial axes are joined to one where they are more than three: their order plays no part."""
    if x.ndim <= 5:
        return run(x)
    return run(x.reshape(*x.shape[:2], math.prod(x.shape[2:]))).reshape(x.shape)


def _layer_norm(m: Any, input: torch.Tensor) -> Any:
    return T.layer_norm(input, m.normalized_shape, m.weight, m.bias, eps=m.eps)


def _rms_norm(m: Any, x: torch.Tensor) -> Any:
    return T.rms_norm(x, m.normalized_shape, m.weight, eps=m.eps)


def _local_response_norm(m: Any, input: torch.Tensor) -> Any:
    return _any_rank(lambda x: T.local_response_norm(x, m.size, alpha=m.alpha, beta=m.beta, k=m.k), input)


# Modules for one to three spatial axes, which take an image without the batch's axis too; and others.
FOR_IMAGES: dict[str, Run] = {
    "MaxPool": _max_pool,
    "AvgPool": _avg_pool,
    "AdaptiveAvgPool": _adaptive_avg_pool,
    "AdaptiveMaxPool": _adaptive_max_pool,
    "MaxUnpool": _max_unpool,
    "ReflectionPad": _pad("reflect"),
    "ReplicationPad": _pad("edge"),
    "CircularPad": _pad("wrap"),
    "InstanceNorm": _instance_norm,
}
OTHERS: dict[str, Run] = {
    **{f"{root}{axes}d": _constant_pad for root in ("ConstantPad", "ZeroPad") for axes in (1, 2, 3)},
    **{f"BatchNorm{axes}d": _batch_norm for axes in (1, 2, 3)},
    "GroupNorm": _group_norm,
    "LayerNorm": _layer_norm,
    "RMSNorm": _rms_norm,
    "LocalResponseNorm": _local_response_norm,
}


def _of_images(run: Run, axes: int) -> Run:
    """`run` for images of so many spatial axes, and for a single one, which lacks the batch's axis."""

    def forward(self: Any, input: torch.Tensor, indices: torch.Tensor | None = None, *more: Any, **options: Any) -> Any:
        inputs = [input] if indices is None else [input, indices]
        if input.ndim == axes + 2:
            return run(self, *inputs, *more, **options)
        if input.ndim != axes + 1:
            text = f"{axes + 2} axes, or {axes + 1} for a single image"
            raise ValueError(f"{type(self).__name__} needs an input of {text}, got shape {tuple(input.shape)}")
        y = run(self, *(a[None] for a in inputs), *more, **options)
        return tuple(a[0] for a in y) if isinstance(y, tuple) else y[0]

    return forward


def _refuse_scripting(m: Any) -> Any:
    name = type(m).__name__
    raise RuntimeError(
        f"torch.jit.script cannot compile {name} of cnnlayers.torch: script the model that was given to convert"
        " (cnnlayers.torch.revert gives it back), or use torch.compile or torch.export"
    )


def _module(name: str, run: Run) -> Any:
    base, serves = getattr(nn, name), rule_of(name)

    def forward(self: Any, input: torch.Tensor, *more: Any, **options: Any) -> Any:
        if isinstance(input, torch.fx.Proxy):  # a module is a leaf of torch.fx's graph, as torch.nn's are
            path = input.tracer.path_of_module(self)
            return input.tracer.create_proxy("call_module", path, (input, *more), options)
        if not isinstance(input, torch.Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(input).__name__}")
        if not serves(self, input):
            return base.forward(self, input, *more, **options)
        return run(self, widened_by_autocast(name, input), *more, **options)

    doc = (
        f"torch.nn.{name} with this library's op inside.\n\n"
        f"See Also\n--------\ntorch.nn.{name} : Its arguments, state and shapes are the same.\n"
    )
    members = {"forward": forward, "__prepare_scriptable__": _refuse_scripting}  # the hook that torch.jit.script calls
    return type(name, (base,), {**members, "__module__": __name__, "__doc__": doc})


MODULES: dict[str, Any] = {name: _module(name, run) for name, run in OTHERS.items() if hasattr(nn, name)} | {
    f"{root}{axes}d": _module(f"{root}{axes}d", _of_images(run, axes))
    for root, run in FOR_IMAGES.items()
    for axes in (1, 2, 3)
}
globals().update(MODULES)

_REPLACED = {getattr(nn, name): module for name, module in MODULES.items()}


def convert(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A copy of a model in which pooling, padding and normalisation are this library's.

    Parameters
    ----------
    model : torch.nn.Module
        Parameters, buffers, hooks and training mode stay as they are; make the optimizer from what this gives.
    inplace : bool
        Whether to change the model itself.

    Returns
    -------
    torch.nn.Module
        The copy, or `model`.

    Raises
    ------
    TypeError
        What is no module.

    Notes
    -----
    Left alone: subclasses of torch.nn's modules, convolutions and all other modules, and what has no counterpart here
    (AdaptiveMaxPool with return_indices, InstanceNorm with running statistics).

    Examples
    --------
    >>> from torch import nn
    >>> from cnnlayers.torch import convert
    >>> type(convert(nn.Sequential(nn.MaxPool2d(2)))[0]).__module__
    'cnnlayers.torch.modules'
    """
    model = _checked_copy("convert", model, inplace)
    for module in model.modules():
        replacement = _REPLACED.get(type(module))
        if replacement is not None and not _without_counterpart(module):
            module.__class__ = replacement  # what a module holds is its torch.nn base's
    return model


def revert(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A copy of a model with torch.nn's modules in the place of this library's: it undoes `convert`.

    Parameters
    ----------
    model : torch.nn.Module
        Parameters, buffers, hooks and training mode stay as they are.
    inplace : bool
        Whether to change the model itself.

    Returns
    -------
    torch.nn.Module
        The copy, or `model`.

    Raises
    ------
    TypeError
        What is no module.

    Examples
    --------
    >>> from torch import nn
    >>> from cnnlayers.torch import convert, revert
    >>> type(revert(convert(nn.MaxPool2d(2)))) is nn.MaxPool2d
    True
    """
    model = _checked_copy("revert", model, inplace)
    originals = {module: original for original, module in _REPLACED.items()}
    for module in model.modules():
        if type(module) in originals:
            module.__class__ = originals[type(module)]
    return model


def _checked_copy(name: str, model: nn.Module, inplace: bool) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} needs a torch.nn.Module, got {type(model).__name__}")
    return model if inplace else copy.deepcopy(model)


def _without_counterpart(module: Any) -> bool:
    adaptive = isinstance(module, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool3d)
    instance = isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
    return (adaptive and module.return_indices) or (instance and module.track_running_stats)
