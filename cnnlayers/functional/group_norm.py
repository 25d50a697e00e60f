"""Group and instance normalisation. The rules are those of norm.py."""

from __future__ import annotations

from typing import Any

from cnnlayers.specs.arguments import DataFormat, grouped, layout
from cnnlayers.specs.norm import group_rows, instance_rows

from .arrays import Array
from .call_plan import CallPlan, Context, inference_of, on_device, plan_of
from .norm import (
    checked_eps,
    forward_saving_stats,
    norm_backend,
    norm_backward,
    norm_forward,
    norm_plan,
    single_values_error,
)


def _group_norm_plan(
    x: Array, gamma: Array | None, beta: Array | None, num_groups: Any, eps: Any, data_format: Any
) -> CallPlan:
    b = norm_backend(x, gamma=gamma, beta=beta)
    lay = layout(tuple(x.shape), data_format, least=0)
    rows = group_rows(lay, grouped(lay.channels, num_groups), checked_eps(eps))
    if rows.count == 1 and 0 not in rows.shape:
        raise single_values_error(rows, "group", "take fewer groups")
    return norm_plan("group_norm", b, x, rows, gamma, beta)


@on_device
def group_norm_forward(
    x: Array,
    num_groups: int,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Group normalisation: y = (x - mean) / sqrt(var + eps) * gamma + beta, for groups of channels of a sample.

    Parameters
    ----------
    x : array
        (N, C), (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); floating.
    num_groups : int
        Each sample's channels are divided into this many groups of C / num_groups neighbours.
    gamma, beta : array or None
        (C,): the scale and shift, floating; None for neither.
    eps : float
        Added to the variance, not negative.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `group_norm_backward`; `group_norm` returns y alone. It refers to x and gamma, and has two numbers a group.

    Raises
    ------
    ValueError
        num_groups that does not divide C, one value per group, a negative eps, another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Notes
    -----
    Half types are computed in float32. The variance is that of centred values. A NaN makes
    its whole group NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.group_norm(np.array([[1.0, 3.0, 5.0, 9.0]]), 2, eps=0.0)
    array([[-1.,  1., -1.,  1.]])

    References
    ----------
    Wu and He 2018, https://arxiv.org/abs/1803.08494; torch.nn.functional.group_norm
    """
    plan = plan_of(_group_norm_plan, (x, gamma, beta), num_groups, eps, data_format)
    return norm_forward(plan, forward_saving_stats, x, gamma, beta)


group_norm = inference_of(group_norm_forward)


@on_device
def group_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `group_norm`.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `group_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma, dbeta : array or None
        (C,), of the parameters' dtypes; None for what was not given.

    Notes
    -----
    With dxhat = dy * gamma and n cells in a group, both sums over the group:

        dx = rstd * (dxhat - sum(dxhat) / n - xhat * sum(dxhat * xhat) / n)
    """
    return norm_backward("group_norm", dy, ctx)


def _instance_norm_plan(x: Array, gamma: Array | None, beta: Array | None, eps: Any, data_format: Any) -> CallPlan:
    b = norm_backend(x, gamma=gamma, beta=beta)
    rows = instance_rows(layout(tuple(x.shape), data_format, least=0), checked_eps(eps))
    if rows.count == 1 and 0 not in rows.shape:
        raise single_values_error(rows, "instance", "it needs two spatial cells or more")
    return norm_plan("instance_norm", b, x, rows, gamma, beta)


@on_device
def instance_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Instance normalisation: y = (x - mean) / sqrt(var + eps) * gamma + beta, for each channel of a sample.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C), with more than one cell in a plane;
        floating.
    gamma, beta : array or None
        (C,): the scale and shift, floating; None for neither.
    eps : float
        Added to the variance, not negative.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `instance_norm_backward`; `instance_norm` returns y alone. It refers to x and gamma, and has two numbers a
        plane.

    Raises
    ------
    ValueError
        One value per plane, as (N, C) always has, a negative eps, another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Notes
    -----
    Half types are computed in float32. The variance is that of centred values. A NaN makes
    its whole plane NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.instance_norm(np.array([[[1.0, 3.0], [5.0, 9.0]]]), eps=0.0)
    array([[[-1.,  1.],
            [-1.,  1.]]])

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky 2016, https://arxiv.org/abs/1607.08022; torch.nn.functional.instance_norm
    """
    plan = plan_of(_instance_norm_plan, (x, gamma, beta), eps, data_format)
    return norm_forward(plan, forward_saving_stats, x, gamma, beta)


instance_norm = inference_of(instance_norm_forward)


@on_device
def instance_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `instance_norm`: as `group_norm_backward`'s, with one channel a group.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `instance_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma, dbeta : array or None
        (C,), of the parameters' dtypes; None for what was not given.
    """
    return norm_backward("instance_norm", dy, ctx)
