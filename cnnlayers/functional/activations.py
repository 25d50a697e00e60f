"""Activations: leaky ReLU, GELU, sigmoid, tanh and softmax.

Rules of the family: y has x's shape and dtype. Half types are computed in float32 and rounded once. NaN stays NaN. The
context has the least that backward needs: leaky ReLU one bool an element, GELU x itself (no copy), the others y.

The definitions are PyTorch's (torch.nn.functional). GELU: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import real

from ._common import (
    Array,
    Context,
    Plan,
    accumulator_dtype,
    cast,
    check_backward,
    check_floating,
    inference_of,
    masked,
    on_device,
    plan_of,
)
from .erf import erfc

SQRT_HALF = math.sqrt(0.5)
TANH_SCALE, TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU's tanh form


def in_wide_dtype(b: Backend, array: Array) -> Array:
    """The array in the dtype it is computed in."""
    return cast(b, array, accumulator_dtype(b, array.dtype))


def plan_of_same_shape(x: Array, op: str, spec: Any = None) -> Plan:
    """The plan of an op whose y has the shape of x, which must be floating."""
    b = backends.of(x)
    check_floating(b, x, "x")
    return Plan(op, b, x.dtype, tuple(x.shape), spec)


# ----------------------------------------------------------------------------------------------------------------- relu
def _relu(b: Backend, spec: None, x: Array) -> Array:
    return b.array(b.xp.maximum(x, b.zeros((), x.dtype)), x.dtype)


def _relu_forward(b: Backend, spec: None, x: Array) -> tuple[Array, Array]:
    y = _relu(b, spec, x)
    return y, b.array(y != b.zeros((), x.dtype), b.xp.bool)


def _relu_backward(b: Backend, spec: None, dy: Array, passes: Array) -> Array:
    return masked(b, dy, passes)


@on_device
def relu(x: Array) -> Array:
    """Rectified linear unit: y = x where x > 0, else 0.

    This form saves nothing; `relu_forward` is for training.

    Parameters
    ----------
    x : array
        Any shape, floating.

    Returns
    -------
    y : array
        x's shape and dtype. NaN stays NaN.

    Raises
    ------
    TypeError
        x has another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.relu(np.array([-2.0, 3.0]))
    array([0., 3.])

    References
    ----------
    torch.nn.functional.relu
    """
    return plan_of(plan_of_same_shape, (x,), "relu").run("relu", _relu, x)


@on_device
def relu_forward(x: Array) -> tuple[Array, Context]:
    """`relu` for training: y and the context.

    The parameter and errors are those of `relu`.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `relu_backward`. It has one bool an element.
    """
    plan = plan_of(plan_of_same_shape, (x,), "relu")
    y, passes = plan.run("relu_forward", _relu_forward, x)
    return y, Context(plan, {"passes": passes})


@on_device
def relu_backward(dy: Array, ctx: Context) -> Array:
    """dx of `relu`: dy where x was positive or NaN, else 0.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `relu_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    _, dy = check_backward("relu", dy, ctx, exact=True)
    return ctx.plan.run("relu_backward", _relu_backward, dy, ctx.arrays["passes"])


# ----------------------------------------------------------------------------------------------------------- leaky relu
def _leaky_relu_plan(x: Array, negative_slope: Any) -> Plan:
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
        For `leaky_relu_backward`; `leaky_relu` returns y alone. It has one bool an element.

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
    b = plan.backend
    positive = b.array(x > b.zeros((), x.dtype), b.xp.bool)
    return _leaky(b, in_wide_dtype(b, x), positive, plan.spec, x.dtype), Context(plan, {"positive": positive})


def _leaky(b: Backend, x: Array, positive: Array, slope: float, dtype: Any) -> Array:
    return b.array(cast(b, b.xp.where(positive, x, x * slope), dtype), dtype)


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
    b, dy = check_backward("leaky_relu", dy, ctx)
    return _leaky(b, dy, ctx.arrays["positive"], ctx.spec, ctx.dtype)


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


def _gelu_plan(x: Array, approximate: Any) -> Plan:
    plan = plan_of_same_shape(x, "gelu", approximate)
    if approximate not in ("none", "tanh"):
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
    b = plan.backend
    wide = in_wide_dtype(b, x)
    inner = _gelu(b, _finite_x(b, wide), approximate)
    y = b.xp.where(wide > 1e4, wide, inner)
    return b.array(cast(b, y, x.dtype), x.dtype), Context(plan, {"x": x})


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
    b, dy = check_backward("gelu", dy, ctx)
    x = _finite_x(b, cast(b, ctx.arrays["x"], dy.dtype))
    return b.array(cast(b, dy * _gelu_slope(b, x, ctx.spec), ctx.dtype), ctx.dtype)


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
    plan = plan_of(plan_of_same_shape, (x,), "sigmoid")
    b = plan.backend
    wide = in_wide_dtype(b, x)
    small = b.xp.exp(-b.xp.abs(wide))  # in (0, 1]: never overflows
    y = b.xp.where(wide < 0, small, b.xp.ones_like(small)) / (1.0 + small)
    y = b.array(cast(b, y, x.dtype), x.dtype)
    return y, Context(plan, {"y": y})


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
    b, dy = check_backward("sigmoid", dy, ctx)
    y = cast(b, ctx.arrays["y"], dy.dtype)
    return b.array(cast(b, dy * (y * (1.0 - y)), ctx.dtype), ctx.dtype)


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
    plan = plan_of(plan_of_same_shape, (x,), "tanh")
    b = plan.backend
    y = b.array(cast(b, b.xp.tanh(in_wide_dtype(b, x)), x.dtype), x.dtype)
    return y, Context(plan, {"y": y})


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
    b, dy = check_backward("tanh", dy, ctx)
    y = cast(b, ctx.arrays["y"], dy.dtype)
    return b.array(cast(b, dy * ((1.0 - y) * (1.0 + y)), ctx.dtype), ctx.dtype)
