"""How CPU kernels are compiled, what they are given, and how their work is cut.

A kernel is a serial loop over a range of whole contiguous arrays, compiled by Numba; it releases the GIL. `slabs` runs
it over ranges on the library's own threads. Where a range ends depends on the shape alone, so results do not depend on
the number of threads. Compiled code is kept on disk where a folder can be written to, beside the source or where
NUMBA_CACHE_DIR says; where none can it is compiled once a process.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from cnnlayers.backends import run_slabs

Array = Any
F = TypeVar("F", bound=Callable[..., Any])

SLAB = 2_400_000  # bytes that a slab reads and writes, about: smaller ones spend their time on being handed out
LOOKS = 500  # at a number that is to become 1, each with a call to the system
# What a sum may be reordered by: NaN and infinities keep their meaning.
RELAXED = frozenset({"reassoc", "nsz", "contract"})


@functools.cache
def unavailable() -> str | None:
    """Why CPU kernels cannot run here; None if they can."""
    try:
        importlib.import_module("numba")
    except ImportError as error:  # not installed, or not made for this NumPy
        return f"Numba cannot be imported ({error}): pip install 'cnnlayers[cpu]'"
    return None


def kernel(*, relaxed: bool = False) -> Callable[[F], F]:
    """Compile the function at its first call for each set of argument types. `relaxed`: sums may be reordered, which
    vectorises them; never where the order of operations decides on an answer (a NaN, a tie)."""

    def compiled(function: F) -> F:
        njit: Any = importlib.import_module("numba").njit
        options = {"nogil": True, "error_model": "numpy", "fastmath": set(RELAXED) if relaxed else False}
        try:
            return cast(F, njit(cache=True, **options)(function))
        except RuntimeError:  # no folder for compiled code can be written to
            return cast(F, njit(**options)(function))

    return compiled


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
    """A loop that gives way to other threads until a number is 1, or for a fifth of a millisecond: to be woken takes
    half as long as a slab. None where the system has no such call."""
    if not hasattr(os, "sched_yield"):
        return None
    types: Any = importlib.import_module("numba").types
    give_way = types.ExternalFunction("sched_yield", types.int32())

    @kernel()
    def watch(done: Array) -> None:
        for _ in range(LOOKS):
            if done[0] == 1:
                break
            give_way()

    return watch


def slabs(units: int, nbytes: int, run: Callable[[int, int], Any], *, least: int = 1) -> None:
    """`run(start, stop)` over ranges of `units`, which together read and write `nbytes`; `least` units a range."""
    if units == 0:
        return
    number = max(1, min(units // least, round(nbytes / SLAB)))
    if number == 1:
        run(0, units)
        return
    edges = [units * i // number for i in range(number + 1)]
    run_slabs(lambda i: run(edges[i], edges[i + 1]), range(number), _watch())
