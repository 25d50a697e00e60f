"""Normalisation layers. `weight` and `bias` are the papers' gamma and beta, 1 and 0 in a new layer.

Batch norm alone behaves differently in training and evaluation, and alone keeps running statistics.
"""

from __future__ import annotations

from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.functional.arrays import Array
from cnnlayers.functional.norm import checked_eps
from cnnlayers.specs.arguments import DataFormat, Size, flag, grouped, integer, integers, real

from .base import Layer, full, shape_of
from .sizes import check_format


class _Norm(Layer):
    """Scale and shift by parameters of one shape."""

    data_format: DataFormat = "channels_first"
    _channels = ""  # the attribute that has the number of x's channels

    def _affine(self, shape: tuple[int, ...], affine: bool, bias: bool, name: str = "affine") -> None:
        affine, bias = flag(affine, name), flag(bias, "bias")
        if affine:
            self.own_params["weight"] = full(shape, 1.0)
            if bias:
                self.own_params["bias"] = full(shape, 0.0)

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        if self._channels:
            self._check_channels(x)
        return self._call_op(x)

    def _check_channels(self, x: Array) -> None:
        shape, name = shape_of(x), self._channels
        expected = getattr(self, name)
        last = isinstance(self.data_format, str) and self.data_format == "channels_last"
        channels = shape[-1 if last else 1] if len(shape) > 1 else expected
        if channels != expected:
            raise ValueError(f"x must have {name} = {expected} channels, got {channels} in shape {shape}")


