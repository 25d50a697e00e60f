"""The ops of `cnnlayers.autograd`: Tensor's own against differences, NumPy and PyTorch; the table against the trios."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import autograd, backends, kernels
from cnnlayers.autograd import Tensor, concat, no_grad
from cnnlayers.autograd import functional as TF

from .test_imports import STANDARD, read_off_xp, sources

TRIOS = sorted(name.removesuffix("_forward") for name in F.__all__ if name.endswith("_forward"))


@pytest.fixture(autouse=True)
def without_kernels():
    """Array code alone, where a test's `impl` does not ask for kernels: nothing has to be compiled."""
    with kernels.mode("off"):
        yield


def differences(function, arrays, weights, h=1e-6) -> list[np.ndarray]:
    """Central differences of sum(weights * function(*arrays)) in every element of every array."""
    found = [np.zeros(a.shape) for a in arrays]
    for a, g in zip(arrays, found, strict=True):
        for at in np.ndindex(a.shape):
            there, ends = a[at], []
            for a[at] in (there + h, there - h):
                ends.append(np.sum(weights * function(*map(Tensor, arrays)).data))
            a[at] = there
            g[at] = (ends[0] - ends[1]) / (2 * h)
    return found


def check(function, *arrays: np.ndarray) -> None:
    """The gradients of a function of Tensors are those that differences give, in form as well."""
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    y = function(*leaves)
    weights = np.random.default_rng(5).standard_normal(y.shape)
    y.backward(weights)
    for t, expected in zip(leaves, differences(function, [a.copy() for a in arrays], weights), strict=True):
        assert t.grad.dtype == t.dtype
        np.testing.assert_allclose(t.grad, expected, rtol=1e-6, atol=1e-7)


def draw(*shapes: tuple[int, ...], positive: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 2.0, s) if positive else rng.standard_normal(s) for s in shapes]


# ----------------------------------------------------------------------------------------------------- Tensor's own ops
SHAPES = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 3), (4, 1)), ((), (2, 2)), ((1,), (3,)), ((2, 0), (1, 1)), ((), ())]
BINARY = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "power": lambda x, y: x**y,
}


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("op", BINARY)
def test_arithmetic_with_broadcasting(op, shapes) -> None:
    x, y = draw(*shapes, positive=True)
    check(BINARY[op], x, y)
    check(lambda t: BINARY[op](t, y), x)
    check(lambda t: BINARY[op](x, t), y)
    check(lambda t: BINARY[op](t, 1.5) + BINARY[op](2, t) + BINARY[op](t, np.float64(3)), x)
    np.testing.assert_array_equal(BINARY[op](Tensor(x), Tensor(y)).data, BINARY[op](x, y))


UNARY = {
    "negative": lambda x: -x,
    "abs": abs,
    "abs method": lambda x: x.abs(),
    "exp": lambda x: x.exp(),
    "log": lambda x: (x * x + 1).log(),
    "sqrt": lambda x: (x * x + 1).sqrt(),
    "tanh": lambda x: x.tanh(),
    "clip": lambda x: x.clip(-0.5, 0.5),
    "clip below": lambda x: x.clip(low=0.1),
    "clip above": lambda x: x.clip(high=0.1),
    "cube": lambda x: x**3,
    "sum": lambda x: x.sum(),
    "sum 0": lambda x: x.sum(0),
    "sum -1 kept": lambda x: x.sum(axis=-1, keepdims=True),
    "sum 0 2": lambda x: x.sum(axis=(2, 0)),
    "sum none": lambda x: x.sum(axis=()),
    "mean": lambda x: x.mean(),
    "mean 1": lambda x: x.mean(axis=1),
    "mean 0 -1 kept": lambda x: x.mean(axis=[0, -1], keepdims=True),
    "max": lambda x: x.max(),
    "max 1": lambda x: x.max(axis=1),
    "max 2 0": lambda x: x.max(axis=(2, 0)),
    "max kept": lambda x: x.max(axis=(0, 1), keepdims=True),
    "min": lambda x: x.min(axis=(0, 2)),
    "reshape": lambda x: x.reshape(4, -1),
    "reshape tuple": lambda x: x.reshape((24,)) * np.arange(24.0),
    "transpose": lambda x: x.transpose() * np.arange(24.0).reshape(4, 3, 2),
    "transpose axes": lambda x: x.transpose(1, 2, 0) * np.arange(24.0).reshape(3, 4, 2),
    "transpose tuple": lambda x: x.transpose((-1, 0, 1)) * np.arange(24.0).reshape(4, 2, 3),
    "T": lambda x: x.T * np.arange(24.0).reshape(4, 3, 2),
    "concat": lambda x: concat([x, x * 2, np.ones((2, 1, 4)), x[:, :0]], axis=1) * np.arange(56.0).reshape(2, 7, 4),
    "variance": lambda x: ((x - x.mean(axis=-1, keepdims=True)) ** 2).mean(axis=-1),
    "softmax": lambda x: (e := (x - x.max(axis=1, keepdims=True)).exp()) / e.sum(axis=1, keepdims=True),
}


