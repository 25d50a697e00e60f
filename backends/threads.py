"""CPU threads: how many the library uses, its one pool, and BLAS held to one thread while the pool does the splitting.

A slab's boundaries never depend on the thread count, so results do not either.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")
VARIABLE = "CNNLAYERS_NUM_THREADS"


@functools.cache
def num_threads() -> int:
    """`CNNLAYERS_NUM_THREADS`, read once; by default the cores that this process may use. Raises ValueError unless it is
    a positive whole number."""
    text = os.environ.get(VARIABLE, "").strip()
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{VARIABLE} must be a positive whole number, got {text!r}")
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _State:
    """What a forked child must not share with its parent: locks, the pool's threads, the count of running products."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pool: ThreadPoolExecutor | None = None
        self.depth = 0
        self.limiter: Any = None


_state = _State()
_inside = threading.local()


def _after_fork() -> None:
    global _state
    held = _state.limiter
    _state = _State()
    if held is not None:  # forked in the middle of a product: the child's BLAS goes back to the caller's setting
        held.restore_original_limits()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS on one thread inside the block; when the last of several concurrent blocks ends, as the caller had it."""
    state = _state
    with state.lock:
        if state.depth == 0:
            state.limiter = _controller().limit(limits=1, user_api="blas")
        state.depth += 1
    try:
        yield
    finally:
        with state.lock:
            state.depth -= 1
            if state.depth == 0:
                state.limiter.restore_original_limits()
                state.limiter = None


def run_slabs(function: Callable[[T], Any], slabs: Sequence[T]) -> None:
    """Call `function` on every slab, on up to `num_threads()` threads, this one among them; raise the first error.

    The function must release the GIL to gain anything, and slabs must not touch what another one writes. Called from
    inside a slab it runs them one after another.
    """
    helpers = min(num_threads(), len(slabs)) - 1
    if helpers < 1 or getattr(_inside, "slab", False):
        for slab in slabs:
            function(slab)
        return
    todo = iter(slabs)
    lock = threading.Lock()

    def work() -> None:
        _inside.slab = True
        try:
            while True:
                with lock:
                    slab = next(todo, todo)
                if slab is todo:
                    return
                function(slab)  # type: ignore[arg-type]
        finally:
            _inside.slab = False

    with _state.lock:
        if _state.pool is None:
            _state.pool = ThreadPoolExecutor(max_workers=num_threads(), thread_name_prefix="cnnlayers")
        pool = _state.pool
    waiting = [pool.submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        with lock:
            todo = iter(())
        errors = [f.exception() for f in waiting]
    for error in errors:
        if error is not None:
            raise error
