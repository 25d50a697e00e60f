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
Rule: TypeAlias = Callable[[Any, torch.dtype, Shape], bool]

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


def rule_of(name: str) -> Callable[[Any, torch.Tensor], bool]:
    """For a module of torch.nn: whether this library's op computes the module `m` of x, or PyTorch's own code does."""
    axes = int(name[-2]) if name[-1] == "d" else 0
    dtypes, rule = RULES[name[:-2] if axes else name]

    def serves(m: Any, x: torch.Tensor) -> bool:
        return x.dtype in dtypes and rule(m, x.dtype, tuple(x.shape[-axes:]) if axes else tuple(x.shape))

    return serves


def _always(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    return True


def _fits(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """Whether no window is larger than the padded input, which ceil mode alone allows."""
    sizes = [
        per_axis(getattr(m, name, default), len(lengths))
        for name, default in (("kernel_size", 1), ("padding", 0), ("dilation", 1))
    ]
    return not m.ceil_mode or all(
        d * (k - 1) + 1 <= length + 2 * p for length, k, p, d in zip(lengths, *sizes, strict=False)
    )


def _has_cells(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    size = m.output_size if isinstance(m.output_size, tuple | list) else (m.output_size,)
    return 0 not in size and 0 not in lengths


def _keeps_cells(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """Whether no axis loses more cells than it has: PyTorch gives an empty result then."""
    pairs = list(zip(m.padding[::2], m.padding[1::2], strict=True))[::-1]
    cropped = [-sum(min(cells, 0) for cells in pair) for pair in pairs]
    return all(c <= length for c, length in zip(cropped, lengths, strict=False))


def _holds_fill(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """Whether x's dtype holds the fill: PyTorch cuts a number that does not fit an integer."""
    value = getattr(m, "value", 0) or 0
    if dtype in FLOATS:
        return True
    if dtype == torch.bool:
        return value in (0, 1)
    bounds = torch.iinfo(dtype)
    return math.isfinite(value) and int(value) == value and bounds.min <= value <= bounds.max


def _takes_eps(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """PyTorch also takes a negative eps."""
    return m.eps is None or m.eps >= 0


def _has_groups(m: Any, dtype: torch.dtype, lengths: Shape) -> bool:
    """Whether a group has more values than one: y is beta otherwise, whatever x is."""
    return _takes_eps(m, dtype, lengths) and m.num_channels // m.num_groups * math.prod(lengths[2:]) != 1


# The dtypes that the library's op takes, and what must hold besides.
RULES: dict[str, tuple[frozenset[torch.dtype], Rule]] = {
    "MaxPool": (MOVED, _fits),
    "MaxUnpool": (FLOATS, _always),
    "AvgPool": (FLOATS, _fits),
    "AdaptiveAvgPool": (FLOATS, _has_cells),
    "AdaptiveMaxPool": (FLOATS, _has_cells),
    "ConstantPad": (MOVED, _holds_fill),
    "ZeroPad": (MOVED, _holds_fill),
    "ReflectionPad": (MOVED, _keeps_cells),
    "ReplicationPad": (MOVED, _keeps_cells),
    "CircularPad": (MOVED, _always),  # where it crops so much PyTorch leaves cells undefined: an error here
    "GroupNorm": (FLOATS, _has_groups),
    "BatchNorm": (FLOATS, _takes_eps),
    "InstanceNorm": (FLOATS, _takes_eps),
    "LayerNorm": (FLOATS, _takes_eps),
    "RMSNorm": (FLOATS, _takes_eps),
    "LocalResponseNorm": (FLOATS, lambda m, dtype, lengths: len(lengths) >= 3),
}