@pytest.mark.parametrize("op", UNARY)
def test_functions_of_one_tensor(op) -> None:
    check(UNARY[op], *draw((2, 3, 4)))


@pytest.mark.parametrize(
    "shapes",
    [
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((2, 3), (3,)),
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)),
        ((2, 5, 2, 3), (3,)),
        ((3,), (5, 3, 2)),
        ((2, 3), (5, 3, 2)),
        ((4, 1, 2, 3), (5, 3, 2)),
        ((1, 2, 3), (4, 3, 2)),
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
        ((4, 2, 0), (0, 3)),
    ],
    ids=str,
)
def test_matrix_products(shapes) -> None:
    x, y = draw(*shapes)
    check(lambda s, t: s @ t, x, y)
    np.testing.assert_allclose((x @ Tensor(y)).data, x @ y, rtol=1e-12)
    np.testing.assert_allclose((Tensor(x) @ y).data, x @ y, rtol=1e-12)


@pytest.mark.parametrize("shapes", [((), (2,)), ((2, 3), (2, 3)), ((2,), (3,)), ((2, 2, 3), (5, 3, 2))], ids=str)
def test_products_that_do_not_fit_are_refused(shapes) -> None:
    x, y = draw(*shapes)
    with pytest.raises(ValueError, match="@ needs"):
        Tensor(x) @ y


def test_products_of_integers() -> None:
    x = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal((Tensor(x) @ x.T).data, x @ x.T)


INDICES = [
    1,
    -1,
    np.int64(1),
    slice(None, None, -2),
    (..., 0),
    (None, 1, slice(1, 3)),
    (slice(None), None, [0, 0, 2]),
    [1, 0, 1, 1],
    np.array([[0, 1], [1, 1]]),
    (np.array([0, 1, 0]), np.array([2, 2, 2]), np.array([3, 3, 3])),
    (0, np.array([1, 1]), slice(None)),
    (np.array([-1, 1]), ..., np.array([0, 0])),
    [True, False],
    np.arange(24).reshape(2, 3, 4) % 3 == 0,
    (slice(None), np.array([True, False, True])),
    (np.array([True, True]), np.array([0, 2])),
    ((0, 0), slice(1)),
    (range(2), (2, 2)),
    np.array(1),
    True,
    np.zeros((0, 2), int),
    (),
    Tensor(np.array([1, 1])),
    (slice(None), Tensor(np.array([0, 2, 0], "uint8"))),
]


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_indexing(index) -> None:
    [x] = draw((2, 3, 4))
    plain = tuple(i.data if isinstance(i, Tensor) else i for i in (index if isinstance(index, tuple) else (index,)))
    np.testing.assert_array_equal(Tensor(x)[index].data, x[plain])
    check(lambda t: t[index], x)


