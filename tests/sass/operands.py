"""What an instruction's operands are: registers, constants, immediates, predicates, addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

u32, u64, i32, i64, f32, f64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
Array = Any
FULL = 0xFFFFFFFF
LANES = np.arange(32, dtype=u32)


def bits(lanes: Array) -> int:
    """32 bools as a mask."""
    return int.from_bytes(np.packbits(lanes, bitorder="little").tobytes(), "little")


class Arg:
    """An operand: a register, a constant or an immediate, with its sign."""

    def __init__(self, text: str) -> None:
        text = text.replace(".reuse", "").strip()
        self.half = text[-2:] if re.search(r"\.H\d_H\d$", text) else ""
        text = re.sub(r"\.(H\d_H\d|64)$", "", text)
        self.value: Any = None
        self.bank, self.index, self.neg, self.inv, self.mag = "", 0, False, False, False
        if re.fullmatch(r"-?0x[0-9a-f]+", text):
            self.value = int(text, 16) & FULL
        elif re.fullmatch(r"[+-]?(\d[\d.e+-]*|INF|QNAN)", text):
            self.value = float(text.replace("QNAN", "nan"))
        else:
            self.neg, self.inv = text.startswith("-"), text.startswith("~")
            self.mag = "|" in text
            name = text.strip("-~|")
            if name.startswith("c["):
                self.bank, self.index = "C", int(re.search(r"\]\[(0x[0-9a-f]+)\]", name)[1], 16)
            elif name in ("RZ", "SRZ", "URZ"):
                self.bank, self.index = ("U", 63) if name == "URZ" else ("R", 255)
            else:
                self.bank, self.index = ("U", int(name[2:])) if name.startswith("UR") else ("R", int(name[1:]))
        if self.value is not None:
            integer = isinstance(self.value, int)
            self._word = np.full(32, self.value if integer else 0, u32)
            with np.errstate(over="ignore"):  # a constant of float64 may be beyond float32
                self._float = self._word.view(f32) if integer else np.full(32, self.value, f32)
            self._double = np.full(32, self.value, f64)

    def raw(self, w: Any, on: int = 0) -> Array:
        if self.bank == "R":
            return w.R[255 if self.index == 255 else self.index + on]
        if self.bank == "U":
            return w.U[63 if self.index == 63 else self.index + on]
        if self.bank == "C":
            return np.full(32, w.constant(self.index + 4 * on), u32)
        return self._word if not on else np.zeros(32, u32)

    def i(self, w: Any) -> Array:
        v = self.raw(w)
        return (~v + u32(1)) if self.neg else ~v if self.inv else v

    def wide(self, w: Any) -> Array:
        """For carries: minus is the complement and one."""
        v = self.i(w).astype(u64) if not self.neg else (~self.raw(w)).astype(u64) + u64(1)
        return v

    def s(self, w: Any) -> Array:
        return self.i(w).view(i32)

    def _signed(self, v: Array) -> Array:
        v = np.abs(v) if self.mag else v
        return -v if self.neg else v

    def f(self, w: Any) -> Array:
        if self.value is not None:
            return self._float
        if self.half:
            v = (self.raw(w) >> u32(16 if self.half == "H1" else 0)).astype(np.uint16).view(np.float16).astype(f32)
        else:
            v = self.raw(w).view(f32)
        return self._signed(v)

    def q(self, w: Any) -> Array:
        return self.raw(w).astype(u64) | self.raw(w, 1).astype(u64) << u64(32)

    def d(self, w: Any) -> Array:
        return self._double if self.value is not None else self._signed(self.q(w).view(f64))


def is_pred(text: str) -> bool:
    return bool(re.fullmatch(r"!?U?P(\d|T)", text))


def pred(text: str) -> Callable[[Any], Array]:
    negated, name = text.startswith("!"), text.strip("!")
    file, index = ("UP" if name.startswith("U") else "P"), 7 if name.endswith("T") else int(name[-1])
    return lambda w: ~getattr(w, file)[index] if negated else getattr(w, file)[index]


def setter(text: str) -> Callable[..., None]:
    """set(warp, values, lanes[, on]) of a register or predicate."""
    if is_pred(text):
        file, index = ("UP" if text.startswith("U") else "P"), 7 if text.endswith("T") else int(text[-1])
        if index == 7:
            return lambda w, v, m, on=0: None
        if file == "UP":
            return lambda w, v, m, on=0: np.copyto(w.UP[index], v[np.argmax(m)])
        return lambda w, v, m, on=0: np.copyto(w.P[index], v, where=m)
    arg = Arg(text)
    if arg.index == (63 if arg.bank == "U" else 255):
        return lambda w, v, m, on=0: None
    if arg.bank == "U":
        return lambda w, v, m, on=0: np.copyto(w.U[arg.index + on], v[np.argmax(m)] if np.ndim(v) else v)
    return lambda w, v, m, on=0: np.copyto(w.R[arg.index + on], v, where=m)


def address(text: str) -> Callable[[Any], Array]:
    """Of `desc[UR4][R2.64+0x10]`, `[R3+UR4+0x8]`."""
    parts = re.search(r"\[([^\[\]]*)\]$", text)[1]
    wide, terms = ".64" in parts, re.findall(r"-?0x[0-9a-f]+|U?R(?:\d+|Z)", parts)
    fixed = sum(int(t, 16) for t in terms if "x" in t)
    args = [Arg(t) for t in terms if "x" not in t]

    def at(w: Any) -> Array:
        total = np.full(32, fixed, i64)
        for k, a in enumerate(args):
            total = total + (a.q(w).view(i64) if wide and k == 0 else a.raw(w).view(i32).astype(i64))
        return total.view(u64) if wide else total.view(u64) & u64(0xFFFFFF)

    return at
