"""CS231n's names: the course's definitions as plain loops (tests/reference), its leniency, its notebooks' checks."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import cnnlayers.cs231n as ours
from cnnlayers import backends
from cnnlayers.cs231n import (
    ThreeLayerConvNet,
    affine_backward,
    affine_forward,
    affine_relu_backward,
    affine_relu_forward,
    batchnorm_backward,
    batchnorm_backward_alt,
    batchnorm_forward,
    conv_bn_relu_backward,
    conv_bn_relu_forward,
    conv_forward_fast,
    conv_forward_naive,
    conv_relu_backward,
    conv_relu_forward,
    conv_relu_pool_backward,
    conv_relu_pool_forward,
    dropout_backward,
    dropout_forward,
    layernorm_backward,
    layernorm_forward,
    max_pool_backward_naive,
    max_pool_forward_fast,
    max_pool_forward_naive,
    relu_backward,
    relu_forward,
    softmax_loss,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
    svm_loss,
)

from . import standin_cupy
from .reference import cs231n_course as course

CONV_KINDS, POOL_KINDS = ("naive", "im2col", "strides", "fast"), ("naive", "reshape", "im2col", "fast")
POOL = {"pool_height": 2, "pool_width": 2, "stride": 2}
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def check(impl, got, expected):
    """Each result is this implementation's array, float64 and equal to the course's."""
    for one, other in zip(got, expected, strict=True):
        impl.close(one, other, **EXACT)


def call(name, kind="naive"):
    return getattr(ours, f"{name}_forward_{kind}"), getattr(ours, f"{name}_backward_{kind}")


# -------------------------------------------------------------------------------------------------------------- names
def contract():
    """The names of the course that must be here, from their stems."""
    both = ["affine", "relu", "layernorm", "dropout", "spatial_batchnorm", "spatial_groupnorm", "batchnorm"]
    both += [f"{layers}_relu" for layers in ("affine", "conv", "conv_bn")] + ["conv_relu_pool"]
    names = {f"{stem}_{way}" for stem in both for way in ("forward", "backward")}
    for stem, kinds in (("conv", CONV_KINDS), ("max_pool", POOL_KINDS)):
        names |= {f"{stem}_{way}_{kind}" for way in ("forward", "backward") for kind in kinds}
    return names | {"batchnorm_backward_alt", "softmax_loss", "svm_loss", "ThreeLayerConvNet"}


def test_a_star_import_brings_every_name():
    scope = {}
    exec("from cnnlayers.cs231n import *", scope)
    assert {name for name in scope if not name.startswith("__")} == contract()
    assert all(callable(scope[name]) for name in contract())


def test_the_course_modules_have_the_names_of_the_course():
    from cnnlayers.cs231n import fast_layers, layer_utils, layers
    from cnnlayers.cs231n.classifiers import cnn

    found = [*layers.__all__, *fast_layers.__all__, *layer_utils.__all__, *cnn.__all__]
    assert sorted(found) == sorted(contract())


# ------------------------------------------------------------------------------------------------- against plain loops
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2), (1, 5), (4, 1)])
def test_affine(impl, rng, shape):
    x, w, b = rng.standard_normal(shape), rng.standard_normal((int(np.prod(shape[1:])), 3)), rng.standard_normal(3)
    dout = rng.standard_normal((shape[0], 3))
    out, cache = affine_forward(*map(impl.array, (x, w, b)))
    check(impl, (out, *affine_backward(impl.array(dout), cache)), course.affine(x, w, b, dout))


def test_relu(impl):
    x, dout = np.array([[-1.0, 0.0, 2.0]]), np.array([[5.0, 6.0, 7.0]])
    out, cache = relu_forward(impl.array(x))
    check(impl, (out, relu_backward(impl.array(dout), cache)), ([[0.0, 0.0, 2.0]], [[0.0, 0.0, 7.0]]))


@pytest.mark.parametrize(("loss", "plain"), [(softmax_loss, course.softmax), (svm_loss, course.svm)])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_losses(impl, rng, loss, plain, scale):
    x, y = scale * rng.standard_normal((7, 4)), rng.integers(4, size=7)
    got, dx = loss(impl.array(x), impl.array(y))
    expected, dx_expected = plain(x, y)
    assert isinstance(got, float)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    impl.close(dx, dx_expected, **EXACT)


def test_losses_by_hand():
    loss, dx = svm_loss(np.array([[1.0, 2.0, -5.0]]), np.array([0]))
    assert loss == 2.0  # max(0, 2 - 1 + 1) + max(0, -5 - 1 + 1)
    np.testing.assert_array_equal(dx, [[-1.0, 1.0, 0.0]])
    np.testing.assert_allclose(softmax_loss(np.zeros((3, 10)), [0, 4, 9])[0], np.log(10), rtol=1e-15)


NORMS = [
    pytest.param(batchnorm_forward, batchnorm_backward, (6, 4), id="batchnorm"),
    pytest.param(batchnorm_forward, batchnorm_backward_alt, (2, 3), id="batchnorm_alt"),
    pytest.param(spatial_batchnorm_forward, spatial_batchnorm_backward, (2, 3, 4, 5), id="spatial_batchnorm"),
    pytest.param(spatial_batchnorm_forward, spatial_batchnorm_backward, (1, 1, 2, 3), id="spatial_batchnorm_1"),
]


def norm_arrays(rng, shape):
    x, dout = 4 * rng.standard_normal(shape) + 10, rng.standard_normal(shape)
    return x, rng.standard_normal(shape[1]), rng.standard_normal(shape[1]), dout


@pytest.mark.parametrize("eps", [None, 0.3])
@pytest.mark.parametrize(("forward", "backward", "shape"), NORMS)
def test_batchnorm_train(impl, rng, forward, backward, shape, eps):
    x, gamma, beta, dout = norm_arrays(rng, shape)
    param = {"mode": "train"} if eps is None else {"mode": "train", "eps": eps}
    out, cache = forward(*map(impl.array, (x, gamma, beta)), param)
    got = (out, *backward(impl.array(dout), cache))
    check(impl, got, course.batch_norm(x, gamma, beta, dout, eps or 1e-5))
    zeros = np.zeros(shape[1])
    check(impl, (param["running_mean"], param["running_var"]), course.running(x, zeros, zeros))


@pytest.mark.parametrize(("forward", "backward", "shape"), NORMS)
def test_batchnorm_test(impl, rng, forward, backward, shape):
    x, gamma, beta, dout = norm_arrays(rng, shape)
    mean, var = rng.standard_normal(shape[1]), rng.random(shape[1]) + 0.5
    param = {"mode": "test", "running_mean": impl.array(mean), "running_var": impl.array(var), "eps": 1e-3}
    out, cache = forward(*map(impl.array, (x, gamma, beta)), param)
    got = (out, *backward(impl.array(dout), cache))
    check(impl, got, course.batch_norm_test(x, gamma, beta, dout, mean, var, 1e-3))
    check(impl, (param["running_mean"], param["running_var"]), (mean, var))


def test_layernorm(impl, rng):
    x, gamma, beta, dout = norm_arrays(rng, (5, 3))
    for param in ({}, {"eps": 0.2, "mode": "train"}):
        out, cache = layernorm_forward(*map(impl.array, (x, gamma, beta)), param)
        got = (out, *layernorm_backward(impl.array(dout), cache))
        check(impl, got, course.layer_norm(x, gamma, beta, dout, param.get("eps", 1e-5)))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_spatial_groupnorm(impl, rng, groups):
    x, gamma, beta, dout = norm_arrays(rng, (2, 6, 2, 3))
    for param in ({}, {"eps": 0.2, "mode": "train"}):
        out, cache = spatial_groupnorm_forward(*map(impl.array, (x, gamma, beta)), groups, param)
        got = (out, *spatial_groupnorm_backward(impl.array(dout), cache))
        check(impl, got, course.group_norm(x, gamma, beta, groups, dout, param.get("eps", 1e-5)))


# (the last two do not tile: the last rows and columns are left out)
@pytest.mark.parametrize(("lengths", "kernel", "stride", "pad"), [
    ((4, 4), (4, 4), 2, 1), ((5, 6), (3, 3), 1, 1), ((5, 4), (1, 2), 1, 0),
    ((6, 5), (3, 2), 2, 0), ((7, 7), (3, 3), 3, 1),
])  # fmt: skip
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_conv(impl, rng, lengths, kernel, stride, pad, kind):
    x, w, b = rng.standard_normal((2, 3, *lengths)), rng.standard_normal((4, 3, *kernel)), rng.standard_normal(4)
    dout = rng.standard_normal(course.conv(x, w, b, stride, pad, None).shape)
    forward, backward = call("conv", kind)
    out, cache = forward(*map(impl.array, (x, w, b)), {"stride": stride, "pad": pad})
    check(impl, (out, *backward(impl.array(dout), cache)), course.conv(x, w, b, stride, pad, dout))


@pytest.mark.parametrize("ties", [None, "all", "first", "split"])
@pytest.mark.parametrize(("lengths", "window"), [((4, 4), (2, 2, 2)), ((5, 6), (3, 2, 1)), ((7, 5), (2, 3, 2))])
@pytest.mark.parametrize("kind", POOL_KINDS)
def test_max_pool(impl, rng, lengths, window, ties, kind):
    x = rng.integers(3, size=(2, 2, *lengths)).astype(float)  # many ties
    dout = rng.standard_normal(course.max_pool(x, *window, None).shape)
    param = dict(zip(("pool_height", "pool_width", "stride"), window, strict=True))
    forward, backward = call("max_pool", kind)
    out, cache = forward(impl.array(x), param if ties is None else param | {"ties": ties})
    check(impl, (out, backward(impl.array(dout), cache)), course.max_pool(x, *window, dout, ties or "all"))


def test_a_cache_serves_every_variant_and_more_than_once(rng):
    x, w, b = rng.standard_normal((2, 3, 5, 5)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    for name, args in (("conv", (x, w, b, {"stride": 1, "pad": 1})), ("max_pool", (x, POOL))):
        kinds = CONV_KINDS if name == "conv" else POOL_KINDS
        for one in kinds:
            out, cache = call(name, one)[0](*args)
            got = [call(name, other)[1](np.ones_like(out), cache) for other in kinds]
            assert all(np.array_equal(g[0], got[0][0]) for g in got)


# -------------------------------------------------------------------------------------- the notebooks' gradient checks
def relative(a, b):
    return np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b)))


def sandwiches(rng):
    x, w, b = rng.standard_normal((2, 3, 8, 8)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    gamma, beta = rng.standard_normal(4), rng.standard_normal(4)
    conv, train = {"stride": 1, "pad": 1}, {"mode": "train"}
    rows, v, c = rng.standard_normal((2, 3, 4)), rng.standard_normal((12, 10)), rng.standard_normal(10)
    p, z = {"mode": "train", "p": 0.8, "seed": 123}, rng.standard_normal((5, 4)) + 10
    return {
        "affine_relu": (affine_relu_forward, affine_relu_backward, (rows, v, c), ()),
        "conv_relu": (conv_relu_forward, conv_relu_backward, (x, w, b), (conv,)),
        "conv_relu_pool": (conv_relu_pool_forward, conv_relu_pool_backward, (x, w, b), (conv, POOL)),
        "conv_bn_relu": (conv_bn_relu_forward, conv_bn_relu_backward, (x, w, b, gamma, beta), (conv, train)),
        "batchnorm": (batchnorm_forward, batchnorm_backward, (5 * z, gamma, beta), (train,)),
        "dropout": (dropout_forward, dropout_backward, (z,), (p,)),
    }  # fmt: skip


@pytest.mark.parametrize("name", sandwiches(np.random.default_rng(0)))
def test_numerical_gradients(rng, name):
    forward, backward, arrays, params = sandwiches(rng)[name]
    out, cache = forward(*arrays, *params)
    dout = rng.standard_normal(out.shape)
    gradients = backward(dout, cache)
    for array, got in zip(arrays, gradients if isinstance(gradients, tuple) else (gradients,), strict=True):
        expected = course.numerical_gradient(lambda _: forward(*arrays, *params)[0], array, dout)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_sandwiches_are_their_layers(rng):
    x, w, b = rng.standard_normal((2, 3, 6, 6)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    conv = {"stride": 1, "pad": 1}
    out, cache = conv_relu_pool_forward(x, w, b, conv, POOL)
    dout = rng.standard_normal(out.shape)
    a = course.conv(x, w, b, 1, 1, None)
    pooled, ds = course.max_pool(np.maximum(a, 0), 2, 2, 2, dout)
    np.testing.assert_allclose(out, pooled, **EXACT)
    for got, expected in zip(
        conv_relu_pool_backward(dout, cache), course.conv(x, w, b, 1, 1, ds * (a > 0))[1:], strict=True
    ):
        np.testing.assert_allclose(got, expected, **EXACT)


# ------------------------------------------------------------------------------------------------------- dictionaries
@pytest.mark.parametrize("forward", [batchnorm_forward, spatial_batchnorm_forward])
def test_running_statistics_over_steps(impl, rng, forward):
    shape = (6, 3) if forward is batchnorm_forward else (2, 3, 2, 2)
    param = {"mode": "train", "momentum": 0.7}
    mean, var = np.zeros(3), np.zeros(3)
    for _ in range(4):
        x = rng.standard_normal(shape)
        forward(impl.array(x), impl.array(np.ones(3)), impl.array(np.zeros(3)), param)
        mean, var = course.running(x, mean, var, 0.7)
    check(impl, (param["running_mean"], param["running_var"]), (mean, var))


def test_running_statistics_are_new_arrays(rng):
    mean, var = np.full(3, 0.5), np.ones(3)
    param = {"mode": "train", "running_mean": mean, "running_var": var}
    batchnorm_forward(rng.standard_normal((4, 3)), np.ones(3), np.zeros(3), param)
    assert (mean == 0.5).all()
    assert (var == 1).all()
    assert param["running_mean"] is not mean
    assert not np.array_equal(param["running_var"], var)


def test_missing_running_statistics_are_zeros_of_x(rng):
    x = rng.standard_normal((4, 3)).astype("float32")
    param = {"mode": "test"}
    out, _ = batchnorm_forward(x, np.ones(3, "float32"), np.zeros(3, "float32"), param)
    np.testing.assert_allclose(out, x / np.sqrt(1e-5), rtol=1e-5)
    assert param["running_mean"].dtype == np.float32
    param = {"mode": "train"}
    for _ in range(2):  # x decides, whatever the parameters are
        batchnorm_forward(x, np.ones(3), np.zeros(3), param)
        assert param["running_var"].dtype == np.float32
    batchnorm_forward(x.astype(float), np.ones(3), np.zeros(3), param)
    assert param["running_mean"].dtype == np.float64


@pytest.mark.parametrize("mode", [{}, {"mode": "eval"}, {"mode": None}, {"mode": "TRAIN"}, {"mode": np.zeros(2)}])
def test_bad_mode(rng, mode):
    x = rng.standard_normal((4, 3))
    for forward in (
        lambda param: batchnorm_forward(x, np.ones(3), np.zeros(3), param),
        lambda param: spatial_batchnorm_forward(x[:, :, None, None], np.ones(3), np.zeros(3), param),
        lambda param: dropout_forward(x, param | {"p": 0.5}),
    ):
        with pytest.raises(ValueError, match="mode"):
            forward(mode)
    assert "running_mean" not in mode


def test_nothing_is_stored_where_a_call_fails():
    param = {"mode": "train"}
    with pytest.raises(ValueError):
        batchnorm_forward(np.ones((1, 3)), np.ones(3), np.zeros(3), param)
    assert param == {"mode": "train"}


@pytest.mark.parametrize(("forward", "args", "key"), [
    (conv_forward_fast, (np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), np.ones(1)), "stride"),
    (conv_forward_fast, (np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), np.ones(1)), "pad"),
    (max_pool_forward_fast, (np.ones((1, 1, 4, 4)),), "pool_height"),
    (max_pool_forward_fast, (np.ones((1, 1, 4, 4)),), "pool_width"),
    (max_pool_forward_fast, (np.ones((1, 1, 4, 4)),), "stride"),
    (dropout_forward, (np.ones((2, 2)),), "p"),
])  # fmt: skip
def test_missing_key(forward, args, key):
    param = {"stride": 1, "pad": 0, **POOL, "mode": "train", "p": 0.5}
    del param[key]
    with pytest.raises(ValueError, match=key):
        forward(*args, param)


def test_bad_ties():
    with pytest.raises(ValueError, match="ties"):
        max_pool_forward_naive(np.ones((1, 1, 4, 4)), POOL | {"ties": "last"})


# ------------------------------------------------------------------------------------------------------------- dropout
@pytest.mark.parametrize("p", [0.25, 0.8, 1])
def test_dropout_train(impl, rng, p):
    x, dout = rng.standard_normal((50, 60)) + 10, rng.standard_normal((50, 60))
    param = {"mode": "train", "p": p, "seed": 123}
    state = np.random.get_state()[1].copy()
    out, cache = dropout_forward(impl.array(x), param)
    dx = dropout_backward(impl.array(dout), cache)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    mask = (np.random.RandomState(123).rand(*x.shape) < p) / p  # the course's
    check(impl, (out, dx), (x * mask, dout * mask))
    impl.same(dropout_forward(impl.array(x), param)[0], impl.numpy(out))
    assert abs((mask > 0).mean() - p) < 0.05


def test_dropout_test(impl, rng):
    x = rng.standard_normal((4, 5))
    out, cache = dropout_forward(impl.array(x), {"mode": "test", "p": 0.3})
    impl.same(out, x)
    impl.same(dropout_backward(impl.array(2 * x), cache), 2 * x)


def test_dropout_draws_from_the_global_state(rng):
    x = rng.standard_normal((20, 20))
    masks = []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        masks += [dropout_forward(x, {"mode": "train", "p": 0.5})[0] for _ in range(2)]
    assert np.array_equal(masks[0], masks[2])
    assert np.array_equal(masks[1], masks[3])
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[4])


@pytest.mark.parametrize("p", [0, -0.1, 1.5, float("nan")])
def test_dropout_range(p):
    with pytest.raises(ValueError, match="keeping"):
        dropout_forward(np.ones(3), {"mode": "train", "p": p})


# ------------------------------------------------------------------------------------------------------------ leniency
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1), (1, 3), (3, 1, 1)])
def test_parameters_in_other_shapes(impl, rng, shape):
    x, gamma, beta, dout = norm_arrays(rng, (2, 3, 2, 2))
    given = impl.array(gamma.reshape(shape)), impl.array(beta.reshape(shape))
    _, bn_cache = spatial_batchnorm_forward(impl.array(x), *given, {"mode": "train"})
    _, gn_cache = spatial_groupnorm_forward(impl.array(x), *given, 3, {})
    for backward, cache, expected in (
        (spatial_batchnorm_backward, bn_cache, course.batch_norm(x, gamma, beta, dout)),
        (spatial_groupnorm_backward, gn_cache, course.group_norm(x, gamma, beta, 3, dout)),
    ):
        _, dx, dgamma, dbeta = expected
        check(impl, backward(impl.array(dout), cache), (dx, dgamma.reshape(shape), dbeta.reshape(shape)))


def test_rows_with_row_parameters(impl, rng):
    x, gamma, beta, dout = norm_arrays(rng, (4, 3))
    given = impl.array(gamma[None]), impl.array(beta[None])
    _, cache = layernorm_forward(impl.array(x), *given, {})
    _, dx, dgamma, dbeta = course.layer_norm(x, gamma, beta, dout)
    check(impl, layernorm_backward(impl.array(dout), cache), (dx, dgamma[None], dbeta[None]))
    w, b = rng.standard_normal((3, 2)), rng.standard_normal((1, 2))
    _, cache = affine_forward(impl.array(x), impl.array(w), impl.array(b))
    assert affine_backward(impl.array(np.ones((4, 2))), cache)[2].shape == (1, 2)


def test_running_statistics_keep_their_shape(rng):
    param = {"mode": "train", "running_mean": np.zeros((1, 3, 1, 1)), "running_var": [0.0, 0.0, 0.0]}
    x = rng.standard_normal((2, 3, 2, 2))
    spatial_batchnorm_forward(x, np.ones(3), np.zeros(3), param)
    mean, var = course.running(x, np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(param["running_mean"], mean.reshape(1, 3, 1, 1), **EXACT)
    np.testing.assert_allclose(param["running_var"], var, **EXACT)


def test_integers_are_cast():
    x, w, b = np.arange(12).reshape(3, 4), np.arange(8).reshape(4, 2), np.array([1, 2])
    out, cache = affine_forward(x, w, b)
    dout = np.arange(6).reshape(3, 2)
    for got, expected in zip((out, *affine_backward(dout, cache)), course.affine(x, w, b, dout), strict=True):
        np.testing.assert_allclose(got, expected, **EXACT)
        assert got.dtype == np.float64
    images = np.arange(32, dtype="uint8").reshape(1, 2, 4, 4)
    out, cache = max_pool_forward_naive(images, POOL)
    assert out.dtype == np.float64
    assert max_pool_backward_naive(np.ones((1, 2, 2, 2), int), cache).sum() == 8
    assert (
        conv_forward_naive(images, np.ones((1, 2, 3, 3), "float32"), [0], {"stride": 1, "pad": 1})[0].dtype
        == np.float32
    )
    assert relu_forward(np.array([-1, 2]))[0].dtype == np.float64
    assert softmax_loss(np.array([[1, 2]]), [0])[1].dtype == np.float64
    param = {"mode": "train"}
    out, _ = batchnorm_forward(x, [1, 1, 1, 1], [0, 0, 0, 0], param)
    np.testing.assert_allclose(param["running_mean"], 0.1 * x.mean(axis=0), **EXACT)


def test_lists_are_taken():
    out, cache = affine_forward([[1.0, 2.0]], [[1.0], [3.0]], [0.5])
    np.testing.assert_array_equal(out, [[7.5]])
    np.testing.assert_array_equal(affine_backward([[2.0]], cache)[0], [[2.0, 6.0]])
    assert relu_forward([[-1, 1]])[0].tolist() == [[0.0, 1.0]]
    assert svm_loss([[1.0, 2.0]], [0])[0] == 2.0


@pytest.mark.parametrize(
    "dtypes", [("float32", "float32"), ("float32", "float64"), ("float64", "float32"), ("float16", "float32")]
)
def test_mixed_dtypes_promote(rng, dtypes):
    x, w = rng.standard_normal((2, 3)).astype(dtypes[0]), rng.standard_normal((3, 4)).astype(dtypes[1])
    out, cache = affine_forward(x, w, np.zeros(4, dtypes[1]))
    assert out.dtype == np.result_type(x, w)
    assert {g.dtype for g in affine_backward(out, cache)} == {np.result_type(x, w)}
    np.testing.assert_allclose(out, x.astype(float) @ w.astype(float), rtol=1e-3, atol=1e-5)


def test_a_test_forward_promotes_with_its_statistics(rng):
    x = rng.standard_normal((4, 3)).astype("float32")
    param = {"mode": "test", "running_mean": np.full(3, 0.1), "running_var": np.full(3, 0.3)}
    out, _ = batchnorm_forward(x, np.ones(3, "float32"), np.zeros(3, "float32"), param)
    np.testing.assert_allclose(out, (x.astype(float) - 0.1) / np.sqrt(0.3 + 1e-5), rtol=1e-14)


@pytest.mark.parametrize(("run", "error", "said"), [
    (lambda: affine_forward(np.ones((2, 3)), np.ones((4, 2)), np.ones(2)), ValueError, "w must"),
    (lambda: affine_forward(np.ones((2, 3)), np.ones((3, 2)), np.ones(3)), ValueError, "b must"),
    (lambda: affine_forward(np.ones((2, 3)), np.ones(3), np.ones(3)), ValueError, "w must"),
    (lambda: batchnorm_forward(np.ones((4, 3)), np.ones(4), np.ones(3), {"mode": "train"}), ValueError, "gamma"),
    (lambda: batchnorm_forward(np.ones((4, 4)), np.ones((2, 2)), np.ones(4), {"mode": "train"}), ValueError, "gamma"),
    (lambda: batchnorm_forward(np.ones((4, 3, 2, 2)), np.ones(3), np.ones(3), {"mode": "train"}), ValueError, "x must"),
    (lambda: spatial_batchnorm_forward(np.ones((4, 3)), *np.ones((2, 3)), {"mode": "test"}), ValueError, "x must"),
    (lambda: batchnorm_forward(np.ones((4, 3)), np.ones(3), np.ones(3), {"mode": "test", "running_mean": np.ones(2)}),
     ValueError, "running_mean"),
    (lambda: spatial_groupnorm_forward(np.ones((4, 3, 2, 2)), np.ones(3), np.ones(3), 2, {}), ValueError, "divide"),
    (lambda: conv_forward_fast(np.ones((3, 4, 4)), np.ones((1, 3, 2, 2)), np.ones(1), {"stride": 1, "pad": 0}),
     ValueError, "x must"),
    (lambda: max_pool_forward_fast(np.ones((1, 1, 1, 1)), POOL), ValueError, "window"),
    (lambda: softmax_loss(np.ones((2, 3)), [0, 3]), ValueError, "labels"),
    (lambda: svm_loss(np.ones((2, 3)), [0, -1]), ValueError, "labels"),
    (lambda: svm_loss(np.ones((2, 3)), [0]), ValueError, "label"),
    (lambda: svm_loss(np.ones((0, 3)), []), ValueError, "x must"),
    (lambda: softmax_loss(np.ones((2, 3)), None), TypeError, "y must"),
    (lambda: softmax_loss(np.ones((2, 3)), np.zeros(2)), TypeError, "integer"),
    (lambda: relu_forward("abc"), TypeError, "x"),
    (lambda: layernorm_forward(np.ones((2, 3)), None, np.ones(3), {}), TypeError, "gamma"),
    (lambda: relu_forward(["a"]), TypeError, "x must"),
    (lambda: relu_forward(np.ones(2, complex)), TypeError, "complex"),
    (lambda: relu_backward(np.ones(2), (1, 2)), TypeError, "cache"),
    (lambda: affine_backward(np.ones(2), relu_forward(np.ones(2))[1]), TypeError, "context"),
    (lambda: relu_backward(np.ones(3), relu_forward(np.ones(2))[1]), ValueError, "dy"),
    (lambda: dropout_backward(np.ones(3), dropout_forward(np.ones(2), {"mode": "test"})[1]), ValueError, "dy"),
])  # fmt: skip
def test_errors(run, error, said):
    with pytest.raises(error, match=said):
        run()


# ------------------------------------------------------------- the tutorials' faults: each old code, and what is right
def test_overlapping_windows_add_up(rng):
    def old(x, dout):  # `=` where `+=` is right
        dx = np.zeros(x.shape)
        for i, j in np.ndindex(*dout.shape):
            window = x[i : i + 2, j : j + 2]
            dx[i : i + 2, j : j + 2] = (window == window.max()) * dout[i, j]
        return dx

    x, dout = rng.standard_normal((4, 4)), rng.standard_normal((3, 3))
    _, cache = max_pool_forward_naive(x[None, None], POOL | {"stride": 1})
    dx = max_pool_backward_naive(dout[None, None], cache)[0, 0]
    np.testing.assert_allclose(dx, course.max_pool(x[None, None], 2, 2, 1, dout[None, None])[1][0, 0], **EXACT)
    assert not np.allclose(dx, old(x, dout))


def test_the_tie_rule_is_the_callers():
    x, dout = np.zeros((1, 1, 2, 2)), np.full((1, 1, 1, 1), 4.0)
    rules = {"all": [4, 4, 4, 4], "first": [4, 0, 0, 0], "split": [1, 1, 1, 1]}  # naive, im2col, reshape: three answers
    for ties, expected in rules.items():
        for kind in POOL_KINDS:
            forward, backward = call("max_pool", kind)
            dx = backward(dout, forward(x, POOL | {"ties": ties})[1])
            assert dx.ravel().tolist() == expected


def test_spatial_batchnorm_normalises_channels(rng):
    def old(x):  # the array that goes on is the one that was not rearranged: rows that mix channels
        return (x.reshape(-1, x.shape[1]) - x.reshape(-1, x.shape[1]).mean(axis=0)).reshape(x.shape)

    x = rng.standard_normal((2, 3, 4, 5)) + np.array([0.0, 5.0, -5.0])[:, None, None]
    out, cache = spatial_batchnorm_forward(x, np.ones(3), np.zeros(3), {"mode": "train"})
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), 1, rtol=1e-4)
    assert not np.allclose(old(x).mean(axis=(0, 2, 3)), 0, atol=1e-2)

    def old_back(dout):  # an identity transpose on the way back, then a reshape across axes
        return dout.transpose(0, 2, 3, 1).reshape(-1, 3).reshape(dout.shape)

    dout = rng.standard_normal(x.shape)
    dx, _, dbeta = spatial_batchnorm_backward(dout, cache)
    np.testing.assert_allclose(dx, course.batch_norm(x, np.ones(3), np.zeros(3), dout)[1], **EXACT)
    np.testing.assert_allclose(dbeta, dout.sum(axis=(0, 2, 3)), **EXACT)
    assert not np.allclose(old_back(dout).sum(axis=(0, 2, 3)), dbeta)


def test_batchnorm_backward_in_evaluation(rng):
    def old(x, gamma, dout):  # the training formula whatever the mode
        return course.batch_norm(x, gamma, np.zeros(3), dout)[1]

    x, gamma, beta, dout = norm_arrays(rng, (5, 3))
    param = {"mode": "test", "running_mean": np.full(3, 9.0), "running_var": np.full(3, 2.0)}
    _, cache = batchnorm_forward(x, gamma, beta, param)
    for backward in (batchnorm_backward, batchnorm_backward_alt):
        dx = backward(dout, cache)[0]
        np.testing.assert_allclose(dx, dout * gamma / np.sqrt(2.0 + 1e-5), **EXACT)
        numeric = course.numerical_gradient(lambda _: batchnorm_forward(x, gamma, beta, dict(param))[0], x, dout)
        np.testing.assert_allclose(dx, numeric, rtol=1e-6, atol=1e-8)
        assert not np.allclose(dx, old(x, gamma, dout), rtol=1e-2)


def test_groupnorm_backward_sums_over_a_group(rng):
    x, gamma, beta, dout = norm_arrays(rng, (2, 4, 3, 3))
    _, cache = spatial_groupnorm_forward(x, gamma, beta, 2, {})
    dx = spatial_groupnorm_backward(dout, cache)[0]

    def old(axes):  # sum(dhat) * sum(hat) where sum(dhat * hat), over the group, is right
        xg, dg = x.reshape(2, 2, -1), (dout * gamma[:, None, None]).reshape(2, 2, -1)
        hat = (xg - xg.mean(2, keepdims=True)) / np.sqrt(xg.var(2, keepdims=True) + 1e-5)
        term = dg.sum(axes, keepdims=True) * hat.sum(axes, keepdims=True)
        spread = dg - dg.mean(2, keepdims=True) - hat * term / xg.shape[2]
        return (spread / np.sqrt(xg.var(2, keepdims=True) + 1e-5)).reshape(x.shape)

    np.testing.assert_allclose(dx, course.group_norm(x, gamma, beta, 2, dout)[1], **EXACT)
    numeric = course.numerical_gradient(lambda _: spatial_groupnorm_forward(x, gamma, beta, 2, {})[0], x, dout)
    np.testing.assert_allclose(dx, numeric, rtol=1e-5, atol=1e-8)
    assert not np.allclose(dx, old(2), rtol=1e-3)


# ------------------------------------------------------------------------------------------------------- the network
def plain_net(p, x, y, reg):
    """The network's loss and gradients from the plain loops."""
    pad = (p["W1"].shape[2] - 1) // 2
    a = course.conv(x, p["W1"], p["b1"], 1, pad, None)
    pooled = course.max_pool(np.maximum(a, 0), 2, 2, 2, None)
    h = pooled.reshape(len(x), -1) @ p["W2"] + p["b2"]
    loss, ds = course.softmax(np.maximum(h, 0) @ p["W3"] + p["b3"], y)
    g = {}
    _, dh, g["W3"], g["b3"] = course.affine(np.maximum(h, 0), p["W3"], p["b3"], ds)
    _, dp, g["W2"], g["b2"] = course.affine(pooled, p["W2"], p["b2"], dh * (h > 0))
    _, da = course.max_pool(np.maximum(a, 0), 2, 2, 2, dp)
    _, _, g["W1"], g["b1"] = course.conv(x, p["W1"], p["b1"], 1, pad, da * (a > 0))
    for name in ("W1", "W2", "W3"):
        loss += 0.5 * reg * (p[name] ** 2).sum()
        g[name] += reg * p[name]
    return loss, g


