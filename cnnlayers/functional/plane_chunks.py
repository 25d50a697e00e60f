"""Pooling's portable code on the CPU, a chunk of planes at a time, on the library's threads.

A pooling window has cells of one plane alone. So with NumPy a call on a large array is divided into several calls on
some planes each (channels last: on some samples): temporary arrays stay in a core's cache, and threads have work to
share. Where a chunk ends depends on the shape alone; its results are those of the whole, to the bit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

from cnnlayers.backends import Backend, run_chunks
from cnnlayers.specs.arguments import Layout
from cnnlayers.specs.windows import windows_of, with_layout

from .arrays import Array

R = TypeVar("R")
CHUNK = 1_600_000  # bytes of the largest array, about


def in_planes(portable: Callable[..., R]) -> Callable[..., R]:
    """A portable function of (b, spec, *arrays), cut into chunks of planes where that pays.

    The spec is a window or has one; arrays and results begin with the axes of samples and of channels or cells, tie
    bits after the axis of their bytes.
    """

    @functools.wraps(portable)
    def run(b: Backend, spec: Any, *arrays: Array) -> R:
        layout: Layout = windows_of(spec).layout
        if b.name != "numpy":
            return portable(b, spec, *arrays)
        merges = layout.channel == 1 and all(a.flags.c_contiguous for a in arrays)
        units = math.prod(layout.shape[:2]) if merges else layout.shape[0]
        number = min(units, max(a.nbytes for a in arrays) // CHUNK)
        if number < 2:
            return portable(b, spec, *arrays)
        edges = [units * i // number for i in range(number + 1)]
        arrays = tuple(_merged(a, layout) if merges else a for a in arrays)

        def part(index: int) -> Any:
            cut = slice(edges[index], edges[index + 1])
            taken = [a[_chunk_index(a, layout, cut)] for a in arrays]
            return portable(b, _spec_of_chunk(spec, layout, cut.stop - cut.start, merges), *taken)

        first = part(0)  # shows how many results there are, and their shapes
        parts = first if isinstance(first, tuple) else (first,)
        wholes = [None if r is None else _whole(b, r, layout, units) for r in parts]

        def store(index: int, results: Any) -> None:
            for whole, result in zip(wholes, results if isinstance(results, tuple) else (results,), strict=True):
                if whole is not None:
                    whole[_chunk_index(whole, layout, slice(edges[index], edges[index + 1]))] = result

        store(0, first)
        run_chunks(lambda index: store(index, part(index)), range(1, number))
        if merges:
            wholes = [None if w is None else _unmerged(w, layout) for w in wholes]
        return cast(R, tuple(wholes) if isinstance(first, tuple) else wholes[0])

    return run


def _before(array: Array, layout: Layout) -> int:
    """The axes before that of the samples: one, of bytes, or none."""
    return int(array.ndim) - len(layout.shape)


def _chunk_index(array: Array, layout: Layout, cut: slice) -> tuple[slice, ...]:
    return (slice(None),) * _before(array, layout) + (cut,)


def _merged(array: Array, layout: Layout) -> Array:
    """A view with all planes as samples of one channel."""
    at, shape = _before(array, layout), array.shape
    return array.reshape(*shape[:at], shape[at] * shape[at + 1], 1, *shape[at + 2 :])


def _unmerged(array: Array, layout: Layout) -> Array:
    """`_merged` undone."""
    at, shape = _before(array, layout), array.shape
    return array.reshape(*shape[:at], *layout.shape[:2], *shape[at + 2 :])


def _whole(b: Backend, part: Array, layout: Layout, units: int) -> Array:
    """An empty array for the results of all chunks, of which `part` is one."""
    at = _before(part, layout)
    return b.empty((*part.shape[:at], units, *part.shape[at + 1 :]), part.dtype)


@functools.lru_cache(maxsize=256)  # a limit on their number is enough: results have a fixed size
def _spec_of_chunk(spec: Any, layout: Layout, units: int, merges: bool) -> Any:
    """The spec on so many planes, or samples."""
    shape = (units, 1, *layout.shape[2:]) if merges else (units, *layout.shape[1:])
    return with_layout(spec, dataclasses.replace(layout, shape=shape))
