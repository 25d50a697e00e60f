"""linear, relu, dropout and softmax_cross_entropy: literal cases, loops, PyTorch, gradients, errors."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends
from cnnlayers.testing import gradcheck

from .implementations import HALF, Impl
from .reference import dense as reference

losses = importlib.import_module("cnnlayers.functional.losses")
TOLERANCE = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-12}


# ---------------------------------------------------------------------------------------------------------- linear
@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (2, 1, 3)])
def test_linear_is_what_the_loops_say(impl: Impl, lead: tuple[int, ...], rng: np.random.Generator) -> None:
    x, w, bias = rng.standard_normal((*lead, 5)), rng.standard_normal((3, 5)), rng.standard_normal(3)
    dy = rng.standard_normal((*lead, 3))
    y, ctx = F.linear_forward(impl.array(x), impl.array(w), impl.array(bias))
    impl.same(F.linear(impl.array(x), impl.array(w), impl.array(bias)), impl.numpy(y))
    expected = reference.linear(x, w, bias, dy)
    for mine, other in zip((y, *F.linear_backward(impl.array(dy), ctx)), expected, strict=True):
        impl.close(mine, other, rtol=1e-12, atol=1e-12)


def test_linear_without_a_bias(impl: Impl) -> None:
    y, ctx = F.linear_forward(impl.array([[1.0, 2.0]]), impl.array([[3.0, 4.0], [5.0, 6.0]]))
    impl.close(y, np.array([[11.0, 17.0]]))
    dx, dw, dbias = F.linear_backward(impl.array([[1.0, 10.0]]), ctx)
    impl.close(dx, np.array([[53.0, 64.0]]))
    impl.close(dw, np.array([[1.0, 2.0], [10.0, 20.0]]))
    assert dbias is None


@HALF
def test_dtypes_of_linear(impl: Impl, dtype: str, rng: np.random.Generator) -> None:
    x, w, bias = rng.standard_normal((4, 5)), rng.standard_normal((3, 5)), rng.standard_normal(3)
    y, ctx = F.linear_forward(impl.array(x, dtype), impl.array(w, "float64"), impl.array(bias, "float32"))
    exact = x.astype(dtype).astype("float64") @ w.T + bias.astype("float32")
    impl.close(y, exact.astype(dtype), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for gradient, (shape, kind) in zip(
        F.linear_backward(y, ctx), [((4, 5), dtype), ((3, 5), "float64"), ((3,), "float32")], strict=True
    ):
        impl.numpy(gradient, shape, kind)


def test_half_types_add_up_in_float32(impl: Impl) -> None:  # candle PR 3719
    ones = impl.array(np.ones((4096, 1)), "float16")
    _, ctx = F.linear_forward(ones, impl.array([[1.0]], "float16"), impl.array([0.0], "float16"))
    _, dw, dbias = F.linear_backward(ones, ctx)
    impl.close(dw, np.array([[4096.0]], "float16"))
    impl.close(dbias, np.array([4096.0], "float16"))
    row = impl.array(np.ones((1, 4096)), "float16")
    impl.close(F.linear(row, row), np.array([[4096.0]], "float16"))


def test_a_bias_gradient_of_many_rows_is_summed_in_float64(impl: Impl) -> None:
    _, ctx = F.linear_forward(impl.array(np.ones((400_000, 1)), "float32"), *map(impl.array, ([[1.0]], [0.0])))
    dy = impl.array(np.full((400_000, 1), 0.1), "float32")
    impl.close(F.linear_backward(dy, ctx)[2], np.array([400_000 * float(np.float32(0.1))]), rtol=1e-12)


@pytest.mark.parametrize(("lead", "n", "out"), [((0,), 3, 2), ((2, 0), 3, 2), ((4,), 0, 2), ((4,), 3, 0), ((), 0, 2)])
def test_linear_of_nothing(impl: Impl, lead: tuple[int, ...], n: int, out: int) -> None:
    x, w = impl.array(np.ones((*lead, n)), "float32"), impl.array(np.ones((out, n)), "float32")
    y, ctx = F.linear_forward(x, w, impl.array(np.ones(out), "float32"))
    impl.same(y, np.full((*lead, out), 1.0 + n, "float32"))
    dx, dw, dbias = F.linear_backward(y, ctx)
    impl.same(dx, np.full((*lead, n), out * (1.0 + n), "float32"))
    impl.same(dw, np.full((out, n), float(np.prod(lead)) * (1.0 + n), "float32"))
    impl.same(dbias, np.full((out,), float(np.prod(lead)) * (1.0 + n), "float32"))


def test_linear_reads_any_strides(impl: Impl, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((6, 8, 4)), rng.standard_normal((8, 6))
    y, ctx = F.linear_forward(impl.array(x)[::-1, ::2, ::-2], impl.array(w)[::3, ::-3])
    plain = np.ascontiguousarray(x[::-1, ::2, ::-2]), np.ascontiguousarray(w[::3, ::-3])
    expected, plain_ctx = F.linear_forward(*plain)
    impl.close(y, expected, rtol=1e-12, atol=1e-13)
    dy = rng.standard_normal(expected.shape)
    found, other = F.linear_backward(impl.array(dy[:, ::-1])[:, ::-1, ...], ctx), F.linear_backward(dy, plain_ctx)
    for mine, theirs in zip(found[:2], other[:2], strict=True):
        impl.close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_gradients_of_linear(rng: np.random.Generator) -> None:
    x, w, bias = rng.standard_normal((3, 4, 5)), rng.standard_normal((2, 5)), rng.standard_normal(2)
    assert set(gradcheck(F.linear, x, w, bias)) == {"x", "weight", "bias"}
    gradcheck(F.linear, x[0, 0], w)


@pytest.mark.parametrize(
    ("args", "kind", "said"),
    [
        ((np.zeros(()), np.zeros((2, 3))), ValueError, "x must have at least one axis"),
        ((np.zeros((2, 4)), np.zeros((2, 3))), ValueError, r"weight must be \(out, 4\)"),
        ((np.zeros(3), np.zeros(3)), ValueError, r"weight must be \(out, 3\)"),
        ((np.zeros(3), np.zeros((2, 3)), np.zeros(3)), ValueError, r"bias must have shape \(2,\), got \(3,\)"),
        ((np.zeros(3, int), np.zeros((2, 3))), TypeError, "x must be float"),
        ((np.zeros(3), np.zeros((2, 3), bool)), TypeError, "weight must be float"),
        ((np.zeros(3), np.zeros((2, 3)), np.zeros(2, int)), TypeError, "bias must be float"),
        ((np.zeros(3), None), TypeError, "weight must be an array"),
        (([1.0], np.zeros((2, 1))), TypeError, "x must be an array"),
    ],
)
def test_what_linear_refuses(args: tuple[Any, ...], kind: type[Exception], said: str) -> None:
    for call in (F.linear, F.linear_forward):
        with pytest.raises(kind, match=said):
            call(*args)


# ------------------------------------------------------------------------------------------------------------ relu
@HALF
def test_relu_by_hand(impl: Impl, dtype: str) -> None:
    x = impl.array([[-2.0, -0.0, 0.0], [3.0, np.inf, -np.inf]], dtype)
    y, ctx = F.relu_forward(x)
    impl.close(y, np.array([[0, 0, 0], [3, np.inf, 0]], dtype))
    impl.same(F.relu(x), impl.numpy(y))
    impl.close(
        F.relu_backward(impl.array([[1.0, 2, 3], [4, 5, 6]], dtype), ctx), np.array([[0, 0, 0], [4, 5, 0]], dtype)
    )
    assert ctx.nbytes == (1 if ctx.plan.backend.name == "numpy" else 6)  # a bit an element, or a bool


@pytest.mark.parametrize("lanes", [1, 7, 40])
def test_relu_passes_nan_and_its_gradient(impl: Impl, lanes: int) -> None:  # tensorflow#125965: in every lane
    for at in range(lanes):
        x = np.full(lanes, -1.0, "float32")
        x[at] = np.nan
        y, ctx = F.relu_forward(impl.array(x))
        impl.close(y, np.where(np.isnan(x), np.nan, 0).astype("float32"))
        impl.close(F.relu_backward(impl.array(np.ones(lanes), "float32"), ctx), np.isnan(x).astype("float32"))


def test_relu_stops_what_is_not_finite_where_x_is_negative(impl: Impl) -> None:
    _, ctx = F.relu_forward(impl.array([-1.0, -1.0, 1.0]))
    impl.close(F.relu_backward(impl.array([np.nan, np.inf, np.nan]), ctx), np.array([0.0, 0.0, np.nan]))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 4, 5, 6, 7)])
def test_relu_of_any_shape(impl: Impl, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    host = rng.standard_normal(shape)
    y, ctx = F.relu_forward(impl.array(host, "float32"))
    impl.close(y, np.maximum(host, 0.0).astype("float32"))
    impl.numpy(F.relu(impl.array(host, "float32")), shape, "float32")
    impl.close(F.relu_backward(y, ctx), np.maximum(host, 0.0).astype("float32"))


def test_relu_in_bfloat16() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    y, ctx = F.relu_forward(np.array([-1, 2, 0], bfloat16))
    dx = F.relu_backward(np.array([5, 6, 7], bfloat16), ctx)
    assert (y.dtype, dx.dtype, y.tolist(), dx.tolist()) == (bfloat16, bfloat16, [0, 2, 0], [0, 6, 0])


def test_gradients_of_relu(rng: np.random.Generator) -> None:
    gradcheck(F.relu, rng.standard_normal((3, 4, 2)))
    gradcheck(F.relu, rng.standard_normal((8, 6))[::-2, ::3])


# --------------------------------------------------------------------------------------------------------- dropout
@HALF
def test_dropout_scales_what_it_keeps(impl: Impl, dtype: str) -> None:
    x = impl.array(np.full((40, 50), 3.0), dtype)
    y, ctx = F.dropout_forward(x, 0.25, training=True, rng=0)
    host = impl.numpy(y, (40, 50), dtype)
    kept = host != 0
    np.testing.assert_array_equal(host[kept], np.asarray(4.0, dtype))
    assert 0.70 < kept.mean() < 0.80
    dx = F.dropout_backward(impl.array(np.full((40, 50), 6.0), dtype), ctx)
    impl.close(dx, np.where(kept, 8.0, 0.0).astype(dtype))
    assert ctx.nbytes == 2000  # a bool an element


def test_dropout_drops_with_probability_p() -> None:
    for p in (0.01, 0.3, 0.9):
        y = F.dropout(np.ones(200_000, "float32"), p, training=True, rng=5)
        assert abs((y == 0).mean() - p) < 5 * (p * (1 - p) / 200_000) ** 0.5


@pytest.mark.parametrize("given", [{"p": 0.5}, {"p": 1.0}, {"p": 0.0, "training": True}, {}])
def test_dropout_is_the_identity_otherwise(impl: Impl, given: dict[str, Any]) -> None:
    x = impl.array([1.0, np.nan, 3.0], "float32")
    y, ctx = F.dropout_forward(x, **given)
    assert y is x
    assert F.dropout(x, **given) is x
    assert ctx.nbytes == 0
    impl.close(F.dropout_backward(impl.array([5.0, 6.0, 7.0], "float32"), ctx), np.array([5, 6, 7], "float32"))


def test_dropout_of_everything(impl: Impl) -> None:
    y, ctx = F.dropout_forward(impl.array([1.0, np.nan, np.inf]), 1, training=True)
    impl.close(y, np.zeros(3))
    impl.close(F.dropout_backward(impl.array([1.0, np.nan, np.inf]), ctx), np.zeros(3))


def test_what_is_dropped_is_zero_even_if_it_was_not_finite(impl: Impl) -> None:
    x = impl.array(np.where(np.arange(200) % 2 == 0, np.nan, np.inf))
    y, ctx = F.dropout_forward(x, 0.5, training=True, rng=1)
    dropped = impl.numpy(y) == 0
    assert 50 < dropped.sum() < 150
    assert not np.isfinite(impl.numpy(y)[~dropped]).any()
    np.testing.assert_array_equal(impl.numpy(F.dropout_backward(x, ctx)) == 0, dropped)


def test_a_seed_means_one_mask(impl: Impl) -> None:
    x = impl.array(np.ones(1000), "float32")
    first = impl.numpy(F.dropout(x, 0.5, training=True, rng=7))
    impl.same(F.dropout(x, 0.5, training=True, rng=np.int64(7)), first)
    assert (impl.numpy(F.dropout(x, 0.5, training=True, rng=8)) != first).any()
    wide = impl.numpy(F.dropout(impl.array(np.ones(1000), "float64"), 0.5, training=True, rng=7))
    np.testing.assert_array_equal(wide != 0, first != 0)  # in every dtype


def test_a_generator_moves_on(impl: Impl) -> None:
    x = impl.array(np.ones(1000), "float32")
    random = impl.xp.random if impl.name in ("standin", "gpu") else np.random
    one, two = random.default_rng(7), random.default_rng(7)
    first = impl.numpy(F.dropout(x, 0.5, training=True, rng=one))
    impl.same(F.dropout(x, 0.5, training=True, rng=two), first)
    second = impl.numpy(F.dropout(x, 0.5, training=True, rng=one))
    assert (first != second).any()
    impl.same(F.dropout(x, 0.5, training=True, rng=two), second)


def test_without_a_seed_every_mask_is_new() -> None:
    x = np.ones(1000)
    assert (F.dropout(x, training=True) != F.dropout(x, training=True)).any()


def test_gradients_of_dropout(rng: np.random.Generator) -> None:
    gradcheck(F.dropout, rng.standard_normal((4, 5)), 0.4, training=True, rng=3)
    gradcheck(F.dropout, rng.standard_normal((4, 5)), 0.4, training=True, rng=np.random.default_rng(3))
    gradcheck(F.dropout, rng.standard_normal((4, 5)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"p": 1.5}, ValueError, "p must be a probability"),
        ({"p": -0.1}, ValueError, "p must be a probability"),
        ({"p": np.nan}, ValueError, "p must be finite"),
        ({"p": "0.5"}, TypeError, "p must be a real number"),
        ({"rng": -1}, ValueError, "rng must be a seed of at least 0"),
        ({"rng": 1.5}, TypeError, "rng must be None, an int or a numpy.random.Generator"),
        ({"rng": True}, TypeError, "rng must be None"),
        ({"rng": np.random.RandomState(0)}, TypeError, "rng must be None"),
    ],
)
def test_what_dropout_refuses(given: dict[str, Any], kind: type[Exception], said: str, training: bool) -> None:
    with pytest.raises(kind, match=said):
        F.dropout(np.ones(3), training=training, **given)


def test_what_dropout_and_relu_refuse() -> None:
    with pytest.raises(TypeError, match="training must be True or False"):
        F.dropout(np.ones(3), training="yes")
    for op in (F.relu, F.relu_forward, F.dropout, F.dropout_forward):
        with pytest.raises(TypeError, match="x must be float"):
            op(np.arange(3))
        with pytest.raises(TypeError, match="must be an array"):
            op([1.0])
    _, ctx = F.relu_forward(np.ones((2, 3)))
    with pytest.raises(ValueError, match="dy must have y's shape"):
        F.relu_backward(np.ones(3), ctx)
    with pytest.raises(TypeError, match="needs the context of dropout_forward"):
        F.dropout_backward(np.ones((2, 3)), ctx)


def test_a_generator_of_another_library_is_refused(impl: Impl) -> None:
    if impl.name != "standin":
        pytest.skip("CuPy's and its stand-in's arrays have generators of their own")
    x = impl.array(np.ones(3))
    with pytest.raises(TypeError, match=r"cupy\.random\.Generator for an array of cupy"):
        F.dropout(x, training=True, rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"numpy\.random\.Generator for an array of numpy"):
        F.dropout(np.ones(3), training=True, rng=impl.xp.random.default_rng(0))


# ------------------------------------------------------------------------------------------------------------ loss
@HALF
@pytest.mark.parametrize("integers", ["uint8", "int32", "int64", "uint64"])
def test_the_loss_is_what_the_loops_say(impl: Impl, dtype: str, integers: str, rng: np.random.Generator) -> None:
    x, labels = rng.standard_normal((5, 4)).astype(dtype), np.array([0, 3, 1, 1, 2])
    loss, ctx = F.softmax_cross_entropy_forward(impl.array(x), impl.array(labels, integers))
    expected, dx = reference.softmax_cross_entropy(x.astype("float64"), labels)
    tol = TOLERANCE[dtype]
    impl.close(loss, np.array(expected, dtype), rtol=tol)
    assert loss.shape == ()
    impl.same(F.softmax_cross_entropy(impl.array(x), impl.array(labels)), impl.numpy(loss))
    impl.close(F.softmax_cross_entropy_backward(impl.array(1.0, dtype), ctx), dx.astype(dtype), rtol=tol, atol=tol)


@pytest.mark.parametrize("scale", [2, 2.0, np.float32(2), np.int64(2)])
def test_dy_may_be_a_number(impl: Impl, scale: Any) -> None:
    _, ctx = F.softmax_cross_entropy_forward(impl.array([[0.0, 0.0]]), impl.array([1]))
    impl.close(F.softmax_cross_entropy_backward(scale, ctx), np.array([[1.0, -1.0]]))
    impl.close(F.softmax_cross_entropy_backward(impl.array(2.0), ctx), np.array([[1.0, -1.0]]))


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e6, 1e8])
def test_large_scores_do_no_harm(impl: Impl, shift: float) -> None:  # tt-metal#45968's kind: nothing may cancel
    x = np.array([[0.0, 8.0, 16.0], [0.0, 0.0, 0.0]], "float32")
    loss, ctx = F.softmax_cross_entropy_forward(impl.array(x + np.float32(shift)), impl.array([1, 0]))
    expected, dx = reference.softmax_cross_entropy(x.astype("float64"), np.array([1, 0]))
    impl.close(loss, np.array(expected, "float32"), rtol=1e-6)
    impl.close(F.softmax_cross_entropy_backward(1, ctx), dx.astype("float32"), rtol=1e-5)


def test_impossible_classes(impl: Impl) -> None:
    x = impl.array([[0.0, -np.inf], [-1000.0, 0.0]])
    loss, ctx = F.softmax_cross_entropy_forward(x, impl.array([0, 0]))
    impl.close(loss, np.array(500.0))
    impl.close(F.softmax_cross_entropy_backward(1, ctx), np.array([[0.0, 0.0], [-0.5, 0.5]]))
    assert impl.numpy(F.softmax_cross_entropy(x, impl.array([1, 0]))) == np.inf


def test_the_loss_as_pytorch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    for _ in range(50):
        n, k = (int(v) for v in rng.integers(1, 30, 2))
        x = rng.standard_normal((n, k)) * 10.0 ** rng.integers(-2, 4)
        labels = rng.integers(0, k, n)
        theirs = torch.tensor(x, requires_grad=True)
        expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
        expected.backward()
        loss, ctx = F.softmax_cross_entropy_forward(x, labels)
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(F.softmax_cross_entropy_backward(1, ctx), theirs.grad.numpy(), rtol=1e-9, atol=1e-15)


def test_gradients_of_the_loss(rng: np.random.Generator) -> None:
    found = gradcheck(F.softmax_cross_entropy, rng.standard_normal((5, 4)), np.array([0, 3, 1, 1, 2]))
    assert set(found) == {"x"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gap", [1.0, 15.0, 17.0, 30.0, 80.0])
def test_confident_scores_keep_their_digits(impl: Impl, dtype: str, gap: float) -> None:
    """pytorch#113708: 7.15e-7 for [15, 0, 0] where 6.12e-7 is right, and 0 from 17 on."""
    kind, rtol = np.dtype(dtype), {"float32": 1e-6, "float64": 1e-14}[dtype]
    rest = 2 * np.exp(-gap)
    others, tied = np.exp(-gap) / (1 + rest), 2 + rest / 2
    for row, label, loss, dx in [
        ([gap, 0, 0], 0, np.log1p(rest), [-rest / (1 + rest), others, others]),
        ([0, 0, gap], 2, np.log1p(rest), [others, others, -rest / (1 + rest)]),
        ([gap, 0, 0], 1, np.log1p(rest) + gap, [1 / (1 + rest), others - 1, others]),
        ([gap, gap, 0], 1, np.log1p(1 + rest / 2), [1 / tied, 1 / tied - 1, np.exp(-gap) / tied]),
    ]:
        y, ctx = F.softmax_cross_entropy_forward(impl.array([row], dtype), impl.array([label]))
        impl.close(y, np.array(loss, kind), rtol=rtol, atol=0)
        impl.close(F.softmax_cross_entropy_backward(1.0, ctx), np.array([dx], kind), rtol=rtol, atol=0)


