"""Dtypes of sums, casts, choices between arrays: what the portable code of every op is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend

Array = Any  # an array of NumPy, CuPy or another array-API library
SHORT_SUM = 32  # the most values that are added up in their own dtype: more lose digits
LONG_SUM = 1024  # the same limit where float64 sums are slow and longer sums are rare


def writes_in_place(b: Backend) -> bool:
    """Whether arrays can be written by arrays of indices, and complex ones by parts. The array API standard has neither
    way."""
    return b.name in ("numpy", "cupy")


def inverse_order(order: Sequence[int]) -> tuple[int, ...]:
    """The permutation of axes that undoes one."""
    return tuple(order.index(axis) for axis in range(len(order)))


def itemsize(b: Backend, array: Array) -> int:
    """Bytes of one element."""
    return bytes_of_dtype(backends.dtype_name(b, array))


@functools.cache
def bytes_of_dtype(name: str) -> int:
    """Bytes of an element of the dtype of this name."""
    return 1 if name == "bool" else int("".join(c for c in name if c.isdigit())) // 8


def cast(b: Backend, array: Array, dtype: Any) -> Array:
    """`array` in `dtype`, itself where it has that already."""
    return array if array.dtype == dtype else b.xp.astype(array, dtype)


def select(b: Backend, condition: Array, x: Array, y: Array) -> Array:
    """`x` where the condition holds, else `y`, bit for bit; both have one dtype."""
    if b.name == "cupy" and backends.dtype_name(b, x) == "bfloat16":  # CuPy 14's where would give float32
        bits = b.xp.uint16
        return b.xp.where(condition, x.view(bits), y.view(bits)).view(x.dtype)
    if b.name == "numpy" and condition.ndim:  # NumPy's where is slow: it branches for each element
        bits = f"u{x.dtype.itemsize}"
        chosen, other = x.view(bits), y.view(bits)
        ones = b.xp.negative(condition.view("u1").astype(bits))
        return (other ^ ((chosen ^ other) & ones)).view(x.dtype)
    return b.xp.where(condition, x, y)


def masked(b: Backend, array: Array, mask: Array) -> Array:
    """The array where the mask holds, else 0, whatever was there."""
    if b.name != "numpy" or not array.ndim:
        return select(b, mask, array, b.zeros((), array.dtype))
    return (array.view(f"u{array.dtype.itemsize}") * mask).view(array.dtype)


def is_float(b: Backend, dtype: Any) -> bool:
    """Whether a dtype is one of the floating ones the library computes in."""
    return backends.name_of_dtype(b, dtype) in backends.FLOATS


def is_complex(b: Backend, dtype: Any) -> bool:
    """Whether a dtype is one of the complex ones, which the linear ops take."""
    return backends.name_of_dtype(b, dtype) in backends.COMPLEX


def accumulator_dtype(b: Backend, dtype: Any) -> Any:
    """The dtype of sums of arrays of `dtype`: float64 for float64, float32 for every other floating dtype."""
    return b.xp.float64 if dtype == b.xp.float64 else b.xp.float32


def sum_dtype(b: Backend, number: int, dtype: Any) -> Any:
    """The dtype for a sum of `number` values of a floating dtype, added one after another."""
    return dtype if number <= SHORT_SUM else b.xp.float64


def sum_widely(b: Backend, dy: Array, number: int) -> Array:
    """A gradient in the dtype for sums of up to `number` of its values at one cell: float64 (or complex128) for more
    than LONG_SUM values. Portable code and kernels use the same dtype."""
    if number <= LONG_SUM or not (is_float(b, dy.dtype) or is_complex(b, dy.dtype)):
        return dy
    return cast(b, dy, b.xp.float64 if is_float(b, dy.dtype) else b.xp.complex128)


def in_accumulator_dtype(portable: Callable[..., Array]) -> Callable[..., Array]:
    """A portable function of `(b, spec, x, ...)` that computes in x's accumulation dtype and gives x's dtype back."""

    @functools.wraps(portable)
    def run(b: Backend, spec: Any, x: Array, *rest: Array) -> Array:
        wide = cast(b, x, accumulator_dtype(b, x.dtype)) if is_float(b, x.dtype) else x
        return cast(b, portable(b, spec, wide, *rest), x.dtype)

    return run
