"""CPU threads: how many the library uses, its one pool, and BLAS on one thread while the pool does the splitting.

A chunk's boundaries never depend on the thread count, so results do not either. Any thread may call these functions at
any time: several at once, from inside a chunk, after a fork, and while the interpreter shuts down.

An exception may arrive between any two bytecodes (Ctrl-C in the main thread), and no setting, lock or helper is lost by
it. Nothing here is counted up and down, because an exception could come before the count goes down. What is going on is
read off what exists: a block that has not been freed, a helper in the set of busy ones.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import functools
import itertools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy

from .block import Block, Exclusive

T = TypeVar("T")
VARIABLE = "CNNLAYERS_NUM_THREADS"
BOARD = 64  # numbers that threads share
SMALL_FOR_OPENBLAS = 110_000  # multiplications: of real numbers it takes several threads for 262,145 and more


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


class _Library(NamedTuple):
    """A BLAS library's number of threads: how to read it, and how to set it."""

    get: Callable[[], int]
    set: Callable[[int], object]


@functools.cache
def _libraries(per_thread: bool) -> list[_Library]:
    """The BLAS libraries loaded in which each thread has its own number of threads, or where the process has one."""
    from threadpoolctl import ThreadpoolController  # at the first product on the CPU: a GPU does without it

    blas = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    return [_library(b) for b in blas if (getattr(b, "threading_layer", "") == "openmp") == per_thread]


@functools.cache
def _small_product() -> int:
    """Multiplications of a product, at most, that BLAS computes on one thread, whatever its number of threads is."""
    from threadpoolctl import ThreadpoolController

    blas = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    return SMALL_FOR_OPENBLAS if all(library.internal_api == "openblas" for library in blas) else 0


def is_small_product(rows: int, terms: int, columns: int) -> bool:
    """Whether BLAS computes this product of two matrices on one thread in any case, without `single_threaded_blas`,
    which takes longer than such a product. Vectors, and a matrix times its transpose, have other limits."""
    return 1 < rows != columns > 1 and rows * terms * columns <= _small_product()


def _library(found: Any) -> _Library:
    if found.internal_api == "openblas" and found.threading_layer != "openmp":
        # Its own functions: a newer threadpoolctl lets only the first thread that sets the number do so again.
        for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
            names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
            if all(hasattr(found.dynlib, name) for name in names):
                return _Library(*(getattr(found.dynlib, name) for name in names))
    return _Library(lambda: int(found.num_threads), found.set_num_threads)


def _numbers(per_thread: bool) -> list[int]:
    return [library.get() for library in _libraries(per_thread)]


def _set_numbers(per_thread: bool, numbers: Sequence[int]) -> None:
    for library, number in zip(_libraries(per_thread), numbers, strict=True):
        library.set(number)


class _Setting:
    """The number of threads of BLAS: one, or what the caller has set. A change that an exception cut short is finished,
    or undone, by the next one."""

    def __init__(self, per_thread: bool) -> None:
        self.per_thread = per_thread
        self.callers: list[int] | None = None  # what the caller has set, while it may not be in force
        self.single = False  # each library is at one

    def to_one(self) -> None:
        if not self.single:
            if self.callers is None:
                self.callers = _numbers(self.per_thread)
            _set_numbers(self.per_thread, [1] * len(self.callers))
            self.single = True

    def restore(self) -> None:
        callers = self.callers
        if callers is not None:
            self.single = False
            _set_numbers(self.per_thread, callers)
            self.callers = None


class Waits(NamedTuple):
    """How threads wait in compiled code, which holds no lock of Python's and lets others run.

    helper: `(board, calls)`, in which a helper computes chunks that compiled code offers on the board, until
    `board[-1]` is not `calls` any more, or nothing was offered for a while. caller: `(done)`, which waits a moment for
    `done[0]` to become 1."""

    helper: Callable[[Any, int], Any]
    caller: Callable[[Any], Any]


