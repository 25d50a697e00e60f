"""relu, dropout and the softmax cross-entropy loss."""

from __future__ import annotations

from typing import Any

import torch

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.functional._common import CallPlan, Context

from .batching import LOOP, Rule
from .library import Op, differentiable_by_x, second_output


# ---------------------------------------------------------------------------------------------------------------- relu
def _relu_forward(x: Any) -> Any:
    y = F.relu(x)
    b = backends.of(y)
    return y, b.array(y != b.zeros((), y.dtype), b.xp.bool)


def _relu_backward(dy: Any, passes: Any) -> Any:
    return F.relu_backward(
        dy, Context(CallPlan("relu", backends.of(dy), dy.dtype, tuple(dy.shape)), {"passes": passes})
    )


ANY = Rule({0: 0}, stacked=True)
BOTH = Rule({0: 0, 1: 0}, stacked=True)
relu = Op("relu(Tensor x) -> Tensor", F.relu, lambda x: x.new_empty(x.shape), ANY)
relu_forward = Op(
    "relu_forward(Tensor x) -> (Tensor, Tensor)",
    _relu_forward,
    lambda x: (x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.bool)),
    ANY,
)
relu_backward = Op(
    "relu_backward(Tensor dy, Tensor passes) -> Tensor", _relu_backward, lambda dy, passes: dy.new_empty(dy.shape), BOTH
)
differentiable_by_x(relu, relu_backward, second_output, forward=relu_forward)


# ------------------------------------------------------------------------------------------------------------- dropout
# The mask is drawn outside, by PyTorch's generator or by `dropout_mask` from a seed.
def _dropout(x: Any, mask: Any, p: float) -> Any:
    """Dropout is its own adjoint: y is to x what dx is to dy."""
    return F.dropout_backward(
        x, Context(CallPlan("dropout", backends.of(x), x.dtype, tuple(x.shape), p), {"mask": mask})
    )


def _dropout_mask(x: Any, p: float, seed: int) -> Any:
    b = backends.of(x)
    return b.array(backends.uniform(b, tuple(x.shape), seed) >= p, b.xp.bool)


dropout = Op("dropout(Tensor x, Tensor mask, float p) -> Tensor", _dropout, lambda x, *_: x.new_empty(x.shape), BOTH)
dropout_backward = Op(
    "dropout_backward(Tensor dy, Tensor mask, float p) -> Tensor", _dropout, lambda dy, *_: dy.new_empty(dy.shape), BOTH
)
dropout_mask = Op(
    "dropout_mask(Tensor x, float p, int seed) -> Tensor",
    _dropout_mask,
    lambda x, p, seed: x.new_empty(x.shape, dtype=torch.bool),
    LOOP,
)
differentiable_by_x(dropout, dropout_backward, lambda inputs, y: inputs[1:2], lambda inputs: inputs[2:])


# ------------------------------------------------------------------------------------------------ softmax_cross_entropy
def _loss_forward(x: Any, labels: Any) -> Any:
    loss, context = F.softmax_cross_entropy_forward(x, labels)
    return loss, context.arrays["top"], context.arrays["rest"]


def _loss_backward(dy: Any, x: Any, labels: Any, top: Any, rest: Any) -> Any:
    b = backends.of(x)
    saved = {"x": x, "labels": b.xp.asarray(labels, dtype=b.xp.int64), "top": top, "rest": rest}
    return F.softmax_cross_entropy_backward(dy, Context(CallPlan("softmax_cross_entropy", b, x.dtype, ()), saved))


def _fake_loss_forward(x: torch.Tensor, labels: torch.Tensor) -> Any:
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise ValueError(f"x must be (N, K) and labels (N,), got shapes {tuple(x.shape)} and {tuple(labels.shape)}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(()), *(x.new_empty((x.shape[0], 1), dtype=wide) for _ in range(2))


softmax_cross_entropy = Op(
    "softmax_cross_entropy(Tensor x, Tensor labels) -> Tensor",
    F.softmax_cross_entropy,
    lambda x, labels: _fake_loss_forward(x, labels)[0],
    LOOP,
)
softmax_cross_entropy_forward = Op(
    "softmax_cross_entropy_forward(Tensor x, Tensor labels) -> (Tensor, Tensor, Tensor)",
    _loss_forward,
    _fake_loss_forward,
    LOOP,
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
