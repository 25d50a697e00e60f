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

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from .vector_memory import check_array
from .vector_types import (
    FLOATS,
    I1,
    I16,
    I32,
    I64,
    LANES,
    Cells,
    call,
    elementary,
    fill,
    operation,
    shuffle,
    suffix,
    vector_of,
)

WIDE = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
ROWS, WIDTH = (8, 3) if WIDE else (4, 1)  # filters and vectors of windows of a tile
VECTORS = 8 if WIDE else 4  # of windows of a tile of one filter
PANEL = WIDTH * LANES  # columns of a matrix that a tile multiplies
TAPS = 5  # of a tile of a weight's gradient
# Windows and vectors of filters of a tile, by the bytes of a number.
WINDOWS_BY_FILTERS = {4: (8, 2), 8: (8, 1)} if WIDE else {4: (6, 1), 8: (3, 1)}

# What `targets` has for each of the two rows in a vector of windows: where in the target the row's cells go, their
# number, and the lane of the first.
TARGET, CELLS, LANE = range(3)
TARGET_COLUMNS = 6


def _tile_operation(emit: Callable[..., None]) -> Any:
    """The operation `emit(builder, *arguments)`, which has no result. Arguments are constants (those of `emit` that are
    annotated as `int`, which come first), arrays, indices and bools."""
    number = [*emit.__annotations__.values()].count("int")

    @functools.wraps(emit)
    def typed(*arguments: Any) -> Any:
        constants, arguments = arguments[:number], arguments[number:]
        arrays = [a for a in arguments if isinstance(a, types.Array)]
        for array in arrays:
            check_array(array, (*FLOATS, "int64"))
        others = {types.boolean: types.boolean}
        kinds = [a if a in arrays else others.get(types.unliteral(a), types.int64) for a in arguments]
        known = [constant.literal_value for constant in constants]
        return types.void(*constants, *kinds), lambda _, builder, *values: emit(builder, *known, *values[number:])

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


