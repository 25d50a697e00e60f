"""Linear layers, and those that look at each value alone or only rearrange them."""

from __future__ import annotations

import math
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.functional._common import Array, Context, Plan, check_backward, check_numeric
from cnnlayers.specs.arguments import flag, integer, real

from .base import Layer, generator, uniform


class Linear(Layer):
    """x @ weight.T + bias on the last axis; the weight is (out, in). rng: None, a seed or a NumPy Generator."""

    _op_backward = staticmethod(F.linear_backward)
    _accepts_needs_dx = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rng: Any = None) -> None:
        super().__init__()
        self.in_features = integer(in_features, "in_features", 0)
        self.out_features, self.bias = integer(out_features, "out_features", 0), flag(bias, "bias")
        source = generator(rng)
        self._params["weight"] = uniform(source, (self.out_features, self.in_features), self.in_features)
        if self.bias:
            self._params["bias"] = uniform(source, (self.out_features,), self.in_features)

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.linear_forward(x, self._params["weight"], self._params.get("bias"))


class ReLU(Layer):
    """max(x, 0). `inplace` is PyTorch's and changes nothing: an input is never written to."""

    _op_backward = staticmethod(F.relu_backward)

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = flag(inplace, "inplace")

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.relu_forward(x)


class Flatten(Layer):
    """Joins the axes from `start_dim` to `end_dim`, both included, into one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = integer(start_dim, "start_dim"), integer(end_dim, "end_dim")

    def _forward(self, x: Array) -> tuple[Any, Any]:
        b = backends.of(x)
        shape = tuple(check_numeric(b, x, "x").shape)
        start, end = self._axis(self.start_dim, "start_dim", shape), self._axis(self.end_dim, "end_dim", shape)
        if start > end:
            raise ValueError(f"start_dim {self.start_dim} lies behind end_dim {self.end_dim} in an x of shape {shape}")
        joined = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
        return b.xp.reshape(x, joined), Context(Plan("flatten", b, x.dtype, joined, shape))

    @staticmethod
    def _axis(dim: int, name: str, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= dim < len(shape):
            raise ValueError(f"{name} must be an axis of x, whose shape is {shape}, got {dim}")
        return dim % len(shape)

    def _backward(self, dy: Array, ctx: Any) -> Array:
        b, dy = check_backward("flatten", dy, ctx, exact=True)
        return b.xp.reshape(dy, ctx.spec)


class Dropout(Layer):
    """In training sets each value to 0 with probability p and divides the others by 1 - p; else the identity.

    `inplace` is PyTorch's and changes nothing. rng: None, a seed or a NumPy Generator; each forward draws a new mask.
    """

    _op_backward = staticmethod(F.dropout_backward)

    def __init__(self, p: float = 0.5, inplace: bool = False, *, rng: Any = None) -> None:
        super().__init__()
        self.p, self.inplace = real(p, "p"), flag(inplace, "inplace")
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be a probability, from 0 to 1, got {p!r}")
        self.rng = generator(rng)

    def _forward(self, x: Array) -> tuple[Any, Any]:
        seed = int(self.rng.integers(numpy.iinfo(numpy.int32).max)) if self.training else None
        return F.dropout_forward(x, self.p, training=self.training, rng=seed)
