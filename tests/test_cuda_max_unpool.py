"""max_unpool.cu on the emulator: the portable code's bits whatever the order of threads, repeated and bad indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.kernels.cuda import compile as compiler
from cnnlayers.kernels.cuda import max_unpool as launchers

from . import portable, simt, standin_cuda
from .cases.arrays import FORMATS, ordered, rivals
from .implementations import numpy_dtype

pytestmark = [
    pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable())),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # ml_dtypes and NaN
]


def agree(cupy: Any, x: np.ndarray, indices: np.ndarray, data_format: str = "channels_first") -> None:
    """The kernels' y, dx and saved cells have the bits of the portable code's."""
    y, ctx = portable.max_unpool_forward(x, indices, 2, data_format=data_format)
    dy = rivals(np.random.default_rng(1), y.shape, x.dtype)
    dx = portable.max_unpool_backward(dy, ctx)
    for number, order in enumerate(simt.ORDERS):
        with standin_cuda.emulating(order=order, seed=number) as made:
            got, kept = F.max_unpool_forward(cupy.asarray(x), cupy.asarray(indices), 2, data_format=data_format)
            gradient = F.max_unpool_backward(cupy.asarray(dy), kept)
        assert [launch.name.partition("<")[0] for launch in made] == [
            "max_unpool_claim",
            "max_unpool_write",
            "max_unpool_backward",
        ]
        for device, host in ((got, y), (gradient, dx), (kept.arrays["reached"], ctx.arrays["reached"])):
            found = device.get()
            assert (found.dtype, found.shape, found.tobytes()) == (host.dtype, host.shape, host.tobytes())


@FORMATS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_repeated_indices(cupy: Any, dtype: str, data_format: str, rng: np.random.Generator) -> None:
    for lengths in ((7,), (3, 4), (2, 3, 2)):
        x = ordered(rivals(rng, (2, 3, *lengths), numpy_dtype(dtype)), data_format)
        plane = 2 ** len(lengths) * int(np.prod(lengths))
        for most in (plane, 3):
            agree(cupy, x, ordered(rng.integers(0, most, (2, 3, *lengths)), data_format), data_format)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"])
def test_indices_of_any_dtype(cupy: Any, dtype: str, rng: np.random.Generator) -> None:
    agree(cupy, rivals(rng, (2, 3, 4, 4), numpy_dtype("float32")), rng.integers(0, 64, (2, 3, 4, 4)).astype(dtype))


def test_bad_indices_are_dropped(cupy: Any) -> None:
    x, y = np.arange(1.0, 7).reshape(1, 1, 6), np.zeros((1, 1, 12))
    indices = np.array([[[12, -1, 2**40, 3, -(2**62), 11]]])
    y[0, 0, [3, 11]] = 4, 6
    got, ctx = F.max_unpool_forward(cupy.asarray(x), cupy.asarray(indices), 2)
    assert got.get().tobytes() == y.tobytes()
    dx = F.max_unpool_backward(cupy.asarray(np.ones((1, 1, 12))), ctx)
    assert dx.get().tolist() == [[[0, 0, 0, 1, 0, 1]]]
    beyond = np.array([[[2**64 - 1] * 5 + [0]]], "uint64")
    assert F.max_unpool(cupy.asarray(x), cupy.asarray(beyond), 2).get()[0, 0].tolist() == [6] + [0] * 11


def test_64_bit_offsets_and_several_elements_a_thread(
    cupy: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, indices = rivals(rng, (3, 5, 9, 9), numpy_dtype("float32")), rng.integers(0, 18 * 18, (3, 5, 9, 9))
    monkeypatch.setattr(launchers, "grid_size", lambda b, threads: 2)
    agree(cupy, x, indices)
    monkeypatch.setattr(launchers, "offset_types", lambda *sizes: ("unsigned long long", np.uint64))
    agree(cupy, x, indices)


def test_strides_and_empty_arrays(cupy: Any, rng: np.random.Generator) -> None:
    x, indices = rivals(rng, (4, 3, 6, 5), numpy_dtype("float32")), rng.integers(0, 120, (4, 3, 6, 5))
    device, at = (cupy.asarray(a)[::-2, :, :, ::-1] for a in (x, indices))
    expected = portable.max_unpool(x[::-2, :, :, ::-1], indices[::-2, :, :, ::-1], 2)
    assert F.max_unpool(device, at, 2).get().tobytes() == expected.tobytes()
    with standin_cuda.emulating() as made:
        nothing = cupy.asarray(np.zeros((0, 3, 4), "float32"))
        y, ctx = F.max_unpool_forward(nothing, cupy.asarray(np.zeros((0, 3, 4), "int64")), 2)
        assert F.max_unpool_backward(y, ctx).shape == (0, 3, 4)
    assert made == []


def test_nothing_waits_for_the_device(cupy: Any) -> None:
    x, indices = cupy.asarray(np.zeros((2, 3, 4), "float16")), cupy.asarray(np.zeros((2, 3, 4), "int64"))
    assert kernels.warmup(F.max_unpool, x, indices, 2) == 3
    with standin_cuda.no_host_sync():
        y, ctx = F.max_unpool_forward(x, indices, 2)
        F.max_unpool_backward(y, ctx)


def test_an_entry_that_wins_no_cell_is_marked() -> None:
    """The stand-in's garbage would hide it: its bits are those of −1."""
    name = "max_unpool_claim<long long, int, int>"
    owner, reached, sizes = np.full(4, -1, "int32"), np.full(2, 7, "int32"), (2, 2, 4, 1)
    indices = np.array([4, 1])
    module = simt.Module(compiler.source("max_unpool"), [name])
    module.launch(name, (1,), (32,), (indices, owner, reached, *(np.uint32(n) for n in sizes)))
    assert (owner.tolist(), reached.tolist()) == ([-1, 1, -1, -1], [-1, -1])
