"""Windows of every kind of pool: lengths, and every option; and how they are spelled for the library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
