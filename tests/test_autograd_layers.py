"""Layers on Tensors, their parameters as Tensors, and optimisers of Tensors."""

from __future__ import annotations

import copy
import gc
import importlib.util
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import layers, models, optim
from cnnlayers.autograd import Tensor, functional, no_grad, parameters

from .implementations import Impl

ROOT = Path(__file__).parents[1]


def network() -> layers.Sequential:
    body = layers.Sequential(layers.Conv(4, 4, 3, padding=1, padding_mode="reflect", rng=1), layers.GroupNorm(2, 4))
    first = [layers.Conv(2, 4, 3, padding=1, rng=0), layers.BatchNorm(4), layers.ReLU(), layers.Residual(body)]
    return layers.Sequential(*first, layers.AvgPool(2), layers.Flatten(), layers.Linear(36, 5, rng=2))


@pytest.mark.parametrize("make", [network, lambda: models.ThreeLayerConvNet((2, 6, 6), 5, rng=0)], ids=["net", "model"])
def test_gradients_are_those_of_the_layers_own_backward(impl: Impl, rng: np.random.Generator, make: Any) -> None:
    net, by_hand = (make().map_arrays(impl.writable) for _ in range(2))  # old array-api-strict copies no array
    x, labels = rng.standard_normal((6, 2, 6, 6)).astype("float32"), rng.integers(0, 5, 6)
    loss, ctx = F.softmax_cross_entropy_forward(by_hand(impl.array(x)), impl.array(labels))
    dx = by_hand.backward(F.softmax_cross_entropy_backward(1.0, ctx))
    t = Tensor(impl.array(x), requires_grad=True)
    recorded = functional.softmax_cross_entropy(net(t), impl.array(labels))
    recorded.backward()
    impl.same(recorded.data, impl.numpy(loss))
    impl.same(t.grad, impl.numpy(dx))
    for name, tensor in parameters(net).items():
        impl.same(tensor.grad, impl.numpy(by_hand.grads[name]))
        assert net.grads[name] is tensor.grad
        assert tensor.data is net.params[name]
    for name, array in by_hand.state_dict().items():  # running statistics
        impl.same(net.state_dict()[name], impl.numpy(array))


def test_parameters_are_always_the_same_tensors() -> None:
    net = network()
    tensors = parameters(net)
    assert list(tensors) == list(net.params)
    assert all(a is b for a, b in zip(tensors.values(), parameters(net).values(), strict=True))
    assert parameters(net[0])["weight"] is tensors["0.weight"]
    assert all(t.requires_grad for t in tensors.values())
    with pytest.raises(TypeError, match="takes a layer of cnnlayers"):
        parameters(net.params)


def test_a_layer_may_be_called_several_times_before_a_backward(rng: np.random.Generator) -> None:
    layer = layers.Linear(3, 3, rng=0).map_arrays(lambda a: a.astype("float64"))
    x = rng.standard_normal((2, 3))
    layer(layer(Tensor(x))).sum().backward()
    w, b = layer.params["weight"], layer.params["bias"]
    middle, dy = x @ w.T + b, np.ones((2, 3))
    np.testing.assert_allclose(layer.grads["weight"], dy.T @ middle + (dy @ w).T @ x, rtol=1e-12)
    before = layer.grads["weight"].copy()
    layer(layer(Tensor(x))).sum().backward()  # gradients add up
    np.testing.assert_allclose(layer.grads["weight"], 2 * before, rtol=1e-12)


def test_gradients_are_the_layers(rng: np.random.Generator) -> None:
    layer, x = layers.Linear(3, 2, rng=0), rng.standard_normal((4, 3)).astype("float32")
    weight = parameters(layer)["weight"]
    layer(x)
    layer.backward(np.ones((4, 2), "float32"))  # replaces
    np.testing.assert_array_equal(weight.grad, layer.grads["weight"])
    weight.grad = None
    assert set(layer.grads) == {"bias"}
    weight.grad = np.ones((2, 3), "float32")
    layer(Tensor(x)).sum().backward()  # adds
    np.testing.assert_allclose(layer.grads["weight"], 1 + np.ones((2, 4)) @ x, rtol=1e-5)


def test_data_is_the_live_array() -> None:
    layer = layers.Linear(3, 2, rng=0)
    weight, array = parameters(layer)["weight"], layer.params["weight"]
    weight.data = np.ones((2, 3), "float32")
    weight.data -= 0.5
    assert layer.params["weight"] is array
    np.testing.assert_array_equal(array, np.full((2, 3), 0.5))
    layer.map_arrays(lambda a: a.astype("float64"))
    assert weight.data is layer.params["weight"]
    assert weight.dtype == np.float64


def test_frozen_parameters_and_no_grad(rng: np.random.Generator) -> None:
    net, x = network(), Tensor(rng.standard_normal((2, 2, 6, 6)).astype("float32"))
    for name, tensor in parameters(net).items():
        tensor.requires_grad = name.startswith("6.")
    net(x).sum().backward()
    assert set(net.grads) == {"6.weight", "6.bias"}
    with no_grad():
        assert not net(x).requires_grad
    for tensor in parameters(net).values():
        tensor.requires_grad = False
    assert not net(x).requires_grad


def test_a_pending_context_of_arrays_stays(rng: np.random.Generator) -> None:
    layer, x = layers.Linear(3, 2, rng=0), rng.standard_normal((4, 3)).astype("float32")
    layer(x)
    layer(Tensor(x)).sum().backward()
    layer.backward(np.ones((4, 2), "float32"))
    with pytest.raises(RuntimeError, match="no forward"):
        layer.backward(np.ones((4, 2), "float32"))


