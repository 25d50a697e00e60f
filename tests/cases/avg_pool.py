"""Average, sum and Lp pooling: divisors, powers, and what loops make of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..reference import pool as reference
from ..reference.pool import Pool

POWERS = [1.0, 2.0, 3.0, 2.5, 0.5]
DIVISORS = [(include_pad, override) for include_pad in (True, False) for override in (None, 3, -2)]


@functools.cache
def looped(pool: Pool) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """x and dy, and by op and option y and dx, from the loops."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 2, *pool.lengths)), rng.standard_normal((2, 2, *pool.out))
    x[0, 0] = np.round(x[0, 0])  # zeros among them
    found: dict[Any, tuple[np.ndarray, np.ndarray]] = {"given": (x, dy)}
    found["sum"] = reference.sum_pool(x, pool), reference.sum_pool_backward(dy, pool)
    for divisor in DIVISORS:
        found[divisor] = reference.avg_pool(x, pool, *divisor), reference.avg_pool_backward(dy, pool, *divisor)
    for p in POWERS:
        found[p] = reference.lp_pool(x, pool, p), reference.lp_pool_backward(dy, x, pool, p)
    return found
