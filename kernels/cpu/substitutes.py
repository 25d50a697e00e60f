"""What kernels call for `min`, `max`, `np.empty`, `np.zeros` and `np.full`: LLVM code in the kernel itself.

Numba has a Python function for each, which it would compile anew for each set of types, in up to 0.15 s. These do the
same, but arrays are aligned to cache lines, their sizes are not checked, and `min` and `max` take two numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core import ir as numba_ir
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

I64 = ir.IntType(64)
CACHE_LINE = 64


def _extreme(sign: str) -> Any:
    """The intrinsic that gives the second of two numbers if it is less (or greater) than the first, else the first."""

    def extreme(typing: Any, first: Any, second: Any) -> Any:
        kind = typing.unify_types(first, second)
        if not isinstance(kind, types.Integer | types.Float):
            raise TypeError(f"min and max take two numbers in kernels; got {first} and {second}")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, y = arguments
            if isinstance(kind, types.Float):
                replaces = builder.fcmp_ordered(sign, y, x)
            else:
                replaces = (builder.icmp_signed if kind.signed else builder.icmp_unsigned)(sign, y, x)
            return builder.select(replaces, y, x)

        return kind(kind, kind), generate

    return intrinsic(extreme)


def new_array(context: Any, builder: Any, array: Any, shape: Any) -> tuple[Any, Any, Any]:
    """A new array, its address, and its number of bytes. shape: an integer or a tuple of them."""
    lengths = cgutils.unpack_tuple(builder, shape) if isinstance(shape.type, ir.ArrayType) else [shape]
    size = I64(context.get_abi_sizeof(context.get_data_type(array.dtype)))
    strides = [size]
    for length in reversed(lengths):
        strides.insert(0, builder.mul(strides[0], length))
    memory = context.nrt.meminfo_alloc_aligned(builder, strides[0], CACHE_LINE)
    data = builder.bitcast(context.nrt.meminfo_data(builder, memory), context.get_data_type(array.dtype).as_pointer())
    view = context.make_array(array)(context, builder)
    populate_array(view, data, lengths, strides[1:], size, memory)
    return view._getvalue(), data, strides[0]


def _types(shape: Any, dtype: Any) -> tuple[Any, Any]:
    """The types of an array and of its shape as `new_array` takes it."""
    ndim = len(shape) if isinstance(shape, types.BaseTuple) else 1
    element = getattr(dtype, "dtype", None)  # of x.dtype, or of np.int64
    if not isinstance(element, types.Number):
        raise TypeError(f"np.empty, np.zeros and np.full take a dtype of numbers in kernels; got {dtype}")
    lengths = types.UniTuple(types.int64, ndim) if isinstance(shape, types.BaseTuple) else types.int64
    return types.Array(element, ndim, "C"), lengths


def _filled(clear: bool) -> Any:
    """np.zeros if `clear`, else np.empty."""

    def new(typing: Any, shape: Any, dtype: Any = None) -> Any:
        array, lengths = _types(shape, types.DType(types.float64) if dtype is None else dtype)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value, data, nbytes = new_array(context, builder, array, arguments[0])
            if clear:
                cgutils.memset(builder, data, nbytes, 0)
            return value

        return array(lengths, types.none if dtype is None else dtype), generate

    return intrinsic(new)


def _full(typing: Any, shape: Any, number: Any, dtype: Any = None) -> Any:
    """np.full(shape, number, dtype); without a dtype that of the number."""
    array, lengths = _types(shape, types.DType(number) if dtype is None else dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, data, nbytes = new_array(context, builder, array, arguments[0])
        size = I64(context.get_abi_sizeof(arguments[1].type))
        with cgutils.for_range(builder, builder.udiv(nbytes, size)) as loop:
            builder.store(arguments[1], builder.gep(data, [loop.index]))
        return value

    return array(lengths, array.dtype, types.none if dtype is None else dtype), generate


BUILTINS = {"min": _extreme("<"), "max": _extreme(">")}
OF_NUMPY = {"empty": _filled(False), "zeros": _filled(True), "full": intrinsic(_full)}


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
