"""Launchers of direct convolutions: vector loops, without columns and BLAS.

Vectors go over windows or over filters (`_by_filters` chooses); conv_direct_loops.py explains the loops.

They serve float32 and float64, both layouts, and any rank, stride, dilation, padding and groups. `form_of`
(functional/conv_form.py) says which convolutions take this form. Results have the same bits on every CPU.

The loops multiply the zeros of the padding, so a weight that is not finite would give NaN where the definition has no
product; so would a number of the image or the maps in the weight's gradient. The launchers then raise `UnsuitableData`,
and the array code of functional/correlation.py computes the call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.kernels import UnsuitableData

from . import conv_direct_loops as loops
from .conv_direct_plan import plan_of
from .conv_rows import FILTERS, GROUPS
from .parallel import chunked, flat
from .vectors import LANES

Array = Any

LONG_SUM = 2048  # terms in float32, at most, for vectors of windows; those of filters add up long sums from parts
LEAST_FILTERS = 8  # of a weight's gradient, 1×1 kernels and channels last: vectors of fewer have too many empty lanes
LEAST_TERMS = 80  # of a sum, for vectors of filters: to transpose the results takes as long as 10 terms
# Vectors of windows are slower the more channels there are: with 400 they take twice as long for a product, because the
# cells come from the second-level cache.
CACHED_CHANNELS = 400
PHASE_CHANNELS = 128  # the adjoint of a stride takes vectors of filters, which its phases make slow, only for more
PARTS = 16  # partial sums of a weight's gradient, at most
PART_WINDOWS = 1500  # of a partial sum, at least: to add up the lanes of its vectors takes as long as 200 windows
PARTIAL_BYTES = 8 << 20  # of the partial sums together, at most, if there are several
SHARES = 8  # of the filters, for several threads, where there is one partial sum
FLOPS_PER_BYTE = 16  # that a core computes in the time in which it copies a byte: chunks are cut by this time


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None. `form_of` has checked the shape before."""
    if any(a is not None and a.dtype not in (np.float32, np.float64) for a in arrays):
        return f"{step} is compiled for float32 and float64"
    return None


