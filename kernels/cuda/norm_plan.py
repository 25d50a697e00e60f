"""How a norm's statistics groups are assigned to a device: which launches, how many blocks a row, what is stored where.

A *row* is a statistics group (row_reduce.cuh); in group norm's backward alone it is one channel of a group, and the
mapping "group" gives a block all channels of one. If it fits on the chip,
one launch reads it once: in lanes of a warp, in a block, or in several blocks of a cooperative grid, which also keep
the device busy when rows are few. Rows that do not fit are read twice by two launches, as many rows at a time as stay
in the L2 cache.

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
STATIC_SMEM = 1024  # the most bytes of static shared memory of a kernel
DEFAULT_SMEM_LIMIT = 48 * 1024  # bytes a block, static ones included, beyond which a launch must raise the limit
BARRIER_COST = 2048  # packs that a multiprocessor could move during a grid barrier: an estimate
# Packs of x that a thread has in registers; bfloat16 has fewer because nvcc stores its values widened.
REGISTER_PACKS = {"float16": 8, "bfloat16": 6, "float32": 8, "float64": 8}
# Packs of x, and as many of dy.
REGISTER_PACKS_BACKWARD = {"float16": 8, "bfloat16": 5, "float32": 8, "float64": 7}
FEW_PACKS = 4  # packs in registers, of each array, where no more are needed
STREAMING_MAPPINGS = "stream", "two_launches"  # mappings that keep no row on the chip
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Device:
    """The properties of a device that a plan depends on. shared: the most bytes of shared memory of a block; l2: bytes
    of cache; cooperative: whether grid barriers are supported; threads: of a block that occupies a multiprocessor."""

    multiprocessors: int
    shared: int
    l2: int
    cooperative: bool
    threads: int = THREADS


H200 = Device(multiprocessors=132, shared=227 << 10, l2=50 << 20, cooperative=True)


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

    mapping: "warp", "block", "grid" and "group" are one launch that reads an array once; "two_launches" reads it twice;
    "stream" is one launch for known statistics, which keeps nothing on the chip. pack: elements of one access;
    register_packs: packs of an array in a thread's registers; lanes: threads of a row with "warp", of a run of packs
    with "group"; parts: blocks of a row; wave: rows processed at a time; shared: bytes of dynamic shared memory;
    stream_blocks: blocks of a row in a launch that only reads and writes it.
    """

    mapping: str
    rows: int
    packs: int
    pack: int
    register_packs: int
    threads: int
    lanes: int = 32
    parts: int = 1
    wave: int = 0
    shared: int = 0
    stream_blocks: int = 1

    def __str__(self) -> str:
        row = f"{self.rows:,} rows of {self.packs:,} packs of {self.pack}"
        if self.mapping in STREAMING_MAPPINGS:
            number = "one launch" if self.mapping == "stream" else "two launches"
            return (
                f"{row}: {number}, {self.wave:,} rows at a time, in {self.parts} and {self.stream_blocks} blocks "
                f"of {self.threads} threads a row"
            )
        blocks = {
            "warp": f"{self.lanes} threads a row, blocks of {self.threads}",
            "block": f"a block of {self.threads} threads a row",
            "group": f"a block of {self.threads} threads a row, runs of {self.lanes} of a channel",
            "grid": f"{self.parts} blocks of {self.threads} threads a row, {self.wave:,} rows at a time",
        }[self.mapping]
        return f"{row}: one launch, {blocks}, {self._stored}"

    @property
    def _stored(self) -> str:
        return f"{self.register_packs} packs a thread in registers, {self.shared:,} bytes shared"

    @property
    def grid_size(self) -> int:
        """Blocks of the one launch."""
        if self.mapping == "warp":
            return -(-self.rows * self.lanes // self.threads)
        return self.wave * self.parts if self.mapping == "grid" else self.rows


@dataclass(frozen=True)
class ColumnPlan(LaunchPlan):
    """A plan for columns: `rows` counts ranges of columns, `lanes` packs width and `packs` deep; "three_launches"
    compute sums of parts, then of groups, then y or dx; where statistics are known, one of the three is left out."""

    def __str__(self) -> str:
        columns = f"{self.rows:,} column ranges of {self.lanes} packs of {self.pack} across, {self.packs:,} deep"
        if self.mapping == "three_launches":
            blocks = f"{self.parts} and {self.stream_blocks} blocks of {self.threads} threads a range"
            return f"{columns}: three launches, {blocks}"
        blocks = f"{self.parts} blocks of {self.threads} threads a range, {self.wave:,} ranges at a time"
        return f"{columns}: one launch, {blocks}, {self._stored}"


def pack_of(shape: RowLayout | ColumnLayout, itemsize: int, *aligned_to: int) -> int:
    """Elements of one access: up to 16 bytes, within a contiguous range and aligned in every array. `aligned_to`:
    arrays' addresses, or what these are multiples of."""
    pack = 16 // itemsize
    while shape.vector_extent % pack or any(a % (pack * itemsize) for a in aligned_to):
        pack //= 2
    return pack


@functools.lru_cache(maxsize=4096)  # by number: plans of norms have a fixed size
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
    pack_bytes = pack * ITEMSIZE[dtype] * arrays  # of a pack of each
    if isinstance(shape, ColumnLayout):
        workspace = STREAM_THREADS * pack * max(4, ITEMSIZE[dtype])  # bytes of column_reduce.cuh's workspace
        one_launch = not use_running_stats and shape.group_channels == 1
        register_packs = REGISTER_PACKS[dtype] if one_launch else 0
        columns = _column_plan(device, shape, pack, register_packs, pack_bytes, workspace)
        return replace(columns, parts=columns.stream_blocks) if use_running_stats else columns
    if use_running_stats:
        return _stream_plan(shape, pack)
    register_packs = REGISTER_PACKS[dtype] if arrays == 1 else REGISTER_PACKS_BACKWARD[dtype]
    if group > 1:
        return _group_plan(device, shape, pack, register_packs, pack_bytes, group, max(4, ITEMSIZE[dtype]))
    return _row_plan(device, shape, pack, register_packs, pack_bytes)


# ---------------------------------------------------------------------------------------------------------------- rows
def _row_plan(device: Device, shape: RowLayout, pack: int, register_packs: int, pack_bytes: int) -> LaunchPlan:
    rows, packs = shape.rows, shape.segments * shape.cells // pack
    if packs <= 64 or (packs <= 32 * register_packs and rows >= 4 * device.multiprocessors):
        return LaunchPlan("warp", rows, packs, pack, register_packs, WARP_THREADS, lanes_of(packs), wave=rows)
    capacity = register_packs * device.threads + (device.shared - STATIC_SMEM) // pack_bytes
    found = _best_split(device, rows, packs, capacity, device.threads, BARRIER_COST)
    if found is None or _underuses_device(device, rows, packs, found[0]):
        return _two_launches(device, shape, pack, pack_bytes, register_packs)
    _, parts, wave = found
    share = -(-packs // parts)
    many = parts == 1 and rows >= 4 * device.multiprocessors  # small blocks, of which a multiprocessor holds several
    threads = threads_of(share, register_packs if many else max(1, register_packs // 2), device.threads)
    shared = _dynamic_smem(pack_bytes * max(0, share - register_packs * threads))
    return LaunchPlan(
        "grid" if parts > 1 else "block", rows, packs, pack, register_packs, threads, 32, parts, wave, shared
    )


def _best_split(
    device: Device, rows: int, length: int, capacity: int, min_part: int, barrier_cost: int
) -> tuple[int, int, int] | None:
    """The fastest split of rows over blocks that store `capacity` of their `length`: its time, the blocks of a row and
    the rows at a time. None if a row does not fit the chip.

    Time is counted in packs moved by a multiprocessor; so is `barrier_cost`. A block's part is `min_part` or more.
    """
    needed, most = -(-length // capacity), device.multiprocessors if device.cooperative else 1
    candidates = []
    for wanted in range(needed, min(most, max(needed, length // min_part)) + 1):
        share = -(-length // wanted)
        parts = -(-length // share)  # no part is empty
        wave = min(rows, device.multiprocessors // parts)
        waves = -(-rows // wave)
        candidates.append((waves * (share + barrier_cost * (parts > 1)), parts, wave if parts > 1 else rows))
    return min(candidates, default=None)


def _underuses_device(device: Device, rows: int, length: int, time: int) -> bool:
    """Whether a device without grid barriers would be so empty that reading twice with all of it is faster."""
    return not device.cooperative and time > 2 * -(-rows * length // device.multiprocessors) + 2 * BARRIER_COST


def _group_plan(
    device: Device, shape: RowLayout, pack: int, register_packs: int, pack_bytes: int, channels: int, accumulator: int
) -> LaunchPlan:
    """One block a group of `channels` rows, with each row in whole runs of packs; or two launches."""
    length = shape.cells // pack
    lanes = next(n for n in (32, 16, 8, 4, 2, 1) if 4 * (-length % n) <= length)  # at most a quarter is unused
    slots = -(-channels * -(-length // lanes) * lanes // 32) * 32
    threads = threads_of(slots, max(1, register_packs // 2), device.threads)
    if slots <= FEW_PACKS * threads:
        register_packs = min(register_packs, FEW_PACKS)  # and more blocks a multiprocessor
    sums = -(-(slots // lanes * 2 * accumulator) // 16) * 16
    shared = _dynamic_smem(sums + pack_bytes * max(0, slots - register_packs * threads))
    groups = shape.rows // channels
    if shared > device.shared - STATIC_SMEM or (2 * groups <= device.multiprocessors and slots > 4 * device.threads):
        return _two_launches(device, shape, pack, pack_bytes, 4, channels)
    return LaunchPlan("group", groups, slots, pack, register_packs, threads, lanes, 1, groups, shared)


def _two_launches(
    device: Device, shape: RowLayout, pack: int, pack_bytes: int, register_packs: int, group: int = 1
) -> LaunchPlan:
    """Rows that are read twice, whole groups of `group` of them at a time."""
    packs = shape.segments * shape.cells // pack
    run = STREAM_THREADS * register_packs  # packs that a block loads at once
    wanted = max(-(-8 * device.multiprocessors // shape.rows), -(-packs // (64 * run)))  # a full device, no long block
    parts = _without_empty_parts(packs, max(1, min(wanted, -(-packs // run), MAX_PARTS)))
    fit = device.l2 // 2 // (packs * pack_bytes) // group * group
    stream_blocks, threads = _stream_blocks(packs)
    wave = min(shape.rows, fit or shape.rows)
    return LaunchPlan(
        "two_launches", shape.rows, packs, pack, register_packs, threads, 32, parts, wave, 0, stream_blocks
    )


def _stream_plan(shape: RowLayout, pack: int) -> LaunchPlan:
    """Rows whose statistics are known: one launch that stores nothing on the chip."""
    packs = shape.segments * shape.cells // pack
    stream_blocks, threads = _stream_blocks(packs)
    return LaunchPlan("stream", shape.rows, packs, pack, 0, threads, 32, stream_blocks, shape.rows, 0, stream_blocks)


def _stream_blocks(packs: int) -> tuple[int, int]:
    """Blocks of a row that is only read and written, and their threads."""
    blocks = _without_empty_parts(packs, -(-packs // (STREAM_THREADS * STREAM_PACKS)))
    return blocks, threads_of(-(-packs // blocks), 4, STREAM_THREADS)


# ------------------------------------------------------------------------------------------------------------- columns
def _column_plan(
    device: Device, shape: ColumnLayout, pack: int, register_packs: int, pack_bytes: int, workspace: int
) -> ColumnPlan:
    """Column ranges of the width for which one launch is fastest, or three launches; always three if `register_packs`
    is 0."""
    across, depth = shape.channels // pack, shape.depth
    widest, best, fastest = lanes_of(across), None, 0
    widths = [widest] + [width for width in (16, 8) if width < widest]  # 8 packs are 128 bytes
    for width in widths if register_packs and workspace <= device.shared - STATIC_SMEM else ():
        number, step = shape.samples * -(-across // width), STREAM_THREADS // width
        fit = register_packs * step + (device.shared - STATIC_SMEM - workspace) // (width * pack_bytes)
        found = _best_split(device, number, depth, fit, step, 2 * BARRIER_COST // width)
        if (
            found is None
            or _underuses_device(device, number, depth, found[0])
            or (best and found[0] * width >= fastest)
        ):
            continue
        fastest, parts, wave = found[0] * width, *found[1:]
        shared = _dynamic_smem(workspace + width * pack_bytes * max(0, -(-depth // parts) - register_packs * step))
        mapping = "grid" if parts > 1 else "block"
        best = ColumnPlan(mapping, number, depth, pack, register_packs, STREAM_THREADS, width, parts, wave, shared)
    return best or _column_three_launches(device, shape, pack, widest)


def _column_three_launches(device: Device, shape: ColumnLayout, pack: int, width: int) -> ColumnPlan:
    number, step = shape.samples * -(-(shape.channels // pack) // width), STREAM_THREADS // width
    resident = 2 * device.multiprocessors  # blocks of the first launch: all at a time
    parts = max(1, min(resident // number, -(-shape.depth // max(64, 4 * step))))
    stream_blocks = _without_empty_parts(shape.depth, -(-shape.depth // (STREAM_PACKS * step)))
    parts = _without_empty_parts(shape.depth, parts)
    return ColumnPlan(
        "three_launches", number, shape.depth, pack, 4, STREAM_THREADS, width, parts, number, 0, stream_blocks
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


def _dynamic_smem(shared: int) -> int:
    """Bytes of dynamic shared memory to launch with. Where static and dynamic bytes together may pass the default
    limit, the dynamic ones alone do, so that the launch raises the limit."""
    return shared if shared <= DEFAULT_SMEM_LIMIT - STATIC_SMEM else max(shared, DEFAULT_SMEM_LIMIT + 16)


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
