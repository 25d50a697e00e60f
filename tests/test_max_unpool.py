"""Max unpooling: values back where indices say, an index twice, indices out of range, PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers.testing import gradcheck

from .cases.arrays import FORMATS, line, ordered
from .implementations import Impl
from .reference import pool as reference

NUMBERED = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def test_a_small_plane(impl: Impl) -> None:
    x = impl.array([[[[5.0, 8], [9, 6]]]], "float32")
    y, ctx = F.max_unpool_forward(x, impl.array([[[[1, 6], [8, 14]]]]), 2)
    impl.same(y, np.array([[[[0, 5, 0, 0], [0, 0, 8, 0], [9, 0, 0, 0], [0, 0, 6, 0]]]], "float32"))
    dx = F.max_unpool_backward(impl.array(np.arange(16, dtype="float32").reshape(1, 1, 4, 4)), ctx)
    impl.same(dx, np.array([[[[1, 6], [8, 14]]]], "float32"))


def test_an_index_twice_the_last_in_c_order_wins(impl: Impl) -> None:
    x, indices = impl.array([[[[1.0, 2], [3, 4]]]]), impl.array([[[[5, 0], [5, 0]]]])
    y, ctx = F.max_unpool_forward(x, indices, 2)
    expected = np.zeros((1, 1, 4, 4))
    expected[0, 0, 1, 1], expected[0, 0, 0, 0] = 3, 4
    impl.same(y, expected)
    dx = F.max_unpool_backward(impl.array(np.arange(16.0).reshape(1, 1, 4, 4) + 1), ctx)
    impl.same(dx, np.array([[[[0.0, 0], [6, 1]]]]))  # only the winner gets the gradient


@FORMATS
@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize(
    ("lengths", "kernel", "stride", "padding"),
    [
        ((4,), 2, None, 0),
        ((3,), 3, 2, 1),
        ((3, 2), (2, 3), (2, 1), ((1, 0), (0, 2))),
        ((2, 3), 1, 1, 0),
        ((2, 2, 2), 2, None, 0),
    ],
)
def test_against_loops(
    impl: Impl,
    rng: np.random.Generator,
    data_format: str,
    dtype: str,
    lengths: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
) -> None:
    host = rng.standard_normal((2, 3, *lengths))
    size = F.max_unpool(host, np.zeros(host.shape, "int64"), kernel, stride, padding).shape[2:]
    at = rng.integers(0, math.prod(size), host.shape).astype(dtype)  # some more than once
    given = {"data_format": data_format}
    x, indices = impl.array(ordered(host, data_format)), impl.array(ordered(at, data_format))
    y, ctx = F.max_unpool_forward(x, indices, kernel, stride, padding, **given)
    impl.same(y, ordered(reference.max_unpool(host, at, size), data_format))
    impl.same(F.max_unpool(x, indices, kernel, stride, padding, **given), impl.numpy(y))
    dy = rng.standard_normal((2, 3, *size))
    array = impl.array(ordered(dy, data_format))
    impl.same(F.max_unpool_backward(array, ctx), ordered(reference.max_unpool_backward(dy, at), data_format))
    impl.same(F.max_unpool_backward(array, ctx), ordered(reference.max_unpool_backward(dy, at), data_format))
    impl.same(x, ordered(host, data_format))
    impl.same(indices, ordered(at, data_format))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pytorch_agrees(ndim: int) -> None:
    torch = pytest.importorskip("torch")
    pool = getattr(torch.nn.functional, f"max_pool{ndim}d")
    unpool = getattr(torch.nn.functional, f"max_unpool{ndim}d")
    rng = np.random.default_rng(ndim)
    for _ in range(20):
        kernel = int(rng.integers(1, 4))
        stride, padding = int(rng.integers(kernel, 5)), int(rng.integers(kernel // 2 + 1))  # no index comes twice
        lengths = tuple(map(int, rng.integers(5, 8, ndim)))
        y, indices = pool(
            torch.tensor(rng.standard_normal((2, 3, *lengths))), kernel, stride, padding, return_indices=True
        )
        x = y.clone().requires_grad_()
        expected = unpool(x, indices, kernel, stride, padding, output_size=lengths)
        dy = rng.standard_normal(expected.shape)
        expected.backward(torch.tensor(dy))
        ours, ctx = F.max_unpool_forward(y.numpy(), indices.numpy(), kernel, stride, padding, output_size=lengths)
        np.testing.assert_array_equal(ours, expected.detach().numpy())
        np.testing.assert_array_equal(F.max_unpool_backward(dy, ctx), x.grad.numpy())


@FORMATS
def test_gradient(rng: np.random.Generator, data_format: str) -> None:
    x = ordered(rng.standard_normal((2, 3, 3, 2)), data_format)
    indices = ordered(rng.integers(0, 24, (2, 3, 3, 2)), data_format)
    gradcheck(F.max_unpool, x, indices, 2, data_format=data_format)


@FORMATS
def test_it_undoes_a_pool(impl: Impl, rng: np.random.Generator, data_format: str) -> None:
    host = rng.standard_normal((2, 3, 7, 6))
    x = impl.array(ordered(host, data_format))
    y, indices = F.max_pool(x, 2, return_indices=True, data_format=data_format)
    back = F.max_unpool(y, indices, 2, output_size=(7, 6), data_format=data_format)
    peaks, places = reference.max_pool(host, reference.Pool((7, 6), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)))
    impl.same(back, ordered(reference.max_unpool(peaks, places, (7, 6)), data_format))
    again, _ = F.max_pool(back, 2, return_indices=True, data_format=data_format)
    assert (impl.numpy(again) >= impl.numpy(y)).all()  # where a peak is below 0, the zeros around it are higher


# ----------------------------------------------------------------------------------------------------------- dtypes
@pytest.mark.parametrize("dtype", NUMBERED)
def test_indices_of_any_integer_dtype(impl: Impl, dtype: str) -> None:
    y = F.max_unpool(impl.array(line(1, 2)), impl.array(line(3, 0, dtype=dtype)), 2)
    impl.same(y, line(2, 0, 0, 1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values_keep_their_bits(impl: Impl, dtype: str) -> None:
    kind = impl.dtype(dtype)
    x = np.array([[[-0.0, math.nan, math.inf]]]).astype(kind)
    x.view(f"u{kind.itemsize}")[0, 0, 1] |= 5  # a payload
    y, ctx = F.max_unpool_forward(impl.array(x), impl.array([[[5, 1, 2]]]), 2)
    expected = np.zeros((1, 1, 6), kind)
    expected[0, 0, [5, 1, 2]] = x[0, 0]
    impl.same(y, expected)
    impl.same(F.max_unpool_backward(impl.array(expected), ctx), x)


# ----------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("indices", [(0, 4), (-1, 0), (2**40, 0), (0, -(2**62))])
def test_indices_out_of_range(impl: Impl, indices: tuple[int, int]) -> None:
    x, at = impl.array(line(1, 2)), impl.array(line(*indices, dtype="int64"))
    if impl.name in ("standin", "gpu"):  # asking would stall a GPU: there a bad index is dropped
        y, ctx = F.max_unpool_forward(x, at, 2)
        good = [i for i in indices if 0 <= i < 4]
        expected = np.zeros((1, 1, 4))
        for k, i in enumerate(indices):
            if i in good:
                expected[0, 0, i] = k + 1
        impl.same(y, expected)
        dx = F.max_unpool_backward(impl.array(line(5, 6, 7, 8)), ctx)
        impl.same(dx, line(*(5 + i if i in good else 0 for i in indices)))
        return
    for op in (F.max_unpool, F.max_unpool_forward):
        with pytest.raises(ValueError, match=r"indices must be .*3"):
            op(x, at, 2)


def test_bad_arguments(impl: Impl) -> None:
    x, at = impl.array(np.zeros((1, 1, 2), "float32")), impl.array(np.zeros((1, 1, 2), "int64"))
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((x, impl.array(np.zeros((1, 1, 3), "int64")), 2), {}, ValueError, r"indices must have x's shape \(1, 1, 2\)"),
        ((x, impl.array(np.zeros((1, 1, 2), "float32")), 2), {}, TypeError, "indices must be integers"),
        ((x, impl.array(np.zeros((1, 1, 2), bool)), 2), {}, TypeError, "indices must be integers"),
        ((at, at, 2), {}, TypeError, "x must be float"),
        ((x, at, 0), {}, ValueError, "kernel_size"),
        ((x, at, 2, 0), {}, ValueError, "stride"),
        ((x, at, 2, 2, 2), {}, ValueError, "padding"),
        ((x, at, 2, 2, "same"), {}, ValueError, "padding of max_unpool must be numbers"),
        ((x, at, 2), {"output_size": 9}, ValueError, "output_size"),
        ((x, at, 2), {"data_format": "NCW"}, ValueError, "data_format"),
        ((x, [[[0, 0]]], 2), {}, TypeError, "indices must be an array"),
        ((x, None, 2), {}, TypeError, "indices"),
    ]
    for args, options, error, said in cases:
        for op in (F.max_unpool, F.max_unpool_forward):
            with pytest.raises(error, match=said):
                op(*args, **options)


def test_indices_of_another_owner() -> None:
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match=r"x is numpy on cpu, indices is array_api_strict on"):
        F.max_unpool(np.zeros((1, 1, 2)), strict.zeros((1, 1, 2), dtype=strict.int64), 2)


def test_empty_batches(impl: Impl) -> None:
    for shape in ((0, 3, 2), (2, 0, 2)):
        x, at = impl.array(np.zeros(shape, "float32")), impl.array(np.zeros(shape, "int64"))
        y, ctx = F.max_unpool_forward(x, at, 2)
        impl.numpy(y, (*shape[:2], 4), "float32")
        impl.numpy(F.max_unpool_backward(y, ctx), shape, "float32")
