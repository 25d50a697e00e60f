"""Pooling layers: no parameters, only arguments. Their rules are those of `cnnlayers.functional`'s pools."""

from __future__ import annotations

from typing import Any

from cnnlayers import functional as F
from cnnlayers.functional._common import Array
from cnnlayers.specs.arguments import DataFormat, OutputSize, Padding, Size, Ties, flag

from .base import Layer


class MaxPool(Layer):
    """The maximum of each window; with `return_indices` forward gives `(y, indices)`, as `MaxUnpool` takes them."""

    _op_backward = staticmethod(F.max_pool_backward)

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        ties: Ties = "first",
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.return_indices, self.ceil_mode = flag(return_indices, "return_indices"), flag(ceil_mode, "ceil_mode")
        self.ties, self.data_format = ties, data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.max_pool_forward(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            ties=self.ties,
            return_indices=self.return_indices,
            data_format=self.data_format,
        )


class AvgPool(Layer):
    """The mean of each window, by `count_include_pad` and `divisor_override`."""

    _op_backward = staticmethod(F.avg_pool_backward)

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        dilation: Size = 1,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.ceil_mode = flag(ceil_mode, "ceil_mode")
        self.count_include_pad = flag(count_include_pad, "count_include_pad")
        self.divisor_override, self.data_format = divisor_override, data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.avg_pool_forward(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
            divisor_override=self.divisor_override,
            data_format=self.data_format,
        )


class SumPool(Layer):
    """The sum of each window."""

    _op_backward = staticmethod(F.sum_pool_backward)

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        *,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.ceil_mode, self.data_format = flag(ceil_mode, "ceil_mode"), data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.sum_pool_forward(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            data_format=self.data_format,
        )


class LpPool(Layer):
    """The p-norm of each window, p being `norm_type`."""

    _op_backward = staticmethod(F.lp_pool_backward)

    def __init__(
        self,
        norm_type: float,
        kernel_size: Size,
        stride: Size | None = None,
        ceil_mode: bool = False,
        *,
        padding: Padding = 0,
        dilation: Size = 1,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self.norm_type = norm_type
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.ceil_mode, self.data_format = flag(ceil_mode, "ceil_mode"), data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.lp_pool_forward(
            x,
            self.kernel_size,
            self.norm_type,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            data_format=self.data_format,
        )


class AdaptiveAvgPool(Layer):
    """Means of as many windows as `output_size` says; an entry None keeps that axis."""

    _op_backward = staticmethod(F.adaptive_avg_pool_backward)

    def __init__(self, output_size: OutputSize, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__()
        self.output_size, self.data_format = output_size, data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.adaptive_avg_pool_forward(x, self.output_size, data_format=self.data_format)


class AdaptiveMaxPool(Layer):
    """Maxima of as many windows as `output_size` says. `return_indices` is PyTorch's and must be False."""

    _op_backward = staticmethod(F.adaptive_max_pool_backward)

    def __init__(
        self, output_size: OutputSize, return_indices: bool = False, *, data_format: DataFormat = "channels_first"
    ) -> None:
        super().__init__()
        if flag(return_indices, "return_indices"):
            raise ValueError("return_indices=True is not offered by AdaptiveMaxPool: MaxPool gives indices")
        self.output_size, self.return_indices, self.data_format = output_size, False, data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.adaptive_max_pool_forward(x, self.output_size, data_format=self.data_format)


class GlobalAvgPool(Layer):
    """The mean of each channel; every spatial axis keeps one cell."""

    _op_backward = staticmethod(F.adaptive_avg_pool_backward)

    def __init__(self, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__()
        self.data_format = data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.adaptive_avg_pool_forward(x, 1, data_format=self.data_format)


class GlobalMaxPool(Layer):
    """The maximum of each channel; every spatial axis keeps one cell."""

    _op_backward = staticmethod(F.adaptive_max_pool_backward)

    def __init__(self, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__()
        self.data_format = data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        return F.adaptive_max_pool_forward(x, 1, data_format=self.data_format)


class MaxUnpool(Layer):
    """Puts each value back to where `MaxPool` found it: `layer(x, indices, output_size=None)`."""

    _op_backward = staticmethod(F.max_unpool_backward)

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        *,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.data_format = kernel_size, stride, padding, data_format

    def _forward(self, x: Array, indices: Array, output_size: Size | None = None) -> tuple[Any, Any]:
        return F.max_unpool_forward(
            x,
            indices,
            self.kernel_size,
            self.stride,
            self.padding,
            output_size=output_size,
            data_format=self.data_format,
        )
