"""What errors say: each names the argument or the layer, what came, and the way out."""

from __future__ import annotations

import gc
import os
import pickle
import re
import sys
import weakref
from collections import deque

import numpy as np
import pytest

from cnnlayers import backends, checkpoint, kernels, layers, models
from cnnlayers import functional as F
from cnnlayers.autograd import Tensor, concat
from cnnlayers.layers import BatchNorm, Conv, Flatten, Layer, Linear, MaxPool, ReLU, Residual, Sequential
from cnnlayers.models import ResNet
from cnnlayers.optim import SGD

from .implementations import strict

X = np.ones((2, 4, 6, 6), "float32")
SWAPPED = ">" if sys.byteorder == "little" else "<"


def swapped(a: np.ndarray) -> np.ndarray:
    """The same values with the bytes of the other kind of machine."""
    return a.astype(a.dtype.newbyteorder(SWAPPED))


# ----------------------------------------------------------------------------------------------------------- byte order
CHANNELS = np.ones(4, "float32")
INDICES = np.zeros((2, 4, 3, 3), "int64")
CALLS = {
    "max_pool": (F.max_pool, {"x": X}, (2,)),
    "avg_pool": (F.avg_pool, {"x": X}, (2,)),
    "sum_pool": (F.sum_pool, {"x": X}, (2,)),
    "lp_pool": (F.lp_pool, {"x": X}, (2,)),
    "adaptive_avg_pool": (F.adaptive_avg_pool, {"x": X}, (2,)),
    "adaptive_max_pool": (F.adaptive_max_pool, {"x": X}, (2,)),
    "max_unpool": (F.max_unpool, {"x": X[..., :3, :3], "indices": INDICES}, (2,)),
    "pad": (F.pad, {"x": X}, (1,)),
    "batch_norm": (
        F.batch_norm,
        {"x": X, **dict.fromkeys(["gamma", "beta", "running_mean", "running_var"], CHANNELS)},
        (),
    ),
    "group_norm": (lambda x, g, **p: F.group_norm(x, g, **p), {"x": X, "gamma": CHANNELS, "beta": CHANNELS}, (2,)),
    "instance_norm": (F.instance_norm, {"x": X, "gamma": CHANNELS, "beta": CHANNELS}, ()),
    "layer_norm": (F.layer_norm, {"x": X, "gamma": X[0, 0, 0], "beta": X[0, 0, 0]}, (6,)),
    "rms_norm": (F.rms_norm, {"x": X, "gamma": X[0, 0, 0]}, (6,)),
    "local_response_norm": (F.local_response_norm, {"x": X}, (3,)),
    "conv": (F.conv, {"x": X, "weight": X[:, :, :3, :3], "bias": np.ones(2, "float32")}, ()),
    "conv_transpose": (F.conv_transpose, {"x": X, "weight": np.ones((4, 2, 3, 3)), "bias": np.ones(2)}, ()),
    "linear": (F.linear, {"x": X, "weight": np.ones((3, 6)), "bias": np.ones(3)}, ()),
    "relu": (F.relu, {"x": X}, ()),
    "dropout": (F.dropout, {"x": X}, ()),
    "softmax_cross_entropy": (F.softmax_cross_entropy, {"x": X[0, 0], "labels": np.arange(6)}, ()),
}
PLACES = [(op, name) for op, (_, arrays, _) in CALLS.items() for name in arrays]


@pytest.mark.parametrize(("op", "name"), PLACES)
def test_an_array_of_the_other_byte_order_is_named(op: str, name: str) -> None:
    function, arrays, sizes = CALLS[op]
    wrong = arrays | {name: swapped(arrays[name])}
    if sizes and op != "max_unpool":
        options = {n: a for n, a in wrong.items() if n != "x"}
        call = lambda: function(wrong["x"], *sizes, **options)  # noqa: E731
    else:
        call = lambda: function(**wrong, **dict(zip(["kernel_size"], sizes, strict=False)))  # noqa: E731
    dtype = wrong[name].dtype.str
    way_out = re.escape(f'{name}.astype({name}.dtype.newbyteorder("="))')
    with pytest.raises(TypeError, match=rf"^{name} has dtype {dtype}, whose byte order .*: pass {way_out}, or"):
        call()
    np.testing.assert_array_equal(eval('a.astype(a.dtype.newbyteorder("="))', {"a": wrong[name]}), arrays[name])