def test_repeated_indices_accumulate(impl) -> None:
    rows = np.random.default_rng(0).integers(0, 7, 301)
    dy = np.random.default_rng(1).standard_normal((301, 2))
    x = Tensor(impl.array(np.zeros((7, 2))), requires_grad=True)
    y = x[impl.array(rows), impl.array([0])] if impl.name == "strict" else x[impl.array(rows)]
    dy = dy[:, 0] if impl.name == "strict" else dy
    y.backward(impl.array(dy))
    expected = np.zeros((7, 2))
    np.add.at(expected, (rows, 0) if impl.name == "strict" else rows, dy)
    impl.close(x.grad, expected, rtol=1e-12, atol=1e-12)
    assert x.grad is not None
    half = Tensor(impl.array(np.zeros(1, "float16")), requires_grad=True) if impl.name != "strict" else None
    if half is not None:
        half[impl.array(np.zeros(4096, int))].sum().backward()
        assert float(half.grad[0]) == 4096.0  # summed in float16 it would stop at 2048


@pytest.mark.parametrize(
    ("index", "error", "said"),
    [
        (5, IndexError, "out of bounds"),
        ("a", IndexError, "only integers"),
        ([0.5], TypeError, r"integers or bools, got \[0.5\]"),
        ((0,) * 4, IndexError, "too many indices"),
        (np.array([0.5]), IndexError, "integer"),
    ],
)
def test_wrong_indices_are_refused(index, error, said) -> None:
    with pytest.raises(error, match=said):
        Tensor(np.ones((2, 3, 4)))[index]


def test_comparisons_give_masks() -> None:
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    t = Tensor(x, requires_grad=True)
    for found, expected in [
        (t < y, x < y),
        (t <= 2, x <= 2),
        (y < t, y < x),
        (t >= Tensor(y), x >= y),
        (t == y, x == y),
        (y != t, x != y),
    ]:
        assert isinstance(found, Tensor)
        np.testing.assert_array_equal(found.data, expected)
    ((t * (t > 1)).sum() + t[t > 2].sum()).backward()
    np.testing.assert_array_equal(t.grad, [0.0, 1.0, 2.0])
    assert float((Tensor(np.array([2, 0])) == np.array([2, 1])).mean()) == 0.5


TIES = [
    ("first", [[0, 1, 0], [0, 0, 0]]),
    ("all", [[0, 1, 1], [1, 0, 0]]),
    ("split", [[0, 1 / 3, 1 / 3], [1 / 3, 0, 0]]),
]


@pytest.mark.parametrize(("ties", "expected"), TIES)
@pytest.mark.parametrize("top", [3.0, np.inf, np.nan])
def test_ties_of_max_and_min(impl, ties, expected, top) -> None:
    for sign, method in ((1.0, Tensor.max), (-1.0, Tensor.min)):
        x = Tensor(impl.array(sign * np.array([[1, top, top], [top, 2, 0]])), requires_grad=True)
        y = method(x, ties=ties)
        impl.close(y.data, sign * np.array(top))
        y.backward()
        impl.close(x.grad, np.array(expected, float))


def test_the_first_of_several_axes_is_that_in_c_order() -> None:
    x = np.zeros((2, 3, 4))
    x[0, :, 2] = x[1, :, 0] = 1
    t = Tensor(x, requires_grad=True)
    t.max(axis=(2, 0)).sum().backward()
    expected = np.zeros_like(x)
    expected[0, :, 2] = 1
    np.testing.assert_array_equal(t.grad, expected)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda t: t.sum(axis=2), ValueError, r"different axes of the 2 there are, got 2"),
        (lambda t: t.mean(axis=(0, -2)), ValueError, r"different axes.*\(0, -2\)"),
        (lambda t: t.max(axis="0"), TypeError, "axis"),
        (lambda t: t.sum(axis=0.0), TypeError, "axis must be an int"),
        (lambda t: t[:0].max(axis=0), ValueError, "max of no elements"),
        (lambda t: t[:0].min(), ValueError, "min of no elements"),
        (lambda t: t.max(ties="last"), ValueError, "'first', 'all' or 'split', got 'last'"),
        (lambda t: t.reshape(4), ValueError, "reshape"),
        (lambda t: t.reshape(2.0, 3), TypeError, "shape must be an int"),
        (lambda t: t.transpose(0), ValueError, r"every axis once, got \(0,\)"),
        (lambda t: t.transpose(0, 0), ValueError, "different axes"),
        (lambda t: t.transpose(0, 2), ValueError, "different axes"),
        (lambda t: concat([]), ValueError, "at least one"),
        (lambda t: concat([t, t], axis=2), ValueError, "axis must be one of the 2 axes"),
        (lambda t: t.clip("low"), TypeError, "low must be a real number"),
    ],
)
def test_wrong_arguments_are_refused(call, error, said) -> None:
    with pytest.raises(error, match=said):
        call(Tensor(np.ones((2, 3))))


