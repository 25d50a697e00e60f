"""Activations on vectors: GELU, sigmoid and tanh, and what all activations share. Arguments are the portable code's.
ReLU and leaky ReLU are in rectifiers.py.

Half types are computed in float32 and rounded once; vector_math.py states the accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from .jit import kernel
from .parallel import chunked, prepared, to_lanes
from .past_caches import STREAM_BYTES
from .vector_math import LARGEST_DEVIATION, clipped, normal_cdf, normal_density, sigmoid, tanh
from .vectors import (
    LANES,
    add,
    broadcast,
    fence,
    fma,
    less,
    load,
    load_first,
    mul,
    select,
    store,
    store_first,
    stream,
    sub,
)

Array = Any
Vector = Any
U = np.uintp
BLOCK = 4096  # elements; chunks begin at a multiple of it, so that their bits are whole bytes
TANH_SCALE, TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU's tanh form
DENSITY = 1 / math.sqrt(2 * math.pi)
LARGEST_TANH = 1e4  # GELU's tanh form is x or 0 beyond it


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return None if all(a.dtype.isnative for a in arrays) else "an array of foreign byte order"


# --------------------------------------------------------------------------------------------------- loads and stores
@kernel()
def read(x: Array, i: int, stop: int) -> Vector:
    """The vector from element i on; the lanes from `stop` on are 0."""
    return load(x, i) if stop - i >= LANES else load_first(x, i, stop - i)


@kernel()
def write(y: Array, i: int, value: Vector, stop: int) -> None:
    """Store a vector from element i on, without the lanes from `stop` on."""
    if stop - i >= LANES:
        store(y, i, value)
    else:
        store_first(y, i, value, stop - i)


@kernel()
def whole_stop(start: int, stop: int) -> int:
    """Where the last whole vector ends."""
    return stop - (stop - start) % LANES


# ------------------------------------------------------------------------------------------- GELU, sigmoid and tanh
@kernel()
def _clipped(x: Array, value: Vector, limit: float) -> Vector:
    """The value in [-limit, limit]; a NaN stays a NaN."""
    return clipped(value, broadcast(x, -limit), broadcast(x, limit))


@kernel()
def _not_below(x: Array, value: Vector, limit: float) -> Vector:
    """The value, or -limit where it is lower; a NaN stays a NaN."""
    low = broadcast(x, -limit)
    return select(less(value, low), low, value)


@kernel()
def _gelu(x: Array, value: Vector) -> Vector:
    """value * P(X <= value): an infinite value times 1, or a large negative one times 0."""
    inside = _clipped(x, value, LARGEST_DEVIATION)
    return mul(_not_below(x, value, LARGEST_DEVIATION), normal_cdf(inside, normal_density(inside)))


@kernel()
def _gelu_slope(x: Array, value: Vector) -> Vector:
    inside = _clipped(x, value, LARGEST_DEVIATION)
    density = normal_density(inside)
    return fma(mul(inside, broadcast(x, DENSITY)), density, normal_cdf(inside, density))


@kernel()
def _twice_tanh_argument(x: Array, value: Vector) -> Vector:
    """(1 + tanh(u)) / 2 is sigmoid(2 u)."""
    cubic = mul(mul(value, value), broadcast(x, 2 * TANH_SCALE * TANH_CUBIC))
    return mul(value, add(cubic, broadcast(x, 2 * TANH_SCALE)))


@kernel()
def _gelu_tanh(x: Array, value: Vector) -> Vector:
    inside = _clipped(x, value, LARGEST_TANH)
    return mul(_not_below(x, value, LARGEST_TANH), sigmoid(_twice_tanh_argument(x, inside)))


@kernel()
def _gelu_tanh_slope(x: Array, value: Vector) -> Vector:
    """s + x * s * (1 - s) * (2 u)' with s = sigmoid(2 u), and 1 - s as sigmoid(-2 u)."""
    inside, zero = _clipped(x, value, LARGEST_TANH), broadcast(x, 0.0)
    u = _twice_tanh_argument(x, inside)
    s, rest = sigmoid(u), sigmoid(sub(zero, u))
    square = mul(mul(inside, inside), broadcast(x, 6 * TANH_SCALE * TANH_CUBIC))
    inner = mul(inside, add(square, broadcast(x, 2 * TANH_SCALE)))
    return fma(mul(s, rest), inner, s)


