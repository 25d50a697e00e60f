"""relu and its backward on bits, called as the portable code is. One kernel serves all floating dtypes of a size.

Read as an unsigned integer, a float above 0 (or a NaN) lies from 1 to below the sign bit; a negative NaN lies above
minus infinity. All others are not above 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend, dtype_name

from .compile import chunks, flat
from .jit import kernel

Array = Any
U = np.uintp
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None: they take every dtype that the op does."""
    return None


# ----------------------------------------------------------------------------------------------------------------- ops
def relu(b: Backend, spec: None, x: Array) -> Array:
    """y."""
    return _relu(x, False, dtype_name(b, x))[0]


def relu_forward(b: Backend, spec: None, x: Array) -> tuple[Array, Array]:
    """y, and where x was not <= 0."""
    return _relu(x, True, dtype_name(b, x))


def relu_backward(b: Backend, spec: None, dy: Array, passes: Array) -> Array:
    """dx."""
    return _masked(dy, passes)


# ------------------------------------------------------------------------------------------------------------ launches
def _bits(array: Array) -> Array:
    return flat(np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}"))


def _relu(x: Array, saves: bool, dtype: str) -> tuple[Array, Array]:
    y, passes = backends.result(x.shape, x.dtype), np.empty(x.shape if saves else (0,), bool)
    source, result, mask = _bits(x), _bits(y), passes.reshape(-1)
    sign = 1 << (8 * x.dtype.itemsize - 1)
    above, below = source.dtype.type(sign - 1), source.dtype.type(sign + INFINITY[dtype])

    def run(start: int, stop: int) -> None:
        if saves:
            passed_and_kept(source, result, mask, above, below, start, stop)
        else:
            passed(source, result, above, below, start, stop)

    chunks(x.size, 2 * x.nbytes + passes.nbytes, run)
    return y, passes


def _masked(dy: Array, passes: Array) -> Array:
    dx = backends.result(dy.shape, dy.dtype)
    source, mask, result = _bits(dy), flat(passes.view(np.uint8)), _bits(dx)
    chunks(dy.size, 2 * dy.nbytes + passes.nbytes, lambda start, stop: masked(source, mask, result, start, stop))
    return dx


# ------------------------------------------------------------------------------------------------------------- kernels
@kernel()
def passed(x: Array, y: Array, above: int, below: int, start: int, stop: int) -> None:
    """y = x where x is one of the numbers from 1 to `above`, or more than `below`; else 0."""
    for i in range(U(start), U(stop)):
        bits = x[i]
        y[i] = bits if bits <= above or bits > below else y.dtype.type(0)  # 0 gives 0 either way


@kernel()
def passed_and_kept(
    x: Array, y: Array, passes: Array, above: int, below: int, start: int, stop: int
) -> None:  # fmt: skip
    """The same, and which numbers these are."""
    for i in range(U(start), U(stop)):
        bits = x[i]
        bits = bits if bits <= above or bits > below else y.dtype.type(0)
        y[i] = bits
        passes[i] = bits != 0


@kernel()
def masked(dy: Array, passes: Array, dx: Array, start: int, stop: int) -> None:
    """dx = dy where `passes` is 1, and 0 where it is 0."""
    for i in range(U(start), U(stop)):
        dx[i] = dy[i] if passes[i] else dx.dtype.type(0)
