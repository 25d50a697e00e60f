"""One plan serves all calls of its shapes, dtypes and options: whatever the arrays' memory, mode and history."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.backends import PLANS, size_of, threads
from cnnlayers.kernels.cpu import jit as cpu_kernels

needs_kernels = pytest.mark.skipif(cpu_kernels.unavailable() is not None, reason="no Numba")
C = 3
PARAMETERS = {"gamma": np.linspace(0.5, 2, C, dtype="float32"), "beta": np.linspace(-1, 1, C, dtype="float32")}
OPS: dict[str, Callable[[], tuple[str, tuple[Any, ...], dict[str, Any]]]] = {
    "relu": lambda: ("relu", (), {}),
    "gelu": lambda: ("gelu", (), {}),
    "softmax": lambda: ("softmax", (), {}),
    "max": lambda: ("max_pool", (3, 2, 1), {}),
    "max, ties": lambda: ("max_pool", (3, 2, 1), {"ties": "split"}),
    "average": lambda: ("avg_pool", (2,), {}),
    "lp": lambda: ("lp_pool", (2,), {}),
    "adaptive": lambda: ("adaptive_avg_pool", (3,), {}),
    "adaptive max": lambda: ("adaptive_max_pool", (3,), {}),
    "pad": lambda: ("pad", (1, "reflect"), {}),
    "batch norm": lambda: ("batch_norm", (), {**PARAMETERS, "training": True}),
    "group norm": lambda: ("group_norm", (1,), dict(PARAMETERS)),
    "layer norm": lambda: ("layer_norm", (8,), {}),
}
each_op = pytest.mark.parametrize("case", OPS.values(), ids=list(OPS))


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, C, 8, 8)).astype("float32")


def flat(results: Any) -> Iterator[np.ndarray]:
    for result in results if isinstance(results, tuple) else (results,):
        if isinstance(result, tuple):
            yield from flat(result)
        elif result is not None:
            yield result


def run(case: Any, x: Any, dy: Any = None) -> list[np.ndarray]:
    """y of both forms, and the gradients of dy, or of y's values."""
    op, args, options = case()
    y, ctx = getattr(F, f"{op}_forward")(x, *args, **options)
    gradients = getattr(F, f"{op}_backward")(np.cos(y) if dy is None else dy, ctx)
    return [*flat((getattr(F, op)(x, *args, **options), y, gradients))]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for f, e in zip(found, expected, strict=True):
        assert type(f) is np.ndarray
        assert f.dtype == e.dtype
        np.testing.assert_array_equal(f, e)


def read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def memmap(x: np.ndarray) -> np.ndarray:
    return x.view(np.memmap)


def strided(x: np.ndarray) -> np.ndarray:
    """Every second element of a larger array."""
    wide = np.repeat(x, 2, axis=-1)
    wide[..., 1::2] = np.nan
    return wide[..., ::2]


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


FORMS = [read_only, memmap, strided, np.asfortranarray, channels_last, lambda x: x[::-1].copy()[::-1]]


@each_op
def test_one_plan_serves_arrays_however_they_lie_in_memory(case: Any, x: np.ndarray) -> None:
    expected = run(case, x)
    before, tolerance = len(PLANS), 1e-5
    for form in (*FORMS, np.ascontiguousarray):
        found = run(case, form(x), form(np.cos(expected[1])))
        for f, e in zip(found, expected, strict=True):  # in another memory order a norm sums in another order
            np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance)
    assert len(PLANS) == before
    same(run(case, x), expected)


@each_op
def test_results_have_memory_of_their_own(case: Any, x: np.ndarray) -> None:
    first = run(case, x)
    kept = [a.copy() for a in first]
    run(case, -x)
    same(first, kept)
    assert not any(np.shares_memory(a, b) for a in first for b in run(case, x))


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_a_gradient_that_is_a_sum_of_one_number_has_memory_of_its_own(mode: str) -> None:
    x = np.arange(6.0).reshape(2, 3)
    with kernels.mode(mode):
        _, ctx = F.layer_norm_forward(x, x.shape, np.ones_like(x), np.ones_like(x))
        dy = np.ones_like(x)
        for gradient in F.layer_norm_backward(dy, ctx):
            gradient[...] = 7.0
    np.testing.assert_array_equal(dy, np.ones_like(x))


