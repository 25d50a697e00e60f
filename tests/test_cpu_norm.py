"""The norms' CPU kernels: threads, where arrays lie, and what is refused. Their answers: test_norm_kernels.py."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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

from .cases.norm import EACH_LAYOUT, LAYOUTS, TRAIN, Case


@pytest.fixture(autouse=True)
def required() -> Iterator[None]:
    with kernels.mode("require"):
        yield


# -------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    "case",
    [
        Case("batch_norm", (1, 2, 6001), options=TRAIN),
        Case("batch_norm", (2, 17, 2501), options=TRAIN),
        Case("group_norm", (20, 2, 6001), (2,)),
        Case("layer_norm", (3, 6001), (6001,)),
    ],
    ids=["pieces", "blocks", "rows", "cells"],
)
def test_a_first_cell_far_from_all_others(case: Case, rng: np.random.Generator) -> None:
    """Sums of float32 numbers less that cell would lose the digits of the variance."""
    x = rng.normal(3000.0, 1.0, case.shape).astype("float32")
    x[..., 0] = 0.0
    with kernels.mode("off"):
        exact = case.forward(x.astype("float64"))[1].arrays["rstd"]
    np.testing.assert_allclose(case.forward(x)[1].arrays["rstd"], exact, rtol=1.5e-6)


@pytest.mark.parametrize(
    "case",
    [
        Case("batch_norm", (1, 3, 1103, 1001), options=TRAIN),
        Case("group_norm", (3600, 8, 11, 11), (2,)),
        Case("layer_norm", (4300, 768), (768,)),
        Case("batch_norm", (7000, 512), options=TRAIN),
    ],
    ids=["pieces", "blocks", "cells", "channels last"],
)
def test_results_that_are_stored_past_the_caches(case: Case) -> None:
    """They are larger than 12 MB. Rows need not start at a cache line."""
    x, dy, *parameters = arrays_of(case)
    found, exact = case.both(np.asarray, x, dy, *parameters), case.exact(x, dy, *parameters)
    for ours, expected in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------------------- threads
def arrays_of(case: Case) -> list[Any]:
    """x, dy, and the parameters."""
    return case.drawn(np.random.default_rng(0), "float32", 0.0)


def bits(case: Case) -> list[bytes]:
    return [a.tobytes() for a in case.both(np.asarray, *arrays_of(case))]


@EACH_LAYOUT
def test_bits_do_not_depend_on_threads(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 200)
    found = []
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        found.append(bits(case))
    assert found[0] == found[1] == found[2]


@EACH_LAYOUT
def test_bits_do_not_depend_on_where_arrays_are_stored(case: Case) -> None:
    """LLVM makes two versions of a loop, one for arrays that may overlap: both must round alike."""
    x, dy, parameters = arrays_of(case)
    runs = [
        case.both(
            np.asarray, placed(x, offset), placed(dy, 3 * offset % 64), [placed(p, 5 * offset % 64) for p in parameters]
        )
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
    expected = {name: bits(case) for name, case in LAYOUTS.items()}

    def work(name: str) -> bool:
        with kernels.mode("require"):
            return bits(LAYOUTS[name]) == expected[name]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [*LAYOUTS] * 3))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_fork() -> None:
    case = LAYOUTS["cached rows"]
    expected = bits(case)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(bits, (case,)).get(60) == expected


# ------------------------------------------------------------------------------------------- arguments and compilation
@EACH_LAYOUT
def test_arguments_are_not_written_to(case: Case) -> None:
    x, dy, parameters = arrays_of(case)
    copies = [a.copy() for a in (x, dy, *parameters)]
    for a in (x, dy, *parameters):
        a.flags.writeable = False
    for result in case.both(np.asarray, x, dy, parameters):
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
