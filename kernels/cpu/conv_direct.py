"""Launchers of direct convolutions: vector loops, without columns and BLAS.

The vectors of conv_direct_loops.py go over windows; it explains sheets and units, which conv_direct_sheets.py fills.
Those of conv_filter_loops.py go over filters (`_by_filters` chooses, and conv_filter_vectors.py launches them).

They serve float32 and float64, both layouts, and any rank, stride, dilation, padding and groups. `form_of`
(functional/conv_form.py) says which convolutions take this form. Results have the same bits on every CPU.

The loops multiply the zeros of the padding, so a weight that is not finite would give NaN where the definition has no
product; so would a number of the image or the maps in the weight's gradient. The launchers then raise `UnsuitableData`,
and another form computes the call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.kernels import UnsuitableData

from . import conv_direct_loops as loops
from . import conv_filter_vectors as filter_vectors
from .conv_direct_sheets import FILTERS, GROUPS
from .parallel import CHUNK_BYTES, flat, parallel_chunks
from .vector_tiles import LINE, MAPS, NARROW, PACKED, STRIP
from .vectors import LANES

Array = Any

SHEET_BYTES = 512 << 10  # of a unit's sheets, about: they should stay in the second-level cache of a core
MOST_CELLS = 16 * 1024  # of a sheet: each lane then has 1024 terms of a sum in float32 at most
UNITS = 16  # at least, if there are so many samples: work for several threads
PARTS = 16  # partial sums of a weight's gradient, at most
PART_WINDOWS = 1500  # of a partial sum, at least: to add up the lanes of its vectors takes as long as 200 windows
LEAST_FILTERS = 8  # for vectors of filters: those of fewer have too many empty lanes
MIN_PARALLEL_FLOPS = 16_000_000  # of a call for several threads, at least: about 150 µs (columns: functional/blas.py)
FLOPS_PER_BYTE = 16  # that a core computes in the time in which it copies a byte: chunks are cut by this time
MISSING = (1, 1, 1, 1, 1, 0)  # a missing spatial axis


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None. `form_of` has checked the shape before."""
    if any(a is not None and a.dtype not in (np.float32, np.float64) for a in arrays):
        return f"{step} is compiled for float32 and float64"
    return None


