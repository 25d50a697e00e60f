"""A stand-in for CuPy on machines without a GPU: its arrays are NumPy's behind a wall.

It catches what would go wrong on the real one and nothing else would show here: a NumPy array that slips into a call
(CuPy raises the same TypeError), an implicit transfer to the host, a keyword that CuPy's functions lack, an uninitialised
array taken for zeros. It proves nothing about speed, streams or kernels.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Array-API names that CuPy 14's root does not have, and keywords that its functions do not take.
ABSENT = {"vecdot", "unstack", "__array_namespace_info__", "__array_api_version__"}
NO_DEVICE = {"empty", "zeros", "ones", "full", "asarray", "arange", "empty_like", "zeros_like", "ones_like", "full_like"}
NO_KEYWORDS = {"argsort": {"stable", "descending"}, "sort": {"stable", "descending"}, "astype": {"device"}}


class Device:
    """Device 0, which may be entered as a context."""

    id = 0

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return 0

    def __str__(self) -> str:
        return "<CUDA Device 0>"


def _wrap(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    return tuple(map(_wrap, value)) if isinstance(value, tuple) else value


def _unwrap(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}")  # as CuPy says it
    return type(value)(map(_unwrap, value)) if isinstance(value, list | tuple) else value


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _wrap(function(*map(_unwrap, args), **{k: _unwrap(v) for k, v in kwargs.items()}))


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # the name is CuPy's
    """An array "on the device": wraps a NumPy array, and is not one."""

    __slots__ = ("_a",)

    def __init__(self, a: np.ndarray) -> None:
        self._a = a

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        return _call(getattr(ufunc, method), *args, **kwargs)

    def __array_function__(self, function: Any, kinds: Any, args: Any, kwargs: Any) -> Any:
        return _call(function, *args, **kwargs)

    @property
    def device(self) -> Device:
        return Device()

    def get(self) -> np.ndarray:
        return self._a.copy()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._a, name)
        return functools.partial(_call, value) if callable(value) else _wrap(value)

    def __getitem__(self, index: Any) -> Any:
        return _wrap(self._a[_unwrap(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._a[_unwrap(index)] = _unwrap(value)

    def __repr__(self) -> str:
        return repr(self._a)

    def __str__(self) -> str:
        return str(self._a)

    def __len__(self) -> int:
        return len(self._a)

    def __bool__(self) -> bool:
        return bool(self._a)

    def __int__(self) -> int:
        return int(self._a)

    def __float__(self) -> float:
        return float(self._a)

    def __index__(self) -> int:
        return self._a.__index__()


ndarray.__module__ = "cupy"


def _poisoned(shape: Any, dtype: Any = float) -> ndarray:
    """What `empty` gives: loud garbage."""
    a = np.empty(shape, dtype)
    a.view(np.uint8).reshape(-1)[...] = 0xFF if a.size else 0
    return ndarray(a)


def _asarray(a: Any, dtype: Any = None, *, copy: bool | None = None) -> ndarray:
    if isinstance(a, ndarray):
        a = a._a
        return ndarray(np.array(a, dtype=dtype, copy=copy))
    return ndarray(np.array(a, dtype=dtype))  # a transfer always copies


def _attribute(name: str) -> Any:
    if name in ABSENT or name.startswith("__"):
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    value = getattr(np, name)
    if isinstance(value, type) or not callable(value):
        return value

    def function(*args: Any, **kwargs: Any) -> Any:
        refused = NO_KEYWORDS.get(name, set()) | ({"device"} if name in NO_DEVICE else set())
        for keyword in refused & set(kwargs):
            raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}")
        return _call(value, *args, **kwargs)

    return function


def module() -> types.ModuleType:
    """The module to put into `sys.modules` as cupy."""
    cupy = types.ModuleType("cupy")
    cupy.__getattr__ = _attribute  # type: ignore[method-assign]
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1)
    members = {
        "ndarray": ndarray,
        "__version__": "14.0.0+standin",
        "empty": _poisoned,
        "asarray": _asarray,
        "array": _asarray,
        "asnumpy": lambda a: a.get(),
        "from_dlpack": _asarray,
        "random": types.SimpleNamespace(default_rng=_Generator, Generator=_Generator),
        "cuda": types.SimpleNamespace(
            Device=Device, runtime=runtime, nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0))
        ),
    }
    for name, value in members.items():
        setattr(cupy, name, value)
    return cupy


class _Generator:
    """As much of cupy.random.Generator as an op draws from."""

    def __init__(self, seed: Any = None) -> None:
        self._rng = np.random.default_rng(seed)

    def random(self, size: Any = None, dtype: Any = np.float64) -> ndarray:
        return ndarray(np.asarray(self._rng.random(size, dtype)))


_Generator.__module__ = "cupy.random"


@contextlib.contextmanager
def installed() -> Iterator[types.ModuleType]:
    """`import cupy` gives the stand-in inside the block, and the library finds it usable."""
    import sys

    from cnnlayers.backends import cupy_probe

    before = sys.modules.get("cupy")
    sys.modules["cupy"] = cupy = module()
    cupy_probe.forget()
    try:
        yield cupy
    finally:
        cupy_probe.forget()
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
