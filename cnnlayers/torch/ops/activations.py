"""leaky_relu, gelu, sigmoid, tanh, softmax and the mean squared error."""

from __future__ import annotations

from typing import Any

import torch

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.functional._common import CallPlan, Context

from .batching import LOOP, Rule
from .library import Op, differentiable_by_x, second_output

ONE = Rule({0: 0}, stacked=True)
TWO = Rule({0: 0, 1: 0}, stacked=True)


def _context(op: str, like: Any, spec: Any = None, **saved: Any) -> Context:
    return Context(CallPlan(op, backends.of(like), like.dtype, tuple(like.shape), spec), saved)


def _same(x: torch.Tensor, *_: Any) -> torch.Tensor:
    """The fake result of an op that keeps shape and dtype."""
    return x.new_empty(x.shape)


# ----------------------------------------------------------------------------------------------------------- leaky_relu
def _leaky_relu_forward(x: Any, negative_slope: float) -> Any:
    b = backends.of(x)
    return F.leaky_relu(x, negative_slope), b.array(x > b.zeros((), x.dtype), b.xp.bool)  # vmap stacks them


def _leaky_relu_backward(dy: Any, positive: Any, negative_slope: float) -> Any:
    return F.leaky_relu_backward(dy, _context("leaky_relu", dy, negative_slope, positive=positive))


leaky_relu = Op("leaky_relu(Tensor x, float negative_slope=0.01) -> Tensor", F.leaky_relu, _same, ONE)
leaky_relu_forward = Op(
    "leaky_relu_forward(Tensor x, float negative_slope=0.01) -> (Tensor, Tensor)",
    _leaky_relu_forward,
    lambda x, slope: (x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.bool)),
    ONE,
)
leaky_relu_backward = Op(
    "leaky_relu_backward(Tensor dy, Tensor positive, float negative_slope) -> Tensor", _leaky_relu_backward, _same, TWO
)
differentiable_by_x(leaky_relu, leaky_relu_backward, second_output, forward=leaky_relu_forward)


# ----------------------------------------------------------------------------------------------------------------- gelu
def _gelu_backward(dy: Any, x: Any, approximate: str) -> Any:
    return F.gelu_backward(dy, _context("gelu", x, approximate, x=x))


gelu = Op('gelu(Tensor x, str approximate="none") -> Tensor', F.gelu, _same, ONE)
gelu_backward = Op("gelu_backward(Tensor dy, Tensor x, str approximate) -> Tensor", _gelu_backward, _same, TWO)
differentiable_by_x(gelu, gelu_backward)


# -------------------------------------------------------------------------------------------- sigmoid, tanh and softmax
def _by_result(name: str, option: str = "", rules: tuple[Rule, Rule] = (ONE, TWO)) -> Op:
    """Register an op of x, and one option, whose gradient needs y; with the gradient."""

    def backward(dy: Any, y: Any, *options: Any) -> Any:
        return getattr(F, f"{name}_backward")(dy, _context(name, y, *options, y=y))

    op = Op(f"{name}(Tensor x{option}) -> Tensor", getattr(F, name), _same, rules[0])
    gradient = Op(f"{name}_backward(Tensor dy, Tensor y{option}) -> Tensor", backward, _same, rules[1])
    differentiable_by_x(op, gradient, lambda inputs, output: (output,))
    return op


sigmoid, tanh = _by_result("sigmoid"), _by_result("tanh")
softmax = _by_result("softmax", ", int axis=1", (LOOP, LOOP))


# ------------------------------------------------------------------------------------------------------------- mse_loss
def _mse_loss_backward(dy: Any, x: Any, target: Any) -> Any:
    saved = {"x": x, "target": target}
    return F.mse_loss_backward(dy, Context(CallPlan("mse_loss", backends.of(x), x.dtype, ()), saved))


def _save_mse_loss(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


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
mse_loss.differentiable(_save_mse_loss, _derive_mse_loss)
mse_loss_backward.last("mse_loss")
