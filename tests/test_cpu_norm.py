"""The norms' CPU kernels: every memory layout and partition of an array, threads, and what is refused."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.backends import threads

pytest.importorskip("numba", reason="no Numba")

from cnnlayers.kernels.cpu import jit, parallel

if jit.unavailable():
    pytest.skip(str(jit.unavailable()), allow_module_level=True)

from cnnlayers.kernels.cpu import norm_layout

TOLERANCE = {"float16": 2e-3, "float32": 5e-6, "float64": 1e-11}


@dataclass(frozen=True)
class Case:
    """A norm of arrays of a shape, (N, C, ...) or any for layer and RMS norm."""

    op: str
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    last: bool = False

    def arrays(self, dtype: str, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """x, dy, and the parameters."""
        rng = np.random.default_rng(0)
        size = self.shape[-1] if self.op in ("layer_norm", "rms_norm") else self.shape[1]
        x, dy = (rng.normal(m, 1.0, self.shape).astype(dtype) for m in (mean, 0.0))
        if self.last:
            x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
        return x, dy, [rng.normal(1.0, 0.5, size).astype("float32") for _ in range(1 if self.op == "rms_norm" else 2)]

    def forward(self, x: np.ndarray, parameters: list[np.ndarray]) -> tuple[np.ndarray, Any]:
        options = self.options | ({"data_format": "channels_last"} if self.last else {})
        result: tuple[np.ndarray, Any] = getattr(F, f"{self.op}_forward")(x, *self.args, *parameters, **options)
        return result

    def backward(self, dy: np.ndarray, ctx: Any) -> tuple[np.ndarray, ...]:
        result: tuple[np.ndarray, ...] = getattr(F, f"{self.op}_backward")(dy, ctx)
        return result

    def run(self, x: np.ndarray, dy: np.ndarray, parameters: list[np.ndarray]) -> list[np.ndarray]:
        y, ctx = self.forward(x, parameters)
        return [y, *self.backward(dy, ctx)]


BATCH = {"training": True}
RUNNING = {"running_mean": np.full(6, 0.5), "running_var": np.full(6, 2.0)}
CASES = {
    "segments": Case("batch_norm", (3, 6, 5, 7), options=BATCH),
    "one segment": Case("batch_norm", (1, 1, 601), options=BATCH),
    "blocks of channels": Case("batch_norm", (3, 19, 5, 7), options=BATCH),
    "blocks of long segments": Case("batch_norm", (2, 17, 2500), options=BATCH),
    "short segments": Case("batch_norm", (37, 6, 2), options=BATCH),
    "columns": Case("batch_norm", (70, 80), options=BATCH),
    "folded columns": Case("batch_norm", (8, 3, 4, 5), options=BATCH, last=True),
    "odd columns": Case("batch_norm", (3, 5, 7), options=BATCH, last=True),
    "running statistics": Case("batch_norm", (3, 6, 5, 7), options=RUNNING),
    "running statistics, channels last": Case("batch_norm", (3, 6, 5, 7), options=RUNNING, last=True),
    "running statistics, no spatial axis": Case("batch_norm", (9, 6), options=RUNNING),
    "cached rows": Case("group_norm", (5, 12, 5, 5), (4,)),
    "few rows": Case("group_norm", (2, 6, 4, 5), (2,)),
    "groups of short channels": Case("group_norm", (20, 6, 3), (2,)),
    "flat groups": Case("group_norm", (3, 8), (2,)),
    "groups of columns": Case("group_norm", (3, 6, 4, 5), (2,), last=True),
    "instances": Case("instance_norm", (4, 6, 5, 5)),
    "short instances": Case("instance_norm", (4, 6, 3)),
    "instances of columns": Case("instance_norm", (4, 6, 5), last=True),
    "cells": Case("layer_norm", (9, 5, 1100), (1100,)),
    "cells, not centred": Case("rms_norm", (300, 33), (33,)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


@pytest.fixture(autouse=True)
def required() -> Iterator[None]:
    with kernels.mode("require"):
        yield


@pytest.fixture(params=["usual", "many pieces"])
def partition(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the usual sizes, and with every array in many pieces and chunks."""
    if request.param == "many pieces":
        monkeypatch.setattr(norm_layout, "PIECE_BYTES", 64)
        monkeypatch.setattr(norm_layout, "CACHED_ROW_BYTES", 300)
        monkeypatch.setattr(parallel, "CHUNK_BYTES", 500)


