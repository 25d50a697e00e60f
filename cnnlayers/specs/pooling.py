"""The windows of pools: max, average, sum and Lp pools, max unpooling, and adaptive pools."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

from .arguments import Layout, Shape, Ties, cached, choice, entries_of, flag, integer, layout, pairs, sizes
from .windows import (
    AdaptiveAxis,
    AdaptiveWindow,
    Axis,
    Window,
    check_has_cells,
    check_padding,
    effective,
    padding_of,
    window_of,
)


@cached
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
    check_has_cells(lay)
    pads = padding_of(padding, lay.lengths, kernel, strides, dilations)
    check_padding(pads, [effective(k, d) for k, d in zip(kernel, dilations, strict=True)])
    return window_of(lay, kernel, strides, dilations, pads, ceil)


@cached
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
    check_has_cells(lay)
    check_padding(pads, kernel)
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


@cached
def adaptive_window(shape: Shape, output_size: Any, data_format: str) -> AdaptiveWindow:
    """`output_size`: an int, or one per axis, None keeping that axis."""
    lay = layout(shape, data_format)
    check_has_cells(lay)
    entries = (None,) * len(lay.spatial) if output_size is None else entries_of(output_size, "output_size")
    if entries is None:
        entries = (output_size,) * len(lay.spatial)
    if len(entries) != len(lay.spatial):
        raise ValueError(f"output_size needs one entry per spatial axis ({len(lay.spatial)}), got {output_size!r}")
    out = [
        length if e is None else integer(e, "output_size", 1) for e, length in zip(entries, lay.lengths, strict=True)
    ]
    return AdaptiveWindow(lay, tuple(AdaptiveAxis(length, o) for length, o in zip(lay.lengths, out, strict=True)))


# ---------------------------------------------------------------------------------------------------------- max pooling
@dataclass(frozen=True)
class MaxPoolSpec:
    """A max pool: its windows, which of several equal maxima get the gradient, and whether indices are returned."""

    window: Window
    ties: Ties = "first"
    indices: bool = False


def max_pool_spec(
    shape: Shape,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    ties: Any,
    return_indices: bool,
    data_format: str,
) -> MaxPoolSpec:
    """The spec of `max_pool`'s arguments."""
    choice(ties, "ties", get_args(Ties))
    window = pool_window(shape, kernel_size, stride, padding, dilation, ceil_mode, data_format)
    return MaxPoolSpec(window, ties, flag(return_indices, "return_indices"))


@dataclass(frozen=True)
class Average:
    """An average pool: its windows, and what a window's sum is divided by."""

    window: Window
    include_pad: bool = True
    override: int | None = None


@dataclass(frozen=True)
class LpPool:
    """An Lp pool: its windows, its exponent, and whether cells are divided by their window's largest."""

    window: Window
    p: float
    scaled: bool
