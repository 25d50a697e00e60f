"""Backward without dx, for what is data and no layer's output: the parameters' gradients to the bit, and less work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnnlayers import functional as F
from cnnlayers import layers, models
from cnnlayers.autograd import Tensor
from cnnlayers.autograd import functional as TF

from .implementations import Impl

SHAPES = {  # of x, of the weight
    "conv": ((2, 4, 7, 6), (8, 4, 3, 3)),
    "conv_transpose": ((2, 4, 7, 6), (4, 8, 3, 3)),
    "linear": ((2, 3, 4), (8, 4)),
}
OPS = pytest.mark.parametrize("op", SHAPES)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts of backwards that are computed, as they are."""
    seen: list[str] = []

    def watch(module: str, name: str) -> None:
        where = importlib.import_module(f"cnnlayers.functional.{module}")
        function: Callable[..., Any] = getattr(where, name)

        def run(*args: Any, **options: Any) -> Any:
            seen.append(name)
            return function(*args, **options)

        monkeypatch.setattr(where, name, run)

    for name in ("correlate_adjoint", "correlate", "weight_gradient"):
        watch("conv", name)
    watch("linear", "matmul")
    return seen


def parts(op: str, needs_dx: bool) -> list[str]:
    if op == "linear":
        return ["matmul"] * (1 + needs_dx)
    return [{"conv": "correlate_adjoint", "conv_transpose": "correlate"}[op]] * needs_dx + ["weight_gradient"]


@OPS
def test_gradients_of_the_parameters_are_the_same(
    impl: Impl, op: str, computed: list[str], rng: np.random.Generator
) -> None:
    x, weight, bias = (impl.array(rng.standard_normal(shape)) for shape in (*SHAPES[op], (8,)))
    y, ctx = getattr(F, f"{op}_forward")(x, weight, bias)
    backward = getattr(F, f"{op}_backward")
    for needs_dx in (True, False):
        computed.clear()
        found = backward(y, ctx, needs_dx=needs_dx)
        assert computed == parts(op, needs_dx)
        assert (found[0] is None) != needs_dx
        for mine, expected in zip(found[1:], backward(y, ctx)[1:], strict=True):
            impl.same(mine, impl.numpy(expected))
    with pytest.raises(TypeError, match="needs_dx must be True or False, got 0"):
        backward(y, ctx, needs_dx=0)


NETWORKS: dict[str, Callable[[], tuple[layers.Layer, tuple[int, ...]]]] = {
    "three-layer": lambda: (models.ThreeLayerConvNet((1, 8, 8), rng=0), (2, 1, 8, 8)),
    "residual": lambda: (models.ResNet(8, rng=0), (2, 3, 8, 8)),
    "padded convolution": lambda: (layers.Conv(2, 3, 3, padding=1, padding_mode="reflect", rng=0), (2, 2, 5, 5)),
    "dense": lambda: (layers.Sequential(layers.Flatten(), layers.ReLU(), layers.Linear(18, 4, rng=0)), (2, 2, 3, 3)),
    "normalised first": lambda: (layers.Sequential(layers.BatchNorm(2), layers.Conv(2, 3, 3, rng=0)), (2, 2, 5, 5)),
    "nested": lambda: (
        layers.Sequential(layers.Sequential(layers.Dropout(0.0), layers.Conv(2, 3, 3, rng=0)), layers.ReLU()),
        (2, 2, 5, 5),
    ),
    "without parameters": lambda: (layers.Sequential(layers.ReLU(), layers.MaxPool(2)), (2, 2, 4, 4)),
    "empty": lambda: (layers.Sequential(), (2, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, rng: np.random.Generator) -> None:
    net, shape = NETWORKS[name]()
    x = rng.standard_normal(shape).astype("float32")
    dy = net(x)
    assert net.backward(dy).shape == shape
    expected = {key: gradient.copy() for key, gradient in net.grads.items()}
    net(x)
    assert net.backward(dy, needs_dx=False) is None
    assert net.grads.keys() == expected.keys()
    assert all(np.array_equal(net.grads[key], gradient) for key, gradient in expected.items())
    assert all(layer._ctx is None for _, layer in net.walk())  # also of the layers that were passed over
    with pytest.raises(RuntimeError, match="no forward to go back through"):
        net.backward(dy, needs_dx=False)
    net(x)
    assert net.backward(dy).shape == shape


def test_the_first_convolution_alone_is_spared(computed: list[str], rng: np.random.Generator) -> None:
    net = layers.Sequential(layers.Conv(2, 3, 3), layers.ReLU(), layers.Conv(3, 4, 3))
    dy = net(rng.standard_normal((2, 2, 7, 7)).astype("float32"))
    computed.clear()
    net.backward(dy, needs_dx=False)
    assert computed == [*parts("conv", True), *parts("conv", False)]


def test_a_layer_of_ones_own_needs_to_know_nothing(rng: np.random.Generator) -> None:
    class Scale(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.own_params["weight"] = np.ones((), "float32")

        def compute_forward(self, x: Any) -> tuple[Any, Any]:
            return x * self.own_params["weight"], x

        def compute_backward(self, dy: Any, ctx: Any) -> Any:
            self.own_grads = {"weight": (dy * ctx).sum()}
            return dy * self.own_params["weight"]

    x = rng.standard_normal((2, 3)).astype("float32")
    for net in (layers.Sequential(Scale(), layers.ReLU()), Scale()):
        dy = net(x)
        assert net.backward(dy, needs_dx=False) is None
        assert len(net.grads) == 1


@OPS
def test_a_tensor_that_requires_no_gradient_gets_none_computed(
    op: str, computed: list[str], rng: np.random.Generator
) -> None:
    x, weight = (rng.standard_normal(shape) for shape in SHAPES[op])
    for needs_dx in (True, False):
        theirs = Tensor(weight, requires_grad=True)
        y = getattr(TF, op)(Tensor(x, requires_grad=needs_dx), theirs)
        computed.clear()
        y.backward(np.ones(y.shape))
        assert computed == parts(op, needs_dx)
        assert theirs.grad.shape == weight.shape


@OPS
def test_of_pytorchs_tensors(op: str, computed: list[str]) -> None:
    torch = pytest.importorskip("torch")
    functional = importlib.import_module("cnnlayers.torch.functional")
    for needs_dx in (True, False):
        x, weight = (torch.randn(shape, requires_grad=True) for shape in SHAPES[op])
        x.requires_grad_(needs_dx)
        y = getattr(functional, op)(x, weight)
        computed.clear()
        y.sum().backward()
        assert computed == parts(op, needs_dx)
        assert (x.grad is None) != needs_dx
        plain = getattr(torch.nn.functional, {"conv": "conv2d", "conv_transpose": "conv_transpose2d"}.get(op, op))
        wanted = torch.autograd.grad(plain(x, weight).sum(), weight)[0]
        torch.testing.assert_close(weight.grad, wanted, rtol=1e-4, atol=1e-4)
