"""Pooling's compiled CPU kernels: the portable code's bits and contexts, chunks, threads, half types, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.backends import threads
from cnnlayers.kernels.cpu import jit as cpu
from cnnlayers.specs import pool_window

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

LAST = {"data_format": "channels_last"}
# The windows with loops of their own, one that overhangs, one that is dilated beyond its input, a wide one, and one too
# far from the next for a row to be laid out in a line.
WINDOWS = [
    (2, 2, 0, 1, {}),
    (3, 2, 1, 1, {}),
    (3, 1, 1, 1, {}),
    ((3, 2), (2, 3), ((0, 2), (1, 0)), 1, {"ceil_mode": True}),
    (2, 1, 6, 7, {}),
    (5, 1, 2, 1, {}),
    ((1, 2), (1, 90), 0, 1, {}),
    ((1, 2), (1, 2), 0, 1, {}),
    (2, 2, 0, (3, 1), {}),
    ((2, 3), (1, 2), (1, 0), (2, 1), {}),
]
# Rows shorter and longer than a vectorised loop takes at a time.
SHAPES = [(2, 3, 7, 9), (1, 2, 6, 37), (1, 2, 6, 71), (2, 1, 66, 5)]


def awkward(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Ties, zeros of both signs, NaN and infinities."""
    x = rng.integers(-2, 3, shape).astype(dtype)
    for value in (np.nan, -np.inf, np.inf, -0.0):
        x[rng.random(shape) < 0.1] = value
    return x


def modes(call: Any) -> tuple[Any, Any]:
    """What the portable code gives, and the kernel."""
    found = []
    for mode in ("off", "require"):
        with kernels.mode(mode):
            found.append(call())
    return found[0], found[1]


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("ties", ["first", "all", "split"])
@pytest.mark.parametrize("options", [{}, LAST], ids=["first", "last"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max_pool_has_the_portable_bits_and_contexts(
    window: Any, options: dict[str, Any], ties: str, rng: np.random.Generator
) -> None:
    *sizes, more = window
    more = {**options, **more, "ties": ties, "return_indices": True}
    for shape in SHAPES:
        x = awkward(rng, shape)
        try:
            pool_window(shape, *sizes, more.get("ceil_mode", False), more.get("data_format", "channels_first"))
        except ValueError:  # a window larger than this input
            continue
        ours, theirs = modes(lambda x=x: F.max_pool_forward(x, *sizes, **more))
        for a, b in zip(ours[0], theirs[0], strict=True):
            same(a, b)
        for a, b in zip(*modes(lambda x=x: F.max_pool(x, *sizes, **more)), strict=True):
            same(a, b)
        dy = rng.integers(-3, 4, ours[0][0].shape).astype("float32") * -0.5  # with zeros of both signs
        for ctx in (ours[1], theirs[1]):  # either one's context serves either backward
            same(*modes(lambda ctx=ctx, dy=dy: F.max_pool_backward(dy, ctx)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("options", [{}, LAST], ids=["first", "last"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("count", [{}, {"count_include_pad": False}, {"divisor_override": -3}], ids=str)
def test_averages_are_the_portable_ones(
    count: dict[str, Any], window: Any, options: dict[str, Any], dtype: str, rng: np.random.Generator
) -> None:
    *sizes, more = window
    x = rng.standard_normal((2, 9, 36, 8)).astype(dtype)
    more = {**options, **more, **count}
    tolerance = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-13}[dtype]
    ours, theirs = modes(lambda: F.avg_pool_forward(x, *sizes, **more))
    assert theirs[0].dtype == x.dtype
    np.testing.assert_allclose(theirs[0], ours[0], rtol=tolerance, atol=tolerance)
    dy = rng.standard_normal(ours[0].shape).astype(dtype)
    a, b = modes(lambda: F.avg_pool_backward(dy, ours[1]))
    assert b.dtype == x.dtype
    np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, 1, 2, 1), (5, 2, 2)),
        ((1, 1, 1, 2), ((2, 9), (3, 1), [(1, 1), (4, 4)])),
        ((1, 1, 3, 1), ((7, 5), (2, 5), [(3, 3), (2, 2)])),
        ((1, 1, 1, 3, 1), ((1, 7, 5), (1, 2, 5), [(0, 0), (3, 3), (2, 2)])),
    ],
)
def test_rows_of_windows_that_see_the_same_cells_may_have_different_divisors(shape: Any, sizes: Any) -> None:
    x = np.arange(1, 1 + np.prod(shape), dtype="float32").reshape(shape)
    for cells in (x, x.astype("float64")):
        ours, theirs = modes(partial(F.avg_pool, cells, *sizes, ceil_mode=True))
        np.testing.assert_allclose(theirs, ours, rtol=1e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 1.5])
def test_a_nan_in_x_is_a_nan_in_the_gradient_of_an_lp_pool(p: float) -> None:
    x = np.array([[[1, np.nan, -2, np.inf, 0, 3]]], "float32")
    ours, theirs = modes(
        lambda: F.lp_pool_backward(np.ones((1, 1, 3), "float32"), F.lp_pool_forward(x, 2, norm_type=p)[1])
    )
    np.testing.assert_allclose(theirs, ours, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, LAST], ids=["first", "last"])
@pytest.mark.parametrize("size", [(4, 9), (7, 1), (9, 12), (1, 1)], ids=str)
@pytest.mark.parametrize("op", ["adaptive_max_pool", "adaptive_avg_pool"])
def test_adaptive_pools_are_the_portable_ones(
    op: str, size: tuple[int, int], options: dict[str, Any], rng: np.random.Generator
) -> None:
    x = rng.integers(-4, 5, (2, 12, 18, 3) if options else (2, 3, 12, 18)).astype("float32")
    ours, theirs = modes(lambda: getattr(F, f"{op}_forward")(x, size, **options))
    dy = rng.integers(-3, 4, ours[0].shape).astype("float32")
    pairs = [(ours[0], theirs[0]), modes(lambda: getattr(F, f"{op}_backward")(dy, ours[1]))]
    for a, b in pairs:
        if op == "adaptive_max_pool":
            same(a, b)
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=2e-6)


def test_loops_stay_inside_their_arrays() -> None:
    """Numba checks every index then, and so do the loads and stores of vectors."""
    chosen = "portable_bits_and_contexts or adaptive_pools or touch_nothing or (portable_ones and float32)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, __file__]
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
    ours, theirs = modes(lambda: getattr(F, f"{op}_forward")(x, 2))
    same(ours[0], theirs[0])
    same(*modes(lambda: getattr(F, f"{op}_backward")(ours[0], ours[1])))


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


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_odd_layouts_are_read_and_not_written(op: str, rng: np.random.Generator) -> None:
    whole = rng.standard_normal((3, 12, 14, 4)).astype("float32")
    x = whole[::-1, ::2, 1:].transpose(0, 3, 2, 1)
    x.flags.writeable = False
    before = whole.tobytes()
    ours, theirs = modes(lambda: getattr(F, op)(x, 3, 2, 1))
    np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-6)
    assert whole.tobytes() == before


@pytest.mark.parametrize("options", [{}, LAST], ids=["first", "last"])
@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "sum_pool"])
def test_no_channels_and_no_samples_touch_nothing(op: str, options: dict[str, Any]) -> None:
    for shape in ((0, 6, 6, 6), (2, 0, 6, 6) if not options else (2, 6, 6, 0)):
        x = np.empty(shape, "float32")
        y, ctx = getattr(F, f"{op}_forward")(x, 3, 2, 1, **options)
        assert getattr(F, f"{op}_backward")(y, ctx).shape == shape


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
