"""The emulator's 16-bit floats: every one of them, against NumPy and ml_dtypes."""

from __future__ import annotations

import numpy as np
import pytest

from .simt.kernels import module, needs_emulator

pytestmark = needs_emulator


EVERY = np.arange(1 << 16, dtype=np.uint16)
NAN = 0x7FFF  # what the device makes of every NaN


def bfloat16() -> np.dtype:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


SMALL = pytest.mark.parametrize("name", ["__half", "__nv_bfloat16"])


def small_dtype(name: str) -> np.dtype:
    return np.dtype(np.float16) if name == "__half" else bfloat16()


def run_small(kernel: str, *arrays: np.ndarray, n: int) -> None:
    module("small_floats").launch(kernel, (4,), (256,), (*arrays, np.int32(n)))


@SMALL
def test_every_16_bit_float_widens_exactly(name: str) -> None:
    dtype, wide = small_dtype(name), np.empty(1 << 16, np.float32)
    run_small(f"widen<{name}>", EVERY.view(dtype), wide, n=EVERY.size)
    with np.errstate(invalid="ignore"):
        expected = EVERY.view(dtype).astype(np.float32)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(wide.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])
    canonical = np.full(nan.sum(), 0x7FFFFFFF) if name == "__half" else EVERY[nan].astype(np.uint32) << 16
    np.testing.assert_array_equal(wide.view(np.uint32)[nan], canonical)


def awkward_floats(dtype: np.dtype) -> np.ndarray:
    """Every 16-bit float, halfway to the next and just beside that; subnormals, what overflows, any bits at all."""
    cut = 13 if dtype == np.float16 else 16
    with np.errstate(invalid="ignore"):
        exact = EVERY.view(dtype).astype(np.float32).view(np.uint32)
    half = 1 << (cut - 1)
    shifted = [exact + np.uint32(d) for d in (0, half - 1, half, half + 1)]
    tiny = np.random.default_rng(1).random(4096, np.float32) * np.finfo(np.float16).tiny
    wild = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32)
    return np.concatenate([*(s.view(np.float32) for s in shifted), wild.view(np.float32), tiny, -tiny])


@SMALL
def test_floats_are_rounded_to_nearest_even(name: str) -> None:
    dtype = small_dtype(name)
    x = awkward_floats(dtype)
    y = np.empty(x.size, dtype)
    run_small(f"narrow<{name}, float>", x, y, n=x.size)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype).view(np.uint16)
    expected[np.isnan(x)] = NAN
    np.testing.assert_array_equal(y.view(np.uint16), expected)


@SMALL
def test_doubles_and_integers_are_rounded_once(name: str) -> None:
    dtype = small_dtype(name)
    floats_ = awkward_floats(dtype)
    with np.errstate(all="ignore"):
        x = floats_.astype(np.float64) * (1 + np.random.default_rng(2).choice([-1e-12, 0, 1e-12], floats_.size))
        x = x[np.abs(x) < (60000 if name == "__half" else 3e38)]
    y = np.empty(x.size, dtype)
    run_small(f"narrow<{name}, double>", x, y, n=x.size)
    assert_nearest(x, y)
    top = 65503 if name == "__half" else (1 << 63) - 1
    whole = np.random.default_rng(3).integers(-top, top, 4096)
    whole[:3] = 257, (1 << 62) + (1 << 54) + 1 if top > 65503 else 2049, -2051  # ties, and one that is just none
    y = np.empty(whole.size, dtype)
    run_small(f"narrow<{name}, long long>", whole, y, n=whole.size)
    assert_nearest(whole, y)


def assert_nearest(x: np.ndarray, y: np.ndarray) -> None:
    """No neighbour of y is nearer to x, and at a tie y is even. Distances are exact in long double."""
    exact, bits = x.astype(np.longdouble), y.view(np.uint16).astype(np.int64)

    def distance(step: int) -> np.ndarray:
        sign, size = bits & 0x8000, (bits & 0x7FFF) + step
        other = (sign | np.maximum(size, 0)).astype(np.uint16).view(y.dtype).astype(np.float32)
        return np.where(size < 0, np.inf, np.abs(other.astype(np.longdouble) - exact))

    best, other = distance(0), np.minimum(distance(-1), distance(1))
    assert (best <= other).all()
    assert (bits[best == other] % 2 == 0).all()


@SMALL
def test_arithmetic_of_16_bit_floats(name: str) -> None:
    dtype, rng = small_dtype(name), np.random.default_rng(0)
    a, b = (rng.permutation(EVERY).view(dtype) for _ in range(2))
    y = np.empty((8, a.size), dtype)
    run_small(f"arithmetic<{name}>", a, b, y, n=a.size)
    with np.errstate(all="ignore"):
        wide = [v.astype(np.float32) for v in (a, b)]
        less, equal, unequal, at_least = (op(*wide) for op in (np.less, np.equal, np.not_equal, np.greater_equal))
        largest, smallest = np.fmax(*wide), np.fmin(*wide)
        results = [op(*wide) for op in (np.add, np.subtract, np.multiply, np.divide)]
        results += [-wide[0], largest, smallest, less + 2.0 * equal + 4.0 * unequal + 8.0 * at_least]
        for row, result in zip(y, results, strict=True):
            np.testing.assert_array_equal(row.astype(np.float32), result.astype(dtype).astype(np.float32))
