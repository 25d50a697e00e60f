"""Convolution layers. The weight is PyTorch's: (out, in / groups, *kernel), transposed (in, out / groups, *kernel)."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

from cnnlayers import functional as F
from cnnlayers.functional.arrays import Array
from cnnlayers.specs import conv_window
from cnnlayers.specs.arguments import DataFormat, Padding, Size, choice, entries_of, flag, grouped, integer, sizes

from .base import Layer, generator, shape_of, uniform
from .sizes import check_format, check_window

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]


def spatial_axes(kernel_size: Size, ndim: int | None) -> int:
    """The number of spatial axes that a convolution is made for."""
    entries = entries_of(kernel_size, "kernel_size")
    axes = integer(ndim, "ndim", 1) if ndim is not None else 2 if entries is None else len(entries)
    if not 1 <= axes <= 3:
        raise ValueError(f"a convolution has one to three spatial axes, got {axes} (kernel_size {kernel_size!r})")
    return axes


class _Conv(Layer):
    """A weight and a bias for `ndim` spatial axes: an int kernel has two unless `ndim` says otherwise."""

    complex_weights = True

    def _set(
        self, channels: tuple[int, int], kernel_size: Size, groups: int, bias: bool, ndim: int | None, data_format: Any
    ) -> None:
        """Check and set what both convolutions have. `channels`: those of x and y."""
        self.in_channels = integer(channels[0], "in_channels", 0)
        self.out_channels = integer(channels[1], "out_channels", 0)
        self.groups = grouped(self.in_channels, groups, "groups")
        grouped(self.out_channels, groups, "groups")
        self.kernel_size, self.bias, self.ndim = kernel_size, flag(bias, "bias"), ndim
        self.data_format = check_format(data_format)

    def _set_weights(self, first: int, second: int, rng: Any) -> None:
        """A new weight (first, second, *kernel), and a bias where there is one."""
        kernel = sizes(self.kernel_size, spatial_axes(self.kernel_size, self.ndim), "kernel_size")
        fan_in, source = math.prod((second, *kernel)), generator(rng)
        self.own_params["weight"] = uniform(source, (first, second, *kernel), fan_in)
        if self.bias and self.out_channels:
            self.own_params["bias"] = uniform(source, (self.out_channels,), fan_in)


class Conv(_Conv, op="conv"):
    """Convolution (cross-correlation); see `functional.conv`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and F, the channels of x and y.
    kernel_size, stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full".
    groups : int
        x's channels and the filters are divided into this many groups.
    bias : bool
        Whether the layer has a bias, (F,).
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the padding holds.
    ndim : int or None
        The number of spatial axes where kernel_size is an int: 2 by default.
    rng : None, int or numpy.random.Generator
        What the initial weights are drawn from.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.conv`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, F,
    *windows). The weight is (F, C / groups, *kernel). New weights and biases are uniform within ±1 / sqrt(C / groups *
    taps), as PyTorch's.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Conv
    >>> Conv(3, 16, 3, padding="same")(np.zeros((8, 3, 32, 32), np.float32)).shape
    (8, 16, 32, 32)

    References
    ----------
    torch.nn.Conv2d
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        ndim: int | None = None,
        rng: Any = None,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self._set((in_channels, out_channels), kernel_size, groups, bias, ndim, data_format)
        choice(padding_mode, "padding_mode", PADDING_MODES)
        self.stride, self.padding, self.dilation, self.padding_mode = stride, padding, dilation, padding_mode
        check_window(spatial_axes(kernel_size, ndim), stride=stride, padding=padding, dilation=dilation)
        self._set_weights(self.out_channels, self.in_channels // self.groups, rng)

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        padding, pad_ctx = self.padding, None
        if self.padding_mode != "zeros":
            kernel = tuple(self.own_params["weight"].shape[2:])
            window = conv_window(shape_of(x), kernel, self.stride, self.padding, self.dilation, self.data_format)
            around = tuple((axis.before, axis.after) for axis in window.axes)
            x, pad_ctx = F.pad_forward(x, around, self.padding_mode, data_format=self.data_format)
            padding = 0
        y, ctx = self._call_op(x, padding=padding)
        return y, (pad_ctx, ctx)

    def compute_backward(self, dy: Array, ctx: Any) -> Array:
        pad_ctx, conv_ctx = ctx
        dx = super().compute_backward(dy, conv_ctx)
        return dx if pad_ctx is None or dx is None else F.pad_backward(dx, pad_ctx)


class ConvTranspose(_Conv, op="conv_transpose"):
    """Transposed convolution, the adjoint of a convolution; see `functional.conv_transpose`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and F, the channels of x and y.
    kernel_size, stride, output_padding, dilation : int or sequence of int
        In cells, an int or one per spatial axis.
    padding : int, sequence of int or of pairs
        Cells that are cut off y: an int, one per axis or a (before, after) pair per axis.
    groups : int
        x's channels and the filters are divided into this many groups.
    bias : bool
        Whether the layer has a bias, (F,).
    padding_mode : {"zeros"}
        PyTorch's; the order of the arguments is, too, dilation after bias.
    ndim : int or None
        The number of spatial axes where kernel_size is an int: 2 by default.
    rng : None, int or numpy.random.Generator
        What the initial weights are drawn from.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.conv_transpose`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, F,
    *out). The weight is (C, F / groups, *kernel). New weights and biases are uniform within ±1 / sqrt(F / groups *
    taps), as PyTorch's.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import ConvTranspose
    >>> ConvTranspose(16, 3, 2, stride=2)(np.zeros((8, 16, 8, 8), np.float32)).shape
    (8, 3, 16, 16)

    References
    ----------
    torch.nn.ConvTranspose2d
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        *,
        ndim: int | None = None,
        rng: Any = None,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self._set((in_channels, out_channels), kernel_size, groups, bias, ndim, data_format)
        if not isinstance(padding_mode, str) or padding_mode != "zeros":
            raise ValueError(f"padding_mode of a transposed convolution must be 'zeros', got {padding_mode!r}")
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.output_padding, self.padding_mode = output_padding, padding_mode
        sizes_given = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        check_window(spatial_axes(kernel_size, ndim), named=False, **sizes_given)
        self._set_weights(self.in_channels, self.out_channels // self.groups, rng)
