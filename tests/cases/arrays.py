"""Arrays for any op: layouts, and numbers that show a fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

FORMATS = pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
LAST = {"data_format": "channels_last"}


def line(*values: Any, dtype: str = "float64") -> np.ndarray:
    """One sample of one channel."""
    return np.array([[values]], dtype)


def channels_last(x: np.ndarray) -> np.ndarray:
    """A (N, C, *spatial) array as (N, *spatial, C)."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def ordered(x: np.ndarray, data_format: str) -> np.ndarray:
    """A (N, C, *spatial) array in this format."""
    return x if data_format == "channels_first" else channels_last(x)


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


def any_bits(rng: np.random.Generator, shape: Any, dtype: np.dtype) -> np.ndarray:
    """Every bit pattern of the dtype may come."""
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)


def gradient(rng: np.random.Generator, shape: Any, dtype: np.dtype) -> np.ndarray:
    """Numbers whose sums depend on their order, zeros of both signs, infinities; of integers any."""
    if dtype.kind in "iu":
        return any_bits(rng, shape, dtype)
    dy = rng.standard_normal(shape)
    for value in (0.0, -0.0, np.inf):
        dy[rng.random(shape) < 0.1] = value
    return dy.astype(dtype)


def stored(a: Any, style: int) -> Any:
    """The values of `a`, of NumPy or on a device, as they are, in reverse order, with gaps or transposed."""
    if style == 1:
        return a[::-1].copy()[::-1]
    if style == 2:
        return a.repeat(2, a.ndim - 1)[..., ::2]
    return a.T.copy().T if style == 3 else a
