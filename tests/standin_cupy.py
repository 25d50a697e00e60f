"""A stand-in for CuPy on machines without a GPU: its arrays are NumPy's behind a wall.

It catches what would go wrong on the real one and nothing else would show here: a NumPy array that slips into a call
(CuPy raises the same TypeError), an implicit transfer to the host, a keyword that CuPy's functions lack, an
uninitialised array taken for zeros, a bfloat16 that CuPy would widen. Raw kernels run on the CUDA emulator
(standin_kernels.py). It proves nothing about speed or streams.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import simt, standin_cublas, standin_cuda, standin_kernels
from .standin_cuda import Device, MemoryPointer, synchronises

# NumPy's names that CuPy 14's root and arrays do not have, and keywords that its functions do not take.
ABSENT = {
    *("vecdot", "unstack", "matvec", "vecmat", "block", "insert", "einsum_path", "geomspace", "frompyfunc", "spacing"),
    *("errstate", "seterr", "geterr", "nditer", "ndenumerate", "nested_iters", "nanpercentile", "nanquantile", "emath"),
    *("ma", "matrix", "asmatrix", "char", "strings", "rec", "void", "str_", "object_", "longdouble", "datetime64"),
}
ABSENT_IN_ARRAYS = {"ctypes", "getfield", "setfield", "setflags", "resize", "to_device"}
NO_DEVICE = {
    "empty",
    "zeros",
    "ones",
    "full",
    "asarray",
    "arange",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
}
NO_KEYWORDS = {"argsort": {"stable", "descending"}, "sort": {"stable", "descending"}, "astype": {"device"}}


# Elementwise functions that have no bfloat16 form in CuPy 14: the first that fits is float32's, and so is the result.
NO_BFLOAT16 = {"where", "clip", "round", "around"}


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

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(self._a)

    @property
    def flags(self) -> Flags:
        return Flags(self._a.flags)

    def get(self) -> np.ndarray:
        synchronises("get()")
        return self._a.copy()

    def item(self, *index: int) -> Any:
        return self.get().item(*index)

    def tolist(self) -> Any:
        return self.get().tolist()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ABSENT_IN_ARRAYS:
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
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return self.get().__index__()


ndarray.__module__ = "cupy"


class Flags:
    """CuPy's: there is no `writeable`."""

    def __init__(self, flags: Any) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata
        self.forc, self.fnc = flags.forc, flags.fnc


def _poisoned(shape: Any, dtype: Any = float) -> ndarray:
    """What `empty` gives: loud garbage."""
    a = np.empty(shape, dtype)
    a.reshape(-1).view(np.uint8)[...] = 0xFF
    return ndarray(a)


def _asarray(a: Any, dtype: Any = None, *, copy: bool | None = None) -> ndarray:
    if isinstance(a, ndarray):
        a = a._a
        return ndarray(np.array(a, dtype=dtype, copy=copy))
    synchronises("asarray() of host memory")
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
        if name in NO_BFLOAT16:
            args = tuple(a.astype(np.float32) if _is_bfloat16(a) else a for a in args)
        return _call(value, *args, **kwargs)

    return function


def _is_bfloat16(a: Any) -> bool:
    return isinstance(a, ndarray) and a.dtype.name == "bfloat16"


def module() -> types.ModuleType:
    """The module to put into `sys.modules` as cupy."""
    cupy = types.ModuleType("cupy")
    cupy.__getattr__ = _attribute  # type: ignore[method-assign]
    members = {
        "ndarray": ndarray,
        "__version__": "14.2.0+standin",
        "empty": _poisoned,
        "asarray": _asarray,
        "array": _asarray,
        "asnumpy": lambda a: a.get(),
        "from_dlpack": _asarray,
        "random": types.SimpleNamespace(default_rng=_Generator, Generator=_Generator),
        "RawKernel": standin_kernels.RawKernel,
        "RawModule": standin_kernels.RawModule,
        "cuda": _cuda(),
        "get_default_memory_pool": lambda: types.SimpleNamespace(free_all_blocks=lambda: None),
    }
    for name, value in members.items():
        setattr(cupy, name, value)
    return cupy


def _cuda() -> types.SimpleNamespace:
    """What `cupy.cuda` is."""
    return types.SimpleNamespace(
        Device=Device,
        Stream=standin_cuda.Stream,
        MemoryPointer=MemoryPointer,
        get_current_stream=standin_cuda.get_current_stream,
        Event=standin_cuda.Event,
        get_elapsed_time=standin_cuda.get_elapsed_time,
        is_available=lambda: True,
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: 1,
            getDevice=standin_cuda.current_device_id,
            getDeviceProperties=lambda device: {"name": b"Stand-in", "major": 9, "minor": 0},
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
            deviceSynchronize=lambda: synchronises("deviceSynchronize()"),
            CUDARuntimeError=standin_cuda.CUDARuntimeError,
        ),
        driver=types.SimpleNamespace(
            CUDADriverError=standin_cuda.CUDADriverError,
        ),
        cublas=standin_cublas.module(),
        device=types.SimpleNamespace(get_cublas_handle=lambda: 1),
        nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
        compiler=types.SimpleNamespace(CompileException=standin_kernels.CompileException),
    )


class _Generator:
    """As much of cupy.random.Generator as an op draws from."""

    def __init__(self, seed: Any = None) -> None:
        self._rng = np.random.default_rng(seed)

    def random(self, size: Any = None, dtype: Any = np.float64) -> ndarray:
        return ndarray(np.asarray(self._rng.random(size, dtype)))


_Generator.__module__ = "cupy.random"


@contextlib.contextmanager
def installed() -> Iterator[types.ModuleType]:
    """`import cupy` gives the stand-in in the block, and the library finds it usable. Without a C++ compiler there is
    no emulator, and array code runs in place of the kernels."""
    import sys

    from cnnlayers import kernels
    from cnnlayers.backends import cupy_probe

    before = sys.modules.get("cupy")
    sys.modules["cupy"] = cupy = module()
    standin_cuda.launches.clear()
    cupy_probe._answer.clear()
    try:
        with kernels.mode("off") if simt.unavailable() else contextlib.nullcontext():
            yield cupy
    finally:
        cupy_probe._answer.clear()
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
