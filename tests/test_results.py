"""Room for large results: taken again when nobody looks at it any more, and never before."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends
from cnnlayers.backends import results

SHAPE = (4, 25)  # 400 bytes of float32


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of 100 to 2,000 bytes lie in blocks, and as many are kept."""
    monkeypatch.setattr(results, "LEAST", 100)
    monkeypatch.setattr(results, "KEPT", 2_000)
    monkeypatch.setattr(results, "_shelf", [])


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def kept() -> list[int]:
    return [block.nbytes for block in results._shelf]


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", bool])
def test_a_result_is_an_array_like_any_other(dtype: str) -> None:
    a = backends.result((3, 5, 70), dtype)
    assert type(a) is np.ndarray
    assert (a.shape, a.dtype) == ((3, 5, 70), np.dtype(dtype))
    assert a.flags.c_contiguous
    assert a.flags.writeable


def test_a_block_is_taken_again_when_its_array_is_gone() -> None:
    a = backends.result(SHAPE, "float32")
    first = address(a)
    assert kept() == []
    del a
    assert kept() == [400]
    b = backends.result((10, 10), "float32")  # of as many bytes
    assert address(b) == first
    assert kept() == []


@pytest.mark.parametrize(
    "look",
    [
        lambda a: a[1:],
        lambda a: a.T,
        lambda a: a.reshape(-1)[::-7],
        lambda a: a.view("uint8"),
        lambda a: memoryview(a),
        lambda a: np.from_dlpack(a),
        lambda a: np.asarray(memoryview(a[2:])),
        lambda a: np.broadcast_to(a, (3, *a.shape)),
    ],
    ids=["slice", "transpose", "reverse", "view", "memoryview", "dlpack", "through a buffer", "broadcast"],
)
def test_not_while_anything_looks_at_it(look) -> None:
    a = backends.result(SHAPE, "float32")
    first, other = address(a), look(a)
    del a
    gc.collect()
    assert kept() == []
    assert address(backends.result(SHAPE, "float32")) != first
    del other
    gc.collect()
    assert first in [address(block) for block in results._shelf]


def test_pytorch_holds_on_to_it_too() -> None:
    torch = pytest.importorskip("torch")
    a = backends.result(SHAPE, "float32")
    t = torch.from_numpy(a)
    del a
    assert kept() == []
    del t
    assert kept() == [400]


def test_the_shelf_is_bounded_and_the_oldest_goes_first() -> None:
    arrays = [backends.result((n,), "uint8") for n in (500, 600, 700, 800)]
    while arrays:
        del arrays[0]
    assert kept() == [500, 600, 700, 800][2:]
    huge = backends.result((2_001,), "uint8")
    del huge
    assert kept() == [700, 800]


def test_small_ones_are_the_allocators() -> None:
    a = backends.result((99,), "uint8")
    assert a.flags.owndata
    del a
    assert kept() == []


def test_results_of_ops_stay_as_they_are(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 8, 8)).astype("float32")
    results_of = [F.max_pool(x, 2), F.pad(x, 1, "reflect"), F.relu(x), F.conv(x, x[:, :, :3, :3]), F.avg_pool(x, 3)]
    copies = [y.copy() for y in results_of]
    for _ in range(5):
        for again, copy in zip(
            (F.max_pool(x, 2), F.pad(x, 1, "reflect"), F.relu(x), F.conv(x, x[:, :, :3, :3]), F.avg_pool(x, 3)),
            copies,
            strict=True,
        ):
            assert again.tobytes() == copy.tobytes()
    for y, copy in zip(results_of, copies, strict=True):
        assert y.tobytes() == copy.tobytes()


def test_many_threads_at_once() -> None:
    """No block is lent to two."""
    wrong: list[int] = []

    def work(me: int) -> None:
        for i in range(2_000):
            a, b = (backends.result((200,), "uint8") for _ in range(2))
            a[...], b[...] = me, i % 100 + 100
            if not ((a == me).all() and (b == i % 100 + 100).all()):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert sum(kept()) <= 2_000


def test_nobody_waits_for_the_shelf() -> None:
    a = backends.result(SHAPE, "float32")
    with results._lock:  # a fork, or a collection, may come while another thread has it
        b = backends.result(SHAPE, "float32")
        del a
        assert kept() == []
    del b
    assert kept() == [400]


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not tell its memory")
def test_a_part_of_the_machines_memory() -> None:
    assert 2**20 < results._machine() < 2**50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_finaliser_that_is_interrupted_leaves_the_shelf_open(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(list[np.ndarray]):
        def append(self, block: np.ndarray) -> None:
            raise KeyboardInterrupt

    a = backends.result(SHAPE, "float32")
    with monkeypatch.context() as patch:
        patch.setattr(results, "_shelf", Interrupted())
        del a
    assert not results._lock.locked()
    b = backends.result(SHAPE, "float32")
    del b
    assert kept() == [400]
