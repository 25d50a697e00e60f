"""Loads and stores of vectors at the end of a range: the lanes beyond it are not loaded, and not stored."""

from __future__ import annotations

from typing import Any

from .jit import kernel
from .vectors import LANES, as_lanes_of, load, load_first, store, store_first

Array = Any
Vector = Any


@kernel(inlined=True)
def read(x: Array, i: Any, count: Any) -> Vector:
    """The vector from element i on; the lanes from `count` on are 0."""
    return load(x, i) if count >= LANES else load_first(x, i, count)


@kernel(inlined=True)
def store_until(y: Array, i: Any, value: Vector, stop: Any) -> None:
    """Store numbers from element i on as y has them, without the lanes from `stop` on."""
    narrow = as_lanes_of(y, value)
    if i + LANES <= stop:
        store(y, i, narrow)
    else:
        store_first(y, i, narrow, stop - i)
