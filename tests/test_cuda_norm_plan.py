"""How the norms' kernels are assigned to devices: which mapping is used where, and how many blocks are busy."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers.kernels.cuda import compile as compiling
from cnnlayers.kernels.cuda import layer_norm_backward, norm_arguments, norm_plan
from cnnlayers.kernels.cuda.norm_plan import (
    DEFAULT_SMEM_LIMIT,
    H200,
    ITEMSIZE,
    STATIC_SMEM,
    ColumnLayout,
    Device,
    LaunchPlan,
    RowLayout,
    make_plan,
    pack_of,
)

from . import simt
from .cases.norm import LAST, TRAIN, device, names


# ---------------------------------------------------------------------------------------------------------------- plans
def batch(n: int, c: int, side: int, last: bool = False) -> RowLayout | ColumnLayout:
    return ColumnLayout(1, n * side * side, c, 1) if last else RowLayout(c, n, side * side, c, side * side)


def planned(on: Device, shape: RowLayout | ColumnLayout, dtype: str, arrays: int) -> LaunchPlan:
    return make_plan(on, shape, dtype, pack_of(shape, ITEMSIZE[dtype]), arrays=arrays)


@pytest.mark.parametrize(
    ("shape", "dtype", "forward", "backward"),
    [
        ((32, 64, 56), "float16", ("grid", 128), ("grid", 128)),  # 64 channels still fill 132 processors
        ((32, 64, 56), "float32", ("grid", 128), ("grid", 132)),
        ((32, 80, 56), "float16", ("grid", 132), ("grid", 132)),  # three blocks a channel, in two waves
        ((32, 256, 56), "float16", ("block", 256), ("grid", 132)),
        ((32, 256, 28), "float16", ("block", 256), ("block", 256)),
        ((256, 512, 28), "float16", ("grid", 132), ("grid", 132)),
        ((32, 64, 112), "float16", ("grid", 132), ("grid", 132)),
        ((256, 256, 56), "float16", ("grid", 132), ("grid", 130)),
        ((256, 64, 112), "float16", ("grid", 132), ("grid", 132)),  # backward: 44 blocks a channel, three at a time
        ((256, 64, 112), "float32", ("grid", 132), ("grid", 132)),  # a channel at a time, on the whole device
        ((32, 2048, 7), "float32", ("block", 2048), ("block", 2048)),
        ((8, 3, 224), "float32", ("grid", 132), ("grid", 132)),
        ((256, 1, 512), "float32", ("two_launches", 0), ("two_launches", 0)),  # a channel of 268 MB, read twice
        ((32, 64, 56, True), "float16", ("grid", 132), ("grid", 132)),
        ((32, 256, 28, True), "float16", ("grid", 132), ("grid", 132)),
        # 128 bytes across are 51 MB of x and dy
        ((256, 512, 28, True), "float16", ("grid", 132), ("three_launches", 0)),
    ],
)
def test_plans_of_batch_norm_on_a_large_device(shape: Any, dtype: str, forward: Any, backward: Any) -> None:
    rows = batch(*shape)
    for arrays, (mapping, blocks) in ((1, forward), (2, backward)):
        chosen = planned(H200, rows, dtype, arrays)
        assert chosen.mapping == mapping, str(chosen)
        if mapping in ("two_launches", "three_launches"):
            assert chosen.rows * chosen.parts >= H200.multiprocessors  # nor is the device idle then
            continue
        assert chosen.grid_size == blocks, str(chosen)
        waves = -(-blocks // H200.multiprocessors)
        assert blocks / waves > 0.9 * H200.multiprocessors  # blocks that are busy
        packs = chosen.packs * (
            chosen.lanes if isinstance(rows, ColumnLayout) else 1
        )  # of an array, of a row or column range
        pack_bytes = arrays * chosen.pack * ITEMSIZE[dtype]
        assert (
            chosen.register_packs * chosen.threads * pack_bytes + chosen.shared
        ) * chosen.parts >= packs * pack_bytes  # all on the chip
        assert chosen.shared <= H200.shared - STATIC_SMEM


@pytest.mark.parametrize("processors", [1, 2, 7, 132])
@pytest.mark.parametrize("shared", [1100, 65536, 232448])
@pytest.mark.parametrize("cooperative", [True, False])
def test_plans_fit_any_device_and_leave_no_part_empty(processors: int, shared: int, cooperative: bool) -> None:
    on = Device(processors, shared, 1 << 20, cooperative)
    for count, segments, cells in [(1, 1, 1), (3, 7, 49), (64, 32, 3136), (5, 1, 100_003), (1000, 2, 64)]:
        for dtype in ("float16", "float32", "float64"):
            rows, shape = RowLayout(count, segments, cells, count, cells), ColumnLayout(segments, cells, count, 1)
            group = RowLayout(4 * count, 1, cells, count, cells)
            plans = [planned(on, s, dtype, arrays) for s in (rows, shape) for arrays in (1, 2)]
            plans.append(make_plan(on, group, dtype, pack_of(group, ITEMSIZE[dtype]), arrays=2, group=4))
            plans += [
                make_plan(on, s, dtype, pack_of(s, ITEMSIZE[dtype]), use_running_stats=True) for s in (rows, shape)
            ]
            for chosen in plans:
                fits(chosen, on)
            each = RowLayout(count, 1, cells, 1, cells, per_element=True)
            blocks = layer_norm_backward.make_plan(on, each, dtype, pack_of(each, ITEMSIZE[dtype])).blocks
            assert 1 <= blocks <= count


def fits(chosen: LaunchPlan, on: Device) -> None:
    assert chosen.shared <= max(0, on.shared - STATIC_SMEM), str(chosen)
    assert not DEFAULT_SMEM_LIMIT - STATIC_SMEM < chosen.shared <= DEFAULT_SMEM_LIMIT, str(
        chosen
    )  # what launch would not ask for, and might need to
    assert chosen.threads % 32 == 0
    assert 32 <= chosen.threads <= norm_plan.THREADS
    for parts in (chosen.parts, chosen.stream_blocks):
        assert (parts - 1) * -(-chosen.packs // parts) < chosen.packs, str(chosen)
    if chosen.mapping == "grid":
        assert on.cooperative
        assert chosen.grid_size <= on.multiprocessors
    if chosen.mapping in ("grid", "block", "group"):
        assert chosen.register_packs * chosen.threads * chosen.parts >= chosen.packs or chosen.shared


def test_rows_that_do_not_fit_are_read_twice_while_they_are_in_the_cache() -> None:
    """Where blocks cannot meet: as many channels at a time as half of the cache has room for."""
    alone = Device(132, 227 << 10, 50 << 20, cooperative=False)
    chosen = planned(alone, batch(32, 64, 112), "float16", 2)
    channel = 2 * 2 * 32 * 112 * 112
    assert (chosen.mapping, chosen.wave) == ("two_launches", (25 << 20) // channel)
    assert chosen.parts * chosen.rows > 4 * alone.multiprocessors


def test_a_plan_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    norm_plan.main(["32x64x56x56", "float16"])
    text = capsys.readouterr().out
    assert (
        "forward: 64 rows of 12,544 packs of 8: one launch, 2 blocks of 512 threads a row, 64 rows at a time, " in text
    )
    assert "backward: 64 rows of 12,544 packs of 8: one launch, 2 blocks of 512 threads a row" in text
    norm_plan.main(["32x56x56x64", "float32", "--channels-last"])
    text = capsys.readouterr().out
    assert (
        "backward: 2 column ranges of 8 packs of 4 across, 100,352 deep: one launch, 132 blocks of 256 threads" in text
    )
    assert "two launches" in str(planned(H200, batch(256, 1, 512), "float32", 1))
    assert "4 threads a row" in str(planned(H200, RowLayout(1000, 1, 16, 1000, 16), "float32", 1))
    group = RowLayout(512, 1, 3136, 64, 3136)
    assert "runs of 32" in str(make_plan(H200, group, "float32", 4, arrays=2, group=2))
    assert "three launches" in str(make_plan(H200, batch(32, 64, 56, True), "float32", 4, use_running_stats=True))
    assert "go down the rows" in str(
        layer_norm_backward.make_plan(H200, RowLayout(4096, 1, 768, 1, 768, per_element=True), "float16", 8)
    )


def test_flags_are_the_same_in_both_languages() -> None:
    text = re.search(r"enum Flags \{(.*?)\}", compiling.source("norm_forward"))
    assert text
    for flag in text[1].split(","):
        name, _, value = flag.partition("=")
        assert getattr(norm_arguments, name.strip()) == int(value)


def test_only_cooperative_kernels_have_the_header_of_grids() -> None:
    """It takes NVRTC seconds to read."""
    for stem in (
        "norm_forward",
        "norm_backward",
        "channels_last_norm",
        "channels_last_norm_backward",
        "layer_norm_backward",
    ):
        assert "cooperative_groups" not in compiling.source(stem)


# -------------------------------------------------------------------------------------------------------------- traffic
@pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_columns_of_several_blocks_are_read_once(cupy: Any, dtype: str, rng: np.random.Generator) -> None:
    """test_kernel_table.py has what other calls move."""
    x = cupy.asarray(rng.normal(size=(14, 14, 14, 16)).astype(dtype))
    few = {"MaxSharedMemoryPerBlockOptin": 60_000, "MultiProcessorCount": 3}
    with device(few, traffic=True) as made:
        y, ctx = F.batch_norm_forward(x, *(cupy.asarray(np.ones(16, "float32")) for _ in range(4)), **TRAIN, **LAST)
        F.batch_norm_backward(y, ctx)
    assert names(made) == ["cooperative_channels_last_forward", "cooperative_channels_last_backward"]
    for launch, arrays in zip(made, (2, 3), strict=True):
        assert launch.traffic.over(arrays * x.nbytes)[1] <= 1.05