@needs_kernels
@each_op
def test_a_plan_follows_the_mode(case: Any, x: np.ndarray) -> None:
    found = {}
    for mode in ("require", "off", "auto", "off", "require"):
        with kernels.mode(mode):
            found.setdefault(mode, []).append(run(case, x))
    same(found["require"][0], found["auto"][0])
    for mode in ("off", "require"):
        same(*found[mode])


@each_op
def test_a_failed_call_leaves_no_trace(case: Any, x: np.ndarray) -> None:
    op, args, options = case()
    expected = run(case, x)
    _, ctx = getattr(F, f"{op}_forward")(x, *args, **options)
    for wrong in (x.astype(str), None, "x"):
        with pytest.raises((TypeError, ValueError)):
            getattr(F, f"{op}_forward")(wrong, *args, **options)
        with pytest.raises((TypeError, ValueError)):
            getattr(F, f"{op}_backward")(wrong, ctx)
    same(run(case, x), expected)


def test_an_interrupted_step_is_prepared_again(x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            F.relu(x)
    np.testing.assert_array_equal(F.relu(x), np.maximum(x, 0))


@needs_kernels
def test_the_tables_of_a_plan_s_steps_count_as_its_bytes(x: np.ndarray) -> None:
    """Reflect padding has a table of the cell that each cell of a border copies."""
    _, ctx = F.pad_forward(np.zeros((1, 1, 100_000), "float32"), 50_000, mode="reflect")
    tables = 2 * 50_000 * 4
    assert size_of(ctx.plan) > tables
    PLANS.clear()
    y, ctx = F.pad_forward(np.zeros((1, 1, 100_000), "float32"), 50_000, mode="reflect")
    forward_alone = PLANS.nbytes
    F.pad_backward(y, ctx)
    assert PLANS.nbytes - forward_alone > tables


@needs_kernels
def test_a_step_with_too_large_tables_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLANS, "largest", 100_000)
    x = np.arange(100_000, dtype="float32").reshape(1, 1, -1)
    for _ in range(2):
        y, ctx = F.pad_forward(x, 50_000, mode="reflect")
        np.testing.assert_array_equal(y[0, 0], np.pad(x[0, 0], 50_000, mode="reflect"))
        assert not ctx.plan.steps
        assert PLANS.nbytes < 100_000


def test_any_number_of_shapes_stays_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLANS, "limit", 200_000)
    monkeypatch.setattr(PLANS, "largest", 100_000)
    for length in range(1000, 1100):
        F.max_pool(np.zeros((1, 1, length), "float32"), 2)
        assert PLANS.nbytes <= PLANS.limit


def test_a_plan_follows_the_number_of_threads(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, four: None
) -> None:
    x = rng.standard_normal((4, 8, 200, 200)).astype("float32")
    found = []
    for number in (4, 1, 4):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        found.append(F.max_pool(x, 2))
    same(found[1:], [found[0]] * 2)


def test_a_child_process_uses_its_parent_s_plans(x: np.ndarray) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    expected = F.max_pool(x, 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(F.max_pool(x, 2), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_gradients_of_other_precision_are_cast_after_a_call_that_needed_none(x: np.ndarray) -> None:
    y, ctx = F.avg_pool_forward(x, 2)
    expected = F.avg_pool_backward(y, ctx)
    found = F.avg_pool_backward(y.astype("float64"), ctx)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    if backends.of(x).name == "numpy":
        with pytest.raises(TypeError, match="byte order"):
            F.avg_pool_backward(y.astype(">f4"), ctx)
