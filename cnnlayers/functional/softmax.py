"""Softmax along one axis.

y has x's shape and dtype; half types are computed in float32, sums are float64. The context has y.

Source: torch.nn.functional.softmax.
"""

from __future__ import annotations

from typing import Any

from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import integer

from .activations import in_wide_dtype, plan_of_same_shape
from .arrays import Array, cast
from .call_plan import CallPlan, Context, inference_of, on_device, plan_of, run_backward


def _plan(x: Array, axis: Any) -> CallPlan:
    plan = plan_of_same_shape(x, "softmax", integer(axis, "axis"))
    if not -x.ndim <= plan.spec < x.ndim:
        raise ValueError(f"axis must be an axis of x, whose shape is {tuple(x.shape)}, got {plan.spec}")
    return plan


@on_device
def softmax_forward(x: Array, axis: int = 1) -> tuple[Array, Context]:
    """Softmax: y = exp(x) / sum(exp(x)), the sum along one axis.

    Parameters
    ----------
    x : array
        At least one axis, floating.
    axis : int
        The axis that sums to 1; a negative one counts from the end.

    Returns
    -------
    y : array
        x's shape and dtype. The maximum is subtracted first, so large values do no harm.
    ctx : Context
        For `softmax_backward`; `softmax` returns y alone. It refers to y: do not change y in place before the backward.

    Raises
    ------
    TypeError
        x has another dtype, or axis is not an integer.
    ValueError
        x has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.softmax(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])

    References
    ----------
    torch.nn.functional.softmax
    """
    plan = plan_of(_plan, (x,), axis)
    y = plan.run("softmax_forward", _softmax_forward, x)
    return y, Context(plan, {"y": y})


def _softmax_forward(b: Backend, axis: int, x: Array) -> Array:
    if x.size == 0:
        return b.zeros(tuple(x.shape), x.dtype)
    wide = in_wide_dtype(b, x)
    powers = b.xp.exp(wide - b.xp.max(wide, axis=axis, keepdims=True))
    return cast(b, powers / _sum(b, powers, axis), x.dtype)


def _softmax_backward(b: Backend, axis: int, dy: Array, y: Array) -> Array:
    wide, wide_dy = in_wide_dtype(b, y), in_wide_dtype(b, dy)
    return cast(b, wide * (wide_dy - _sum(b, wide_dy * wide, axis)), y.dtype)


def _sum(b: Backend, array: Array, axis: int) -> Array:
    """The sum along an axis, taken in float64, in the array's dtype."""
    return cast(b, b.xp.sum(array, axis=axis, keepdims=True, dtype=b.xp.float64), array.dtype)


softmax = inference_of(softmax_forward)


@on_device
def softmax_backward(dy: Array, ctx: Context) -> Array:
    """dx of `softmax`: y * (dy - sum(dy * y)), the sum along its axis.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `softmax_forward`.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    return run_backward("softmax", _softmax_backward, dy, ctx, "y")
