"""Loads and stores of vectors. See vectors.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from .vector_types import (
    ELEMENTS,
    FLOATS,
    I1,
    I16,
    I32,
    I64,
    LANES,
    MASK,
    TYPES,
    call,
    fill,
    first_lanes_mask,
    intrinsic,
    is_nan_mask,
    suffix,
    vector_of,
)

LANES_OF_ARRAY = {  # dtype of an array -> kind of the lanes
    "float32": "float32",
    "float64": "float64",
    "uint16": "float32",  # the bits of float16
    "int16": "float32",  # the bits of bfloat16
    "int32": "int32",
    "uint8": "int32",
}


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


def address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any) -> Any:
    """The address of an array's element. With Numba's bounds checks, IndexError unless `count` elements are there."""
    view = context.make_array(array_type)(context, builder, array)
    if context.enable_boundscheck:
        inside = builder.and_(
            builder.icmp_signed(">=", index, ir.Constant(I64, 0)),
            builder.icmp_signed("<=", builder.add(index, count), view.nitems),
        )
        needed = builder.icmp_signed(">", count, ir.Constant(I64, 0))
        with builder.if_then(builder.and_(needed, builder.not_(inside)), likely=False):
            context.call_conv.return_user_exc(builder, IndexError, ("a vector goes outside of its array",))
    return builder.gep(view.data, [index])


def _read(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any = None) -> Any:
    """16 elements as they are in memory; with a count only the first ones, and 0 for the others."""
    element = context.get_data_type(array_type.dtype)
    vector, size = vector_of(element), array_type.dtype.bitwidth // 8
    number = ir.Constant(I64, LANES) if count is None else count
    pointer = builder.bitcast(address(context, builder, array_type, array, index, number), vector.as_pointer())
    if count is None:
        return builder.load(pointer, align=size)
    name = f"llvm.masked.load.v{LANES}{suffix(element)}.p0"
    zeros = ir.Constant(vector, None)
    return call(builder, name, vector, pointer, ir.Constant(I32, size), first_lanes_mask(builder, count), zeros)


def _all(number: int) -> Any:
    """A constant: this integer in each lane of int32."""
    return ir.Constant(vector_of(I32), [number] * LANES)


def _widen(builder: Any, name: str, raw: Any, every_bit: bool = False) -> Any:
    """What was read from an array of this dtype, as lanes. every_bit: a signalling NaN stays one."""
    floats = vector_of(ELEMENTS["float32"])
    if name == "uint16":
        value = builder.fpext(builder.bitcast(raw, vector_of(ir.HalfType())), floats)
        if not every_bit:
            return value
        bits = builder.zext(raw, vector_of(I32))
        sign = builder.shl(builder.and_(bits, _all(0x8000)), _all(16))
        payload = builder.shl(builder.and_(bits, _all(0x3FF)), _all(13))
        nan = builder.or_(builder.or_(sign, payload), _all(0x7F800000))  # the CPU would set its quiet bit
        return builder.select(is_nan_mask(builder, value), builder.bitcast(nan, floats), value)
    if name == "int16":
        return builder.bitcast(builder.shl(builder.zext(raw, vector_of(I32)), _all(16)), floats)
    return _as_int32(builder, name, raw) if name not in FLOATS else raw


def _as_int32(builder: Any, name: str, raw: Any) -> Any:
    width = raw.type.element.width
    if width == 32:
        return raw
    if width > 32:
        return builder.trunc(raw, vector_of(I32))
    return (builder.zext if name.startswith("u") else builder.sext)(raw, vector_of(I32))


def _narrow(builder: Any, name: str, kind: str, value: Any, every_bit: bool = False) -> Any:
    """Lanes as an array of this dtype stores them. every_bit: a NaN stored has the upper bits of the lane's."""
    if kind == "int32":
        element = ir.IntType(int(name.lstrip("uint")))
        if element.width == 32:
            return value
        return (builder.trunc if element.width < 32 else builder.sext)(value, vector_of(element))
    if name not in ("uint16", "int16"):
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


INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def _make_load(doc: str, kind_of: Any, partial: bool, every_bit: bool = False) -> Any:
    """An intrinsic that loads. kind_of: from the dtype of the array to the kind of the lanes."""

    def typed(typing: Any, array: Any, index: Any, *count: Any) -> Any:
        name = check_array(array, tuple(kind_of))
        kind = kind_of[name]

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            raw = _read(context, builder, signature.args[0], *arguments)
            return _as_int32(builder, name, raw) if kind_of is _TO_INT else _widen(builder, name, raw, every_bit)

        return TYPES[kind](array, *[types.int64] * (1 + len(count))), generate

    def whole(typing: Any, array: Any, index: Any) -> Any:
        return typed(typing, array, index)

    def part(typing: Any, array: Any, index: Any, count: Any) -> Any:
        return typed(typing, array, index, count)

    function = part if partial else whole
    function.__doc__ = doc
    return intrinsic(function)


_TO_INT = dict.fromkeys(INTEGERS, "int32")
load = _make_load("16 neighbours, from any element on: load(array, index).", LANES_OF_ARRAY, False)
load_first = _make_load("The first lanes, the others 0: load_first(array, index, count).", LANES_OF_ARRAY, True)
load_int = _make_load("16 integers as int32, from an array of any integers.", _TO_INT, False)
load_int_first = _make_load("The first lanes of `load_int`, the others 0.", _TO_INT, True)
load_every_bit = _make_load("`load`, which keeps each bit of a half NaN.", LANES_OF_ARRAY, False, True)
load_first_every_bit = _make_load("`load_first`, which keeps each bit of a half NaN.", LANES_OF_ARRAY, True, True)


