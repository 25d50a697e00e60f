"""The matrix every op is tested over: one `impl` per implementation, and the one helper that asserts what comes back.

What a machine lacks shows as a counted skip with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_strict
import numpy as np
import pytest

# bfloat16 and float16 are not in the array API standard.
HALF = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])


@dataclass(frozen=True)
class Impl:
    """One implementation under test: makes its arrays from NumPy's, and gives NumPy's back after checking them."""

    name: str

    @property
    def xp(self) -> Any:
        return array_api_strict if self.name == "strict" else np

    def array(self, a: Any, dtype: str | None = None) -> Any:
        """`a` as this implementation's array: its own copy, read-only for "readonly"."""
        host = np.array(a, dtype=dtype)
        if self.name == "strict":
            if host.dtype == np.float16:
                pytest.skip("array-api-strict has no float16")
            return array_api_strict.asarray(host)
        if self.name == "readonly":
            host.flags.writeable = False
        return host

    def writable(self, a: Any, dtype: str | None = None) -> Any:
        """An array that an op may update in place (running statistics)."""
        return array_api_strict.asarray(np.array(a, dtype=dtype)) if self.name == "strict" else np.array(a, dtype=dtype)

    def numpy(self, y: Any, shape: tuple[int, ...] | None = None, dtype: Any = None) -> np.ndarray:
        """`y` on the host, once its kind, dtype and shape are what they should be."""
        kind = type(array_api_strict.asarray(0)) if self.name == "strict" else np.ndarray
        assert isinstance(y, kind), f"{type(y)} is not {kind}"
        host = np.array(y) if self.name != "strict" else np.from_dlpack(y).copy()
        if dtype is not None:
            assert host.dtype == np.dtype(dtype), f"dtype {host.dtype}, expected {dtype}"
        if shape is not None:
            assert host.shape == tuple(shape), f"shape {host.shape}, expected {shape}"
        return host

    def close(self, y: Any, expected: Any, *, rtol: float = 1e-6, atol: float = 1e-7, dtype: Any = None) -> None:
        """Assert that `y` is this implementation's array and has the expected dtype, shape and values (NaN where NaN)."""
        expected = np.asarray(expected)
        host = self.numpy(y, expected.shape, expected.dtype if dtype is None else dtype)
        np.testing.assert_allclose(host, expected, rtol=rtol, atol=atol)

    def same(self, y: Any, expected: Any) -> None:
        """Assert the same bits, dtype and shape."""
        expected = np.asarray(expected)
        host = self.numpy(y, expected.shape, expected.dtype)
        assert host.tobytes() == expected.tobytes(), f"{host}\nis not bit for bit\n{expected}"


@pytest.fixture(params=["numpy", "readonly", "strict"])
def impl(request: pytest.FixtureRequest) -> Impl:
    return Impl(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
