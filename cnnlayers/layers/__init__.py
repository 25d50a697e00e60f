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

__all__ = [
    "GELU",
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
    "AvgPool",
    "BatchNorm",
    "ConstantPad",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "EdgePad",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LpPool",
    "MaxPool",
    "MaxUnpool",
    "RMSNorm",
    "ReLU",
    "ReflectPad",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SumPool",
    "SymmetricPad",
    "Tanh",
    "WrapPad",
]
