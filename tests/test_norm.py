"""Batch, group, instance, layer and RMS norm, in what they share; batch norm's own is in test_batch_norm.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers.layers import RMSNorm
from cnnlayers.testing import gradcheck

from .cases.arrays import channels_last
from .cases.norm import SMALL, TRAIN, Case
from .implementations import HALF, Impl

TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-12}


MAIN = [SMALL[name] for name in ("batch", "group", "instance", "layer", "rms")]
CHANNELS = [c for c in SMALL.values() if c.op not in ("layer_norm", "rms_norm") and len(c.shape) > 2]
each_case = pytest.mark.parametrize("case", SMALL.values(), ids=list(SMALL))
each_norm = pytest.mark.parametrize("case", MAIN, ids=lambda c: c.op)


def arrays_of(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """x, dy and the parameters, in float64."""
    return rng.normal(2.0, 3.0, case.shape), rng.normal(size=case.shape), case.parameters(rng)


# ---------------------------------------------------------------------------------------------------------- small cases
ROOT = np.sqrt(1.25)  # of the variance of four numbers one apart
FOUR = np.array([-1.5, -0.5, 0.5, 1.5]) / ROOT


@pytest.mark.parametrize(
    ("op", "args", "options", "x", "expected"),
    [
        ("batch_norm", (), TRAIN, [[1, 9], [2, 5], [3, 1], [4, -3]], np.stack([FOUR, -FOUR], axis=1)),
        ("group_norm", (2,), {}, [[1, 2, 3, 4, 40, 30, 20, 10]], [[*FOUR, *-FOUR]]),
        ("instance_norm", (), {}, [[[1, 2, 3, 4], [8, 6, 4, 2]]], [[FOUR, -FOUR]]),
        ("layer_norm", (4,), {}, [[1, 2, 3, 4], [8, 6, 4, 2]], [FOUR, -FOUR]),
        ("rms_norm", (2,), {}, [[1, 7], [-6, 8]], [[0.2, 1.4], [-6 / 50**0.5, 8 / 50**0.5]]),
    ],
)
def test_small_cases(impl: Impl, op: str, args: Any, options: Any, x: Any, expected: Any) -> None:
    y = getattr(F, op)(impl.array(x, "float32"), *args, eps=0.0, **options)
    impl.close(y, np.array(expected, "float32"))


def test_gamma_beta_and_eps(impl: Impl) -> None:
    x = impl.array([[1.0, 3.0]], "float64")
    y = F.layer_norm(x, 2, impl.array([2.0, 5.0]), impl.array([10.0, 20.0]), eps=3.0)
    impl.close(y, [[9.0, 22.5]])  # the variance is 1, so rstd is 1/2


def test_small_case_backward(impl: Impl) -> None:
    # xhat is (-1, 1), so all of dy that lies along (1, 1) or along xhat is lost: in two cells that is everything.
    _, ctx = F.layer_norm_forward(impl.array([[1.0, 3.0]]), 2, impl.array([2.0, 2.0]), impl.array([0.0, 0.0]), eps=0.0)
    dx, dgamma, dbeta = F.layer_norm_backward(impl.array([[5.0, 7.0]]), ctx)
    impl.close(dx, [[0.0, 0.0]])
    impl.close(dgamma, [-5.0, 7.0])
    impl.close(dbeta, [5.0, 7.0])


# ----------------------------------------------------------------------------------------------------------- references
@each_case
def test_against_loops(impl: Impl, case: Case, rng: np.random.Generator) -> None:
    x, dy, parameters = arrays_of(case, rng)
    loops = case.reference(*parameters)
    y, ctx = case.forward(impl.array(x), *map(impl.array, parameters))
    impl.close(y, loops.forward(x), rtol=1e-10, atol=1e-12)
    impl.same(case.inference(impl.array(x), *map(impl.array, parameters)), impl.numpy(y))
    gradients = case.backward(impl.array(dy), ctx)
    assert len(gradients) == 1 + len(parameters)
    for found, expected in zip(gradients, loops.backward(dy, x), strict=False):
        impl.close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CHANNELS, ids=lambda c: f"{c.op}-{len(c.shape)}")
def test_channels_last_is_the_same_and_stays(impl: Impl, case: Case, rng: np.random.Generator) -> None:
    """pytorch#111824: group norm gave its result in the other layout."""
    x, dy, parameters = arrays_of(case, rng)
    given = [impl.array(p) for p in parameters]
    y, ctx = case.forward(impl.array(x), *given)
    dx, *rest = case.backward(impl.array(dy), ctx)
    y_last, ctx = case.forward(impl.array(channels_last(x)), *given, data_format="channels_last")
    dx_last, *rest_last = case.backward(impl.array(channels_last(dy)), ctx)
    impl.close(y_last, channels_last(impl.numpy(y)), rtol=1e-10, atol=1e-12)
    impl.close(dx_last, channels_last(impl.numpy(dx)), rtol=1e-10, atol=1e-12)
    for found, expected in zip(rest_last, rest, strict=True):
        impl.close(found, impl.numpy(expected), rtol=1e-10)


