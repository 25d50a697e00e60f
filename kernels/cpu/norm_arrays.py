"""What the launchers of all CPU norms share: arrays in the dtype they are computed in, and parameters.

float16 becomes float32 and back by loops of our own, with NumPy's answers: NumPy takes each number by itself. A float16
shifted to a float32's place has an exponent too small by 112: a product puts that right, in numbers below the normal
ones too. Back, a sum with 1/2 rounds what falls below them; all others are rounded to even as integers. Bits and
numbers of one block are passed over in turn, because loops over both at once are not vectorised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends

from .compile import chunks, flat
from .jit import kernel

Array = Any
U = np.uint64
W = np.uint32
BLOCK = U(2048)


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel of this family serves this call, or None."""
    return None if spec.comm is None else "the sums go over several ranks"


def accumulator(dtype: Any) -> Any:
    """The dtype that arrays of a dtype are computed in."""
    return np.float64 if dtype == np.float64 else np.float32


def converted(array: Array, dtype: Any) -> Array:
    """The array, flat in C order, in `dtype`: without a copy where it is so already, else chunk by chunk."""
    if array.dtype == dtype:
        return flat(array)
    source, result = np.ascontiguousarray(array).reshape(-1), backends.result((array.size,), dtype)

    def run(start: int, stop: int) -> None:
        if source.dtype == np.float16 and result.dtype == np.float32:
            _widen(flat(source.view(np.uint16)), result.view(np.uint32), start, stop)
        elif source.dtype == np.float32 and result.dtype == np.float16:
            _narrow(flat(source.view(np.uint32)), result.view(np.uint16), start, stop)
        else:
            result[start:stop] = source[start:stop]

    chunks(array.size, array.size * (result.itemsize + source.itemsize), run)
    return result


def parameter(array: Array | None, neutral: float, shape: tuple[int, ...], dtype: Any) -> Array:
    """A parameter of this dtype, flat in C order; if it was not given, one that does nothing."""
    if array is None:
        return np.full(math.prod(shape), neutral, dtype)
    return flat(np.asarray(array, dtype))


def gradient(sums: Array, shape: tuple[int, ...], dtype: Any) -> Array | None:
    """A parameter's gradient from its sums; None for a parameter that was not given."""
    return None if dtype is None else sums.reshape(shape).astype(dtype)


def row_shape(rows: Any) -> tuple[int, ...]:
    """The shape of a number of each row, of the view's rank."""
    return tuple(1 if a in rows.axes else length for a, length in enumerate(rows.view))


# ------------------------------------------------------------------------------------------------ float16 and float32
@kernel()
def _widen(halves: Array, bits: Array, start: int, stop: int) -> None:
    """`bits`, those of float32 numbers, from those of float16 ones."""
    numbers, last = bits.view(np.float32), U(stop)
    for first in range(U(start), last, BLOCK):
        end = min(first + BLOCK, last)
        for i in range(first, end):
            bits[i] = W(halves[i] & W(0x7FFF)) << W(13)
        for i in range(first, end):
            numbers[i] *= np.float32(2.0**112)
        for i in range(first, end):
            infinite = W(0x7F800000) if (halves[i] & W(0x7C00)) == W(0x7C00) else W(0)
            bits[i] = bits[i] | infinite | (W(halves[i] & W(0x8000)) << W(16))


@kernel()
def _narrow(bits: Array, halves: Array, start: int, stop: int) -> None:
    """The bits of float16 numbers, `halves`, from those of float32 ones."""
    numbers, last = bits.view(np.float32), U(stop)
    raised = np.empty(BLOCK, np.float32)
    small = raised.view(np.uint32)
    for first in range(U(start), last, BLOCK):
        end = min(first + BLOCK, last)
        for i in range(first, end):
            raised[i - first] = abs(numbers[i]) + np.float32(0.5)
        for i in range(first, end):
            u = W(bits[i] & W(0x7FFFFFFF))
            normal = W(W(u - W(0x38000000) + W(0xFFF) + ((u >> W(13)) & W(1))) >> W(13))
            large = W(0x7E00) if u > W(0x7F800000) else W(0x7C00)
            below = W(small[i - first] - W(0x3F000000))
            h = below if u < W(0x38800000) else (large if u >= W(0x47800000) else normal)
            halves[i] = h | (W(bits[i] >> W(16)) & W(0x8000))
