"""Vectors of 16 lanes for CPU kernels: the instructions that a kernel's source names are those that the CPU runs.

A vector holds float32, float64, int32 or bool (a *mask*). LLVM splits its 16 lanes into the registers that the CPU has.
So the order of all operations is in the source, and results have the same bits on every CPU.

Arrays are flat and contiguous. The dtype of an array decides what `load` and `store` do, so one source serves all:

| array      | lanes   | array                               | lanes                           |
| ---------- | ------- | ----------------------------------- | ------------------------------- |
| float32    | float32 | uint16: the bits of float16         | float32, converted on the way   |
| float64    | float64 | int16: the bits of bfloat16         | float32, converted on the way   |
| int32      | int32   | uint8                               | int32                           |

`load_int` takes an array of any integers, and vectors of int32 can be stored in one. `as_bits` makes the view of a half
array. A result in a half type is rounded to the nearest, ties to even. Conversions set the quiet bit of a NaN, but
loads and stores named `every_bit` do not: they are for results that are copies of cells, and take longer.

Nothing checks an index, unless NUMBA_BOUNDSCHECK=1: an access outside of the array is then an IndexError. Numba's
Python mode (NUMBA_DISABLE_JIT) cannot run these functions. Without a unit for FMA and half types `unavailable` says so
(jit.py), and the portable code runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types

from .vector_memory import (
    LANES_OF_ARRAY,
    as_bits,
    check_array,
    copy_lanes,
    fence,
    gather,
    load,
    load_bits,
    load_every_bit,
    load_first,
    load_first_every_bit,
    load_int,
    load_int_first,
    store,
    store_every_bit,
    store_first,
    store_first_every_bit,
    stream,
    stream_copy,
)
from .vector_types import (
    ELEMENTS,
    FLOATS,
    I1,
    I16,
    I32,
    I64,
    INT,
    LANES,
    MASK,
    TYPES,
    Vector,
    call,
    elementary,
    fill,
    first_lanes_mask,
    is_nan_mask,
    operation,
    shuffle,
    vector_of,
)

__all__ = [
    "LANES", "absolute", "add", "any_lane", "as_bits", "as_lanes_of", "bit_and", "bit_not", "bit_or", "broadcast",
    "copy_lanes", "div", "equal", "evens", "exceeds", "fence", "first_lanes", "first_true", "fma", "gather", "integers",
    "interleave_high", "interleave_low", "is_nan", "lane", "less", "less_equal", "load", "load_bits", "load_every_bit",
    "load_first", "load_first_every_bit", "load_int", "load_int_first", "maximum", "mul", "odds",
    "select", "slide", "square_root", "store", "store_every_bit", "store_first", "store_first_every_bit",
    "stream", "stream_copy", "sub", "to_float64", "total",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ constants
@operation
def broadcast(array: Any, x: Any) -> Any:
    """The number in each lane of a vector as `load(array, …)` gives it."""
    kind = LANES_OF_ARRAY[check_array(array, LANES_OF_ARRAY)]
    return TYPES[kind](array, getattr(types, kind)), lambda context, builder, cells, x: fill(builder, x)


@operation
def integers(i: Any) -> Any:
    """The integer in each lane of int32."""
    return INT(types.int32), lambda context, builder, i: fill(builder, i)


@operation
def first_lanes(count: Any) -> Any:
    """The mask of the first `count` lanes."""
    return MASK(types.int64), lambda context, builder, count: first_lanes_mask(builder, count)


# ------------------------------------------------------------------------------------------------------ lane operations
def lanewise(kinds: tuple[str, ...], number: int, emit: Callable[..., Any], result: str | None = None) -> Any:
    """The operation `emit(builder, *values)` of `number` vectors of one of these kinds. result: if it has another."""

    def typed(*vectors: Any) -> Any:
        kind = getattr(vectors[0], "kind", None)
        if kind not in kinds or vectors != (vectors[0],) * number:
            raise TypeError(f"this operation takes vectors of one kind, {' or '.join(kinds)}; got {vectors}")
        return TYPES[result or kind](*vectors), lambda context, builder, *values: emit(builder, *values)

    return operation(typed)


def _either(of_floats: str, of_integers: str, *first: str) -> Callable[..., Any]:
    """The builder's method for the kind of the vectors, called with `first` and them."""

    def emit(builder: Any, *values: Any) -> Any:
        return getattr(builder, of_integers if values[0].type.element == I32 else of_floats)(*first, *values)

    return emit


def _compare(sign: str) -> Callable[..., Any]:
    return _either("fcmp_ordered", "icmp_signed", sign)


def _elementary(name: str) -> Callable[..., Any]:
    return lambda builder, *values: elementary(builder, name, *values)


def _joined(*lanes: int) -> Callable[..., Any]:
    """These lanes of two vectors joined."""
    return lambda builder, x, y: shuffle(builder, x, y, list(lanes))


def _exceeds(builder: Any, x: Any, y: Any) -> Any:
    if x.type.element == I32:
        return builder.icmp_signed(">", x, y)
    return builder.and_(builder.fcmp_unordered(">", x, y), builder.fcmp_ordered("ord", y, y))


def _convert(kind: str) -> Callable[..., Any]:
    def emit(builder: Any, x: Any) -> Any:
        vector, element = vector_of(ELEMENTS[kind]), x.type.element
        if element == I32:
            return builder.sitofp(x, vector)
        return x if element == ELEMENTS[kind] else (builder.fpext if kind == "float64" else builder.fptrunc)(x, vector)

    return emit