@pytest.mark.parametrize("case", MAIN[:3], ids=lambda c: c.op)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_memory_order_stays(case: Case, dtype: str, rng: np.random.Generator) -> None:
    """pytorch#111824 again: (N, C, H, W) arrays that lie in memory as (N, H, W, C)."""
    x = np.moveaxis(channels_last(rng.normal(size=case.shape).astype(dtype)), -1, 1)
    y, ctx = case.forward(x, *case.parameters(rng))
    dx = case.backward(x, ctx)[0]
    assert y.strides == dx.strides == x.strides


def test_group_norm_backward_sums_dxhat_times_xhat_over_each_group(impl: Impl, rng: np.random.Generator) -> None:
    """A tutorial summed it over the wrong axes. Moved along xhat, a group of variance 1 keeps its y."""
    x = rng.normal(size=(2, 4, 3))
    y, ctx = F.group_norm_forward(impl.array(x), 2, eps=0.0)
    groups = impl.numpy(y).reshape(2, 2, 6)
    dy = rng.normal(size=groups.shape)
    dx, *_ = F.group_norm_backward(impl.array(dy.reshape(x.shape)), ctx)
    dx = impl.numpy(dx).reshape(groups.shape)
    np.testing.assert_allclose((dx * groups).sum(axis=2), 0.0, atol=1e-12)
    np.testing.assert_allclose(dx.sum(axis=2), 0.0, atol=1e-12)
    rstd = 1 / x.reshape(groups.shape).std(axis=2)[..., None]
    left = dy - dy.mean(axis=2)[..., None] - groups * (dy * groups).mean(axis=2)[..., None]
    np.testing.assert_allclose(dx, rstd * left, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------ gradients
@each_case
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_gradients(case: Case, eps: float, rng: np.random.Generator) -> None:
    x, _, parameters = arrays_of(case, rng)
    gradcheck(getattr(F, case.op), x, *case.args, *parameters, **case.options | {"eps": eps})


@pytest.mark.parametrize("case", CHANNELS, ids=lambda c: f"{c.op}-{len(c.shape)}")
def test_gradients_channels_last(case: Case, rng: np.random.Generator) -> None:
    x, _, parameters = arrays_of(case, rng)
    options = case.options | {"data_format": "channels_last"}
    gradcheck(getattr(F, case.op), channels_last(x), *case.args, *parameters, **options)


@each_norm
@pytest.mark.parametrize("given", [(0, 0), (1, 0), (0, 1)])
def test_a_parameter_not_given_has_no_gradient(
    impl: Impl, case: Case, given: tuple[int, int], rng: np.random.Generator
) -> None:
    x, dy, parameters = arrays_of(case, rng)
    neutral = [np.ones(case.parameter), np.zeros(case.parameter)]
    chosen = [p if keep else None for p, keep in zip(parameters, given, strict=False)]
    full = [p if keep else n for p, n, keep in zip(parameters, neutral, given, strict=False)]
    y, ctx = case.forward(impl.array(x), *(None if p is None else impl.array(p) for p in chosen))
    expected, expected_ctx = case.forward(impl.array(x), *map(impl.array, full))
    impl.close(y, impl.numpy(expected), rtol=1e-12, atol=1e-12)
    found = case.backward(impl.array(dy), ctx)
    wanted = case.backward(impl.array(dy), expected_ctx)
    impl.close(found[0], impl.numpy(wanted[0]), rtol=1e-10, atol=1e-12)
    for f, w, p in zip(found[1:], wanted[1:], chosen, strict=True):
        assert (f is None) == (p is None)
        if f is not None:
            impl.close(f, impl.numpy(w), rtol=1e-10, atol=1e-12)


# --------------------------------------------------------------------------------------------------- numbers and dtypes
@each_norm
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_variance_stays_right_at_a_large_mean(impl: Impl, case: Case, spread: float, rng: np.random.Generator) -> None:
    """tt-metal#45968: mean(x**2) - mean(x)**2 loses the variance where the mean is 1e6 times the std."""
    x = (rng.normal(size=case.shape) * spread + 1e6 * spread).astype("float32")
    dy = rng.normal(size=case.shape).astype("float32")
    parameters = [p.astype("float32") for p in case.parameters(rng)]
    options = {} if case.op == "rms_norm" else {"eps": 1e-6 * spread**2}
    y, ctx = case.forward(impl.array(x), *map(impl.array, parameters), **options)
    exact = case.reference(*parameters, eps=options.get("eps", 1e-5))
    impl.close(y, exact.forward(x), rtol=1e-5, atol=1e-5, dtype="float32")
    for found, expected in zip(case.backward(impl.array(dy), ctx), exact.backward(dy, x), strict=False):
        size = np.abs(expected).max()
        impl.close(found, expected, rtol=1e-5, atol=1e-5 * size, dtype="float32")


@each_norm
@HALF
def test_dtypes(impl: Impl, case: Case, dtype: str, rng: np.random.Generator) -> None:
    x, dy, parameters = arrays_of(case, rng)
    x, dy = x.astype(dtype), dy.astype(dtype)
    exact = case.reference(*parameters)
    y, ctx = case.forward(impl.array(x), *(impl.array(p) for p in parameters))
    tolerance = TOLERANCE[dtype]
    impl.close(y, exact.forward(x), rtol=tolerance, atol=tolerance, dtype=dtype)
    dx, *rest = case.backward(impl.array(dy), ctx)
    wanted = exact.backward(dy, x)
    impl.close(dx, wanted[0], rtol=tolerance, atol=tolerance, dtype=dtype)
    # A parameter's gradient has the parameter's dtype, and float32's precision at least.
    for found, expected in zip(rest, wanted[1:], strict=False):
        impl.close(found, expected, rtol=2e-6, atol=2e-6, dtype="float64")


@each_norm
def test_parameters_of_another_precision(impl: Impl, case: Case, rng: np.random.Generator) -> None:
    x, dy, parameters = arrays_of(case, rng)
    y, ctx = case.forward(impl.array(x), *(impl.array(p, "float32") for p in parameters))
    impl.numpy(y, case.shape, "float64")
    dx, *rest = case.backward(impl.array(dy, "float32"), ctx)
    impl.numpy(dx, case.shape, "float64")
    for gradient in rest:
        impl.numpy(gradient, case.parameter, "float32")


@each_norm
def test_bfloat16(case: Case, rng: np.random.Generator) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, dy, parameters = (a.astype(bfloat16) if i < 2 else a for i, a in enumerate(arrays_of(case, rng)))
    exact = case.reference(*parameters)
    y, ctx = case.forward(x, *(p.astype("float32") for p in parameters))
    dx, *_ = case.backward(dy, ctx)
    assert y.dtype == dx.dtype == bfloat16
    wide = x.astype("float64")
    tolerance = TOLERANCE["bfloat16"]
    np.testing.assert_allclose(y.astype("float64"), exact.forward(wide), rtol=tolerance, atol=tolerance)
    wanted = exact.backward(dy.astype("float64"), wide)[0]
    np.testing.assert_allclose(dx.astype("float64"), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "epsilon"), [("float16", 2**-23), ("bfloat16", 2**-23), ("float32", 2**-23), ("float64", 2**-52)]
)
def test_rms_norm_takes_the_epsilon_of_the_dtype_it_computes_in(impl: Impl, dtype: str, epsilon: float) -> None:
    kind = impl.dtype(dtype)
    x = impl.array(np.full((1, 4), epsilon**0.5, "float64").astype(kind))  # then x**2 and epsilon are one size
    for y in (F.rms_norm(x, 4), RMSNorm(4, elementwise_affine=False)(x)):
        np.testing.assert_allclose(impl.numpy(y).astype("float64"), 0.5**0.5, rtol=0.01)
    # 66 % off PyTorch's with float16's own epsilon
    y = impl.numpy(F.rms_norm(impl.array(np.full((1, 4), 0.01, kind)), 4)).astype("float64")
    np.testing.assert_allclose(y, 0.01 / (0.01**2 + epsilon) ** 0.5, rtol=0.01)


