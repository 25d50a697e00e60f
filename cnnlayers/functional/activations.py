"""Activations: ReLU, leaky ReLU, GELU, sigmoid and tanh.

Rules of the family: y has x's shape and dtype. Half types are computed in float32 and rounded once. NaN stays NaN. The
context has the least that backward needs: ReLU and leaky ReLU one bit an element (on a GPU one bool), GELU x itself (no
copy), the others y.

The definitions are PyTorch's (torch.nn.functional). GELU: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import real

from .arrays import Array, accumulator_dtype, cast
from .call_plan import CallPlan, Context, inference_of, on_device, plan_of, run_backward
from .checks import check_floating
from .erf import erfc

SQRT_HALF = math.sqrt(0.5)
TANH_SCALE, TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU's tanh form


def in_wide_dtype(b: Backend, array: Array) -> Array:
    """The array in the dtype it is computed in."""
    return cast(b, array, accumulator_dtype(b, array.dtype))


def plan_of_same_shape(x: Array, op: str, spec: Any = None) -> CallPlan:
    """The plan of an op whose y has the shape of x, which must be floating."""
    b = backends.of(x)
    check_floating(b, x, "x")
    return CallPlan(op, b, x.dtype, tuple(x.shape), spec)


def _forward(op: str, portable: Any, x: Array) -> tuple[Array, Context]:
    """y of an op without arguments, and the context, which has y."""
    plan = plan_of(plan_of_same_shape, (x,), op)
    y = plan.run(f"{op}_forward", portable, x)
    return y, Context(plan, {"y": y})


# ----------------------------------------------------------------------------------------------------------- leaky relu
def _leaky_relu_plan(x: Array, negative_slope: Any) -> CallPlan:
    return plan_of_same_shape(x, "leaky_relu", real(negative_slope, "negative_slope"))


@on_device
def leaky_relu_forward(x: Array, negative_slope: float = 0.01) -> tuple[Array, Context]:
    """Leaky ReLU: y = x where x > 0, else negative_slope * x.

    Parameters
    ----------
    x : array
        Any shape, floating.
    negative_slope : float
        The factor of values that are not positive; any finite number.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `leaky_relu_backward`; `leaky_relu` returns y alone. It has one bit an element (on a GPU one bool).

    Raises
    ------
    TypeError
        x has another dtype, or negative_slope is not a number.
    ValueError
        negative_slope is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.leaky_relu(np.array([-2.0, 3.0]), 0.5)
    array([-1.,  3.])

    References
    ----------
    torch.nn.functional.leaky_relu
    """
    plan = plan_of(_leaky_relu_plan, (x,), negative_slope)
    y, positive = plan.run("leaky_relu_forward", _leaky_relu_forward, x)
    return y, Context(plan, {"positive": positive})


def _leaky_relu_forward(b: Backend, slope: float, x: Array) -> tuple[Array, Array]:
    positive = b.array(x > b.zeros((), x.dtype), b.xp.bool)
    return _leaky_relu_backward(b, slope, x, positive), backends.packed(b, positive)


def _leaky_relu_backward(b: Backend, slope: float, dy: Array, positive: Array) -> Array:
    wide = in_wide_dtype(b, dy)
    dx = b.xp.where(backends.unpacked(b, positive, tuple(dy.shape)), wide, wide * slope)
    return b.array(cast(b, dx, dy.dtype), dy.dtype)


leaky_relu = inference_of(leaky_relu_forward)


@on_device
def leaky_relu_backward(dy: Array, ctx: Context) -> Array:
    """dx of `leaky_relu`: dy where x > 0, else negative_slope * dy.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `leaky_relu_forward`.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    return run_backward("leaky_relu", _leaky_relu_backward, dy, ctx, "positive")


# ----------------------------------------------------------------------------------------------------------------- gelu
def _gelu(b: Backend, x: Array, approximate: str) -> Array:
    if approximate == "none":
        return x * (0.5 * erfc(b, x * -SQRT_HALF))
    return x * (0.5 * (1.0 + b.xp.tanh(_tanh_argument(x))))


def _tanh_argument(x: Array) -> Array:
    return TANH_SCALE * (x + TANH_CUBIC * (x * x * x))


def _gelu_slope(b: Backend, x: Array, approximate: str) -> Array:
    """dy/dx."""
    if approximate == "none":
        density = b.xp.exp(-0.5 * (x * x)) * (1.0 / math.sqrt(2 * math.pi))
        return 0.5 * erfc(b, x * -SQRT_HALF) + x * density
    t = b.xp.tanh(_tanh_argument(x))
    inner = TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * (x * x))
    return 0.5 * (1.0 + t) + 0.5 * x * ((1.0 - t) * (1.0 + t)) * inner


def _finite_x(b: Backend, x: Array) -> Array:
    """x with its infinities replaced by numbers at which GELU and its slope have their limits."""
    return b.xp.clip(x, -1e4, 1e4)  # keeps NaN


