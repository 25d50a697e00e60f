"""Plans: what is kept between calls stays within a limit of bytes, and tables are made without a loop over windows."""

from __future__ import annotations

import itertools
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.backends import memory
from cnnlayers.backends.plans import HEADER, KEY, LIMIT, PLANS, PlanCache, planned, size_of
from cnnlayers.functional import call_plan
from cnnlayers.functional.window_arrays import first_taps, tap_counts, window_ends, window_starts
from cnnlayers.kernels.cpu import jit as cpu_kernels
from cnnlayers.specs import AdaptiveAxis, Axis, pool_window

from .reference import pool as reference
from .reference.pool import Adaptive, windows_of

MODES = [
    "off",
    pytest.param("require", marks=pytest.mark.skipif(cpu_kernels.unavailable() is not None, reason="no Numba")),
]


@pytest.fixture(autouse=True)
def _no_plans() -> Iterator[None]:
    PLANS.clear()
    yield
    PLANS.clear()


# ------------------------------------------------------------------------------------------------------------ the cache
def zeros(nbytes: int, name: str = "") -> np.ndarray:
    return np.zeros(nbytes, np.uint8)


def kept(cache: PlanCache) -> list[Any]:
    """The last argument of each plan that is kept."""
    return [args[-1] for _, args in cache._plans]


def test_a_plan_is_made_once_and_shared() -> None:
    cache, made = PlanCache(), []

    def make(name: str) -> str:
        made.append(name)
        return name.upper()

    assert [cache.get(make, name) for name in "abaab"] == [*"ABAAB"]
    assert made == ["a", "b"]


def test_the_least_recently_used_plans_go_first() -> None:
    size = 1000 + KEY + HEADER
    cache = PlanCache(limit=20 * size, largest=2000 + KEY)
    for name in "abcdefghijklmnopqrstab":
        cache.get(zeros, 1000, name)
    assert cache.nbytes == cache.limit
    cache.get(zeros, 1000, "u")
    assert kept(cache) == [*"abfghijklmnopqrstu"]
    assert cache.nbytes == 0.9 * cache.limit


def test_a_plan_that_is_too_large_is_not_kept() -> None:
    cache = PlanCache(limit=10_000, largest=5_000)
    for nbytes in (100, 5_000):
        assert cache.get(zeros, nbytes).size == nbytes
    assert kept(cache) == [100]


def test_no_more_than_so_many_plans_are_kept() -> None:
    cache = PlanCache(entries=10)
    for i in range(20):
        cache.get(zeros, i)
        assert len(cache) <= 10
    assert kept(cache) == [*range(10, 20)]


def test_shapes_that_never_repeat_sort_the_plans_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, sorts = PlanCache(entries=100), []
    monkeypatch.setattr("builtins.sorted", lambda *a, kept=sorted, **o: sorts.append(1) or kept(*a, **o))
    for i in range(500):
        cache.get(zeros, i)
    assert 0 < len(sorts) <= 40


def test_an_error_is_not_kept() -> None:
    cache, calls = PlanCache(), []

    def fails_twice() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise MemoryError
        return len(calls)

    for _ in range(2):
        with pytest.raises(MemoryError):
            cache.get(fails_twice)
    assert [cache.get(fails_twice), cache.get(fails_twice)] == [3, 3]


def test_threads_that_make_the_same_plans_get_right_ones() -> None:
    cache, wrong = PlanCache(limit=20 * (1000 + KEY), largest=5000), []

    def table(i: int) -> np.ndarray:
        return np.full(1000, i, np.uint8)

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 40, 2000).tolist():
            if cache.get(table, i)[0] != i:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.nbytes <= cache.limit


def test_the_size_of_a_plan_counts_the_memory_that_its_views_keep() -> None:
    whole = np.zeros(100_000)
    assert size_of(whole[:1]) >= 800_000
    assert size_of((whole, [whole])) >= 1_600_000
    assert size_of(tuple((i, slice(0, i, 1)) for i in range(1000, 2000))) > 200_000


