"""Whole networks, made of layers, and how a trained one is described so that it can be made again.

A description is a name of `NAMES` and the constructor's arguments, plain numbers that JSON can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cnnlayers.arguments import flag, integer, sizes
from cnnlayers.layers import BatchNorm, Conv, Flatten, Layer, Linear, MaxPool, ReLU, Sequential
from cnnlayers.layers.base import generator
from cnnlayers.specs import pool_window


class ThreeLayerConvNet(Sequential):
    """conv - [batch norm] - relu - 2×2 max pool - affine - relu - affine: CS231n's first convolutional network.

    input_shape: a picture's (C, H, W), H and W at least 2; the convolution keeps them ("same" padding). The output is
    (N, classes), to be given to `softmax_cross_entropy`. rng: None, a seed or a NumPy Generator for the initial
    weights. Raises ValueError or TypeError for sizes that are none.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        filters: int = 32,
        kernel_size: int = 3,
        hidden: int = 128,
        batch_norm: bool = False,
        *,
        rng: Any = None,
    ) -> None:
        channels, height, width = sizes(tuple(input_shape), 3, "input_shape")
        filters, hidden = integer(filters, "filters", 1), integer(hidden, "hidden", 1)
        source = generator(rng)
        pooled = pool_window((1, filters, height, width), 2, None, 0, 1, False, "channels_first")
        down, across = pooled.out_lengths
        super().__init__(
            Conv(channels, filters, integer(kernel_size, "kernel_size", 1), padding="same", rng=source),
            *([BatchNorm(filters)] if flag(batch_norm, "batch_norm") else []),
            ReLU(),
            MaxPool(2),
            Flatten(),
            Linear(filters * down * across, hidden, rng=source),
            ReLU(),
            Linear(hidden, integer(classes, "classes", 1), rng=source),
        )


NAMES: Mapping[str, Callable[..., Layer]] = {"three-layer": ThreeLayerConvNet}


def build(name: str, arguments: Mapping[str, Any], *, rng: Any = None) -> Layer:
    """The model of this name and these arguments. Raises ValueError for an unknown name, and as the model does."""
    if name not in NAMES:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(NAMES)}")
    return NAMES[name](**arguments, rng=rng)
