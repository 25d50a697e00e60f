"""Launchers of winograd_loops.py: 3×3 convolutions with stride 1 by F(4×4, 3×3), a quarter of the multiplications.

It serves float32, channels first, dilation 1, any padding, with at least 16 channels and filters in a group, and enough
tiles (`Conv.winograd`). Its results are less exact than a direct sum: the largest error was 0.7e-6 to 1.7e-6 of the
largest result with up to 64 channels, up to 4.4e-6 with 512, and tests hold it to 5e-6 (a direct sum to 1e-6).
`kernels.winograd("off")` or CNNLAYERS_WINOGRAD=off select direct loops, which float64 always uses (`form_of` chooses).

A cell that is not finite would change its complete tile. So if a result is not finite, the launcher raises
`UnsuitableData`, and array code computes the call: NaN and infinities stay where the definition has them.

The maps are cut into units of about MAX_TILES tiles. The gradient of a weight is computed as partial sums over some of
the units; where there is only one partial sum, because the weight is large, as shares of the channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.kernels import UnsuitableData

from . import winograd_loops as loops
from .parallel import chunked, flat
from .vectors import LANES
from .winograd_loops import POINTS, STRETCH, TILE

Array = Any
f4 = np.float32

MAX_TILES, LEAST_TILES = 96, 24  # in a unit, about: with more they do not fit the cache, with fewer the weight is slow
UNITS = 16  # at least, if there are so many tiles: work for several threads
SMALL_WEIGHT = 1 << 20  # bytes of a transformed weight, at most, for units of LEAST_TILES
MAX_PARTIAL_SUMS, PARTIAL_BYTES = 16, 8 << 20  # of a weight's gradient: their number, and their bytes together
PART_TILES = 512  # of a partial sum, at least
SHARES = 8  # of the channels, where there is one partial sum
ROW_MULTIPLE = 24  # a multiple of the rows of a tile, on each CPU (vector_tiles.py)
FLOPS_PER_BYTE = 40  # by the definition, that a core computes in the time in which it copies a byte
ZEROS = np.zeros(2 * LANES, f4)


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None. `form_of` has checked the shape before."""
    return None if all(a is None or a.dtype == f4 for a in arrays) else f"{step} is for float32"


