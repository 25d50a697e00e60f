"""Memory that is used again: a buffer serves again when nothing views it any more, and never before."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends
from cnnlayers.backends import memory

SHAPE = (4, 25)  # 400 bytes of float32


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of 100 to 2,000 bytes are in buffers, of which 2,000 bytes are kept."""
    monkeypatch.setattr(memory, "LEAST_RESULT", 100)
    monkeypatch.setattr(memory, "LIMIT", 2_000)
    monkeypatch.setattr(memory, "_free", memory._FreeList())


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def waiting() -> list[np.ndarray]:
    """The buffers of the free list, the one that has waited longest first."""
    return [buffer for _, buffer in sorted(chain(*memory._free.buffers.values()), key=itemgetter(0))]


def kept() -> list[int]:
    return [buffer.nbytes for buffer in waiting()]


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", bool])
def test_a_result_is_an_array_like_any_other(dtype: str) -> None:
    a = backends.result((3, 5, 70), dtype)
    assert type(a) is np.ndarray
    assert (a.shape, a.dtype) == ((3, 5, 70), np.dtype(dtype))
    assert a.flags.c_contiguous
    assert a.flags.writeable


def test_a_buffer_is_taken_again_when_its_array_is_gone() -> None:
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
    assert first in [address(buffer) for buffer in waiting()]


def test_what_is_made_of_an_arrays_base_gives_nothing_back() -> None:
    a = backends.result(SHAPE, "float32")
    a[...] = 1.0
    made = [a.base[:], a.base[3:7], a.base.copy(), a.base + 1, a.base.view(np.ndarray), a.base[...][::2], a.base[0]]
    del made
    gc.collect()
    assert kept() == []
    b = backends.result(SHAPE, "float32")
    assert not np.shares_memory(a, b)
    del a, b
    assert kept() == [400, 400]
    view = backends.result(SHAPE, "float32").base[1:]  # holds on to it
    del view
    assert kept() == [400, 400]


def test_the_last_base_of_an_array_holds_on_to_its_memory() -> None:
    a = last = backends.result(SHAPE, "float32")
    while last.base is not None:
        last = last.base
    first = address(a)
    del a
    gc.collect()
    assert kept() == []
    assert address(backends.result(SHAPE, "float32")) != first
    del last
    assert first in [address(buffer) for buffer in waiting()]


def test_a_size_that_another_thread_has_freed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sizes(dict):
        """At each look at all sizes the last of them is taken away behind the looker's back."""

        def __iter__(self) -> Iterator[int]:
            found = list(super().__iter__())
            if found:
                self.pop(found[-1])
            return iter(found)

    arrays = [backends.result((n,), "uint8") for n in (500, 600, 700, 800)]
    monkeypatch.setattr(memory._free, "buffers", Sizes())
    while arrays:
        del arrays[0]
    assert sum(kept()) <= 2_000
    assert 800 in kept()


def test_pytorch_holds_on_to_it_too() -> None:
    torch = pytest.importorskip("torch")
    a = backends.result(SHAPE, "float32")
    t = torch.from_numpy(a)
    del a
    assert kept() == []
    del t
    assert kept() == [400]


def test_the_free_list_is_bounded_and_the_oldest_goes_first() -> None:
    arrays = [backends.result((n,), "uint8") for n in (500, 600, 700, 800)]
    while arrays:
        del arrays[0]
    assert kept() == [500, 600, 700, 800][2:]
    huge = backends.result((2_001,), "uint8")
    del huge
    assert kept() == [700, 800]


def test_sizes_that_never_repeat_leave_nothing_behind() -> None:
    for n in range(500):
        backends.result((100 + n,), "uint8")
    assert len(memory._free.buffers) < 30
    assert sum(kept()) <= 2_000


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
    """No buffer is given to two."""
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


def test_garbage_may_be_collected_at_any_moment() -> None:
    class Cycle:
        def __init__(self, size: int) -> None:
            self.own, self.array = self, backends.result((size,), "float32")

    threshold = gc.get_threshold()
    gc.set_threshold(7)
    try:
        for i in range(3000):
            Cycle(25 + i % 13)
            backends.result((20 + i % 40,), "float32")  # a collection in here gives buffers
    finally:
        gc.set_threshold(*threshold)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not tell its memory")
def test_a_part_of_the_machines_memory() -> None:
    assert 2**20 < memory._machine() < 2**50


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_memory_counts_where_it_has_less_than_its_machine(name: str, tmp_path: Path) -> None:
    machine, file = memory._machine(tmp_path), tmp_path / name
    file.parent.mkdir(exist_ok=True)
    for text, expected in (("67108864\n", 64 << 20), ("max\n", machine), (f"{2**63 - 4096}\n", machine)):
        file.write_text(text)
        assert memory._machine(tmp_path) == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_finaliser_that_is_interrupted_loses_its_buffer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Iterator[int]:
        raise KeyboardInterrupt
        yield 0

    a, b = (backends.result(SHAPE, "float32") for _ in range(2))
    del a
    with monkeypatch.context() as patch:
        patch.setattr(memory._free, "numbers", interrupted())
        del b
    assert kept() == [400]
    c = backends.result(SHAPE, "float32")
    del c
    assert kept() == [400]


# ---------------------------------------------------------------------------------------------------------- workspaces
def test_a_workspace_is_aligned_apart_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 1 << 20)
    with backends.workspace(np.float32, (3, 5), (7,), (0, 2)) as (a, b, c):
        assert [x.shape for x in (a, b, c)] == [(3, 5), (7,), (0, 2)]
        assert address(a) % 64 == address(b) % 64 == 0
        assert not np.shares_memory(a, b)
        with backends.workspace(np.float32, (15,)) as (other,):
            assert not np.shares_memory(a, other)
        first = address(a)
    with backends.workspace(np.float64, (10,)) as (again,):
        assert address(again) == first


def test_what_an_interrupted_block_had_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 1 << 20)
    with contextlib.suppress(KeyboardInterrupt), backends.workspace(np.float32, (9,)) as (a,):
        raise KeyboardInterrupt
    with backends.workspace(np.float32, (9,)) as (other,):
        assert not np.shares_memory(a, other)


def test_results_and_workspaces_have_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 200_000)
    for size in (70_000, 150_000, 300, 199_000):
        a = backends.result((size,), "uint8")
        with backends.workspace("uint8", (size,)):
            pass
        del a
        assert sum(kept()) <= 200_000
    assert 199_000 in kept()
