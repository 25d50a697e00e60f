"""Pooling's kernels beside the array code, wherever there are kernels: its bits or what is near, and its contexts."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from . import simt
from .cases.arrays import FORMATS, drawn, line, ordered, rivals
from .cases.max_pool import TIES
from .cases.windows import ADAPTIVE, SHAPES, for_kernels, options, some_pool
from .implementations import FLOATS, INTEGERS, Impl, agree, numpy_dtype

NEAR = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2e-6, "float64": 1e-13}  # sums in another order
EACH_FLOAT = pytest.mark.parametrize("dtype", FLOATS)
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # ml_dtypes and NaN


@pytest.mark.sample(10)
@FORMATS
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_max_pools_have_the_array_codes_bits(
    kernel: Impl, dtype: str, data_format: str, rng: np.random.Generator
) -> None:
    kind = kernel.dtype(dtype)
    if kernel.name == "cpu" and kind.kind in "iub":
        pytest.skip("the CPU kernels take no integers")
    for number, (shape, given) in enumerate(for_kernels(SHAPES if dtype == "float32" else [])):
        x = kernel.array(ordered(rivals(rng, shape, kind), data_format))
        for turn, ties in enumerate(TIES):
            given |= {"ties": ties, "return_indices": (number + turn) % 2 > 0, "data_format": data_format}
            with kernel.launches(order=simt.ORDERS[number % 3], seed=number):
                # what is saved of a window without cells is open where the first wins
                agree(kernel, "max_pool", x, dy=partial(drawn, rng, dtype=kind), saved=ties != "first", **given)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_large_windows_whose_maxima_are_zeros_of_both_signs(kernel: Impl, dtype: str, rng: np.random.Generator) -> None:
    x = rng.choice(np.array([-1.0, -0.0, 0.0, np.nan], dtype), (2, 3, 9, 40), p=[0.599, 0.2, 0.2, 0.001])
    for args in ((5, 1, 2), (4, 3), ((2, 9), 1), ((9, 40),)):
        agree(kernel, "max_pool", kernel.array(x), *args, near_dx=0.0)  # a lone −0 may become 0
    for size in ((1, 1), (2, 3), (4, 7)):
        agree(kernel, "adaptive_max_pool", kernel.array(x), size, near_dx=0.0)


@pytest.mark.sample(6)
@FORMATS
@EACH_FLOAT
def test_averages_and_sums_are_near_the_array_codes(
    kernel: Impl, dtype: str, data_format: str, rng: np.random.Generator
) -> None:
    kind = kernel.dtype(dtype)
    for number, (shape, given) in enumerate(for_kernels([(1, 9, 7, 36)])):
        x = kernel.array(ordered(rng.standard_normal(shape).astype(kind), data_format))
        check = partial(agree, kernel, x=x, dy=rng.standard_normal, tolerance=NEAR[dtype], data_format=data_format)
        with kernel.launches(order=simt.ORDERS[number % 3], seed=number):
            check("sum_pool", **given)
            for count in ({}, {"count_include_pad": False}, {"divisor_override": -3}):
                check("avg_pool", **given, **count)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_divisors_at_random(kernel: Impl, ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    for _ in range(25):
        pool = some_pool(rng, ndim)
        x = kernel.array(rng.standard_normal((1, 2, *pool.lengths)))
        agree(kernel, "avg_pool", x, tolerance=1e-13, **options(pool), count_include_pad=bool(rng.integers(2)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, 1, 2, 1), (5, 2, 2)),
        ((1, 1, 1, 2), ((2, 9), (3, 1), [(1, 1), (4, 4)])),
        ((1, 1, 3, 1), ((7, 5), (2, 5), [(3, 3), (2, 2)])),
        ((1, 1, 1, 3, 1), ((1, 7, 5), (1, 2, 5), [(0, 0), (3, 3), (2, 2)])),
    ],
)
def test_rows_of_windows_that_see_the_same_cells_may_have_different_divisors(
    kernel: Impl, shape: Any, sizes: Any, dtype: str
) -> None:
    x = kernel.array(np.arange(1, 1 + np.prod(shape)).reshape(shape), dtype)
    agree(kernel, "avg_pool", x, *sizes, ceil_mode=True, tolerance=1e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 1.5])
def test_a_nan_in_x_is_a_nan_in_the_gradient_of_an_lp_pool(kernel: Impl, p: float) -> None:
    x = kernel.array(line(1, np.nan, -2, np.inf, 0, 3, dtype="float32"))
    agree(kernel, "lp_pool", x, 2, norm_type=p, dy=np.ones, tolerance=1e-6)


@pytest.mark.sample(6)
@FORMATS
@EACH_FLOAT
def test_adaptive_pools(kernel: Impl, dtype: str, data_format: str, rng: np.random.Generator) -> None:
    kind = kernel.dtype(dtype)
    for lengths, out in ADAPTIVE:
        shape, given = (2, 3, *lengths), {"data_format": data_format}
        x = kernel.array(ordered(rivals(rng, shape, kind), data_format))
        # where lengths divide, one sum is left out and −0 stays −0
        agree(kernel, "adaptive_max_pool", x, out, dy=partial(drawn, rng, dtype=kind), near_dx=0.0, **given)
        x = kernel.array(ordered(rng.standard_normal(shape).astype(kind), data_format))
        agree(kernel, "adaptive_avg_pool", x, out, dy=rng.standard_normal, tolerance=NEAR[dtype], **given)


@FORMATS
@EACH_FLOAT
def test_repeated_indices_of_an_unpool(kernel: Impl, dtype: str, data_format: str, rng: np.random.Generator) -> None:
    kind = kernel.dtype(dtype)
    for lengths in ((7,), (3, 4), (2, 3, 2)):
        x = kernel.array(ordered(rivals(rng, (2, 3, *lengths), kind), data_format))
        plane = 2 ** len(lengths) * int(np.prod(lengths))
        for most in (plane, 3):
            indices = kernel.array(ordered(rng.integers(0, most, (2, 3, *lengths)), data_format))
            for number, order in enumerate(simt.ORDERS):
                with kernel.launches(order=order, seed=number):
                    dy = partial(rivals, rng, dtype=kind)
                    ran = agree(kernel, "max_unpool", x, indices, 2, dy=dy, data_format=data_format)
            if kernel.name == "standin":
                assert ran == ["max_unpool_claim", "max_unpool_write", "max_unpool_backward"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_indices_of_any_dtype(kernel: Impl, dtype: str, rng: np.random.Generator) -> None:
    x = kernel.array(rivals(rng, (2, 3, 4, 4), numpy_dtype("float32")))
    agree(kernel, "max_unpool", x, kernel.array(rng.integers(0, 64, (2, 3, 4, 4)), dtype), 2)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_views_are_read_and_not_written(kernel: Impl, op: str, rng: np.random.Generator) -> None:
    whole = kernel.array(rng.standard_normal((3, 12, 14, 4)).astype("float32"))
    views = [
        lambda a: a[::-1, ::2, 1:].transpose(0, 3, 2, 1),
        lambda a: a.transpose(3, 1, 2, 0),
        lambda a: a[:, ::-2, :, ::-3],
        lambda a: a[1:, :, 2:, 1:],
    ]
    if kernel.name == "cpu":
        whole.flags.writeable = False
    before = kernel.numpy(whole).tobytes()
    for view in views:
        x = view(whole)
        agree(kernel, op, x, 3, 2, 1, tolerance=None if op == "max_pool" else 2e-6)
    assert kernel.numpy(whole).tobytes() == before


@FORMATS
@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "sum_pool", "lp_pool"])
def test_no_channels_and_no_samples_touch_nothing(kernel: Impl, op: str, data_format: str) -> None:
    for shape in ((0, 6, 6, 6), (2, 0, 6, 6)):
        x = kernel.array(ordered(np.empty(shape, "float32"), data_format))
        assert agree(kernel, op, x, 3, stride=2, padding=1, data_format=data_format) == []
        assert agree(kernel, "adaptive_avg_pool", x, 2, data_format=data_format) == []
    nothing = kernel.array(np.zeros((0, 3, 4), "float32"))
    assert agree(kernel, "max_unpool", nothing, kernel.array(np.zeros((0, 3, 4), "int64")), 2) == []
