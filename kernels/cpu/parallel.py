"""How kernels run in parallel: the work is cut into chunks, which the library's threads take.

Chunk borders depend on the shape alone, so the results do not depend on the number of threads."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from .convert import convert
from .vectors import as_bits

Array = Any

CHUNK_BYTES = 2_400_000  # bytes that a chunk reads and writes, about: Python needs 50 µs to start one in a thread
# Compiled code needs 1 µs for that, so its chunks may be smaller, until there are MANY_CHUNKS.
SMALL_CHUNK_BYTES, MANY_CHUNKS = 128 << 10, 16
WAKING_CHUNKS = 4  # from so many on sleeping threads are woken, which takes 50 µs
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
    array = array.ravel()
    return array if array.flags.writeable else np.asarray(_View(array))


def to_lanes(array: Array) -> Array:
    """The elements in C order, as kernels take them: half types as their bits."""
    return flat(as_bits(array))


@functools.cache
def _compiled_waits() -> int | None:
    """Let threads wait in compiled code from now on, where the system has `sched_yield`. Returns the place on the board
    that has the number of helpers waiting so, or None on other systems."""
    if not hasattr(os, "sched_yield"):
        return None
    from .sharing import AWAKE, serve, wait_until_done

    wait_until_done(np.ones(1, np.int64))  # compile now, not during a later call
    serve(np.zeros(backends.BOARD, np.int64), -1)
    backends.wait_in(backends.Waits(serve, wait_until_done))
    return AWAKE


def _awake_board(chunks: int) -> Array:
    """The board of this process. If there are many chunks, sleeping helpers are woken."""
    board, helpers = backends.board(), min(chunks, backends.num_threads()) - 1
    if helpers > 0 and chunks >= WAKING_CHUNKS:
        place = _compiled_waits()
        if place is not None and board[place] < helpers:
            backends.wake(helpers - int(board[place]))
    return board


def chunked(
    units: int, nbytes: int, *, least: int = 1, unit: int = 1, end: int | None = None, python: bool = False
) -> Callable[..., None]:
    """A function that calls `run(*arguments, start, stop, *workspaces)`, of its own arguments `(run, *arguments,
    workspace)`, on chunks of `units`, in parallel.

    nbytes: bytes that all units read and write together. least: units in a chunk, at least. unit: what one unit counts
    in start and stop, the last one up to `end`. python: `run` is no kernel, but a function of Python. workspace: the
    lengths of the workspaces, flat arrays of the first argument's dtype with any content; () by default."""
    backends.num_threads()  # raises where the setting is not valid, whether or not this work is for several threads
    wanted = nbytes / CHUNK_BYTES if python else max(nbytes / CHUNK_BYTES, min(MANY_CHUNKS, nbytes / SMALL_CHUNK_BYTES))
    number = max(1, min(units // least, round(wanted)))
    return _in_chunks(units, number, unit, unit * units if end is None else end)


@functools.lru_cache(maxsize=64)  # not in the plan cache: a table has about 4,000 chunks at most, for 10 GB
def _in_chunks(units: int, number: int, unit: int, end: int) -> Callable[..., None]:
    edges = [unit * (units * i // number) for i in range(number)] + [end]
    table, empty = np.array(edges, np.int64), edges[0] >= edges[-1]
    # No helper looks at the board of a single chunk. It must not be a constant of this module: compiled code writes to
    # it, and what is stored on disk is found by the values of the constants.
    own_board = np.zeros(backends.BOARD, np.int64) if number == 1 else None

    def in_chunks(run: Any, *arguments: Any, workspace: tuple[int, ...] = ()) -> None:
        if empty:
            return
        shared = getattr(run, "shared", None)
        if shared is not None:
            board = _awake_board(number) if own_board is None else own_board
            if not shared(board, table, workspace, *arguments):
                return
        _run_in_python(run, arguments, workspace, edges)  # the kernel's exception is raised again

    return in_chunks


def _run_in_python(run: Any, arguments: tuple[Any, ...], workspace: tuple[int, ...], edges: list[int]) -> None:
    def call(i: int) -> None:
        with contextlib.ExitStack() as stack:
            lengths = [(length,) for length in workspace]
            made = stack.enter_context(backends.workspace(arguments[0].dtype, *lengths)) if workspace else ()
            run(*arguments, edges[i], edges[i + 1], *made)

    if backends.num_threads() > 1:
        _compiled_waits()
    backends.run_chunks(call, range(len(edges) - 1))


def launcher(prepare: Callable[..., Callable[..., Any]]) -> Callable[..., Any]:
    """A launcher `(b, spec, *arrays)` that computes what `prepare(spec, *arrays)(*arrays)` does. `prepare` gives a
    function for all arrays of these shapes and dtypes, which the plan of a call keeps (`kernels.prepare`)."""

    @functools.wraps(prepare)
    def launch(b: Any, spec: Any, *arrays: Any) -> Any:
        return prepare(spec, *arrays)(*arrays)

    vars(launch)["prepare"] = prepare
    return launch


# ----------------------------------------------------------------------------------------------------- chunks of planes
def over_planes(
    planes: int, units_per_plane: int, dtype: Any, nbytes: int, rows: tuple[int, ...] = ()
) -> Callable[..., None]:
    """A function that calls `run(*inputs, *outputs, *arguments, start, stop)`, of its own arguments `(run, inputs,
    outputs, *arguments)`, on flat arrays, over chunks of planes, in parallel.

    units_per_plane: start and stop count these units. dtype: of the first input. nbytes: of all arrays. rows: of each
    array, if one has several, each of all planes: tie bits have a row for the first 8 taps of all windows, a row for
    the next 8, and so on. Half types are converted to float32 and back, in tiles of complete planes."""
    if not _is_half(dtype):
        in_chunks = chunked(planes * units_per_plane, nbytes)

        def run_as_they_are(run: Any, inputs: tuple[Array, ...], outputs: tuple[Array, ...], *arguments: Any) -> None:
            in_chunks(run, *map(flat, inputs), *map(flat, outputs), *arguments)

        return run_as_they_are
    in_tiles = chunked(planes, HALF_TILE_FACTOR * nbytes, python=True)

    def run_in_tiles(run: Any, inputs: tuple[Array, ...], outputs: tuple[Array, ...], *arguments: Any) -> None:
        arrays = [*inputs, *outputs]
        arrays = [a.reshape(n, -1) for a, n in zip(arrays, rows or (1,) * len(arrays), strict=True)]

        def tile(start: int, stop: int) -> None:
            parts = [a[:, _columns_of_planes(a, planes, start, stop)] for a in arrays]
            tiles = [np.empty(p.shape, np.float32 if p.dtype == dtype else p.dtype) for p in parts]
            for part, tile in zip(parts[: len(inputs)], tiles, strict=False):
                if part.dtype == dtype:
                    convert(to_lanes(part), tile.reshape(-1))
                else:
                    tile[...] = part
            run(*(tile.reshape(-1) for tile in tiles), *arguments, 0, (stop - start) * units_per_plane)
            for part, tile in zip(parts[len(inputs) :], tiles[len(inputs) :], strict=True):
                if part.dtype == dtype:
                    convert(tile.reshape(-1), as_bits(part).reshape(-1))
                else:
                    part[...] = tile

        in_tiles(tile)

    return run_in_tiles


@functools.cache
def _is_half(dtype: Any) -> bool:
    return str(dtype) in HALF_TYPES


def _columns_of_planes(array: Array, planes: int, start: int, stop: int) -> slice:
    """The columns of a row that belong to planes start to stop."""
    plane = array.shape[1] // planes
    return slice(plane * start, plane * stop)