class _State:
    """What the process shares."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.waits: Waits | None = None
        self.pool = _Pool()
        self.blas = _Setting(per_thread=False)
        self.blocks: dict[int, weakref.ref[_BlasBlock]] = {}  # each thread's outermost, by the thread's identifier


class _ThisThread(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.blas = _Setting(per_thread=True)


class _BlasBlock:
    """A thread's outermost block with BLAS on one thread. It exists for as long as it has not ended."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def begin(self) -> None:
        _state.blocks[self.thread] = weakref.ref(self)
        _state.blas.to_one()
        _this_thread.blas.to_one()

    def end(self) -> None:
        """Restore the caller's setting, unless another thread is in a block."""
        others = [block for block in [ref() for ref in list(_state.blocks.values())] if block not in (None, self)]
        if not others:
            _state.blas.restore()
        _this_thread.blas.restore()
        block = _state.blocks.get(self.thread)
        if block is not None and block() is self:
            del _state.blocks[self.thread]


def _in_signal_handler() -> Block[None]:
    """BLAS on one thread for a signal handler that came while its thread was changing the setting: when it is done, all
    is as it was found."""

    def prepare() -> Callable[[], object]:
        found = _numbers(False), _numbers(True)

        def undo() -> None:
            _set_numbers(False, found[0])
            _set_numbers(True, found[1])

        return undo

    def enter() -> None:
        for per_thread in (False, True):
            _set_numbers(per_thread, [1] * len(_libraries(per_thread)))

    return Block(enter, prepare)


def single_threaded_blas() -> contextlib.AbstractContextManager[None]:
    """BLAS on one thread inside the block; when the last of several concurrent blocks ends, as the caller had it.

    Of blocks inside blocks only a thread's outermost does anything: to set a library's number takes as long as a small
    product.
    """
    if _changing.entered():
        return _in_signal_handler()
    _after_fork_in_child()
    outer = _state.blocks.get(threading.get_ident())
    if outer is not None and outer() is not None:
        return _NOTHING
    block = _BlasBlock()
    return Block(lambda: _changing(block.begin), lambda: lambda: _changing(block.end))


def _after_fork_in_child() -> None:
    """A forked child has this thread alone: no helpers, and no other thread's block."""
    if _state.process == os.getpid():
        return
    me = threading.get_ident()
    _state.pool = _Pool()
    _state.blocks = {thread: block for thread, block in _state.blocks.items() if thread == me}
    if not _state.blocks:
        _state.blas.restore()
    _state.process = os.getpid()  # last: what an exception cut short, the next call here does


class _Run(Generic[T]):
    """One call's chunks, handed out one at a time until none is left or one has failed."""

    def __init__(self, function: Callable[[T], Any], chunks: Sequence[T]) -> None:
        self.function = function
        self.chunks = chunks
        self.context = contextvars.copy_context()  # numpy.errstate and the backend of a `using` block are in it
        self.indices = iter(range(len(chunks)))  # the next one is taken by one bytecode: no two threads get the same
        self.closed = False
        self.busy: set[int] = set()  # helpers that have begun and not ended
        self.left: queue.SimpleQueue[None] = queue.SimpleQueue()  # an entry for each that has ended
        self.done = numpy.zeros(1, numpy.int64)  # 1 when the last helper has ended
        self.errors: list[tuple[int, BaseException]] = []

    def stop(self) -> None:
        self.indices = iter(range(0))

    def work(self) -> None:
        _in_chunk.set(True)  # in a context that ends with this call
        while (index := next(self.indices, None)) is not None:
            try:
                self.function(self.chunks[index])
            except BaseException as error:  # for the thread that called, whatever it is
                self.errors.append((index, error))
                self.stop()

    def help(self) -> None:
        """A helper's part, in the caller's context; nothing where the caller has done all of it meanwhile."""
        me = threading.get_ident()
        self.busy.add(me)  # before it looks: who closes the run looks in the other order
        try:
            if not self.closed:
                self.context.copy().run(self.work)
        except BaseException as error:  # outside of any chunk: the caller must not wait for ever
            self.errors.append((len(self.chunks), error))
            self.stop()
        finally:
            self.busy.discard(me)
            if self.closed and not self.busy:
                self.done[0] = 1
            self.left.put(None)

    def close(self, waits: Waits | None) -> None:
        """Hand out no more, and wait for the helpers that have begun. May be called again after an exception."""
        self.stop()
        self.closed = True
        if self.busy and waits is not None:
            waits.caller(self.done)
        while self.busy:  # each helper that leaves puts one entry, after it has left
            self.left.get()
        self.chunks = ()  # in the queue it may wait for long: it keeps nobody's arrays alive there
        self.function = self.context = None  # type: ignore[assignment]

    def raise_first(self) -> None:
        """Raise the error of the foremost chunk that failed; from Python 3.11 on a note tells of the others."""
        failed = [error for _, error in sorted(self.errors, key=lambda pair: pair[0])]
        self.errors.clear()
        if not failed:
            return
        first, *others = failed
        if others and hasattr(first, "add_note"):
            first.add_note(f"{len(others)} more chunks failed: " + "; ".join(map(repr, others)))
        try:
            raise first
        finally:
            del first, others, failed  # the traceback holds this frame: without this it would keep itself alive


