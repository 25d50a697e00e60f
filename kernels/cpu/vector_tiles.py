"""The inner loops of direct convolution: sums of products for a tile of results.

The results of a tile stay in registers over the whole sum, so that each number or vector that is loaded serves several
multiplications. Tiles are as large as the registers of the CPU allow: 24 vectors of results with AVX-512, four to six
with AVX2 and NEON. LLVM makes one loop of a tile, which reaches 95 % of the peak of a core with AVX-512 (with eight
vectors of results 45 to 85 %). Each result is summed in order, with one FMA for each term, so its bits do not depend on
the size of the tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from .vector_memory import address, check_array
from .vector_types import (
    FLOATS,
    I32,
    I64,
    LANES,
    call,
    fill,
    first_lanes_mask,
    interleave,
    intrinsic,
    suffix,
    vector_of,
)

WIDE = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
PACKED = 8  # filters whose weights are neighbours in memory
ROWS, WIDTH = (8, 3) if WIDE else (4, 1)  # filters and vectors of windows of a tile
STRIP = (6 if WIDE else 4) * LANES  # windows of a tile of one filter: twice WIDTH vectors, or a multiple
TAPS = 5  # of a tile of a weight's gradient
# Windows and vectors of filters of a tile, by the bytes of a number.
WINDOWS_BY_FILTERS = {4: (8, 2), 8: (8, 1)} if WIDE else {4: (6, 1), 8: (3, 1)}

PIECES = 8 if WIDE else 4  # of a tile of one filter and rows
# Columns of `pieces`, which conv_direct_plan.py explains.
PIECE_COLUMNS = 5
PIECE_STRIP, PIECE_AT, PIECE_CELLS, PIECE_TARGET, PIECE_SAMPLE = range(PIECE_COLUMNS)


class _Array:
    """An array that an intrinsic is called with."""

    def __init__(self, context: Any, builder: Any, array_type: Any, value: Any) -> None:
        self.context, self.builder, self.type, self.value = context, builder, array_type, value
        self.vector_type, self.size = vector_of(context.get_data_type(array_type.dtype)), array_type.dtype.bitwidth // 8

    def pointer(self, index: Any, number: Any) -> Any:
        """The address of an element, of which `number` are used (an int, or an index of the kernel)."""
        number = ir.Constant(I64, number) if isinstance(number, int) else number
        return address(self.context, self.builder, self.type, self.value, index, number)

    def number(self, index: Any) -> Any:
        return self.builder.load(self.pointer(index, 1))

    def vector(self, index: Any) -> Any:
        pointer = self.builder.bitcast(self.pointer(index, LANES), self.vector_type.as_pointer())
        return self.builder.load(pointer, align=self.size)

    def store(self, index: Any, vector: Any) -> None:
        self.store_at(self.pointer(index, LANES), vector)

    def store_at(self, pointer: Any, vector: Any) -> None:
        self.builder.store(vector, self.builder.bitcast(pointer, vector.type.as_pointer()), align=self.size)

    def first(self, index: Any, count: Any) -> Any:
        """The vector's first lanes, the others 0."""
        pointer = self.builder.bitcast(self.pointer(index, count), self.vector_type.as_pointer())
        name, size = f"llvm.masked.load.v{LANES}{suffix(self.vector_type.element)}.p0", ir.Constant(I32, self.size)
        mask, zeros = first_lanes_mask(self.builder, count), ir.Constant(self.vector_type, None)
        return call(self.builder, name, self.vector_type, pointer, size, mask, zeros)

    def store_first(self, index: Any, vector: Any, count: Any) -> None:
        pointer = self.builder.bitcast(self.pointer(index, 0), self.vector_type.as_pointer())
        name, size = f"llvm.masked.store.v{LANES}{suffix(vector.type.element)}.p0", ir.Constant(I32, self.size)
        call(self.builder, name, ir.VoidType(), vector, pointer, size, first_lanes_mask(self.builder, count))


