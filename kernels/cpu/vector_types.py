"""Numba's types of vectors and of the operations on them, and the LLVM code that operations are made of.

An operation of a kernel is LLVM code in it, and no function that is called: see `operation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.extending import models, register_model
from numba.core.registry import cpu_target

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


# ----------------------------------------------------------------------------------------------------------- operations
class OperationType(types.Callable, types.Opaque):  # type: ignore[misc]
    """Numba's type of an operation, which keeps the signatures that it has found. At each call of a function of
    `numba.extending.intrinsic` Numba would look for what other packages have registered since."""

    def __init__(self, typed: Callable[..., Any]) -> None:
        self.typed, self.signatures = typed, dict[Any, Any]()
        super().__init__(f"operation {typed.__name__}")

    @property
    def key(self) -> Any:
        return self.typed

    def get_call_type(self, context: Any, args: Any, kws: Any) -> Any:
        if kws:
            raise TypeError(f"arguments of kernels' operations have no names; got {', '.join(kws)}")
        args = tuple(args)
        if args not in self.signatures:
            signature, emit = self.typed(*args)
            if signature not in self.signatures.values():

                def generate(context: Any, builder: Any, signature: Any, values: Any, loc: Any = None) -> Any:
                    pairs = zip(signature.args, values, strict=True)
                    made = [Cells(context, builder, t, v) if isinstance(t, types.Array) else v for t, v in pairs]
                    result = emit(context, builder, *made)
                    return context.get_dummy_value() if signature.return_type == types.void else result

                definition = generate, self.get_impl_key(signature), signature.args
                cpu_target.target_context.insert_func_defn([definition])
            self.signatures[args] = signature
        return self.signatures[args]

    def get_call_signatures(self) -> Any:
        return list(self.signatures.values()), True

    def get_impl_key(self, signature: Any) -> Any:
        return self, signature.args


register_model(OperationType)(models.OpaqueModel)


class _Operation:
    def __init__(self, typed: Callable[..., Any]) -> None:
        self._numba_type_, self.__doc__ = OperationType(typed), typed.__doc__


def operation(typed: Callable[..., Any]) -> Any:
    """A function for kernels, from one of the types of its arguments. That gives the signature, and a function
    `emit(context, builder, *values)` that appends LLVM code and gives the result. Arrays are given as `Cells`. The type
    of a constant has a `literal_value`."""
    return _Operation(typed)


class Cells:
    """A flat array in the LLVM code of a kernel. `vector_type`: 16 elements as they are in memory; `size`: the bytes of
    an element."""

    def __init__(self, context: Any, builder: Any, array: Any, value: Any) -> None:
        self.context, self.builder = context, builder
        self.model, self.value = context.data_model_manager[array], value
        self.vector_type, self.size = vector_of(context.get_data_type(array.dtype)), array.dtype.bitwidth // 8

    def _field(self, name: str) -> Any:
        return self.model.get(self.builder, self.value, name)

    def pointer(self, index: Any, count: Any, kind: Any = None) -> Any:
        """The address of an element, of which `count` are used; kind: LLVM's type of what is there. With Numba's bounds
        checks, IndexError unless `count` elements are there."""
        builder, count = self.builder, I64(count) if isinstance(count, int) else count
        if self.context.enable_boundscheck:
            begins = builder.icmp_signed(">=", index, I64(0))
            ends = builder.icmp_signed("<=", builder.add(index, count), self._field("nitems"))
            outside = builder.not_(builder.and_(begins, ends))
            with builder.if_then(builder.and_(builder.icmp_signed(">", count, I64(0)), outside), likely=False):
                message = ("a vector goes outside of its array",)
                self.context.call_conv.return_user_exc(builder, IndexError, message)
        pointer = builder.gep(self._field("data"), [index])
        return pointer if kind is None else builder.bitcast(pointer, kind.as_pointer())

    def number(self, index: Any) -> Any:
        return self.builder.load(self.pointer(index, 1))

    def vector(self, index: Any, count: Any = None) -> Any:
        """The vector from an element on; with a count only its first lanes, the others 0."""
        pointer = self.pointer(index, LANES if count is None else count, self.vector_type)
        if count is None:
            return self.builder.load(pointer, align=self.size)
        name, zeros = f"llvm.masked.load.v{LANES}{suffix(self.vector_type.element)}.p0", self.vector_type(None)
        mask = first_lanes_mask(self.builder, count)
        return call(self.builder, name, self.vector_type, pointer, I32(self.size), mask, zeros)

    def store(self, index: Any, vector: Any, count: Any = None, past_caches: bool = False) -> None:
        """Store a vector, or its first lanes. past_caches: the address is a multiple of the vector's size, or of 64."""
        builder, pointer = self.builder, self.pointer(index, LANES if count is None else count, self.vector_type)
        if count is None:
            written = builder.store(vector, pointer, align=min(64, LANES * self.size) if past_caches else self.size)
            if past_caches:
                written.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
            return
        # LLVM must not know that a count is 1: for one lane of a vector that is narrowed it stores the wide lane, and
        # overwrites the next elements (LLVM 22, AVX-512).
        count = builder.call(ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0"), [count])
        name, mask = f"llvm.masked.store.v{LANES}{suffix(vector.type.element)}.p0", first_lanes_mask(builder, count)
        call(builder, name, ir.VoidType(), vector, pointer, I32(self.size), mask)


# ----------------------------------------------------------------------------------------------------------- LLVM code
def vector_of(element: Any) -> Any:
    """LLVM's type of 16 such elements."""
    return ir.VectorType(element, LANES)


def fill(builder: Any, scalar: Any) -> Any:
    """The scalar in each lane."""
    vector = vector_of(scalar.type)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return shuffle(builder, one, one, [0] * LANES)


def shuffle(builder: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    """Lanes of x and y joined, by their numbers."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """The value of an LLVM intrinsic, or of a function of the C library."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [v.type for v in values]), name)
    return builder.call(function, values)


def elementary(builder: Any, name: str, *values: Any) -> Any:
    """An LLVM intrinsic of vectors of floats."""
    vector = values[0].type
    return call(builder, f"llvm.{name}.v{LANES}{suffix(vector.element)}", vector, *values)


def first_lanes_mask(builder: Any, count: Any) -> Any:
    """The mask of the first lanes; count: int64, also negative or more than 16."""
    limited = call(builder, "llvm.smin.i64", I64, count, I64(LANES))
    limited = builder.trunc(call(builder, "llvm.smax.i64", I64, limited, I64(0)), I32)
    return builder.icmp_signed("<", ir.Constant(vector_of(I32), list(range(LANES))), fill(builder, limited))


def is_nan_mask(builder: Any, x: Any) -> Any:
    return builder.fcmp_unordered("uno", x, x)


def suffix(element: Any) -> str:
    """An element type, in the name of an LLVM intrinsic."""
    return {"float": "f32", "double": "f64"}.get(str(element), str(element))