def direct_correlate(b: Backend, spec: Any, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """The maps of `correlate`. Raises UnsuitableData for a weight that is not finite."""
    maps = backends.result(spec.maps_shape, image.dtype)
    _run("correlate", spec, image, np.reshape(weight, spec.weight_shape), bias, maps)
    return maps


def direct_correlate_adjoint(b: Backend, spec: Any, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """The image of the adjoint of `correlate`. Raises UnsuitableData for a weight that is not finite."""
    image = backends.result(spec.window.layout.shape, maps.dtype)
    _run("correlate_adjoint", spec, maps, np.reshape(weight, spec.weight_shape), bias, image)
    return image


def direct_weight_gradient(b: Backend, spec: Any, image: Array, maps: Array) -> Array:
    """The weight's gradient. Raises UnsuitableData if a number is not finite."""
    if _by_filters(spec, "weight_gradient"):
        dweight, finite = filter_vectors.weight_gradient(spec, image, maps, _nbytes(spec, image, maps))
        if not finite:
            _refuse_data("weight's gradient")
        return dweight
    plan = _plan(spec, "weight_gradient", image.itemsize)
    filters, taps = int(plan.sizes[FILTERS]), math.prod(spec.weight_shape[2:])
    padded = -(-filters // MAPS) * MAPS
    parts = _parts(plan, spec, PARTS)
    partial = np.zeros((parts, spec.groups, filters, taps))
    shapes = (plan.sheets * plan.sheet,), (padded * plan.sheet,), (LANES * padded * len(plan.offsets),)
    arrays = flat(image), flat(maps), partial.reshape(-1), plan.axes, plan.sizes, plan.starts, plan.offsets, taps

    def compute(start: int, stop: int) -> None:
        with backends.workspace(image.dtype, *shapes) as (sheets, map_sheets, sums):
            loops.weight_gradient(*arrays, plan.map_axes, parts, start, stop, sheets, map_sheets, sums)

    parallel_chunks(parts * spec.groups, _nbytes(spec, image, maps), compute)
    dweight = partial.sum(axis=0)
    _check_finite(dweight, "weight's gradient")
    return dweight.astype(image.dtype).reshape(spec.filters, spec.weight_shape[2], *spec.window.kernel)


def _parts(plan: _LoopPlan, spec: Any, most: int) -> int:
    """Partial sums of a weight's gradient: one, two, four, … as for chunks."""
    samples = spec.window.layout.shape[0]
    parts = min(
        most, plan.units // int(plan.sizes[GROUPS]), samples * math.prod(spec.window.out_lengths) // PART_WINDOWS
    )
    return 1 << max(0, int(parts).bit_length() - 1)


def _run(step: str, spec: Any, source: Array, weight: Array, bias: Array | None, target: Array) -> None:
    """Compute the target of "correlate" or "correlate_adjoint". weight: (groups, filters, channels, taps)."""
    _check_finite(weight, "weight")
    if _by_filters(spec, step):
        filter_vectors.run(spec, step, source, weight, bias, target, _nbytes(spec, source, target))
        return
    plan, weight = _plan(spec, step, source.itemsize), weight if step == "correlate" else weight.swapaxes(1, 2)
    biases = np.zeros(weight.shape[:2], source.dtype) if bias is None else bias.reshape(weight.shape[:2])
    size = _block(weight.shape[1])
    packed = np.concatenate([_packed(weight[..., taps], size) for taps in plan.taps])
    arrays = flat(source), packed, _packed(biases[:, :, None, None], size), flat(target)
    tables = plan.axes, plan.sizes, plan.starts, plan.outputs, plan.offsets

    def compute(start: int, stop: int) -> None:
        with backends.workspace(source.dtype, (plan.sheets * plan.sheet,)) as (sheets,):
            loops.correlate(*arrays, *tables, start, stop, sheets)

    parallel_chunks(plan.units, _nbytes(spec, source, target), compute)


def _block(filters: int) -> int:
    """Filters whose weights the loops take packed together."""
    return 1 if filters <= loops.FEW else PACKED


def _packed(weight: Array, block: int) -> Array:
    """A weight (groups, filters, channels, taps) as (groups, blocks of filters, channels and taps, block), flat."""
    groups, filters, channels, taps = weight.shape
    blocks = -(-filters // block)
    if filters % block:
        padded = np.zeros((groups, blocks * block, channels, taps), weight.dtype)
        padded[:, :filters] = weight
        weight = padded
    return flat(weight.reshape(groups, blocks, block, channels * taps).swapaxes(2, 3))


def _nbytes(spec: Any, *arrays: Array) -> int:
    """Bytes that take about as long to copy as the convolution takes.

    They make one, two, four, … chunks, so that two threads get equal shares; at least two from `MIN_PARALLEL_FLOPS`
    on."""
    nbytes = max(sum(a.nbytes for a in arrays), spec.flops / FLOPS_PER_BYTE, 1)
    return CHUNK_BYTES << max(int(spec.flops > MIN_PARALLEL_FLOPS), round(math.log2(nbytes / CHUNK_BYTES)))


def _check_finite(numbers: Array, name: str) -> None:
    if not np.isfinite(numbers).all():
        _refuse_data(name)


def _refuse_data(name: str) -> NoReturn:
    raise UnsuitableData(
        f"the {name} has NaN or infinity, which would change other cells; in mode 'auto' another form computes it"
    )


# ---------------------------------------------------------------------------------------------------------------- plans
@dataclass(frozen=True)
class _LoopPlan:
    """What a loop is given besides its arrays. `taps`: for each phase of the target its taps. `sheets`: their number;
    `sheet`: elements of one."""

    axes: Array
    map_axes: Array
    sizes: Array
    starts: Array
    outputs: Array
    offsets: Array
    taps: list[list[int]]
    units: int
    sheets: int
    sheet: int


@dataclass(frozen=True)
class _AxisPlan:
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
        return max((cell for phase in self.reads for _, _, cell in phase), default=0)

    def pitch(self) -> int:
        """The distance of rows. The zeros after a row are also those before the next."""
        limit, low, high = self.windows + self.reach, [], []
        for start in self.starts:
            low.append(min(limit, max(0, -(start // self.step))))
            high.append(max(low[-1], min(limit, (self.length - 1 - start) // self.step + 1)))
        return max(self.windows, *high, limit - min(low))


def _forward_axis(length: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> _AxisPlan:
    """Sheets are the phases of the image; window o reads cell o + t * dilation // stride of one of them."""
    phases = sorted({t * dilation % stride for t in range(kernel)})
    reads = [(t, phases.index(t * dilation % stride), t * dilation // stride) for t in range(kernel)]
    return _AxisPlan(length, stride, out, out, 1, [phase - before for phase in phases], [reads])


def _adjoint_axis(length: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> _AxisPlan:
    """The image's cell stride * q + r gets tap t of map q + (r + before - t * dilation) / stride, if that is whole."""
    found = [
        [(t, (r + before - t * dilation) // stride) for t in range(kernel) if (r + before - t * dilation) % stride == 0]
        for r in range(stride)
    ]
    first = min((cell for phase in found for _, cell in phase), default=0)
    reads = [[(t, 0, cell - first) for t, cell in phase] for phase in found]
    return _AxisPlan(out, 1, -(-length // stride), length, stride, [first], reads)


@backends.planned
def _plan(spec: Any, step: str, itemsize: int) -> _LoopPlan:
    """The plan for one of the three functions."""
    rows = [(a.length, a.out, a.kernel, a.stride, a.dilation, a.before) for a in spec.window.axes]
    rows = [MISSING] * (3 - len(rows)) + rows
    axes = [(_adjoint_axis if step == "correlate_adjoint" else _forward_axis)(*row) for row in rows]
    kernel = [row[2] for row in rows]
    groups, filters, channels, _ = spec.weight_shape
    if step == "correlate_adjoint":
        filters, channels = channels, filters
    sources = math.prod(len(a.starts) for a in axes)
    sheets = channels * sources
    packed = -(-filters // _block(filters)) * _block(filters)
    beside = filters if step == "weight_gradient" else 0
    batch, band_axis, band, pitches = _cut(spec, groups, axes, (sheets + beside) * itemsize)
    reach = (axes[0].reach * pitches[1] + axes[1].reach) * pitches[2] + axes[2].reach
    beyond = PACKED * min(pitches[2], NARROW) if filters <= loops.FEW else STRIP  # what a tile's empty lanes read
    lines = (batch * math.prod(pitches) + reach + max(beyond, STRIP, PACKED * LANES)) // LANES + 1
    sheet = (lines + 1 - lines % 2) * LANES  # an odd number of cache lines: sheets then use all sets of a cache
    bands = -(-axes[band_axis].windows // band)
    table = [
        [a.length, a.step, a.windows, a.reach, pitch, a.target_length, a.target_step]
        for a, pitch in zip(axes, pitches, strict=True)
    ]
    samples = spec.window.layout.shape[0]
    sizes = [samples, groups, channels, filters, batch, band_axis, band, bands, sheet]
    source, target = (math.prod(x) for x in ([a.length for a in axes], [a.target_length for a in axes]))
    sizes += _strides(spec, groups * channels, source) + _strides(spec, groups * filters, target)
    outputs, offsets, taps = _offsets(axes, kernel, pitches, sheet, channels, groups * packed)
    if step == "weight_gradient":  # for complete tiles
        offsets += offsets[-1:] * (-len(offsets) % LINE)
    return _LoopPlan(
        np.array(table, np.int64),
        np.array([[a.windows, 1, a.windows, 0, pitch, 0, 0] for a, pitch in zip(axes, pitches, strict=True)], np.int64),
        np.array(sizes, np.int64),
        np.array(list(itertools.product(*(a.starts for a in axes))), np.int64),
        np.array(outputs, np.int64),
        np.array(offsets, np.int64),
        taps,
        -(-samples // batch) * bands * groups,
        sheets,
        sheet,
    )


def _by_filters(spec: Any, step: str) -> bool:
    """Whether the loops have vectors of filters. For channels last the other loops take 2 to 10 times as long."""
    groups, filters, channels, _ = spec.weight_shape
    if groups > 1 and filters == channels == 1:
        return bool(spec.last)
    targets = channels if step == "correlate_adjoint" else filters
    return bool(targets >= LEAST_FILTERS and (spec.last or (spec.small_map and not spec.small_weight)))


def _cut(spec: Any, groups: int, axes: Sequence[_AxisPlan], row_bytes: int) -> tuple[int, int, int, list[int]]:
    """Samples in a batch, the axis that is cut into bands, windows in a band, and the pitches of the sheets.

    row_bytes: of one cell of all sheets."""
    pitches = [a.pitch() for a in axes]
    samples = spec.window.layout.shape[0]
    axis = next((i for i in range(2) if axes[i].windows > 1), 2)
    cells = min(SHEET_BYTES // row_bytes, MOST_CELLS)
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
    axes: Sequence[_AxisPlan], kernel: Sequence[int], pitches: Sequence[int], sheet: int, channels: int, filters: int
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
        outputs.append([*origin, len(offsets), channels * len(reads), weights])
        offsets += [c * math.prod(phases) * sheet + at for c in range(channels) for at in within]
        weights += filters * channels * len(reads)
    return outputs, offsets, taps
