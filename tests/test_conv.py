"""conv and conv_transpose: literal cases, loops from the definition, PyTorch, gradients, and the field's faults."""

from __future__ import annotations

import functools
import importlib
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers.backends import threads
from cnnlayers.backends.plans import PLANS
from cnnlayers.testing import gradcheck

from . import standin_cupy
from .cases.arrays import FORMATS, ordered
from .implementations import HALF, Impl
from .reference import conv as reference
from .reference.conv import Conv

memory = importlib.import_module("cnnlayers.backends.memory")
tiles = importlib.import_module("cnnlayers.functional.conv_tiling")
correlate = importlib.import_module("cnnlayers.functional.correlation")

# lengths, kernel, stride, padding (before, after), dilation, groups; then the channels and filters of a group
CASES = [
    (Conv((6,), (3,), (1,), ((1, 1),), (1,)), 2, 3),
    (Conv((7,), (2,), (3,), ((2, 0),), (2,), 2), 2, 1),
    (Conv((5,), (1,), (2,), ((0, 0),), (1,)), 3, 2),
    (Conv((4, 5), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)), 3, 2),
    (Conv((4, 5), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 2), 2, 3),
    (Conv((4, 3), (1, 1), (1, 1), ((1, 0), (0, 2)), (1, 1)), 2, 2),  # windows that see padding alone
    (Conv((5, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), 2, 3),
    (Conv((6, 5), (3, 2), (2, 1), ((0, 2), (1, 0)), (1, 3)), 1, 2),
    (Conv((5, 5), (2, 3), (2, 3), ((3, 1), (0, 4)), (2, 1), 3), 2, 1),
    (Conv((5, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3), 1, 1),  # depthwise
    (Conv((5, 4), (2, 3), (2, 1), ((1, 0), (0, 2)), (1, 2), 2), 1, 3),
    (Conv((1, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), 2, 2),  # most taps never meet the image
    (Conv((4, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), 2, 2),  # those that do are no neighbours
    (Conv((3, 4, 3), (2, 2, 2), (1, 2, 1), ((1, 0), (0, 1), (0, 0)), (1, 1, 2), 2), 1, 1),
    (Conv((3, 3, 4), (3, 1, 2), (2, 1, 1), ((1, 1), (0, 0), (2, 0)), (1, 1, 1)), 2, 2),
]
BY_CASE = pytest.mark.parametrize(
    ("op", "channels", "filters"), CASES, ids=lambda v: "x".join(map(str, v.lengths)) if isinstance(v, Conv) else str(v)
)


def options(op: Conv) -> dict[str, Any]:
    return {"stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}


def output_padding(op: Conv) -> tuple[int, ...]:
    """What conv_transpose must be told so that its output has the lengths of the image."""
    axes = zip(op.lengths, op.out, op.kernel, op.stride, op.padding, op.dilation, strict=True)
    return tuple(n - ((o - 1) * s + d * (k - 1) + 1 - sum(p)) for n, o, k, s, p, d in axes)


def arrays(op: Conv, channels: int, filters: int, rng: np.random.Generator) -> list[np.ndarray]:
    """An image, maps, the weight, a bias for each."""
    c, f = channels * op.groups, filters * op.groups
    shapes = [(2, c, *op.lengths), (2, f, *op.out), (f, channels, *op.kernel), (c,), (f,)]
    return [rng.standard_normal(shape) for shape in shapes]


@functools.cache
def looped(op: Conv, channels: int, filters: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A case's arrays, and what the loops make of them: maps, image, the gradients of the weight and of both biases."""
    image, maps, w, *_ = given = arrays(op, channels, filters, np.random.default_rng(0))
    made = [reference.maps(op, image, w), reference.image(op, maps, w), reference.dweight(op, image, maps)]
    return given, [*made, reference.dbias(maps), reference.dbias(image)]


def beside(bias: np.ndarray, y: np.ndarray) -> np.ndarray:
    return bias.reshape(-1, *(1,) * (y.ndim - 2))


@pytest.fixture(params=["one tile", "small tiles", "samples apart"])
def cutting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the sizes say; workspaces so small that there are many tiles of one row, blocks of one tap, and several
    strands; and on the CPU a matrix of columns for each sample."""
    if request.param == "small tiles":
        monkeypatch.setattr(tiles, "WORKSPACE", 1)
        monkeypatch.setattr(tiles, "DEVICE_WORKSPACE", 1)
    if request.param == "samples apart":
        monkeypatch.setattr(tiles, "MIN_WINDOWS_PER_SAMPLE_PRODUCT", 1)
        monkeypatch.setattr(tiles, "MIN_TILES", 1)
    PLANS.clear()
    yield
    PLANS.clear()


# ---------------------------------------------------------------------------------------------------------- literal
def test_conv_by_hand(impl: Impl) -> None:
    x = impl.array([[[1.0, 2.0, 3.0, 5.0]]])
    w = impl.array([[[1.0, 10.0]]])
    impl.close(F.conv(x, w), np.array([[[21.0, 32.0, 53.0]]]))  # the kernel is not flipped
    impl.close(F.conv(x, w, impl.array([0.5]), 2, 1), np.array([[[10.5, 32.5, 5.5]]]))
    impl.close(F.conv(x, w, dilation=3), np.array([[[51.0]]]))
    impl.close(F.conv(x, w, padding="same"), np.array([[[21.0, 32.0, 53.0, 5.0]]]))  # the extra cell goes after
    impl.close(F.conv(x, w, padding="same_lower"), np.array([[[10.0, 21.0, 32.0, 53.0]]]))
    impl.close(F.conv(x, w, padding="full"), np.array([[[10.0, 21.0, 32.0, 53.0, 5.0]]]))
    impl.close(F.conv(x, w, padding=[(0, 1)]), np.array([[[21.0, 32.0, 53.0, 5.0]]]))


def test_conv_transpose_by_hand(impl: Impl) -> None:
    x = impl.array([[[1.0, 2.0, 3.0]]])
    w = impl.array([[[1.0, 10.0]]])
    impl.close(F.conv_transpose(x, w), np.array([[[1.0, 12.0, 23.0, 30.0]]]))  # where windows overlap they add
    impl.close(F.conv_transpose(x, w, impl.array([0.5]), 2), np.array([[[1.5, 10.5, 2.5, 20.5, 3.5, 30.5]]]))
    impl.close(F.conv_transpose(x, w, padding=1), np.array([[[12.0, 23.0]]]))
    impl.close(F.conv_transpose(x, w, padding=[(1, 0)]), np.array([[[12.0, 23.0, 30.0]]]))
    impl.close(F.conv_transpose(x, w, None, 2, 0, 1), np.array([[[1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 0.0]]]))


def test_groups_by_hand(impl: Impl) -> None:
    x = impl.array(np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1))
    w = impl.array(np.array([[1.0, 1.0], [0.0, 1.0]]).reshape(2, 2, 1))
    impl.close(F.conv(x, w, groups=2), np.array([3.0, 4.0]).reshape(1, 2, 1))
    wide = impl.array(np.array([1.0, 10.0, 100.0, 1000.0]).reshape(4, 1, 1))
    impl.close(F.conv_transpose(x, wide, groups=2), np.array([21.0, 4300.0]).reshape(1, 2, 1))


# -------------------------------------------------------------------------------------------------------- the loops
@FORMATS
@BY_CASE
def test_conv_is_what_the_loops_say(
    impl: Impl,
    op: Conv,
    channels: int,
    filters: int,
    data_format: str,
    cutting: None,
) -> None:
    (image, dy, w, _, bias), (maps, spread, dweight, summed, _) = looped(op, channels, filters)
    given = impl.array(ordered(image, data_format)), impl.array(w), impl.array(bias)
    y, ctx = F.conv_forward(*given, **options(op), data_format=data_format)
    impl.close(y, ordered(maps + beside(bias, maps), data_format), rtol=1e-12, atol=1e-12)
    impl.same(F.conv(*given, **options(op), data_format=data_format), impl.numpy(y))
    dx, dw, dbias = F.conv_backward(impl.array(ordered(dy, data_format)), ctx)
    impl.close(dx, ordered(spread, data_format), rtol=1e-12, atol=1e-12)
    impl.close(dw, dweight, rtol=1e-12, atol=1e-12)
    impl.close(dbias, summed, rtol=1e-12, atol=1e-12)


@FORMATS
@BY_CASE
def test_conv_transpose_is_what_the_loops_say(
    impl: Impl,
    op: Conv,
    channels: int,
    filters: int,
    data_format: str,
    cutting: None,
) -> None:
    if any(more >= max(s, d) for more, s, d in zip(output_padding(op), op.stride, op.dilation, strict=True)):
        pytest.skip("no conv_transpose has this output")
    (dy, x, w, bias, _), (maps, spread, dweight, _, summed) = looped(op, channels, filters)
    given = impl.array(ordered(x, data_format)), impl.array(w), impl.array(bias)
    more = options(op) | {"output_padding": output_padding(op), "data_format": data_format}
    y, ctx = F.conv_transpose_forward(*given, **more)
    impl.close(y, ordered(spread + beside(bias, spread), data_format), rtol=1e-12, atol=1e-12)
    impl.same(F.conv_transpose(*given, **more), impl.numpy(y))
    dx, dw, dbias = F.conv_transpose_backward(impl.array(ordered(dy, data_format)), ctx)
    impl.close(dx, ordered(maps, data_format), rtol=1e-12, atol=1e-12)
    impl.close(dw, dweight, rtol=1e-12, atol=1e-12)
    impl.close(dbias, summed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("in_runs", [1, 10**6], ids=["runs of channels", "channel by channel"])
def test_channels_last_columns_either_way(
    impl: Impl, in_runs: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnlayers.specs.conv.LEAST_RUN", in_runs)
    op = Conv((5, 6), (3, 2), (2, 1), ((1, 1), (0, 2)), (1, 2), 2)
    image, dy, w, _, _ = arrays(op, 3, 2, rng)
    last = {"data_format": "channels_last"}
    y, ctx = F.conv_forward(impl.array(ordered(image, **last)), impl.array(w), **options(op), **last)
    impl.close(y, ordered(reference.maps(op, image, w), **last), rtol=1e-12, atol=1e-12)
    dx, dw, dbias = F.conv_backward(impl.array(ordered(dy, **last)), ctx)
    impl.close(dx, ordered(reference.image(op, dy, w), **last), rtol=1e-12, atol=1e-12)
    impl.close(dw, reference.dweight(op, image, dy), rtol=1e-12, atol=1e-12)
    assert dbias is None


def test_conv_transpose_is_the_adjoint_of_conv(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((2, 4, 9, 7)), rng.standard_normal((6, 2, 3, 2))
    given = {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}
    y = F.conv(x, w, **given)
    dy = rng.standard_normal(y.shape)
    back = F.conv_transpose(dy, w, output_padding=(1, 1), **given)
    assert back.shape == x.shape
    np.testing.assert_allclose((y * dy).sum(), (x * back).sum(), rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------- PyTorch
def some_case(rng: np.random.Generator) -> dict[str, Any]:
    ndim = int(rng.integers(1, 4))
    draw = lambda low, high: [int(n) for n in rng.integers(low, high + 1, ndim)]  # noqa: E731
    return {
        "sizes": [int(n) for n in rng.integers(1, 4, 4)],  # samples, groups, channels and filters of a group
        "lengths": draw(1, 8),
        "kernel": draw(1, 3),
        "stride": draw(1, 3),
        "padding": draw(0, 3),
        "dilation": draw(1, 3),
        "more": draw(0, 2),
    }


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
@FORMATS
def test_as_pytorch(transposed: bool, data_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    rng, compared = np.random.default_rng(68418), 0
    for _ in range(120):
        monkeypatch.setattr(tiles, "WORKSPACE", int(rng.choice([1, 500, 4 << 20])))
        monkeypatch.setattr(tiles, "MIN_WINDOWS_PER_SAMPLE_PRODUCT", int(rng.choice([1, 256])))
        PLANS.clear()
        case = some_case(rng)
        n, groups, c, f = case["sizes"]
        shape = (groups * c, f, *case["kernel"]) if transposed else (groups * f, c, *case["kernel"])
        host = [rng.standard_normal(s) for s in ((n, groups * c, *case["lengths"]), shape, (groups * f,))]
        theirs = [torch.tensor(a, requires_grad=True) for a in host]
        name = f"conv{'_transpose' if transposed else ''}{len(case['kernel'])}d"
        more = {"output_padding": case["more"]} if transposed else {}
        given = {k: case[k] for k in ("stride", "padding", "dilation")} | more | {"groups": groups}
        trio = (
            (F.conv_transpose_forward, F.conv_transpose_backward) if transposed else (F.conv_forward, F.conv_backward)
        )
        ours = ordered(host[0], data_format), *host[1:]
        try:
            expected = getattr(torch.nn.functional, name)(*theirs, **given)
        except RuntimeError:  # what PyTorch refuses is refused here
            with pytest.raises(ValueError):
                trio[0](*ours, **given, data_format=data_format)
            continue
        y, ctx = trio[0](*ours, **given, data_format=data_format)
        dy = rng.standard_normal(tuple(expected.shape))
        expected.backward(torch.tensor(dy))
        dx, dw, dbias = trio[1](ordered(dy, data_format), ctx)
        pairs = [(y, expected.detach()), (dx, theirs[0].grad), (dw, theirs[1].grad), (dbias, theirs[2].grad)]
        for i, (mine, other) in enumerate(pairs):
            wanted = ordered(other.numpy(), data_format) if i < 2 else other.numpy()
            assert mine.shape == wanted.shape
            np.testing.assert_allclose(mine, wanted, rtol=1e-9, atol=1e-12, err_msg=str(case))
        compared += 1
    assert compared > 50


@FORMATS
@pytest.mark.parametrize("groups", [1, 4, 32])
def test_in_float32_as_pytorch(groups: int, data_format: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((9, 32, 33, 20)).astype("float32")
    w = (rng.standard_normal((64, 32 // groups, 3, 3)) / 10).astype("float32")
    y, ctx = F.conv_forward(ordered(x, data_format), w, None, 1, 1, 1, groups, data_format=data_format)
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    expected = torch.nn.functional.conv2d(*theirs, None, 1, 1, 1, groups)
    np.testing.assert_allclose(y, ordered(expected.detach().numpy(), data_format), rtol=1e-4, atol=1e-4)
    dy = rng.standard_normal(expected.shape).astype("float32")
    expected.backward(torch.tensor(dy))
    dx, dw, _ = F.conv_backward(ordered(dy, data_format), ctx)
    np.testing.assert_allclose(dx, ordered(theirs[0].grad.numpy(), data_format), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dw, theirs[1].grad.numpy(), rtol=1e-4, atol=1e-3)


# -------------------------------------------------------------------------------------------------------- gradients
GRADIENTS = [
    ((2, 2, 6), (3, 2, 3), {"padding": 1}),
    ((2, 2, 5, 4), (2, 2, 1, 1), {}),
    ((2, 3, 5, 4), (3, 1, 3, 2), {"groups": 3, "stride": (1, 2), "padding": ((1, 0), (2, 1))}),
    ((2, 4, 5, 6), (6, 2, 2, 3), {"groups": 2, "stride": 2, "dilation": 2, "padding": 2}),
    ((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), {"padding": "full"}),
    ((2, 2, 5, 5), (3, 2, 2, 2), {"padding": "same", "stride": 3}),
    ((2, 2, 5, 5), (3, 2, 4, 4), {"padding": "same_lower"}),
    ((2, 2, 5, 5), (3, 2, 2, 2), {"padding": "valid"}),
]


@FORMATS
@pytest.mark.parametrize(("shape", "weight", "given"), GRADIENTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gradients_of_conv(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    given: dict[str, Any],
    bias: bool,
    data_format: str,
    rng: np.random.Generator,
) -> None:
    x, w = rng.standard_normal(shape), rng.standard_normal(weight)
    b = rng.standard_normal(weight[0]) if bias else None
    found = gradcheck(F.conv, ordered(x, data_format), w, b, **given, data_format=data_format)
    assert set(found) == ({"x", "weight", "bias"} if bias else {"x", "weight"})


@FORMATS
@pytest.mark.parametrize(
    ("shape", "weight", "given"),
    [
        ((2, 2, 4), (2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        ((2, 3, 3, 4), (3, 1, 3, 2), {"groups": 3, "stride": (1, 2), "padding": ((1, 0), (2, 1))}),
        ((2, 4, 3, 2), (4, 3, 2, 3), {"groups": 2, "stride": 3, "dilation": 2, "output_padding": (2, 0)}),
        ((2, 2, 3, 3), (2, 3, 1, 1), {"dilation": 2, "output_padding": 1}),
        ((1, 2, 2, 3, 2), (2, 2, 2, 2, 2), {}),
    ],
)
def test_gradients_of_conv_transpose(
    shape: tuple[int, ...], weight: tuple[int, ...], given: dict[str, Any], data_format: str, rng: np.random.Generator
) -> None:
    x, w = rng.standard_normal(shape), rng.standard_normal(weight)
    b = rng.standard_normal(weight[1] * given.get("groups", 1))
    gradcheck(F.conv_transpose, ordered(x, data_format), w, b, **given, data_format=data_format)
    gradcheck(F.conv_transpose, ordered(x, data_format), w, **given, data_format=data_format)


# ----------------------------------------------------------------------------------------------------- dtypes, shapes
@HALF
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_dtypes(impl: Impl, dtype: str, kernel: int, op: str, rng: np.random.Generator) -> None:
    forward, backward = getattr(F, f"{op}_forward"), getattr(F, f"{op}_backward")
    x, w, bias = rng.standard_normal((2, 3, 5, 5)), rng.standard_normal((3, 3, kernel, kernel)), rng.standard_normal(3)
    y, ctx = forward(impl.array(x, dtype), impl.array(w, "float64"), impl.array(bias, "float32"))
    exact = getattr(F, op)(x.astype(dtype).astype("float64"), w, bias.astype("float32").astype("float64"))
    tol = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-12}[dtype]
    impl.close(y, exact.astype(dtype), rtol=tol, atol=tol)
    dx, dw, dbias = backward(y, ctx)
    impl.numpy(dx, x.shape, dtype)
    impl.numpy(dw, w.shape, "float64")
    impl.numpy(dbias, bias.shape, "float32")
    mixed = backward(impl.array(np.ones(exact.shape), "float32"), ctx)  # dy of another precision
    impl.numpy(mixed[0], x.shape, dtype)


def test_bfloat16(rng: np.random.Generator) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, w = rng.standard_normal((2, 3, 5)).astype(bfloat16), rng.standard_normal((4, 3, 3)).astype(bfloat16)
    y, ctx = F.conv_forward(x, w)
    np.testing.assert_array_equal(y, F.conv(x.astype("float32"), w.astype("float32")).astype(bfloat16))
    assert [a.dtype for a in F.conv_backward(y, ctx)[:2]] == [bfloat16, bfloat16]


def test_half_types_add_up_in_float32(impl: Impl) -> None:  # candle PR 3719: 4,096 ones made 2,048
    x, w = impl.array(np.ones((1, 64, 8, 8)), "float16"), impl.array(np.ones((1, 64, 8, 8)) / 4096, "float16")
    y, ctx = F.conv_forward(x, w, impl.array([0.0], "float16"))
    impl.close(y, np.ones((1, 1, 1, 1), "float16"))
    many = impl.array(np.ones((4096, 1, 1)), "float16")
    _, ctx = F.conv_forward(many, impl.array(np.ones((1, 1, 1)), "float16"), impl.array([0.0], "float16"))
    _, dw, dbias = F.conv_backward(many, ctx)
    impl.close(dw, np.full((1, 1, 1), 4096, "float16"))
    impl.close(dbias, np.full((1,), 4096, "float16"))


@FORMATS
@pytest.mark.parametrize(
    ("n", "channels", "filters", "groups"), [(0, 2, 4, 2), (2, 0, 3, 1), (2, 3, 0, 1), (2, 0, 4, 2), (0, 0, 0, 1)]
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_empty_batches_and_zero_channels(
    impl: Impl, n: int, channels: int, filters: int, groups: int, kernel: int, data_format: str
) -> None:
    x = impl.array(ordered(np.ones((n, channels, 4, 5), "float32"), data_format))
    w = impl.array(np.ones((filters, channels // groups, kernel, kernel), "float32"))
    bias = impl.array(np.arange(filters) + 1.0, "float32")
    y, ctx = F.conv_forward(x, w, bias, 1, "same", 1, groups, data_format=data_format)
    full = np.ones((n, filters, 4, 5)) * beside(np.arange(filters) + 1.0, np.empty((0,) * 4))
    impl.same(y, ordered(full.astype("float32"), data_format))
    dx, dw, dbias = F.conv_backward(y, ctx)
    impl.same(dx, np.zeros(tuple(x.shape), "float32"))
    impl.same(dw, np.zeros(tuple(w.shape), "float32"))
    impl.close(dbias, (full.sum((0, 2, 3))).astype("float32"))

    w = impl.array(np.ones((channels, filters // groups, kernel, kernel), "float32"))
    y, ctx = F.conv_transpose_forward(x, w, bias, 1, kernel // 2, 0, 1, groups, data_format=data_format)
    impl.same(y, ordered(full.astype("float32"), data_format))
    dx, dw, _ = F.conv_transpose_backward(y, ctx)
    impl.same(dx, np.zeros(tuple(x.shape), "float32"))
    impl.same(dw, np.zeros(tuple(w.shape), "float32"))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
@pytest.mark.parametrize("groups", [1, 4])
@FORMATS
def test_strides_of_any_kind(  # cupy PR 9275: x.T was read as x
    impl: Impl, kernel: tuple[int, int], groups: int, data_format: str, rng: np.random.Generator
) -> None:
    host = rng.standard_normal((8, 8, 8, 8))
    weight = rng.standard_normal((8, 8, 2 * kernel[0], kernel[1]))[:, : 4 // groups, ::2]
    for view in (
        lambda a: a[::-1, ::2, :, ::-1] if data_format == "channels_first" else a[::-1, ..., ::-2],
        lambda a: (
            (np if isinstance(a, np.ndarray) else impl.xp).permute_dims(a, (3, 2, 1, 0))[..., 4:, :4, :][:, :4, ...]
            if data_format == "channels_first"
            else (np if isinstance(a, np.ndarray) else impl.xp).permute_dims(a, (1, 3, 0, 2))[..., 4:]
        ),
    ):
        plain = np.ascontiguousarray(view(host))
        given = {"groups": groups, "padding": 1, "data_format": data_format}
        w = impl.array(weight[::-1])[::-1, ...]
        y, ctx = F.conv_forward(view(impl.array(host)), w, **given)
        expected, plain_ctx = F.conv_forward(plain, np.ascontiguousarray(weight), **given)
        impl.close(y, expected, rtol=1e-12, atol=1e-13)
        dy = rng.standard_normal(expected.shape)
        found = F.conv_backward(impl.array(np.repeat(dy, 2, axis=0))[::2, ...], ctx)
        for mine, other in zip(found[:2], F.conv_backward(dy, plain_ctx)[:2], strict=True):
            impl.close(mine, other, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------- context, bits, room
def test_the_context_keeps_x_and_the_parameters_alone(impl: Impl, rng: np.random.Generator) -> None:
    x, w = impl.array(rng.standard_normal((2, 4, 9, 9)), "float32"), impl.array(rng.standard_normal((8, 4, 3, 3)))
    _, ctx = F.conv_forward(x, w, padding=1)
    assert ctx.nbytes == 2 * 4 * 81 * 4 + 8 * 4 * 9 * 8
    assert ctx.arrays["x"] is x
    _, ctx = F.conv_transpose_forward(x, impl.array(rng.standard_normal((4, 8, 3, 3))), impl.array(np.zeros(8)))
    assert ctx.nbytes == 2 * 4 * 81 * 4 + 8 * 4 * 9 * 8 + 8 * 8


@pytest.mark.parametrize("groups", [1, 2, 8])
@FORMATS
def test_the_same_call_gives_the_same_bits(
    impl: Impl, groups: int, data_format: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "WORKSPACE", 20_000)  # many tiles on several threads
    x = impl.array(ordered(rng.standard_normal((6, 8, 13, 11)), data_format), "float32")
    w = impl.array(rng.standard_normal((8, 8 // groups, 3, 3)), "float32")
    y, ctx = F.conv_forward(x, w, None, 1, 1, 1, groups, data_format=data_format)
    first = [impl.numpy(a) for a in (y, *F.conv_backward(y, ctx)[:2])]
    for _ in range(5):
        again, other = F.conv_forward(x, w, None, 1, 1, 1, groups, data_format=data_format)
        for context in (ctx, other):
            for mine, before in zip((again, *F.conv_backward(y, context)[:2]), first, strict=True):
                impl.same(mine, before)


@pytest.fixture
def peak_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Bytes that a call takes on one thread, beside what was there.

    The first call is not measured: it compiles kernels, and works out what later calls use again. Another thread of the
    process can only add to a measurement, so the least of three counts.
    """
    monkeypatch.setattr(threads, "num_threads", lambda: 1)

    def measure(call: Callable[[], object]) -> int:
        call()
        peaks = []
        for _ in range(3):
            memory._free.buffers.clear()  # each call has to take its workspace anew
            tracemalloc.start()
            call()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return min(peaks)

    return measure


@FORMATS
@pytest.mark.parametrize("shape", [(1, 16, 200, 200), (40, 16, 32, 32)])
def test_the_columns_of_a_large_image_never_exist_as_a_whole(
    shape: tuple[int, ...],
    data_format: str,
    peak_of: Callable[[Callable[[], object]], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = ordered(np.ones(shape, "float32"), data_format)
    w = np.ones((16, 16, 3, 3), "float32")
    monkeypatch.setattr(tiles, "WORKSPACE", tiles.WORKSPACE // 16)
    y, ctx = F.conv_forward(x, w, padding=1, data_format=data_format)
    for call in (lambda: F.conv(x, w, padding=1, data_format=data_format), lambda: F.conv_backward(y, ctx)):
        peak = peak_of(call)
        room = x.nbytes // 2 + (4 << 20)
        assert peak < y.nbytes + room, f"{peak:,} bytes; the columns would take {9 * x.nbytes:,}"


def test_partial_gradients_of_a_large_weight_are_few(
    peak_of: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "WORKSPACE", 1 << 14)
    monkeypatch.setattr(correlate, "PARTIAL_SUM_BYTES", 4 << 20)
    y, ctx = F.conv_forward(np.ones((16, 64, 8, 8), "float32"), np.ones((256, 64, 5, 5), "float32"))
    peak = peak_of(lambda: F.conv_backward(y, ctx))
    assert peak < 14 << 20, f"{peak:,} bytes; sixteen partial gradients would take {16 * 256 * 64 * 25 * 4:,}"


@FORMATS
def test_a_bias_gradient_of_many_cells_is_summed_in_float64(impl: Impl, data_format: str) -> None:
    x = impl.array(ordered(np.ones((1, 1, 400_000)), data_format), "float32")
    _, ctx = F.conv_forward(x, impl.array([[[1.0]]], "float32"), impl.array([0.0]), data_format=data_format)
    dy = impl.array(ordered(np.full((1, 1, 400_000), 0.1), data_format), "float32")
    impl.close(F.conv_backward(dy, ctx)[2], np.array([400_000 * float(np.float32(0.1))]), rtol=1e-12)


def test_the_number_of_array_operations_depends_on_the_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # numpy-ml#44: loops over samples, channels and pixels are too slow to use
    count, call = [0], standin_cupy._call

    def counting(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return call(*args, **kwargs)

    monkeypatch.setattr(standin_cupy, "_call", counting)

    def operations(n: int, channels: int, length: int, groups: int) -> int:
        with standin_cupy.installed() as cupy:
            x, w = cupy.asarray(np.ones((n, channels, length, length))), cupy.asarray(np.ones((channels, 1, 3, 3)))
            w = w if groups > 1 else cupy.asarray(np.ones((channels, channels, 3, 3)))
            count[0] = 0
            y, ctx = F.conv_forward(x, w, padding=1, groups=channels if groups > 1 else 1)
            F.conv_backward(y, ctx)
            return count[0]

    for groups in (1, 2):
        assert operations(2, 3, 5, groups) == operations(7, 6, 20, groups)


def test_infinities_stay_where_they_belong(impl: Impl) -> None:
    x = impl.array(np.where(np.arange(25.0).reshape(1, 1, 5, 5) == 0, np.inf, 1.0))
    y = impl.numpy(F.conv(x, impl.array(np.ones((1, 1, 3, 3)))))
    assert np.isinf(y).sum() == 1
    assert np.isinf(y[0, 0, 0, 0])


# ----------------------------------------------------------------------------------------------------------- errors
X, W = np.zeros((2, 4, 5, 5), "float32"), np.zeros((6, 4, 3, 3), "float32")
WRONG_CONV = [
    ((X, W[:, :3]), {}, ValueError, "x must have 3 channels"),
    ((X, W), {"groups": 2}, ValueError, "x must have 8 channels"),
    ((X, np.zeros((5, 2, 3, 3))), {"groups": 2}, ValueError, "groups must divide"),
    ((X, W), {"groups": 0}, ValueError, "groups must be at least 1"),
    ((X, W), {"groups": 1.0}, TypeError, "groups must be an int"),
    ((X, W), {"groups": True}, TypeError, "groups must be an int"),
    ((X, W[0]), {}, ValueError, "weight must be"),
    ((X, np.zeros((6, 4, 3, 0))), {}, ValueError, "weight's kernel"),
    ((X[0, 0], W), {}, ValueError, "spatial"),
    ((np.zeros((1, 1, 2, 2, 2, 2)), np.zeros((1, 1, 1, 1, 1, 1))), {}, ValueError, "spatial"),
    ((X[..., :0], W), {}, ValueError, "without cells"),
    ((X, W, np.zeros(5)), {}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
    ((X, W, np.zeros((6, 1))), {}, ValueError, "bias must have shape"),
    ((X, W), {"padding": "sane"}, ValueError, "padding must be"),
    ((X, W), {"padding": -1}, ValueError, "padding"),
    ((X, W), {"padding": (1, 2, 3)}, ValueError, "padding"),
    ((X, W), {"padding": 1.5}, TypeError, "padding"),
    ((X, W), {"stride": 0}, ValueError, "stride"),
    ((X, W), {"stride": 2**31}, ValueError, "stride"),
    ((X, W), {"dilation": 2**31 - 1}, ValueError, "more than the padded input has"),  # pytorch#189664
    ((X, W), {"dilation": 3}, ValueError, "more than the padded input has"),
    ((X, W), {"data_format": "NCHW"}, ValueError, "data_format"),
    ((X.astype(int), W), {}, TypeError, "x must be float"),
    ((X, W.astype(complex)), {}, TypeError, "weight must be real for an x of float32"),
    ((X, W.astype(int)), {}, TypeError, "weight must be float"),
    ((X, W, np.zeros(6, int)), {}, TypeError, "bias must be float"),
    ((X.tolist(), W), {}, TypeError, "x must be an array"),
    ((X, W.tolist()), {}, TypeError, "weight must be an array"),
    ((None, W), {}, TypeError, "x must be an array"),
    ((X, None), {}, TypeError, "weight must be an array"),
]
WRONG_TRANSPOSE = [
    ((X, W), {}, ValueError, "x must have 6 channels"),
    ((X, W[:4]), {"groups": 3}, ValueError, "groups must divide"),
    ((X, W[:4], np.zeros(5)), {}, ValueError, r"bias must have shape \(4,\)"),
    ((X, W[:4]), {"output_padding": 1}, ValueError, "output_padding must be smaller"),
    ((X, W[:4]), {"output_padding": -1}, ValueError, "output_padding"),
    ((X, W[:4]), {"padding": "same"}, ValueError, "padding of a transposed convolution must be numbers"),
    ((X, W[:4]), {"padding": 4}, ValueError, "leaves an output axis"),
    ((X, W[:4, :, :0]), {}, ValueError, "weight's kernel"),
]


@pytest.mark.parametrize(("args", "given", "kind", "said"), WRONG_CONV)
def test_what_conv_refuses(args: tuple[Any, ...], given: dict[str, Any], kind: type[Exception], said: str) -> None:
    for call in (F.conv, F.conv_forward):
        with pytest.raises(kind, match=said):
            call(*args, **given)


@pytest.mark.parametrize(("args", "given", "kind", "said"), WRONG_TRANSPOSE)
def test_what_conv_transpose_refuses(
    args: tuple[Any, ...], given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    for call in (F.conv_transpose, F.conv_transpose_forward):
        with pytest.raises(kind, match=said):
            call(*args, **given)


def test_what_backward_refuses() -> None:
    y, ctx = F.conv_forward(X, W)
    _, other = F.conv_transpose_forward(X, W[:4])
    with pytest.raises(ValueError, match="dy must have y's shape"):
        F.conv_backward(y[:1], ctx)
    with pytest.raises(TypeError, match="conv_backward needs the context of conv_forward"):
        F.conv_backward(y, other)
    with pytest.raises(TypeError, match="dy must be floating"):
        F.conv_backward(y.astype(int), ctx)


def test_mixed_owners() -> None:
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match="weight is array_api_strict"):
        F.conv(X, strict.asarray(W))
    y, ctx = F.conv_forward(X, W)
    with pytest.raises(TypeError, match="dy must have x's owner"):
        F.conv_backward(strict.asarray(y), ctx)