def winograd_correlate(b: Backend, spec: Any, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """The maps of `correlate`. Raises UnsuitableData if one is not finite."""
    return _convolution(spec, False)(image, weight, bias)


def winograd_correlate_adjoint(b: Backend, spec: Any, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """The image of the adjoint of `correlate`: a convolution of the maps with the flipped weight. Raises UnsuitableData
    if a number is not finite."""
    return _convolution(spec, True)(maps, weight, bias)


def winograd_weight_gradient(b: Backend, spec: Any, image: Array, maps: Array) -> Array:
    """The weight's gradient. Raises UnsuitableData if a number is not finite."""
    return _weight_gradient(spec)(image, maps)


@backends.planned
def _convolution(spec: Any, adjoint: bool) -> Callable[[Array, Array, Array | None], Array]:
    """`correlate` or its adjoint, as a function of source, weight and bias."""
    plan, shape = _plan_of(spec, adjoint), spec.window.layout.shape if adjoint else spec.maps_shape
    groups, filters, channels, _ = spec.weight_shape
    strides = [filters * channels * 9, channels * 9, 9, 1]
    if adjoint:
        filters, channels, strides = channels, filters, [strides[0], 9, channels * 9, -1]
    steps, width = np.array(strides, np.int64), _up(filters, LANES)
    tables = plan.sizes, plan.tiles, plan.terms(channels), ZEROS
    in_chunks = chunked(plan.units * groups, int(spec.flops / FLOPS_PER_BYTE))

    def compute(source: Array, weight: Array, bias: Array | None) -> Array:
        target, biases = backends.result(shape, f4), np.zeros((groups, width), f4)
        checks = np.empty(plan.units * groups)
        if bias is not None:
            biases[:, :filters] = bias.reshape(groups, filters)
        with backends.workspace(f4, (POINTS * groups * width * channels,)) as (points,):
            loops.transform_weights(flat(weight), plan.sizes, steps, points)
            arrays = flat(source), points, biases.reshape(-1), flat(target)
            in_chunks(loops.correlate, *arrays, *tables, checks, workspace=plan.workspace)
        _check_finite(checks)
        return target

    return compute


@backends.planned
def _weight_gradient(spec: Any) -> Callable[[Array, Array], Array]:
    """The weight's gradient, as a function of image and maps."""
    plan, (groups, filters, channels, _) = _plan_of(spec, False), spec.weight_shape
    size = groups * _up(channels, LANES) * POINTS * _up(filters, ROW_MULTIPLE)
    parts = min(MAX_PARTIAL_SUMS, PARTIAL_BYTES // (4 * size), plan.units * len(plan.tiles) // PART_TILES)
    parts = max(1, parts)
    rows = 2 * parts if plan.units > parts * STRETCH else parts  # the second half for the sums of earlier stretches
    shares = max(1, min(SHARES, channels // (2 * LANES))) if parts == 1 else 1
    tables = plan.sizes, plan.tiles, plan.terms(filters), ZEROS
    in_chunks = chunked(parts * groups * shares, int(spec.flops / FLOPS_PER_BYTE))

    def compute(image: Array, maps: Array) -> Array:
        partial, dweight = np.zeros((rows, size), f4), np.empty((groups * filters, channels, 3, 3), f4)
        arrays = flat(image), flat(maps), partial.reshape(-1)
        in_chunks(loops.weight_gradient, *arrays, *tables, parts, shares, workspace=plan.workspace)
        totals = partial[0] if rows == 1 else partial.sum(axis=0)
        loops.finish_weight_gradient(totals, plan.sizes, shares, dweight.reshape(-1))
        _check_finite(dweight)
        return dweight

    return compute


def _check_finite(results: Array) -> None:
    if not np.isfinite(results).all():
        raise UnsuitableData(
            "a result of Winograd's form is NaN or infinite, from the data or an overflow, and so is its whole tile;"
            " kernels.winograd('off') selects another form"
        )


# --------------------------------------------------------------------------------------------------------------- plans
@dataclass(frozen=True)
class _Plan:
    """How a convolution is cut up. tiles: where each tile's vectors begin in a block of transformed tiles. units: of a
    group. workspace: for the transformed tiles of both sides, and for a sheet."""

    sizes: Array
    tiles: Array
    units: int
    workspace: tuple[int, int, int]

    def terms(self, channels: int) -> Array:
        """Where each channel's numbers begin in transformed tiles, with entries more for a last tile of products."""
        c = np.arange(channels)
        return np.append(c // LANES * self.tiles.size * LANES + c % LANES, np.zeros(ROW_MULTIPLE, np.int64))


def _plan_of(spec: Any, adjoint: bool) -> _Plan:
    """The plan of `correlate` and of the weight's gradient, or that of `correlate_adjoint`."""
    groups, filters, channels, _ = spec.weight_shape
    image, maps, before = spec.window.layout.shape, spec.maps_shape, [a.before for a in spec.window.axes]
    if adjoint:
        image, maps, before, filters, channels = maps, image, [2 - n for n in before], channels, filters
    down, across = (-(-length // TILE) for length in maps[2:])
    batch, band = _cut(maps[0], down, across, groups, POINTS * 4 * filters * channels)
    bands, room = -(-down // band), _up(batch * band * across, ROW_MULTIPLE)
    sizes = [maps[0], groups, batch, band, bands, across, room, _up(filters, ROW_MULTIPLE)]
    sizes += [channels, *image[2:], *before, filters, *maps[2:], 0, 0]
    sheet = (TILE * band + 2) * (TILE * across + 2) * LANES
    lengths = POINTS * _up(channels, LANES) * room, POINTS * _up(filters, LANES) * room, sheet
    return _Plan(np.array(sizes, np.int64), np.arange(room) * LANES, -(-maps[0] // batch) * bands, lengths)


def _up(number: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-number // step) * step


def _cut(samples: int, down: int, across: int, groups: int, weight_bytes: int) -> tuple[int, int]:
    """Samples and rows of tiles of a unit, for samples of `down` rows of `across` tiles."""
    least = LEAST_TILES if weight_bytes <= SMALL_WEIGHT else MAX_TILES
    tiles = samples * down * across * groups
    wanted = min(MAX_TILES, max(least, -(-tiles // UNITS)), -(-tiles // 2))
    if down * across <= wanted:
        return -(-samples // -(-samples // (wanted // (down * across)))), down
    return 1, -(-down // -(-down // max(1, round(wanted / across))))
