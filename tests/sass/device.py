"""Devices, pipe rates and latencies. No GPU has confirmed them: a first measurement corrects this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A GPU. `processors` and `clock` (Hz) are the data sheet's; 4 schedulers issue an instruction a cycle each.

    `copy`: bytes a second, read and written, of a copy of a large array (about nine tenths of the data sheet's
    bandwidth). `latency`: seconds until a load from busy memory returns, an assumption; idle memory is taken to need
    half of it. `threads`, `blocks`, `shared`: the most of a processor (CUDA C++ Programming Guide, compute
    capabilities). `shared` counts 1 KB a block for the system. `l2`: bytes."""

    name: str
    processors: int
    clock: float
    copy: float
    latency: float = 700e-9
    threads: int = 2048
    blocks: int = 32
    shared: int = 233472
    l2: int = 50 << 20
    schedulers: int = 4

    def resident(self, registers: int, shared: int, threads: int) -> int:
        """Blocks that a processor holds. A warp takes registers in multiples of 256, of a quarter of 64 K; a block
        takes shared memory in multiples of 128 bytes."""
        warps = -(-threads // 32)
        by_registers = 4 * (16384 // (-(-registers // 8) * 256)) // warps
        by_shared = self.shared // (-(-shared // 128) * 128 + 1024)
        return min(self.threads // 32 // warps, self.blocks, by_registers, by_shared)


H200 = Device("H200", 132, 1.98e9, 4.3e12, l2=60 << 20)
A100 = Device("A100 80 GB", 108, 1.41e9, 1.75e12, shared=167936, l2=40 << 20)
RTX_4090 = Device("RTX 4090", 128, 2.52e9, 0.92e12, threads=1536, blocks=24, shared=102400, l2=72 << 20)
B200 = Device("B200", 148, 1.97e9, 7.1e12, l2=126 << 20)
DEVICES = (H200, A100, RTX_4090, B200)


@dataclass(frozen=True)
class Pipe:
    """`cycles` of a scheduler's quarter of a pipe for an instruction of a warp, and the instructions that use it."""

    cycles: int
    operations: frozenset[str]


def _pipe(cycles: int, operations: str) -> Pipe:
    return Pipe(cycles, frozenset(operations.split()))


# 32 lanes over a quarter of the results a clock of the Programming Guide's "Throughput of Native Arithmetic
# Instructions" for 9.0: float32 128, integers 64, float64 64, reciprocals and conversions 16. IMAD runs on half of the
# float32 pipe and the other integers on their own, by microbenchmarks since Volta (arXiv:1804.06826).
PIPES: Mapping[str, Pipe] = {
    "fma": _pipe(1, "FADD FMUL FFMA HADD2 HMUL2 HFMA2"),
    "imad": _pipe(2, "IMAD"),
    "alu": _pipe(
        2,
        "IADD3 LOP3 ISETP SEL SHF LEA PRMT VIADD VIMNMX VIMNMX3 VIADDMNMX MOV IABS PLOP3 FSETP FSEL FMNMX HMNMX2 "
        "HSETP2 HSET2 F2FP I2FP P2R R2P CS2R BMSK SGXT VABSDIFF",
    ),
    "xu": _pipe(8, "MUFU I2F F2I F2F POPC FLO BREV"),
    "fp64": _pipe(2, "DADD DMUL DFMA DSETP"),
}

# Cycles until a result may be used. DRAM: 700 ns of an H200's clock (arXiv:2402.13499 measures about 480 cycles on an
# idle H100); the others are of the order that microbenchmarks report (arXiv:1804.06826, arXiv:2402.13499).
LATENCY: Mapping[str, int] = {
    "DRAM": 1386,
    "L1": 33,
    "LDS": 29,
    "MUFU": 24,
    "SHFL": 24,
    "LDC": 40,
    "S2R": 20,
    "F64": 16,
    "ATOM": 700,
    "READ": 12,
}


def latency_of(operation: str) -> int:
    """Of an instruction's result, by its scoreboard; loads from global memory have their own."""
    if operation in PIPES["xu"].operations:
        return LATENCY["MUFU"]
    if operation in PIPES["fp64"].operations:
        return LATENCY["F64"]
    alike = {"ULDC": "LDC", "S2UR": "S2R", "REDG": "ATOM", "R2UR": "S2R"}
    return LATENCY.get(alike.get(operation, operation), LATENCY["READ"])
