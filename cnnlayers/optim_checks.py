"""Checks of what an optimiser is given: numbers, mappings, and parameters by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.autograd import Tensor
from cnnlayers.functional.arrays import Array
from cnnlayers.specs.arguments import real


def number(value: Any, name: str, least: float, below: float = math.inf) -> float:
    number = real(value, name)
    if not least <= number < below:
        bound = f"at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
        raise ValueError(f"{name} must be {bound}, got {number:g}")
    return number


def check_mapping(value: Any, name: str, source: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a mapping of names to arrays, as {source} gives it, got {type(value).__name__}"
        )


def real_numbers(name: str, value: Any) -> numpy.ndarray:
    """`value` as an array on the host. TypeError where it is not made of real numbers."""
    try:
        host = backends.to_numpy(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers: {error}") from error
    if host.dtype.kind not in "iuf" and host.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be an array of real numbers, got {host.dtype}")
    return host


def by_name(params: Any) -> Mapping[str, Array | Tensor]:
    """`params` by name. Tensors may come one after another: then their names are "0", "1" and so on."""
    if isinstance(params, Tensor) or (isinstance(params, Iterable) and not hasattr(params, "keys")):
        given = [params] if isinstance(params, Tensor) else list(params) if not hasattr(params, "dtype") else [None]
        if all(isinstance(p, Tensor) for p in given):
            return {str(i): p for i, p in enumerate(given)}
    check_mapping(params, "params", "layer.params")
    mapping: Mapping[str, Array | Tensor] = params
    return mapping
