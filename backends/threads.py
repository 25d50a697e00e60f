"""CPU threads: how many the library uses, its one pool, and BLAS held to one thread while the pool does the splitting.

A slab's boundaries never depend on the thread count, so results do not either. Any thread may call in here at any time:
several at once, from inside a slab, after a fork, and while the interpreter shuts down.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
VARIABLE = "CNNLAYERS_NUM_THREADS"


@functools.cache
def num_threads() -> int:
    """`CNNLAYERS_NUM_THREADS`, read once; by default the cores that this process may use.

    Raises ValueError unless it is a positive whole number.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{VARIABLE} must be a positive whole number, got {text!r}")
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _State:
    """What the process shares: the pool, how many blocks hold BLAS to one thread, and what BLAS had before."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entrant, because a signal handler may call in here too
        self.pool: ThreadPoolExecutor | None = None
        self.depth = 0
        self.before: list[int] = []


class _Here(threading.local):
    """What this thread is doing: running a slab, and holding BLAS to one thread in so many blocks of its own."""

    slab = False
    blocks = 0
    before: Sequence[int] = ()


_state = _State()
_here = _Here()


@functools.cache
def _libraries(per_thread: bool) -> list[Any]:
    """The BLAS libraries loaded in which each thread has its own number of threads, or where the process has one."""
    from threadpoolctl import ThreadpoolController  # at the first product on the CPU: a GPU does without it

    blas = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    return [library for library in blas if (getattr(library, "threading_layer", "") == "openmp") == per_thread]


def _set_threads(library: Any, number: int) -> None:
    # A newer threadpoolctl heeds only the first thread that sets a library's number, and silently ignores all others.
    # Here any thread may come first or go last, and a lock keeps them apart.
    clear = getattr(library, "clear_controlling_thread", lambda force: None)
    clear(force=True)
    library.set_num_threads(number)
    clear(force=True)


def _hold(per_thread: bool) -> list[int]:
    """Set BLAS to one thread; give what it had."""
    before = [library.num_threads for library in _libraries(per_thread)]
    for library in _libraries(per_thread):
        _set_threads(library, 1)
    return before


def _let_go(per_thread: bool, before: Sequence[int]) -> None:
    for library, number in zip(_libraries(per_thread), before, strict=True):
        _set_threads(library, number)


def _after_fork() -> None:
    """A forked child has this thread alone: no pool, no other thread's lock, and no other thread's hold on BLAS."""
    held = _state.depth > 0
    _state.lock = threading.RLock()
    _state.pool = None
    _state.depth = _here.blocks
    if held and _state.depth == 0:
        _let_go(False, _state.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS on one thread inside the block; when the last of several concurrent blocks ends, as the caller had it."""
    with _state.lock:
        _state.depth += 1
        _here.blocks += 1
        if _state.depth == 1:
            _state.before = _hold(False)
        if _here.blocks == 1:
            _here.before = _hold(True)
    try:
        yield
    finally:
        with _state.lock:
            _state.depth -= 1
            _here.blocks -= 1
            if _state.depth == 0:
                _let_go(False, _state.before)
            if _here.blocks == 0:
                _let_go(True, _here.before)


class _Run(Generic[T]):
    """One call's slabs, handed out one at a time until none is left or one has failed."""

    def __init__(self, function: Callable[[T], Any], slabs: Sequence[T]) -> None:
        self.function = function
        self.slabs = slabs
        self.lock = threading.Lock()
        self.handed_out = 0
        self.errors: list[tuple[int, BaseException]] = []

    def take(self) -> int | None:
        with self.lock:
            index = self.handed_out
            self.handed_out += 1
        return index if index < len(self.slabs) else None

    def stop(self) -> None:
        with self.lock:
            self.handed_out = len(self.slabs)

    def work(self) -> None:
        _here.slab = True
        try:
            while (index := self.take()) is not None:
                try:
                    self.function(self.slabs[index])
                except BaseException as error:  # kept for the thread that called, whatever it is
                    self.errors.append((index, error))
                    self.stop()
        finally:
            _here.slab = False

    def raise_first(self) -> None:
        """Raise the error of the foremost slab that failed; from Python 3.11 on a note tells of the others."""
        failed = [error for _, error in sorted(self.errors, key=lambda pair: pair[0])]
        self.errors.clear()
        if not failed:
            return
        first, *others = failed
        if others and hasattr(first, "add_note"):
            first.add_note(f"{len(others)} more slabs failed: " + "; ".join(map(repr, others)))
        try:
            raise first
        finally:
            del first, others, failed  # the traceback holds this frame: without this it would keep itself alive


def _helpers(number: int, work: Callable[[], None]) -> list[Future[None]]:
    """`work` on up to `number` of the pool's threads; on fewer, or none, where no more can be had."""
    futures: list[Future[None]] = []
    # RuntimeError: the interpreter is shutting down, or the system gives no more threads.
    with contextlib.suppress(RuntimeError), _state.lock:
        if _state.pool is None:
            _state.pool = ThreadPoolExecutor(num_threads(), "cnnlayers", initializer=_hold, initargs=(True,))
        for _ in range(number):
            # The caller's context travels along: numpy.errstate and the backend of a `using` block live in it.
            futures.append(_state.pool.submit(contextvars.copy_context().run, work))
    return futures


def run_slabs(function: Callable[[T], Any], slabs: Sequence[T]) -> None:
    """Call `function` on every slab, on up to `num_threads()` threads, this one among them.

    The function must release the GIL to gain anything, and slabs must not touch what another one writes. Called from
    inside a slab it runs them one after another. When a slab fails no further one is begun, those under way are waited
    for, and the foremost slab's error is raised.
    """
    helpers = min(num_threads(), len(slabs)) - 1
    if helpers < 1 or _here.slab:
        for slab in slabs:
            function(slab)
        return
    run = _Run(function, slabs)
    futures = _helpers(helpers, run.work)
    try:
        run.work()
    finally:
        run.stop()
        for future in futures:
            if not future.cancel():  # a helper that never began, behind other callers' work, is not waited for
                future.exception()
    run.raise_first()
