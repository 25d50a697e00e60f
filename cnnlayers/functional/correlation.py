"""What convolutions are made of: three functions of an *image* (conv's x) and its *maps* (conv's y).

    correlate        maps[n, f, o] = sum over c, t of weight[f, c, t] * image[n, c, o * stride + t * dilation - before]
    correlate_adjoint its adjoint in the image
    weight_gradient  its adjoint in the weight

for the channels c of f's group and the kernel's taps t, on each spatial axis; cells outside the image count as 0.

How: the image's cells under a block of taps are gathered into columns, and one matrix product serves a block and a tile
(`tiles`): neither the whole array of columns nor a padded image ever exists. On NumPy tiles run side by side; what
several of them add to is added up in a fixed order, so the bits do not depend on the number of threads. With one
channel a group the taps are multiplied and added elementwise; a 1×1 kernel is a matrix product on the array as it lies.

Kernels may serve: on CuPy for the moving of cells ("im2col", "col2im") and for matrix products ("matmul", by `blas`),
or for a whole function: on the CPU direct loops and Winograd's form for 3×3 kernels, on CuPy cuDNN, where it is
installed and has an engine. conv_form.py chooses.

All arrays of a call have one dtype. Loops run over tiles and taps. Sums over tiles, over more than SHORT_SUM blocks of
taps and over more than LONG_SUM windows of a cell are kept in float64; matrix products see to their own (`blas`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from cnnlayers import kernels
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import Shape
from cnnlayers.specs.conv import Conv

from . import blas
from .arrays import LONG_SUM, Array, cast, inverse_order, itemsize, sum_dtype
from .blas import transposed
from .conv_form import by_kernel
from .conv_tiling import ALL, Tap, Tile, blocks_of, taps_of, tiles_of

MAX_PARTIAL_SUMS = 16  # partial weight gradients made side by side,
PARTIAL_SUM_BYTES = 64 << 20  # and what they may take together


# ------------------------------------------------------------------------------------------------------------- matrices
# The matrices of an array are (groups, channels, cells), and of samples apart (samples, groups, channels, cells). With
# channels last they are transposed views, and products are taken of the transposes: BLAS reads both, and neither format
# is copied as a whole.
def _axes_order(spec: Conv, channels_last: bool) -> Shape:
    """A split array's axes as (groups, channels, cells), or with channels last as (groups, cells, channels)."""
    n = spec.ndim
    group, channel, cells = (n + 1, n + 2, range(n + 1)) if spec.last else (1, 2, (0, *range(3, n + 3)))
    return (group, *cells, channel) if channels_last else (group, channel, *cells)


def _matrices(b: Backend, spec: Conv, part: Array, per_sample: bool = False) -> Array:
    """A part of a split array as matrices: a view where its strides allow."""
    if per_sample:
        return b.xp.reshape(part, (*part.shape[:3], math.prod(part.shape[3:])))
    permuted = b.xp.permute_dims(part, _axes_order(spec, channels_last=spec.last))
    shape = tuple(permuted.shape)
    if spec.last:
        return transposed(b, b.xp.reshape(permuted, (shape[0], math.prod(shape[1:-1]), shape[-1])))
    return b.xp.reshape(permuted, (*shape[:2], math.prod(shape[2:])))


def _cells(b: Backend, spec: Conv, matrices: Array, shape: Shape) -> Array:
    """Matrices as a part of a split array. `shape`: the tile's."""
    groups, channels = matrices.shape[:2]
    if spec.last:
        cells = b.xp.reshape(transposed(b, matrices), (groups, *shape, channels))
    else:
        cells = b.xp.reshape(matrices, (groups, channels, *shape))
    return b.xp.permute_dims(cells, inverse_order(_axes_order(spec, channels_last=spec.last)))


def _product(
    b: Backend,
    weight: Array,
    matrices: Array,
    plus: Array | None = None,
    *,
    as_transpose: bool,
    uncut: bool = False,
    out: Array | None = None,
) -> Array:
    """weight @ matrices + plus; `as_transpose`: stored as its transpose. `uncut`, `out`: as `blas.matmul`'s."""
    if not as_transpose:
        return blas.matmul(b, weight, matrices, plus, uncut=uncut, out=out)
    plus, out = (None if a is None else transposed(b, a) for a in (plus, out))
    return transposed(b, blas.matmul(b, transposed(b, matrices), transposed(b, weight), plus, uncut=uncut, out=out))