def close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype
        np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(e).max())))


# ---------------------------------------------------------------------------------------- the portable code's answers
@pytest.mark.sample(80)
@each_case
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("mean", [0.0, 8.0])
@pytest.mark.usefixtures("partition")
def test_as_the_portable_code(case: Case, dtype: str, mean: float) -> None:
    x, dy, parameters = case.arrays(dtype, mean)
    found = case.run(x, dy, parameters)
    with kernels.mode("off"):
        close(found, case.run(x, dy, parameters), TOLERANCE[dtype] * (2 if mean else 1))


@each_case
@pytest.mark.usefixtures("partition")
def test_contexts_are_interchangeable(case: Case) -> None:
    x, dy, parameters = case.arrays("float64")
    _, ctx = case.forward(x, parameters)
    with kernels.mode("off"):
        _, portable = case.forward(x, parameters)
        theirs = case.backward(dy, ctx)
    for name in ("mean", "rstd"):
        mine, other = ctx.arrays[name], portable.arrays[name]
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == np.float64
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-14)
            assert mine.shape == other.shape
    close(list(theirs), list(case.backward(dy, portable)), 1e-11)


@each_case
@pytest.mark.usefixtures("partition")
def test_a_large_mean(case: Case) -> None:
    """float32 numbers a million standard deviations from 0, against float64."""
    if "running_mean" in case.options or case.op == "rms_norm":
        pytest.skip("the mean is not the array's")
    x, dy, parameters = case.arrays("float32", 1e6)
    with kernels.mode("off"):
        exact = case.run(x.astype("float64"), dy.astype("float64"), parameters)
    for found, expected in zip(case.run(x, dy, parameters), exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "case",
    [
        Case("batch_norm", (3, 4, 5, 5), options=BATCH),
        Case("batch_norm", (2, 17, 2501), options=BATCH),
        Case("batch_norm", (6, 8), options=BATCH),
        Case("batch_norm", (3, 20, 9, 9), options=BATCH, last=True),
        Case("group_norm", (3, 4, 5, 5), (2,)),
        Case("group_norm", (3, 20, 9, 9), (5,), last=True),
        Case("instance_norm", (3, 4, 5, 5)),
        Case("layer_norm", (6, 70), (70,)),
    ],
    ids=lambda case: f"{case.op} {case.shape} {case.last}",
)
def test_numbers_near_the_largest_give_no_nan(case: Case) -> None:
    """Their sum overflows, their mean does not."""
    x, _, parameters = case.arrays("float32")
    x = x / np.abs(x).max() * np.float32(3e38)
    x.reshape(-1)[0] = np.nan
    y, _ = case.forward(x, parameters)
    with kernels.mode("off"):
        expected, _ = case.forward(x, parameters)
    assert 0 < np.isnan(y).sum() < y.size
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))


@pytest.mark.parametrize(
    "case",
    [
        Case("batch_norm", (1, 2, 6001), options=BATCH),
        Case("batch_norm", (2, 17, 2501), options=BATCH),
        Case("group_norm", (20, 2, 6001), (2,)),
        Case("layer_norm", (3, 6001), (6001,)),
    ],
    ids=["pieces", "blocks", "rows", "cells"],
)
def test_a_first_cell_far_from_all_others(case: Case) -> None:
    """Sums of float32 numbers less that cell would lose the digits of the variance."""
    x, _, parameters = case.arrays("float32", 3000.0)
    x[..., 0] = 0.0
    with kernels.mode("off"):
        exact = case.forward(x.astype("float64"), parameters)[1].arrays["rstd"]
    np.testing.assert_allclose(case.forward(x, parameters)[1].arrays["rstd"], exact, rtol=1.5e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 40])
