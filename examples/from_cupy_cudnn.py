"""A small framework that was written for cupy.cudnn, on this library: it trains on NumPy, and on a GPU with CuPy.

    python examples/from_cupy_cudnn.py

docs/how-to/migration.md has the same classes as they were for CuPy 13.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers import functional as F

SIDE, CLASSES = 8, 3


class Conv:  # 3×3, the size stays
    def __init__(self, W, b):
        self.W, self.b = W, b

    def forward(self, x):
        y, self.ctx = F.conv_forward(x, self.W, self.b, padding=1)
        return y

    def backward(self, gy):
        gx, gW, gb = F.conv_backward(gy, self.ctx)
        self.grads = {"W": gW, "b": gb}
        return gx


class ReLU:
    def forward(self, x):
        y, self.ctx = F.relu_forward(x)
        return y

    def backward(self, gy):
        return F.relu_backward(gy, self.ctx)


class MaxPool:  # 2×2
    def forward(self, x):
        y, self.ctx = F.max_pool_forward(x, 2)
        return y

    def backward(self, gy):
        return F.max_pool_backward(gy, self.ctx)


def stripes(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures (N, 1, SIDE, SIDE) of stripes, and which of three ways they run."""
    labels = rng.integers(0, CLASSES, number)
    row, column = np.mgrid[:SIDE, :SIDE]
    along = np.stack([row, column, row + column])[labels]
    pictures = (along % 4 < 2) + 0.3 * rng.standard_normal(along.shape)
    return pictures[:, None].astype("float32"), labels


def train(steps: int = 40, batch: int = 32, xp: Any = np, rate: float = 0.3) -> list[float]:
    """Gradient descent with arrays of `xp`, NumPy or CuPy; the loss of each step."""
    rng = np.random.default_rng(0)
    weights = [0.3 * rng.standard_normal(shape).astype("float32") for shape in ((6, 1, 3, 3), (CLASSES, 6, 3, 3))]
    net: list[Any] = []
    for W in weights:
        net += [Conv(xp.asarray(W), xp.zeros(len(W), "float32")), ReLU(), MaxPool()]
    del net[-2:]  # the last convolution has a map for each class
    losses = []
    for _ in range(steps):
        pictures, labels = stripes(batch, rng)
        y = xp.asarray(pictures)
        for layer in net:
            y = layer.forward(y)
        loss, ctx = F.softmax_cross_entropy_forward(y.mean(axis=(2, 3)), xp.asarray(labels))
        losses.append(float(loss))
        dy = F.softmax_cross_entropy_backward(1.0, ctx)[:, :, None, None] / (y.shape[2] * y.shape[3])
        dy = xp.ascontiguousarray(xp.broadcast_to(dy, y.shape))
        for layer in reversed(net):
            dy = layer.backward(dy)
        for layer in net[::3]:
            layer.W -= rate * layer.grads["W"]
            layer.b -= rate * layer.grads["b"]
    return losses


if __name__ == "__main__":
    backend = backends.current()
    for step, loss in enumerate(train(xp=np if backend.name == "numpy" else __import__("cupy"))):
        print(f"step {step:2} on {backend.name}: loss {loss:.3f}")
