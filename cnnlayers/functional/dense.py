"""What stands around convolutions: linear maps, relu, dropout and the softmax cross-entropy loss.

Rules of the family: sums are kept in float32 (float64 for float64). relu and dropout only choose or scale values, so
they keep one bool an element; what they drop is 0, also where it was NaN or infinite. NaN is not below 0: relu passes
it and its gradient on. The loss subtracts each row's maximum before it takes exponentials, and leaves the maximum's own
out of their sum: large logits do no harm, and confident ones lose no digits.

Sources: torch.nn.functional's linear, relu, dropout and cross_entropy; inverted dropout as in
https://cs231n.github.io/neural-networks-2/#reg.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import flag, real

from .blas import matmul, single_threaded_blas
from .common import (
    Array,
    Context,
    accumulator,
    cast,
    floating,
    implementation,
    inference_of,
    masked,
    on_device,
    opened,
    owner,
    parameter,
)


# --------------------------------------------------------------------------------------------------------------- linear
def _rows(b: Backend, array: Array) -> Array:
    """The array as a matrix of its last axes."""
    shape = tuple(array.shape)
    return b.xp.reshape(array, (math.prod(shape[:-1]), shape[-1]))


def _flip(b: Backend, matrix: Array) -> Array:
    return b.xp.permute_dims(matrix, (1, 0))


def _linear_forward(b: Backend, spec: None, x: Array, weight: Array, bias: Array | None) -> Array:
    dtype = accumulator(b, x.dtype)
    weight, bias = cast(b, weight, dtype), None if bias is None else cast(b, bias, dtype)
    y = matmul(b, _rows(b, cast(b, x, dtype)), _flip(b, weight), bias)
    return cast(b, b.xp.reshape(y, (*x.shape[:-1], weight.shape[0])), x.dtype)


def _linear_backward(
    b: Backend, spec: None, dy: Array, x: Array, weight: Array, needs_dx: bool
) -> tuple[Array | None, Array]:
    rows = _rows(b, dy)
    with single_threaded_blas(b):
        dx = b.xp.reshape(matmul(b, rows, cast(b, weight, dy.dtype)), tuple(x.shape)) if needs_dx else None
        return dx, matmul(b, _flip(b, rows), _rows(b, cast(b, x, dy.dtype)))


@on_device
def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Context]:
    """y = x @ weight.T + bias, on the last axis of x.

    x: (..., in), at least one axis; floating. weight: (out, in). bias: (out,) or None.
    y: (..., out), x's dtype. `linear_forward` also gives the context, which keeps x, weight and bias as they are.

    Raises ValueError: shapes that do not go together. TypeError: another dtype, arrays of different owners. Source:
    torch.nn.functional.linear.
    """
    b = owner(x=x, weight=weight, bias=bias)
    floating(b, x, "x")
    floating(b, weight, "weight")
    shape = tuple(x.shape)
    if not shape:
        raise ValueError("x must have at least one axis, got a 0-d array")
    if weight.ndim != 2 or weight.shape[1] != shape[-1]:
        raise ValueError(f"weight must be (out, {shape[-1]}) for x of shape {shape}, got shape {tuple(weight.shape)}")
    parameter(b, bias, "bias", (weight.shape[0],))
    y = _linear_forward(b, None, x, weight, bias)
    arrays = {"x": x, "weight": weight, "bias": bias}
    return y, Context("linear", b, x.dtype, (*shape[:-1], weight.shape[0]), None, arrays)


linear = inference_of(linear_forward)


@on_device
def linear_backward(dy: Array, ctx: Context, *, needs_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
    """dx = dy @ weight, dweight = dy.T @ x and dbias = dy, both summed over all axes but the last; None without a bias.

    dy: y's shape. dx: x's dtype; dweight and dbias: their parameter's. needs_dx: as `conv_backward`'s.
    """
    b, dy = opened("linear", dy, ctx)
    x: Array = ctx.arrays["x"]
    weight: Array = ctx.arrays["weight"]
    bias = ctx.arrays["bias"]
    dx, dweight = _linear_backward(b, None, dy, x, weight, flag(needs_dx, "needs_dx"))
    dbias = None
    if bias is not None:
        dbias = cast(b, b.xp.sum(_rows(b, dy), axis=0, dtype=b.xp.float64), bias.dtype)
    return None if dx is None else cast(b, dx, ctx.dtype), cast(b, dweight, weight.dtype), dbias


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
    """y = 0 where x <= 0, else x: NaN stays NaN. As `relu_forward`, but nothing is saved."""
    b = backends.of(x)
    floating(b, x, "x")
    return implementation("relu", _relu, b, None, x)(b, None, x)


@on_device
def relu_forward(x: Array) -> tuple[Array, Context]:
    """y = 0 where x <= 0, else x: NaN stays NaN; and the context, which keeps one bool an element.

    x: any shape; floating. y: x's shape and dtype.

    Raises TypeError: another dtype. Source: torch.nn.functional.relu.
    """
    b = backends.of(x)
    floating(b, x, "x")
    y, passes = implementation("relu_forward", _relu_forward, b, None, x)(b, None, x)
    return y, Context("relu", b, x.dtype, tuple(x.shape), None, {"passes": passes})


@on_device
def relu_backward(dy: Array, ctx: Context) -> Array:
    """dx of `relu`: dy where x was not <= 0, else 0.

    dy: y's shape. dx: x's shape and dtype.
    """
    b, dy = opened("relu", dy, ctx, exact=True)
    passes: Array = ctx.arrays["passes"]
    return implementation("relu_backward", _relu_backward, b, None, dy, passes)(b, None, dy, passes)


# -------------------------------------------------------------------------------------------------------------- dropout
def _scaled(b: Backend, array: Array, mask: Array, p: float) -> Array:
    """The kept values, divided by the probability of keeping one."""
    if p == 1:  # nothing is kept, and 1 / 0 would warn
        return b.zeros(tuple(array.shape), array.dtype)
    return masked(b, array * (1 / (1 - p)), mask)


@on_device
def dropout_forward(x: Array, p: float = 0.5, *, training: bool = False, rng: Any = None) -> tuple[Array, Context]:
    """In training, each element is 0 with probability p, else x / (1 - p); otherwise y is x itself.

    x: any shape; floating. p: the probability of dropping, 0 to 1.
    rng: the backend's random Generator, which moves on, or a seed, the same mask every time; None draws afresh.
    y: x's shape and dtype. `dropout_forward` also gives the context, which keeps one bool an element, and nothing where
    y is x.

    Raises ValueError: p outside [0, 1], a negative seed. TypeError: another dtype or kind. Source:
    torch.nn.functional.dropout.
    """
    b = backends.of(x)
    floating(b, x, "x")
    p = real(p, "p")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability, from 0 to 1, got {p}")
    backends.check_rng(b, rng)
    if not flag(training, "training") or p == 0:
        return x, Context("dropout", b, x.dtype, tuple(x.shape))
    mask = b.array(backends.uniform(b, tuple(x.shape), rng) >= p, b.xp.bool)
    y = cast(b, _scaled(b, cast(b, x, accumulator(b, x.dtype)), mask, p), x.dtype)
    return y, Context("dropout", b, x.dtype, tuple(x.shape), p, {"mask": mask})


dropout = inference_of(dropout_forward)


@on_device
def dropout_backward(dy: Array, ctx: Context) -> Array:
    """dx of `dropout`: dy / (1 - p) where x was kept, else 0; dy itself where y was x.

    dy: y's shape. dx: x's shape and dtype.
    """
    b, dy = opened("dropout", dy, ctx)
    if ctx.spec is None:
        return cast(b, dy, ctx.dtype)
    return cast(b, _scaled(b, dy, ctx.arrays["mask"], ctx.spec), ctx.dtype)


# --------------------------------------------------------------------------------------------------------- softmax loss
def _labels(b: Backend, labels: Array, rows: int, classes: int) -> Array:
    """The labels as int64, in range; CuPy's are not looked at, because that would stall the device."""
    got = "None" if labels is None else backends.dtype_name(b, labels)
    if got not in backends.INTEGERS:
        raise TypeError(f"labels must be an array of integers, got {got}")
    if tuple(labels.shape) != (rows,):
        raise ValueError(f"labels must have shape ({rows},), one for each row of x, got {tuple(labels.shape)}")
    if b.name != "cupy":
        low, high = int(b.xp.min(labels)), int(b.xp.max(labels))  # before the cast: a uint64 may be beyond int64
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels must be from 0 to {classes - 1} for {classes} classes, got values from {low} to {high}"
            )
    return cast(b, labels, b.xp.int64)


