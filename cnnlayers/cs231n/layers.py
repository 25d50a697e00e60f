"""The course's `layers` module: affine, ReLU, dropout, convolution, max pooling, the losses, and the normalisations.

A forward returns (out, cache), a backward takes (dout, cache); the cache is opaque. Signatures, dictionary keys and
defaults are the course's. Convolution and pooling floor where windows do not tile the input.
"""

from __future__ import annotations

import math
from typing import Any

import numpy

from cnnlayers import functional as F
from cnnlayers.backends import Backend
from cnnlayers.cs231n._arrays import Cache, is_training, option, rank, together, upstream, vector
from cnnlayers.cs231n.losses import softmax_loss, svm_loss
from cnnlayers.cs231n.normalization import (
    batchnorm_backward,
    batchnorm_backward_alt,
    batchnorm_forward,
    layernorm_backward,
    layernorm_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
)
from cnnlayers.functional.arrays import Array, cast
from cnnlayers.functional.call_plan import CallPlan, Context, check_backward, on_device

__all__ = ["affine_backward", "affine_forward", "dropout_backward", "dropout_forward", "relu_backward", "relu_forward"]
__all__ += ["conv_backward_naive", "conv_forward_naive", "max_pool_backward_naive", "max_pool_forward_naive"]
__all__ += ["batchnorm_backward", "batchnorm_backward_alt", "batchnorm_forward"]
__all__ += ["layernorm_backward", "layernorm_forward"]
__all__ += ["spatial_batchnorm_backward", "spatial_batchnorm_forward"]
__all__ += ["spatial_groupnorm_backward", "spatial_groupnorm_forward"]
__all__ += ["softmax_loss", "svm_loss"]

Param = dict[str, Any]


# --------------------------------------------------------------------------------------------------- affine and ReLU
@on_device
def affine_forward(x: Any, w: Any, b: Any) -> tuple[Array, Cache]:
    """out = (x as rows) @ w + b. x: (N, d_1, ..., d_k), w: (D, M) with D = d_1 * ... * d_k, b: (M,); out: (N, M)."""
    backend, (x, w, b) = together(x=x, w=w, b=b)
    shapes = tuple(x.shape), tuple(b.shape)
    rank(w, 2, "(D, M)", "w")
    if x.ndim < 1 or math.prod(x.shape[1:]) != w.shape[0]:
        raise ValueError(f"w must have one row for each of x's features: x is {tuple(x.shape)}, w {tuple(w.shape)}")
    rows = backend.xp.reshape(x, (x.shape[0], w.shape[0]))
    y, ctx = F.linear_forward(rows, w.T, vector(backend, b, w.shape[1], "b"))
    return y, Cache(ctx, shapes)


@on_device
def affine_backward(dout: Any, cache: Cache) -> tuple[Array, Array, Array]:
    """(dx, dw, db) of affine, each in the shape of what was given."""
    dx, dw, db = F.linear_backward(upstream(dout, cache), cache.ctx)
    dx, db = cache.as_given(dx, db)
    return dx, dw.T, db


@on_device
def relu_forward(x: Any) -> tuple[Array, Cache]:
    """out = max(0, x), any shape."""
    _, (x,) = together(x=x)
    y, ctx = F.relu_forward(x)
    return y, Cache(ctx)


@on_device
def relu_backward(dout: Any, cache: Cache) -> Array:
    """dx of ReLU: dout where x > 0, else 0."""
    return F.relu_backward(upstream(dout, cache), cache.ctx)


# ------------------------------------------------------------------------------------------------------------ dropout
def _mask(b: Backend, shape: tuple[int, ...], p: float, seed: int | None) -> Array:
    """True where a value is kept.

    NumPy's legacy generator draws it on the host: a notebook's seed gives the course's mask on every backend. A seed in
    the dictionary leaves the global state alone.
    """
    draw = numpy.random.random_sample if seed is None else numpy.random.RandomState(seed).random_sample
    return b.array(numpy.asarray(draw(shape) < p), b.xp.bool)


def _dropped(b: Backend, values: Array, mask: Array, p: float) -> Array:
    return b.xp.where(mask, values * (1 / p), b.zeros((), values.dtype))


