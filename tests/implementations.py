"""The implementations that every op is tested on, how results are compared, and kernels beside the array code.

The fixture `impl` (conftest.py) is each of them in turn; `kernel` is each that has kernels, which are then required.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.kernels.cpu import jit as cpu

from . import simt, standin_cuda, standin_cupy

FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
# bfloat16 and float16 are not in the array API standard.
HALF = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
ALL = ["numpy", "cpu", "readonly", "strict", "standin", "gpu"]
WITH_KERNELS = ["cpu", "standin", "gpu"]

on_cpu_kernels = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
on_emulator = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


@dataclass(frozen=True)
class Impl:
    """One implementation under test: makes its arrays from NumPy's, and gives NumPy's back after checking them.

    `name`: "numpy" (array code), "cpu" (its compiled kernels), "readonly", "strict" (array-api-strict), "standin"
    (tests/standin_cupy.py) or "gpu" (CuPy itself).
    """

    name: str
    xp: Any

    def dtype(self, name: str) -> np.dtype:
        """NumPy's dtype of this name; the test is skipped where this implementation has none of it."""
        if (self.name, name) in (("strict", "float16"), ("strict", "bfloat16"), ("gpu", "bfloat16")):
            pytest.skip(f"{self.name} has no {name}")
        return numpy_dtype(name)

    def array(self, a: Any, dtype: Any = None) -> Any:
        """`a` as this implementation's array: its own copy, read-only for "readonly"."""
        array = self.writable(a, dtype)
        if self.name == "readonly":
            array.flags.writeable = False
        return array

    def writable(self, a: Any, dtype: Any = None) -> Any:
        """An array that an op may update in place (running statistics)."""
        host = np.array(a, dtype=dtype)
        self.dtype(host.dtype.name)
        return host if self.xp is np else self.xp.asarray(host)

    def numpy(self, y: Any, shape: tuple[int, ...] | None = None, dtype: Any = None) -> np.ndarray:
        """`y` on the host, once its kind, dtype and shape are what they should be."""
        kind = type(self.xp.asarray(0))
        assert isinstance(y, kind), f"{type(y)} is not {kind}"
        host = np.array(backends.to_numpy(y))
        if dtype is not None:
            assert host.dtype == np.dtype(dtype), f"dtype {host.dtype}, expected {dtype}"
        if shape is not None:
            assert host.shape == tuple(shape), f"shape {host.shape}, expected {shape}"
        return host

    def close(self, y: Any, expected: Any, *, rtol: float = 1e-6, atol: float = 1e-7, dtype: Any = None) -> None:
        """Assert that `y` is this implementation's array, and has the expected dtype, shape and values."""
        expected = np.asarray(expected)
        host = self.numpy(y, expected.shape, expected.dtype if dtype is None else dtype)
        np.testing.assert_allclose(host, expected, rtol=rtol, atol=atol)

    def near(self, y: Any, expected: np.ndarray, tolerance: float) -> None:
        """Assert the same dtype and shape, and values within `tolerance` of the largest of them."""
        with np.errstate(invalid="ignore"):  # of a signalling NaN
            host = self.numpy(y, expected.shape, expected.dtype).astype("float64")
            wide = expected.astype("float64")
        most = np.max(np.abs(wide), where=np.isfinite(wide), initial=1.0)
        np.testing.assert_allclose(host, wide, rtol=tolerance, atol=tolerance * most)

    def same(self, y: Any, expected: Any) -> None:
        """Assert the same bits, dtype and shape."""
        expected = np.asarray(expected)
        host = self.numpy(y, expected.shape, expected.dtype)
        assert host.tobytes() == expected.tobytes(), f"{host}\nis not bit for bit\n{expected}"

    @contextlib.contextmanager
    def launches(self, **emulation: Any) -> Iterator[list[standin_cuda.Launch]]:
        """The launches of the block, on the emulator of these settings; elsewhere none are noted."""
        with standin_cuda.emulating(**emulation) if self.name == "standin" else contextlib.nullcontext([]) as made:
            yield made


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of this name; bfloat16 is ml_dtypes', and the test is skipped where that is not installed."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def strict(a: Any) -> Any:
    """An array of array-api-strict; the test is skipped where that is not installed."""
    return pytest.importorskip("array_api_strict").asarray(np.asarray(a))


