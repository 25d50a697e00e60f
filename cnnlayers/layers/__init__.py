"""Layers: parameters, gradients and running statistics around `cnnlayers.functional`'s ops."""

from .activations import GELU, LeakyReLU, Sigmoid, Softmax, Tanh
from .adaptive_pool import AdaptiveAvgPool, AdaptiveMaxPool, GlobalAvgPool, GlobalMaxPool
from .base import Layer
from .containers import Residual, Sequential
from .conv import Conv, ConvTranspose
from .dense import Dropout, Flatten, Linear, ReLU
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LocalResponseNorm, RMSNorm
from .pad import ConstantPad, EdgePad, ReflectPad, SymmetricPad, WrapPad
from .pool import AvgPool, LpPool, MaxPool, MaxUnpool, SumPool

__all__ = ["AvgPool", "LpPool", "MaxPool", "MaxUnpool", "SumPool"]
__all__ += ["AdaptiveAvgPool", "AdaptiveMaxPool", "GlobalAvgPool", "GlobalMaxPool"]
__all__ += ["ConstantPad", "EdgePad", "ReflectPad", "SymmetricPad", "WrapPad"]
__all__ += ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "LocalResponseNorm", "RMSNorm"]
__all__ += ["Conv", "ConvTranspose", "Dropout", "Flatten", "Linear", "ReLU"]
__all__ += ["GELU", "LeakyReLU", "Sigmoid", "Softmax", "Tanh"]
__all__ += ["Layer", "Residual", "Sequential"]
