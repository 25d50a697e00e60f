"""Launchers of avg_pool.cu, avg_pool_tiled.cu and avg_pool_narrow.cu (narrow windows) and avg_pool_planes.cu (global
pooling): sum, average and adaptive average pooling, called as the portable code is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveWindow, Average

from .compile import CUDA_TYPE, instance_name
from .launch import PACK_BYTES, Launch, Pass, alignment, cached_plan, contiguous, divisor, grid_size, offset_types
from .norm_plan import THREADS, device_of, lanes_of
from .window import (
    Narrow,
    Tile,
    axes,
    axes_of,
    cells_of,
    inner,
    inner_of,
    is_adaptive,
    is_plane,
    is_wide,
    narrow_of,
    pack_of,
    planes,
    tile_of,
    too_large,
)

Array = Any
MAX_HALF_DIVISOR = 2**16  # of sums of halves in quotients.cuh


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return too_large(_window(spec))


# ----------------------------------------------------------------------------------------------------------------- ops
def avg_pool_forward(b: Backend, spec: Any, x: Array) -> Array:
    """y."""
    return _run(b, spec, "forward", x)


def avg_pool_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    return _run(b, spec, "backward", dy)


# What differs is in their specs: Average, Window and AdaptiveWindow.
sum_pool_forward = adaptive_avg_pool_forward = avg_pool_forward
sum_pool_backward = adaptive_avg_pool_backward = avg_pool_backward


# --------------------------------------------------------------------------------------------------------------- plans
def _window(spec: Any) -> Any:
    """The windows of a spec; those of an adaptive pool as ordinary ones if the lengths divide."""
    if hasattr(spec, "window"):
        return spec.window
    return spec.regular() or spec if is_adaptive(spec) else spec


def _meaning(spec: Any) -> tuple[Any, int | None, bool]:
    """The windows of a spec, the divisor of each, None if they differ, and whether padding counts."""
    window = _window(spec)
    if isinstance(spec, Average):
        return window, _divisor(spec), spec.include_pad
    if isinstance(spec, AdaptiveWindow):
        return window, None if is_adaptive(window) else math.prod(window.kernel), False
    return window, 1, False


def _divisor(spec: Average) -> int | None:
    """The divisor of every window of an average, or None if windows differ."""
    if spec.override is not None:
        return int(spec.override)
    same = all(_within(axis) if spec.include_pad else axis.whole for axis in spec.window.axes)
    return math.prod(spec.window.kernel) if same else None


def _within(axis: Any) -> bool:
    """Whether no window reaches beyond the declared padding, as it may in ceil mode."""
    last = (axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1) - axis.before
    return bool(last < axis.length + axis.after)


def _bounds(window: Any, include_pad: bool) -> list[np.int32]:
    """The kernels' BOUNDS: for each axis the first cell that counts, and the cell after the last."""
    found = []
    for axis in axes_of(window):
        before, after = (axis.before, axis.after) if axis and include_pad else (0, 0)
        found += [np.int32(-before), np.int32((axis.length if axis else 1) + after)]
    return found


def _make(b: Backend, spec: Any, part: str, dtype: Any, aligned_to: int) -> Pass:
    """`aligned_to`: bytes to which the array that comes in is aligned; the result is new."""
    window, divisor, include_pad = _meaning(spec)
    forward = part == "forward"
    shape = tuple(window.out_shape if forward else window.layout.shape)
    if not math.prod(shape):
        return Pass(None, shape)
    call = _Call(b, window, dtype, divisor, forward)
    aligned, itemsize = (aligned_to if forward else PACK_BYTES), int(dtype.itemsize)
    quick = itemsize > 2 or divisor is None or abs(divisor) < MAX_HALF_DIVISOR
    if divisor is not None:
        tile = tile_of(window, itemsize, aligned, *(() if forward else ((aligned_to, itemsize),)))
        if tile and quick:
            return Pass(call.tiled(tile), shape)
        if is_plane(window):
            return Pass(call.whole_columns(aligned_to) if inner(window) > 1 else call.whole_planes(aligned), shape)
    bounds = _bounds(window, include_pad)
    if quick and (narrow := narrow_of(window, itemsize, (aligned_to, itemsize))):
        return Pass(call.narrow(narrow, bounds), shape)
    return Pass(call.general(bounds, aligned_to), shape)