def small_net(**options):
    np.random.seed(231)
    given = {"input_dim": (2, 4, 4), "num_filters": 2, "filter_size": 3, "hidden_dim": 3, "num_classes": 4}
    return ThreeLayerConvNet(**given | {"weight_scale": 0.5, "dtype": np.float64} | options)


@pytest.mark.parametrize("options", [{}, {"filter_size": 4}, {"input_dim": (2, 5, 4), "filter_size": 1}])
def test_net_against_plain_loops(rng, options):
    model = small_net(reg=0.3, **options)
    x, y = rng.standard_normal((3, *options.get("input_dim", (2, 4, 4)))), np.array([0, 3, 1])
    loss, grads = model.loss(x, y)
    expected, expected_grads = plain_net(model.params, x, y, 0.3)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert list(model.params) == ["W1", "b1", "W2", "b2", "W3", "b3"]
    assert set(grads) == set(model.params)
    for name, got in grads.items():
        np.testing.assert_allclose(got, expected_grads[name], rtol=1e-10, atol=1e-13)
    assert model.loss(x).shape == (3, 4)


def test_net_weights_come_from_the_global_state():
    np.random.seed(7)
    model = ThreeLayerConvNet()
    np.random.seed(7)
    shapes = {"W1": (32, 3, 7, 7), "W2": (32 * 16 * 16, 100), "W3": (100, 10)}
    for name, shape in shapes.items():
        np.testing.assert_array_equal(model.params[name], (1e-3 * np.random.randn(*shape)).astype(np.float32))
    assert [model.params[b].shape for b in ("b1", "b2", "b3")] == [(32,), (100,), (10,)]
    assert all(p.dtype == np.float32 and p.flags.writeable for p in model.params.values())
    assert not any(model.params[b].any() for b in ("b1", "b2", "b3"))