@pytest.mark.parametrize("row", [[np.inf, 0.0, 0.0], [np.nan, 0.0, 0.0], [-np.inf] * 3])
def test_scores_without_a_largest_number_give_nan(impl: Impl, row: list[float]) -> None:
    for label in (0, 1):
        y, ctx = F.softmax_cross_entropy_forward(impl.array([row], "float32"), impl.array([label]))
        assert np.isnan(impl.numpy(y))
        assert np.isnan(impl.numpy(F.softmax_cross_entropy_backward(1.0, ctx))).all()


def test_a_class_that_cannot_be_is_no_harm(impl: Impl) -> None:
    y, ctx = F.softmax_cross_entropy_forward(impl.array([[0.0, 0.0, -np.inf]], "float32"), impl.array([0]))
    impl.close(y, np.array(np.log(2), "float32"))
    impl.close(F.softmax_cross_entropy_backward(1.0, ctx), np.array([[-0.5, 0.5, 0.0]], "float32"))


def test_the_loss_keeps_no_softmax(impl: Impl) -> None:
    _, ctx = F.softmax_cross_entropy_forward(impl.array(np.ones((10, 100)), "float32"), impl.array(np.arange(10)))
    assert ctx.nbytes == 10 * 100 * 4 + 10 * 8 + 2 * 10 * 4


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_label_out_of_range(impl: Impl, label: int) -> None:
    x, labels = impl.array(np.ones((2, 3))), impl.array([1, label])
    if impl.name not in ("standin", "gpu"):
        with pytest.raises(ValueError, match="labels must be from 0 to 2 for 3 classes"):
            F.softmax_cross_entropy(x, labels)
        return
    loss, ctx = F.softmax_cross_entropy_forward(x, labels)  # asking would stall the device: the loss is NaN
    impl.close(loss, np.array(np.nan))
    third = 1 / 6
    expected = [[third, third - 0.5, third], [np.nan] * 3]
    impl.close(F.softmax_cross_entropy_backward(1.0, ctx), np.array(expected))


