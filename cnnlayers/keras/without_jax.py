"""Importing Keras's NumPy backend where JAX is not installed.

Keras's NumPy backend has `import jax`, `from jax import lax` and two imports from `keras.src.backend.jax.math` (fft and
fft2). For the time of Keras's import, stand-ins for these two modules are in sys.modules: nobody else finds a JAX that
is not there. What uses them later gets a ModuleNotFoundError, but for fft and fft2, which are NumPy's.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

MISSING = "No module named 'jax'"


class _Missing(ModuleType):
    """A stand-in for a module of JAX: every attribute is an error that says what is missing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ModuleNotFoundError(
            f"Keras's NumPy backend needs JAX for this ({self.__name__}.{name}), which is not installed:"
            " call cnnlayers.keras.install(), or pip install jax",
            name="jax",
        )


def import_keras() -> None:
    """Import Keras, with or without JAX; RuntimeError where the backend it is configured for is not installed."""
    if "keras" in sys.modules:
        return
    with contextlib.nullcontext() if importlib.util.find_spec("jax") else _stand_ins():
        try:
            importlib.import_module("keras")
        except ModuleNotFoundError as error:
            if error.name in ("tensorflow", "jax", "torch", "openvino"):
                raise RuntimeError(
                    f"Keras could not be imported, its backend is not installed ({error}): set the environment variable"
                    " KERAS_BACKEND to numpy before Keras is imported"
                ) from error
            raise


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    jax, lax, math = _Missing("jax"), _Missing("jax.lax"), ModuleType("keras.src.backend.jax.math")
    vars(jax).update(lax=lax)
    vars(math).update(fft=_fft, fft2=_fft2)
    placed = {"jax": jax, math.__name__: math}
    before = {name: sys.modules[name] for name in placed if name in sys.modules}  # None where an import is forbidden
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name in placed:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _transformed(transform: Any, x: Any) -> tuple[Any, Any]:
    checked = sys.modules["keras.src.backend.numpy.math"]._get_complex_tensor_from_tuple
    y = transform(checked(x))
    return y.real.astype(x[0].dtype), y.imag.astype(x[0].dtype)


def _fft(x: tuple[Any, Any]) -> tuple[Any, Any]:
    """Keras's fft of (real, imaginary), over the last axis."""
    return _transformed(np.fft.fft, x)


def _fft2(x: tuple[Any, Any]) -> tuple[Any, Any]:
    """Keras's fft2 of (real, imaginary), over the last two axes."""
    return _transformed(np.fft.fft2, x)