def test_masks_are_joined() -> None:
    x = Tensor(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(((x > 1) & (x < 3)).data, [False, True, False])
    np.testing.assert_array_equal((np.array([True, False, False]) | ~(x < 3)).data, [True, False, True])


@pytest.mark.parametrize("mine", ["float16", "float32", "float64"])
@pytest.mark.parametrize("other", ["float16", "float32", "float64"])
def test_gradients_without_axes_and_of_several_dtypes(mine, other) -> None:
    x, y = (Tensor(np.array(2, d), requires_grad=True) for d in (mine, other))
    (x * y + x**y - x / y + np.float64(3) * x).backward()
    (x + y).sum().backward()
    for t, expected in ((x, 2 + 4 - 0.5 + 3 + 1), (y, 2 + 4 * np.log(2) + 0.5 + 1)):
        assert isinstance(t.grad, np.ndarray)
        assert t.grad.dtype == t.dtype
        np.testing.assert_allclose(t.grad, expected, rtol=2e-3)


def test_edges_of_powers() -> None:
    x = Tensor(np.array([0.0, 2.0, -3.0]), requires_grad=True)
    (x**0 + x**2 + x ** np.array([1.0, 0.0, 3.0])).sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 4.0, -6.0 + 27.0])
    p = Tensor(np.array([0.0, 2.0]), requires_grad=True)
    (0.0**p).sum().backward()
    np.testing.assert_array_equal(p.grad, [0.0, 0.0])


