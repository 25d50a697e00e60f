"""Warps of SASS run on the CPU, so that trip counts, divergence and loads are counted, not guessed.

Diverged groups of lanes run one after another until they converge. A sector that the warp has loaded before costs the
L1's latency, any other DRAM's. A warp that runs without its block finds zeros where others would have written shared
memory. Bank conflicts are not counted.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .device import LATENCY, latency_of
from .listing import Instruction
from .memory import Memory, Shared
from .operands import FULL, LANES, Arg, Array, address, bits, i32, is_pred, pred, setter, u32, u64
from .operations import build
from .scoreboards import Scoreboards, Tally

FLOW = ("BRA", "EXIT", "BSSY", "BSYNC", "BREAK", "CALL", "RET", "BAR", "WARPSYNC", "BPT")
LOAD, STORE, LOAD_SHARED, STORE_SHARED, ATOMIC = range(5)
ACCESS = {
    **{"LDG": LOAD, "LD": LOAD, "STG": STORE, "ST": STORE, "LDS": LOAD_SHARED, "STS": STORE_SHARED},
    **{"ATOM": ATOMIC, "ATOMG": ATOMIC, "REDG": ATOMIC},
}
MOST = 3_000_000  # instructions of a warp: more are taken for a loop without an end


@functools.lru_cache(maxsize=1 << 14)
def bools(mask: int) -> Array:
    """A mask as 32 bools."""
    made = (mask >> LANES & 1).astype(bool)
    made.flags.writeable = False
    return made


class Step:
    """An instruction, ready to run: `work` on registers, or an access to memory `at` with the data register `data`."""

    def __init__(self, ins: Instruction) -> None:
        self.ins, self.base = ins, ins.base
        self.guard = pred(ins.guard) if ins.guard else None
        access = self.base in ACCESS
        self.work = None if self.base in FLOW or access else build(ins)
        self.at = next((address(a) for a in ins.args if "[" in a), None) if access else None
        self.data = next((a for a in ins.args if "[" not in a and not is_pred(a)), "") if access else ""
        self.latency = latency_of(self.base)


class Code:
    """A function's instructions, in order from address 0."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.list = list(instructions)
        self.steps = [Step(ins) for ins in self.list]


@dataclass(eq=False)
class Barrier:
    """Where lanes converge: those expected, the index at which they go on, those that have come, and the barriers of
    the group that came last."""

    mask: int
    then: int
    there: int = 0
    outer: Any = None


@dataclass
class Group:
    """Lanes that run together: the next instruction, the lanes, their convergence barriers by name."""

    k: int
    mask: int
    barriers: dict[str, Barrier] = field(default_factory=dict)


