"""The rows of docs/how-to/migration.md: what a row's code is given, and what plain loops expect of it.

ROWS has for each table, for each row of it in order, a function of (rng, ndim) that gives the variables and the
expected results by name. An expected value may be a function of all that the code has found (dropout: which values
it drops).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .reference import conv, cs231n_course, dense, norm, pool

Given = dict[str, Any]
Row = Callable[[np.random.Generator, int], tuple[Given, Given]]
SIZES = (6, 5, 4)


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def each(function: Callable[[float], float], *arrays: np.ndarray) -> np.ndarray:
    """A function of numbers, number by number."""
    y = np.empty(arrays[0].shape)
    for place in np.ndindex(*y.shape):
        y[place] = function(*(float(a[place]) for a in arrays))
    return y


# --------------------------------------------------------------------------------------------------------- convolutions
def convolution(rng: np.random.Generator, ndim: int, **changed: Any) -> tuple[Given, Given]:
    """Forward and all gradients. `changed`: other options, `extra` cells of padding behind."""
    stride, pad, dilation, groups, extra = (
        changed.get(name, value)
        for name, value in (("stride", 2), ("pad", 1), ("dilation", 1), ("groups", 2), ("extra", 0))
    )
    x, filters = noise(rng, 2, 4, *SIZES[:ndim]), 6
    W, b = noise(rng, filters, 4 // groups, *(3, 2, 3)[:ndim]), noise(rng, filters)
    op = conv.Conv(x.shape[2:], W.shape[2:], (stride,) * ndim, ((pad, pad + extra),) * ndim, (dilation,) * ndim, groups)
    gy = noise(rng, 2, filters, *op.out)
    expected = {
        "y": conv.maps(op, x, W) + b.reshape(-1, *(1,) * ndim),
        "gx": conv.image(op, gy, W),
        "gW": conv.dweight(op, x, gy),
        "gb": conv.dbias(gy),
    }
    given = {"x": x, "W": W, "b": b, "gy": gy, "groups": groups}
    options = {"stride": stride, "pad": pad, "dilation": dilation}  # where nothing is added to them, one per axis
    return given | {name: n if extra else (n,) * ndim for name, n in options.items()}, expected


def deconvolution(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x, W, b = noise(rng, 2, 4, *(3, 3, 2)[:ndim]), noise(rng, 4, 3, *(3, 2, 3)[:ndim]), noise(rng, 6)
    lengths = tuple((n - 1) * 2 + k - 2 + 1 for n, k in zip(x.shape[2:], W.shape[2:], strict=True))
    op = conv.Conv(lengths, W.shape[2:], (2,) * ndim, ((1, 1),) * ndim, (1,) * ndim, 2)
    gy = noise(rng, 2, 6, *lengths)
    given = {"x": x, "W": W, "b": b, "gy": gy, "stride": 2, "pad": 1, "dilation": 1, "groups": 2, "output_padding": 1}
    expected = {
        "y": conv.image(op, x, W) + b.reshape(-1, *(1,) * ndim),
        "gx": conv.maps(op, gy, W),
        "gW": conv.dweight(op, gy, x),
        "gb": conv.dbias(gy),
    }
    return given, expected


def depthwise(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x, W, b = noise(rng, 2, 3, 6, 5), noise(rng, 2, 3, 3, 2), noise(rng, 6)
    op = conv.Conv((6, 5), (3, 2), (2, 2), ((1, 1),) * 2, (1, 1))
    y = np.concatenate([conv.maps(op, x[:, c : c + 1], W[:, c : c + 1]) for c in range(3)], axis=1)
    return {"x": x, "W": W, "b": b, "stride": 2, "pad": 1, "C": 3}, {"y": y + b.reshape(-1, 1, 1)}


def unpooling(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x = noise(rng, 2, 3, 2, 3)
    return {"x": x, "ksize": 2, "C": 3}, {"y": pool.sum_pool_backward(x, windows((4, 6), 2, 2, 0))}


# -------------------------------------------------------------------------------------------------------------- pooling
def windows(lengths: tuple[int, ...], ksize: int, stride: int, pad: int, cover_all: bool = False) -> pool.Pool:
    n = len(lengths)
    return pool.Pool(lengths, (ksize,) * n, (stride,) * n, ((pad, pad),) * n, (1,) * n, cover_all)


def pooling(kind: str, cover_all: bool = False) -> Row:
    """`kind`: "max", "include" or "exclude" (the padding, in an average's divisor)."""

    def row(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
        x = noise(rng, 2, 3, *SIZES[:ndim])
        op = windows(SIZES[:ndim], 3, 2, 1, cover_all)
        gy = noise(rng, 2, 3, *op.out)
        if kind == "max":
            y, indices = pool.max_pool(x, op)
            expected = {"y": y, "indices": indices, "gx": pool.max_pool_backward(gy, x, op)}
        else:
            include = kind == "include"
            expected = {
                "y": pool.avg_pool(x, op, include),
                "gx": pool.avg_pool_backward(gy, op, include),
            }
        return {"x": x, "gy": gy, "ksize": (3,) * ndim, "stride": (2,) * ndim, "pad": (1,) * ndim}, expected

    return row


def upsampling(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    pooled, x = noise(rng, 2, 3, 4, 6), noise(rng, 2, 3, 2, 3)
    _, indices = pool.max_pool(pooled, windows((4, 6), 2, 2, 0))
    return {"pooled": pooled, "x": x, "ksize": 2}, {"y": pool.max_unpool(x, indices, (4, 6))}


def pyramid(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x = noise(rng, 2, 3, 8, 4)
    levels = []
    for level in range(3):
        bins = 2**level
        op = pool.Pool((8, 4), (8 // bins, 4 // bins), (8 // bins, 4 // bins), ((0, 0),) * 2, (1, 1))
        levels.append(pool.max_pool(x, op)[0].reshape(2, -1))
    return {"x": x}, {"y": np.concatenate(levels, axis=1)}


# ---------------------------------------------------------------------------------------------------------------- norms
def normalised(x: np.ndarray, gy: np.ndarray, op: norm.Norm) -> Given:
    gx, ggamma, gbeta = op.backward(gy, x)
    return {"y": op.forward(x), "gx": gx, "ggamma": ggamma, "gbeta": gbeta}


def norm_given(rng: np.random.Generator, shape: tuple[int, ...], channels: int) -> Given:
    x, gy = noise(rng, *shape), noise(rng, *shape)
    gamma, beta = noise(rng, channels), noise(rng, channels)
    return {"x": x, "gy": gy, "gamma": gamma, "beta": beta, "eps": 1e-3, "decay": 0.9}


def running(given: Given, x: np.ndarray) -> Given:
    """Adds running statistics to what is given; what they become, with the unbiased variance."""
    channels, count = x.shape[1], x.size // x.shape[1]
    given["running_mean"], given["running_var"] = np.linspace(-1, 1, channels), np.linspace(1, 2, channels)
    mean, var = cs231n_course.running(x, given["running_mean"], given["running_var"])
    var = 0.9 * given["running_var"] + (var - 0.9 * given["running_var"]) * count / (count - 1)
    return {"running_mean": mean, "running_var": var}


def batch_norm(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    given = norm_given(rng, (2, 3, *SIZES[:ndim]), 3)
    x = given["x"]
    op = norm.Norm(norm.rows_of("batch", x.shape), given["gamma"], given["beta"], given["eps"])
    return given, running(given, x) | normalised(x, given["gy"], op)


def batch_norm_per_activation(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    given = norm_given(rng, (4, 2, *(3, 2, 2)[:ndim]), 1)
    x = given["x"]
    given |= {"gamma": noise(rng, *x.shape[1:]), "beta": noise(rng, *x.shape[1:])}
    statistics = running(given, x.reshape(4, -1))
    rows: dict[tuple[int, ...], norm.Row] = {}
    for place in np.ndindex(*x.shape):
        rows.setdefault(place[1:], []).append((place, place[1:]))
    op = norm.Norm(list(rows.values()), given["gamma"], given["beta"], given["eps"])
    return given, statistics | {"y": op.forward(x)}


def fixed_norm(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    given = norm_given(rng, (2, 3, *SIZES[:ndim]), 3)
    given |= {"mean": noise(rng, 3), "var": noise(rng, 3) ** 2}
    x = given["x"]
    statistics = given["mean"], given["var"]
    op = norm.Norm(norm.rows_of("batch", x.shape), given["gamma"], given["beta"], given["eps"], given=statistics)
    return given, {"y": op.forward(x)}


def group_norm(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    given = norm_given(rng, (2, 4, *SIZES[:ndim]), 4) | {"groups": 2}
    op = norm.Norm(norm.rows_of("group", given["x"].shape, 2), given["gamma"], given["beta"], given["eps"])
    return given, normalised(given["x"], given["gy"], op)


def layer_norm(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    given = norm_given(rng, (3, 5), 5)
    op = norm.Norm(norm.rows_of("trailing", (3, 5)), given["gamma"], given["beta"], given["eps"])
    return given, normalised(given["x"], given["gy"], op)


def local_response(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    """By Chainer's formula: x / (k + alpha * (the sum of the squares of n channels)) ** beta."""
    x, (n, k, alpha, beta) = noise(rng, 2, 6, *SIZES[:ndim]), (5, 2.0, 0.3, 0.75)
    y = np.empty(x.shape)
    for place in np.ndindex(*x.shape):
        near = [place[1] + i for i in range(-(n // 2), n // 2 + 1) if 0 <= place[1] + i < 6]
        squares = sum(x[(place[0], c, *place[2:])] ** 2 for c in near)
        y[place] = x[place] / (k + alpha * squares) ** beta
    return {"x": x, "n": n, "k": k, "alpha": alpha, "beta": beta}, {"y": y}


# ---------------------------------------------------------------------------------------- activations, softmax, dropout
def activation(function: Callable[[float], float], slope: Callable[[float], float]) -> Row:
    def row(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
        x, gy = noise(rng, 2, 3, *SIZES[:ndim]), noise(rng, 2, 3, *SIZES[:ndim])
        return {"x": x, "gy": gy}, {"y": each(function, x), "gx": each(lambda v, g: g * slope(v), x, gy)}

    return row


def _sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def softmax(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x, gy = noise(rng, 2, 3, *SIZES[:ndim]), noise(rng, 2, 3, *SIZES[:ndim])
    y, gx = np.empty(x.shape), np.empty(x.shape)
    for n, *place in np.ndindex(2, *SIZES[:ndim]):
        at = (n, slice(None), *place)
        powers = [math.exp(v) for v in x[at]]
        y[at] = [p / sum(powers) for p in powers]
        for i in range(3):
            gx[(n, i, *place)] = sum(gy[at][j] * y[at][j] * ((i == j) - y[at][i]) for j in range(3))
    return {"x": x, "gy": gy, "axis": 1}, {"y": y, "gx": gx}


def dropout(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x, gy, ratio = noise(rng, 8, 9, *SIZES[:ndim]), noise(rng, 8, 9, *SIZES[:ndim]), 0.25

    def y(found: Given) -> np.ndarray:
        share = np.mean(found["y"] == 0)
        assert 0.15 < share < 0.35, f"{share} of the values are dropped"
        return each(lambda v, w: 0.0 if w == 0 else v / (1 - ratio), x, found["y"])

    def gx(found: Given) -> np.ndarray:
        return each(lambda g, w: 0.0 if w == 0 else g / (1 - ratio), gy, found["y"])

    return {"x": x, "gy": gy, "ratio": ratio, "rng": 7}, {"y": y, "gx": gx}


def linear(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x, W, b = noise(rng, 3, 2, 4), noise(rng, 5, 8), noise(rng, 5)
    return {"x": x, "W": W, "b": b}, {"y": dense.linear(x.reshape(3, 8), W, b, np.zeros((3, 5)))[0]}


# --------------------------------------------------------------------------------------------------------------- CS231n
def named(names: str, values: Any) -> Given:
    return dict(zip(names.split(), values, strict=True))


def affine(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    given = named("x w b dout", (noise(rng, 3, 2, 4), noise(rng, 8, 5), noise(rng, 5), noise(rng, 3, 5)))
    return given, named("out dx dw db", cs231n_course.affine(*given.values()))


def course_relu(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x, dout = noise(rng, 3, 4, 5), noise(rng, 3, 4, 5)
    return {"x": x, "dout": dout}, {
        "out": each(lambda v: max(v, 0.0), x),
        "dx": each(lambda v, g: g if v > 0 else 0.0, x, dout),
    }


def course_norm(shape: tuple[int, ...], kind: str) -> Row:
    def row(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
        x, gamma, beta, dout = noise(rng, *shape), noise(rng, shape[1]), noise(rng, shape[1]), noise(rng, *shape)
        given = {"x": x, "gamma": gamma, "beta": beta, "dout": dout, "G": 2}
        before = np.linspace(-1, 1, shape[1]), np.linspace(1, 2, shape[1])
        given |= named("running_mean running_var", [a.copy() for a in before])
        if kind == "batch":
            found = cs231n_course.batch_norm(x, gamma, beta, dout)
        elif kind == "test":
            found = cs231n_course.batch_norm_test(x, gamma, beta, dout, *before)
        elif kind == "layer":
            found = cs231n_course.layer_norm(x, gamma, beta, dout)
        else:
            found = cs231n_course.group_norm(x, gamma, beta, 2, dout)
        return given, named("out dx dgamma dbeta", found)

    return row


def course_conv(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x, w, b, dout = noise(rng, 2, 3, 6, 5), noise(rng, 4, 3, 3, 3), noise(rng, 4), noise(rng, 2, 4, 3, 3)
    given = {"x": x, "w": w, "b": b, "dout": dout, "stride": 2, "pad": 1}
    return given, named("out dx dw db", cs231n_course.conv(x, w, b, 2, 1, dout))


def course_max_pool(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    x = np.round(noise(rng, 2, 3, 6, 7))  # with ties
    dout = noise(rng, 2, 3, 3, 3)
    return {"x": x, "dout": dout, "stride": 2}, named("out dx", cs231n_course.max_pool(x, 2, 3, 2, dout))


def course_dropout(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
    given, expected = dropout(rng, 1)
    given = {"x": given["x"], "dout": given["gy"], "p": 0.75}
    renamed = {
        new: (lambda found, f=f: f({"y": found["out"]}))
        for new, f in zip(("out", "dx"), expected.values(), strict=True)
    }
    return given, renamed


def course_loss(function: Callable[..., Any]) -> Row:
    def row(rng: np.random.Generator, ndim: int) -> tuple[Given, Given]:
        x, y = noise(rng, 6, 4), rng.integers(0, 4, 6)
        return {"x": x, "y": y}, named("loss dx", function(x, y))

    return row


def option(row: Callable[..., Any], **changed: Any) -> Row:
    return lambda rng, ndim: row(rng, ndim, **changed)


RELU = activation(lambda v: max(v, 0.0), lambda v: float(v > 0))
SIGMOID = activation(_sigmoid, lambda v: _sigmoid(v) * (1 - _sigmoid(v)))
TANH = activation(math.tanh, lambda v: 1 - math.tanh(v) ** 2)

ROWS: dict[str, list[tuple[str, Row]]] = {
    "cupy.cudnn": [
        ("convolution_forward", convolution),
        ("convolution_backward_data", convolution),
        ("convolution_backward_filter", option(convolution, dilation=2, groups=1)),
        ("convolution_backward_data", deconvolution),
        ("the gradients of that layer", deconvolution),
        ("pooling_forward", pooling("max")),
        ("pooling_backward", pooling("max")),
        ("pooling_forward", pooling("include")),
        ("pooling_backward", pooling("include")),
        ("pooling_forward", pooling("exclude")),
        ("pooling_backward", pooling("exclude")),
        ("batch_normalization_forward_training", batch_norm),
        ("batch_normalization_forward_training", batch_norm_per_activation),
        ("batch_normalization_forward_inference", fixed_norm),
        ("batch_normalization_backward", batch_norm),
        ("activation_forward", RELU),
        ("activation_backward", RELU),
        ("activation_forward", SIGMOID),
        ("activation_backward", SIGMOID),
        ("activation_forward", TANH),
        ("activation_backward", TANH),
        ("softmax_forward", softmax),
        ("softmax_backward", softmax),
        ("DropoutStates", dropout),
        ("DropoutStates", dropout),
    ],
    "chainer.functions": [
        ("max_pooling_nd", pooling("max", cover_all=True)),
        ("max_pooling_2d", pooling("max")),
        ("average_pooling_2d", pooling("include")),
        ("average_pooling_nd", pooling("exclude")),
        ("unpooling_2d", unpooling),
        ("upsampling_2d", upsampling),
        ("spatial_pyramid_pooling_2d", pyramid),
        ("batch_normalization", batch_norm),
        ("fixed_batch_normalization", fixed_norm),
        ("group_normalization", group_norm),
        ("layer_normalization", layer_norm),
        ("local_response_normalization", local_response),
        ("convolution_nd", convolution),
        ("convolution_2d", option(convolution, groups=1, extra=1)),
        ("dilated_convolution_2d", option(convolution, dilation=2, groups=1)),
        ("depthwise_convolution_2d", depthwise),
        ("deconvolution_nd", deconvolution),
        ("linear", linear),
    ],
    "CS231n": [
        ("affine_forward", affine),
        ("relu_forward", course_relu),
        ("batchnorm_forward", course_norm((6, 4), "batch")),
        ("batchnorm_forward", course_norm((6, 4), "test")),
        ("spatial_batchnorm_forward", course_norm((2, 3, 4, 5), "batch")),
        ("layernorm_forward", course_norm((3, 5), "layer")),
        ("spatial_groupnorm_forward", course_norm((2, 4, 3, 3), "group")),
        ("conv_forward_naive", course_conv),
        ("max_pool_forward_naive", course_max_pool),
        ("dropout_forward", course_dropout),
        ("softmax_loss", course_loss(cs231n_course.softmax)),
        ("svm_loss", course_loss(cs231n_course.svm)),
    ],
}
