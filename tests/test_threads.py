"""The thread pool and the hold on BLAS: concurrency, nesting, errors, forks, exit, and bits no thread count changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from cnnlayers import backends
from cnnlayers.backends import threads
from cnnlayers.kernels.cpu import jit

from .implementations import on_cpu_kernels


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def libraries() -> None:
    """All that is loaded by now: other tests' imports may have brought a BLAS behind the library's first look."""
    threads._libraries.cache_clear()


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints; it must end well and soon."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.strip()


# ------------------------------------------------------------------------------------------------- number of threads
@pytest.mark.parametrize(("text", "number"), [("1", 1), (" 3 ", 3), ("064", 64)])
def test_the_variable_sets_the_number(text: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNLAYERS_NUM_THREADS", text)
    assert threads.num_threads.__wrapped__() == number


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_a_wrong_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNLAYERS_NUM_THREADS", text)
    with pytest.raises(ValueError, match="CNNLAYERS_NUM_THREADS must be a positive whole number"):
        threads.num_threads.__wrapped__()


@on_cpu_kernels
def test_a_wrong_number_is_refused_by_small_calls_too() -> None:
    code = """
        import numpy as np, cnnlayers.functional as F
        try:
            F.relu(np.ones((1, 1, 4, 4), "float32"))
        except ValueError as error:
            print(error)
    """
    said = python(code, CNNLAYERS_NUM_THREADS="zero")
    assert said == "CNNLAYERS_NUM_THREADS must be a positive whole number, got 'zero'"


def test_by_default_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNNLAYERS_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert threads.num_threads.__wrapped__() == 3


def test_the_variable_is_read_once() -> None:
    code = """
        import os
        from cnnlayers import backends
        first = backends.num_threads()
        os.environ["CNNLAYERS_NUM_THREADS"] = "7"
        print(first, backends.num_threads())
    """
    assert python(code, CNNLAYERS_NUM_THREADS="3") == "3 3"


# --------------------------------------------------------------------------------------------------------------- chunks
@pytest.mark.parametrize("count", [0, 1, 2, 5, 300])
def test_every_chunk_runs_once(count: int, four: None) -> None:
    seen: list[int] = []
    backends.run_chunks(seen.append, list(range(count)))
    assert sorted(seen) == list(range(count))


def test_chunks_run_side_by_side(four: None) -> None:
    meeting = threading.Barrier(4, timeout=30)
    names: set[str] = set()

    def meet(_: int) -> None:
        names.add(threading.current_thread().name)
        meeting.wait()  # passes only if four threads are here at once

    backends.run_chunks(meet, range(4))
    assert len(names) == 4
    assert threading.current_thread().name in names


def test_nested_calls_run_in_their_chunk(four: None) -> None:
    def outer(row: int) -> None:
        home = threading.get_ident()
        backends.run_chunks(lambda column: found.append((row, column, threading.get_ident() == home)), range(5))

    found: list[tuple[int, int, bool]] = []
    backends.run_chunks(outer, range(6))
    assert sorted(found) == [(row, column, True) for row in range(6) for column in range(5)]


def test_many_threads_may_call_at_once(four: None) -> None:
    results: dict[int, list[int]] = {i: [] for i in range(12)}
    held: set[int] = set()

    def caller(me: int) -> None:
        for _ in range(20):
            with backends.single_threaded_blas():
                backends.run_chunks(lambda chunk: results[me].append(chunk), range(8))
                held.update(blas_threads())

    before = blas_threads()
    callers = [threading.Thread(target=caller, args=(i,)) for i in results]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert all(sorted(found) == sorted([*range(8)] * 20) for found in results.values())
    assert held <= {1}
    assert blas_threads() == before


def test_a_caller_does_not_wait_for_other_callers_work(four: None) -> None:
    release, entered, released = threading.Event(), threading.Semaphore(0), []

    def hold(_: int) -> None:
        entered.release()
        released.append(release.wait(60))

    hogs = [threading.Thread(target=backends.run_chunks, args=(hold, range(4))) for _ in range(2)]
    for hog in hogs:
        hog.start()
    for _ in range(5):  # the two callers and the pool's three threads: all are taken now
        assert entered.acquire(timeout=30)
    backends.run_chunks(lambda _: None, range(4))
    release.set()
    for hog in hogs:
        hog.join(60)
    assert released == [True] * 8  # none of them had to give up waiting first


def test_the_callers_context_travels_along(four: None) -> None:
    meeting = threading.Barrier(4, timeout=30)
    quiet: list[str] = []

    def look(_: int) -> None:
        meeting.wait()
        quiet.append(np.geterr()["divide"])

    with np.errstate(divide="raise"):
        backends.run_chunks(look, range(4))
    assert quiet == ["raise"] * 4


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_reaches_the_caller(
    cores: int, kind: type[BaseException], four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "num_threads", lambda: cores)
    begun: list[int] = []

    def fail(chunk: int) -> None:
        begun.append(chunk)
        if chunk == 3:
            raise kind("chunk 3")
        time.sleep(0.001)

    before = blas_threads()
    with pytest.raises(kind, match="chunk 3"), backends.single_threaded_blas():
        backends.run_chunks(fail, range(5000))
    assert len(begun) < 5000  # no further chunk was begun
    assert blas_threads() == before
    backends.run_chunks(begun.append, range(5000, 5010))  # and the pool lives
    assert set(range(5000, 5010)) <= set(begun)


def test_of_several_errors_the_foremost_chunk_s_is_raised(four: None) -> None:
    meeting = threading.Barrier(4, timeout=30)

    def fail(chunk: int) -> None:
        meeting.wait()
        time.sleep(0.02 * (4 - chunk))  # the last chunk fails first
        raise ValueError(f"chunk {chunk}")

    with pytest.raises(ValueError, match="chunk 0") as caught:
        backends.run_chunks(fail, range(4))
    (note,) = caught.value.__notes__
    assert note == "3 more chunks failed: ValueError('chunk 1'); ValueError('chunk 2'); ValueError('chunk 3')"


def test_an_error_waits_for_the_chunks_under_way(four: None) -> None:
    meeting = threading.Barrier(4, timeout=30)
    finished: list[int] = []

    def work(chunk: int) -> None:
        meeting.wait()
        if chunk == 0:
            raise ValueError("chunk 0")
        time.sleep(0.05)
        finished.append(chunk)

    with pytest.raises(ValueError, match="chunk 0"):
        backends.run_chunks(work, range(4))
    assert sorted(finished) == [1, 2, 3]


def test_a_run_that_nobody_helped_with_holds_nobodys_arrays(four: None) -> None:
    """It lies in the helpers' queue for as long as they are in another caller's chunks."""
    release, entered = threading.Event(), threading.Semaphore(0)

    def hold(_: int) -> None:
        entered.release()
        release.wait(30)

    hog = threading.Thread(target=backends.run_chunks, args=(hold, range(4)))
    hog.start()
    for _ in range(4):
        entered.acquire(timeout=30)
    kept = []
    for _ in range(20):
        array = np.ones(10)
        kept.append(weakref.ref(array))
        backends.run_chunks(lambda _, array=array: array.sum(), range(4))
        del array
    assert [ref() for ref in kept] == [None] * 20
    release.set()
    hog.join(60)


def test_a_helper_that_breaks_outside_of_any_chunk_is_not_waited_for(
    four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, caller, broke = threads._Run.work, threading.current_thread(), threading.Event()

    def broken(self: threads._Run) -> None:
        if threading.current_thread() is not caller:
            broke.set()
            raise MemoryError("no room for a frame")
        broke.wait(30)
        work(self)

    monkeypatch.setattr(threads._Run, "work", broken)
    with pytest.raises(MemoryError, match="no room"):
        backends.run_chunks(lambda _: time.sleep(0.01), range(50))
    monkeypatch.undo()
    seen: list[int] = []
    backends.run_chunks(seen.append, range(10))
    assert sorted(seen) == list(range(10))


def test_without_further_threads_the_caller_works_alone(four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    seen: list[int] = []
    backends.run_chunks(seen.append, range(10))
    assert seen == list(range(10))


# ---------------------------------------------------------------------------------------------------------------- BLAS
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_callers_blas_setting_comes_back(number: int) -> None:
    with threadpool_limits(number, user_api="blas"):
        setting = blas_threads()  # as many as BLAS grants
        with backends.single_threaded_blas():
            assert blas_threads() <= {1}
            with backends.single_threaded_blas():
                assert blas_threads() <= {1}
            assert blas_threads() <= {1}
        assert blas_threads() == setting
        with pytest.raises(ZeroDivisionError), backends.single_threaded_blas():
            raise ZeroDivisionError
        assert blas_threads() == setting


def test_the_setting_comes_back_when_the_last_block_ends() -> None:
    entered, left = threading.Event(), threading.Event()
    may_leave = threading.Event()

    def other() -> None:
        with backends.single_threaded_blas():
            entered.set()
            may_leave.wait(30)
        left.set()

    before = blas_threads()
    for this_ends_first in (False, True):  # threadpoolctl of itself obeys one thread alone
        thread = threading.Thread(target=other)
        for event in (entered, left, may_leave):
            event.clear()
        if this_ends_first:
            with backends.single_threaded_blas():
                thread.start()
                entered.wait(30)
            assert blas_threads() <= {1}
            may_leave.set()
        else:
            thread.start()
            entered.wait(30)
            with backends.single_threaded_blas():
                may_leave.set()
                left.wait(30)
                assert blas_threads() <= {1}
        thread.join(30)
        assert blas_threads() == before


class PerThread:
    """A BLAS library whose number of threads is each thread's own, as OpenBLAS is on OpenMP."""

    def __init__(self) -> None:
        self.local = threading.local()

    @property
    def num_threads(self) -> int:
        return getattr(self.local, "number", 8)

    def set_num_threads(self, number: int) -> None:
        self.local.number = number


