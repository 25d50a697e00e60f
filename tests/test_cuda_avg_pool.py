"""avg_pool.cu on the emulator: tiles, whole planes, shared rows, long sums. More answers: test_pool_kernels.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, specs
from cnnlayers.kernels.cuda import avg_pool as launchers
from cnnlayers.kernels.cuda.window import narrow_of, tile_of
from cnnlayers.specs import Average

from . import portable, standin_cuda
from .cases.arrays import FORMATS, ordered
from .cases.windows import CASES, options
from .implementations import FLOATS, Impl, agree, numpy_dtype, on_emulator

# The array code sums in another order: an ulp of the result's dtype, and of what the sum went through.
NEAR = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 1e-6, "float64": 1e-14}
pytestmark = on_emulator


def check(emulator: Impl, op: str, x: np.ndarray, *args: Any, **given: Any) -> set[str]:
    """The kernels' answers are near the array code's, and the same bits in any order. Gives the kernels that ran."""
    y, _ = getattr(F, f"{op}_forward")(x := emulator.array(x), *args, **given)
    dy, bits = np.random.default_rng(1).standard_normal(y.shape), set()
    for order in ("ascending", "random"):
        with standin_cuda.emulating(order=order):
            ran = agree(emulator, op, x, *args, dy=lambda shape: dy, tolerance=NEAR[x.dtype.name], **given)
            y, ctx = getattr(F, f"{op}_forward")(x, *args, **given)
            dx = getattr(F, f"{op}_backward")(y, ctx)
        bits.add((y.get().tobytes(), dx.get().tobytes()))
    assert len(bits) == 1
    return set(ran)


@FORMATS
def test_windows_that_packs_hold_are_tiled(emulator: Impl, data_format: str, rng: np.random.Generator) -> None:
    for pool in CASES:
        x, given = ordered(rng.standard_normal((2, 3, *pool.lengths)), data_format), options(pool)
        window = portable.sum_pool_forward(x, **given, data_format=data_format)[1].spec
        tile, narrow = tile_of(window, x.dtype.itemsize, 16), narrow_of(window, x.dtype.itemsize)
        kernel = "sum_pool_tiled" if tile else "sum_pool_narrow" if narrow else "sum_pool"
        assert check(emulator, "sum_pool", x, **given, data_format=data_format) == {kernel, f"{kernel}_backward"}


TILES = [((2,), {}), ((3, 2, 1), {}), ((3, 1, 1), {}), ((2,), {"ceil_mode": True}), ((3, 2, 1), {"ceil_mode": True})]


@FORMATS
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("args", "given"), TILES, ids=str)
def test_tiles_give_the_bits_of_the_general_kernels(
    cupy: Any,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    args: tuple[int, ...],
    given: dict[str, Any],
    data_format: str,
) -> None:
    """In ceil mode a sum: of an average the windows' counts differ."""
    forward, backward = (
        (F.sum_pool_forward, F.sum_pool_backward) if given else (F.avg_pool_forward, F.avg_pool_backward)
    )
    rng = np.random.default_rng(0)
    for h, w in ((7, 16), (8, 8), (2, 24), (3, 4)):
        x = rng.standard_normal((2, 12 if data_format == "channels_last" else 3, h, w)).astype(numpy_dtype(dtype))
        x[0, 0, 0, :2], x[0, 1, -1, -1], x[1, 2, 0, 0] = -0.0, np.nan, np.inf
        x, found = ordered(x, data_format), []
        for general in (False, True):
            with monkeypatch.context() as patch, standin_cuda.emulating() as made:
                backends.PLANS.clear()
                if general:
                    patch.setattr(launchers, "tile_of", lambda *a: None)
                    patch.setattr(launchers, "narrow_of", lambda *a: None)
                    patch.setattr(launchers, "is_plane", lambda window: False)
                y, ctx = forward(cupy.asarray(x), *args, **given, data_format=data_format)
                found.append((y.get().tobytes(), backward(y, ctx).get().tobytes()))
            names = {launch.name.partition("<")[0] for launch in made}
            assert general == (names == {"sum_pool", "sum_pool_backward"}), names
        assert found[0] == found[1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_window_of_the_whole_plane(emulator: Impl, dtype: str) -> None:
    """A warp or a block a plane, with packs of all sizes; many planes, one, and more cells than are added at once."""
    rng = np.random.default_rng(0)
    for shape in ((2, 3, 7, 7), (1, 1, 64, 66), (3, 2, 48, 48), (70, 1, 2, 8), (2, 3, 40), (1, 2, 5, 6, 8)):
        x = rng.standard_normal(shape).astype(numpy_dtype(dtype))
        assert check(emulator, "adaptive_avg_pool", x, 1) == {"sum_planes", "fill_planes"}
        assert check(emulator, "sum_pool", x, shape[2:]) == {"sum_planes", "fill_planes"}
    for shape in ((2, 7, 7, 24), (3, 40, 5), (1, 20, 30, 3), (2, 9, 9, 300)):  # columns
        x = rng.standard_normal(shape).astype(numpy_dtype(dtype))
        ran = check(emulator, "adaptive_avg_pool", x, 1, data_format="channels_last")
        assert ran == {"pool_columns", "fill_columns"}
    view = emulator.array(rng.standard_normal(2 * 64 + 1).astype(numpy_dtype(dtype)))[1:].reshape(
        2, 1, 8, 8
    )  # not aligned
    np.testing.assert_allclose(
        F.adaptive_avg_pool(view, 1).get().astype(float),
        view.get().astype(float).mean((2, 3), keepdims=True),
        rtol=1e-2,
        atol=1e-2,
    )


def test_long_rows_are_shared_by_a_warp(emulator: Impl, rng: np.random.Generator) -> None:
    def lanes(*args: Any, **given: Any) -> str:
        assert check(emulator, *args, **given) == {"sum_pool", "sum_pool_backward"}
        with standin_cuda.emulating() as made:
            getattr(F, args[0])(emulator.array(args[1]), *args[2:], **given)
        return made[0].name.split(", ")[1]

    for dtype in FLOATS:
        x = rng.standard_normal((2, 3, 7, 70)).astype(numpy_dtype(dtype))
        assert lanes("avg_pool", x, (3, 40), (2, 30), (1, 5), ceil_mode=True) == "32"
        assert lanes("adaptive_avg_pool", x, (2, 2)) == "32"
        assert lanes("sum_pool", x[:, 0], 33, 3, 0, 2) == "32"
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        assert lanes("avg_pool", last, (3, 40), data_format="channels_last") == "1"


@pytest.mark.parametrize("dtype", FLOATS)
def test_neighbouring_channels_are_added_up_by_one_thread(emulator: Impl, dtype: str, rng: np.random.Generator) -> None:
    for channels, packs in ((8, {"float32": 4, "float64": 2}.get(dtype, 8)), (6, 2), (3, 1)):
        x = rng.standard_normal((2, 9, 7, channels)).astype(numpy_dtype(dtype))
        for op, args, more in (
            ("adaptive_avg_pool", ((4, 5),), {}),
            ("avg_pool", (5, 2, 2), {"count_include_pad": False}),
        ):
            given = {**more, "data_format": "channels_last"}
            with standin_cuda.emulating() as made:
                getattr(F, op)(emulator.array(x), *args, **given)
            assert made[0].name.split(", ")[2] == str(packs)
            assert check(emulator, op, x, *args, **given) == {"sum_pool", "sum_pool_backward"}


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


# ------------------------------------------------------------------------------------------------------------ launches
def test_what_the_kernels_refuse() -> None:
    fits = specs.pool_window((1, 1, 2**30 - 1), 2, 1, 0, 1, False, "channels_first")
    long = specs.pool_window((1, 1, 2**30 - 1), 2, 1, 1, 1, False, "channels_first")
    assert launchers.refuses("sum_pool_forward", fits) is None
    for spec in (long, Average(long), specs.adaptive_window((1, 1, 2**30), 3, "channels_first")):
        assert "cells, padding included" in str(launchers.refuses("avg_pool_forward", spec))
