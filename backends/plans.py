"""The plan cache: what kernels and portable code work out once for a shape, kept for the next call of that shape.

Every table whose size depends on a shape is kept here and nowhere else, so one limit in bytes holds for all of them,
however many shapes a program uses. The plans that were not used for the longest time are dropped first. A plan larger
than LARGEST is never kept: each call computes it again, by a few NumPy operations.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy

LIMIT = 48 << 20  # bytes of all plans; 64 MB with the specs and other results of fixed size, whose number is limited
LARGEST = LIMIT // 2  # bytes of one plan
ENTRIES = 2048  # plans, at most
KEY = 1024  # bytes counted for the arguments of a plan: windows and shapes, which have a fixed size
HEADER = 128  # bytes of an array besides its elements

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(eq=False)
class _Entry:
    plan: Any
    nbytes: int
    used: int  # when, as a count of all uses


class PlanCache:
    """Plans by the function that makes them and its arguments, within a limit of bytes.

    The dictionary is never changed: an insertion replaces it by a new one, in one step. So no lock is needed, and an
    exception at any point, a fork or a second thread leaves it whole. Two insertions at the same moment keep one.
    """

    def __init__(self, limit: int = LIMIT, largest: int = LARGEST, entries: int = ENTRIES) -> None:
        self.limit, self.largest, self.entries = limit, largest, entries
        self._plans: dict[Any, _Entry] = {}
        self._uses = itertools.count()

    def get(self, make: Callable[..., Any], *args: Any) -> Any:
        """`make(*args)`, or the plan that is kept of it. An exception of `make` is not kept."""
        key = (make, args)
        plan = self.find(key)
        return self.keep(key, make(*args)) if plan is None else plan

    def find(self, key: Any) -> Any:
        """The cached plan of this key, or None."""
        entry = self._plans.get(key)
        if entry is None:
            return None
        entry.used = next(self._uses)
        return entry.plan

    def keep(self, key: Any, plan: Any) -> Any:
        """The plan, which from now on is found under this key, unless it is too large. A plan that has grown is to be
        kept again."""
        size, plans = KEY + size_of(plan), dict(self._plans)
        plans.pop(key, None)
        if size <= self.largest:
            plans[key] = _Entry(plan, size, next(self._uses))
        self._plans = self._within_limits(plans)
        return plan

    def _within_limits(self, plans: dict[Any, _Entry]) -> dict[Any, _Entry]:
        """The plans; when they pass a limit, without the oldest ones, down to nine tenths of the limits.

        A program whose shapes never repeat passes a limit at every call otherwise, and each time its plans are sorted.
        """
        nbytes = sum(entry.nbytes for entry in plans.values())
        if nbytes > self.limit or len(plans) > self.entries:
            excess, number = nbytes - self.limit * 9 // 10, len(plans) - self.entries * 9 // 10
            for key, entry in sorted(plans.items(), key=lambda item: item[1].used):
                if excess <= 0 and number <= 0:
                    break
                del plans[key]
                excess, number = excess - entry.nbytes, number - 1
        return plans

    @property
    def nbytes(self) -> int:
        """Bytes of all plans that are kept."""
        return sum(entry.nbytes for entry in self._plans.values())

    def __len__(self) -> int:
        return len(self._plans)

    def clear(self) -> None:
        """Drop all plans."""
        self._plans = {}


PLANS = PlanCache()


def planned(make: F) -> F:
    """A function of hashable arguments whose results are kept in the plan cache. They are shared: change none."""

    @functools.wraps(make)
    def run(*args: Any) -> Any:
        return PLANS.get(make, *args)

    return cast(F, run)


def size_of(value: Any) -> int:
    """Bytes of a plan: arrays with all the memory that they keep alive, and what containers, dataclasses and inner
    functions hold. Of an object with `steps`, these count."""
    if isinstance(value, numpy.ndarray):
        while isinstance(value.base, numpy.ndarray):
            value = value.base
        return int(value.nbytes) + HEADER
    if isinstance(value, tuple | list):
        return sys.getsizeof(value) + sum(map(size_of, value))
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(map(size_of, value.values()))
    if isinstance(value, types.FunctionType):
        return sys.getsizeof(value) + sum(size_of(cell.cell_contents) for cell in value.__closure__ or ())
    if isinstance(value, functools.partial):
        return sys.getsizeof(value) + size_of(value.args)
    if isinstance(value, slice):
        return sys.getsizeof(value) + sum(map(sys.getsizeof, (value.start, value.stop, value.step)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sys.getsizeof(value) + sum(size_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    steps = getattr(value, "steps", None)
    return sys.getsizeof(value) + (0 if steps is None else size_of(steps))
