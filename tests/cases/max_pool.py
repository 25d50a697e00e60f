"""Max pooling: values with ties, NaN and infinities, and what loops make of them."""

from __future__ import annotations

import functools

import numpy as np

from ..reference import pool as reference
from ..reference.pool import Pool

TIES = ("first", "all", "split")
NAN, INF = np.nan, np.inf
VALUES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "ties": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
    "nan": lambda rng, shape: rng.choice([NAN, 1.0, 2.0, INF], shape),
    "-inf": lambda rng, shape: rng.choice([-INF, -INF, -0.0, 0.0], shape),
}


@functools.cache
def looped(pool: Pool, values: str) -> tuple[np.ndarray, ...]:
    """x, y, indices, dy and dx by each tie rule, from the loops."""
    rng = np.random.default_rng(0)
    x = VALUES[values](rng, (2, 2, *pool.lengths)).astype("float32")
    y, indices = reference.max_pool(x, pool)
    dy = rng.standard_normal(y.shape).astype("float32")
    return x, y, indices, dy, *(reference.max_pool_backward(dy, x, pool, ties) for ties in TIES)
