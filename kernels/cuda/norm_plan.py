"""How a norm's rows are laid over a device: which launches, how many blocks a row, what is held where.

A row is what is normalised on its own (rows.cuh). Where it fits on the chip, one launch reads it once: held by lanes of
a warp, by a block, or by several blocks of a cooperative grid, which also fill the device where rows are few. Rows that
do not fit are read twice by two launches, as many rows at a time as stay in the L2 cache.

    python -m cnnlayers.kernels.cuda.norm_plan 32x64x56x56 float16

prints the plans of batch norm in training for such an x, on this machine's device or else for an H200's numbers.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
from dataclasses import dataclass, replace
from typing import Any

from cnnlayers.backends import Backend

THREADS = 512  # of a block at most: with 128 registers a thread it has a processor to itself
SMALL = 128  # of a block whose warps have rows of their own
STREAM = 256  # of a block that holds nothing, or columns
RUN = 16  # packs that a thread streams
MOST_PARTS = 256  # of a row in two launches: every block of the second reads what all of the first have found
STATIC = 1024  # bytes of shared memory that a kernel may need for itself
UNASKED = (
    48 * 1024
)  # bytes that a block may have, its own included, of which compile.py's launch need not tell the driver
MEETING = 2048  # packs that a processor could move while a grid meets: an estimate, which weighs blocks against turns
HELD = {"float16": 8, "bfloat16": 6, "float32": 8, "float64": 8}  # packs of x a thread; nvcc keeps bfloat16's widened
HELD_TWICE = {"float16": 8, "bfloat16": 5, "float32": 8, "float64": 7}  # packs of x and of dy a thread, in a row
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Device:
    """What a plan asks of a device. `shared`: bytes a block may have; `l2`: bytes of cache; `cooperative`: whether a
    grid may meet at a barrier; `threads`: of a block that has a processor to itself."""

    processors: int
    shared: int
    l2: int
    cooperative: bool
    threads: int = THREADS


H200 = Device(processors=132, shared=227 << 10, l2=50 << 20, cooperative=True)


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
    return Device(has["MultiProcessorCount"], shared, has["L2CacheSize"], bool(has["CooperativeLaunch"]), THREADS)


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


def pack_of(shape: Rows | Columns, itemsize: int, *addresses: int) -> int:
    """Elements that one access may move: up to 16 bytes, within a segment and, as all the arrays are, aligned."""
    pack = 16 // itemsize
    while shape.together % pack or any(a % (pack * itemsize) for a in addresses):
        pack //= 2
    return pack


@functools.lru_cache(maxsize=4096)
def plan(
    device: Device,
    shape: Rows | Columns,
    dtype: str,
    pack: int,
    *,
    arrays: int = 1,
    group: int = 1,
    given: bool = False,
) -> Plan:
    """The plan for rows of which `arrays` arrays are held on the chip: x in a forward, x and dy in a backward.

    `group`: rows that share statistics, of which each one's sums are wanted; `given`: statistics are known beforehand.
    """
    bytes_of = pack * ITEMSIZE[dtype] * arrays  # of a pack of each
    if isinstance(shape, Columns):
        room = STREAM * pack * max(4, ITEMSIZE[dtype])  # bytes of columns.cuh's room
        columns = _columns(device, shape, pack, 0 if given or shape.own > 1 else HELD[dtype], bytes_of, room)
        return replace(columns, parts=columns.stream) if given else columns
    if given:
        return _streamed(shape, pack)
    held = HELD[dtype] if arrays == 1 else HELD_TWICE[dtype]
    if group > 1:
        return _groups(device, shape, pack, held, bytes_of, group, max(4, ITEMSIZE[dtype]))
    return _rows(device, shape, pack, held, bytes_of)


# ---------------------------------------------------------------------------------------------------------------- rows
def _rows(device: Device, shape: Rows, pack: int, held: int, bytes_of: int) -> Plan:
    rows, packs = shape.rows, shape.segments * shape.cells // pack
    if packs <= 64 or (packs <= 32 * held and rows >= 4 * device.processors):
        return Plan("team", rows, packs, pack, held, SMALL, lanes_of(packs), turn=rows)
    room = held * device.threads + (device.shared - STATIC) // bytes_of
    found = _spread(device, rows, packs, room, device.threads, MEETING)
    if found is None or _idle(device, rows, packs, found[0]):
        return _two_launches(device, shape, pack, bytes_of, held)
    _, parts, turn = found
    share = -(-packs // parts)
    many = parts == 1 and rows >= 4 * device.processors  # small blocks, of which a processor holds several
    threads = threads_of(share, held if many else max(1, held // 2), device.threads)
    shared = _asked(bytes_of * max(0, share - held * threads))
    return Plan("grid" if parts > 1 else "block", rows, packs, pack, held, threads, 32, parts, turn, shared)


def _spread(device: Device, rows: int, length: int, room: int, least: int, meeting: int) -> tuple[int, int, int] | None:
    """The quickest way to lay rows over blocks that hold `room` of their `length`: its time, the blocks of a row and
    the rows at a time. None where a row does not fit the chip.

    Time is counted in what a processor moves, `meeting` being that of a barrier. A block's part is `least` or more.
    """
    needed, most = -(-length // room), device.processors if device.cooperative else 1
    ways = []
    for wanted in range(needed, min(most, max(needed, length // least)) + 1):
        share = -(-length // wanted)
        parts = -(-length // share)  # none is empty
        turn = min(rows, device.processors // parts)
        turns = -(-rows // turn)
        ways.append((turns * (share + meeting * (parts > 1)), parts, turn if parts > 1 else rows))
    return min(ways, default=None)


def _idle(device: Device, rows: int, length: int, time: int) -> bool:
    """Whether a device whose blocks cannot meet is so empty that reading twice with all of it is quicker."""
    return not device.cooperative and time > 2 * -(-rows * length // device.processors) + 2 * MEETING


def _groups(device: Device, shape: Rows, pack: int, held: int, bytes_of: int, channels: int, accumulator: int) -> Plan:
    """A block a group of `channels` rows, which holds each row in whole runs, or two launches."""
    length = shape.cells // pack
    lanes = next(n for n in (32, 16, 8, 4, 2, 1) if 4 * (-length % n) <= length)  # a quarter is wasted at most
    slots = -(-channels * -(-length // lanes) * lanes // 32) * 32
    threads = threads_of(slots, max(1, held // 2), device.threads)
    sums = -(-(slots // lanes * 2 * accumulator) // 16) * 16
    shared = _asked(sums + bytes_of * max(0, slots - held * threads))
    groups = shape.rows // channels
    if shared > device.shared - STATIC or (2 * groups <= device.processors and slots > 4 * device.threads):
        return _two_launches(device, shape, pack, bytes_of, 4, channels)
    return Plan("group", groups, slots, pack, held, threads, lanes, 1, groups, shared)


def _two_launches(device: Device, shape: Rows, pack: int, bytes_of: int, held: int, together: int = 1) -> Plan:
    """Rows that are read twice; `together` of them at least in a turn."""
    packs = shape.segments * shape.cells // pack
    run = STREAM * held  # packs that a block loads at once
    wanted = max(-(-8 * device.processors // shape.rows), -(-packs // (64 * run)))  # the device full, no block too long
    parts = _none_empty(packs, max(1, min(wanted, -(-packs // run), MOST_PARTS)))
    fit = device.l2 // 2 // (packs * bytes_of) // together * together
    stream, threads = _stream(packs)
    turn = min(shape.rows, fit or shape.rows)
    return Plan("parts", shape.rows, packs, pack, held, threads, 32, parts, turn, 0, stream)


def _streamed(shape: Rows, pack: int) -> Plan:
    """Rows whose statistics are known: one launch that holds nothing."""
    packs = shape.segments * shape.cells // pack
    stream, threads = _stream(packs)
    return Plan("parts", shape.rows, packs, pack, 0, threads, 32, stream, shape.rows, 0, stream)


def _stream(packs: int) -> tuple[int, int]:
    """Blocks of a row that is only streamed through, and their threads."""
    blocks = _none_empty(packs, -(-packs // (STREAM * RUN)))
    return blocks, threads_of(-(-packs // blocks), 4, STREAM)


# ------------------------------------------------------------------------------------------------------------- columns
def _columns(device: Device, shape: Columns, pack: int, held: int, bytes_of: int, room: int) -> ColumnPlan:
    """Slabs of the width that one launch is quickest with, or three launches; `held` 0: these at once."""
    across, depth = shape.channels // pack, shape.depth
    widest, best, quickest = lanes_of(across), None, 0
    widths = [widest] + [wide for wide in (16, 8) if wide < widest]  # 8 packs are 128 bytes
    for wide in widths if held and room <= device.shared - STATIC else ():
        number, step = shape.samples * -(-across // wide), STREAM // wide
        fit = held * step + (device.shared - STATIC - room) // (wide * bytes_of)
        found = _spread(device, number, depth, fit, step, 2 * MEETING // wide)
        if found is None or _idle(device, number, depth, found[0]) or (best and found[0] * wide >= quickest):
            continue
        quickest, parts, turn = found[0] * wide, *found[1:]
        shared = _asked(room + wide * bytes_of * max(0, -(-depth // parts) - held * step))
        way = "grid" if parts > 1 else "block"
        best = ColumnPlan(way, number, depth, pack, held, STREAM, wide, parts, turn, shared)
    return best or _columns_parts(device, shape, pack, widest)


def _columns_parts(device: Device, shape: Columns, pack: int, wide: int) -> ColumnPlan:
    number, step = shape.samples * -(-(shape.channels // pack) // wide), STREAM // wide
    parts = max(1, min(-(-8 * device.processors // number), -(-shape.depth // max(64, 4 * step))))
    parts, stream = (_none_empty(shape.depth, n) for n in (parts, -(-shape.depth // (RUN * step))))
    return ColumnPlan("parts", number, shape.depth, pack, 4, STREAM, wide, parts, number, 0, stream)


# ------------------------------------------------------------------------------------------------------------- numbers
def lanes_of(packs: int) -> int:
    """Threads of a row that a warp holds: a power of two."""
    return min(32, 1 << (packs - 1).bit_length())


def threads_of(packs: int, each: int, most: int) -> int:
    """Threads of a block that has so many packs: whole warps, about `each` a thread."""
    return min(most, -(-packs // (32 * each)) * 32)


def _none_empty(length: int, parts: int) -> int:
    """As many parts, or so many fewer that none of them is empty."""
    return -(-length // -(-length // parts))


def _asked(shared: int) -> int:
    """Dynamic shared memory to launch with: enough for the driver to be told, where the kernel's own makes it too much
    otherwise."""
    return shared if shared <= UNASKED - STATIC else max(shared, UNASKED + 16)


def main(arguments: list[str] | None = None) -> None:
    """Print the plans of batch norm in training, forward and backward."""
    parser = argparse.ArgumentParser(prog="python -m cnnlayers.kernels.cuda.norm_plan", description=main.__doc__)
    parser.add_argument("shape", help="of x, such as 32x64x56x56")
    parser.add_argument("dtype", nargs="?", default="float32", choices=list(ITEMSIZE))
    parser.add_argument("--channels-last", action="store_true", help="the shape ends with the channels")
    given = parser.parse_args(arguments)
    samples, *rest = (int(n) for n in given.shape.split("x"))
    channels, cells = rest.pop(-1 if given.channels_last else 0), math.prod(rest)
    shape = (
        Columns(1, samples * cells, channels, 1)
        if given.channels_last
        else Rows(channels, samples, cells, channels, cells)
    )
    try:
        device = device_here()
    except ImportError:
        device = H200
    print(device)
    for what, arrays in (("forward", 1), ("backward", 2)):
        print(f"{what}: {plan(device, shape, given.dtype, pack_of(shape, ITEMSIZE[given.dtype]), arrays=arrays)}")


if __name__ == "__main__":
    main()
