"""How a norm's rows are laid over a device: which launches, how many blocks a row, what is held where.

A row is what is normalised on its own (rows.cuh). Where it fits on the chip, one launch reads it once: held by a part
of a warp, by a block, or by several blocks of a cooperative grid, which also fill the device where rows are few. Rows
that do not fit are read twice by two launches, as many rows at a time as stay in the L2 cache.
"""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import dataclass, replace
from typing import Any

from cnnlayers.backends import Backend

THREADS = 512  # of a block at most: with 128 registers a thread it has a processor to itself
SMALL = 128  # of a block whose warps have rows of their own
STREAM = 256  # of a block that holds nothing
RUN = 16  # packs that a thread streams
MOST_PARTS = 256  # of a row in two launches: every block of the second reads what all of the first have found
STATIC = 1024  # bytes of shared memory that a kernel may need for itself


@dataclass(frozen=True)
class Device:
    """What a plan asks of a device. `shared`: bytes a block may have; `l2`: bytes of cache; `cooperative`: whether a
    grid may meet at a barrier."""

    processors: int
    shared: int
    l2: int
    cooperative: bool


def device_of(b: Backend) -> Device:
    """The device of CuPy's backend."""
    return _device(b.xp, int(b.device.id))


def device_here() -> Device:
    """CuPy's current device."""
    cupy = importlib.import_module("cupy")
    return _device(cupy, int(cupy.cuda.Device().id))


@functools.cache
def _device(cupy: Any, number: int) -> Device:
    has = cupy.cuda.Device(number).attributes
    shared = has.get("MaxSharedMemoryPerBlockOptin") or has["MaxSharedMemoryPerBlock"]
    return Device(has["MultiProcessorCount"], shared, has["L2CacheSize"], bool(has["CooperativeLaunch"]))


@dataclass(frozen=True)
class Rows:
    """The rows of an array: `rows` of `segments` pieces, each of `cells` elements side by side. `period` and `own`:
    cell j of a piece of row r has parameter r % period * (cells // own) + j // own; `each`: it has parameter j."""

    rows: int
    segments: int
    cells: int
    period: int
    own: int
    each: bool = False

    @property
    def size(self) -> int:
        """Elements of the array."""
        return self.rows * self.segments * self.cells

    @property
    def together(self) -> int:
        """Neighbours that a pack may not reach beyond."""
        return math.gcd(self.cells, self.own)


@dataclass(frozen=True)
class Columns:
    """Rows whose cells are apart: (samples, depth, channels) elements, of which `own` neighbouring channels of a sample
    are a row."""

    samples: int
    depth: int
    channels: int
    own: int

    @property
    def size(self) -> int:
        """Elements of the array."""
        return self.samples * self.depth * self.channels

    @property
    def together(self) -> int:
        """Neighbours that a pack may not reach beyond."""
        return self.channels