def test_net_first_loss_and_regularisation(rng):
    x, y = rng.standard_normal((20, 3, 8, 8)), rng.integers(10, size=20)
    model = ThreeLayerConvNet(input_dim=(3, 8, 8))
    loss, _ = model.loss(x, y)
    assert abs(loss - np.log(10)) < 1e-3
    model.reg = 0.5
    assert model.loss(x, y)[0] > loss
    assert f"{loss:.3f}" == "2.303"


# ----------------------------------------------------------------------------------------------- a notebook, on NumPy
NOTEBOOK = """
import numpy as np
from cs231n.layers import *
from cs231n.fast_layers import *
from cs231n.layer_utils import *
from cs231n.classifiers.cnn import *

np.random.seed(231)
X, y = place(np.random.randn(12, 3, 8, 8)), place(np.random.randint(4, size=12))
model = ThreeLayerConvNet(input_dim=(3, 8, 8), num_filters=4, filter_size=3, hidden_dim=16, num_classes=4,
                          weight_scale=1e-1, reg=1e-4, dtype=np.float64)
velocity, losses = {}, []
for step in range(60):
    loss, grads = model.loss(X, y)
    losses.append(loss)
    for p, w in model.params.items():
        v = 0.9 * velocity.get(p, 0) - 2e-2 * grads[p]
        velocity[p] = v
        model.params[p] = w + v
predictions = model.loss(X).argmax(axis=1)
accuracy = float((predictions == y).mean())
print('(Iteration %d) loss: %f, accuracy: %.2f' % (step, losses[-1], accuracy))

bn_param = {'mode': 'train'}
a = conv_forward_fast(X, model.params['W1'], model.params['b1'], {'stride': 1, 'pad': 1})[0]
gamma, beta = place(np.ones(4)), place(np.zeros(4))
for _ in range(3):
    spatial_batchnorm_forward(a, gamma, beta, bn_param)
bn_param['mode'] = 'test'
evaluated, bn_cache = spatial_batchnorm_forward(a, gamma, beta, bn_param)
grouped, gn_cache = spatial_groupnorm_forward(a, gamma, beta, 2, {})
dropped, drop_cache = dropout_forward(a, {'mode': 'train', 'p': 0.6, 'seed': 1})
hinge, dscores = svm_loss(model.loss(X), y)
rows, rows_cache = layernorm_forward(model.loss(X), gamma, beta, {})
out, cache = conv_bn_relu_forward(X, model.params['W1'], model.params['b1'], gamma, beta, {'stride': 1, 'pad': 1},
                                  {'mode': 'train'})
results = [a, evaluated, grouped, dropped, dscores, rows, out, *conv_bn_relu_backward(out, cache),
           *spatial_batchnorm_backward(a, bn_cache), *spatial_groupnorm_backward(a, gn_cache),
           *layernorm_backward(rows, rows_cache), dropout_backward(a, drop_cache), model.params['W2']]
"""
ALIASES = (
    "cs231n",
    "cs231n.layers",
    "cs231n.fast_layers",
    "cs231n.layer_utils",
    "cs231n.classifiers",
    "cs231n.classifiers.cnn",
)


