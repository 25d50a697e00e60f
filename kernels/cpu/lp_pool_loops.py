"""What lp pooling adds to the sums of avg_pool_loops.py: powers, roots, and the passes before and after the sums of its
backward. Everything is in float64.

`power` says how a kernel raises to the exponent p: "absolute" (p = 1), "square" (2), "whole" (another whole number),
"real" (any other), and "" for sums of x itself. `like` is an array of float64."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import kernel
from .vector_ends import read, store_until
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
    load,
    mul,
    select,
    square_root,
    store,
    sub,
)

Array = Any
Kernel = Any
U = np.uintp


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
    result, raised_to = size, 1.0
    while raised_to < p:
        result = mul(result, size)
        raised_to += 1.0
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
def make_backward(forward: Kernel, backward: Kernel, power: str) -> Kernel:
    """The kernel of backward, over planes: with y from the forward's loop, dx is sign(x) * abs(x)**(p - 1) times the
    sums of dy * y**(1 - p) over each cell's windows, which the backward's loop adds. Where x or y is 0, that is 0.

    sizes: planes of a group and of all, and rows of y and of x in a plane."""
    raised = make_power(power if power in ("whole", "real") else "")

    @kernel(allocates=False)
    def scale(dy: Array, y: Array, p: float, first: int, number: int) -> None:
        """dy * y**(1 - p), in place of y."""
        zero = broadcast(y, 0)
        for i in range(U(0), U(number), U(LANES)):
            value, result = load(y, i), as_lanes_of(y, read(dy, U(first) + i, np.int64(U(number) - i)))
            if power == "square":
                result = div(result, value)
            elif power != "absolute":
                result = mul(result, power_of(value, broadcast(y, 1 - p)))
            store(y, i, select(equal(value, zero), zero, result))

    @kernel(allocates=False)
    def slope(sums: Array, x: Array, dx: Array, p: float, first: int, number: int) -> None:
        """dx from the sums."""
        zero = broadcast(sums, 0)
        for i in range(U(0), U(number), U(LANES)):
            cell, result = as_lanes_of(sums, read(x, U(first) + i, np.int64(U(number) - i))), load(sums, i)
            if power == "square":
                result = mul(result, cell)
            else:
                if power != "absolute":
                    result = mul(result, raised(cell, sums, p - 1))
                result = select(less(cell, zero), sub(zero, result), result)
            if power == "absolute":  # the others are a product with the cell
                result = select(is_nan(cell), cell, result)
            store_until(dx, U(first) + i, select(equal(cell, zero), zero, result), U(first + number))

    @kernel()
    def lp_backward(
        total: Array, dy: Array, x: Array, dx: Array, forward_plan: Any, backward_plan: Any, sizes: Any, p: float,
        start: int, stop: int, norms: Array, sums: Array,
    ) -> None:  # fmt: skip
        group, planes, y_rows, x_rows = sizes
        windows, cells = dy.size // planes, x.size // planes
        for plane in range(start, stop, group):
            number = min(group, stop - plane)
            forward(x[plane * cells : (plane + number) * cells], norms, forward_plan, 0, number * y_rows)
            scale(dy, norms, p, plane * windows, number * windows)
            backward(norms, sums, backward_plan, 0, number * x_rows)
            slope(sums, x, dx, p, plane * cells, number * cells)

    return lp_backward
