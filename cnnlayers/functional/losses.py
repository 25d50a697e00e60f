"""Losses: softmax cross-entropy and the mean squared error.

Rules of the family: the loss is a 0-d array of x's dtype; sums are float64. The loss of an empty batch is not defined.
The cross-entropy subtracts each row's maximum before it takes exponentials, and leaves the maximum's own out of their
sum: large scores do no harm, and confident ones lose no digits.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import real

from .arrays import Array, accumulator_dtype, cast, writes_in_place
from .call_plan import CallPlan, Context, check_backward, inference_of, on_device, plan_of
from .checks import check_floating, common_backend


def _factor(dy: Any, ctx: Any) -> Array:
    """dy as an array, where it is a number."""
    if isinstance(ctx, Context) and ctx.plan.compute_dtype is not None and isinstance(dy, Real):
        return ctx.plan.backend.full((), real(dy, "dy", finite=False), ctx.plan.compute_dtype)
    return backends.plain(dy)


# ------------------------------------------------------------------------------------------------ softmax cross-entropy
def _cross_entropy_plan(x: Array, labels: Array) -> CallPlan:
    b = common_backend(x=x, labels=labels)
    check_floating(b, x, "x")
    if x.ndim != 2:
        raise ValueError(f"x must be (N, K), a row of scores for each sample, got shape {tuple(x.shape)}")
    if 0 in tuple(x.shape):
        raise ValueError(
            f"the loss of nothing is not defined: x must have rows and classes, got shape {tuple(x.shape)}"
        )
    got = "None" if labels is None else backends.dtype_name(b, labels)
    if got not in backends.INTEGERS:
        raise TypeError(f"labels must be an array of integers, got {got}")
    if tuple(labels.shape) != (x.shape[0],):
        raise ValueError(f"labels must have shape ({x.shape[0]},), one for each row of x, got {tuple(labels.shape)}")
    return CallPlan("softmax_cross_entropy", b, x.dtype, ())


def _labels(b: Backend, labels: Array, classes: int) -> Array:
    """The labels as int64, in range; CuPy's stay as they are, because looking at them would stall the device."""
    if b.name != "cupy":
        given, labels = labels, cast(b, labels, b.xp.int64)  # a uint64 beyond int64 becomes negative
        if b.name == "numpy" and int(labels.view("uint64").max()) < classes:  # where a negative number is a large one
            return labels
        low, high = int(b.xp.min(given)), int(b.xp.max(given))
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels must be from 0 to {classes - 1} for {classes} classes, got values from {low} to {high}"
            )
    return labels


def _at(b: Backend, values: Array, columns: Array) -> Array:
    """Each row's value at its column, (N, 1). By index: a choice for every element takes as long as half the loss."""
    if not writes_in_place(b):
        return b.xp.take_along_axis(values, b.xp.expand_dims(columns, axis=1), axis=1)
    return values[b.arange(values.shape[0]), columns][:, None]


def _replaced(b: Backend, values: Array, columns: Array, new: Array) -> Array:
    """values with `new`, (N, 1), at each row's column. Where arrays can be written by index, `values` is written."""
    rows, classes = values.shape
    if not writes_in_place(b):
        return b.xp.where(b.arange(classes) == b.xp.expand_dims(columns, axis=1), new, values)
    values[b.arange(rows), columns] = new[:, 0]
    return values


# Labels of CuPy alone may be out of range here: others have been looked at.
def _in_range(b: Backend, labels: Array, classes: int) -> Array:
    return b.xp.clip(labels, 0, classes - 1) if b.name == "cupy" else labels


def _marked(b: Backend, values: Array, labels: Array, classes: int) -> Array:
    """A value a row, (N, 1), NaN where the label is out of range."""
    if b.name != "cupy":
        return values
    strange = b.xp.expand_dims((labels < 0) | (labels >= classes), axis=1)
    return b.xp.where(strange, b.full((), math.nan, values.dtype), values)


# Of each row the largest score, `top`, contributes exp(0) = 1 to the sum of exponentials. `rest` is what the others add
# to it: log(sum) = log1p(rest) and softmax at the largest, 1 / (1 + rest), keep their digits however small it is.
def _row_statistics(b: Backend, x: Array) -> tuple[Array, Array]:
    """Of each row `top`, in x's accumulation dtype, and `rest`, in float64: (N, 1)."""
    x = cast(b, x, accumulator_dtype(b, x.dtype))
    top = b.xp.max(x, axis=1, keepdims=True)
    others = _replaced(b, b.xp.exp(x - top), b.xp.argmax(x, axis=1), b.zeros(tuple(top.shape), x.dtype))
    rest = b.xp.sum(others, axis=1, keepdims=True, dtype=b.xp.float64)
    return top, rest + cast(b, top - top, b.xp.float64)  # NaN where the largest is NaN or infinite


def _loss_forward(b: Backend, spec: None, x: Array, labels: Array) -> tuple[Array, Array, Array]:
    """The mean loss, and of each row `top` and `rest`."""
    rows, classes = x.shape
    labels = cast(b, labels, b.xp.int64)
    top, rest = _row_statistics(b, x)
    score = cast(b, _at(b, x, _in_range(b, labels, classes)), top.dtype)
    losses = _marked(b, b.xp.log1p(rest) + cast(b, top - score, b.xp.float64), labels, classes)
    loss = cast(b, b.array(b.xp.sum(losses) / rows, top.dtype), x.dtype)
    return loss, top, cast(b, rest, top.dtype)


