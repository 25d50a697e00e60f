"""The course's convolutional network: conv - relu - 2x2 max pool - affine - relu - affine - softmax."""

from __future__ import annotations

from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.cs231n.layer_utils import (
    affine_relu_backward,
    affine_relu_forward,
    conv_relu_pool_backward,
    conv_relu_pool_forward,
)
from cnnlayers.cs231n.layers import affine_backward, affine_forward, softmax_loss
from cnnlayers.functional.arrays import Array

__all__ = ["ThreeLayerConvNet"]

POOL = {"pool_height": 2, "pool_width": 2, "stride": 2}


class ThreeLayerConvNet:
    """Three layers for images (N, C, H, W); its parameters are the arrays of `params`, to be replaced or changed there.

    Weights are normal with standard deviation `weight_scale`, drawn by NumPy's global generator in the order W1, W2, W3
    (`numpy.random.seed` repeats them, on every backend); biases are zero. All are arrays of the selected backend, of
    `dtype`. As in the course, images are not cast: float64 images make a float32 network compute in float64.

    params: W1 (num_filters, C, filter_size, filter_size), b1; W2 (features, hidden_dim), b2; W3 (hidden_dim,
    num_classes), b3. The convolution has stride 1 and padding (filter_size - 1) // 2.
    """

    def __init__(
        self,
        input_dim: tuple[int, int, int] = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
        dtype: Any = numpy.float32,
    ) -> None:
        self.params: dict[str, Array] = {}
        self.reg = reg
        self.dtype = dtype
        channels, *lengths = input_dim
        shrink = filter_size - 1 - 2 * ((filter_size - 1) // 2)  # an even filter loses a row and a column
        height, width = ((length - shrink) // 2 for length in lengths)
        shapes = (
            (num_filters, channels, filter_size, filter_size),
            (num_filters * height * width, hidden_dim),
            (hidden_dim, num_classes),
        )
        for layer, shape in enumerate(shapes, 1):
            weight = numpy.random.normal(0.0, weight_scale, shape)  # noqa: NPY002 (the course's generator)
            bias = numpy.zeros(num_filters if layer == 1 else shape[1])
            self.params[f"W{layer}"] = backends.asarray(weight.astype(dtype))
            self.params[f"b{layer}"] = backends.asarray(bias.astype(dtype))

    @backends.quiet
    def loss(self, X: Any, y: Any = None) -> Any:
        """Without y the scores (N, num_classes); with labels y, the loss and the gradients, keyed as `params`.

        The loss is the mean softmax cross-entropy plus 0.5 * reg * the sum of all squared weights (not biases).
        """
        p = self.params
        conv_param = {"stride": 1, "pad": (p["W1"].shape[2] - 1) // 2}
        pooled, pool_cache = conv_relu_pool_forward(X, p["W1"], p["b1"], conv_param, POOL)
        hidden, hidden_cache = affine_relu_forward(pooled, p["W2"], p["b2"])
        scores, scores_cache = affine_forward(hidden, p["W3"], p["b3"])
        if y is None:
            return scores

        loss, dscores = softmax_loss(scores, y)
        grads: dict[str, Array] = {}
        dhidden, grads["W3"], grads["b3"] = affine_backward(dscores, scores_cache)
        dpooled, grads["W2"], grads["b2"] = affine_relu_backward(dhidden, hidden_cache)
        _, grads["W1"], grads["b1"] = conv_relu_pool_backward(dpooled, pool_cache)
        reg = float(self.reg)
        for name in ("W1", "W2", "W3"):
            b = backends.of(p[name])
            loss += 0.5 * reg * float(b.xp.sum(p[name] ** 2, dtype=b.xp.float64))
            grads[name] = grads[name] + reg * p[name]
        return loss, grads