# -------------------------------------------------------------------------------------------------------------- columns
def _columns_shape(spec: Conv, tile: Tile, taps: int) -> Shape:
    groups, _, channels, _ = spec.weight_shape
    samples, *windows = tile.shape
    if tile.per_sample:
        return (samples, groups, channels, taps, *windows)
    return (groups, *tile.shape, taps, channels) if spec.channels_contiguous else (groups, channels, taps, *tile.shape)


def _columns_order(spec: Conv, tile: Tile) -> Shape:
    """A split array's axes as those of columns, but for the taps."""
    return tuple(range(spec.ndim + 3)) if tile.per_sample else _axes_order(spec, channels_last=spec.channels_contiguous)


def _tap_index(spec: Conv, tile: Tile, slot: int, windows: Sequence[slice]) -> tuple[Any, ...]:
    """One tap's windows in an array of `_columns_shape`."""
    if tile.per_sample:
        return (ALL, ALL, ALL, slot, *windows)
    return (ALL, ALL, *windows, slot, ALL) if spec.channels_contiguous else (ALL, ALL, slot, ALL, *windows)


def _block_weight(b: Backend, spec: Conv, weight: Array, block: Sequence[Tap]) -> Array:
    """The block's taps of a weight by group, as (groups, filters of a group, rows of columns)."""
    part = weight[:, :, :, block[0][0] : block[-1][0] + 1]
    part = b.xp.permute_dims(part, (0, 1, 3, 2)) if spec.channels_contiguous else part
    return b.xp.reshape(part, (*part.shape[:2], part.shape[2] * part.shape[3]))


@contextlib.contextmanager
def _columns_workspace(
    b: Backend, spec: Conv, tile: Tile, block: Sequence[Tap], dtype: Any
) -> Iterator[tuple[Array, Array]]:
    """Columns of a tile under a block of taps, yet to be filled: as they are stored, and as matrices."""
    shape, size = _columns_shape(spec, tile, len(block)), math.prod(tile.shape)
    rows = spec.weight_shape[2] * len(block)
    with blas.workspace(b, shape, dtype) as columns:
        if tile.per_sample:
            yield columns, b.xp.reshape(columns, (*shape[:2], rows, math.prod(tile.window.out_lengths)))
        elif spec.channels_contiguous:
            yield columns, transposed(b, b.xp.reshape(columns, (spec.groups, size, rows)))
        else:
            yield columns, b.xp.reshape(columns, (spec.groups, rows, size))


@contextlib.contextmanager
def _columns(b: Backend, spec: Conv, image: Array, tile: Tile, block: Sequence[Tap]) -> Iterator[Array]:
    """What the tile's windows see of the image under the block's taps, as matrices; 0 outside the image."""
    if spec.pointwise:
        yield _matrices(b, spec, image[spec.at(tile.samples, tile.maps)], tile.per_sample)
        return
    with _columns_workspace(b, spec, tile, block, image.dtype) as (columns, matrices):
        (kernels.find("im2col", b, spec, image) or _im2col)(b, spec, image, tile, block, columns)
        yield matrices


def _im2col(b: Backend, spec: Conv, image: Array, tile: Tile, block: Sequence[Tap], columns: Array) -> None:
    for slot, (_, windows, cells) in enumerate(block):
        if any(w.stop - w.start < a.out for w, a in zip(windows, tile.window.axes, strict=True)):
            columns[_tap_index(spec, tile, slot, [ALL] * spec.ndim)] = 0.0
        seen = b.xp.permute_dims(image[spec.at(tile.samples, cells)], _columns_order(spec, tile))
        columns[_tap_index(spec, tile, slot, windows)] = seen


def _col2im(b: Backend, spec: Conv, image: Array, tile: Tile, block: Sequence[Tap], columns: Array) -> None:
    for slot, (_, windows, cells) in enumerate(block):
        seen = columns[_tap_index(spec, tile, slot, windows)]
        image[spec.at(tile.samples, cells)] += b.xp.permute_dims(seen, inverse_order(_columns_order(spec, tile)))


