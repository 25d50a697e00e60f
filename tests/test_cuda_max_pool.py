"""max_pool*.cu on the emulator: tiles, packs, narrow windows, shared rows. More answers: test_pool_kernels.py."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import specs
from cnnlayers.kernels.cuda import max_pool as launchers

from . import simt, standin_cuda
from .cases.arrays import FORMATS, drawn, line, ordered, rivals
from .cases.max_pool import TIES
from .implementations import FLOATS, Impl, agree, numpy_dtype, on_emulator

FULL = {"float16": 8, "bfloat16": 8, "float32": 4, "float64": 2}  # elements of 16 bytes

pytestmark = [
    on_emulator,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # ml_dtypes and NaN
]


# ------------------------------------------------------------------------------------------------------- the same bits
def check(emulator: Impl, x: Any, **given: Any) -> list[str]:
    """The kernels' answers have the array code's bits. Gives the kernels that ran."""
    x = emulator.array(x) if isinstance(x, np.ndarray) else x
    dy = partial(drawn, np.random.default_rng(1), dtype=x.dtype)
    return agree(emulator, "max_pool", x, dy=dy, **given)


TILES = [(2, 2, 0), (3, 1, 1), (3, 2, 1)]


@pytest.mark.sample(6)
@FORMATS
@pytest.mark.parametrize(("kernel", "stride", "pad"), TILES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_windows_that_the_compiler_knows(
    emulator: Impl, dtype: str, kernel: int, stride: int, pad: int, data_format: str, rng: np.random.Generator
) -> None:
    channels, width = (2 * FULL[dtype], 6) if data_format == "channels_last" else (2, 3 * FULL[dtype])
    for number, height in enumerate((kernel, 4, 5, 7)):
        for after in range(min(pad + 2, kernel)):  # below; at the right, windows must be as many as packs hold
            x = ordered(rivals(rng, (2, channels, height, width), numpy_dtype(dtype)), data_format)
            given = {
                "kernel_size": kernel,
                "stride": stride,
                "padding": ((pad, after), pad),
                "ceil_mode": stride == kernel,
                "data_format": data_format,
            }
            with standin_cuda.emulating(order=simt.ORDERS[number % 3], seed=number):
                for ties in TIES if dtype in ("float32", "float16") else ("first",):
                    ran = check(emulator, x, ties=ties, **given)
                    form = "narrow" if data_format == "channels_last" else "tiled"
                    assert ran == [f"max_pool_{form}", f"max_pool_{form}_backward"]


NARROW: list[tuple[tuple[int, ...], Any, Any, Any]] = [  # lengths, kernel, stride, padding
    ((11,), 2, 2, 1),
    ((12,), 3, 2, 0),
    ((9, 7), 3, 2, ((0, 1), (1, 0))),
    ((8, 7), (1, 3), 1, (0, 1)),
    ((7, 5), (2, 1), (2, 1), 0),
    ((4, 5, 7), 3, 2, 1),
    ((3, 4, 5), 3, 1, 1),
    ((5, 4, 6), 2, 2, 0),
    ((5, 6, 4), (3, 1, 3), (2, 1, 2), (1, 0, 1)),
]


@pytest.mark.sample(3)
@pytest.mark.parametrize("number", range(len(NARROW)))
def test_narrow_windows_of_any_place(emulator: Impl, number: int, rng: np.random.Generator) -> None:
    lengths, kernel, stride, pad = NARROW[number]
    dtype, channels = ("float32", "float16")[number % 2], (0, 0, 6, 3)[number % 4]  # 0: channels first
    data_format = "channels_last" if channels else "channels_first"
    x = ordered(rivals(rng, (2, channels or 2, *lengths), numpy_dtype(dtype)), data_format)
    given = {"kernel_size": kernel, "stride": stride, "padding": pad, "data_format": data_format}
    for ties, ceil_mode in (("first", True), ("first", False), ("split", True)):
        ran = check(emulator, x, ties=ties, ceil_mode=ceil_mode, **given)
        assert ran == ["max_pool_narrow", "max_pool_narrow_backward"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_and_arrays_on_narrower_boundaries(emulator: Impl, dtype: str, rng: np.random.Generator) -> None:
    def cells(x: Any) -> set[int]:
        with standin_cuda.emulating() as made:
            check(emulator, x, kernel_size=2)
        return {int(launch.name.split(", ")[3]) if "tile" in launch.name else 1 for launch in made}

    for width, expected in [(2, 2), (4, 4), (6, 2), (8, FULL[dtype]), (12, 4), (7, 1)]:
        assert cells(rivals(rng, (2, 2, 4, width), numpy_dtype(dtype))) == {expected}
    flat = emulator.array(rivals(rng, (200,), numpy_dtype(dtype)))
    for start, expected in [(1, 1), (2, 2), (4, 4), (8, FULL[dtype])]:
        ran = cells(flat[start : start + 128].reshape(2, 1, 4, 16))
        assert min(ran) == expected  # backward's own arrays are aligned
        assert ran <= {expected, FULL[dtype]}


def test_long_rows_are_shared_by_a_warp(emulator: Impl, rng: np.random.Generator) -> None:
    for dtype in ("float16", "float32", "int8", "uint64"):
        for lengths, kernel, given in [
            ((9, 13), (9, 13), {}),  # the whole plane, as one line
            ((3, 70), (2, 40), {"stride": (1, 30)}),
            ((90,), (33,), {"stride": 7, "padding": 20, "dilation": 2, "ceil_mode": True}),
            ((2, 3, 35), (2, 2, 35), {"stride": 1}),
        ]:
            x = rivals(rng, (2, 2, *lengths), numpy_dtype(dtype))
            given = {"kernel_size": kernel, **given}
            ran = check(emulator, x, return_indices=len(lengths) > 1, **given)
            assert ran == ["max_pool", "max_pool_gather"]
            with standin_cuda.emulating() as made:
                F.max_pool(emulator.array(x), **given)
            assert made[0].name.split(", ")[2] == "32"
            assert "max_pool" in check(emulator, x, ties="all", **given)  # tie bits: a thread a window
            if dtype.startswith("float"):
                check(emulator, np.full(x.shape, -np.inf, dtype), return_indices=True, **given)


def test_an_argmax_of_two_and_four_bytes(emulator: Impl) -> None:
    for taps, itemsize in ((256, 1), (257, 2), (2**16 + 1, 4)):
        x = np.zeros((1, 1, taps), "float32")
        x[..., -1] = 1
        for data_format in ("channels_first", "channels_last"):
            (y, indices), ctx = F.max_pool_forward(
                emulator.array(ordered(x, data_format)), taps, return_indices=True, data_format=data_format
            )
            assert (y.tolist(), indices.tolist(), ctx.nbytes) == ([[[1]]], [[[taps - 1]]], itemsize)
            emulator.same(F.max_pool_backward(y, ctx), ordered(x, data_format))


def test_sums_of_integer_gradients_wrap(emulator: Impl) -> None:  # as NumPy's do
    _, ctx = F.max_pool_forward(emulator.array(line(0, 9, 0, dtype="int8")), 2, 1)
    dx = F.max_pool_backward(emulator.array(line(100, 100, dtype="int8")), ctx)
    emulator.same(dx, line(0, -56, 0, dtype="int8"))


# ------------------------------------------------------------------------------------------------------------ launches
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