@kernel()
def _sigmoid(x: Array, value: Vector) -> Vector:
    return sigmoid(value)


@kernel()
def _sigmoid_slope(y: Array, value: Vector) -> Vector:
    """From y."""
    return mul(value, sub(broadcast(y, 1.0), value))


@kernel()
def _tanh(x: Array, value: Vector) -> Vector:
    return tanh(value)


@kernel()
def _tanh_slope(y: Array, value: Vector) -> Vector:
    """From y."""
    one = broadcast(y, 1.0)
    return mul(sub(one, value), add(one, value))


def _make_map(function: Any) -> Any:
    @kernel()
    def mapped(x: Array, y: Array, past_caches: bool, start: int, stop: int) -> None:
        """y = function(x)."""
        whole = whole_stop(start, stop)
        for i in range(start, whole, LANES):
            value = function(x, load(x, i))
            if past_caches:
                stream(y, i, value)
            else:
                store(y, i, value)
        if past_caches:
            fence()
        if whole < stop:
            store_first(y, whole, function(x, load_first(x, whole, stop - whole)), stop - whole)

    return mapped


def _make_gradient(slope: Any) -> Any:
    @kernel()
    def gradient(dy: Array, saved: Array, dx: Array, past_caches: bool, start: int, stop: int) -> None:
        """dx = dy * slope(saved)."""
        whole = whole_stop(start, stop)
        for i in range(start, whole, LANES):
            value = mul(load(dy, i), slope(saved, load(saved, i)))
            if past_caches:
                stream(dx, i, value)
            else:
                store(dx, i, value)
        if past_caches:
            fence()
        if whole < stop:
            count = stop - whole
            last = mul(load_first(dy, whole, count), slope(saved, load_first(saved, whole, count)))
            store_first(dx, whole, last, count)

    return gradient


MAPS = {"gelu": _make_map(_gelu), "gelu tanh": _make_map(_gelu_tanh), "sigmoid": _make_map(_sigmoid),
        "tanh": _make_map(_tanh)}  # fmt: skip
GRADIENTS = {"gelu": _make_gradient(_gelu_slope), "gelu tanh": _make_gradient(_gelu_tanh_slope),
             "sigmoid": _make_gradient(_sigmoid_slope), "tanh": _make_gradient(_tanh_slope)}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ launches
def is_aligned(array: Array) -> bool:
    """Whether an array begins with a cache line, as results must that are stored past the caches."""
    return bool(array.ctypes.data % 64 == 0)


def in_blocks(arrays: tuple[Array, ...]) -> Callable[..., None]:
    """`chunked` for elements of arrays like these, in whole blocks."""
    size = arrays[0].size
    return chunked(-(-size // BLOCK), sum(a.nbytes for a in arrays), unit=BLOCK, end=size)


def _mapped(kernel_function: Any, arrays: tuple[Array, ...], *numbers: float) -> Callable[..., Array]:
    """A function of arrays like these: the result of a kernel, in the first one's shape and dtype."""
    first = arrays[0]
    new, large, run_in_blocks = (
        backends.new_result(first.shape, first.dtype),
        is_large(first),
        in_blocks((first, *arrays)),
    )

    def run(*arrays: Array) -> Array:
        result = new()
        past_caches = large and is_aligned(result)
        run_in_blocks(kernel_function, *map(to_lanes, arrays), to_lanes(result), *numbers, past_caches)
        return result

    return run


def is_large(result: Array) -> bool:
    """Whether a result of this size is stored past the caches."""
    return bool(result.nbytes >= STREAM_BYTES)


# ----------------------------------------------------------------------------------------------------------------- ops
@prepared
def gelu_forward(approximate: str, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _mapped(MAPS["gelu" if approximate == "none" else "gelu tanh"], (x,))


@prepared
def gelu_backward(approximate: str, dy: Array, x: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _mapped(GRADIENTS["gelu" if approximate == "none" else "gelu tanh"], (dy, x))


@prepared
def sigmoid_forward(spec: None, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _mapped(MAPS["sigmoid"], (x,))


@prepared
def sigmoid_backward(spec: None, dy: Array, y: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _mapped(GRADIENTS["sigmoid"], (dy, y))


@prepared
def tanh_forward(spec: None, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _mapped(MAPS["tanh"], (x,))


@prepared
def tanh_backward(spec: None, dy: Array, y: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _mapped(GRADIENTS["tanh"], (dy, y))
