"""The windows of convolutions and transposed convolutions."""

from __future__ import annotations

from typing import Any

from .arguments import Shape, cached, layout, pairs, sizes
from .windows import Axis, Window, check_has_cells, effective, padding_of, window_of


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
