"""The mean squared error.

Rules of the family: the loss is a 0-d array of x's dtype; sums are float64. The loss of an empty batch is not defined.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import real

from .common import Array, Context, accumulator, cast, floating, inference_of, on_device, opened, owner


def _difference(b: Backend, x: Array, target: Array, dtype: Any) -> Array:
    return cast(b, x, dtype) - cast(b, target, dtype)


@on_device
def mse_loss_forward(x: Array, target: Array) -> tuple[Array, Context]:
    """Mean squared error: the mean over all elements of (x - target)**2.

    Parameters
    ----------
    x : array
        Any shape with at least one element, floating.
    target : array
        x's shape, floating. It has no gradient.

    Returns
    -------
    loss : array
        0-d, of x's dtype.
    ctx : Context
        For `mse_loss_backward`; `mse_loss` returns the loss alone. It refers to x and target: do not change them in
        place before the backward.

    Raises
    ------
    ValueError
        target has another shape, or x has no elements.
    TypeError
        Another dtype, or arrays of different owners.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> float(F.mse_loss(np.array([1.0, 3.0]), np.array([1.0, 1.0])))
    2.0

    References
    ----------
    torch.nn.functional.mse_loss
    """
    b = owner(x=x, target=target)
    floating(b, x, "x")
    floating(b, target, "target")
    if tuple(target.shape) != tuple(x.shape):
        raise ValueError(f"target must have x's shape {tuple(x.shape)}, got {tuple(target.shape)}")
    if x.size == 0:
        raise ValueError(f"the loss of nothing is not defined: x must have elements, got shape {tuple(x.shape)}")
    difference = _difference(b, x, target, accumulator(b, x.dtype))
    loss = b.xp.mean(cast(b, difference * difference, b.xp.float64))
    arrays = {"x": x, "target": target}
    return b.array(cast(b, b.array(loss, b.xp.float64), x.dtype), x.dtype), Context(
        "mse_loss", b, x.dtype, (), None, arrays
    )


mse_loss = inference_of(mse_loss_forward)


@backends.quiet
def mse_loss_backward(dy: Any, ctx: Context) -> Array:
    """dx of `mse_loss`: dy * 2 * (x - target) / n, with n elements.

    Parameters
    ----------
    dy : array or float
        0-d: the factor of the whole gradient.
    ctx : Context
        From `mse_loss_forward`.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    kept = ctx.arrays.get("x") if isinstance(ctx, Context) else None
    with backends.on_device_of(kept):
        if isinstance(ctx, Context) and isinstance(dy, Real):
            dy = ctx.backend.full((), real(dy, "dy", finite=False), accumulator(ctx.backend, ctx.dtype))
        b, dy = opened("mse_loss", backends.plain(dy), ctx)
        x: Array = ctx.arrays["x"]
        difference = _difference(b, x, ctx.arrays["target"], dy.dtype)
        return cast(b, difference * (dy * (2.0 / x.size)), ctx.dtype)
