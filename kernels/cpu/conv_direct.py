"""Launchers of direct convolutions: vector loops, without columns and BLAS.

The vectors of conv_direct_loops.py go over windows; it explains sheets and units.
Those of conv_filter_loops.py go over filters (`_by_filters` chooses, and conv_filter_vectors.py launches them).

They serve float32 and float64, both layouts, and any rank, stride, dilation, padding and groups. `form_of`
(functional/conv_form.py) says which convolutions take this form. Results have the same bits on every CPU.

The loops multiply the zeros of the padding, so a weight that is not finite would give NaN where the definition has no
product; so would a number of the image or the maps in the weight's gradient. The launchers then raise `UnsuitableData`,
and the array code of functional/correlation.py computes the call."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.kernels import UnsuitableData

from . import conv_direct_loops as loops
from . import conv_filter_vectors as filter_vectors
from .conv_direct_plan import PART_WINDOWS, PARTS, Plan, plan_of
from .parallel import chunked, flat
from .vector_tiles import PACKED
from .vectors import LANES

Array = Any

LONG_SUM = 2048  # terms in float32, at most, for vectors of windows; those of filters add up long sums from parts
LEAST_FILTERS = 8  # of a weight's gradient, 1×1 kernels and channels last: vectors of fewer have too many empty lanes
LEAST_TERMS = 80  # of a sum, for vectors of filters: to transpose the results takes as long as 10 terms
# Vectors of windows are slower the more channels there are: with 400 they take twice as long for a product, because the
# cells come from the second-level cache.
CACHED_CHANNELS = 400
PHASE_CHANNELS = 128  # the adjoint of a stride takes vectors of filters, which its phases make slow, only for more
FLOPS_PER_BYTE = 16  # that a core computes in the time in which it copies a byte: chunks are cut by this time


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
    plan = plan_of(spec, "weight_gradient", image.itemsize)
    filters, taps = int(plan.sizes[loops.FILTERS]), math.prod(spec.weight_shape[2:])
    parts = _parts(plan, spec, PARTS)
    partial = np.zeros((parts, spec.groups, filters, taps))
    lengths = plan.sheets * plan.sheet, filters * LANES * len(plan.places), filters * LANES * len(plan.offsets)
    arrays = flat(image), flat(maps), partial.reshape(-1), plan.sizes, *plan.tables, plan.offsets, taps
    in_chunks = chunked(parts * spec.groups, _nbytes(spec, image, maps))
    in_chunks(loops.weight_gradient, *arrays, parts, workspace=lengths)
    dweight = partial.sum(axis=0)
    _check_finite(dweight, "weight's gradient")
    return dweight.astype(image.dtype).reshape(spec.filters, spec.weight_shape[2], *spec.window.kernel)


def _parts(plan: Plan, spec: Any, most: int) -> int:
    """Partial sums of a weight's gradient: one, two, four, … as for chunks."""
    samples = spec.window.layout.shape[0]
    parts = min(
        most, plan.units // int(plan.sizes[loops.GROUPS]), samples * math.prod(spec.window.out_lengths) // PART_WINDOWS
    )
    return 1 << max(0, int(parts).bit_length() - 1)


def _run(step: str, spec: Any, source: Array, weight: Array, bias: Array | None, target: Array) -> None:
    """Compute the target of "correlate" or "correlate_adjoint". weight: (groups, filters, channels, taps)."""
    if _by_filters(spec, step):
        if not filter_vectors.correlate(spec, step, source, weight, bias, target, _nbytes(spec, source, target)):
            _refuse_data("weight")
        return
    _check_finite(weight, "weight")
    plan, weight = plan_of(spec, step, source.itemsize), weight if step == "correlate" else weight.swapaxes(1, 2)
    groups, filters, _, taps = weight.shape
    biases = np.zeros((groups, -(-filters // PACKED) * PACKED), source.dtype)
    if bias is not None:
        biases[:, :filters] = bias.reshape(groups, filters)
    if len(plan.taps) == 1 and plan.taps[0] == list(range(taps)):
        packed = _packed(weight)
    else:
        packed = np.concatenate([_packed(weight[..., some]) for some in plan.taps])
    arrays: tuple[Any, ...] = flat(source), packed, biases.reshape(-1), flat(target)
    run: Any = loops.correlate
    tables: tuple[Array, ...] = plan.sizes, *plan.tables, plan.outputs, plan.offsets
    if plan.one_filter:
        copies, copy_ends, _, pieces, piece_ends = plan.tables
        run, tables = loops.correlate_one_filter, (plan.sizes, copies, copy_ends, pieces, piece_ends, plan.offsets)
    in_chunks = chunked(plan.units, _nbytes(spec, source, target))
    in_chunks(run, *arrays, *tables, workspace=(plan.sheets * plan.sheet,))


def _packed(weight: Array) -> Array:
    """A weight (groups, filters, channels, taps) as (groups, blocks of 8 filters, channels and taps, 8), flat."""
    groups, filters, channels, taps = weight.shape
    blocks = -(-filters // PACKED)
    if filters % PACKED:
        padded = np.zeros((groups, blocks * PACKED, channels, taps), weight.dtype)
        padded[:, :filters] = weight
        weight = padded
    return flat(weight.reshape(groups, blocks, PACKED, channels * taps).swapaxes(2, 3))


def _nbytes(spec: Any, *arrays: Array) -> int:
    """Bytes that take about as long to copy as the convolution takes."""
    return int(max(sum(a.nbytes for a in arrays), spec.flops / FLOPS_PER_BYTE))


def _check_finite(numbers: Array, name: str) -> None:
    if not np.isfinite(numbers).all():
        _refuse_data(name)


def _refuse_data(name: str) -> NoReturn:
    raise UnsuitableData(
        f"the {name} has NaN or infinity, which would change other cells; in mode 'auto' another form computes it"
    )


@backends.planned
def _by_filters(spec: Any, step: str) -> bool:
    """Whether vectors go over filters (16 of one window), not over windows (16 of one filter).

    For the weight's gradient they do from 8 filters on: 1.2 to 3 times as fast. Else those over windows have empty
    lanes between rows, and take longer where the cells of all channels do not fit the first-level cache; those over
    filters have empty lanes if 16 does not divide the filters, their results are transposed, and the phases of a
    stride's adjoint make them up to 5 times as slow. Those over filters also serve 1×1 kernels, and long sums (of 1
    to 4 filters 1.2 to 4 times as fast as columns and BLAS)."""
    groups, filters, channels, taps = spec.weight_shape
    if groups > 1 and filters == channels == 1:
        return bool(spec.last)
    if spec.terms[step] > LONG_SUM:
        return True
    if step == "weight_gradient" or spec.last or spec.pointwise:
        return bool(spec.targets(step) >= LEAST_FILTERS)
    if step == "correlate_adjoint":
        filters, channels = channels, filters
    lanes_of_filters = filters / (-(-filters // LANES) * LANES)
    if step == "correlate_adjoint" and any(a.stride > 1 for a in spec.window.axes):
        return bool(lanes_of_filters > 0.9 and channels > PHASE_CHANNELS)
    row = spec.window.axes[-1]
    windows, cells, zeros = row.out, row.length / row.stride, row.before
    if step == "correlate_adjoint":
        windows, cells, zeros = row.length, row.out, (row.kernel - 1) * row.dilation - row.before
    lanes_of_windows = windows / max(windows, cells + zeros) - channels / CACHED_CHANNELS - 0.1
    return bool(channels * taps >= LEAST_TERMS and lanes_of_filters > lanes_of_windows)
