"""Pooling's compiled CPU kernels: chunks, threads, memory, refusals. Their answers: test_pool_kernels.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.backends import threads

from .cases.arrays import rivals
from .implementations import Impl, agree, on_cpu_kernels

pytestmark = on_cpu_kernels


def test_loops_stay_inside_their_arrays() -> None:
    """Numba checks every index then, and so do the loads and stores of vectors."""
    chosen = "cpu and (float32 or touch_nothing)"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen,
        "tests/test_pool_kernels.py",
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_half_types_go_through_tiles(op: str, rng: np.random.Generator) -> None:
    x = rng.integers(-8, 9, (5, 7, 64, 66)).astype("float16")  # some chunks; small numbers, whose sums are exact
    with kernels.mode("require"):
        agree(Impl("cpu", np), op, x, 2)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bits_do_not_depend_on_the_threads(
    op: str, dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.standard_normal((3, 9, 80, 83)).astype(dtype)  # some chunks
    forward, backward = getattr(F, f"{op}_forward"), getattr(F, f"{op}_backward")
    found = []
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        y, ctx = forward(x, 3, 2, 1)
        found.append((y.tobytes(), backward(y, ctx).tobytes()))
    assert len(set(found)) == 1


def test_many_threads_may_pool_at_once(rng: np.random.Generator) -> None:
    xs = [rng.standard_normal((2, 8, 96, 97)).astype("float32") for _ in range(6)]
    expected = [F.max_pool(x, 3, 2, 1).tobytes() for x in xs]
    found: dict[int, bool] = {}

    def work(i: int) -> None:
        found[i] = all(F.max_pool(xs[i], 3, 2, 1).tobytes() == expected[i] for _ in range(10))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == dict.fromkeys(range(len(xs)), True)


def test_what_kernels_do_not_take_is_refused_or_goes_to_array_code() -> None:
    x = np.arange(16).reshape(1, 1, 4, 4)
    assert F.max_pool(x, 2).tolist() == [[[[5, 7], [13, 15]]]]
    with kernels.mode("require"), pytest.raises(kernels.KernelUnavailable, match="arrays of int64"):
        F.max_pool(x, 2)
    for dtype, p in (("float64", 2.0), ("float32", 50.0)):
        with (
            kernels.mode("require"),
            pytest.raises(kernels.KernelUnavailable, match="could leave the range of float64"),
        ):
            F.lp_pool(x.astype(dtype), 2, norm_type=p)


# What a call may allocate beyond its result and what it saves: tables and chunks' workspaces, whatever x's size.
BOUNDED = [
    ("max_pool", (3, 2, 1)),
    ("avg_pool", (3, 2, 1)),
    ("sum_pool", (2,)),
    ("lp_pool", (3, 2.0, 1)),
    ("lp_pool", (2, 3.0)),
    ("adaptive_max_pool", (6,)),
    ("adaptive_avg_pool", (6,)),
]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("op", "args"), BOUNDED, ids=str)
def test_memory_beyond_the_result_is_bounded(op: str, args: Any, layout: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 16, 112, 112)).astype("float32")  # 3.2 MB
    most = 300_000
    if op == "lp_pool":  # float64 sums and norms of a chunk: of 50,000 cells, or of one sample where channels are last
        most += 16 * threads.num_threads() * max(50_000, x[0].size if layout == "channels_last" else 0)
    with kernels.mode("require"):
        y, ctx = getattr(F, f"{op}_forward")(x, *args, data_format=layout)  # compiles, and makes the plans
        getattr(F, f"{op}_backward")(y, ctx)
        tracemalloc.start()
        try:
            y, ctx = getattr(F, f"{op}_forward")(x, *args, data_format=layout)
            forward, _ = tracemalloc.get_traced_memory()
            peak = tracemalloc.get_traced_memory()[1]
            assert peak <= y.nbytes + ctx.nbytes + most
            tracemalloc.reset_peak()
            dx = getattr(F, f"{op}_backward")(y, ctx)
            assert tracemalloc.get_traced_memory()[1] - forward <= dx.nbytes + most
        finally:
            tracemalloc.stop()


def test_memory_of_an_unpool_is_its_result_and_where_entries_went(rng: np.random.Generator) -> None:
    y, indices = F.max_pool(rng.standard_normal((4, 16, 112, 112)).astype("float32"), 2, return_indices=True)
    with kernels.mode("require"):
        F.max_unpool_forward(y, indices, 2)
        tracemalloc.start()
        try:
            back, ctx = F.max_unpool_forward(y, indices, 2)
            assert tracemalloc.get_traced_memory()[1] <= back.nbytes + ctx.nbytes + 300_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "args"),
    [
        ((64, 64, 60, 57), (2,)),
        ((64, 64, 60, 57), (3, 2, 1)),
        ((900, 64, 15, 15), (3, 2, 1)),
        ((9, 64, 80, 71), (5, 1, 2)),
    ],
)
def test_maxima_that_are_stored_past_the_caches(shape: Any, args: Any, rng: np.random.Generator) -> None:
    """They are larger than 12 MB: of rows without padding, of wide and of short rows with it, and of large windows."""
    x = rng.integers(-8, 9, shape).astype("float32")
    found = []
    for mode in ("off", "require"):
        with kernels.mode(mode):
            y, ctx = F.max_pool_forward(x, *args)
            found.append((y, *ctx.arrays.values()))
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("channels", [3, 8, 13, 20])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_maxima_of_cells_of_channels(channels: int, dtype: str, rng: np.random.Generator) -> None:
    """Overlapping windows some cells apart, dilated ones, and large ones whose rows take more than one band."""
    x = rivals(rng, (2, 9, 41, channels), np.dtype(dtype))
    with kernels.mode("require"):
        for args in ((3, 2, 1), (4, 3, 1), (2, 1, 0, 3), (5, 1, 2)):
            agree(Impl("cpu", np), "max_pool", x, *args, data_format="channels_last", near_dx=0.0)
        agree(Impl("cpu", np), "adaptive_max_pool", x, 4, data_format="channels_last", near_dx=0.0)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_a_gradient_that_is_stored_past_the_caches(kernel_size: int, rng: np.random.Generator) -> None:
    """It is larger than 12 MB, and its planes do not start at cache lines."""
    x = rng.standard_normal((40, 64, 37, 37)).astype("float32")
    y, ctx = F.max_pool_forward(x, kernel_size, 2)
    dy = rng.standard_normal(y.shape).astype("float32")
    with kernels.mode("off"):
        expected = F.max_pool_backward(dy, ctx)
    np.testing.assert_allclose(F.max_pool_backward(dy, ctx), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (3, 1)])
def test_averages_that_are_stored_past_the_caches(
    kernel_size: int, stride: int, layout: str, dtype: str, rng: np.random.Generator
) -> None:
    """dx is larger than 12 MB, and rows do not end with cache lines."""
    height = 600 if dtype == "float16" else 300
    shape = (1, 48, height, 251) if layout == "channels_first" else (1, height, 251, 48)
    x = rng.integers(-8, 9, shape).astype(dtype)  # small numbers, whose sums are exact
    options: dict[str, Any] = {"data_format": layout, "count_include_pad": False}
    y, ctx = F.avg_pool_forward(x, kernel_size, stride, 1, **options)
    dx = F.avg_pool_backward(y, ctx)
    with kernels.mode("off"):
        plain, ctx = F.avg_pool_forward(x, kernel_size, stride, 1, **options)
        np.testing.assert_allclose(y, plain, rtol=1e-3 if dtype == "float16" else 1e-6)
        expected = F.avg_pool_backward(y, ctx)
    near = 2e-3 if dtype == "float16" else 2e-6
    np.testing.assert_allclose(dx, expected, rtol=near, atol=near)


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize("shape", [(2, 9, 0), (2, 10, 9, 0), (0, 10, 9, 5, 0), (0, 10, 9, 20)], ids=str)
def test_no_channels_or_samples_with_channels_last(shape: tuple[int, ...], ties: str) -> None:
    x, last = np.zeros(shape, np.float32), {"data_format": "channels_last"}
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("adaptive_max_pool", (4,), {}), ("adaptive_avg_pool", (1,), {}), ("adaptive_avg_pool", (2,), {})
    ]  # fmt: skip
    for window in ((2, 2), (3, 1, 1), (5, 3, 2)):
        calls += [("max_pool", window, {"ties": ties}), ("avg_pool", window, {}), ("lp_pool", (window[0], 2.0), {})]
    with kernels.mode("require"):
        assert F.max_pool(x, 2, return_indices=True, **last)[1].size == 0
        for op, args, options in calls:
            y, ctx = getattr(F, f"{op}_forward")(x, *args, **options, **last)
            assert y.size == 0
            assert getattr(F, f"{op}_backward")(y, ctx).shape == shape


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_windows_whose_rows_are_cut(channels: int, dtype: str) -> None:
    """A band takes several rows, and some windows of each: none of them is stored over those of the next row."""
    x = np.random.default_rng(0).integers(-9, 9, (2, 48, 50, channels)).astype(dtype)
    args, options = (x, (40, 41), 1, ((20, 19), (17, 23))), {"data_format": "channels_last"}
    y, ctx = F.max_pool_forward(*args, **options)
    with kernels.mode("off"):
        expected, portable = F.max_pool_forward(*args, **options)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(ctx.arrays["saved"], portable.arrays["saved"])
