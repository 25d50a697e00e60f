"""An exception at any bytecode (Ctrl-C) leaves settings, locks, helpers and buffers as they should be.

Each test runs something once for each call, line and bytecode of the library's functions in it, and raises there. Then
it looks at what the process shares, while the exception is still referred to, as an interactive Python does.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("threadpoolctl")

from threadpoolctl import ThreadpoolController, threadpool_limits

import cnnlayers.functional as F
from cnnlayers import backends, checkpoint, distributed, kernels
from cnnlayers.autograd import Tensor, graph, no_grad
from cnnlayers.backends import cupy_probe, memory, plans, selection, threads

from .conftest import end_helpers

HERE = __file__
# Python drops what is raised while it closes a generator that was not run to its end.
NOT_IN = ("run_and_raise", "<genexpr>")
BACKENDS = [str(path) for path in Path(threads.__file__).parent.glob("*.py")]
pytestmark = pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or a coverage tool is tracing")


class Raiser:
    """Raises KeyboardInterrupt at the event of this number in the functions of some files."""

    def __init__(self, number: int, files: Sequence[str]) -> None:
        self.left, self.files = number, frozenset(files)
        self.raised = False

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self.files or frame.f_code.co_name in NOT_IN:
            return None
        frame.f_trace_opcodes = True
        return self.count(frame, event, arg)

    def count(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        if event != "exception" and not self.raised:
            if self.left == 0:
                self.raised = True
                raise KeyboardInterrupt
            self.left -= 1
        return self.count


def run_and_raise(function: Callable[[], Any], number: int, files: Sequence[str]) -> BaseException | None:
    """The exception, or None where the function has fewer events."""
    raiser, reported = Raiser(number, files), list[Any]()
    hook, sys.unraisablehook = sys.unraisablehook, reported.append
    sys.settrace(raiser)
    try:
        function()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.settrace(None)
        sys.unraisablehook = hook
    if reported:  # raised in the finaliser of a buffer: Python reports it and goes on
        assert reported[0].exc_type is KeyboardInterrupt
        return KeyboardInterrupt()
    assert not raiser.raised, "the exception was lost"
    return None


def at_every_event(
    function: Callable[[], Any], files: Sequence[str] = (), step: int = 1, least: int = 20
) -> Iterator[BaseException]:
    function()  # imports and compiles
    for number in itertools.count(0, step):
        error = run_and_raise(function, number, [*(files or BACKENDS), HERE])
        if error is None:
            assert number > least, "nothing was traced"
            return
        yield error


libraries = ThreadpoolController()


def blas_threads() -> set[int]:
    return {library.num_threads for library in libraries.lib_controllers if library.user_api == "blas"}


def in_another_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(20)
    assert found, "another thread hangs"
    return found[0]


def enter_and_leave() -> bool:
    """That BLAS is on one thread in a block of this thread."""
    with backends.single_threaded_blas():
        return blas_threads() <= {1}


@pytest.fixture(autouse=True)
def two() -> Iterator[set[int]]:
    """The caller's setting of BLAS: two threads, where it has them."""
    global libraries
    libraries = ThreadpoolController()
    threads._libraries.cache_clear()  # other tests' imports may have loaded one more
    with threadpool_limits(2, user_api="blas"):
        yield blas_threads()


# ---------------------------------------------------------------------------------------------------------------- BLAS
def test_the_setting_of_blas_comes_back(two: set[int]) -> None:
    wrong: list[Any] = []

    def work() -> None:
        with backends.single_threaded_blas():
            with backends.single_threaded_blas():
                wrong.extend(blas_threads() - {1})
            wrong.extend(blas_threads() - {1})

    for number, error in enumerate(at_every_event(work)):
        assert blas_threads() == two, number
        if number % 10 == 0:
            assert in_another_thread(enter_and_leave)
            assert enter_and_leave()
        assert blas_threads() == two, number
        del error
    assert wrong == []


