"""Keras 3 on NumPy with this library's pooling, convolution and batch normalisation (extra `keras`): no JAX needed.

Keras's NumPy backend imports JAX and computes its pooling and convolutions by it. `install` puts this library's ops in
their place, for the whole process:

    KERAS_BACKEND=numpy python

    import cnnlayers.keras
    cnnlayers.keras.install()  # before `import keras` where JAX is not installed
    import keras

`with cnnlayers.keras.installed():` does so for a block. Importing this module does not import Keras.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from . import without_jax

__all__ = ["KERAS_VERSIONS", "install", "installed"]

# The releases whose own tests of these layers have passed on this library.
KERAS_VERSIONS = ("3.15",)

REPLACED = (
    "adaptive_average_pool",
    "adaptive_max_pool",
    "average_pool",
    "batch_normalization",
    "conv",
    "conv_transpose",
    "depthwise_conv",
    "max_pool",
    "separable_conv",
)


def install() -> None:
    """Make Keras's NumPy backend compute pooling, convolution and batch normalisation by this library.

    It holds for the process, for models that exist already too; calling it again changes nothing. Keras is imported if
    it was not. Where JAX is not installed, call it before `import keras`, which fails without JAX otherwise.

    Raises
    ------
    ModuleNotFoundError
        Keras is not installed.
    RuntimeError
        Keras's version is not one of `KERAS_VERSIONS`, or its backend is not NumPy (set the environment variable
        KERAS_BACKEND to numpy before Keras is imported).

    Notes
    -----
    Replaced are the functions of `keras.src.backend.numpy.nn` that `REPLACED` names. Training (`fit`) does not exist on
    Keras's NumPy backend, with this library or without. Without JAX, `keras.ops.fft` and `fft2` are NumPy's.
    """
    nn = _numpy_backend()
    ops = importlib.import_module("cnnlayers.keras.ops")
    _assign(nn, {name: getattr(ops, name) for name in REPLACED})


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """`install` for a block: at its end the functions are again what they were before.

    Without JAX, Keras's own functions raise ModuleNotFoundError after the block, naming JAX.
    """
    nn = _numpy_backend()
    before = {name: getattr(nn, name) for name in REPLACED}
    install()
    try:
        yield
    finally:
        _assign(nn, before)


def _assign(nn: ModuleType, functions: dict[str, Callable[..., Any]]) -> None:
    for name, function in functions.items():
        setattr(nn, name, function)


def _numpy_backend() -> ModuleType:
    """Keras's module of the functions to replace, after the checks of `install`."""
    check_version()
    wanted = os.environ.get("KERAS_BACKEND", "")
    if "keras" not in sys.modules and wanted not in ("", "numpy"):
        raise RuntimeError(_not_numpy(wanted))
    without_jax.import_keras()
    used = sys.modules["keras"].config.backend()
    if used != "numpy":
        raise RuntimeError(_not_numpy(used))
    return importlib.import_module("keras.src.backend.numpy.nn")


def check_version() -> None:
    """The errors of `install` that need no import of Keras."""
    if importlib.util.find_spec("keras") is None:
        raise ModuleNotFoundError("Keras is not installed: pip install 'cnnlayers[keras]'", name="keras")
    version = importlib.metadata.version("keras")
    if ".".join(version.split(".")[:2]) not in KERAS_VERSIONS:
        raise RuntimeError(
            f"cnnlayers.keras serves Keras {', '.join(KERAS_VERSIONS)}, got Keras {version}: install one of these"
            f" (pip install 'keras=={KERAS_VERSIONS[-1]}.*')"
        )


def _not_numpy(backend: str) -> str:
    return (
        f"cnnlayers.keras needs Keras's NumPy backend, got KERAS_BACKEND={backend!r}: set the environment variable"
        " KERAS_BACKEND to numpy before Keras is imported"
    )
