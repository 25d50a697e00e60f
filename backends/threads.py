"""CPU threads: how many the library uses, its one pool, and BLAS held to one thread while the pool does the splitting.

A slab's boundaries never depend on the thread count, so results do not either. Any thread may call in here at any time:
several at once, from inside a slab, after a fork, and while the interpreter shuts down.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy

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
    """What the process shares: the pool, how many threads hold BLAS to one of its own, and what BLAS had before."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entrant, because a signal handler may call in here too
        self.pool: _Pool | None = None
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


def _before_fork() -> None:
    """No other thread is half through setting BLAS while this one forks: the child would have its lock for ever."""
    _state.lock.acquire()


def _after_fork_in_parent() -> None:
    _state.lock.release()


def _after_fork_in_child() -> None:
    """A forked child has this thread alone: no pool, no other thread's lock, and no other thread's hold on BLAS."""
    held = _state.depth > 0
    _state.lock = threading.RLock()
    _state.pool = None
    _state.depth = min(_here.blocks, 1)
    if held and _state.depth == 0:
        _let_go(False, _state.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class _OneThread:
    """The block of `one_blas_thread`. Of blocks inside blocks only a thread's outermost does anything: to set a
    library's number takes as long as a small product."""

    def __enter__(self) -> None:
        if _here.blocks == 0:
            with _state.lock:
                _state.depth += 1
                if _state.depth == 1:
                    _state.before = _hold(False)
                _here.before = _hold(True)
        _here.blocks += 1  # last, and undone first: a signal handler's own block comes whole

    def __exit__(self, *error: object) -> None:
        _here.blocks -= 1
        if _here.blocks == 0:
            with _state.lock:
                _state.depth -= 1
                if _state.depth == 0:
                    _let_go(False, _state.before)
                _let_go(True, _here.before)


_one_thread = _OneThread()


def one_blas_thread() -> contextlib.AbstractContextManager[None]:
    """BLAS on one thread inside the block; when the last of several concurrent blocks ends, as the caller had it."""
    return _one_thread


class _Run(Generic[T]):
    """One call's slabs, handed out one at a time until none is left or one has failed."""

    def __init__(self, function: Callable[[T], Any], slabs: Sequence[T]) -> None:
        self.function = function
        self.slabs = slabs
        self.context = contextvars.copy_context()  # numpy.errstate and the backend of a `using` block live in it
        self.lock = threading.Lock()
        self.handed_out = 0
        self.helpers = 0  # that have begun and not ended
        self.ended = threading.Lock()  # held until the last helper ends behind the caller
        self.ended.acquire()
        self.closed = False
        self.done = numpy.zeros(1, numpy.int64)  # 1 when the last helper has ended
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

    def help(self) -> None:
        """A helper's part, in the caller's context; nothing where the caller has done all of it meanwhile."""
        with self.lock:
            if self.handed_out >= len(self.slabs):
                return
            self.helpers += 1
        try:
            self.context.copy().run(self.work)
        except BaseException as error:  # outside of any slab: the caller must not wait for ever
            self.errors.append((len(self.slabs), error))
            self.stop()
        finally:
            with self.lock:
                self.helpers -= 1
                if self.closed and self.helpers == 0:
                    self.ended.release()
                    self.done[0] = 1

    def close(self, watch: Callable[[Any], Any] | None) -> None:
        """Hand out no more, and wait for the helpers that have begun."""
        with self.lock:
            self.handed_out = len(self.slabs)
            self.closed = True
            waits = self.helpers > 0
        if waits:
            if watch is not None:
                watch(self.done)
            self.ended.acquire()
        self.slabs, self.handed_out = (), 0  # in the queue it may lie for long: it holds nobody's arrays there
        del self.function, self.context

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


class _Pool:
    """Helpers: threads that wait for a run's slabs. They are daemons: at exit none is in a slab, since its caller waits
    for it, and none is waited for."""

    def __init__(self) -> None:
        self.runs: queue.SimpleQueue[_Run[Any] | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []

    def call(self, run: _Run[Any], number: int) -> None:
        """Ask `number` helpers for help with a run; fewer, or none, where no more threads can be had."""
        with _state.lock:
            while len(self.threads) < number:
                thread = threading.Thread(target=self._serve, name=f"cnnlayers_{len(self.threads)}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down, or the system gives no more
                    break
                self.threads.append(thread)
        for _ in range(min(number, len(self.threads))):
            self.runs.put(run)

    def _serve(self) -> None:
        _hold(True)
        while (run := self.runs.get()) is not None:
            run.help()
            del run  # a waiting helper keeps nobody's arrays alive

    def shutdown(self) -> None:
        for _ in self.threads:
            self.runs.put(None)
        for thread in self.threads:
            thread.join()


def run_slabs(function: Callable[[T], Any], slabs: Sequence[T], watch: Callable[[Any], Any] | None = None) -> None:
    """Call `function` on every slab, on up to `num_threads()` threads, this one among them.

    The function must release the GIL to gain anything, and slabs must not touch what another one writes. Called from
    inside a slab it runs them one after another. When a slab fails no further one is begun, those under way are waited
    for, and the foremost slab's error is raised.

    watch: called with an int64 array of one number when this thread has no more to do; it may wait a moment for the
    number to become 1, which it does when the others are done, so that this thread need not be put to sleep.
    """
    helpers = min(num_threads(), len(slabs)) - 1
    if helpers < 1 or _here.slab:
        for slab in slabs:
            function(slab)
        return
    run = _Run(function, slabs)
    pool = _state.pool
    if pool is None:
        with _state.lock:
            pool = _state.pool = _state.pool or _Pool()
    pool.call(run, helpers)
    try:
        run.work()
    finally:
        run.close(watch)
    run.raise_first()
