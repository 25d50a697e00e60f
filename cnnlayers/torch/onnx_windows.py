"""What translations to ONNX share, and those of pooling and padding: windows worked out here, once and for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnnlayers import functional as F
from cnnlayers.specs import adaptive_window
from cnnlayers.specs.padding import pad_spec
from cnnlayers.specs.windows import Axis

from .ops.windows import one_or_all, sides, windows_of

Value = Any  # a tensor of the ONNX graph
Shape = Sequence[int]


def opset() -> Any:
    from onnxscript import opset18

    return opset18


def constant(array: Any) -> Value:
    import onnx_ir

    return opset().Constant(value=onnx_ir.tensor(np.ascontiguousarray(array)))


def scalar(x: Value, value: float) -> Value:
    return constant(np.asarray(value, x.dtype.numpy()))


def refuse(op: str, why: str) -> ValueError:
    return ValueError(
        f"cnnlayers.{op} cannot be exported to ONNX: {why}. Change the option, or export cnnlayers.torch.revert(model)"
    )


def static_shape(op: str, x: Value) -> tuple[int, ...]:
    """x's shape, 1 for an open batch."""
    shape = list(x.shape)
    shape[0] = shape[0] if isinstance(shape[0], int) else 1
    if not all(isinstance(n, int) for n in shape):
        raise refuse(op, f"only the batch may be left open, got shape {list(map(str, x.shape))}")
    return tuple(shape)


def in_channels_first(run: Callable[[Value], Value], x: Value, data_format: str) -> Value:
    """run(x) of x in channels first, its result in x's format."""
    if data_format == "channels_first":
        return run(x)
    import onnx_ir

    op, n = opset(), len(x.shape)
    y = op.Transpose(x, perm=[0, n - 1, *range(1, n - 1)])
    y.dtype, y.shape = x.dtype, onnx_ir.Shape([x.shape[0], x.shape[n - 1], *x.shape[1 : n - 1]])
    return op.Transpose(run(y), perm=[0, *range(2, n), 1])


# ------------------------------------------------------------------------------------------------------------- pooling
# Arguments are x, in channels first, and those of the op's schema in its order, without data_format.
def _pads(axes: Sequence[Axis]) -> list[int]:
    """ONNX's pads: before on each axis, then what the last window needs behind."""
    behind = [(a.out - 1) * a.stride + a.dilation * (a.kernel - 1) + 1 - a.before - a.length for a in axes]
    return [a.before for a in axes] + [max(b, 0) for b in behind]


def geometry(axes: Sequence[Axis]) -> dict[str, list[int]]:
    return {
        "kernel_shape": [a.kernel for a in axes],
        "strides": [a.stride for a in axes],
        "pads": _pads(axes),
    }


def _axes(op: str, x: Value, sizes: Sequence[Any], ceil_mode: bool) -> tuple[Axis, ...]:
    """The axes of a pool's windows. sizes: kernel_size to dilation."""
    return windows_of(static_shape(op, x), (*sizes, ceil_mode, "channels_first")).axes


def _maxima(x: Value, axes: Sequence[Axis], dilations: list[int]) -> Value:
    """Padding that differs between the sides is an operator of its own: onnx's ReferenceEvaluator mixes it up."""
    options = geometry(axes)
    before, behind = options["pads"][: len(axes)], options["pads"][len(axes) :]
    if before != behind:
        dtype = x.dtype.numpy()
        lowest = -math.inf if dtype.kind == "f" else np.iinfo(dtype).min
        ends = constant(np.array([0, 0, *before, 0, 0, *behind], "int64"))
        x, options["pads"] = opset().Pad(x, ends, scalar(x, lowest), mode="constant"), [0] * 2 * len(axes)
    y = opset().MaxPool(x, **options, dilations=dilations)
    return y[0] if isinstance(y, tuple) else y


def max_pool(x: Value, *options: Any) -> Value:
    *sizes, ceil_mode, _ = options
    if x.dtype.name not in ("FLOAT16", "FLOAT", "DOUBLE", "INT8", "UINT8"):
        raise refuse("max_pool", f"MaxPool takes float16, float32, float64, int8 and uint8, got {x.dtype.name}")
    axes = _axes("max_pool", x, sizes, ceil_mode)
    return _maxima(x, axes, [a.dilation for a in axes])


def _counts(axis: Axis, inside: bool) -> np.ndarray:
    """Of each window on an axis, the taps in the input, or in the input and its declared padding."""
    low, high = (0, axis.length) if inside else (-axis.before, axis.length + axis.after)
    taps = np.arange(axis.out)[:, None] * axis.stride + np.arange(axis.kernel) * axis.dilation - axis.before
    return ((taps >= low) & (taps < high)).sum(1)


