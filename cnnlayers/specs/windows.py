"""Windows on the spatial axes, as integers: which cells a window reads, which windows read a cell.

One output-length rule serves every windowed op. With the effective kernel e = dilation * (kernel - 1) + 1,
    out = floor((length + before + after - e) / stride) + 1,
ceil mode rounds up instead, and drops the last window unless it starts inside the input or its left padding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from .arguments import Layout, Pair, Shape, pairs


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

    @property
    def overlap(self) -> int:
        """The most windows that can lie over one cell."""
        return min(self.out, -(-self.kernel * math.gcd(self.stride, self.dilation) // self.stride))


def taps(axis: Axis, *, backwards: bool = False) -> Iterator[tuple[int, slice, slice]]:
    """`(tap, windows, cells)` for each tap that meets the input, the last tap first if `backwards`: the windows it does
    so in, and the cells it then reads.

    No padded copy of the input is needed: out[windows] sees x[cells].
    """
    for tap in _taps_inside(axis, backwards):
        offset = tap * axis.dilation - axis.before
        first = max(0, -(offset // axis.stride))
        last = min(axis.out - 1, (axis.length - 1 - offset) // axis.stride)
        if first <= last:
            start = first * axis.stride + offset
            stop = last * axis.stride + offset + 1
            yield tap, slice(first, last + 1), slice(start, stop, axis.stride)


def _taps_inside(axis: Axis, backwards: bool) -> Iterable[int]:
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
    def overlap(self) -> int:
        """The most windows that can lie over one cell."""
        return self.adjoint.kernel

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
        """Each spatial axis: its number among the array's axes (`dim` in the portable code), and its windows."""
        return tuple(zip(self.layout.spatial, self.axes, strict=True))

    @property
    def out_lengths(self) -> Shape:
        return tuple(a.out for a in self.axes)

    @cached_property
    def out_shape(self) -> Shape:  # every pool asks for it twice
        return self.layout.with_spatial(self.out_lengths)

    @cached_property
    def overlap(self) -> int:
        """The most windows that can lie over one cell."""
        return math.prod(a.overlap for a in self.axes)

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


def windows_of(spec: Any) -> Any:
    """The windows of a pool's or convolution's spec, which is a window itself or has one; a Pad as it is."""
    return getattr(spec, "window", spec)


def with_layout(spec: Any, layout: Layout) -> Any:
    """The same spec for an array of another layout."""
    found = replace(windows_of(spec), layout=layout)
    return replace(spec, window=found) if hasattr(spec, "window") else found


def argmax_dtype_name(kernel: Sequence[int]) -> str:
    """The smallest unsigned dtype that holds a place in a window of this kernel."""
    taps = math.prod(kernel)
    return next((f"uint{bits}" for bits in (8, 16, 32) if taps <= 2**bits), "uint64")


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


def padding_of(value: Any, lengths: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> tuple[Pair, ...]:
    """The padding of each axis from numbers or one of the names: "same" and "same_lower" give ceil(length / stride)
    windows with the least padding, "full" every window that reads a cell."""
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


def check_padding(pads: Sequence[Pair], reach: Sequence[int]) -> None:
    """ValueError where a side's padding is not smaller than the effective kernel."""
    for pad, cells in zip(pads, reach, strict=True):
        if max(pad) >= cells:
            raise ValueError(f"padding must be smaller than the effective kernel ({cells} cells), got {pad}")


def check_has_cells(lay: Layout) -> None:
    """ValueError where a spatial axis has length 0."""
    if 0 in lay.lengths:
        raise ValueError(f"x has a spatial axis without cells: shape {lay.shape}")


def window_of(
    lay: Layout, kernel: Shape, stride: Shape, dilation: Shape, pads: tuple[Pair, ...], ceil_mode: bool
) -> Window:
    """The window of an op on this layout. ValueError where it is larger than the padded input."""
    axes = []
    for length, k, s, d, pad in zip(lay.lengths, kernel, stride, dilation, pads, strict=True):
        out = out_length(length, k, s, d, pad, ceil_mode)
        axes.append(Axis(length, out, k, s, d, *pad))
    return Window(lay, tuple(axes))