@contextlib.contextmanager
def running(name: str) -> Iterator[Impl]:
    """The implementation of this name; the test is skipped where it is missing."""
    if name == "strict":
        yield Impl(name, pytest.importorskip("array_api_strict"))
    elif name == "standin":
        with standin_cupy.installed() as cupy:
            yield Impl(name, cupy)
    elif name == "gpu":
        reason = backends.available()["cupy"]
        if reason:
            pytest.skip(f"no GPU here: {reason}")
        yield Impl(name, pytest.importorskip("cupy"))
    else:  # read-only arrays go to the kernels too, where there are any
        reason = cpu.unavailable()
        if name == "cpu" and reason:
            pytest.skip(reason)
        with kernels.mode("off" if name == "numpy" else "auto"):
            yield Impl(name, np)


# ------------------------------------------------------------------------------------------ kernels beside array code
def in_both_modes(call: Callable[[], Any]) -> tuple[Any, Any]:
    """What the array code gives, and the kernel."""
    found = []
    for mode in ("off", "require"):
        with kernels.mode(mode), np.errstate(invalid="ignore"):  # infinities of two signs may meet
            found.append(call())
    return found[0], found[1]


def names(made: list[standin_cuda.Launch]) -> list[str]:
    """The kernels of launches in their order; those of several turns are told once."""
    return list(dict.fromkeys(launch.name.partition("<")[0] for launch in made))


def agree(
    impl: Impl,
    op: str,
    x: Any,
    *args: Any,
    dy: Callable[[tuple[int, ...]], np.ndarray] | None = None,
    tolerance: float | None = None,
    near_dx: float | EllipsisType | None = ...,
    saved: bool = True,
    **options: Any,
) -> list[str]:
    """An op's kernels give the array code's answers: its bits, or within `tolerance`; of dx `near_dx`. These are y,
    with inference and without, dx from either one's context, and the context's arrays if `saved`. `dy` makes the
    gradient from y's shape, y is it otherwise; what integers and bools cannot have is left out. Gives the names of the
    CUDA kernels that ran, in the order of their first launches.
    """
    forward, backward = getattr(F, f"{op}_forward"), getattr(F, f"{op}_backward")

    def check(expected: Any, found: Any, tolerance: float | None) -> None:
        for a, b in zip(*(p if isinstance(p, tuple) else (p,) for p in (expected, found)), strict=True):
            assert (a is None) == (b is None)
            if a is not None and tolerance is None:
                impl.same(b, impl.numpy(a))
            elif a is not None:
                impl.near(b, impl.numpy(a), tolerance)

    with impl.launches() as made:
        (y, ours), (got, theirs) = in_both_modes(lambda: forward(x, *args, **options))
        check(y, got, tolerance)
        check(y, getattr(F, op)(x, *args, **options), tolerance)
        if saved:
            check(tuple(ours.arrays.values()), tuple(theirs.arrays.values()), tolerance)
        y = y[0] if isinstance(y, tuple) else y
        kind = impl.numpy(y).dtype.kind
        if kind == "b" or (kind in "iu" and options.get("ties") == "split"):
            return names(made)
        gradient = y if dy is None else impl.array(dy(tuple(y.shape)), impl.numpy(y).dtype)
        expected, found = in_both_modes(lambda: backward(gradient, ours))
        for other in (found, *in_both_modes(lambda: backward(gradient, theirs))):
            check(expected, other, tolerance if near_dx is ... else near_dx)
    return names(made)
