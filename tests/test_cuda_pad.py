"""pad.cu on the emulator: the portable code's bits, on any array, in any order of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels, specs
from cnnlayers.kernels.cuda import pad as launchers

from . import portable, simt, standin_cuda
from .implementations import numpy_dtype
from .reference.pad import MODES

FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTEGERS = ["int8", "uint16", "int32", "uint64"]

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """64-bit offsets, as if the arrays had over 2**31 elements."""
    monkeypatch.setattr(launchers, "offset_types", lambda *sizes: ("unsigned long long", np.uint64))


def drawn(rng: np.random.Generator, shape: Any, dtype: np.dtype) -> np.ndarray:
    """Numbers of many magnitudes, subnormal ones and both zeros among them, so that another order of adding shows."""
    if dtype.kind in "iu":
        return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    least = {"float64": 1e-308, "float32": 1e-38, "bfloat16": 1e-38}.get(dtype.name, 1e-7)
    scale = rng.choice([0.0, 1.0, 3e-3, least, -least / 7], shape)
    return (rng.standard_normal(shape) * scale).astype(dtype)


def agree(
    cupy: Any, x: np.ndarray, dy: np.ndarray | None, pads: Any, mode: str, data_format: str, value: Any = 0
) -> None:
    """The kernels' y and dx have the bits of the portable code's."""
    y, ctx = portable.pad_forward(x, pads, mode, value, data_format=data_format)
    dy = y if dy is None else dy
    dx = portable.pad_backward(dy, ctx)
    with standin_cuda.emulating() as made:
        on_device, kept = F.pad_forward(cupy.asarray(x), pads, mode, value, data_format=data_format)
        gradient = F.pad_backward(cupy.asarray(dy), kept)
    assert len(made) == (y.size > 0) + (dx.size > 0), made  # one launch each, none for an empty result
    for got, expected in ((on_device.get(), y), (gradient.get(), dx)):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert got.tobytes() == expected.tobytes(), f"{mode} {pads} {x.shape}\n{got}\nis not bit for bit\n{expected}"


# ------------------------------------------------------------------------------------------------------- the same bits
CASES = [
    ("channels_first", (2, 3, 37), [(5, 9)]),
    ("channels_first", (2, 2, 7, 9), [(3, 2), (6, 5)]),
    ("channels_first", (1, 2, 6, 9), [(-2, 3), (4, -3)]),
    ("channels_first", (1, 2, 5, 40), [(2, 0), (0, 0)]),
    ("channels_first", (1, 2, 4, 5, 6), [(1, 3), (2, -1), (3, 5)]),
    ("channels_last", (2, 7, 9, 3), [(2, 1), (-1, 3)]),
    ("channels_last", (2, 4, 5, 16), [(3, 1), (1, 2)]),
    ("channels_last", (1, 3, 4, 5, 2), [(2, 1), (0, 0), (-1, 2)]),
]


@pytest.mark.sample(10)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("mode", MODES)
def test_bits_are_the_portable_codes(cupy: Any, mode: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    value = 3 if mode == "constant" else 0
    for number, (data_format, shape, pads) in enumerate(CASES):
        x = drawn(rng, shape, numpy_dtype(dtype))
        dy = drawn(rng, specs.pad_spec(shape, pads, mode, data_format).out_shape, numpy_dtype(dtype))
        with standin_cuda.emulating(order=simt.ORDERS[number % 3], seed=number):
            agree(cupy, x, dy, pads, mode, data_format, value)


@pytest.mark.parametrize("mode", MODES)
def test_64_bit_offsets(cupy: Any, wide: None, mode: str, rng: np.random.Generator) -> None:
    for data_format, shape, pads in CASES:
        dy = drawn(rng, specs.pad_spec(shape, pads, mode, data_format).out_shape, numpy_dtype("float32"))
        agree(cupy, drawn(rng, shape, numpy_dtype("float32")), dy, pads, mode, data_format)


def test_a_thread_takes_more_than_one_pack(
    cupy: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "grid_size", lambda b, threads: 2)
    for mode in ("constant", "reflect"):
        dy = drawn(rng, (2, 2, 49, 53), numpy_dtype("float16"))
        agree(cupy, drawn(rng, (2, 2, 45, 50), numpy_dtype("float16")), dy, [(2, 2), (1, 2)], mode, "channels_first")


def test_every_small_pad_and_crop(cupy: Any, rng: np.random.Generator) -> None:
    for mode in MODES:
        for before in range(-3, 4):
            for after in range(-3, 4):
                try:
                    spec = specs.pad_spec((1, 2, 4), [(before, after)], mode, "channels_first")
                except ValueError:
                    continue
                dy = drawn(rng, spec.out_shape, numpy_dtype("float32"))
                agree(
                    cupy, drawn(rng, (1, 2, 4), numpy_dtype("float32")), dy, [(before, after)], mode, "channels_first"
                )


def test_a_lone_gradient_moves_untouched(cupy: Any) -> None:  # NaN payloads too, which a conversion would lose
    bits = np.arange(0x7C01, 0x7C41, dtype=np.uint16).reshape(1, 1, 8, 8)
    for mode, pads in (("constant", 1), ("edge", ((0, 0), (0, 1))), ("reflect", ((0, 0), (1, 0)))):
        y, ctx = F.pad_forward(cupy.asarray(bits.view(np.float16)), pads, mode)
        dx = F.pad_backward(y, ctx).get().view(np.uint16)
        assert np.array_equal(dx[..., 2:7], bits[..., 2:7])


def test_a_fill_of_any_bits(cupy: Any) -> None:
    for dtype, value in (
        ("float16", float("nan")),
        ("float64", -0.0),
        ("int64", -(2**63)),
        ("uint64", 2**64 - 1),
        ("bool", 1),
    ):
        x = np.zeros((1, 1, 3), dtype)
        expected = portable.pad(x, 2, value=value)
        assert F.pad(cupy.asarray(x), 2, value=value).get().tobytes() == expected.tobytes()


# ---------------------------------------------------------------------------------------------------------- any array
@pytest.mark.parametrize("mode", MODES)
def test_strides_and_offsets(cupy: Any, mode: str, rng: np.random.Generator) -> None:
    base = drawn(rng, (6, 8, 10, 12), numpy_dtype("float32"))
    flat = drawn(rng, (961,), numpy_dtype("float32"))
    views = [
        lambda a: a.transpose(3, 1, 2, 0),
        lambda a: a[::-1, ::2, :, ::-3],
        lambda a: a[1:, :, 2:, 1:],
    ]
    for view in views:
        host, device = view(base), view(cupy.asarray(base))
        assert np.array_equal(F.pad(device, 1, mode).get(), portable.pad(host, 1, mode), equal_nan=True)
    for start in range(4):  # contiguous, and on no boundary of a pack
        host = flat[start : start + 640].reshape(2, 4, 5, 16)
        device = cupy.asarray(flat)[start : start + 640].reshape(2, 4, 5, 16)
        for data_format in ("channels_first", "channels_last"):
            y, ctx = portable.pad_forward(host, 2, mode, data_format=data_format)
            assert F.pad(device, 2, mode, data_format=data_format).get().tobytes() == y.tobytes()
            grown = np.concatenate([np.zeros(start, "float32"), y.reshape(-1)])
            _, kept = F.pad_forward(device, 2, mode, data_format=data_format)
            dy = cupy.asarray(grown)[start:].reshape(y.shape)
            assert F.pad_backward(dy, kept).get().tobytes() == portable.pad_backward(y, ctx).tobytes()


def test_empty_arrays(cupy: Any) -> None:
    for shape, pads, mode in [
        ((0, 3, 4, 4), 1, "reflect"),
        ((2, 0, 4, 4), 1, "constant"),
        ((2, 3, 0, 4), ((2, 1), (0, 0)), "constant"),
        ((2, 3, 4, 4), ((-4, 0), (0, 0)), "edge"),
        ((2, 3, 4, 4), ((-2, -2), (1, 1)), "constant"),
    ]:
        agree(cupy, np.ones(shape, "float32"), None, pads, mode, "channels_first")


def test_nothing_waits_for_the_device(cupy: Any, rng: np.random.Generator) -> None:
    """After a warm-up neither a compilation nor a transfer is left: a CUDA graph can hold the calls."""
    for data_format, shape in (("channels_first", (2, 8, 6, 8)), ("channels_last", (2, 6, 8, 8))):
        for mode in ("constant", "wrap"):
            x = cupy.asarray(drawn(rng, shape, numpy_dtype("float16")))
            assert kernels.warmup(F.pad, x, 1, mode, data_format=data_format) in (1, 2)  # one kernel may do for both
            with standin_cuda.no_host_sync():
                y, ctx = F.pad_forward(x, 1, mode, data_format=data_format)
                F.pad_backward(y, ctx)


def test_axes_too_long_for_the_kernels_are_refused() -> None:
    fits = specs.pad_spec((1, 1, 2**30 - 2), ((1, 0),), "constant", "channels_first")
    long = specs.pad_spec((1, 1, 2**30 - 2), 1, "constant", "channels_first")
    beside = specs.pad_spec((1, 1, 2**30, 4), (0, 1), "constant", "channels_first")
    for op in ("pad_forward", "pad_backward"):
        assert launchers.refuses(op, fits) is None
        assert "1073741824 cells" in str(launchers.refuses(op, long))
        assert launchers.refuses(op, beside) is None  # an axis without padding is none for the kernel