@pytest.mark.parametrize(
    ("x", "labels", "kind", "said"),
    [
        (np.zeros((2, 3)), [0, 1], TypeError, "labels must be an array"),
        (np.zeros((2, 3)), None, TypeError, "labels must be an array"),
        (None, np.zeros(2, int), TypeError, "x must be an array"),
        (np.zeros((2, 3)), np.zeros(2), TypeError, "labels must be an array of integers, got float64"),
        (np.zeros((2, 3)), np.zeros(2, bool), TypeError, "labels must be an array of integers, got bool"),
        (np.zeros((2, 3)), np.zeros((2, 1), int), ValueError, r"labels must have shape \(2,\)"),
        (np.zeros((2, 3)), np.zeros(3, int), ValueError, r"labels must have shape \(2,\)"),
        (np.zeros((2, 3)), np.array(0), ValueError, r"labels must have shape \(2,\)"),
        (np.zeros((2, 3)), np.array([2**64 - 1, 0], "uint64"), ValueError, "labels must be from 0 to 2"),
        (np.zeros((0, 3)), np.zeros(0, int), ValueError, "the loss of nothing"),
        (np.zeros((2, 0)), np.zeros(2, int), ValueError, "the loss of nothing"),
        (np.zeros(3), np.zeros(3, int), ValueError, r"x must be \(N, K\)"),
        (np.zeros((2, 3), int), np.zeros(2, int), TypeError, "x must be float"),
    ],
)
def test_what_the_loss_refuses(x: Any, labels: Any, kind: type[Exception], said: str) -> None:
    for call in (F.softmax_cross_entropy, F.softmax_cross_entropy_forward):
        with pytest.raises(kind, match=said):
            call(x, labels)


