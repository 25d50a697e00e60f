"""Which inputs a module computes by this library's ops, and which by PyTorch's own code.

PyTorch's modules accept a little more than the ops do: averages of integers, complex numbers, an integer fill that is
cut to fit, a window larger than its input in ceil mode, one value a group, a negative eps. `rule_of` tells these inputs
apart by their dtype and shape, before anything is computed. In the rules `lengths` are x's along the axes that the
module's name counts, or x's whole shape. The file also names the modules whose input autocast turns into float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Shape: TypeAlias = tuple[int, ...]
Rule: TypeAlias = Callable[[Any, torch.Tensor], bool]

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTEGERS = frozenset(
    {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)
MOVED = FLOATS | INTEGERS | {torch.bool}  # max pooling and padding only move values

# Read off PyTorch 2.13: the ops that autocast runs in float32, by the kind of device.
WIDENED_BY_AUTOCAST = {
    "cpu": frozenset(
        {
            *("MaxPool3d", "AvgPool3d", "AdaptiveAvgPool3d", "AdaptiveMaxPool3d", "ReflectionPad1d", "ReflectionPad2d"),
            *("ReplicationPad1d", "ReplicationPad2d", "ReplicationPad3d", "LocalResponseNorm"),
        }
    ),
    "cuda": frozenset({"LayerNorm", "GroupNorm", "RMSNorm", "LocalResponseNorm"}),
}


def widened_by_autocast(name: str, x: torch.Tensor) -> torch.Tensor:
    """x in float32 where PyTorch's module of this name computes in it: in an autocast region, for a half type."""
    names = WIDENED_BY_AUTOCAST.get(x.device.type, ())
    if name in names and x.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(x.device.type):
        return x.float()
    return x


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """A size of PyTorch's (an int, a tuple of one, or one an axis) as one an axis; () where there is none."""
    if value is None:
        return ()
    entries = tuple(value) if isinstance(value, tuple | list) else (value,)
    return entries * axes if len(entries) == 1 else entries


def rule_of(name: str) -> Rule:
    """For a module of torch.nn: whether this library's op computes the module `m` of x, or PyTorch's own code does."""
    axes = int(name[-2]) if name[-1] == "d" else 0
    rule = RULES.get(name[:-2] if axes else name, _floating)

    def serves(m: Any, x: torch.Tensor) -> bool:
        return rule(m, x.dtype, tuple(x.shape[-axes:]) if axes else tuple(x.shape))

    return serves


def _floating(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    return dtype in FLOATS


def _fits(m: Any, lengths: Shape) -> bool:
    """Whether no window is larger than the padded input, which ceil mode alone allows."""
    sizes = [
        per_axis(getattr(m, name, default), len(lengths))
        for name, default in (("kernel_size", 1), ("padding", 0), ("dilation", 1))
    ]
    return not m.ceil_mode or all(
        d * (k - 1) + 1 <= length + 2 * p for length, k, p, d in zip(lengths, *sizes, strict=False)
    )


def _max_pool(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    return dtype in MOVED and _fits(m, lengths)


def _avg_pool(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    return dtype in FLOATS and _fits(m, lengths)


def _adaptive(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    size = m.output_size if isinstance(m.output_size, tuple | list) else (m.output_size,)
    return dtype in FLOATS and 0 not in size and 0 not in lengths


def _pad(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """Whether no axis loses more cells than it has: PyTorch gives an empty result then."""
    pairs = list(zip(m.padding[::2], m.padding[1::2], strict=True))[::-1]
    cropped = [-sum(min(cells, 0) for cells in pair) for pair in pairs]
    return dtype in MOVED and all(c <= length for c, length in zip(cropped, lengths, strict=False))


def _circular_pad(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    return dtype in MOVED  # PyTorch leaves cells undefined where it crops so much: an error here


def _constant_pad(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """Whether x's dtype holds the fill: PyTorch cuts a number that does not fit an integer."""
    value = getattr(m, "value", 0) or 0
    if dtype in FLOATS:
        return True
    if dtype == torch.bool:
        return value in (0, 1)
    if dtype not in INTEGERS:
        return False
    bounds = torch.iinfo(dtype)
    return math.isfinite(value) and int(value) == value and bounds.min <= value <= bounds.max


def _norm(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """PyTorch also takes a negative eps."""
    return dtype in FLOATS and (m.eps is None or m.eps >= 0)


def _group_norm(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """Whether a group has more values than one: y is beta otherwise, whatever x is."""
    return _norm(m, dtype, lengths) and m.num_channels // m.num_groups * math.prod(lengths[2:]) != 1


def _local_response_norm(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    return dtype in FLOATS and len(lengths) >= 3


RULES = {
    "MaxPool": _max_pool,
    "MaxUnpool": _floating,
    "AvgPool": _avg_pool,
    "AdaptiveAvgPool": _adaptive,
    "AdaptiveMaxPool": _adaptive,
    "ConstantPad": _constant_pad,
    "ZeroPad": _constant_pad,
    "ReflectionPad": _pad,
    "ReplicationPad": _pad,
    "CircularPad": _circular_pad,
    "GroupNorm": _group_norm,
    "BatchNorm": _norm,
    "InstanceNorm": _norm,
    "LayerNorm": _norm,
    "RMSNorm": _norm,
    "LocalResponseNorm": _local_response_norm,
}
