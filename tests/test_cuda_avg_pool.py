"""avg_pool.cu on the emulator: sums, averages and adaptive averages near the portable code's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels, specs
from cnnlayers.kernels.cuda import avg_pool as launchers
from cnnlayers.kernels.cuda.window import pack_cells
from cnnlayers.specs import Average

from . import portable, simt, standin_cuda
from .cases.arrays import FORMATS, ordered
from .cases.windows import CASES, options, some_pool
from .implementations import numpy_dtype

FLOATS = ["float16", "bfloat16", "float32", "float64"]
# The portable code sums in another order: an ulp of the result's dtype, and of what the sum went through.
NEAR = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 1e-6, "float64": 1e-14}

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


def near(got: Any, expected: np.ndarray) -> None:
    host = got.get()
    assert (host.dtype, host.shape) == (expected.dtype, expected.shape)
    tolerance, wide = NEAR[host.dtype.name], expected.astype("float64")
    most = np.nanmax(np.abs(wide), initial=1)
    np.testing.assert_allclose(host.astype("float64"), wide, rtol=tolerance, atol=tolerance * most)


def agree(cupy: Any, op: str, x: np.ndarray, *args: Any, **given: Any) -> set[str]:
    """The kernels' y and dx are near the portable code's, and the same bits in any order. Gives the kernels' names."""
    forward, backward = getattr(F, f"{op}_forward"), getattr(F, f"{op}_backward")
    y, ctx = getattr(portable, f"{op}_forward")(x, *args, **given)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(x.dtype)
    dx = getattr(portable, f"{op}_backward")(dy, ctx)
    seen = set()
    for order in ("ascending", "random"):
        with standin_cuda.emulating(order=order) as made:
            got, kept = forward(cupy.asarray(x), *args, **given)
            gradient = backward(cupy.asarray(dy), kept)
        near(got, y)
        near(gradient, dx)
        seen.add((got.get().tobytes(), gradient.get().tobytes()))
    assert len(seen) == 1
    return {launch.name.partition("<")[0] for launch in made}