def _gelu_plan(x: Array, approximate: Any) -> CallPlan:
    plan = plan_of_same_shape(x, "gelu", approximate)
    if not isinstance(approximate, str) or approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return plan


@on_device
def gelu_forward(x: Array, approximate: Literal["none", "tanh"] = "none") -> tuple[Array, Context]:
    """GELU: y = x * P(X <= x) for a standard normal X, that is x / 2 * (1 + erf(x / sqrt(2))).

    Parameters
    ----------
    x : array
        Any shape, floating.
    approximate : {"none", "tanh"}
        "tanh": y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))).

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `gelu_backward`; `gelu` returns y alone. It refers to x: do not change x in place before the backward.

    Raises
    ------
    TypeError
        x has another dtype.
    ValueError
        approximate is something else.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])

    References
    ----------
    Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415; torch.nn.functional.gelu
    """
    plan = plan_of(_gelu_plan, (x,), approximate)
    return plan.run("gelu_forward", _gelu_forward, x), Context(plan, {"x": x})


def _gelu_forward(b: Backend, approximate: str, x: Array) -> Array:
    wide = in_wide_dtype(b, x)
    y = b.xp.where(wide > 1e4, wide, _gelu(b, _finite_x(b, wide), approximate))
    return b.array(cast(b, y, x.dtype), x.dtype)


def _gelu_backward(b: Backend, approximate: str, dy: Array, x: Array) -> Array:
    dx = in_wide_dtype(b, dy) * _gelu_slope(b, _finite_x(b, in_wide_dtype(b, x)), approximate)
    return b.array(cast(b, dx, x.dtype), x.dtype)


gelu = inference_of(gelu_forward)


@on_device
def gelu_backward(dy: Array, ctx: Context) -> Array:
    """dx of `gelu`: dy * (P(X <= x) + x * p(x)) with the normal density p; for "tanh" the derivative of that form.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `gelu_forward`.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    return run_backward("gelu", _gelu_backward, dy, ctx, "x")


# ---------------------------------------------------------------------------------------------------- sigmoid and tanh
@on_device
def sigmoid_forward(x: Array) -> tuple[Array, Context]:
    """Logistic sigmoid: y = 1 / (1 + exp(-x)).

    Parameters
    ----------
    x : array
        Any shape, floating.

    Returns
    -------
    y : array
        x's shape and dtype. Small values keep their relative accuracy: no exponential overflows.
    ctx : Context
        For `sigmoid_backward`; `sigmoid` returns y alone. It refers to y: do not change y in place before the backward.

    Raises
    ------
    TypeError
        x has another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])

    References
    ----------
    torch.nn.functional.sigmoid
    """
    return _forward("sigmoid", _sigmoid_forward, x)


def _sigmoid_forward(b: Backend, spec: None, x: Array) -> Array:
    wide = in_wide_dtype(b, x)
    small = b.xp.exp(-b.xp.abs(wide))  # in (0, 1]: never overflows
    y = b.xp.where(wide < 0, small, b.xp.ones_like(small)) / (1.0 + small)
    return b.array(cast(b, y, x.dtype), x.dtype)


def _sigmoid_backward(b: Backend, spec: None, dy: Array, y: Array) -> Array:
    wide = in_wide_dtype(b, y)
    return b.array(cast(b, in_wide_dtype(b, dy) * (wide * (1.0 - wide)), y.dtype), y.dtype)


sigmoid = inference_of(sigmoid_forward)


@on_device
def sigmoid_backward(dy: Array, ctx: Context) -> Array:
    """dx of `sigmoid`: dy * y * (1 - y).

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `sigmoid_forward`.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    return run_backward("sigmoid", _sigmoid_backward, dy, ctx, "y")


@on_device
def tanh_forward(x: Array) -> tuple[Array, Context]:
    """Hyperbolic tangent: y = tanh(x).

    Parameters
    ----------
    x : array
        Any shape, floating.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `tanh_backward`; `tanh` returns y alone. It refers to y: do not change y in place before the backward.

    Raises
    ------
    TypeError
        x has another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.tanh(np.array([-1000.0, 0.0, 1000.0]))
    array([-1.,  0.,  1.])

    References
    ----------
    torch.nn.functional.tanh
    """
    return _forward("tanh", _tanh_forward, x)


def _tanh_forward(b: Backend, spec: None, x: Array) -> Array:
    return b.array(cast(b, b.xp.tanh(in_wide_dtype(b, x)), x.dtype), x.dtype)


def _tanh_backward(b: Backend, spec: None, dy: Array, y: Array) -> Array:
    wide = in_wide_dtype(b, y)
    return b.array(cast(b, in_wide_dtype(b, dy) * ((1.0 - wide) * (1.0 + wide)), y.dtype), y.dtype)


tanh = inference_of(tanh_forward)


@on_device
def tanh_backward(dy: Array, ctx: Context) -> Array:
    """dx of `tanh`: dy * (1 - y) * (1 + y).

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `tanh_forward`.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    return run_backward("tanh", _tanh_backward, dy, ctx, "y")
