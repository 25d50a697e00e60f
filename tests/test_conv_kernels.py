"""Convolution's kernels beside the array code, wherever there are kernels: every form, forward and transposed."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels

from .cases.arrays import FORMATS, ordered, stored
from .cases.conv import COLUMNS, FORMS, arrays_of
from .implementations import FLOATS, Impl, agree

tiles = importlib.import_module("cnnlayers.functional.conv_tiling")

# Sums in another order, and results that are rounded to x's dtype; of float32 Winograd's bound.
NEAR = {"float16": 2**-9, "bfloat16": 2**-6, "float32": 1e-5, "float64": 1e-13}
LARGEST = 40_000  # cells of x and of the weight that the emulator computes in a second


def check(kernel: Impl, op: str, x: np.ndarray, weight: np.ndarray, style: int = 0, **options: Any) -> None:
    """A convolution of x, or the transposed one of the shape of its maps. style: as `stored` takes it."""
    rng, channels = np.random.default_rng(1), weight.shape[0]
    if op == "conv_transpose":
        with kernels.mode("off"):
            x = rng.standard_normal(F.conv(x, weight, **options).shape).astype(x.dtype)
        channels = weight.shape[1] * options.get("groups", 1)
    arrays = [kernel.array(a) for a in (x, weight, rng.standard_normal(channels).astype(x.dtype))]
    arrays[0] = stored(arrays[0], style)
    ran = agree(kernel, op, *arrays, dy=rng.standard_normal, tolerance=NEAR[x.dtype.name], **options)
    assert set(ran) <= {"im2col", "col2im"}


@pytest.mark.sample(12)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_near_the_array_code(
    kernel: Impl, form: str, op: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (x, weight, _), options = arrays_of(form, kernel.dtype(dtype))
    if kernel.name == "standin" and max(x.size, weight.size) > LARGEST:
        pytest.skip("too large for the emulator")
    monkeypatch.setattr(tiles, "DEVICE_WORKSPACE", 20_000)  # many tiles
    check(kernel, op, x, weight, len(form) % 4, **options)


@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
@pytest.mark.parametrize("case", COLUMNS)
def test_columns_are_near_the_array_code(
    kernel: Impl, case: str, op: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "DEVICE_WORKSPACE", 20_000)
    shape, window, *moves, groups, data_format = COLUMNS[case]
    channels = shape[1] if data_format == "channels_first" else shape[-1]
    options = dict(zip(("stride", "padding", "dilation"), moves, strict=True)) | {"groups": groups}
    weight = rng.standard_normal((3 * groups, channels // groups, *window))
    check(kernel, op, rng.standard_normal(shape), weight, 2, **options, data_format=data_format)


@FORMATS
@pytest.mark.parametrize("wide", [False, True], ids=["stride 1", "strides and dilations"])
def test_convolutions_at_random(kernel: Impl, wide: bool, data_format: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(40 if kernel.name == "cpu" else 10):
        draw = lambda low, high: [int(v) for v in rng.integers(low, high + 1, 2)]  # noqa: E731
        window, channels = draw(1, 4), int(rng.integers(1, 6))
        options = {"stride": draw(1, 3), "dilation": draw(1, 2)} if wide else {}
        options |= {"padding": draw(1, 4), "groups": int(rng.choice([1, channels])), "data_format": data_format}
        x = ordered(rng.standard_normal((int(rng.integers(1, 4)), channels, *draw(4, 20))), data_format)
        check(kernel, "conv", x, rng.standard_normal((2 * channels, channels // options["groups"], *window)), **options)
