"""Conversion between half types and float32, at the speed of their bytes."""

from __future__ import annotations

from typing import Any

from .jit import kernel
from .vectors import LANES, as_lanes_of, load, load_first, store, store_first


@kernel()
def convert(source: Any, target: Any) -> None:
    """Copy all elements of one flat array to another, half types as their bits (vectors.py)."""
    whole = source.size - source.size % LANES
    for i in range(0, whole, LANES):
        store(target, i, as_lanes_of(target, load(source, i)))
    rest = source.size - whole
    if rest > 0:
        store_first(target, whole, as_lanes_of(target, load_first(source, whole, rest)), rest)
