"""Gradients by a graph: Tensors over plain arrays, every op of `cnnlayers.functional` on them, and `backward`."""

from . import functional
from .graph import no_grad
from .tensor import Tensor, concat

__all__ = ["Tensor", "concat", "functional", "no_grad"]