def test_a_library_with_a_number_for_each_thread(four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    library, meeting = PerThread(), threading.Barrier(4, timeout=30)
    found = threads._Library(lambda: library.num_threads, library.set_num_threads)
    monkeypatch.setattr(threads, "_libraries", lambda per_thread: [found] if per_thread else [])
    seen: list[int] = []

    def look(_: int) -> None:
        meeting.wait()
        seen.append(library.num_threads)

    with backends.single_threaded_blas():
        backends.run_chunks(look, range(4))
        outsider = threading.Thread(target=lambda: seen.append(library.num_threads))
        outsider.start()
        outsider.join(30)
        with backends.single_threaded_blas():
            pass
        assert library.num_threads == 1
    assert seen == [1, 1, 1, 1, 8]
    assert library.num_threads == 8


# ------------------------------------------------------------------------------------------------------ fork and exit
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
WORK = """
    import os, sys, threading, time
    import numpy as np
    import cnnlayers.functional as F
    from cnnlayers import backends
    from threadpoolctl import threadpool_info
    # Few filters: a matrix product by BLAS, which other convolutions do not call.
    x, w = np.ones((64, 64, 20, 20), "float32"), np.ones((8, 64, 1, 1), "float32")

    loaded = {pool["filepath"] for pool in threadpool_info()}  # later Numba brings SciPy's BLAS, which has no work here

    def limits():
        pools = [pool for pool in threadpool_info() if pool["filepath"] in loaded]
        return {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}

    def child_says(child):
        pid = os.fork()
        if pid == 0:
            ok = False
            try:
                ok = child()
            finally:
                os._exit(0 if ok else 1)
        for _ in range(600):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) == 0
            time.sleep(0.05)
        os.kill(pid, 9)
        return "hangs"
"""


@fork
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    code = """
    before, y = limits(), F.conv(x, w)
    def right():
        meeting = threading.Barrier(3, timeout=20)
        backends.run_chunks(lambda _: meeting.wait(), range(3))  # passes only if three threads are here at once
        return bool((F.conv(x, w) == y).all())
    def child():
        return right() and limits() == before and child_says(right)
    print([child_says(child) for _ in range(5)], right())
    """
    assert python(WORK + code, CNNLAYERS_NUM_THREADS="3") == f"{[True] * 5} True"


@fork
@pytest.mark.skipif(jit.unavailable() is not None, reason="no Numba")
def test_a_child_forked_while_another_thread_compiles_may_compile() -> None:
    code = """
    from cnnlayers.kernels.cpu.jit import kernel
    from numba.core.compiler_lock import global_compiler_lock
    plus_one, held = kernel()(lambda x: x + 1.0), threading.Event()
    def compiles():
        with global_compiler_lock:
            held.set()
            time.sleep(0.5)
    other = threading.Thread(target=compiles)
    other.start()
    held.wait()
    print(child_says(lambda: plus_one(1.0) == 2.0), plus_one(2.0))
    """
    assert python(WORK + code) == "True 3.0"


@fork
def test_a_child_forked_while_another_thread_imports_kernels_may_import_others(tmp_path: Path) -> None:
    (tmp_path / "slow_kernels.py").write_text("import time, __main__; __main__.importing.set(); time.sleep(1)")
    code = """
    from cnnlayers.kernels import Entry
    importing = threading.Event()
    other = threading.Thread(target=lambda: Entry("slow_kernels").launchers)
    other.start()
    importing.wait()
    print(child_says(lambda: Entry("json").launchers.loads("1") == 1))
    """
    assert python(WORK + code, PYTHONPATH=str(tmp_path)) == "True"


@fork
def test_a_child_forked_while_others_work_is_not_held_by_them() -> None:
    code = """
    before, y, stop = limits(), F.conv(x, w), threading.Event()
    def busy():
        while not stop.is_set():
            F.conv(x, w)
    others = [threading.Thread(target=busy) for _ in range(3)]
    for thread in others: thread.start()
    def child():
        with backends.single_threaded_blas():
            held = limits()
        return held <= {1} and bool((F.conv(x, w) == y).all()) and limits() == before
    print([child_says(child) for _ in range(10)])
    stop.set()
    for thread in others: thread.join()
    print(limits() == before)
    """
    assert python(WORK + code, CNNLAYERS_NUM_THREADS="3").split("\n") == [str([True] * 10), "True"]


@fork
def test_a_fork_waits_while_another_thread_sets_blas() -> None:
    """The child would have the lock that the other thread holds, or BLAS as it was half way."""
    code = """
    from cnnlayers.backends import threads
    F.conv(x, w)
    before, told, setting, quick = limits(), [], threading.Semaphore(0), threads._set_numbers
    def slow(per_thread, numbers):
        if not per_thread:
            setting.release()
            time.sleep(0.3)
        quick(per_thread, numbers)
    def child():
        threads._set_numbers = quick
        return limits() == before and bool((F.conv(x, w) == F.conv(x, w)).all()) and limits() == before
    threads._set_numbers = slow
    other = threading.Thread(target=F.conv, args=(x, w))
    other.start()
    for _ in ("taken", "given back"):
        assert setting.acquire(timeout=30)
        told.append(child_says(child))
    other.join()
    print(told, limits() == before)
    """
    assert python(WORK + code, CNNLAYERS_NUM_THREADS="3") == "[True, True] True"


@fork
def test_a_child_forked_inside_a_block_stays_inside() -> None:
    code = """
    before = limits()
    def child():
        inside = limits()
        F.conv(x, w)
        return inside == limits() <= {1}
    def grandchild():
        with backends.single_threaded_blas():
            pass
        return limits() == before
    with backends.single_threaded_blas():
        told = child_says(child)
    print(told, child_says(grandchild), limits() == before)
    """
    assert python(WORK + code, CNNLAYERS_NUM_THREADS="3") == "True True True"


def test_work_while_the_interpreter_shuts_down() -> None:
    code = """
    import atexit
    y = F.conv(x, w)
    def last():
        print(bool((F.conv(x, w) == y).all()), flush=True)
    atexit.register(last)
    def late():  # after the main thread has ended, when the pool takes no more work
        threading.main_thread().join()
        last()
    threading.Thread(target=late).start()
    """
    assert python(WORK + code, CNNLAYERS_NUM_THREADS="3") == "True\nTrue"


def test_the_interpreter_ends_while_a_daemon_works() -> None:
    code = """
    def busy():
        while True:
            F.conv(x, w)
    threading.Thread(target=busy, daemon=True).start()
    time.sleep(0.2)
    print("done", flush=True)
    """
    assert python(WORK + code, CNNLAYERS_NUM_THREADS="3") == "done"


# ---------------------------------------------------------------------------------------------------------- same bits
BITS = """
    import hashlib
    import numpy as np
    import cnnlayers.functional as F
    rng, digest = np.random.default_rng(0), hashlib.sha256()

    def add(*arrays):
        for a in arrays:
            digest.update(b"" if a is None else a.tobytes())

    def trio(name, *args, **given):
        y, ctx = getattr(F, f"{name}_forward")(*args, **given)
        add(y, *getattr(F, f"{name}_backward")(rng.standard_normal(y.shape).astype(y.dtype), ctx))

    def array(*shape, dtype="float32"):
        return rng.standard_normal(shape).astype(dtype)

    for dtype in ("float32", "float64"):
        trio("linear", array(700, 300, dtype=dtype), array(500, 300, dtype=dtype), array(500))
        trio("linear", array(3, 300, dtype=dtype), array(5000, 300, dtype=dtype))
    for last in (False, True):
        given = {"data_format": "channels_last" if last else "channels_first"}
        image = lambda n, c, h, w: array(n, h, w, c) if last else array(n, c, h, w)
        trio("conv", image(12, 24, 30, 31), array(40, 24, 3, 3), array(40), padding=1, **given)
        trio("conv", image(1, 24, 90, 91), array(40, 24, 3, 3), array(40), stride=2, **given)
        trio("conv", image(12, 24, 30, 31), array(40, 24, 1, 1), array(40), **given)
        trio("conv", image(12, 24, 30, 31), array(24, 1, 3, 3), groups=24, **given)
        trio("conv", image(12, 24, 30, 31), array(48, 6, 5, 3), groups=4, padding="same", **given)
        trio("conv_transpose", image(12, 24, 15, 16), array(24, 40, 3, 3), array(40), stride=2, padding=1, **given)
    print(digest.hexdigest())
"""


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    found = {
        python(BITS, CNNLAYERS_NUM_THREADS=ours, OPENBLAS_NUM_THREADS=blas)
        for ours, blas in (("1", "2"), ("2", "1"), ("5", "4"))
    }
    assert len(found) == 1
    assert all(len(bits) == hashlib.sha256().digest_size * 2 for bits in found)
