"""Launchers of activations.cu: relu, leaky ReLU, GELU, sigmoid, tanh and dropout, called as the portable code is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import Launch, alignment, cached_plan, contiguous, cuda_type, grid_size, offset_types

Array = Any
BOOLS = "unsigned char"


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """None: the kernels serve every call."""
    return None


# --------------------------------------------------------------------------------------------------------------- plans
def _make(
    b: Backend, spec: Any, kernel: str, name: str, dtype: Any, size: int, aligned_to: int, *more: str | bool
) -> Launch:
    """The launch of a kernel for the op `name` and `size` elements; `more`: its template arguments after the type."""
    cells = aligned_to // int(dtype.itemsize) or 1
    offset, integer = offset_types(size)
    element = CUDA_TYPE[backends.name_of_dtype(b, dtype)]
    real = np.float64 if element == "double" else np.float32
    names = (name,) if kernel != "dropout" else ()
    before, behind = (more, ()) if kernel == "activation_backward" else ((), more)
    instance = instance_name(kernel, element, *names, *before, cells, *behind, offset)
    scalars: tuple[Any, ...] = (real(_parameter(name, spec)), integer(size))
    if kernel == "dropout":
        scalars = (np.float32(spec), *scalars)
    return Launch("activations", instance, grid_size(b, -(-size // cells)), scalars)


def _parameter(name: str, spec: Any) -> float:
    """Leaky ReLU's slope, or what dropout multiplies by: nothing is kept where p is 1. Others have no parameter."""
    if name == "Dropout":
        return 1 / (1 - spec) if spec < 1 else 0.0
    return float(spec) if name == "LeakyRelu" else 0.0


# ------------------------------------------------------------------------------------------------------------ launches
def _forward(b: Backend, spec: Any, name: str, x: Array, save: bool = False) -> tuple[Array, Array | None]:
    """y, and the bools of what passes, if `save`."""
    x = contiguous(b, x)
    y, passed = b.empty(x.shape, x.dtype), b.empty(x.shape, b.xp.bool) if save else None
    if x.size:
        cached_plan(_make, b, spec, "activation", name, x.dtype, x.size, alignment(x), save)(x, y, passed)
    return y, passed


def _backward(b: Backend, spec: Any, name: str, dy: Array, saved: Array) -> Array:
    dy, saved = contiguous(b, dy), contiguous(b, saved)
    dx = b.empty(dy.shape, dy.dtype)
    if dy.size:
        bools = saved.dtype == b.xp.bool
        aligned_to = min(alignment(dy), alignment(saved) * (dy.dtype.itemsize if bools else 1))
        kept = BOOLS if bools else cuda_type(b, saved)
        cached_plan(_make, b, spec, "activation_backward", name, dy.dtype, dy.size, aligned_to, kept)(dy, saved, dx)
    return dx


def relu(b: Backend, spec: None, x: Array) -> Array:
    """y."""
    return _forward(b, spec, "Relu", x)[0]


def relu_forward(b: Backend, spec: None, x: Array) -> tuple[Array, Array | None]:
    """y, and where it is not 0."""
    return _forward(b, spec, "Relu", x, save=True)


def relu_backward(b: Backend, spec: None, dy: Array, passes: Array) -> Array:
    """dx."""
    return _backward(b, spec, "Relu", dy, passes)


def leaky_relu_forward(b: Backend, slope: float, x: Array) -> tuple[Array, Array | None]:
    """y, and where x is positive."""
    return _forward(b, slope, "LeakyRelu", x, save=True)


def leaky_relu_backward(b: Backend, slope: float, dy: Array, positive: Array) -> Array:
    """dx."""
    return _backward(b, slope, "LeakyRelu", dy, positive)


def _smooth(name: str | dict[str, str]) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """The launchers of an op whose backward reads x or y. A dictionary names the structs by the spec."""

    def struct(spec: Any) -> str:
        return name[spec] if isinstance(name, dict) else name

    def forward(b: Backend, spec: Any, x: Array) -> Array:
        return _forward(b, spec, struct(spec), x)[0]

    def backward(b: Backend, spec: Any, dy: Array, saved: Array) -> Array:
        return _backward(b, spec, struct(spec), dy, saved)

    return forward, backward


gelu_forward, gelu_backward = _smooth({"none": "Gelu", "tanh": "GeluTanh"})
sigmoid_forward, sigmoid_backward = _smooth("Sigmoid")
tanh_forward, tanh_backward = _smooth("Tanh")


def dropout_forward(b: Backend, p: float, x: Array, key: Any) -> tuple[Array, Array]:
    """y and the mask of what is kept. `key`: Philox's, a number, or an array on the device of eight bytes."""
    x = contiguous(b, x)
    y, mask = b.empty(x.shape, x.dtype), b.empty(x.shape, b.xp.bool)
    if x.size:
        drawn, seed = (None, key) if isinstance(key, int) else (key, 0)
        launch = cached_plan(_make, b, p, "dropout", "Dropout", x.dtype, x.size, alignment(x))
        launch(x, y, mask, drawn, np.uint64(seed))
    return y, mask


def dropout_backward(b: Backend, p: float, dy: Array, mask: Array) -> Array:
    """dx."""
    return _backward(b, p, "Dropout", dy, mask)
