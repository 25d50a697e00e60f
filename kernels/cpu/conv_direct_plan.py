"""Plans for the loops of direct convolution (conv_direct_loops.py): how the work is cut into units, and tables of which
cells of the source go where in the sheets, where windows begin there, and where their results go in the target.

NumPy makes the tables once, so the compiled loops need no geometry of axes, strides and padding. An `AxisPlan` has the
geometry of one axis. A unit's windows are a *band* of those of an axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .vectors import LANES

Array = Any

SHEET_BYTES = 512 << 10  # of a unit's sheets, about: they should stay in the second-level cache of a core
ONE_CHANNEL_BYTES = 16 << 10  # the same if each cell is read once for each tap: in the first-level cache
MOST_CELLS = 16 * 1024  # of a sheet: each lane then has 1024 terms of a sum in float32 at most
# That vectors of filters read from one sheet: with a sheet for each channel they take up to 1.3 times as long.
MANY_CHANNELS = 16
LEAST_WINDOWS = 192  # of a unit, if there are so many: each unit reads all weights, which may be in a slow cache
UNITS = 16  # at least, if there are so many samples: work for several threads
MIN_PARALLEL_FLOPS = 16_000_000  # of a call for several threads, at least: about 150 µs (BLAS has its own limit)
MISSING = (1, 1, 1, 1, 1, 0)  # for a spatial axis that the array lacks: arguments of `forward_axis`


@dataclass(frozen=True)
class AxisPlan:
    """One axis. `step`: the source's cells from one of the sheet's to the next. `pace`: the sheet's cells from one
    window to the next. `reads`: for each phase of the target, its taps with the phase of the source and the cell of the
    sheet that window 0 reads. `starts`: for each phase of the source, the source's cell in cell 0 of the sheet."""

    length: int
    step: int
    windows: int
    target_length: int
    target_step: int
    starts: list[int]
    reads: list[list[tuple[int, int, int]]]
    pace: int = 1

    @property
    def reach(self) -> int:
        """Cells of the sheet that a window reads beyond its first."""
        return max((cell for phase in self.reads for _, _, cell in phase), default=0)

    def extent(self, windows: int) -> int:
        """The sheet's cells that some windows read."""
        return (windows - 1) * self.pace + 1 + self.reach

    def cells_in_source(self, start: int, windows: int) -> range:
        """Which cells of a sheet for some windows are in the source, if cell 0 is the source's cell `start`."""
        limit = self.extent(windows)
        first = min(limit, max(0, -(start // self.step)))
        return range(first, max(first, min(limit, (self.length - 1 - start) // self.step + 1)))

    def windows_in_target(self, phase: int, first: int, windows: int) -> int:
        """How many of some windows have a cell of the target's phase. Where a stride does not divide the target, the
        last windows of some phases have none."""
        return max(0, min(windows, -(-(self.target_length - phase) // self.target_step) - first))

    @property
    def pitch(self) -> int:
        """The distance of rows. The zeros after a row are also those before the next."""
        inside = [self.cells_in_source(start, self.windows) for start in self.starts]
        limit, low, high = self.extent(self.windows), [r.start for r in inside], [r.stop for r in inside]
        return max(limit - self.reach, *high, limit - min(low))


def forward_axis(length: int, out: int, kernel: int, stride: int, dilation: int, before: int, phases: bool) -> AxisPlan:
    """Window o reads cell o * stride + t * dilation of the image with its padding, for each tap t. With phases cells
    that are `stride` apart go to one sheet, so that neighbouring windows read neighbouring cells."""
    step = stride if phases else math.gcd(stride, dilation * (kernel > 1))
    firsts = sorted({t * dilation % step for t in range(kernel)})
    reads = [(t, firsts.index(t * dilation % step), t * dilation // step) for t in range(kernel)]
    return AxisPlan(length, step, out, out, 1, [first - before for first in firsts], [reads], stride // step)


def adjoint_axis(length: int, out: int, kernel: int, stride: int, dilation: int, before: int, phases: bool) -> AxisPlan:
    """The image's cell stride * q + r gets tap t of map q + (r + before - t * dilation) / stride, if that is whole."""
    found = [
        [(t, (r + before - t * dilation) // stride) for t in range(kernel) if (r + before - t * dilation) % stride == 0]
        for r in range(stride)
    ]
    first = min((cell for phase in found for _, cell in phase), default=0)
    reads = [[(t, 0, cell - first) for t, cell in phase] for phase in found]
    return AxisPlan(out, 1, -(-length // stride), length, stride, [first], reads)


def copies_of(
    axes: Sequence[AxisPlan], box: Sequence[tuple[int, int]], pitches: Sequence[int], source: int, to: tuple[int, int]
) -> Array:
    """The rows of cells of a sample that a box of windows sees: (rows, 4), where each begins in the source and in the
    sheets, in elements, its cells, and the cells of padding after them. source: elements of the source from a cell to
    the next. to: elements of the sheets from a cell and from a phase to the next."""
    rows, end = [], pitches[0] + sum(a.reach * pitch for a, pitch in zip(axes, pitches[1:], strict=True)) + LANES
    for phase, starts in enumerate(itertools.product(*(a.starts for a in axes))):
        z0, y0, x0 = (start + first * a.pace * a.step for start, (first, _), a in zip(starts, box, axes, strict=True))
        *inside, x = (a.cells_in_source(s, n) for a, s, (_, n) in zip(axes, (z0, y0, x0), box, strict=True))
        z, y = np.indices([len(r) * bool(x) for r in inside]).reshape(2, -1) + [[r.start] for r in inside]
        cells = (z0 + z * axes[0].step) * axes[1].length + y0 + y * axes[1].step
        cells = cells * axes[2].length + x0 + x.start * axes[2].step
        there = np.append(0, z * pitches[1] + y * pitches[2] + x.start)  # first the padding before all rows
        count = np.append(0, np.full(len(z), len(x)))
        zeros = np.diff(there, append=end) - count
        rows.append(np.stack([np.append(0, cells * source), there * to[0] + phase * to[1], count, zeros], axis=1))
    return np.concatenate(rows)


def vectors_of(
    starts: Array, rows: Array, width: int, step: int, together: int, cells: int, apart: bool
) -> tuple[Array, Array]:
    """Where vectors of windows begin in a sheet, so that they cover all windows of the rows that begin at `starts`, and
    the table `targets`. A vector has cells of two rows at most, or if `apart` of one.

    rows: the elements of the target for the rows' first windows; step: from a window's to the next one's. together: 2
    if a window's result is two neighbours, of `cells` in a row; else 1."""
    places, p, begins = [], 0, starts.tolist()
    for row, start in enumerate(begins):
        p = start if apart else max(p, start)
        while p < start + width:
            places.append((p, row))
            p = p + LANES if apart else min([p + LANES, *begins[row + 2 : row + 3]])
    begin, row = np.array(places, np.int64).reshape(-1, 2).T
    after = row if apart else np.minimum(row + 1, len(starts) - 1)
    lane = np.where(after > row, np.minimum(starts[after] - begin, LANES), LANES)
    window = begin - starts[row]
    first, second = (
        np.minimum(together * np.minimum(width - w, LANES - lanes), cells - together * w)
        for w, lanes in ((window, 0), (0, lane))
    )
    targets = [rows[row] + window * step, first, 0 * lane, rows[after], second, lane]
    return begin, np.stack(targets, axis=1)


# ---------------------------------------------------------------------------------------------------------------- plans
@dataclass(frozen=True)
class Cut:
    """How the windows are cut into units: samples in a batch, or bands of windows of one axis. `pitches`: cells of a
    sheet from a sample to the next, and so for each axis."""

    batch: int
    axis: int
    band: int
    bands: int
    pitches: list[int]

    def boxes(self, axes: Sequence[AxisPlan]) -> list[list[tuple[int, int]]]:
        """For each band the first window and the number of windows on each axis."""
        boxes = [[(0, a.windows) for a in axes] for _ in range(self.bands)]
        for i, box in enumerate(boxes):
            box[self.axis] = (i * self.band, min(self.band, axes[self.axis].windows - i * self.band))
        return boxes


def _cut(axes: Sequence[AxisPlan], samples: int, groups: int, most: int, flops: float) -> Cut:
    """most: cells of a sheet."""
    extents, windows = [a.pitch for a in axes], math.prod(a.windows for a in axes)
    axis = next((i for i in range(2) if axes[i].windows > 1), 2)
    a, others = axes[axis], math.prod(extents) // extents[axis]
    batch = min(most // math.prod(extents), samples, max(-(-samples * groups // UNITS), -(-LEAST_WINDOWS // windows)))
    least = 1 if flops < MIN_PARALLEL_FLOPS else min(-(-UNITS // (samples * groups)), windows // LEAST_WINDOWS)
    band = a.windows
    if batch < 1 or (batch == 1 and least > 1):
        number = max(1, least, -(-a.windows // max(1, (most // others - a.extent(1)) // a.pace + 1)))
        batch, band = 1, -(-a.windows // min(a.windows, number))
    if band < a.windows:
        extents[axis] = a.extent(band)
    pitches = [math.prod(extents), extents[1] * extents[2], extents[2], 1]
    return Cut(batch, axis, band, -(-a.windows // band), pitches)


@dataclass(frozen=True)
class Plan:
    """What the loops are given besides their arrays; conv_direct_loops.py explains the tables. `form`, `single`: which
    loops; `single` for vectors of windows of one filter, which end with their row (1.1 to 2 times as fast).
    `terms`: of the sums of all phases. `units`: their number. `sheets`: elements of the sheets. `places`: of a unit, at
    most."""

    form: str
    single: bool
    sizes: Array
    tables: tuple[Array, ...]
    slots: Array
    weight_strides: Array
    terms: int
    units: int
    sheets: int
    places: int


def _axes(spec: Any, step: str, phases: bool) -> tuple[int, list[AxisPlan], list[int]]:
    """Samples, three axes, and the sizes of the kernel. A 1×1 kernel has one axis of all cells, with channels last
    those of all samples."""
    samples = spec.window.layout.shape[0]
    rows = [(a.length, a.out, a.kernel, a.stride, a.dilation, a.before) for a in spec.window.axes]
    if spec.pointwise:
        cells = math.prod(spec.window.layout.lengths)
        samples, cells = (1, samples * cells) if spec.last else (samples, cells)
        rows = [(cells, cells, 1, 1, 1, 0)]
    rows = [MISSING] * (3 - len(rows)) + rows
    make_axis = adjoint_axis if step == "correlate_adjoint" else forward_axis
    return samples, [make_axis(*row, phases) for row in rows], [row[2] for row in rows]


def plan_of(spec: Any, step: str, by_filters: bool, itemsize: int) -> Plan:
    """The plan for one of the three functions, with vectors of filters or of windows."""
    groups, filters, channels, taps = spec.weight_shape
    weight_strides = [filters * channels * taps, channels * taps, 0]
    form = "filters" if by_filters else "windows"
    if by_filters and spec.groups > 1 and filters == channels == 1:
        # Each tap has one term. With channels first they are in groups of 16, so that the cells of one fit the cache:
        # up to 1.4 times as fast. With channels last rows are copied whole.
        form, filters = "channels", groups if groups % LANES or spec.last else LANES
        groups, channels, weight_strides[0] = groups // filters, filters, filters * taps
    elif step == "correlate_adjoint":
        filters, channels, weight_strides = channels, filters, [weight_strides[0], taps, weight_strides[1]]
    samples, axes, kernel = _axes(spec, step, not by_filters)
    if form == "filters" and (spec.last or (channels >= MANY_CHANNELS and axes[2].step == 1)):
        form = "cells"
    sources = math.prod(len(a.starts) for a in axes)
    packed = filters if step == "weight_gradient" and form == "windows" else 0  # the maps are in the cache, too
    limit = ONE_CHANNEL_BYTES if form == "windows" and channels == filters == 1 else SHEET_BYTES
    cut = _cut(axes, samples, groups, min(MOST_CELLS, limit // ((channels * sources + packed) * itemsize)), spec.flops)
    reach = sum(a.reach * pitch for a, pitch in zip(axes, cut.pitches[1:], strict=True))
    # An odd number of cache lines: sheets then use all sets of a cache. Vectors have lanes after the last window.
    sheet = ((cut.batch * cut.pitches[0] + reach + 2 * LANES) // LANES + 1 | 1) * LANES
    together = form in ("cells", "channels")  # the channels of a cell
    by_cell, by_channel, by_phase = (channels, 1, sheet * channels) if together else (1, sheet * sources, sheet)
    source, target = (math.prod(x) for x in ([a.length for a in axes], [a.target_length for a in axes]))
    source_cell, target_cell = (groups * channels, groups * filters) if spec.last else (1, 1)
    target_step = axes[2].target_step * target_cell
    in_pairs = form == "windows" and target_step == axes[2].target_step == 2
    band = cut.band * axes[cut.axis].target_step * math.prod(a.target_length for a in axes[cut.axis + 1 :])
    boxes, terms = cut.boxes(axes), 1 if form == "channels" else channels
    copies = [copies_of(axes, box, cut.pitches, source_cell, (by_cell, by_phase)) for box in boxes]
    offsets, slots, sums = _terms(axes, kernel, cut.pitches, terms, (by_cell, by_channel, by_phase))
    strides = groups * filters * target, target_cell
    single = form == "windows" and filters == 1
    phases, places, targets = _places(axes, cut, boxes, sums, strides, not by_filters, in_pairs, single)
    sizes = [samples, groups, channels, filters, cut.batch, cut.bands, len(sums), cut.pitches[0] * by_cell, by_channel]
    sizes += [groups * channels * source, 1 if spec.last else source, axes[2].step * source_cell]
    sizes += [strides[0], 1 if spec.last else target, target_step, band * target_cell, 1 + in_pairs]
    ends, tables = np.cumsum([0, *map(len, copies)]), map(_padded, (offsets, places * by_cell, targets))
    return Plan(
        form="steps" if form == "windows" and target_step > 1 else form,
        single=single,
        sizes=np.array(sizes, np.int64),
        tables=(np.concatenate(copies), ends, phases, *tables),
        slots=slots.reshape((-1, taps) if step == "correlate_adjoint" else (1, -1)),
        weight_strides=np.array(weight_strides, np.int64),
        terms=len(offsets),
        units=-(-samples // cut.batch) * cut.bands * groups,
        sheets=sheet * sources * channels + LANES,
        places=int(phases[:, 1].max()) * cut.batch,
    )


def _padded(table: Array) -> Array:
    """With entries more, which a last tile that is not full reads."""
    return np.concatenate([table, np.zeros(LANES, np.int64)])


def _terms(
    axes: Sequence[AxisPlan], kernel: Sequence[int], pitches: Sequence[int], channels: int, strides: Sequence[int]
) -> tuple[Array, Array, list[tuple[int, int]]]:
    """`offsets` as the loops take them; the term of each number of a filter's weight, or -1; for each phase of the
    target its first term and the number of terms. strides: of the sheets, from a cell, channel and phase to the next.
    Terms are in order of channels, or of taps if the channels of a cell are together."""
    by_cell, by_channel, by_phase = strides
    slots, offsets, sums, first = np.full((channels, math.prod(kernel)), -1), [], [], 0
    _, height, width = (len(a.starts) for a in axes)
    for phase in itertools.product(*(a.reads for a in axes)):
        tap, source, cell = np.array([*itertools.product(*phase)], np.int64).reshape(-1, 3, 3).T.swapaxes(1, 2)
        tap = tap @ [kernel[1] * kernel[2], kernel[2], 1]
        at = source @ [height * width, width, 1] * by_phase + cell @ pitches[1:] * by_cell
        here, k = np.add.outer(np.arange(channels) * by_channel, at), first + np.arange(channels * len(tap))
        slots[:, tap] = k.reshape(-1, channels).T if by_channel == 1 else k.reshape(channels, -1)
        offsets.append((here.T if by_channel == 1 else here).ravel())
        sums.append((first, len(k)))
        first += len(k)
    return np.concatenate(offsets), slots, sums


def _places(
    axes: Sequence[AxisPlan], cut: Cut, boxes: list[list[tuple[int, int]]], sums: list[tuple[int, int]],
    strides: tuple[int, int], by_windows: bool, in_pairs: bool, apart: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The tables `phases`, `places` (cells of a sheet) and `targets`, for the first band and the last. strides:
    elements of the target from a sample and a cell to the next."""
    phases, places, targets, total = [], [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    samples, (_, height, width) = np.arange(cut.batch), (a.target_length for a in axes)
    for box in boxes[:: max(1, cut.bands - 1)]:
        for origin, terms in zip(itertools.product(*(range(len(a.reads)) for a in axes)), sums, strict=True):
            windows = [a.windows_in_target(r, *span) for a, r, span in zip(axes, origin, box, strict=True)]
            if in_pairs and origin[2] % 2:
                windows[2] = 0  # they are those of the phase before
            z, y = (i.ravel() for i in np.indices(windows[:2]))
            starts = z * axes[0].pace * cut.pitches[1] + y * axes[1].pace * cut.pitches[2]
            z, y = origin[0] + z * axes[0].target_step, origin[1] + y * axes[1].target_step
            rows, step = ((z * height + y) * width + origin[2]) * strides[1], axes[2].target_step * strides[1]
            if by_windows:
                cells = width - origin[2] - box[2][0] * axes[2].target_step
                here, table = vectors_of(starts, rows, windows[2], step, 1 + in_pairs, cells, apart)
            else:
                x = np.arange(windows[2])
                here, table = (
                    np.add.outer(starts, x * axes[2].pace).ravel(),
                    np.add.outer(rows, x * step).reshape(-1, 1),
                )
            by_sample = np.array([1, 0, 0] * 2 if by_windows else [1]) * strides[0]
            places.append(np.add.outer(samples * cut.pitches[0], here).ravel())
            targets.append((table + np.multiply.outer(samples, by_sample)[:, None]).ravel())
            phases.append([total, len(here), *terms])
            total += len(here) * cut.batch
    return np.array(phases, np.int64), np.concatenate(places), np.concatenate(targets)