@each_norm
def test_half_types_are_summed_in_more(impl: Impl, case: Case) -> None:
    """candle PR 3719: float16 sums stopped growing. 4,096 values a row, whose sum float16 cannot hold."""
    shape = {"batch_norm": (4096, 2), "group_norm": (2, 2, 4096), "instance_norm": (2, 2, 4096)}
    args = {"group_norm": (2,), "layer_norm": (4096,), "rms_norm": (4096,)}
    row = np.where(np.arange(4096) % 2, 60.0, 20.0)
    x = np.broadcast_to(row[:, None] if case.op == "batch_norm" else row, shape.get(case.op, (2, 4096)))
    y = getattr(F, case.op)(impl.array(x, "float16"), *args.get(case.op, ()), **case.options)
    expected = x / 2000**0.5 if case.op == "rms_norm" else np.sign(x - 40)
    impl.close(y, expected, rtol=1e-3, dtype="float16")


@each_norm
def test_nan_spreads_through_its_row_alone(impl: Impl, case: Case, rng: np.random.Generator) -> None:
    x, dy, parameters = arrays_of(case, rng)
    exact = case.reference(*parameters)
    poisoned = exact.rows[1]
    x[poisoned[0][0]] = np.nan
    bad = np.zeros(case.shape, bool)
    for cell, _ in poisoned:
        bad[cell] = True
    y, ctx = case.forward(impl.array(x), *map(impl.array, parameters))
    assert (np.isnan(impl.numpy(y)) == bad).all()
    assert (np.isnan(impl.numpy(case.backward(impl.array(dy), ctx)[0])) == bad).all()


