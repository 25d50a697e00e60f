"""Convolution layers. The weight is PyTorch's: (out, in / groups, *kernel), transposed (in, out / groups, *kernel)."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from cnnlayers import functional as F
from cnnlayers.functional._common import Array
from cnnlayers.specs import conv_window
from cnnlayers.specs.arguments import DataFormat, Padding, Size, choice, entries_of, flag, grouped, integer, sizes

from .base import Layer, generator, shape_of, uniform

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]


class _Conv(Layer):
    """A weight and a bias for `ndim` spatial axes: an int kernel has two unless `ndim` says otherwise."""

    _accepts_needs_dx = True

    def _weights(self, first: int, second: int, kernel_size: Size, ndim: int | None, biases: int, rng: Any) -> None:
        entries = entries_of(kernel_size, "kernel_size")
        axes = integer(ndim, "ndim", 1) if ndim is not None else 2 if entries is None else len(entries)
        if not 1 <= axes <= 3:
            raise ValueError(f"a convolution has one to three spatial axes, got {axes} (kernel_size {kernel_size!r})")
        kernel = sizes(kernel_size, axes, "kernel_size")
        fan_in = second
        for cells in kernel:
            fan_in *= cells
        source = generator(rng)
        self._params["weight"] = uniform(source, (first, second, *kernel), fan_in)
        if biases:
            self._params["bias"] = uniform(source, (biases,), fan_in)


class Conv(_Conv):
    """A convolution (cross-correlation).

    padding_mode: "zeros", "reflect", "replicate" or "circular", of all forms of `padding`. rng: None, a seed or a NumPy
    Generator that the initial weights are drawn from.
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
        self.in_channels = integer(in_channels, "in_channels", 0)
        self.out_channels = integer(out_channels, "out_channels", 0)
        self.groups = grouped(self.in_channels, groups, "groups")
        grouped(self.out_channels, groups, "groups")
        choice(padding_mode, "padding_mode", PADDING_MODES)
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.bias, self.padding_mode = flag(bias, "bias"), padding_mode
        self.ndim, self.data_format = ndim, data_format
        biases = self.out_channels if bias else 0
        self._weights(self.out_channels, self.in_channels // self.groups, kernel_size, ndim, biases, rng)

    def _forward(self, x: Array) -> tuple[Any, Any]:
        padding, pad_ctx = self.padding, None
        if self.padding_mode != "zeros":
            kernel = tuple(self._params["weight"].shape[2:])
            window = conv_window(shape_of(x), kernel, self.stride, self.padding, self.dilation, self.data_format)
            around = tuple((axis.before, axis.after) for axis in window.axes)
            x, pad_ctx = F.pad_forward(x, around, self.padding_mode, data_format=self.data_format)
            padding = 0
        y, ctx = F.conv_forward(
            x,
            self._params["weight"],
            self._params.get("bias"),
            self.stride,
            padding,
            self.dilation,
            self.groups,
            data_format=self.data_format,
        )
        return y, (pad_ctx, ctx)

    def _backward(self, dy: Array, ctx: Any) -> Array:
        pad_ctx, conv_ctx = ctx
        dx = super()._backward(dy, conv_ctx)
        return dx if pad_ctx is None or dx is None else F.pad_backward(dx, pad_ctx)

    _op_backward = staticmethod(F.conv_backward)


class ConvTranspose(_Conv):
    """The transposed convolution: the adjoint of a convolution, which grows where that shrinks.

    The order of the arguments is PyTorch's, dilation after bias; padding_mode must be "zeros". rng: as for `Conv`.
    """

    _op_backward = staticmethod(F.conv_transpose_backward)

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
        self.in_channels = integer(in_channels, "in_channels", 0)
        self.out_channels = integer(out_channels, "out_channels", 0)
        self.groups = grouped(self.in_channels, groups, "groups")
        grouped(self.out_channels, groups, "groups")
        if not isinstance(padding_mode, str) or padding_mode != "zeros":
            raise ValueError(f"padding_mode of a transposed convolution must be 'zeros', got {padding_mode!r}")
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.output_padding, self.bias, self.padding_mode = output_padding, flag(bias, "bias"), padding_mode
        self.ndim, self.data_format = ndim, data_format
        biases = self.out_channels if bias else 0
        self._weights(self.in_channels, self.out_channels // self.groups, kernel_size, ndim, biases, rng)

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.conv_transpose_forward(
            x,
            self._params["weight"],
            self._params.get("bias"),
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
            self.groups,
            data_format=self.data_format,
        )
