"""The course's `layer_utils` module: layers that usually come together, as one, with a tuple of their caches.

Arguments and dictionaries are those of the layers, in their order; a backward returns the gradients in that order too.
"""

from __future__ import annotations

from typing import Any

from cnnlayers.cs231n.fast_layers import (
    conv_backward_fast,
    conv_forward_fast,
    max_pool_backward_fast,
    max_pool_forward_fast,
)
from cnnlayers.cs231n.layers import (
    affine_backward,
    affine_forward,
    relu_backward,
    relu_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
)
from cnnlayers.functional.arrays import Array

__all__ = ["affine_relu_backward", "affine_relu_forward"]
__all__ += ["conv_relu_backward", "conv_relu_forward"]
__all__ += ["conv_bn_relu_backward", "conv_bn_relu_forward"]
__all__ += ["conv_relu_pool_backward", "conv_relu_pool_forward"]

Param = dict[str, Any]
Caches = tuple[Any, ...]


def affine_relu_forward(x: Any, w: Any, b: Any) -> tuple[Array, Caches]:
    """affine, ReLU."""
    a, affine_cache = affine_forward(x, w, b)
    out, relu_cache = relu_forward(a)
    return out, (affine_cache, relu_cache)


def affine_relu_backward(dout: Any, cache: Caches) -> tuple[Array, Array, Array]:
    """(dx, dw, db) of affine_relu."""
    affine_cache, relu_cache = cache
    return affine_backward(relu_backward(dout, relu_cache), affine_cache)


def conv_relu_forward(x: Any, w: Any, b: Any, conv_param: Param) -> tuple[Array, Caches]:
    """convolution, ReLU."""
    a, conv_cache = conv_forward_fast(x, w, b, conv_param)
    out, relu_cache = relu_forward(a)
    return out, (conv_cache, relu_cache)


def conv_relu_backward(dout: Any, cache: Caches) -> tuple[Array, Array, Array]:
    """(dx, dw, db) of conv_relu."""
    conv_cache, relu_cache = cache
    return conv_backward_fast(relu_backward(dout, relu_cache), conv_cache)


def conv_bn_relu_forward(
    x: Any, w: Any, b: Any, gamma: Any, beta: Any, conv_param: Param, bn_param: Param
) -> tuple[Array, Caches]:
    """convolution, spatial batch norm, ReLU."""
    a, conv_cache = conv_forward_fast(x, w, b, conv_param)
    normed, bn_cache = spatial_batchnorm_forward(a, gamma, beta, bn_param)
    out, relu_cache = relu_forward(normed)
    return out, (conv_cache, bn_cache, relu_cache)


def conv_bn_relu_backward(dout: Any, cache: Caches) -> tuple[Array, Array, Array, Array, Array]:
    """(dx, dw, db, dgamma, dbeta) of conv_bn_relu."""
    conv_cache, bn_cache, relu_cache = cache
    da, dgamma, dbeta = spatial_batchnorm_backward(relu_backward(dout, relu_cache), bn_cache)
    return *conv_backward_fast(da, conv_cache), dgamma, dbeta


def conv_relu_pool_forward(x: Any, w: Any, b: Any, conv_param: Param, pool_param: Param) -> tuple[Array, Caches]:
    """convolution, ReLU, max pooling."""
    a, conv_cache = conv_forward_fast(x, w, b, conv_param)
    s, relu_cache = relu_forward(a)
    out, pool_cache = max_pool_forward_fast(s, pool_param)
    return out, (conv_cache, relu_cache, pool_cache)


def conv_relu_pool_backward(dout: Any, cache: Caches) -> tuple[Array, Array, Array]:
    """(dx, dw, db) of conv_relu_pool."""
    conv_cache, relu_cache, pool_cache = cache
    return conv_relu_backward(max_pool_backward_fast(dout, pool_cache), (conv_cache, relu_cache))