def _arguments(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """An intrinsic's arguments, arrays as `_Array`."""
    return [
        _Array(context, builder, array_type, value) if isinstance(array_type, types.Array) else value
        for array_type, value in zip(signature.args, arguments, strict=True)
    ]


def _emit(
    builder: Any, vector: Any, shape: tuple[int, int], count: Any, start: Callable[[int, int], Any],
    factors: Callable[[Any], tuple[list[Any], list[Any]]],
) -> list[tuple[int, int, Any]]:  # fmt: skip
    """The loop of a tile of (rows, columns) of vectors: row, column and the sum over k < count of products.

    start: from row and column to the vector that a sum starts with. factors: from k to the vectors of the rows and of
    the columns, which are multiplied."""
    name, places = f"llvm.fma.v{LANES}{suffix(vector.element)}", {}
    for i in range(shape[0]):
        for j in range(shape[1]):
            places[i, j] = cgutils.alloca_once(builder, vector)
            builder.store(start(i, j), places[i, j])
    with cgutils.for_range(builder, count) as loop:
        rows, columns = factors(loop.index)
        for (i, j), place in places.items():
            builder.store(call(builder, name, vector, rows[i], columns[j], builder.load(place)), place)
    return [(i, j, builder.load(place)) for (i, j), place in places.items()]


def _plus(builder: Any, index: Any, step: Any, times: int = 1) -> Any:
    """index + step * times. step: a number, or an index of the kernel."""
    step = ir.Constant(I64, step) if isinstance(step, int) else step
    return builder.add(index, builder.mul(step, ir.Constant(I64, times)))


def _make_filters_by_windows(rows: int, width: int) -> Any:
    @intrinsic
    def filters_by_windows(
        typing: Any, weight: Any, w: Any, bias: Any, b: Any, sheets: Any, places: Any, p: Any, offsets: Any, first: Any,
        count: Any, out: Any, to: Any, pitch: Any,
    ) -> Any:  # fmt: skip
        """out[to + pitch * i + LANES * j] = bias[b + i] + the sum over k of weight[w + PACKED * k + i] *
        sheets[places[p + j] + offsets[first + k]], for the filters i and the vectors of windows j of a tile, and
        `count` terms k."""
        for array in (weight, bias, sheets, out):
            check_array(array, FLOATS)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, w, biases, b, cells, places, p, terms, first, count, results, to, pitch = _arguments(
                context, builder, signature, arguments
            )
            starts = [places.number(_plus(builder, p, j)) for j in range(width)]
            at_once = rows if cells.size == 4 else -(-rows // 2)  # a vector of float64 takes twice as many registers

            for row in range(0, rows, at_once):

                def start(i: int, j: int, row: int = row) -> Any:
                    return fill(builder, biases.number(_plus(builder, b, row + i)))

                def factors(k: Any, row: int = row) -> tuple[list[Any], list[Any]]:
                    here, offset = _plus(builder, w, k, PACKED), terms.number(builder.add(first, k))
                    vectors = [cells.vector(builder.add(place, offset)) for place in starts]
                    return [
                        fill(builder, weights.number(_plus(builder, here, row + i))) for i in range(at_once)
                    ], vectors

                def finish(i: int, j: int, total: Any, row: int = row) -> None:
                    results.store(_plus(builder, _plus(builder, to, pitch, row + i), LANES, j), total)

                for found in _emit(builder, cells.vector_type, (at_once, width), count, start, factors):
                    finish(*found)
            return context.get_dummy_value()

        i = types.int64
        return types.void(weight, i, bias, i, sheets, places, i, offsets, i, i, out, i, i), generate

    return filters_by_windows


@intrinsic
def one_filter_by_rows(
    typing: Any, weight: Any, w: Any, bias: Any, b: Any, sheets: Any, offsets: Any, first: Any, count: Any, pieces: Any,
    piece: Any, last: Any, target: Any, to: Any,
) -> Any:  # fmt: skip
    """target[to + a piece's target] = bias[b] + the sum over k of weight[w + PACKED * k] * sheets[a piece's place +
    offsets[first + k]], for `count` terms k and `PIECES` pieces from `piece` on, or piece `last` in place of those
    after it: vectors of windows of one row each, as many lanes as the piece has cells."""
    for array in (weight, bias, sheets, target):
        check_array(array, FLOATS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, w, biases, b, cells, terms, first, count, pieces, piece, last, results, to = _arguments(
            context, builder, signature, arguments
        )
        rows = []
        for i in range(PIECES):
            row = _plus(builder, piece, i)
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            rows.append(builder.mul(row, ir.Constant(I64, PIECE_COLUMNS)))
        starts = [pieces.number(_plus(builder, row, PIECE_AT)) for row in rows]

        def factors(k: Any) -> tuple[list[Any], list[Any]]:
            offset = terms.number(builder.add(first, k))
            vectors = [cells.vector(builder.add(place, offset)) for place in starts]
            return [fill(builder, weights.number(_plus(builder, w, k, PACKED)))], vectors

        def finish(i: int, j: int, total: Any) -> None:
            at = builder.add(to, pieces.number(_plus(builder, rows[j], PIECE_TARGET)))
            results.store_first(at, total, pieces.number(_plus(builder, rows[j], PIECE_CELLS)))

        start = fill(builder, biases.number(b))
        for found in _emit(builder, cells.vector_type, (1, PIECES), count, lambda i, j: start, factors):
            finish(*found)
        return context.get_dummy_value()

    i = types.int64
    return types.void(weight, i, bias, i, sheets, offsets, i, i, pieces, i, i, target, i), generate


@intrinsic
def map_by_taps(
    typing: Any, maps: Any, m: Any, sheets: Any, places: Any, p: Any, offsets: Any, first: Any, count: Any, sums: Any,
    to: Any,
) -> Any:  # fmt: skip
    """Add to the vectors of sums at to + LANES * j the products of the vectors maps[m + LANES * k] and
    sheets[places[p + k] + offsets[first + j]], for the taps j of a tile, and `count` vectors k."""
    for array in (maps, sheets, sums):
        check_array(array, FLOATS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        map_cells, m, cells, places, p, taps, first, count, results, to = _arguments(
            context, builder, signature, arguments
        )
        offsets_of_taps = [taps.number(_plus(builder, first, j)) for j in range(TAPS)]

        def start(i: int, j: int) -> Any:
            return ir.Constant(cells.vector_type, None)

        def factors(k: Any) -> tuple[list[Any], list[Any]]:
            place = places.number(builder.add(p, k))
            columns = [cells.vector(builder.add(place, offset)) for offset in offsets_of_taps]
            return [map_cells.vector(_plus(builder, m, k, LANES))], columns

        def finish(i: int, j: int, total: Any) -> None:
            index = _plus(builder, to, LANES, j)
            results.store(index, builder.fadd(results.vector(index), total))

        for found in _emit(builder, cells.vector_type, (1, TAPS), count, start, factors):
            finish(*found)
        return context.get_dummy_value()

    i = types.int64
    return types.void(maps, i, sheets, places, i, offsets, i, i, sums, i), generate


def _make_windows_by_filters(width: int, depthwise: bool) -> Any:
    @intrinsic
    def windows_by_filters(
        typing: Any, sheet: Any, starts: Any, q: Any, shift: Any, offsets: Any, first: Any, count: Any, weight: Any,
        w: Any, second: Any, bias: Any, b: Any, target: Any, targets: Any, to: Any, out: Any, at: Any, direct: Any,
        more: Any,
    ) -> Any:  # fmt: skip
        """The sums bias[b + LANES * j] + the sum over k < count of sheet[starts[q + i] + shift + offsets[first + k]] *
        weight[w + second * j + LANES * k], for the windows i of a tile and vectors j of filters.

        If `depthwise`, a window has a vector of cells for these filters. The vectors of a window are stored from
        target[to + targets[q + i]] on if `direct`, else from out[at + LANES * width * i] on. If `more`, they have no
        bias, and are added to what is in `out`."""
        for array in (sheet, weight, bias, target, out):
            check_array(array, FLOATS)
        rows = WINDOWS_BY_FILTERS[sheet.dtype.bitwidth // 8][0]

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = _arguments(context, builder, signature, arguments)
            cells, rows_at, q, shift, terms, first, count, weights, w, second, biases, b, *ends = arrays
            results, places, to, beside, at, direct, more = ends
            bases = [builder.add(shift, rows_at.number(_plus(builder, q, i))) for i in range(rows)]

            def start(i: int, j: int) -> Any:
                bias = biases.vector(_plus(builder, b, LANES, j))
                return builder.select(more, ir.Constant(bias.type, None), bias)

            def factors(k: Any) -> tuple[list[Any], list[Any]]:
                here, offset = _plus(builder, w, k, LANES), terms.number(builder.add(first, k))
                columns = [weights.vector(_plus(builder, here, second, j)) for j in range(width)]
                seen = [builder.add(base, offset) for base in bases]
                return [cells.vector(x) if depthwise else fill(builder, cells.number(x)) for x in seen], columns

            sums = _emit(builder, cells.vector_type, (rows, width), count, start, factors)
            buffer = {(i, j): _plus(builder, at, LANES * (width * i + j)) for i, j, _ in sums}
            with builder.if_else(more) as (then, otherwise):
                with then:
                    for i, j, total in sums:
                        beside.store(buffer[i, j], builder.fadd(beside.vector(buffer[i, j]), total))
                with otherwise:
                    lanes = builder.select(direct, ir.Constant(I64, LANES), ir.Constant(I64, 0))
                    for i, j, total in sums:
                        place = _plus(builder, builder.add(to, places.number(_plus(builder, q, i))), LANES, j)
                        pointer = results.pointer(place, lanes), beside.pointer(buffer[i, j], LANES)
                        results.store_at(builder.select(direct, *pointer), total)
            return context.get_dummy_value()

        i = types.int64
        indices = (starts, i, i, offsets, i, i)
        results = (target, targets, i, out, i, types.boolean, types.boolean)
        return types.void(sheet, *indices, weight, i, i, bias, i, *results), generate

    return windows_by_filters


@intrinsic
def transpose(
    typing: Any, source: Any, at: Any, pitch: Any, rows: Any, columns: Any, target: Any, to: Any, between: Any
) -> Any:
    """target[to + between * j + i] = source[at + pitch * i + j], for i < rows and j < columns, up to 16 each.

    The source may have float64 for a target of float32."""
    for array in (source, target):
        check_array(array, FLOATS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, pitch, rows, columns, results, to, between = _arguments(context, builder, signature, arguments)

        def line(first: Any, between: Any, i: int, number: Any, lanes: Any) -> tuple[Any, Any]:
            """Where line i of `number` begins, and its lanes. A line that is not there has none, at the first one's
            place: the CPU takes hundreds of cycles for lanes that it leaves out in memory that is not mapped."""
            inside, zero = builder.icmp_signed(">", number, ir.Constant(I64, i)), ir.Constant(I64, 0)
            lanes = call(builder, "llvm.smin.i64", I64, lanes, ir.Constant(I64, LANES))
            place = builder.select(inside, _plus(builder, first, between, i), first)
            return place, builder.select(inside, lanes, zero)

        vectors = [values.first(*line(at, pitch, i, rows, columns)) for i in range(LANES)]
        for _ in range(4):  # lane l of vector i goes to place 16 i + l of 256, whose eight bits are turned by one
            pairs = [interleave(builder, vectors[i], vectors[i + LANES // 2]) for i in range(LANES // 2)]
            vectors = [vector for pair in pairs for vector in pair]
        if values.size > results.size:
            vectors = [builder.fptrunc(vector, results.vector_type) for vector in vectors]
        for j, vector in enumerate(vectors):
            place, lanes = line(to, between, j, columns, rows)
            results.store_first(place, vector, lanes)
        return context.get_dummy_value()

    i = types.int64
    return types.void(source, i, i, i, i, target, i, i), generate


filters_by_windows = _make_filters_by_windows(ROWS, WIDTH)
half_as_many_filters_by_windows = _make_filters_by_windows(ROWS // 2, 2 * WIDTH)
one_filter_by_windows = _make_filters_by_windows(1, STRIP // LANES)
windows_by_two_vectors, windows_by_one_vector = _make_windows_by_filters(2, False), _make_windows_by_filters(1, False)
windows_by_channels = _make_windows_by_filters(1, True)
