"""Checks of an op's arrays: their owner, dtypes and shapes. Numbers and sizes are checked in specs/arguments.py."""

from __future__ import annotations

from cnnlayers import backends
from cnnlayers.backends import Backend

from .arrays import Array, is_complex


def common_backend(**arrays: Array | None) -> Backend:
    """The backend of the named arrays, None entries passed over; the TypeError for mixed owners names the arguments."""
    given = {name: a for name, a in arrays.items() if a is not None}
    if not given:
        raise TypeError(f"{next(iter(arrays))} must be an array, got None")
    found = {name: backends.of(a, name=name) for name, a in given.items()}
    first = next(iter(found.values()))
    if any(b is not first and b != first for b in found.values()):
        text = ", ".join(f"{name} is {b.name} on {b.device}" for name, b in found.items())
        raise TypeError(f"arrays of one call must have one owner: {text}; see cnnlayers.backends.asarray and to_numpy")
    return first


def check_floating(b: Backend, array: Array, name: str) -> Array:
    """`array`, if it has a floating dtype that the library computes in. TypeError otherwise, and for None."""
    if array is None:
        raise TypeError(f"{name} must be an array, got None")
    if backends.dtype_name(b, array) not in backends.FLOATS:
        got = backends.dtype_name(b, array)
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {got}{_only_linear(got)}")
    return array


def _only_linear(dtype: str) -> str:
    linear = "pad, avg_pool, sum_pool, adaptive_avg_pool, conv, conv_transpose and linear"
    return f": of all ops, only {linear} take complex arrays" if dtype in backends.COMPLEX else ""


def check_linear(b: Backend, array: Array, name: str) -> Array:
    """`array`, if it has a floating or complex dtype, as linear ops take it. TypeError otherwise, and for None."""
    if array is not None and is_complex(b, array.dtype):
        return array
    return check_floating(b, array, name)


def check_weighted(b: Backend, x: Array, **parameters: Array | None) -> None:
    """TypeError unless x and the parameters that are given are floating or complex, and real where x is real."""
    check_linear(b, x, "x")
    for name, array in parameters.items():
        if array is not None and is_complex(b, array.dtype) and not is_complex(b, x.dtype):
            raise TypeError(
                f"{name} must be real for an x of {x.dtype}, as y has x's dtype, got {array.dtype}: make x complex, or"
                f" pass {name}.real"
            )
        if array is not None or name == "weight":
            check_linear(b, array, name)


def check_numeric(b: Backend, array: Array, name: str) -> Array:
    """`array`, if it has a floating, integer or bool dtype. TypeError otherwise."""
    got = backends.dtype_name(b, array)
    if got not in (*backends.FLOATS, *backends.INTEGERS, "bool"):
        raise TypeError(f"{name} must be floating, integer or bool, got {got}{_only_linear(got)}")
    return array


def check_parameter(b: Backend, array: Array | None, name: str, shape: tuple[int, ...]) -> Array | None:
    """A floating parameter of exactly this shape, or None. TypeError or ValueError otherwise."""
    return None if array is None else check_shape(check_floating(b, array, name), name, shape)


def check_shape(array: Array | None, name: str, shape: tuple[int, ...]) -> Array | None:
    """An array of exactly this shape, or None. ValueError otherwise."""
    if array is not None and tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(array.shape)}")
    return array
