"""Launchers of conv_filter_loops.py: convolutions by direct loops whose vectors go over filters.

conv_direct.py calls them; it says what they serve, and what they raise."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends

from . import conv_filter_loops as loops
from .conv_direct_plan import MIN_PARALLEL_FLOPS, PART_WINDOWS, PARTS, SHEET_BYTES, UNITS
from .conv_filter_loops import COUNT, FILTERS, GROUPS, TERM
from .parallel import chunked, flat
from .vectors import LANES

Array = Any

MOST_WINDOWS = 16 * 1024  # of a unit
LEAST_WINDOWS = 192  # of a unit, if there are so many: each unit reads all weights, which may be in a slow cache
PARTIAL_BYTES = 8 << 20  # of the partial sums together, at most, if there are several
SHARES = 8  # of the filters, for several threads, where there is one partial sum


@dataclass(frozen=True)
class _Plan:
    """What the loops are given besides their arrays (conv_filter_loops.py explains the tables). `terms`: of all phases'
    sums. `units`: their number. `sheet`: elements of a sheet. `windows`: of a unit, at most."""

    sizes: Array
    axes: Array
    phases: Array
    offsets: Array
    places: Array
    targets: Array
    slots: Array
    weight_strides: Array
    terms: int
    units: int
    sheet: int
    windows: int
    depthwise: bool

    @property
    def tables(self) -> tuple[Array, ...]:
        return self.sizes, self.axes, self.phases, self.offsets, self.places, self.targets

    @property
    def blocks(self) -> int:
        """Of 16 filters, in a group."""
        return -(-int(self.sizes[FILTERS]) // LANES)


def correlate(
    spec: Any, step: str, source: Array, weight: Array, bias: Array | None, target: Array, nbytes: int
) -> bool:
    """Compute the target of "correlate" or "correlate_adjoint", unless the weight is not finite: then return False.
    nbytes: as conv_direct.py gives it."""
    plan = plan_of(spec, step, source.itemsize)
    groups, filters, blocks = int(plan.sizes[GROUPS]), int(plan.sizes[FILTERS]), plan.blocks
    biases = np.zeros((groups, blocks * LANES), source.dtype)
    if bias is not None:
        biases[:, :filters] = bias.reshape(groups, filters)
    loop = loops.make_correlate(plan.depthwise, source.itemsize)
    with backends.workspace(source.dtype, (groups * blocks * plan.terms * LANES,)) as (packed,):
        if not loops.pack(flat(weight), plan.weight_strides, plan.sizes, plan.slots, plan.terms, packed):
            return False
        arrays = flat(source), packed, flat(biases), flat(target)
        chunked(plan.units, nbytes)(loop, *arrays, *plan.tables, workspace=(plan.sheet,))
    return True


def weight_gradient(spec: Any, image: Array, maps: Array, nbytes: int) -> tuple[Array, bool]:
    """The weight's gradient, and whether it is finite."""
    plan = plan_of(spec, "weight_gradient", image.itemsize)
    groups, blocks = int(plan.sizes[GROUPS]), plan.blocks
    size = groups * blocks * plan.terms * LANES
    most = PARTIAL_BYTES // (8 * size)
    shares = 1 if most > 1 else max(1, min(SHARES, blocks // 4))
    most = max(1 if shares > 1 else 2, min(PARTS, most))
    windows = spec.window.layout.shape[0] * math.prod(spec.window.out_lengths)
    parts = max(1, min(most, plan.units // groups, windows // PART_WINDOWS))
    parts = 1 << (parts.bit_length() - 1)
    gradient = loops.make_weight_gradient(plan.depthwise, image.itemsize)
    dweight = np.empty((spec.filters, spec.weight_shape[2], *spec.window.kernel), image.dtype)
    partial = np.zeros(parts * size)
    arrays, lengths = (flat(image), flat(maps), partial), (plan.sheet, plan.windows * blocks * LANES)
    chunked(parts * groups * shares, nbytes)(gradient, *arrays, *plan.tables, parts, shares, workspace=lengths)
    return dweight, loops.finish_weight_gradient(partial, parts, plan.sizes, plan.slots, dweight.reshape(-1))


# ---------------------------------------------------------------------------------------------------------------- plans
@dataclass(frozen=True)
class _Axis:
    """One axis of the source and the target. Window q reads source cell step * q + offset for each tap. `phases`: for
    each phase of the target its windows and its taps with their offsets; window q is target cell step * q + phase."""

    length: int
    step: int
    target_length: int
    target_step: int
    phases: list[tuple[int, list[tuple[int, int]]]]

    @property
    def windows(self) -> int:
        return max(number for number, _ in self.phases)

    @property
    def offsets(self) -> list[int]:
        return [offset for _, taps in self.phases for _, offset in taps] or [0]

    @property
    def unit(self) -> int:
        """The source's cells from one of the sheet's to the next."""
        first = min(self.offsets)
        return max(1, math.gcd(self.step, *(offset - first for offset in self.offsets)))

    def extent(self, windows: int) -> int:
        """The sheet's cells that some windows see."""
        return ((windows - 1) * self.step + max(self.offsets) - min(self.offsets)) // self.unit + 1


def _axis(step: str, a: Any) -> _Axis:
    if step != "correlate_adjoint":
        return _Axis(a.length, a.stride, a.out, 1, [(a.out, [(t, t * a.dilation - a.before) for t in range(a.kernel)])])
    phases = []
    for r in range(min(a.stride, a.length)):
        reads = [(t, r + a.before - t * a.dilation) for t in range(a.kernel)]
        phases.append((-(-(a.length - r) // a.stride), [(t, i // a.stride) for t, i in reads if i % a.stride == 0]))
    return _Axis(a.out, 1, a.length, a.stride, phases)


def _axes(spec: Any, step: str) -> tuple[int, list[_Axis]]:
    """Samples, and three axes. A 1×1 kernel has one axis of all cells, with channels last those of all samples."""
    samples = spec.window.layout.shape[0]
    axes = [_axis(step, a) for a in spec.window.axes]
    if spec.pointwise:
        cells = math.prod(spec.window.layout.lengths)
        samples, cells = (1, samples * cells) if spec.last else (samples, cells)
        axes = [_Axis(cells, 1, cells, 1, [(cells, [(0, 0)])])]
    return samples, [_Axis(1, 1, 1, 1, [(1, [(0, 0)])])] * (3 - len(axes)) + axes


@backends.planned
def plan_of(spec: Any, step: str, itemsize: int) -> _Plan:
    """The plan for one of the three functions."""
    groups, filters, channels, taps = spec.weight_shape
    weight_strides, depthwise = [filters * channels * taps, channels * taps, 0], groups > 1 and filters == channels == 1
    if depthwise:  # one group, and each tap has one term
        groups, filters, channels = 1, groups, groups
    elif step == "correlate_adjoint":
        filters, channels, weight_strides = channels, filters, [weight_strides[0], taps, weight_strides[1]]
    samples, axes = _axes(spec, step)
    cut = _cut(axes, samples, groups, channels * itemsize, 2 * filters * channels * taps)
    lengths, targets = [a.length for a in axes], [a.target_length for a in axes]
    cell = filters * groups if spec.last else 1
    strides = [math.prod(targets) * filters * groups, *(math.prod(targets[i + 1 :]) * cell for i in range(3))]
    sizes = [samples, groups, channels, filters, cut.batch, cut.bands, math.prod(lengths) * channels * groups]
    sizes += [1, channels * groups] if spec.last else [math.prod(lengths), 1]
    sizes += [strides[0], 1 if spec.last else math.prod(targets)]
    sizes.append(cut.band * axes[cut.axis].target_step * strides[1 + cut.axis])
    table = []
    for i, a in enumerate(axes):
        table.append([a.length, min(a.offsets), a.unit, cut.band * a.step if i == cut.axis else 0, cut.extents[i]])
    phases, tap_cells, tap_numbers, places, ends = _phases(axes, cut, strides)
    terms = 1 if depthwise else channels
    phases[:, [TERM, COUNT]] *= terms
    kernel = [1] * (3 - spec.ndim) + list(spec.window.kernel)
    slots, numbers = np.full(terms * taps, -1), np.ravel_multi_index(tuple(tap_numbers), kernel)
    slots[np.add.outer(numbers, np.arange(terms) * taps)] = np.arange(len(numbers) * terms).reshape(-1, terms)
    return _Plan(
        np.array(sizes, np.int64),
        np.array(table, np.int64),
        phases,
        _padded(np.add.outer(tap_cells * channels, np.arange(terms)).ravel()),
        _padded(places * channels),
        _padded(ends),
        slots.reshape((terms, taps) if step == "correlate_adjoint" else (1, -1)),
        np.array(weight_strides, np.int64),
        len(numbers) * terms,
        -(-samples // cut.batch) * cut.bands * groups,
        cut.batch * math.prod(cut.extents) * channels + LANES,
        cut.batch * math.prod(cut.windows),
        depthwise,
    )


def _padded(table: Array) -> Array:
    """With entries more, which a last tile that is not full reads."""
    return np.concatenate([table, np.zeros(LANES, np.int64)])


def _phases(axes: list[_Axis], cut: _Cut, target_strides: list[int]) -> tuple[Array, Array, Array, Array, Array]:
    """The table `phases`, counted in taps; the cell of the sheet that each tap of each phase sees from a window's
    first, and its numbers on the axes; the first cell of each window of each phase, and its element of the target."""
    strides = [math.prod(cut.extents[i:]) for i in range(4)]
    phases: list[list[int]] = []
    places: list[Array] = []
    targets: list[Array] = []
    tap_cells: list[int] = []
    tap_numbers: list[list[int]] = []
    for origin in itertools.product(*(range(len(a.phases)) for a in axes)):
        numbers, reads = zip(*(a.phases[r] for a, r in zip(axes, origin, strict=True)), strict=True)
        last = [max(0, n - (cut.bands - 1) * cut.band) if i == cut.axis else n for i, n in enumerate(numbers)]
        n, *q = np.indices((cut.batch, *map(min, numbers, cut.windows))).reshape(4, -1)
        row = [sum(len(p) for p in places), len(n) // cut.batch, math.prod(last), len(tap_cells)]
        phases.append([*row, math.prod(len(r) for r in reads)])
        places.append(_dot([n, *(i * (a.step // a.unit) for i, a in zip(q, axes, strict=True))], strides))
        cells = [i * a.target_step + r for i, a, r in zip(q, axes, origin, strict=True)]
        targets.append(_dot([n, *cells], target_strides))
        for tap in itertools.product(*reads):
            cells = [(offset - min(a.offsets)) // a.unit for (_, offset), a in zip(tap, axes, strict=True)]
            tap_cells.append(_dot(cells, strides[1:]))
            tap_numbers.append([t for t, _ in tap])
    found = np.array(tap_numbers, np.int64).reshape(-1, 3).T
    return np.array(phases), np.array(tap_cells, np.int64), found, np.concatenate(places), np.concatenate(targets)


def _dot(indices: Any, strides: Any) -> Any:
    return sum(i * stride for i, stride in zip(indices, strides, strict=True))


@dataclass(frozen=True)
class _Cut:
    """How the windows are cut into units: samples in a batch, or bands of windows of one axis. `windows` and `extents`:
    of a unit, on each axis."""

    batch: int
    axis: int
    band: int
    bands: int
    windows: list[int]
    extents: list[int]


def _cut(axes: list[_Axis], samples: int, groups: int, cell_bytes: int, flops: int) -> _Cut:
    """cell_bytes: of a sheet; flops: of a window."""
    windows, cells = math.prod(a.windows for a in axes), math.prod(a.extent(a.windows) for a in axes)
    axis = next((i for i in range(2) if axes[i].windows > 1), 2)
    band, most = axes[axis].windows, min(SHEET_BYTES // cell_bytes // cells, MOST_WINDOWS // windows, samples)
    batch = min(most, max(-(-samples * groups // UNITS), -(-LEAST_WINDOWS // windows)))
    least = 1 if samples * groups * windows * flops < MIN_PARALLEL_FLOPS else -(-UNITS // (samples * groups))
    least = max(1, min(least, windows // LEAST_WINDOWS))
    if batch < 1 or (batch == 1 and least > 1):
        a, others = axes[axis], cells // axes[axis].extent(axes[axis].windows)
        room = max(1, (SHEET_BYTES // cell_bytes // others - a.extent(1)) * a.unit // a.step + 1)
        number = min(max(least, -(-a.windows // room)), a.windows)
        batch, band = 1, -(-a.windows // number)
    numbers = [band if i == axis else a.windows for i, a in enumerate(axes)]
    extents = [a.extent(n) for a, n in zip(axes, numbers, strict=True)]
    return _Cut(batch, axis, band, -(-axes[axis].windows // band), numbers, extents)
