"""The course's losses. Both take scores (N, C) and labels (N,), average over N, and return (loss, dx).

The loss is a plain number (numpy.float64) on every backend, since notebooks print it, plot it and add to it. A label
out of range is a ValueError on NumPy; on a GPU it makes the loss and its row's gradient NaN.
"""

from __future__ import annotations

from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.backends import Backend
from cnnlayers.cs231n._arrays import beside, rank, together
from cnnlayers.functional.arrays import Array, accumulator_dtype, cast
from cnnlayers.functional.call_plan import on_device
from cnnlayers.functional.checks import common_backend


def _scores_and_labels(x: Any, y: Any) -> tuple[Backend, Array, Array]:
    """The scores, floating, and the labels as an integer array beside them. Raises TypeError and ValueError."""
    b, (x,) = together(x=x)
    rank(x, 2, "(N, C)")
    if x.shape[0] == 0:
        raise ValueError(f"x must have a row: the loss of nothing is not defined, got shape {tuple(x.shape)}")
    y = beside(b, y, "y")
    common_backend(x=x, y=y)
    if backends.dtype_name(b, y) not in backends.INTEGERS:
        raise TypeError(f"y must hold integer labels, got {y.dtype}")
    if tuple(y.shape) != (x.shape[0],):
        raise ValueError(f"y must have shape ({x.shape[0]},), one label for each row of x, got {tuple(y.shape)}")
    if b.name != "cupy" and not bool(b.xp.all((y >= 0) & (y < x.shape[1]))):
        raise ValueError(f"y must hold labels from 0 to {x.shape[1] - 1}, got {int(b.xp.min(y))} to {int(b.xp.max(y))}")
    return b, x, cast(b, y, b.xp.int64)


@on_device
def softmax_loss(x: Any, y: Any) -> tuple[numpy.float64, Array]:
    """Softmax cross-entropy: the mean over rows of log(sum(exp(x))) - x[label], and its gradient."""
    b, x, y = _scores_and_labels(x, y)
    loss, ctx = F.softmax_cross_entropy_forward(x, y)
    return numpy.float64(float(loss)), F.softmax_cross_entropy_backward(b.array(1.0, loss.dtype), ctx)


@on_device
def svm_loss(x: Any, y: Any) -> tuple[numpy.float64, Array]:
    """Multiclass SVM: the mean over rows of sum(max(0, x[j] - x[label] + 1)) over j other than the label; its gradient.

    At the hinge's corner the gradient is 0.
    """
    b, x, y = _scores_and_labels(x, y)
    xp, rows = b.xp, x.shape[0]
    scores = cast(b, x, accumulator_dtype(b, x.dtype))
    zeros = b.zeros((1, 1), scores.dtype)
    right = y[:, None] == b.arange(x.shape[1])[None, :]
    known = xp.any(right, axis=1, keepdims=True)  # a label out of range is no class's
    target = xp.sum(xp.where(right, scores, zeros), axis=1, keepdims=True)  # a single score, exactly
    margins = xp.where(right, zeros, xp.maximum(scores - target + 1, zeros))
    over = cast(b, margins > 0, scores.dtype)
    dx = (over - xp.where(right, xp.sum(over, axis=1, keepdims=True), zeros)) / rows
    nan = b.full((1, 1), numpy.nan, scores.dtype)
    loss = float(xp.sum(xp.where(known, margins, nan), dtype=xp.float64)) / rows
    return numpy.float64(loss), cast(b, xp.where(known, dx, nan), x.dtype)
