"""max_pool.cu and max_pool_tiled.cu on the emulator: the portable code's bits in any order of threads."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels, specs
from cnnlayers.kernels.cuda import max_pool as launchers

from . import portable, simt, standin_cuda
from .cases.arrays import FORMATS, drawn, ordered, rivals
from .cases.windows import CASES, options
from .implementations import numpy_dtype
from .reference.pool import Pool

FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int64", "uint8", "uint64"]
TIES = ("first", "all", "split")
FULL = {"float16": 8, "bfloat16": 8, "float32": 4, "float64": 2}  # elements of 16 bytes

pytestmark = [
    pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable())),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # ml_dtypes and NaN
]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """64-bit offsets, as if the arrays had over 2**31 elements."""
    monkeypatch.setattr(launchers, "offset_types", lambda *sizes: ("unsigned long long", np.uint64))


def same(got: Any, expected: np.ndarray) -> None:
    host = got.get()
    assert (host.dtype, host.shape) == (expected.dtype, expected.shape)
    assert host.tobytes() == expected.tobytes(), f"{host}\nis not bit for bit\n{expected}"


def agree(cupy: Any, x: Any, given: dict[str, Any], ties: str = "first", indices: bool = False) -> set[str]:
    """The kernels' y, indices, saved bits and dx have the bits of the portable code's. Gives the kernels' names."""
    host, device = x if isinstance(x, tuple) else (x, cupy.asarray(x))
    given = given | {"return_indices": indices}
    first = (lambda y: y[0]) if indices else (lambda y: y)
    y, ctx = portable.max_pool_forward(host, **given, ties=ties)
    with standin_cuda.emulating() as made:
        got, kept = F.max_pool_forward(device, **given, ties=ties)
        inference = F.max_pool(device, **given)
        for pair in (got, inference):
            same(first(pair), first(y))
            if indices:
                same(pair[1], y[1])
        if ties != "first":
            same(kept.arrays["saved"], ctx.arrays["saved"])
        if host.dtype.kind in "fV" or (host.dtype.kind in "iu" and ties != "split"):
            dy = drawn(np.random.default_rng(1), first(y).shape, host.dtype)
            dx = portable.max_pool_backward(dy, ctx)
            same(F.max_pool_backward(cupy.asarray(dy), kept), dx)
    return {launch.name.partition("<")[0] for launch in made}


# ------------------------------------------------------------------------------------------------------- the same bits
@pytest.mark.sample(8)
@FORMATS
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_windows_of_any_shape(cupy: Any, dtype: str, data_format: str, rng: np.random.Generator) -> None:
    rest = Pool(
        (5, 5, 5), (2, 2, 2), (2, 2, 2), ((0, 0),) * 3, (1, 1, 1)
    )  # disjoint, with cells that no window reaches
    for number, pool in enumerate((*CASES, rest)):
        x = ordered(rivals(rng, (2, 3, *pool.lengths), numpy_dtype(dtype)), data_format)
        with standin_cuda.emulating(order=simt.ORDERS[number % 3], seed=number):
            for ties in TIES:
                agree(
                    cupy,
                    x,
                    options(pool) | {"data_format": data_format},
                    ties,
                    indices=(number + TIES.index(ties)) % 2 > 0,
                )


TILES = [(2, 2, 0), (3, 1, 1), (3, 2, 1)]


