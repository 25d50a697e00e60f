"""3×3 convolutions with stride 1 by Winograd's F(4×4, 3×3): a quarter of the multiplications.

It serves float32, channels first, dilation 1, any padding, with at least 16 channels and filters in a group. Its
results are a little less exact than a matrix product's: the largest error is about 2e-6 of the largest result, up to
5e-6 with hundreds of channels (a product: 2e-7 to 7e-7). `kernels.winograd("off")` or CNNLAYERS_WINOGRAD=off select
direct loops, which float64 and small weights always use (`form_of` chooses), or columns for long sums.

A cell that is not finite would change its complete tile. So if a result is not finite, the launcher raises
`UnsuitableData`, and im2col with BLAS computes the call: NaN and infinities stay where the definition has them.

The maps are cut into chunks of strips (a strip is a row of tiles). Each chunk is transformed, multiplied by BLAS on one
thread, and transformed back. The gradient of a small weight is computed as partial sums, each of several chunks; their
number depends on the shape alone. For a large weight there are no partial sums: the chunks come one after another, and
in each the channels are transformed in parallel, then the 36 products are computed in parallel."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.kernels import UnsuitableData

from . import winograd_loops as loops
from .parallel import CHUNK_BYTES, flat, parallel_chunks
from .winograd_loops import LARGE_POINT, SMALL_POINT, TILE, WORK_FLOATS

Array = Any
f4 = np.float32

TRANSFORMED_BYTES = 24 << 20  # of a chunk's transformed arrays, at most about
FLOAT32_CHUNKS = 32  # whose products are summed in float32; the sums of more are in float64
MAX_PARTIAL_SUMS, PARTIAL_SUM_BYTES = 16, 4 << 20  # of a weight's gradient: their number and the bytes of one, at most
MIN_TILES, MAX_TILES = 64, 240  # in a chunk, about: BLAS is slow with fewer, and more do not fit the cache

# G, the weight's transform on one axis (at six points), and on both axes: (36, 9).
POINTS = (0.0, *(sign * float(point) for point in (SMALL_POINT, LARGE_POINT) for sign in (1, -1)))
G = np.array([[p**k / math.prod(p - q for q in POINTS if q != p) for k in range(3)] for p in POINTS] + [[0, 0, 1]])
G_BOTH_AXES = np.kron(G, G).astype(f4)


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None. `form_of` has checked the shape before."""
    return None if all(a is None or a.dtype == f4 for a in arrays) else f"{step} is for float32"