@pytest.mark.parametrize("dtype", ["f2", "f8", "i2", "u8", "c8"])
def test_the_byte_order_of_every_dtype(dtype: str) -> None:
    x = np.ones((1, 1, 4, 4), SWAPPED + dtype)
    _, ctx = F.max_pool_forward(np.ones((1, 1, 4, 4)), 2)
    for call in (lambda: F.max_pool(x, 2), lambda: F.pad(x, 1), lambda: Tensor(x), lambda: MaxPool(2)(x)):
        with pytest.raises(TypeError, match="byte order"):
            call()
    with pytest.raises(TypeError, match=r"^dy has dtype .*byte order"):
        F.max_pool_backward(x[..., :2, :2], ctx)
    with pytest.raises(TypeError, match=r"parameter 'p' has dtype .*byte order"):
        SGD({"p": x}, lr=0.1)
    taken = backends.asarray(x)
    assert taken.dtype.isnative
    np.testing.assert_array_equal(taken, x)


def test_a_state_of_the_other_byte_order_is_loaded() -> None:
    layer, other = Linear(3, 2, rng=0), Linear(3, 2, rng=1)
    layer.load_state_dict({name: swapped(a) for name, a in other.state_dict().items()})
    np.testing.assert_array_equal(layer.params["weight"], other.params["weight"])


# ------------------------------------------------------------------------------------------------- other kinds of array
def test_an_autograd_tensor_is_told_from_arrays() -> None:
    for call in (
        lambda t: F.relu(t),
        lambda t: F.conv(X, t),
        lambda t: Linear(6, 2).map_arrays(lambda a: Tensor(a)).forward(X),
    ):
        with pytest.raises(TypeError, match=r"got an autograd Tensor: pass its \.data, or .*autograd\.functional"):
            call(Tensor(X))


def test_a_torch_tensor_is_told_from_arrays() -> None:
    torch = pytest.importorskip("torch")
    for x in (torch.ones(1, 1, 4, 4), torch.nn.Parameter(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4).to("meta")):
        with pytest.raises(
            TypeError, match=r"^x must .* got torch\..*cnnlayers\.torch\.functional .*backends\.asarray"
        ):
            F.max_pool(x, 2)


class Immutable:
    """What JAX's arrays are like: they answer the array API, and cannot be written to."""

    __module__ = "jaxlib._jax"
    device = "cpu"

    def __init__(self, a: np.ndarray) -> None:
        self.a, self.dtype, self.shape, self.ndim = a, a.dtype, a.shape, a.ndim

    def __array_namespace__(self, api_version: str | None = None) -> object:
        return np

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.a


@pytest.mark.parametrize("module", ["jaxlib._jax", "jaxlib.xla_extension", "jax._src.interpreters.partial_eval"])
def test_a_jax_array_is_told_from_arrays_that_can_be_written(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Immutable, "__module__", module)
    x = Immutable(X)
    for call in (lambda: F.max_pool(x, 2), lambda: F.linear(X, x), lambda: Conv(4, 2, 3)(x), lambda: Tensor(x)):
        with pytest.raises(
            TypeError, match=r"got a JAX array, which cannot be written to: pass .*backends\.asarray of it"
        ):
            call()
    np.testing.assert_array_equal(F.max_pool(backends.asarray(x), 2), F.max_pool(X, 2))


def test_jax_itself() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="got a JAX array"):
        F.max_pool(jax.numpy.ones((1, 1, 4, 4)), 2)


# -------------------------------------------------------------------------------------------------- ties, labels, sizes
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool"])
def test_integers_cannot_be_split_among_ties(dtype: str) -> None:
    y, ctx = F.max_pool_forward(np.ones((1, 1, 4, 4), dtype), 2, ties="split")
    for dy in (y, y.astype("float32")):
        with pytest.raises(
            TypeError, match=rf"ties='split' divides .* x was {dtype}, .* use ties='first' or ties='all'"
        ):
            F.max_pool_backward(dy, ctx)
    if dtype != "bool":
        y, ctx = F.max_pool_forward(np.ones((1, 1, 4, 4), dtype), 2, ties="all")
        assert F.max_pool_backward(y, ctx).dtype == dtype


