"""The course's `fast_layers` module. Here every variant of convolution and of pooling is one op under several names."""

from cnnlayers.cs231n.layers import (
    conv_backward_naive,
    conv_forward_naive,
    max_pool_backward_naive,
    max_pool_forward_naive,
)

__all__ = ["conv_forward_fast", "conv_forward_im2col", "conv_forward_strides"]
__all__ += ["conv_backward_fast", "conv_backward_im2col", "conv_backward_strides"]
__all__ += ["max_pool_forward_fast", "max_pool_forward_im2col", "max_pool_forward_reshape"]
__all__ += ["max_pool_backward_fast", "max_pool_backward_im2col", "max_pool_backward_reshape"]

conv_forward_im2col = conv_forward_strides = conv_forward_fast = conv_forward_naive
conv_backward_im2col = conv_backward_strides = conv_backward_fast = conv_backward_naive
max_pool_forward_reshape = max_pool_forward_im2col = max_pool_forward_fast = max_pool_forward_naive
max_pool_backward_reshape = max_pool_backward_im2col = max_pool_backward_fast = max_pool_backward_naive