def _compute_maps(
    b: Backend, spec: Conv, tile: Tile, image: Array, weight: Array, bias: Array | None, maps: Array, uncut: bool
) -> None:
    at = spec.at(tile.samples, tile.maps)
    plus = None if bias is None else b.xp.reshape(bias, (*bias.shape[:2], 1))
    # BLAS writes to the maps as they lie, if the tile's are matrices there.
    in_place = b.name == "numpy" and (spec.last or tile.per_sample or tile.shape[0] == 1)
    out, total = _matrices(b, spec, maps[at], tile.per_sample) if in_place else None, None
    blocks = blocks_of(b, spec, tile, itemsize(b, image))
    dtype = sum_dtype(b, len(blocks), _sum_dtype(b, image))
    for block in blocks:
        with _columns(b, spec, image, tile, block) as columns:
            part = _block_weight(b, spec, weight, block)
            if total is None:
                room = out if dtype == image.dtype else None
                product = _product(b, part, columns, plus, as_transpose=spec.last, uncut=uncut, out=room)
                total = cast(b, product, dtype)
            else:
                total += _product(b, part, columns, as_transpose=spec.last, uncut=uncut)
    if total is None:  # the windows see nothing but padding
        maps[at] = 0.0 if bias is None else bias
    elif out is None:
        maps[at] = _cells(b, spec, cast(b, total, image.dtype), tile.shape)
    elif dtype != image.dtype:
        out[...] = total


def _adjoint_tile(b: Backend, spec: Conv, tile: Tile, maps: Array, weight: Array, image: Array, uncut: bool) -> None:
    matrices = _matrices(b, spec, maps[spec.at(tile.samples, tile.maps)], tile.per_sample)
    columns_by_cell = spec.channels_contiguous  # and the product is stored as its transpose
    for block in blocks_of(b, spec, tile, itemsize(b, image)):
        part = transposed(b, _block_weight(b, spec, weight, block))
        with _columns_workspace(b, spec, tile, block, image.dtype) as (columns, out):
            room = out if b.name == "numpy" else None
            product = _product(b, part, matrices, as_transpose=columns_by_cell, uncut=uncut, out=room)
            if b.name != "numpy":
                columns = b.xp.reshape(transposed(b, product) if columns_by_cell else product, tuple(columns.shape))
            (kernels.find("col2im", b, spec, image) or _col2im)(b, spec, image, tile, block, columns)


def _add_gradient(b: Backend, spec: Conv, tile: Tile, image: Array, maps: Array, dweight: Array, uncut: bool) -> None:
    matrices = _matrices(b, spec, maps[spec.at(tile.samples, tile.maps)], tile.per_sample)
    groups, filters, channels, _ = spec.weight_shape
    for block in blocks_of(b, spec, tile, itemsize(b, image)):
        with _columns(b, spec, image, tile, block) as columns:
            part = blas.matmul(b, matrices, transposed(b, columns), uncut=uncut)
        part = b.xp.sum(part, axis=0, dtype=b.xp.float64) if tile.per_sample else part
        if spec.channels_contiguous:
            part = b.xp.permute_dims(b.xp.reshape(part, (groups, filters, len(block), channels)), (0, 1, 3, 2))
        else:
            part = b.xp.reshape(part, (groups, filters, channels, len(block)))
        dweight[:, :, :, block[0][0] : block[-1][0] + 1] += part


# ----------------------------------------------------------------------------------------------- one channel in a group
def _tap_weight(b: Backend, spec: Conv, weight: Array, tap: int) -> Array:
    """One tap's weights, one a map, as they multiply a part of a split array."""
    shape = spec.weight_shape[:2] if spec.last else (*spec.weight_shape[:2], *(1,) * spec.ndim)
    return b.xp.reshape(weight[:, :, 0, tap], shape)


def _depthwise_maps(b: Backend, spec: Conv, tile: Tile, image: Array, weight: Array, bias: Array | None) -> Array:
    shape = spec.split(spec.window.layout.with_spatial(tile.window.out_lengths, spec.filters))
    maps = b.zeros((tile.shape[0], *shape[1:]), image.dtype)
    if bias is not None:
        maps += bias
    for tap, windows, cells in taps_of(tile.window):
        maps[spec.at(ALL, windows)] += image[spec.at(tile.samples, cells)] * _tap_weight(b, spec, weight, tap)
    return maps


