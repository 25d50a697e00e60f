"""Complex arrays in the linear ops: results from the real parts, PyTorch where it is installed, and dot products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels, layers, optim
from cnnlayers.autograd import Tensor
from cnnlayers.kernels.cpu import jit as cpu

from .implementations import Impl

FORMATS = ["channels_first", "channels_last"]
PLANES = [
    ("avg_pool", (3, 2, 1), {}),
    ("avg_pool", (2, 1, (1, 0)), {"dilation": 2, "count_include_pad": False}),
    ("avg_pool", (3, 2, 1), {"ceil_mode": True, "divisor_override": -3}),
    ("avg_pool", (3, 2, "same"), {}),
    ("sum_pool", (2,), {}),
    ("sum_pool", (3, 2, 1, 1), {"ceil_mode": True}),
    ("adaptive_avg_pool", (2,), {}),
    ("adaptive_avg_pool", (5,), {}),
    *(("pad", (((2, 1), (0, 3)), mode), {}) for mode in ("constant", "edge", "reflect", "symmetric", "wrap")),
    ("pad", (((-1, 2), (1, -2)),), {}),
    ("pad", (((-1, 2), (1, -2)), "wrap"), {}),
]
CONVS = [
    ("conv", (6, 2, 3, 3), (1, 0, 1, 2)),
    ("conv", (6, 4, 3, 2), ((2, 1), 1, 2, 1)),
    ("conv", (5, 4, 1, 1), (1, 0, 1, 1)),
    ("conv", (4, 1, 3, 3), (1, 1, 1, 4)),
    ("conv_transpose", (4, 3, 3, 3), (1, 0, 0, 1, 2)),
    ("conv_transpose", (4, 2, 3, 2), ((2, 1), 1, (1, 0), 2, 1)),
]


def noise(rng: np.random.Generator, *shape: int, dtype: str = "complex128") -> np.ndarray:
    real, imag = rng.standard_normal((2, *shape))
    return (real + 1j * imag).astype(dtype) if dtype.startswith("complex") else real.astype(dtype)


def placed(x: np.ndarray, data_format: str) -> np.ndarray:
    """A channels-first array in a format."""
    return x if data_format == "channels_first" else np.ascontiguousarray(np.moveaxis(x, 1, -1))


def trio(name: str) -> tuple[Any, Any, Any]:
    return getattr(F, name), getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")


# ---------------------------------------------------------------------------------------------------- averages and pads
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(("name", "args", "options"), PLANES)
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_averages_and_pads_map_each_part(
    impl: Impl, rng: np.random.Generator, dtype: str, name: str, args: Any, options: Any, data_format: str
) -> None:
    op, forward, backward = trio(name)
    x = placed(noise(rng, 2, 3, 6, 5, dtype=dtype), data_format)
    options = {**options, "data_format": data_format}
    expected = op(x.real, *args, **options) + 1j * op(x.imag, *args, **options)
    y, ctx = forward(impl.array(x), *args, **options)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == "complex64" else {"rtol": 1e-12, "atol": 1e-14}
    impl.close(y, expected.astype(dtype), **close)
    impl.same(op(impl.array(x), *args, **options), impl.numpy(y))
    dy = noise(rng, *expected.shape, dtype=dtype)
    real, imag = (backward(part, forward(x.real, *args, **options)[1]) for part in (dy.real, dy.imag))
    impl.close(backward(impl.array(dy), ctx), (real + 1j * imag).astype(dtype), **close)


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 2, 3, 4, 5), (0, 3, 4, 4), (2, 0, 4, 4)], ids=str)
@pytest.mark.parametrize("data_format", FORMATS)
def test_any_rank_and_nothing(impl: Impl, rng: np.random.Generator, shape: Any, data_format: str) -> None:
    x = placed(noise(rng, *shape), data_format)
    for name, args in (("avg_pool", (2,)), ("sum_pool", (2, 1)), ("adaptive_avg_pool", (2,)), ("pad", (1, "edge"))):
        op, forward, backward = trio(name)
        y, ctx = forward(impl.array(x), *args, data_format=data_format)
        expected = op(x.real, *args, data_format=data_format) + 1j * op(x.imag, *args, data_format=data_format)
        impl.close(y, expected, rtol=1e-12)
        impl.numpy(backward(y, ctx), x.shape, "complex128")


def test_values_of_one_part_do_not_enter_the_other(impl: Impl) -> None:
    x = np.array([[[complex(1, np.inf), complex(np.nan, 2), complex(-np.inf, np.nan), 3 - 4j]]])
    impl.same(F.pad(impl.array(x), 1, "edge"), x[..., [0, 0, 1, 2, 3, 3]])
    y = impl.numpy(F.sum_pool(impl.array(x), 1))
    np.testing.assert_array_equal(y.real, x.real)
    np.testing.assert_array_equal(y.imag, x.imag)


@pytest.mark.parametrize(
    "value", [0, -0.0, 2.5, 1 - 2j, 3j, complex(np.inf, np.nan), np.complex64(1 + 1j), True], ids=str
)
@pytest.mark.parametrize("padding", [1, ((0, 2), (1, 0)), ((-1, 2), (1, -2)), ((-3, 1), (0, 0)), 0], ids=str)
def test_a_complex_fill(impl: Impl, rng: np.random.Generator, padding: Any, value: Any) -> None:
    for data_format in FORMATS:
        x = placed(noise(rng, 2, 2, 3, 4, dtype="complex64"), data_format)
        real, imag = complex(value).real, complex(value).imag
        expected = np.empty(F.pad(x.real, padding, data_format=data_format).shape, "complex64")
        expected.real = F.pad(x.real.copy(), padding, value=real, data_format=data_format)
        expected.imag = F.pad(x.imag.copy(), padding, value=imag, data_format=data_format)
        impl.same(F.pad(impl.array(x), padding, value=value, data_format=data_format), expected)


# -------------------------------------------------------------------------------------- convolutions and linear maps
def direct(name: str, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, options: Any) -> np.ndarray:
    """From real convolutions of the parts."""
    op = getattr(F, name)
    y = op(x.real, weight.real, None, *options) - op(x.imag, weight.imag, None, *options)
    y = y + 1j * (op(x.real, weight.imag, None, *options) + op(x.imag, weight.real, None, *options))
    return y if bias is None else y + bias.reshape(-1, 1, 1)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("kinds", [("c", "c"), ("c", "r"), ("c", None), ("r", "r"), ("r", "c"), ("r", None)], ids=str)
@pytest.mark.parametrize(("name", "shape", "options"), CONVS)
def test_convolutions(
    impl: Impl, rng: np.random.Generator, name: str, shape: Any, options: Any, kinds: Any, data_format: str
) -> None:
    op, forward, backward = trio(name)
    x, weight = noise(rng, 2, 4, 6, 5), noise(rng, *shape)
    filters = shape[0] if name == "conv" else shape[1] * options[-1]
    weight = weight if kinds[0] == "c" else weight.real.copy()
    bias = None if kinds[1] is None else noise(rng, filters) if kinds[1] == "c" else rng.standard_normal(filters)
    expected = direct(name, x, weight, bias, options)
    given = [None if a is None else impl.array(a) for a in (placed(x, data_format), weight, bias)]
    y, ctx = forward(*given, *options, data_format=data_format)
    impl.close(y, placed(expected, data_format), rtol=1e-12, atol=1e-12)
    impl.same(op(*given, *options, data_format=data_format), impl.numpy(y))

    dy = noise(rng, *expected.shape)
    device_dy = impl.array(placed(dy, data_format))
    dx, dweight, dbias = backward(device_dy, ctx)
    assert backward(device_dy, ctx, needs_dx=False)[0] is None
    # W is linear in x, and in W: gradients are the adjoints, of what is real the real part.
    assert np.vdot(impl.numpy(dx, given[0].shape, x.dtype), placed(x, data_format)) == pytest.approx(
        np.vdot(placed(dy, data_format), placed(direct(name, x, weight, None, options), data_format)), rel=1e-10
    )
    move = noise(rng, *shape) if kinds[0] == "c" else rng.standard_normal(shape)
    slope = np.vdot(dy, direct(name, x, move, None, options)).real
    assert np.vdot(impl.numpy(dweight, shape, weight.dtype), move).real == pytest.approx(slope, rel=1e-10)
    if bias is None:
        assert dbias is None
    else:
        sums = dy.sum(axis=(0, 2, 3))
        impl.close(dbias, sums if kinds[1] == "c" else sums.real, rtol=1e-11)


@pytest.mark.parametrize("kinds", [("c", "c"), ("c", "r"), ("c", None), ("r", "r"), ("r", "c"), ("r", None)], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 0, 5), (2, 3, 5)], ids=str)
def test_linear(impl: Impl, rng: np.random.Generator, shape: Any, kinds: Any) -> None:
    x, weight = noise(rng, *shape), noise(rng, 4, 5)
    weight = weight if kinds[0] == "c" else weight.real.copy()
    bias = None if kinds[1] is None else noise(rng, 4) if kinds[1] == "c" else rng.standard_normal(4)
    given = [None if a is None else impl.array(a) for a in (x, weight, bias)]
    y, ctx = F.linear_forward(*given)
    impl.close(y, x @ weight.T + (0 if bias is None else bias), rtol=1e-12)
    dy = noise(rng, *shape[:-1], 4)
    dx, dweight, dbias = F.linear_backward(impl.array(dy), ctx)
    impl.close(dx, dy @ weight.conj(), rtol=1e-11, atol=1e-12)
    rows = dy.reshape(-1, 4)
    products = rows.T @ x.reshape(-1, 5).conj()
    impl.close(dweight, products if kinds[0] == "c" else products.real, rtol=1e-11, atol=1e-12)
    if bias is not None:
        impl.close(dbias, rows.sum(axis=0) if kinds[1] == "c" else rows.sum(axis=0).real, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("groups", "stride", "padding", "dilation"), [(1, 1, 0, 1), (2, 2, 1, 1), (4, 1, 2, 2)])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_convolutions_as_pytorch(
    rng: np.random.Generator, name: str, dtype: str, groups: int, stride: int, padding: int, dilation: int, rank: int
) -> None:
    torch = pytest.importorskip("torch")
    x, bias = noise(rng, 2, 4, *(7, 6, 5)[:rank], dtype=dtype), noise(rng, 4, dtype=dtype)
    weight = noise(rng, 4, 4 // groups, *(3,) * rank, dtype=dtype)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    _, forward, backward = trio(name)
    options = {"stride": stride, "padding": padding, "groups": groups, "dilation": dilation}
    theirs = getattr(torch.nn.functional, f"{name}{rank}d")(*leaves, **options)
    ours, ctx = forward(x, weight, bias, **options)
    close = {"rtol": 2e-4, "atol": 2e-4} if dtype == "complex64" else {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(ours, theirs.detach().numpy(), **close)
    dy = noise(rng, *ours.shape, dtype=dtype)
    theirs.backward(torch.tensor(dy))
    for gradient, leaf in zip(backward(dy, ctx), leaves, strict=True):
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), **close)


def test_winograd_and_many_channels(impl: Impl, rng: np.random.Generator) -> None:
    x, weight = noise(rng, 4, 16, 16, 16, dtype="complex64"), noise(rng, 16, 16, 3, 3, dtype="complex64")
    dy = noise(rng, 4, 16, 16, 16, dtype="complex64")
    y, ctx = F.conv_forward(impl.array(x), impl.array(weight), padding=1)
    wide, wide_ctx = F.conv_forward(x.astype("complex128"), weight.astype("complex128"), padding=1)
    impl.close(y, wide.astype("complex64"), rtol=0, atol=1e-4)
    found, expected = F.conv_backward(impl.array(dy), ctx), F.conv_backward(dy.astype("complex128"), wide_ctx)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        impl.close(ours, theirs.astype("complex64"), rtol=0, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- dtypes, views
def test_parameters_are_cast_to_the_precision_of_x(impl: Impl, rng: np.random.Generator) -> None:
    x, dy = noise(rng, 1, 2, 4, 4, dtype="complex64"), noise(rng, 1, 3, 2, 2, dtype="complex64")
    for dtype in ("float32", "float64", "complex64", "complex128"):
        weight = noise(rng, 3, 2, 3, 3, dtype=dtype)
        y, ctx = F.conv_forward(impl.array(x), impl.array(weight))
        expected = F.conv(x.astype("complex128"), weight.astype("complex128")).astype("complex64")
        impl.close(y, expected, rtol=1e-4, atol=1e-5)
        dx, dweight, _ = F.conv_backward(impl.array(dy), ctx)
        impl.numpy(dx, x.shape, "complex64")
        impl.numpy(dweight, weight.shape, dtype)


def test_a_real_gradient_of_a_complex_result(impl: Impl, rng: np.random.Generator) -> None:
    x, dy = noise(rng, 1, 2, 4), rng.standard_normal((1, 2, 2))
    _, ctx = F.avg_pool_forward(impl.array(x), 2)
    impl.close(F.avg_pool_backward(impl.array(dy), ctx), np.repeat(dy / 2, 2, axis=-1).astype(complex))


def test_strided_views(rng: np.random.Generator) -> None:
    whole = noise(rng, 6, 4, 9, 8)
    x = whole[::2, ::-1, 1:, ::-2]
    weight = noise(rng, 3, 3, 4, 2).transpose(3, 2, 0, 1)
    for mode in ("off", "auto"):
        with kernels.mode(mode):
            for call in (
                lambda a: F.avg_pool(a, 2),
                lambda a: F.pad(a, 1, "reflect"),
                lambda a: F.conv(a, weight),
                lambda a: F.conv(a, weight.real),
            ):
                np.testing.assert_array_equal(call(x), call(x.copy()))


@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
def test_the_kernels_serve(rng: np.random.Generator) -> None:
    for dtype in ("complex64", "complex128"):
        x, weight = noise(rng, 2, 4, 8, 8, dtype=dtype), noise(rng, 4, 4, 3, 3, dtype=dtype)
        with kernels.mode("require"):
            for name, args in (
                ("avg_pool", (2,)),
                ("sum_pool", (3, 2)),
                ("adaptive_avg_pool", (3,)),
                ("pad", (1, "wrap")),
                ("conv", (weight,)),
                ("conv_transpose", (weight,)),
            ):
                _, forward, backward = trio(name)
                y, ctx = forward(x, *args)
                backward(y, ctx)


def test_sums_of_many_values_keep_their_digits() -> None:
    x = np.full((1, 1, 1_000_000), 0.1 - 0.3j, "complex64")
    for mode in ("off", "auto"):
        with kernels.mode(mode):
            np.testing.assert_allclose(F.adaptive_avg_pool(x, 1), x[..., :1], rtol=1e-6)
            y = F.linear(x, np.ones((1, 1_000_000), "complex64"))
            np.testing.assert_allclose(y, x[..., :1] * 1_000_000, rtol=1e-6)
    _, ctx = F.pad_forward(np.zeros((1, 1, 1), "complex64"), ((100_000, 0),), "edge")
    dx = F.pad_backward(np.full((1, 1, 100_001), 0.1j, "complex64"), ctx)
    np.testing.assert_allclose(dx, [[[10_000.1j]]], rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- errors
OTHERS = [
    ("max_pool", (2,)),
    ("adaptive_max_pool", (1,)),
    ("lp_pool", (2,)),
    ("batch_norm", ()),
    ("group_norm", (1,)),
    ("instance_norm", ()),
    ("layer_norm", (4,)),
    ("rms_norm", (4,)),
    ("local_response_norm", (3,)),
    *((name, ()) for name in ("relu", "leaky_relu", "gelu", "sigmoid", "tanh", "softmax", "dropout")),
    ("mse_loss", (np.zeros((1, 2, 4, 4)),)),
]


@pytest.mark.parametrize(("name", "args"), OTHERS, ids=[name for name, _ in OTHERS])
def test_other_ops_refuse(impl: Impl, name: str, args: Any) -> None:
    x = impl.array(np.ones((1, 2, 4, 4), "complex64"))
    args = tuple(impl.array(a) if isinstance(a, np.ndarray) else a for a in args)
    with pytest.raises(TypeError, match="complex64: of all ops, only pad, avg_pool"):
        getattr(F, name)(x, *args)


def test_errors(impl: Impl, rng: np.random.Generator) -> None:
    x, weight = noise(rng, 1, 2, 4, 4), noise(rng, 3, 2, 3, 3)
    for name in ("conv", "conv_transpose"):
        w = impl.array(weight if name == "conv" else weight.transpose(1, 0, 2, 3))
        with pytest.raises(TypeError, match=r"weight must be real for an x of .*float64.* got .*complex128"):
            getattr(F, name)(impl.array(x.real), w)
        with pytest.raises(TypeError, match="bias must be real"):
            getattr(F, name)(impl.array(x.real), impl.array(backends.to_numpy(w).real), impl.array(np.ones(3, complex)))
    with pytest.raises(TypeError, match="weight must be real"):
        F.linear(impl.array(np.ones((2, 3))), impl.array(np.ones((2, 3), complex)))
    with pytest.raises(TypeError, match=r"dy must be floating, got .*complex128"):
        F.avg_pool_backward(
            impl.array(np.ones((1, 1, 2), complex)), F.avg_pool_forward(impl.array(np.ones((1, 1, 4))), 2)[1]
        )
    with pytest.raises(TypeError, match=r"dy must be complex or floating, got .*int64"):
        F.avg_pool_backward(
            impl.array(np.ones((1, 1, 2), int)), F.avg_pool_forward(impl.array(np.ones((1, 1, 4), complex)), 2)[1]
        )
    with pytest.raises(ValueError, match="value must lie within complex64's range"):
        F.pad(impl.array(x, "complex64"), 1, value=1e39j)
    with pytest.raises(TypeError, match="value must be a real number"):
        F.pad(impl.array(x.real), 1, value=1j)
    with pytest.raises(TypeError, match="value must be"):
        F.pad(impl.array(x), 1, value="1j")
    with pytest.raises(ValueError, match="mode 'constant'"):
        F.pad(impl.array(x), 1, "edge", value=1j)
    with pytest.raises(TypeError, match="weight must be float"):
        F.conv(impl.array(x), impl.array(np.ones((3, 2, 3, 3), int)))


# -------------------------------------------------------------------------------------------------------------- layers
def test_layers_take_complex_arrays(rng: np.random.Generator) -> None:
    first = layers.Conv(2, 3, 3, padding=1, padding_mode="reflect", rng=0)
    net = layers.Sequential(first, layers.AvgPool(2), layers.Flatten(), layers.Linear(27, 4, rng=1))
    x, dy = noise(rng, 2, 2, 6, 6, dtype="complex64"), noise(rng, 2, 4, dtype="complex64")
    assert net(x).dtype == net.backward(dy).dtype == "complex64"
    assert {g.dtype.name for g in net.grads.values()} == {"float32"}
    with pytest.raises(TypeError, match="of all ops, only pad"):
        layers.ReLU()(x)


def test_complex_weights_are_assigned_and_loaded(rng: np.random.Generator) -> None:
    layer = layers.Conv(2, 3, 3, rng=0)
    params, old = layer.params, layer.params["weight"]
    sgd = optim.SGD(params, lr=0.1)
    params["weight"] = noise(rng, 3, 2, 3, 3, dtype="complex128")
    assert params["weight"] is layer.params["weight"]
    assert layer.params["weight"].dtype == "complex64"  # in the precision of before
    x = noise(rng, 1, 2, 5, 5, dtype="complex64")
    layer.backward(layer(x))
    assert layer.grads["weight"].dtype == "complex64"
    assert layer.grads["bias"].dtype == "float32"
    with pytest.raises(RuntimeError, match="is another array now"):
        sgd.step(layer.grads)
    assert old.dtype == "float32"
    again = layers.Conv(2, 3, 3, rng=1).load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(again(x), layer(x))
    norm = layers.BatchNorm(3)
    with pytest.raises(TypeError, match="weight must hold real numbers, got complex64"):
        norm.params["weight"] = np.ones(3, "complex64")


@pytest.mark.parametrize(("kind", "options"), [(optim.SGD, {"lr": 0.1, "momentum": 0.9}), (optim.Adam, {"lr": 1e-2})])
def test_optimisers_of_complex_parameters_are_pytorchs(rng: np.random.Generator, kind: Any, options: Any) -> None:
    torch = pytest.importorskip("torch")
    ours = noise(rng, 3, 2)
    theirs = torch.tensor(ours.copy(), requires_grad=True)
    optimizer, other = kind({"p": ours}, **options), getattr(torch.optim, kind.__name__)([theirs], **options)
    for _ in range(4):
        gradient = noise(rng, 3, 2)
        optimizer.step({"p": gradient})
        theirs.grad = torch.tensor(gradient)
        other.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12)
    twin = kind({"p": ours.copy()}, **options)
    twin.load_state_dict(optimizer.state_dict())
    optimizer.step({"p": gradient})
    twin.step({"p": gradient})
    np.testing.assert_array_equal(twin.params["p"], ours)


# --------------------------------------------------------------------------------------------------- PyTorch, autograd
def test_ops_on_pytorchs_tensors(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    import cnnlayers.torch.functional as ours

    x, weight, bias = (
        torch.tensor(noise(rng, *shape), requires_grad=True) for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,))
    )
    for given in (x, x.conj()):
        y, theirs = ours.conv(given, weight, bias), torch.nn.functional.conv2d(given, weight, bias)
        torch.testing.assert_close(y, theirs)
        dy = torch.tensor(noise(rng, *y.shape))
        for a, b in zip(*(torch.autograd.grad(r, [x, weight, bias], dy) for r in (y, theirs)), strict=True):
            torch.testing.assert_close(a, b)
    padded = ours.pad(x, 1, "reflect")
    torch.testing.assert_close(padded, torch.nn.functional.pad(x, (1, 1, 1, 1), "reflect"))
    with pytest.raises(TypeError, match="only pad"):
        ours.relu(x.detach())


def test_tensors_of_autograd_are_real() -> None:
    with pytest.raises(TypeError, match=r"got .*complex64: Tensors are real; for complex arrays call .*functional"):
        Tensor(np.ones(2, "complex64"))
