"""The norms' kernels on the emulator: every way over the device, dtype and layout.

test_norm.py and test_batch_norm.py run through the same launchers, on arrays so small that one way serves them all.
Here devices shrink until every way is taken. test_cuda_norm_plan.py has the ways themselves, and what they move.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.kernels.cuda import channels_last_norm, layer_norm_backward, norm_backward, norm_forward

from . import portable, simt, standin_cuda
from .cases.norm import (
    CALLS,
    EACH_CALL,
    LAST,
    SOME_CALLS,
    TOLERANCE,
    TRAIN,
    Call,
    check,
    device,
    drawn,
    expected,
    names,
    on_device,
)

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


# ------------------------------------------------------------------------------------------------- ways, dtypes, orders
@EACH_CALL
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.sample(6))])
def test_every_way(cupy: Any, call: Call, dtype: str, rng: np.random.Generator) -> None:
    arrays = drawn(call, rng, dtype)
    found, launched = on_device(cupy, call, *arrays)
    if dtype == "float32":
        assert launched == [*call.forward.split(), *call.backward.split()]
    check(found, expected(call, *arrays), dtype)


@SOME_CALLS
@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(cupy: Any, call: Call, dtype: str, rng: np.random.Generator) -> None:
    arrays = drawn(call, rng, dtype)
    check(on_device(cupy, call, *arrays)[0], expected(call, *arrays), dtype)


@EACH_CALL
def test_the_same_bits_in_any_order_of_threads(cupy: Any, call: Call, rng: np.random.Generator) -> None:
    arrays, bits = drawn(call, rng, "float32"), set()
    for order, seed in (("ascending", 1), ("descending", 1), ("random", 1), ("random", 2)):
        found, _ = on_device(cupy, call, *arrays, order=order, seed=seed)
        bits.add(b"".join(f.tobytes() for f in found if f is not None))
    assert len(bits) == 1


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["batch in turns", "group", "batch last in turns", "layer in blocks"])
def test_64_bit_offsets(cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str, rng: np.random.Generator) -> None:
    """As if the arrays had over 2**31 elements."""
    for module in (norm_forward, norm_backward, layer_norm_backward, channels_last_norm):
        monkeypatch.setattr(module, "offset_types", lambda *sizes: ("unsigned long long", np.uint64))
    arrays = drawn(CALLS[name], rng, "float32")
    check(on_device(cupy, CALLS[name], *arrays)[0], expected(CALLS[name], *arrays), "float32")


# -------------------------------------------------------------------------------------------------------------- numbers
@EACH_CALL
def test_stays_right_at_a_large_mean(cupy: Any, call: Call, rng: np.random.Generator) -> None:
    """The mean is 1e6 times the standard deviation; float32 holds x to a sixteenth."""
    x, dy, parameters = drawn(call, rng, "float32", 1e6)
    found, _ = on_device(cupy, call, x, dy, parameters)
    check(found, expected(call, x, dy, parameters), "float32", scale=4.0)


@EACH_CALL
def test_nan_spreads_through_its_row_alone(cupy: Any, call: Call, rng: np.random.Generator) -> None:
    x, dy, parameters = drawn(call, rng, "float32")
    x[tuple(n - 1 for n in x.shape)] = np.nan  # the last cell of the last row
    found, _ = on_device(cupy, call, x, dy, parameters)
    for f, w in zip(found, expected(call, x, dy, parameters), strict=True):
        assert np.array_equal(np.isnan(f), np.isnan(w))
    assert not np.isnan(found[0]).all()


@SOME_CALLS
def test_the_largest_numbers_do_not_overflow_the_mean(cupy: Any, call: Call) -> None:
    x = np.full(call.shape, 3e38, "float32")
    found, _ = on_device(cupy, call, x, np.ones_like(x), [np.ones(call.parameter, "float32"), None])
    np.testing.assert_array_equal(found[0], 0.0)


@pytest.mark.parametrize("name", ["rms", "rms in a grid"])
def test_an_infinity_leaves_zeros_in_rms_norm(cupy: Any, name: str, rng: np.random.Generator) -> None:
    """Its row's mean square is infinite, and no NaN but its own y and gradients arise."""
    x, dy, parameters = drawn(CALLS[name], rng, "float32")
    x[0, 1] = np.inf
    with np.errstate(invalid="ignore"):
        wanted = expected(CALLS[name], x, dy, parameters)
    found, _ = on_device(cupy, CALLS[name], x, dy, parameters)
    for f, w in zip(found, wanted, strict=True):
        assert np.array_equal(np.isnan(f), np.isnan(w))


