"""Layer and RMS normalisation, over the last axes. The rules are those of norm.py."""

from __future__ import annotations

from typing import Any

from cnnlayers.specs.arguments import Size, trailing
from cnnlayers.specs.norm import trailing_rows

from .arrays import Array, accumulator_dtype
from .call_plan import CallPlan, Context, inference_of, on_device, plan_of
from .norm import checked_eps, forward_saving_stats, norm_backend, norm_backward, norm_forward, norm_plan


def _layer_norm_plan(x: Array, gamma: Array | None, beta: Array | None, normalized_shape: Any, eps: Any) -> CallPlan:
    b = norm_backend(x, gamma=gamma, beta=beta)
    shape = tuple(x.shape)
    rows = trailing_rows(shape, trailing(shape, normalized_shape), checked_eps(eps))
    return norm_plan("layer_norm", b, x, rows, gamma, beta)


@on_device
def layer_norm_forward(
    x: Array, normalized_shape: Size, gamma: Array | None = None, beta: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, Context]:
    """Layer normalisation: y = (x - mean) / sqrt(var + eps) * gamma + beta, over the last axes.

    Parameters
    ----------
    x : array
        Any shape of at least one axis, floating.
    normalized_shape : int or sequence of int
        The lengths of the last axes, which share a mean and a variance.
    gamma, beta : array or None
        normalized_shape: the scale and shift, floating; None for neither.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `layer_norm_backward`; `layer_norm` returns y alone. It refers to x and gamma, and has two numbers a row.

    Raises
    ------
    ValueError
        A normalized_shape that x's shape does not end with, a negative eps, another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Notes
    -----
    Half types are computed in float32. The variance is that of centred values. A NaN makes
    its whole row NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.layer_norm(np.array([[1.0, 3.0], [5.0, 9.0]]), 2, eps=0.0)
    array([[-1.,  1.],
           [-1.,  1.]])

    References
    ----------
    Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450; torch.nn.functional.layer_norm
    """
    plan = plan_of(_layer_norm_plan, (x, gamma, beta), normalized_shape, eps)
    return norm_forward(plan, forward_saving_stats, x, gamma, beta)


layer_norm = inference_of(layer_norm_forward)


@on_device
def layer_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `layer_norm`: dx as `group_norm_backward`'s, with sums over the last axes.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `layer_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma, dbeta : array or None
        normalized_shape, of the parameters' dtypes; None for what was not given.
    """
    return norm_backward("layer_norm", dy, ctx)


def _rms_norm_plan(x: Array, gamma: Array | None, normalized_shape: Any, eps: Any) -> CallPlan:
    b = norm_backend(x, gamma=gamma)
    small = checked_eps(float(b.xp.finfo(accumulator_dtype(b, x.dtype)).eps) if eps is None else eps)
    shape = tuple(x.shape)
    rows = trailing_rows(shape, trailing(shape, normalized_shape), small, centred=False)
    return norm_plan("rms_norm", b, x, rows, gamma, None)


@on_device
def rms_norm_forward(
    x: Array, normalized_shape: Size, gamma: Array | None = None, *, eps: float | None = None
) -> tuple[Array, Context]:
    """RMS normalisation: y = x / sqrt(mean(x**2) + eps) * gamma, the mean over the last axes.

    Parameters
    ----------
    x : array
        Any shape of at least one axis, floating.
    normalized_shape : int or sequence of int
        The lengths of the last axes, which share a mean square.
    gamma : array or None
        normalized_shape: the scale, floating.
    eps : float or None
        Added to the mean square, not negative. None is the epsilon of the dtype that x is computed in: 2**-52 for
        float64, 2**-23 for float32 and half types.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `rms_norm_backward`; `rms_norm` returns y alone. It refers to x and gamma, and has a number a row.

    Raises
    ------
    ValueError
        A normalized_shape that x's shape does not end with, a negative eps, another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.rms_norm(np.array([[3.0, 4.0, 0.0, 0.0]]), 4, eps=0.0)
    array([[1.2, 1.6, 0. , 0. ]])

    References
    ----------
    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467; torch.nn.functional.rms_norm
    """
    plan = plan_of(_rms_norm_plan, (x, gamma), normalized_shape, eps)
    return norm_forward(plan, forward_saving_stats, x, gamma, None)


rms_norm = inference_of(rms_norm_forward)


@on_device
def rms_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None]:
    """Gradients of `rms_norm`.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `rms_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma : array or None
        normalized_shape, of gamma's dtype; None without gamma.

    Notes
    -----
    With dxhat = dy * gamma and n cells in a row: dx = rstd * (dxhat - xhat * sum(dxhat * xhat) / n).
    """
    dx, dgamma, _ = norm_backward("rms_norm", dy, ctx)
    return dx, dgamma