@_tile_operation
def filters_by_windows(
    builder: Any, rows: int, width: int, segments: int, weight: Cells, w: Any, bias: Cells, b: Any, sheets: Cells,
    places: Cells, p: Any, last: Any, offsets: Cells, first: Any, count: Any, target: Cells, targets: Cells, to: Any,
    pitch: Any, filters: Any,
) -> None:  # fmt: skip
    """The sums bias[b + i] + the sum over k < count of weight[w + LANES * k + i] * sheets[places[p + j] + offsets[first
    + k]], for `rows` filters i and `width` vectors of windows j.

    In place of vectors after `last` this one is computed again. The cells of the first `filters` filters are stored
    where `targets` has them, from target[to + pitch * i] on: those of the vector's first row, or with two segments of
    both rows. With none all vectors are stored, from target[to + pitch * i + LANES * j] on."""
    vectors = [call(builder, "llvm.smin.i64", I64, _plus(builder, p, j), last) for j in range(width)]
    starts = [places.number(v) for v in vectors]
    at_once = rows if sheets.size == 4 else -(-rows // 2)  # a vector of float64 takes twice as many registers
    sums: dict[tuple[int, int], Any] = {}
    for row in range(0, rows, at_once):

        def start(i: int, j: int, row: int = row) -> Any:
            return fill(builder, bias.number(_plus(builder, b, row + i)))

        def factors(k: Any, row: int = row) -> tuple[list[Any], list[Any]]:
            here, offset = _plus(builder, w, k, LANES), offsets.number(builder.add(first, k))
            columns = [sheets.vector(builder.add(place, offset)) for place in starts]
            return [fill(builder, weight.number(_plus(builder, here, row + i))) for i in range(at_once)], columns

        found = _sums(builder, sheets.vector_type, (at_once, width), count, start, factors)
        sums |= {(row + i, j): total for i, j, total in found}
    for j, vector in enumerate(vectors):
        line = [sums[i, j] for i in range(rows)]
        if segments:
            _store_rows(builder, line, filters, target, to, pitch, targets, vector, segments)
        else:
            for i, total in enumerate(line):
                target.store(_plus(builder, _plus(builder, to, pitch, i), LANES, j), total)


def _store_rows(
    builder: Any, sums: list[Any], filters: Any, target: Cells, to: Any, pitch: Any, targets: Cells, vector: Any,
    segments: int,
) -> None:  # fmt: skip
    """Store a vector of windows of each of the first `filters` filters, as filters_by_windows says. Other filters are
    stored in place of filter 0, before it: a branch would take longer."""
    row = builder.mul(vector, I64(TARGET_COLUMNS))
    first, cells, *others = (targets.number(_plus(builder, row, c)) for c in range(TARGET_COLUMNS))
    inside = [builder.icmp_signed(">", filters, I64(i)) for i in range(len(sums))]
    places = [builder.select(x, _plus(builder, to, pitch, i), to) for i, x in enumerate(inside)]
    stores = [*zip(places, sums, strict=True)][::-1]
    name = f"llvm.masked.store.v{LANES}{suffix(sums[0].type.element)}.p0"

    def store_lanes() -> None:
        for there, count, begin in ((first, cells, I64(0)), others[1:])[:segments]:
            bits = builder.shl(builder.sub(builder.shl(I64(1), count), I64(1)), begin)
            mask = builder.bitcast(builder.trunc(bits, I16), vector_of(I1))
            for place, total in stores:
                pointer = builder.gep(target.pointer(builder.add(place, there), count), [builder.neg(begin)])
                pointer = builder.bitcast(pointer, total.type.as_pointer())
                call(builder, name, ir.VoidType(), total, pointer, I32(target.size), mask)

    if WIDE:
        store_lanes()
        return
    # Some CPUs without AVX-512 take 20 cycles and more to store the lanes of a mask.
    with builder.if_else(builder.icmp_signed("==", cells, I64(LANES))) as (then, otherwise):
        with then:
            for place, total in stores:
                target.store(builder.add(place, first), total)
        with otherwise:
            store_lanes()


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


@_tile_operation
def rows_by_columns(
    builder: Any, a: Cells, at: Any, row: Any, term: Any, rows: Any, panel: Cells, count: Any, bias: Cells, b: Any,
    out: Cells, to: Any, pitch: Any, columns: Any, more: Any,
) -> None:  # fmt: skip
    """out[to + pitch * i + c] = the sum over k < count of a[at + row * i + term * k] * panel[PANEL * k + c], for the
    first `rows` rows i of a tile and the first `columns` columns c of a panel. It is added to what is there if `more`,
    else to bias[b + c]."""
    at_once = ROWS if a.size == 4 else ROWS // 2
    lanes = [builder.sub(columns, I64(LANES * j)) for j in range(WIDTH)]
    last = builder.sub(rows, I64(1))

    def part(first: int) -> None:
        """The rows from `first` on. In place of those that are not there it computes the last one again."""
        places = [call(builder, "llvm.smin.i64", I64, I64(first + i), last) for i in range(at_once)]
        targets = [builder.add(to, builder.mul(pitch, place)) for place in places]
        sources = [builder.add(at, builder.mul(row, place)) for place in places]

        def start(i: int, j: int) -> Any:
            begun = out.vector(_plus(builder, targets[i], LANES, j), lanes[j])
            return builder.select(more, begun, bias.vector(_plus(builder, b, LANES, j)))

        def factors(k: Any) -> tuple[list[Any], list[Any]]:
            offset = builder.mul(term, k)
            vectors = [panel.vector(_plus(builder, I64(LANES * j), k, PANEL)) for j in range(WIDTH)]
            return [fill(builder, a.number(builder.add(source, offset))) for source in sources], vectors

        for i, j, total in _sums(builder, a.vector_type, (at_once, WIDTH), count, start, factors):
            out.store(_plus(builder, targets[i], LANES, j), total, lanes[j])

    for first in range(0, ROWS, at_once):
        with builder.if_then(builder.icmp_signed(">", rows, I64(first))):
            part(first)


@_tile_operation
def windows_by_filters(
    builder: Any, width: int, depthwise: int, sheet: Cells, starts: Cells, q: Any, shift: Any, offsets: Cells,
    first: Any, count: Any, weight: Cells, w: Any, second: Any, bias: Cells, b: Any, target: Cells, targets: Cells,
    to: Any, out: Cells, at: Any, direct: Any, more: Any,
) -> None:  # fmt: skip
    """The sums bias[b + LANES * j] + the sum over k < count of sheet[starts[q + i] + shift + offsets[first + k]] *
    weight[w + second * j + LANES * k], for the windows i of a tile and `width` vectors j of filters.

    If `depthwise`, a window has a vector of cells for these filters. The vectors of a window are stored from
    target[to + targets[q + i]] on if `direct`, else from out[at + LANES * width * i] on. If `more`, they have no bias,
    and are added to what is in `out`."""
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