@intrinsic
def load_strided(typing: Any, array: Any, index: Any, stride: Any, count: Any) -> Any:
    """`count` elements, `stride` apart from element `index` on; the other lanes 0. Keeps each bit of a half NaN."""
    name = check_array(array, tuple(LANES_OF_ARRAY))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where, index, stride, count = arguments
        one, zero, element = ir.Constant(I64, 1), ir.Constant(I64, 0), context.get_data_type(array.dtype)
        last = builder.mul(stride, builder.sub(count, one))
        reach = builder.select(builder.icmp_signed(">", count, zero), builder.add(last, one), zero)
        pointer = address(context, builder, array, where, index, reach)
        numbers = ir.Constant(vector_of(I64), list(range(LANES)))
        places = builder.mul(numbers, fill(builder, stride))
        raw = _gathered(builder, array, element, pointer, places, first_lanes_mask(builder, count))
        return _widen(builder, name, raw, True)

    return TYPES[LANES_OF_ARRAY[name]](array, *[types.int64] * 3), generate


def _gathered(builder: Any, array: Any, element: Any, pointer: Any, places: Any, mask: Any) -> Any:
    """The elements at these places from an address on, as they are in memory; 0 where the mask does not hold."""
    vector, size = vector_of(element), array.dtype.bitwidth // 8
    # Those of lanes that are not loaded do not matter: LLVM reads no memory for them.
    offsets = builder.mul(places, fill(builder, ir.Constant(I64, size)))
    addresses = builder.add(fill(builder, builder.ptrtoint(pointer, I64)), offsets)
    pointers = builder.inttoptr(addresses, vector_of(element.as_pointer()))
    name = f"llvm.masked.gather.v{LANES}{suffix(element)}.v{LANES}p0"
    return call(builder, name, vector, pointers, ir.Constant(I32, size), mask, ir.Constant(vector, None))


def _check_store(array: Any, value: Any) -> str:
    kind = getattr(value, "kind", None)
    allowed = INTEGERS if kind == "int32" else tuple(n for n, k in LANES_OF_ARRAY.items() if k == kind)
    return str(check_array(array, allowed))


def _hidden(builder: Any, count: Any) -> Any:
    """The number, which LLVM cannot know to be 1: for one lane of a vector that is narrowed it stores the wide lane,
    and overwrites the next elements of the array (LLVM 22, AVX-512)."""
    unchanged = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
    return builder.call(unchanged, [count])


def _make_store(doc: str, partial: bool, every_bit: bool = False) -> Any:
    """An intrinsic that stores."""

    def typed(array: Any, value: Any, *count: Any) -> Any:
        name = _check_store(array, value)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            where, index, vector = arguments[:3]
            count = arguments[3] if partial else ir.Constant(I64, LANES)
            narrow, size = _narrow(builder, name, value.kind, vector, every_bit), array.dtype.bitwidth // 8
            at = address(context, builder, array, where, index, count)
            pointer = builder.bitcast(at, narrow.type.as_pointer())
            if partial:
                mask = first_lanes_mask(builder, _hidden(builder, count))
                called = f"llvm.masked.store.v{LANES}{suffix(narrow.type.element)}.p0"
                call(builder, called, ir.VoidType(), narrow, pointer, ir.Constant(I32, size), mask)
            else:
                builder.store(narrow, pointer, align=size)
            return context.get_dummy_value()

        return types.void(array, types.int64, value, *count), generate

    def whole(typing: Any, array: Any, index: Any, value: Any) -> Any:
        return typed(array, value)

    def part(typing: Any, array: Any, index: Any, value: Any, count: Any) -> Any:
        return typed(array, value, types.int64)

    function = part if partial else whole
    function.__doc__ = doc
    return intrinsic(function)


store = _make_store("Store 16 neighbours, from any element on: store(array, index, value).", False)
store_first = _make_store("Store the first lanes: store_first(array, index, value, count).", True)
store_every_bit = _make_store("`store`, which keeps each bit of a half NaN.", False, True)
store_first_every_bit = _make_store("`store_first`, which keeps each bit of a half NaN.", True, True)


@intrinsic
def stream(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """`store` past the caches: the CPU does not first read what is overwritten.

    The address must be a multiple of 64 bytes, for half types of 32. For results much larger than the last cache level;
    slower for others. End a kernel that uses it with `fence`."""
    name = _check_store(array, value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        narrow = _narrow(builder, name, value.kind, arguments[2])
        at = address(context, builder, array, arguments[0], arguments[1], ir.Constant(I64, LANES))
        pointer = builder.bitcast(at, narrow.type.as_pointer())
        written = builder.store(narrow, pointer, align=min(64, LANES * array.dtype.bitwidth // 8))
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
        return context.get_dummy_value()

    return types.void(array, types.int64, value), generate


@intrinsic
def fence(typing: Any) -> Any:
    """Other threads see all that `stream` has stored before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def load_bits(typing: Any, array: Any, index: Any) -> Any:
    """A mask from two bytes of a uint8 array, from byte `index` on; lane 0 is the lowest bit."""
    check_array(array, ("uint8",))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = address(context, builder, array, arguments[0], arguments[1], ir.Constant(I64, 2))
        return builder.bitcast(builder.load(builder.bitcast(at, I16.as_pointer()), align=1), vector_of(I1))

    return MASK(array, types.int64), generate


@intrinsic
def store_bits(typing: Any, array: Any, index: Any, mask: Any) -> Any:
    """A mask as two bytes of a uint8 array."""
    check_array(array, ("uint8",))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = address(context, builder, array, arguments[0], arguments[1], ir.Constant(I64, 2))
        builder.store(builder.bitcast(arguments[2], I16), builder.bitcast(at, I16.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, MASK), generate
