"""What holds for every pool alike: one shape rule, strides, empty arrays, the same bits again, and the errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels

from . import standin_cupy
from .cases.arrays import FORMATS, ordered
from .cases.windows import options, some_pool
from .implementations import Impl

WINDOWED = ["max_pool", "avg_pool", "sum_pool", "lp_pool"]
ADAPTIVE = ["adaptive_avg_pool", "adaptive_max_pool"]
ALL = [*WINDOWED, *ADAPTIVE]


def trio(name: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    return getattr(F, name), getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")


def size(name: str, kernel: Any = 2) -> dict[str, Any]:
    """The one option that a pool needs."""
    return {"output_size": kernel} if name in ADAPTIVE else {"kernel_size": kernel}


# ----------------------------------------------------------------------------------------------------------- shapes
@FORMATS
def test_all_pools_give_the_same_shape(data_format: str) -> None:  # pytorch#45357, #88144: in ceil mode they differed
    rng = np.random.default_rng(45357)
    for ndim in (1, 2, 3) * 25:
        pool = some_pool(rng, ndim)
        x = ordered(np.ones((2, 3, *pool.lengths), "float32"), data_format)
        expected = ordered(np.empty((2, 3, *pool.out)), data_format).shape
        for name in WINDOWED:
            op, forward, backward = trio(name)
            y, ctx = forward(x, **options(pool), data_format=data_format)
            assert op(x, **options(pool), data_format=data_format).shape == y.shape == expected, (name, pool)
            assert backward(y, ctx).shape == x.shape


def test_arguments_go_by_their_places(impl: Impl, rng: np.random.Generator) -> None:
    x = impl.array(rng.standard_normal((2, 3, 9, 9)))
    named = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}
    for name in ("max_pool", "avg_pool", "sum_pool"):
        op = trio(name)[0]
        impl.same(op(x, 3, 2, 1, 2), impl.numpy(op(x, **named)))
    impl.same(F.lp_pool(x, 3, 1.5, 2, 1, 2), impl.numpy(F.lp_pool(x, norm_type=1.5, **named)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (0, 0, 4, 5), (0, 2, 4)])
@FORMATS
def test_empty_batches_and_zero_channels(impl: Impl, name: str, shape: tuple[int, ...], data_format: str) -> None:
    x = impl.array(ordered(np.zeros(shape, "float32"), data_format))
    op, forward, backward = trio(name)
    for kernel in (1, 2, 4):
        given = size(name, kernel) | {"data_format": data_format}
        y, ctx = forward(x, **given)
        out = kernel if name in ADAPTIVE else None
        lengths = [out or n // kernel for n in shape[2:]]
        expected = ordered(np.zeros((*shape[:2], *lengths), "float32"), data_format).shape
        impl.numpy(y, expected, "float32")
        impl.numpy(op(x, **given), expected, "float32")
        impl.numpy(backward(y, ctx), tuple(x.shape), "float32")
        assert ctx.nbytes == 0


# ---------------------------------------------------------------------------------------------------------- strides
@pytest.mark.parametrize("name", ALL)
def test_strides_of_any_kind(impl: Impl, name: str, rng: np.random.Generator) -> None:  # cupy PR 9275: x.T read as x
    host = rng.standard_normal((6, 8, 4, 5))
    _, forward, backward = trio(name)
    views: list[Callable[[Any], Any]] = [
        lambda a: a[::-1, :, :, ::-1],
        lambda a: a[::2, 1::3, :, :],
        lambda a: a[..., ::2],
        lambda a: (np if isinstance(a, np.ndarray) else impl.xp).permute_dims(a, (3, 2, 1, 0)),
    ]
    for view in views:
        plain = np.ascontiguousarray(view(host))
        y, ctx = forward(view(impl.array(host)), **size(name))
        expected, plain_ctx = forward(plain, **size(name))
        impl.close(y, expected, rtol=1e-12)
        dy = rng.standard_normal(expected.shape)
        dx = backward(impl.array(np.repeat(dy, 2, axis=0))[::2, ...], ctx)
        impl.close(dx, backward(dy, plain_ctx), rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_the_result_is_an_array_of_its_own(name: str) -> None:
    _, forward, backward = trio(name)
    x = np.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    for kernel in (1, 4):
        y, ctx = forward(x, **size(name, kernel))
        assert not np.shares_memory(x, y)
        dy = np.ones_like(y)
        assert not np.shares_memory(dy, backward(dy, ctx))


# -------------------------------------------------------------------------------------------------------- same bits
@pytest.mark.parametrize("name", ALL)
def test_the_same_call_gives_the_same_bits(impl: Impl, name: str, rng: np.random.Generator) -> None:
    # pytorch#98925, #107011: backward was not deterministic where windows overlap; a context serves more than once
    op, forward, backward = trio(name)
    x = impl.array(rng.standard_normal((3, 4, 13, 11)), "float32")
    given = size(name, 5) | ({} if name in ADAPTIVE else {"stride": 2, "padding": 1})
    y, ctx = forward(x, **given)
    dy = impl.array(rng.standard_normal(tuple(y.shape)), "float32")
    dx = impl.numpy(backward(dy, ctx))
    for _ in range(3):
        impl.same(op(x, **given), impl.numpy(y))
        again, second = forward(x, **given)
        impl.same(again, impl.numpy(y))
        impl.same(backward(dy, ctx), dx)
        impl.same(backward(dy, second), dx)


@pytest.mark.parametrize("name", ALL)
def test_samples_and_channels_do_not_touch_each_other(impl: Impl, name: str, rng: np.random.Generator) -> None:
    host = rng.standard_normal((3, 4, 7, 6)).astype("float32")
    _, forward, backward = trio(name)
    y, ctx = forward(impl.array(host), **size(name, 3))
    dy = rng.standard_normal(tuple(y.shape)).astype("float32")
    dx = impl.numpy(backward(impl.array(dy), ctx))
    alone, ctx = forward(impl.array(host[1:2, 2:3]), **size(name, 3))
    impl.same(alone, impl.numpy(y)[1:2, 2:3])
    impl.same(backward(impl.array(dy[1:2, 2:3]), ctx), dx[1:2, 2:3])


@pytest.mark.parametrize("name", [*ALL, "pad"])
def test_the_number_of_array_operations_depends_on_the_window_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # numpy-ml#44: loops over samples, channels and pixels are too slow to use
    count, unwrap = [0], standin_cupy._unwrap

    def counting(value: Any) -> Any:  # every operation of the stand-in unwraps its arguments
        count[0] += 1
        return unwrap(value)

    def operations(shape: tuple[int, ...]) -> int:
        _, forward, backward = trio(name)
        two_thirds = tuple(2 * n // 3 for n in shape[2:])  # windows of two cells, whatever the lengths
        given = (
            {"padding": 2, "mode": "reflect"} if name == "pad" else size(name, two_thirds if name in ADAPTIVE else 3)
        )
        with standin_cupy.installed() as cupy, kernels.mode("off"):
            x = cupy.asarray(np.ones(shape, "float32"))
            count[0] = 0
            y, ctx = forward(x, **given)
            backward(y, ctx)
        return count[0]

    monkeypatch.setattr(standin_cupy, "_unwrap", counting)
    assert operations((2, 3, 9, 12)) == operations((7, 5, 12, 15)) > 0  # at least as many windows as taps on each axis


def test_the_result_stays_on_the_device_of_x() -> None:
    strict = pytest.importorskip("array_api_strict")
    x = strict.ones((1, 2, 5, 5), device=strict.Device("device1"))
    for name in ALL:
        op, forward, backward = trio(name)
        for kernel in (2, 5):
            y, ctx = forward(x, **size(name, kernel))
            assert op(x, **size(name, kernel)).device == y.device == backward(y, ctx).device == x.device
    _, indices = F.max_pool(x, 2, return_indices=True)
    assert indices.device == x.device
    assert F.max_unpool(F.max_pool(x, 2), indices, 2).device == x.device


# ----------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": (2, -1)}, ValueError, "kernel_size must be at least 1, got -1"),
        ({"kernel_size": (2, 2, 2)}, ValueError, "kernel_size needs one entry"),
        ({"kernel_size": 2.0}, TypeError, "kernel_size must be an int, got 2.0"),
        ({"kernel_size": 7}, ValueError, "kernel_size 7.*more"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": "2"}, TypeError, "stride"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"dilation": 2**31 - 1}, ValueError, "dilation 2147483647"),  # pytorch#189664
        ({"padding": 2}, ValueError, r"padding must be smaller than the effective kernel \(2 cells\), got \(2, 2\)"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "SAME"}, ValueError, "padding must be .*got 'SAME'"),
        ({"padding": None}, TypeError, "padding must be an int, got None"),
        ({"ceil_mode": 1}, TypeError, "ceil_mode must be True or False, got 1"),
        ({"data_format": "NHWC"}, ValueError, "data_format must be .*got 'NHWC'"),
        ({"data_format": "channels_last", "kernel_size": 4}, ValueError, "kernel_size 4"),
    ],
)
def test_bad_arguments(impl: Impl, name: str, given: dict[str, Any], error: type[Exception], said: str) -> None:
    x = impl.array(np.zeros((2, 3, 5, 6), "float32"))
    for op in trio(name)[:2]:
        with pytest.raises(error, match=said):
            op(x, **({"kernel_size": 2} | given))


@pytest.mark.parametrize("name", ALL)
def test_bad_arrays(name: str) -> None:
    for op in trio(name)[:2]:
        for bad in (
            [[[1.0, 2.0]]],
            None,
            np.zeros((1, 1, 4), complex if name == "max_pool" else "clongdouble"),
            np.array([[["a"]]]),
            np.zeros((1, 1, 4), object),
        ):
            with pytest.raises(TypeError, match=r"\bx must be"):
                op(bad, **size(name))
        for shape in ((4,), (4, 4), (1,) * 6):
            with pytest.raises(ValueError, match=r"x must have .* 1 to 3 spatial axes"):
                op(np.zeros(shape), **size(name))
        with pytest.raises(ValueError, match="x has a spatial axis without cells"):
            op(np.zeros((2, 3, 0, 4)), **size(name))
        if name != "max_pool":
            for dtype in ("int32", "uint8", "bool"):
                with pytest.raises(TypeError, match="x must be float16, bfloat16, float32 or float64, got"):
                    op(np.zeros((1, 1, 4), dtype), **size(name))


@pytest.mark.parametrize("name", ALL)
def test_bad_gradients(impl: Impl, name: str) -> None:
    _, forward, backward = trio(name)
    y, ctx = forward(impl.array(np.zeros((1, 1, 4), "float32")), **size(name))
    with pytest.raises(ValueError, match=r"dy must have y's shape \(1, 1, 2\), got \(1, 1, 3\)"):
        backward(impl.array(np.zeros((1, 1, 3), "float32")), ctx)
    with pytest.raises(ValueError, match="dy must have y's shape"):
        backward(impl.array(np.float32(1)), ctx)
    for bad in (impl.array(np.zeros((1, 1, 2), "int32")), [[[0.0, 0.0]]], None, 1.0):
        with pytest.raises(TypeError, match="dy must be"):
            backward(bad, ctx)
    for other in (None, {}, F.pad_forward(y, 1)[1], ctx.arrays):
        with pytest.raises(TypeError, match=f"{name}_backward needs the context of {name}_forward"):
            backward(y, other)


@pytest.mark.parametrize("name", ALL)
def test_a_gradient_of_another_owner(name: str) -> None:
    strict = pytest.importorskip("array_api_strict")
    _, forward, backward = trio(name)
    _, ctx = forward(np.zeros((1, 1, 4), "float32"), **size(name))
    with pytest.raises(TypeError, match=r"dy must have x's owner: dy is array_api_strict on .*, x was numpy on cpu"):
        backward(strict.zeros((1, 1, 2), dtype=strict.float32), ctx)


def test_a_context_says_what_it_is() -> None:
    _, ctx = F.max_pool_forward(np.zeros((2, 3, 4, 4)), 2)
    assert repr(ctx) == "<max_pool context: y (2, 3, 2, 2), 24 bytes kept>"
