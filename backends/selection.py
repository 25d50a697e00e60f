"""Choosing a backend: by environment variable, for the process, or for one thread or async task.

`CNNLAYERS_BACKEND` is read once, at first use. A `using` block is kept in a context variable, so other threads and
tasks do not see it.
"""

from __future__ import annotations

import contextvars
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy

from . import cupy_probe
from .block import Block, assigned
from .memory import result

NAMES = ("numpy", "cupy")
VARIABLE = "CNNLAYERS_BACKEND"


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot be used here; the message says why and what mends it."""


@dataclass(frozen=True)
class Backend:
    """Where arrays live. `name`: "numpy", "cupy" or another array-API library's; `xp`: its namespace; `device`: the
    library's own device object."""

    name: str
    xp: Any
    device: Any

    # CuPy's creation functions take no device: its arrays are made on the current one, which `on_device_of` sets.
    @property
    def _place(self) -> dict[str, Any]:
        return {} if self.name in NAMES else {"device": self.device}

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new array of this backend and device, with no particular content."""
        return result(shape, dtype) if self.name == "numpy" else self.xp.empty(shape, dtype=dtype, **self._place)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new array of zeros on this backend and device."""
        return self.xp.zeros(shape, dtype=dtype, **self._place)

    def full(self, shape: tuple[int, ...], value: Any, dtype: Any) -> Any:
        """A new array that holds `value` everywhere."""
        return self.xp.full(shape, value, dtype=dtype, **self._place)

    def arange(self, stop: int) -> Any:
        """The int64 numbers 0, 1, …, stop - 1."""
        return self.xp.arange(stop, dtype=self.xp.int64, **self._place)

    def array(self, values: Any, dtype: Any) -> Any:
        """A new array from host numbers (a NumPy array, a sequence or a number)."""
        return self.xp.asarray(values, dtype=dtype, **self._place)


_process: list[Backend] = []  # the last one counts
_block: contextvars.ContextVar[Backend | None] = contextvars.ContextVar("cnnlayers_backend", default=None)


def _module(name: str) -> ModuleType:
    if name == "numpy":
        return numpy
    reason = cupy_probe.reason()
    if reason is not None:
        raise BackendUnavailable(f"backend 'cupy' cannot be used: {reason}")
    return cupy_probe.module()


def _resolve(name: str, name_in_errors: str) -> Backend:
    if not isinstance(name, str):
        raise TypeError(f"{name_in_errors} must be a str, got {type(name).__name__}")
    if name not in (*NAMES, "auto"):
        raise ValueError(f"{name_in_errors} must be one of auto, {', '.join(NAMES)}; got {name!r}")
    if name == "auto":
        name = "numpy" if cupy_probe.reason() else "cupy"
    xp = _module(name)
    return Backend(name, xp, "cpu" if name == "numpy" else xp.cuda.Device())


def current() -> Backend:
    """The selected backend: the innermost `using` block's, else the process's (`use`, or `CNNLAYERS_BACKEND`).

    Returns
    -------
    backend : Backend
        Where new arrays are made: `.name`, `.xp` and `.device`.

    Raises
    ------
    ValueError
        The variable has an unknown name.
    BackendUnavailable
        CuPy is asked for and cannot be used; the message says why and what mends it.

    Examples
    --------
    >>> from cnnlayers import backends
    >>> with backends.using("numpy"):
    ...     backends.current().name
    'numpy'
    """
    chosen = _block.get()
    if chosen is None:
        if not _process:  # first of all: another thread's `use` that comes meanwhile counts more
            _process.insert(0, _resolve(os.environ.get(VARIABLE) or "auto", VARIABLE))
        chosen = _process[-1]
    return chosen


def use(name: str) -> Backend:
    """Select a backend for the process.

    Parameters
    ----------
    name : {"numpy", "cupy", "auto"}
        "auto": CuPy where a usable GPU answers, else NumPy.

    Raises
    ------
    ValueError
        An unknown name.
    BackendUnavailable
        CuPy is asked for and cannot be used; the message says why and what mends it.
    """
    backend = _resolve(name, "the backend's name")
    _process[:] = [backend]
    return backend


def using(name: str) -> Block[Backend]:
    """Select a backend for a `with` block, in this thread or async task only.

    Parameters
    ----------
    name : {"numpy", "cupy", "auto"}
        "auto": CuPy where a usable GPU answers, else NumPy.

    Returns
    -------
    block : context manager
        `with backends.using("cupy") as b:` gives the Backend.

    Raises
    ------
    ValueError
        An unknown name, when the block begins.
    BackendUnavailable
        CuPy is asked for and cannot be used; the message says why and what mends it.

    Examples
    --------
    >>> from cnnlayers import backends
    >>> with backends.using("numpy") as b:
    ...     b.zeros((2,), b.xp.float32)
    array([0., 0.], dtype=float32)
    """
    return assigned(_block, lambda: _resolve(name, "the backend's name"))


def available() -> dict[str, str | None]:
    """The backends that can be used here. It never raises, never hangs and prints nothing.

    Returns
    -------
    reasons : dict
        For "numpy" and "cupy" None, or the reason it cannot be used.

    Examples
    --------
    >>> from cnnlayers import backends
    >>> backends.available()["numpy"] is None
    True
    """
    return {"numpy": None, "cupy": cupy_probe.reason()}