@on_device
def dropout_forward(x: Any, dropout_param: Param) -> tuple[Array, Cache]:
    """Inverted dropout: in mode "train" each value is kept with probability p and divided by p, else 0; in "test", x.

    dropout_param: "mode"; "p", 0 < p <= 1, the probability of *keeping* (the course's since 2018); "seed": the same
    mask on every call; without it NumPy's global generator draws, so `numpy.random.seed` repeats a run.
    """
    training = is_training(dropout_param, "dropout_param")
    b, (x,) = together(x=x)
    if not training:
        return b.xp.asarray(x, copy=True), Cache(Context(CallPlan("dropout", b, x.dtype, tuple(x.shape))))
    p = option(dropout_param, "p", "dropout_param")
    if not 0 < p <= 1:
        raise ValueError(f"dropout_param['p'] is the probability of keeping a value: 0 < p <= 1, got {p!r}")
    mask = _mask(b, tuple(x.shape), p, dropout_param.get("seed"))
    ctx = Context(CallPlan("dropout", b, x.dtype, tuple(x.shape), float(p)), {"mask": mask})
    return _dropped(b, x, mask, float(p)), Cache(ctx)


@on_device
def dropout_backward(dout: Any, cache: Cache) -> Array:
    """dx of dropout, through the forward's mask."""
    b, dy = check_backward("dropout", upstream(dout, cache), cache.ctx)
    mask = cache.ctx.arrays.get("mask")
    dx = b.xp.asarray(dy, copy=True) if mask is None else _dropped(b, dy, mask, cache.ctx.spec)
    return cast(b, dx, cache.ctx.dtype)


# -------------------------------------------------------------------------------------------- convolution and pooling
@on_device
def conv_forward_naive(x: Any, w: Any, b: Any, conv_param: Param) -> tuple[Array, Cache]:
    """Convolution (cross-correlation) with zero padding. Returns (out, cache).

    x: (N, C, H, W), w: (F, C, HH, WW), b: (F,). conv_param: "stride" and "pad", ints.
    out: (N, F, H', W'), H' = 1 + (H + 2 * pad - HH) // stride.
    """
    stride, pad = option(conv_param, "stride", "conv_param"), option(conv_param, "pad", "conv_param")
    backend, (x, w, b) = together(x=x, w=w, b=b)
    shapes = (tuple(b.shape),)
    rank(x, 4, "(N, C, H, W)")
    rank(w, 4, "(F, C, HH, WW)", "w")
    y, ctx = F.conv_forward(x, w, vector(backend, b, w.shape[0], "b"), stride, pad)
    return y, Cache(ctx, shapes)


@on_device
def conv_backward_naive(dout: Any, cache: Cache) -> tuple[Array, Array, Array]:
    """(dx, dw, db) of the convolution, whichever variant ran forward."""
    dx, dw, db = F.conv_backward(upstream(dout, cache), cache.ctx)
    return dx, dw, *cache.as_given(db)


@on_device
def max_pool_forward_naive(x: Any, pool_param: Param) -> tuple[Array, Cache]:
    """Max pooling of images (N, C, H, W). Returns (out, cache); H' = 1 + (H - pool_height) // stride.

    pool_param: "pool_height", "pool_width", "stride", and, beyond the course, "ties": whom a window's gradient goes to
    among equal maxima: "all" of them (default: the course's mask), the "first" (its im2col), or "split" (its reshape).
    """
    height, width, stride = (option(pool_param, key, "pool_param") for key in ("pool_height", "pool_width", "stride"))
    _, (x,) = together(x=x)
    rank(x, 4, "(N, C, H, W)")
    y, ctx = F.max_pool_forward(x, (height, width), stride, ties=pool_param.get("ties", "all"))
    return y, Cache(ctx)


@on_device
def max_pool_backward_naive(dout: Any, cache: Cache) -> Array:
    """dx of max pooling by the forward's tie rule, whichever variant ran forward; overlapping windows add up."""
    return F.max_pool_backward(upstream(dout, cache), cache.ctx)
