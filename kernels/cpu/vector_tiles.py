"""The inner loops of direct convolution and of Winograd's: sums of products for a tile of results, and transforms.

The results of a tile stay in registers over the whole sum, so that each number or vector that is loaded serves several
multiplications. Tiles are as large as the registers of the CPU allow: up to 24 vectors of results with AVX-512, three
to six with AVX2 and NEON. LLVM makes one loop of a tile, which with 24 vectors of results reaches 95 % of the peak of a
core with AVX-512 (with eight 45 to 85 %). Each result is summed in order, with one FMA for each term, so its bits do
not depend on the size of the tile."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from .vector_memory import check_array
from .vector_types import FLOATS, I64, LANES, Cells, call, elementary, fill, operation, shuffle

WIDE = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
PACKED = 8  # filters whose weights are neighbours in memory
TILE_FILTERS, TILE_VECTORS = (8, 3) if WIDE else (4, 1)  # of a tile whose vectors are windows
STRIP = (6 if WIDE else 4) * LANES  # windows of a tile of one filter: twice TILE_VECTORS vectors, or a multiple
TAPS = 5  # of a tile of a weight's gradient
# Windows and vectors of filters of a tile, by the bytes of a number.
WINDOWS_BY_FILTERS = {4: (8, 2), 8: (8, 1)} if WIDE else {4: (6, 1), 8: (3, 1)}

PIECES = 8 if WIDE else 4  # of a tile of one filter and rows
# Columns of `pieces` (conv_direct_plan.pieces_of).
PIECE_COLUMNS = 5
PIECE_STRIP, PIECE_AT, PIECE_CELLS, PIECE_TARGET, PIECE_SAMPLE = range(PIECE_COLUMNS)


def _tile_operation(emit: Callable[..., None]) -> Any:
    """The operation `emit(builder, *arguments)`, which has no result. Arguments are arrays, indices and bools."""

    @functools.wraps(emit)
    def typed(*arguments: Any) -> Any:
        arrays = [a for a in arguments if isinstance(a, types.Array)]
        for array in arrays:
            check_array(array, (*FLOATS, "int64"))
        others = {types.boolean: types.boolean}
        kinds = [a if a in arrays else others.get(types.unliteral(a), types.int64) for a in arguments]
        return types.void(*kinds), lambda context, builder, *values: emit(builder, *values)

    return operation(typed)


def _sums(
    builder: Any, vector: Any, shape: tuple[int, int], count: Any, start: Callable[[int, int], Any],
    factors: Callable[[Any], tuple[list[Any], list[Any]]],
) -> list[tuple[int, int, Any]]:  # fmt: skip
    """The loop of a tile of (rows, columns) of vectors: row, column and the sum over k < count of products.

    start: from row and column to the vector that a sum starts with. factors: from k to the vectors of the rows and of
    the columns, which are multiplied."""
    places = {(i, j): cgutils.alloca_once_value(builder, start(i, j)) for i in range(shape[0]) for j in range(shape[1])}
    with cgutils.for_range(builder, count) as loop:
        rows, columns = factors(loop.index)
        for (i, j), place in places.items():
            builder.store(elementary(builder, "fma", rows[i], columns[j], builder.load(place)), place)
    return [(i, j, builder.load(place)) for (i, j), place in places.items()]


def _plus(builder: Any, index: Any, step: Any, times: int = 1) -> Any:
    """index + step * times. step: a number, or an index of the kernel."""
    step = I64(step) if isinstance(step, int) else step
    return builder.add(index, builder.mul(step, I64(times)))


def _filters_by_windows(rows: int, width: int) -> Any:
    @_tile_operation
    def filters_by_windows(
        builder: Any, weight: Cells, w: Any, bias: Cells, b: Any, sheets: Cells, places: Cells, p: Any, offsets: Cells,
        first: Any, count: Any, out: Cells, to: Any, pitch: Any,
    ) -> None:  # fmt: skip
        """out[to + pitch * i + LANES * j] = bias[b + i] + the sum over k of weight[w + PACKED * k + i] *
        sheets[places[p + j] + offsets[first + k]], for the filters i and the vectors of windows j of a tile, and
        `count` terms k."""
        starts = [places.number(_plus(builder, p, j)) for j in range(width)]
        at_once = rows if sheets.size == 4 else -(-rows // 2)  # a vector of float64 takes twice as many registers
        for row in range(0, rows, at_once):

            def start(i: int, j: int, row: int = row) -> Any:
                return fill(builder, bias.number(_plus(builder, b, row + i)))

            def factors(k: Any, row: int = row) -> tuple[list[Any], list[Any]]:
                here, offset = _plus(builder, w, k, PACKED), offsets.number(builder.add(first, k))
                columns = [sheets.vector(builder.add(place, offset)) for place in starts]
                return [fill(builder, weight.number(_plus(builder, here, row + i))) for i in range(at_once)], columns

            for i, j, total in _sums(builder, sheets.vector_type, (at_once, width), count, start, factors):
                out.store(_plus(builder, _plus(builder, to, pitch, row + i), LANES, j), total)

    return filters_by_windows


@_tile_operation
def one_filter_by_rows(
    builder: Any, weight: Cells, w: Any, bias: Cells, b: Any, sheets: Cells, offsets: Cells, first: Any, count: Any,
    pieces: Cells, piece: Any, last: Any, target: Cells, to: Any,
) -> None:  # fmt: skip
    """target[to + a piece's target] = bias[b] + the sum over k of weight[w + PACKED * k] * sheets[a piece's place +
    offsets[first + k]], for `count` terms k and `PIECES` pieces from `piece` on, or piece `last` in place of those
    after it: vectors of windows of one row each, as many lanes as the piece has cells."""
    rows = []
    for i in range(PIECES):
        row = _plus(builder, piece, i)
        row = builder.select(builder.icmp_signed("<", row, last), row, last)
        rows.append(builder.mul(row, I64(PIECE_COLUMNS)))
    starts = [pieces.number(_plus(builder, row, PIECE_AT)) for row in rows]

    def factors(k: Any) -> tuple[list[Any], list[Any]]:
        offset = offsets.number(builder.add(first, k))
        columns = [sheets.vector(builder.add(place, offset)) for place in starts]
        return [fill(builder, weight.number(_plus(builder, w, k, PACKED)))], columns

    start = fill(builder, bias.number(b))
    for _, j, total in _sums(builder, sheets.vector_type, (1, PIECES), count, lambda i, j: start, factors):
        at = builder.add(to, pieces.number(_plus(builder, rows[j], PIECE_TARGET)))
        target.store(at, total, pieces.number(_plus(builder, rows[j], PIECE_CELLS)))


@_tile_operation
def map_by_taps(
    builder: Any, maps: Cells, m: Any, sheets: Cells, places: Cells, p: Any, offsets: Cells, first: Any, count: Any,
    sums: Cells, to: Any,
) -> None:  # fmt: skip
    """Add to the vectors of sums at to + LANES * j the products of the vectors maps[m + LANES * k] and
    sheets[places[p + k] + offsets[first + j]], for the taps j of a tile, and `count` vectors k."""
    taps = [offsets.number(_plus(builder, first, j)) for j in range(TAPS)]

    def factors(k: Any) -> tuple[list[Any], list[Any]]:
        place = places.number(builder.add(p, k))
        return [maps.vector(_plus(builder, m, k, LANES))], [sheets.vector(builder.add(place, tap)) for tap in taps]

    zeros = sheets.vector_type(None)
    for _, j, total in _sums(builder, sheets.vector_type, (1, TAPS), count, lambda i, j: zeros, factors):
        at = _plus(builder, to, LANES, j)
        sums.store(at, builder.fadd(sums.vector(at), total))


def _windows_by_filters(width: int, depthwise: bool) -> Any:
    @_tile_operation
    def windows_by_filters(
        builder: Any, sheet: Cells, starts: Cells, q: Any, shift: Any, offsets: Cells, first: Any, count: Any,
        weight: Cells, w: Any, second: Any, bias: Cells, b: Any, target: Cells, targets: Cells, to: Any, out: Cells,
        at: Any, direct: Any, more: Any,
    ) -> None:  # fmt: skip
        """The sums bias[b + LANES * j] + the sum over k < count of sheet[starts[q + i] + shift + offsets[first + k]] *
        weight[w + second * j + LANES * k], for the windows i of a tile and vectors j of filters.

        If `depthwise`, a window has a vector of cells for these filters. The vectors of a window are stored from
        target[to + targets[q + i]] on if `direct`, else from out[at + LANES * width * i] on. If `more`, they have no
        bias, and are added to what is in `out`."""
        rows = WINDOWS_BY_FILTERS[sheet.size][0]
        bases = [builder.add(shift, starts.number(_plus(builder, q, i))) for i in range(rows)]

        def start(i: int, j: int) -> Any:
            return builder.select(more, bias.vector_type(None), bias.vector(_plus(builder, b, LANES, j)))

        def factors(k: Any) -> tuple[list[Any], list[Any]]:
            here, offset = _plus(builder, w, k, LANES), offsets.number(builder.add(first, k))
            columns = [weight.vector(_plus(builder, here, second, j)) for j in range(width)]
            cells = [builder.add(base, offset) for base in bases]
            return [sheet.vector(x) if depthwise else fill(builder, sheet.number(x)) for x in cells], columns

        sums = _sums(builder, sheet.vector_type, (rows, width), count, start, factors)
        buffer = {(i, j): _plus(builder, at, LANES * (width * i + j)) for i, j, _ in sums}
        with builder.if_else(more) as (then, otherwise):
            with then:
                for i, j, total in sums:
                    out.store(buffer[i, j], builder.fadd(out.vector(buffer[i, j]), total))
            with otherwise:
                lanes = builder.select(direct, I64(LANES), I64(0))
                for i, j, total in sums:
                    place = _plus(builder, builder.add(to, targets.number(_plus(builder, q, i))), LANES, j)
                    pointers = target.pointer(place, lanes, total.type), out.pointer(buffer[i, j], LANES, total.type)
                    builder.store(total, builder.select(direct, *pointers), align=sheet.size)

    return windows_by_filters


@_tile_operation
def transpose(
    builder: Any, source: Cells, at: Any, pitch: Any, rows: Any, columns: Any, target: Cells, to: Any, between: Any
) -> None:
    """target[to + between * j + i] = source[at + pitch * i + j], for i < rows and j < columns, up to 16 each.

    The source may have float64 for a target of float32."""

    def line(first: Any, between: Any, i: int, number: Any, lanes: Any) -> tuple[Any, Any]:
        """Where line i of `number` begins, and its lanes. A line that is not there has none, at the first one's place:
        the CPU takes hundreds of cycles for lanes that it leaves out in memory that is not mapped."""
        inside = builder.icmp_signed(">", number, I64(i))
        lanes = call(builder, "llvm.smin.i64", I64, lanes, I64(LANES))
        return builder.select(inside, _plus(builder, first, between, i), first), builder.select(inside, lanes, I64(0))

    vectors = [source.vector(*line(at, pitch, i, rows, columns)) for i in range(LANES)]
    halves = [[half + lane // 2 + LANES * (lane % 2) for lane in range(LANES)] for half in (0, LANES // 2)]
    for _ in range(4):  # lane l of vector i goes to place 16 i + l of 256, whose eight bits are turned by one
        pairs = zip(vectors[: LANES // 2], vectors[LANES // 2 :], strict=True)
        vectors = [shuffle(builder, x, y, lanes) for x, y in pairs for lanes in halves]
    if source.size > target.size:
        vectors = [builder.fptrunc(vector, target.vector_type) for vector in vectors]
    for j, vector in enumerate(vectors):
        place, lanes = line(to, between, j, columns, rows)
        target.store(place, vector, lanes)


def two_axis_transform(matrix: Any) -> Any:
    """The operation of Winograd's convolution that applies a matrix to vectors along two axes."""
    rows = [[(j, float(c)) for j, c in enumerate(row) if abs(c) > 1e-12] for row in matrix]

    def apply(builder: Any, vectors: list[Any]) -> list[Any]:
        results = []
        for (first, factor), *others in rows:
            result = builder.fmul(vectors[first], vectors[first].type([factor] * LANES))
            for j, factor in others:
                result = elementary(builder, "fma", vectors[j], result.type([factor] * LANES), result)
            results.append(result)
        return results

    @_tile_operation
    def transform(
        builder: Any, source: Cells, at: Any, down: Any, across: Any, target: Cells, to: Any, below: Any, beside: Any,
        bias: Cells | None = None, b: Any = None, check: Cells | None = None,
    ) -> None:  # fmt: skip
        """target[to + below * i + beside * j] = the result's vector (i, j), plus bias[b], from source[at + down * i +
        across * j]. check[0]: 0 in each lane, or NaN if a number is not finite."""
        size = range(len(matrix[0]))
        lines = [[source.vector(_plus(builder, _plus(builder, at, down, i), across, j)) for j in size] for i in size]
        lines = [apply(builder, line) for line in lines]
        columns = [apply(builder, [line[j] for line in lines]) for j in range(len(rows))]
        for j, column in enumerate(columns):
            for i, vector in enumerate(column):
                plus = vector if bias is None else builder.fadd(vector, bias.vector(b))
                target.store(_plus(builder, _plus(builder, to, below, i), beside, j), plus)
        if check is not None:
            total = check.vector(I64(0))
            for vector in itertools.chain(*columns):
                total = elementary(builder, "fma", vector, vector.type(None), total)
            check.store(I64(0), total)

    return transform


filters_by_windows = _filters_by_windows(TILE_FILTERS, TILE_VECTORS)
half_as_many_filters_by_windows = _filters_by_windows(TILE_FILTERS // 2, 2 * TILE_VECTORS)
one_filter_by_windows = _filters_by_windows(1, STRIP // LANES)
windows_by_two_vectors, windows_by_one_vector = _windows_by_filters(2, False), _windows_by_filters(1, False)
windows_by_channels = _windows_by_filters(1, True)
