"""How a norm's statistics groups are assigned to a device: which launches, how many blocks a row, and how many threads.

A *row* is a statistics group (row_reduce.cuh); in group norm's backward alone it is one channel of a group, and the
mapping "group" gives a block all channels of one. One launch reads a row once if it fits the registers of some lanes
of a warp, or of a block. A longer row is read twice, by two launches of many blocks a row: the second takes the blocks
in the opposite order, so it first meets what the first has left in the L2 cache.

    python -m cnnlayers.kernels.cuda.norm_plan 32x64x56x56 float16

prints the plans of batch norm in training for such an x, on this machine's device, or else for an H200.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
from dataclasses import dataclass, replace
from typing import Any

from cnnlayers.backends import Backend

THREADS = 512  # the most of a block: with 128 registers a thread, one such block occupies a multiprocessor
WARP_THREADS = 128  # threads of a block whose warps process rows on their own
STREAM_THREADS = 256  # threads of a block that stores no row, or that processes columns
STREAM_PACKS = 4  # packs that a thread of such a block processes
MAX_PARTS = 256  # of a row in two launches: every block of the second reads the results of all blocks of the first
DYNAMIC_SMEM = 32 * 1024  # the most bytes of dynamic shared memory; with the static ones a launch may have 48 KB
# Packs of x that a thread has in registers at most; bfloat16 has fewer because nvcc stores its values widened.
REGISTER_PACKS = {"float16": 8, "bfloat16": 5, "float32": 8, "float64": 8}
# Packs of x, and as many of dy.
REGISTER_PACKS_BACKWARD = {"float16": 8, "bfloat16": 5, "float32": 8, "float64": 7}
FEW_PACKS = 4  # packs in registers, of each array, where no more are needed: then more blocks are resident
STREAMING_MAPPINGS = "stream", "two_launches"  # mappings that keep no row in registers
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Device:
    """The properties of a device that a plan depends on. threads: of a block that occupies a multiprocessor."""

    multiprocessors: int
    threads: int = THREADS


H200 = Device(multiprocessors=132)


def device_of(b: Backend) -> Device:
    """The device of CuPy's backend."""
    return _device(b.xp, int(b.device.id))


def device_here() -> Device:
    """CuPy's current device."""
    cupy = importlib.import_module("cupy")
    return _device(cupy, int(cupy.cuda.Device().id))


@functools.cache
def _device(cupy: Any, number: int) -> Device:
    return Device(cupy.cuda.Device(number).attributes["MultiProcessorCount"], THREADS)


@dataclass(frozen=True)
class RowLayout:
    """The rows of an array: `rows` of `segments` segments, each of `cells` elements side by side. Cell j of a segment
    of row r has parameter r % period * (cells // channel_cells) + j // channel_cells or, with per_element, j."""

    rows: int
    segments: int
    cells: int
    period: int
    channel_cells: int
    per_element: bool = False

    @property
    def size(self) -> int:
        """Elements of the array."""
        return self.rows * self.segments * self.cells

    @property
    def vector_extent(self) -> int:
        """Elements of the contiguous ranges that a pack must not cross."""
        return math.gcd(self.cells, self.channel_cells)


@dataclass(frozen=True)
class ColumnLayout:
    """Statistics groups of channels-last arrays: (samples, depth, channels) elements, where `group_channels`
    neighbouring channels of a sample are one group."""

    samples: int
    depth: int
    channels: int
    group_channels: int

    @property
    def size(self) -> int:
        """Elements of the array."""
        return self.samples * self.depth * self.channels

    @property
    def vector_extent(self) -> int:
        """Elements of the contiguous ranges that a pack must not cross."""
        return self.channels


