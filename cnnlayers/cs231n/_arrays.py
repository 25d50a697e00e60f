"""The course's leniency, in one place: what callers may pass, and what reaches `cnnlayers.functional`.

Lists and numbers become arrays beside the call's other arrays (on the selected backend where there are none). Integers
become floating: the dtype of the call's floating arrays, float64 where there are none. Mixed floating dtypes are
promoted, as NumPy does. One value per channel may come as (C,) or as (1, C, 1, 1), and its gradient goes back in the
same shape. Nothing that was passed is written to, and no array changes its owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.functional.arrays import Array, cast
from cnnlayers.functional.call_plan import Context
from cnnlayers.functional.checks import common_backend


@dataclass(frozen=True, eq=False, repr=False)
class Cache:
    """What a forward hands its backward: opaque, and good for every variant of the op. `shapes`: its parameters'."""

    ctx: Context
    shapes: tuple[tuple[int, ...], ...] = ()

    def __repr__(self) -> str:
        return f"<cache of {self.ctx!r}>"

    def as_given(self, *gradients: Array) -> tuple[Array, ...]:
        """The parameters' gradients in the shapes that the parameters came in."""
        reshape = self.ctx.plan.backend.xp.reshape
        return tuple(reshape(g, shape) for g, shape in zip(gradients, self.shapes, strict=True))


def _is_host(value: Any) -> bool:
    """Whether `value` is made of plain numbers, which belong to no backend yet."""
    return isinstance(value, list | tuple | bool | int | float | numpy.generic)


def beside(b: Backend, value: Any, name: str) -> Array:
    """`value`, made an array of `b` where it is none. TypeError for what is not made of numbers."""
    if value is None:
        raise TypeError(f"{name} must be an array or made of real numbers, got None")
    if not _is_host(value):
        return value
    host = numpy.asarray(value)
    if host.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array or made of real numbers, got {type(value).__name__} of {host.dtype}")
    return b.array(host, host.dtype)


def _dtype(b: Backend, arrays: Mapping[str, Array]) -> Any:
    floats = []
    for name, array in arrays.items():
        kind = backends.dtype_name(b, array)
        if kind in backends.FLOATS:
            floats.append(array.dtype)
        elif kind not in (*backends.INTEGERS, "bool"):
            raise TypeError(f"{name} must be floating or integer, got {kind}")
    return b.xp.result_type(*floats) if floats else b.xp.float64


def together(**given: Any) -> tuple[Backend, list[Array]]:
    """The call's arrays on their one backend and in their common floating dtype, in the order given.

    Raises TypeError for mixed owners (naming each) and for what is not made of real numbers.
    """
    owned = {name: value for name, value in given.items() if value is not None and not _is_host(value)}
    b = common_backend(**owned) if owned else backends.current()
    arrays = {name: beside(b, value, name) for name, value in given.items()}
    dtype = _dtype(b, arrays)
    return b, [cast(b, array, dtype) for array in arrays.values()]


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of an array, a list or a number."""
    return tuple(numpy.shape(value) if _is_host(value) else value.shape)


def upstream(dout: Any, cache: Any) -> Array:
    """`dout` as a floating array of the cache's backend. TypeError unless `cache` is a forward's."""
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be the one that the forward returned, got {type(cache).__name__}")
    b = cache.ctx.plan.backend
    dout = beside(b, dout, "dout")
    found = common_backend(dout=dout)
    integers = backends.dtype_name(found, dout) in (*backends.INTEGERS, "bool")
    return cast(found, dout, cache.ctx.dtype) if integers else dout


def vector(b: Backend, value: Array, length: int, name: str) -> Array:
    """One value per channel as (length,), from that shape or one with more axes of length 1. ValueError otherwise."""
    if [n for n in value.shape if n != 1] != [length] * (length != 1):
        raise ValueError(f"{name} must have shape ({length},) or (1, {length}, 1, 1), got {tuple(value.shape)}")
    return b.xp.reshape(value, (length,))


def rank(array: Array, ndim: int, axes: str, name: str = "x") -> None:
    """ValueError unless `array` has the course's axes."""
    if array.ndim != ndim:
        raise ValueError(f"{name} must have shape {axes}, got {tuple(array.shape)}")


def option(param: Mapping[str, Any], key: str, owner_name: str) -> Any:
    """A required entry of one of the course's dictionaries. ValueError where it is missing."""
    if key not in param:
        raise ValueError(f"{owner_name} needs the key {key!r}, got {sorted(param)}")
    return param[key]


def is_training(param: Mapping[str, Any], owner_name: str) -> bool:
    """The dictionary's mode: True for "train", False for "test". ValueError for anything else, or none."""
    mode = option(param, "mode", owner_name)
    if not isinstance(mode, str) or mode not in ("train", "test"):
        raise ValueError(f"{owner_name}['mode'] must be 'train' or 'test', got {mode!r}")
    return mode == "train"
