"""Gradients by a graph: Tensors over plain arrays, every op of `cnnlayers.functional` on them, and `backward`."""

from . import functional
from .graph import no_grad
from .layers import Parameter, parameters
from .tensor import Tensor, concat

__all__ = ["Parameter", "Tensor", "concat", "functional", "no_grad", "parameters"]
