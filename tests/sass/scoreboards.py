"""When a warp can issue its next instruction: the scoreboards of the control words, and what they tell of loads."""

from __future__ import annotations

from dataclasses import dataclass, field

from .device import LATENCY
from .listing import Instruction


@dataclass
class Tally:
    """What one warp did.

    `hits`: times that each instruction was issued; `lanes`: its active lanes, summed; `moved`: bytes (loaded, stored)
    by its threads; `sectors`, `requests`: the same in sectors of 32 bytes and in accesses of the warp; `waves`: cycles
    of the processor's load/store unit; `batches`: bytes of loads under way, each time that the warp waits for one after
    a new one; `between`: instructions after the last load and before the next store; `cycles`: alone on its scheduler;
    `dram`: those of them in which it waits for DRAM."""

    issued: int = 0
    hits: dict[int, int] = field(default_factory=dict)
    lanes: dict[int, int] = field(default_factory=dict)
    moved: list[int] = field(default_factory=lambda: [0, 0])
    sectors: list[int] = field(default_factory=lambda: [0, 0])
    requests: list[int] = field(default_factory=lambda: [0, 0])
    waves: int = 0
    batches: list[int] = field(default_factory=list)
    between: int = 0
    cycles: int = 0
    dram: int = 0


class Scoreboards:
    """A warp's clock. A scoreboard is released when its result is there: by DRAM (`far`), or by anything else."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.clock = 0
        self._near, self._far, self._under = [0] * 8, [0] * 8, [0] * 8
        self._new = False
        self._since: int | None = None

    def issue(self, k: int, ins: Instruction, lanes: int) -> int:
        """Wait for what the instruction needs; gives the cycle in which it is issued."""
        tally = self.tally
        tally.issued += 1
        tally.hits[k] = tally.hits.get(k, 0) + 1
        tally.lanes[k] = tally.lanes.get(k, 0) + lanes.bit_count()
        if ins.wait:
            self._wait([b for b in range(6) if ins.wait >> b & 1])
        at, self.clock = self.clock, self.clock + max(1, ins.stall)
        if self._since is not None:
            self._since += 1
        return at

    def _wait(self, boards: list[int]) -> None:
        if self._new and any(self._under[b] for b in boards):
            self.tally.batches.append(sum(self._under))
            self._new = False
        for b in boards:
            self._under[b] = 0
        self.clock = max([self.clock, *(self._near[b] for b in boards)])
        far = max(self._far[b] for b in boards)
        self.tally.dram += max(0, far - self.clock)
        self.clock = max(self.clock, far)

    def release(self, ins: Instruction, at: int, latency: int) -> None:
        """The instruction, issued in cycle `at`, has its result after `latency`."""
        if ins.result < 7:
            boards = self._far if latency == LATENCY["DRAM"] else self._near
            boards[ins.result] = max(boards[ins.result], at + latency)
        if ins.operands < 7:
            self._near[ins.operands] = max(self._near[ins.operands], at + LATENCY["READ"])

    def loaded(self, ins: Instruction, size: int) -> None:
        """A load of so many bytes is under way."""
        self._since, self._new = 0, True
        self._under[ins.result] += size

    def stored(self) -> None:
        if self._since is not None:
            self.tally.between += self._since
            self._since = None