def test_a_planned_function_keeps_its_name_and_its_results() -> None:
    @planned
    def table(n: int) -> np.ndarray:
        """A table."""
        return np.arange(n)

    assert table(5) is table(5)
    assert (table.__name__, table.__doc__) == ("table", "A table.")


# ----------------------------------------------------------------------------------------------------- right numbers
def axes() -> Iterator[tuple[Axis, list[list[int]]]]:
    """Small axes with the cells of their windows, counted one by one."""
    for length, kernel, stride, dilation in itertools.product((1, 2, 5, 6), (1, 2, 3), (1, 2, 3), (1, 2, 3)):
        reach = dilation * (kernel - 1) + 1
        for before, after, ceil in itertools.product((0, reach // 2, reach - 1), (0, reach - 1), (False, True)):
            if length + before + after >= reach:
                pad = (before, after)
                window = pool_window((1, 1, length), kernel, stride, (pad,), dilation, ceil, "channels_first")
                yield window.axes[0], windows_of(length, kernel, stride, dilation, pad, ceil)


def test_the_arrays_of_portable_code_are_those_counted_one_by_one() -> None:
    b = backends.of(np.ones(1))
    for axis, windows in axes():
        assert window_starts(b, axis).tolist() == [w[0] for w in windows], axis
        inside = [[(tap, cell) for tap, cell in enumerate(w) if 0 <= cell < axis.length] for w in windows]
        tap, cell, meets = first_taps(b, axis)
        assert meets.tolist() == list(map(bool, inside)), axis
        assert list(zip(tap.tolist(), cell.tolist(), strict=True)) == [w[0] if w else (0, 0) for w in inside], axis
        for include_pad, low, high in ((False, 0, axis.length), (True, -axis.before, axis.length + axis.after)):
            counted = [sum(low <= c < high for c in w) for w in windows]
            assert np.broadcast_to(tap_counts(b, axis, include_pad), axis.out).tolist() == counted, axis
    for length, out in itertools.product(range(1, 20), range(1, 22)):
        adaptive = AdaptiveAxis(length, out)
        assert window_starts(b, adaptive).tolist() == [o * length // out for o in range(out)]
        assert window_ends(b, adaptive).tolist() == [-(-(o + 1) * length // out) for o in range(out)]


def test_the_tables_of_kernels_are_those_counted_one_by_one() -> None:
    tables = pytest.importorskip("cnnlayers.kernels.cpu.windows")
    for axis, windows in axes():
        inside = [[(tap, cell) for tap, cell in enumerate(w) if 0 <= cell < axis.length] for w in windows]
        cells, starts = tables.cells_under_windows(axis, taps=True), tables.starts_and_counts(axis)
        first = [(w[0][1], len(w), w[0][0]) if w else (0, 0, 0) for w in inside]
        assert list(map(tuple, cells.T.tolist())) == first, axis
        assert starts.T.tolist() == [[w[0], len(m)] for w, m in zip(windows, inside, strict=True)], axis
        table, step = tables.windows_over_cells(axis)
        over = [[o for o, w in enumerate(windows) if cell in w] for cell in range(axis.length)]
        assert [list(range(f, f + n * step, step)) for f, n in table.T.tolist()] == over, axis
    for length, out in itertools.product(range(1, 20), range(1, 22)):
        adaptive = AdaptiveAxis(length, out)
        spans = [range(o * length // out, -(-(o + 1) * length // out)) for o in range(out)]
        assert [range(f, f + n) for f, n in tables.cells_under_windows(adaptive).T.tolist()] == spans
        over = [[o for o, w in enumerate(spans) if cell in w] for cell in range(length)]
        assert [list(range(f, f + n)) for f, n in tables.windows_over_cells(adaptive)[0].T.tolist()] == over


@pytest.mark.parametrize("mode", MODES)
def test_long_axes_agree_with_their_parts(mode: str, rng: np.random.Generator) -> None:
    """Windows far from the start of an axis are right too: tables of int32, products that must not overflow."""
    n = 300_007
    x = rng.integers(-8, 9, (1, 1, n)).astype("float32")
    with kernels.mode(mode):
        y, ctx = F.max_pool_forward(x, 3, 2, 1)
        padded = np.pad(x[0, 0], (1, 1), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 3)[::2]
        np.testing.assert_array_equal(y[0, 0], windows.max(1))
        dx = np.zeros(n + 2)
        np.add.at(dx, np.arange(windows.shape[0]) * 2 + windows.argmax(1), 1)
        np.testing.assert_array_equal(F.max_pool_backward(np.ones_like(y), ctx)[0, 0], dx[1:-1])
        for out in (100_003, 2 * n + 1):
            starts = np.arange(out) * n // out
            ends = -(-np.arange(1, out + 1) * n // out)
            sums = np.concatenate([np.zeros(1), np.cumsum(x[0, 0], dtype=np.float64)])
            y, ctx = F.adaptive_avg_pool_forward(x, out)
            np.testing.assert_allclose(y[0, 0], (sums[ends] - sums[starts]) / (ends - starts), atol=1e-5)
            dx = F.adaptive_avg_pool_backward(np.ones_like(y), ctx)
            steps = np.zeros(n + 1)
            np.add.at(steps, starts, 1 / (ends - starts))
            np.add.at(steps, ends, -1 / (ends - starts))
            np.testing.assert_allclose(dx[0, 0], np.cumsum(steps)[:-1], atol=1e-4)
            largest = [x[0, 0, start:end].max() for start, end in zip(starts, ends, strict=True)]
            np.testing.assert_array_equal(F.adaptive_max_pool(x, out)[0, 0], largest)


# -------------------------------------------------------------------------------------------------- bounded in bytes
def train(op: str, x: np.ndarray, *args: Any) -> None:
    y, ctx = getattr(F, f"{op}_forward")(x, *args)
    getattr(F, f"{op}_backward")(y, ctx)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["adaptive_avg_pool", "adaptive_max_pool"])
def test_many_sizes_of_an_adaptive_pool_keep_bounded_memory(mode: str, op: str) -> None:  # pytorch#104701, #32037
    x = np.ones((1, 1, 200_000), "float32")
    with kernels.mode(mode):
        train(op, x[..., :1000], 7)
        tracemalloc.start()
        for i in range(40):
            train(op, x, 199_000 + i)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert PLANS.nbytes <= LIMIT
    assert kept < LIMIT + (8 << 20)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["avg_pool", "max_pool", "sum_pool", "pad"])
def test_many_lengths_keep_bounded_memory(mode: str, op: str) -> None:
    arguments = (2, "edge") if op == "pad" else (3, 1, 1, 2)
    with kernels.mode(mode):
        train(op, np.ones((1, 1, 1000), "float32"), *arguments)
        tracemalloc.start()
        for i in range(8):
            train(op, np.ones((1, 1, 1_000_000 + i), "float32"), *arguments)
            train(op, np.ones((1, 1, 1_000_000 + i, 1), "float32"), *((2, 0), *arguments[1:]) if op == "pad" else (1,))
        memory._free.buffers.clear()  # of results, which have a bound of their own
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert PLANS.nbytes <= LIMIT
    assert kept < LIMIT + (8 << 20)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["avg_pool", "max_pool"])
def test_a_wide_window_has_no_table_of_all_its_cells(mode: str, op: str) -> None:
    x = np.ones((1, 1, 40_000), "float32")
    with kernels.mode(mode):
        train(op, x[..., :400], 200, 1)
        tracemalloc.start()
        train(op, x, 200, 1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 40_000 * 200  # bytes: less than one for each tap of each window


@pytest.mark.skipif(cpu_kernels.unavailable() is not None, reason="no Numba")
def test_inference_makes_no_table_of_backward() -> None:
    x = np.ones((1, 1, 100_000), "float32")
    with kernels.mode("require"):
        for op in (F.max_pool, F.avg_pool):
            PLANS.clear()
            op(x, 2)
            inference = PLANS.nbytes
            assert inference < (20_000 if op is F.max_pool else 1_000_000)
        PLANS.clear()
        F.max_pool(x, 3, 2, 1)
        assert PLANS.nbytes < 20_000


def test_a_spec_of_a_long_axis_is_small() -> None:
    for made in (AdaptiveAxis(10**5, 10**5 - 1), Axis(10**5, 10**5, 3, 1, 1, 1, 1)):
        tracemalloc.start()
        values = [getattr(made, name) for name in dir(made) if not name.startswith("_")]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 10_000
        assert values


# ------------------------------------------------------------------------------------------ no Python loop over windows
def lines_run(call: Callable[[], Any]) -> int:
    """The lines of Python that this thread runs in a call."""
    count = 0

    def tracer(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event in ("line", "call")
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


CALLS: dict[str, Callable[[int], Any]] = {
    "adaptive_avg_pool of many outputs": lambda n: train("adaptive_avg_pool", np.ones((1, 1, 999), "f4"), n),
    "adaptive_max_pool of many outputs": lambda n: train("adaptive_max_pool", np.ones((1, 1, 999), "f4"), n),
    "adaptive_avg_pool of a long axis": lambda n: train("adaptive_avg_pool", np.ones((1, 1, n), "f4"), n - 7),
    "adaptive_max_pool of a long axis": lambda n: train("adaptive_max_pool", np.ones((1, 1, n), "f4"), n - 7),
    "avg_pool": lambda n: train("avg_pool", np.ones((1, 1, n), "f4"), 3, 2, 1),
    "avg_pool, dilated": lambda n: train("avg_pool", np.ones((1, 1, n), "f4"), 3, 2, 2, 3),
    "sum_pool": lambda n: train("sum_pool", np.ones((1, 1, n), "f4"), 2),
    "lp_pool": lambda n: train("lp_pool", np.ones((1, 1, n), "f4"), 3, 2.0, 2, 1),
    "max_pool": lambda n: train("max_pool", np.ones((1, 1, n), "f4"), 3, 2, 1),
    "max_pool, dilated": lambda n: train("max_pool", np.ones((1, 1, n), "f4"), 3, 2, 2, 3),
    "pad edge": lambda n: train("pad", np.ones((1, 1, n), "f4"), n, "edge"),
    "pad reflect": lambda n: train("pad", np.ones((1, 1, n), "f4"), n - 1, "reflect"),
    "pad symmetric": lambda n: train("pad", np.ones((1, 1, n), "f4"), n, "symmetric"),
    "pad wrap": lambda n: train("pad", np.ones((1, 1, n + 1), "f4"), ((n, -1),), "wrap"),
    "pad constant": lambda n: train("pad", np.ones((1, 1, n), "f4"), n),
    "conv": lambda n: F.conv(np.ones((1, 1, n), "f4"), np.ones((1, 1, 3), "f4"), padding=1),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_runs_as_many_lines_of_python_however_many_windows_it_has(mode: str, name: str) -> None:
    call = CALLS[name]
    with kernels.mode("auto" if mode == "require" else mode):
        call(1500)  # what is compiled and imported once
        PLANS.clear()
        few, many = lines_run(lambda: call(1501)), lines_run(lambda: call(15_001))
    # The adjoint of many outputs of few cells has a loop over the windows of a cell, or over the cells if they are
    # fewer: no more than the root of their product. A loop over windows would run a line for each, at least.
    assert many <= few + 15_001 // 3
    assert few > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["adaptive_avg_pool", "adaptive_max_pool"])
@pytest.mark.parametrize(("lengths", "out"), [((5,), 3000), ((3000,), 7), ((3, 4), (50, 5)), ((60, 3), (7, 40))])
def test_far_more_windows_than_cells_and_far_fewer(mode: str, op: str, lengths: Any, out: Any, rng: Any) -> None:
    outs, ndim = (out,) if isinstance(out, int) else out, len(lengths)
    x, dy = rng.integers(-9, 10, (2, 1, *lengths)).astype("float64"), rng.standard_normal((2, 1, *outs))
    pool = Adaptive(lengths, outs)
    forward, backward = (getattr(reference, op.removeprefix("adaptive_") + part) for part in ("", "_backward"))
    with kernels.mode(mode):
        y, ctx = getattr(F, f"{op}_forward")(x, out)
        dx = getattr(F, f"{op}_backward")(dy, ctx)
        assert ndim > 1 or lines_run(lambda: getattr(F, f"{op}_backward")(dy, ctx)) < 6000  # of 3000 windows
    if "max" in op:
        np.testing.assert_array_equal(y, forward(x, pool)[0])
        np.testing.assert_allclose(dx, backward(dy, x, pool), atol=1e-10)
    else:
        np.testing.assert_allclose(y, forward(x, pool), atol=1e-12)
        np.testing.assert_allclose(dx, backward(dy, pool), atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_a_huge_window_whose_taps_are_nearly_all_padding(mode: str) -> None:
    x = np.arange(5.0, dtype="float32").reshape(1, 1, 5)
    kernel = 20_000
    with kernels.mode(mode):
        y, ctx = F.max_pool_forward(x, kernel, 1, "full")
        expected = np.concatenate([np.arange(5), np.full(kernel - 1, 4)])
        np.testing.assert_array_equal(y[0, 0], expected)
        np.testing.assert_array_equal(F.max_pool_backward(np.ones_like(y), ctx)[0, 0], [1, 1, 1, 1, kernel])
        y = F.sum_pool(x, kernel, 1, "full")
        forwards, backwards = np.cumsum(np.arange(5)), np.cumsum(np.arange(5)[::-1])[::-1]
        np.testing.assert_array_equal(y[0, 0], [*forwards, *[10] * (kernel - 5), *backwards[1:]])


# ----------------------------------------------------------------------------------------------- sizes beyond memory
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.adaptive_avg_pool(x, 2**31 - 1),
        lambda x: F.adaptive_max_pool(x, 2**31 - 1),
        lambda x: F.adaptive_max_pool_forward(x, (2**31 - 1,)),
        lambda x: F.avg_pool(x, 2**31 - 1, 1, "full"),
        lambda x: F.max_pool(x, 2**31 - 1, 1, "full"),
        lambda x: F.pad(x, 2**31 - 1),
        lambda x: F.pad(x, 2**31 - 1, "edge"),
        lambda x: F.conv_transpose(x, np.ones((1, 1, 1), "float32"), stride=2**29),
    ],
)
def test_a_result_that_memory_cannot_hold_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, mode: str, call: Callable[[np.ndarray], Any]
) -> None:  # pytorch#42582
    monkeypatch.setattr(backends, "available_memory", lambda: 8 << 30)
    with kernels.mode(mode), pytest.raises(MemoryError, match=r"shape \(1, 1, \d+\) and dtype float32 needs about \d+"):
        call(np.ones((1, 1, 5), "float32"))


def test_the_memory_that_is_free_is_known_or_unknown() -> None:
    free = backends.available_memory()
    assert free is None or 0 < free < 2**50


@pytest.mark.parametrize(
    "files",
    [
        {"limit": "1000\n", "use": "900\n", "stat": "anon 500\ninactive_file 300\nactive_file 100\n"},
        {"limit": "1000\n", "use": "600\n", "stat": "anon 600\n"},
    ],
)
def test_pages_of_files_count_as_free_in_a_container(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory._group_available(tmp_path, "limit", "use", "stat", "inactive_file") == 400


# ------------------------------------------------------------------------------------------ the plans of whole calls
X = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)


def plans_of(call: Callable[[], Any]) -> int:
    """How many plans of calls are kept for a call on top of those before it."""
    before = len(PLANS)
    with kernels.mode("off"):
        call()
    return len(PLANS) - before


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.max_pool(x, 3, 2, padding=1),
        lambda x: F.avg_pool_forward(x, (2, 2)),
        lambda x: F.pad(x, ((1, 0), (2, 2)), "reflect"),
        lambda x: F.batch_norm(x, training=True, momentum=0.5),
        lambda x: F.conv(x, np.ones((2, 1, 3, 3), np.float32)),
        lambda x: F.softmax_cross_entropy(x.reshape(8, 8), np.zeros(8, int)),
    ],
)
def test_a_call_is_checked_once_for_its_shapes_dtypes_and_options(
    call: Callable[[np.ndarray], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(
        call_plan.CallPlan,
        "__init__",
        lambda plan, *args, made=made, init=call_plan.CallPlan.__init__: (made.append(args[0]), init(plan, *args))[1],
    )
    with kernels.mode("off"):
        for x in (X, X.copy(), -X):
            call(x)
        assert len(made) == 1
        call(X.astype(np.float64))
        assert len(made) == 2


@pytest.mark.parametrize("wrong", [True, 1.0, np.float32(1), (True, 1), (1.0, 1), [1.0, 1], ((1, True), (1, 1))])
def test_an_option_that_equals_one_that_was_right_is_still_refused(wrong: Any) -> None:
    for right in (1, (1, 1), [1, 1], ((1, 1), (1, 1))):
        F.max_pool(X, 3, padding=right)
    with pytest.raises(TypeError):
        F.max_pool(X, 3, padding=wrong)
    with pytest.raises(TypeError):
        F.max_pool(X, wrong if not isinstance(wrong, tuple | list) else (True, 1))


def test_flags_and_numbers_that_are_equal_are_different_options() -> None:
    F.avg_pool(X, 2, count_include_pad=True, divisor_override=1)
    with pytest.raises(TypeError, match="count_include_pad"):
        F.avg_pool(X, 2, count_include_pad=1, divisor_override=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="divisor_override"):
        F.avg_pool(X, 2, divisor_override=True)
    with pytest.raises(TypeError, match="divisor_override"):
        F.avg_pool(X, 2, divisor_override=1.0)  # type: ignore[arg-type]


def test_minus_zero_is_an_option_of_its_own() -> None:
    slopes = [F.leaky_relu(np.array([-3.0]), slope) for slope in (0.0, -0.0, 0.0)]
    assert [bool(np.signbit(y[0])) for y in slopes] == [True, False, True]


def test_shapes_and_dtypes_of_every_array_are_told_apart() -> None:
    gamma, wrong = np.ones(1, np.float32), np.ones(2, np.float32)
    F.group_norm(X, 1, gamma, gamma)
    for arrays in ((wrong, gamma), (gamma, wrong)):
        with pytest.raises(ValueError, match="shape"):
            F.group_norm(X, 1, *arrays)
    with pytest.raises(TypeError, match="byte order"):
        F.group_norm(X, 1, gamma.astype(gamma.dtype.newbyteorder("S")), gamma)
    with pytest.raises(TypeError, match="beta"):
        F.group_norm(X, 1, gamma, gamma.astype(int))


def test_what_a_call_finds_in_its_arrays_is_checked_each_time() -> None:
    running = np.zeros(1, np.float32)
    F.batch_norm(X, running_mean=running, running_var=running.copy(), training=True)
    running.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        F.batch_norm(X, running_mean=running, running_var=np.ones(1, np.float32), training=True)
    F.softmax_cross_entropy(X.reshape(8, 8), np.zeros(8, int))
    with pytest.raises(ValueError, match="labels"):
        F.softmax_cross_entropy(X.reshape(8, 8), np.full(8, 8))


def test_memory_is_asked_for_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_plan, "LARGE", 16)
    F.max_pool(X, 2)
    monkeypatch.setattr(backends, "available_memory", lambda: 10)
    with pytest.raises(MemoryError, match=r"result of shape \(1, 1, 4, 4\)"):
        F.max_pool(X, 2)


def test_a_plan_serves_each_mode_and_warmup_by_itself() -> None:
    _, ctx = F.relu_forward(X)
    for mode in ("off", "auto", "off"):
        with kernels.mode(mode):
            F.relu_backward(X, ctx)
    steps = {mode: function for (step, mode), function in ctx.plan.steps.items() if step == "relu_backward"}
    assert steps["off"].func is sys.modules["cnnlayers.functional.relu"]._relu_backward
    if cpu_kernels.unavailable() is None:
        assert steps["auto"] is not steps["off"]
        assert kernels.warmup(F.relu, X) == kernels.warmup(F.relu, X) > 0


@pytest.mark.parametrize("name", ["numpy.int64", "list"])
def test_options_of_other_types_are_checked_each_time_and_not_kept(name: str) -> None:
    F.max_pool(X, 2)
    kernel: Any = np.int64(2) if name == "numpy.int64" else [2, 2]
    assert plans_of(lambda: F.max_pool(X, kernel)) == 0
