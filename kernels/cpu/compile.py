"""What CPU kernels are given, and how their work is cut.

`chunks` runs a kernel over ranges on the library's own threads. Where a range ends depends on the shape alone, so
results do not depend on the number of threads.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers.backends import run_chunks

Array = Any

CHUNK = 2_400_000  # bytes that a chunk reads and writes, about: smaller ones spend their time on being handed out


class _View:
    """A view of an array that says it may be written to."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], False)}


def flat(array: Array) -> Array:
    """The array's elements in C order, without a copy where they lie so. Read-only ones come as writable views, because
    Numba would compile every kernel once more for them: a kernel must not write to what it was given to read."""
    array = np.ascontiguousarray(array).reshape(-1)
    return array if array.flags.writeable else np.asarray(_View(array))


@functools.cache
def _watch() -> Callable[[Array], Any] | None:
    """A compiled loop that waits a moment: to be woken takes half as long as a chunk. None where there is none."""
    if not hasattr(os, "sched_yield"):
        return None
    from .wait import watch

    if not hasattr(watch, "py_func"):  # with NUMBA_DISABLE_JIT nothing is compiled
        return None
    watch(np.ones(1, np.int64))  # compiled now, and not in the middle of some later call
    return watch


def chunks(units: int, nbytes: int, run: Callable[[int, int], Any], *, least: int = 1) -> None:
    """`run(start, stop)` over ranges of `units`, which together read and write `nbytes`; `least` units a range."""
    if units == 0:
        return
    number = max(1, min(units // least, round(nbytes / CHUNK)))
    if number == 1:
        run(0, units)
        return
    edges = [units * i // number for i in range(number + 1)]
    run_chunks(lambda i: run(edges[i], edges[i + 1]), range(number), _watch())
