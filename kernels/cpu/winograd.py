"""3×3 convolutions with stride 1 by Winograd's F(4×4, 3×3): a quarter of the multiplications.

It serves float32, channels first, from 16 channels and filters a group on, dilation 1, any padding. Its results are a
little less exact than the direct form's: the largest error is about 2e-6 of the largest result, up to 5e-6 with
hundreds of channels (directly 2e-7 to 7e-7). `kernels.winograd("off")` or CNNLAYERS_WINOGRAD=off choose the direct
form; float64 always takes that.

A cell that is not finite would spoil its whole tile here. So whenever a result is not finite the launcher raises
`UnsuitableData`, and the direct form computes the call: NaN and infinities stay where the definition has them.

The maps are cut into chunks of strips (rows of tiles). Each chunk is transformed, multiplied by BLAS on one thread and
transformed back. The gradient of a small weight is summed up in strands, runs of chunks whose number the shape alone
decides; for a large one the chunks come one after another, and of each the channels are transformed side by side, then
the 36 products taken side by side: no partial sums.
"""

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
from .compile import CHUNK, chunks, flat
from .winograd_loops import FAR, NEAR, TILE, WORK

Array = Any
f4 = np.float32

ROOM = 24 << 20  # bytes of a chunk's transformed arrays, at most about
SHORT = 32  # chunks whose products are added up in float32; more in float64
STRANDS, STRAND = 16, 4 << 20  # partial weight gradients at most, and the bytes of one at most
FEWEST, MOST = 64, 240  # tiles of a chunk, about: BLAS's products are slow with fewer, and more leave the cache

# Weights at the six points: G, and the map of all nine taps to all 36 pairs of points.
POINTS = (0.0, *(sign * float(point) for point in (NEAR, FAR) for sign in (1, -1)))
G = np.array([[p**k / math.prod(p - q for q in POINTS if q != p) for k in range(3)] for p in POINTS] + [[0, 0, 1]])
BOTH = np.kron(G, G).astype(f4)


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None. That the shape fits is asked before (`Conv.winograd`)."""
    return None if all(a is None or a.dtype == f4 for a in arrays) else f"{op} is for float32"


def winograd_correlate(b: Backend, spec: Any, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """`correlate`'s maps. Raises UnsuitableData if one is not finite."""
    return _convolved(image, _by_group(spec, weight), bias, spec.maps_shape, [a.before for a in spec.window.axes])


