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
from .avg_pool import avg_pool, avg_pool_backward, avg_pool_forward, sum_pool, sum_pool_backward, sum_pool_forward
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

__all__ = ["max_pool", "max_pool_backward", "max_pool_forward"]
__all__ += ["avg_pool", "avg_pool_backward", "avg_pool_forward"]
__all__ += ["sum_pool", "sum_pool_backward", "sum_pool_forward"]
__all__ += ["lp_pool", "lp_pool_backward", "lp_pool_forward"]
__all__ += ["adaptive_avg_pool", "adaptive_avg_pool_backward", "adaptive_avg_pool_forward"]
__all__ += ["adaptive_max_pool", "adaptive_max_pool_backward", "adaptive_max_pool_forward"]
__all__ += ["max_unpool", "max_unpool_backward", "max_unpool_forward"]
__all__ += ["pad", "pad_backward", "pad_forward"]
__all__ += ["batch_norm", "batch_norm_backward", "batch_norm_forward"]
__all__ += ["group_norm", "group_norm_backward", "group_norm_forward"]
__all__ += ["instance_norm", "instance_norm_backward", "instance_norm_forward"]
__all__ += ["layer_norm", "layer_norm_backward", "layer_norm_forward"]
__all__ += ["rms_norm", "rms_norm_backward", "rms_norm_forward"]
__all__ += ["local_response_norm", "local_response_norm_backward", "local_response_norm_forward"]
__all__ += ["conv", "conv_backward", "conv_forward"]
__all__ += ["conv_transpose", "conv_transpose_backward", "conv_transpose_forward"]
__all__ += ["linear", "linear_backward", "linear_forward"]
__all__ += ["relu", "relu_backward", "relu_forward"]
__all__ += ["leaky_relu", "leaky_relu_backward", "leaky_relu_forward"]
__all__ += ["gelu", "gelu_backward", "gelu_forward"]
__all__ += ["sigmoid", "sigmoid_backward", "sigmoid_forward"]
__all__ += ["tanh", "tanh_backward", "tanh_forward"]
__all__ += ["softmax", "softmax_backward", "softmax_forward"]
__all__ += ["dropout", "dropout_backward", "dropout_forward"]
__all__ += ["mse_loss", "mse_loss_backward", "mse_loss_forward"]
__all__ += ["softmax_cross_entropy", "softmax_cross_entropy_backward", "softmax_cross_entropy_forward"]


def __dir__() -> list[str]:
    return __all__
