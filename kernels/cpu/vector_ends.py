"""Vectors at the end of a range: the lanes beyond it are not loaded, and not stored."""

from __future__ import annotations

from typing import Any

from .jit import kernel
from .vectors import LANES, as_lanes_of, load, load_first, store, store_first

Array = Any
Vector = Any


@kernel(inlined=True)
def load_until(x: Array, i: Any, stop: Any) -> Vector:
    """The vector from element i on; the lanes from `stop` on are 0."""
    return load(x, i) if i + LANES <= stop else load_first(x, i, stop - i)


@kernel(inlined=True)
def store_until(y: Array, i: Any, value: Vector, stop: Any) -> None:
    """Store numbers from element i on as y has them, without the lanes from `stop` on."""
    narrow = as_lanes_of(y, value)
    if i + LANES <= stop:
        store(y, i, narrow)
    else:
        store_first(y, i, narrow, stop - i)
