"""Convolution multiply by multiply. Arrays are (N, C, *spatial); every option is one per axis, padding a pair per axis.

A link says that window `o` of a filter reads a cell of a channel under a tap: convolution, its two gradients, and the
transposed convolution are sums over the same links, with the arrays in other roles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Place = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """The options of a convolution of images with these spatial lengths."""

    lengths: Place
    kernel: Place
    stride: Place
    padding: tuple[tuple[int, int], ...]
    dilation: Place
    groups: int = 1

    @property
    def out(self) -> Place:
        axes = zip(self.lengths, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)

    def links(self, filters: int, channels: int) -> Iterator[tuple[tuple[int, Place], tuple[int, int, Place], Place]]:
        """((filter, window), (filter, channel within the group, tap), (channel, cell)) for every multiply-add."""
        for f in range(filters):
            group = f // (filters // self.groups)
            for c in range(channels // self.groups):
                for o in np.ndindex(*self.out):
                    for t in np.ndindex(*self.kernel):
                        axes = zip(o, self.stride, t, self.dilation, self.padding, strict=True)
                        cell = tuple(i * s + j * d - before for i, s, j, d, (before, _) in axes)
                        if all(0 <= i < n for i, n in zip(cell, self.lengths, strict=True)):
                            yield (f, *o), (f, c, *t), (group * (channels // self.groups) + c, *cell)


def maps(op: Conv, image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Convolution: each window gathers."""
    y = np.zeros((len(image), len(weight), *op.out))
    for window, tap, cell in op.links(len(weight), image.shape[1]):
        for n in range(len(image)):
            y[(n, *window)] += weight[tap] * image[(n, *cell)]
    return y


def image(op: Conv, maps: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Its adjoint, the transposed convolution: each window scatters, and where windows overlap they add."""
    channels = weight.shape[1] * op.groups
    x = np.zeros((len(maps), channels, *op.lengths))
    for window, tap, cell in op.links(len(weight), channels):
        for n in range(len(maps)):
            x[(n, *cell)] += weight[tap] * maps[(n, *window)]
    return x


def dweight(op: Conv, image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The gradient of the weight in either direction."""
    dw = np.zeros((maps.shape[1], image.shape[1] // op.groups, *op.kernel))
    for window, tap, cell in op.links(maps.shape[1], image.shape[1]):
        for n in range(len(image)):
            dw[tap] += maps[(n, *window)] * image[(n, *cell)]
    return dw


def dbias(dy: np.ndarray) -> np.ndarray:
    """One sum a channel."""
    return np.array([sum(float(v) for v in dy[:, f].ravel()) for f in range(dy.shape[1])])
