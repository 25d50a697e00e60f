"""Launchers of norm_cells.cu: the backward of layer and RMS norm, called as the portable code is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import compile as kernels
from . import norm_arrays
from .arrays import contiguous, ctype, offsets
from .norm_arrays import CENTRED, DBETA, DGAMMA, GAMMA
from .norm_plan import STREAM, Device, Rows, device_of, lanes_of, pack_of, threads_of

Array = Any
HELD = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 4}  # packs of x, dy, dgamma and dbeta a thread
DEEP = 64  # rows at most that a block of cells_apply goes down
FEW = 4  # rows that a team should have, or what it leaves of dgamma and dbeta weighs too much
COLUMNS = 32  # of a block of add_columns, of eight times as many threads


@dataclass(frozen=True)
class Plan:
    """How rows with a parameter a cell are laid over a device; `str()` says it in words.

    `way`: "team" (of `lanes` of a warp) and "block" (of whole warps) hold a row, "parts" reads it twice, first by
    `parts` blocks a row. `blocks`: what they leave of dgamma and dbeta is added up by another launch; in way "parts"
    each goes down `deep` rows.
    """

    way: str
    rows: int
    packs: int
    pack: int
    held: int
    threads: int
    lanes: int
    blocks: int
    parts: int = 1
    deep: int = 1

    def __str__(self) -> str:
        row = f"{self.rows:,} rows of {self.packs:,} packs of {self.pack}"
        if self.way == "parts":
            return f"{row}: two launches, {self.parts} blocks a row and {self.blocks} down {self.deep} rows each"
        return (
            f"{row}: one launch, {self.lanes} threads a row, {self.blocks} blocks of {self.threads} threads that go "
            "down the rows"
        )


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return norm_arrays.refuses(op, spec, *arrays)


def plan(device: Device, rows: Rows, dtype: str, pack: int) -> Plan:
    """The plan for these rows."""
    packs, held = rows.cells // pack, HELD[dtype]
    if packs <= device.threads * held and (2 * rows.rows >= device.processors or packs <= 2 * device.threads):
        team = packs <= 32 * held
        lanes = lanes_of(packs) if team else threads_of(packs, held, device.threads)
        teams = max(1, min(device.threads // 2, 256) // lanes)  # of a block
        blocks = -(-rows.rows // teams)
        most = device.processors * max(
            1, device.threads // (teams * lanes)
        )  # are resident, with 128 registers a thread
        blocks = min(blocks, most, max(-(-blocks // FEW), device.processors))
        return Plan("team" if team else "block", rows.rows, packs, pack, held, teams * lanes, lanes, blocks)
    parts = max(1, min(-(-8 * device.processors // rows.rows), -(-packs // (STREAM * 4))))
    parts = -(-packs // -(-packs // parts))  # none is empty
    deep = min(rows.rows, DEEP)
    return Plan("parts", rows.rows, packs, pack, 0, STREAM, 32, -(-rows.rows // deep), parts, deep)


def _backward(
    b: Backend, spec: Any, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """`(dx, dgamma, dbeta)`."""
    wanted = spec.gamma_dtype, spec.beta_dtype
    dy, x, dtype = contiguous(b, dy), contiguous(b, x), norm_arrays.accumulator(b, dy)
    dx = b.empty(spec.rows.shape, dy.dtype)
    if not dy.size:
        return dx, *(None if p is None else b.zeros(spec.rows.parameter, p) for p in wanted)
    rows = norm_arrays.last_axes(spec.rows)
    pack = pack_of(rows, dy.dtype.itemsize, x.data.ptr, dy.data.ptr)
    gamma = norm_arrays.parameter(b, gamma, dtype, pack * dtype().itemsize)
    how = plan(device_of(b), rows, backends.dtype_name(b, dy), pack)
    columns = b.empty((2, how.blocks, rows.cells), dtype)
    given = (gamma is not None) * GAMMA | (mean is not None) * CENTRED
    arrays = [x, dy, rstd if mean is None else mean, rstd, rstd if gamma is None else gamma]
    _launch(b, rows, how, arrays, dx, columns, given)
    return dx, *_gradients(b, spec, how, columns)


layer_norm_backward = rms_norm_backward = _backward


def _instances(how: Plan, element: str, offset: str) -> list[str]:
    """The kernels of a plan, in their order."""
    if how.way == "parts":
        return [
            kernels.name("cells_sums", element, how.pack, offset),
            kernels.name("cells_apply", element, how.pack, offset, DEEP),
        ]
    return [kernels.name("cells_backward", element, how.pack, how.held, offset, ("team", "block").index(how.way))]


def _launch(b: Backend, rows: Rows, how: Plan, arrays: list[Array], dx: Array, columns: Array, given: int) -> None:
    instances = _instances(how, ctype(b, dx), offsets(rows.size)[0])
    numbers = [np.int32(given), np.uint32(rows.rows), np.uint32(how.packs)]
    if how.way != "parts":
        last = [np.int32(how.lanes)]
        kernels.launch("norm_cells", instances[0], how.blocks, how.threads, [*arrays, dx, columns, *numbers, *last])
        return
    partial, parts = b.empty((rows.rows, how.parts, 2), b.xp.float64), np.uint32(how.parts)
    kernels.launch("norm_cells", instances[0], rows.rows * how.parts, how.threads, [*arrays, partial, *numbers, parts])
    wide = -(-how.packs // how.threads)
    arguments = [*arrays, partial, dx, columns, *numbers, parts]
    kernels.launch("norm_cells", instances[1], how.blocks * wide, how.threads, arguments)


def _gradients(b: Backend, spec: Any, how: Plan, columns: Array) -> tuple[Array | None, Array | None]:
    """dgamma and dbeta, from what blocks left of them."""
    wanted = spec.gamma_dtype, spec.beta_dtype
    if how.blocks == 1:
        ends = [None if p is None else columns[i, 0] for i, p in enumerate(wanted)]
    else:
        ends = [None if p is None else b.empty(columns.shape[2:], columns.dtype) for p in wanted]
        given = (ends[0] is not None) * DGAMMA | (ends[1] is not None) * DBETA
        instance = kernels.name("add_columns", ctype(b, columns), offsets(columns.size)[0])
        arrays = [columns, *(columns if a is None else a for a in ends)]
        numbers = [np.int32(given), np.uint32(how.blocks), np.uint32(columns.shape[2])]
        grid = 2 * -(-columns.shape[2] // COLUMNS) if given else 0
        kernels.launch("norm_cells", instance, grid, 8 * COLUMNS, [*arrays, *numbers])
    dgamma, dbeta = (
        None if a is None else norm_arrays.cast(a, p).reshape(spec.rows.parameter)
        for a, p in zip(ends, wanted, strict=True)
    )
    return dgamma, dbeta
