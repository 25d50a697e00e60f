"""`with` blocks and locks that an exception between any two bytecodes (Ctrl-C, say) leaves as they should be.

Python does not promise that. An exception that arrives between `__enter__` and the block's first instruction, between
its last one and `__exit__`, or at the first instruction of `__exit__` ends a `with` statement without its cleaning up.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Undo = Callable[[], object]


def _undo_last(undos: list[Undo]) -> None:
    if undos:
        undos[-1]()
        undos.pop()


class _Exit:
    """`__exit__` of a Block.

    A `with` statement looks it up before it calls `__enter__`, and refers to what it got until the block ends in one
    way or another. Nothing else refers to that, no traceback either. So it is then freed at once, whatever was
    interrupted, and when it is freed, the change is undone if that has not happened yet.
    """

    def __get__(self, block: Block[Any] | None, owner: type | None = None) -> Any:
        if block is None:
            return self
        undos, depth = block.undos, len(block.undos)
        watched: list[weakref.ref[Any]] = []

        def undo(*freed: object) -> None:
            while len(undos) > depth:
                _undo_last(undos)
            watched.clear()  # nothing is left to do when it is freed

        def leave(*error: object) -> None:
            if len(undos) == depth:  # it was looked up after `__enter__`: by hand, not by a `with` statement
                _undo_last(undos)
            undo()

        bound = functools.partial(leave)
        watched.append(weakref.ref(bound, undo))
        return bound

    def __call__(self, block: Block[Any], *error: object) -> None:
        """Without a `with` statement: contextlib.ExitStack takes it from the class."""
        _undo_last(block.undos)


class Block(Generic[T]):
    """A `with` block, and a decorator that makes a function's body one.

    enter: what begins the block; its result is that of `as`. prepare: called just before, changes nothing, and gives
    the function that ends the block. That function is called however the block ends, an exception in the middle of
    `enter`, or of itself, included: so it must put back whatever part of the change was made, and may be called twice.
    """

    def __init__(self, enter: Callable[[], T], prepare: Callable[[], Undo]) -> None:
        self.enter, self.prepare = enter, prepare
        self.undos: list[Undo] = []

    def __enter__(self) -> T:
        self.undos.append(self.prepare())
        return self.enter()

    __exit__ = _Exit()

    def _again(self) -> Block[T]:
        return Block(self.enter, self.prepare)

    def __call__(self, function: F) -> F:
        """The function with its body in such a block. Of a generator or coroutine function the block is on whenever
        the body runs, and off while it is suspended."""
        if inspect.isasyncgenfunction(function):
            wrapped: Any = self._async_generator(function)
        elif inspect.iscoroutinefunction(function):
            wrapped = self._coroutine(function)
        elif inspect.isgeneratorfunction(function):
            wrapped = self._generator(function)
        else:

            def wrapped(*args: Any, **options: Any) -> Any:
                with self._again():
                    return function(*args, **options)

        return cast(F, functools.update_wrapper(wrapped, function))

    def _run(self, step: Callable[[Any], Any], value: Any) -> Any:
        with self._again():
            return step(value)

    def _steps(self, generator: Any) -> Generator[Any, Any, Any]:
        """What a generator, or the iterator of an awaitable, yields and at last returns, each step in its own block."""
        step, value = generator.send, None
        while True:
            try:
                yielded = [self._run(step, value)]
            except StopIteration as stop:
                return stop.value
            finally:
                value = None  # nothing that passes through here is kept alive
            try:
                value = yield yielded.pop()
                step = generator.send
            except BaseException as error:  # whatever is thrown in is the generator's to handle
                step, value = generator.throw, error

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Generator[Any, Any, Any]:
            return (yield from self._steps(function(*args, **options)))

        return wrapped

    def _coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapped(*args: Any, **options: Any) -> Any:
            return await _Awaitable(self._steps(function(*args, **options).__await__()))

        return wrapped

    def _async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapped(*args: Any, **options: Any) -> AsyncGenerator[Any, Any]:
            generator = function(*args, **options)
            step, value = generator.asend, None
            while True:
                try:
                    yielded = [await _Awaitable(self._steps(step(value).__await__()))]
                except StopAsyncIteration:
                    return
                finally:
                    value = None
                try:
                    value = yield yielded.pop()
                    step = generator.asend
                except BaseException as error:
                    step, value = generator.athrow, error

        return wrapped


class _Awaitable:
    def __init__(self, steps: Generator[Any, Any, Any]) -> None:
        self.steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.steps


def assigned(variable: contextvars.ContextVar[Any], value: Callable[[], T]) -> Block[T]:
    """A block in which a context variable, which must have a default, has another value: in this thread or async task
    alone."""

    def enter() -> T:
        new = value()
        variable.set(new)
        return new

    return Block(enter, lambda: functools.partial(variable.set, variable.get()))


class Exclusive:
    """Calls that exclude each other: no two threads are in one at a time. A call inside a call of the same thread (a
    signal handler's, a finaliser's) is let in.

    fork_waits: whether a fork waits until no other thread is in one; if not, the child goes on as if none had been. To
    be made once, at import.
    """

    def __init__(self, *, fork_waits: bool = False) -> None:
        self.lock = threading.RLock()
        if not hasattr(os, "register_at_fork"):
            return
        if fork_waits:  # by the lock's own methods, in C: no exception comes between
            os.register_at_fork(
                before=self.lock.acquire, after_in_parent=self.lock.release, after_in_child=self.lock.release
            )
        else:
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        """In a forked child, where no other thread is left."""
        self.lock = threading.RLock()

    def entered(self) -> bool:
        """Whether this thread is in such a call."""
        return bool(self.lock._is_owned())  # type: ignore[attr-defined]  # threading.Condition asks it as well

    def __call__(self, function: Callable[[], T]) -> T:
        if self.entered():
            return function()
        try:
            with self.lock:
                return function()
        except BaseException:
            if self.entered():  # it came between the block's last instruction and its end
                self.lock.release()
            raise