def test_what_the_gradient_of_the_loss_refuses() -> None:
    _, ctx = F.softmax_cross_entropy_forward(np.zeros((2, 3)), np.zeros(2, int))
    with pytest.raises(ValueError, match="dy must have y's shape"):
        F.softmax_cross_entropy_backward(np.ones(2), ctx)
    with pytest.raises(TypeError, match="dy must be a real number"):
        F.softmax_cross_entropy_backward(True, ctx)
    with pytest.raises(TypeError, match="needs the context of softmax_cross_entropy_forward"):
        F.softmax_cross_entropy_backward(1.0, F.relu_forward(np.ones(3))[1])
    with pytest.raises(TypeError, match="needs the context"):
        F.softmax_cross_entropy_backward(1.0, None)


def test_labels_of_another_owner() -> None:
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match="labels is array_api_strict"):
        F.softmax_cross_entropy(np.zeros((2, 3)), strict.asarray([0, 1]))


# ------------------------------------------------------------------------------------------------------------- all
def test_contexts_serve_twice_with_the_same_bits(impl: Impl, rng: np.random.Generator) -> None:
    x = impl.array(rng.standard_normal((6, 4)), "float32")
    w, labels = impl.array(rng.standard_normal((3, 4)), "float32"), impl.array([0, 1, 2, 3, 0, 1])
    calls: list[Any] = [
        (F.linear_forward, F.linear_backward, (x, w), {}),
        (F.relu_forward, F.relu_backward, (x,), {}),
        (F.dropout_forward, F.dropout_backward, (x,), {"training": True, "rng": 1}),
        (F.softmax_cross_entropy_forward, F.softmax_cross_entropy_backward, (x, labels), {}),
    ]
    for forward, backward, args, given in calls:
        y, ctx = forward(*args, **given)
        first, second = (backward(y, ctx) for _ in range(2))
        for one, two in zip(*((a[:2] if isinstance(a, tuple) else (a,)) for a in (first, second)), strict=True):
            impl.same(two, impl.numpy(one))


def test_random_numbers_by_backend(impl: Impl) -> None:
    b = backends.of(impl.array([0.0]))
    drawn = impl.numpy(backends.uniform(b, (3, 1000), 5), (3, 1000), "float32")
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.03
    impl.same(backends.uniform(b, (3, 1000), 5), drawn)


def test_mse_loss_squares_in_float64():
    tall = np.array([2e19] + [0] * 99, "float32")  # its square is beyond float32, the mean is not
    assert float(F.mse_loss(tall, np.zeros_like(tall))) == pytest.approx(4e36, rel=1e-6)