def test_indices_and_other_arguments(rng: np.random.Generator) -> None:
    x = Tensor(rng.standard_normal((1, 2, 4, 4)), requires_grad=True)
    y, indices = layers.MaxPool(2, return_indices=True)(x)
    assert not indices.requires_grad
    back = layers.MaxUnpool(2)(y, indices)
    back.sum().backward()
    np.testing.assert_array_equal(x.grad, back.data != 0)
    with pytest.raises(TypeError, match="MaxUnpool has a gradient in its first argument alone"):
        layers.MaxUnpool(2)(y, Tensor(indices.data.astype(float), requires_grad=True))


def test_an_error_inside_names_the_layer() -> None:
    with pytest.raises(ValueError, match=r"layer 6 \(Linear\): weight must be"):
        network()(Tensor(np.ones((1, 2, 8, 8), "float32")))


def test_copies_have_tensors_of_their_own() -> None:
    layer = layers.Linear(3, 2, rng=0)
    weight = parameters(layer)["weight"]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert parameters(twin)["weight"].data is twin.params["weight"]
        assert parameters(twin)["weight"].data is not weight.data
        twin(Tensor(np.ones((1, 3), "float32"))).sum().backward()
        assert weight.grad is None
        assert set(twin.grads) == {"weight", "bias"}


def test_a_graph_is_freed_at_once() -> None:
    layer = layers.Linear(3, 2, rng=0)
    gc.disable()
    try:
        y = layer(Tensor(np.ones((1, 3), "float32")))
        node = weakref.ref(y._node)
        del y
        assert node() is None
        gone = weakref.ref(layer)
        parameters(layer)
        del layer
        assert gone() is None
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------------------------------- optimisers
KINDS = [(optim.SGD, {"lr": 0.1}), (optim.Adam, {"lr": 1e-2})]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_steps_are_those_of_arrays(kind: Any, options: Any, rng: np.random.Generator) -> None:
    net, x = network(), rng.standard_normal((4, 2, 6, 6)).astype("float32")
    by_hand = copy.deepcopy(net)
    one, other = kind(parameters(net), **options), kind(by_hand.params, **options)
    for _ in range(3):
        one.zero_grad()
        net(Tensor(x)).sum().backward()
        one.step()
        by_hand.backward(np.ones_like(by_hand(x)), needs_dx=False)
        other.step(by_hand.grads)
    assert set(one.state_dict()) == set(other.state_dict())
    for name, array in by_hand.params.items():
        np.testing.assert_array_equal(net.params[name], array)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_tensors_of_ones_own_as_torch(kind: Any, options: Any) -> None:
    torch = pytest.importorskip("torch")
    ours = [Tensor(np.array([3.0, -2.0]), requires_grad=True), Tensor(np.array(1.5), requires_grad=True)]
    theirs = [torch.tensor(t.data.copy(), requires_grad=True) for t in ours]
    options = {**options, **({"momentum": 0.9} if kind is optim.SGD else {})}
    for leaves, optimizer in (
        (ours, kind(ours, **options)),
        (theirs, getattr(torch.optim, kind.__name__)(theirs, **options)),
    ):
        for _ in range(5):
            optimizer.zero_grad()
            ((leaves[0] ** 2).sum() * leaves[1] + leaves[1] ** 2).backward()
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.data, b.detach().numpy(), rtol=1e-12)


def test_tensors_without_a_gradient_stay() -> None:
    a, b = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
    sgd = optim.SGD({"a": a, "b": b}, lr=0.1)
    with pytest.raises(RuntimeError, match="no Tensor has a gradient: call backward"):
        sgd.step()
    (a * 3).sum().backward()
    sgd.step()
    np.testing.assert_allclose(a.data, [0.7, 0.7])
    np.testing.assert_array_equal(b.data, [1, 1])
    assert sgd.steps == 1
    sgd.zero_grad()
    assert a.grad is None
    sgd.step({"a": np.ones(2), "b": np.ones(2)})
    np.testing.assert_allclose(b.data, [0.9, 0.9])


def test_what_optimisers_refuse() -> None:
    a = Tensor(np.ones(2), requires_grad=True)
    for given, error, said in (
        ([a, a], ValueError, "parameter '1' is the same Tensor as '0'"),
        ([a * 2], ValueError, "'0' is a Tensor that was computed"),
        ({"x": Tensor(np.ones(2))}, ValueError, "'x' is a Tensor that does not require a gradient"),
        ({"x": a, "y": np.ones(2)}, TypeError, "all be Tensors, or all be arrays"),
        ([], ValueError, "params is empty"),
        ([np.ones(2)], TypeError, "params must be a mapping"),
        (np.ones(2), TypeError, "params must be a mapping"),
        (3, TypeError, "params must be a mapping"),
    ):
        with pytest.raises(error, match=said):
            optim.Adam(given)
    assert optim.SGD(a, lr=0.1).params["0"] is a.data
    sgd = optim.SGD(iter([a]), lr=0.1)
    a.data = np.zeros(2)
    a.sum().backward()
    with pytest.raises(RuntimeError, match="parameter '0' is another array now"):
        sgd.step()
    with pytest.raises(TypeError, match="grads must be a mapping"):
        optim.SGD({"w": np.ones(2)}, lr=0.1).step()


def test_the_example_trains(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("train_with_autograd", ROOT / "examples" / "train_with_autograd.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main() > 0.97
    assert "accuracy" in capsys.readouterr().out
