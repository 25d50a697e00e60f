"""Local response normalisation against small cases, loops, differences and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers.testing import gradcheck

from .cases.arrays import channels_last
from .implementations import HALF, Impl
from .reference import norm as reference

OPTIONS = {"alpha": 0.7, "beta": 0.6, "k": 1.5}
SHAPES = [(2, 5), (2, 4, 3), (1, 6, 2, 2), (2, 3, 1, 2, 2)]


@pytest.mark.parametrize(
    ("size", "sums"),
    [
        (1, [1, 4, 9, 16]),
        (2, [1, 5, 13, 25]),  # an even window has its larger half before
        (3, [5, 14, 29, 25]),
        (4, [5, 14, 30, 29]),
        (7, [30, 30, 30, 30]),
        (100, [30, 30, 30, 30]),
    ],
)
def test_small_cases(impl: Impl, size: int, sums: list[float]) -> None:
    x = impl.array([[1.0, 2.0, 3.0, 4.0]])
    y = F.local_response_norm(x, size, alpha=float(size), beta=1.0, k=2.0)
    impl.close(y, np.array([[1.0, 2.0, 3.0, 4.0]]) / (2.0 + np.array(sums)), rtol=1e-12)


def test_alpha_is_divided_by_size(impl: Impl) -> None:
    impl.close(F.local_response_norm(impl.array([[2.0]]), 4, alpha=1.0, beta=1.0, k=0.0), [[2.0]])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_loops(impl: Impl, shape: tuple[int, ...], size: int, rng: np.random.Generator) -> None:
    x, dy = rng.normal(size=shape), rng.normal(size=shape)
    wanted = reference.local_response(x, dy, size, **OPTIONS)
    y, ctx = F.local_response_norm_forward(impl.array(x), size, **OPTIONS)
    for found, expected in zip((y, F.local_response_norm_backward(impl.array(dy), ctx)), wanted, strict=True):
        impl.close(found, expected, rtol=1e-11, atol=1e-13)
    impl.same(F.local_response_norm(impl.array(x), size, **OPTIONS), impl.numpy(y))
    y, ctx = F.local_response_norm_forward(impl.array(channels_last(x)), size, **OPTIONS, data_format="channels_last")
    dx = F.local_response_norm_backward(impl.array(channels_last(dy)), ctx)
    for found, expected in zip((y, dx), wanted, strict=True):
        impl.close(found, channels_last(expected), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("options", [OPTIONS, {}, {"alpha": -0.01, "beta": -0.5}, {"beta": 0.0}])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_gradients(size: int, options: dict[str, Any], rng: np.random.Generator) -> None:
    gradcheck(F.local_response_norm, rng.normal(size=(2, 4, 3)), size, **options)
    gradcheck(F.local_response_norm, rng.normal(size=(2, 3, 4)), size, data_format="channels_last", **options)


@HALF
def test_dtypes(impl: Impl, dtype: str, rng: np.random.Generator) -> None:
    x, dy = rng.normal(size=(2, 4, 3)).astype(dtype), rng.normal(size=(2, 4, 3)).astype(dtype)
    y, ctx = F.local_response_norm_forward(impl.array(x), 3, **OPTIONS)
    dx = F.local_response_norm_backward(impl.array(dy), ctx)
    tolerance = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-12}[dtype]
    for found, expected in zip((y, dx), reference.local_response(x, dy, 3, **OPTIONS), strict=True):
        impl.close(found, expected, rtol=tolerance, atol=tolerance, dtype=dtype)


def test_half_types_are_squared_in_more(impl: Impl) -> None:
    y = F.local_response_norm(impl.array([[300.0, 300.0]], "float16"), 1, alpha=1.0, beta=0.5, k=0.0)
    impl.close(y, [[1.0, 1.0]], dtype="float16", rtol=1e-3)


def test_nan_reaches_the_windows_that_hold_it(impl: Impl) -> None:
    y, ctx = F.local_response_norm_forward(impl.array([[1.0, np.nan, 3.0, 4.0]]), 2)
    assert np.isnan(impl.numpy(y)).tolist() == [[False, True, True, False]]
    dx = F.local_response_norm_backward(impl.array(np.ones((1, 4))), ctx)
    assert np.isnan(impl.numpy(dx)).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_empty_gives_empty(impl: Impl, shape: tuple[int, ...]) -> None:
    x = impl.array(np.ones(shape), "float32")
    y, ctx = F.local_response_norm_forward(x, 3)
    impl.same(y, np.ones(shape, "float32"))
    impl.same(F.local_response_norm_backward(x, ctx), np.ones(shape, "float32"))


def test_context_keeps_x_alone(impl: Impl) -> None:
    x = impl.array(np.ones((2, 4, 3)), "float32")
    _, ctx = F.local_response_norm_forward(x, 3)
    assert ctx.nbytes == 4 * 24
    first, second = (F.local_response_norm_backward(x, ctx) for _ in range(2))
    impl.same(first, impl.numpy(second))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_strides_and_memory_order_stay(dtype: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 4, 3)).astype(dtype)
    y, ctx = F.local_response_norm_forward(x, 3)
    turned, turned_ctx = F.local_response_norm_forward(np.asfortranarray(x), 3)
    np.testing.assert_array_equal(turned, y)
    assert turned.flags.f_contiguous
    dx = F.local_response_norm_backward(x[::-1].copy()[::-1], turned_ctx)
    np.testing.assert_array_equal(dx, F.local_response_norm_backward(x, ctx))


@pytest.mark.parametrize(
    ("x", "size", "options", "error", "said"),
    [
        (np.ones((2, 3), int), 3, {}, TypeError, "x must be float"),
        (np.ones(3), 3, {}, ValueError, "x must have"),
        (np.ones((2, 3)), 0, {}, ValueError, "size must be at least 1, got 0"),
        (np.ones((2, 3)), 2.0, {}, TypeError, "size must be an int"),
        (np.ones((2, 3)), 3, {"alpha": "a"}, TypeError, "alpha must be a real number"),
        (np.ones((2, 3)), 3, {"beta": float("inf")}, ValueError, "beta must be finite"),
        (np.ones((2, 3)), 3, {"k": float("nan")}, ValueError, "k must be finite"),
        (np.ones((2, 3)), 3, {"data_format": "NHWC"}, ValueError, "data_format"),
    ],
)
def test_errors(x: Any, size: Any, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        F.local_response_norm(x, size, **options)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_against_torch(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, dy = rng.normal(size=shape), rng.normal(size=shape)
    leaf = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.local_response_norm(leaf, size, **OPTIONS)
    expected.backward(torch.tensor(dy))
    y, ctx = F.local_response_norm_forward(x, size, **OPTIONS)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(F.local_response_norm_backward(dy, ctx), leaf.grad.numpy(), rtol=1e-9, atol=1e-12)