# ----------------------------------------------------------------------------------------------------- batch norm's own
@pytest.mark.parametrize("name", ["batch in blocks", "batch in turns", "batch in two launches", "batch last in turns"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics_follow_in_the_same_launch(
    cupy: Any, name: str, unbiased: bool, rng: np.random.Generator
) -> None:
    call = CALLS[name]
    x, _, parameters = drawn(call, rng, "float32")
    options = call.options | {"momentum": 0.3, "unbiased": unbiased}
    for dtypes in (("float32", "float32"), ("float64", "float16")):
        running = [rng.normal(1.0, 0.2, call.parameter).astype(dtype) for dtype in dtypes]
        theirs = [cupy.asarray(a) for a in running]
        with device(call.device, call.threads) as made:
            F.batch_norm(cupy.asarray(x), *map(cupy.asarray, parameters), *theirs, **options)
        assert names(made) == call.forward.split()
        portable.batch_norm(x.astype("float64"), *parameters, *running, **options)
        for got, wanted, dtype in zip(theirs, running, dtypes, strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got.get(), wanted, rtol=1e-3 if dtype == "float16" else 1e-6)


def test_running_statistics_that_are_not_contiguous(cupy: Any, rng: np.random.Generator) -> None:
    x, base = rng.normal(size=(4, 3, 5)).astype("float32"), cupy.asarray(np.ones((3, 2), "float32"))
    F.batch_norm(cupy.asarray(x), None, None, base[:, 0], base[:, 1], training=True, momentum=1.0)
    np.testing.assert_allclose(base.get()[:, 0], x.mean(axis=(0, 2)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(base.get()[:, 1], x.var(axis=(0, 2), ddof=1), rtol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("given", [(1, 1), (0, 1), (0, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_evaluation(cupy: Any, data_format: str, given: Any, dtype: str, rng: np.random.Generator) -> None:
    shape = (3, 5, 6, 8) if data_format == "channels_first" else (3, 6, 8, 5)
    x, dy = (rng.normal(1e3 if dtype == "float32" else 1.0, 1.0, shape).astype(dtype) for _ in range(2))
    gamma, beta = (rng.normal(1.0, 0.5, 5).astype("float32") if keep else None for keep in given)
    running = rng.normal(float(x.mean()), 0.5, 5), rng.uniform(0.5, 2.0, 5)  # float64: they keep their digits

    def run(functions: Any, array: Any) -> list[Any]:
        parameters = [None if p is None else array(p) for p in (gamma, beta, *running)]
        y, ctx = functions.batch_norm_forward(array(x), *parameters, data_format=data_format)
        return [y, *functions.batch_norm_backward(array(dy), ctx)]

    with standin_cuda.emulating() as made:
        found = run(F, cupy.asarray)
    assert len(made) <= 4
    for f, w in zip(found, run(portable, lambda a: np.asarray(a, np.float64)), strict=True):
        assert (f is None) == (w is None)
        if f is not None:
            tolerance = TOLERANCE[dtype]
            np.testing.assert_allclose(f.get().astype(np.float64), w, rtol=tolerance, atol=tolerance * np.abs(w).max())


# ---------------------------------------------------------------------------------------------------------- any arrays
@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "layer_norm"])
def test_strides_and_offsets(cupy: Any, op: str, rng: np.random.Generator) -> None:
    """Views that are not in C order, and such as begin between packs."""
    args = {"group_norm": (2,), "layer_norm": (8,)}.get(op, ())
    options = TRAIN if op == "batch_norm" else {}
    flat = rng.normal(size=1200).astype("float32")
    views = [
        lambda a: a[:768].reshape(8, 4, 6, 4).transpose(3, 1, 2, 0),
        lambda a: a[:768].reshape(4, 4, 6, 8)[::-1, :, ::-1],
        *(lambda a, start=start: a[start : start + 768].reshape(4, 4, 6, 8) for start in (1, 2, 4)),
    ]
    gamma = np.ones(9, "float32")[1:] if op == "layer_norm" else np.ones(8, "float32")[::2]
    for view in views:
        host, theirs = view(flat), view(cupy.asarray(flat))
        y, ctx = getattr(portable, f"{op}_forward")(host.astype("float64"), *args, gamma, None, **options)
        dx, dgamma, _ = getattr(portable, f"{op}_backward")(host.astype("float64"), ctx)
        on = cupy.asarray(np.ones(18, "float32"))
        on_gamma = on[1:9] if op == "layer_norm" else on[:8:2]
        got, kept = getattr(F, f"{op}_forward")(theirs, *args, on_gamma, None, **options)
        got_dx, got_dgamma, none = getattr(F, f"{op}_backward")(theirs, kept)
        assert none is None
        for f, w in ((got, y), (got_dx, dx), (got_dgamma, dgamma)):
            np.testing.assert_allclose(f.get(), w, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"])
def test_nothing_is_launched_for_nothing(cupy: Any, op: str, shape: tuple[int, ...]) -> None:
    args = {"group_norm": (2,), "layer_norm": (shape[2],), "rms_norm": (shape[2],)}.get(op, ())
    gamma = cupy.asarray(np.ones(shape[2] if "layer" in op or "rms" in op else shape[1], "float32"))
    with standin_cuda.emulating() as made:
        y, ctx = getattr(F, f"{op}_forward")(cupy.asarray(np.ones(shape, "float16")), *args, gamma)
        dx, dgamma, *_ = getattr(F, f"{op}_backward")(y, ctx)
    assert not made
    assert y.shape == dx.shape == shape
    assert not dgamma.get().any()
    assert dgamma.shape == gamma.shape


def test_gradients_that_nobody_wants_cost_no_launch(cupy: Any) -> None:
    x = cupy.asarray(np.ones((2, 4, 8), "float32"))
    for op, args in (("group_norm", (2,)), ("instance_norm", ()), ("layer_norm", (8,))):
        _, ctx = getattr(F, f"{op}_forward")(x, *args)
        with standin_cuda.emulating() as made:
            _, dgamma, dbeta = getattr(F, f"{op}_backward")(x, ctx)
        assert (len(made), dgamma, dbeta) == (1, None, None)


@pytest.mark.parametrize(
    ("op", "args", "options"),
    [
        ("batch_norm", (), TRAIN),
        ("batch_norm", (), TRAIN | LAST),
        ("batch_norm", (), {}),
        ("group_norm", (2,), {}),
        ("layer_norm", (8,), {}),
    ],
)
def test_nothing_waits_for_the_device(cupy: Any, op: str, args: Any, options: Any) -> None:
    """After a warm-up neither a compilation nor a transfer is left: a CUDA graph can hold the calls."""
    rng = np.random.default_rng(0)
    x, parameters = (
        cupy.asarray(rng.normal(size=(2, 8, 4, 8)).astype("float16")),
        [cupy.asarray(np.ones(8, "float32")) for _ in range(2)],
    )
    if op == "batch_norm":
        parameters += [cupy.asarray(np.ones(8, "float32")) for _ in range(2)]
    before = [p.get().tobytes() for p in parameters]
    assert kernels.warmup(getattr(F, op), x, *args, *parameters, **options) >= 2
    assert [p.get().tobytes() for p in parameters] == before
    with standin_cuda.no_host_sync(), standin_cuda.emulating() as made:
        y, ctx = getattr(F, f"{op}_forward")(x, *args, *parameters, **options)
        getattr(F, f"{op}_backward")(y, ctx)
    assert made


class Ranks:
    def allreduce(self, value: Any) -> Any:
        return value


def test_refusals(cupy: Any) -> None:
    x = cupy.asarray(np.ones((2, 3, 4), "float32"))
    with pytest.raises(kernels.KernelUnavailable, match="several ranks"):
        F.batch_norm(x, training=True, comm=Ranks())
    with pytest.raises(kernels.KernelUnavailable, match="eps of 1e-40 is 0 in float32"):
        F.layer_norm(x, 4, eps=1e-40)
    assert F.layer_norm(cupy.asarray(np.ones((2, 3))), 3, eps=1e-40).get().tolist() == [[0.0] * 3] * 2
    with kernels.mode("auto"):
        assert F.layer_norm(x, 4, eps=1e-40).get().tolist() == np.zeros((2, 3, 4)).tolist()


def test_more_rows_than_the_kernels_can_count_are_refused() -> None:
    def spec(shape: tuple[int, ...], last: int) -> Any:
        rows = types.SimpleNamespace(
            shape=shape,
            view=shape,
            axes=(last,),
            parameter_axes=(last,),
            parameter=shape[last:],
            count=shape[last],
            eps=1e-5,
        )
        return types.SimpleNamespace(rows=rows, comm=None)

    x = np.empty(0, "float32")
    assert norm_forward.refuses("layer_norm_forward", spec((2**31 - 1, 4), 1), x) is None
    assert "too many" in str(norm_forward.refuses("layer_norm_forward", spec((2**31, 4), 1), x))
    assert "too many" in str(layer_norm_backward.refuses("layer_norm_backward", spec((1, 2**31), 1), x))
