"""How near a launch can come to a copy's bandwidth, from what some of its warps did.

issue    Warp instructions, over what the schedulers can issue.
pipes    The same for the busiest kind of instruction (device.PIPES) and for the load/store unit.
latency  Little's law for loads: the time that the bytes read take if each warp waits `Device.latency` for every batch,
         a batch being what it has under way when it first waits for one of them (by the control words' scoreboards).

`bound` is by issue and pipes alone: the greatest share of the bandwidth, whatever the memory does. `guess` is a guess
at the time: the longest of these (half the latency: memory is not always busy), of memory's time, of one warp's time
alone times the rounds of resident blocks, and, where a processor holds one block, of memory's time plus what is issued
between loads and stores.

Bytes are those of the arrays that the sampled warps touch, each once a direction, from DRAM even where the L2 would
hold them. Times are microseconds.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .. import nvrtc
from .device import H200, PIPES, Device
from .launches import Launch, build
from .memory import Memory
from .warp import Code, Tally, run_blocks, run_warp

SOME = 12  # warps of a sample


@dataclass
class Verdict:
    """`count`: instructions of a mean warp; `lanes`: its mean of active lanes; `held`: blocks that a processor has at a
    time; `moved`: least bytes; `flight`: bytes of loads under way on a processor; `sectors`: those that the sampled
    warps asked for, over the sectors of the bytes that their threads moved."""

    launch: Launch
    kernel: nvrtc.Kernel
    count: float
    lanes: float
    held: int
    moved: int
    flight: float
    sectors: float
    memory: float
    issue: float
    pipe: tuple[str, float]
    latency: float
    time: float
    lines: collections.Counter[str] = field(repr=False)

    @property
    def bound(self) -> float:
        return self.memory / max(self.memory, self.issue, self.pipe[1])

    @property
    def guess(self) -> float:
        return self.memory / self.time


def sample(launch: Launch, code: Code, some: int = SOME) -> tuple[list[Tally], Memory]:
    """Warps spread evenly over the grid; where a block's warps wait for one another, all of the first block and of the
    middle one."""
    memory = Memory()
    constants = launch.constants(memory)
    if any(i.base == "BAR" for i in code.list):
        run = run_blocks(code, constants, memory, sorted({0, launch.grid // 2}), launch.block)
        return list(run.values()), memory
    total = launch.grid * launch.warps
    places = sorted({int((k + 0.5) * total / some) for k in range(some)})
    found = [run_warp(code, constants, memory, *divmod(p, launch.warps), launch.block) for p in places]
    return found, memory


def judge(launch: Launch, device: Device = H200, text: str | None = None) -> Verdict:
    """Everything about a launch. `text`: a source of its own, instead of the library's."""
    kernel, listed = build(launch.stem, launch.kernel, text)
    code = Code(listed)
    tallies, memory = sample(launch, code)
    hits = {k: sum(t.hits.get(k, 0) for t in tallies) / len(tallies) for k in range(len(listed))}
    count = mean(tallies, lambda t: t.issued)
    resident = device.resident(kernel.registers, kernel.shared + launch.shared, launch.block)
    held = min(resident, -(-launch.grid // device.processors))
    busiest = launch.grid / device.processors  # blocks of a processor; of the busiest, if all are dealt out at once
    busiest = math.ceil(busiest) if busiest <= resident else busiest
    cycle = 1e6 / device.clock * busiest * launch.warps  # of one cycle for each of its warps, one after another
    moved = memory.moved(False) + memory.moved(True)
    memory_time, issue = moved / device.copy * 1e6, count * cycle / device.schedulers
    pipes = {p: n * cycle / device.schedulers for p, n in _used(listed, hits).items()}
    pipes["lsu"] = mean(tallies, lambda t: t.waves) * cycle
    pipe = max(pipes.items(), key=lambda kv: kv[1])
    batches = [b for t in tallies for b in t.batches]
    flight = sum(batches) / max(1, len(batches)) * launch.warps * held
    rate = flight * min(device.processors, launch.grid) / device.latency
    latency = memory.moved(False) / rate * 1e6 if flight else 0.0
    alone = _alone(tallies, device, max(1.0, busiest / held), memory_time)
    between = mean(tallies, lambda t: t.between) * cycle / device.schedulers
    phases = memory_time + between if held == 1 else 0.0
    lines: collections.Counter[str] = collections.Counter()
    for k, n in hits.items():
        lines[listed[k].line] += n
    asked, used = (sum(sum(getattr(t, what)) for t in tallies) for what in ("sectors", "moved"))
    return Verdict(
        launch, kernel, count, mean(tallies, lambda t: sum(t.lanes.values())) / count, held, moved, flight,
        32 * asked / max(1, used), memory_time, issue, pipe, latency,
        max(memory_time, issue, *pipes.values(), latency / 2, alone, phases), lines,
    )  # fmt: skip


def mean(tallies: Sequence[Tally], of: Callable[[Tally], float]) -> float:
    return sum(map(of, tallies)) / len(tallies)


def _used(listed: Sequence, hits: dict[int, float]) -> dict[str, float]:
    """Cycles of each pipe that a warp takes; IMAD runs on half of the float32 pipe."""
    used = {
        name: sum(n * pipe.cycles for k, n in hits.items() if listed[k].base in pipe.operations)
        for name, pipe in PIPES.items()
    }
    used["fma"] += used["imad"] / 2
    return used


def _alone(tallies: Sequence[Tally], device: Device, rounds: float, memory_time: float) -> float:
    """The slowest warp's time alone times the rounds of resident blocks. DRAM's latency lies between half of the
    assumed (idle) and all of it (busy): the time solves t = near + far/2 + far/2 * memory/t."""
    slow = max(tallies, key=lambda t: t.cycles)
    far, near = (n * 1e6 / device.clock * rounds for n in (slow.dram, slow.cycles - slow.dram))
    return (near + far / 2 + math.sqrt((near + far / 2) ** 2 + 2 * far * memory_time)) / 2
