"""Padding layers, one a mode. `padding`: as `functional.pad` takes it, or PyTorch's flat tuple.

PyTorch's tuple counts from the last axis, (left, right, top, bottom, front, back), and is known by its length, twice
the number of x's spatial axes: so two ints are one per axis where x has two, and the sides of its one axis else.
"""

from __future__ import annotations

from typing import Any

from cnnlayers import functional as F
from cnnlayers.functional._common import Array
from cnnlayers.specs.arguments import DataFormat, PadMode, Sides

from .base import Layer, shape_of


def _per_axis(padding: Sides, ndim: int) -> Any:
    """PyTorch's flat tuple as (before, after) pairs, first axis first; any other form as it is."""
    if not isinstance(padding, tuple | list) or len(padding) != 2 * ndim:
        return padding
    if any(isinstance(entry, tuple | list) for entry in padding):
        return padding
    return tuple((padding[i], padding[i + 1]) for i in range(2 * ndim - 2, -1, -2))


class _Pad(Layer):
    _op_backward = staticmethod(F.pad_backward)
    _mode: PadMode
    value: float = 0

    def __init__(self, padding: Sides, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__()
        self.padding, self.data_format = padding, data_format

    def _forward(self, x: Array) -> tuple[Any, Any]:
        padding = _per_axis(self.padding, len(shape_of(x)) - 2)
        return F.pad_forward(x, padding, self._mode, self.value, data_format=self.data_format)


class ConstantPad(_Pad):
    """Pads with one value; negative entries crop."""

    _mode = "constant"

    def __init__(self, padding: Sides, value: float = 0, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__(padding, data_format=data_format)
        self.value = value


class EdgePad(_Pad):
    """Repeats the outermost cell (PyTorch's ReplicationPad)."""

    _mode = "edge"


class ReflectPad(_Pad):
    """Mirrors about the outermost cell, which is not repeated (PyTorch's ReflectionPad)."""

    _mode = "reflect"


class SymmetricPad(_Pad):
    """Mirrors about the border, the outermost cell repeated."""

    _mode = "symmetric"


class WrapPad(_Pad):
    """Goes on at the other end (PyTorch's CircularPad)."""

    _mode = "wrap"
