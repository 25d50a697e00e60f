"""Updates of parameters by an optimiser, each in one loop, in place: the formulas and the bits of the portable code, so
no product and sum are fused.

The gradient has the dtype of the optimiser's arrays: float32, or float64 for a float64 parameter. A half parameter is
read as float32 and rounded once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from .jit import kernel
from .parallel import chunked, flat, to_lanes
from .vector_ends import read, store_until
from .vectors import LANES, add, broadcast, div, mul, square_root, sub

Array = Any
Vector = Any
U = np.uintp
BLOCK = 4096  # elements; chunks begin at a multiple of it


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Of p, g and the optimiser's own arrays. Without arrays: None, as most can be served."""
    if not arrays:
        return None
    p, g, own = arrays[:3]
    if p.dtype.kind == "c":
        return "a parameter is complex"
    if not (p.flags.carray and own.flags.carray):
        return "a parameter is not in C order, not aligned or read-only"
    return "a gradient is in the memory of its parameter" if backends.share_memory(p, g) else None


@kernel(inlined=True)
def decayed(p: Array, g: Array, decay: float, i: Any, count: int) -> Vector:
    """The gradient with weight decay."""
    gradient = read(g, i, count)
    return gradient if decay == 0.0 else add(gradient, mul(read(p, i, count), broadcast(g, decay)))


@kernel(allocates=False)
def sgd(
    p: Array, g: Array, velocity: Array, lr: float, decay: float, momentum: float, nesterov: bool, start: int, stop: int
) -> None:
    for i in range(U(start), U(stop), U(LANES)):
        count = stop - i
        gradient = decayed(p, g, decay, i, count)
        v = add(mul(read(velocity, i, count), broadcast(g, momentum)), gradient)
        store_until(velocity, i, v, stop)
        step = add(gradient, mul(v, broadcast(g, momentum))) if nesterov else v
        store_until(p, i, sub(read(p, i, count), mul(step, broadcast(g, lr))), stop)


@kernel(allocates=False)
def adam(
    p: Array, g: Array, mean: Array, square: Array, size: float, decay: float, first: float, first_rest: float,
    second: float, second_rest: float, correction: float, eps: float, start: int, stop: int,
) -> None:  # fmt: skip
    for i in range(U(start), U(stop), U(LANES)):
        count = stop - i
        gradient = decayed(p, g, decay, i, count)
        m = add(mul(read(mean, i, count), broadcast(g, first)), mul(gradient, broadcast(g, first_rest)))
        grown = mul(mul(gradient, broadcast(g, second_rest)), gradient)
        s = add(mul(read(square, i, count), broadcast(g, second)), grown)
        store_until(mean, i, m, stop)
        store_until(square, i, s, stop)
        root = add(div(square_root(s), broadcast(g, correction)), broadcast(g, eps))
        store_until(p, i, sub(read(p, i, count), div(mul(m, broadcast(g, size)), root)), stop)


@functools.lru_cache(maxsize=256)  # a limit on their number is enough: results have a fixed size
def _in_chunks(size: int, nbytes: int) -> Callable[..., None]:
    return chunked(-(-size // BLOCK), nbytes, unit=BLOCK, end=size)


def _make_launcher(loop: Any) -> Any:
    def update(numbers: tuple[Any, ...], p: Array, g: Array, *own: Array) -> bool:
        """Update p and the optimiser's own arrays with the numbers that the loop takes. False, and nothing is done,
        where `refuses` says so."""
        if refuses("", None, p, g, *own):
            return False
        in_chunks = _in_chunks(p.size, (2 + 2 * len(own)) * g.nbytes)
        in_chunks(loop, to_lanes(p), flat(g), *[a.ravel() for a in own], *numbers)
        return True

    return update


sgd_update, adam_update = map(_make_launcher, (sgd, adam))