def test_empty_tensors() -> None:
    x = Tensor(np.ones((0, 3)), requires_grad=True)
    (x.sum() + x.sum(axis=0).sum() + x.T.reshape(3, 0).sum() + x[[]].sum()).backward()
    assert x.grad.shape == (0, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_dtypes_come_back(impl, dtype) -> None:
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
        if impl.name == "strict":
            pytest.skip("array-api-strict has no bfloat16")
    x, w = (Tensor(impl.array(np.ones(s).astype(dtype)), requires_grad=True) for s in ((4, 3), (3, 2)))
    bias = Tensor(impl.array(np.ones(2)), requires_grad=True)  # float64
    h = ((x @ w) * 2 + 1) / 2.0 - x.mean()
    for y in (
        h,
        x.sum(),
        x.max(),
        x[1:, ...],
        x**2.0,
        -x,
        abs(x),
        x.T,
        x.exp(),
        x.clip(0, 1),
        x.sqrt(),
        2 / x,
        1 - x,
        2**x,
    ):
        impl.numpy(y.data, dtype=dtype)
    y = h.exp() + bias + x.max(axis=1, keepdims=True, ties="split") * x.clip(0, 2).mean(axis=1, keepdims=True)
    assert y.dtype == bias.dtype
    (y.sum() + (x**2).sqrt().log().sum() + (1 - 3 / x).min()).backward()
    assert [t.grad.dtype for t in (x, w, bias)] == [x.dtype, w.dtype, bias.dtype]


def test_a_plain_array_may_stand_on_either_side(impl) -> None:
    if impl.name == "strict":
        pytest.skip("array-api-strict's arrays refuse what they do not know")
    x, c = Tensor(impl.array([1.0, 2.0]), requires_grad=True), impl.array([[3.0, 4.0], [5.0, 6.0]])
    for y in (c + x, c - x, c * x, c / x, c**x, c @ x, c < x, c == x):
        assert isinstance(y, Tensor)
    ((c @ x).sum() - (c * x).sum()).backward()
    impl.close(x.grad, np.zeros(2))


def test_half_types_are_summed_in_float32() -> None:
    x = Tensor(np.ones(4096, "float16"), requires_grad=True)
    bias = Tensor(np.zeros(1, "float16"), requires_grad=True)
    y = x + bias
    assert float(y.sum()) == 4096.0
    y.backward(np.ones(4096))
    assert float(bias.grad[0]) == 4096.0
    product = x.reshape(1, 4096) @ x
    assert float(product[0]) == 4096.0
    small = Tensor(np.full((), 1 / 2048, "float16"), requires_grad=True)
    total = Tensor(np.ones((), "float16"), requires_grad=True) * small  # one 1 and 4095 smaller ones, added one by one
    y = small * 1.0
    concat([(y * 1.0).reshape(1) for _ in range(100)] + [(y * 2048.0).reshape(1)]).sum().backward()
    assert float(small.grad) == 2148.0
    assert total.dtype == np.float16


@pytest.mark.parametrize("axis", [None, 1])
def test_means_of_more_halves_than_float16_counts(axis) -> None:
    x = Tensor(np.ones((1, 100_000), "float16"), requires_grad=True)
    x.mean(axis).backward()
    np.testing.assert_array_equal(x.grad, np.full(x.shape, 1e-5, "float16"))


def test_ops_run_on_every_implementation(impl) -> None:
    x = Tensor(impl.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]], "float32"), requires_grad=True)
    w = Tensor(impl.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "float32"), requires_grad=True)
    h = ((x @ w) * 0.5 + impl.array([1.0, -1.0], "float32")).tanh() / 2 - x[:, 0:1] ** 2
    y = (abs(h).sqrt() + (x * x + 1).log().mean(axis=1, keepdims=True)).exp()
    z = concat([y.T, x.clip(-0.35, 0.35)], axis=-1)
    loss = (z * z).sum() + x.max(axis=1).sum() - x.reshape(-1)[1:3].sum() + y.min()
    loss.backward()
    torch = pytest.importorskip("torch")
    tx, tw = (torch.tensor(backends.to_numpy(t.data).astype("float64"), requires_grad=True) for t in (x, w))
    th = torch.tanh((tx @ tw) * 0.5 + torch.tensor([1.0, -1.0])) / 2 - tx[:, 0:1] ** 2
    ty = (abs(th).sqrt() + (tx * tx + 1).log().mean(1, keepdim=True)).exp()
    tz = torch.cat([ty.T, tx.clip(-0.35, 0.35)], -1)
    tl = (tz * tz).sum() + tx.max(1).values.sum() - tx.reshape(-1)[1:3].sum() + ty.min()
    tl.backward()
    impl.close(loss.data, tl.detach().numpy(), rtol=1e-5, dtype="float32")
    impl.close(x.grad, tx.grad.numpy(), rtol=2e-5, atol=1e-5, dtype="float32")
    impl.close(w.grad, tw.grad.numpy(), rtol=2e-5, atol=1e-5, dtype="float32")


# ----------------------------------------------------------------------------------------------------------- the table
def test_the_table_has_every_trio_and_nothing_else() -> None:
    ours = {n: f for n, f in vars(TF).items() if inspect.isfunction(f) and f.__module__ == TF.__name__}
    public = [n for n in ours if not n.startswith("_")]
    assert sorted(public) == TRIOS
    for name in TRIOS:
        assert inspect.signature(getattr(TF, name)) == inspect.signature(getattr(F, name))
        assert getattr(TF, name).__doc__ == getattr(F, name).__doc__