class _Wake:
    """In place of a run: a helper that takes it only begins to look at the board."""

    def help(self) -> None:
        pass


class _Pool:
    """Helpers: threads that wait for a run's chunks. They are daemons, and are not joined at exit: none is in a chunk
    then, since its caller waits for it. board: numbers that compiled code and the helpers share; the last one goes up
    with each run."""

    def __init__(self) -> None:
        self.runs: queue.SimpleQueue[_Run[Any] | _Wake | None] = queue.SimpleQueue()
        self.board = numpy.zeros(BOARD, numpy.int64)
        self.threads: list[threading.Thread] = []  # each puts itself here: who starts it may be interrupted

    def call(self, run: _Run[Any] | _Wake, number: int) -> None:
        """Ask `number` helpers for help with a run; fewer, or none, where no more threads can be had."""
        if len(self.threads) < number:
            _starting(lambda: self._start(number))
        for _ in range(min(number, len(self.threads))):
            self.runs.put(run)

    def _start(self, number: int) -> None:
        while (count := len(self.threads)) < number:
            ready: queue.SimpleQueue[None] = queue.SimpleQueue()
            thread = threading.Thread(target=self._serve, args=(ready,), name=f"cnnlayers_{count}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is shutting down, or the system gives no more
                return
            ready.get()

    def call_back(self) -> None:
        """Let helpers leave compiled code."""
        self.board[-1] += 1

    def _serve(self, ready: queue.SimpleQueue[None]) -> None:
        self.threads.append(threading.current_thread())
        ready.put(None)
        _set_numbers(True, [1] * len(_libraries(True)))
        while (run := self.runs.get()) is not None:
            run.help()
            del run  # a waiting helper keeps nobody's arrays alive
            calls = int(self.board[-1])  # before it looks at the queue: a run is put there, and then the number goes up
            if _state.waits is not None and self.runs.empty():
                _state.waits.helper(self.board, calls)


_NOTHING = contextlib.nullcontext()
_in_chunk: contextvars.ContextVar[bool] = contextvars.ContextVar("cnnlayers_in_chunk", default=False)
# Of BLAS's setting, and of helpers: no other thread is half through a change while this one forks.
_changing, _starting = Exclusive(fork_waits=True), Exclusive(fork_waits=True)
_this_thread = _ThisThread()
_state = _State()

atexit.register(lambda: _state.pool.call_back())

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def run_chunks(function: Callable[[T], Any], chunks: Sequence[T]) -> None:
    """Call `function` on every chunk, on up to `num_threads()` threads, this one among them.

    The function must release the GIL to gain anything, and chunks must not touch what another one writes. Called from
    inside a chunk it runs them one after another. When a chunk fails no further one is begun; the call waits for those
    under way, and raises the error of the first chunk, by position, that failed. An exception from outside (Ctrl-C) is
    raised when they are done; a second one at once.
    """
    helpers = min(num_threads(), len(chunks)) - 1
    if helpers < 1 or _in_chunk.get():
        for chunk in chunks:
            function(chunk)
        return
    _after_fork_in_child()
    run = _Run(function, chunks)
    try:
        _state.pool.call(run, helpers)
        _state.pool.call_back()
        contextvars.copy_context().run(run.work)
        run.close(_state.waits)
    except BaseException:
        run.close(None)
        raise
    run.raise_first()


def board() -> numpy.ndarray:
    """The numbers that compiled code and the helpers share. kernels/cpu/sharing.py says what they are."""
    _after_fork_in_child()
    return _state.pool.board


def wake(number: int) -> None:
    """Wake `number` sleeping helpers, so that they look at the board."""
    if _state.pool.runs.empty():
        _state.pool.call(_Wake(), number)


def wait_in(waits: Waits) -> None:
    """From now on threads wait in compiled code for a moment, before they sleep: to wake one takes 50 µs."""
    _state.waits = waits
