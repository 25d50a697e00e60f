"""Arguments of the CPU norms: arrays in the dtype they are computed in, and parameters.

NumPy converts float16 one number at a time, so float16 is converted to float32 and back by kernels here, with NumPy's
results. Shifting a float16's bits to a float32's place gives an exponent that is too small by 112. A multiplication by
2**112 corrects it, for subnormal numbers too. In the other direction, adding 1/2 rounds the numbers that become
subnormal; all others are rounded to even in integer arithmetic. Loops over bits and loops over numbers alternate block
by block, because a loop over both is not vectorised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnlayers import backends

from .jit import kernel
from .parallel import flat, parallel_chunks

Array = Any
U = np.uint64
U32 = np.uint32
BLOCK_CELLS = U(2048)  # cells that the loops over bits and over numbers take in turn


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel of the norms serves this call, or None."""
    return None if spec.comm is None else "the sums go over several ranks"


def accumulator(dtype: Any) -> Any:
    """The dtype that arrays of a dtype are computed in: float64 for float64, else float32."""
    return np.float64 if dtype == np.float64 else np.float32


def converted(array: Array, dtype: Any) -> Array:
    """The array in `dtype`, flat in C order. Without a copy if it is so already; else converted in parallel."""
    if array.dtype == dtype:
        return flat(array)
    source, result = np.ascontiguousarray(array).reshape(-1), backends.result((array.size,), dtype)

    def run(start: int, stop: int) -> None:
        if source.dtype == np.float16 and result.dtype == np.float32:
            _float16_to_float32(flat(source.view(np.uint16)), result.view(np.uint32), start, stop)
        elif source.dtype == np.float32 and result.dtype == np.float16:
            _float32_to_float16(flat(source.view(np.uint32)), result.view(np.uint16), start, stop)
        else:
            result[start:stop] = source[start:stop]

    parallel_chunks(array.size, array.size * (result.itemsize + source.itemsize), run)
    return result


def parameter(array: Array | None, neutral: float, shape: tuple[int, ...], dtype: Any) -> Array:
    """A parameter in `dtype`, flat in C order. None becomes an array of `neutral` (1 for gamma, 0 for beta)."""
    if array is None:
        return np.full(math.prod(shape), neutral, dtype)
    return flat(np.asarray(array, dtype))


def gradient(sums: Array, shape: tuple[int, ...], dtype: Any) -> Array | None:
    """A parameter's gradient from its sums; None if there is no such parameter."""
    return None if dtype is None else sums.reshape(shape).astype(dtype)


def row_shape(rows: Any) -> tuple[int, ...]:
    """The shape of an array with one number for each row, with the rank of `rows.view`."""
    return tuple(1 if a in rows.axes else length for a, length in enumerate(rows.view))


# ------------------------------------------------------------------------------------------------ float16 and float32
@kernel()
def _float16_to_float32(halves: Array, bits: Array, start: int, stop: int) -> None:
    """Fill `bits`, the bits of float32 numbers, from `halves`, those of float16 numbers."""
    numbers, last = bits.view(np.float32), U(stop)
    for first in range(U(start), last, BLOCK_CELLS):
        end = min(first + BLOCK_CELLS, last)
        for i in range(first, end):
            bits[i] = U32(halves[i] & U32(0x7FFF)) << U32(13)
        for i in range(first, end):
            numbers[i] *= np.float32(2.0**112)
        for i in range(first, end):
            infinite = U32(0x7F800000) if (halves[i] & U32(0x7C00)) == U32(0x7C00) else U32(0)
            bits[i] = bits[i] | infinite | (U32(halves[i] & U32(0x8000)) << U32(16))


@kernel()
def _float32_to_float16(bits: Array, halves: Array, start: int, stop: int) -> None:
    """Fill `halves`, the bits of float16 numbers, from `bits`, those of float32 numbers."""
    numbers, last = bits.view(np.float32), U(stop)
    sums_with_half = np.empty(BLOCK_CELLS, np.float32)
    sum_bits = sums_with_half.view(np.uint32)
    for first in range(U(start), last, BLOCK_CELLS):
        end = min(first + BLOCK_CELLS, last)
        for i in range(first, end):
            sums_with_half[i - first] = abs(numbers[i]) + np.float32(0.5)
        for i in range(first, end):
            u = U32(bits[i] & U32(0x7FFFFFFF))
            normal = U32(U32(u - U32(0x38000000) + U32(0xFFF) + ((u >> U32(13)) & U32(1))) >> U32(13))
            overflowed = U32(0x7E00) if u > U32(0x7F800000) else U32(0x7C00)
            subnormal = U32(sum_bits[i - first] - U32(0x3F000000))
            h = subnormal if u < U32(0x38800000) else (overflowed if u >= U32(0x47800000) else normal)
            halves[i] = h | (U32(bits[i] >> U32(16)) & U32(0x8000))
