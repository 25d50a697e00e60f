"""Optimisers: PyTorch's steps, in place, on every array kind; nothing moves where an argument is wrong."""

from __future__ import annotations

import copy
import gc
import pickle

import numpy as np
import pytest

from cnnlayers import backends, kernels
from cnnlayers.layers import BatchNorm, Conv, Flatten, Linear, Sequential
from cnnlayers.optim import SGD, Adam

from . import standin_cupy
from .implementations import numpy_dtype, on_cpu_kernels

KINDS = [
    pytest.param(SGD, {"lr": 0.1, "momentum": 0.0}, id="sgd"),
    pytest.param(SGD, {"lr": 0.1}, id="momentum"),
    pytest.param(SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, id="decay"),
    pytest.param(SGD, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True}, id="nesterov"),
    pytest.param(Adam, {"lr": 0.05}, id="adam"),
    pytest.param(Adam, {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}, id="adam-decay"),
]
SHAPES = {"conv.weight": (4, 3, 2, 2), "conv.bias": (4,), "scale": ()}


def draw(rng: np.random.Generator, steps: int) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    params = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return params, [{name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(steps)]


def test_sgd_by_hand() -> None:
    p = np.array([1.0, 2.0])
    optimizer = SGD({"p": p}, lr=0.5, momentum=0.5, weight_decay=1.0)
    optimizer.step({"p": np.array([1.0, 0.0])})  # v = g + p = [2, 2]
    np.testing.assert_array_equal(p, [0.0, 1.0])
    optimizer.step({"p": np.array([0.0, 1.0])})  # v = 0.5 * [2, 2] + [0, 2] = [1, 3]
    np.testing.assert_array_equal(p, [-0.5, -0.5])


def test_adam_by_hand() -> None:
    p = np.array([1.0, -1.0])
    optimizer = Adam({"p": p}, lr=0.1, betas=(0.5, 0.75), eps=0.0)
    optimizer.step({"p": np.array([2.0, -0.5])})  # the first step is lr * sign(g)
    np.testing.assert_allclose(p, [0.9, -0.9], rtol=1e-15)
    optimizer.step({"p": np.array([0.0, 0.5])})
    # m = [0.5, 0.125] / 0.75; v = [0.75, 0.109375] / 0.4375
    np.testing.assert_allclose(p, [0.9 - 0.1 * 0.6666667 / 1.3093073, -0.9 - 0.1 * 0.1666667 / 0.5], rtol=1e-6)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_as_torch(kind: type, options: dict, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params, grads = draw(rng, 8)
    theirs = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    peer = getattr(torch.optim, kind.__name__)(
        theirs.values(), **{"momentum": 0.9} | options if kind is SGD else options
    )
    ours = kind(params, **options)
    for step, g in enumerate(grads):
        if step == 5:  # as a schedule does
            ours.lr = peer.param_groups[0]["lr"] = 0.003
        for name, p in theirs.items():
            p.grad = torch.tensor(g[name])
        peer.step()
        ours.step(g)
        for name, p in theirs.items():
            np.testing.assert_allclose(params[name], p.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_every_array_kind_and_in_place(impl, kind: type, options: dict, rng: np.random.Generator) -> None:
    params, grads = draw(rng, 3)
    arrays = {name: impl.writable(p, "float32") for name, p in params.items()}
    expected = {name: p.astype("float32") for name, p in params.items()}
    ours, plain = kind(arrays, **options), kind(expected, **options)
    for g in grads:
        ours.step({name: impl.array(a, "float32") for name, a in g.items()})
        plain.step({name: a.astype("float32") for name, a in g.items()})
    for name, array in arrays.items():  # the arrays that were given, not others
        impl.close(array, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_resumed_steps_are_the_same_bits(kind: type, options: dict, rng: np.random.Generator) -> None:
    params, grads = draw(rng, 6)
    through = {name: p.copy() for name, p in params.items()}
    optimizer = kind(through, **options)
    first = kind(params, **options)
    for g in grads[:3]:
        optimizer.step(g)
        first.step(g)
    second = kind(params, **options)
    second.load_state_dict(first.state_dict())
    for g in grads[3:]:
        optimizer.step(g)
        second.step(g)
    assert all(params[name].tobytes() == p.tobytes() for name, p in through.items())


def test_a_state_is_a_copy(rng: np.random.Generator) -> None:
    params, grads = draw(rng, 2)
    optimizer = SGD(params, lr=0.1)
    optimizer.step(grads[0])
    state = optimizer.state_dict()
    kept = {name: a.copy() for name, a in state.items()}
    optimizer.step(grads[1])
    assert all(np.array_equal(state[name], a) for name, a in kept.items())


def test_gradients_are_not_written(rng: np.random.Generator) -> None:
    params, (g,) = draw(rng, 1)
    before = {name: a.copy() for name, a in g.items()}
    for optimizer in (SGD(params, lr=0.1, weight_decay=0.1), Adam(params, weight_decay=0.1)):
        optimizer.step(g)
    assert all(np.array_equal(g[name], a) for name, a in before.items())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"b": None}, ValueError, "no gradient for b"),
        ({"c": np.ones(2)}, ValueError, "no parameter for c"),
        ({"b": np.ones(3)}, ValueError, r"'b' must have shape \(2,\), got \(3,\)"),
        ({"b": [1.0, 2.0]}, TypeError, "'b' must be an array"),
        ({"b": np.ones(2, complex)}, TypeError, "'b' must be of real numbers, got complex128"),
    ],
)
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_wrong_gradient_moves_nothing(kind: type, change: dict, error: type, said: str) -> None:
    params = {"a": np.ones(2), "b": np.ones(2)}
    optimizer = kind(params, lr=0.1)
    with pytest.raises(error, match=said):
        optimizer.step({"a": np.ones(2), "b": np.ones(2)} | change)
    assert all(np.array_equal(p, np.ones(2)) for p in params.values())
    assert optimizer.steps == 0


