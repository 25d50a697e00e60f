"""Adaptive average and max pooling against loops, PyTorch and the ordinary pools they are where the lengths divide."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.testing import gradcheck

from .cases.arrays import FORMATS, line, ordered
from .implementations import Impl
from .reference import pool as reference
from .reference.pool import Adaptive

# Fewer windows than cells, as many, more; lengths that divide and lengths that do not.
CASES = [
    Adaptive((7,), (3,)),
    Adaptive((5,), (8,)),
    Adaptive((6,), (6,)),
    Adaptive((6, 8), (3, 2)),
    Adaptive((6, 8), (1, 1)),
    Adaptive((5, 7), (2, 4)),
    Adaptive((3, 5), (4, 3)),
    Adaptive((4, 3, 5), (3, 2, 2)),
]
BY_CASE = pytest.mark.parametrize("pool", CASES, ids=lambda p: f"{p.lengths}to{p.out}")


def test_small_lines(impl: Impl) -> None:
    x = impl.array(line(1, 5, 3, 2, 9))  # windows of 3 from 5 cells: 0-1, 1-3, 3-4
    y, ctx = F.adaptive_avg_pool_forward(x, 3)
    impl.close(y, line(3, 10 / 3, 5.5))
    impl.close(F.adaptive_avg_pool_backward(impl.array(line(2, 6, 4)), ctx), line(1, 3, 2, 4, 2))
    y, ctx = F.adaptive_max_pool_forward(x, 3)
    impl.same(y, line(5, 5, 9))
    impl.same(F.adaptive_max_pool_backward(impl.array(line(2, 6, 4)), ctx), line(0, 8, 0, 0, 4))


def test_global_pools(impl: Impl) -> None:
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    impl.close(F.adaptive_avg_pool(impl.array(x), 1), x.mean((2, 3), keepdims=True))
    impl.same(F.adaptive_max_pool(impl.array(x), 1), x.max((2, 3), keepdims=True))


@BY_CASE
@FORMATS
def test_against_loops(impl: Impl, rng: np.random.Generator, pool: Adaptive, data_format: str) -> None:
    host = rng.standard_normal((2, 3, *pool.lengths))
    x, out = impl.array(ordered(host, data_format)), {"data_format": data_format}
    dy = rng.standard_normal((2, 3, *pool.out))
    array = impl.array(ordered(dy, data_format))

    y, ctx = F.adaptive_avg_pool_forward(x, pool.out, **out)
    impl.close(y, ordered(reference.avg_pool(host, pool), data_format))
    impl.same(F.adaptive_avg_pool(x, pool.out, **out), impl.numpy(y))
    dx = reference.avg_pool_backward(dy, pool)
    impl.close(F.adaptive_avg_pool_backward(array, ctx), ordered(dx, data_format))
    assert ctx.nbytes == 0

    for values in (host, host.round(), np.where(host > 0.8, math.nan, host)):  # distinct, ties, NaNs
        x = impl.array(ordered(values, data_format))
        expected, _ = reference.max_pool(values, pool)
        y, ctx = F.adaptive_max_pool_forward(x, pool.out, **out)
        impl.same(y, ordered(expected, data_format))
        impl.same(F.adaptive_max_pool(x, pool.out, **out), ordered(expected, data_format))
        dx = reference.max_pool_backward(dy, values, pool)
        impl.close(F.adaptive_max_pool_backward(array, ctx), ordered(dx, data_format))
        assert ctx.nbytes == expected.size  # one byte an output
    impl.same(array, ordered(dy, data_format))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pytorch_agrees(ndim: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(ndim)
    for _ in range(30):
        lengths, out = (tuple(map(int, rng.integers(1, 8 if ndim < 3 else 5, ndim))) for _ in range(2))
        x = rng.permutation(6 * math.prod(lengths)).astype("float64").reshape(2, 3, *lengths)
        for kind in ("avg", "max"):
            t = torch.tensor(x, requires_grad=True)
            expected = getattr(torch.nn.functional, f"adaptive_{kind}_pool{ndim}d")(t, out)
            y, ctx = getattr(F, f"adaptive_{kind}_pool_forward")(x, out)
            np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, err_msg=f"{kind} {lengths} {out}")
            dy = rng.standard_normal(y.shape)
            expected.backward(torch.tensor(dy))
            dx = getattr(F, f"adaptive_{kind}_pool_backward")(dy, ctx)
            np.testing.assert_allclose(dx, t.grad.numpy(), atol=1e-12, err_msg=f"{kind} {lengths} {out}")


@BY_CASE
@FORMATS
def test_gradient(rng: np.random.Generator, pool: Adaptive, data_format: str) -> None:
    x = ordered(rng.standard_normal((2, 2, *pool.lengths)), data_format)
    for op in (F.adaptive_avg_pool, F.adaptive_max_pool):
        gradcheck(op, x, pool.out, data_format=data_format)


def test_where_the_lengths_divide_it_is_the_ordinary_pool(impl: Impl, rng: np.random.Generator) -> None:
    host = rng.standard_normal((2, 3, 6, 8)).astype("float32")
    x = impl.array(host)
    for out in itertools.product((1, 2, 3, 6), (1, 2, 4, 8)):
        kernel = (6 // out[0], 8 // out[1])
        impl.same(F.adaptive_max_pool(x, out), impl.numpy(F.max_pool(x, kernel)))
        impl.close(F.adaptive_avg_pool(x, out), impl.numpy(F.avg_pool(x, kernel)))


def test_none_keeps_an_axis(impl: Impl, rng: np.random.Generator) -> None:
    host = rng.standard_normal((2, 3, 5, 4))
    for op in (F.adaptive_avg_pool, F.adaptive_max_pool):
        x = impl.array(host)
        impl.same(op(x, (None, 2)), impl.numpy(op(x, (5, 2))))
        impl.same(op(x, (3, None)), impl.numpy(op(x, (3, 4))))
        impl.close(op(x, (None, None)), host)
        last = impl.array(ordered(host, "channels_last"))
        impl.same(op(last, (None, 2), data_format="channels_last"), ordered(impl.numpy(op(x, (5, 2))), "channels_last"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_add_up_in_float32(impl: Impl, dtype: str) -> None:  # candle PR 3719
    kind = impl.dtype(dtype)
    for lengths, out in [((64, 64), 1), ((65, 65), 2)]:
        x = impl.array(np.ones((1, 1, *lengths), kind))
        impl.same(F.adaptive_avg_pool(x, out), np.ones((1, 1, out, out), kind))
        y, ctx = F.adaptive_max_pool_forward(x, out)
        impl.same(y, np.ones((1, 1, out, out), kind))
        impl.numpy(F.adaptive_max_pool_backward(y, ctx), (1, 1, *lengths), kind)


@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize("cells", [33, 49, 64, 200])
def test_a_whole_planes_sum_may_be_beyond_float32(cells: int, mode: str) -> None:
    x = np.full((1, 3, cells), 2e37, "float32")
    with kernels.mode(mode):
        np.testing.assert_allclose(F.adaptive_avg_pool(x, 1), x[..., :1], rtol=1e-6)


def test_a_large_window_takes_two_bytes_an_output(impl: Impl) -> None:
    x = np.zeros((1, 2, 34, 17), "float32")
    x[:, :, 16::17, -1] = 1  # the last cell of each window
    y, ctx = F.adaptive_max_pool_forward(impl.array(x), (2, 1))
    assert ctx.nbytes == 2 * 4
    impl.same(F.adaptive_max_pool_backward(y, ctx), x)


@pytest.mark.parametrize("name", ["avg", "max"])
@pytest.mark.parametrize(
    ("size", "error"),
    [
        (0, ValueError),
        ((1, 2, 3), ValueError),
        ((2,), ValueError),
        (-1, ValueError),
        (2.0, TypeError),
        ("2", TypeError),
    ],
)
def test_bad_sizes(impl: Impl, name: str, size: Any, error: type[Exception]) -> None:
    x = impl.array(np.zeros((1, 1, 4, 4), "float32"))
    for op in (getattr(F, f"adaptive_{name}_pool"), getattr(F, f"adaptive_{name}_pool_forward")):
        with pytest.raises(error, match="output_size"):
            op(x, size)