def test_the_setting_stays_while_another_thread_needs_it(two: set[int]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with backends.single_threaded_blas():
            entered.set()
            leave.wait(120)

    def work() -> None:
        with backends.single_threaded_blas():
            pass

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(30)
    try:
        for number, _ in enumerate(at_every_event(work)):
            assert blas_threads() <= {1}, number
    finally:
        leave.set()
        thread.join(30)
    assert blas_threads() == two


def test_another_thread_can_enter_and_leave_after_an_exception(two: set[int]) -> None:
    def work() -> None:
        with backends.single_threaded_blas():
            pass

    for _ in at_every_event(work, step=3):
        assert in_another_thread(enter_and_leave)
        assert blas_threads() == two


def test_a_second_and_a_third_exception_are_made_good_by_the_next_block(
    two: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = threads._set_numbers

    def interrupted(per_thread: bool, numbers: Sequence[int]) -> None:
        if numbers != [1] * len(numbers):
            raise KeyboardInterrupt
        setting(per_thread, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda _: None)
        patch.setattr(threads, "_set_numbers", interrupted)
        with pytest.raises(KeyboardInterrupt), backends.single_threaded_blas():
            raise KeyboardInterrupt
    assert blas_threads() <= {1}  # it could not be put back
    assert enter_and_leave()
    assert blas_threads() == two


def test_a_signal_handler_may_compute_at_any_point(two: set[int]) -> None:
    """Its own block comes whole, and what it interrupted goes on as if nothing had been."""
    wrong: list[Any] = []

    def work() -> None:
        with backends.single_threaded_blas():
            wrong.extend(blas_threads() - {1})

    class Handler(Raiser):
        def count(self, frame: types.FrameType, event: str, arg: Any) -> Any:
            if self.left == 0 and not self.raised:
                self.raised = True
                before = blas_threads()
                if not enter_and_leave() or blas_threads() != before:
                    wrong.append(frame)
            self.left -= 1
            return self.count

    for number in itertools.count():
        handler = Handler(number, [*BACKENDS, HERE])
        sys.settrace(handler)
        try:
            work()
        finally:
            sys.settrace(None)
        assert (wrong, blas_threads()) == ([], two), number
        if not handler.raised:
            break
    assert number > 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_after_an_exception_is_as_any_other(two: set[int]) -> None:
    def work() -> None:
        with backends.single_threaded_blas():
            pass

    for _ in at_every_event(work, step=20):
        pid = os.fork()
        if pid == 0:
            right = False
            try:
                right = blas_threads() == two and enter_and_leave() and blas_threads() == two
            finally:
                os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_a_forked_child_begins_with_is_made_good_after_an_exception(
    two: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the child before it has dropped the other threads' blocks, as if it had been forked here."""
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with backends.single_threaded_blas():
            entered.set()
            leave.wait(120)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(30)
    try:
        process, blocks, callers = threads._state.process, dict(threads._state.blocks), threads._state.blas.callers

        def work() -> None:
            threads._state.process, threads._state.blocks = -1, dict(blocks)
            threads._state.blas.callers, threads._state.blas.single = callers, True
            threads._after_fork_in_child()

        for _ in at_every_event(work):
            assert enter_and_leave()
            assert blas_threads() == two
    finally:
        leave.set()
        thread.join(30)
    assert threads._state.process == process


# --------------------------------------------------------------------------------------------------------------- chunks
def test_chunks_are_waited_for_and_helpers_stay(four: None) -> None:
    running: set[int] = set()
    seen: list[int] = []

    def chunk(index: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            running.add(index)
            time.sleep(0.0002)
            running.discard(index)
        seen.append(index)

    def work() -> None:
        seen.clear()
        backends.run_chunks(chunk, range(6))

    for number, _ in enumerate(at_every_event(work, [threads.__file__])):
        assert running == set(), number
        assert len(seen) == len(set(seen)), number
        if number % 20 == 0:
            meeting = threading.Barrier(4, timeout=20)
            backends.run_chunks(lambda _, meeting=meeting: meeting.wait(), range(4))  # passes with four threads alone
    assert len(threads._state.pool.threads) == 3


def test_no_helper_is_lost_nor_started_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "num_threads", lambda: 3)

    def work() -> None:
        backends.run_chunks(lambda _: None, range(3))

    def fresh() -> None:
        monkeypatch.setattr(threads._state, "pool", threads._Pool())
        work()

    for _ in at_every_event(fresh, [threads.__file__], step=7):
        work()
        in_another_thread(work)
        pool = threads._state.pool
        for _ in range(100):
            if len(pool.threads) == 2:
                break
            time.sleep(0.01)
        assert len(pool.threads) == 2
        end_helpers(pool)
    end_helpers(threads._state.pool)


@pytest.mark.parametrize("cores", [1, 4])
def test_the_bits_of_what_follows_are_the_same(cores: int, two: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "num_threads", lambda: cores)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((300, 400)).astype("float32"), rng.standard_normal((200, 400)).astype("float32")
    image, kernel = (rng.standard_normal(shape).astype("float32") for shape in ((2, 16, 12, 12), (16, 16, 3, 3)))
    here = str(Path(F.__file__).parent)
    files = [*BACKENDS, *(str(path) for path in Path(here).glob("*.py"))]

    def work() -> tuple[Any, ...]:
        pooled = F.max_pool_forward(image, 2)
        return F.linear(x, w), F.conv(image, kernel, padding=1), pooled[0], F.max_pool_backward(*pooled)

    expected = work()
    for number, _ in enumerate(at_every_event(work, files, step=150 if cores == 1 else 41)):
        assert blas_threads() == two, number
        assert all(a.tobytes() == b.tobytes() for a, b in zip(work(), expected, strict=True)), number


# -------------------------------------------------------------------------------------------------------------- memory
def test_no_buffer_has_two_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LEAST_RESULT", 100)
    monkeypatch.setattr(memory, "LIMIT", 1 << 18)
    monkeypatch.setattr(memory, "_free", memory._FreeList())
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # in a finaliser: the buffer is lost
    alive: list[np.ndarray] = []

    def work() -> None:
        alive[:] = [backends.result((50_000,), "uint8") for _ in range(3)]
        with backends.workspace("float32", (30,), (5,)) as arrays:
            alive.extend(arrays)
            del arrays
            alive[3:] = []
        backends.result((50_000,), "uint8")
        del alive[0]

    function = work
    function()
    number = 0
    while True:
        raiser = Raiser(number, [memory.__file__, HERE])
        sys.settrace(raiser)
        try:
            function()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if not raiser.raised:
            break
        del alive[3:]
        waiting = [buffer for _, buffer in itertools.chain(*memory._free.buffers.values())]
        assert len({b.ctypes.data for b in waiting}) == len(waiting), number
        assert not any(np.shares_memory(a, b) for a in alive for b in waiting), number
        assert memory._free.nbytes() <= memory.LIMIT, number
        number += 1
    assert number > 100


def test_the_plan_cache_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = plans.PlanCache(limit=6_000, largest=3_000, entries=4)
    monkeypatch.setattr(plans, "PLANS", cache)
    plan = plans.planned(lambda n: np.full(n, n % 256, "uint8"))

    def work() -> None:
        for n in (100, 200, 300, 400, 500, 1_000, 100):
            plan(n)

    for number, _ in enumerate(at_every_event(work, [plans.__file__], step=5)):
        assert (len(cache) <= 4, cache.nbytes <= 6_000) == (True, True), number
        for n in (100, 200, 1_000):
            found = plan(n)
            assert (len(found), set(found.tolist())) == (n, {n % 256}), number


# ------------------------------------------------------------------------------------------------------------ settings
def settings() -> tuple[Any, ...]:
    """Whatever a block can set."""
    return (
        kernels.current_mode(),
        kernels.winograd_allowed(),
        kernels._ready.get(),
        backends.current().name,
        graph.recording(),
        [*warnings.filters],
        signal.getsignal(signal.SIGINT),
    )


class TwoRanks:
    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 2


BLOCKS = {
    "mode": lambda: kernels.mode("off"),
    "winograd": lambda: kernels.winograd("off"),
    "using": lambda: backends.using("numpy"),
    "no_grad": no_grad,
    "warnings": lambda: cupy_probe._without_warnings(),
    "interruptible": lambda: distributed.Ranks(TwoRanks()).interruptible(),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_setting_comes_back(block: str) -> None:
    make = BLOCKS[block]

    def work() -> None:
        with make(), make():
            pass

    before = settings()
    for number, _ in enumerate(at_every_event(work, [*BACKENDS, graph.__file__, kernels.setting.__file__])):
        assert settings() == before, number


def test_an_outer_blocks_setting_comes_back() -> None:
    def work() -> None:
        with kernels.mode("off"):
            pass

    with kernels.mode("require"):
        for _ in at_every_event(work, [*BACKENDS, kernels.setting.__file__]):
            assert kernels.current_mode() == "require"


def test_warmup_ends() -> None:
    x = np.ones((1, 1, 4, 4), "float32")

    def work() -> None:
        kernels.warmup(F.relu, x)

    for _ in at_every_event(work, [*BACKENDS, kernels.__file__]):
        assert kernels._ready.get() is None
        assert set(np.geterr().values()) != {"ignore"}


def test_the_choice_of_the_process_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        backends.use("numpy")
        selection._process.clear()
        backends.current()

    try:
        for _ in at_every_event(work):
            assert in_another_thread(lambda: backends.current().name) == "numpy"
            assert len(selection._process) <= 1
    finally:
        backends.use("numpy")


# ------------------------------------------------------------------------------------------------------------- the rest
def test_locks_are_free() -> None:
    def work() -> None:
        x = Tensor(np.ones(3, "float32"), requires_grad=True)
        (x * 2.0).sum().backward()
        cupy_probe.reason()

    for _ in at_every_event(work, [*BACKENDS, graph.__file__], step=2):
        in_another_thread(lambda: work() or True)


# An exception between opening a file and entering its block leaves the closing to the interpreter.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_file_is_replaced_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    for number, _ in enumerate(at_every_event(lambda: checkpoint.replace_file(path, b"new"), [checkpoint.__file__])):
        assert path.read_bytes() in (b"old", b"new"), number
        assert [*tmp_path.iterdir()] == [path], number
        path.write_bytes(b"old")


def test_nothing_is_kept_alive(four: None) -> None:
    """The arrays of an interrupted call are freed with its exception."""
    kept: list[weakref.ref[Any]] = []

    def work() -> None:
        array = np.ones(1000)
        kept.append(weakref.ref(array))
        backends.run_chunks(lambda _: array.sum(), range(4))

    for _ in at_every_event(work, [threads.__file__], step=11):
        pass
    for _ in range(200):
        if not any(ref() is not None for ref in kept):
            break
        time.sleep(0.01)
    assert [ref for ref in kept if ref() is not None] == []
