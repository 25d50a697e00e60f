"""relu and its backward, computed on the bits of numbers. Arguments are the portable code's.

A kernel serves all floating dtypes of a size. As unsigned integers, positive floats and positive NaNs are 1 to the sign
bit - 1, and negative NaNs are larger than minus infinity. All other numbers are not above 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend, dtype_name

from .jit import kernel
from .parallel import flat, parallel_chunks

Array = Any
U = np.uintp
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


def refuses(op: str, spec: None, *arrays: Array) -> str | None:
    """Why no kernel here serves this call: never, they take every dtype that the op takes."""
    return None


# ----------------------------------------------------------------------------------------------------------------- ops
def relu(b: Backend, spec: None, x: Array) -> Array:
    """y."""
    return _relu(x, False, dtype_name(b, x))[0]


def relu_forward(b: Backend, spec: None, x: Array) -> tuple[Array, Array]:
    """y, and a mask: where x was not <= 0."""
    return _relu(x, True, dtype_name(b, x))


def relu_backward(b: Backend, spec: None, dy: Array, passes: Array) -> Array:
    """dx."""
    return _mask_gradient(dy, passes)


# ------------------------------------------------------------------------------------------------------------ launches
def _bits(array: Array) -> Array:
    """The array's elements, flat, as unsigned integers."""
    return flat(np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}"))


def _relu(x: Array, with_mask: bool, dtype: str) -> tuple[Array, Array]:
    y, passes = backends.result(x.shape, x.dtype), np.empty(x.shape if with_mask else (0,), bool)
    source, result, mask = _bits(x), _bits(y), passes.reshape(-1)
    sign = 1 << (8 * x.dtype.itemsize - 1)
    largest_positive, negative_infinity = source.dtype.type(sign - 1), source.dtype.type(sign + INFINITY[dtype])

    def run(start: int, stop: int) -> None:
        if with_mask:
            relu_and_mask(source, result, mask, largest_positive, negative_infinity, start, stop)
        else:
            relu_only(source, result, largest_positive, negative_infinity, start, stop)

    parallel_chunks(x.size, 2 * x.nbytes + passes.nbytes, run)
    return y, passes


def _mask_gradient(dy: Array, passes: Array) -> Array:
    dx = backends.result(dy.shape, dy.dtype)
    source, mask, result = _bits(dy), flat(passes.view(np.uint8)), _bits(dx)
    parallel_chunks(
        dy.size, 2 * dy.nbytes + passes.nbytes, lambda start, stop: mask_gradient(source, mask, result, start, stop)
    )
    return dx


# ------------------------------------------------------------------------------------------------------------- kernels
@kernel()
def relu_only(x: Array, y: Array, largest_positive: int, negative_infinity: int, start: int, stop: int) -> None:
    """y = x if x is from 1 to `largest_positive`, or larger than `negative_infinity`; else 0."""
    for i in range(U(start), U(stop)):
        bits = x[i]
        y[i] = bits if bits <= largest_positive or bits > negative_infinity else y.dtype.type(0)  # 0 for bits 0 too


@kernel()
def relu_and_mask(
    x: Array, y: Array, passes: Array, largest_positive: int, negative_infinity: int, start: int, stop: int
) -> None:  # fmt: skip
    """The same, and a mask of these numbers."""
    for i in range(U(start), U(stop)):
        bits = x[i]
        bits = bits if bits <= largest_positive or bits > negative_infinity else y.dtype.type(0)
        y[i] = bits
        passes[i] = bits != 0


@kernel()
def mask_gradient(dy: Array, passes: Array, dx: Array, start: int, stop: int) -> None:
    """dx = dy where `passes` is 1, else 0."""
    for i in range(U(start), U(stop)):
        dx[i] = dy[i] if passes[i] else dx.dtype.type(0)
