"""How CPU kernels are compiled, and whether they can be.

A kernel is a serial loop over a range of whole contiguous arrays, compiled by Numba; it releases the GIL. Its compiled
code is stored on disk (code_cache.py) and depends on the sources that its module imports: a module of kernels imports
this module and not compile.py, so that fewer changes make it compile anew.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

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
    vectorises them; never where the order of operations decides on an answer (a NaN, a tie).

    Of an enclosing function's variables a kernel may use constants and kernels; others are a TypeError."""

    def compiled(function: F) -> F:
        njit: Any = importlib.import_module("numba").njit
        options = {"nogil": True, "error_model": "numpy", "fastmath": set(RELAXED) if relaxed else False}
        made = njit(**options)(function)
        _code_cache()(made)
        return cast(F, made)

    return compiled


@functools.cache
def _code_cache() -> Callable[[Any], None]:
    try:
        attach: Callable[[Any], None] = importlib.import_module(".code_cache", __package__).attach
    except ImportError:  # Numba's internals are different: each process compiles for itself
        return lambda made: None
    return attach
