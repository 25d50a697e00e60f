"""`cnnlayers.autograd` at work: random graphs beside PyTorch, and networks that learn."""

from __future__ import annotations

import numpy as np
import pytest

from cnnlayers import backends, kernels, optim
from cnnlayers.autograd import Tensor, concat, no_grad
from cnnlayers.autograd import functional as TF

from . import standin_cupy

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

SHAPES = [(2, 3), (3,), (1, 3), (2, 1), (), (4, 2, 3), (3, 2)]
BINARY = [
    ("add", lambda x, y: x + y, lambda t, x, y: x + y),
    ("subtract", lambda x, y: x - y, lambda t, x, y: x - y),
    ("multiply", lambda x, y: x * y, lambda t, x, y: x * y),
    ("divide", lambda x, y: x / (1.5 + y * y), lambda t, x, y: x / (1.5 + y * y)),
    ("power", lambda x, y: (x * x + 0.5) ** y, lambda t, x, y: (x * x + 0.5) ** y),
    ("matmul", lambda x, y: x @ y, lambda t, x, y: x @ y),
    ("concat", lambda x, y: concat([x, y], axis=-1), lambda t, x, y: t.cat([x, y], -1)),
    (
        "linear",
        lambda x, y: TF.linear(x, y.reshape(1, -1)),
        lambda t, x, y: t.nn.functional.linear(x, y.reshape(1, -1)),
    ),
]
UNARY = [
    ("double use", lambda x: x * x + x, lambda t, x: x * x + x),
    ("exp", lambda x: (-x).exp(), lambda t, x: (-x).exp()),
    ("log", lambda x: (abs(x) + 1).log(), lambda t, x: (abs(x) + 1).log()),
    ("relu", lambda x: TF.relu(x), lambda t, x: t.relu(x)),
    ("sum", lambda x: x.sum(axis=0), lambda t, x: x.sum(0)),
    ("mean", lambda x: x.mean(axis=-1, keepdims=True), lambda t, x: x.mean(-1, keepdim=True)),
    ("max", lambda x: x.max(axis=-1, keepdims=True, ties="split"), lambda t, x: x.amax(-1, keepdim=True)),
    ("min", lambda x: x.min(axis=(0, 1), ties="split"), lambda t, x: x.amin((0, 1))),
    ("transpose", lambda x: x.T, lambda t, x: x.permute(*reversed(range(x.ndim)))),
    ("reshape", lambda x: x.reshape(-1), lambda t, x: x.reshape(-1)),
    ("rows", lambda x: x[[0, 0, -1]], lambda t, x: x[[0, 0, -1]]),
    ("slice", lambda x: x[..., :2], lambda t, x: x[..., :2]),
    ("new axis", lambda x: x[None], lambda t, x: x[None]),
    ("mask", lambda x: x * (x > 0.1), lambda t, x: x * (x > 0.1)),
    ("layer norm", lambda x: TF.layer_norm(x, x.shape[-1:]), lambda t, x: t.layer_norm(x, x.shape[-1:])),
    ("detached", lambda x: x * x.detach(), lambda t, x: x * x.detach()),
]