@pytest.mark.parametrize("label", [2**63, 2**63 + 5, 2**64 - 1])
def test_a_label_beyond_int64_is_given_as_it_is(impl, label: int) -> None:
    labels = impl.array(np.array([0, label], "uint64"))
    if impl.name in ("standin", "gpu"):  # where looking at the labels would stall the device
        assert np.isnan(impl.numpy(F.softmax_cross_entropy(impl.array(np.ones((2, 3))), labels)))
        return
    with pytest.raises(ValueError, match=rf"labels must be from 0 to 2 for 3 classes, got values from 0 to {label}"):
        F.softmax_cross_entropy(impl.array(np.ones((2, 3))), labels)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint64"])
def test_few_bits_of_label_for_many_classes(impl, dtype: str) -> None:
    x, labels = np.zeros((2, 300)), np.array([0, 100])
    loss = F.softmax_cross_entropy(impl.array(x), impl.array(labels.astype(dtype)))
    impl.close(loss, np.log(300.0), rtol=1e-12)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({2, 3}, "a set has no order of axes"),
        (frozenset({2}), "a frozenset has no order"),
        ({2: 0, 3: 0}, "a dict has no order"),
        ({2: 0, 3: 0}.keys(), "a dict_keys has no order"),
        (iter((2, 2)), "an iterator can be read once only"),
        ((n for n in (2, 2)), "an iterator can be read once only"),
        ("22", "got '22'"),
    ],
)
def test_sizes_without_an_order(size: object, said: str) -> None:
    conv = np.ones((4, 4, 2, 2), "float32")
    for name, call in (
        ("kernel_size", lambda: F.max_pool(X, size)),
        ("kernel_size", lambda: F.avg_pool(X, size)),
        ("stride", lambda: F.max_pool(X, 2, size)),
        ("dilation", lambda: F.conv(X, conv, dilation=size)),
        ("kernel_size", lambda: Conv(4, 2, size)),
        ("output_size", lambda: F.adaptive_avg_pool(X, size)),
        ("normalized_shape", lambda: F.layer_norm(X, size)),
        ("normalized_shape", lambda: layers.LayerNorm(size)),
        ("padding", lambda: F.pad(X, size)),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{name} .*{said}" if name != "padding" else said):
            call()


@pytest.mark.parametrize("size", [(2, 3), [2, 3], np.array([2, 3]), range(2, 4), deque([2, 3])])
def test_sizes_with_an_order(size: object) -> None:
    assert F.max_pool(X, size).shape == (2, 4, 3, 2)


# ------------------------------------------------------------------------------------------------------------- prefixes
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "a.b.c."])
@pytest.mark.parametrize(
    "make", [lambda: Linear(3, 2), lambda: Sequential(Linear(3, 2), BatchNorm(2)), lambda: ResNet(8)]
)
def test_a_state_whose_every_name_has_a_prefix(prefix: str, make) -> None:
    net = make()
    state = {prefix + name: a for name, a in make().state_dict().items()}
    before = {name: a.copy() for name, a in net.state_dict().items()}
    with pytest.raises(ValueError, match=rf"this {type(net).__name__}: each of its names begins with '{prefix}'") as e:
        net.load_state_dict(state)
    assert all(np.array_equal(a, before[name]) for name, a in net.state_dict().items())
    way_out = str(e.value).partition(": load ")[2]
    net.load_state_dict(eval(way_out, {"state": state}))
    assert all(np.array_equal(a, state[prefix + name]) for name, a in net.state_dict().items())


def test_a_state_whose_every_name_lacks_a_prefix() -> None:
    inner = Sequential(Linear(3, 2), BatchNorm(2))
    with pytest.raises(ValueError, match=r"each of its names lacks '0\.'.*: load ") as e:
        Sequential(Sequential(Linear(3, 2), BatchNorm(2))).load_state_dict(inner.state_dict())
    assert set(eval(str(e.value).partition(": load ")[2], {"state": inner.state_dict()})) == {
        f"0.{name}" for name in inner.state_dict()
    }


def test_other_names_are_listed_as_they_are() -> None:
    layer = Linear(3, 2)
    for state in ({"module.scale": np.ones(2)}, {"module.weight": layer.params["weight"], "bias": np.ones(2)}, {}):
        with pytest.raises(ValueError, match="missing: weight") as e:
            layer.load_state_dict(state)
        assert "each of its names" not in str(e.value)


