"""The course's normalisations: batch, layer, and their spatial forms, batch and group.

The course's defaults: eps 1e-5; momentum 0.9, the share of the *old* running statistic; the biased variance, in the
running statistics too. Batch norm keeps these in its dictionary, `bn_param`: a training forward puts new arrays there
and writes to none. After a forward in mode "test" the backward uses the evaluation formula.

gamma and beta: (C,) or (1, C, 1, 1), C being x's axis 1; their gradients come in the shape given.
"""

from __future__ import annotations

from typing import Any

from cnnlayers import functional as F
from cnnlayers.backends import Backend
from cnnlayers.cs231n._arrays import Cache, is_training, rank, shape_of, together, upstream, vector
from cnnlayers.functional.arrays import Array
from cnnlayers.functional.call_plan import on_device

Param = dict[str, Any]
ROWS, IMAGES = "(N, D)", "(N, C, H, W)"


def _checked(
    x: Any, gamma: Any, beta: Any, ndim: int
) -> tuple[Backend, Array, Array, Array, tuple[tuple[int, ...], ...]]:
    """The arrays of a call on their backend, gamma and beta (C,), and the shapes in which these two came."""
    b, (x, gamma, beta) = together(x=x, gamma=gamma, beta=beta)
    shapes = tuple(gamma.shape), tuple(beta.shape)
    rank(x, ndim, ROWS if ndim == 2 else IMAGES)
    return b, x, vector(b, gamma, x.shape[1], "gamma"), vector(b, beta, x.shape[1], "beta"), shapes


def _running(x: Any, bn_param: Param, key: str, channels: int) -> Array:
    """A running statistic as an array of its own: what the dictionary has, else zeros of x's dtype."""
    old = bn_param.get(key)
    if old is None:
        b, (x,) = together(x=x)
        return b.zeros((channels,), x.dtype)
    b, (_, old) = together(x=x, **{key: old})
    return b.xp.asarray(vector(b, old, channels, f"bn_param[{key!r}]"), copy=True)


@on_device
def _batch_norm(x: Any, gamma: Any, beta: Any, bn_param: Param, ndim: int) -> tuple[Array, Cache]:
    training = is_training(bn_param, "bn_param")
    given = x
    b, x, gamma, beta, shapes = _checked(x, gamma, beta, ndim)
    mean, var = (_running(given, bn_param, key, x.shape[1]) for key in ("running_mean", "running_var"))
    if not training:  # here y is made from them, so their dtype counts
        _, (x, gamma, beta, *_) = together(x=x, gamma=gamma, beta=beta, running_mean=mean, running_var=var)
    y, ctx = F.batch_norm_forward(
        x,
        gamma,
        beta,
        mean,
        var,
        training=training,
        momentum=1 - bn_param.get("momentum", 0.9),
        eps=bn_param.get("eps", 1e-5),
        unbiased=False,
    )
    for key, value in (("running_mean", mean), ("running_var", var)):
        if bn_param.get(key) is None:
            bn_param[key] = value
        elif training:
            bn_param[key] = b.xp.reshape(value, shape_of(bn_param[key]))
    return y, Cache(ctx, shapes)


def batchnorm_forward(x: Any, gamma: Any, beta: Any, bn_param: Param) -> tuple[Array, Cache]:
    """Batch norm of the columns: out = gamma * (x - mean) / sqrt(var + eps) + beta. Returns (out, cache).

    x: (N, D). bn_param: "mode" ("train": the batch's statistics; "test": the running ones), "eps", "momentum",
    "running_mean" and "running_var" (zeros where absent), stored back after the call.
    Raises ValueError for another mode, another shape, or a batch of one in training; then nothing is stored.
    Source: Ioffe and Szegedy, https://arxiv.org/abs/1502.03167
    """
    return _batch_norm(x, gamma, beta, bn_param, 2)


@on_device
def batchnorm_backward(dout: Any, cache: Cache) -> tuple[Array, Array, Array]:
    """(dx, dgamma, dbeta) of batch norm, by the formula of the mode that the forward ran in."""
    dx, *parameters = F.batch_norm_backward(upstream(dout, cache), cache.ctx)
    return dx, *cache.as_given(*parameters)


batchnorm_backward_alt = batchnorm_backward  # the course's simplified formula is the one formula here


@on_device
def layernorm_forward(x: Any, gamma: Any, beta: Any, ln_param: Param) -> tuple[Array, Cache]:
    """Layer norm: each row has its own mean and variance, gamma and beta are one per column. Returns (out, cache).

    x: (N, D), D > 1. ln_param: "eps". Source: Ba, Kiros and Hinton, https://arxiv.org/abs/1607.06450
    """
    _, x, gamma, beta, shapes = _checked(x, gamma, beta, 2)
    y, ctx = F.layer_norm_forward(x, x.shape[1], gamma, beta, eps=ln_param.get("eps", 1e-5))
    return y, Cache(ctx, shapes)


@on_device
def layernorm_backward(dout: Any, cache: Cache) -> tuple[Array, Array, Array]:
    """(dx, dgamma, dbeta) of layer norm."""
    dx, *parameters = F.layer_norm_backward(upstream(dout, cache), cache.ctx)
    return dx, *cache.as_given(*parameters)


def spatial_batchnorm_forward(x: Any, gamma: Any, beta: Any, bn_param: Param) -> tuple[Array, Cache]:
    """Batch norm of images (N, C, H, W): a channel's mean and variance run over N, H and W. Returns (out, cache).

    bn_param: as `batchnorm_forward`'s, the running statistics (C,).
    """
    return _batch_norm(x, gamma, beta, bn_param, 4)


spatial_batchnorm_backward = batchnorm_backward


@on_device
def spatial_groupnorm_forward(x: Any, gamma: Any, beta: Any, G: int, gn_param: Param) -> tuple[Array, Cache]:
    """Group norm of images (N, C, H, W): each image's G groups of C / G channels have their own statistics.

    G: divides C. gn_param: "eps". Returns (out, cache). Source: Wu and He, https://arxiv.org/abs/1803.08494
    """
    _, x, gamma, beta, shapes = _checked(x, gamma, beta, 4)
    y, ctx = F.group_norm_forward(x, G, gamma, beta, eps=gn_param.get("eps", 1e-5))
    return y, Cache(ctx, shapes)


@on_device
def spatial_groupnorm_backward(dout: Any, cache: Cache) -> tuple[Array, Array, Array]:
    """(dx, dgamma, dbeta) of group norm."""
    dx, *parameters = F.group_norm_backward(upstream(dout, cache), cache.ctx)
    return dx, *cache.as_given(*parameters)
