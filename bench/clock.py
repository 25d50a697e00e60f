"""How time is taken. Contestants take turns in short blocks of one run, so that what the machine does meanwhile meets
them all; a block's first call is not counted.

On the CPU a pause precedes each block: the threads of OpenBLAS and OpenMP spin for some 30 ms after their last work,
and would steal a core from whoever comes next. On a GPU events stand around every call, the L2 is overwritten between
calls by other, clean data, and the queue is filled ahead: where the host could not keep ahead, the row says so.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.backends import Backend

from .contest import Call, Contestant

ROUNDS = 4
SLOW_ROUNDS = 3  # of one call each, for who takes more than half a row's time a call
MOST = 60  # calls a block
SETTLE = 0.04  # seconds
SHORT_CALL = 0.02  # seconds: a call longer than this needs no uncounted one before it in later blocks
COPY_BYTES = 1 << 27  # of the copy that measures the bandwidth: more than a cache


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of `runs` calls, where a fifth and four fifths of them lie, and the least. host: of the
    launch alone. host_bound: the host did not keep ahead of the GPU, so that its own time is in the figures."""

    median: float
    p20: float
    p80: float
    runs: int
    host: float | None = None
    host_bound: bool = False
    least: float = 0.0

    @property
    def spread(self) -> float:
        """Half the distance from the 20th to the 80th percentile, as a fraction of the median."""
        return (self.p80 - self.p20) / 2 / self.median


@dataclass
class Block:
    """Seconds of each call of a block."""

    times: list[float]
    host: list[float]
    host_bound: bool = False


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector waits until the block is over."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class HostClock:
    """The processor's own clock; a contestant is finished when its call returns, or at `finish`."""

    settle = SETTLE

    def block(self, contestant: Contestant, call: Call, copies: int, runs: int) -> Block:
        times = []
        for i in range(runs):
            start = time.perf_counter()
            result = call(i % copies)
            contestant.finish()
            times.append(time.perf_counter() - start)
            del result  # not while the next call is timed
        return Block(times, [])


