"""Keras's pooling, convolutions and batch normalisation for its NumPy backend, with Keras's names and arguments.

Rules of the family: a kernel is (*k, C / groups, F) as Keras stores it, (*k, F, C) for transposed convolutions. The
result has x's and the kernel's dtype, or what Keras's promotion makes of two. bfloat16 is computed in float32. Integers
and bool are computed in float64 and cut to their dtype, as the same sums in that dtype are; averages of them are
float64, as NumPy's mean. Imported by `install`, when Keras is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras.src import backend
from keras.src.backend.common.backend_utils import (
    check_conv_input_channels,
    check_conv_transpose_input_channels,
    compute_conv_transpose_padding_args_for_jax,
)
from keras.src.backend.numpy.core import convert_to_tensor, is_tensor
from keras.src.backend.numpy.nn import batch_normalization as batch_normalization_of_keras

from cnnlayers import functional as F

Array = Any


def _array(x: Any) -> Array:
    """x as an array, without a copy where it is one or a variable holds one."""
    return x if is_tensor(x) else convert_to_tensor(x)


def _computed(dtype: Any, *arrays: Array) -> list[Array]:
    """The arrays in the dtype that a result of `dtype` is computed in: one that the ops take."""
    if dtype == "bfloat16":
        dtype = "float32"
    elif np.dtype(dtype).kind in "iub":
        dtype = "float64"
    return [np.asarray(a).astype(dtype, copy=False) for a in arrays]


def _as(dtype: Any, y: Array) -> Array:
    """y in `dtype`; integers overflow as sums of integers do."""
    if np.dtype(dtype).kind in "iu" and y.dtype.kind == "f":
        y = y.astype("int64")
    return y.astype(dtype, copy=False)


def _sizes(value: Any, x: Array) -> tuple[int, ...]:
    """Keras's int, or one an axis, as one an axis."""
    return (value,) * (x.ndim - 2) if isinstance(value, int) else tuple(value)


def _format(data_format: Any) -> Any:
    """The name of the order of axes, Keras's own setting for None."""
    return backend.standardize_data_format(data_format)


def _spatial(x: Array, data_format: str) -> Any:
    return x.shape[1:-1] if data_format == "channels_last" else x.shape[2:]


# ------------------------------------------------------------------------------------------------------------- pooling
def _named_padding(padding: Any) -> Any:
    if padding not in ("same", "valid"):
        raise ValueError(f"Invalid padding '{padding}', must be 'same' or 'valid'.")
    return padding


def max_pool(
    inputs: Array, pool_size: Any, strides: Any = None, padding: Any = "valid", data_format: Any = None
) -> Array:
    data_format = _format(data_format)
    inputs, padding = _array(inputs), _named_padding(padding)
    strides = None if strides is None else _sizes(strides, inputs)
    (x,) = _computed(inputs.dtype, inputs) if inputs.dtype == "bfloat16" else (inputs,)
    y = F.max_pool(x, _sizes(pool_size, inputs), strides, padding, data_format=data_format)
    return _as(inputs.dtype, y)


def average_pool(
    inputs: Array, pool_size: Any, strides: Any = None, padding: Any = "valid", data_format: Any = None
) -> Array:
    """Cells outside the input do not count (padding "same")."""
    data_format = _format(data_format)
    inputs, padding = _array(inputs), _named_padding(padding)
    strides = None if strides is None else _sizes(strides, inputs)
    size = _sizes(pool_size, inputs)
    (x,) = _computed(inputs.dtype, inputs)
    y = F.avg_pool(x, size, strides, padding, count_include_pad=False, data_format=data_format)
    return _average(inputs, y)


def _average(inputs: Array, y: Array) -> Array:
    """The averages y in the dtype of the inputs; float64 where these are integers."""
    return y if inputs.dtype.kind in "iub" else _as(inputs.dtype, y)


def adaptive_average_pool(inputs: Array, output_size: Any, data_format: Any = None) -> Array:
    data_format = _format(data_format)
    inputs = _array(inputs)
    (x,) = _computed(inputs.dtype, inputs)
    return _average(inputs, F.adaptive_avg_pool(x, _sizes(output_size, inputs), data_format=data_format))


def adaptive_max_pool(inputs: Array, output_size: Any, data_format: Any = None) -> Array:
    data_format = _format(data_format)
    inputs = _array(inputs)
    (x,) = _computed(inputs.dtype, inputs)
    return _as(inputs.dtype, F.adaptive_max_pool(x, _sizes(output_size, inputs), data_format=data_format))


# -------------------------------------------------------------------------------------------------------- convolutions
def _convolve(run: Callable[..., Array], x: Array, kernel: Array, *options: Any, data_format: str) -> Array:
    """A convolution of the library by a kernel of Keras's layout, (*k, in, out), in the dtype that Keras gives both."""
    dtype = x.dtype if x.dtype == kernel.dtype else backend.result_type(x.dtype, kernel.dtype)
    x, kernel = _computed(dtype, x, kernel)
    weight = np.moveaxis(kernel, (-1, -2), (0, 1))
    return _as(dtype, run(x, weight, None, *options, data_format=data_format))


