"""What holds for the launchers of pools and pad alike, on the emulator: 64-bit offsets, threads that take many
elements, and calls that a CUDA graph can hold. The norms' are in test_cuda_norm.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels

from . import standin_cuda
from .cases.arrays import LAST, drawn, rivals
from .cases.pad import PADS
from .implementations import Impl, agree, numpy_dtype, on_emulator
from .reference.pad import MODES

pytestmark = [on_emulator, pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")]

NEAR = {"avg_pool": 1e-6, "adaptive_avg_pool": 1e-6}  # the array code sums in another order


def check(emulator: Impl, op: str, shape: tuple[int, ...], args: Any, options: dict[str, Any]) -> list[str]:
    """The kernels give the array code's answers on an array of this shape."""
    rng, kind = np.random.default_rng(0), numpy_dtype("float32")
    x = emulator.array(rivals(rng, shape, kind) if "max" in op else drawn(rng, shape, kind))
    if op == "max_unpool":
        args = (emulator.array(rng.integers(0, 4 * math.prod(shape[2:]), shape)), *args)
    return agree(emulator, op, x, *args, dy=lambda s: drawn(rng, s, kind), tolerance=NEAR.get(op), **options)


PADDED = [("pad", shape, (pads, mode), options) for options, shape, pads in PADS for mode in MODES]


@pytest.mark.parametrize(
    ("op", "shape", "args", "options"),
    [
        ("max_pool", (2, 3, 6, 8), (2,), {}),
        ("max_pool", (2, 3, 6, 8), (2,), {"return_indices": True}),
        ("max_pool", (2, 3, 6, 8), (3, 1, 1), {"ties": "split"}),
        ("max_pool", (2, 3, 6, 8), (2,), LAST),
        ("max_pool", (2, 3, 6, 8), (3, 2, 1), {"ties": "all", **LAST}),
        ("max_pool", (2, 3, 6, 8), ((6, 8),), {}),
        ("avg_pool", (2, 3, 8, 40), (3, 2, 1), {}),
        ("avg_pool", (2, 3, 8, 40), (3, 2, 1), LAST),
        ("adaptive_avg_pool", (2, 3, 8, 40), (1,), {}),
        ("max_unpool", (3, 5, 9, 9), (2,), {}),
        *PADDED,
    ],
    ids=str,
)
@pytest.mark.usefixtures("wide_offsets")
def test_64_bit_offsets(emulator: Impl, op: str, shape: Any, args: Any, options: Any) -> None:
    with standin_cuda.emulating() as made:
        check(emulator, op, shape, args, options)
    assert any("long long" in launch.name for launch in made), made


@pytest.mark.parametrize(
    ("op", "shape", "args", "options", "ran"),
    [
        ("max_pool", (3, 5, 31, 32), (2,), {}, "max_pool_tiled"),
        ("max_pool", (3, 5, 31, 32), (3, 1, 1), {}, "max_pool_tiled"),
        ("max_pool", (3, 5, 31, 32), ((31, 32),), {}, "max_pool"),
        ("max_pool", (3, 5, 31, 31), (3, 3), {"ties": "all"}, "max_pool"),
        ("avg_pool", (3, 5, 31, 32), (3, 2, 1), {}, "sum_pool_tiled"),
        ("adaptive_avg_pool", (3, 5, 31, 32), ((None, 1),), {}, "sum_pool"),
        ("adaptive_avg_pool", (2, 3, 32, 32), (1,), {}, "sum_planes"),  # a block sums several planes, one after another
        ("max_unpool", (3, 5, 9, 9), (2,), {}, "max_unpool_write"),
        ("pad", (2, 2, 45, 50), ([(2, 2), (1, 2)], "constant"), {}, "pad_rows"),
        ("pad", (2, 2, 45, 50), ([(2, 2), (1, 2)], "reflect"), {}, "pad_rows"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("two_blocks")
def test_a_thread_takes_more_than_one_element(
    emulator: Impl, op: str, shape: Any, args: Any, options: Any, ran: str
) -> None:
    assert ran in check(emulator, op, shape, args, options)


@pytest.mark.parametrize(
    ("op", "args", "options", "fewest"),
    [
        ("max_pool", (2,), {}, 2),
        ("max_pool", (3, 1, 1), {"ties": "split"}, 2),
        ("max_pool", (3, 3), {}, 2),
        ("max_pool", (16, 1), {}, 2),
        ("adaptive_max_pool", (1,), {}, 2),
        ("adaptive_max_pool", (5,), {}, 2),
        ("sum_pool", (2, 1), {}, 2),
        ("avg_pool", ((1, 40), 1), {}, 2),
        ("sum_pool", ((1, 40), 1), {}, 2),
        ("avg_pool", (2, 1), {}, 2),
        ("adaptive_avg_pool", (3,), {}, 2),
        ("max_unpool", (2,), {}, 3),
        ("pad", (1, "constant"), {}, 1),  # one kernel may do for both
        ("pad", (1, "wrap"), {}, 1),
        ("pad", (1, "constant"), LAST, 1),
        ("pad", (1, "wrap"), LAST, 1),
    ],
    ids=str,
)
def test_nothing_waits_for_the_device(cupy: Any, op: str, args: Any, options: Any, fewest: int) -> None:
    """After a warm-up neither a compilation nor a transfer is left: a CUDA graph can hold the calls."""
    x = cupy.asarray(np.zeros((2, 3, 16, 40), "float16"))
    if op == "max_unpool":
        args = (cupy.asarray(np.zeros(x.shape, "int64")), *args)
    assert fewest <= kernels.warmup(getattr(F, op), x, *args, **options) <= max(fewest, 3)
    with standin_cuda.no_host_sync():
        getattr(F, op)(x, *args, **options)
        y, ctx = getattr(F, f"{op}_forward")(x, *args, **options)
        getattr(F, f"{op}_backward")(y, ctx)