# ------------------------------------------------------------------------------------------------- layers inside layers
class Raising(Layer):
    """A layer whose forward or backward raises what it is told to."""

    def __init__(self, error: Exception | None = None, back: Exception | None = None) -> None:
        super().__init__()
        self.error, self.back = error, back

    def compute_forward(self, x: np.ndarray) -> tuple[np.ndarray, bool]:
        if self.error is not None:
            raise self.error
        return x, True

    def compute_backward(self, dy: np.ndarray, ctx: bool) -> np.ndarray:
        if self.back is not None:
            raise self.back
        return dy


class Own(Layer):
    """A layer of one's own around a network, which it may or may not make known."""

    def __init__(self, inside: Layer, known: bool) -> None:
        super().__init__()
        self.inside = [inside]
        if known:
            self.children["net"] = inside

    def compute_forward(self, x: np.ndarray) -> tuple[np.ndarray, bool]:
        return self.inside[0].forward(x), True


CASES = [
    (Sequential(ReLU(), Linear(5, 2)), r"layer 1 \(Linear\): weight must be \(out, 6\)"),
    (Sequential(MaxPool(9)), r"layer 0 \(MaxPool\): the window covers 9 cells"),
    (Sequential(ReLU(), Sequential(ReLU(), BatchNorm(3))), r"layer 1\.1 \(BatchNorm\): x must have num_features = 3"),
    (Residual(Sequential(ReLU(), Conv(3, 4, 1))), r"layer body\.1 \(Conv\): x must have 3 channels"),
    (Residual(ReLU(), Sequential(Conv(3, 4, 1))), r"layer shortcut\.0 \(Conv\): x must have 3 channels"),
    (Sequential(Residual(Conv(4, 3, 1))), r"layer 0 \(Residual\): body and shortcut must give one shape"),
    (Sequential(Flatten(), Sequential(Residual(Linear(1, 2)))), r"layer 1\.0\.body \(Linear\): weight must be"),
    (ResNet(8), r"layer conv1 \(Conv\): x must have 3 channels"),
    (Sequential(ReLU(), Own(Sequential(Linear(5, 2)), True)), r"layer 1\.net\.0 \(Linear\): weight must be"),
    (Sequential(ReLU(), Own(Sequential(Linear(5, 2)), False)), r"layer 1 \(Own\): layer 0 \(Linear\): weight must be"),
    (Sequential(Raising(KeyError("gone"))), r"layer 0 \(Raising\): 'gone'"),
    (Sequential(Sequential(Raising(MemoryError()))), r"^layer 0\.0 \(Raising\)$"),
    (Sequential(Sequential(Raising(OSError(2, "no such file")))), "no such file"),
    (Sequential(Raising(UnicodeDecodeError("ascii", b"a", 0, 1, "why"))), "can't decode"),
]


