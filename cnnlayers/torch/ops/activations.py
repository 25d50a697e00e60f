"""Activations, dropout and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cnnlayers import backends
from cnnlayers import functional as F

from .batching import LOOP, Rule
from .library import Op, context, differentiable_by_x, second_output, with_forward

ONE = Rule({0: 0}, stacked=True)
TWO = Rule({0: 0, 1: 0}, stacked=True)


def _same(x: torch.Tensor, *_: Any) -> torch.Tensor:
    """The fake result of an op that keeps shape and dtype."""
    return x.new_empty(x.shape)


# ---------------------------------------------------------------------------------------------------------- activations
def _by_mask(name: str, saved: str, passes: Callable[..., Any], option: str = "", default: str = "") -> Op:
    """Register an op of x and at most one option. Its gradient needs a mask, `passes(x, y, zero)`, of where the slope
    is 1."""

    def forward(x: Any, *options: Any) -> Any:
        b, y = backends.of(x), getattr(F, name)(x, *options)
        return y, b.array(passes(x, y, b.zeros((), x.dtype)), b.xp.bool)  # an array, so that vmap can stack them

    def backward(dy: Any, mask: Any, *options: Any) -> Any:
        return getattr(F, f"{name}_backward")(dy, context(name, dy, *options, **{saved: mask}))

    def fake_forward(x: torch.Tensor, *_: Any) -> Any:
        return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.bool)

    op = Op(f"{name}(Tensor x{option}{default}) -> Tensor", getattr(F, name), _same, ONE)
    with_mask = Op(f"{name}_forward(Tensor x{option}{default}) -> (Tensor, Tensor)", forward, fake_forward, ONE)
    gradient = Op(f"{name}_backward(Tensor dy, Tensor {saved}{option}) -> Tensor", backward, _same, TWO)
    differentiable_by_x(op, gradient, second_output, forward=with_mask)
    return op


def _by_array(name: str, saved: str, option: str = "", rules: tuple[Rule, Rule] = (ONE, TWO)) -> Op:
    """Register an op of x and at most one option. Its gradient needs x or y."""

    def backward(dy: Any, array: Any, *options: Any) -> Any:
        return getattr(F, f"{name}_backward")(dy, context(name, array, *options, **{saved: array}))

    op = Op(f"{name}(Tensor x{option}) -> Tensor", getattr(F, name), _same, rules[0])
    gradient = Op(f"{name}_backward(Tensor dy, Tensor {saved}{option}) -> Tensor", backward, _same, rules[1])
    differentiable_by_x(op, gradient, lambda inputs, output: inputs[:1] if saved == "x" else (output,))
    return op


relu = _by_mask("relu", "passes", lambda x, y, zero: y != zero)
leaky_relu = _by_mask("leaky_relu", "positive", lambda x, y, zero: x > zero, ", float negative_slope", "=0.01")
gelu = _by_array("gelu", "x", ", str approximate='none'")
sigmoid, tanh = _by_array("sigmoid", "y"), _by_array("tanh", "y")
softmax = _by_array("softmax", "y", ", int axis=1", (LOOP, LOOP))


# ------------------------------------------------------------------------------------------------------------- dropout
# The mask is drawn outside, by PyTorch's generator or by `dropout_mask` from a seed.
def _dropout(x: Any, mask: Any, p: float) -> Any:
    """Dropout is its own adjoint: y is to x what dx is to dy."""
    return F.dropout_backward(x, context("dropout", x, p, mask=mask))


def _dropout_mask(x: Any, p: float, seed: int) -> Any:
    b = backends.of(x)
    return b.array(backends.uniform(b, tuple(x.shape), seed) >= p, b.xp.bool)


dropout = Op("dropout(Tensor x, Tensor mask, float p) -> Tensor", _dropout, _same, TWO)
dropout_backward = Op("dropout_backward(Tensor dy, Tensor mask, float p) -> Tensor", _dropout, _same, TWO)
dropout_mask = Op(
    "dropout_mask(Tensor x, float p, int seed) -> Tensor",
    _dropout_mask,
    lambda x, p, seed: x.new_empty(x.shape, dtype=torch.bool),
    LOOP,
)
differentiable_by_x(dropout, dropout_backward, lambda inputs, y: inputs[1:2], lambda inputs: inputs[2:])


# ------------------------------------------------------------------------------------------------ softmax_cross_entropy
def _loss_forward(x: Any, labels: Any) -> Any:
    loss, ctx = F.softmax_cross_entropy_forward(x, labels)
    return loss, ctx.arrays["top"], ctx.arrays["rest"]


def _loss_backward(dy: Any, x: Any, labels: Any, top: Any, rest: Any) -> Any:
    xp = backends.of(x).xp
    labels = xp.asarray(labels, dtype=xp.int64)
    ctx = context("softmax_cross_entropy", x, None, (), x=x, labels=labels, top=top, rest=rest)
    return F.softmax_cross_entropy_backward(dy, ctx)


def _fake_loss_forward(x: torch.Tensor, labels: torch.Tensor) -> Any:
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise ValueError(f"x must be (N, K) and labels (N,), got shapes {tuple(x.shape)} and {tuple(labels.shape)}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(()), *(x.new_empty((x.shape[0], 1), dtype=wide) for _ in range(2))


softmax_cross_entropy, softmax_cross_entropy_forward = with_forward(
    "softmax_cross_entropy", "Tensor x, Tensor labels", 3, _loss_forward, _fake_loss_forward, (LOOP, LOOP)
)
softmax_cross_entropy_backward = Op(
    "softmax_cross_entropy_backward(Tensor dy, Tensor x, Tensor labels, Tensor top, Tensor rest) -> Tensor",
    _loss_backward,
    lambda dy, x, *_: x.new_empty(x.shape),
    LOOP,
)
differentiable_by_x(
    softmax_cross_entropy,
    softmax_cross_entropy_backward,
    lambda inputs, outputs: (*inputs, *outputs[1:]),
    lambda inputs: (),
    softmax_cross_entropy_forward,
)


# ------------------------------------------------------------------------------------------------------------- mse_loss
def _mse_loss_backward(dy: Any, x: Any, target: Any) -> Any:
    return F.mse_loss_backward(dy, context("mse_loss", x, None, (), x=x, target=target))


def _derive_mse_loss(ctx: Any, dy: torch.Tensor | None) -> tuple[Any, ...]:
    if dy is None:
        return None, None
    x, target = ctx.saved_tensors
    dx = mse_loss_backward(dy, x, target)
    return dx, -dx.to(target.dtype)


mse_loss = Op("mse_loss(Tensor x, Tensor target) -> Tensor", F.mse_loss, lambda x, target: x.new_empty(()), LOOP)
mse_loss_backward = Op(
    "mse_loss_backward(Tensor dy, Tensor x, Tensor target) -> Tensor",
    _mse_loss_backward,
    lambda dy, x, target: x.new_empty(x.shape),
    LOOP,
)
mse_loss.differentiable(lambda ctx, inputs, output: ctx.save_for_backward(*inputs), _derive_mse_loss)
mse_loss_backward.refuse_second_derivative("mse_loss")
