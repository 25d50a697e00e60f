"""Layers hold state: each beside torch.nn's twin, and their modes, names, contexts, copies and errors."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends, layers
from cnnlayers.autograd import Tensor
from cnnlayers.layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    MaxUnpool,
    ReLU,
    Residual,
    Sequential,
)
from cnnlayers.testing import GradientError, gradcheck

from . import standin_cupy
from .implementations import strict

IMAGE, LINE, VOLUME, ROWS = (3, 4, 9, 8), (3, 4, 9), (2, 4, 5, 6, 5), (5, 4)

# (ours, torch.nn's, positional arguments, keyword arguments, the shape of x)
TWINS = [
    ("MaxPool", "MaxPool2d", (3,), {}, IMAGE),
    ("MaxPool", "MaxPool2d", (3, 2, 1, 2, False, True), {}, IMAGE),
    ("MaxPool", "MaxPool1d", (3, 2), {}, LINE),
    ("MaxPool", "MaxPool3d", ((2, 3, 2),), {}, VOLUME),
    ("AvgPool", "AvgPool2d", (3, 2, 1, True, False), {}, IMAGE),
    ("AvgPool", "AvgPool2d", ((3, 2), None, (1, 0), False, True, 5), {}, IMAGE),
    ("LpPool", "LPPool2d", (2.0, 3, 2), {}, IMAGE),
    ("AdaptiveAvgPool", "AdaptiveAvgPool2d", ((4, None),), {}, IMAGE),
    ("AdaptiveMaxPool", "AdaptiveMaxPool2d", (3,), {}, IMAGE),
    ("ConstantPad", "ConstantPad2d", ((1, 2, 0, 3), 0.5), {}, IMAGE),
    ("ConstantPad", "ConstantPad1d", ((1, 2), -1.5), {}, LINE),
    ("EdgePad", "ReplicationPad2d", ((1, 2, 0, 3),), {}, IMAGE),
    ("ReflectPad", "ReflectionPad2d", ((1, 2, 0, 3),), {}, IMAGE),
    ("ReflectPad", "ReflectionPad1d", ((3, 1),), {}, LINE),
    ("WrapPad", "CircularPad3d", ((1, 2, 0, 3, 2, 1),), {}, VOLUME),
    ("WrapPad", "CircularPad2d", (2,), {}, IMAGE),
    ("BatchNorm", "BatchNorm2d", (4,), {}, IMAGE),
    ("BatchNorm", "BatchNorm1d", (4, 1e-3, 0.3), {}, ROWS),
    ("BatchNorm", "BatchNorm3d", (4, 1e-3, None), {}, VOLUME),
    ("BatchNorm", "BatchNorm2d", (4, 1e-3, 0.1, False), {}, IMAGE),
    ("BatchNorm", "BatchNorm2d", (4, 1e-3, 0.1, True, False), {}, IMAGE),
    ("BatchNorm", "BatchNorm2d", (4, 1e-3, None, True, False), {}, IMAGE),
    ("GroupNorm", "GroupNorm", (2, 4, 1e-3), {}, IMAGE),
    ("GroupNorm", "GroupNorm", (4, 4), {"affine": False}, IMAGE),
    ("InstanceNorm", "InstanceNorm2d", (4,), {}, IMAGE),
    ("InstanceNorm", "InstanceNorm1d", (4, 1e-3, 0.1, True), {}, LINE),
    ("LayerNorm", "LayerNorm", (8, 1e-3), {}, IMAGE),
    ("LayerNorm", "LayerNorm", ([9, 8], 1e-5, True, False), {}, IMAGE),
    ("RMSNorm", "RMSNorm", ((9, 8), 1e-3), {}, IMAGE),
    ("RMSNorm", "RMSNorm", (8,), {"elementwise_affine": False}, IMAGE),
    ("LocalResponseNorm", "LocalResponseNorm", (3, 0.1, 0.5, 2.0), {}, IMAGE),
    ("Conv", "Conv2d", (4, 6, 3), {}, IMAGE),
    ("Conv", "Conv2d", (4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, False), {}, IMAGE),
    ("Conv", "Conv2d", (4, 6, 3, 1, "same"), {}, IMAGE),
    ("Conv", "Conv2d", (4, 6, 3, 2, 1, 1, 1, True, "reflect"), {}, IMAGE),
    ("Conv", "Conv2d", (4, 6, (3, 2), 1, "same", 1, 1, True, "circular"), {}, IMAGE),
    ("Conv", "Conv2d", (4, 6, 3, 1, (2, 1), 1, 1, True, "replicate"), {}, IMAGE),
    ("Conv", "Conv1d", (4, 6, (3,)), {}, LINE),
    ("Conv", "Conv3d", (4, 6, (3, 2, 1)), {}, VOLUME),
    ("ConvTranspose", "ConvTranspose2d", (4, 6, 3, 2, 1, 1, 2, True, 2), {}, IMAGE),
    ("ConvTranspose", "ConvTranspose1d", (4, 6, (3,), 2), {"bias": False}, LINE),
    ("Linear", "Linear", (8, 5), {}, IMAGE),
    ("Linear", "Linear", (4, 5, False), {}, ROWS),
    ("ReLU", "ReLU", (), {}, IMAGE),
    ("ReLU", "ReLU", (True,), {}, IMAGE),
    ("LeakyReLU", "LeakyReLU", (0.2,), {}, IMAGE),
    ("GELU", "GELU", ("tanh",), {}, IMAGE),
    ("Sigmoid", "Sigmoid", (), {}, IMAGE),
    ("Tanh", "Tanh", (), {}, IMAGE),
    ("Softmax", "Softmax", (1,), {}, IMAGE),
    ("Flatten", "Flatten", (), {}, IMAGE),
    ("Flatten", "Flatten", (0, 2), {}, IMAGE),
    ("Dropout", "Dropout", (0.0,), {}, IMAGE),
]
NAMED = [f"{ours}-{theirs}-{i}" for i, (ours, theirs, *_) in enumerate(TWINS)]

# Layers without a twin, and options of our own.
OWN = [
    (layers.SumPool(3, 2, 1), IMAGE),
    (layers.SymmetricPad(2), IMAGE),
    (layers.ConstantPad((1, -2), 3.0), IMAGE),
    (layers.ConstantPad(((1, 2),), 3.0), LINE),
    (layers.GlobalAvgPool(), VOLUME),
    (layers.GlobalMaxPool(data_format="channels_last"), IMAGE),
    (layers.AvgPool(2, dilation=2, data_format="channels_last"), IMAGE),
    (layers.LpPool(3, 2, padding=1, dilation=2), IMAGE),
    (MaxPool(3, 1, 1, ties="split", return_indices=True), IMAGE),
    (BatchNorm(8, unbiased=False, bias=False, data_format="channels_last"), IMAGE),
    (BatchNorm(4).eval(), IMAGE),
    (Conv(4, 3, 2, ndim=1, padding=((2, 1),), padding_mode="reflect", rng=1), LINE),
    (Conv(8, 3, 3, padding="same_lower", data_format="channels_last", rng=1), IMAGE),
    (ConvTranspose(8, 4, (3, 3), data_format="channels_last", rng=1), IMAGE),
    (Dropout(0.4, rng=3), IMAGE),
    (Residual(Conv(4, 4, 3, padding=1, rng=1)), IMAGE),
    (Residual(Conv(4, 6, 3, 2, 1, rng=1), Conv(4, 6, 1, 2, rng=2)), IMAGE),
    (Sequential(), IMAGE),
]


def network(rng=0):
    rng = np.random.default_rng(rng)
    body = Sequential(Conv(8, 8, 3, padding=1, bias=False, rng=rng), BatchNorm(8), ReLU())
    head = (Flatten(), Linear(8 * 4 * 4, 10, rng=rng))
    return Sequential(Conv(3, 8, 3, padding=1, rng=rng), BatchNorm(8), ReLU(), MaxPool(2), Residual(body), *head)


def images(rng, number=4):
    return rng.standard_normal((number, 3, 8, 8)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- twins
@pytest.mark.parametrize(("ours", "theirs", "args", "options", "shape"), TWINS, ids=NAMED)
def test_beside_torch(ours, theirs, args, options, shape, rng):
    torch = pytest.importorskip("torch")
    layer, twin = getattr(layers, ours)(*args, **options), getattr(torch.nn, theirs)(*args, **options)
    with torch.no_grad():
        for p in twin.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert layer.load_state_dict(twin.state_dict()) is layer
    for mode in (True, True, False):
        layer.train(mode)
        twin.train(mode)
        x = rng.standard_normal(shape).astype(np.float32)
        leaf = torch.tensor(x, requires_grad=True)
        expected = twin(leaf * 1.0)
        dy = rng.standard_normal(tuple(expected.shape)).astype(np.float32)
        twin.zero_grad()
        expected.backward(torch.tensor(dy))
        np.testing.assert_allclose(layer(x), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.backward(dy), leaf.grad.numpy(), rtol=1e-3, atol=1e-4)
        gradients = {name: p.grad.numpy() for name, p in twin.named_parameters()}
        assert list(layer.grads) == list(gradients) == list(layer.params)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(layer.grads[name], gradient, rtol=1e-3, atol=1e-3)
        state = twin.state_dict()
        assert list(layer.state_dict()) == list(state)
        for name, value in state.items():
            np.testing.assert_allclose(layer.state_dict()[name], value.numpy(), rtol=1e-4, atol=1e-5)
            assert layer.state_dict()[name].dtype == value.numpy().dtype


@pytest.mark.parametrize(("ours", "theirs"), sorted({(ours, theirs) for ours, theirs, *_ in TWINS}))
def test_arguments_have_torchs_names_and_order(ours, theirs):
    torch = pytest.importorskip("torch")
    names = [
        n
        for n in inspect.signature(getattr(torch.nn, theirs)).parameters
        if n not in ("device", "dtype", "args", "kwargs")
    ]
    assert list(inspect.signature(getattr(layers, ours)).parameters)[: len(names)] == names


@pytest.mark.parametrize(("ours", "theirs", "args", "options", "shape"), TWINS, ids=NAMED)
def test_gradients_of_twins(ours, theirs, args, options, shape, rng):
    layer = getattr(layers, ours)(*args, **options)
    assert list(gradcheck(layer, rng.standard_normal(shape))) == ["x", *layer.params]


@pytest.mark.parametrize(("layer", "shape"), OWN, ids=lambda v: type(v).__name__)
def test_gradients_of_our_own(layer, shape, rng):
    assert list(gradcheck(layer, rng.standard_normal(shape))) == ["x", *layer.params]


def test_max_unpool_undoes_max_pool(rng):
    x = rng.standard_normal(IMAGE).astype(np.float32)
    y, indices = MaxPool(2, return_indices=True)(x)
    unpool = MaxUnpool(2)
    back = unpool(y, indices, output_size=(9, 8))
    assert back.shape == IMAGE
    np.testing.assert_array_equal(back[back != 0], x[back != 0])
    np.testing.assert_array_equal(unpool.backward(back), y)
    gradcheck(unpool, y, indices, output_size=(9, 9))


@pytest.mark.parametrize("name", layers.__all__)
def test_every_layer_is_tested(name):
    tested = {ours for ours, *_ in TWINS} | {type(layer).__name__ for layer, _ in OWN} | {"Layer", "MaxUnpool"}
    assert name in tested


# ------------------------------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize(
    ("make", "shape", "fan_in"),
    [
        (lambda rng: Conv(6, 40, (3, 5), groups=2, rng=rng), (40, 3, 3, 5), 45),
        (lambda rng: Conv(6, 40, 3, ndim=3, rng=rng), (40, 6, 3, 3, 3), 162),
        (lambda rng: ConvTranspose(6, 40, 3, groups=2, rng=rng), (6, 20, 3, 3), 180),
        (lambda rng: Linear(50, 40, rng=rng), (40, 50), 50),
    ],
)
def test_initial_weights(make, shape, fan_in):
    layer, bound = make(5), fan_in**-0.5
    for name, array in layer.params.items():
        assert array.dtype == np.float32
        assert array.shape == (shape if name == "weight" else (40,))
        assert 0.9 * bound < np.abs(array).max() <= bound * (1 + 1e-6)
        assert abs(array.mean()) < 0.25 * bound
        np.testing.assert_array_equal(make(5).params[name], array)
        np.testing.assert_array_equal(make(np.random.default_rng(5)).params[name], array)
        assert (make(6).params[name] != array).any()
        assert (make(None).params[name] != make(None).params[name]).any()


def test_an_empty_fan_in_gives_empty_weights():
    assert Linear(0, 3).params["weight"].shape == (3, 0)
    np.testing.assert_array_equal(Linear(0, 3)(np.ones((2, 0), np.float32)), np.zeros((2, 3)))


# --------------------------------------------------------------------------------------------------- modes and contexts
def test_a_new_layer_is_in_training_and_modes_recurse():
    net = network()
    assert all(at.training for _, at in net.walk())
    assert net.eval() is net
    assert not any(at.training for _, at in net.walk())
    assert net.train() is net
    assert all(at.training for _, at in net.walk())
    with pytest.raises(TypeError, match="mode"):
        net.train("yes")


@pytest.mark.parametrize("make", [lambda: Conv(3, 2, 3), network, Sequential])
def test_one_backward_a_forward(make, rng):
    layer, x = make(), images(rng)
    with pytest.raises(RuntimeError, match=f"{type(layer).__name__}.backward has no forward"):
        layer.backward(x)
    y = layer(x)
    layer.backward(y)
    with pytest.raises(RuntimeError, match="call forward first"):
        layer.backward(y)


def test_a_second_forward_discards_the_first(rng):
    layer, a, b = ReLU(), images(rng), images(rng, 2)
    layer(a)
    layer(b)
    np.testing.assert_array_equal(layer.backward(np.ones_like(b)), (b > 0).astype(np.float32))


def test_a_wrong_dy_leaves_the_context(rng):
    layer, x = Conv(3, 2, 3), images(rng)
    y = layer(x)
    with pytest.raises(ValueError, match="dy"):
        layer.backward(y[:1])
    assert layer.backward(y).shape == x.shape


@pytest.mark.parametrize("make", [lambda: Conv(3, 2, 3), network])
def test_a_forward_that_raises_leaves_no_context(make, rng):
    layer = make()
    y = layer(images(rng))
    with pytest.raises(ValueError):
        layer(images(rng)[:, :2])
    assert all(at._ctx is None for _, at in layer.walk())
    with pytest.raises(RuntimeError):
        layer.backward(y)


def test_a_network_that_fails_at_its_end_leaves_no_context(rng):
    net = network()
    with pytest.raises(ValueError, match="weight"):
        net(rng.standard_normal((4, 3, 9, 11)).astype(np.float32))
    assert all(at._ctx is None for _, at in net.walk())


def test_gradients_are_replaced_not_added(rng):
    layer, x = Linear(4, 3), rng.standard_normal((5, 4)).astype(np.float32)
    assert layer.grads == {}
    first = [layer.backward(layer(x) * 0 + 1), layer.grads["weight"]][1]
    layer.backward(layer(2 * x) * 0 + 1)
    np.testing.assert_allclose(layer.grads["weight"], 2 * first, rtol=1e-6)


def test_a_closed_context_is_the_forwards(rng):
    """The formula is that of the mode in which forward ran."""
    x = images(rng)
    layer, other = BatchNorm(3).eval(), BatchNorm(3).eval()
    layer(x)
    other(x)
    np.testing.assert_array_equal(layer.train().backward(x), other.backward(x))
    np.testing.assert_allclose(other.grads["bias"], x.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_batch_norm_counts_batches(rng):
    layer = BatchNorm(3, momentum=None)
    batches = [images(rng) + i for i in range(3)]
    for x in (*batches, images(rng, 0)):
        layer(x)
    layer.eval()(batches[0])
    state = layer.state_dict()
    assert int(state["num_batches_tracked"]) == 3
    assert state["num_batches_tracked"].dtype == np.int64
    np.testing.assert_allclose(state["running_mean"], np.mean([x.mean((0, 2, 3)) for x in batches], 0), rtol=1e-5)
    with pytest.raises(ValueError):
        layer.train()(np.ones((1, 3), np.float32))
    assert int(state["num_batches_tracked"]) == 3


@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_stores_the_variance_it_is_told_to(unbiased, rng):
    layer, x = BatchNorm(3, momentum=1.0, unbiased=unbiased), images(rng)
    layer(x)
    np.testing.assert_allclose(layer.state_dict()["running_var"], x.var((0, 2, 3), ddof=int(unbiased)), rtol=1e-5)


def test_batch_norm_counts_an_empty_rank():
    class Alone:
        def allreduce(self, value, *args, **kwargs):
            return value

    layer = BatchNorm(3, comm=Alone())
    layer(np.ones((2, 3, 4), np.float32))
    assert int(layer.state_dict()["num_batches_tracked"]) == 1
    assert copy.deepcopy(layer).comm is layer.comm


def test_dropout_draws_anew_and_repeats_by_seed():
    x = np.ones((50, 40), np.float32)
    first, second = Dropout(rng=7), Dropout(rng=np.random.default_rng(7))
    a, b = first(x), first(x)
    assert (a != b).any()
    np.testing.assert_array_equal(second(x), a)
    assert (Dropout()(x) != Dropout()(x)).any()
    np.testing.assert_array_equal(first.eval()(x), x)
    np.testing.assert_array_equal(first.backward(x), x)


# --------------------------------------------------------------------------------------------------------------- state
def test_names_nest_and_arrays_are_live(rng):
    net = network()
    assert list(net.params) == [
        *("0.weight", "0.bias", "1.weight", "1.bias"),
        *("4.body.0.weight", "4.body.1.weight", "4.body.1.bias", "6.weight", "6.bias"),
    ]
    assert [n for n in net.state_dict() if n not in net.params] == [
        f"{layer}.{name}"
        for layer in ("1", "4.body.1")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    x = images(rng)
    y = net(x)
    before = net.params
    net.backward(y)
    assert list(net.grads) == list(net.params)
    for name in net.params:
        net.params[name] -= 0.1 * net.grads[name]
    net.params["6.bias"] = np.zeros(10)
    assert all(net.params[name] is before[name] for name in before)
    assert (net.params["6.bias"] == 0).all()
    assert (net(x) != y).any()
    with pytest.raises(KeyError, match="nothing"):
        net.params["nothing"] = 0
    with pytest.raises(ValueError, match=r"6\.bias must have shape \(10,\), got \(3,\)"):
        net.params["6.bias"] = np.zeros(3)


@pytest.mark.parametrize("kind", ["numpy", "torch", "strict", "float64", "fortran", "readonly"])
def test_load_state_dict_takes_any_array(kind):
    source, net = network(1), network(2)
    state = {name: np.array(a) for name, a in source.state_dict().items()}
    if kind == "torch":
        torch = pytest.importorskip("torch")
        state = {name: torch.tensor(a) for name, a in state.items()}
    convert = {"strict": strict, "float64": np.float64, "fortran": lambda a: np.array(a, order="F")}.get(
        kind, lambda a: a
    )
    state = {name: convert(a) for name, a in state.items()}
    if kind == "readonly":
        for a in state.values():
            a.flags.writeable = False
    own = net.state_dict()
    net.load_state_dict(state)
    for name, array in net.state_dict().items():
        assert array is own[name]
        np.testing.assert_array_equal(array, source.state_dict()[name])
        assert array.dtype == source.state_dict()[name].dtype
        assert not np.shares_memory(array, source.state_dict()[name])


def test_load_state_dict_names_every_fault_and_changes_nothing():
    net = network(1)
    before = {name: np.array(a) for name, a in net.state_dict().items()}
    state = {name: np.array(a) for name, a in network(2).state_dict().items()}
    del state["0.bias"], state["4.body.1.running_var"]
    state |= {"7.weight": np.zeros(3), "0.weight": np.zeros((8, 3, 3)), "1.bias": np.zeros(()), "x": np.ones(1)}
    with pytest.raises(ValueError) as e:
        net.load_state_dict(state)
    for said in (
        "missing: 0.bias, 4.body.1.running_var",
        "unknown: 7.weight, x",
        "0.weight must have shape (8, 3, 3, 3), got (8, 3, 3)",
        "1.bias must have shape (8,), got ()",
    ):
        assert said in str(e.value)
    for bad in ("weights", np.zeros(8, complex), None):
        with pytest.raises(TypeError):
            net.load_state_dict(network(2).state_dict() | {"1.bias": bad})
    with pytest.raises(TypeError, match="mapping"):
        net.load_state_dict([1])
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("weight", [1e300, 0, 0], "weight has values beyond the range of float32"),
        ("running_var", [0, 0, -1e39], "running_var has values beyond"),
        ("num_batches_tracked", -1, "num_batches_tracked must be a whole number from 0 on, got -1"),
        ("num_batches_tracked", 1.5, "got 1.5"),
        ("num_batches_tracked", float("nan"), "got nan"),
    ],
)
def test_load_state_dict_refuses_what_it_cannot_keep(name, value, said):
    layer = BatchNorm(3)
    before = {key: np.array(a) for key, a in layer.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        layer.load_state_dict(before | {name: np.array(value)})
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[key])
    layer.load_state_dict(before | {"weight": np.array([np.inf, np.nan, 1e-300]), "num_batches_tracked": np.array(3.0)})
    np.testing.assert_array_equal(layer.params["weight"], [np.inf, np.nan, 0])
    assert layer.state_dict()["num_batches_tracked"] == 3


def test_num_batches_tracked_is_optional():
    layer = BatchNorm(3)
    state = {name: a + 2 for name, a in layer.state_dict().items()}
    del state["num_batches_tracked"]
    layer(np.zeros((2, 3), np.float32))
    layer.load_state_dict(state)
    assert int(layer.state_dict()["num_batches_tracked"]) == 1
    np.testing.assert_array_equal(layer.state_dict()["running_mean"], [2, 2, 2])


def test_to_moves_and_drops(rng, monkeypatch):
    net = network()
    y = net(images(rng))
    net.backward(y)
    net(images(rng))
    before = {name: np.array(a) for name, a in net.state_dict().items()}
    assert net.to("numpy") is net
    assert net.grads == {}
    with pytest.raises(RuntimeError):
        net.backward(y)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(ValueError, match="numpy"):
        net.to("gpu")
    if backends.available()["cupy"] is not None:
        with pytest.raises(backends.BackendUnavailable):
            net.to("cupy")


def test_map_arrays_replaces_all_or_nothing(rng):
    net, seen = network(), []

    def failing(array):
        seen.append(array)
        if len(seen) > 3:
            raise MemoryError
        return array * 2

    before = {name: np.array(a) for name, a in net.state_dict().items()}
    with pytest.raises(MemoryError):
        net.map_arrays(failing)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_layers_run_on_any_array_api(rng):
    net = network()
    x = images(rng)
    y, dx, grads = net(x), net.backward(np.ones((4, 10), np.float32)), net.grads
    other = network().map_arrays(lambda a: strict(np.array(a)))
    np.testing.assert_allclose(np.array(other(strict(x))), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(other.backward(strict(np.ones((4, 10), np.float32)))), dx, rtol=1e-3, atol=1e-5)
    for name, gradient in other.grads.items():
        np.testing.assert_allclose(np.array(gradient), grads[name], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        np.array(other.state_dict()["1.running_var"]), net.state_dict()["1.running_var"], rtol=1e-5
    )


def test_layers_move_to_cupy_and_back(rng):
    x, dy = images(rng), rng.standard_normal((4, 10)).astype(np.float32)
    host = network()
    y, dx = host(x), host.backward(dy)
    with standin_cupy.installed() as cupy:
        net = network().to("cupy")
        with backends.using("cupy"):
            made_there = network()
        for name, array in net.state_dict().items():
            assert isinstance(array, cupy.ndarray)
            np.testing.assert_array_equal(backends.to_numpy(made_there.state_dict()[name]), backends.to_numpy(array))
        np.testing.assert_allclose(backends.to_numpy(net(cupy.asarray(x))), y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(backends.to_numpy(net.backward(cupy.asarray(dy))), dx, rtol=1e-3, atol=1e-5)
        for name, gradient in net.grads.items():
            np.testing.assert_allclose(backends.to_numpy(gradient), host.grads[name], rtol=1e-3, atol=1e-4)
        with pytest.raises(TypeError, match="owner"):
            net(x)
        net.load_state_dict(host.state_dict())
        net.params["6.bias"] = cupy.asarray(np.arange(10))
        host.params["6.bias"] = np.arange(10)
        back = copy.deepcopy(net).to("numpy")
        gradcheck(net, cupy.asarray(x))
    assert {n: a.tobytes() for n, a in back.state_dict().items()} == {
        n: a.tobytes() for n, a in host.state_dict().items()
    }


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_arrays_of_their_own(twin, rng):
    net, x = Sequential(network(), Dropout(rng=1)), images(rng)
    y = net(x)
    other = twin(net)
    with pytest.raises(RuntimeError):
        other.backward(y)
    assert all(at._ctx is None for _, at in other.walk())
    assert not any(np.shares_memory(a, net.params[n]) for n, a in other.params.items())
    np.testing.assert_array_equal(other(x), net(x))
    net.backward(y)


# ---------------------------------------------------------------------------------------------------------- containers
def test_sequential_is_a_sequence():
    net = network()
    assert len(net) == 7
    assert [type(layer).__name__ for layer in net] == [
        "Conv",
        "BatchNorm",
        "ReLU",
        "MaxPool",
        "Residual",
        "Flatten",
        "Linear",
    ]
    assert net[-1] is list(net)[6]
    net[1].eval()
    part = net[:3]
    assert isinstance(part, Sequential)
    assert list(part) == list(net)[:3]
    assert not part[1].training
    assert part.training
    assert not net.eval()[1:].training
    with pytest.raises(IndexError):
        net[7]


def test_a_layer_has_one_place():
    relu = ReLU()
    with pytest.raises(ValueError, match=r"2 is the same layer as 0\.body"):
        Sequential(Residual(relu), Flatten(), relu)
    with pytest.raises(ValueError, match="shortcut is the same layer as body"):
        Residual(relu, relu)
    for bad, way_out in (([relu], r"unpack it with \*$"), (np.tanh, "'tanh'>$"), (ReLU, r"call it, ReLU\(\.\.\.\)$")):
        with pytest.raises(TypeError, match=rf"made of layers.*{way_out}"):
            Sequential(bad)
    with pytest.raises(TypeError, match="made of layers"):
        Residual(None)


@pytest.mark.filterwarnings("error")
def test_residual_is_quiet_and_layers_inside_are_not():
    class Halves(layers.Layer):
        def compute_forward(self, x):
            return x / np.zeros((), x.dtype), True

    with pytest.warns(RuntimeWarning, match="divide by zero"):
        Residual(Halves())(np.ones(3, "float32"))
    with np.errstate(all="raise"):
        net = Residual(ReLU())
        assert np.isinf(net(np.full(3, 3e38, "float32"))).all()
        assert np.isinf(net.backward(np.full(3, 3e38, "float32"))).all()


def test_params_are_assigned_together_and_none_comes_or_goes(rng):
    net = Sequential(Linear(3, 2, rng=1))
    weight, bias = net.params["0.weight"], net.params["0.bias"]
    net.params.update({"0.weight": np.zeros((2, 3))})
    net.params.update([("0.bias", np.ones(2))])
    assert not weight.any()
    assert bias.all()
    params = net.params
    params |= {"0.bias": np.zeros(2)}
    assert not bias.any()
    with pytest.raises(KeyError, match=r"no parameter .0\.wieght.; there are 0\.weight, 0\.bias"):
        net.params.update({"0.bias": np.ones(2), "0.wieght": np.ones((2, 3))})
    assert not bias.any()
    with pytest.raises(ValueError, match=r"0\.weight must have shape"):
        net.params.update({"0.bias": np.ones(2), "0.weight": np.ones(7)})
    assert not bias.any()
    for change in (
        lambda p: p.pop("0.bias"),
        lambda p: p.popitem(),
        lambda p: p.clear(),
        lambda p: p.setdefault("1.bias", bias),
        lambda p: p.__delitem__("0.bias"),
    ):
        with pytest.raises(TypeError, match="none can be added or removed"):
            change(net.params)


def test_residual_shapes_must_agree(rng):
    with pytest.raises(ValueError, match=r"\(4, 8, 8, 8\) and \(4, 3, 8, 8\)"):
        Residual(Conv(3, 8, 3, padding=1))(images(rng))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_residual_gradients_have_the_dtype_of_x(dtype, rng):
    x, dy = images(rng).astype(dtype), images(rng).astype(np.float64)
    net = Residual(Conv(3, 3, 1, rng=1))
    assert net(x).dtype == dtype
    dx = net.backward(dy)
    assert dx.dtype == dtype
    np.testing.assert_allclose(
        dx, dy + np.einsum("ncij,cd->ndij", dy, net.params["body.weight"][:, :, 0, 0]), atol=1e-2
    )


def test_a_network_beside_torch(rng):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    twin = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.GroupNorm(2, 6), nn.AvgPool2d(2)),
        nn.Flatten(),
        nn.Linear(96, 5),
    )
    inner = Sequential(ConvTranspose(8, 6, 2, 2), layers.GroupNorm(2, 6), layers.AvgPool(2))
    net = Sequential(Conv(3, 8, 3, padding=1), BatchNorm(8), ReLU(), MaxPool(2), inner, Flatten(), Linear(96, 5))
    assert list(net.state_dict()) == list(twin.state_dict())
    net.load_state_dict(twin.state_dict())
    for mode in (True, False):
        net.train(mode)
        twin.train(mode)
        x = torch.tensor(images(rng), requires_grad=True)
        y = twin(x)
        twin.zero_grad()
        y.backward(torch.ones_like(y))
        np.testing.assert_allclose(net(x.detach().numpy()), y.detach().numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(net.backward(np.ones((4, 5), np.float32)), x.grad.numpy(), rtol=1e-3, atol=1e-5)
        for name, p in twin.named_parameters():
            np.testing.assert_allclose(net.grads[name], p.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_gradients_of_a_network(rng):
    net = network()
    assert list(gradcheck(net, images(rng, 2))) == ["x", *net.params]
    assert list(gradcheck(net.eval(), images(rng, 2))) == ["x", *net.params]


# --------------------------------------------------------------------------------------------------- repr and arguments
@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (
            Conv(3, 8, 3, padding="same", rng=1),
            "Conv(3, 8, kernel_size=3, stride=1, padding='same', dilation=1, groups=1, bias=True, "
            "padding_mode='zeros')",
        ),
        (
            MaxPool((2, 3), ties="all"),
            "MaxPool(kernel_size=(2, 3), stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False, "
            "ties='all')",
        ),
        (BatchNorm(4), "BatchNorm(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"),
        (Linear(4, 5), "Linear(4, 5, bias=True)"),
        (ReLU(), "ReLU(inplace=False)"),
        (layers.ConstantPad(1, 0.5), "ConstantPad(1, value=0.5)"),
        (layers.LayerNorm(5), "LayerNorm((5,), eps=1e-05, elementwise_affine=True, bias=True)"),
        (layers.GlobalAvgPool(data_format="channels_last"), "GlobalAvgPool(data_format='channels_last')"),
    ],
)
def test_repr_shows_the_arguments(layer, said):
    assert repr(layer) == said
    assert repr(eval(said, vars(layers))) == said


def test_repr_nests():
    lines = ["Sequential(", "  (0): Flatten(start_dim=1, end_dim=-1)", "  (1): Residual("]
    lines += ["    (body): ReLU(inplace=False)", "  )", ")"]
    assert repr(Sequential(Flatten(), Residual(ReLU()))) == "\n".join(lines)
    assert repr(Sequential()) == "Sequential()"


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Conv(3, 8, (3, 3), ndim=1), ValueError, "kernel_size needs one entry"),
        (lambda: Conv(3, 8, 3, ndim=4), ValueError, "one to three spatial axes"),
        (lambda: Conv(3, 8, ()), ValueError, "one to three spatial axes"),
        (lambda: Conv(3, 8, 0), ValueError, "kernel_size"),
        (lambda: Conv(3, 8, 3, groups=2), ValueError, "groups"),
        (lambda: Conv(4, 7, 3, groups=2), ValueError, "groups"),
        (lambda: Conv(3.0, 8, 3), TypeError, "in_channels"),
        (lambda: Conv(3, -8, 3), ValueError, "out_channels"),
        (lambda: Conv(3, 8, 3, padding_mode="edge"), ValueError, "replicate"),
        (lambda: Conv(3, 8, 3, bias=1), TypeError, "bias"),
        (lambda: Conv(3, 8, 3, rng="seed"), TypeError, "rng"),
        (lambda: Conv(3, 8, 3, rng=-1), ValueError, "rng"),
        (lambda: ConvTranspose(3, 8, 3, padding_mode="reflect"), ValueError, "zeros"),
        (lambda: layers.GroupNorm(3, 4), ValueError, "num_groups"),
        (lambda: layers.InstanceNorm(3, track_running_stats=True), ValueError, "running statistics"),
        (lambda: layers.AdaptiveMaxPool(3, True), ValueError, "return_indices"),
        (lambda: BatchNorm(3, momentum="no"), TypeError, "momentum"),
        (lambda: BatchNorm(-3), ValueError, "num_features"),
        (lambda: layers.LayerNorm("8"), TypeError, "normalized_shape"),
        (lambda: Dropout(1.5), ValueError, "p must be"),
        (lambda: Linear(None, 3), TypeError, "in_features"),
    ],
)
def test_wrong_arguments(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "error", "said"),
    [
        (BatchNorm(3), np.ones((2, 4, 5), np.float32), ValueError, "num_features = 3 channels, got 4"),
        (BatchNorm(5, affine=False), np.ones((2, 4, 5), np.float32), ValueError, "num_features = 5 channels, got 4"),
        (layers.GroupNorm(1, 3, data_format="channels_last"), np.ones((2, 3, 5), np.float32), ValueError, "got 5"),
        (layers.InstanceNorm(3), np.ones((2, 4, 5), np.float32), ValueError, "got 4"),
        (BatchNorm(3), [[1.0]], TypeError, "asarray"),
        (layers.EdgePad(1), [[1.0]], TypeError, "asarray"),
        (Conv(3, 8, 3, padding=1, padding_mode="reflect"), [[1.0]], TypeError, "asarray"),
        (Conv(3, 8, 3), np.ones((1, 3, 4), np.float32), ValueError, "weight"),
        (Flatten(1, 3), np.ones((2, 3)), ValueError, "end_dim"),
        (Flatten(2, 1), np.ones((2, 3, 4)), ValueError, "start_dim 2 lies behind end_dim 1"),
        (layers.ConstantPad((1, 2, 3, 4)), np.ones((1, 1, 5)), ValueError, "padding"),
    ],
)
def test_wrong_inputs(layer, x, error, said):
    with pytest.raises(error, match=said):
        layer(x)


def test_an_input_of_another_owner():
    with pytest.raises(TypeError, match="owner"):
        Conv(3, 8, 3)(strict(np.ones((1, 3, 4, 4), np.float32)))


def test_flat_padding_counts_from_the_last_axis():
    x = np.ones((1, 1, 3, 4), np.float32)
    assert layers.ConstantPad((1, 2, 10, 20))(x).shape == (1, 1, 33, 7)
    assert layers.ConstantPad((1, 2))(x).shape == (1, 1, 5, 8)
    assert layers.ConstantPad([(1, 2), (0, 1)])(x).shape == (1, 1, 6, 5)
    assert layers.ConstantPad((1, 2))(x[0]).shape == (1, 3, 7)


def test_a_layer_of_an_op_takes_its_options_from_its_attributes() -> None:
    class Square(layers.Layer, op="max_pool"):
        def __init__(self, kernel_size: int) -> None:
            super().__init__()
            self.kernel_size = kernel_size

    layer, x = Square(2), np.arange(16.0).reshape(1, 1, 4, 4)
    assert layer(x).tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]]
    assert layer.backward(np.ones((1, 1, 2, 2))).sum() == 4
    layer.kernel_size = 4
    assert layer(x).tolist() == [[[[15.0]]]]
    with pytest.raises(TypeError):
        layer(x, 2)
    with pytest.raises(TypeError):
        layer(x, stride=1)


# ------------------------------------------------------------------------------------------- options, without any x
@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: layers.MaxPool(0), ValueError, "kernel_size must be at least 1, got 0"),
        (lambda: layers.MaxPool((2, -1)), ValueError, "kernel_size must be at least 1, got -1"),
        (lambda: layers.MaxPool(2.5), TypeError, "kernel_size must be an int"),
        (lambda: layers.MaxPool(2, 0), ValueError, "stride must be at least 1"),
        (lambda: layers.MaxPool(2, padding=-1), ValueError, "padding must be at least 0"),
        (lambda: layers.MaxPool(2, padding="sane"), ValueError, "padding must be one of valid, same"),
        (lambda: layers.MaxPool(2, padding=((1, 2, 3), 1)), ValueError, "an axis has two sides"),
        (lambda: layers.MaxPool((2, 2), (1, 1, 1)), ValueError, "stride needs an int, or one entry per spatial axis"),
        (lambda: layers.MaxPool((2, 2, 2, 2)), ValueError, "kernel_size needs an int"),
        (lambda: layers.MaxPool(2, ties="last"), ValueError, "ties must be one of first, all, split"),
        (lambda: layers.MaxPool(2, data_format="NCHW"), ValueError, "data_format must be 'channels_first' or"),
        (lambda: layers.AvgPool(-2), ValueError, "kernel_size must be at least 1"),
        (lambda: layers.AvgPool(2, divisor_override=0), ValueError, "divisor_override must be any int but 0"),
        (lambda: layers.SumPool(2, dilation=0), ValueError, "dilation must be at least 1"),
        (lambda: layers.LpPool(0, 2), ValueError, "norm_type must be positive"),
        (lambda: layers.AdaptiveAvgPool(0), ValueError, "output_size must be at least 1"),
        (lambda: layers.AdaptiveMaxPool((2, -1)), ValueError, "output_size must be at least 1"),
        (lambda: layers.AdaptiveMaxPool((2,) * 4), ValueError, "output_size needs one entry"),
        (lambda: layers.GlobalAvgPool(data_format=1), TypeError, "data_format must be a str"),
        (lambda: layers.MaxUnpool(0), ValueError, "kernel_size must be at least 1"),
        (lambda: layers.MaxUnpool(2, padding="same"), TypeError, "padding must be"),
        (lambda: layers.ReflectPad("same"), TypeError, "padding must be"),
        (lambda: layers.EdgePad(1.5), TypeError, "padding must be an int"),
        (lambda: layers.ConstantPad((1,) * 5), ValueError, "padding needs an int"),
        (lambda: layers.Conv(1, 2, -3), ValueError, "kernel_size must be at least 1, got -3"),
        (lambda: layers.Conv(1, 2, 3, stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda: layers.Conv(1, 2, 3, padding=-1), ValueError, "padding must be at least 0, got -1"),
        (lambda: layers.Conv(1, 2, 3, padding=(1, 1, 1)), ValueError, r"padding needs an int, or one .* axis \(2\)"),
        (lambda: layers.Conv(1, 2, 3, padding="sane"), ValueError, "padding must be one of"),
        (lambda: layers.Conv(1, 2, 3, dilation=0), ValueError, "dilation must be at least 1"),
        (lambda: layers.ConvTranspose(1, 2, 3, output_padding=-1), ValueError, "output_padding must be at least 0"),
        (lambda: layers.ConvTranspose(1, 2, 3, padding="same"), TypeError, "padding must be"),
        (lambda: layers.BatchNorm(3, eps=-1), ValueError, "eps must not be negative"),
        (lambda: layers.GroupNorm(1, 3, eps="small"), TypeError, "eps must be a real number"),
        (lambda: layers.RMSNorm(3, eps=-1.0), ValueError, "eps must not be negative"),
        (lambda: layers.LocalResponseNorm(0), ValueError, "size must be at least 1"),
        (lambda: layers.LocalResponseNorm(3, alpha="a"), TypeError, "alpha must be a real number"),
        (lambda: layers.Softmax(1.5), TypeError, "dim must be an int"),
    ],
)
def test_options_are_checked_when_a_layer_is_made(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


class _Own(layers.Layer):
    """A layer of somebody's own, without what a subclass below adds."""

    def compute_forward(self, x: Any) -> Any:
        return x, True


