"""Dropout, in its inverted form: what is not dropped is divided by the probability of not being dropped, in training.

The context has one bool an element. What is dropped is 0, also where it was NaN or infinite.

Sources: torch.nn.functional.dropout; https://cs231n.github.io/neural-networks-2/#reg.
"""

from __future__ import annotations

from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import flag, real

from .arrays import Array, accumulator_dtype, cast, masked
from .call_plan import CallPlan, Context, check_backward, inference_of, on_device, plan_of
from .checks import check_floating


def _scaled(b: Backend, array: Array, mask: Array, p: float) -> Array:
    """The kept values, divided by the probability of keeping one."""
    if p == 1:  # nothing is kept, and 1 / 0 would warn
        return b.zeros(tuple(array.shape), array.dtype)
    return masked(b, array * (1 / (1 - p)), mask)


def _plan(x: Array, p: Any, training: Any) -> CallPlan:
    """The plan of a dropout. Its spec is p, None where nothing is to be dropped."""
    b = backends.of(x)
    check_floating(b, x, "x")
    p = real(p, "p")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability, from 0 to 1, got {p}")
    drops = flag(training, "training") and p > 0
    return CallPlan("dropout", b, x.dtype, tuple(x.shape), p if drops else None)


@on_device
def dropout_forward(x: Array, p: float = 0.5, *, training: bool = False, rng: Any = None) -> tuple[Array, Context]:
    """Dropout: in training y = 0 with probability p, else x / (1 - p), for each element; otherwise y is x itself.

    Parameters
    ----------
    x : array
        Any shape, floating.
    p : float
        The probability of dropping an element, from 0 to 1.
    training : bool
        Whether anything is dropped.
    rng : Generator, int or None
        The backend's random Generator, which advances; or a seed, which gives the same mask every time; None for a new
        mask.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `dropout_backward`; `dropout` returns y alone. It has one bool an element, and nothing where y is x.

    Raises
    ------
    ValueError
        p outside [0, 1], a negative seed.
    TypeError
        Another dtype or kind of argument.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> y = F.dropout(np.ones(1000), 0.25, training=True, rng=0)
    >>> np.unique(y).round(4)
    array([0.    , 1.3333])

    References
    ----------
    torch.nn.functional.dropout
    """
    plan = plan_of(_plan, (x,), p, training)
    b = plan.backend
    backends.check_rng(b, rng)
    if plan.spec is None:
        return x, Context(plan)
    # On CuPy the key of the random numbers is drawn here: kernel and array code take the same.
    source = backends.philox_key(b, rng) if b.name == "cupy" else rng
    y, mask = plan.run("dropout_forward", _dropout_forward, x, source)
    return y, Context(plan, {"mask": mask})


def _dropout_forward(b: Backend, p: float, x: Array, source: Any) -> tuple[Array, Array]:
    mask = b.array(backends.uniform(b, tuple(x.shape), source) >= p, b.xp.bool)
    return _dropout_backward(b, p, x, mask), mask


def _dropout_backward(b: Backend, p: float, dy: Array, mask: Array) -> Array:
    return cast(b, _scaled(b, cast(b, dy, accumulator_dtype(b, dy.dtype)), mask, p), dy.dtype)


dropout = inference_of(dropout_forward)


@on_device
def dropout_backward(dy: Array, ctx: Context) -> Array:
    """dx of `dropout`: dy / (1 - p) where x was kept, else 0; dy itself where y was x.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `dropout_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    _, dy = check_backward("dropout", dy, ctx, exact=True)
    if ctx.spec is None:
        return dy
    dx: Array = ctx.plan.run("dropout_backward", _dropout_backward, dy, ctx.arrays["mask"])
    return dx
