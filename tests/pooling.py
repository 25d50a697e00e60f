"""What the pooling tests share: the cases they run over, and how a case is spelled for the library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .reference.pool import Pool

FORMATS = pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])

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


def ordered(x: np.ndarray, data_format: str) -> np.ndarray:
    """A (N, C, *spatial) array in this format."""
    return x if data_format == "channels_first" else np.ascontiguousarray(np.moveaxis(x, 1, -1))


def some_pool(rng: np.random.Generator, ndim: int) -> Pool:
    """A pool at random, with asymmetric pads, ceil mode and dilation; every window fits."""
    while True:
        length, kernel, stride, dilation = (tuple(map(int, rng.integers(1, n, ndim))) for n in (6, 4, 4, 3))
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        pads = tuple((int(rng.integers(r)), int(rng.integers(r))) for r in reach)
        if all(n + sum(p) >= r for n, p, r in zip(length, pads, reach, strict=True)):
            return Pool(length, kernel, stride, pads, dilation, bool(rng.integers(2)))


def drawn(rng: np.random.Generator, shape: Any, dtype: np.dtype) -> np.ndarray:
    """Numbers of many magnitudes, subnormal ones and both zeros among them, so that another order of adding shows."""
    if dtype.kind in "iub":
        return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    least = {"float64": 1e-308, "float32": 1e-38, "bfloat16": 1e-38}.get(dtype.name, 1e-7)
    scale = rng.choice([0.0, 1.0, 3e-3, least, -least / 7], shape)
    return (rng.standard_normal(shape) * scale).astype(dtype)


def rivals(rng: np.random.Generator, shape: Any, dtype: np.dtype) -> np.ndarray:
    """Few different values, so that windows hold ties: NaNs, infinities, zeros of both signs, subnormal numbers; of
    integers the ends of their range."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.choice(np.array([info.min, info.min + 1, 0, 1, info.max - 1, info.max], dtype), shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    least = {"float64": 5e-324, "float32": 1e-45, "bfloat16": 1e-40}.get(dtype.name, 6e-8)
    values = [np.inf, 1.5, 2 * least, least, 0.0, np.nan]
    x = rng.choice(values, shape, p=[0.08, 0.2, 0.2, 0.2, 0.3, 0.02]).astype(dtype)
    bits, nan = x.view(f"u{dtype.itemsize}"), np.isnan(x)
    bits[nan] = np.array(np.inf, dtype).view(bits.dtype) + rng.choice([1, 2, 5], shape)[nan]  # payloads
    return np.where(rng.random(shape) < 0.5, x, -x)  # NaNs of both signs