def test_a_gradient_of_another_owner() -> None:
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match="lives elsewhere"):
        SGD({"a": np.ones(2)}, lr=0.1).step({"a": strict.ones(2)})


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda p: SGD(p, lr=-0.1), ValueError, "lr must be at least 0, got -0.1"),
        (lambda p: SGD(p, lr="fast"), TypeError, "lr must be a real number"),
        (lambda p: SGD(p, lr=float("nan")), ValueError, "lr must be finite"),
        (lambda p: SGD(p, lr=0.1, momentum=-1), ValueError, "momentum"),
        (lambda p: SGD(p, lr=0.1, weight_decay=-1), ValueError, "weight_decay"),
        (lambda p: SGD(p, lr=0.1, momentum=0, nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda p: Adam(p, betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be at least 0 and below 1, got 1"),
        (lambda p: Adam(p, betas=0.9), ValueError, "betas must be a pair"),
        (lambda p: Adam(p, eps=-1.0), ValueError, "eps"),
        (lambda p: Adam({}), ValueError, "params is empty"),
        (lambda p: Adam({"n": np.arange(3)}), TypeError, "'n' must be floating or complex, got int64"),
        (lambda p: Adam({"n": [1.0]}), TypeError, "'n' must be an array"),
        (lambda p: SGD({"n": np.float32(1.0)}, lr=0.1), TypeError, "'n' must be an array, which can be changed"),
    ],
)
def test_wrong_arguments(make, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        make({"p": np.ones(2)})


def test_a_state_of_another_kind_or_shape() -> None:
    optimizer = SGD({"p": np.ones(2)}, lr=0.1)
    with pytest.raises(ValueError, match=r"no state of SGD.*mean\.p"):
        optimizer.load_state_dict(Adam({"p": np.ones(2)}).state_dict())
    with pytest.raises(ValueError, match=r"velocity\.p \(3,\) \(expected \(2,\)\)"):
        optimizer.load_state_dict(SGD({"p": np.ones(3)}, lr=0.1).state_dict())


# ------------------------------------------------------------------------------------------------------- half precision
HALVES = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


@HALVES
@pytest.mark.parametrize("size", [1e-6, 3e-4, 1.0, 6e4])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_half_parameters_are_updated_in_float32(
    kind: type, options: dict, size: float, dtype: str, rng: np.random.Generator
) -> None:
    """Each step is that of float32, from the rounded parameter; squares that float16 cannot hold do no harm."""
    params, grads = draw(rng, 6)
    ours = {name: p.astype(numpy_dtype(dtype)) for name, p in params.items()}
    wide = {name: p.astype("float32") for name, p in ours.items()}
    optimizer, float32 = kind(ours, **options), kind(wide, **options)
    for g in grads:
        halves = {name: np.clip(a * size, -6e4, 6e4).astype(numpy_dtype(dtype)) for name, a in g.items()}
        optimizer.step(halves)
        float32.step({name: a.astype("float32") for name, a in halves.items()})
        for name, p in ours.items():
            assert p.dtype == numpy_dtype(dtype)
            with np.errstate(over="ignore"):
                wide[name][...] = wide[name].astype(p.dtype)
            np.testing.assert_array_equal(p.astype("float32"), wide[name])
    assert all(a.dtype == np.float32 for name, a in optimizer.state_dict().items() if name != "steps")


@HALVES
def test_adam_trains_a_half_network(dtype: str) -> None:
    net = Linear(4, 2, rng=0).map_arrays(lambda a: a.astype(numpy_dtype(dtype)))
    x = np.random.default_rng(1).standard_normal((16, 4)).astype(numpy_dtype(dtype))
    optimizer, losses = Adam(net.params, lr=0.02), []
    for _ in range(60):
        y = net(x).astype("float32")
        losses.append(float((y**2).mean()))
        net.backward((y / y.size).astype(numpy_dtype(dtype)))
        optimizer.step(net.grads)
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("impl_dtype", ["float16", "bfloat16"])
def test_half_parameters_on_a_stand_in_for_cupy(impl_dtype: str) -> None:
    dtype = numpy_dtype(impl_dtype)
    with standin_cupy.installed() as cupy:
        p = cupy.asarray(np.ones(3, dtype))
        optimizer = Adam({"p": p}, lr=0.5, weight_decay=0.1)
        optimizer.step({"p": cupy.asarray(np.full(3, 1e-4, dtype))})
        assert p.dtype == dtype
        np.testing.assert_array_equal(p.get().astype("float32"), np.full(3, 0.5))


@HALVES
def test_a_state_of_half_moments_is_taken(dtype: str) -> None:
    """Moments that are stored in the parameter's own dtype."""
    p = np.ones(3, numpy_dtype(dtype))
    optimizer = Adam({"p": p})
    old = {
        "steps": np.array([4]),
        "mean.p": np.full(3, 0.5, numpy_dtype(dtype)),
        "square.p": np.full(3, 0.25, numpy_dtype(dtype)),
    }
    optimizer.load_state_dict(old)
    new = optimizer.state_dict()
    assert new["mean.p"].dtype == new["square.p"].dtype == np.float32
    assert (new["mean.p"] == 0.5).all()
    assert (new["square.p"] == 0.25).all()
    assert optimizer.steps == 4


# -------------------------------------------------------------------------------------------------- replaced parameters
def network() -> Sequential:
    return Sequential(Conv(1, 2, 3, rng=0), BatchNorm(2), Flatten(), Linear(8, 3, rng=1))


def backward(net: Sequential) -> dict[str, np.ndarray]:
    y = net(np.ones((2, 1, 4, 4), "float32") * np.arange(2, dtype="float32")[:, None, None, None])
    net.backward(np.ones_like(y))
    return net.grads


def by_name(net: Sequential) -> dict[str, np.ndarray]:
    return dict(net.params)


@pytest.mark.parametrize("kind", [lambda p: Adam(p), lambda p: SGD(p, lr=0.1)])
@pytest.mark.parametrize("given", [lambda net: net.params, by_name])
@pytest.mark.parametrize(
    "replace",
    [
        lambda net: net.map_arrays(np.copy),
        lambda net: net.map_arrays(lambda a: a.astype("float64")),
        lambda net: net[3].map_arrays(np.copy),
        lambda net: net.map_arrays(lambda a: np.copy(a) if a.ndim == 4 else a),
    ],
)
def test_an_optimizer_of_replaced_parameters_says_so(kind, given, replace) -> None:
    net = network()
    old = given(net)
    optimizer = kind(old)
    optimizer.step(backward(net))
    replace(net)
    grads = backward(net)
    before = {name: p.copy() for name, p in (old | by_name(net)).items()}
    with pytest.raises(RuntimeError, match=r"parameter '\d\.weight' of the layer is another array now.*make a new"):
        optimizer.step(grads)
    assert optimizer.steps == 1
    assert all(np.array_equal(p, before[name]) for name, p in by_name(net).items())
    new = type(optimizer)(net.params, lr=0.1)
    if all(p.dtype == np.float32 for p in net.params.values()):
        new.load_state_dict(optimizer.state_dict())
    new.step(grads)


def test_a_part_of_the_parameters_is_watched_too() -> None:
    net = network()
    optimizer = SGD({f"net.{n}": p for n, p in net.params.items() if n.endswith("bias")}, lr=0.1)

    def biases() -> dict[str, np.ndarray]:
        return {f"net.{n}": g for n, g in backward(net).items() if n.endswith("bias")}

    optimizer.step(biases())
    net.map_arrays(np.copy)
    with pytest.raises(RuntimeError, match=r"'net\.0\.bias' of the layer is another array now \(3 of 3 are\)"):
        optimizer.step(biases())


def test_an_optimizer_made_from_parameters_of_before_says_so() -> None:
    net = network()
    for params in (net.params, by_name(net)):
        net.map_arrays(np.copy)
        with pytest.raises(RuntimeError, match="another array now"):
            Adam(params).step(backward(net))


def test_to_another_backend() -> None:
    net = network()
    optimizer = Adam(net.params)
    with standin_cupy.installed() as cupy, backends.using("numpy"):
        net.map_arrays(cupy.asarray)
        with pytest.raises(RuntimeError, match=r"After to\(\) or map_arrays\(\) make a new Adam"):
            optimizer.step({name: cupy.asarray(p) for name, p in network().params.items()})
        on_gpu = SGD(net.params, lr=0.1)
        net.to("numpy")
        with pytest.raises(RuntimeError, match="another array now"):
            on_gpu.step(backward(net))


def test_arrays_that_come_back_are_stepped_again() -> None:
    """An evaluation by averaged weights puts others in their place for a while."""
    net = network()
    for params in (net.params, by_name(net)):
        optimizer, own, averaged = SGD(params, lr=0.1), net.state_dict(), copy.deepcopy(net).state_dict()
        place = {id(a): name for name, a in own.items()} | {id(a): name for name, a in averaged.items()}
        net.map_arrays(lambda a, to=averaged, place=place: to[place[id(a)]])
        net.map_arrays(lambda a, to=own, place=place: to[place[id(a)]])
        before = net.params["3.bias"].copy()
        optimizer.step(backward(net))
        assert not np.array_equal(net.params["3.bias"], before)


def test_loading_keeps_an_optimizer_valid() -> None:
    net = network()
    optimizers = [SGD(net.params, lr=0.1), SGD(by_name(net), lr=0.1)]
    net.load_state_dict(network().state_dict())
    net.map_arrays(lambda a: a)
    net.params["3.bias"] = np.ones(3)
    for optimizer in optimizers:
        before = net.params["3.bias"].copy()
        optimizer.step(backward(net))
        assert not np.array_equal(net.params["3.bias"], before)


def test_arrays_of_no_layer_are_not_watched() -> None:
    """An array whose address a replaced one had before is another array."""
    for _ in range(50):
        layer = Linear(3, 3)
        layer.map_arrays(np.copy)
        del layer
        gc.collect()
        SGD({"p": np.ones((3, 3), "float32")}, lr=0.1).step({"p": np.ones((3, 3), "float32")})


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_of_an_optimizer_with_its_network(twin) -> None:
    original = network()
    net, optimizer = twin((original, Adam(original.params)))
    before = by_name(net)["3.bias"].copy()
    optimizer.step(backward(net))
    assert not np.array_equal(net.params["3.bias"], before)
    net.map_arrays(np.copy)
    with pytest.raises(RuntimeError, match="another array now"):
        optimizer.step(backward(net))
    params = twin(net.params)
    assert type(params) is dict
    assert all(np.array_equal(p, net.params[name]) and p is not net.params[name] for name, p in params.items())


# ------------------------------------------------------------------------------------------------------- CPU kernels
def layouts(p: np.ndarray) -> dict[str, np.ndarray]:
    """The same numbers in arrays that a kernel takes, and in such that it leaves to the portable code."""
    wide = np.zeros((*p.shape[:-1], 2 * p.shape[-1]), p.dtype)
    unaligned = np.zeros(p.nbytes + 1, np.uint8)[1:].view(p.dtype).reshape(p.shape)
    made = {"C": p.copy(), "F": np.asfortranarray(p), "strided": wide[..., ::2], "reversed": p[::-1].copy()[::-1]}
    for array in (made["strided"], made["reversed"], unaligned):
        array[...] = p
    return {**made, "unaligned": unaligned}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_kernels_give_the_portable_bits(kind: type, options: dict, dtype: str, rng: np.random.Generator) -> None:
    start = rng.standard_normal((9, 1000)).astype(numpy_dtype(dtype))
    ours = {**layouts(start), "one": start[0, :1].copy(), "none": start[:0].copy(), "number": np.array(start[0, 0])}
    theirs = {name: p.copy() for name, p in ours.items()}
    compiled, portable = kind(ours, **options), kind(theirs, **options)
    for _ in range(3):
        grads = {name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in ours.items()}
        grads["C"][0, :5] = [0.0, -0.0, np.inf, -np.inf, np.nan]
        grads["F"] = np.asfortranarray(grads["F"])
        grads["strided"] = grads["strided"][::-1, ::-1]
        for g in grads.values():
            g.flags.writeable = False
        compiled.step(grads)
        with kernels.mode("off"):
            portable.step(grads)
    for name, p in ours.items():
        np.testing.assert_array_equal(p.astype("float64"), theirs[name].astype("float64"), err_msg=name)
    for name, array in compiled.state_dict().items():
        np.testing.assert_array_equal(array, portable.state_dict()[name], err_msg=name)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_gradient_in_the_memory_of_its_parameter(kind: type, options: dict) -> None:
    results = []
    for chosen in ("auto", "off"):
        memory = np.arange(1.0, 101.0)
        with kernels.mode(chosen):
            kind({"p": memory[3:]}, **options).step({"p": memory[:-3]})
        results.append(memory)
    np.testing.assert_array_equal(*results)


@on_cpu_kernels
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: (p[::2], np.ones(50)), "not in C order"),
        (lambda p: (p[3:], p[:-3]), "in the memory of its parameter"),
        (lambda p: (p + 1j, p + 1j), "complex"),
    ],
    ids=["strided", "overlap", "complex"],
)
def test_a_kernel_that_is_required_updates_all_parameters_or_none(kind: type, options: dict, make, reason) -> None:
    params = {"first": np.ones(5, np.float32), "last": make(np.arange(100.0))[0]}
    before = copy.deepcopy(params)
    grads = {
        "first": np.ones(5, np.float32),
        "last": make(params["last"].base if reason[:2] == "in" else np.ones(100))[1],
    }
    optimizer = kind(params, **options)
    with kernels.mode("require"), pytest.raises(kernels.KernelUnavailable, match=reason):
        optimizer.step(grads)
    assert optimizer.steps == 0
    for name, p in params.items():
        np.testing.assert_array_equal(p, before[name])
    optimizer.step(grads)
    assert all(np.any(p != before[name]) for name, p in params.items())
    with kernels.mode("require"):
        kind({"first": params["first"]}, **options).step({"first": grads["first"]})


def test_a_read_only_parameter_is_refused() -> None:
    p = np.ones(3, np.float32)
    optimizer = SGD({"p": p}, lr=0.1)
    p.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.step({"p": np.ones(3, np.float32)})


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_an_update_rule_of_ones_own_is_called(kind: type) -> None:
    class Half(kind):
        def _update(self, b, name, p, g, lr):  # type: ignore[no-untyped-def]
            super()._update(b, name, p, g / 2, lr)

    class Same(Half):
        pass

    for number in (np.float32, np.float64):
        given, expected = np.ones(5, number), np.ones(5, number)
        Same({"p": given}, lr=0.5).step({"p": np.arange(5, dtype=number)})
        kind({"p": expected}, lr=0.5).step({"p": np.arange(5, dtype=number) / 2})
        np.testing.assert_array_equal(given, expected)