X = (2, 4, 6, 6)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # op: the shapes of its differentiable arguments in order, the other arguments
    "max_pool": ({"x": X}, {"kernel_size": 3, "stride": 2, "ties": "split"}),
    "avg_pool": ({"x": X}, {"kernel_size": 3, "padding": 1}),
    "sum_pool": ({"x": X}, {"kernel_size": 2}),
    "lp_pool": ({"x": X}, {"kernel_size": 2, "norm_type": 3.0}),
    "adaptive_avg_pool": ({"x": X}, {"output_size": (3, None)}),
    "adaptive_max_pool": ({"x": X}, {"output_size": 4}),
    "max_unpool": ({"x": (1, 1, 2, 2)}, {"indices": np.array([[[[0, 3], [9, 9]]]]), "kernel_size": 2}),
    "pad": ({"x": X}, {"padding": (1, 2), "mode": "reflect"}),
    "batch_norm": ({"x": X, "gamma": (4,), "beta": (4,)}, {"training": True}),
    "group_norm": ({"x": X, "gamma": (4,), "beta": (4,)}, {"num_groups": 2}),
    "instance_norm": ({"x": X, "gamma": (4,), "beta": (4,)}, {}),
    "layer_norm": ({"x": X, "gamma": (6, 6), "beta": (6, 6)}, {"normalized_shape": (6, 6)}),
    "rms_norm": ({"x": X, "gamma": (6,)}, {"normalized_shape": 6}),
    "local_response_norm": ({"x": X}, {"size": 3, "alpha": 0.5}),
    "conv": ({"x": X, "weight": (3, 4, 3, 3), "bias": (3,)}, {"padding": "same"}),
    "conv_transpose": ({"x": X, "weight": (4, 3, 3, 3), "bias": (3,)}, {"stride": 2}),
    "linear": ({"x": (5, 3), "weight": (2, 3), "bias": (2,)}, {}),
    "relu": ({"x": X}, {}),
    "leaky_relu": ({"x": X}, {"negative_slope": 0.2}),
    "gelu": ({"x": X}, {"approximate": "tanh"}),
    "sigmoid": ({"x": X}, {}),
    "tanh": ({"x": X}, {}),
    "softmax": ({"x": X}, {"axis": -1}),
    "mse_loss": ({"x": (4, 3)}, {"target": np.arange(12.0).reshape(4, 3)}),
    "dropout": ({"x": X}, {"p": 0.3, "training": True, "rng": 7}),
    "softmax_cross_entropy": ({"x": (4, 3)}, {"labels": np.array([0, 2, 1, 1])}),
}