def _strange(labels: Array, classes: int) -> Array:
    return (labels < 0) | (labels >= classes)


# Of each row the largest score, `top`, contributes exp(0) = 1 to the sum of exponentials. `rest` is what the others add
# to it: log(sum) = log1p(rest) and softmax at the largest, 1 / (1 + rest), keep their digits however small it is.
def _loss_forward(b: Backend, spec: None, x: Array, labels: Array) -> tuple[Array, Array, Array]:
    """The mean loss, and of each row `top` and `rest`."""
    rows, classes = x.shape
    x = cast(b, x, accumulator(b, x.dtype))
    top = b.xp.max(x, axis=1, keepdims=True)
    largest = b.arange(classes) == b.xp.expand_dims(b.xp.argmax(x, axis=1), axis=1)
    others = b.xp.where(largest, b.zeros((), x.dtype), b.xp.exp(x - top))
    rest = b.xp.sum(others, axis=1, keepdims=True, dtype=b.xp.float64)
    rest = rest + cast(b, top - top, b.xp.float64)  # NaN where the largest is NaN or infinite
    column = b.xp.expand_dims(b.xp.clip(labels, 0, classes - 1), axis=1)
    below = cast(b, top - b.xp.take_along_axis(x, column, axis=1), b.xp.float64)
    losses = b.xp.log1p(rest) + below
    strange = b.xp.expand_dims(_strange(labels, classes), axis=1)
    losses = b.xp.where(strange, b.full((), math.nan, b.xp.float64), losses)
    return b.array(b.xp.sum(losses) / rows, x.dtype), top, cast(b, rest, x.dtype)


