"""Products by cuBLAS on the stand-in: which flags and strides a stack of matrices gets, and that nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.kernels.cuda import matmul as launchers

from . import standin_cublas
from .implementations import numpy_dtype, on_emulator

pytestmark = on_emulator

NEAR = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 1e-5, "float64": 1e-12}
FLOATS = pytest.mark.parametrize("dtype", list(NEAR))


def stored(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, turned: bool) -> np.ndarray:
    """Random matrices, stored as their transposes if `turned`."""
    a = rng.integers(-4, 5, shape).astype(numpy_dtype(dtype))
    return a.swapaxes(-1, -2).copy().swapaxes(-1, -2) if turned else a


@pytest.fixture
def no_copies(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever copies or converts an array fails."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an array is copied")

    for name in ("ascontiguousarray", "astype", "matmul", "dot"):
        monkeypatch.setattr(cupy, name, refuse, raising=False)


SHAPES = [
    ((3, 4), (4, 5)),
    ((6, 3, 4), (6, 4, 5)),
    ((3, 4), (6, 4, 5)),
    ((2, 6, 3, 4), (6, 4, 5)),
    ((7, 1, 3, 4), (4, 5)),
    ((1, 4), (4, 1)),
    ((2, 3, 1), (2, 1, 5)),
]


@FLOATS
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_stacks_of_any_order_are_read_as_they_lie(
    cupy: Any, no_copies: None, dtype: str, turned: tuple[bool, bool], rng: np.random.Generator
) -> None:
    b = backends.of(cupy.asarray(np.ones(1)))
    for shapes in SHAPES:
        x, w = (stored(rng, shape, dtype, t) for shape, t in zip(shapes, turned, strict=True))
        standin_cublas.calls.clear()
        y = launchers.matmul(b, None, cupy.ndarray(x), cupy.ndarray(w)).get()
        wide = np.float64 if dtype == "float64" else np.float32
        expected = np.matmul(x.astype(wide), w.astype(wide))
        assert (y.dtype, y.tolist()) == (wide, expected.tolist())  # small integers: sums are exact
        assert len(standin_cublas.calls) == min((*(1,) * (2 - len(y.shape[:-2])), *y.shape[:-2]), default=1)


def test_other_orders_are_copied_and_empty_sums_are_zero(cupy: Any, rng: np.random.Generator) -> None:
    b = backends.of(cupy.asarray(np.ones(1)))
    x, w = rng.integers(-4, 5, (6, 8)).astype("float32"), rng.integers(-4, 5, (4, 3)).astype("float32")
    for view in (x[:, ::2], x[::-1, 4:], x[:, :4][:, ::-1]):
        assert launchers.matmul(b, None, cupy.ndarray(view), cupy.ndarray(w)).get().tolist() == (view @ w).tolist()
    assert launchers.matmul(b, None, cupy.ndarray(x[:, :0]), cupy.ndarray(w[:0])).get().tolist() == [[0.0] * 3] * 6
    assert launchers.matmul(b, None, cupy.ndarray(x[:0, :4]), cupy.ndarray(w)).get().shape == (0, 3)


def test_what_cublas_does_not_take_is_refused(cupy: Any) -> None:
    one, other = (cupy.asarray(np.ones((2, 2), dtype)) for dtype in ("float32", "float64"))
    assert "float32 and float64" in str(launchers.refuses("matmul", None, one, other))
    assert launchers.refuses("matmul", None, one, one) is None
    assert "complex64" in str(launchers.refuses("matmul", None, *(cupy.asarray(np.ones((2, 2), "complex64")),) * 2))


def test_the_stand_in_finds_wrong_steps_and_ends(cupy: Any) -> None:
    a = cupy.asarray(np.ones((4, 4), "float32"))
    one, zero = launchers.ADDRESSES["float32"]
    for step, number, said in ((3, 1, "leading dimension of 3 for 4"), (4, 2, "EXECUTION_FAILED")):
        with pytest.raises(standin_cublas.CUBLASError, match=said):
            cupy.cuda.cublas.gemmStridedBatchedEx(
                1, 0, 0, 4, 4, 4, one, a.data.ptr, 0, step, 16, a.data.ptr, 0, 4, 16, zero, a.data.ptr, 0, 4, 16,
                number, 68, -1,
            )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- convolutions
CONVS = [
    ((3, 8, 9, 7), (12, 8, 3, 3), (1, 1, 1, 1)),
    ((3, 8, 9, 7), (12, 8, 1, 1), (1, 0, 1, 1)),
    ((3, 8, 9, 7), (12, 4, 3, 3), (2, 1, 1, 2)),
    ((3, 8, 9), (12, 2, 2), (1, ((1, 0),), 2, 4)),
    ((2, 4, 5, 6, 5), (3, 4, 2, 2, 2), (1, 0, 1, 1)),
]


@FLOATS
@pytest.mark.parametrize(("shape", "weight", "options"), CONVS)
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_convolutions(
    cupy: Any, dtype: str, shape: Any, weight: Any, options: Any, data_format: Any, rng: np.random.Generator
) -> None:
    """Near the array code's in float64; half types go into the products as they are."""
    kind = numpy_dtype(dtype)
    x, w, bias = (rng.standard_normal(s).astype(kind) for s in (shape, weight, weight[:1]))
    x = np.moveaxis(x, 1, -1).copy() if data_format == "channels_last" else x
    standin_cublas.calls.clear()
    y, ctx = F.conv_forward(*map(cupy.asarray, (x, w, bias)), *options, data_format=data_format)
    assert len(standin_cublas.calls) == 1
    dy = rng.standard_normal(y.shape).astype(kind)
    found = [y, *F.conv_backward(cupy.asarray(dy), ctx)]
    with kernels.mode("off"):
        right, ctx = F.conv_forward(*(a.astype("float64") for a in (x, w, bias)), *options, data_format=data_format)
        expected = (right, *F.conv_backward(dy.astype("float64"), ctx))
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == kind
        most = np.abs(wanted).max()
        np.testing.assert_allclose(got.get().astype("float64"), wanted, rtol=NEAR[dtype], atol=NEAR[dtype] * most)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_in_half_precision_makes_no_float32_copy_of_x(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, kernel: int
) -> None:
    x, w = (cupy.asarray(np.ones(s, "float16")) for s in ((2, 8, 9, 9), (4, 8, kernel, kernel)))
    made: list[tuple[int, str]] = []
    real = cupy.astype

    def astype(a: Any, dtype: Any, **given: Any) -> Any:
        made.append((a.size, np.dtype(dtype).name))
        return real(a, dtype, **given)

    monkeypatch.setattr(cupy, "astype", astype, raising=False)
    F.conv(x, w, None, 1, kernel // 2)
    assert made == [(2 * 4 * 81, "float16")]  # the product alone, to y's dtype
