"""Numba's types of vectors, and the LLVM code that vector_memory.py and vectors.py build on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.extending import models, register_model
from numba.extending import intrinsic as numba_intrinsic

LANES = 16
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
ELEMENTS = {"float32": ir.FloatType(), "float64": ir.DoubleType(), "int32": I32, "bool": I1}
FLOATS = ("float32", "float64")


class Vector(types.Type):  # type: ignore[misc]
    """Numba's type of a vector. `kind`: of its lanes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"{kind}x{LANES}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, vector_of(ELEMENTS[fe_type.kind]))


TYPES = {kind: Vector(kind) for kind in ELEMENTS}
INT, MASK = TYPES["int32"], TYPES["bool"]


def intrinsic(typed: Callable[..., Any]) -> Any:
    """A function for kernels, from one that returns its signature and its LLVM code. A literal is a constant there."""
    return numba_intrinsic(prefer_literal=True)(typed)


# --------------------------------------------------------------------------------------------------------- LLVM helpers
def vector_of(element: Any) -> Any:
    """LLVM's type of 16 such elements."""
    return ir.VectorType(element, LANES)


def fill(builder: Any, scalar: Any) -> Any:
    """The scalar in each lane."""
    vector = vector_of(scalar.type)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return shuffle(builder, one, one, [0] * LANES)


def shuffle(builder: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    """Lanes of x and y joined, by their numbers."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def interleave(builder: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """x0, y0, x1, y1, … in two vectors."""
    lanes = [lane for pair in zip(range(LANES), range(LANES, 2 * LANES), strict=True) for lane in pair]
    return shuffle(builder, x, y, lanes[:LANES]), shuffle(builder, x, y, lanes[LANES:])


def call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """The value of an LLVM intrinsic."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [v.type for v in values]), name)
    return builder.call(function, values)


def first_lanes_mask(builder: Any, count: Any) -> Any:
    """The mask of the first lanes; count: int64, also negative or more than 16."""
    limited = call(builder, "llvm.smin.i64", I64, count, ir.Constant(I64, LANES))
    limited = builder.trunc(call(builder, "llvm.smax.i64", I64, limited, ir.Constant(I64, 0)), I32)
    return builder.icmp_signed("<", ir.Constant(vector_of(I32), list(range(LANES))), fill(builder, limited))


def is_nan_mask(builder: Any, x: Any) -> Any:
    return builder.fcmp_unordered("uno", x, x)


def replaces_mask(builder: Any, sign: str, x: Any, y: Any) -> Any:
    """Where x replaces the extreme value y: x > y (or the other sign), or x is a NaN and y is not."""
    if x.type.element == I32:
        return builder.icmp_signed(sign, x, y)
    return builder.and_(builder.fcmp_unordered(sign, x, y), builder.fcmp_ordered("ord", y, y))


def suffix(element: Any) -> str:
    """An element type, in the name of an LLVM intrinsic."""
    return {"float": "f32", "double": "f64"}.get(str(element), str(element))