class BatchNorm(_Norm, op="batch_norm"):
    """Normalises each channel over the batch and all spatial axes; in evaluation by its running statistics.

    Parameters
    ----------
    num_features : int
        C, x's channels.
    eps : float
        Added to the variance.
    momentum : float or None
        The weight of the newest batch in the running statistics; None averages all batches alike.
    affine, bias : bool
        Whether the layer has a weight (gamma), and with it a bias (beta), (C,).
    track_running_stats : bool
        Whether there are running statistics. Without them evaluation uses the batch's own.
    unbiased : bool
        Whether the running variance divides by n - 1.
    comm : communicator or None
        Of ranks that share their statistics.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.batch_norm`.

    Notes
    -----
    x: (N, C), (N, C, *spatial), or channels last; y has its shape. Running means begin at 0, variances at 1; an empty
    batch is not counted. A new layer's weight is 1 and its bias 0.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import BatchNorm
    >>> layer = BatchNorm(3)
    >>> layer(np.zeros((8, 3, 32, 32), np.float32)).shape
    (8, 3, 32, 32)
    >>> sorted(layer.state_dict())
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']

    References
    ----------
    Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; torch.nn.BatchNorm2d
    """

    _channels, _shared_attributes = "num_features", ("comm",)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        unbiased: bool = True,
        comm: Any = None,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self.num_features, self.eps = integer(num_features, "num_features", 0), checked_eps(eps)
        self.momentum = None if momentum is None else real(momentum, "momentum")
        self.affine, self.bias, self.track_running_stats = affine, bias, track_running_stats
        self.unbiased, self.comm = flag(unbiased, "unbiased"), comm
        self.data_format = check_format(data_format)
        self._affine((self.num_features,), affine, bias)
        if flag(track_running_stats, "track_running_stats"):
            self.own_buffers["running_mean"] = full((self.num_features,), 0.0)
            self.own_buffers["running_var"] = full((self.num_features,), 1.0)
            self.own_buffers["num_batches_tracked"] = backends.asarray(numpy.zeros((), numpy.int64))

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        self._check_channels(x)
        y, ctx = self._call_op(
            x,
            running_mean=self.own_buffers.get("running_mean"),
            running_var=self.own_buffers.get("running_var"),
            training=self.training,
            momentum=self._batch_weight(),
        )
        # With comm this rank's batch may be empty and the others' not, and all ranks must count alike.
        if self.training and self.track_running_stats and (0 not in x.shape or self.comm is not None):
            self.own_buffers["num_batches_tracked"] += 1
        return y, ctx

    def _batch_weight(self) -> float:
        """The weight of this batch in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        counting = self.training and self.track_running_stats
        return 1.0 / (1 + int(self.own_buffers["num_batches_tracked"])) if counting else 0.0


class GroupNorm(_Norm, op="group_norm"):
    """Normalises each sample's groups of channels; see `functional.group_norm`.

    Parameters
    ----------
    num_groups : int
        It divides num_channels.
    num_channels : int
        C, x's channels.
    eps : float
        Added to the variance.
    affine, bias : bool
        Whether the layer has a weight (gamma), and with it a bias (beta), (C,).
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.group_norm`.

    Notes
    -----
    x: (N, C), (N, C, *spatial), or channels last; y has its shape. A new layer's weight is 1 and its bias 0.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import GroupNorm
    >>> GroupNorm(2, 6)(np.zeros((8, 6, 5))).shape
    (8, 6, 5)

    References
    ----------
    Wu and He 2018, https://arxiv.org/abs/1803.08494; torch.nn.GroupNorm
    """

    _channels = "num_channels"

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self.num_channels = integer(num_channels, "num_channels", 0)
        self.num_groups = grouped(self.num_channels, num_groups)
        self.eps, self.affine, self.bias = checked_eps(eps), affine, bias
        self.data_format = check_format(data_format)
        self._affine((self.num_channels,), affine, bias)


class InstanceNorm(_Norm, op="instance_norm"):
    """Normalises each channel of a sample; see `functional.instance_norm`.

    Parameters
    ----------
    num_features : int
        C, x's channels.
    eps : float
        Added to the variance.
    momentum, track_running_stats : float, bool
        PyTorch's; the latter must be False, for there are no running statistics here.
    affine, bias : bool
        Whether the layer has a weight (gamma), and with it a bias (beta), (C,).
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.instance_norm`.

    Notes
    -----
    x: (N, C, *spatial) or channels last, with more than one cell in a plane; y has its shape. A new layer's weight is 1
    and its bias 0.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import InstanceNorm
    >>> InstanceNorm(6)(np.zeros((8, 6, 5))).shape
    (8, 6, 5)

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky 2016, https://arxiv.org/abs/1607.08022; torch.nn.InstanceNorm2d
    """

    _channels = "num_features"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        if flag(track_running_stats, "track_running_stats"):
            raise ValueError("track_running_stats=True is not offered by InstanceNorm: it keeps no running statistics")
        self.num_features = integer(num_features, "num_features", 0)
        self.eps, self.momentum, self.track_running_stats = checked_eps(eps), momentum, False
        self.affine, self.bias, self.data_format = affine, bias, check_format(data_format)
        self._affine((self.num_features,), affine, bias)


class LayerNorm(_Norm, op="layer_norm"):
    """Normalises over the last axes; see `functional.layer_norm`.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The lengths of the last axes.
    eps : float
        Added to the variance.
    elementwise_affine, bias : bool
        Whether the layer has a weight, and with it a bias, of shape normalized_shape.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.layer_norm`.

    Notes
    -----
    x: any shape that ends with normalized_shape; y has it. A new layer's weight is 1 and its bias 0.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import LayerNorm
    >>> LayerNorm(16)(np.zeros((8, 4, 16))).shape
    (8, 4, 16)

    References
    ----------
    Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450; torch.nn.LayerNorm
    """

    def __init__(
        self, normalized_shape: Size, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape, self.eps = integers(normalized_shape, "normalized_shape", 0), checked_eps(eps)
        self.elementwise_affine, self.bias = elementwise_affine, bias
        self._affine(self.normalized_shape, elementwise_affine, bias, "elementwise_affine")


class RMSNorm(_Norm, op="rms_norm"):
    """Divides by the root mean square over the last axes; see `functional.rms_norm`.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The lengths of the last axes.
    eps : float or None
        Added to the mean square. None is the epsilon of the dtype that x is computed in: 2**-52 for float64, 2**-23 for
        all others.
    elementwise_affine : bool
        Whether the layer has a weight of shape normalized_shape.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.rms_norm`.

    Notes
    -----
    x: any shape that ends with normalized_shape; y has it. A new layer's weight is 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import RMSNorm
    >>> RMSNorm(16)(np.zeros((8, 4, 16))).shape
    (8, 4, 16)

    References
    ----------
    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467; torch.nn.RMSNorm
    """

    def __init__(self, normalized_shape: Size, eps: float | None = None, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.normalized_shape, self.eps = (
            integers(normalized_shape, "normalized_shape", 0),
            None if eps is None else checked_eps(eps),
        )
        self.elementwise_affine = elementwise_affine
        self._affine(self.normalized_shape, elementwise_affine, False, "elementwise_affine")


class LocalResponseNorm(Layer, op="local_response_norm"):
    """Divides each value by a power of the energy of the channels around it; see `functional.local_response_norm`.

    Parameters
    ----------
    size : int
        Channels in a window.
    alpha, beta, k : float
        The factor of the energy, the power, and what is added to the energy.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.local_response_norm`.

    Notes
    -----
    x: (N, C), (N, C, *spatial), or channels last; y has its shape.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import LocalResponseNorm
    >>> LocalResponseNorm(5)(np.zeros((8, 6, 5))).shape
    (8, 6, 5)

    References
    ----------
    Krizhevsky, Sutskever and Hinton 2012, section 3.3; torch.nn.LocalResponseNorm
    """

    def __init__(
        self,
        size: int,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        *,
        data_format: DataFormat = "channels_first",
    ) -> None:
        super().__init__()
        self.size, self.data_format = integer(size, "size", 1), check_format(data_format)
        self.alpha, self.beta, self.k = real(alpha, "alpha"), real(beta, "beta"), real(k, "k")
