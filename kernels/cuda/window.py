"""The windows of a pool or convolution as arguments of window.cuh: those of a Window or of an AdaptiveWindow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .launch import PACK_BYTES, divisor

# window.cuh computes with twice an axis's padded length, as ints.
MAX_LENGTH = 2**30
WIDE_ROW = 32  # the fewest taps of a row for which one warp computes one window
TILED_WINDOWS = ((2, 2), (3, 1), (3, 2))  # (kernel, stride) that the tiled kernels are compiled for
MAX_SUMS = 32  # of gradients that a thread of the narrow kernels keeps
MISSING = (1, 1, 1, 1, 1, 0)  # the sizes of a missing axis


def axes_of(window: Any) -> tuple[Any, ...]:
    """The spatial axes, the first of three None where there are fewer."""
    return (None,) * (3 - len(window.axes)) + tuple(window.axes)


def axes(window: Any, *, places: Sequence[int] | None = None, line: bool = False) -> list[Any]:
    """The arguments AXES of window.cuh, AXIS for each axis. `places`: what threads are numbered by on each axis, the
    windows if it is None; `line`: a window that is its whole plane becomes one of a single axis, since its cells and
    taps are in the same order."""
    sizes = [_axis(axis) for axis in axes_of(window)]
    if line and is_plane(window):
        cells = math.prod(window.kernel)
        sizes = [MISSING, MISSING, (cells, 1, cells, 1, 1, 0)]
    found: list[Any] = []
    for axis, number in zip(sizes, places or [axis[1] for axis in sizes], strict=True):
        found += [*map(np.int32, axis), *divisor(axis[3] or max(1, axis[1])), np.uint32(number), *divisor(number)]
    return found


def cells_of(window: Any) -> list[int]:
    """The cells of each of the three axes, as `axes` takes them."""
    return [axis.length if axis else 1 for axis in axes_of(window)]


def inner_of(window: Any, integer: Any, lanes: int = 1) -> tuple[Any, ...]:
    """The arguments INNER of window.cuh, in packs of `lanes` channels; `integer`: the type of offsets."""
    packs = inner(window) // lanes
    return integer(packs), *divisor(packs)


def is_wide(window: Any) -> bool:
    """Whether the windows have rows long enough for a warp, of contiguous cells."""
    row = math.prod(window.kernel) if is_plane(window) else window.kernel[-1]
    return bool(inner(window) == 1 and row >= WIDE_ROW)


def _axis(axis: Any) -> tuple[int, ...]:
    """length, out, kernel, stride (0: adaptive), dilation, before. An unused stride or dilation is 1, so that nothing
    overflows."""
    if axis is None:
        return MISSING
    if not hasattr(axis, "stride"):  # adaptive
        return axis.length, axis.out, axis.kernel, 0, 1, 0
    stride = axis.stride if axis.out > 1 else 1
    dilation = axis.dilation if axis.kernel > 1 else 1
    return axis.length, axis.out, axis.kernel, stride, dilation, axis.before


def is_adaptive(window: Any) -> bool:
    """Whether windows differ in size, as AdaptiveWindow's do."""
    return not hasattr(window.axes[0], "stride")


def inner(window: Any) -> int:
    """Elements from one cell to the next: the channels if they are the last axis, else 1."""
    layout = window.layout
    return 1 if layout.channel == 1 else int(layout.channels)


def is_plane(window: Any) -> bool:
    """Whether every window is its whole plane, without padding."""
    return not is_adaptive(window) and all(a.out == 1 and a.whole and a.kernel == a.length for a in window.axes)


class Tile(NamedTuple):
    """How the tiled kernels divide an array: packs of `cells` cells (C), `row` packs a row, rows of `planes` planes."""

    cells: int
    row: int
    planes: int


def tile_of(window: Any, itemsize: int, wide: int, *narrow: tuple[int, int]) -> Tile | None:
    """The widest packs, at most 16 bytes, that are aligned in an array of cells that is aligned to `wide` bytes, and in
    arrays of windows of (alignment, itemsize). None if the tiled kernels do not serve these windows. New arrays need
    not be named: they always are aligned."""
    if is_adaptive(window) or len(window.axes) != 2 or inner(window) > 1:
        return None
    h, w = window.axes
    same = (h.kernel, h.stride, h.dilation, h.before) == (w.kernel, w.stride, 1, w.before) and w.dilation == 1
    fits = w.before == (w.kernel - w.stride + 1) // 2 and w.out * w.stride == w.length
    if not (same and fits and (w.kernel, w.stride) in TILED_WINDOWS):
        return None
    size = PACK_BYTES // itemsize
    while w.length % size or size * itemsize > wide or any(size // w.stride * n > aligned for aligned, n in narrow):
        size //= 2
    return Tile(size, w.length // size, planes(window)) if size > 1 else None


class Narrow(NamedTuple):
    """The windows of window_narrow.cuh: kernels KD, KH, KW, stride S and lanes L, its template arguments."""

    kernels: tuple[int, int, int]
    stride: int
    lanes: int

    def tiles(self, window: Any) -> list[int]:
        """Of each axis, as `axes` takes them."""
        pairs = zip(axes_of(window), self.kernels, strict=True)
        return [-(-(axis.length + axis.before) // (self.stride if k > 1 else 1)) if axis else 1 for axis, k in pairs]


def narrow_of(window: Any, itemsize: int, *arrays: tuple[int, int], sums: int = MAX_SUMS) -> Narrow | None:
    """How the narrow kernels serve these windows, or None; `arrays`: (alignment, itemsize) of those that come in;
    `sums`: the most gradients that a thread may keep."""
    pooled = [a for a in axes_of(window) if a and (a.kernel, a.length) != (1, a.out)]
    if is_adaptive(window) or not pooled or any((a.dilation, a.stride) != (1, pooled[0].stride) for a in pooled):
        return None
    if any((a.kernel, a.stride) not in TILED_WINDOWS for a in pooled):
        return None
    kernels = tuple(a.kernel if a in pooled else 1 for a in axes_of(window))
    stride = pooled[0].stride
    lanes = pack_of(window, min(PACK_BYTES // itemsize, sums // stride ** len(pooled)), *arrays)
    return Narrow(kernels, stride, lanes if inner(window) > 1 else 0)  # type: ignore[arg-type]


def pack_of(window: Any, lanes: int, *arrays: tuple[int, int]) -> int:
    """The widest packs of neighbouring channels, at most `lanes`, in arrays of (alignment, itemsize)."""
    while inner(window) % lanes or any(lanes * n > aligned for aligned, n in arrays):
        lanes //= 2
    return lanes


def planes(window: Any) -> int:
    """Spatial planes of the array, one for each sample and channel."""
    return int(window.layout.shape[0] * window.layout.channels)


def too_large(window: Any) -> str | None:
    """Why these windows are too large for window.cuh's arithmetic, or None."""
    for axis in window.axes:
        cells = max(axis.length, axis.out) + getattr(axis, "before", 0) + getattr(axis, "after", 0)
        if cells >= MAX_LENGTH:
            return f"an axis of {cells} cells, padding included; kernels take fewer than {MAX_LENGTH}"
    taps = math.prod(window.kernel)
    return f"windows of {taps} taps; kernels take fewer than {MAX_LENGTH}" if taps >= MAX_LENGTH else None
