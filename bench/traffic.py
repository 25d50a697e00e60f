"""The least an op must do: bytes through memory, each array that it needs read or written once, and a convolution's
multiplications. Arithmetic on shapes, no measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .cases import BACKWARD, FORWARD, INFERENCE, Case

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
ARGMAX = 1  # bytes an output that max pooling has to keep: windows have at most 256 taps


@dataclass(frozen=True)
class Counts:
    """A call's elements: x's and y's (dx has x's, dy has y's)."""

    x: int
    y: int
    size: int  # bytes of an element

    @property
    def once(self) -> int:
        """Each of x and y once."""
        return (self.x + self.y) * self.size


def _copying(c: Counts) -> dict[str, float]:
    return {INFERENCE: c.once, FORWARD: c.once, BACKWARD: c.once}


def _max_pool(c: Counts) -> dict[str, float]:
    saved = c.y * ARGMAX
    return {INFERENCE: c.once, FORWARD: c.once + saved, BACKWARD: c.once + saved}


def _norm(c: Counts) -> dict[str, float]:
    """x and y; backward: x, dy and dx. A group is taken to stay on chip between its statistics and its use."""
    return {INFERENCE: c.once, FORWARD: c.once, BACKWARD: c.once + c.x * c.size}


def _relu(c: Counts) -> dict[str, float]:
    """A bit an element tells backward what passed."""
    return {INFERENCE: c.once, FORWARD: c.once + c.y / 8, BACKWARD: c.once + c.y / 8}


FORMULAS: Mapping[str, Callable[[Counts], dict[str, float]]] = {
    "max_pool": _max_pool,
    "avg_pool": _copying,
    "adaptive_avg_pool": _copying,
    "pad": _copying,
    "batch_norm": _norm,
    "group_norm": _norm,
    "layer_norm": _norm,
    "rms_norm": _norm,
    "relu": _relu,
}


def least_bytes(case: Case, part: str, y_shape: tuple[int, ...]) -> float | None:
    """The bytes that a part of a case must move; None where arithmetic, not memory, sets the time."""
    formula = FORMULAS.get(case.op)
    if formula is None:
        return None
    return formula(Counts(math.prod(case.shape), math.prod(y_shape), ITEMSIZE[case.dtype])).get(part)


def operations(case: Case, part: str, y_shape: tuple[int, ...]) -> float | None:
    """A convolution's multiplications and additions as its definition has them; None for other ops."""
    if case.weight is None:
        return None
    once = 2.0 * math.prod(y_shape) * math.prod(case.weight[1:])
    return 2 * once if part == BACKWARD else once
