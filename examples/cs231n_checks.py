"""What the notebooks of CS231n's assignment on convolutional networks check, as one program on this library.

    python examples/cs231n_checks.py

Each backward pass is compared with differences of its forward pass, the variants of a layer with each other, the norms
with the statistics that they promise, and a small network is trained until it knows its pictures by heart. The
functions have the course's names, so with `from cnnlayers.cs231n import *` a notebook of the course runs on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import cs231n as c

Array = Any
CONV, POOL = {"stride": 1, "pad": 1}, {"pool_height": 2, "pool_width": 2, "stride": 2}
CONV_KINDS, POOL_KINDS = ("naive", "im2col", "strides", "fast"), ("naive", "reshape", "im2col", "fast")


def relative_error(a: Array, b: Array) -> float:
    return float(np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b))))


def numerical_gradient(f: Callable[[], Array], x: Array, dout: Array, h: float = 1e-5) -> Array:
    """d sum(f() * dout) / dx by central differences; x is changed in place, and put back."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + h
        above = f()
        x[i] = old - h
        below = f()
        x[i] = old
        gradient[i] = np.sum((above - below) * dout) / (2 * h)
    return gradient


def gradient_error(got: Array, expected: Array) -> float:
    """The largest difference, against the largest gradient. A bias before a batch norm has the gradient 0."""
    return float(abs(got - expected).max() / max(abs(expected).max(), 1e-3))


def report(name: str, value: float, limit: float) -> None:
    print(f"{name:48}{value:10.2e}  {'ok' if value < limit else 'TOO LARGE'}")
    if not value < limit:
        raise SystemExit(f"{name}: {value:.2e} is not below {limit:.0e}")