def run_notebook(place):
    scope = {"place": place}
    exec(compile(NOTEBOOK, "notebook", "exec"), scope)
    return scope


def test_notebook(monkeypatch, capsys):
    for name in ALIASES:
        monkeypatch.setitem(sys.modules, name, ours)
    scope = run_notebook(np.asarray)
    assert scope["accuracy"] == 1.0
    assert scope["losses"][-1] < 0.1 < 1.0 < scope["losses"][0]
    assert "accuracy: 1.00" in capsys.readouterr().out


def test_notebook_with_the_package_in_the_course_s_place(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "cs231n"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cs231n", ours)
    try:
        assert run_notebook(np.asarray)["accuracy"] == 1.0
    finally:
        for name in [n for n in sys.modules if n.startswith("cs231n.")]:
            del sys.modules[name]


def test_notebook_on_cupy(monkeypatch):
    """The stand-in refuses what would cross from device to host, or lacks a name; the numbers are NumPy's."""
    for name in ALIASES:
        monkeypatch.setitem(sys.modules, name, ours)
    expected = run_notebook(np.asarray)
    with standin_cupy.installed() as cupy, backends.using("cupy"):
        got = run_notebook(cupy.asarray)
        assert all(isinstance(loss, float) for loss in got["losses"])
        assert all(isinstance(r, cupy.ndarray) for r in got["results"])
        np.testing.assert_allclose(got["losses"], expected["losses"], rtol=1e-9)
        np.testing.assert_allclose(got["hinge"], expected["hinge"], rtol=1e-6)
        for one, other in zip(got["results"], expected["results"], strict=True):
            np.testing.assert_allclose(one.get(), other, rtol=1e-6, atol=1e-9)
        with pytest.raises(TypeError, match="owner"):
            affine_forward(cupy.asarray(np.ones((2, 3))), np.ones((3, 2)), np.ones(2))
        assert isinstance(
            affine_forward(cupy.asarray(np.ones((2, 3))), cupy.asarray(np.ones((3, 1))), [1.0])[0], cupy.ndarray
        )
        scores, labels = cupy.asarray(np.ones((2, 3))), cupy.asarray(np.array([0, 3]))  # 3 is no class
        for loss, dx in (svm_loss(scores, labels), softmax_loss(scores, labels)):
            assert np.isnan(loss)
            assert np.isnan(dx.get()).tolist() == [[False] * 3, [True] * 3]