@pytest.mark.sample(6)
@pytest.mark.parametrize(("kernel", "stride", "pad"), TILES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_windows_that_the_compiler_knows(
    cupy: Any, dtype: str, kernel: int, stride: int, pad: int, rng: np.random.Generator
) -> None:
    for number, height in enumerate((kernel, 4, 5, 7)):
        for after in range(min(pad + 2, kernel)):  # below; at the right, windows must be as many as packs hold
            x = rivals(rng, (2, 2, height, 3 * FULL[dtype]), numpy_dtype(dtype))
            given = {
                "kernel_size": kernel,
                "stride": stride,
                "padding": ((pad, after), pad),
                "ceil_mode": stride == kernel,
            }
            with standin_cuda.emulating(order=simt.ORDERS[number % 3], seed=number):
                for ties in TIES if dtype in ("float32", "float16") else ("first",):
                    ran = agree(cupy, x, given, ties)
                    assert ran == {"max_pool_tiled", "max_pool_tiled_backward"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_and_arrays_on_narrower_boundaries(cupy: Any, dtype: str, rng: np.random.Generator) -> None:
    def cells(x: Any) -> set[int]:
        with standin_cuda.emulating() as made:
            agree(cupy, x, {"kernel_size": 2})
        return {int(launch.name.split(", ")[3]) if "tile" in launch.name else 1 for launch in made}

    for width, expected in [(2, 2), (4, 4), (6, 2), (8, FULL[dtype]), (12, 4), (7, 1)]:
        assert cells(rivals(rng, (2, 2, 4, width), numpy_dtype(dtype))) == {expected}
    flat, device = (lambda a: (a, cupy.asarray(a)))(rivals(rng, (200,), numpy_dtype(dtype)))
    for start, expected in [(1, 1), (2, 2), (4, 4), (8, FULL[dtype])]:
        views = tuple(a[start : start + 128].reshape(2, 1, 4, 16) for a in (flat, device))
        ran = cells(views)
        assert min(ran) == expected  # backward's own arrays are aligned
        assert ran <= {expected, FULL[dtype]}


def test_long_rows_are_shared_by_a_warp(cupy: Any, rng: np.random.Generator) -> None:
    for dtype in ("float16", "float32", "int8", "uint64"):
        for lengths, kernel, given in [
            ((9, 13), (9, 13), {}),  # the whole plane, as one line
            ((3, 70), (2, 40), {"stride": (1, 30)}),
            ((90,), (33,), {"stride": 7, "padding": 20, "dilation": 2, "ceil_mode": True}),
            ((2, 3, 35), (2, 2, 35), {"stride": 1}),
        ]:
            x = rivals(rng, (2, 2, *lengths), numpy_dtype(dtype))
            ran = agree(cupy, x, {"kernel_size": kernel} | given, indices=len(lengths) > 1)
            assert ran == {"max_pool_wide", "max_pool_gather"}
            assert "max_pool" in agree(cupy, x, {"kernel_size": kernel} | given, "all")  # tie bits: a thread a window
            if dtype.startswith("float"):
                agree(cupy, np.full(x.shape, -np.inf, dtype), {"kernel_size": kernel} | given, indices=True)


def test_an_argmax_of_two_and_four_bytes(cupy: Any) -> None:
    for taps, itemsize in ((256, 1), (257, 2), (2**16 + 1, 4)):
        x = np.zeros((1, 1, taps), "float32")
        x[..., -1] = 1
        for data_format in ("channels_first", "channels_last"):
            agree(cupy, ordered(x, data_format), {"kernel_size": taps, "data_format": data_format})
        _, ctx = F.max_pool_forward(cupy.asarray(x), taps)
        assert ctx.nbytes == itemsize


@FORMATS
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_adaptive_windows(cupy: Any, dtype: str, data_format: str, rng: np.random.Generator) -> None:
    for lengths, out in [((7,), 3), ((5,), 8), ((90,), 2), ((6, 8), (3, 2)), ((5, 7), (2, 4)), ((4, 3, 5), (3, 2, 2))]:
        x = ordered(rivals(rng, (2, 3, *lengths), numpy_dtype(dtype)), data_format)
        y, ctx = portable.adaptive_max_pool_forward(x, out, data_format=data_format)
        got, kept = F.adaptive_max_pool_forward(cupy.asarray(x), out, data_format=data_format)
        same(got, y)
        same(F.adaptive_max_pool(cupy.asarray(x), out, data_format=data_format), y)
        same(kept.arrays["argmax"], ctx.arrays["argmax"])
        dy = drawn(rng, y.shape, numpy_dtype(dtype))
        dx = F.adaptive_max_pool_backward(cupy.asarray(dy), kept).get()
        np.testing.assert_array_equal(
            dx, portable.adaptive_max_pool_backward(dy, ctx)
        )  # where lengths divide −0 stays −0


def test_64_bit_offsets(cupy: Any, wide: None, rng: np.random.Generator) -> None:
    x = rivals(rng, (2, 3, 6, 8), numpy_dtype("float32"))
    for given, ties in [
        ({"kernel_size": 2}, "first"),
        ({"kernel_size": 3, "stride": 1, "padding": 1}, "split"),
        ({"kernel_size": 2, "data_format": "channels_last"}, "first"),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "data_format": "channels_last"}, "all"),
        ({"kernel_size": (6, 8)}, "first"),
    ]:
        agree(cupy, x, given, ties)
    agree(cupy, x, {"kernel_size": 2}, indices=True)