def _sums(x: Value, axes: Sequence[Axis], channels: int, scale: np.ndarray) -> Value:
    """The sums of windows times `scale`, one number a window; a number that is 1 everywhere costs nothing."""
    op, dtype = opset(), x.dtype.numpy()
    taps = math.prod(a.kernel for a in axes)
    if any(a.dilation > 1 for a in axes):  # AveragePool has dilations from opset 19
        ones = constant(np.ones((channels, 1, *(a.kernel for a in axes)), dtype))
        y = op.Conv(x, ones, **geometry(axes), dilations=[a.dilation for a in axes], group=channels)
    else:
        y, scale = op.AveragePool(x, **geometry(axes), count_include_pad=1), scale * taps
    return y if np.all(scale == 1) else op.Mul(y, constant(scale.astype(dtype)))


def avg_pool(x: Value, *options: Any) -> Value:
    *sizes, ceil_mode, count_include_pad, divisor_override = options
    axes = _axes("avg_pool", x, sizes, ceil_mode)
    divisor = np.ones([a.out for a in axes])
    for i, axis in enumerate(axes):
        divisor *= _counts(axis, not count_include_pad).reshape([-1 if j == i else 1 for j in range(len(axes))])
    scale = 1 / np.maximum(divisor, 1) if divisor_override is None else np.full(divisor.shape, 1 / divisor_override)
    return _sums(x, axes, x.shape[1], scale)


def sum_pool(x: Value, *options: Any) -> Value:
    return avg_pool(x, *options, True, 1)


def lp_pool(x: Value, *options: Any) -> Value:
    *sizes, ceil_mode, norm_type = options
    if norm_type != int(norm_type):
        raise refuse("lp_pool", f"LpPool takes whole norms, got norm_type={norm_type}")
    axes = _axes("lp_pool", x, sizes, ceil_mode)
    return opset().LpPool(x, **geometry(axes), dilations=[a.dilation for a in axes], p=int(norm_type))


def _adaptive(op: str, x: Value, output_size: Shape) -> list[Axis]:
    shape = static_shape(op, x)
    window = adaptive_window(shape, one_or_all(output_size), "channels_first")
    sizes = window.out_shape[2:]
    if any(n % m for n, m in zip(shape[2:], sizes, strict=True)):
        raise refuse(op, f"output_size must divide the axes, got {tuple(sizes)} for {shape[2:]}")
    return [Axis(n, m, n // m, n // m) for n, m in zip(shape[2:], sizes, strict=True)]


def adaptive_avg_pool(x: Value, output_size: Shape) -> Value:
    return opset().AveragePool(x, **geometry(_adaptive("adaptive_avg_pool", x, output_size)))


def adaptive_max_pool(x: Value, output_size: Shape) -> Value:
    axes = _adaptive("adaptive_max_pool", x, output_size)
    return _maxima(x, axes, [1] * len(axes))


# ------------------------------------------------------------------------------------------------------------- padding
def pad(x: Value, padding: Shape, mode: str, value: float) -> Value:
    """Pad where it has the mode and nothing is cropped, else the cells by their indices."""
    shape = static_shape("pad", x)
    spec = pad_spec(shape, sides(padding, "", len(shape) - 2), mode, "channels_first")
    cropped = [(-before, -after) for before, after in spec.crop]
    if mode == "constant":
        return opset().Pad(_gathered(x, shape, cropped, mode), _ends(spec.grow), scalar(x, value), mode=mode)
    if mode in ("reflect", "edge") and not any(itertools.chain(*cropped)):
        return opset().Pad(x, _ends(spec.grow), mode=mode)
    pairs = [(grow[0] + crop[0], grow[1] + crop[1]) for grow, crop in zip(spec.grow, cropped, strict=True)]
    return _gathered(x, shape, pairs, mode)


def _ends(pairs: Sequence[tuple[int, int]]) -> Value:
    """The pads of all axes, as Pad takes them."""
    return constant(np.array([0, 0, *(a for a, _ in pairs), 0, 0, *(b for _, b in pairs)], "int64"))


def _gathered(x: Value, shape: Shape, pairs: Sequence[tuple[int, int]], mode: Any) -> Value:
    for axis, (length, pair) in enumerate(zip(shape[2:], pairs, strict=True), 2):
        cells = F.pad(np.arange(length)[None, None], ((pair[0], pair[1]),), mode)[0, 0]
        if not np.array_equal(cells, np.arange(length)):
            x = opset().Gather(x, constant(cells.astype("int64")), axis=axis)
    return x


TRANSLATED = (max_pool, avg_pool, sum_pool, lp_pool, adaptive_avg_pool, adaptive_max_pool, pad)