def winograd_spread(b: Backend, spec: Any, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """`spread`'s image, the convolution of the maps with the weight turned round. Raises UnsuitableData if a number is
    not finite."""
    turned = _by_group(spec, weight)[..., ::-1].swapaxes(1, 2)
    return _convolved(maps, turned, bias, spec.window.layout.shape, [2 - a.before for a in spec.window.axes])


def winograd_weight_gradient(b: Backend, spec: Any, image: Array, maps: Array) -> Array:
    """`weight_gradient`'s result. Raises UnsuitableData if a number is not finite."""
    groups, filters, channels, _ = spec.weight_shape
    seen, made = _sizes(image, maps.shape, [a.before for a in spec.window.axes]), _sizes(maps, maps.shape, [0, 0])
    strips, tiles = len(maps) * int(made[loops.STRIPS]), int(made[loops.TILES])
    image, maps, weight = flat(image), flat(maps), (36, groups, filters, channels)
    both, jobs = spec.channels + spec.filters, _Gradient(image, maps, seen, made, weight)
    if 4 * math.prod(weight) <= STRAND:
        total = jobs.in_strands(_chunks(strips, tiles, _most(both)))
    else:
        total = jobs.side_by_side(_chunks(strips, tiles, _most(both, 2 * MOST)))
    _check_finite(total)
    dweight = _times(BOTH.T, total.reshape(36, -1))
    return np.ascontiguousarray(dweight.T).reshape(spec.filters, channels, 3, 3)


# --------------------------------------------------------------------------------------------------------------- steps
def _by_group(spec: Any, weight: Array) -> Array:
    return np.reshape(weight, spec.weight_shape)


def _sizes(array: Array, made: tuple[int, ...], before: list[int]) -> Array:
    """What a transform of an array is told, for maps of the shape `made`; entries as named in winograd_loops."""
    strips, tiles = (-(-length // TILE) for length in made[2:])
    return np.array([*array.shape[1:], *before, strips, tiles], np.int64)


def _times(x: Array, y: Array) -> Array:
    """Their product, on one thread like every other: more would spin on for as long as the convolution takes."""
    with backends.single_threaded_blas():
        return x @ y


def _most(channels: int, most: int = MOST) -> int:
    """Tiles of a chunk, of images and maps of so many channels together."""
    return max(FEWEST, min(most, ROOM // (36 * 4 * channels)))


def _chunks(strips: int, tiles: int, most: int) -> list[tuple[int, int]]:
    """Strips in chunks of up to about `most` tiles, from the shape alone; an even number of them, to share out."""
    number = -(-strips * tiles // most)
    number = min(strips, number + number % 2)
    edges = [strips * i // number for i in range(number + 1)]
    return list(itertools.pairwise(edges))


def _check_finite(results: Any) -> None:
    if not np.isfinite(results).all():
        raise UnsuitableData(
            "Winograd's form met NaN, infinity or an overflow, and would spread it; kernels.winograd('off') chooses the"
            " form that does not"
        )


def _convolved(image: Array, weight: Array, bias: Array | None, shape: tuple[int, ...], before: list[int]) -> Array:
    """The convolution of an image with a weight (groups, filters, channels, taps), as maps of a shape."""
    groups, filters, channels, _ = weight.shape
    maps = backends.result(shape, f4)
    seen, made = _sizes(image, shape, before), _sizes(maps, shape, [0, 0])
    strips, tiles = int(made[loops.STRIPS]), int(made[loops.TILES])
    bias = np.zeros(shape[1], f4) if bias is None else flat(bias)
    source, target, odd = flat(image), flat(maps), []
    points = _times(BOTH, weight.reshape(-1, 9).T).reshape(36, groups, filters, channels)

    # Few tiles are shared out at least among two threads.
    most = max(FEWEST, min(_most(image.shape[1] + shape[1]), len(image) * strips * tiles // 2))

    def compute(chunk: tuple[int, int]) -> None:
        start, number = chunk[0], chunk[1] - chunk[0]
        n = number * tiles
        arrays = (36, groups, channels, n), (36, groups, filters, n), *_work(number, tiles)
        with backends.workspace(f4, *arrays) as (patches, products, work, room):
            loops.patches(source, flat(patches), seen, start, number, 0, groups * channels, work, room)
            np.matmul(points, patches, out=products)
            odd.append(loops.outputs(flat(products), target, bias, made, start, number, work, room))

    with backends.single_threaded_blas():
        backends.run_chunks(compute, _chunks(len(image) * strips, tiles, most))
    _check_finite(odd)
    return maps


def _work(strips: int, tiles: int) -> tuple[tuple[int], tuple[int]]:
    """Shapes of the room that transforms need."""
    return (WORK * strips * tiles,), (max(strips * TILE * tiles, 6 * (TILE * tiles + 2)),)


@dataclass(frozen=True)
class _Gradient:
    """The weight's transformed gradient, of the shape `weight`, from an image and maps; their sizes are `_sizes`'."""

    image: Array
    maps: Array
    seen: Array
    made: Array
    weight: tuple[int, ...]

    @contextlib.contextmanager
    def room(self, chunk: tuple[int, int]) -> Iterator[tuple[Array, Array]]:
        """Room for a chunk's transformed image and maps."""
        _, groups, filters, channels = self.weight
        n = (chunk[1] - chunk[0]) * int(self.made[loops.TILES])
        with backends.workspace(f4, (36, groups, channels, n), (36, groups, filters, n)) as (patches, gradients):
            yield patches, gradients

    def transform(self, transform: Any, to: Array, chunk: tuple[int, int], first: int, last: int) -> None:
        """A chunk of the image (`loops.patches`) or of the maps (`loops.gradients`), channels from first to last."""
        source, sizes = (self.image, self.seen) if transform is loops.patches else (self.maps, self.made)
        strips = chunk[1] - chunk[0]
        with backends.workspace(f4, *_work(strips, int(sizes[loops.TILES]))) as (work, room):
            transform(source, flat(to), sizes, chunk[0], strips, first, last, work, room)

    def in_strands(self, cuts: list[tuple[int, int]]) -> Array:
        """Runs of chunks side by side."""
        number = min(STRANDS, len(cuts))
        sums = np.empty((number, *self.weight), f4 if len(cuts) <= SHORT * number else np.float64)

        def compute(strand: int) -> None:
            first, stop = len(cuts) * strand // number, len(cuts) * (strand + 1) // number
            for i in range(first, stop):
                with self.room(cuts[i]) as (patches, gradients), backends.workspace(f4, self.weight) as (products,):
                    self.transform(loops.patches, patches, cuts[i], 0, int(self.seen[loops.CHANNELS]))
                    self.transform(loops.gradients, gradients, cuts[i], 0, int(self.made[loops.CHANNELS]))
                    np.matmul(gradients, patches.swapaxes(-1, -2), out=products)
                    if i == first:
                        sums[strand] = products
                    else:
                        sums[strand] += products

        with backends.single_threaded_blas():
            backends.run_chunks(compute, range(number))
        total: Array = sums.sum(axis=0)
        return total.astype(f4, copy=False)

    def side_by_side(self, cuts: list[tuple[int, int]]) -> Array:
        """Chunk by chunk; of each the channels, then the 36 products side by side."""
        total = np.zeros(self.weight, f4 if len(cuts) <= SHORT else np.float64)
        for chunk in cuts:
            with self.room(chunk) as (patches, gradients):
                for transform, to in ((loops.patches, patches), (loops.gradients, gradients)):
                    chunks(to[0, :, :, 0].size, 2 * to.nbytes, functools.partial(self.transform, transform, to, chunk))

                def add(first: int, last: int, gradients: Array = gradients, patches: Array = patches) -> None:
                    with backends.workspace(f4, total[first:last].shape) as (products,):
                        np.matmul(gradients[first:last], patches[first:last].swapaxes(-1, -2), out=products)
                        total[first:last] += products

                with backends.single_threaded_blas():
                    chunks(36, 12 * CHUNK, add)
        return total.astype(f4, copy=False)
