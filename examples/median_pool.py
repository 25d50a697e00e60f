"""An operation of one's own: median pooling as three functions, as a layer, and with a compiled kernel.

    python examples/median_pool.py

The array code runs on NumPy and CuPy arrays alike. On NumPy the kernel of median_pool_kernel.py takes over where Numba
is installed. The page "Write your own operation" explains it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlayers import backends, kernels, testing
from cnnlayers import functional as F
from cnnlayers.autograd import Tensor
from cnnlayers.layers import Conv, Layer, ReLU, Sequential

Array = Any


@dataclass(frozen=True)
class Spec:
    """What shapes and options decide: window and stride on each spatial axis, and the number of windows."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    out: tuple[int, ...]


def spec_of(shape: tuple[int, ...], kernel_size: int, stride: int | None) -> Spec:
    """Check everything before anything is computed."""
    if not 3 <= len(shape) <= 5:
        raise ValueError(f"x must have the shape (N, C, *spatial) with one to three spatial axes, got {shape}")
    stride = kernel_size if stride is None else stride
    for name, value in (("kernel_size", kernel_size), ("stride", stride)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")
    taps = kernel_size ** len(shape[2:])
    if taps % 2 == 0 or taps > 255:
        raise ValueError(
            f"the window must have an odd number of cells, at most 255, got {taps}: use an odd kernel_size"
        )
    if min(shape[2:]) < kernel_size:
        raise ValueError(f"kernel_size {kernel_size} is larger than the input {shape[2:]}: pad it first (F.pad)")
    axes = len(shape) - 2
    return Spec((kernel_size,) * axes, (stride,) * axes, tuple((n - kernel_size) // stride + 1 for n in shape[2:]))


def cells_of_taps(spec: Spec) -> Iterator[tuple[Any, ...]]:
    """For each cell of the window, in C order: that cell of all windows, as an index into x."""
    for tap in itertools.product(*map(range, spec.kernel)):
        steps = zip(tap, spec.stride, spec.out, strict=True)
        yield (..., *(slice(t, t + s * (o - 1) + 1, s) for t, s, o in steps))


# ---------------------------------------------------------------------------------------------------------- array code
def _forward(b: backends.Backend, spec: Spec, x: Array) -> tuple[Array, Array]:
    """y, and which tap of its window it is: the first among equals."""
    taps = b.xp.stack([x[cells] for cells in cells_of_taps(spec)])
    middle = b.xp.sort(taps, axis=0)[taps.shape[0] // 2, ...]
    unknown = b.xp.isnan(taps)
    chosen = b.xp.where(b.xp.any(unknown, axis=0), unknown, taps == middle)  # a NaN is the window's median
    which = b.xp.argmax(b.xp.astype(chosen, b.xp.uint8), axis=0)
    y = b.xp.take_along_axis(taps, which[None, ...], axis=0)[0, ...]
    return y, b.xp.astype(which, b.xp.uint8)


def _backward(b: backends.Backend, spec: Spec, dy: Array, which: Array, shape: tuple[int, ...]) -> Array:
    """dx: each window's gradient goes to the cell that was its median."""
    dx, nothing = b.zeros(shape, dy.dtype), b.zeros((), dy.dtype)
    for tap, cells in enumerate(cells_of_taps(spec)):
        dx[cells] += b.xp.where(which == tap, dy, nothing)
    return dx


# ----------------------------------------------------------------------------------------------------- three functions
def median_pool_forward(x: Array, kernel_size: int, stride: int | None = None) -> tuple[Array, Any]:
    """The median of each window, and the context for `median_pool_backward`: one byte an output.

    x: (N, C, *spatial), float32 or float64. The window must have an odd number of cells, so that the median is one of
    them. A window with a NaN gives NaN.
    """
    b = backends.of(x)
    if x.dtype not in (b.xp.float32, b.xp.float64):
        raise TypeError(f"x must be float32 or float64, got {x.dtype}")
    spec = spec_of(tuple(x.shape), kernel_size, stride)
    compute = kernels.find("median_pool_forward", b, spec, x) or _forward
    y, which = compute(b, spec, x)
    return y, (spec, which, tuple(x.shape))


def median_pool(x: Array, kernel_size: int, stride: int | None = None) -> Array:
    """The median of each window; nothing is saved."""
    return median_pool_forward(x, kernel_size, stride)[0]


def median_pool_backward(dy: Array, ctx: Any) -> Array:
    """dx, of x's shape."""
    spec, which, shape = ctx
    if tuple(dy.shape) != tuple(which.shape):
        raise ValueError(f"dy must have y's shape {tuple(which.shape)}, got {tuple(dy.shape)}")
    return _backward(backends.of(dy), spec, dy, which, shape)


# -------------------------------------------------------------------------------------------------- a layer, a kernel
class MedianPool(Layer):
    """`median_pool` as a layer."""

    def __init__(self, kernel_size: int, stride: int | None = None) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def compute_forward(self, x: Array) -> tuple[Array, Any]:
        return median_pool_forward(x, self.kernel_size, self.stride)

    def compute_backward(self, dy: Array, ctx: Any) -> Array:
        return median_pool_backward(dy, ctx)


# The module is imported at first use. `needs` says why no kernel of this kind can run: no Numba, for example.
kernels.TABLE["median_pool_forward", "numpy"] = kernels.Entry("median_pool_kernel", needs="cnnlayers.kernels.cpu.jit")


def main() -> None:
    """Check the operation, its kernel and its layer, and print what was found."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 9, 8))
    errors = testing.gradcheck((median_pool, median_pool_forward, median_pool_backward), x, 3, 2)
    print(f"gradcheck: relative error {errors['x']:.1e}")

    with kernels.mode("off"):
        portable = median_pool(x, 3)
    print("array code and kernel give the same bits:", np.array_equal(portable, median_pool(x, 3)))
    if (why := kernels.TABLE["median_pool_forward", "numpy"].unavailable()) is not None:
        print("there is no kernel here:", why)

    net = Sequential(Conv(3, 4, 3, rng=0), MedianPool(3), ReLU())
    tensor = Tensor(x.astype("float32"), requires_grad=True)
    (net(tensor) ** 2).sum().backward()
    print("through a network and autograd: dx", tensor.grad.shape)

    picture = np.full((1, 1, 32, 32), 0.5)
    noisy = np.where(rng.random(picture.shape) < 0.1, rng.integers(0, 2, picture.shape), picture)
    cleaned = median_pool(F.pad(noisy, 1, "reflect"), 3, 1)
    before, after = abs(noisy - picture).mean(), abs(cleaned - picture).mean()
    print(f"salt and pepper: mean error {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