class Warp:
    """One warp of a block of a launch. `constants`: of bank 0; `shared`: its block's."""

    def __init__(
        self, code: Code, constants: bytes, memory: Memory, shared: Shared, block: int, index: int, threads: int
    ) -> None:
        self.R, self.U = np.zeros((256, 32), u32), np.zeros((64, 32), u32)
        self.P, self.UP = np.zeros((8, 32), bool), np.zeros((8, 32), bool)
        self.P[7] = self.UP[7] = True
        self.code, self.memory, self.shared = code, memory, shared
        self._constants = np.frombuffer(constants, u32)
        thread, zero = u32(32 * index) + LANES, np.zeros(32, u32)
        self.special = {f"{name}.{axis}": zero for name in ("TID", "CTAID") for axis in "YZ"}
        self.special |= {"TID.X": thread, "CTAID.X": zero + u32(block), "LANEID": LANES}
        self.special |= {"Z": zero, "CgaCtaId": zero, "SRZ": zero, "LTMASK": (u32(1) << LANES) - u32(1)}
        self.alive = bits(thread < threads)
        self.tally = Tally()
        self.boards = Scoreboards(self.tally)
        self._seen: set[int] = set()
        self._groups = [Group(0, self.alive)]
        self._waiting: list[Barrier] = []

    def constant(self, offset: int) -> int:
        return int(self._constants[offset // 4])

    def run(self) -> Iterator[str]:
        """Run to the end; pauses at each barrier of the block, and where it polls."""
        while self._groups:
            group = self._groups.pop()
            group.mask &= self.alive
            while group.mask:
                pause = self._next(group)
                if pause:
                    yield pause
        if self._waiting:
            raise RuntimeError("lanes wait for others that ended or never came")
        self.tally.cycles = self.boards.clock

    def _next(self, group: Group) -> str | None:
        """Run the group's next instruction; gives what it pauses for."""
        step = self.code.steps[group.k]
        ins, lanes, on = step.ins, bools(group.mask), group.mask
        if self.tally.issued > MOST:
            raise RuntimeError(f"more than {MOST} instructions, at {ins.at:#x}")
        if step.guard:
            lanes = lanes & step.guard(self)
            on = bits(lanes)
        at = self.boards.issue(group.k, ins, on)
        group.k += 1
        pause, latency = None, step.latency
        if step.work:
            if on:
                step.work(self, lanes)
                self.tally.waves += step.base == "SHFL"
        elif step.at:
            if on:
                latency = self._access(step, lanes)
                pause = "poll" if "STRONG" in ins.op and ACCESS[step.base] == LOAD else None
        elif not self._flow(step, group, lanes, on):
            pause = "barrier" if step.base == "BAR" and on else None
        self.boards.release(ins, at, latency)
        return pause

    # ------------------------------------------------------------------------------------------------- control flow
    def _flow(self, step: Step, group: Group, lanes: Array, on: int) -> bool:
        """Branches, ends and convergence; False for a barrier of the block and for what has no effect here."""
        ins, base = step.ins, step.base
        if base == "BRA":
            self._branch(ins, group, lanes, on)
        elif base == "EXIT":
            self.alive &= ~on
            group.mask &= ~on
            for barrier in list(self._waiting):
                self._release(barrier)
        elif base in ("BSSY", "BSYNC", "BREAK", "WARPSYNC"):
            self._converge(ins, group, lanes, on)
        elif base == "CALL" and on:
            group.k = _target(ins)
        elif base == "RET" and on:
            back = Arg(ins.args[0].split()[0]).raw(self)
            place, *others = np.unique(back[lanes]).tolist()
            for other in others:
                self._groups.append(Group(other // 16, bits(lanes & (back == other)), dict(group.barriers)))
            group.k, group.mask = place // 16, bits(lanes & (back == place))
        elif base == "BAR":
            self.boards.clock += LATENCY["LDS"] if on else 0
            return False
        elif on:
            raise RuntimeError(f"{ins.op} at {ins.at:#x}: not to be reached here")
        return True

    def _branch(self, ins: Instruction, group: Group, lanes: Array, on: int) -> None:
        if len(ins.args) > 1:
            if "DIV" in ins.op:  # taken by a warp that has not converged
                on = 0 if group.mask == self.alive & int(Arg(ins.args[0]).i(self)[0]) else on
            else:
                on = bits(lanes & pred(ins.args[0])(self))
        if on:
            if on != group.mask:
                self._groups.append(Group(group.k, group.mask & ~on, dict(group.barriers)))
            group.k, group.mask = _target(ins), on

    def _converge(self, ins: Instruction, group: Group, lanes: Array, on: int) -> None:
        if "COLLECTIVE" in ins.op and on:
            raise RuntimeError(f"{ins.op} at {ins.at:#x}: not to be reached here")
        if ins.base == "BSSY":
            if on:
                group.barriers[ins.args[0]] = Barrier(group.mask, _target(ins))
        elif ins.base == "BREAK":
            barrier, conditions = group.barriers[ins.args[-1]], [pred(a) for a in ins.args[:-1]]
            barrier.mask &= ~(bits(lanes & conditions[0](self)) if conditions else on)
            if barrier in self._waiting:
                self._release(barrier)
        elif ins.base == "BSYNC" or (on and ins.op == "WARPSYNC.ALL"):
            barrier = group.barriers[ins.args[0]] if ins.args else self._whole_warp(group.k)
            barrier.there, barrier.outer = barrier.there | group.mask, group.barriers
            if barrier not in self._waiting:
                self._waiting.append(barrier)
            self._release(barrier)
            group.mask = 0

    def _whole_warp(self, k: int) -> Barrier:
        return next((b for b in self._waiting if b.then == k), Barrier(FULL, k))

    def _release(self, barrier: Barrier) -> None:
        """Let those who wait go on, if nobody is missing."""
        if barrier.there and barrier.mask & self.alive & ~barrier.there == 0:
            self._waiting.remove(barrier)
            self._groups.append(Group(barrier.then, barrier.there, barrier.outer))

    # ------------------------------------------------------------------------------------------------------- memory
    def _access(self, step: Step, lanes: Array) -> int:
        """Load, store or add; gives the latency."""
        ins, kind, size = step.ins, ACCESS[step.base], step.ins.size
        where = step.at(self)[lanes]
        latency = step.latency
        store: Any = self.shared if kind in (LOAD_SHARED, STORE_SHARED) else self.memory
        if store is self.shared:
            self.tally.waves += -(-where.size * size // 128)
        else:
            latency = self._count(ins, kind, where, lanes, latency)
        if kind in (LOAD, LOAD_SHARED):
            found, put = store.load(where, size), setter(step.data)
            signed = "S8" in ins.op or "S16" in ins.op
            for n in range(found.shape[1]):
                v = np.zeros(32, u32)
                v[lanes] = _sign_extended(found[:, n], size) if signed else found[:, n]
                put(self, v, lanes, n)
        elif kind in (STORE, STORE_SHARED):
            data = Arg(step.data)
            store.store(where, size, np.stack([data.raw(self, n)[lanes] for n in range(max(1, size // 4))], 1))
        else:
            self._atomic(ins, where, lanes)
        return latency

    def _count(self, ins: Instruction, kind: int, where: Array, lanes: Array, latency: int) -> int:
        """Note an access to global memory; gives its latency."""
        tally, write = self.tally, kind == STORE
        together = min(32, 128 // ins.size)  # lanes whose accesses pass at once
        slot = np.nonzero(lanes)[0] // together
        tally.waves += len(set(zip(slot.tolist(), (where >> u64(7)).tolist(), strict=True)))
        sectors = set((where >> u64(5)).tolist())
        tally.requests[write] += 1
        tally.moved[write] += where.size * ins.size
        tally.sectors[write] += len(sectors)
        if kind == LOAD:
            latency = LATENCY["L1"] if sectors <= self._seen else LATENCY["DRAM"]
            self._seen |= sectors
            self.boards.loaded(ins, where.size * ins.size)
        elif write:
            self.boards.stored()
        return latency

    def _atomic(self, ins: Instruction, where: Array, lanes: Array) -> None:
        """An integer's sum or maximum, one lane after another."""
        value = Arg([x for x in ins.args if "[" not in x][-1]).raw(self)[lanes]
        old = []
        for a, v in zip(where, value, strict=True):
            old.append(self.memory.load(np.array([a]), 4)[0, 0])
            new = old[-1] + v if "ADD" in ins.op else max(i32(old[-1]), v.view(i32)).view(u32)
            self.memory.store(np.array([a]), 4, np.array([[new]], u32))
        if ins.base != "REDG":
            v = np.zeros(32, u32)
            v[lanes] = old
            setter(ins.args[1])(self, v, lanes)


def _target(ins: Instruction) -> int:
    if ins.target is None:
        raise RuntimeError(f"{ins.op} at {ins.at:#x} goes to no label")
    return ins.target // 16


def _sign_extended(values: Array, size: int) -> Array:
    shift = u32(32 - 8 * size)
    return ((values << shift).view(i32) >> i32(shift)).view(u32)


Tallies = dict[tuple[int, int], Tally]


def run_blocks(code: Code, constants: bytes, memory: Memory, blocks: Sequence[int], threads: int) -> Tallies:
    """All warps of these blocks, side by side; at a block's barrier its warps' clocks agree."""
    found: Tallies = {}
    parties: list[list[list[Any]]] = []
    for block in blocks:
        shared = Shared()
        warps = [Warp(code, constants, memory, shared, block, k, threads) for k in range(-(-threads // 32))]
        found.update({(block, k): w.tally for k, w in enumerate(warps)})
        parties.append([[w, w.run(), ""] for w in warps])
    with np.errstate(all="ignore"):
        while parties:
            for party in parties:
                for entry in party:
                    if entry[2] != "barrier":
                        entry[2] = next(entry[1], "end")
                party[:] = [entry for entry in party if entry[2] != "end"]
                if all(state == "barrier" for _, _, state in party):
                    late = max((w.boards.clock for w, _, _ in party), default=0)
                    for entry in party:
                        entry[0].boards.clock, entry[2] = late, ""
            parties = [party for party in parties if party]
    return found


def run_warp(code: Code, constants: bytes, memory: Memory, block: int, index: int, threads: int) -> Tally:
    """One warp alone."""
    warp = Warp(code, constants, memory, Shared(), block, index, threads)
    with np.errstate(all="ignore"):
        for _ in warp.run():
            pass
    return warp.tally
