"""How kernels run in parallel: the work is cut into chunks, which the library's threads take.

Chunk borders depend on the shape alone, so the results do not depend on the number of threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers.backends import run_chunks

from .convert import convert
from .vectors import as_bits

Array = Any

CHUNK_BYTES = 2_400_000  # bytes that a chunk reads and writes, about; starting a smaller one costs more than it gains
HALF_TYPES = ("float16", "bfloat16")
HALF_TILE_FACTOR = 6  # bytes counted for each byte of a half type: a tile's float32 copies then fit the L2 cache


class _View:
    """A view of an array that is marked as writeable."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], False)}


def flat(array: Array) -> Array:
    """The array's elements in C order; a view if the array is contiguous, else a copy.

    A read-only array becomes a writeable view, because Numba would compile every kernel a second time for read-only
    arrays. Kernels must not write to their inputs."""
    array = np.ascontiguousarray(array).reshape(-1)
    return array if array.flags.writeable else np.asarray(_View(array))


@functools.cache
def _waiter() -> Callable[[Array], Any] | None:
    """The compiled loop in which a thread waits for the others; None where there is none.

    Waking a sleeping thread takes half as long as a chunk, so threads poll for a short time first."""
    if not hasattr(os, "sched_yield"):
        return None
    from .wait import wait_until_done

    if not hasattr(wait_until_done, "py_func"):  # with NUMBA_DISABLE_JIT nothing is compiled
        return None
    wait_until_done(np.ones(1, np.int64))  # compile now, not during a later call
    return wait_until_done


def parallel_chunks(units: int, nbytes: int, run: Callable[[int, int], Any], *, least: int = 1) -> None:
    """Call `run(start, stop)` on chunks of `units`, in parallel.

    nbytes: bytes that all units read and write together. least: units in a chunk, at least."""
    if units == 0:
        return
    number = max(1, min(units // least, round(nbytes / CHUNK_BYTES)))
    if number == 1:
        run(0, units)
        return
    edges = [units * i // number for i in range(number + 1)]
    run_chunks(lambda i: run(edges[i], edges[i + 1]), range(number), _waiter())


# ----------------------------------------------------------------------------------------------------- chunks of planes
def parallel_over_planes(
    planes: int,
    units_per_plane: int,
    inputs: tuple[Array, ...],
    outputs: tuple[Array, ...],
    run: Callable[..., None],
    *,
    least: int = 1,
) -> None:
    """Call `run(*inputs, *outputs, start, stop)` on flat arrays, over chunks of planes, in parallel.

    units_per_plane: work items in each plane; start and stop count them. least: work items in a chunk, at least.

    Each array comes from `as_lines`: shape (lines, elements of all planes). Most arrays are one line; tie bits have a
    line for each byte. Half types are converted to float32 and back, in tiles of complete planes."""
    if not outputs[0].size:
        return
    arrays = inputs + outputs
    nbytes = sum(a.nbytes for a in arrays)
    if not _is_half(inputs[0].dtype):
        flat_arrays = [a.reshape(-1) for a in arrays]
        parallel_chunks(
            planes * units_per_plane, nbytes, lambda start, stop: run(*flat_arrays, start, stop), least=least
        )
        return
    half = inputs[0].dtype

    def tile(start: int, stop: int) -> None:
        parts = [a[:, _part(a, planes, start, stop)] for a in arrays]
        tiles = [np.empty(p.shape, np.float32) if p.dtype == half else p for p in parts]
        for part, tile in zip(parts[: len(inputs)], tiles, strict=False):
            if part.dtype == half:
                convert(flat(as_bits(part)), tile.reshape(-1))
        for i in range(len(inputs), len(tiles)):  # of several lines a part is not contiguous
            tiles[i] = np.empty(tiles[i].shape, tiles[i].dtype)
        run(*(tile.reshape(-1) for tile in tiles), 0, (stop - start) * units_per_plane)
        for part, tile in zip(parts[len(inputs) :], tiles[len(inputs) :], strict=True):
            if part.dtype == half:
                convert(tile.reshape(-1), as_bits(part).reshape(-1))
            else:
                part[...] = tile

    parallel_chunks(planes, HALF_TILE_FACTOR * nbytes, tile)


@functools.cache
def _is_half(dtype: Any) -> bool:
    return str(dtype) in HALF_TYPES


def _part(array: Array, planes: int, start: int, stop: int) -> slice:
    """The columns of a line that belong to planes start to stop."""
    plane = array.shape[1] // planes
    return slice(plane * start, plane * stop)


def as_lines(array: Array, number: int = 1) -> Array:
    """The array as `parallel_over_planes` takes it: shape (number, elements / number)."""
    if _is_half(array.dtype):  # kernels get a float32 copy, so a read-only array is no problem
        return np.ascontiguousarray(array).reshape(number, -1)
    return flat(array).reshape(number, -1)
