"""Memory: how much there is, and buffers that are used again for large results and temporary arrays (workspaces).

Fresh pages cost a page fault and a clearing each: for a large array as much time as many an op takes. The allocator of
the C library gives an array of more than 32 MB back to the system as soon as it is freed, and the memory of smaller
ones when a few of them are free: a fifth of a training step of a small network was page faults.
So a large result is a view of a buffer that goes to a free list when the last array that views it is gone. A workspace
goes there when its block ends. A buffer starts at a cache line, so kernels can store past the caches.

The free list keeps half a gigabyte at most, and no more than a thirty-second of the machine's (or the container's)
memory. The buffers that have waited longest are freed first.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy

LEAST_RESULT = 1 << 16  # bytes of the smallest result in a buffer: to take one needs 2 µs
LEAST_WORKSPACE = 1 << 16  # bytes of the smallest workspace
MOST_WORKSPACE = 32 << 20  # bytes of the largest workspace that is kept
ALIGNMENT = 64  # bytes: a cache line

# Of a container: limit, use, statistics, and there the part of the use that is files' pages, which the system gives
# back when memory is needed. Control groups 2, then 1.
_GROUPS = [
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
]
_GROUP = Path("/sys/fs/cgroup")


def _machine(group: Path = _GROUP) -> int:
    """Bytes of the machine's memory, or of the container's where that has less; where the system does not say, 4 GB."""
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        found = [4 << 30]
    for limit, *_ in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is "max"
            found.append(int((group / limit).read_text()))
    return min(found)


def _group_available(group: Path, limit: str, use: str, statistics: str, files: str) -> int:
    """Bytes that a container may still allocate. Raises OSError or ValueError where it has no limit."""
    unused = int((group / limit).read_text()) - int((group / use).read_text())
    reclaimable = dict(line.split() for line in (group / statistics).read_text().splitlines())
    return unused + int(reclaimable.get(files, 0))


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, within the container's limit; None where the system does not say
    (outside Linux)."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    for names in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is "max"
            found.append(_group_available(_GROUP, *names))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


LIMIT = min(512 << 20, _machine() // 32)


_base_of = vars(numpy.ndarray)["base"].__get__


class _Buffer(numpy.ndarray):
    """Bytes that are used again. A type of its own, because NumPy looks through bases of one type: the base of a view
    would else be the memory itself, and not its `_Owner`."""

    __slots__ = ()


class _Owner(_Buffer):
    """A buffer's owner while arrays view it: each refers to this, so it lives as long as the last of them."""

    __slots__ = ()
    base = property(lambda self: None)  # whoever got the buffer itself would hold what has another owner soon

    def __del__(self) -> None:
        buffer = _base_of(self)
        if type(buffer) is _Buffer:  # what a user makes of an array's `base` is an _Owner too: a view of it, a copy
            _free.give(buffer)


class _FreeList:
    """Buffers that wait for their next use.

    There is no lock. Each change is one operation of a dict or a list, which no other thread, signal handler, finaliser
    or exception divides: so a buffer is in the list, or has one owner, or is garbage.
    """

    def __init__(self) -> None:
        self.buffers: dict[int, list[tuple[int, Any]]] = {}  # by their bytes: each with its number, the latest last
        self.numbers = itertools.count()
        self.bound = 0  # the bytes of all are no more than this; they are counted when it passes LIMIT

    def take(self, nbytes: int) -> Any:
        """The latest buffer of this size, or a new one."""
        try:
            return self.buffers[nbytes].pop()[1]
        except LookupError:
            memory = numpy.empty(nbytes + ALIGNMENT, numpy.uint8)
            return memory[-memory.ctypes.data % ALIGNMENT :][:nbytes].view(_Buffer)

    def give(self, buffer: Any) -> None:
        """Keep a buffer that nothing views any more."""
        nbytes = buffer.nbytes
        if nbytes > LIMIT:
            return
        self.bound += nbytes
        if self.bound > LIMIT:
            self.bound = nbytes + self._shrink(LIMIT - nbytes)
        self.buffers.setdefault(nbytes, []).append((next(self.numbers), buffer))

    # Below, another thread or a finaliser may take a buffer, or give one and shrink the list, at any moment.
    def _shrink(self, limit: int) -> int:
        """Free the buffers that have waited longest where all have more than `limit` bytes. The bytes that are left."""
        if (total := self.nbytes()) <= limit:
            return total
        waiting = [(number, n) for n in list(self.buffers) for number, _ in self.buffers.get(n, [])]
        for _, n in sorted(waiting):
            if total <= limit - LIMIT // 8:  # an eighth at once: to find the oldest takes a millisecond of thousands
                break
            with contextlib.suppress(LookupError):
                self.buffers[n].pop(0)
            total -= n
        for n in list(self.buffers):
            if not self.buffers.get(n):
                self.buffers.pop(n, None)  # a program's sizes may never repeat
        return total

    def nbytes(self) -> int:
        return sum([n * len(self.buffers.get(n, [])) for n in list(self.buffers)])


_free = _FreeList()


def _in_buffer(shape: tuple[int, ...], dtype: numpy.dtype, nbytes: int) -> Any:
    return numpy.ndarray(shape, dtype, _Owner(nbytes, numpy.uint8, _free.take(nbytes)))


def new_result(shape: tuple[int, ...], dtype: Any) -> Callable[[], Any]:
    """`result` for one shape and dtype, as a function without arguments."""
    dtype = numpy.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < LEAST_RESULT or nbytes > LIMIT:
        return functools.partial(numpy.empty, shape, dtype)
    return functools.partial(_in_buffer, shape, dtype, nbytes)


def result(shape: tuple[int, ...], dtype: Any) -> Any:
    """A new C-contiguous NumPy array with any content, for a result that the caller of an op gets."""
    return new_result(shape, dtype)()


@functools.lru_cache(maxsize=256)  # a limit on their number is enough: results have a fixed size
def _places(itemsize: int, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, list[int]]:
    """The bytes of a workspace, and where in it arrays of these shapes begin."""
    sizes = [math.prod(shape) * itemsize for shape in shapes]
    starts = [*itertools.accumulate([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes], initial=0)]
    total = max(LEAST_WORKSPACE, 1 << (starts[-1] - 1).bit_length())
    return total, starts[:-1]


@contextlib.contextmanager
def workspace(dtype: Any, *shapes: tuple[int, ...]) -> Iterator[list[Any]]:
    """A workspace: NumPy arrays of these shapes with any content, each at the start of a cache line, until the block
    ends."""
    total, places = _places(numpy.dtype(dtype).itemsize, shapes)
    buffer = _free.take(total)
    yield [numpy.ndarray(shape, dtype, buffer, start) for start, shape in zip(places, shapes, strict=True)]
    # Not after an exception: a thread that was not waited for (a second Ctrl-C) may still write to it.
    if total <= MOST_WORKSPACE:
        _free.give(buffer)
