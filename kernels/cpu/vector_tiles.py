"""The inner loops of direct convolution: sums of products of numbers and vectors, for a tile of results.

The results of a tile stay in registers over the whole sum, so that each vector that is loaded serves several
multiplications. Tiles are as large as the registers of the CPU allow: 24 vectors of results with AVX-512, four with
AVX2 and NEON. LLVM makes one loop of a tile, which reaches 95 % of the peak of a core with AVX-512 (with eight vectors
of results 45 to 85 %). Each result is summed in order, with one FMA for each term, so its bits do not depend on the
size of the tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from .vector_memory import address, check_array
from .vector_types import FLOATS, I64, LANES, call, fill, intrinsic, suffix, vector_of

WIDE = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
PACKED = 8  # filters whose weights are neighbours in memory
ROWS, WINDOWS = (8, 3 * LANES) if WIDE else (4, LANES)  # filters and windows of a tile
STRIP = (6 if WIDE else 4) * LANES  # windows of a tile of one filter: a multiple of WINDOWS

Access = Callable[[Any, Any, int], Any]  # of an array: from its name, an index and a number of elements to a pointer


def _emit(
    builder: Any, access: Access, element: Any, shape: tuple[int, int], count: Any, offset_at: Any, numbers: Any,
    vectors: Any, starts: Any, results: Any,
) -> None:  # fmt: skip
    """The loop of a tile of (rows, vectors of a row). numbers, vectors: from k, offsets[k] and the row, or the vector
    of a row, to the index of what is multiplied. starts: the vectors that sums start with; results: indices of out."""
    rows, width = shape
    vector, size = vector_of(element), 8 if element == ir.DoubleType() else 4
    name = f"llvm.fma.v{LANES}{suffix(element)}"

    def load_vector(array: str, index: Any) -> Any:
        pointer = builder.bitcast(access(array, index, LANES), vector.as_pointer())
        return builder.load(pointer, align=size)

    places = [[cgutils.alloca_once(builder, vector) for _ in range(width)] for _ in range(rows)]
    for i in range(rows):
        for j in range(width):
            builder.store(starts(i, j), places[i][j])
    with cgutils.for_range(builder, count) as loop:
        k = loop.index
        offset = builder.load(access("offsets", builder.add(offset_at, k), 1))
        loaded = [load_vector("vectors", vectors(k, offset, j)) for j in range(width)]
        for i in range(rows):
            x = fill(builder, builder.load(access("numbers", numbers(k, offset, i), 1)))
            for j in range(width):
                total = call(builder, name, vector, x, loaded[j], builder.load(places[i][j]))
                builder.store(total, places[i][j])
    for i in range(rows):
        for j in range(width):
            pointer = builder.bitcast(access("out", results(i, j), LANES), vector.as_pointer())
            builder.store(builder.load(places[i][j]), pointer, align=size)


def _accessor(context: Any, builder: Any, arrays: dict[str, tuple[Any, Any]]) -> Access:
    def access(name: str, index: Any, number: int) -> Any:
        return address(context, builder, *arrays[name], index, ir.Constant(I64, number))

    return access


def _make_filters_by_windows(rows: int, width: int) -> Any:
    @intrinsic
    def filters_by_windows(
        typing: Any, weight: Any, w: Any, bias: Any, b: Any, sheets: Any, at: Any, offsets: Any, first: Any, count: Any,
        out: Any, to: Any, pitch: Any,
    ) -> Any:  # fmt: skip
        """out[to + pitch * i + j] = bias[b + i] + the sum over k of weight[w + PACKED * k + i] *
        sheets[at + offsets[first + k] + j], for the filters i and the windows j of a tile, and `count` terms k."""
        for array in (weight, bias, sheets, out):
            check_array(array, FLOATS)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weight, w, bias, b, sheets, at, offsets, first, count, out, to, pitch = arguments
            types_of = signature.args
            arrays = {"numbers": (types_of[0], weight), "bias": (types_of[2], bias), "vectors": (types_of[4], sheets)}
            arrays |= {"offsets": (types_of[6], offsets), "out": (types_of[9], out)}
            access = _accessor(context, builder, arrays)

            def plus(x: Any, number: int) -> Any:
                return builder.add(x, ir.Constant(I64, number))

            def start(i: int, j: int) -> Any:
                return fill(builder, builder.load(access("bias", plus(b, i), 1)))

            def number(k: Any, offset: Any, i: int) -> Any:
                return plus(builder.add(w, builder.mul(k, ir.Constant(I64, PACKED))), i)

            def vector(k: Any, offset: Any, j: int) -> Any:
                return plus(builder.add(at, offset), LANES * j)

            def result(i: int, j: int) -> Any:
                return plus(builder.add(to, builder.mul(pitch, ir.Constant(I64, i))), LANES * j)

            element = context.get_data_type(types_of[0].dtype)
            _emit(builder, access, element, (rows, width), count, first, number, vector, start, result)
            return context.get_dummy_value()

        i = types.int64
        return types.void(weight, i, bias, i, sheets, i, offsets, i, i, out, i, i), generate

    return filters_by_windows


filters_by_windows = _make_filters_by_windows(ROWS, WINDOWS // LANES)
one_filter_by_windows = _make_filters_by_windows(1, STRIP // LANES)
