"""im2col.cu on the emulator: both steps give what the portable ones give, by tiles. More: test_conv_kernels.py."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.functional import conv_tiling as tiles
from cnnlayers.kernels.cuda import im2col as launchers
from cnnlayers.specs import conv_window
from cnnlayers.specs.conv import Conv

from . import portable, simt, standin_cuda
from .cases.conv import COLUMNS as CASES
from .implementations import on_emulator

correlate = importlib.import_module("cnnlayers.functional.correlation")

pytestmark = on_emulator


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """64-bit offsets, as if the arrays had over 2**31 elements."""
    monkeypatch.setattr(launchers, "offset_types", lambda *sizes: ("unsigned long long", np.uint64))


def spec_of(case: str) -> Conv:
    shape, kernel, stride, padding, dilation, groups, data_format = CASES[case]
    return Conv(conv_window(shape, kernel, stride, padding, dilation, data_format), 2 * groups, groups)


def steps(cupy: Any, spec: Conv, image: np.ndarray) -> Iterator[tuple[Any, np.ndarray, np.ndarray, Any]]:
    """Each (tile, block) of a convolution: a function that runs a step there, and arrays for it."""
    host, device = backends.of(image), backends.of(cupy.asarray(image))
    image = image.reshape(spec.split(image.shape))
    on_device = cupy.asarray(image)
    rng = np.random.default_rng(1)
    for tile in (tile for run in tiles.tiles_of(device, spec, image.itemsize) for tile in run):
        for block in tiles.blocks_of(device, spec, tile, image.itemsize):
            columns = rng.integers(-9, 9, correlate._columns_shape(spec, tile, len(block))).astype(image.dtype)
            both = columns.copy(), cupy.asarray(columns)

            def run(step: str, tile: Any = tile, block: Any = block, both: Any = both) -> None:
                getattr(correlate, f"_{step}")(host, spec, image, tile, block, both[0])
                getattr(launchers, step)(device, spec, on_device, tile, block, both[1])

            yield run, (image, both[0]), (on_device, both[1])


@pytest.mark.parametrize("workspace", [1, 6_000, 1 << 27], ids=["least", "tiles", "whole"])
@pytest.mark.parametrize("case", CASES)
def test_steps(cupy: Any, case: str, workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """im2col moves bits; col2im adds whole numbers, so that the order does not show."""
    monkeypatch.setattr(tiles, "DEVICE_WORKSPACE", workspace)
    spec = spec_of(case)
    image = np.random.default_rng(0).integers(-9, 9, spec.window.layout.shape).astype("float32")
    with standin_cuda.emulating(seed=workspace) as made:
        for number, (run, host, device) in enumerate(steps(cupy, spec, image)):
            if workspace == 1 and number % 5:
                continue
            for step, result in (("im2col", 1), ("col2im", 0)):
                run(step)
                assert device[result].get().tobytes() == host[result].tobytes(), f"{step} of {made[-1].name}"


@pytest.mark.parametrize("case", ["one sided", "runs"])
@pytest.mark.parametrize("order", simt.ORDERS)
def test_doubles_64_bit_offsets_and_few_threads(
    cupy: Any, wide: None, case: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "grid_size", lambda b, threads: 2)
    spec = spec_of(case)
    image = np.random.default_rng(0).integers(-9, 9, spec.window.layout.shape).astype("float64")
    with standin_cuda.emulating(order=order):
        for run, host, device in steps(cupy, spec, image):
            for step, result in (("im2col", 1), ("col2im", 0)):
                run(step)
                assert device[result].get().tobytes() == host[result].tobytes()


def test_an_image_on_no_boundary_of_a_pack(cupy: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal(1 + 2 * 5 * 6 * 16).astype("float32")
    weight = rng.standard_normal((3, 16, 3, 3)).astype("float32")
    with standin_cuda.emulating() as made:
        y = F.conv(cupy.asarray(x)[1:].reshape(2, 5, 6, 16), cupy.asarray(weight), data_format="channels_last")
    assert made[0].name == "im2col<unsigned, 1, true, unsigned>"
    expected = portable.conv(x[1:].reshape(2, 5, 6, 16), weight, data_format="channels_last")
    np.testing.assert_allclose(y.get(), expected, rtol=1e-4, atol=1e-4)


def test_nothing_waits_for_the_device(cupy: Any, rng: np.random.Generator) -> None:
    """After a warm-up neither a compilation nor a transfer is left: a CUDA graph can hold the calls."""
    for case in ("2-d", "runs"):
        shape, kernel, *options, data_format = CASES[case]
        spec = spec_of(case)
        x = cupy.asarray(rng.standard_normal(shape).astype("float16"))
        weight = cupy.asarray(rng.standard_normal((spec.filters, spec.weight_shape[2], *kernel)).astype("float32"))
        assert kernels.warmup(F.conv, x, weight, None, *options, data_format=data_format) == 2
        with standin_cuda.no_host_sync():
            y, ctx = F.conv_forward(x, weight, None, *options, data_format=data_format)
            F.conv_backward(y, ctx)


def test_windows_too_large_for_the_kernels_are_refused() -> None:
    long = Conv(conv_window((1, 1, 2**30), (3,), 1, 0, 1, "channels_first"), 1, 1)
    for step in ("im2col", "col2im"):
        assert launchers.refuses(step, spec_of("2-d")) is None
        assert "1073741824 cells" in str(launchers.refuses(step, long))
