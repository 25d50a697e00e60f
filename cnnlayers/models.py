"""Whole networks, made of layers, and how a trained one is described so that it can be made again.

A description is a name of `NAMES` and the constructor's arguments, plain numbers that JSON can hold.

A residual network's arrays go by the names that PyTorch's residual networks have (conv1, layer1.0.bn2, fc), whatever
their places in the layers it is built of.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from cnnlayers import backends
from cnnlayers.functional.arrays import Array
from cnnlayers.layers import BatchNorm, Conv, Flatten, GlobalAvgPool, Layer, Linear, MaxPool, ReLU, Residual, Sequential
from cnnlayers.layers.base import generator
from cnnlayers.specs import pool_window
from cnnlayers.specs.arguments import choice, entries_of, flag, integer, sizes

__all__ = ["ResNet", "ThreeLayerConvNet", "build"]

STAGES = (16, 32, 64)  # channels; each stage but the first halves the picture's sides
SHORTCUTS = ("projection", "padding")


def _picture(input_shape: Any) -> tuple[int, ...]:
    """`input_shape` as (C, H, W). TypeError where it is no sequence, ValueError where it names no three sizes."""
    entries = entries_of(input_shape, "input_shape")
    if entries is None:
        raise TypeError(f"input_shape must be a picture's (C, H, W), got {input_shape!r}")
    return sizes(entries, 3, "input_shape")


class ThreeLayerConvNet(Sequential):
    """conv - [batch norm] - relu - 2×2 max pool - affine - relu - affine: CS231n's first convolutional network.

    Parameters
    ----------
    input_shape : sequence of int
        A picture's (C, H, W), H and W at least 2; the convolution keeps them ("same" padding).
    classes : int
        How many classes.
    filters, kernel_size : int
        Of the convolution.
    hidden : int
        The first affine layer's outputs.
    batch_norm : bool
        Whether batch norm follows the convolution.
    rng : None, int or numpy.random.Generator
        What the initial weights are drawn from.

    Raises
    ------
    ValueError, TypeError
        Sizes that are none.

    Notes
    -----
    x: (N, C, H, W); y: (N, classes), to be given to `softmax_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.models import ThreeLayerConvNet
    >>> ThreeLayerConvNet((1, 8, 8), rng=0)(np.zeros((2, 1, 8, 8), np.float32)).shape
    (2, 10)

    References
    ----------
    https://cs231n.github.io/assignments2020/assignment2/
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
        channels, height, width = _picture(input_shape)
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


class _Renamed(Sequential):
    """A Sequential whose parts' arrays go by other names than their places: `_names` has a prefix for a prefix."""

    _names: ClassVar[Mapping[str, str]] = {}

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        for place, layer in super().walk():
            yield prefix + self._renamed(place), layer

    @classmethod
    @functools.lru_cache(maxsize=1024)  # an optimiser's step asks for all names
    def _renamed(cls, place: str) -> str:
        old = next((old for old in cls._names if place.startswith(old)), "")
        return cls._names.get(old, "") + place[len(old) :]


class _PaddedShortcut(Layer):
    """Every second cell of every second row, among channels of zeros that fill up the number: no parameters."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.channels, self.filters = channels, filters

    def _own(self) -> slice:
        before = (self.filters - self.channels) // 2
        return slice(before, before + self.channels)

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        kept = x[:, :, ::2, ::2]
        n, _, height, width = kept.shape
        y = backends.of(x).zeros((n, self.filters, height, width), x.dtype)
        y[:, self._own(), :, :] = kept
        return y, tuple(x.shape)

    def compute_backward(self, dy: Array, ctx: Any) -> Array:
        dx = backends.of(dy).zeros(ctx, dy.dtype)
        dx[:, :, ::2, ::2] = dy[:, self._own(), :, :]
        return dx


class _BasicBlock(_Renamed):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), both convolutions 3×3, the first with the stride."""

    _names: ClassVar[Mapping[str, str]] = {
        **{f"0.body.{i}.": f"{name}." for i, name in ((0, "conv1"), (1, "bn1"), (3, "conv2"), (4, "bn2"))},
        "0.shortcut.": "downsample.",
    }

    def __init__(self, channels: int, filters: int, stride: int, shortcut: str, rng: Any) -> None:
        body = Sequential(
            Conv(channels, filters, 3, stride, 1, bias=False, rng=rng),
            BatchNorm(filters),
            ReLU(),
            Conv(filters, filters, 3, 1, 1, bias=False, rng=rng),
            BatchNorm(filters),
        )
        beside: Layer | None = None
        if channels != filters and shortcut == "padding":
            beside = _PaddedShortcut(channels, filters)
        elif channels != filters:
            beside = Sequential(Conv(channels, filters, 1, stride, bias=False, rng=rng), BatchNorm(filters))
        super().__init__(Residual(body, beside), ReLU())


IMAGENET = (18, 34, 50, 101, 152)  # the depths of the networks that most people call "ResNet" and a number
OTHER_RESNET = (
    "ImageNet's ResNet-18, -34, -50, -101 and -152 are other networks (four stages, the deeper ones of bottleneck"
    " blocks), which cnnlayers.models does not have: torchvision does, and cnnlayers.torch.convert takes it"
)


def _blocks(depth: int) -> int:
    """The blocks of a stage: n of depth 6n + 2. ValueError for another depth, a warning for one that is also the depth
    of a network for ImageNet."""
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest:
        raise ValueError(
            f"depth must be 6n + 2 with n of at least 1 (8, 14, 20, …), got {depth}: ResNet is He et al.'s network for"
            f" small pictures such as CIFAR's. {OTHER_RESNET}"
        )
    if depth in IMAGENET:
        warnings.warn(
            f"ResNet({depth}) is He et al.'s network of {depth} layers for small pictures such as CIFAR's, three stages"
            f" of {blocks} two-layer blocks with 16 to 64 channels, not ImageNet's ResNet-{depth}. {OTHER_RESNET}",
            stacklevel=3,
        )
    return blocks


class ResNet(_Renamed):
    """He et al.'s residual network for small pictures: depth 6n + 2 weight layers in three stages of n blocks.

    conv 3×3 - batch norm - relu, n blocks each of 16, 32 and 64 channels, global average pool, linear. A block adds its
    input to two 3×3 convolutions of it; the first block of the second and third stage has stride 2.

    Parameters
    ----------
    depth : int
        8, 14, 20, 26, …
    input_shape : sequence of int
        A picture's (C, H, W), which sets C alone: any H and W will do.
    classes : int
        How many classes.
    shortcut : {"projection", "padding"}
        Where the shape changes: the paper's option B (a strided 1×1 convolution and batch norm), or option A, the
        paper's own choice for these networks (strided, channels of zeros on both sides).
    rng : None, int or numpy.random.Generator
        What the initial weights are drawn from.

    Raises
    ------
    ValueError, TypeError
        A depth that is not 6n + 2, sizes that are none, an unknown shortcut.

    Notes
    -----
    x: (N, C, H, W); y: (N, classes).

    It is the network of the paper's section 4.2, for CIFAR. It is not ImageNet's ResNet-18, -34, -50, -101 or -152
    (section 4.1): those have four stages of 64 to 512 channels, a 7×7 convolution and a max pool before them, from 50
    layers on bottleneck blocks, and are not offered here; torchvision has them. 50 and 152 are of the form 6n + 2, and
    give the small network with a UserWarning that says so.

    The state has torchvision's key names: conv1, bn1, layer1.0.conv1, layer2.0.downsample.0, fc. `load_state_dict` also
    takes `shortcut` for `downsample` and `linear` for `fc`, as other PyTorch code calls them.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.models import ResNet
    >>> ResNet(8, rng=0).eval()(np.zeros((2, 3, 8, 8), np.float32)).shape
    (2, 10)

    References
    ----------
    He, Zhang, Ren and Sun 2015, https://arxiv.org/abs/1512.03385, section 4.2
    """

    _names: ClassVar[Mapping[str, str]] = {
        "0.": "conv1.",
        "1.": "bn1.",
        "3.": "layer1.",
        "4.": "layer2.",
        "5.": "layer3.",
        "8.": "fc.",
    }

    def __init__(
        self,
        depth: int,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        *,
        shortcut: str = "projection",
        rng: Any = None,
    ) -> None:
        self.depth = integer(depth, "depth")
        blocks = _blocks(self.depth)
        choice(shortcut, "shortcut", SHORTCUTS)
        channels = _picture(input_shape)[0]
        classes, source = integer(classes, "classes", 1), generator(rng)
        stages, before = [], STAGES[0]
        for filters in STAGES:
            first = _BasicBlock(before, filters, 1 if before == filters else 2, shortcut, source)
            others = [_BasicBlock(filters, filters, 1, shortcut, source) for _ in range(blocks - 1)]
            stages.append(Sequential(first, *others))
            before = filters
        super().__init__(
            Conv(channels, STAGES[0], 3, 1, 1, bias=False, rng=source),
            BatchNorm(STAGES[0]),
            ReLU(),
            *stages,
            GlobalAvgPool(),
            Flatten(),
            Linear(before, classes, rng=source),
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        if isinstance(state, Mapping):
            # Where both names are there, the second is unknown, as any other would be.
            state = {
                name if (new := _torchvision_name(str(name))) in state else new: value for name, value in state.items()
            }
        return super().load_state_dict(state)


def _torchvision_name(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"fc.{rest}" if first == "linear" else name.replace(".shortcut.", ".downsample.")


NAMES: Mapping[str, Callable[..., Layer]] = {
    "three-layer": ThreeLayerConvNet,
    "resnet8": functools.partial(ResNet, 8),
}


def build(name: str, arguments: Mapping[str, Any], *, rng: Any = None) -> Layer:
    """The model of this name and these arguments.

    Parameters
    ----------
    name : str
        A key of `NAMES`: "three-layer" or "resnet8".
    arguments : dict of str to object
        The constructor's arguments by name, plain numbers that JSON can hold.
    rng : None, int or numpy.random.Generator
        What the initial weights are drawn from.

    Returns
    -------
    Layer

    Raises
    ------
    ValueError
        An unknown name.
    TypeError
        Arguments that are no mapping. Else as the model raises.

    Examples
    --------
    >>> from cnnlayers import models
    >>> sum(p.size for p in models.build("resnet8", {"classes": 10}).params.values())
    78042
    """
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(NAMES)}")
    if not isinstance(arguments, Mapping):
        raise TypeError(f"arguments must be a mapping of the model's arguments, got {type(arguments).__name__}")
    return NAMES[name](**arguments, rng=rng)