def _loss_backward(b: Backend, spec: None, dy: Array, x: Array, labels: Array, top: Array, rest: Array) -> Array:
    rows, classes = x.shape
    labels = cast(b, labels, b.xp.int64)
    scale = _marked(b, dy / (rows * (1.0 + rest)), labels, classes)
    dx = cast(b, b.xp.exp(cast(b, x, top.dtype) - top) * scale, x.dtype)
    # At the label: softmax - 1 = -(the other exponentials) / sum, both terms of that being 0 or more.
    columns = _in_range(b, labels, classes)
    score = cast(b, _at(b, x, columns), top.dtype)
    return _replaced(b, dx, columns, cast(b, ((b.xp.exp(score - top) - 1.0) - rest) * scale, x.dtype))


@on_device
def softmax_cross_entropy_forward(x: Array, labels: Array) -> tuple[Array, Context]:
    """Cross-entropy of a softmax: the mean over rows n of -log(softmax(x[n])[labels[n]]).

    Parameters
    ----------
    x : array
        (N, K), scores ("logits"), floating.
    labels : array
        (N,), integers from 0 to K - 1.

    Returns
    -------
    loss : array
        0-d, of x's dtype.
    ctx : Context
        For `softmax_cross_entropy_backward`; `softmax_cross_entropy` returns the loss alone. It refers to x, and has
        the labels (on the CPU as int64) and two numbers a row.

    Raises
    ------
    ValueError
        No rows or no classes, labels of another shape or, on the CPU, out of range. On a GPU, where looking would stall
        the device, a label out of range makes the loss and its row's gradient NaN.
    TypeError
        Another dtype, arrays of different owners.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> float(F.softmax_cross_entropy(np.array([[0.0, 0.0]]), np.array([1])).round(4))
    0.6931

    References
    ----------
    torch.nn.functional.cross_entropy
    """
    plan = plan_of(_cross_entropy_plan, (x, labels))
    b = plan.backend
    labels = _labels(b, labels, x.shape[1])
    loss, top, rest = plan.run("softmax_cross_entropy_forward", _loss_forward, x, labels)
    return loss, Context(plan, {"x": x, "labels": labels, "top": top, "rest": rest})


softmax_cross_entropy = inference_of(softmax_cross_entropy_forward)


@backends.quiet
def softmax_cross_entropy_backward(dy: Any, ctx: Context) -> Array:
    """dx of `softmax_cross_entropy`: dy * (softmax(x), less 1 at the label) / N.

    Parameters
    ----------
    dy : array or float
        0-d: the factor of the whole gradient.
    ctx : Context
        From `softmax_cross_entropy_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    saved = ctx.arrays.get("x") if isinstance(ctx, Context) else None
    with backends.on_device_of(saved):
        _, dy = check_backward("softmax_cross_entropy", _factor(dy, ctx), ctx)
        arrays = [ctx.arrays[name] for name in ("x", "labels", "top", "rest")]
        dx: Array = ctx.plan.run("softmax_cross_entropy_backward", _loss_backward, dy, *arrays)
        return dx


# --------------------------------------------------------------------------------------------------- mean squared error
def _difference(b: Backend, x: Array, target: Array, dtype: Any) -> Array:
    return b.array(cast(b, x, dtype) - cast(b, target, dtype), dtype)  # NumPy gives a scalar for two 0-d arrays


def _mse_plan(x: Array, target: Array) -> CallPlan:
    b = common_backend(x=x, target=target)
    check_floating(b, x, "x")
    check_floating(b, target, "target")
    if tuple(target.shape) != tuple(x.shape):
        raise ValueError(f"target must have x's shape {tuple(x.shape)}, got {tuple(target.shape)}")
    if x.size == 0:
        raise ValueError(f"the loss of nothing is not defined: x must have elements, got shape {tuple(x.shape)}")
    return CallPlan("mse_loss", b, x.dtype, ())


@on_device
def mse_loss_forward(x: Array, target: Array) -> tuple[Array, Context]:
    """Mean squared error: the mean over all elements of (x - target)**2.

    Parameters
    ----------
    x : array
        Any shape with at least one element, floating.
    target : array
        x's shape, floating. The loss's gradient in it is -dx.

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
    plan = plan_of(_mse_plan, (x, target))
    b = plan.backend
    difference = cast(b, _difference(b, x, target, plan.compute_dtype), b.xp.float64)
    loss = b.array(b.xp.mean(difference * difference), b.xp.float64)
    return b.array(cast(b, loss, x.dtype), x.dtype), Context(plan, {"x": x, "target": target})


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
        b, dy = check_backward("mse_loss", _factor(dy, ctx), ctx)
        x: Array = ctx.arrays["x"]
        difference = _difference(b, x, ctx.arrays["target"], dy.dtype)
        return cast(b, b.array(difference * (dy * (2.0 / x.size)), dy.dtype), ctx.dtype)