# --------------------------------------------------------------------------------------------------- shapes and strides
EMPTY = {
    "batch_norm": [(0, 3, 2), (0, 3), (2, 0, 3), (0, 0), (1, 0)],
    "group_norm": [(0, 4, 2), (0, 2), (2, 0, 3)],
    "instance_norm": [(0, 3, 2), (0, 3), (2, 0, 3), (0, 3, 1)],
    "layer_norm": [(0, 4), (0, 2, 4)],
    "rms_norm": [(0, 4), (0, 2, 4)],
}


@pytest.mark.parametrize(("op", "shape"), [(op, shape) for op, shapes in EMPTY.items() for shape in shapes])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
@pytest.mark.filterwarnings("error")
def test_empty_gives_empty(impl: Impl, op: str, shape: tuple[int, ...], eps: float) -> None:
    args = {"group_norm": (2,), "layer_norm": (4,), "rms_norm": (4,)}.get(op, ())
    parameter = (4,) if op in ("layer_norm", "rms_norm") else (shape[1],)
    parameters = [impl.array(np.ones(parameter), "float32") for _ in range(1 if op == "rms_norm" else 2)]
    x = impl.array(np.zeros(shape), "float32")
    options = {"eps": eps} | (TRAIN if op == "batch_norm" else {})
    y, ctx = getattr(F, f"{op}_forward")(x, *args, *parameters, **options)
    impl.same(y, np.zeros(shape, "float32"))
    dx, *rest = getattr(F, f"{op}_backward")(x, ctx)
    impl.same(dx, np.zeros(shape, "float32"))
    for gradient in rest:
        impl.same(gradient, np.zeros(parameter, "float32"))


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_one_value_a_row_is_allowed_in_layer_and_rms_norm(impl: Impl, op: str) -> None:
    x = impl.array([[3.0], [-4.0]])
    y, ctx = getattr(F, f"{op}_forward")(x, 1, eps=0.0 if op == "rms_norm" else 1e-5)
    impl.close(y, [[1.0], [-1.0]] if op == "rms_norm" else [[0.0], [0.0]])
    impl.close(getattr(F, f"{op}_backward")(x, ctx)[0], [[0.0], [0.0]])