@dataclass(frozen=True)
class LaunchPlan:
    """How rows are assigned to a device; `str()` says it in words.

    mapping: "warp", "block" and "group" are one launch that reads an array once; "two_launches" reads it twice;
    "stream" is one launch for known statistics, which keeps nothing in registers. pack: elements of one access;
    register_packs: packs of an array in a thread's registers; lanes: threads of a row with "warp", of a run of packs
    with "group"; parts: blocks of a row; shared: bytes of dynamic shared memory; stream_blocks: blocks of a row in a
    launch that only reads and writes it.
    """

    mapping: str
    rows: int
    packs: int
    pack: int
    register_packs: int
    threads: int
    lanes: int = 32
    parts: int = 1
    shared: int = 0
    stream_blocks: int = 1

    def __str__(self) -> str:
        row = f"{self.rows:,} rows of {self.packs:,} packs of {self.pack}"
        if self.mapping in STREAMING_MAPPINGS:
            number = "one launch" if self.mapping == "stream" else "two launches"
            return f"{row}: {number}, {self.parts} and {self.stream_blocks} blocks of {self.threads} threads a row"
        blocks = {
            "warp": f"{self.lanes} threads a row, blocks of {self.threads}",
            "block": f"a block of {self.threads} threads a row",
            "group": f"a block of {self.threads} threads a row, runs of {self.lanes} of a channel",
        }[self.mapping]
        return f"{row}: one launch, {blocks}, {self.register_packs} packs a thread in registers"

    @property
    def grid_size(self) -> int:
        """Blocks of the one launch."""
        return -(-self.rows * self.lanes // self.threads) if self.mapping == "warp" else self.rows


@dataclass(frozen=True)
class ColumnPlan(LaunchPlan):
    """A plan for columns: `rows` counts ranges of columns, `lanes` packs width and `packs` deep; "three_launches"
    compute sums of parts, then of groups, then y or dx; where statistics are known, one of the three is left out."""

    def __str__(self) -> str:
        columns = f"{self.rows:,} column ranges of {self.lanes} packs of {self.pack} across, {self.packs:,} deep"
        if self.mapping == "three_launches":
            blocks = f"{self.parts} and {self.stream_blocks} blocks of {self.threads} threads a range"
            return f"{columns}: three launches, {blocks}"
        return f"{columns}: one launch, a block of {self.threads} threads a range"


def pack_of(shape: RowLayout | ColumnLayout, itemsize: int, *aligned_to: int) -> int:
    """Elements of one access: up to 16 bytes, within a contiguous range and aligned in every array. `aligned_to`:
    arrays' addresses, or what these are multiples of."""
    pack = 16 // itemsize
    while shape.vector_extent % pack or any(a % (pack * itemsize) for a in aligned_to):
        pack //= 2
    return pack


@functools.lru_cache(maxsize=4096)  # a limit on their number is enough: these plans have a fixed size
def make_plan(
    device: Device,
    shape: RowLayout | ColumnLayout,
    dtype: str,
    pack: int,
    *,
    arrays: int = 1,
    group: int = 1,
    use_running_stats: bool = False,
) -> LaunchPlan:
    """The plan for rows of `arrays` arrays: x in a forward, x and dy in a backward.

    group: rows that share statistics but need sums of their own; use_running_stats: no statistics are computed.
    """
    most = REGISTER_PACKS[dtype] if arrays == 1 else REGISTER_PACKS_BACKWARD[dtype]
    if isinstance(shape, ColumnLayout):
        if use_running_stats:
            columns = _column_three_launches(device, shape, pack)
            return replace(columns, parts=columns.stream_blocks)
        return _column_plan(device, shape, pack, most) or _column_three_launches(device, shape, pack)
    if use_running_stats:
        return _stream_plan(device, shape, pack, ITEMSIZE[dtype])
    if group > 1:
        return _group_plan(device, shape, pack, most // 2, group, ITEMSIZE[dtype])
    return _row_plan(device, shape, pack, most, ITEMSIZE[dtype])


# ---------------------------------------------------------------------------------------------------------------- rows
def _row_plan(device: Device, shape: RowLayout, pack: int, most: int, itemsize: int) -> LaunchPlan:
    """Lanes of a warp or a block a row, with `most` packs a thread in registers; or two launches."""
    rows, packs = shape.rows, shape.segments * shape.cells // pack
    many = rows >= 4 * device.multiprocessors
    if packs <= 64 or (packs <= 32 * most and many):
        lanes = lanes_of(packs)
        if pack == 1 and rows >= 64 * device.multiprocessors:  # a warp that has several rows issues fewer instructions
            lanes = min(lanes, max(8, lanes_of(-(-packs // most))))
        return LaunchPlan("warp", rows, packs, pack, _register_packs(packs, lanes, most), WARP_THREADS, lanes)
    if packs > most * device.threads:
        return _two_launches(device, shape, pack, most, itemsize)
    # Small blocks where rows are many: a multiprocessor holds several. Else many threads, each with few packs.
    threads = threads_of(packs, most if many else max(1, most // 2), device.threads)
    return LaunchPlan("block", rows, packs, pack, _register_packs(packs, threads, most), threads)


def _register_packs(packs: int, threads: int, most: int) -> int:
    return min(most, FEW_PACKS) if packs <= FEW_PACKS * threads else most


def _group_plan(device: Device, shape: RowLayout, pack: int, most: int, channels: int, itemsize: int) -> LaunchPlan:
    """One block a group of `channels` rows, with each row in whole runs of packs; or two launches."""
    length = shape.cells // pack
    lanes = next(n for n in (32, 16, 8, 4, 2, 1) if 4 * (-length % n) <= length)  # at most a quarter is unused
    slots = -(-channels * -(-length // lanes) * lanes // 32) * 32
    threads = threads_of(slots, most, device.threads)
    shared = slots // lanes * 2 * max(4, itemsize)  # a run's two sums
    if slots > most * threads or shared > DYNAMIC_SMEM:
        return _two_launches(device, shape, pack, 4, itemsize)
    return LaunchPlan("group", shape.rows // channels, slots, pack, most, threads, lanes, shared=shared)


def _two_launches(device: Device, shape: RowLayout, pack: int, register_packs: int, itemsize: int) -> LaunchPlan:
    """Rows that are read twice."""
    packs = shape.segments * shape.cells // pack
    run = STREAM_THREADS * register_packs  # packs that a block loads at once
    wanted = max(-(-8 * device.multiprocessors // shape.rows), -(-packs // (64 * run)))  # a full device, no long block
    parts = _without_empty_parts(packs, max(1, min(wanted, -(-packs // run), MAX_PARTS)))
    stream_blocks, threads = _stream_blocks(device, shape.rows, packs, pack * itemsize)
    return LaunchPlan(
        "two_launches", shape.rows, packs, pack, register_packs, threads, parts=parts, stream_blocks=stream_blocks
    )


def _stream_plan(device: Device, shape: RowLayout, pack: int, itemsize: int) -> LaunchPlan:
    """Rows whose statistics are known: one launch that keeps nothing in registers."""
    packs = shape.segments * shape.cells // pack
    blocks, threads = _stream_blocks(device, shape.rows, packs, pack * itemsize)
    return LaunchPlan("stream", shape.rows, packs, pack, 0, threads, parts=blocks, stream_blocks=blocks)


def _stream_blocks(device: Device, rows: int, packs: int, pack_bytes: int) -> tuple[int, int]:
    """Blocks of a row that is only read and written, and their threads. Narrow packs are more for a block, as long as
    the device is full."""
    run = STREAM_THREADS * STREAM_PACKS
    fewest = min(-(-packs // run), -(-8 * device.multiprocessors // rows))
    blocks = _without_empty_parts(packs, max(fewest, -(-packs * pack_bytes // (16 * run))))
    return blocks, threads_of(-(-packs // blocks), 4, STREAM_THREADS)


# ------------------------------------------------------------------------------------------------------------- columns
def _column_plan(device: Device, shape: ColumnLayout, pack: int, most: int) -> ColumnPlan | None:
    """One launch, if a block of one column range has its whole depth in registers; a range is as wide as fills the
    device, but at least 8 packs: 128 bytes."""
    across, depth = shape.channels // pack, shape.depth
    widest = lanes_of(across)
    widths = [w for w in (widest, 16, 8) if w <= widest and depth <= most * (STREAM_THREADS // w)]
    if shape.group_channels > 1 or not widths:
        return None
    filling = [w for w in widths if shape.samples * -(-across // w) >= 2 * device.multiprocessors]
    width = (filling or widths[-1:])[0]
    ranges, register_packs = shape.samples * -(-across // width), _register_packs(depth, STREAM_THREADS // width, most)
    return ColumnPlan("block", ranges, depth, pack, register_packs, STREAM_THREADS, width)


def _column_three_launches(device: Device, shape: ColumnLayout, pack: int) -> ColumnPlan:
    width = lanes_of(shape.channels // pack)
    number, step = shape.samples * -(-(shape.channels // pack) // width), STREAM_THREADS // width
    resident = 3 * device.multiprocessors  # blocks of the first launch: all at a time
    parts = max(1, min(resident // number, -(-shape.depth // max(64, 4 * step))))
    stream_blocks = _without_empty_parts(shape.depth, -(-shape.depth // (STREAM_PACKS * step)))
    parts = _without_empty_parts(shape.depth, parts)
    return ColumnPlan(
        "three_launches", number, shape.depth, pack, 4, STREAM_THREADS, width, parts, stream_blocks=stream_blocks
    )


# ------------------------------------------------------------------------------------------------------------- numbers
def lanes_of(packs: int) -> int:
    """Threads of a row that is processed by a warp: a power of two."""
    return min(32, 1 << (packs - 1).bit_length())


def threads_of(packs: int, per_thread: int, limit: int) -> int:
    """Threads of a block for so many packs: whole warps, about `per_thread` packs a thread."""
    return min(limit, -(-packs // (32 * per_thread)) * 32)


def _without_empty_parts(length: int, parts: int) -> int:
    """`parts`, or the largest smaller number for which no part of equal length is empty."""
    return -(-length // -(-length // parts))


def main(arguments: list[str] | None = None) -> None:
    """Print the plans of batch norm in training, forward and backward."""
    parser = argparse.ArgumentParser(prog="python -m cnnlayers.kernels.cuda.norm_plan", description=main.__doc__)
    parser.add_argument("shape", help="of x, such as 32x64x56x56")
    parser.add_argument("dtype", nargs="?", default="float32", choices=list(ITEMSIZE))
    parser.add_argument("--channels-last", action="store_true", help="the shape ends with the channels")
    options = parser.parse_args(arguments)
    samples, *rest = (int(n) for n in options.shape.split("x"))
    channels, cells = rest.pop(-1 if options.channels_last else 0), math.prod(rest)
    shape = (
        ColumnLayout(1, samples * cells, channels, 1)
        if options.channels_last
        else RowLayout(channels, samples, cells, channels, cells)
    )
    try:
        device = device_here()
    except ImportError:
        device = H200
    print(device)
    for what, arrays in (("forward", 1), ("backward", 2)):
        print(
            f"{what}: {make_plan(device, shape, options.dtype, pack_of(shape, ITEMSIZE[options.dtype]), arrays=arrays)}"
        )


if __name__ == "__main__":
    main()
