"""Random numbers. NumPy's arrays get them from NumPy's generators. CuPy's arrays get them from Philox, whose key is
the seed or is drawn from CuPy's generator.

Philox has no state to set up: a CuPy generator that is made for a call would first fill 250,000 states.
"""

from __future__ import annotations

import math
import operator
import os
from typing import Any

import numpy

from .selection import Backend


def check_rng(b: Backend, rng: Any) -> None:
    """TypeError unless `rng` is None, a seed or the backend's random Generator, ValueError for a negative seed."""
    random = b.xp.random if b.name == "cupy" else numpy.random
    if rng is None or isinstance(rng, random.Generator):
        return
    try:
        if isinstance(rng, bool):
            raise TypeError
        seed = operator.index(rng)
    except TypeError:
        library = "cupy" if b.name == "cupy" else "numpy"
        raise TypeError(
            f"rng must be None, an int or a {library}.random.Generator for an array of {b.name}, got"
            f" {type(rng).__module__}.{type(rng).__qualname__}"
        ) from None
    if seed < 0:
        raise ValueError(f"rng must be a seed of at least 0, got {rng!r}")


def uniform(b: Backend, shape: tuple[int, ...], rng: Any) -> Any:
    """float32 numbers, 0 <= u < 1. `rng`: a Generator, which moves on; a seed: the same numbers every time; or None."""
    if b.name == "cupy":
        return _philox(b, philox_key(b, rng), math.prod(shape)).reshape(shape)
    if not isinstance(rng, numpy.random.Generator):
        rng = numpy.random.default_rng(None if rng is None else operator.index(rng))
    return b.array(rng.random(shape, dtype=numpy.float32), b.xp.float32)


def philox_key(b: Backend, rng: Any) -> Any:
    """The key of a call's random numbers on CuPy: an int below 2**64, or eight bytes that a Generator draws on the
    device. Such an array is a key already."""
    if isinstance(rng, b.xp.ndarray):
        return rng
    if rng is None:
        return int.from_bytes(os.urandom(8), "little")
    if isinstance(rng, b.xp.random.Generator):
        return rng.random((1,), dtype=numpy.float64).view(b.xp.uint64)
    seed = operator.index(rng)
    return seed if seed < 2**64 else int(numpy.random.SeedSequence(seed).generate_state(1, numpy.uint64)[0])


def _philox(b: Backend, key: Any, count: int) -> Any:
    """The random numbers of kernels/cuda/activations.cu, as array code: Philox4x32-10. Number i is word i % 4 of block
    i // 4, and its upper 24 bits are used.

    J. K. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011,
    https://doi.org/10.1145/2063384.2063405.
    """
    word = b.xp.uint64
    low32, high = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)
    key = b.full((1,), key, word) if isinstance(key, int) else key
    blocks = b.array(b.arange(-(-count // 4)), word)
    zero = b.zeros(tuple(blocks.shape), word)
    words, keys = [blocks & low32, blocks >> high, zero, zero], [key & low32, key >> high]
    for _ in range(10):
        first, second = words[0] * numpy.uint64(0xD2511F53), words[2] * numpy.uint64(0xCD9E8D57)
        words = [
            (second >> high) ^ words[1] ^ keys[0],
            second & low32,
            (first >> high) ^ words[3] ^ keys[1],
            first & low32,
        ]
        keys = [(k + numpy.uint64(step)) & low32 for k, step in zip(keys, (0x9E3779B9, 0xBB67AE85), strict=True)]
    drawn = b.xp.stack(words, axis=1).reshape(-1)[:count] >> numpy.uint64(8)
    return drawn.astype(b.xp.float32) * numpy.float32(2**-24)
