"""Every op as a trio: `op` (inference, saves nothing), `op_forward` (gives `y, ctx`), `op_backward(dy, ctx)`."""

from .activations import (
    gelu,
    gelu_backward,
    gelu_forward,
    leaky_relu,
    leaky_relu_backward,
    leaky_relu_forward,
    sigmoid,
    sigmoid_backward,
    sigmoid_forward,
    tanh,
    tanh_backward,
    tanh_forward,
)
from .adaptive_avg_pool import adaptive_avg_pool, adaptive_avg_pool_backward, adaptive_avg_pool_forward
from .adaptive_max_pool import adaptive_max_pool, adaptive_max_pool_backward, adaptive_max_pool_forward
from .avg_pool import (
    avg_pool,
    avg_pool_backward,
    avg_pool_forward,
    sum_pool,
    sum_pool_backward,
    sum_pool_forward,
)
from .batch_norm import batch_norm, batch_norm_backward, batch_norm_forward
from .conv import conv, conv_backward, conv_forward, conv_transpose, conv_transpose_backward, conv_transpose_forward
from .dropout import dropout, dropout_backward, dropout_forward
from .group_norm import (
    group_norm,
    group_norm_backward,
    group_norm_forward,
    instance_norm,
    instance_norm_backward,
    instance_norm_forward,
)
from .layer_norm import (
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)
from .linear import linear, linear_backward, linear_forward
from .local_response_norm import local_response_norm, local_response_norm_backward, local_response_norm_forward
from .losses import (
    mse_loss,
    mse_loss_backward,
    mse_loss_forward,
    softmax_cross_entropy,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from .lp_pool import lp_pool, lp_pool_backward, lp_pool_forward
from .max_pool import max_pool, max_pool_backward, max_pool_forward
from .max_unpool import max_unpool, max_unpool_backward, max_unpool_forward
from .pad import pad, pad_backward, pad_forward
from .relu import relu, relu_backward, relu_forward
from .softmax import softmax, softmax_backward, softmax_forward

__all__ = [
    "adaptive_avg_pool",
    "adaptive_avg_pool_backward",
    "adaptive_avg_pool_forward",
    "adaptive_max_pool",
    "adaptive_max_pool_backward",
    "adaptive_max_pool_forward",
    "avg_pool",
    "avg_pool_backward",
    "avg_pool_forward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "conv",
    "conv_backward",
    "conv_forward",
    "conv_transpose",
    "conv_transpose_backward",
    "conv_transpose_forward",
    "dropout",
    "dropout_backward",
    "dropout_forward",
    "gelu",
    "gelu_backward",
    "gelu_forward",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "leaky_relu",
    "leaky_relu_backward",
    "leaky_relu_forward",
    "linear",
    "linear_backward",
    "linear_forward",
    "local_response_norm",
    "local_response_norm_backward",
    "local_response_norm_forward",
    "lp_pool",
    "lp_pool_backward",
    "lp_pool_forward",
    "max_pool",
    "max_pool_backward",
    "max_pool_forward",
    "max_unpool",
    "max_unpool_backward",
    "max_unpool_forward",
    "mse_loss",
    "mse_loss_backward",
    "mse_loss_forward",
    "pad",
    "pad_backward",
    "pad_forward",
    "relu",
    "relu_backward",
    "relu_forward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "sigmoid",
    "sigmoid_backward",
    "sigmoid_forward",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "softmax_forward",
    "sum_pool",
    "sum_pool_backward",
    "sum_pool_forward",
    "tanh",
    "tanh_backward",
    "tanh_forward",
]


def __dir__() -> list[str]:
    return __all__
