"""Random numbers: CuPy's arrays are drawn by CuPy's generators, those of every other library by NumPy's."""

from __future__ import annotations

import operator
from typing import Any

import numpy

from .selection import Backend


def _random(b: Backend) -> Any:
    return b.xp.random if b.name == "cupy" else numpy.random


def check_rng(b: Backend, rng: Any) -> None:
    """TypeError unless `rng` is None, a seed or the backend's random Generator, ValueError for a negative seed."""
    if rng is None or isinstance(rng, _random(b).Generator):
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
    random = _random(b)
    if not isinstance(rng, random.Generator):
        rng = random.default_rng(None if rng is None else operator.index(rng))
    return b.array(rng.random(shape, dtype=numpy.float32), b.xp.float32)