steps = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=12
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(steps=steps, seed=st.integers(0, 10**6))
def test_random_graphs_beside_pytorch(steps, seed) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    leaves = [rng.standard_normal(s) for s in SHAPES]
    ours = [Tensor(a, requires_grad=True) for a in leaves]
    theirs = [torch.tensor(a, requires_grad=True) for a in leaves]
    made, beside = list(ours), list(theirs)
    for which, i, j in steps:
        if which % 2:
            _, op, its = BINARY[which // 2 % len(BINARY)]
            at = (i % len(made), j % len(made))
        else:
            _, op, its = UNARY[which // 2 % len(UNARY)]
            at = (i % len(made),)
            if not made[at[0]].ndim:  # PyTorch lets a number have an axis
                continue
        try:
            expected = torch.tanh(its(torch, *(beside[k] for k in at)))
        except (RuntimeError, IndexError):  # shapes that do not go together
            continue
        if expected.numel() > 10_000:
            continue
        made.append(op(*(made[k] for k in at)).tanh())
        beside.append(expected)
        np.testing.assert_allclose(made[-1].data, expected.detach().numpy(), rtol=1e-9, atol=1e-12)
    sum((y * y).sum() for y in made[len(leaves) // 2 :]).backward()
    sum((y * y).sum() for y in beside[len(leaves) // 2 :]).backward()
    for t, theirs_ in zip(ours, theirs, strict=True):
        if theirs_.grad is None:
            assert t.grad is None
        else:
            np.testing.assert_allclose(t.grad, theirs_.grad.numpy(), rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------------------------------------------ it can be used
def digits(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 8×8 pictures of four strokes: like digits, and there without a download."""
    strokes = np.zeros((4, 8, 8), "float32")
    strokes[0, 1:7, 3:5] = strokes[1, 3:5, 1:7] = 1
    strokes[2] = np.eye(8) + np.eye(8, k=1)
    strokes[3, [1, 6], 2:6] = strokes[3, 2:6, 1] = strokes[3, 2:6, 6] = 1
    labels = rng.integers(0, 4, n)
    return (strokes[labels] + 0.5 * rng.standard_normal((n, 8, 8))).astype("float32")[:, None], labels


@pytest.mark.parametrize("name", ["numpy", "standin"])
def test_a_small_network_learns(name, rng) -> None:
    if name == "numpy":
        learns(np, rng, steps=25, least=0.95)
    else:
        with standin_cupy.installed() as cupy, kernels.mode("off"):
            learns(cupy, rng, steps=25, least=0.95)


def learns(xp, rng, steps: int, least: float) -> None:
    x, labels = digits(96, rng)
    x, labels = xp.asarray(x), xp.asarray(labels)

    def weights(*shape):
        scale = (2 / np.prod(shape[1:])) ** 0.5
        return Tensor(xp.asarray((scale * rng.standard_normal(shape)).astype("float32")), requires_grad=True)

    p = {"conv": weights(8, 1, 3, 3), "linear": weights(4, 8 * 4 * 4)}
    p["gamma"] = Tensor(xp.ones(8, dtype="float32"), requires_grad=True)
    p["beta"] = Tensor(xp.zeros(8, dtype="float32"), requires_grad=True)
    mean, var = xp.zeros(8, dtype="float32"), xp.ones(8, dtype="float32")

    def scores(pictures, training):
        h = TF.conv(pictures, p["conv"], padding="same")
        h = TF.batch_norm(h, p["gamma"], p["beta"], mean, var, training=training, momentum=0.3)
        h = TF.max_pool(TF.relu(h), 2)
        return TF.linear(h.reshape(len(h), -1), p["linear"])

    adam = optim.Adam({k: t.data for k, t in p.items()}, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = TF.softmax_cross_entropy(scores(x, True), labels)
        loss.backward()
        adam.step({k: t.grad for k, t in p.items()})
        losses.append(float(loss))
        for t in p.values():
            t.grad = None
    assert losses[-1] < 0.2 * losses[0]
    fresh, truth = digits(200, rng)
    with no_grad():
        found = scores(xp.asarray(fresh), False)
    assert not found.requires_grad
    assert (backends.to_numpy(found.data).argmax(1) == truth).mean() >= least


def test_the_same_bits_every_time(rng) -> None:
    x, labels = digits(32, rng)
    w = [rng.standard_normal(s).astype("float32") * 0.3 for s in ((8, 1, 3, 3), (4, 512))]

    def grads() -> list[bytes]:
        a, b = (Tensor(v, requires_grad=True) for v in w)
        h = TF.conv(x, a, padding="same")
        h = (h + TF.relu(h) * 0.5).reshape(32, -1)
        TF.softmax_cross_entropy(h @ b.T, labels).backward()
        return [a.grad.tobytes(), b.grad.tobytes()]

    assert grads() == grads()


def test_a_residual_block_beside_pytorch(rng) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn import functional as tf

    arrays = [rng.standard_normal(s) for s in ((2, 4, 6, 6), (4, 4, 3, 3), (4,), (4,), (4, 4, 3, 3))]
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]

    x, w1, gamma, beta, w2 = ours
    h = TF.relu(TF.batch_norm(TF.conv(x, w1, padding=1), gamma, beta, training=True))
    loss = (TF.avg_pool(TF.relu(x + TF.conv(h, w2, padding=1)), 2) ** 2).mean()
    loss.backward()

    x, w1, gamma, beta, w2 = theirs
    h = torch.relu(tf.batch_norm(tf.conv2d(x, w1, padding=1), None, None, gamma, beta, training=True))
    expected = (tf.avg_pool2d(torch.relu(x + tf.conv2d(h, w2, padding=1)), 2) ** 2).mean()
    expected.backward()

    np.testing.assert_allclose(float(loss), expected.item(), rtol=1e-12)
    for t, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(t.grad, other.grad.numpy(), rtol=1e-8, atol=1e-12)