class EventClock:
    """CUDA events around every call, the L2 overwritten between calls."""

    settle = 0.0

    def __init__(self, b: Backend) -> None:
        self.cuda = b.xp.cuda
        size = max(2 * int(b.device.attributes["L2CacheSize"]), 1 << 26)
        self.set, self.read = b.xp.zeros(size, b.xp.uint8), b.xp.zeros(size // 4, b.xp.float32)
        self.sum = b.xp.zeros((), b.xp.float32)

    def flush(self) -> None:
        """Fill the L2 with clean data: what a memset leaves in it is written back while other data is read. Otherwise
        the write-back would take place in the call that is timed."""
        self.set.data.memset_async(0, self.set.nbytes)
        self.read.sum(out=self.sum)

    def block(self, contestant: Contestant, call: Call, copies: int, runs: int) -> Block:
        """A queue of flushes gives the host its start; if that was too short it is doubled, twice."""
        if not contestant.by_events:
            return self._waiting(contestant, call, copies, runs)
        for ahead in (2 * runs, 4 * runs, 8 * runs):
            block = self._queued(call, copies, runs, ahead)
            if not block.host_bound:
                break
        return block

    def _queued(self, call: Call, copies: int, runs: int, ahead: int) -> Block:
        events = [(self.cuda.Event(), self.cuda.Event()) for _ in range(runs)]
        host = []
        self.cuda.Device().synchronize()
        for _ in range(ahead):
            self.flush()
        for i, (begin, end) in enumerate(events):
            self.flush()
            begin.record()
            start = time.perf_counter()
            call(i % copies)
            host.append(time.perf_counter() - start)
            end.record()
        starved = bool(events[0][0].done)  # the GPU had begun the first call before the last was in its queue
        events[-1][1].synchronize()
        times = [self.cuda.get_elapsed_time(begin, end) / 1e3 for begin, end in events]
        return Block(times, host, starved)

    def _waiting(self, contestant: Contestant, call: Call, copies: int, runs: int) -> Block:
        """By the host's clock, for work on streams that these events do not see."""
        times = []
        for i in range(runs):
            self.flush()
            self.cuda.Device().synchronize()
            times += HostClock().block(contestant, functools.partial(_one, call, i % copies), 1, 1).times
        return Block(times, [], True)


def _one(call: Call, copy: int, i: int) -> Any:
    return call(copy)


Clock = HostClock | EventClock


def clock_of(b: Backend) -> Clock:
    """The clock for arrays of this backend."""
    return EventClock(b) if b.name == "cupy" else HostClock()


def interleaved(
    clock: Clock, calls: Mapping[str, tuple[Contestant, Call]], copies: int, seconds: float, rounds: int = ROUNDS
) -> dict[str, Timing]:
    """Time each call for about `seconds` in all; every one has run before. Blocks take turns."""
    first = {name: _first(clock, *entry, copies) for name, entry in calls.items()}
    share = seconds / max(1, len(calls)) / rounds
    blocks: dict[str, list[Block]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, (contestant, call) in calls.items():
            slow = first[name] > seconds / 2
            if slow and turn >= SLOW_ROUNDS:
                continue
            runs = int(min(MOST, max(1, share / max(first[name], 1e-7))))
            time.sleep(clock.settle)
            with contestant.session(), _no_collection():
                if first[name] < SHORT_CALL:
                    clock.block(contestant, call, copies, 1)
                blocks[name].append(clock.block(contestant, call, copies, runs))
    return {name: _summary(found) for name, found in blocks.items()}


def _first(clock: Clock, contestant: Contestant, call: Call, copies: int) -> float:
    """Seconds of a call, to plan by; the launch's own where that is longer."""
    with contestant.session(), _no_collection():
        block = clock.block(contestant, call, copies, 1)
        if block.times[0] < SHORT_CALL:
            block = clock.block(contestant, call, copies, 2)
    return max(min(block.times), min(block.host, default=0.0))


def _summary(blocks: list[Block]) -> Timing:
    times = np.array([t for block in blocks for t in block.times])
    host = [t for block in blocks for t in block.host]
    p20, median, p80 = (float(v) for v in np.quantile(times, [0.2, 0.5, 0.8]))
    bound = any(block.host_bound for block in blocks)
    return Timing(median, p20, p80, len(times), float(np.median(host)) if host else None, bound, float(times.min()))


class Copy(Contestant):
    """A copy of a large array, on our threads or on the GPU: the most that the memory gives. It is measured in turn
    with every row that memory bounds, because with other users on the machine it changes from minute to minute."""

    name = "copy"

    def __init__(self, b: Backend, size: int = COPY_BYTES) -> None:
        size *= 4 if b.name == "cupy" else 1
        self.nbytes = 2 * size  # read and written
        self.host = b.name != "cupy"
        self.source, self.target = b.xp.zeros(size, b.xp.uint8), b.xp.zeros(size, b.xp.uint8)
        self.source += 1  # a page that was never written is not in memory
        self.parts = [slice(i << 22, (i + 1) << 22) for i in range(-(-size >> 22))]

    def run(self, i: int) -> None:
        if self.host:
            backends.run_chunks(lambda part: np.copyto(self.target[part], self.source[part]), self.parts)
        else:
            self.target[...] = self.source

    def bandwidth(self, timing: Timing) -> float:
        """Bytes a second, those read and those written counted."""
        return self.nbytes / timing.median


class Product(Contestant):
    """A product of two large matrices in float32, on our threads or on the GPU: what this library can get out of the
    processor. It is measured in turn with every convolution, because it changes as the bandwidth does."""

    name = "product"

    def __init__(self, b: Backend, length: int) -> None:
        self.operations = 2.0 * length**3
        self.x = b.xp.ones((length, length), b.xp.float32)

    def run(self, i: int) -> None:
        F.linear(self.x, self.x)

    def operations_a_second(self, timing: Timing) -> float:
        """Additions and multiplications a second."""
        return self.operations / timing.median
