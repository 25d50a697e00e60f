"""Loads and stores of vectors. See vectors.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from .vector_types import ELEMENTS, FLOATS, I1, I16, I32, I64, LANES, MASK, TYPES, is_nan_mask, operation, vector_of

LANES_OF_ARRAY = {  # dtype of an array -> kind of the lanes
    "float32": "float32",
    "float64": "float64",
    "uint16": "float32",  # the bits of float16
    "int16": "float32",  # the bits of bfloat16
    "int32": "int32",
    "uint8": "int32",
}
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def as_bits(array: Any) -> Any:
    """The array as kernels take it: float16 as uint16, bfloat16 as int16, any other as it is."""
    if array.dtype.itemsize != 2:
        return array
    name = array.dtype.name
    return array.view(np.uint16) if name == "float16" else array.view(np.int16) if name == "bfloat16" else array


def check_array(array: Any, allowed: Any) -> Any:
    """The NumPy name of an array's dtype; TypeError when the kernel is compiled, if it cannot serve."""
    name = str(getattr(array, "dtype", None))
    if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C" or name not in allowed:
        raise TypeError(f"vectors are loaded from flat contiguous arrays of {', '.join(allowed)}; got {array}")
    return name


# ---------------------------------------------------------------------------------------------------------- conversions
def _all(number: int) -> Any:
    """A constant: this integer in each lane of int32."""
    return ir.Constant(vector_of(I32), [number] * LANES)


def _resize(builder: Any, signed: bool, value: Any, element: Any) -> Any:
    """Integers of another width."""
    old, new = value.type.element.width, element.width
    if old == new:
        return value
    return (builder.trunc if new < old else builder.sext if signed else builder.zext)(value, vector_of(element))


def _widen(builder: Any, name: str, kind: str, raw: Any, every_bit: bool) -> Any:
    """What was read from an array of this dtype, as lanes. every_bit: a signalling NaN stays one."""
    floats = vector_of(ELEMENTS["float32"])
    if kind == "int32":
        return _resize(builder, not name.startswith("u"), raw, I32)
    if name in FLOATS:
        return raw
    bits = builder.zext(raw, vector_of(I32))
    if name == "int16":
        return builder.bitcast(builder.shl(bits, _all(16)), floats)
    value = builder.fpext(builder.bitcast(raw, vector_of(ir.HalfType())), floats)
    if not every_bit:
        return value
    sign = builder.shl(builder.and_(bits, _all(0x8000)), _all(16))
    payload = builder.shl(builder.and_(bits, _all(0x3FF)), _all(13))
    nan = builder.or_(builder.or_(sign, payload), _all(0x7F800000))  # the CPU would set its quiet bit
    return builder.select(is_nan_mask(builder, value), builder.bitcast(nan, floats), value)


def _narrow(builder: Any, name: str, value: Any, every_bit: bool) -> Any:
    """Lanes as an array of this dtype stores them. every_bit: a NaN stored has the upper bits of the lane's."""
    if value.type.element == I32:
        return _resize(builder, True, value, ir.IntType(int(name.lstrip("uint"))))
    if name in FLOATS:
        return value
    bits = builder.bitcast(value, vector_of(I32))
    upper = builder.lshr(bits, _all(16))
    if name == "uint16":
        rounded = builder.bitcast(builder.fptrunc(value, vector_of(ir.HalfType())), vector_of(I16))
        if not every_bit:
            return rounded
        infinity = builder.or_(builder.and_(upper, _all(0x8000)), _all(0x7C00))
        nan = builder.or_(infinity, builder.and_(builder.lshr(bits, _all(13)), _all(0x3FF)))
    else:
        odd = builder.and_(upper, _all(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, _all(0x7FFF))), _all(16))
        rounded, infinity, nan = builder.trunc(rounded, vector_of(I16)), builder.and_(upper, _all(0xFF80)), upper
    quiet = builder.or_(nan, _all(0x40))
    # The upper bits alone may be those of an infinity.
    nan = builder.select(builder.icmp_unsigned("==", nan, infinity), quiet, nan) if every_bit else quiet
    return builder.select(is_nan_mask(builder, value), builder.trunc(nan, vector_of(I16)), rounded)


