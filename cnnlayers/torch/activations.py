"""Activations and losses on PyTorch's tensors. The rules are those of functional.py, which exports them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cnnlayers.specs.arguments import choice, flag

from .arguments import a_real, an_integer, autocast, check_tensors
from .ops import activations, elementwise
from .public import public


@public
def relu(x: Tensor) -> Tensor:
    check_tensors(x=x)
    return elementwise.relu(x)


@public
def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    check_tensors(x=x)
    return activations.leaky_relu(x, a_real(negative_slope, "negative_slope"))


@public
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    check_tensors(x=x)
    return activations.gelu(x, choice(approximate, "approximate", ("none", "tanh")))


@public
def sigmoid(x: Tensor) -> Tensor:
    check_tensors(x=x)
    return activations.sigmoid(x)


@public
def tanh(x: Tensor) -> Tensor:
    check_tensors(x=x)
    return activations.tanh(x)


@public
def softmax(x: Tensor, axis: int = 1) -> Tensor:
    check_tensors(x=x)
    axis = an_integer(axis, "axis")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be an axis of x, whose shape is {tuple(x.shape)}, got {axis}")
    return activations.softmax(x, axis)


@public
def dropout(x: Tensor, p: float = 0.5, *, training: bool = False, rng: Any = None) -> Tensor:
    check_tensors(x=x)
    p = a_real(p, "p")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability, from 0 to 1, got {p}")
    if not flag(training, "training") or p == 0:
        return x  # itself, as PyTorch's: a view would forbid changes in place
    return elementwise.dropout(x, _mask(x, p, rng), p)


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
    return elementwise.dropout_mask(x, p, rng)


@public
def softmax_cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    check_tensors(x=x, labels=labels)
    return elementwise.softmax_cross_entropy(*autocast(x, torch.float32), labels)


@public
def mse_loss(x: Tensor, target: Tensor) -> Tensor:
    check_tensors(x=x, target=target)
    if x.shape != target.shape:
        raise ValueError(f"target must have x's shape {tuple(x.shape)}, got {tuple(target.shape)}")
    if x.numel() == 0:
        raise ValueError(f"the loss of nothing is not defined: x must have elements, got shape {tuple(x.shape)}")
    return activations.mse_loss(*autocast(x, torch.float32, target))