def positional(name: str, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position as far as the signature allows."""
    args: list[Any] = []
    for p in inspect.signature(getattr(F, name)).parameters.values():
        if p.kind is p.KEYWORD_ONLY or p.name not in given:
            break
        args.append(given.pop(p.name))
    return args, given


@pytest.mark.parametrize("name", TRIOS)
def test_an_op_is_its_trio(impl, name) -> None:
    """y and every gradient bit for bit, whichever arguments require gradients, given by position or by name."""
    rng = np.random.default_rng(0)
    shapes, others = CASES[name]
    arrays = {k: rng.standard_normal(s).astype("float32") for k, s in shapes.items()}
    others = {k: impl.array(v) if isinstance(v, np.ndarray) else v for k, v in others.items()}

    def call(function, given, by_name=True):
        args, kwargs = ([], given) if by_name else positional(name, dict(given))
        return function(*args, **kwargs)

    plain = {k: impl.array(a) for k, a in arrays.items()}
    y, ctx = call(getattr(F, f"{name}_forward"), {**plain, **others})
    dy = rng.standard_normal(tuple(y.shape)).astype("float32")
    found = getattr(F, f"{name}_backward")(impl.array(dy), ctx)
    expected = dict(zip(shapes, found if isinstance(found, tuple) else (found,), strict=True))
    for needed in itertools.product([False, True], repeat=len(shapes)):
        tensors = {k: Tensor(impl.array(a), requires_grad=n) for (k, a), n in zip(arrays.items(), needed, strict=True)}
        given = {k: t if t.requires_grad or k == "x" else t.data for k, t in tensors.items()}
        out = call(getattr(TF, name), {**given, **others}, by_name=needed[-1])
        impl.same(out.data, backends.to_numpy(y))
        assert out.requires_grad == any(needed)
        if any(needed):
            out.backward(impl.array(dy))
        for (k, t), n in zip(tensors.items(), needed, strict=True):
            if n:
                impl.same(t.grad, backends.to_numpy(expected[k]))
            else:
                assert t.grad is None


SMALL = {X: (1, 4, 4, 4), (6, 6): (4, 4), (6,): (4,), 6: 4}


@pytest.mark.parametrize("name", TRIOS)
def test_an_ops_gradients_are_differences(name) -> None:
    shapes, others = CASES[name]
    shapes = {k: SMALL.get(s, s) for k, s in shapes.items()}
    others = {k: SMALL.get(v, v) if k == "normalized_shape" else v for k, v in others.items()}
    rng = np.random.default_rng(1)
    arrays = [rng.permutation(np.linspace(-1.9, 2.1, int(np.prod(s)))).reshape(s) for s in shapes.values()]
    check(lambda *ts: getattr(TF, name)(**dict(zip(shapes, ts, strict=True)), **others) * 1.0, *arrays)


def test_the_inference_form_runs_where_nothing_is_needed(monkeypatch) -> None:
    def never(*args, **kwargs):
        raise AssertionError("the training form saves what nobody needs")

    for name in TRIOS:
        monkeypatch.setattr(F, f"{name}_forward", never)
    ops = {**vars(TF)}
    fresh = importlib.reload(TF)  # its table looks the trios up anew
    try:
        x = Tensor(np.ones((1, 1, 4, 4), "float32"), requires_grad=True)
        with pytest.raises(AssertionError, match="nobody needs"):
            fresh.max_pool(x, 2)
        with no_grad():
            assert not fresh.max_pool(x, 2).requires_grad
        assert not fresh.max_pool(x.detach(), 2).requires_grad
        assert not fresh.max_pool(x.data, 2).requires_grad
    finally:
        monkeypatch.undo()
        vars(TF).update(ops)


def test_max_pool_returns_indices_for_unpooling() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4))
    for t in (Tensor(x, requires_grad=True), Tensor(x)):
        y, indices = TF.max_pool(t, 2, return_indices=True)
        assert indices.dtype == np.int64
        assert not indices.requires_grad
        assert y.requires_grad == t.requires_grad
        back = TF.max_unpool(y, indices, 2)
        np.testing.assert_array_equal(back.data, np.where(back.data != 0, x, 0))
    y, indices = TF.max_pool(t := Tensor(x, requires_grad=True), 2, return_indices=True)
    TF.max_unpool(y, indices.data, 2).sum().backward()  # plain indices will do as well
    np.testing.assert_array_equal(t.grad, back.data != 0)


def test_running_statistics_are_updated_in_place(impl) -> None:
    x = Tensor(impl.array(np.random.default_rng(0).standard_normal((8, 3))), requires_grad=True)
    mean, var = impl.writable(np.zeros(3)), Tensor(impl.writable(np.ones(3)))
    TF.batch_norm(x, running_mean=mean, running_var=var, training=True, momentum=1.0, unbiased=False)
    host = backends.to_numpy(x.data)
    impl.close(mean, host.mean(0), rtol=1e-12)
    impl.close(var.data, host.var(0), rtol=1e-12)
    y = TF.batch_norm(x, None, None, mean, var)  # evaluation: these serve
    impl.close(y.data, (host - host.mean(0)) / np.sqrt(host.var(0) + 1e-5), rtol=1e-9)


def test_comm_goes_through_to_forward_and_backward() -> None:
    class Two:
        """Two ranks that hold the same."""

        calls = 0

        def allreduce(self, value):
            self.calls += 1
            return value * 2

    x = np.random.default_rng(0).standard_normal((6, 3))
    dy = np.random.default_rng(1).standard_normal((6, 3))
    one, both = Tensor(x, requires_grad=True), Tensor(np.concatenate([x, x]), requires_grad=True)
    y = TF.batch_norm(one, training=True, comm=(comm := Two()))
    before = comm.calls
    y.backward(dy)
    assert comm.calls > before > 0
    TF.batch_norm(both, training=True).backward(np.concatenate([dy, dy]))
    np.testing.assert_allclose(one.grad, both.grad[:6], rtol=1e-9, atol=1e-12)


def test_dropouts_generator_moves_on_and_seeds_repeat() -> None:
    x = Tensor(np.ones((8, 8), "float32"), requires_grad=True)
    rng = np.random.default_rng(0)
    first, second = (TF.dropout(x, 0.5, training=True, rng=rng).data for _ in range(2))
    again = TF.dropout(x, 0.5, training=True, rng=np.random.default_rng(0)).data
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_what_has_no_gradient_says_so() -> None:
    x, mean = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.zeros(3), requires_grad=True)
    with pytest.raises(TypeError, match=r"batch_norm has no gradient in running_mean: .*running_mean\.detach\(\)"):
        TF.batch_norm(x, running_mean=mean, running_var=np.ones(3))
    with pytest.raises(TypeError, match="max_pool: missing a required argument: 'kernel_size'"):
        TF.max_pool(x)
    with pytest.raises(ValueError, match="labels must have shape"):
        TF.softmax_cross_entropy(x, np.array([1]))


def test_the_labels_may_be_a_tensor() -> None:
    x, labels = np.random.default_rng(0).standard_normal((3, 4)), np.array([1, 0, 3])
    t = Tensor(x, requires_grad=True)
    loss = TF.softmax_cross_entropy(t, Tensor(labels))
    loss.backward()
    assert loss.shape == ()
    _, ctx = F.softmax_cross_entropy_forward(x, labels)
    np.testing.assert_array_equal(t.grad, F.softmax_cross_entropy_backward(1.0, ctx))


# ------------------------------------------------------------------------------------------------------------ the code
def test_autograd_uses_standard_array_functions_only() -> None:
    for name, path in sources("cnnlayers"):
        if name.startswith("cnnlayers.autograd"):
            used = {n.attr for n in read_off_xp(ast.parse(path.read_text()))}
            assert used <= set(STANDARD.split()), name
    assert autograd.__all__ == ["Parameter", "Tensor", "concat", "functional", "no_grad", "parameters"]


# ---------------------------------------------------------------------------------------------------- NumPy's functions
def test_numpys_functions_say_what_to_call() -> None:
    t = Tensor(np.ones((2, 2)), requires_grad=True)
    calls = {
        r"numpy.exp .*gradient would be lost: call tensor.exp\(\)": lambda: np.exp(t),
        r"numpy.absolute .*call tensor.abs\(\)": lambda: np.abs(t),
        r"numpy.sum .*call tensor.sum\(\)": lambda: np.sum(t),
        r"numpy.mean .*call tensor.mean\(\)": lambda: np.mean(t, axis=0),
        r"numpy.amax .*call tensor.max\(\)|numpy.max .*call tensor.max\(\)": lambda: np.max(t),
        r"numpy.concatenate .*call cnnlayers.autograd.concat": lambda: np.concatenate([t, t]),
        r"numpy.sin .*operators and methods, or pass tensor.data": lambda: np.sin(t),
        r"numpy.add ": lambda: np.add.reduce(t),
    }
    for said, call in calls.items():
        with pytest.raises(TypeError, match=said):
            call()
    assert (np.shape(t), np.ndim(t), np.size(t)) == ((2, 2), 2, 4)


def test_numpys_functions_take_what_has_no_gradient() -> None:
    t = Tensor(np.arange(4.0))
    assert np.sum(t) == 6
    assert np.concatenate([t, t]).shape == (8,)
    assert np.array_equal(t, np.arange(4.0))


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide", "power", "matmul", "less", "greater_equal"])
def test_numpys_operators_are_tensors(name: str) -> None:
    x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 2.0], [1.0, 5.0]])
    function = getattr(np, name)
    for result in (function(x, Tensor(y)), function(Tensor(x), y), function(Tensor(x), Tensor(y))):
        assert isinstance(result, Tensor)
        np.testing.assert_array_equal(result.data, function(x, y))


def test_mse_loss_has_a_gradient_in_its_target(rng: np.random.Generator) -> None:
    x, target = (Tensor(rng.standard_normal((3, 2)), requires_grad=True) for _ in range(2))
    TF.mse_loss(x, target).backward()
    np.testing.assert_allclose(x.grad, (x.data - target.data) / 3, rtol=1e-12)
    np.testing.assert_array_equal(target.grad, -x.grad)
    alone = Tensor(target.data.astype("float32"), requires_grad=True)
    TF.mse_loss(x.data, alone).backward()
    assert alone.grad.dtype == np.float32
    np.testing.assert_allclose(alone.grad, -x.grad, rtol=1e-6)
