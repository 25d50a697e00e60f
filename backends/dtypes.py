"""dtypes by name ("float32", "bool", ...): every array library has dtype objects of its own."""

from __future__ import annotations

import functools
from typing import Any

from .selection import Backend

FLOATS = ("float16", "bfloat16", "float32", "float64")
COMPLEX = ("complex64", "complex128")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@functools.lru_cache(maxsize=256)  # dtypes are endless: strings of every length, structures
def _name(xp: Any, dtype: Any) -> str:
    if getattr(dtype, "name", None) == "bfloat16":
        return "bfloat16"
    for name in (*FLOATS, *COMPLEX, *INTEGERS, "bool"):
        if getattr(xp, name, None) is not None and dtype == getattr(xp, name):
            return name
    return str(dtype)


def dtype_name(b: Backend, array: Any) -> str:
    """The array-API name of an array's dtype: "float32", "bool", ..., and "bfloat16" where the backend has it."""
    return _name(b.xp, array.dtype)


def name_of_dtype(b: Backend, dtype: Any) -> str:
    """The array-API name of a dtype."""
    return _name(b.xp, dtype)