class _WithoutInit(_Own):
    def __init__(self) -> None:
        self.factor = 2.0


class _Alone(_Own):
    def compute_forward(self, x: Any) -> Any:
        return x


class _WithoutContext(_Own):
    def compute_forward(self, x: Any) -> Any:
        return x, None


class _OnlyBackward(layers.Layer):
    def compute_backward(self, dy: Any, ctx: Any) -> Any:
        return dy


@pytest.mark.parametrize(("kind", "error", "said"), [
    (_WithoutInit, AttributeError, r"__init__ must call super\(\).__init__\(\)"),
    (_Own, AttributeError, "needs compute_forward and compute_backward, or an op"),
    (_OnlyBackward, AttributeError, "needs compute_forward and compute_backward, or an op"),
    (_Alone, TypeError, r"_Alone.compute_forward must give \(y, ctx\).* got ndarray"),
    (_WithoutContext, TypeError, r"compute_forward must give \(y, ctx\).* got None for ctx"),
])  # fmt: skip
@pytest.mark.parametrize("on_tensors", [False, True])
def test_what_a_layer_of_ones_own_lacks_is_said(kind: Any, error: type[Exception], said: str, on_tensors: bool) -> None:
    x = np.ones((2, 3))  # an array of two rows could be unpacked as a pair
    layer = kind()

    def use() -> None:
        if on_tensors:
            layer(Tensor(x, requires_grad=True)).sum().backward()
        else:
            layer(x)
            layer.backward(x)

    with pytest.raises(error, match=said):
        use()


