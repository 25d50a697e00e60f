"""Linear maps of the last axis: y = x @ weight.T + bias. Sums are float32 (float64 for float64). On the CPU products of
middle size have a kernel, and BLAS computes the others (`matmul` in blas.py chooses); on a GPU cuBLAS does.

Source: torch.nn.functional.linear.
"""

from __future__ import annotations

import contextlib
import math

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import flag

from .arrays import Array, accumulator_dtype, cast, is_complex
from .blas import matmul, single_threaded_blas, transposed
from .call_plan import CallPlan, Context, check_backward, inference_of, on_device, plan_of
from .checks import check_shape, check_weighted, common_backend
from .complex_arrays import cast_gradient, conjugate, run_weighted, run_weighted_backward


def _rows(b: Backend, array: Array) -> Array:
    """The array as a matrix of its last axes."""
    shape = tuple(array.shape)
    return b.xp.reshape(array, (math.prod(shape[:-1]), shape[-1]))


def _linear_forward(b: Backend, spec: None, x: Array, weight: Array, bias: Array | None) -> Array:
    dtype = accumulator_dtype(b, x.dtype)
    weight, bias = cast(b, weight, dtype), None if bias is None else cast(b, bias, dtype)
    y = matmul(b, _rows(b, cast(b, x, dtype)), transposed(b, weight), bias)
    return cast(b, b.xp.reshape(y, (*x.shape[:-1], weight.shape[0])), x.dtype)


def _linear_backward(
    b: Backend, spec: None, dy: Array, x: Array, weight: Array, needs_dx: bool
) -> tuple[Array | None, Array]:
    rows = _rows(b, dy)
    # A product sees to this itself; two of them share a block, which takes as long as a small product.
    (n, outputs), inputs = rows.shape, weight.shape[1]
    two_large = b.name == "numpy" and needs_dx and not backends.is_small_product(n, outputs, inputs)
    with single_threaded_blas(b) if two_large else contextlib.nullcontext():
        dx = b.xp.reshape(matmul(b, rows, cast(b, weight, dy.dtype)), tuple(x.shape)) if needs_dx else None
        return dx, matmul(b, transposed(b, rows), _rows(b, cast(b, x, dy.dtype)))


def _plan(x: Array, weight: Array, bias: Array | None) -> CallPlan:
    b = common_backend(x=x, weight=weight, bias=bias)
    check_weighted(b, x, weight=weight, bias=bias)
    shape = tuple(x.shape)
    if not shape:
        raise ValueError("x must have at least one axis, got a 0-d array")
    if weight.ndim != 2 or weight.shape[1] != shape[-1]:
        raise ValueError(f"weight must be (out, {shape[-1]}) for x of shape {shape}, got shape {tuple(weight.shape)}")
    check_shape(bias, "bias", (weight.shape[0],))
    return CallPlan("linear", b, x.dtype, (*shape[:-1], weight.shape[0]))


@on_device
def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Context]:
    """Linear map of the last axis: y = x @ weight.T + bias.

    Parameters
    ----------
    x : array
        (..., in), at least one axis; floating or complex.
    weight : array
        (out, in); floating, or complex for a complex x.
    bias : array or None
        (out,).

    Returns
    -------
    y : array
        (..., out), x's dtype.
    ctx : Context
        For `linear_backward`; `linear` returns y alone. It refers to x and weight: do not change them in place before
        the backward.

    Raises
    ------
    ValueError
        Shapes that do not go together.
    TypeError
        Another dtype, arrays of different owners.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])

    References
    ----------
    torch.nn.functional.linear
    """
    plan = plan_of(_plan, (x, weight, bias))
    y = run_weighted(plan, _linear_forward, x, weight, bias)
    return y, Context(plan, {"x": x, "weight": weight, "bias": bias})


linear = inference_of(linear_forward)


def linear_dx(plan: CallPlan, dy: Array, weight: Array) -> Array:
    """dx of `linear` alone, for a dy of the plan's dtype."""
    b = plan.backend
    return run_weighted(plan, _linear_forward, dy, transposed(b, conjugate(b, weight)), None)


@on_device
def linear_backward(dy: Array, ctx: Context, *, needs_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
    """Gradients of `linear`: dx = dy @ weight, dweight = dy.T @ x, dbias = the sum of dy.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `linear_forward`; it may serve more than once.
    needs_dx : bool
        False where x is data, no layer's output: dx is then None, and its work is left out.

    Returns
    -------
    dx : array or None
        x's shape and dtype; None with needs_dx=False.
    dweight : array
        weight's shape and dtype.
    dbias : array or None
        bias's shape and dtype; None without a bias.

    Notes
    -----
    Products and sums run over all axes but the last. With complex arrays dx = dy @ conj(weight), dweight = dy.T @
    conj(x).
    """
    b, dy = check_backward("linear", dy, ctx)
    x: Array = ctx.arrays["x"]
    weight: Array = ctx.arrays["weight"]
    bias = ctx.arrays["bias"]
    dx, dweight = run_weighted_backward(ctx.plan, _linear_backward, dy, x, weight, flag(needs_dx, "needs_dx"))
    dbias = None
    if bias is not None:
        wide = b.xp.complex128 if is_complex(b, dy.dtype) else b.xp.float64
        dbias = cast_gradient(b, b.xp.sum(_rows(b, dy), axis=0, dtype=wide), bias.dtype)
    return None if dx is None else cast(b, dx, ctx.dtype), cast_gradient(b, dweight, weight.dtype), dbias