def winograd_correlate(b: Backend, spec: Any, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """The maps of `correlate`. Raises UnsuitableData if one is not finite."""
    return _convolved(image, _by_group(spec, weight), bias, spec.maps_shape, [a.before for a in spec.window.axes])


def winograd_correlate_adjoint(b: Backend, spec: Any, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """The image of the adjoint of `correlate`: a convolution of the maps with the flipped weight. Raises UnsuitableData
    if a number is not finite."""
    flipped = _by_group(spec, weight)[..., ::-1].swapaxes(1, 2)
    return _convolved(maps, flipped, bias, spec.window.layout.shape, [2 - a.before for a in spec.window.axes])


def winograd_weight_gradient(b: Backend, spec: Any, image: Array, maps: Array) -> Array:
    """The weight's gradient. Raises UnsuitableData if a number is not finite."""
    groups, filters, channels, _ = spec.weight_shape
    image_sizes, maps_sizes = (
        _sizes(image, maps.shape, [a.before for a in spec.window.axes]),
        _sizes(maps, maps.shape, [0, 0]),
    )
    strips, tiles = len(maps) * int(maps_sizes[loops.STRIPS]), int(maps_sizes[loops.TILES])
    image, maps, weight = flat(image), flat(maps), (36, groups, filters, channels)
    channels_and_filters, gradient = (
        spec.channels + spec.filters,
        _WeightGradient(image, maps, image_sizes, maps_sizes, weight),
    )
    if 4 * math.prod(weight) <= PARTIAL_SUM_BYTES:
        total = gradient.by_partial_sums(_chunks(strips, tiles, _max_tiles(channels_and_filters)))
    else:
        total = gradient.chunk_by_chunk(_chunks(strips, tiles, _max_tiles(channels_and_filters, 2 * MAX_TILES)))
    _check_finite(total)
    dweight = _matmul(G_BOTH_AXES.T, total.reshape(36, -1))
    return np.ascontiguousarray(dweight.T).reshape(spec.filters, channels, 3, 3)


# --------------------------------------------------------------------------------------------------------------- steps
def _by_group(spec: Any, weight: Array) -> Array:
    """The weight as (groups, filters, channels, taps)."""
    return np.reshape(weight, spec.weight_shape)


def _sizes(array: Array, maps_shape: tuple[int, ...], before: list[int]) -> Array:
    """The `sizes` of a transform of an array, for maps of a shape. winograd_loops.py names the entries."""
    strips, tiles = (-(-length // TILE) for length in maps_shape[2:])
    return np.array([*array.shape[1:], *before, strips, tiles], np.int64)


def _matmul(x: Array, y: Array) -> Array:
    """The product, on one thread: several BLAS threads would keep polling for as long as the convolution takes."""
    with backends.single_threaded_blas():
        return x @ y


def _max_tiles(channels: int, max_tiles: int = MAX_TILES) -> int:
    """Tiles in a chunk, for images and maps with this number of channels together."""
    return max(MIN_TILES, min(max_tiles, TRANSFORMED_BYTES // (36 * 4 * channels)))


def _chunks(strips: int, tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """Strips in chunks of about `max_tiles` tiles at most, an even number of chunks, from the shape alone."""
    number = -(-strips * tiles // max_tiles)
    number = min(strips, number + number % 2)
    edges = [strips * i // number for i in range(number + 1)]
    return list(itertools.pairwise(edges))


def _check_finite(results: Any) -> None:
    if not np.isfinite(results).all():
        raise UnsuitableData(
            "a result of Winograd's form is NaN or infinite, from the data or an overflow, and so is its whole tile;"
            " kernels.winograd('off') selects another form"
        )


def _convolved(image: Array, weight: Array, bias: Array | None, shape: tuple[int, ...], before: list[int]) -> Array:
    """The convolution of an image with a weight (groups, filters, channels, taps), as maps of a shape."""
    groups, filters, channels, _ = weight.shape
    maps = backends.result(shape, f4)
    image_sizes, maps_sizes = _sizes(image, shape, before), _sizes(maps, shape, [0, 0])
    strips, tiles = int(maps_sizes[loops.STRIPS]), int(maps_sizes[loops.TILES])
    bias = np.zeros(shape[1], f4) if bias is None else flat(bias)
    source, target, checks = flat(image), flat(maps), []
    points = _matmul(G_BOTH_AXES, weight.reshape(-1, 9).T).reshape(36, groups, filters, channels)

    # Few tiles still make two chunks, for two threads.
    max_tiles = max(MIN_TILES, min(_max_tiles(image.shape[1] + shape[1]), len(image) * strips * tiles // 2))

    def compute(chunk: tuple[int, int]) -> None:
        start, number = chunk[0], chunk[1] - chunk[0]
        n = number * tiles
        arrays = (36, groups, channels, n), (36, groups, filters, n), *_workspace_shapes(number, tiles)
        with backends.workspace(f4, *arrays) as (patches, products, work, rows):
            loops.transform_inputs(source, flat(patches), image_sizes, start, number, 0, groups * channels, work, rows)
            np.matmul(points, patches, out=products)
            checks.append(loops.transform_outputs(flat(products), target, bias, maps_sizes, start, number, work, rows))

    with backends.single_threaded_blas():
        backends.run_chunks(compute, _chunks(len(image) * strips, tiles, max_tiles))
    _check_finite(checks)
    return maps


def _workspace_shapes(strips: int, tiles: int) -> tuple[tuple[int], tuple[int]]:
    """Shapes of the workspace that a transform needs."""
    return (WORK_FLOATS * strips * tiles,), (max(strips * TILE * tiles, 6 * (TILE * tiles + 2)),)


@dataclass(frozen=True)
class _WeightGradient:
    """The weight's gradient in transformed form, of the shape `weight`, from an image and maps and their `_sizes`."""

    image: Array
    maps: Array
    image_sizes: Array
    maps_sizes: Array
    weight: tuple[int, ...]

    @contextlib.contextmanager
    def workspace(self, chunk: tuple[int, int]) -> Iterator[tuple[Array, Array]]:
        """Workspace for a chunk's transformed image and maps."""
        _, groups, filters, channels = self.weight
        n = (chunk[1] - chunk[0]) * int(self.maps_sizes[loops.TILES])
        with backends.workspace(f4, (36, groups, channels, n), (36, groups, filters, n)) as (patches, gradients):
            yield patches, gradients

    def transform(self, transform: Any, to: Array, chunk: tuple[int, int], first: int, last: int) -> None:
        """Transform a chunk of the image (`loops.transform_inputs`) or of the maps (`loops.transform_gradients`),
        channels from first to last."""
        source, sizes = (
            (self.image, self.image_sizes) if transform is loops.transform_inputs else (self.maps, self.maps_sizes)
        )
        strips = chunk[1] - chunk[0]
        with backends.workspace(f4, *_workspace_shapes(strips, int(sizes[loops.TILES]))) as (work, rows):
            transform(source, flat(to), sizes, chunk[0], strips, first, last, work, rows)

    def by_partial_sums(self, cuts: list[tuple[int, int]]) -> Array:
        """Several partial sums in parallel, each over some chunks in order."""
        number = min(MAX_PARTIAL_SUMS, len(cuts))
        sums = np.empty((number, *self.weight), f4 if len(cuts) <= FLOAT32_CHUNKS * number else np.float64)

        def compute(part: int) -> None:
            first, stop = len(cuts) * part // number, len(cuts) * (part + 1) // number
            for i in range(first, stop):
                with (
                    self.workspace(cuts[i]) as (patches, gradients),
                    backends.workspace(f4, self.weight) as (products,),
                ):
                    self.transform(loops.transform_inputs, patches, cuts[i], 0, int(self.image_sizes[loops.CHANNELS]))
                    self.transform(
                        loops.transform_gradients, gradients, cuts[i], 0, int(self.maps_sizes[loops.CHANNELS])
                    )
                    np.matmul(gradients, patches.swapaxes(-1, -2), out=products)
                    if i == first:
                        sums[part] = products
                    else:
                        sums[part] += products

        with backends.single_threaded_blas():
            backends.run_chunks(compute, range(number))
        total: Array = sums.sum(axis=0)
        return total.astype(f4, copy=False)

    def chunk_by_chunk(self, cuts: list[tuple[int, int]]) -> Array:
        """Chunk by chunk; in each the channels, then the 36 products in parallel."""
        total = np.zeros(self.weight, f4 if len(cuts) <= FLOAT32_CHUNKS else np.float64)
        for chunk in cuts:
            with self.workspace(chunk) as (patches, gradients):
                for transform, to in ((loops.transform_inputs, patches), (loops.transform_gradients, gradients)):
                    parallel_chunks(
                        to[0, :, :, 0].size, 2 * to.nbytes, functools.partial(self.transform, transform, to, chunk)
                    )

                def add(first: int, last: int, gradients: Array = gradients, patches: Array = patches) -> None:
                    with backends.workspace(f4, total[first:last].shape) as (products,):
                        np.matmul(gradients[first:last], patches[first:last].swapaxes(-1, -2), out=products)
                        total[first:last] += products

                with backends.single_threaded_blas():
                    parallel_chunks(36, 12 * CHUNK_BYTES, add)
        return total.astype(f4, copy=False)