@pytest.mark.parametrize("order", ["strided", "negative", "transposed"])
@each_norm
def test_strides_do_not_matter(case: Case, order: str, rng: np.random.Generator) -> None:
    def laid_out(a: np.ndarray) -> np.ndarray:
        return {
            "strided": lambda: np.repeat(a, 2, axis=0)[::2],
            "negative": lambda: a[::-1, ::-1].copy()[::-1, ::-1],
            "transposed": lambda: np.asfortranarray(a),
        }[order]()

    x, dy, parameters = arrays_of(case, rng)
    y, ctx = case.forward(x, *parameters)
    other, other_ctx = case.forward(laid_out(x), *(np.repeat(p, 2, axis=-1)[..., ::2] for p in parameters))
    np.testing.assert_allclose(other, y, rtol=1e-12)
    for a, e in zip(case.backward(laid_out(dy), other_ctx), case.backward(dy, ctx), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)


@each_norm
def test_context_keeps_x_and_small_arrays_and_serves_twice(impl: Impl, case: Case, rng: np.random.Generator) -> None:
    x, dy, parameters = (a if i == 2 else a.astype("float32") for i, a in enumerate(arrays_of(case, rng)))
    x = impl.array(x)
    _, ctx = case.forward(x, *(impl.array(p, "float32") for p in parameters))
    assert ctx.arrays["x"] is x
    rows = len(case.reference(*parameters).rows)
    statistics = 8 * rows * (1 if case.op == "rms_norm" else 2)
    assert ctx.nbytes == 4 * int(np.prod(case.shape)) + statistics + 4 * int(np.prod(case.parameter))
    for first, second in zip(case.backward(impl.array(dy), ctx), case.backward(impl.array(dy), ctx), strict=True):
        impl.same(first, impl.numpy(second))


