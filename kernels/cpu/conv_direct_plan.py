"""Plans for the loops of direct convolution (conv_direct_loops.py): how the work is cut into units, and tables of which
cells of the source go where in the sheets, where vectors of windows begin there, and where their results go in the
target.

NumPy makes the tables once, so the compiled loops need no geometry of axes, strides and padding. An `AxisPlan` has the
geometry of one axis. A unit's windows are a *band* of those of an axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends

from .vector_tiles import PACKED, STRIP, TAPS
from .vectors import LANES

Array = Any

SHEET_BYTES = 512 << 10  # of a unit's sheets, about: they should stay in the second-level cache of a core
ONE_CHANNEL_BYTES = 16 << 10  # the same if each cell is read once for each tap: in the first-level cache
MOST_CELLS = 16 * 1024  # of a sheet: each lane then has 1024 terms of a sum in float32 at most
UNITS = 16  # at least, if there are so many samples: work for several threads
MISSING = (1, 1, 1, 1, 1, 0)  # for a spatial axis that the array lacks: arguments of `forward_axis`
PARTS = 16  # partial sums of a weight's gradient, at most
PART_WINDOWS = 1500  # of a partial sum, at least: to add up the lanes of its vectors takes as long as 200 windows
MIN_PARALLEL_FLOPS = 16_000_000  # of a call for several threads, at least: about 150 µs (BLAS has its own limit)


@dataclass(frozen=True)
class AxisPlan:
    """One axis. A window's first cell is cell 0 of the sheet. `reads`: for each phase of the target, its taps with the
    phase of the source and the cell of the sheet that window 0 reads. `starts`: for each phase of the source, the
    source's cell in cell 0 of the sheet."""

    length: int
    step: int
    windows: int
    target_length: int
    target_step: int
    starts: list[int]
    reads: list[list[tuple[int, int, int]]]

    @property
    def reach(self) -> int:
        """Cells of the sheet that a window reads beyond its first."""
        return max((cell for phase in self.reads for _, _, cell in phase), default=0)

    def cells_in_source(self, start: int, windows: int) -> range:
        """Which cells of a sheet for some windows are in the source, if cell 0 is the source's cell `start`."""
        limit = windows + self.reach
        first = min(limit, max(0, -(start // self.step)))
        return range(first, max(first, min(limit, (self.length - 1 - start) // self.step + 1)))

    def windows_in_target(self, phase: int, first: int, windows: int) -> int:
        """How many of some windows have a cell of the target's phase. Where a stride does not divide the target, the
        last windows of some phases have none."""
        return max(0, min(windows, -(-(self.target_length - phase) // self.target_step) - first))

    def pitch(self) -> int:
        """The distance of rows. The zeros after a row are also those before the next."""
        inside = [self.cells_in_source(start, self.windows) for start in self.starts]
        limit, low, high = self.windows + self.reach, [r.start for r in inside], [r.stop for r in inside]
        return max(self.windows, *high, limit - min(low))


def forward_axis(length: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> AxisPlan:
    """Sheets are the phases of the image; window o reads cell o + t * dilation // stride of one of them."""
    phases = sorted({t * dilation % stride for t in range(kernel)})
    reads = [(t, phases.index(t * dilation % stride), t * dilation // stride) for t in range(kernel)]
    return AxisPlan(length, stride, out, out, 1, [phase - before for phase in phases], [reads])


def adjoint_axis(length: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> AxisPlan:
    """The image's cell stride * q + r gets tap t of map q + (r + before - t * dilation) / stride, if that is whole."""
    found = [
        [(t, (r + before - t * dilation) // stride) for t in range(kernel) if (r + before - t * dilation) % stride == 0]
        for r in range(stride)
    ]
    first = min((cell for phase in found for _, cell in phase), default=0)
    reads = [[(t, 0, cell - first) for t, cell in phase] for phase in found]
    return AxisPlan(out, 1, -(-length // stride), length, stride, [first], reads)


def bands_of(axes: Sequence[AxisPlan], band_axis: int, band: int) -> Iterator[list[tuple[int, int]]]:
    """For each band the first window and the number of windows on each axis."""
    for first in range(0, axes[band_axis].windows, band):
        box = [(0, a.windows) for a in axes]
        box[band_axis] = (first, min(band, axes[band_axis].windows - first))
        yield box


def copies_of(
    axes: Sequence[AxisPlan], box: Sequence[tuple[int, int]], pitches: Sequence[int], sheet: int, cell: int
) -> Array:
    """The rows of cells of a channel of a sample that a box of windows sees: (rows, 3), where each begins in the source
    and in the sheets, in elements, and its cells. cell: elements of the source from one cell to the next."""
    rows = []
    for phase, starts in enumerate(itertools.product(*(a.starts for a in axes))):
        z0, y0, x0 = (start + first * a.step for start, (first, _), a in zip(starts, box, axes, strict=True))
        *inside, x = (a.cells_in_source(s, n) for a, s, (_, n) in zip(axes, (z0, y0, x0), box, strict=True))
        if not x:
            continue
        z, y = (np.array(cells, np.int64) for cells in inside)
        z = z[:, None]
        source_rows = (z0 + z * axes[0].step) * axes[1].length + y0 + y * axes[1].step
        source = (source_rows * axes[2].length + x0 + x.start * axes[2].step) * cell
        to = (z * pitches[1] + y) * pitches[2] + x.start + phase * sheet
        rows.append(np.stack([source.ravel(), to.ravel(), np.full(source.size, len(x))], axis=1))
    return np.concatenate([np.empty((0, 3), np.int64), *rows])


def _rows_of(samples: int, depth: int, height: int, pitches: Sequence[int]) -> tuple[Array, Array, Array, Array]:
    """Sample, z and y of the rows of windows, and where each row begins in a sheet."""
    n, z, y = (a.ravel() for a in np.indices((samples, depth, height)))
    return n, z, y, ((n * pitches[0] + z) * pitches[1] + y) * pitches[2]


def places_of(samples: int, box: Sequence[tuple[int, int]], pitches: Sequence[int]) -> Array:
    """Where vectors of windows begin in a sheet, so that they cover all windows and skip what they can between rows.
    A whole number of strips: the last place is repeated."""
    *_, starts = _rows_of(samples, box[0][1], box[1][1], pitches)
    places, p = [], 0
    for row in starts.tolist():
        p = max(p, row)
        while p < row + box[2][1]:
            places.append(p)
            p += LANES
    return np.array(places + places[-1:] * (-len(places) % (STRIP // LANES)), np.int64)


def pieces_of(
    axes: Sequence[AxisPlan], samples: int, box: Sequence[tuple[int, int]], pitches: Sequence[int],
    places: Array | None, phase: Sequence[int], strides: Sequence[int], in_pairs: bool,
) -> Array:  # fmt: skip
    """The pieces of the target's rows, in order: (pieces, 5), its strip, its first position in this strip, its cells,
    its first element of the target, and its sample. Without places a piece is a vector of windows of one row, in strip
    0, and its first position is that in the sheet.

    phase: the target's cell of window 0 on each axis. strides: elements of the target from one sample, channel and cell
    to the next. in_pairs: a window's result is two neighbours, of this phase and the next."""
    depth, height, width = (a.windows_in_target(r, *span) for a, r, span in zip(axes, phase, box, strict=True))
    if not depth * height * width:
        return np.empty((0, 5), np.int64)
    n, z, y, starts = _rows_of(samples, depth, height, pitches)
    if places is None:
        size, first = LANES, np.arange(len(n)) * (-(-width // LANES) * LANES)
    else:
        vector = np.searchsorted(
            places, places[np.searchsorted(places, starts, "right") - 1]
        )  # the first of equal ones
        size, first = STRIP, vector * LANES + starts - places[vector]  # of all positions; a row's are neighbours
    strips = (first + width - 1) // size - first // size + 1
    row = np.repeat(np.arange(len(first)), strips)
    strip = first[row] // size + np.arange(len(row)) - np.repeat(np.cumsum(strips) - strips, strips)
    begin, end = np.maximum(first[row], strip * size), np.minimum(first[row] + width, (strip + 1) * size)
    z, y = (phase[i] + (box[i][0] + v) * axes[i].target_step for i, v in enumerate((z, y)))
    x = phase[2] + (box[2][0] + begin - first[row]) * axes[2].target_step
    cells = (z[row] * axes[1].target_length + y[row]) * axes[2].target_length + x
    count = np.minimum(2 * (end - begin), axes[2].target_length - x) if in_pairs else end - begin
    strip, at = (0 * strip, starts[row] + begin - first[row]) if places is None else (strip, begin - strip * size)
    return np.stack([strip, at, count, n[row] * strides[0] + cells * strides[2], n[row]], axis=1)


# ---------------------------------------------------------------------------------------------------------------- plans
@dataclass(frozen=True)
class Plan:
    """What a loop is given besides its arrays. `taps`: for each phase of the target its taps. `sheets`: their number;
    `sheet`: elements of one."""

    sizes: Array
    outputs: Array
    offsets: Array
    tables: tuple[Array, ...]
    taps: list[list[int]]
    units: int
    sheets: int
    sheet: int
    one_filter: bool

    @property
    def places(self) -> Array:
        places: Array = self.tables[2]
        return places


@backends.planned
def plan_of(spec: Any, step: str, itemsize: int) -> Plan:
    """The plan for one of the three functions."""
    rows = [(a.length, a.out, a.kernel, a.stride, a.dilation, a.before) for a in spec.window.axes]
    rows = [MISSING] * (3 - len(rows)) + rows
    axes = [(adjoint_axis if step == "correlate_adjoint" else forward_axis)(*row) for row in rows]
    kernel = [row[2] for row in rows]
    groups, filters, channels, _ = spec.weight_shape
    if step == "correlate_adjoint":
        filters, channels = channels, filters
    sources = math.prod(len(a.starts) for a in axes)
    sheets = channels * sources
    packed = -(-filters // PACKED) * PACKED
    packed_maps = filters if step == "weight_gradient" else 0  # they are in the cache too
    batch, band_axis, band, pitches = _cut(spec, groups, axes, (sheets + packed_maps) * itemsize)
    reach = (axes[0].reach * pitches[1] + axes[1].reach) * pitches[2] + axes[2].reach
    vectors = (batch * math.prod(pitches) + reach + LANES) // LANES + 1  # a vector has lanes after the last window
    sheet = (vectors + 1 - vectors % 2) * LANES  # an odd number of cache lines: sheets then use all sets of a cache
    bands = -(-axes[band_axis].windows // band)
    samples = spec.window.layout.shape[0]
    source, target = (math.prod(x) for x in ([a.length for a in axes], [a.target_length for a in axes]))
    source_strides, target_strides = _strides(spec, groups * channels, source), _strides(spec, groups * filters, target)
    outputs, offsets, taps = _offsets(axes, kernel, pitches, sheet, channels, groups * packed)
    if step == "weight_gradient":  # for complete tiles
        offsets += offsets[-1:] * (-len(offsets) % TAPS)
    target_step = axes[2].target_step * target_strides[2]
    in_pairs = target_step == axes[2].target_step == 2
    one_filter = step != "weight_gradient" and filters == 1
    one_filter = one_filter and target_step == len(outputs) == 1
    cut = batch, band_axis, band
    tables = _tables(axes, cut, pitches, sheet, target_strides, in_pairs, source_strides[2], one_filter)
    sizes = [samples, groups, channels, filters, batch, bands, sheet, math.prod(pitches), sources]
    sizes += [*source_strides[:2], axes[2].step * source_strides[2], *target_strides[:2], target_step, 1 + in_pairs]
    return Plan(
        np.array(sizes, np.int64),
        np.array(outputs, np.int64),
        np.array(offsets, np.int64),
        tables,
        taps,
        -(-samples // batch) * bands * groups,
        sheets,
        sheet,
        one_filter,
    )


def _tables(
    axes: Sequence[AxisPlan], cut: tuple[int, int, int], pitches: Sequence[int], sheet: int, strides: Sequence[int],
    in_pairs: bool, source_cell: int, one_filter: bool,
) -> tuple[Array, ...]:  # fmt: skip
    """The tables as the loops take them: copies, copy_ends, places, pieces and piece_ends."""
    batch, band_axis, band = cut
    boxes = list(bands_of(axes, band_axis, band))
    copies = [copies_of(axes, box, pitches, sheet, source_cell) for box in boxes]
    places = places_of(batch, boxes[0], pitches)
    phases = list(itertools.product(*(range(len(a.reads)) for a in axes)))[:: 1 + in_pairs]
    pieces = [
        pieces_of(axes, batch, box, pitches, None if one_filter else places, phase, strides, in_pairs)
        for box in boxes
        for phase in phases
    ]
    strips = np.arange(2 if one_filter else len(places) // (STRIP // LANES) + 1)
    starts = np.cumsum([0, *map(len, pieces[:-1])])
    piece_ends = [start + np.searchsorted(p[:, 0], strips) for start, p in zip(starts, pieces, strict=True)]
    return (
        np.concatenate(copies), np.cumsum([0, *map(len, copies)]), places,
        np.concatenate(pieces).reshape(-1 if one_filter else (-1, 5)), np.array(piece_ends),
    )  # fmt: skip


def _cut(spec: Any, groups: int, axes: Sequence[AxisPlan], row_bytes: int) -> tuple[int, int, int, list[int]]:
    """Samples in a batch, the axis that is cut into bands, windows in a band, and the pitches of the sheets.

    row_bytes: of one cell of all sheets."""
    pitches = [a.pitch() for a in axes]
    samples = spec.window.layout.shape[0]
    axis = next((i for i in range(2) if axes[i].windows > 1), 2)
    sheet_bytes = SHEET_BYTES if max(spec.weight_shape[1:3]) > 1 else ONE_CHANNEL_BYTES
    cells = min(sheet_bytes // row_bytes, MOST_CELLS)
    batch = min(cells // math.prod(pitches), -(-samples * groups // UNITS), samples)
    if batch >= 1 and (batch > 1 or samples * groups >= UNITS):
        return batch, axis, axes[axis].windows, pitches
    a = axes[axis]
    others = math.prod(pitches) // pitches[axis]
    least = -(-UNITS // (samples * groups)) if spec.flops > MIN_PARALLEL_FLOPS else 1
    number = max(least, -(-a.windows // max(1, cells // others - a.reach)))
    band = -(-a.windows // max(1, min(a.windows, number)))
    if band < a.windows:
        pitches[axis] = band + a.reach
    return 1, axis, band, pitches


def _strides(spec: Any, channels: int, cells: int) -> list[int]:
    """Elements of an array from one sample, channel and cell to the next."""
    return [channels * cells, 1, channels] if spec.last else [channels * cells, cells, 1]


def _offsets(
    axes: Sequence[AxisPlan], kernel: Sequence[int], pitches: Sequence[int], sheet: int, channels: int, filters: int
) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """`outputs` and `offsets` as the loops take them, and the taps of each phase of the target."""
    outputs: list[list[int]] = []
    offsets: list[int] = []
    taps, weights = [], 0
    phases = [len(a.starts) for a in axes]
    for origin in itertools.product(*(range(len(a.reads)) for a in axes)):
        reads = list(itertools.product(*(a.reads[r] for a, r in zip(axes, origin, strict=True))))
        taps.append([(z[0] * kernel[1] + y[0]) * kernel[2] + x[0] for z, y, x in reads])
        within = []
        for z, y, x in reads:
            source = (z[1] * phases[1] + y[1]) * phases[2] + x[1]
            within.append(source * sheet + (z[2] * pitches[1] + y[2]) * pitches[2] + x[2])
        outputs.append([len(offsets), channels * len(reads), weights])
        offsets += [c * math.prod(phases) * sheet + at for c in range(channels) for at in within]
        weights += filters * channels * len(reads)
    return outputs, offsets, taps
