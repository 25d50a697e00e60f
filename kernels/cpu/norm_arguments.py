"""Arguments of the CPU norms: the dtype that they are computed in, and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .parallel import flat

Array = Any


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel of the norms serves this call, or None."""
    if spec.comm is not None:
        return "the sums go over several ranks"
    return None if all(a is None or a.dtype.isnative for a in arrays) else "an array of foreign byte order"


def accumulator(dtype: Any) -> Any:
    """The dtype that arrays of a dtype, or of a half type's bits, are computed in."""
    return np.float64 if dtype == np.float64 else np.float32


def parameter(neutral: float, shape: tuple[int, ...], dtype: Any) -> Callable[[Array | None], Array]:
    """A function that gives a parameter in `dtype`, flat in C order. None becomes an array of `neutral` (1 for gamma, 0
    for beta)."""
    missing = np.full(math.prod(shape), neutral, dtype)
    return lambda array: missing if array is None else flat(np.asarray(array, dtype))


def gradient(sums: Array, shape: tuple[int, ...], dtype: Any) -> Array | None:
    """A parameter's gradient from its sums; None if there is no such parameter."""
    return None if dtype is None else sums.reshape(shape).astype(dtype)


def row_shape(rows: Any) -> tuple[int, ...]:
    """The shape of an array with one number for each row, with the rank of `rows.view`."""
    return tuple(1 if a in rows.axes else length for a, length in enumerate(rows.view))
