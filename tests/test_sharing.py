"""Chunks that compiled code shares among threads: each is computed once, whoever helps, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends
from cnnlayers.backends import threads
from cnnlayers.kernels.cpu import jit

pytestmark = pytest.mark.skipif(jit.unavailable() is not None, reason=str(jit.unavailable()))

if jit.unavailable() is None:
    from cnnlayers.kernels.cpu import parallel, sharing
    from cnnlayers.kernels.cpu.jit import kernel

    @kernel(allocates=False)
    def count(counts: Any, start: int, stop: int) -> None:
        for i in range(start, stop):
            counts[i] += 1

    @kernel(allocates=False)
    def meet(arrived: Any, start: int, stop: int) -> None:
        """Wait until two threads are in a chunk, for a second or so."""
        sharing.fetch_add(arrived, 0, 1)
        polls = 0
        while sharing.atomic_load(arrived, 0) < 2 and polls < 1_000_000:
            polls += 1
            sharing.sched_yield()

    @kernel(allocates=False)
    def with_workspaces(values: Any, factor: int, start: int, stop: int, first: Any, second: Any) -> None:
        second[0] = factor
        for i in range(start, stop):
            first[i - start] = i
        for i in range(start, stop):
            values[i] = first[i - start] * second[0]

    @kernel()
    def failing(values: Any, at: int, start: int, stop: int) -> None:
        for i in range(start, stop):
            if i == at:
                raise ValueError("a kernel's own error")
            values[i] = 1


LARGE = 1 << 30  # bytes, for the largest number of chunks


def test_every_chunk_is_computed_once_by_any_thread(four: None) -> None:
    for units in (0, 1, 2, 3, 16, 17, 400):
        for _ in range(30):
            counts = np.zeros(units, np.int64)
            parallel.chunked(units, LARGE)(count, counts)
            assert (counts == 1).all()


def helped() -> bool:
    """Whether a helper computed a chunk: then `NEXT` went beyond the last chunk twice or more."""
    parallel.chunked(64, LARGE)(meet, np.zeros(1, np.int64))
    board = backends.board()
    return int(board[sharing.NEXT]) > int(board[sharing.NUMBER]) + 1


def test_helpers_take_part_while_they_are_awake_and_are_woken_when_they_sleep(four: None) -> None:
    for _ in range(3):
        assert any(helped() for _ in range(5))
        for _ in range(1000):
            if backends.board()[sharing.AWAKE] == 0:
                break
            time.sleep(0.01)
        else:
            pytest.fail("helpers that have nothing to do do not sleep")


def test_many_threads_may_share_chunks_at_once(four: None) -> None:
    wrong: list[int] = []

    def call() -> None:
        for _ in range(200):
            counts = np.zeros(40, np.int64)
            parallel.chunked(40, LARGE)(count, counts)
            wrong.extend(counts[counts != 1])

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not wrong
    assert not any(caller.is_alive() for caller in callers)


def test_python_chunks_do_not_wait_for_helpers_in_compiled_code(four: None) -> None:
    parallel.chunked(64, LARGE)(count, np.zeros(64, np.int64))
    for _ in range(50):
        parallel.chunked(64, LARGE)(count, np.zeros(64, np.int64))
        meeting = threading.Barrier(4, timeout=30)
        backends.run_chunks(lambda _, meeting=meeting: meeting.wait(), range(4))  # passes with four threads alone


@pytest.mark.parametrize("units", [1, 7, 64])
def test_each_chunk_has_workspaces_of_its_own(units: int, four: None) -> None:
    for dtype in (np.float32, np.float64):
        values = np.zeros(units, dtype)
        parallel.chunked(units, LARGE)(with_workspaces, values, 3, workspace=(units, 1))
        assert (values == 3 * np.arange(units)).all()


@pytest.mark.parametrize("at", [0, 40, 63])
def test_a_kernels_error_is_raised(at: int, four: None) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="a kernel's own error"):
            parallel.chunked(64, LARGE)(failing, np.zeros(64), at)
    counts = np.zeros(64, np.int64)
    parallel.chunked(64, LARGE)(count, counts)
    assert (counts == 1).all()


def test_a_forked_child_shares_with_helpers_of_its_own(four: None) -> None:
    assert any(helped() for _ in range(5))
    before = backends.board()
    threads._state.process = -1  # what a fork changes
    assert backends.board() is not before
    assert any(helped() for _ in range(5))


def test_a_board_that_is_in_use_is_left_alone(four: None) -> None:
    board, counts = backends.board(), np.zeros(64, np.int64)
    parallel.chunked(64, LARGE)(count, counts)
    board[sharing.IN_USE], offers = 1, int(board[sharing.OFFERS])
    parallel.chunked(64, LARGE)(count, counts)
    assert (counts == 2).all()
    assert (board[sharing.IN_USE], board[sharing.OFFERS]) == (1, offers)
    board[sharing.IN_USE] = 0
