"""max_unpool.cu on the emulator: bad indices, views, entries that win no cell. More answers: test_pool_kernels.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers.kernels.cuda import compile as compiler

from . import simt
from .cases.arrays import rivals
from .implementations import Impl, agree, numpy_dtype, on_emulator

pytestmark = [
    on_emulator,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # ml_dtypes and NaN
]


def test_strides(emulator: Impl, rng: np.random.Generator) -> None:
    x, indices = rivals(rng, (4, 3, 6, 5), numpy_dtype("float32")), rng.integers(0, 120, (4, 3, 6, 5))
    agree(emulator, "max_unpool", *(emulator.array(a)[::-2, :, :, ::-1] for a in (x, indices)), 2)


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


def test_an_entry_that_wins_no_cell_is_marked() -> None:
    """The stand-in's garbage would hide it: its bits are those of −1."""
    name = "max_unpool_claim<long long, int, int>"
    owner, reached, sizes = np.full(4, -1, "int32"), np.full(2, 7, "int32"), (2, 2, 4, 1)
    indices = np.array([4, 1])
    module = simt.Module(compiler.source("max_unpool"), [name])
    module.launch(name, (1,), (32,), (indices, owner, reached, *(np.uint32(n) for n in sizes)))
    assert (owner.tolist(), reached.tolist()) == ([-1, 1, -1, -1], [-1, -1])