def direct_correlate(b: Backend, spec: Any, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """The maps of `correlate`. Raises UnsuitableData for a weight that is not finite."""
    return _convolution(spec, "correlate", image.dtype)(image, weight, bias)


def direct_correlate_adjoint(b: Backend, spec: Any, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """The image of the adjoint of `correlate`. Raises UnsuitableData for a weight that is not finite."""
    return _convolution(spec, "correlate_adjoint", maps.dtype)(maps, weight, bias)


def direct_weight_gradient(b: Backend, spec: Any, image: Array, maps: Array) -> Array:
    """The weight's gradient. Raises UnsuitableData if a number is not finite."""
    return _weight_gradient(spec, image.dtype)(image, maps)


@backends.planned
def _convolution(spec: Any, step: str, dtype: Any) -> Callable[[Array, Array, Array | None], Array]:
    """`correlate` or its adjoint, as a function of source, weight and bias."""
    plan = plan_of(spec, step, _by_filters(spec, step), dtype.itemsize)
    shape = spec.maps_shape if step == "correlate" else spec.window.layout.shape
    groups, filters, blocks = _sizes(plan)
    loop, in_chunks = (
        loops.make_correlate(plan.form, plan.single, dtype.itemsize),
        chunked(plan.units, _nbytes(spec, dtype)),
    )
    no_bias, length = np.zeros(groups * blocks * LANES, dtype), (groups * blocks * plan.terms * LANES,)

    def compute(source: Array, weight: Array, bias: Array | None) -> Array:
        target, biases = backends.result(shape, dtype), no_bias
        if bias is not None:
            biases = np.zeros((groups, blocks * LANES), dtype)
            biases[:, :filters] = bias.reshape(groups, filters)
        with backends.workspace(dtype, length) as (packed,):
            finite = loops.pack(flat(weight), plan.weight_strides, plan.sizes, plan.slots, plan.terms, packed)
            _check_finite(finite, "weight")
            arrays = flat(source), packed, biases.reshape(-1), flat(target)
            in_chunks(loop, *arrays, plan.sizes, *plan.tables, workspace=(plan.sheets,))
        return target

    return compute


@backends.planned
def _weight_gradient(spec: Any, dtype: Any) -> Callable[[Array, Array], Array]:
    """The weight's gradient, as a function of image and maps."""
    plan = plan_of(spec, "weight_gradient", _by_filters(spec, "weight_gradient"), dtype.itemsize)
    groups, filters, blocks = _sizes(plan)
    size = groups * blocks * plan.terms * LANES
    most = PARTIAL_BYTES // (8 * size)
    shares = 1 if most > 1 else max(1, min(SHARES, blocks // 4))
    most = max(1 if shares > 1 else 2, min(PARTS, most))
    windows = spec.window.layout.shape[0] * math.prod(spec.window.out_lengths)
    parts = max(1, min(most, plan.units // groups, windows // PART_WINDOWS))
    parts = 1 << (parts.bit_length() - 1)  # one, two, four, … as for chunks
    shape = spec.filters, spec.weight_shape[2], *spec.window.kernel
    loop = loops.make_weight_gradient(plan.form, dtype.itemsize)
    lengths = plan.sheets, plan.places * LANES * (filters if plan.form in loops.WINDOWS else blocks)
    in_chunks = chunked(parts * groups * shares, _nbytes(spec, dtype))

    def compute(image: Array, maps: Array) -> Array:
        partial, dweight = np.zeros(parts * size), np.empty(shape, dtype)
        arrays = flat(image), flat(maps), partial
        in_chunks(loop, *arrays, plan.sizes, *plan.tables, parts, shares, workspace=lengths)
        finite = loops.finish_weight_gradient(partial, parts, plan.sizes, plan.slots, dweight.reshape(-1))
        _check_finite(finite, "weight's gradient")
        return dweight

    return compute


def _sizes(plan: Any) -> tuple[int, int, int]:
    """Groups, and the filters of a group and their blocks of 16."""
    groups, filters = int(plan.sizes[GROUPS]), int(plan.sizes[FILTERS])
    return groups, filters, -(-filters // LANES)


def _nbytes(spec: Any, dtype: Any) -> int:
    """Bytes that take about as long to copy as the convolution takes."""
    numbers = math.prod(spec.window.layout.shape) + math.prod(spec.maps_shape)
    return int(max(numbers * dtype.itemsize, spec.flops / FLOPS_PER_BYTE))


def _check_finite(finite: bool, name: str) -> None:
    if not finite:
        raise UnsuitableData(
            f"the {name} has NaN or infinity, which would change other cells; in mode 'auto' another form computes it"
        )


def _by_filters(spec: Any, step: str) -> bool:
    """Whether vectors go over filters (16 of one window), not over windows (16 of one filter).

    For the weight's gradient they do from 8 filters on: 1.2 to 3 times as fast. Else those over windows have empty
    lanes between rows, and take longer where the cells of all channels do not fit the first-level cache; those over
    filters have empty lanes if 16 does not divide the filters, their results are transposed, and the phases of a
    stride's adjoint make them up to 5 times as slow. Those over filters also serve long sums (of 1 to 4 filters 1.2 to
    4 times as fast as columns and BLAS), and depthwise ones whose channels 16 divides (1.0 to 2.2 times as fast; with
    one axis rows are long, and they take 1.1 times as long)."""
    groups, filters, channels, taps = spec.weight_shape
    strided_adjoint = step == "correlate_adjoint" and any(a.stride > 1 for a in spec.window.axes)
    row = spec.window.axes[-1]
    if groups > 1 and filters == channels == 1:
        neighbours = math.gcd(row.stride, row.dilation * (row.kernel > 1)) == 1  # windows read all cells of a row
        blocks = groups % LANES == 0 and spec.ndim > 1 < taps
        return bool(spec.last or (blocks and neighbours and not strided_adjoint))
    if spec.terms[step] > LONG_SUM:
        return True
    if step == "weight_gradient" or spec.last:
        return bool(spec.targets(step) >= LEAST_FILTERS)
    if step == "correlate_adjoint":
        filters, channels = channels, filters
    lanes_of_filters = filters / (-(-filters // LANES) * LANES)
    if strided_adjoint:
        return bool(lanes_of_filters > 0.9 and channels > PHASE_CHANNELS)
    windows, cells, zeros = row.out, row.length / row.stride, row.before
    if step == "correlate_adjoint":
        windows, cells, zeros = row.length, row.out, (row.kernel - 1) * row.dilation - row.before
    lanes_of_windows = windows / max(windows, cells + zeros) - channels / CACHED_CHANNELS - 0.1
    return bool(channels * taps >= LEAST_TERMS and lanes_of_filters > lanes_of_windows)
