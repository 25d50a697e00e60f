"""Convolutions and transposed convolutions: their windows, and the shapes of their parts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .arguments import Shape, cached, layout, pairs, sizes
from .windows import Axis, Window, check_has_cells, effective, padding_of, window_of

# For Winograd's form: channels and filters of a group, tiles of 4×4 windows, and windows in their cells, all at least.
# At 16 channels and a full cover it is 1.2 to 1.3 times as fast as direct loops, from 64 on 1.4 to 2, at 0.77 1.3; with
# fewer tiles the weight's transform takes longer than what it saves. With 256 channels and filters or fewer, 16 tiles
# are enough (1.03 to 1.9 times as fast). More need 32, and 48 for the weight's gradient.
LEAST_WINOGRAD, WINOGRAD_COVER = 16, 0.9
WINOGRAD_TILES, WINOGRAD_WEIGHT, TILES_OF_LARGE = 16, 1 << 16, (32, 48)
MANY_CHANNELS, COVER_OF_MANY = 48, 0.7  # of more channels and filters fewer windows will do
DIRECT_POINTWISE = 16  # filters, at least, for which direct loops compute a 1×1 kernel
SMALL_POINTWISE = 300_000  # flops, below which they always do: to switch BLAS to one thread takes 10 to 25 µs
LEAST_RUN = 16  # channels that are neighbours in memory: fewer are not worth copying together
ALL = slice(None)


@dataclass(frozen=True)
class Conv:
    """A convolution from an image to its maps. `window`: on the image; `filters`: the maps' channels.

    A *split* array of either has its channel axis split into (groups, channels of a group).
    """

    window: Window
    filters: int
    groups: int

    @property
    def ndim(self) -> int:
        return len(self.window.axes)

    @property
    def channels(self) -> int:
        """The image's."""
        return self.window.layout.channels

    @functools.cached_property
    def last(self) -> bool:
        """Whether channels are the last axis."""
        return self.window.layout.channel > 1

    @functools.cached_property
    def maps_shape(self) -> Shape:
        return self.window.layout.with_spatial(self.window.out_lengths, self.filters)

    @functools.cached_property
    def weight_shape(self) -> Shape:
        """The weight by group: (groups, filters of a group, channels of a group, taps)."""
        taps = math.prod(self.window.kernel)
        return (self.groups, self.filters // self.groups, self.channels // self.groups, taps)

    @functools.cached_property
    def channels_contiguous(self) -> bool:
        """Whether a tap's channels are neighbours in the columns: rows are (tap, channel), stored cell by cell. Else
        they are (channel, tap), so that a weight need not be permuted."""
        return self.last and self.weight_shape[2] >= LEAST_RUN

    @functools.cached_property
    def empty(self) -> bool:
        """Nothing to multiply: no samples, or no channels on one side."""
        return 0 in self.window.layout.shape or self.filters == 0

    @functools.cached_property
    def depthwise(self) -> bool:
        """One channel a group, and few filters: too little for matrix products."""
        _, filters, channels, _ = self.weight_shape
        return self.groups > 1 and channels == 1 and filters <= 4

    @functools.cached_property
    def pointwise(self) -> bool:
        """A 1×1 kernel that reads every cell once: the columns are the image."""
        return all(a.kernel == a.stride == 1 and a.before == 0 and a.out == a.length for a in self.window.axes)

    @functools.cached_property
    def winograd(self) -> tuple[str, ...]:
        """The steps for which Winograd's form fits and pays, which needs float32 and a kernel too: two spatial axes,
        3×3, stride and dilation 1, channels first, and enough channels and tiles."""
        fits = self.ndim == 2 and all(a.kernel == 3 and a.stride == a.dilation == 1 for a in self.window.axes)
        _, filters, channels, _ = self.weight_shape
        if not fits or self.last or min(filters, channels) < LEAST_WINOGRAD:
            return ()
        windows, tiles = self.window.out_lengths, math.prod(-(-n // 4) for n in self.window.out_lengths)
        cover = COVER_OF_MANY if min(filters, channels) >= MANY_CHANNELS else WINOGRAD_COVER
        if math.prod(windows) < cover * 16 * tiles:
            return ()
        tiles *= self.window.layout.shape[0]
        maps, gradient = TILES_OF_LARGE if filters * channels > WINOGRAD_WEIGHT else (WINOGRAD_TILES, WINOGRAD_TILES)
        return ("correlate", "correlate_adjoint") * (tiles >= maps) + ("weight_gradient",) * (tiles >= gradient)

    def targets(self, step: str) -> int:
        """The filters of a group; for "correlate_adjoint", its channels."""
        return self.weight_shape[2 if step == "correlate_adjoint" else 1]

    @functools.cached_property
    def terms(self) -> dict[str, int]:
        """The longest sum in the array's dtype of each function of correlation.py. (Direct loops add up the sums of a
        weight's gradient in float64.)"""
        _, filters, channels, taps = self.weight_shape
        overlap = math.prod(a.overlap for a in self.window.axes)
        return {"correlate": channels * taps, "correlate_adjoint": filters * overlap, "weight_gradient": 0}

    @functools.cached_property
    def flops(self) -> float:
        """Of any of the three functions: multiplications and additions."""
        windows = self.window.layout.shape[0] * math.prod(self.window.out_lengths)
        return 2.0 * windows * self.filters * self.weight_shape[2] * math.prod(self.window.kernel)

    def split(self, shape: Shape) -> Shape:
        """The shape of a split array."""
        at = self.window.layout.channel
        return (*shape[:at], self.groups, shape[at] // self.groups, *shape[at + 1 :])

    def at(self, samples: slice, spatial: Sequence[slice]) -> tuple[slice, ...]:
        """These samples and cells of a split array."""
        return (samples, *spatial, ALL, ALL) if self.last else (samples, ALL, ALL, *spatial)


@functools.lru_cache(maxsize=256)  # a limit on their number is enough: results have a fixed size
def interned(spec: Conv) -> Conv:
    """The first one equal to this: what it has worked out of itself serves later calls."""
    return spec


@cached
def conv_window(shape: Shape, kernel: Shape, stride: Any, padding: Any, dilation: Any, data_format: str) -> Window:
    """The window of a convolution whose weight has the spatial sizes `kernel`."""
    lay = layout(shape, data_format)
    ndim = len(lay.spatial)
    strides, dilations = sizes(stride, ndim, "stride"), sizes(dilation, ndim, "dilation")
    check_has_cells(lay)
    pads = padding_of(padding, lay.lengths, kernel, strides, dilations)
    return window_of(lay, kernel, strides, dilations, pads, False)


@cached
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
    check_has_cells(lay)
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