# --------------------------------------------------------------------------------------------------------------- errors
X = np.ones((2, 4, 3), "float32")
LONE = np.ones((2, 4, 1), "float32")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: F.batch_norm(X.astype(int)), TypeError, "x must be float"),
        (lambda: F.batch_norm(X, np.ones(3)), ValueError, r"gamma must have shape \(4,\), got \(3,\)"),
        (lambda: F.batch_norm(X, None, np.ones((4, 1))), ValueError, r"beta must have shape \(4,\)"),
        (lambda: F.batch_norm(X, np.ones(4, int)), TypeError, "gamma must be float"),
        (lambda: F.batch_norm(X[0, 0]), ValueError, "x must have"),
        (lambda: F.batch_norm(np.ones((1,) * 6)), ValueError, "x must have"),
        (lambda: F.batch_norm(X, eps=-1e-5), ValueError, "eps must not be negative, got -1e-05"),
        (lambda: F.batch_norm(X, eps="small"), TypeError, "eps must be a real number"),
        (lambda: F.batch_norm(X, eps=float("nan")), ValueError, "eps must be finite"),
        (lambda: F.batch_norm(X, data_format="NCHW"), ValueError, "data_format must be"),
        (lambda: F.batch_norm([[1.0]]), TypeError, "x must be an array"),
        (lambda: F.group_norm(X, 3), ValueError, "num_groups must divide the number of channels: 4 % 3 = 1"),
        (lambda: F.group_norm(X, 0), ValueError, "num_groups must be at least 1, got 0"),
        (lambda: F.group_norm(X, 2.0), TypeError, "num_groups must be an int"),
        (lambda: F.group_norm(LONE, 4), ValueError, r"more than one value per group, got shape \(2, 4, 1\)"),
        (lambda: F.group_norm(X[:, :, 0], 4), ValueError, "more than one value per group"),
        (lambda: F.group_norm(X, 2, np.ones(2)), ValueError, r"gamma must have shape \(4,\)"),
        (lambda: F.instance_norm(LONE), ValueError, "more than one value per instance"),
        (lambda: F.instance_norm(X[:, :, 0]), ValueError, "more than one value per instance"),
        (lambda: F.layer_norm(X, 4), ValueError, r"normalized_shape \(4,\) must be the last axes of x"),
        (lambda: F.layer_norm(X, ()), ValueError, "normalized_shape must name at least one axis"),
        (lambda: F.layer_norm(X, (1, 2, 4, 3)), ValueError, "normalized_shape"),
        (lambda: F.layer_norm(X, 3.0), TypeError, "normalized_shape must be an int"),
        (lambda: F.layer_norm(np.array(1.0), 1), ValueError, "normalized_shape"),
        (lambda: F.layer_norm(X, (4, 3), np.ones(3)), ValueError, r"gamma must have shape \(4, 3\)"),
        (lambda: F.rms_norm(X, 3, eps=-1), ValueError, "eps must not be negative"),
        (lambda: F.rms_norm(X, 3, np.ones(4)), ValueError, r"gamma must have shape \(3,\)"),
        (lambda: F.group_norm_backward(X, F.instance_norm_forward(X)[1]), TypeError, "needs the context of group_norm"),
        (lambda: F.layer_norm_backward(X, F.layer_norm_forward(X[0], 3)[1]), ValueError, "dy must have y's shape"),
    ],
)
def test_errors(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_mixed_owners_are_named() -> None:
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match=r"x is numpy on cpu, beta is array_api_strict"):
        F.group_norm(X, 2, None, strict.ones(4))


# -------------------------------------------------------------------------------------------------------------- PyTorch
def _by_torch(case: Case, torch: Any, x: Any, parameters: Any, eps: float) -> Any:
    f = torch.nn.functional
    if case.op == "batch_norm":
        return f.batch_norm(x, None, None, *parameters, True, 0.1, eps)
    if case.op == "group_norm":
        return f.group_norm(x, *case.args, *parameters, eps)
    if case.op == "instance_norm":
        return f.instance_norm(x, None, None, *parameters, True, 0.1, eps)
    return getattr(f, case.op)(x, case.parameter, *parameters, eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_case
def test_against_torch(case: Case, dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    for eps in (1e-5, 0.1):
        x, dy, *parameters = (a.astype(dtype) for a in (*arrays_of(case, rng)[:2], *case.parameters(rng)))
        leaves = [torch.tensor(a, requires_grad=True) for a in (x, *parameters)]
        expected = _by_torch(case, torch, leaves[0], leaves[1:], eps)
        expected.backward(torch.tensor(dy))
        y, ctx = case.forward(x, *parameters, eps=eps)
        tolerance = 20 * TOLERANCE[dtype]
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=tolerance, atol=tolerance)
        for found, leaf in zip(case.backward(dy, ctx), leaves, strict=True):
            np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=tolerance, atol=tolerance)