_NUMBERS, _BITS = (*FLOATS, "int32"), ("int32", "bool")
_PAIRS = [lane for pair in zip(range(LANES), range(LANES, 2 * LANES), strict=True) for lane in pair]
add = lanewise(_NUMBERS, 2, _either("fadd", "add"))
sub = lanewise(_NUMBERS, 2, _either("fsub", "sub"))
mul = lanewise(_NUMBERS, 2, _either("fmul", "mul"))
div = lanewise(FLOATS, 2, lambda builder, x, y: builder.fdiv(x, y))
fma = lanewise(FLOATS, 3, _elementary("fma"))  # x * y + z, rounded once
absolute = lanewise(FLOATS, 1, _elementary("fabs"))
square_root = lanewise(FLOATS, 1, _elementary("sqrt"))
less = lanewise(_NUMBERS, 2, _compare("<"), "bool")  # comparisons are False for a NaN
less_equal = lanewise(_NUMBERS, 2, _compare("<="), "bool")
equal = lanewise(_NUMBERS, 2, _compare("=="), "bool")
is_nan = lanewise(FLOATS, 1, is_nan_mask, "bool")
exceeds = lanewise(_NUMBERS, 2, _exceeds, "bool")  # x is larger than y, or it is a NaN and y is not
bit_and = lanewise(_BITS, 2, lambda builder, x, y: builder.and_(x, y))
bit_or = lanewise(_BITS, 2, lambda builder, x, y: builder.or_(x, y))
bit_not = lanewise(_BITS, 1, lambda builder, x: builder.not_(x))
# y where it is larger than x or the first NaN, else x
maximum = lanewise(_NUMBERS, 2, lambda builder, x, y: builder.select(_exceeds(builder, y, x), y, x))
evens = lanewise(_NUMBERS, 2, _joined(*range(0, 2 * LANES, 2)))  # lanes 0, 2, 4, … of x and y joined
odds = lanewise(_NUMBERS, 2, _joined(*range(1, 2 * LANES, 2)))
interleave_low = lanewise(_NUMBERS, 2, _joined(*_PAIRS[:LANES]))  # x0, y0, x1, y1, …, x7, y7
interleave_high = lanewise(_NUMBERS, 2, _joined(*_PAIRS[LANES:]))  # x8, y8, …, x15, y15
to_float64 = lanewise(_NUMBERS, 1, _convert("float64"), "float64")


@operation
def select(mask: Any, x: Any, y: Any) -> Any:
    """x where the mask holds, else y."""
    if mask != MASK or not isinstance(x, Vector) or x != y:
        raise TypeError(f"select takes a mask and two vectors of one kind; got {mask}, {x} and {y}")
    return x(MASK, x, x), lambda context, builder, mask, x, y: builder.select(mask, x, y)


@operation
def as_lanes_of(array: Any, x: Any) -> Any:
    """Numbers in the kind of lane that `load(array, …)` gives."""
    kind = LANES_OF_ARRAY[check_array(array, LANES_OF_ARRAY)]
    if kind not in FLOATS or getattr(x, "kind", "bool") == "bool":
        raise TypeError(f"as_lanes_of takes an array of floats and a vector of numbers; got {array} and {x}")
    return TYPES[kind](array, x), lambda context, builder, cells, x: _convert(kind)(builder, x)


@operation
def slide(x: Any, y: Any, lanes: Any) -> Any:
    """x and y joined, from lane `lanes` (a constant, 0 to 16) on."""
    first = getattr(lanes, "literal_value", -1)
    if not isinstance(x, Vector) or x != y or not 0 <= first <= LANES:
        raise TypeError(f"slide takes two vectors of one kind and a constant of 0 to 16; got {x}, {y} and {lanes}")
    emit = _joined(*range(first, first + LANES))
    return x(x, x, lanes), lambda context, builder, x, y, lanes: emit(builder, x, y)


# ---------------------------------------------------------------------------------------------------- one number of all
@operation
def lane(x: Any, i: Any) -> Any:
    """One lane."""

    def emit(context: Any, builder: Any, x: Any, i: Any) -> Any:
        return builder.extract_element(x, builder.and_(i, I64(LANES - 1)))

    return getattr(types, x.kind)(x, types.int64), emit


@operation
def total(x: Any) -> Any:
    """The sum of the lanes, by halves, in float64 or int64."""

    def emit(context: Any, builder: Any, value: Any) -> Any:
        floats, width = x.kind != "int32", LANES
        value = _convert("float64")(builder, value) if floats else builder.sext(value, vector_of(I64))
        while width > 1:
            width //= 2
            low, high = (shuffle(builder, value, value, list(range(at, at + width))) for at in (0, width))
            value = (builder.fadd if floats else builder.add)(low, high)
        return builder.extract_element(value, I32(0))

    return (types.int64 if x.kind == "int32" else types.float64)(x), emit


@operation
def any_lane(mask: Any) -> Any:
    """Whether the mask holds in a lane."""

    def emit(context: Any, builder: Any, mask: Any) -> Any:
        return builder.icmp_unsigned("!=", builder.bitcast(mask, I16), I16(0))

    return types.boolean(MASK), emit


@operation
def first_true(mask: Any) -> Any:
    """The first lane where the mask holds; 16 if there is none."""

    def emit(context: Any, builder: Any, mask: Any) -> Any:
        bits = builder.or_(builder.zext(builder.bitcast(mask, I16), I64), I64(1 << LANES))
        return call(builder, "llvm.cttz.i64", I64, bits, I1(1))

    return types.int64(MASK), emit
