"""Arguments and shapes: every size is checked, and every output shape worked out, here and nowhere else.

A spec is a frozen dataclass of plain integers: it needs no array library, is made before anything is computed, and is
what a context keeps. Spatial sizes are named by axis; `x` is (N, C, *spatial) in "channels_first" and (N, *spatial, C)
in "channels_last".

One output-shape rule serves every windowed op. With the effective kernel e = dilation * (kernel - 1) + 1,
    out = floor((length + before + after - e) / stride) + 1,
ceil mode rounds up instead, and drops the last window unless it starts inside the input or its left padding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from .arguments import Layout, Pair, Shape, entries_of, flag, integer, layout, pairs, remembered, sizes


# ------------------------------------------------------------------------------------------------------- windowed axes
@dataclass(frozen=True)
class Axis:
    """One axis of a windowed op: window o's tap j reads input cell o * stride + j * dilation - before, if there is one.

    `length`: input cells; `out`: windows; `after`: declared padding behind (ceil mode may overhang it).
    """

    length: int
    out: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    @property
    def disjoint(self) -> bool:
        """No input cell is under two taps."""
        return self.stride >= self.dilation * (self.kernel - 1) + 1

    @property
    def whole(self) -> bool:
        """Every tap of every window is inside the input."""
        return self.whole_with(0, 0)

    def whole_with(self, before: int, after: int) -> bool:
        """Every tap of every window is inside the input, or inside so many cells before and behind it."""
        last = (self.out - 1) * self.stride + self.dilation * (self.kernel - 1) - self.before
        return self.before <= before and last < self.length + after


def taps(axis: Axis, *, backwards: bool = False) -> Iterator[tuple[int, slice, slice]]:
    """`(tap, windows, cells)` for each tap that meets the input, the last tap first if `backwards`: the windows it does
    so in, and the cells it then reads.

    No padded copy of the input is needed: out[windows] sees x[cells].
    """
    for tap in _met_taps(axis, backwards):
        offset = tap * axis.dilation - axis.before
        first = max(0, -(offset // axis.stride))
        last = min(axis.out - 1, (axis.length - 1 - offset) // axis.stride)
        if first <= last:
            start = first * axis.stride + offset
            stop = last * axis.stride + offset + 1
            yield tap, slice(first, last + 1), slice(start, stop, axis.stride)


def _met_taps(axis: Axis, backwards: bool) -> Iterable[int]:
    """The taps in order, without those at the ends that see padding in every window. Where the windows are fewer than
    the taps and a stride passes over the whole input, only the taps that meet it: no two windows share one then."""
    low = max(0, -((axis.before - (axis.out - 1) * axis.stride) // -axis.dilation))
    high = min(axis.kernel, -((axis.before + axis.length) // -axis.dilation))
    if axis.stride < axis.length or high - low <= axis.out:
        return range(high - 1, low - 1, -1) if backwards else range(low, high)
    windows = range(axis.out) if backwards else range(axis.out - 1, -1, -1)
    starts = (axis.before - window * axis.stride for window in windows)
    spans = (range(max(low, -(s // -axis.dilation)), min(high, -((s + axis.length) // -axis.dilation))) for s in starts)
    return itertools.chain.from_iterable(reversed(span) if backwards else span for span in spans)


def window_taps(
    axes: Sequence[Axis], *, backwards: bool = False
) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """`(place, windows, cells)` for each tap of a window on all axes that meets the input: its place in C order, and on
    each axis the windows and the cells of `taps`. In C order, or `backwards`."""
    if not axes:
        yield 0, (), ()
        return
    for place, windows, cells in window_taps(axes[:-1], backwards=backwards):
        for tap, some, under in taps(axes[-1], backwards=backwards):
            yield place * axes[-1].kernel + tap, (*windows, some), (*cells, under)


@dataclass(frozen=True)
class AdaptiveAxis:
    """One axis of an adaptive pool: window o is the cells floor(o * length / out) to ceil((o + 1) * length / out)."""

    length: int
    out: int

    @property
    def kernel(self) -> int:
        """Cells of the widest window."""
        rest = self.length % self.out  # a window begins o * rest / out cells after o * (length // out)
        return self.narrowest + (rest > 0 and self.out % rest > 0)

    @property
    def narrowest(self) -> int:
        """Cells of the narrowest window."""
        return -(self.length // -self.out)

    def cells(self, window: int) -> slice:
        """The cells of one window."""
        return slice(window * self.length // self.out, -((window + 1) * self.length // -self.out))

    @property
    def adjoint(self) -> AdaptiveAxis:
        """The windows over each cell, as windows of their own: cell c is under those from floor(c * out / length) to
        ceil((c + 1) * out / length)."""
        return AdaptiveAxis(self.out, self.length)


A = TypeVar("A", Axis, AdaptiveAxis)


@dataclass(frozen=True)
class Windows(Generic[A]):
    """A windowed op on an array: the array's layout, and what the windows are on each spatial axis."""

    layout: Layout
    axes: tuple[A, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # every call looks something up by its windows
        return hash((self.layout, self.axes))

    @property
    def placed(self) -> tuple[tuple[int, A], ...]:
        """Each spatial axis: its place among the array's axes, and its windows."""
        return tuple(zip(self.layout.spatial, self.axes, strict=True))

    @property
    def out_lengths(self) -> Shape:
        return tuple(a.out for a in self.axes)

    @property
    def out_shape(self) -> Shape:
        return self.layout.with_spatial(self.out_lengths)

    @property
    def kernel(self) -> Shape:
        return tuple(a.kernel for a in self.axes)


class Window(Windows[Axis]):
    """Windows of one size, a stride apart: an ordinary pool or convolution."""


class AdaptiveWindow(Windows[AdaptiveAxis]):
    """Windows that share an axis out evenly: an adaptive pool."""

    def regular(self) -> Window | None:
        """The same windows as an ordinary pool's, where the lengths divide; None where they do not."""
        if any(a.length % a.out for a in self.axes):
            return None
        axes = [Axis(a.length, a.out, a.length // a.out, a.length // a.out) for a in self.axes]
        return Window(self.layout, tuple(axes))


def effective(kernel: int, dilation: int) -> int:
    """Cells from a window's first tap to its last."""
    return dilation * (kernel - 1) + 1


def out_length(length: int, kernel: int, stride: int, dilation: int, pad: Pair, ceil_mode: bool) -> int:
    """The one output-length rule (module docstring). ValueError for a window larger than the padded input."""
    room = length + sum(pad) - effective(kernel, dilation)
    if room < 0:
        raise ValueError(
            f"the window covers {effective(kernel, dilation)} cells (kernel_size {kernel}, dilation {dilation}), more"
            f" than the padded input has: {length} + padding {pad}"
        )
    out = room // stride + 1
    if ceil_mode and room % stride and out * stride < length + pad[0]:
        out += 1
    return out


def _padding(value: Any, lengths: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> tuple[Pair, ...]:
    if not isinstance(value, str):
        return pairs(value, len(lengths), "padding")
    if value == "valid":
        return ((0, 0),) * len(lengths)
    if value == "full":
        return tuple((effective(k, d) - 1,) * 2 for k, d in zip(kernel, dilation, strict=True))
    if value not in ("same", "same_lower"):
        raise ValueError(f"padding must be numbers, 'valid', 'same', 'same_lower' or 'full', got {value!r}")
    found = []
    for length, k, s, d in zip(lengths, kernel, stride, dilation, strict=True):
        total = max((-(-length // s) - 1) * s + effective(k, d) - length, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if value == "same" else (large, small))
    return tuple(found)


def _check_sides(pads: Sequence[Pair], reach: Sequence[int]) -> None:
    for pad, cells in zip(pads, reach, strict=True):
        if max(pad) >= cells:
            raise ValueError(f"padding must be smaller than the effective kernel ({cells} cells), got {pad}")


def _cells(lay: Layout) -> None:
    if 0 in lay.lengths:
        raise ValueError(f"x has a spatial axis without cells: shape {lay.shape}")


@remembered
def pool_window(
    shape: Shape, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, data_format: str
) -> Window:
    """The window of a pool: stride None is the kernel's size; a side's padding is smaller than the effective kernel."""
    lay = layout(shape, data_format)
    ndim = len(lay.spatial)
    kernel = sizes(kernel_size, ndim, "kernel_size")
    if math.prod(kernel) >= 2**63:
        raise ValueError(f"kernel_size must have fewer than 2**63 taps in all, got {kernel}")
    strides = kernel if stride is None else sizes(stride, ndim, "stride")
    dilations = sizes(dilation, ndim, "dilation")
    ceil = flag(ceil_mode, "ceil_mode")
    _cells(lay)
    pads = _padding(padding, lay.lengths, kernel, strides, dilations)
    _check_sides(pads, [effective(k, d) for k, d in zip(kernel, dilations, strict=True)])
    return _window(lay, kernel, strides, dilations, pads, ceil)


@remembered
def conv_window(shape: Shape, kernel: Shape, stride: Any, padding: Any, dilation: Any, data_format: str) -> Window:
    """The window of a convolution whose weight has the spatial sizes `kernel`."""
    lay = layout(shape, data_format)
    ndim = len(lay.spatial)
    strides, dilations = sizes(stride, ndim, "stride"), sizes(dilation, ndim, "dilation")
    _cells(lay)
    return _window(lay, kernel, strides, dilations, _padding(padding, lay.lengths, kernel, strides, dilations), False)


def _window(
    lay: Layout, kernel: Shape, stride: Shape, dilation: Shape, pads: tuple[Pair, ...], ceil_mode: bool
) -> Window:
    axes = []
    for length, k, s, d, pad in zip(lay.lengths, kernel, stride, dilation, pads, strict=True):
        out = out_length(length, k, s, d, pad, ceil_mode)
        axes.append(Axis(length, out, k, s, d, *pad))
    return Window(lay, tuple(axes))


@remembered
def transposed_window(
    shape: Shape,
    kernel: Shape,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    data_format: str,
    channels: int,
) -> Window:
    """The window of the convolution that `conv_transpose` is the adjoint of: its *input* is conv_transpose's output.

    `shape` is the shape of conv_transpose's input x, `channels` the number of its output channels.
    """
    lay = layout(shape, data_format)
    ndim = len(lay.spatial)
    strides, dilations = sizes(stride, ndim, "stride"), sizes(dilation, ndim, "dilation")
    if isinstance(padding, str):
        raise ValueError(f"padding of a transposed convolution must be numbers, got {padding!r}")
    pads = pairs(padding, ndim, "padding")
    extra = sizes(output_padding, ndim, "output_padding", 0)
    _cells(lay)
    axes = []
    for length, k, s, d, pad, more in zip(lay.lengths, kernel, strides, dilations, pads, extra, strict=True):
        if more >= max(s, d):
            raise ValueError(f"output_padding must be smaller than stride or dilation ({s}, {d}), got {more}")
        size = (length - 1) * s + effective(k, d) + more - sum(pad)
        if size < 1:
            raise ValueError(f"padding {pad} leaves an output axis of {size} cells for an input axis of {length}")
        axes.append(Axis(size, length, k, s, d, *pad))
    out = layout(lay.with_spatial([a.length for a in axes], channels), data_format)
    return Window(out, tuple(axes))


@remembered
def unpool_window(
    shape: Shape, kernel_size: Any, stride: Any, padding: Any, output_size: Any, data_format: str
) -> Window:
    """The window of the pool that `max_unpool` undoes: its input is max_unpool's output."""
    lay = layout(shape, data_format)
    ndim = len(lay.spatial)
    kernel = sizes(kernel_size, ndim, "kernel_size")
    strides = kernel if stride is None else sizes(stride, ndim, "stride")
    if isinstance(padding, str):
        raise ValueError(f"padding of max_unpool must be numbers, got {padding!r}")
    pads = pairs(padding, ndim, "padding")
    _cells(lay)
    _check_sides(pads, kernel)
    natural = [(o - 1) * s - sum(pad) + k for o, k, s, pad in zip(lay.lengths, kernel, strides, pads, strict=True)]
    out = natural if output_size is None else _unpool_size(output_size, natural, strides, lay)
    if min(out) < 1:
        raise ValueError(f"padding {padding!r} leaves an output of {tuple(out)} cells")
    axes = [
        Axis(size, o, k, s, 1, *pad) for size, o, k, s, pad in zip(out, lay.lengths, kernel, strides, pads, strict=True)
    ]
    return Window(layout(lay.with_spatial(out), data_format), tuple(axes))


def _unpool_size(value: Any, natural: list[int], stride: Shape, lay: Layout) -> list[int]:
    entries = entries_of(value, "output_size")
    if entries is not None and len(entries) == len(lay.shape):  # the whole shape, as PyTorch also takes
        value = [entries[a] for a in lay.spatial]
        if lay.with_spatial([int(v) for v in value]) != entries:
            raise ValueError(f"output_size {entries} has another batch or channel size than x: {lay.shape}")
    out = list(sizes(value, len(natural), "output_size"))
    for size, middle, s in zip(out, natural, stride, strict=True):
        if abs(size - middle) >= s:
            raise ValueError(
                f"output_size must be within a stride of {tuple(natural)} (from {middle - s + 1} to {middle + s - 1}"
                f" where it is {middle}), got {tuple(out)}"
            )
    return out


# ---------------------------------------------------------------------------------------------------- adaptive windows
@remembered
def adaptive_window(shape: Shape, output_size: Any, data_format: str) -> AdaptiveWindow:
    """`output_size`: an int, or one per axis, None keeping that axis."""
    lay = layout(shape, data_format)
    _cells(lay)
    entries = (None,) * len(lay.spatial) if output_size is None else entries_of(output_size, "output_size")
    if entries is None:
        entries = (output_size,) * len(lay.spatial)
    if len(entries) != len(lay.spatial):
        raise ValueError(f"output_size needs one entry per spatial axis ({len(lay.spatial)}), got {output_size!r}")
    out = [
        length if e is None else integer(e, "output_size", 1) for e, length in zip(entries, lay.lengths, strict=True)
    ]
    return AdaptiveWindow(lay, tuple(AdaptiveAxis(length, o) for length, o in zip(lay.lengths, out, strict=True)))
