"""Rectified linear unit. The context keeps where y is not 0: there the gradient passes."""

from __future__ import annotations

from cnnlayers import backends
from cnnlayers.backends import Backend

from .activations import plan_of_same_shape
from .arrays import Array, itemsize, masked
from .call_plan import Context, on_device, plan_of, run_backward


def _relu(b: Backend, spec: None, x: Array) -> Array:
    zero = b.zeros((), x.dtype)
    y = b.xp.maximum(x, zero)
    return b.array(y + zero if itemsize(b, x) == 2 else y, x.dtype)  # NumPy's float16 maximum keeps -0.0; -0.0 + 0 is 0


def _relu_forward(b: Backend, spec: None, x: Array) -> tuple[Array, Array]:
    y = _relu(b, spec, x)
    return y, backends.packed(b, b.array(y != b.zeros((), x.dtype), b.xp.bool))


def _relu_backward(b: Backend, spec: None, dy: Array, passes: Array) -> Array:
    return masked(b, dy, backends.unpacked(b, passes, tuple(dy.shape)))


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
        For `relu_backward`. It has one bit an element (on a GPU one bool).

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> y, ctx = F.relu_forward(np.array([-2.0, 3.0]))
    >>> F.relu_backward(np.ones_like(y), ctx)
    array([0., 1.])

    References
    ----------
    torch.nn.functional.relu
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
    return run_backward("relu", _relu_backward, dy, ctx, "passes")
