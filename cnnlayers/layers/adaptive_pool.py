"""Adaptive and global pooling layers: no parameters, only the number of windows."""

from __future__ import annotations

from cnnlayers.specs.arguments import DataFormat, OutputSize, flag

from .base import Layer
from .sizes import check_format, check_output_size


class AdaptiveAvgPool(Layer, op="adaptive_avg_pool"):
    """The mean of as many windows as `output_size` says; see `functional.adaptive_avg_pool`.

    Parameters
    ----------
    output_size : int, None or sequence of them
        Windows, for all spatial axes or one per axis; None keeps an axis.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.adaptive_avg_pool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C,
    *output_size).

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import AdaptiveAvgPool
    >>> AdaptiveAvgPool((7, None))(np.zeros((8, 3, 32, 20))).shape
    (8, 3, 7, 20)

    References
    ----------
    torch.nn.AdaptiveAvgPool2d
    """

    def __init__(self, output_size: OutputSize, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__()
        check_output_size(output_size)
        self.output_size, self.data_format = output_size, check_format(data_format)


class AdaptiveMaxPool(Layer, op="adaptive_max_pool"):
    """The maximum of as many windows as `output_size` says; see `functional.adaptive_max_pool`.

    Parameters
    ----------
    output_size : int, None or sequence of them
        Windows, for all spatial axes or one per axis; None keeps an axis.
    return_indices : bool
        PyTorch's; it must be False.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.adaptive_max_pool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C,
    *output_size).

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import AdaptiveMaxPool
    >>> AdaptiveMaxPool(7)(np.zeros((8, 3, 32, 20))).shape
    (8, 3, 7, 7)

    References
    ----------
    torch.nn.AdaptiveMaxPool2d
    """

    def __init__(
        self, output_size: OutputSize, return_indices: bool = False, *, data_format: DataFormat = "channels_first"
    ) -> None:
        super().__init__()
        if flag(return_indices, "return_indices"):
            raise ValueError("return_indices=True is not offered by AdaptiveMaxPool: MaxPool gives indices")
        check_output_size(output_size)
        self.output_size, self.return_indices, self.data_format = output_size, False, check_format(data_format)


class _Global(Layer):
    output_size = 1

    def __init__(self, *, data_format: DataFormat = "channels_first") -> None:
        super().__init__()
        self.data_format = check_format(data_format)


class GlobalAvgPool(_Global, op="adaptive_avg_pool"):
    """The mean of each channel.

    Parameters
    ----------
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.adaptive_avg_pool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C, 1,
    ...), a cell on every spatial axis.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import GlobalAvgPool
    >>> GlobalAvgPool()(np.zeros((8, 3, 32, 32))).shape
    (8, 3, 1, 1)

    References
    ----------
    torch.nn.AdaptiveAvgPool2d(1)
    """


class GlobalMaxPool(_Global, op="adaptive_max_pool"):
    """The maximum of each channel.

    Parameters
    ----------
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.adaptive_max_pool`.

    Notes
    -----
    x: (N, C, *spatial), or (N, *spatial, C) with data_format "channels_last"; one to three spatial axes. y: (N, C, 1,
    ...), a cell on every spatial axis.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import GlobalMaxPool
    >>> GlobalMaxPool()(np.zeros((8, 3, 32, 32))).shape
    (8, 3, 1, 1)

    References
    ----------
    torch.nn.AdaptiveMaxPool2d(1)
    """
