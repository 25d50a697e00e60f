"""Optimisers: PyTorch's steps, in place, on every array kind; nothing moves where an argument is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from cnnlayers.optim import SGD, Adam

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
        (lambda p: Adam({"n": np.arange(3)}), TypeError, "'n' must be floating, got int64"),
        (lambda p: Adam({"n": [1.0]}), TypeError, "'n' must be an array"),
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