def _correlate(
    x: Array, kernel: Array, groups: int, strides: Any, padding: Any, data_format: str, dilation_rate: Any
) -> Array:
    strides, dilations = _sizes(strides, x), _sizes(dilation_rate, x)
    padding = padding.lower() if isinstance(padding, str) else padding
    reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilations, strict=False)]
    if padding == "valid" and any(n < r for n, r in zip(_spatial(x, data_format), reach, strict=True)):
        raise ValueError(
            "The convolution operation resulted in an empty output: the kernel with its dilation spans"
            f" {tuple(reach)} cells, the input of shape {x.shape} ({data_format}) is smaller. Use padding 'same', a"
            " smaller kernel or a larger input."
        )
    return _convolve(F.conv, x, kernel, strides, padding, dilations, groups, data_format=data_format)


def conv(
    inputs: Array,
    kernel: Any,
    strides: Any = 1,
    padding: Any = "valid",
    data_format: Any = None,
    dilation_rate: Any = 1,
) -> Array:
    """The number of groups is that of the input's channels over the kernel's."""
    data_format = _format(data_format)
    inputs, kernel = _array(inputs), _array(kernel)
    channels, kernel_channels = inputs.shape[-1 if data_format == "channels_last" else 1], kernel.shape[-2]
    if channels % kernel_channels:
        raise ValueError(
            "The number of input channels must be evenly divisible by kernel's in_channels. Received input channels"
            f" {channels} and kernel in_channels {kernel_channels}. "
        )
    return _correlate(inputs, kernel, channels // kernel_channels, strides, padding, data_format, dilation_rate)


def depthwise_conv(
    inputs: Array,
    kernel: Any,
    strides: Any = 1,
    padding: Any = "valid",
    data_format: Any = None,
    dilation_rate: Any = 1,
) -> Array:
    """Each channel by its own filters: the kernel is (*k, C, filters a channel)."""
    data_format = _format(data_format)
    inputs, kernel = _array(inputs), _array(kernel)
    check_conv_input_channels(inputs, kernel, data_format)
    channels = kernel.shape[-2]
    kernel = kernel.reshape(*kernel.shape[:-2], 1, math.prod(kernel.shape[-2:]))
    return _correlate(inputs, kernel, channels, strides, padding, data_format, dilation_rate)


def separable_conv(
    inputs: Array,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = 1,
    padding: Any = "valid",
    data_format: Any = None,
    dilation_rate: Any = 1,
) -> Array:
    """A depthwise convolution, then one across channels."""
    data_format = _format(data_format)
    by_channel = depthwise_conv(inputs, depthwise_kernel, strides, padding, data_format, dilation_rate)
    return conv(by_channel, pointwise_kernel, 1, "valid", data_format, dilation_rate)


def conv_transpose(
    inputs: Array,
    kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    output_padding: Any = None,
    data_format: Any = None,
    dilation_rate: Any = 1,
) -> Array:
    """Keras's rule gives JAX's padding of x with zeros between its cells; the library cuts cells off the result."""
    data_format = _format(data_format)
    inputs, kernel = _array(inputs), _array(kernel)
    check_conv_transpose_input_channels(inputs, kernel, data_format)
    strides, dilations = _sizes(strides, inputs), _sizes(dilation_rate, inputs)
    pads = compute_conv_transpose_padding_args_for_jax(
        input_shape=inputs.shape,
        kernel_shape=kernel.shape,
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        dilation_rate=dilations,
    )
    reach = [(k - 1) * d for k, d in zip(kernel.shape, dilations, strict=False)]
    cuts = [(r - left, r - right) for r, (left, right) in zip(reach, pads, strict=True)]  # negative: cells of zeros
    inside = [tuple(max(c, 0) for c in cut) for cut in cuts]
    y = _convolve(F.conv_transpose, inputs, kernel, strides, inside, 0, dilations, 1, data_format=data_format)
    beyond = [tuple(max(-c, 0) for c in cut) for cut in cuts]
    return F.pad(y, beyond, data_format=data_format) if any(map(any, beyond)) else y


# -------------------------------------------------------------------------------------------------- batch normalisation
def batch_normalization(
    x: Array,
    mean: Array,
    variance: Array,
    axis: int,
    offset: Array | None = None,
    scale: Array | None = None,
    epsilon: float = 1e-3,
) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset along `axis`, any of x's axes."""
    given = {"x": x, "mean": mean, "variance": variance, "offset": offset, "scale": scale}
    arrays = {name: _array(a) for name, a in given.items() if a is not None}
    dtype = np.result_type(*arrays.values())
    if dtype.kind == "c":
        return batch_normalization_of_keras(x, mean, variance, axis, offset, scale, epsilon)
    if dtype.kind in "iub":
        dtype = np.dtype("float64")
    x, *stats = _computed(dtype, *(arrays.pop(name) for name in ("x", "mean", "variance")))
    parameters = dict(zip(arrays, _computed(dtype, *arrays.values()), strict=True))
    axis = range(x.ndim)[axis]
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    rows = (before, x.shape[axis]) if axis == x.ndim - 1 else (before, x.shape[axis], after)
    y = F.batch_norm(
        x.reshape(rows), parameters.get("scale"), parameters.get("offset"), *stats, eps=epsilon, training=False
    )
    return _as(dtype, y).reshape(x.shape)
