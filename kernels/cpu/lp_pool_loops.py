"""What lp pooling adds to the sums of avg_pool_loops.py: powers, roots, and the passes before and after the sums of its
backward. Everything is in float64.

`power` says how a kernel raises to the exponent p: "absolute" (p = 1), "square" (2), "whole" (another whole number),
"real" (any other), and "" for sums of x itself. `like` is an array of float64."""

from __future__ import annotations

import functools
from typing import Any

from .jit import kernel
from .vector_math import power as power_of
from .vectors import (
    LANES,
    absolute,
    as_lanes_of,
    broadcast,
    div,
    equal,
    is_nan,
    less,
    load_first,
    mul,
    select,
    square_root,
    store_first,
    sub,
)

Array = Any
Kernel = Any


def power_name(p: float) -> str:
    """How a kernel raises to this exponent."""
    return "absolute" if p == 1 else "square" if p == 2 else "whole" if p == int(p) else "real"


@kernel(inlined=True)
def _same(x: Any, like: Array, p: float) -> Any:
    return x


@kernel(inlined=True)
def _absolute(x: Any, like: Array, p: float) -> Any:
    return absolute(x)


@kernel(inlined=True)
def _square(x: Any, like: Array, p: float) -> Any:
    return mul(x, x)


@kernel(inlined=True)
def _square_root(x: Any, like: Array, p: float) -> Any:
    return square_root(x)


@kernel(inlined=True)
def _whole_power(x: Any, like: Array, p: float) -> Any:
    size = absolute(x)
    result = size
    for _ in range(1, int(p)):
        result = mul(result, size)
    return result


@kernel(inlined=True)
def _real_power(x: Any, like: Array, p: float) -> Any:
    return power_of(absolute(x), broadcast(like, p))


@kernel(inlined=True)
def _real_root(x: Any, like: Array, p: float) -> Any:
    return power_of(x, broadcast(like, 1 / p))


def make_power(power: str) -> Kernel:
    """The kernel of abs(x)**p; for "" that of x."""
    return {"": _same, "absolute": _absolute, "square": _square, "whole": _whole_power, "real": _real_power}[power]


def make_root(power: str) -> Kernel:
    """The kernel of x**(1 / p); for "" that of x."""
    return {"": _same, "absolute": _same, "square": _square_root}.get(power, _real_root)


@functools.cache
def make_scale(power: str) -> Kernel:
    """The kernel that turns y into dy * y**(1 - p), and into 0 where y is 0."""

    @kernel()
    def scale(dy: Array, y: Array, p: float) -> None:
        zero = broadcast(y, 0)
        for i in range(0, y.size, LANES):
            n = min(LANES, y.size - i)
            value, result = load_first(y, i, n), as_lanes_of(y, load_first(dy, i, n))
            if power == "square":
                result = div(result, value)
            elif power != "absolute":
                result = mul(result, power_of(value, broadcast(y, 1 - p)))
            store_first(y, i, select(equal(value, zero), zero, result), n)

    return scale


@functools.cache
def make_slope(power: str) -> Kernel:
    """The kernel of dx = sums * sign(x) * abs(x)**(p - 1), 0 where x is 0. sums: of `scale`'s results over each cell's
    windows."""
    raised = make_power(power if power in ("whole", "real") else "")

    @kernel()
    def slope(sums: Array, x: Array, dx: Array, p: float) -> None:
        zero = broadcast(sums, 0)
        for i in range(0, sums.size, LANES):
            n = min(LANES, sums.size - i)
            cell, result = as_lanes_of(sums, load_first(x, i, n)), load_first(sums, i, n)
            if power == "square":
                result = mul(result, cell)
            else:
                if power != "absolute":
                    result = mul(result, raised(cell, sums, p - 1))
                result = select(less(cell, zero), sub(zero, result), result)
            if power == "absolute":  # the others are a product with the cell
                result = select(is_nan(cell), cell, result)
            store_first(dx, i, as_lanes_of(dx, select(equal(cell, zero), zero, result)), n)

    return slope