# -------------------------------------------------------------------------------------------------------------- values
@FORMATS
@pytest.mark.parametrize("dtype", FLOATS)
def test_windows_of_any_shape(cupy: Any, dtype: str, data_format: str, rng: np.random.Generator) -> None:
    for pool in CASES:
        x = ordered(rng.standard_normal((2, 3, *pool.lengths)), data_format).astype(numpy_dtype(dtype))
        given = options(pool) | {"data_format": data_format}
        kernel = "sum_pool_tiled" if pack_cells(window_of(x, given), x.dtype.itemsize) else "sum_pool"
        assert agree(cupy, "sum_pool", x, **given) == {kernel, f"{kernel}_backward"}
        agree(cupy, "avg_pool", x, **given)
        agree(cupy, "avg_pool", x, **given, count_include_pad=False)
    agree(cupy, "avg_pool", x, **given, divisor_override=-3)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_divisors_at_random(cupy: Any, ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    for _ in range(25):
        pool = some_pool(rng, ndim)
        x = rng.standard_normal((1, 2, *pool.lengths))
        agree(cupy, "avg_pool", x, **options(pool), count_include_pad=bool(rng.integers(2)))


@FORMATS
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_adaptive_windows(cupy: Any, dtype: str, data_format: str, rng: np.random.Generator) -> None:
    for lengths, out in [((7,), 3), ((5,), 8), ((90,), 2), ((6, 8), (3, 2)), ((5, 7), (2, 4)), ((4, 3, 5), (3, 2, 2))]:
        x = ordered(rng.standard_normal((2, 3, *lengths)), data_format).astype(dtype)
        agree(cupy, "adaptive_avg_pool", x, out, data_format=data_format)


def window_of(x: np.ndarray, given: dict[str, Any]) -> Any:
    return portable.sum_pool_forward(x, **given)[1].spec


TILES = [((2,), {}), ((3, 2, 1), {}), ((3, 1, 1), {}), ((2,), {"ceil_mode": True})]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("args", "given"), TILES, ids=str)
def test_tiles_give_the_bits_of_the_general_kernels(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, args: tuple[int, ...], given: dict[str, Any]
) -> None:
    """In ceil mode a sum: of an average the windows' counts differ."""
    forward, backward = (
        (F.sum_pool_forward, F.sum_pool_backward) if given else (F.avg_pool_forward, F.avg_pool_backward)
    )
    rng = np.random.default_rng(0)
    for h, w in ((7, 16), (8, 8), (2, 24), (3, 4)):
        x = rng.standard_normal((2, 3, h, w)).astype(numpy_dtype(dtype))
        x[0, 0, 0, :2], x[0, 1, -1, -1], x[1, 2, 0, 0] = -0.0, np.nan, np.inf
        found = []
        for general in (False, True):
            with monkeypatch.context() as patch, standin_cuda.emulating() as made:
                backends.PLANS.clear()
                if general:
                    patch.setattr(launchers, "aligned_pack_cells", lambda *a: 0)
                    patch.setattr(launchers, "is_plane", lambda window: False)
                y, ctx = forward(cupy.asarray(x), *args, **given)
                found.append((y.get().tobytes(), backward(y, ctx).get().tobytes()))
            names = {launch.name.partition("<")[0] for launch in made}
            assert general == (names == {"sum_pool", "sum_pool_backward"}), names
        assert found[0] == found[1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_window_of_the_whole_plane(cupy: Any, dtype: str) -> None:
    """A warp or a block a plane, with packs of all sizes; many planes, one, and more cells than are added at once."""
    rng = np.random.default_rng(0)
    for shape in ((2, 3, 7, 7), (1, 1, 64, 66), (3, 2, 48, 48), (70, 1, 2, 8), (2, 3, 40), (1, 2, 5, 6, 8)):
        x = rng.standard_normal(shape).astype(numpy_dtype(dtype))
        assert agree(cupy, "adaptive_avg_pool", x, 1) == {"sum_planes", "fill_planes"}
        assert agree(cupy, "sum_pool", x, shape[2:]) == {"sum_planes", "fill_planes"}
    view = cupy.asarray(rng.standard_normal(2 * 64 + 1).astype(numpy_dtype(dtype)))[1:].reshape(
        2, 1, 8, 8
    )  # not aligned
    np.testing.assert_allclose(
        F.adaptive_avg_pool(view, 1).get().astype(float),
        view.get().astype(float).mean((2, 3), keepdims=True),
        rtol=1e-2,
        atol=1e-2,
    )


def test_long_rows_are_shared_by_a_warp(cupy: Any, rng: np.random.Generator) -> None:
    wide = {"sum_pool_wide", "sum_pool_backward"}
    for dtype in FLOATS:
        x = rng.standard_normal((2, 3, 7, 70)).astype(numpy_dtype(dtype))
        assert agree(cupy, "avg_pool", x, (3, 40), (2, 30), (1, 5), ceil_mode=True) == wide
        assert agree(cupy, "adaptive_avg_pool", x, (2, 2)) == wide
        assert agree(cupy, "sum_pool", x[:, 0], 33, 3, 0, 2) == wide
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        assert "sum_pool" in agree(cupy, "avg_pool", last, (3, 40), data_format="channels_last")


@FORMATS
def test_a_large_sum_stays_exact(cupy: Any, data_format: str) -> None:  # one running sum in float32 is off by 1e-5
    x = 1 + np.random.default_rng(0).random((1, 2, 512, 512), "float32") / 8
    expected = ordered(x.mean((2, 3), keepdims=True, dtype="float64"), data_format)
    for op, size in ((F.avg_pool, 512), (F.adaptive_avg_pool, 1)):
        y = op(cupy.asarray(ordered(x, data_format)), size, data_format=data_format)
        np.testing.assert_allclose(y.get(), expected, rtol=1e-6)


def test_a_nan_spreads_through_its_windows(cupy: Any) -> None:
    x = np.ones((1, 1, 6, 6), "float32")
    x[0, 0, 2, 3] = np.nan
    y, _ = F.avg_pool_forward(cupy.asarray(x), 2, 1)
    np.testing.assert_array_equal(np.argwhere(np.isnan(y.get()[0, 0])), [(1, 2), (1, 3), (2, 2), (2, 3)])


def test_64_bit_offsets(cupy: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "offset_types", lambda *sizes: ("unsigned long long", np.uint64))
    x = rng.standard_normal((2, 3, 8, 40))
    agree(cupy, "avg_pool", x, 3, 2, 1)
    agree(cupy, "avg_pool", x, 3, 2, 1, data_format="channels_last")
    agree(cupy, "adaptive_avg_pool", x, 1)


def test_a_thread_takes_more_than_one_element(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(launchers, "grid_size", lambda b, threads: 2)
    x = rng.standard_normal((3, 5, 31, 32)).astype("float32")
    agree(cupy, "avg_pool", x, 3, 2, 1)
    agree(cupy, "adaptive_avg_pool", x, (None, 1))
    whole = rng.standard_normal((2, 3, 32, 32)).astype("float32")  # a block sums several planes, one after another
    assert agree(cupy, "adaptive_avg_pool", whole, 1) == {"sum_planes", "fill_planes"}


# ------------------------------------------------------------------------------------------------------------ launches
def test_empty_arrays_launch_nothing(cupy: Any) -> None:
    with standin_cuda.emulating() as made:
        for shape in ((0, 3, 4, 4), (2, 0, 4, 4)):
            y, ctx = F.avg_pool_forward(cupy.asarray(np.zeros(shape, "float32")), 2)
            assert F.avg_pool_backward(y, ctx).shape == shape
    assert made == []


def test_nothing_waits_for_the_device(cupy: Any) -> None:
    x = cupy.asarray(np.zeros((2, 3, 16, 40), "float16"))
    for kernel in (2, (1, 40)):
        assert kernels.warmup(F.sum_pool, x, kernel, 1) == kernels.warmup(F.avg_pool, x, kernel, 1) == 2
        with standin_cuda.no_host_sync():
            for op in ("sum_pool", "avg_pool"):
                y, ctx = getattr(F, f"{op}_forward")(x, kernel, 1)
                getattr(F, f"{op}_backward")(y, ctx)
    assert kernels.warmup(F.adaptive_avg_pool, x, 3) == 2
    with standin_cuda.no_host_sync():
        y, ctx = F.adaptive_avg_pool_forward(x, 3)
        F.adaptive_avg_pool_backward(y, ctx)


def test_what_the_kernels_refuse() -> None:
    fits = specs.pool_window((1, 1, 2**30 - 1), 2, 1, 0, 1, False, "channels_first")
    long = specs.pool_window((1, 1, 2**30 - 1), 2, 1, 1, 1, False, "channels_first")
    assert launchers.refuses("sum_pool_forward", fits) is None
    for spec in (long, Average(long), specs.adaptive_window((1, 1, 2**30), 3, "channels_first")):
        assert "cells, padding included" in str(launchers.refuses("avg_pool_forward", spec))
