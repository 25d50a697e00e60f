"""Average, sum and Lp pooling against loops and PyTorch: divisors, ceil mode, asymmetric pads, powers, half types."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers.testing import gradcheck

from .cases.arrays import FORMATS, line, ordered
from .cases.avg_pool import DIVISORS, POWERS, looped
from .cases.windows import BY_CASE, options, some_pool
from .implementations import Impl
from .reference import pool as reference
from .reference.pool import Pool


# --------------------------------------------------------------------------------------------------------- small cases
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [3, 8]),
        ({"divisor_override": 3}, [2, 16 / 3]),
        ({"divisor_override": -1}, [-6, -16]),
        ({"padding": 1}, [0.5, 3.5, 9]),
        ({"padding": 1, "count_include_pad": False}, [1, 3.5, 9]),
        ({"ceil_mode": True}, [3, 8, 4]),  # the overhang never counts
        ({"ceil_mode": True, "count_include_pad": False}, [3, 8, 4]),
        ({"ceil_mode": True, "divisor_override": 2}, [3, 8, 2]),
        ({"padding": ((0, 1),)}, [3, 8, 2]),  # declared padding does
        ({"padding": ((0, 1),), "count_include_pad": False}, [3, 8, 4]),
    ],
)
def test_divisors(impl: Impl, given: dict[str, Any], expected: list[float]) -> None:
    impl.close(F.avg_pool(impl.array(line(1, 5, 2, 14, 4)), 2, **given), line(*expected))


def test_backward_of_a_small_average(impl: Impl) -> None:
    _, ctx = F.avg_pool_forward(impl.array(line(1, 5, 2, 14, 4)), 3, 2, 1, count_include_pad=False)
    dx = F.avg_pool_backward(impl.array(line(2, 3, 8)), ctx)
    impl.close(dx, line(1, 1 + 1, 1, 1 + 4, 4))


def test_overlapping_windows_add_their_gradients(impl: Impl) -> None:  # the tutorials wrote = where += is right
    x = impl.array(line(1, 2, 3, 4))
    dy = impl.array(line(3, 6))
    impl.close(F.avg_pool_backward(dy, F.avg_pool_forward(x, 3, 1)[1]), line(1, 3, 3, 2))
    impl.close(F.sum_pool_backward(dy, F.sum_pool_forward(x, 3, 1)[1]), line(3, 9, 9, 6))
    impl.close(F.lp_pool_backward(dy, F.lp_pool_forward(x, 3, 1.0, 1)[1]), line(3, 9, 9, 6))


def test_small_sums_and_powers(impl: Impl) -> None:
    x = impl.array(line(3, -4, 0, 12))
    impl.close(F.sum_pool(x, 2), line(-1, 12))
    impl.close(F.lp_pool(x, 2), line(5, 12))  # the norm type is 2 unless another is given
    impl.close(F.lp_pool(x, 2, 1), line(7, 12))  # absolute values, which PyTorch leaves out
    impl.close(F.lp_pool(x, 2, 3), line(91 ** (1 / 3), 12))
    _, ctx = F.lp_pool_forward(x, 2)
    impl.close(F.lp_pool_backward(impl.array(line(10, 1)), ctx), line(6, -8, 0, 1))


# ------------------------------------------------------------------------------------------------- against the loops
@BY_CASE
@FORMATS
@pytest.mark.parametrize("op", ["avg", "sum", "lp"])
def test_against_loops(impl: Impl, op: str, pool: Pool, data_format: str) -> None:
    expected = {key: [ordered(a, data_format) for a in pair] for key, pair in looped(pool).items()}
    host, dy = expected["given"]
    x, array = impl.array(host), impl.array(dy)
    given = options(pool) | {"data_format": data_format}
    cases: dict[Any, dict[str, Any]] = {
        "avg": {d: {"count_include_pad": d[0], "divisor_override": d[1]} for d in DIVISORS},
        "sum": {"sum": {}},
        "lp": {p: {"norm_type": p} for p in POWERS},
    }[op]
    for key, option in cases.items():
        y, ctx = getattr(F, f"{op}_pool_forward")(x, **given, **option)
        impl.close(y, expected[key][0])
        impl.same(getattr(F, f"{op}_pool")(x, **given, **option), impl.numpy(y))
        impl.close(getattr(F, f"{op}_pool_backward")(array, ctx), expected[key][1])
        assert ctx.nbytes == (host.nbytes if op == "lp" else 0)  # Lp needs x again, the others nothing
    impl.same(x, host)
    impl.same(array, dy)


def test_ceil_mode_with_asymmetric_pads_never_miscounts() -> None:  # onnx#4958, onnxruntime PR 27375
    rng = np.random.default_rng(4958)
    for ndim in (1, 2, 3) * 40:
        pool = some_pool(rng, ndim)
        x = rng.standard_normal((1, 2, *pool.lengths))
        for include_pad in (True, False):
            y = F.avg_pool(x, **options(pool), count_include_pad=include_pad)
            assert np.isfinite(y).all(), pool
            np.testing.assert_allclose(y, reference.avg_pool(x, pool, include_pad), atol=1e-12, err_msg=str(pool))
            ones = F.avg_pool(np.ones_like(x), **options(pool), count_include_pad=False)
            assert set(np.unique(ones.round(12))) <= {0.0, 1.0}, pool  # the average of ones, or no cell at all


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pytorch_agrees(ndim: int) -> None:
    torch = pytest.importorskip("torch")
    average = getattr(torch.nn.functional, f"avg_pool{ndim}d")
    power = getattr(torch.nn.functional, f"lp_pool{ndim}d")
    rng, done = np.random.default_rng(ndim), 0
    while done < 25:
        pool = some_pool(rng, ndim)
        half = tuple(min(p[0], k // 2) for p, k in zip(pool.padding, pool.kernel, strict=True))
        if any(n < k for n, k in zip(pool.lengths, pool.kernel, strict=True)):
            continue
        done += 1
        x = rng.standard_normal((2, 3, *pool.lengths))
        size = (pool.kernel, pool.stride) if ndim > 1 else (pool.kernel[0], pool.stride[0])
        given: dict[str, Any] = {"ceil_mode": bool(rng.integers(2)), "count_include_pad": bool(rng.integers(2))}
        if ndim > 1:
            given["divisor_override"] = [None, 5, -3][rng.integers(3)]
        ours = F.avg_pool_forward(x, *size, half, **given)
        compare(
            ours,
            F.avg_pool_backward,
            x,
            functools.partial(average, kernel_size=size[0], stride=size[1], padding=half, **given),
        )
        for p in (1.0, 2.0, 3.5):  # without ceil mode, where PyTorch's norm takes the overhang for cells; without signs
            ours = F.lp_pool_forward(abs(x), size[0], p, size[1])
            compare(
                ours,
                F.lp_pool_backward,
                abs(x),
                functools.partial(power, norm_type=p, kernel_size=size[0], stride=size[1]),
            )


def compare(ours: tuple[Any, Any], backward: Any, x: np.ndarray, theirs: Any) -> None:
    """The library's y and dx beside PyTorch's."""
    torch = pytest.importorskip("torch")
    t = torch.tensor(x, requires_grad=True)
    y, expected = ours[0], theirs(t)
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-12)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(backward(dy, ours[1]), t.grad.numpy(), atol=1e-12)


@FORMATS
@pytest.mark.parametrize("op", ["avg", "avg inside", "avg override", "sum", *POWERS])
def test_gradient(op: Any, data_format: str, rng: np.random.Generator) -> None:
    function, more = {
        "avg": (F.avg_pool, {}),
        "avg inside": (F.avg_pool, {"count_include_pad": False}),
        "avg override": (F.avg_pool, {"divisor_override": 7}),
        "sum": (F.sum_pool, {}),
    }.get(op, (F.lp_pool, {"norm_type": op}))
    for lengths, given in [
        ((7,), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
        ((5, 6), {"kernel_size": (3, 2), "stride": 1, "padding": ((0, 2), (1, 0)), "dilation": (2, 1)}),
        ((4, 3, 4), {"kernel_size": 2, "padding": "same"}),
    ]:
        # away from 0, where a power below 1 has no slope
        host = rng.uniform(0.5, 2.0, (2, 3, *lengths)) * rng.choice([-1.0, 1.0], (2, 3, *lengths))
        gradcheck(function, ordered(host, data_format), data_format=data_format, **given, **more)


# ---------------------------------------------------------------------------------------------------------- padding
@pytest.mark.parametrize("padding", ["valid", "same", "same_lower", "full"])
def test_named_padding(impl: Impl, rng: np.random.Generator, padding: str) -> None:
    pairs = {"valid": (0, 0), "same": (0, 1), "same_lower": (1, 0), "full": (2, 2)}[padding]
    x, pool = rng.standard_normal((2, 2, 6)), Pool((6,), (3,), (2,), (pairs,), (1,))
    impl.close(F.avg_pool(impl.array(x), 3, 2, padding), reference.avg_pool(x, pool))
    impl.close(F.sum_pool(impl.array(x), 3, 2, padding), reference.sum_pool(x, pool))
    impl.close(F.lp_pool(impl.array(x), 3, 2, 2, padding), reference.lp_pool(x, pool, 2))


def test_a_window_without_cells_gives_0_and_passes_nothing(impl: Impl) -> None:
    x = impl.array(line(1, 2))  # windows of two taps four cells apart: (-3, 1), (-2, 2), (-1, 3), (0, 4)
    given: dict[str, Any] = {"stride": 1, "padding": 3, "dilation": 4}
    dy = impl.array(line(1, 2, 4, 8))
    for include_pad, expected in [(True, (1, 0, 0, 0.5)), (False, (2, 0, 0, 1))]:
        y, ctx = F.avg_pool_forward(x, 2, count_include_pad=include_pad, **given)
        impl.close(y, line(*expected))
        impl.close(F.avg_pool_backward(dy, ctx), line(4, 0.5) if include_pad else line(8, 1))
    y, ctx = F.sum_pool_forward(x, 2, **given)
    impl.close(y, line(2, 0, 0, 1))
    impl.close(F.sum_pool_backward(dy, ctx), line(8, 1))
    y, ctx = F.lp_pool_forward(x, 2, **given)
    impl.close(y, line(2, 0, 0, 1))
    impl.close(F.lp_pool_backward(dy, ctx), line(8, 1))


# ----------------------------------------------------------------------------------------------------------- values
def test_infinities_and_nans_stay_in_their_windows(impl: Impl) -> None:
    x = impl.array(line(1, math.nan, 2, 3, math.inf, 4, -math.inf, math.inf))
    impl.close(F.avg_pool(x, 2), line(math.nan, 2.5, math.inf, math.nan))
    impl.close(F.sum_pool(x, 2), line(math.nan, 5, math.inf, math.nan))
    impl.close(F.lp_pool(x, 2), line(math.nan, 13**0.5, math.inf, math.inf))


def test_a_nan_is_found_in_every_lane_and_in_the_tail(impl: Impl) -> None:  # tensorflow#125965
    length = 67
    x = np.zeros((length, 1, length), "float32")
    x[np.arange(length), 0, np.arange(length)] = math.nan
    for op in (F.avg_pool, F.sum_pool, F.lp_pool):
        for kernel in (3, length):
            y = impl.numpy(op(impl.array(x), kernel, stride=1))[:, 0]
            cells, outs = np.arange(length)[:, None], np.arange(y.shape[1])
            np.testing.assert_array_equal(np.isnan(y), (outs <= cells) & (cells < outs + kernel))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_add_up_in_float32(impl: Impl, dtype: str) -> None:
    # candle PR 3719: the average of 4,096 ones was 0.5
    kind = impl.dtype(dtype)
    n = 2200  # added up in float16, ones end at 2048
    x, cells = impl.array(np.ones((1, 1, n), kind)), np.arange(1.0, n + 1.0).reshape(1, 1, -1)
    given: dict[str, Any] = {"stride": 1, "padding": ((n - 1, 0),)}  # windows of 1, 2, … n cells
    impl.same(F.avg_pool(x, n, count_include_pad=False, **given), np.ones((1, 1, n), kind))
    impl.same(F.avg_pool(x, n), np.ones((1, 1, 1), kind))
    impl.same(F.lp_pool(x, n, **given), np.sqrt(cells).astype(kind))
    y, ctx = F.sum_pool_forward(x, n, **given)
    impl.same(y, cells.astype(kind))
    impl.same(F.sum_pool_backward(x, ctx), cells[..., ::-1].astype(kind))
    _, ctx = F.avg_pool_forward(x, n, divisor_override=4096, **given)
    impl.same(F.avg_pool_backward(x, ctx), (cells[..., ::-1] / 4096).astype(kind))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_results_have_the_dtype_of_x(impl: Impl, dtype: str, rng: np.random.Generator) -> None:
    kind = impl.dtype(dtype)
    x = rng.standard_normal((2, 3, 6, 6)).astype(kind)
    pool = Pool((6, 6), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6, "float64": 1e-12}[dtype]
    for op, backward, expected in [
        (F.avg_pool_forward, F.avg_pool_backward, reference.avg_pool(x.astype("float64"), pool)),
        (F.sum_pool_forward, F.sum_pool_backward, reference.sum_pool(x.astype("float64"), pool)),
        (lambda a, *s: F.lp_pool_forward(a, s[0], 2.0, *s[1:]), F.lp_pool_backward, None),
    ]:
        y, ctx = op(impl.array(x), 3, 2, 1)
        wanted = reference.lp_pool(x.astype("float64"), pool, 2) if expected is None else expected
        impl.close(y, wanted, rtol=tolerance, atol=tolerance, dtype=kind)
        impl.numpy(backward(impl.array(np.ones((2, 3, 3, 3), kind)), ctx), x.shape, kind)
        impl.numpy(backward(impl.array(np.ones((2, 3, 3, 3), "float32")), ctx), x.shape, kind)


def test_powers_leave_no_range(impl: Impl) -> None:
    x = impl.array(line(1e30, -1e30, 1e-30, 1e-30, dtype="float32"))  # squares are out of float32's range
    y, ctx = F.lp_pool_forward(x, 2)
    root = 2**0.5
    impl.close(y, line(1e30 * root, 1e-30 * root, dtype="float32"), rtol=1e-6, atol=0)
    dx = F.lp_pool_backward(impl.array(line(1, 1, dtype="float32")), ctx)
    impl.close(dx, line(1 / root, -1 / root, 1 / root, 1 / root, dtype="float32"), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_powers_leave_no_range_whatever_the_exponent(impl: Impl, dtype: str) -> None:
    """[2000, 1000] with p = 100: 2000**100 is beyond float64, the norm is 2000. So are the others here, or below it."""
    kind = np.dtype(dtype)
    small = {"float16": 2.0**-20, "float32": 1e-40, "float64": 1e-305}[dtype]
    large = {"float16": 2.0**15, "float32": 1e38, "float64": 1e307}[dtype]
    pairs = [[2000, 1000], [-1000, 2000], [small, small], [large, -large], [large, small], [0, small], [0, 0]]
    x = np.array(pairs, kind)
    wide = np.abs(x.astype("longdouble"))
    for p in (0.75, 1.0, 2.0, 3.0, 7.5, 100.0, 1000.0):
        largest = np.where(wide.max(1) == 0, 1, wide.max(1))[:, None]
        root = ((wide / largest) ** p).sum(1, keepdims=True) ** (1 / np.longdouble(p))
        y, ctx = F.lp_pool_forward(impl.array(x.reshape(1, 1, -1)), 2, p)
        rtol = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-12}[dtype]
        least = 1e-13 if dtype == "float64" else 0
        with np.errstate(over="ignore"):  # the norm of two of the largest may be beyond the dtype
            expected = (largest * root).reshape(1, 1, -1) * (wide.max(1) > 0)
            impl.close(y, expected.astype(kind), rtol=rtol, atol=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.sign(x) * (wide / largest / np.where(root == 0, 1, root)) ** (p - 1)
        slopes = np.where(x == 0, 0, slopes).astype("float64").reshape(1, 1, -1)
        dx = F.lp_pool_backward(impl.array(np.ones((1, 1, 7), kind)), ctx)
        with np.errstate(over="ignore"):
            impl.close(dx, slopes.astype(kind), rtol=rtol, atol=least)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_large_powers_of_planes(impl: Impl, data_format: str, rng: np.random.Generator) -> None:
    """Axis by axis, with padding, dilation and overlap, and as one window: as if by one power of all cells."""
    x = rng.standard_normal((2, 3, 5, 6)) * 10.0 ** rng.integers(-3, 4, (2, 3, 5, 6))
    for pool in (
        Pool((5, 6), (3, 2), (1, 2), ((1, 0), (0, 1)), (1, 2)),
        Pool((5, 6), (5, 6), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ):
        dy = rng.standard_normal((2, 3, *pool.out))
        for p in (0.5, 3.0, 20.0):
            array = impl.array(ordered(x, data_format))
            y, ctx = F.lp_pool_forward(array, norm_type=p, **options(pool), data_format=data_format)
            impl.close(y, ordered(reference.lp_pool(x, pool, p), data_format), rtol=1e-9)
            dx = F.lp_pool_backward(impl.array(ordered(dy, data_format)), ctx)
            expected = ordered(reference.lp_pool_backward(dy, x, pool, p), data_format)
            impl.close(dx, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [0.5, 2.0, 3.0, 50.0])
def test_powers_of_infinity(impl: Impl, p: float, dtype: str) -> None:
    x = impl.array(line(math.inf, 1, -math.inf, math.inf, math.nan, 1, math.inf, math.nan, dtype=dtype))
    y, ctx = F.lp_pool_forward(x, 2, p)
    impl.close(y, line(math.inf, math.inf, math.nan, math.nan, dtype=dtype))
    dx = impl.numpy(F.lp_pool_backward(impl.array(line(1, 1, 1, 1, dtype=dtype)), ctx)).reshape(-1)
    assert np.isnan(dx[[0, 2, 3, 4, 5, 6, 7]]).all()
    assert dx[1] == (math.inf if p < 1 else 0.0)


def test_a_power_below_1_has_no_slope_at_0(impl: Impl) -> None:
    for p in POWERS:
        _, ctx = F.lp_pool_forward(impl.array(line(0, 0, 0, 2)), 2, p)
        impl.close(F.lp_pool_backward(impl.array(line(1, 1)), ctx), line(0, 0, 0, 1))


# ----------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"divisor_override": 0}, ValueError, "divisor_override must be any int but 0, got 0"),
        ({"divisor_override": 2.0}, TypeError, "divisor_override must be an int, got 2.0"),
        ({"divisor_override": True}, TypeError, "divisor_override must be an int, got True"),
        ({"count_include_pad": 1}, TypeError, "count_include_pad must be True or False, got 1"),
    ],
)
def test_bad_divisors(impl: Impl, given: dict[str, Any], error: type[Exception], said: str) -> None:
    x = impl.array(np.zeros((1, 1, 4)))
    for op in (F.avg_pool, F.avg_pool_forward):
        with pytest.raises(error, match=said):
            op(x, 2, **given)


@pytest.mark.parametrize(
    ("p", "error"),
    [
        *[(p, ValueError) for p in (0, -1.0, math.nan, math.inf)],
        *[(p, TypeError) for p in ("2", None, True, [2.0])],
    ],
)
def test_bad_powers(impl: Impl, p: Any, error: type[Exception]) -> None:
    x = impl.array(np.zeros((1, 1, 4)))
    for op in (F.lp_pool, F.lp_pool_forward):
        with pytest.raises(error, match="norm_type" + (".*max_pool" if p == math.inf else "")):
            op(x, 2, p)
