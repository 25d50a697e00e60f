"""Arguments of the functions on tensors, as `torch.ops.cnnlayers` takes them: lists of ints, floats, names.

The checks here are of kinds and of the number of entries; the op itself checks every number. What torch.compile or
torch.export left open (a symbol in place of an int or float) passes through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cnnlayers.specs.arguments import entries_of, flag, integer, pairs, real, sizes

from .arrays import DEVICES, is_channels_last


def as_real(value: Any, name: str, *, finite: bool = True) -> float:
    """A real number as a float; a float as it is, which may stand for a symbol of torch.compile."""
    return value if type(value) is float else real(value, name, finite=finite)


def as_integer(value: Any, name: str, least: int | None = None) -> int:
    """A whole number as an int; an int as it is."""
    return value if type(value) is int and (least is None or value >= least) else integer(value, name, least)


def as_channels_last(x: Tensor, data_format: Any) -> tuple[Tensor, Any, bool]:
    """x with its channels last, the format's name, and True, where x is stored so; as they are otherwise."""
    if data_format == "channels_first" and is_channels_last(x):
        return x.movedim(1, -1), "channels_last", True
    return x, data_format, False


def channels_first_again(y: Tensor, moved: bool) -> Tensor:
    return y.movedim(-1, 1) if moved else y


def as_stored(op: Callable[..., Any], x: Tensor, *options: Any, data_format: Any) -> Any:
    """`op(x, *options, data_format)`, on x as it is stored."""
    x, data_format, moved = as_channels_last(x, data_format)
    return channels_first_again(op(x, *options, data_format), moved)


def size_list(value: Any, name: str, x: Tensor) -> list[Any]:
    """A size as a list: one entry for all spatial axes, or one an axis. The op checks the numbers."""
    if type(value) is int:
        return [value]
    entries = entries_of(value, name)
    if entries is None:
        return [as_integer(value, name)]
    if 3 <= x.ndim <= 5 and len(entries) != x.ndim - 2:
        sizes(value, x.ndim - 2, name)  # says what is wrong
    return [as_integer(v, name) for v in entries]


def padding_list(value: Any, x: Tensor, least: int | None = 0) -> list[int]:
    """Padding in numbers as a list: one entry, one an axis, or two an axis."""
    if type(value) is int:
        return [value]
    return [side for pair in pairs(value, max(x.ndim - 2, 1), "padding", least) for side in pair]


def window_options(
    x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> tuple[Any, ...]:
    """The window of a pool as the ops take it."""
    named = isinstance(padding, str)
    return (
        size_list(kernel_size, "kernel_size", x),
        [] if stride is None else size_list(stride, "stride", x),
        [0] if named else padding_list(padding, x),
        padding_name(padding) if named else "",
        size_list(dilation, "dilation", x),
        flag(ceil_mode, "ceil_mode"),
    )


def padding_name(padding: str) -> str:
    if not padding:
        raise ValueError("padding must be numbers, 'valid', 'same', 'same_lower' or 'full', got ''")
    return padding


def output_sizes(value: Any, x: Tensor, data_format: str) -> list[Any]:
    """An adaptive pool's size, one an axis; None keeps an axis. torch.export may leave sizes open."""
    axes, lengths = x.ndim - 2, x.shape[2:] if data_format == "channels_first" else x.shape[1:-1]
    entries = (None,) * axes if value is None else entries_of(value, "output_size")
    if entries is None:
        return [as_integer(value, "output_size", 1) if type(value) is not torch.SymInt else value]
    if 3 <= x.ndim <= 5 and len(entries) != axes:
        raise ValueError(f"output_size needs one entry per spatial axis ({axes}), got {value!r}")
    return [n if e is None else e for e, n in zip(entries, lengths, strict=True)]


def autocast(x: Tensor, dtype: torch.dtype | None, *others: Tensor | None) -> list[Any]:
    """Tensors in the dtype that an autocast region asks for: its own, or `dtype`."""
    kind = x.device.type
    if kind not in DEVICES or not torch.is_autocast_enabled(kind):
        return [x, *others]
    wanted = torch.get_autocast_dtype(kind) if dtype is None else dtype
    return [
        t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(wanted) for t in (x, *others)
    ]


def normalized_list(shape: Any) -> list[Any]:
    entries = entries_of(shape, "normalized_shape")
    return [as_integer(n, "normalized_shape", 0) for n in ((shape,) if entries is None else entries)]
