"""The CPU kernels of the activations and of softmax: how exact they are, saved bits, threads.

Their other answers: test_elementwise_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.backends import threads

pytest.importorskip("numba", reason="no Numba")

from cnnlayers.kernels.cpu import jit, parallel

if jit.unavailable():
    pytest.skip(str(jit.unavailable()), allow_module_level=True)

from cnnlayers.kernels.cpu.jit import kernel
from cnnlayers.kernels.cpu.vector_math import power
from cnnlayers.kernels.cpu.vectors import LANES, load, store

special = pytest.importorskip("scipy.special")

OPS = [("relu", ()), ("leaky_relu", (0.1,)), ("gelu", ()), ("gelu", ("tanh",)), ("sigmoid", ()), ("tanh", ()),
       ("softmax", (-1,)), ("softmax", (0,)), ("softmax", (1,))]  # fmt: skip
EACH_OP = pytest.mark.parametrize(("op", "args"), OPS, ids=str)
ULP = 2.0**-23
SQRT_2_PI = np.sqrt(2 / np.pi)


@pytest.fixture(autouse=True)
def required() -> Iterator[None]:
    with kernels.mode("require"):
        yield


def trio(op: str, x: np.ndarray, dy: np.ndarray, *args: Any) -> tuple[np.ndarray, np.ndarray]:
    y, ctx = getattr(F, f"{op}_forward")(x, *args)
    return y, getattr(F, f"{op}_backward")(dy, ctx)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * special.expit(2 * SQRT_2_PI * (x + 0.044715 * x**3))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Of long doubles: scipy's own is not exact in the tail."""
    scaled = special.erfcx((np.abs(x) * np.sqrt(np.longdouble(0.5))).astype("float64"))
    tail = np.exp(-x * x / 2) * scaled / 2
    return np.where(x < 0, tail, 1 - tail)


# --------------------------------------------------------------------------------------------------- how exact they are
@pytest.mark.parametrize(
    ("op", "args", "exact", "low", "ulps"),
    [
        ("sigmoid", (), special.expit, -87.0, 3.0),
        ("tanh", (), np.tanh, -20.0, 2.0),
        ("gelu", (), lambda x: x * special.ndtr(x), -3.0, 6.0),
        ("gelu", (), lambda x: x * special.ndtr(x), -13.0, 11.0),
        ("gelu", ("tanh",), gelu_tanh, -3.0, 20.0),
    ],
)
def test_float32_is_exact_to_some_units_of_the_last_place(
    op: str, args: Any, exact: Callable[[np.ndarray], np.ndarray], low: float, ulps: float, rng: np.random.Generator
) -> None:
    x = np.concatenate([np.linspace(low, 20, 1_000_001), rng.standard_normal(100_003), 2.0 ** -np.arange(1.0, 120.0)])
    x = x[x >= low].astype("float32")
    expected = exact(x.astype("float64"))
    error = np.abs(getattr(F, op)(x, *args) - expected) / np.spacing(np.abs(expected).astype("float32"))
    assert error.max() <= ulps


@pytest.mark.parametrize(
    ("op", "exact", "low", "ulps"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), -700.0, 3.0),
        ("tanh", np.tanh, -20.0, 2.0),
        ("gelu", lambda x: x * normal_cdf(x), -18.0, 10.0),
    ],
)
def test_float64_is_exact_to_some_units_of_the_last_place(
    op: str, exact: Callable[[np.ndarray], np.ndarray], low: float, ulps: float, rng: np.random.Generator
) -> None:
    x = np.concatenate([np.linspace(low, 20, 100_001), rng.standard_normal(100_003), 2.0 ** -np.arange(1.0, 1000.0)])
    expected = exact(x.astype(np.longdouble))
    error = np.abs(getattr(F, op)(x) - expected) / np.spacing(np.abs(expected).astype("float64"))
    assert error.max() <= ulps


@kernel()
def raise_to(x: Any, p: Any, y: Any) -> None:
    for i in range(0, x.size, LANES):
        store(y, i, power(load(x, i), load(p, i)))


@pytest.mark.parametrize("p", [2.5, 0.4, 1 / 3, 3.0, 20.5, 100.0, 1000.0, 1e-3])
@pytest.mark.parametrize("sign", [1, -1])
def test_powers_are_exact_to_some_units_of_the_last_place(p: float, sign: int, rng: np.random.Generator) -> None:
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double is no longer than double here")
    p *= sign
    near_one, wide = 1 + rng.uniform(-1e-3, 1e-3, 8000), np.exp(rng.uniform(-700, 700, 8000) / max(1.0, abs(p)))
    x = np.concatenate([near_one, wide])
    y = np.empty_like(x)
    raise_to(x, np.full_like(x, p), y)
    expected = x.astype(np.longdouble) ** np.longdouble(p)
    error = np.abs(y - expected) / np.spacing(expected.astype(float))
    assert float(error.max()) <= 1 + abs(p) / 40


@pytest.mark.parametrize("p", [2.5, 0.4, -0.5, -1.5, 100.0, -300.0])
def test_powers_of_numbers_at_the_limits(p: float) -> None:
    x = np.array([0, np.inf, np.nan, 5e-324, 1e-310, 2.3e-308, 1.79e308, 1, 0.5, 2, 1e-200, 1e200, 1e-30, 1e30, 3, 7.0])
    y = np.empty_like(x)
    raise_to(x, np.full_like(x, p), y)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(y, x**p, rtol=1e-14, atol=1e-323)