def _depthwise_adjoint(b: Backend, spec: Conv, tile: Tile, maps: Array, weight: Array, image: Array) -> None:
    part = maps[spec.at(tile.samples, tile.maps)]
    for tap, windows, cells in taps_of(tile.window):
        seen = part[spec.at(ALL, windows)] * _tap_weight(b, spec, weight, tap)
        image[spec.at(tile.samples, cells)] += b.xp.sum(seen, axis=-1 if spec.last else 2, keepdims=True)


def _add_depthwise_gradient(b: Backend, spec: Conv, tile: Tile, image: Array, maps: Array, dweight: Array) -> None:
    part = maps[spec.at(tile.samples, tile.maps)]
    axes = tuple(range(spec.ndim + 1)) if spec.last else (0, *range(3, spec.ndim + 3))
    for tap, windows, cells in taps_of(tile.window):
        products = part[spec.at(ALL, windows)] * image[spec.at(tile.samples, cells)]
        dweight[:, :, 0, tap] += b.xp.sum(products, axis=axes, dtype=b.xp.float64)


# -------------------------------------------------------------------------------------------------- the three functions
def _point(b: Backend, spec: Conv, weight: Array, array: Array, bias: Array | None) -> Array:
    """A 1×1 kernel: weights (groups, out, in) times a split array, without columns."""
    shape = tuple(array.shape)
    plus = None if bias is None else b.xp.reshape(bias, (*bias.shape[:2], 1))
    if spec.last:
        y = _product(b, weight, _matrices(b, spec, array), plus, as_transpose=True)
        return _cells(b, spec, y, shape[:-2])
    y = blas.matmul(b, weight, b.xp.reshape(array, (*shape[:3], math.prod(shape[3:]))), plus)
    return b.xp.reshape(y, (*shape[:2], weight.shape[1], *shape[3:]))


def _split_view(b: Backend, spec: Conv, array: Array) -> Array:
    """A split view of an array, or of a copy where its elements do not lie in order: each is read more than once."""
    return b.xp.reshape(blas.in_c_order(b, array), spec.split(tuple(array.shape)))


