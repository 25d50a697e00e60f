"""Sums over all axes but the channels, in float64: the gradient of a convolution's bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .jit import kernel
from .parallel import chunked, flat, launcher
from .vectors import LANES, add, broadcast, load, load_first, to_float64, total

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones, so the compiler can vectorise
CACHE_LINE_CHANNELS = 16  # channels last, which several threads should not write to


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return None if arrays[0].dtype in (np.float32, np.float64) else f"{step} is compiled for float32 and float64"


@launcher
def channel_sums(spec: Any, array: Array) -> Callable[[Array], Array]:
    """The sums of an image or of maps."""
    channels = array.shape[-1] if spec.last else array.shape[1]
    samples, cells = array.shape[0], math.prod(array.shape[1:]) // max(1, channels)
    run = _sums_channels_last if spec.last else _sums_channels_first
    in_chunks = chunked(channels, array.nbytes, least=CACHE_LINE_CHANNELS if spec.last else 1)

    def compute(array: Array) -> Array:
        sums = np.zeros(channels)
        in_chunks(run, flat(array), sums, samples, cells)
        return sums

    return compute


@kernel(allocates=False)
def _sums_channels_first(values: Array, sums: Array, samples: int, cells: int, start: int, stop: int) -> None:
    """Sums of channels `start` to `stop` of (samples, channels, cells)."""
    whole = cells - cells % LANES
    for n in range(samples):
        for c in range(start, stop):
            at, lanes = (n * len(sums) + c) * cells, broadcast(sums, 0)
            for i in range(U(at), U(at + whole), U(LANES)):
                lanes = add(lanes, to_float64(load(values, i)))
            sums[c] += total(add(lanes, to_float64(load_first(values, at + whole, cells - whole))))


@kernel(allocates=False)
def _sums_channels_last(values: Array, sums: Array, samples: int, cells: int, start: int, stop: int) -> None:
    """Sums of channels `start` to `stop` of (samples, cells, channels)."""
    for row in range(samples * cells):
        at = U(row * len(sums))
        for c in range(start, stop):
            sums[U(c)] += values[at + U(c)]