@pytest.mark.parametrize(("net", "said"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_an_error_inside_a_network_names_the_layer(net: Layer, said: str) -> None:
    for _ in range(2):  # a second time the name is not put there twice
        with pytest.raises(Exception) as e:
            net(X)
        assert re.search(said, str(e.value)), str(e.value)
        assert str(e.value).count("(Linear)") < 2
        if not str(e.value).startswith(("layer", '"layer')) and sys.version_info >= (3, 11):
            assert any("(Raising)" in note for note in e.value.__notes__)
        assert isinstance(e.value, ValueError | KeyError | MemoryError | OSError)


def test_the_type_and_the_object_of_the_error_stay() -> None:
    class Mine(RuntimeError):
        pass

    error = Mine("it is full")
    with pytest.raises(Mine, match=r"^layer 0\.0 \(Raising\): it is full$") as e:
        Sequential(Sequential(Raising(error)))(X)
    assert e.value is error
    with pytest.raises(KeyboardInterrupt) as interrupt:
        Sequential(Raising(KeyboardInterrupt()))(X)  # type: ignore[arg-type]
    assert interrupt.value.args == ()


def test_an_error_keeps_no_layer_alive_and_pickles_none() -> None:
    net = Sequential(Sequential(Linear(300, 300)))
    with pytest.raises(ValueError, match=r"layer 0\.0 \(Linear\)") as e:
        net(np.ones((2, 5), "float32"))
    error = e.value.with_traceback(None)
    assert len(pickle.dumps(error)) < 1000
    twin = pickle.loads(pickle.dumps(error))
    assert twin.args == error.args
    with pytest.raises(ValueError, match=r"^layer 0 \(Raising\): layer 0\.0 \(Linear\)"):
        Sequential(Raising(twin))(X)
    layer = weakref.ref(net[0][0])
    del net, e
    gc.collect()
    assert layer() is None


def test_python_names_the_function_that_was_called() -> None:
    for op in (F.softmax, F.gelu, F.linear, F.batch_norm, F.mse_loss):
        with pytest.raises(TypeError, match=rf"^{op.__name__}\(\) got an unexpected keyword argument 'dim'"):
            op(X, X, dim=1)


def test_an_error_in_backward_names_the_layer() -> None:
    net = Sequential(ReLU(), Residual(Sequential(Raising(back=ValueError("no way back")))), Flatten())
    y = net(X)
    with pytest.raises(ValueError, match=r"^layer 1\.body\.0 \(Raising\): no way back$"):
        net.backward(y)
    y = net(X)
    with pytest.raises(ValueError, match=r"^layer 2 \(Flatten\): dy must have y's shape \(2, 144\), got \(2, 3\)"):
        net.backward(y[:, :3])
    with pytest.raises(RuntimeError, match=r"^Sequential\.backward has no forward"):
        Sequential(ReLU()).backward(X)
    part = Sequential(ReLU(), ReLU())
    part(X)
    part[1].backward(X)
    with pytest.raises(RuntimeError, match=r"^layer 1 \(ReLU\): ReLU\.backward has no forward"):
        part.backward(X)


def test_a_layer_in_two_networks_is_named_by_the_one_that_runs() -> None:
    layer = Linear(5, 2)
    one, other = Sequential(ReLU(), layer), Sequential(layer)
    for net, name in ((one, "1"), (other, "0"), (one, "1")):
        with pytest.raises(ValueError, match=rf"^layer {name} \(Linear\): weight must be"):
            net(X)


# ------------------------------------------------------------------------------------------------ other wrong arguments
WRONG = {
    "ties": (lambda: F.max_pool(X, 2, ties=np.ones(2)), ValueError, "ties must be one of first, all, split; got array"),
    "padding_mode": (lambda: Conv(4, 2, 3, padding_mode=[0]), ValueError, "padding_mode must be one of zeros, reflect"),
    "shortcut": (
        lambda: ResNet(8, shortcut=np.ones(2)),
        ValueError,
        "shortcut must be one of projection, padding; got",
    ),
    "model": (
        lambda: models.build(["resnet8"], {}),
        ValueError,
        "there is no model ['resnet8']; there are three-layer",
    ),
    "model arguments": (lambda: models.build("resnet8", [8]), TypeError, "arguments must be a mapping"),
    "kernel mode": (lambda: kernels.mode(np.ones(2)).__enter__(), ValueError, "the kernel mode must be one of auto"),
    "data_format": (
        lambda: BatchNorm(4, data_format=np.ones(2))(X),
        TypeError,
        "data_format must be a str, got ndarray",
    ),
    "affine": (
        lambda: layers.LayerNorm(6, elementwise_affine=1),
        TypeError,
        "elementwise_affine must be True or False",
    ),
    "bias": (lambda: layers.InstanceNorm(4, bias=np.ones(2)), TypeError, "bias must be True or False, got array"),
    "function": (
        lambda: Linear(2, 2).map_arrays("cupy"),
        TypeError,
        "function must be a function of an array, got str",
    ),
    "keepdims": (lambda: Tensor(X).sum(keepdims=1.5), TypeError, "keepdims must be True or False, got 1.5"),
    "keepdims of max": (lambda: Tensor(X).max(keepdims=X), TypeError, "keepdims must be True or False, got array"),
    "tensors": (lambda: concat(3), TypeError, "tensors must be a list or tuple of Tensors or arrays, got int"),
    "tensors in it": (lambda: concat([1, 2]), TypeError, "tensors must be a list or tuple of Tensors or arrays"),
    "params": (
        lambda: SGD([X], lr=0.1),
        TypeError,
        "params must be a mapping of names to arrays, as layer.params gives",
    ),
    "params of None": (lambda: SGD(None, lr=0.1), TypeError, "params must be a mapping"),
    "grads": (
        lambda: SGD({"p": X}, lr=0.1).step([X]),
        TypeError,
        "grads must be a mapping of names to arrays, as layer",
    ),
    "names": (lambda: SGD({"p": X}, lr=0.1).step({3: X}), ValueError, "no gradient for p; no parameter for 3"),
    "state": (
        lambda: SGD({"p": X}, lr=0.1).load_state_dict(X),
        TypeError,
        "state must be a mapping of names to arrays",
    ),
    "state's array": (lambda: loaded({"velocity.p": "fast"}), TypeError, "velocity.p of the state must be an array of"),
    "state's dtype": (lambda: loaded({"velocity.p": X + 1j}), TypeError, "velocity.p of the state must be an array of"),
    "steps": (lambda: loaded({"steps": np.array([-1])}), ValueError, "steps of the state must be a whole number of at"),
    "steps of NaN": (lambda: loaded({"steps": np.array([np.nan])}), ValueError, "steps of the state must be a whole"),
    "ragged": (lambda: Linear(2, 1).load_state_dict({"weight": [[1], [2, 3]], "bias": [0]}), ValueError, "weight must"),
    "path to load": (
        lambda: checkpoint.load(Linear(2, 1), 99),
        TypeError,
        "path must be a str or a path, got 99 of type",
    ),
    "path to save": (lambda: checkpoint.save(Linear(2, 1), None), TypeError, "path must be a str or a path, got None"),
    "layer to load": (
        lambda: checkpoint.load({}, "m"),
        TypeError,
        "layer must be a layer of cnnlayers.layers, got dict",
    ),
    "layer to save": (lambda: checkpoint.save(X, "m"), TypeError, "layer must be a layer of cnnlayers.layers, got nd"),
    "optimizer to save": (
        lambda: checkpoint.save(SGD(Linear(2, 1).params, lr=1.0), "m"),
        TypeError,
        "got SGD; an optimizer's state_dict() is arrays by name, for numpy.savez",
    ),
    "huge window": (
        lambda: F.max_unpool(X[..., :3, :3], INDICES, 2**31 - 1),
        ValueError,
        "the result for x of shape (2, 4, 3, 3) would have shape (2, 4, 6442450941, 6442450941), more than the 2**59",
    ),
    "huge stride": (lambda: F.conv_transpose(X, X[:1].transpose(1, 0, 2, 3), stride=2**31 - 1), ValueError, "2**59"),
    "huge padding": (lambda: F.pad(X, 2**31 - 1), ValueError, "more than the 2**59 elements that fit into an array"),
    "huge kernel": (lambda: Conv(1, 1, 2**31 - 1), ValueError, "the weight would have shape (1, 1, 2147483647,"),
    "strict sizes": (lambda: F.max_pool(X, strict(X)), TypeError, "kernel_size must be an int or a tuple or list"),
}


def loaded(change: dict[str, object]) -> None:
    """An optimiser's state with another entry; it must stay as it was where that is refused."""
    optimizer = SGD({"p": X.copy()}, lr=0.1)
    optimizer.step({"p": X})
    before = optimizer.state_dict()
    try:
        optimizer.load_state_dict(before | change)
    finally:
        assert all(np.array_equal(a, before[name]) for name, a in optimizer.state_dict().items())


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case: str) -> None:
    call, error, said = WRONG[case]
    with pytest.raises(error, match=re.escape(said)):
        call()


def test_a_path_that_is_a_number_closes_no_file() -> None:
    """An int would be a file descriptor: 1 is standard output."""
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(TypeError, match="path must be"):
        checkpoint.load(Linear(2, 1), read)
    os.close(read)


def test_arrays_of_sizes_are_shown() -> None:
    assert repr(layers.AvgPool(2, dilation=np.array([1, 2]))).endswith("dilation=array([1, 2]))")
    assert "dilation" not in repr(layers.AvgPool(2, dilation=1))


def test_an_array_as_a_seed() -> None:
    np.testing.assert_array_equal(F.dropout(X, training=True, rng=np.array(3)), F.dropout(X, training=True, rng=3))