# ------------------------------------------------------------------------------------------------------------ gradients
def check_gradients(rng: np.random.Generator) -> None:
    x, w, b = rng.standard_normal((2, 3, 6, 6)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    rows, v, bias = rng.standard_normal((4, 3, 2)), rng.standard_normal((6, 5)), rng.standard_normal(5)
    flat, gamma, beta = 5 * rng.standard_normal((6, 4)) + 12, rng.standard_normal(4), rng.standard_normal(4)
    planes = rng.standard_normal((2, 4, 3, 3)) + 2
    train, drop = {"mode": "train"}, {"mode": "train", "p": 0.7, "seed": 1}
    for name, forward, backward, arrays, rest in (
        ("affine", c.affine_forward, c.affine_backward, (rows, v, bias), ()),
        ("relu", c.relu_forward, c.relu_backward, (flat - 12,), ()),
        ("affine_relu", c.affine_relu_forward, c.affine_relu_backward, (rows, v, bias), ()),
        ("batchnorm", c.batchnorm_forward, c.batchnorm_backward, (flat, gamma, beta), (train,)),
        ("batchnorm, alternative", c.batchnorm_forward, c.batchnorm_backward_alt, (flat, gamma, beta), (train,)),
        ("layernorm", c.layernorm_forward, c.layernorm_backward, (flat, gamma, beta), ({},)),
        ("dropout", c.dropout_forward, c.dropout_backward, (flat,), (drop,)),
        ("conv", c.conv_forward_naive, c.conv_backward_naive, (x, w, b), (CONV,)),
        ("max pool", c.max_pool_forward_naive, c.max_pool_backward_naive, (x,), (POOL,)),
        (
            "spatial batchnorm",
            c.spatial_batchnorm_forward,
            c.spatial_batchnorm_backward,
            (planes, gamma, beta),
            (train,),
        ),
        (
            "spatial groupnorm",
            c.spatial_groupnorm_forward,
            c.spatial_groupnorm_backward,
            (planes, gamma, beta),
            (2, {}),
        ),
        ("conv_relu", c.conv_relu_forward, c.conv_relu_backward, (x, w, b), (CONV,)),
        ("conv_relu_pool", c.conv_relu_pool_forward, c.conv_relu_pool_backward, (x, w, b), (CONV, POOL)),
        ("conv_bn_relu", c.conv_bn_relu_forward, c.conv_bn_relu_backward, (x, w, b, gamma, beta), (CONV, train)),
    ):
        check_gradient(name, forward, backward, arrays, rest, rng)


def check_gradient(name: str, forward: Any, backward: Any, arrays: Any, rest: Any, rng: np.random.Generator) -> None:
    out, cache = forward(*arrays, *rest)
    dout = rng.standard_normal(out.shape)
    found = backward(dout, cache)
    gradients = found if isinstance(found, tuple) else (found,)
    worst = 0.0
    for array, gradient in zip(arrays, gradients, strict=True):
        expected = numerical_gradient(lambda: forward(*arrays, *rest)[0], array, dout)
        worst = max(worst, gradient_error(gradient, expected))
    report(f"gradients of {name}", worst, 1e-6)


def check_losses(rng: np.random.Generator) -> None:
    scores, labels = 1e-3 * rng.standard_normal((50, 10)), rng.integers(0, 10, 50)
    for name, loss, first in (("svm_loss", c.svm_loss, 9.0), ("softmax_loss", c.softmax_loss, np.log(10))):
        value, dscores = loss(scores, labels)
        report(f"{name} of scores near 0, against {first:.3f}", abs(value - first), 2e-2)
        expected = numerical_gradient(lambda loss=loss: np.array(loss(scores, labels)[0]), scores, np.array(1.0))
        report(f"gradient of {name}", gradient_error(dscores, expected), 1e-5)


# ----------------------------------------------------------------------------------------------- variants, statistics
def check_variants(rng: np.random.Generator) -> None:
    """The course's slow and fast implementations are one here, under every name."""
    x, w, b = rng.standard_normal((4, 3, 9, 9)), rng.standard_normal((5, 3, 3, 3)), rng.standard_normal(5)
    for stem, kinds, arguments in (
        ("conv", CONV_KINDS, (x, w, b, {"stride": 2, "pad": 1})),
        ("max_pool", POOL_KINDS, (x[:, :, :8, :8], POOL)),
    ):
        results = []
        for kind in kinds:
            out, cache = getattr(c, f"{stem}_forward_{kind}")(*arguments)
            found = getattr(c, f"{stem}_backward_{kind}")(np.ones_like(out), cache)
            results.append([out, *(found if isinstance(found, tuple) else (found,))])
        worst = max(relative_error(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
        report(f"{stem}: {', '.join(kinds)} agree", worst, 1e-12)


def check_statistics(rng: np.random.Generator) -> None:
    """In training the norms give the mean beta and the deviation gamma; in test mode, by running statistics, nearly."""
    gamma, beta = np.array([1.0, 2.0, 3.0]), np.array([11.0, 12.0, 13.0])
    param = {"mode": "train"}
    weight = rng.standard_normal((5, 3))
    for _ in range(60):
        a = np.maximum(rng.standard_normal((200, 5)), 0) @ weight
        out, _ = c.batchnorm_forward(a, gamma, beta, param)
    report("batchnorm, training: mean", abs(out.mean(axis=0) - beta).max(), 1e-10)
    report("batchnorm, training: deviation", abs(out.std(axis=0) - gamma).max(), 1e-4)
    param["mode"] = "test"
    out, _ = c.batchnorm_forward(np.maximum(rng.standard_normal((5000, 5)), 0) @ weight, gamma, beta, param)
    report("batchnorm, test: mean", abs(out.mean(axis=0) - beta).max(), 0.3)
    report("batchnorm, test: deviation", abs(out.std(axis=0) - gamma).max(), 0.3)

    x = 4 * rng.standard_normal((2, 6, 4, 5)) + 10
    out, _ = c.spatial_batchnorm_forward(x, np.ones(6), np.zeros(6), {"mode": "train"})
    report("spatial batchnorm: mean of a channel", abs(out.mean(axis=(0, 2, 3))).max(), 1e-10)
    out, _ = c.spatial_groupnorm_forward(x, np.ones(6), np.zeros(6), 2, {})
    report("spatial groupnorm: mean of a group", abs(out.reshape(4, -1).mean(axis=1)).max(), 1e-10)
    report("spatial groupnorm: deviation of a group", abs(out.reshape(4, -1).std(axis=1) - 1).max(), 1e-4)
    out, _ = c.layernorm_forward(x.reshape(2, -1), np.ones(120), np.zeros(120), {})
    report("layernorm: mean of a row", abs(out.mean(axis=1)).max(), 1e-10)

    kept = [float((c.dropout_forward(np.ones((300, 300)), {"mode": "train", "p": p, "seed": 0})[0] > 0).mean()) - p
            for p in (0.25, 0.4, 0.7)]  # fmt: skip
    report("dropout: share that is kept, less p", max(map(abs, kept)), 1e-2)


# --------------------------------------------------------------------------------------------------------- the network
def check_network() -> None:
    np.random.seed(231)  # noqa: NPY002  (the course draws from the global state, and so does its network here)
    rng = np.random.default_rng(231)
    x, y = rng.standard_normal((50, 3, 8, 8)), rng.integers(0, 10, 50)
    model = c.ThreeLayerConvNet(input_dim=(3, 8, 8))
    report("first loss, against log 10", abs(model.loss(x, y)[0] - np.log(10)), 1e-2)
    model.reg = 0.5
    assert model.loss(x, y)[0] > np.log(10), "regularisation adds to the loss"

    sizes = {"input_dim": (3, 6, 6), "num_filters": 3, "hidden_dim": 7, "filter_size": 3}
    model = c.ThreeLayerConvNet(**sizes, weight_scale=0.3, reg=0.1, dtype=np.float64)
    few, labels = x[:3, :, :6, :6], y[:3]
    _, grads = model.loss(few, labels)
    for name, w in model.params.items():
        expected = numerical_gradient(lambda: np.array(model.loss(few, labels)[0]), w, np.array(1.0), 1e-6)
        report(f"network: gradient of {name}", gradient_error(grads[name], expected), 1e-4)

    model = c.ThreeLayerConvNet((3, 8, 8), 8, 3, 50, weight_scale=0.1, dtype=np.float64)
    for _ in range(60):
        _, grads = model.loss(x, y)
        for name in model.params:
            model.params[name] = model.params[name] - 0.1 * grads[name]
    wrong = float((model.loss(x).argmax(axis=1) != y).mean())
    report("50 pictures by heart: share that is wrong", wrong, 0.05)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = np.random.default_rng(0)
    check_gradients(rng)
    check_losses(rng)
    check_variants(rng)
    check_statistics(rng)
    check_network()
    print("all checks passed")


if __name__ == "__main__":
    main()