@pytest.mark.usefixtures("partition")
@pytest.mark.filterwarnings("ignore:invalid value")  # the difference of infinities
def test_what_is_not_finite_stays_in_its_row(last: bool, bad: float, place: int) -> None:
    for case in (
        Case("batch_norm", (4, 3, 41), options=BATCH, last=last),
        Case("group_norm", (8, 6, 41), (3,), last=last),
    ):
        x, dy, parameters = case.arrays("float32")
        (np.moveaxis(x, -1, 1) if last else x)[1, 2, place] = bad
        with kernels.mode("off"):
            y, ctx = case.forward(x, parameters)
            expected = [y, ctx.arrays["mean"], ctx.arrays["rstd"], *case.backward(dy, ctx)]
        y, ctx = case.forward(x, parameters)
        assert np.isnan(y).any()
        found = [y, ctx.arrays["mean"], ctx.arrays["rstd"], *case.backward(dy, ctx)]
        for f, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("shape", [(4, 6, 5, 4), (20, 6)])
def test_running_statistics(shape: tuple[int, ...], unbiased: bool) -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, shape)
    found, expected = ([np.ones(12, "float32")[::2], np.ones(6, "float16")] for _ in range(2))
    F.batch_norm(x, None, None, *found, training=True, momentum=0.3, unbiased=unbiased)
    with kernels.mode("off"):
        F.batch_norm(x, None, None, *expected, training=True, momentum=0.3, unbiased=unbiased)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-6 if f.dtype == "float32" else 1e-3)


# ------------------------------------------------------------------------------------------------------------- threads
def bits(case: Case) -> list[bytes]:
    x, dy, parameters = case.arrays("float32")
    return [a.tobytes() for a in case.run(x, dy, parameters)]


@each_case
def test_bits_do_not_depend_on_threads(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 200)
    found = []
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        found.append(bits(case))
    assert found[0] == found[1] == found[2]


@each_case
def test_bits_do_not_depend_on_where_arrays_are_stored(case: Case) -> None:
    """LLVM makes two versions of a loop, one for arrays that may overlap: both must round alike."""
    x, dy, parameters = case.arrays("float32")
    runs = [
        case.run(placed(x, offset), placed(dy, 3 * offset % 64), [placed(p, 5 * offset % 64) for p in parameters])
        for offset in (*range(0, 64, 4), *range(0, 64, 4))
    ]  # all results stay alive, so that each has memory of its own
    for results in runs[1:]:
        assert [a.tobytes() for a in results] == [a.tobytes() for a in runs[0]]


def placed(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins so many bytes after a cache line."""
    buffer = np.empty(array.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def test_many_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 500)
    expected = {name: bits(case) for name, case in CASES.items()}

    def work(name: str) -> bool:
        with kernels.mode("require"):
            return bits(CASES[name]) == expected[name]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [*CASES] * 3))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_fork() -> None:
    case = CASES["cached rows"]
    expected = bits(case)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(bits, (case,)).get(60) == expected


# ------------------------------------------------------------------------------------------- arguments and compilation
@each_case
def test_arguments_are_not_written_to(case: Case) -> None:
    x, dy, parameters = case.arrays("float32")
    copies = [a.copy() for a in (x, dy, *parameters)]
    for a in (x, dy, *parameters):
        a.flags.writeable = False
    for result in case.run(x, dy, parameters):
        assert result.flags.writeable
    for a, before in zip((x, dy, *parameters), copies, strict=True):
        np.testing.assert_array_equal(a, before)


class Alone:
    """A communicator of one."""

    def allreduce(self, value: Any) -> Any:
        return value


def test_ranks_are_refused() -> None:
    x = np.ones((4, 3), "float32")
    with pytest.raises(kernels.KernelUnavailable, match=r"batch_norm_forward .* the sums go over several ranks"):
        F.batch_norm(x, training=True, comm=Alone())
    with kernels.mode("auto"):
        np.testing.assert_array_equal(F.batch_norm(x, training=True, comm=Alone()), 0 * x)
