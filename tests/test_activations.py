"""leaky_relu, gelu, sigmoid, tanh, softmax and mse_loss: literal cases, PyTorch, limits, gradients, errors; erfc."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, layers
from cnnlayers.functional.erf import erfc
from cnnlayers.testing import gradcheck

from .implementations import HALF, Impl

TOLERANCE = {"float16": 2e-3, "float32": 3e-6, "float64": 1e-13}
CALLS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("leaky_relu", (), lambda torch, x: torch.nn.functional.leaky_relu(x)),
    ("leaky_relu", (-0.5,), lambda torch, x: torch.nn.functional.leaky_relu(x, -0.5)),
    ("gelu", (), lambda torch, x: torch.nn.functional.gelu(x)),
    ("gelu", ("tanh",), lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh")),
    ("sigmoid", (), lambda torch, x: torch.sigmoid(x)),
    ("tanh", (), lambda torch, x: torch.tanh(x)),
    ("softmax", (), lambda torch, x: torch.softmax(x, 1)),
    ("softmax", (-1,), lambda torch, x: torch.softmax(x, -1)),
    ("softmax", (0,), lambda torch, x: torch.softmax(x, 0)),
]
EACH_CALL = pytest.mark.parametrize(("op", "args"), [call[:2] for call in CALLS], ids=lambda v: str(v))


def trio(op: str, x: Any, dy: Any, *args: Any) -> tuple[Any, Any]:
    """y and dx, once the inference form has been seen to give the same y."""
    y, ctx = getattr(F, f"{op}_forward")(x, *args)
    inferred = getattr(F, op)(x, *args)
    assert backends.to_numpy(inferred).tobytes() == backends.to_numpy(y).tobytes()
    return y, getattr(F, f"{op}_backward")(dy, ctx)


@HALF
@pytest.mark.parametrize(("op", "args", "theirs"), CALLS, ids=lambda v: v if isinstance(v, str) else None)
def test_pytorch_gives_the_same(
    impl: Impl, op: str, args: Any, theirs: Any, dtype: str, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    x, dy = ((4 * rng.standard_normal((5, 7, 3))).astype(dtype) for _ in range(2))
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(torch, leaf)
    expected.backward(torch.tensor(dy))
    y, dx = trio(op, impl.array(x), impl.array(dy), *args)
    for mine, other in ((y, expected.detach()), (dx, leaf.grad)):
        impl.close(mine, other.numpy(), rtol=4 * TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])


@HALF
def test_relu_has_no_negative_zero(impl: Impl, dtype: str) -> None:
    y = backends.to_numpy(F.relu(impl.array(np.full(40, -0.0, dtype))))
    assert not np.signbit(y).any()


@EACH_CALL
def test_gradients(op: str, args: Any, rng: np.random.Generator) -> None:
    gradcheck(getattr(F, op), rng.standard_normal((3, 4, 2)), *args)


@EACH_CALL
def test_shapes_layouts_and_empty_arrays(op: str, args: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 6, 5)).astype("float32")
    for view in (x[::-1, ::2], x.transpose(2, 0, 1), np.asfortranarray(x), np.zeros((0, 3, 2), "float32")):
        y, dx = trio(op, view, view, *args)
        copied = trio(op, view.copy(), view.copy(), *args)
        assert y.shape == dx.shape == view.shape
        assert y.tobytes() == copied[0].tobytes()
        assert dx.tobytes() == copied[1].tobytes()


@pytest.mark.parametrize("op", ["leaky_relu", "gelu", "sigmoid", "tanh"])
def test_any_shape_is_taken(impl: Impl, op: str) -> None:
    y, dx = trio(op, impl.array(np.array(1.0)), impl.array(np.array(2.0)))
    assert impl.numpy(y).shape == impl.numpy(dx).shape == ()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_limits(impl: Impl, dtype: str) -> None:
    x, ones = impl.array(np.array([-np.inf, -1e30, 1e30, np.inf], dtype)), impl.array(np.ones(4, dtype))
    for op, args, y, dx in [
        ("gelu", (), [0.0, 0.0, 1e30, np.inf], [0.0, 0.0, 1.0, 1.0]),
        ("gelu", ("tanh",), [0.0, 0.0, 1e30, np.inf], [0.0, 0.0, 1.0, 1.0]),
        ("sigmoid", (), [0.0, 0.0, 1.0, 1.0], [0.0] * 4),
        ("tanh", (), [-1.0, -1.0, 1.0, 1.0], [0.0] * 4),
        ("leaky_relu", (0.5,), [-np.inf, -5e29, 1e30, np.inf], [0.5, 0.5, 1.0, 1.0]),
    ]:
        found = trio(op, x, ones, *args)
        impl.close(found[0], np.array(y, dtype), atol=1e-300)
        impl.close(found[1], np.array(dx, dtype), atol=1e-300)
    for op, args in [call[:2] for call in CALLS]:
        nan = impl.array(np.full((2, 2), np.nan, dtype))
        assert np.isnan(impl.numpy(trio(op, nan, nan, *args)[0])).all()


def test_small_probabilities_keep_their_digits() -> None:
    x = np.array([-80.0, -30.0])
    np.testing.assert_allclose(F.sigmoid(x), np.exp(x), rtol=1e-12)
    x = np.array([-8.0, -20.0, -25.0, -37.0])
    expected = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
    np.testing.assert_allclose(F.gelu(x), expected, rtol=1e-12)
    np.testing.assert_allclose(F.softmax(np.array([[0.0, -700.0]]))[0, 1], math.exp(-700), rtol=1e-12)


def test_softmax_of_a_long_axis_sums_to_one() -> None:
    y = F.softmax(np.zeros((1, 10**6), "float32"))
    assert abs(float(np.sum(y, dtype=np.float64)) - 1.0) < 1e-6


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((37, 21), 1),
        ((18, 16), -1),
        ((3, 9000), 1),
        ((40, 3), 0),
        ((2, 40, 300), 1),
        ((3, 5, 17, 19), 1),
        ((2, 3000, 20), 1),
    ],
)
def test_softmax_along_axes_of_many_lengths(impl: Impl, shape: tuple[int, ...], axis: int) -> None:
    """Rows are computed 16 at a time, or up to 256 neighbours together; with a NaN or an infinity a row is NaN."""
    rng = np.random.default_rng(3)
    x, dy = 4.0 * rng.standard_normal(shape), rng.standard_normal(shape)
    x[(0,) * len(shape)], x[(-1,) * len(shape)] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        powers = np.exp(x - x.max(axis, keepdims=True))
    y = powers / powers.sum(axis, keepdims=True)
    dx = y * (dy - (dy * y).sum(axis, keepdims=True))
    found = trio("softmax", impl.array(x.astype("float32")), impl.array(dy.astype("float32")), axis)
    for ours, expected in zip(found, (y, dx), strict=True):
        np.testing.assert_allclose(impl.numpy(ours), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 2e-15), ("float32", 1e-6)])
def test_erfc_is_the_standard_librarys(dtype: str, rtol: float) -> None:
    edge = np.array([0.46875, 4.0, 27.5, 26.5, 9.0])
    x = np.concatenate(
        [np.linspace(-7, 9, 5001), edge, -edge, np.nextafter(edge, 0), np.nextafter(edge, 99), [0.0, -0.0]]
    )
    x = x.astype(dtype)
    expected = np.array([math.erfc(float(v)) for v in x])
    normal = expected > float(np.finfo(dtype).tiny) * 4
    found = erfc(backends.of(x), x)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found[normal], expected[normal], rtol=rtol)
    np.testing.assert_allclose(found[~normal], expected[~normal], atol=float(np.finfo(dtype).tiny) * 8)


def test_contexts_have_the_least(rng: np.random.Generator) -> None:
    x = rng.standard_normal((8, 16)).astype("float32")
    for op in ("relu", "leaky_relu"):
        assert getattr(F, f"{op}_forward")(x)[1].nbytes == x.size // 8  # one bit an element
    assert F.gelu_forward(x)[1].arrays["x"] is x
    for op in ("sigmoid", "tanh", "softmax"):
        y, ctx = getattr(F, f"{op}_forward")(x)
        assert ctx.arrays["y"] is y


# ------------------------------------------------------------------------------------------------------------ mse loss
def test_mse_loss_is_the_mean_of_the_squares(impl: Impl) -> None:
    x, target = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 0.0], [3.0, 1.0]])
    loss, ctx = F.mse_loss_forward(impl.array(x), impl.array(target))
    impl.close(loss, np.array(5.0))
    for dy in (2.0, impl.array(np.array(2.0))):
        impl.close(F.mse_loss_backward(dy, ctx), np.array([[0.0, 2.0], [0.0, 4.0]]))


@HALF
def test_mse_loss_beside_pytorch(impl: Impl, dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, target = (rng.standard_normal((6, 5)).astype(dtype) for _ in range(2))
    leaf = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.mse_loss(leaf, torch.tensor(target))
    expected.backward()
    loss, ctx = F.mse_loss_forward(impl.array(x), impl.array(target))
    for mine, other in ((loss, expected.detach()), (F.mse_loss_backward(1.0, ctx), leaf.grad)):
        impl.close(mine, other.numpy(), rtol=2 * TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])


def test_mse_loss_of_many_elements_keeps_its_digits() -> None:
    x = np.full(10**6, 0.1, "float32")
    assert abs(float(F.mse_loss(x, np.zeros_like(x))) - 0.01) < 1e-8


@HALF
def test_mse_loss_of_one_number_has_arrays_without_axes(impl: Impl, dtype: str) -> None:
    x, target = np.array(3.0, dtype), np.array(1.0, dtype)
    loss, ctx = F.mse_loss_forward(impl.array(x), impl.array(target))
    dx = F.mse_loss_backward(1.0, ctx)
    assert type(loss) is type(dx) is type(impl.array(x))
    impl.close(loss, np.array(4.0, dtype))
    impl.close(dx, np.array(4.0, dtype))


def test_mse_loss_gradient(rng: np.random.Generator) -> None:
    target = rng.standard_normal((3, 4))
    gradcheck(F.mse_loss, rng.standard_normal((3, 4)), target)


# --------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: F.leaky_relu(x, "1"), TypeError, "negative_slope"),
        (lambda x: F.leaky_relu(x, np.nan), ValueError, "negative_slope"),
        (lambda x: F.gelu(x, "exact"), ValueError, "approximate must be 'none' or 'tanh', got 'exact'"),
        (lambda x: F.gelu(x, np.array(["none", "tanh"])), ValueError, "approximate must be 'none' or 'tanh'"),
        (lambda x: F.leaky_relu(x, np.True_), TypeError, "negative_slope must be a real number"),
        (lambda x: F.softmax(x, 2), ValueError, r"axis must be an axis of x, whose shape is \(2, 3\), got 2"),
        (lambda x: F.softmax(x[0, 0], 0), ValueError, "axis"),
        (lambda x: F.softmax(x, 0.5), TypeError, "axis"),
        (lambda x: F.sigmoid(x.astype(int)), TypeError, "x must be float16"),
        (lambda x: F.tanh(x + 0j), TypeError, "x must be float16"),
        (lambda x: F.mse_loss(x, x[:1]), ValueError, r"target must have x's shape \(2, 3\), got \(1, 3\)"),
        (lambda x: F.mse_loss(x[:0], x[:0]), ValueError, "loss of nothing"),
        (lambda x: F.mse_loss(x, x.astype(int)), TypeError, "target must be float16"),
        (lambda x: F.mse_loss(x, None), TypeError, "target"),
        (lambda x: F.tanh_backward(x[:1], F.tanh_forward(x)[1]), ValueError, "dy must have y's shape"),
        (lambda x: F.gelu_backward(x, F.tanh_forward(x)[1]), TypeError, "needs the context of gelu_forward"),
        (lambda x: layers.GELU("exact"), ValueError, "approximate"),
        (lambda x: layers.LeakyReLU(None), TypeError, "negative_slope"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(np.ones((2, 3)))


# --------------------------------------------------------------------------------------------------------------- layers
@pytest.mark.parametrize(
    ("layer", "op", "args"),
    [
        (layers.LeakyReLU(0.2), "leaky_relu", (0.2,)),
        (layers.GELU("tanh"), "gelu", ("tanh",)),
        (layers.Sigmoid(), "sigmoid", ()),
        (layers.Tanh(), "tanh", ()),
        (layers.Softmax(2), "softmax", (2,)),
    ],
)
def test_layers_are_the_ops(layer: layers.Layer, op: str, args: Any, rng: np.random.Generator) -> None:
    x, dy = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 3))
    y, dx = layer(x), layer.backward(dy)
    expected = trio(op, x, dy, *args)
    assert (y.tobytes(), dx.tobytes()) == (expected[0].tobytes(), expected[1].tobytes())
    assert layer.params == {}
    assert repr(layer).startswith(type(layer).__name__)