def test_a_thread_takes_more_than_one_element(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(launchers, "grid_size", lambda b, threads: 2)
    x = rivals(rng, (3, 5, 31, 32), numpy_dtype("float32"))
    for given in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 1, "padding": 1}, {"kernel_size": (31, 32)}):
        agree(cupy, x, given)
        agree(cupy, x[..., :-1], given | {"kernel_size": 3, "stride": 3}, "all")


def test_sums_of_integer_gradients_wrap(cupy: Any) -> None:  # as NumPy's do
    _, ctx = F.max_pool_forward(cupy.asarray(np.array([[[0, 9, 0]]], "int8")), 2, 1)
    dx = F.max_pool_backward(cupy.asarray(np.array([[[100, 100]]], "int8")), ctx)
    same(dx, np.array([[[0, -56, 0]]], "int8"))


def test_strides_of_any_kind(cupy: Any, rng: np.random.Generator) -> None:
    base = rivals(rng, (6, 8, 10, 12), numpy_dtype("float32"))
    for view in (
        lambda a: a.transpose(3, 1, 2, 0),
        lambda a: a[::-1, ::2, :, ::-3],
        lambda a: a[1:, :, 2:, 1:],
        lambda a: a[:, :, :, ::2],
    ):
        agree(cupy, (view(base), view(cupy.asarray(base))), {"kernel_size": 2})


# ------------------------------------------------------------------------------------------------------------ launches
def test_empty_arrays_launch_nothing(cupy: Any) -> None:
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4)):
        with standin_cuda.emulating() as made:
            for given in ({"kernel_size": 2}, {"kernel_size": 3, "ties": "all", "return_indices": True}):
                y, ctx = F.max_pool_forward(cupy.asarray(np.zeros(shape, "float32")), **given)
                y = y[0] if "ties" in given else y
                assert F.max_pool_backward(y, ctx).shape == shape
        assert made == []


def test_nothing_waits_for_the_device(cupy: Any) -> None:
    """After a warm-up neither a compilation nor a transfer is left: a CUDA graph can hold the calls."""
    for kernel, stride, pad, ties in [(2, 2, 0, "first"), (3, 1, 1, "split"), (3, 3, 0, "first"), (16, 1, 0, "first")]:
        x = cupy.asarray(np.zeros((2, 3, 16, 16), "float16"))
        assert kernels.warmup(F.max_pool, x, kernel, stride, pad, ties=ties) >= 2
        with standin_cuda.no_host_sync():
            F.max_pool(x, kernel, stride, pad)
            y, ctx = F.max_pool_forward(x, kernel, stride, pad, ties=ties)
            F.max_pool_backward(y, ctx)
    for out in (1, 5):
        assert kernels.warmup(F.adaptive_max_pool, x, out) >= 2
        with standin_cuda.no_host_sync():
            F.adaptive_max_pool(x, out)
            y, ctx = F.adaptive_max_pool_forward(x, out)
            F.adaptive_max_pool_backward(y, ctx)


def test_what_the_kernels_refuse() -> None:
    def window(length: int, kernel: int, dilation: int = 1, padding: int = 0) -> Any:
        spec = specs.pool_window((1, 1, length), kernel, 1, padding, dilation, False, "channels_first")
        return types.SimpleNamespace(window=spec)

    assert launchers.refuses("max_pool", window(2**30 - 1, 2)) is None
    assert "1073741824 cells" in str(launchers.refuses("max_pool", window(2**30, 2)))
    assert "cells, padding included" in str(launchers.refuses("max_pool", window(4, 2, 2**29, 2**29)))
    assert "taps" in str(launchers.refuses("max_pool", types.SimpleNamespace(window=_cube(2**11))))


def _cube(side: int) -> Any:
    return specs.pool_window((1, 1, side, side, side), side, 1, 0, 1, False, "channels_first")


def test_equal_specs_share_a_launch(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options in a list make a spec anew at each call."""
    made = []
    make = launchers._make_forward

    def counted(*args: Any) -> Any:
        made.append(args)
        return make(*args)

    monkeypatch.setattr(launchers, "_make_forward", counted)
    x = cupy.asarray(np.arange(30.0, dtype="float32").reshape(1, 1, 5, 6))
    found = [F.max_pool(x, [2, 3], padding=[1, 1]).get().tolist() for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert len(made) == 1