def test_an_attribute_that_no_layer_has_is_missing_as_ever() -> None:
    with pytest.raises(AttributeError, match=r"^'ReLU' object has no attribute 'weigth'$"):
        _ = layers.ReLU().weigth
    assert not hasattr(layers.ReLU(), "weight")


class _Scale(layers.Layer):
    """A layer with a parameter, whose backward a subclass writes wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.own_params["weight"] = np.ones(3)

    def compute_forward(self, x: Any) -> Any:
        return x * self.own_params["weight"], x


class _NoGradient(_Scale):
    def compute_backward(self, dy: Any, ctx: Any) -> Any:
        return dy


class _OtherName(_Scale):
    def compute_backward(self, dy: Any, ctx: Any) -> Any:
        self.own_grads = {"w": (dy * ctx).sum(axis=0)}
        return dy


class _Pair(_Scale):
    def compute_backward(self, dy: Any, ctx: Any) -> Any:
        self.own_grads = {"weight": (dy * ctx).sum(axis=0)}
        return dy, self.own_grads["weight"]


class _NoReturn(_Scale):
    def compute_backward(self, dy: Any, ctx: Any) -> Any:
        self.own_grads = {"weight": (dy * ctx).sum(axis=0)}


@pytest.mark.parametrize(("kind", "said"), [
    (_NoGradient, "no gradient of weight"),
    (_OtherName, "no gradient of weight"),
    (_Pair, "tuple for dx"),
    (_NoReturn, "NoneType for dx"),
])  # fmt: skip
def test_what_a_backward_of_ones_own_lacks_is_said(kind: Any, said: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3))
    with pytest.raises(TypeError, match=f"{kind.__name__}.compute_backward gave {said}"):
        kind()(Tensor(x, requires_grad=True)).sum().backward()
    with pytest.raises(GradientError):
        gradcheck(kind(), x)
