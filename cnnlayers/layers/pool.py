"""Pooling layers: no parameters, only arguments. Their rules are those of `cnnlayers.functional`'s pools."""

from __future__ import annotations

from typing import Any, get_args

from cnnlayers.functional.arrays import Array
from cnnlayers.functional.lp_pool import norm_exponent
from cnnlayers.specs.arguments import DataFormat, Padding, Size, Ties, choice, flag, integer

from .base import Layer
from .sizes import check_format, check_window


class _WindowPool(Layer):
    """What pools over windows share."""

    def _set_window(
        self, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, data_format: Any
    ) -> None:
        check_window(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.ceil_mode, self.data_format = flag(ceil_mode, "ceil_mode"), check_format(data_format)


class MaxPool(_WindowPool, op="max_pool"):
    """The maximum of each window; see `functional.max_pool`.

    Parameters
    ----------
    kernel_size, stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis. stride None is kernel_size.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full".
    ceil_mode : bool
        Also windows that overhang the end, if they start inside the input or its left padding.
    return_indices : bool
        Forward gives `(y, indices)`, as `MaxUnpool` takes them.
    ties : {"first", "all", "split"}
        Who gets the gradient among equal maxima.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.max_pool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C,
    *windows).

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import MaxPool
    >>> MaxPool(2)(np.zeros((8, 3, 32, 32))).shape
    (8, 3, 16, 16)

    References
    ----------
    torch.nn.MaxPool2d
    """

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
        self._set_window(kernel_size, stride, padding, dilation, ceil_mode, data_format)
        choice(ties, "ties", get_args(Ties))
        self.ties, self.return_indices = ties, flag(return_indices, "return_indices")


class AvgPool(_WindowPool, op="avg_pool"):
    """The mean of each window; see `functional.avg_pool`.

    Parameters
    ----------
    kernel_size, stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis. stride None is kernel_size.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full".
    ceil_mode : bool
        Also windows that overhang the end, if they start inside the input or its left padding.
    count_include_pad : bool
        Whether cells of the declared padding count in the divisor.
    divisor_override : int or None
        The divisor of all windows.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.avg_pool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C,
    *windows).

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import AvgPool
    >>> AvgPool(2)(np.zeros((8, 3, 32, 32))).shape
    (8, 3, 16, 16)

    References
    ----------
    torch.nn.AvgPool2d
    """

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
        self._set_window(kernel_size, stride, padding, dilation, ceil_mode, data_format)
        self.count_include_pad = flag(count_include_pad, "count_include_pad")
        if divisor_override is not None and integer(divisor_override, "divisor_override") == 0:
            raise ValueError("divisor_override must be any int but 0, got 0")
        self.divisor_override = divisor_override


class SumPool(_WindowPool, op="sum_pool"):
    """The sum of each window; see `functional.sum_pool`.

    Parameters
    ----------
    kernel_size, stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis. stride None is kernel_size.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full".
    ceil_mode : bool
        Also windows that overhang the end, if they start inside the input or its left padding.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.sum_pool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C,
    *windows).

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import SumPool
    >>> SumPool(2)(np.ones((1, 1, 4))).tolist()
    [[[2.0, 2.0]]]

    References
    ----------
    torch.nn.AvgPool2d with divisor_override=1
    """

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
        self._set_window(kernel_size, stride, padding, dilation, ceil_mode, data_format)


class LpPool(_WindowPool, op="lp_pool"):
    """The p-norm of each window; see `functional.lp_pool`.

    Parameters
    ----------
    norm_type : float
        The exponent p, positive and finite.
    kernel_size, stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis. stride None is kernel_size.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full".
    ceil_mode : bool
        Also windows that overhang the end, if they start inside the input or its left padding.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.lp_pool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C,
    *windows).

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import LpPool
    >>> LpPool(2, 2)(np.array([[[3.0, 4.0]]]))
    array([[[5.]]])

    References
    ----------
    torch.nn.LPPool2d
    """

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
        norm_exponent(norm_type)
        self.norm_type = norm_type
        self._set_window(kernel_size, stride, padding, dilation, ceil_mode, data_format)


class MaxUnpool(Layer, op="max_unpool"):
    """Puts each value back to where `MaxPool` found it: `layer(x, indices, output_size=None)`.

    Parameters
    ----------
    kernel_size, stride, padding : int or sequence of int
        Those of the pool that is undone.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.max_unpool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C,
    *output_size).

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import MaxUnpool
    >>> from cnnlayers.layers import MaxPool
    >>> y, indices = MaxPool(2, return_indices=True)(np.array([[[1.0, 5.0]]]))
    >>> MaxUnpool(2)(y, indices)
    array([[[0., 5.]]])

    References
    ----------
    torch.nn.MaxUnpool2d; see `functional.max_unpool`
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        *,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        check_window(kernel_size=kernel_size, stride=stride, padding=padding, named=False)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.data_format = check_format(data_format)

    def compute_forward(  # type: ignore[override]
        self, x: Array, indices: Array, output_size: Size | None = None
    ) -> tuple[Any, Any]:
        return self._call_op(x, indices=indices, output_size=output_size)
