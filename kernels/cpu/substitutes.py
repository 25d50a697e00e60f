"""What kernels call for `min`, `max`, `np.empty`, `np.zeros` and `np.full`: LLVM code in the kernel itself.

Numba has a Python function for each, which it would compile anew for each set of types, in up to 0.15 s. These do the
same, but arrays are aligned to cache lines, their sizes are not checked, and `min` and `max` take two numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core import ir as numba_ir
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.registry import cpu_target

from .vector_types import I64, operation

CACHE_LINE = 64


def _extreme(sign: str) -> Any:
    """The operation that gives the second of two numbers if it is less (or greater) than the first, else the first."""

    def extreme(first: Any, second: Any) -> Any:
        kind = cpu_target.typing_context.unify_types(first, second)
        if not isinstance(kind, types.Integer | types.Float):
            raise TypeError(f"min and max take two numbers in kernels; got {first} and {second}")

        def emit(context: Any, builder: Any, x: Any, y: Any) -> Any:
            floats, signed = isinstance(kind, types.Float), getattr(kind, "signed", True)
            compare = builder.fcmp_ordered if floats else builder.icmp_signed if signed else builder.icmp_unsigned
            return builder.select(compare(sign, y, x), y, x)

        return kind(kind, kind), emit

    return operation(extreme)


def new_array(context: Any, builder: Any, array: Any, shape: Any) -> tuple[Any, Any, Any]:
    """A new array, its address, and its number of elements. shape: an integer or a tuple of them."""
    from numba.np.arrayobj import populate_array  # imports much of Numba that stored code does not need

    lengths = cgutils.unpack_tuple(builder, shape) if isinstance(shape.type, ir.ArrayType) else [shape]
    size = I64(context.get_abi_sizeof(context.get_data_type(array.dtype)))
    strides, number = [size], I64(1)
    for length in reversed(lengths):
        strides.insert(0, builder.mul(strides[0], length))
        number = builder.mul(number, length)
    memory = context.nrt.meminfo_alloc_aligned(builder, strides[0], CACHE_LINE)
    data = builder.bitcast(context.nrt.meminfo_data(builder, memory), context.get_data_type(array.dtype).as_pointer())
    view = context.make_array(array)(context, builder)
    populate_array(view, data, lengths, strides[1:], size, memory)
    return view._getvalue(), data, number


def _new(fill: Callable[..., None], numbers: int = 0) -> Any:
    """The operation `(shape, *numbers, dtype)` that makes an array. The dtype is by default that of the number, or
    float64. fill: `(builder, address, count, *numbers)` sets the elements."""

    def new(shape: Any, *others: Any) -> Any:
        default = types.DType(types.unliteral(others[0])) if numbers else types.DType(types.float64)
        element = getattr((*others, default)[numbers], "dtype", None)  # of x.dtype, or of np.int64
        if not isinstance(element, types.Number):
            raise TypeError(f"np.empty, np.zeros and np.full take a dtype of numbers in kernels; got {others}")
        lengths = types.UniTuple(types.int64, len(shape)) if isinstance(shape, types.BaseTuple) else types.int64
        array = types.Array(element, len(shape) if isinstance(shape, types.BaseTuple) else 1, "C")

        def emit(context: Any, builder: Any, shape: Any, *others: Any) -> Any:
            value, *place = new_array(context, builder, array, shape)
            fill(builder, *place, *others[:numbers])
            return value

        return array(lengths, *[element] * numbers, *others[numbers:]), emit

    return operation(new)


def _repeat(builder: Any, address: Any, count: Any, number: Any = None) -> None:
    """Set the elements to a number, or to 0."""
    with cgutils.for_range(builder, count) as loop:
        builder.store(address.type.pointee(0) if number is None else number, builder.gep(address, [loop.index]))


BUILTINS = {"min": _extreme("<"), "max": _extreme(">")}
OF_NUMPY = {
    "empty": _new(lambda builder, address, count: None),
    "zeros": _new(_repeat),
    "full": _new(_repeat, 1),
}


@register_pass(mutates_CFG=False, analysis_only=False)
class Substitute(FunctionPass):  # type: ignore[misc]
    """Replace the functions in a kernel."""

    _name = "substitute"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            for assignment in block.find_insts(numba_ir.Assign):
                function = _substitute(state.func_ir, assignment.value)
                if function is not None:
                    found = numba_ir.Global("substitute", function, assignment.loc)
                    assignment.value = found
                    state.func_ir._definitions[assignment.target.name] = [found]
        return True


def _substitute(func_ir: Any, value: Any) -> Any:
    """The function in place of the one that a value names, or None."""
    if isinstance(value, numba_ir.Global):
        return BUILTINS.get(value.name) if value.value is min or value.value is max else None
    if isinstance(value, numba_ir.Expr) and value.op == "getattr" and value.attr in OF_NUMPY:
        owner = func_ir.get_definition(value.value)
        if isinstance(owner, numba_ir.Global) and owner.value is np:
            return OF_NUMPY[value.attr]
    return None
