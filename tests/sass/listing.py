"""SASS as nvdisasm lists it: instructions with their control words.

The control word (bits 105 to 125 of an instruction's 128, since Volta) is as Jia et al. 2018 describe it
(arXiv:1804.06826): 4 bits of stall cycles, yield, two scoreboards of 3 bits, a mask of 6 to wait for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

LOADS, STORES = ("LDG", "LD"), ("STG", "ST", "REDG")
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Instruction:
    """`at`: its address; `guard`: the predicate under which it runs; `target`: where it branches to; `stall`: cycles to
    the warp's next issue; `result`, `operands`: the scoreboards that are released when its result is there and when its
    operands have been read (7: none); `wait`: a bit for each scoreboard it waits for; `line`: of the source."""

    at: int
    guard: str
    op: str
    args: tuple[str, ...]
    target: int | None
    stall: int
    result: int
    operands: int
    wait: int
    line: str = ""

    @property
    def base(self) -> str:
        """The operation without its modifiers."""
        return self.op.partition(".")[0]

    @property
    def size(self) -> int:
        """Bytes that a thread moves, of a memory access."""
        return next((WIDTHS[word] for word in self.op.split(".")[1:] if word in WIDTHS), 4)


LINE = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/")


def parse(text: str) -> dict[str, list[Instruction]]:
    """The functions of `nvdisasm -c -g -hex`, by mangled name."""
    found = {}
    for section in re.split(r"\n\s*\.section\s+\.text\.", text)[1:]:
        name = re.match(r"[\w$]+", section)
        found[name[0] if name else ""] = _function(section)
    return found


def _function(section: str) -> list[Instruction]:
    labels: dict[str, int] = {}
    rows: list[tuple[int, str, str, str, str]] = []
    words: list[int] = []
    pending: list[str] = []
    where = ""
    for line in section.splitlines():
        if m := LINE.search(line):
            labels.update((label, int(m[1], 16)) for label in pending)
            pending = []
            rows.append((int(m[1], 16), m[2] or "", m[3], m[4], where))
        elif len(words) < len(rows) and (m := re.search(r"/\* (0x[0-9a-f]{16}) \*/", line)):
            words.append(int(m[1], 16) >> 41)
        elif m := re.search(r'//## File "(?:.*/)?([^"/]+)", line (\d+)', line):
            where = f"{m[1]}:{m[2]}"
        elif m := re.match(r"([.$\w]+):", line):
            pending.append(m[1])
    return [_instruction(labels, *row, word) for row, word in zip(rows, words, strict=True)]


def _instruction(
    labels: Mapping[str, int], at: int, guard: str, op: str, rest: str, line: str, word: int
) -> Instruction:
    args = tuple(a.strip() for a in re.split(r",(?![^\[]*\])", rest) if a.strip())
    label = re.search(r"`\(([^)]*)\)", rest)
    target = labels.get(label[1]) if label else None
    return Instruction(at, guard, op, args, target, word & 15, word >> 5 & 7, word >> 8 & 7, word >> 11 & 63, line)
