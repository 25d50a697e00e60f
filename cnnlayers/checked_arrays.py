"""Arrays and names for `cnnlayers.testing`: float64 copies on the host and back, a gradient's form, names of functions.

A complex array is, on the host, a real one with one more axis of length 2: real and imaginary part.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy

from cnnlayers import backends

Array = Any
Host = Any  # a NumPy array


class GradientError(AssertionError):
    """A gradient that differs from differences of its function, or a trio's broken promise; the message says which."""


def check_form(title: str, name: str, array: Array | None, gradient: Array | None) -> None:
    """A gradient is None where nothing was given, else an array like its argument. GradientError otherwise."""
    if array is None or gradient is None:
        if array is not gradient:
            text = (
                "was not given: its gradient must be None" if array is None else "was given, but its gradient is None"
            )
            raise GradientError(f"{title}: {name} {text}")
    elif not is_array(gradient) or backends.of(gradient) != backends.of(array):
        raise GradientError(
            f"{title}: the gradient of {name} is of another kind than {name}: {type(gradient).__name__}"
        )
    elif tuple(gradient.shape) != tuple(array.shape) or gradient.dtype != array.dtype:
        raise GradientError(
            f"{title}: the gradient of {name} has shape {tuple(gradient.shape)} and dtype {gradient.dtype}, {name} has"
            f" {tuple(array.shape)} and {array.dtype}"
        )


def names_of(trio: tuple[Any, ...]) -> tuple[str, str, str]:
    """What the functions of a trio are called. Functions without a name (lambdas) are named after one that has one,
    else "op"."""
    own = [name_of(function) for function in trio]
    known = (n.removesuffix(end) for n, end in zip(own, ("", "_forward", "_backward"), strict=True) if n.isidentifier())
    base = next(known, "op")
    return base, own[1] if own[1].isidentifier() else f"{base}_forward", f"{base}_backward"


def name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def first_of(result: Any) -> Any:
    """y, of an op that gives y alone or (y, indices)."""
    return result[0] if isinstance(result, tuple) else result


def as_list(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]


def is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, numpy.generic)


def is_differentiable(value: Any) -> bool:
    """Whether a value is a floating or complex array."""
    if not is_array(value):
        return False
    b = backends.of(value)
    return backends.dtype_name(b, value) in (*backends.FLOATS, *backends.COMPLEX)


def _is_complex(value: Any) -> bool:
    return backends.dtype_name(backends.of(value), value) in backends.COMPLEX


def as_float64(array: Array) -> Host:
    """A copy on the host, in C order."""
    host = backends.to_numpy(array)
    if host.dtype.kind == "c":
        return numpy.array(host, dtype=numpy.complex128, order="C")[..., None].view(numpy.float64)
    return numpy.array(host, dtype=numpy.float64, order="C")


def bits_of(array: Array) -> bytes:
    host: bytes = backends.to_numpy(array).tobytes()
    return host


def copy_of(value: Any, like: Any) -> Any:
    """`value` for one call: a copy on `like`'s backend, float64 if floating, complex128 if complex; a generator's twin;
    else the value."""
    if not is_array(like):
        return copy.deepcopy(value) if isinstance(value, numpy.random.Generator) else value
    b, host = backends.of(like), numpy.array(backends.to_numpy(value))
    if not is_differentiable(like):
        return b.array(host, like.dtype)
    if not _is_complex(like):
        return b.array(host, b.xp.float64)
    if host.ndim > like.ndim:  # from `as_float64`
        host = numpy.ascontiguousarray(host).view(numpy.complex128)[..., 0]
    return b.array(host, b.xp.complex128)
