"""float16 to float32 and back, with NumPy's answers: NumPy's own conversion takes each number by itself.

A float16 shifted to a float32's place has an exponent too small by 112: a product puts that right, in numbers below the
normal ones too. Back, a sum with 1/2 rounds what falls below them; all others are rounded to even as integers.
Bits and numbers of one block are passed over in turn, because loops over both at once are not vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compile import kernel

Array = Any
U = np.uint64
W = np.uint32
BLOCK = U(2048)


@kernel()
def widen(halves: Array, bits: Array, start: int, stop: int) -> None:
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
def narrow(bits: Array, halves: Array, start: int, stop: int) -> None:
    """The other way."""
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
