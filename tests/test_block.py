"""`with` blocks that end however they are left: the ways to enter and leave one. test_interrupts has the exceptions."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import os
import signal
import threading
import time
import weakref

import pytest

from cnnlayers.backends import Block, Exclusive, assigned

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


def block(value: int = 1) -> Block[int]:
    return assigned(variable, lambda: value)


def test_with_statements_nest_and_give_the_value() -> None:
    with block(1) as outer:
        with block(2) as inner:
            assert (outer, inner, variable.get()) == (1, 2, 2)
        assert variable.get() == 1
    assert variable.get() == 0


def test_one_block_may_be_used_again_and_inside_itself() -> None:
    again = block()
    for _ in range(2):
        with again, again:
            assert variable.get() == 1
        assert variable.get() == 0
        assert again.undos == []


def test_by_hand() -> None:
    """As PyTorch's users do in notebooks."""
    by_hand = block()
    assert by_hand.__enter__() == 1
    assert hasattr(by_hand, "__exit__")
    assert variable.get() == 1
    by_hand.__exit__(None, None, None)
    assert variable.get() == 0
    by_hand.__exit__(None, None, None)
    assert (variable.get(), by_hand.undos) == (0, [])


def test_in_an_exit_stack() -> None:
    with contextlib.ExitStack() as stack:
        for value in (1, 2, 3):
            stack.enter_context(block(value))
        assert variable.get() == 3
    assert variable.get() == 0
    assert isinstance(block(), contextlib.AbstractContextManager)


def test_an_exception_goes_on() -> None:
    with pytest.raises(ZeroDivisionError), block():
        _ = 1 / 0
    assert variable.get() == 0


def test_an_enter_that_raises_is_undone() -> None:
    def enter() -> None:
        variable.set(5)
        raise ValueError

    with pytest.raises(ValueError), Block(enter, lambda: lambda: variable.set(0)):
        pass
    assert variable.get() == 0


def test_nothing_is_left_for_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        with block():
            pass
        one = block()
        gone = weakref.ref(one)
        with one:
            pass
        del one
        assert gone() is None
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_calls_exclude_those_of_other_threads_alone() -> None:
    alone, inside, most = Exclusive(), [], []

    def call() -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        assert alone(lambda: alone.entered())  # a call inside a call is let in
        inside.pop()

    workers = [threading.Thread(target=lambda: [alone(call) for _ in range(5)]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert (max(most), len(most), alone.entered()) == (1, 20, False)
    with pytest.raises(ZeroDivisionError):
        alone(lambda: 1 / 0)
    assert not alone.entered()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("fork_waits", [True, False])
def test_a_child_may_call_what_another_thread_was_in(fork_waits: bool) -> None:
    alone, entered, over = Exclusive(fork_waits=fork_waits), threading.Event(), threading.Event()

    def call() -> None:
        entered.set()
        time.sleep(0.3)
        over.set()

    other = threading.Thread(target=alone, args=(call,))
    other.start()
    entered.wait(30)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os._exit(0 if alone(lambda: 5) == 5 else 1)
    assert over.is_set() == fork_waits
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    other.join(30)
    assert alone(lambda: 6) == 6