def _bias(b: Backend, spec: Conv, bias: Array | None, channels: int) -> Array | None:
    """A bias as it adds to split arrays of that many channels."""
    ones = () if spec.last else (1,) * spec.ndim
    return None if bias is None else b.xp.reshape(bias, (spec.groups, channels // spec.groups, *ones))


def _only_bias(b: Backend, spec: Conv, shape: Shape, dtype: Any, bias: Array | None) -> Array:
    """The result where there is nothing to multiply."""
    zeros = b.zeros(shape, dtype)
    return zeros if bias is None else zeros + b.xp.reshape(bias, (-1, *(() if spec.last else (1,) * spec.ndim)))


def _is_long(b: Backend, spec: Conv, dtype: Any) -> bool:
    """Whether `dtype` is too short for the sums of `correlate_adjoint`, or of a depthwise `correlate`."""
    if dtype == b.xp.float64:
        return False
    taps = math.prod(spec.window.kernel) if spec.depthwise else 0
    return max(math.prod(a.overlap for a in spec.window.axes), taps) > LONG_SUM


def _widely(b: Backend, function: Any, spec: Conv, array: Array, weight: Array, bias: Array | None) -> Array:
    """`correlate` or `correlate_adjoint` in float64, its result in the dtype of the arrays."""
    wide = [None if a is None else b.xp.astype(a, b.xp.float64) for a in (array, weight, bias)]
    return b.xp.astype(function(b, spec, *wide), array.dtype)


def _sum_dtype(b: Backend, array: Array) -> Any:
    """The dtype of what is added up: float32 for half types."""
    return b.xp.float32 if itemsize(b, array) == 2 else array.dtype


def multiplies_halves(b: Backend, spec: Conv, dtype: Any) -> bool:
    """Whether columns and products of a half type are made without a copy of it in float32: then images and maps that
    are sums are float32, and so is a weight's gradient."""
    return not spec.depthwise and blas.multiplies_halves(b, dtype)


def correlate(b: Backend, spec: Conv, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """The image's maps, (N, filters, *windows) or channels last; `weight` is (filters, channels / groups, *kernel)."""
    if spec.empty:
        return _only_bias(b, spec, spec.maps_shape, image.dtype, bias)
    if spec.depthwise and _is_long(b, spec, image.dtype):
        return _widely(b, correlate, spec, image, weight, bias)
    maps = by_kernel("correlate", b, spec, image, weight, bias)
    if maps is not None:
        return maps
    image, weight = _split_view(b, spec, image), b.xp.reshape(weight, spec.weight_shape)
    bias = _bias(b, spec, bias, spec.filters)
    if spec.pointwise and not spec.depthwise:
        return b.xp.reshape(_point(b, spec, weight[:, :, :, 0], image, bias), spec.maps_shape)
    maps = b.empty(spec.split(spec.maps_shape), image.dtype)
    tiles = [tile for tiles in tiles_of(b, spec, itemsize(b, image)) for tile in tiles]

    def compute(tile: Tile) -> None:
        if spec.depthwise:
            maps[spec.at(tile.samples, tile.maps)] = _depthwise_maps(b, spec, tile, image, weight, bias)
        else:
            _compute_maps(b, spec, tile, image, weight, bias, maps, uncut=len(tiles) > 1)

    blas.in_chunks(b, compute, tiles, spec.flops)
    return b.xp.reshape(maps, spec.maps_shape)


def correlate_adjoint(b: Backend, spec: Conv, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """The maps' image under `correlate`'s adjoint, plus a bias, one number a channel of the image."""
    shape = spec.window.layout.shape
    if spec.empty:
        return _only_bias(b, spec, shape, maps.dtype, bias)
    if _is_long(b, spec, maps.dtype):
        return _widely(b, correlate_adjoint, spec, maps, weight, bias)
    image = by_kernel("correlate_adjoint", b, spec, maps, weight, bias)
    if image is not None:
        return image
    maps, weight = _split_view(b, spec, maps), b.xp.reshape(weight, spec.weight_shape)
    bias = _bias(b, spec, bias, spec.channels)
    if spec.pointwise and not spec.depthwise:
        return b.xp.reshape(_point(b, spec, transposed(b, weight[:, :, :, 0]), maps, bias), shape)
    image = b.empty(spec.split(shape), _sum_dtype(b, maps))
    tiles_by_samples = tiles_of(b, spec, itemsize(b, image))

    def compute(tiles: Sequence[Tile]) -> None:
        image[spec.at(tiles[0].samples, [ALL] * spec.ndim)] = 0.0 if bias is None else bias
        for tile in tiles:  # rows of one sample overlap in the image: one after the other
            if spec.depthwise:
                _depthwise_adjoint(b, spec, tile, maps, weight, image)
            else:
                _adjoint_tile(b, spec, tile, maps, weight, image, uncut=len(tiles_by_samples) > 1)

    blas.in_chunks(b, compute, tiles_by_samples, spec.flops)
    return b.xp.reshape(image, shape)


def weight_gradient(b: Backend, spec: Conv, image: Array, maps: Array) -> Array:
    """The weight's gradient, (filters, channels / groups, *kernel), for maps that hold gradients."""
    _, _, channels, _ = spec.weight_shape
    shape = (spec.filters, channels, *spec.window.kernel)
    if spec.empty:
        return b.zeros(shape, image.dtype)
    dweight = by_kernel("weight_gradient", b, spec, image, maps)
    if dweight is not None:
        return dweight
    image, maps = _split_view(b, spec, image), _split_view(b, spec, maps)
    tiles = [tile for tiles in tiles_of(b, spec, itemsize(b, image)) for tile in tiles]
    most = PARTIAL_SUM_BYTES // (math.prod(shape) * 8) if b.name == "numpy" else 1
    parts = [tiles[cut] for cut in blas.split_evenly(len(tiles), max(1, min(MAX_PARTIAL_SUMS, most)))]
    partial = [b.zeros(spec.weight_shape, b.xp.float64) for _ in parts]

    def compute(part: int) -> None:
        for tile in parts[part]:
            if spec.depthwise:
                _add_depthwise_gradient(b, spec, tile, image, maps, partial[part])
            else:
                _add_gradient(b, spec, tile, image, maps, partial[part], uncut=len(parts) > 1)

    blas.in_chunks(b, compute, range(len(parts)), spec.flops)
    total = partial[0]
    for other in partial[1:]:
        total += other
    return cast(b, b.xp.reshape(total, shape), _sum_dtype(b, image))