# ----------------------------------------------------------------------------------------------------- loads and stores
def _load(kinds: dict[str, str], every_bit: bool = False) -> Any:
    """The operation that loads from arrays of these dtypes lanes of these kinds."""

    def load(array: Any, index: Any, *count: Any) -> Any:
        name = check_array(array, kinds)
        kind = kinds[name]

        def emit(context: Any, builder: Any, cells: Any, index: Any, *count: Any) -> Any:
            return _widen(builder, name, kind, cells.vector(index, *count), every_bit)

        return TYPES[kind](array, types.int64, *(types.int64 for _ in count)), emit

    return operation(load)


def _store(every_bit: bool = False, past_caches: bool = False) -> Any:
    """The operation that stores."""

    def store(array: Any, index: Any, value: Any, *count: Any) -> Any:
        kind = getattr(value, "kind", None)
        name = check_array(array, INTEGERS if kind == "int32" else [n for n, k in LANES_OF_ARRAY.items() if k == kind])

        def emit(context: Any, builder: Any, cells: Any, index: Any, value: Any, *count: Any) -> None:
            cells.store(index, _narrow(builder, name, value, every_bit), *count, past_caches=past_caches)

        return types.void(array, types.int64, value, *(types.int64 for _ in count)), emit

    return operation(store)


def _copy(past_caches: bool) -> Any:
    """The operation that copies between arrays of one dtype."""

    def copy(y: Any, to: Any, x: Any, at: Any) -> Any:
        check_array(y, (*LANES_OF_ARRAY, *INTEGERS))
        if x.dtype != y.dtype:
            raise TypeError(f"only cells of the same dtype can be copied; got {y} and {x}")

        def emit(context: Any, builder: Any, y: Any, to: Any, x: Any, at: Any) -> None:
            y.store(to, x.vector(at), past_caches=past_caches)

        return types.void(y, types.int64, x, types.int64), emit

    return operation(copy)


# 16 neighbours, from any element on: load(array, index). Or the first lanes, the others 0: load(array, index, count).
load = load_first = _load(LANES_OF_ARRAY)
load_every_bit = load_first_every_bit = _load(LANES_OF_ARRAY, every_bit=True)  # of a half NaN
load_int = load_int_first = _load(dict.fromkeys(INTEGERS, "int32"))  # from an array of any integers
# store(array, index, value), or the first lanes: store(array, index, value, count).
store = store_first = _store()
store_every_bit = store_first_every_bit = _store(every_bit=True)
# Past the caches the CPU does not first read what is overwritten, which is faster for results much larger than the last
# cache level, and slower for others. The address must be a multiple of 64 bytes, for half types of 32. End a kernel
# that does so with `fence`.
stream = _store(past_caches=True)
# Copy 16 cells as they are: copy_lanes(y, to, x, at).
copy_lanes, stream_copy = _copy(False), _copy(True)


@operation
def gather(array: Any, index: Any, table: Any, first: Any) -> Any:
    """The elements `index + table[first + lane]`; table: of int32. Keeps each bit of a half NaN."""
    name, _ = check_array(array, LANES_OF_ARRAY), check_array(table, ("int32",))
    kind = LANES_OF_ARRAY[name]

    def emit(context: Any, builder: Any, cells: Any, index: Any, table: Any, first: Any) -> Any:
        raw = ir.Constant(cells.vector_type, ir.Undefined)
        # One load a lane: CPUs that have an instruction for it need as long, or four times as long.
        for lane in range(LANES):
            place = builder.sext(table.number(builder.add(first, I64(lane))), I64)
            raw = builder.insert_element(raw, cells.number(builder.add(index, place)), I32(lane))
        return _widen(builder, name, kind, raw, True)

    return TYPES[kind](array, types.int64, table, types.int64), emit


@operation
def fence() -> Any:
    """Other threads see all that `stream` has stored before."""
    return types.void(), lambda context, builder: builder.fence("seq_cst")


@operation
def load_bits(array: Any, index: Any) -> Any:
    """A mask from two bytes of a uint8 array, from byte `index` on; lane 0 is the lowest bit."""
    check_array(array, ("uint8",))

    def emit(context: Any, builder: Any, cells: Any, index: Any) -> Any:
        return builder.load(cells.pointer(index, 2, vector_of(I1)), align=1)

    return MASK(array, types.int64), emit
