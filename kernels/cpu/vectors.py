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

from typing import Any

from llvmlite import ir
from numba import types

from .vector_memory import (
    INTEGERS,
    LANES_OF_ARRAY,
    address,
    as_bits,
    check_array,
    fence,
    load,
    load_bits,
    load_every_bit,
    load_first,
    load_first_every_bit,
    load_int,
    load_int_first,
    load_strided,
    store,
    store_bits,
    store_every_bit,
    store_first,
    store_first_every_bit,
    stream,
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
    fill,
    first_lanes_mask,
    intrinsic,
    is_nan_mask,
    replaces_mask,
    shuffle,
    suffix,
    vector_of,
)

__all__ = [
    "LANES", "absolute", "add", "any_lane", "as_bits", "bit_and", "bit_not", "bit_or", "broadcast", "copy_lanes", "div",
    "equal", "evens", "exceeds", "fence", "first_lanes", "first_true", "fma", "integers", "interleave_high",
    "interleave_low", "is_nan", "lane", "less", "less_equal", "load", "load_bits", "load_every_bit",
    "load_first", "load_first_every_bit", "load_int", "load_int_first", "load_strided", "maximum", "mul",
    "odds", "select", "slide", "square_root", "store", "store_bits",
    "store_every_bit", "store_first", "store_first_every_bit", "stream", "stream_copy", "sub",
    "to_float64", "total",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ constants
@intrinsic
def broadcast(typing: Any, array: Any, x: Any) -> Any:
    """The number in each lane of a vector as `load(array, …)` gives it."""
    kind = LANES_OF_ARRAY[check_array(array, tuple(LANES_OF_ARRAY))]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return fill(builder, arguments[1])

    return TYPES[kind](array, getattr(types, kind)), generate


@intrinsic
def integers(typing: Any, i: Any) -> Any:
    """The integer in each lane of int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return fill(builder, arguments[0])

    return INT(types.int32), generate


@intrinsic
def first_lanes(typing: Any, count: Any) -> Any:
    """The mask of the first `count` lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return first_lanes_mask(builder, arguments[0])

    return MASK(types.int64), generate


# ------------------------------------------------------------------------------------------------------ lane operations
def _operation(kinds: tuple[str, ...], result: str | None, number: int, doc: str, emit: Any) -> Any:
    """An intrinsic of `number` vectors of one of these kinds. result: None if it has the kind of the vectors.
    emit(builder, *values)."""

    def typed(*vectors: Any) -> Any:
        kind = getattr(vectors[0], "kind", None)
        if kind not in kinds or any(v != vectors[0] for v in vectors):
            raise TypeError(f"this operation takes vectors of one kind, {' or '.join(kinds)}; got {vectors}")
        signature = TYPES[result or kind](*vectors)
        return signature, lambda context, builder, signature, arguments: emit(builder, *arguments)

    def one(typing: Any, x: Any) -> Any:
        return typed(x)

    def two(typing: Any, x: Any, y: Any) -> Any:
        return typed(x, y)

    def three(typing: Any, x: Any, y: Any, z: Any) -> Any:
        return typed(x, y, z)

    function = (one, two, three)[number - 1]
    function.__doc__ = doc
    return intrinsic(function)


def _either(of_floats: str, of_integers: str) -> Any:
    """The builder's method for the kind of the vectors."""

    def emit(builder: Any, *values: Any) -> Any:
        return getattr(builder, of_integers if values[0].type.element == I32 else of_floats)(*values)

    return emit


def _compare(sign: str) -> Any:
    def emit(builder: Any, x: Any, y: Any) -> Any:
        return (builder.icmp_signed if x.type.element == I32 else builder.fcmp_ordered)(sign, x, y)

    return emit


def _elementary(name: str) -> Any:
    """An LLVM intrinsic of floats."""

    def emit(builder: Any, *values: Any) -> Any:
        vector = values[0].type
        return call(builder, f"llvm.{name}.v{LANES}{suffix(vector.element)}", vector, *values)

    return emit


def _joined(lanes: Any) -> Any:
    """Some lanes of two vectors, or of one."""

    def emit(builder: Any, *vectors: Any) -> Any:
        return shuffle(builder, vectors[0], vectors[-1], list(lanes))

    return emit


def _convert(kind: str) -> Any:
    def emit(builder: Any, x: Any) -> Any:
        vector, element = vector_of(ELEMENTS[kind]), x.type.element
        if element == I32:
            return builder.sitofp(x, vector)
        return x if element == ELEMENTS[kind] else (builder.fpext if kind == "float64" else builder.fptrunc)(x, vector)

    return emit


_NUMBERS = (*FLOATS, "int32")
_BITS = ("int32", "bool")
add = _operation(_NUMBERS, None, 2, "x + y", _either("fadd", "add"))
sub = _operation(_NUMBERS, None, 2, "x - y", _either("fsub", "sub"))
mul = _operation(_NUMBERS, None, 2, "x * y", _either("fmul", "mul"))
div = _operation(FLOATS, None, 2, "x / y", lambda builder, x, y: builder.fdiv(x, y))
fma = _operation(FLOATS, None, 3, "x * y + z, rounded once", _elementary("fma"))
absolute = _operation(FLOATS, None, 1, "abs(x)", _elementary("fabs"))
square_root = _operation(FLOATS, None, 1, "sqrt(x)", _elementary("sqrt"))
less = _operation(_NUMBERS, "bool", 2, "x < y; False for a NaN", _compare("<"))
less_equal = _operation(_NUMBERS, "bool", 2, "x <= y; False for a NaN", _compare("<="))
equal = _operation(_NUMBERS, "bool", 2, "x == y; False for a NaN", _compare("=="))
is_nan = _operation(FLOATS, "bool", 1, "where x is a NaN", is_nan_mask)
exceeds = _operation(
    _NUMBERS, "bool", 2, "where x ranks above y: it is larger, or it is a NaN and y is not",
    lambda builder, x, y: replaces_mask(builder, ">", x, y),
)  # fmt: skip
bit_and = _operation(_BITS, None, 2, "x & y", lambda builder, x, y: builder.and_(x, y))
bit_or = _operation(_BITS, None, 2, "x | y", lambda builder, x, y: builder.or_(x, y))
bit_not = _operation(_BITS, None, 1, "~x", lambda builder, x: builder.not_(x))
maximum = _operation(
    _NUMBERS, None, 2, "y where it is larger than x or the first NaN, else x",
    lambda builder, x, y: builder.select(replaces_mask(builder, ">", y, x), y, x),
)  # fmt: skip
evens = _operation(_NUMBERS, None, 2, "lanes 0, 2, 4, … of x and y joined", _joined(range(0, 2 * LANES, 2)))
odds = _operation(_NUMBERS, None, 2, "lanes 1, 3, 5, … of x and y joined", _joined(range(1, 2 * LANES, 2)))
_PAIRS = [lane for pair in zip(range(LANES), range(LANES, 2 * LANES), strict=True) for lane in pair]
interleave_low = _operation(_NUMBERS, None, 2, "x0, y0, x1, y1, …, x7, y7", _joined(_PAIRS[:LANES]))
interleave_high = _operation(_NUMBERS, None, 2, "x8, y8, …, x15, y15", _joined(_PAIRS[LANES:]))
to_float64 = _operation(_NUMBERS, "float64", 1, "as float64", _convert("float64"))


@intrinsic
def select(typing: Any, mask: Any, x: Any, y: Any) -> Any:
    """x where the mask holds, else y."""
    if mask != MASK or not isinstance(x, Vector) or x != y:
        raise TypeError(f"select takes a mask and two vectors of one kind; got {mask}, {x} and {y}")
    return x(MASK, x, x), lambda context, builder, signature, arguments: builder.select(*arguments)


@intrinsic
def as_lanes_of(typing: Any, array: Any, x: Any) -> Any:
    """Numbers in the kind of lane that `load(array, …)` gives."""
    kind = LANES_OF_ARRAY[check_array(array, tuple(LANES_OF_ARRAY))]
    if kind not in FLOATS or getattr(x, "kind", "bool") == "bool":
        raise TypeError(f"as_lanes_of takes an array of floats and a vector of numbers; got {array} and {x}")
    return TYPES[kind](array, x), lambda context, builder, signature, arguments: _convert(kind)(builder, arguments[1])


def _make_copy(doc: str, past_caches: bool) -> Any:
    """An intrinsic (y, to, x, at) for arrays of one dtype."""

    def copy(typing: Any, y: Any, to: Any, x: Any, at: Any) -> Any:
        check_array(y, (*LANES_OF_ARRAY, *INTEGERS))
        if x.dtype != y.dtype:
            raise TypeError(f"only cells of the same dtype can be copied; got {y} and {x}")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector, size = vector_of(context.get_data_type(y.dtype)), y.dtype.bitwidth // 8
            target, source = (
                address(context, builder, kind, array, i, ir.Constant(I64, LANES))
                for kind, array, i in ((y, *arguments[:2]), (x, *arguments[2:]))
            )
            value = builder.load(builder.bitcast(source, vector.as_pointer()), align=size)
            align = min(64, LANES * size) if past_caches else size
            written = builder.store(value, builder.bitcast(target, vector.as_pointer()), align=align)
            if past_caches:
                written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
            return context.get_dummy_value()

        return types.void(y, types.int64, x, types.int64), generate

    copy.__doc__ = doc
    return intrinsic(copy)


copy_lanes = _make_copy("Copy 16 cells as they are.", False)
stream_copy = _make_copy("`copy_lanes` past the caches (`stream`).", True)


@intrinsic
def slide(typing: Any, x: Any, y: Any, lanes: Any) -> Any:
    """x and y joined, from lane `lanes` (a constant, 0 to 16) on."""
    first = getattr(lanes, "literal_value", -1)
    if not isinstance(x, Vector) or x != y or not 0 <= first <= LANES:
        raise TypeError(f"slide takes two vectors of one kind and a constant of 0 to 16; got {x}, {y} and {lanes}")
    emit = _joined(range(first, first + LANES))
    return x(x, x, lanes), lambda context, builder, signature, arguments: emit(builder, *arguments[:2])


# ---------------------------------------------------------------------------------------------------- one number of all
@intrinsic
def lane(typing: Any, x: Any, i: Any) -> Any:
    """One lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_element(arguments[0], builder.and_(arguments[1], ir.Constant(I64, LANES - 1)))

    return getattr(types, x.kind)(x, types.int64), generate


@intrinsic
def total(typing: Any, x: Any) -> Any:
    """The sum of the lanes, by halves, in float64 or int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floats = x.kind != "int32"
        value, width = _convert("float64")(builder, *arguments) if floats else arguments[0], LANES
        value = value if floats else builder.sext(value, vector_of(I64))
        while width > 1:
            width //= 2
            low, high = (shuffle(builder, value, value, list(range(at, at + width))) for at in (0, width))
            value = (builder.fadd if floats else builder.add)(low, high)
        return builder.extract_element(value, ir.Constant(I32, 0))

    return (types.int64 if x.kind == "int32" else types.float64)(x), generate


@intrinsic
def any_lane(typing: Any, mask: Any) -> Any:
    """Whether the mask holds in a lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.icmp_unsigned("!=", builder.bitcast(arguments[0], I16), ir.Constant(I16, 0))

    return types.boolean(MASK), generate


@intrinsic
def first_true(typing: Any, mask: Any) -> Any:
    """The first lane where the mask holds; 16 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.zext(builder.bitcast(arguments[0], I16), I64)
        beyond = builder.or_(bits, ir.Constant(I64, 1 << LANES))
        return call(builder, "llvm.cttz.i64", I64, beyond, ir.Constant(I1, 1))

    return types.int64(MASK), generate