@dataclass(frozen=True)
class Plan:
    """How rows are laid over a device; `str()` says it in words.

    `way`: "team", "block", "grid" and "group" are one launch, "parts" two. `pack`: elements moved at once; `held`:
    packs of an array in a thread's registers; `lanes`: threads of a row in way "team", of a run in way "group";
    `parts`: blocks of a row; `turn`: rows at a time; `shared`: bytes of dynamic shared memory; `stream`: blocks of a
    row where it is only streamed through.
    """

    way: str
    rows: int
    packs: int
    pack: int
    held: int
    threads: int
    lanes: int = 32
    parts: int = 1
    turn: int = 0
    shared: int = 0
    stream: int = 1

    def __str__(self) -> str:
        row = f"{self.rows:,} rows of {self.packs:,} packs of {self.pack}"
        if self.way == "parts":
            return (
                f"{row}: two launches, {self.turn:,} rows at a time, in {self.parts} and {self.stream} blocks of "
                f"{self.threads} threads a row"
            )
        blocks = {
            "team": f"{self.lanes} threads a row, blocks of {self.threads}",
            "block": f"a block of {self.threads} threads a row",
            "group": f"a block of {self.threads} threads a row, runs of {self.lanes} of a channel",
            "grid": f"{self.parts} blocks of {self.threads} threads a row, {self.turn:,} rows at a time",
        }[self.way]
        return f"{row}: one launch, {blocks}, {self.held} packs a thread in registers, {self.shared:,} bytes shared"

    @property
    def grid(self) -> int:
        """Blocks of the one launch."""
        if self.way == "team":
            return -(-self.rows * self.lanes // self.threads)
        return self.turn * self.parts if self.way == "grid" else self.rows

    @property
    def mode(self) -> int:
        """rows.cuh's Way."""
        return ("team", "block", "grid").index(self.way)


@dataclass(frozen=True)
class ColumnPlan(Plan):
    """A plan for columns: `rows` counts slabs, `packs` is their depth, `lanes` the packs across; "parts" is three
    launches."""

    def __str__(self) -> str:
        slab = f"{self.rows:,} slabs of {self.lanes} packs of {self.pack} across, {self.packs:,} deep"
        if self.way == "parts":
            return f"{slab}: three launches, {self.parts} and {self.stream} blocks of {self.threads} threads a slab"
        blocks = f"{self.parts} blocks of {self.threads} threads a slab, {self.turn:,} slabs at a time"
        return f"{slab}: one launch, {blocks}, {self.held} packs a thread in registers, {self.shared:,} bytes shared"


def pack_of(rows: Rows | Columns, itemsize: int, *addresses: int) -> int:
    """Elements that one access may move: up to 16 bytes, within a segment and, as all the arrays are, aligned."""
    pack = 16 // itemsize
    while rows.together % pack or any(a % (pack * itemsize) for a in addresses):
        pack //= 2
    return pack


def plan(device: Device, rows: Rows, itemsize: int, pack: int, held: int, arrays: int = 1) -> Plan:
    """The plan for rows that are held on the chip in `arrays` arrays, of `held` packs a thread each in registers."""
    packs = rows.segments * rows.cells // pack
    bytes_of = pack * itemsize * arrays  # of a pack of each
    if packs <= 64 or (packs <= 32 * held and rows.rows >= 4 * device.processors):
        return Plan("team", rows.rows, packs, pack, held, SMALL, lanes_of(packs), turn=rows.rows)
    room = held * THREADS + (device.shared - STATIC) // bytes_of  # packs that a block can hold
    needed = -(-packs // room)
    alone = needed == 1 and (2 * rows.rows > device.processors or packs <= 4 * THREADS)
    if not alone and (needed > device.processors or not device.cooperative):
        return two_launches(device, rows, itemsize, pack, held, arrays)
    at_once = 1 if alone else min(rows.rows, device.processors // needed)
    parts = 1 if alone else max(needed, min(device.processors // at_once, -(-packs // THREADS)))
    share = -(-packs // parts)
    parts = -(-packs // share)  # none is empty
    many = alone and rows.rows >= 4 * device.processors  # small blocks, of which a processor holds several
    threads = threads_of(share, held if many else max(1, held // 2), THREADS)
    turn = rows.rows if alone else min(rows.rows, device.processors // parts)
    shared = bytes_of * max(0, share - held * threads)
    return Plan("block" if alone else "grid", rows.rows, packs, pack, held, threads, 32, parts, turn, shared)


def group(device: Device, rows: Rows, channels: int, itemsize: int, pack: int, held: int) -> Plan:
    """The plan for groups of `channels` rows, whose sums are wanted one by one: a block a group, which holds each row
    in whole runs, or two launches."""
    length = rows.cells // pack
    lanes = next(n for n in (32, 16, 8, 4, 2, 1) if 4 * (-length % n) <= length)  # a quarter is wasted at most
    slots = -(-channels * -(-length // lanes) * lanes // 32) * 32
    threads = threads_of(slots, max(1, held // 2), THREADS)
    sums = -(-(slots // lanes * 2 * max(4, itemsize)) // 16) * 16
    shared = sums + 2 * pack * itemsize * max(0, slots - held * threads)
    groups = rows.rows // channels
    if shared > device.shared - STATIC or (2 * groups <= device.processors and slots > 4 * THREADS):
        return two_launches(device, rows, itemsize, pack, 4, 2, channels)
    return Plan("group", groups, slots, pack, held, threads, lanes, 1, groups, shared)


def slabs(device: Device, shape: Columns, itemsize: int, pack: int, held: int, arrays: int = 1) -> ColumnPlan:
    """The plan for columns, in slabs of `wide` packs across: the widest that one launch can hold, or three launches."""
    across = shape.channels // pack
    options = [lanes_of(across)]
    while options[-1] > 8:
        options.append(options[-1] // 2)
    bytes_of, room = (
        pack * itemsize * arrays,
        STREAM * pack * max(4, itemsize),
    )  # of a row's pack; of columns.cuh's room
    fused = shape.own == 1 and room <= device.shared - STATIC
    for cooperative in (False, device.cooperative) if fused else ():
        for wide in options:
            number, step = shape.samples * -(-across // wide), STREAM // wide
            fit = held * step + (device.shared - STATIC - room) // (wide * bytes_of)
            needed = -(-shape.depth // fit)
            small = wide == options[-1] and shape.depth <= 2 * held * step
            if not cooperative and (needed > 1 or not (small or 2 * number > device.processors)):
                continue
            if needed > device.processors:
                continue
            at_once = min(number, device.processors // needed)
            parts = max(needed, min(device.processors // at_once, -(-shape.depth // step))) if cooperative else 1
            share = -(-shape.depth // parts)
            parts = -(-shape.depth // share)  # none is empty
            turn = min(number, device.processors // parts) if cooperative else number
            shared = room + wide * bytes_of * max(0, share - held * step)
            way = "grid" if cooperative else "block"
            return ColumnPlan(way, number, shape.depth, pack, held, STREAM, wide, parts, turn, shared)
    return _columns_parts(device, shape, pack, options[0])


def through(device: Device, shape: Columns, pack: int) -> ColumnPlan:
    """The plan for columns whose statistics are known: they are only streamed through."""
    plan = _columns_parts(device, shape, pack, lanes_of(shape.channels // pack))
    return replace(plan, parts=plan.stream)


def _columns_parts(device: Device, shape: Columns, pack: int, wide: int) -> ColumnPlan:
    number, step = shape.samples * -(-(shape.channels // pack) // wide), STREAM // wide
    parts = max(1, min(-(-8 * device.processors // number), -(-shape.depth // max(64, 4 * step))))
    parts, stream = (-(-shape.depth // -(-shape.depth // n)) for n in (parts, -(-shape.depth // (RUN * step))))
    return ColumnPlan("parts", number, shape.depth, pack, 4, STREAM, wide, parts, number, 0, stream)


def lanes_of(packs: int) -> int:
    """Threads of a row that a warp holds: a power of two."""
    return min(32, 1 << (packs - 1).bit_length())


def threads_of(packs: int, each: int, most: int) -> int:
    """Threads of a block that has so many packs: whole warps, about `each` a thread."""
    return min(most, -(-packs // (32 * each)) * 32)


def two_launches(
    device: Device, rows: Rows, itemsize: int, pack: int, held: int, arrays: int = 1, together: int = 1
) -> Plan:
    """The plan for rows that are read twice; `together` of them at least in a turn."""
    packs = rows.segments * rows.cells // pack
    run = STREAM * held  # packs that a block loads at once
    wanted = max(
        -(-8 * device.processors // rows.rows), -(-packs // (64 * run))
    )  # blocks a row: the device full, and none too long
    parts = max(1, min(wanted, -(-packs // run), MOST_PARTS))
    parts = -(-packs // -(-packs // parts))  # none is empty
    fit = device.l2 // 2 // (packs * pack * itemsize * arrays) // together * together
    turn = min(rows.rows, fit or rows.rows)
    return replace(streamed(rows, pack), held=held, parts=parts, turn=turn)


def streamed(rows: Rows, pack: int) -> Plan:
    """The plan for rows whose statistics are known: one launch that holds nothing."""
    packs = rows.segments * rows.cells // pack
    stream = -(-packs // (STREAM * RUN))
    stream = -(-packs // -(-packs // stream))  # none is empty
    threads = threads_of(-(-packs // stream), 4, STREAM)
    return Plan("parts", rows.rows, packs, pack, 0, threads, 32, stream, rows.rows, 0, stream)
