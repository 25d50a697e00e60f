"""Padding layers, one a mode. `padding`: as `functional.pad` takes it, or PyTorch's flat tuple.

PyTorch's tuple counts from the last axis, (left, right, top, bottom, front, back), and is known by its length, twice
the number of x's spatial axes: so two ints are one per axis where x has two, and the sides of its one axis else.
"""

from __future__ import annotations

from typing import Any

from cnnlayers import functional as F
from cnnlayers.functional.arrays import Array
from cnnlayers.specs.arguments import DataFormat, PadMode, Sides

from .base import Layer, shape_of
from .sizes import check_format, check_pad


def _per_axis(padding: Sides, ndim: int) -> Any:
    """PyTorch's flat tuple as (before, after) pairs, first axis first; any other form as it is."""
    if not isinstance(padding, tuple | list) or len(padding) != 2 * ndim:
        return padding
    if any(isinstance(entry, tuple | list) for entry in padding):
        return padding
    return tuple((padding[i], padding[i + 1]) for i in range(2 * ndim - 2, -1, -2))


class _Pad(Layer, op="pad"):
    _mode: PadMode
    value: float = 0

    def __init__(self, padding: Sides, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__()
        check_pad(padding)
        self.padding, self.data_format = padding, check_format(data_format)

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        padding = _per_axis(self.padding, len(shape_of(x)) - 2)
        return F.pad_forward(x, padding, self._mode, self.value, data_format=self.data_format)


class ConstantPad(_Pad):
    """Pads with one value.

    Parameters
    ----------
    padding : int, sequence of int or of pairs
        Cells, an int, one per spatial axis or a (before, after) pair per axis; negative entries crop.
    value : number
        What the new cells hold.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.pad`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: x's shape
    with the spatial axes longer.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import ConstantPad
    >>> ConstantPad(1, 7.0)(np.zeros((1, 1, 2)))
    array([[[7., 0., 0., 7.]]])

    References
    ----------
    torch.nn.ConstantPad2d
    """

    _mode = "constant"

    def __init__(self, padding: Sides, value: float = 0, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__(padding, data_format=data_format)
        self.value = value


class EdgePad(_Pad):
    """Repeats the outermost cell.

    Parameters
    ----------
    padding : int, sequence of int or of pairs
        Cells, an int, one per spatial axis or a (before, after) pair per axis; negative entries crop.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.pad`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: x's shape
    with the spatial axes longer.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import EdgePad
    >>> EdgePad(1)(np.array([[[1.0, 2.0]]]))
    array([[[1., 1., 2., 2.]]])

    References
    ----------
    torch.nn.ReplicationPad2d; numpy.pad's "edge"
    """

    _mode = "edge"


class ReflectPad(_Pad):
    """Mirrors about the outermost cell, which is not repeated.

    Parameters
    ----------
    padding : int, sequence of int or of pairs
        Cells, an int, one per spatial axis or a (before, after) pair per axis; negative entries crop.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.pad`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: x's shape
    with the spatial axes longer.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import ReflectPad
    >>> ReflectPad(1)(np.array([[[1.0, 2.0]]]))
    array([[[2., 1., 2., 1.]]])

    References
    ----------
    torch.nn.ReflectionPad2d
    """

    _mode = "reflect"


class SymmetricPad(_Pad):
    """Mirrors about the border, so that the outermost cell is repeated.

    Parameters
    ----------
    padding : int, sequence of int or of pairs
        Cells, an int, one per spatial axis or a (before, after) pair per axis; negative entries crop.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.pad`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: x's shape
    with the spatial axes longer.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import SymmetricPad
    >>> SymmetricPad(2)(np.array([[[1.0, 2.0]]]))
    array([[[2., 1., 1., 2., 2., 1.]]])

    References
    ----------
    numpy.pad's "symmetric"
    """

    _mode = "symmetric"


class WrapPad(_Pad):
    """Continues at the other end.

    Parameters
    ----------
    padding : int, sequence of int or of pairs
        Cells, an int, one per spatial axis or a (before, after) pair per axis; negative entries crop.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.pad`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: x's shape
    with the spatial axes longer.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import WrapPad
    >>> WrapPad(1)(np.array([[[1.0, 2.0, 3.0]]]))
    array([[[3., 1., 2., 3., 1.]]])

    References
    ----------
    torch.nn.CircularPad2d
    """

    _mode = "wrap"
