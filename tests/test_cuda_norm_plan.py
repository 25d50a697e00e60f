"""How the norms' kernels are assigned to devices: which mapping is used where."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cnnlayers.kernels.cuda import compile as compiling
from cnnlayers.kernels.cuda import layer_norm_backward, norm_arguments, norm_plan
from cnnlayers.kernels.cuda.norm_plan import (
    H200,
    ITEMSIZE,
    ColumnLayout,
    ColumnPlan,
    Device,
    LaunchPlan,
    RowLayout,
    make_plan,
    pack_of,
)


# ---------------------------------------------------------------------------------------------------------------- plans
def batch(n: int, c: int, side: int, last: bool = False) -> RowLayout | ColumnLayout:
    return ColumnLayout(1, n * side * side, c, 1) if last else RowLayout(c, n, side * side, c, side * side)


def planned(on: Device, shape: RowLayout | ColumnLayout, dtype: str, arrays: int) -> LaunchPlan:
    return make_plan(on, shape, dtype, pack_of(shape, ITEMSIZE[dtype]), arrays=arrays)


@pytest.mark.parametrize(
    ("shape", "dtype", "forward", "backward"),
    [
        ((32, 64, 56), "float16", "two_launches", "two_launches"),
        ((32, 256, 28), "float16", "block", "block"),
        ((32, 256, 28), "float32", "two_launches", "two_launches"),
        ((32, 64, 112), "float32", "two_launches", "two_launches"),
        ((32, 256, 14), "float32", "block", "block"),
        ((32, 2048, 7), "float32", "block", "block"),
        ((32, 2048, 1), "float32", "warp", "warp"),
        ((8, 3, 224), "float32", "two_launches", "two_launches"),
        ((32, 64, 56, True), "float16", "three_launches", "three_launches"),
        ((4, 512, 7, True), "float32", "block", "block"),
    ],
)
def test_plans_of_batch_norm_on_a_large_device(shape: Any, dtype: str, forward: str, backward: str) -> None:
    rows = batch(*shape)
    for arrays, mapping in ((1, forward), (2, backward)):
        chosen = planned(H200, rows, dtype, arrays)
        assert chosen.mapping == mapping, str(chosen)
        if mapping in ("two_launches", "three_launches"):
            assert chosen.rows * chosen.parts >= H200.multiprocessors


@pytest.mark.parametrize("processors", [1, 2, 7, 132])
def test_plans_fit_any_device_and_leave_no_part_empty(processors: int) -> None:
    on = Device(processors)
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
                fits(chosen)
            each = RowLayout(count, 1, cells, 1, cells, per_element=True)
            blocks = layer_norm_backward.make_plan(on, each, dtype, pack_of(each, ITEMSIZE[dtype])).blocks
            assert 1 <= blocks <= count


def fits(chosen: LaunchPlan) -> None:
    assert chosen.shared <= norm_plan.DYNAMIC_SMEM, str(chosen)
    assert chosen.threads % 32 == 0
    assert 32 <= chosen.threads <= norm_plan.THREADS
    for parts in (chosen.parts, chosen.stream_blocks):
        assert (parts - 1) * -(-chosen.packs // parts) < chosen.packs, str(chosen)
    threads = chosen.threads // (chosen.lanes if isinstance(chosen, ColumnPlan) else 1)  # that share the packs
    if chosen.mapping in ("block", "group"):
        assert chosen.register_packs * threads >= chosen.packs, str(chosen)


def test_a_plan_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    norm_plan.main(["32x64x56x56", "float16"])
    text = capsys.readouterr().out
    assert "forward: 64 rows of 12,544 packs of 8: two launches, 7 and 13 blocks of 256 threads a row" in text
    norm_plan.main(["4x7x7x64", "float32", "--channels-last"])
    text = capsys.readouterr().out
    assert "backward: 2 column ranges of 8 packs of 4 across, 196 deep: one launch, a block of 256 threads" in text
    assert "a block of 512 threads a row" in str(planned(H200, batch(32, 64, 28), "float16", 1))
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
