"""Activation layers: they have no parameters."""

from __future__ import annotations

from typing import Any, Literal

from cnnlayers import functional as F
from cnnlayers.functional._common import Array
from cnnlayers.specs.arguments import flag, real

from .base import Layer


class LeakyReLU(Layer):
    """x where x > 0, else negative_slope * x. `inplace` is PyTorch's and changes nothing.

    Shapes: any; y has x's. Source: torch.nn.LeakyReLU.
    """

    _op_backward = staticmethod(F.leaky_relu_backward)

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope, self.inplace = real(negative_slope, "negative_slope"), flag(inplace, "inplace")

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.leaky_relu_forward(x, self.negative_slope)


class GELU(Layer):
    """x times the standard normal distribution function of x; `approximate="tanh"` is the usual approximation.

    Shapes: any; y has x's. Source: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415; torch.nn.GELU.
    """

    _op_backward = staticmethod(F.gelu_backward)

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate: Literal["none", "tanh"] = approximate

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.gelu_forward(x, self.approximate)


class Sigmoid(Layer):
    """1 / (1 + exp(-x)). Shapes: any; y has x's. Source: torch.nn.Sigmoid."""

    _op_backward = staticmethod(F.sigmoid_backward)

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.sigmoid_forward(x)


class Tanh(Layer):
    """The hyperbolic tangent. Shapes: any; y has x's. Source: torch.nn.Tanh."""

    _op_backward = staticmethod(F.tanh_backward)

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.tanh_forward(x)
