"""Windows of every kind of pool: lengths, and every option; and how they are spelled for the library."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cnnlayers.specs import pool_window

from ..reference.pool import Pool

# lengths, kernel, stride, padding (before, after), dilation, ceil mode
CASES = [
    Pool((6,), (2,), (2,), ((0, 0),), (1,)),
    Pool((7,), (3,), (1,), ((1, 1),), (1,)),
    Pool((7,), (3,), (2,), ((2, 0),), (1,), True),
    Pool((5,), (2,), (1,), ((4, 4),), (6,)),  # taps six cells apart: the middle windows meet no cell
    Pool((4, 6), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    Pool((5, 6), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), True),
    Pool((5, 4), (3, 2), (1, 2), ((0, 2), (1, 0)), (1, 1), True),
    Pool((6, 5), (2, 3), (3, 1), ((1, 0), (2, 3)), (3, 2)),
    Pool((4, 3), (1, 3), (2, 3), ((0, 0), (0, 0)), (1, 1), True),
    Pool((3, 4), (3, 2), (1, 1), ((2, 5), (1, 3)), (3, 4)),  # windows without cells again, in two axes
    Pool((3, 4, 3), (2, 2, 2), (1, 2, 1), ((1, 0), (0, 1), (0, 0)), (1, 1, 2), True),
    Pool((4, 4, 4), (2, 2, 2), (2, 2, 2), ((0, 0), (0, 0), (0, 0)), (1, 1, 1)),
]
BY_CASE = pytest.mark.parametrize("pool", CASES, ids=lambda p: "x".join(map(str, p.lengths)) + f"k{p.kernel[-1]}")


def options(pool: Pool) -> dict[str, Any]:
    """The options that the library's pools take."""
    return {
        "kernel_size": pool.kernel,
        "stride": pool.stride,
        "padding": pool.padding,
        "dilation": pool.dilation,
        "ceil_mode": pool.ceil_mode,
    }


def some_pool(rng: np.random.Generator, ndim: int) -> Pool:
    """A pool at random, with asymmetric pads, ceil mode and dilation; every window fits."""
    while True:
        length, kernel, stride, dilation = (tuple(map(int, rng.integers(1, n, ndim))) for n in (6, 4, 4, 3))
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        pads = tuple((int(rng.integers(r)), int(rng.integers(r))) for r in reach)
        if all(n + sum(p) >= r for n, p, r in zip(length, pads, reach, strict=True)):
            return Pool(length, kernel, stride, pads, dilation, bool(rng.integers(2)))


# Windows that CPU kernels have loops of their own for, one that overhangs, one that is dilated beyond its input, a wide
# one, and one too far from the next for a row to be laid out in a line; rows shorter and longer than a vector.
LOOPS: list[tuple[Any, Any, Any, Any, dict[str, Any]]] = [
    (2, 2, 0, 1, {}),
    (3, 2, 1, 1, {}),
    (3, 1, 1, 1, {}),
    ((3, 2), (2, 3), ((0, 2), (1, 0)), 1, {"ceil_mode": True}),
    (2, 1, 6, 7, {}),
    (5, 1, 2, 1, {}),
    ((1, 2), (1, 90), 0, 1, {}),
    ((1, 2), (1, 2), 0, 1, {}),
    (2, 2, 0, (3, 1), {}),
    ((2, 3), (1, 2), (1, 0), (2, 1), {}),
]
SHAPES = [(2, 3, 7, 9), (1, 2, 6, 37), (1, 2, 6, 71), (2, 1, 66, 5)]
LEFT_OVER = Pool((5, 5, 5), (2, 2, 2), (2, 2, 2), ((0, 0),) * 3, (1, 1, 1))  # cells that no window reaches


def for_kernels(shapes: list[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """Shapes of x, (N, C, *spatial), and a pool's options: every case, and these shapes with each of `LOOPS`."""
    for pool in (*CASES, LEFT_OVER):
        yield (2, 3, *pool.lengths), options(pool)
    for (kernel, stride, padding, dilation, more), shape in itertools.product(LOOPS, shapes):
        given = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, **more}
        with contextlib.suppress(ValueError):  # a window larger than this input
            pool_window(shape, kernel, stride, padding, dilation, "ceil_mode" in more, "channels_first")
            yield shape, given


# Lengths and the number of windows of an adaptive pool.
ADAPTIVE: list[tuple[tuple[int, ...], Any]] = [
    ((7,), 3),
    ((5,), 8),
    ((90,), 2),
    ((6, 8), (3, 2)),
    ((5, 7), (2, 4)),
    ((4, 3, 5), (3, 2, 2)),
    *(((12, 18), size) for size in ((4, 9), (7, 1), (9, 12), (1, 1))),
]
