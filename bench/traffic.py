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


def _with_x(c: Counts) -> dict[str, float]:
    """x and y; backward: x (or y, of the same size), dy and dx. A group of a norm is taken to stay on chip between its
    statistics and its use."""
    return {INFERENCE: c.once, FORWARD: c.once, BACKWARD: c.once + c.x * c.size}


def _relu(c: Counts) -> dict[str, float]:
    """A bit an element tells backward what passed."""
    return {INFERENCE: c.once, FORWARD: c.once + c.y / 8, BACKWARD: c.once + c.y / 8}


FORMULAS: Mapping[str, Callable[[Counts], dict[str, float]]] = {
    **dict.fromkeys(("max_pool", "adaptive_max_pool"), _max_pool),
    **dict.fromkeys(("avg_pool", "adaptive_avg_pool", "pad"), _copying),
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"), _with_x),
    **dict.fromkeys(("lp_pool", "gelu", "sigmoid", "tanh"), _with_x),
    **dict.fromkeys(("relu", "leaky_relu"), _relu),
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
    places = case.shape if case.op == "conv_transpose" else y_shape  # each times every weight of its channel
    once = 2.0 * math.prod(places) * math.prod(case.weight[1:])
    return 2 * once if part == BACKWARD else once
