"""Checks of what is loaded into a layer: the names of a state, and the value for one array. And the
messages for what a layer of one's own lacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy

from cnnlayers import backends
from cnnlayers.functional.arrays import Array


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """The prefixes, ending in a dot, that all names have, the longest last."""
    found = [""]
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        found.append(f"{found[-1]}{parts[0]}.")
    return found[1:]


def check_prefix(layer: str, own: Iterable[str], names: Iterable[str]) -> None:
    """ValueError where the names are a layer's own but for a prefix, which all of the one or all of the other have."""
    if set(names) & set(own):
        return
    for prefix in _common_prefixes(names):
        if {name.removeprefix(prefix) for name in names} & set(own):
            raise ValueError(
                f"the state does not fit this {layer}: each of its names begins with {prefix!r}, as wrappers around a"
                f" network put it there (DataParallel's 'module.', torch.compile's '_orig_mod.'): load"
                f" {{name.removeprefix({prefix!r}): a for name, a in state.items()}}"
            )
    for prefix in _common_prefixes(own):
        if {prefix + name for name in names} & set(own):
            raise ValueError(
                f"the state does not fit this {layer}: each of its names lacks {prefix!r}, with which all names of this"
                f" {layer} begin: load {{{prefix!r} + name: a for name, a in state.items()}}"
            )


def checked_value(name: str, array: Array, value: Any, complex_too: bool = False) -> Array:
    """`value` as an array of `array`'s backend and dtype. `complex_too`: complex where the value is, in array's
    precision. ValueError for a shape, or a value that the dtype cannot hold; TypeError for no real numbers, or complex
    ones where the array is real."""
    b = backends.of(array)
    if isinstance(value, numpy.ndarray):
        value = backends.native(value)
    if type(value) is not type(array):
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":
            value = value.float()  # exact; NumPy has no such dtype
        try:
            value = backends.to_numpy(value)
        except TypeError as error:
            raise TypeError(f"{name} must hold real numbers: {error}") from error
        except ValueError as error:  # a ragged sequence
            raise ValueError(f"{name} must have shape {tuple(array.shape)}: {error}") from error
    if tuple(value.shape) != tuple(array.shape):
        raise ValueError(f"{name} must have shape {tuple(array.shape)}, got {tuple(value.shape)}")
    kind = backends.dtype_name(backends.of(value), value)
    dtype, own = array.dtype, backends.dtype_name(b, array)
    if kind in backends.COMPLEX and (complex_too or own in backends.COMPLEX):
        if own not in backends.COMPLEX:
            dtype = b.xp.complex128 if own == "float64" else b.xp.complex64
    elif kind not in (*backends.FLOATS, *backends.INTEGERS):
        raise TypeError(f"{name} must hold real numbers, got {kind}")
    with numpy.errstate(over="ignore", invalid="ignore"):
        stored = b.xp.astype(value, dtype) if type(value) is type(array) else b.array(value, dtype)
    _check_stored(name, value, stored, own)
    return stored


def _check_stored(name: str, value: Array, stored: Array, dtype: str) -> None:
    """ValueError where finite values became infinite in `dtype`, or where a count is none."""
    if dtype in backends.INTEGERS:
        if not bool(((stored == value) & (value >= 0)).all()):
            raise ValueError(f"{name} must be a whole number from 0 on, got {value}")
    elif value.dtype.itemsize > stored.dtype.itemsize:
        xp = backends.of(stored).xp
        lost = xp.isinf(stored) & backends.of(stored).array(backends.of(value).xp.isfinite(value), xp.bool)
        if bool(xp.any(lost)):
            raise ValueError(f"{name} has values beyond the range of {dtype}, in which this layer keeps it")


class MissingAttributeErrors:
    """The AttributeError of an attribute that a layer does not have says what its class may lack."""

    if not TYPE_CHECKING:  # a type checker knows which attributes there are

        def __getattr__(self, name: str) -> Any:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if "own_params" not in vars(self):
                text += ": its __init__ must call super().__init__() before anything else"
            elif name.startswith("_op_"):
                text += ": its class needs compute_forward and compute_backward, or an op: class ...(Layer, op=...)"
            raise AttributeError(text)


def checked_pair(layer: Any, result: Any) -> tuple[Any, Any]:
    """What `compute_forward` gave, if it is `(y, ctx)`. TypeError otherwise: an array of two rows is a pair, too."""
    if not isinstance(result, tuple) or len(result) != 2 or result[1] is None:
        got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        got = "None for ctx" if isinstance(result, tuple) and len(result) == 2 else got
        raise TypeError(
            f"{type(layer).__name__}.compute_forward must give (y, ctx), where ctx is what compute_backward needs, and"
            f" True where that is nothing; got {got}"
        )
    return result