def test_zeros_keep_their_signs() -> None:
    for dtype in ("float32", "float64"):
        for op in ("tanh", "gelu"):
            assert np.signbit(getattr(F, op)(np.array([-0.0, 0.0], dtype))).tolist() == [True, False]


def test_slopes_are_exact_to_some_units_of_one(rng: np.random.Generator) -> None:
    x = np.linspace(-20, 20, 1_000_001, dtype="float32")
    wide, ones = x.astype("float64"), np.ones_like(x)
    density = np.exp(-wide * wide / 2) / np.sqrt(2 * np.pi)
    assert np.abs(trio("gelu", x, ones)[1] - (special.ndtr(wide) + wide * density)).max() < 3 * ULP
    u = SQRT_2_PI * (wide + 0.044715 * wide**3)
    inner = wide * special.expit(2 * u) * special.expit(-2 * u) * 2 * SQRT_2_PI * (1 + 3 * 0.044715 * wide * wide)
    assert np.abs(trio("gelu", x, ones, "tanh")[1] - (special.expit(2 * u) + inner)).max() < 3 * ULP


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_is_exact(axis: int, rng: np.random.Generator) -> None:
    x = (10 * rng.standard_normal((7, 33, 19))).astype("float32")
    exact = special.softmax(x.astype("float64"), axis)
    np.testing.assert_allclose(F.softmax(x, axis), exact, rtol=50 * ULP)  # x - top is rounded, and may be -50


# ------------------------------------------------------------------------------------------------------------- bits
@pytest.mark.parametrize("op", ["relu", "leaky_relu"])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 31, 4097, 300_001])
def test_one_bit_an_element_is_saved(op: str, size: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal(size).astype("float32")
    _, ctx = getattr(F, f"{op}_forward")(x)
    with kernels.mode("off"):
        _, portable = getattr(F, f"{op}_forward")(x)
    [saved], [expected] = ctx.arrays.values(), portable.arrays.values()
    assert ctx.nbytes == -(-size // 8)
    np.testing.assert_array_equal(saved, np.packbits(x > 0, bitorder="little"))
    np.testing.assert_array_equal(saved, expected)
    backward = getattr(F, f"{op}_backward")
    np.testing.assert_array_equal(backward(x, portable), backward(x, ctx))
    with kernels.mode("off"):
        np.testing.assert_array_equal(backward(x, ctx), backward(x, portable))


@EACH_OP
def test_bits_do_not_depend_on_threads(
    op: str, args: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 5_000)
    x, dy = (rng.standard_normal((50, 1003)).astype("float32") for _ in range(2))
    found = []
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        found.append([a.tobytes() for a in trio(op, x, dy, *args)])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_results_past_the_caches_are_the_same(
    dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnlayers.backends import memory
    from cnnlayers.kernels.cpu import elementwise

    x, dy = (rng.standard_normal(20_003).astype(dtype) for _ in range(2))
    ops = [(op, args) for op, args in OPS if op != "softmax"]
    expected = [[a.tobytes() for a in trio(op, x, dy, *args)] for op, args in ops]
    monkeypatch.setattr(elementwise, "STREAM_BYTES", 1)
    monkeypatch.setattr(memory, "LEAST_RESULT", 1)  # results are aligned then
    backends.PLANS.clear()
    assert [[a.tobytes() for a in trio(op, x, dy, *args)] for op, args in ops] == expected


# ------------------------------------------------------------------------------------------------ softmax cross-entropy


@pytest.mark.parametrize("classes", [1, 10, 11, 24, 25])
@pytest.mark.parametrize("rows", [1, 16, 50])
def test_short_rows_are_exact_and_do_not_depend_on_others(rows: int, classes: int, rng: np.random.Generator) -> None:
    x = (4 * rng.standard_normal((rows, classes))).astype("float32")
    x[0, -2:] = 20  # the maximum twice
    labels, exact = rng.integers(0, classes, rows), special.softmax(x.astype("float64"), 1)
    y, dx = trio("softmax", x, exact.astype("float32"))
    np.testing.assert_allclose(y, exact, rtol=50 * ULP)
    np.testing.assert_allclose(dx, exact * (exact - (exact * exact).sum(1, keepdims=True)), atol=4 * ULP)
    np.testing.assert_array_equal(F.softmax(x[rows // 2 :]), y[rows // 2 :])
    loss, ctx = F.softmax_cross_entropy_forward(x, labels)
    np.testing.assert_allclose(loss, -np.log(exact[np.arange(rows), labels]).mean(), rtol=4 * ULP, atol=1e-7)
    gradient = (exact - (np.arange(classes) == labels[:, None])) / rows
    np.testing.assert_allclose(F.softmax_cross_entropy_backward(1.0, ctx), gradient, atol=4 * ULP)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_gelu_of_negative_numbers_is_negative_zero_far_out(dtype: str, approximate: str) -> None:
    x = np.array([-50, -1000, -6e4, -0.0, 0.0, 3.0], dtype)
    for mode in ("off", "require"):
        with kernels.mode(mode):
            np.testing.assert_array_equal(np.signbit(F.gelu(x, approximate)), [True] * 4 + [False] * 2)