@dataclass(frozen=True)
class _Call:
    """A forward or backward of a window and dtype."""

    b: Backend
    window: Any
    dtype: Any
    divisor: int | None
    forward: bool

    @property
    def element(self) -> str:
        return CUDA_TYPE[backends.name_of_dtype(self.b, self.dtype)]

    @property
    def real(self) -> Any:
        """The kernels' divisor, in its type."""
        return (np.float64 if self.dtype == self.b.xp.float64 else np.float32)(self.divisor or 1)

    @property
    def offsets(self) -> tuple[str, Any]:
        return offset_types(math.prod(self.window.layout.shape), math.prod(self.window.out_shape))

    def tiled(self, tile: Tile) -> Launch:
        """A kernel of avg_pool_tiled.cu: a thread a pack of cells, in the rows of y or the tiles of x."""
        (offset, integer), (h, w) = self.offsets, self.window.axes
        rows = h.out if self.forward else -(-h.length // h.stride)
        many = self.element == "__half" and offset == "unsigned"
        lines = -(-rows // ((4 if many else 2) if (h.kernel, h.stride) == (3, 1) else 1))  # avg_pool_tiled.cu's ROWS
        threads = tile.planes * lines * tile.row
        sizes = (self.real, integer(threads), integer(tile.row), np.int32(h.length), np.int32(h.out))
        kind = "sum_pool_tiled" if self.forward else "sum_pool_tiled_backward"
        instance = instance_name(kind, self.element, w.kernel, w.stride, tile.cells, offset)
        scalars = (*sizes, *divisor(tile.row), *divisor(lines))
        return Launch("avg_pool_tiled", instance, grid_size(self.b, threads), scalars)

    def narrow(self, narrow: Narrow, bounds: list[np.int32]) -> Launch:
        """A kernel of avg_pool_narrow.cu: a thread a window, or a tile of x."""
        (offset, integer), lanes = self.offsets, max(1, narrow.lanes)
        tiles = None if self.forward else narrow.tiles(self.window)
        number = planes(self.window) * math.prod(tiles) if tiles else math.prod(self.window.out_shape)
        kind = "sum_pool_narrow" if self.forward else "sum_pool_narrow_backward"
        shape = (*narrow.kernels, narrow.stride, narrow.lanes, self.divisor is None)
        counts = (self.real, integer(number // lanes), *inner_of(self.window, integer, lanes))
        scalars = (*counts, *axes(self.window, places=tiles), *bounds)
        instance = instance_name(kind, self.element, *shape, offset)
        return Launch("avg_pool_narrow", instance, grid_size(self.b, number // lanes), scalars)

    def whole_planes(self, aligned_to: int) -> Launch:
        """A kernel of avg_pool_planes.cu; the array of whole planes is aligned to so many bytes. A plane gets so
        many warps that most of a thread's loads are needed."""
        offset, integer = self.offsets
        number, size, itemsize = planes(self.window), math.prod(self.window.kernel), int(self.dtype.itemsize)
        cells = PACK_BYTES // itemsize
        while size % cells or cells * itemsize > aligned_to:
            cells //= 2
        packs, at_once = size // cells, 8 if cells < 4 else 32 // cells  # avg_pool_planes.cu's U
        warps = next((w for w in (8, 4, 2) if packs >= 16 * w * at_once), 1)
        kind = "sum_planes" if self.forward else "fill_planes"
        instance = instance_name(kind, self.element, cells, warps, offset)
        sizes = (self.real, integer(number), np.int32(packs))
        return Launch("avg_pool_planes", instance, grid_size(self.b, 32 * warps * number), sizes)

    def whole_columns(self, aligned_to: int) -> Launch:
        """The same where channels are the last axis."""
        offset, integer = self.offsets
        shape, channels, itemsize = self.window.layout.shape, inner(self.window), int(self.dtype.itemsize)
        pack = PACK_BYTES // itemsize
        while channels % pack or pack * itemsize > aligned_to:
            pack //= 2
        samples, columns, depth = int(shape[0]), channels // pack, math.prod(self.window.kernel)
        if self.forward:
            width = lanes_of(columns)
            while width > 8 and samples * -(-columns // width) < 2 * device_of(self.b).multiprocessors:
                width //= 2  # 8 packs are 128 bytes
            instance = instance_name("pool_columns", self.element, pack, offset)
            sizes = (self.real, *map(np.uint32, (depth, columns, width)))
            return Launch("avg_pool_planes", instance, samples * -(-columns // width), sizes, THREADS)
        threads, plane = samples * depth * columns, depth * columns
        counts = (self.real, *map(integer, (threads, columns, plane)), *divisor(columns), *divisor(plane))
        instance = instance_name("fill_columns", self.element, pack, offset)
        return Launch("avg_pool_planes", instance, grid_size(self.b, threads), counts)

    def general(self, bounds: list[np.int32], aligned_to: int) -> Launch:
        """A kernel of avg_pool.cu."""
        (offset, integer), itemsize = self.offsets, int(self.dtype.itemsize)
        lanes = (32 if is_wide(self.window) else 1,) if self.forward else ()
        most = min(PACK_BYTES // itemsize, 8 if self.forward else 4)  # as registers are left for
        channels = pack_of(self.window, most, (aligned_to, itemsize))
        number = math.prod(self.window.out_shape if self.forward else self.window.layout.shape) // channels
        small = math.prod(self.window.kernel) < MAX_HALF_DIVISOR
        counted = np.int32(0 if self.divisor is not None else 1 if small else 2)
        counts = (self.real, counted, integer(number), *inner_of(self.window, integer, channels))
        kind = "sum_pool" if self.forward else "sum_pool_backward"
        instance = instance_name(kind, self.element, *lanes, channels, offset)
        places = axes(self.window, places=None if self.forward else cells_of(self.window))
        return Launch("avg_pool", instance, grid_size(self.b, number * math.prod(lanes)), (*counts, *places, *bounds))


# ------------------------------------------------------------------------------------------------------------ launches
def _run(b: Backend, spec: Any, part: str, array: Array) -> Array:
    """y of x, or dx of dy."""
    array = contiguous(b, array)
    plan = cached_plan(_make, b, spec, part, array.dtype, alignment(array))
    result = b.empty(plan.shape, array.dtype)
    if plan.launch is not None:
        plan.launch(array, result)
    return result