def _loss_backward(b: Backend, spec: None, dy: Array, x: Array, labels: Array, top: Array, rest: Array) -> Array:
    rows, classes = x.shape
    powers = b.xp.exp(cast(b, x, dy.dtype) - top)
    column = b.xp.expand_dims(labels, axis=1)
    # At the label: softmax - 1 = -(the other exponentials) / sum, both terms of that being 0 or more.
    shares = b.xp.where(b.arange(classes) == column, (powers - 1.0) - rest, powers)
    shares = b.xp.where(_strange(column, classes), b.full((), math.nan, dy.dtype), shares)
    return shares * (dy / (rows * (1.0 + rest)))


@on_device
def softmax_cross_entropy_forward(x: Array, labels: Array) -> tuple[Array, Context]:
    """The mean over rows n of -log(softmax(x[n])[labels[n]]), with softmax(z)[k] = exp(z[k]) / sum over j of exp(z[j]).

    x: (N, K), scores ("logits"); floating. labels: (N,), integers from 0 to K - 1.
    y: a 0-d array of x's dtype. `softmax_cross_entropy_forward` also gives the context, which keeps x, the labels (as
    int64) and two numbers a row.

    Raises ValueError: no rows or no classes, labels of another shape or out of range (on CuPy, where looking would
    stall the device, a label out of range makes the loss and its row's gradient NaN instead). TypeError: another dtype,
    arrays of different owners. Source: torch.nn.functional.cross_entropy.
    """
    b = owner(x=x, labels=labels)
    floating(b, x, "x")
    if x.ndim != 2:
        raise ValueError(f"x must be (N, K), a row of scores for each sample, got shape {tuple(x.shape)}")
    if 0 in tuple(x.shape):
        raise ValueError(
            f"the loss of nothing is not defined: x must have rows and classes, got shape {tuple(x.shape)}"
        )
    labels = _labels(b, labels, *x.shape)
    loss, top, rest = _loss_forward(b, None, x, labels)
    saved = {"x": x, "labels": labels, "top": top, "rest": rest}
    return cast(b, loss, x.dtype), Context("softmax_cross_entropy", b, x.dtype, (), None, saved)


softmax_cross_entropy = inference_of(softmax_cross_entropy_forward)


@backends.quiet
def softmax_cross_entropy_backward(dy: Any, ctx: Context) -> Array:
    """dx of `softmax_cross_entropy`: dy * (softmax(x) - 1 at the label) / N.

    dy: a 0-d array or a number, the factor of the whole gradient. dx: x's shape and dtype.
    """
    saved = ctx.arrays.get("x") if isinstance(ctx, Context) else None
    with backends.on_device_of(saved):
        if isinstance(ctx, Context) and isinstance(dy, Real):
            dy = ctx.backend.full((), real(dy, "dy", finite=False), accumulator(ctx.backend, ctx.dtype))
        b, dy = opened("softmax_cross_entropy", backends.plain(dy), ctx)
        arrays = [ctx.arrays[name] for name in ("x", "labels", "top", "rest")]
        return cast(b, _loss_backward(b, None, dy, *arrays), ctx.dtype)
