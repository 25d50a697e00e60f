"""Conversion between half types and float32, which keeps each bit of a NaN that is only copied."""

from __future__ import annotations

from typing import Any

from .jit import kernel
from .vectors import LANES, as_lanes_of
from .vectors import load_every_bit as load
from .vectors import load_first_every_bit as load_first
from .vectors import store_every_bit as store
from .vectors import store_first_every_bit as store_first


@kernel()
def convert(source: Any, target: Any) -> None:
    """Copy all elements of one flat array to another, half types as their bits (vectors.py)."""
    whole = source.size - source.size % LANES
    for i in range(0, whole, LANES):
        store(target, i, as_lanes_of(target, load(source, i)))
    rest = source.size - whole
    if rest > 0:
        store_first(target, whole, as_lanes_of(target, load_first(source, whole, rest)), rest)
