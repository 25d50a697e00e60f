"""What SASS instructions of sm_90 do to the registers of a warp: 32 lanes in NumPy.

Only the operations that this library's kernels use are here; any other raises NotImplementedError. MUFU is exact and
subnormals are kept: right for control flow, and to a few units in the last place for results that go through these.
Control flow and memory accesses are warp.py's.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .operands import FULL, LANES, Arg, Array, bits, f32, f64, i32, i64, is_pred, pred, setter, u32, u64

COMPARE = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
JOIN = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def lut(table: int, a: Array, b: Array, c: Array) -> Array:
    simple = {0xC0: lambda: a & b, 0xFC: lambda: a | b, 0x3C: lambda: a ^ b, 0x33: lambda: ~b, 0x0F: lambda: ~a}
    if table in simple:
        return simple[table]()
    r = a & ~a
    for k in range(8):
        if table >> k & 1:
            r = r | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
    return r


def _round_up(x: Array) -> Array:
    f = x.astype(f32)
    return np.where(f.astype(f64) < x.astype(f64), np.nextafter(f, f32(np.inf)), f)


def _bf16(x: Array) -> Array:
    b = x.view(u32)
    return np.where(np.isnan(x), u32(0x7FFF), (b + u32(0x7FFF) + (b >> u32(16) & u32(1))) >> u32(16))


def _halves(x: Array) -> Array:
    return x.astype(np.float16).view(np.uint16).astype(u32)


def _permute(both: Array, selector: Array) -> Array:
    """PRMT: each nibble picks a byte, or its sign."""
    out = np.zeros(32, u32)
    for k in range(4):
        nibble = selector >> u32(4 * k)
        byte = (both >> ((nibble & u32(7)) * u32(8)).astype(u64)).astype(u32) & u32(255)
        out |= np.where(nibble & u32(8), np.where(byte & u32(128), u32(255), u32(0)), byte) << u32(8 * k)
    return out


def _shift(mods: Sequence[str], both: Array, n: Array) -> Array:
    """SHF of (high, low) words; those of 32 bits shift the one that they are named after."""
    left, high, wide, signed = mods[0] == "L", "HI" in mods, "64" in mods[1], mods[1][0] == "S"
    n = np.minimum(n, 63 if wide else 32).astype(u64)
    if left:
        v = both << n
    elif wide:
        v = (both.view(i64) >> n.view(i64)).view(u64) if signed else both >> n
    else:
        word = (both >> u64(32) if high else both).astype(u32)
        return (
            (word.view(i32).astype(i64) >> n.view(i64)).astype(u32) if signed else (word.astype(u64) >> n).astype(u32)
        )
    return (v >> u64(32) if high else v).astype(u32)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """a b + c in float64, rounded once but for rare cases: the errors of the product and of the sum are added
    (Dekker's and Knuth's)."""
    high = [(v * f64(2**27 + 1)) - (v * f64(2**27 + 1) - v) for v in (a, b)]
    low = [v - h for v, h in zip((a, b), high, strict=True)]
    product = a * b
    missing = high[0] * high[1] - product + high[0] * low[1] + low[0] * high[1] + low[0] * low[1]
    total = product + c
    part = total - product
    exact = total + ((product - (total - part)) + (c - part) + missing)
    return np.where(np.isfinite(exact), exact, total)


def _needs_slow(a: Array, b: Array) -> Array:
    """FCHK: whether a / b has exponents too near an end of their range for the quick way. The hardware's rule is not
    documented: this is a guess."""
    ea, eb = (((x.view(u32) >> u32(23)) & u32(255)).astype(i32) for x in (a, b))
    return (eb < 2) | (eb > 252) | ((a != 0) & ((ea < 24) | (ea == 255) | (abs(ea - eb) > 125)))


# ------------------------------------------------------------------------------------------------------------ semantics
UNIFORM = ("UIADD3", "UIMAD", "ULEA", "USHF", "USEL", "UISETP", "ULOP3", "UMOV", "ULDC", "UPLOP3")
NOTHING = ("NOP", "YIELD", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "ENDCOLLECTIVE")
APPROXIMATE = {  # MUFU's functions
    **{"RCP": lambda x: 1 / x, "RSQ": lambda x: 1 / np.sqrt(x), "SQRT": np.sqrt},
    **{"EX2": np.exp2, "LG2": np.log2, "TANH": np.tanh, "SIN": np.sin, "COS": np.cos},
}
ROUND = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}
Work = Callable[[Any, Array], None]


def build(ins: Any) -> Work:
    """What an instruction does to a warp's registers: run(warp, lanes). Control flow and memory are `Warp.run`'s."""
    op, *mods = ins.op.split(".")
    op = op[1:] if op in UNIFORM else op
    if op in NOTHING:
        return lambda w, m: None
    args, k = list(ins.args), 1
    first = setter(args[0]) if args[0] != "PR" else None
    while k < len(args) and is_pred(args[k]):
        k += 1
    flags, tests = [setter(a) for a in args[1:k]], [pred(a) for a in args[k:] if is_pred(a)]
    if op in ("SHFL", "S2R", "S2UR", "CS2R", "LDC", "P2R", "R2P", "VOTEU", "PLOP3", "LOP3"):
        return _odd(op, mods, args, first)
    a, b, c, d, *_ = [*(Arg(t) for t in args[k:] if not is_pred(t)), *[None] * 4]
    x = "X" in mods

    def one(f: Callable[[Any], Array]) -> Work:
        return lambda w, m: first(w, f(w), m)

    def two(f: Callable[[Any], Array]) -> Work:
        """64 bits, into two registers."""

        def run(w: Any, m: Array) -> None:
            v = f(w)
            first(w, v.astype(u32), m)
            first(w, (v >> u64(32)).astype(u32), m, 1)

        return run

    def carried(f: Callable[[Any], Array]) -> Work:
        """The low word of a sum, and whether there is more."""

        def run(w: Any, m: Array) -> None:
            s = f(w)
            for p in tests if x else ():
                s = s + p(w)
            first(w, s.astype(u32), m)
            for p in flags:
                p(w, s >> u64(32) != 0, m)

        return run

    def product(w: Any) -> tuple[Array, Array]:
        p = a.i(w).astype(u64) * b.i(w).astype(u64)
        if "U32" not in mods:
            p = (a.s(w).astype(i64) * b.s(w).astype(i64)).view(u64)
        return p, p + c.q(w)

    def multiplied(w: Any, m: Array) -> None:
        p, s = product(w)
        if "WIDE" in mods:
            first(w, s.astype(u32), m)
        first(w, (s >> u64(32)).astype(u32), m, int("WIDE" in mods))
        for flag in flags:
            flag(w, s < p, m)

    def shifted(w: Any) -> Array:  # LEA
        v = a.s(w).astype(i64).view(u64) if "SX32" in mods else a.i(w).astype(u64)
        if "HI" in mods and d is None:
            return ((v << c.raw(w).astype(u64) >> u64(32)) & u64(FULL)) + b.wide(w)
        if "HI" in mods:
            return ((v | c.raw(w).astype(u64) << u64(32)) << d.raw(w).astype(u64) >> u64(32)) + b.wide(w)
        return (v << c.raw(w).astype(u64) & u64(FULL)) + b.wide(w)

    def compared(w: Any, m: Array) -> None:
        name, join = mods[0], next(JOIN[t] for t in mods if t in JOIN)
        if op == "ISETP":
            y, z = (a.i(w), b.i(w)) if "U32" in mods or name in ("EQ", "NE") else (a.s(w), b.s(w))
            r, low = COMPARE[name](y, z), tests[-1](w)
            if "EX" in mods:  # with the low words' comparison
                r = r | low if name == "NE" else r & low if name == "EQ" else np.where(y == z, low, r)
        else:
            y, z = (a.f(w), b.f(w)) if op == "FSETP" else (a.d(w), b.d(w))
            none = np.isnan(y) | np.isnan(z)
            r = none if name == "NAN" else np.where(none, name.endswith("U"), COMPARE[name[:2]](y, z))
        p, other = join(r, tests[0](w)), join(~r, tests[0](w))
        first(w, p, m)
        flags[0](w, other, m)

    def extreme(w: Any) -> Array:  # (V)IMNMX, after an addition or not
        kind = np.int16 if "S16x2" in mods else u32 if "U32" in mods else i32
        y = a.i(w) + b.i(w) if op == "VIADDMNMX" else a.i(w)
        y, z, least = y.view(kind), (c or b).i(w).view(kind), tests[0](w).repeat(4 // np.dtype(kind).itemsize)
        found = np.where(least, np.minimum(y, z), np.maximum(y, z))
        return (np.maximum(found, kind(0)) if "RELU" in mods else found).view(u32)

    def float_extreme(w: Any) -> Array:  # FMNMX; NAN: which prevails
        y, z, least = a.f(w), b.f(w), tests[0](w)
        low, high = (np.minimum, np.maximum) if "NAN" in mods else (np.fmin, np.fmax)
        return np.where(least, low(y, z), high(y, z)).view(u32)

    def extreme_of_three(w: Any) -> Array:
        kind = u32 if "U32" in mods else i32
        values = [v.i(w).view(kind) for v in (a, b, c)]
        least = tests[-1](w)
        return np.where(least, np.minimum.reduce(values), np.maximum.reduce(values)).view(u32)

    def converted(w: Any) -> Array:
        if op == "F2I":
            most = 2.0**64 - 2048 if "U64" in mods else 2.0**32 - 1
            return np.clip(np.trunc(np.nan_to_num(a.f(w).astype(f64))), 0, most).astype(u64)
        y = a.q(w) if "U64" in mods else a.i(w) if "U32" in mods else a.s(w)
        return y.astype(f64).view(u64) if "F64" in mods else (_round_up(y) if "RP" in mods else y.astype(f32)).view(u32)

    def special(w: Any) -> Array:  # MUFU
        if mods[0].endswith("64H"):
            y = (a.raw(w).astype(u64) << u64(32)).view(f64)
            return ((1 / y if mods[0] == "RCP64H" else 1 / np.sqrt(y)).view(u64) >> u64(32)).astype(u32)
        return APPROXIMATE[mods[0]](a.f(w).astype(f64)).astype(f32).view(u32)

    adds = (op == "HADD2" and "F32" not in mods) or (op == "HFMA2" and args[2:4] == ["1", "1"])
    packed = adds and not any("." in t.replace("RZ.H0_H0", "") for t in args)
    widens = (op, mods, args[1]) == ("HADD2", ["F32"], "-RZ") or (op, args[1:3]) == ("HFMA2", ["-RZ", "RZ"])
    if op in ("HADD2", "HFMA2") and not packed and not widens:
        raise NotImplementedError(f"{ins.op} {ins.args} at {ins.at:#x}")
    scale = f32(next((int(t[1:]) for t in mods if re.fullmatch(r"M\d", t)), 1))
    pack = _bf16 if "BF16" in mods else _halves
    table: dict[str, Work] = {
        "IADD3": carried(lambda w: a.wide(w) + b.wide(w) + c.wide(w)),
        "LEA": carried(shifted),
        "IMAD": multiplied
        if {"WIDE", "HI"} & {*mods}
        else one(lambda w: a.i(w) * b.i(w) + c.i(w) + (tests[0](w) if x else u32(0))),
        "ISETP": compared,
        "FSETP": compared,
        "DSETP": compared,
        "SEL": one(lambda w: np.where(tests[0](w), a.i(w), b.i(w))),
        "FSEL": one(lambda w: np.where(tests[0](w), a.f(w).view(u32), b.f(w).view(u32))),
        "SHF": one(lambda w: _shift(mods, a.raw(w).astype(u64) | c.raw(w).astype(u64) << u64(32), b.raw(w))),
        "PRMT": one(lambda w: _permute(a.raw(w).astype(u64) | c.raw(w).astype(u64) << u64(32), b.raw(w))),
        "MOV": one(lambda w: a.i(w)),
        "R2UR": one(lambda w: a.i(w)),
        "VIADD": one(lambda w: a.i(w) + b.i(w)),
        "IABS": one(lambda w: np.abs(a.s(w).astype(i64)).astype(u32)),
        "FMNMX": one(float_extreme),
        "FRND": one(lambda w: next((ROUND[t] for t in mods if t in ROUND), np.rint)(a.f(w)).view(u32)),
        "VIMNMX": one(extreme),
        "VIADDMNMX": one(extreme),
        "VIMNMX3": one(extreme_of_three),
        "POPC": one(lambda w: np.array([int(v).bit_count() for v in a.i(w)], u32)),
        "FLO": one(lambda w: np.array([(int(v).bit_length() - 1) & FULL for v in a.i(w)], u32)),
        "FADD": one(lambda w: (a.f(w) + b.f(w)).view(u32)),
        "FMUL": one(lambda w: (a.f(w) * b.f(w) * scale).view(u32)),
        "FFMA": one(lambda w: (a.f(w).astype(f64) * b.f(w).astype(f64) + c.f(w).astype(f64)).astype(f32).view(u32)),
        "FCHK": one(lambda w: _needs_slow(a.f(w), b.f(w))),
        "DADD": two(lambda w: (a.d(w) + b.d(w)).view(u64)),
        "DMUL": two(lambda w: (a.d(w) * b.d(w)).view(u64)),
        "DFMA": two(lambda w: _fused(a.d(w), b.d(w), c.d(w)).view(u64)),
        "HADD2": one(lambda w: b.f(w).view(u32)),
        "HFMA2": one(lambda w: _halves(c.f(w)) << u32(16) | _halves(d.f(w))),
        "F2FP": one(lambda w: pack(a.f(w)) << u32(16) | pack(b.f(w))),
        "I2F": (two if "F64" in mods else one)(converted),
        "I2FP": one(converted),
        "F2I": two(converted) if "U64" in mods else one(lambda w: converted(w).astype(u32)),
        "F2F": two(lambda w: a.f(w).astype(f64).view(u64))
        if mods[:1] == ["F64"]
        else one(lambda w: a.d(w).astype(f32).view(u32)),
        "MUFU": one(special),
    }
    if op not in table:
        raise NotImplementedError(f"{ins.op} at {ins.at:#x}")
    if packed:
        other = b if op == "HADD2" else d
        return one(lambda w: _plus_pairs(a.raw(w), other.raw(w), "BF16_V2" in mods))
    return table[op]


def _plus_pairs(x: Array, y: Array, brain: bool) -> Array:
    """The sums of two 16-bit floats in each word, rounded once; any NaN is 0x7fff."""
    found = u32(0)
    for shift in (u32(0), u32(16)):
        halves = [(v >> shift).astype(np.uint16) for v in (x, y)]
        if brain:
            values = [(v.astype(u32) << u32(16)).view(f32) for v in halves]
        else:
            values = [v.view(np.float16).astype(f32) for v in halves]
        found = found | (_bf16 if brain else _halves)(values[0] + values[1]) << shift
    return found


def _odd(op: str, mods: Sequence[str], args: Sequence[str], first: Any) -> Work:
    """Instructions whose operands are not a result and its sources."""

    def logic(w: Any, m: Array) -> None:  # LOP3: perhaps a predicate, the result, three words, a table
        dest, k = (setter(args[1]), 1) if is_pred(args[0]) else (first, 0)
        v = lut(int(args[k + 4], 16), *words(w))
        dest(w, v, m)
        if k:
            first(w, v != 0, m)

    def logic_of_predicates(w: Any, m: Array) -> None:
        made = [lut(int(t, 16), *(p(w) for p in three)) for t in args[5:7]]
        first(w, made[0], m)
        second(w, made[1], m)

    def constant(w: Any, m: Array) -> None:
        v = w.constant(offset)
        first(w, u32(v & 0xFFFF if "U16" in mods else v), m)
        if "64" in mods:
            first(w, u32(w.constant(offset + 4)), m, 1)

    def read(w: Any, m: Array) -> None:
        for on in range(2 if op == "CS2R" else 1):
            first(w, w.special[args[1].removeprefix("SR_")], m, on)

    def shuffle(w: Any, m: Array) -> None:
        lane = (LANES ^ sources[1].raw(w) if mods[0] == "BFLY" else sources[1].raw(w)) & u32(31)
        second(w, sources[0].raw(w)[lane], m)
        first(w, True, m)

    def pack(w: Any, m: Array) -> None:
        v = sum(w.P[k].astype(u32) << u32(k) for k in range(7))
        first(w, v & u32(some) | sources[0].raw(w) & ~u32(some), m)

    def unpack(w: Any, m: Array) -> None:
        for k in range(7):
            if some >> k & 1:
                np.copyto(w.P[k], (sources[0].raw(w) >> u32(k) & u32(1)).astype(bool), where=m)

    def vote(w: Any, m: Array) -> None:
        first(w, u32(bits(pred(args[2])(w) & m)), m)

    if op == "LOP3":
        plain = [Arg(t) for t in args[1 + is_pred(args[0]) :][:3]]
        words = lambda w: [p.i(w) for p in plain]  # noqa: E731
    elif op == "PLOP3":
        second, three = setter(args[1]), [pred(t) for t in args[2:5]]
    elif op == "LDC":
        offset = int(re.search(r"c\[0x0\]\[(\w+)\]", args[1])[1].replace("RZ", "0"), 16)
    elif op == "SHFL":
        second, sources = setter(args[1]), [Arg(t) for t in args[2:4]]
    elif op in ("P2R", "R2P"):
        sources, some = [Arg(args[-2])], int(args[-1], 16)
    runs = {"LOP3": logic, "PLOP3": logic_of_predicates, "LDC": constant, "SHFL": shuffle, "P2R": pack, "R2P": unpack}
    return {**runs, "VOTEU": vote}.get(op, read)
