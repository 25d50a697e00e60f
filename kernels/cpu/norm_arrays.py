"""What the launchers of all CPU norms share: arrays in the dtype they are computed in, and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .compile import flat, slabs
from .norm_halves import narrow, widen

Array = Any
COARSE = 4  # slabs that go together as one


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel of this family serves this call, or None."""
    return None if spec.comm is None else "the sums go over several ranks"


def accumulator(dtype: Any) -> Any:
    """The dtype that arrays of a dtype are computed in."""
    return np.float64 if dtype == np.float64 else np.float32


def swept(units: int, nbytes: int, run: Callable[[int, int], Any]) -> None:
    """`slabs`, but coarser: these loops stream, and find what they come back to in pieces and rows of their own."""
    slabs(units, nbytes // COARSE, run)


def converted(array: Array, dtype: Any) -> Array:
    """The array, flat in C order, in `dtype`: without a copy where it is so already, else slab by slab."""
    if array.dtype == dtype:
        return flat(array)
    source, result = np.ascontiguousarray(array).reshape(-1), np.empty(array.size, dtype)

    def run(start: int, stop: int) -> None:
        if source.dtype == np.float16 and result.dtype == np.float32:
            widen(flat(source.view(np.uint16)), result.view(np.uint32), start, stop)
        elif source.dtype == np.float32 and result.dtype == np.float16:
            narrow(flat(source.view(np.uint32)), result.view(np.uint16), start, stop)
        else:
            result[start:stop] = source[start:stop]

    swept(array.size, array.size * (result.itemsize + source.itemsize), run)
    return result


def parameter(array: Array | None, neutral: float, shape: tuple[int, ...], dtype: Any) -> Array:
    """A parameter of this dtype, flat in C order; if it was not given, one that does nothing."""
    if array is None:
        return np.full(math.prod(shape), neutral, dtype)
    return flat(np.asarray(array, dtype))


def gradient(sums: Array, shape: tuple[int, ...], dtype: Any) -> Array | None:
    """A parameter's gradient from its sums; None for a parameter that was not given."""
    return None if dtype is None else sums.reshape(shape).astype(dtype)


def row_shape(rows: Any) -> tuple[int, ...]:
    """The shape of a number of each row, of the view's rank."""
    return tuple(1 if a in rows.axes else length for a, length in enumerate(rows.view))
