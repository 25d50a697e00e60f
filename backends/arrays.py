"""Arrays: which backend owns them, and how they are transferred to another.

An array's owner is read from its type, without importing anything.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy

from .selection import Backend, current

P = ParamSpec("P")
R = TypeVar("R")

# Every call asks for these, and small calls are as quick as what they ask.
_NUMPY = Backend("numpy", numpy, "cpu")
_NOTHING = contextlib.nullcontext()
_ARRAYS = {numpy.ndarray, type(None)}
PLAIN = frozenset({numpy.ndarray, int, float, bool, str, tuple, type(None)})  # types that `plain` leaves as they are


# The context variable in which NumPy keeps its error state, and what `seterr` sets it to: an eighth of seterr's time.
_ALONE = contextvars.Context()
_ALONE.run(numpy.seterr, all="ignore")
((_ERROR_STATE, _IGNORE),) = _ALONE.items()


def ignoring(function: Callable[..., R], args: Any, options: Any) -> R:
    """Call a function in a context in which NumPy from now on neither warns nor raises; `quiet` makes that context."""
    _ERROR_STATE.set(_IGNORE)
    return function(*args, **options)


def quiet(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: inside the function NumPy neither warns nor raises, whatever values it meets.

    NumPy's error state is a context variable. The function runs in a copy of the context, so the caller's state does
    not change, not even where an exception (Ctrl-C, say) arrives between two bytecodes.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        return contextvars.copy_context().run(ignoring, function, args, options)

    return run


def _root(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def _swapped(dtype: numpy.dtype) -> bool:
    """Whether numbers of this dtype have the bytes in the order of other machines (">f4" on most of today's)."""
    return not dtype.isnative and dtype.kind in "iufc"


def native(array: numpy.ndarray) -> numpy.ndarray:
    """A NumPy array in this machine's byte order: itself where it is, else a copy."""
    return array.astype(array.dtype.newbyteorder("=")) if _swapped(array.dtype) else array


def _owner(array: Any, name: str = "x") -> Backend:
    if type(array) is numpy.ndarray and array.dtype.isnative:
        return _NUMPY
    if isinstance(array, numpy.ma.MaskedArray | numpy.matrix):
        raise TypeError(
            f"{name} is a {type(array).__name__}, whose mask or shape rules would be lost: pass numpy.asarray of it"
        )
    if isinstance(array, numpy.ndarray | numpy.generic):
        if _swapped(array.dtype):
            variable = name if name.isidentifier() else "a"
            raise TypeError(
                f"{name} has dtype {array.dtype.str}, whose byte order is not this machine's: pass"
                f' {variable}.astype({variable}.dtype.newbyteorder("=")), or cnnlayers.backends.asarray of it'
            )
        return _NUMPY
    if _root(array) == "cupy" and hasattr(array, "dtype"):
        return _on_cupy(sys.modules["cupy"], array.device)
    if hasattr(array, "__array_namespace__") and _root(array) not in JAX:
        xp = array.__array_namespace__()
        return Backend(getattr(xp, "__name__", _root(array)).partition(".")[0], xp, array.device)
    raise TypeError(f"{name} must be an array of NumPy, CuPy or another array-API library, {_not_taken(array)}")


_CUPY: dict[tuple[Any, int], Backend] = {}  # by CuPy's module and the device's number: CuPy's devices are not hashable


def _on_cupy(cupy: Any, device: Any) -> Backend:
    key = cupy, device.id
    if key not in _CUPY:
        _CUPY[key] = Backend("cupy", cupy, device)
    return _CUPY[key]


JAX = ("jax", "jaxlib")  # its arrays answer __array_namespace__, but cannot be written to


def _not_taken(value: Any) -> str:
    """What `value` is, and how it becomes an array that the library takes."""
    kind, module = type(value).__qualname__, type(value).__module__
    if module == "cnnlayers.autograd.tensor":
        return "got an autograd Tensor: pass its .data, or call the ops of cnnlayers.autograd.functional on it"
    if _root(value) in JAX:
        return "got a JAX array, which cannot be written to: pass cnnlayers.backends.asarray of it"
    if _root(value) == "torch":
        return (
            f"got {module}.{kind}: cnnlayers.torch.functional has the ops on PyTorch's tensors, and"
            " cnnlayers.backends.asarray makes an array of one"
        )
    return f"got {module}.{kind}: cnnlayers.backends.asarray makes one"


def of(*arrays: Any, name: str = "x") -> Backend:
    """The backend that owns these arrays.

    Parameters
    ----------
    *arrays : array or None
        NumPy's, CuPy's or another array-API library's (they answer `__array_namespace__`), which give a backend with
        that namespace. None is passed over.
    name : str
        What an error calls a single one.

    Returns
    -------
    backend : Backend

    Raises
    ------
    TypeError
        Arrays of several owners or devices (each is named), something that is no array, or no array at all.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import backends
    >>> backends.of(np.zeros(3)).name
    'numpy'
    """
    if len(arrays) == 1 and arrays[0] is not None:
        return _owner(arrays[0], name)
    owners = [_owner(a, f"argument {i}") for i, a in enumerate(arrays, 1) if a is not None]
    if not owners:
        raise TypeError(f"{name} must be an array, got None" if arrays else "backends.of needs at least one array")
    if any(o != owners[0] for o in owners[1:]):
        text = ", ".join(f"{o.name} on {o.device}" for o in owners)
        raise TypeError(
            f"the arrays have different owners ({text}): bring them together with backends.asarray or to_numpy"
        )
    return owners[0]


def all_numpy(arrays: Iterable[Any]) -> bool:
    """Whether these are plain NumPy arrays, or None."""
    return _ARRAYS.issuperset(map(type, arrays))


def share_memory(first: Any, second: Any) -> bool:
    """Whether two arrays are one, or NumPy arrays that have an element in common."""
    both = isinstance(first, numpy.ndarray) and isinstance(second, numpy.ndarray)
    return first is second or (both and numpy.may_share_memory(first, second) and numpy.shares_memory(first, second))


def owner_key(arrays: Sequence[Any]) -> tuple[Any, ...] | None:
    """A hashable key of the libraries and devices that own the arrays: () for NumPy's, the devices for CuPy's. Entries
    that are None are left out. The result is None where an array is of another library."""
    if all_numpy(arrays):
        return ()
    cupy: Any = sys.modules.get("cupy")
    if cupy is None or not {cupy.ndarray, type(None)}.issuperset(map(type, arrays)):
        return None
    return (cupy, *(a.device.id for a in arrays if a is not None))


def plain(array: Any) -> Any:
    """A view of type `numpy.ndarray` of an array of one of NumPy's subclasses (`numpy.memmap`, say); anything else as
    it is. A masked array or a matrix, whose rules would be lost, is not changed either: `of` refuses it."""
    if type(array) is numpy.ndarray or not isinstance(array, numpy.ndarray):
        return array
    return array if isinstance(array, numpy.ma.MaskedArray | numpy.matrix) else numpy.asarray(array)


def on_device_of(array: Any) -> contextlib.AbstractContextManager[Any]:
    """A block in which CuPy works on `array`'s device; nothing to do for any other array."""
    if type(array) is not numpy.ndarray and _root(array) == "cupy" and hasattr(array, "device"):
        device: contextlib.AbstractContextManager[Any] = array.device
        return _NOTHING if sys.modules["cupy"].cuda.runtime.getDevice() == array.device.id else device
    return _NOTHING


def _plain(tensor: Any) -> Any:
    """A tensor whose memory is its values: PyTorch exports none that requires gradient, and of one that is negated or
    conjugated by a mark alone (`z.conj().imag`) what lies in memory."""
    return tensor.detach().resolve_conj().resolve_neg()


def _from_torch_bfloat16(tensor: Any) -> numpy.ndarray:
    try:
        import ml_dtypes  # NumPy's only bfloat16
    except ImportError:
        raise TypeError(
            "NumPy has no bfloat16 of its own: pass tensor.float(), or install ml_dtypes (cnnlayers[torch] does)"
        ) from None
    bits: numpy.ndarray = tensor.view(sys.modules["torch"].int16).numpy()
    return bits.view(ml_dtypes.bfloat16)


def to_numpy(a: Any) -> numpy.ndarray:
    """An array as NumPy's: itself where it is one, a view where DLPack or the buffer protocol allow, else a copy.

    Parameters
    ----------
    a : array, buffer, sequence or number
        Of any library that offers DLPack or `__array__`.

    Returns
    -------
    array : numpy.ndarray

    Raises
    ------
    TypeError
        It is not made of numbers.
    ValueError
        A ragged sequence.

    Examples
    --------
    >>> from cnnlayers import backends
    >>> backends.to_numpy([1.0, 2.0])
    array([1., 2.])
    """
    if isinstance(a, numpy.ma.MaskedArray):
        raise TypeError("a masked array's mask would be lost: pass its .filled(value) or its .data")
    if _root(a) == "cupy" and hasattr(a, "get"):
        host: numpy.ndarray = a.get()
        return host
    if _root(a) == "torch" and hasattr(a, "detach"):
        a = _plain(a).cpu()
        if str(a.dtype) == "torch.bfloat16":
            return _from_torch_bfloat16(a)
    if isinstance(a, bytes):  # as any other buffer; numpy.asarray would take it for text
        return numpy.frombuffer(a, numpy.uint8)
    if hasattr(a, "__dlpack__") and not isinstance(a, numpy.ndarray | numpy.generic):
        # Some exporters refuse a dtype that their __array__ then hands over; a real fault shows in numpy.asarray.
        with contextlib.suppress(BufferError, RuntimeError, TypeError, ValueError):
            return numpy.from_dlpack(a)
    host = numpy.asarray(a)
    if host.dtype.kind not in "biufcV" or (host.dtype.kind == "V" and host.dtype.name != "bfloat16"):
        raise TypeError(f"{type(a).__name__} does not hold numbers: as an array its dtype is {host.dtype}")
    return host


def asarray(a: Any, dtype: Any = None) -> Any:
    """An array as one of the selected backend, on its device and in this machine's byte order.

    Nothing is copied where it is there already.

    Parameters
    ----------
    a : array, buffer, sequence or number
        What `to_numpy` takes.
    dtype : dtype or None
        The dtype to convert to; None keeps a's.

    Returns
    -------
    array : array
        Of the selected backend.

    Raises
    ------
    TypeError
        It is not made of numbers.

    Examples
    --------
    >>> from cnnlayers import backends
    >>> with backends.using("numpy"):
    ...     backends.asarray([1, 2], "float32")
    array([1., 2.], dtype=float32)
    """
    b = current()
    if b.name == "cupy":
        with b.device:
            if _root(a) == "torch" and hasattr(a, "detach"):
                a = _plain(a)
            if _root(a) == "cupy" or (hasattr(a, "__dlpack__") and _on_gpu(a)):
                array = b.xp.asarray(a) if _root(a) == "cupy" else b.xp.from_dlpack(a)
            else:
                array = b.xp.asarray(native(to_numpy(a)))
            return array if dtype is None else b.xp.asarray(array, dtype=dtype)
    host = native(to_numpy(a))
    return host if dtype is None else numpy.asarray(host, dtype=dtype)


def _on_gpu(a: Any) -> bool:
    kind, _ = a.__dlpack_device__()
    return int(kind) in (2, 13)  # kDLCUDA, kDLCUDAManaged


def packed(b: Backend, mask: Any) -> Any:
    """Bools as they are saved for backward: on NumPy one bit an element, in uint8 with the first in the lowest bit."""
    return numpy.packbits(mask, bitorder="little") if b.name == "numpy" else mask


def unpacked(b: Backend, mask: Any, shape: tuple[int, ...]) -> Any:
    """The bools of a mask that was saved, packed or not."""
    if b.name != "numpy" or mask.dtype == bool:
        return mask
    count = int(numpy.prod(shape, dtype=numpy.int64))
    return numpy.unpackbits(mask, count=count, bitorder="little").view(bool).reshape(shape)
