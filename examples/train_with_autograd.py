"""A small network trained by autograd: layers called on Tensors, a loss written by hand, an optimiser of Tensors.

    python examples/train_with_autograd.py

Pictures of horizontal, vertical and diagonal stripes are told apart. The loss is the cross-entropy and, as an example
of what no layer has, a penalty on the sizes of the weights.
"""

from __future__ import annotations

import numpy as np

from cnnlayers import layers, optim
from cnnlayers.autograd import Tensor, functional, no_grad, parameters

SIDE, CLASSES, PENALTY = 8, 3, 1e-4


def stripes(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """So many noisy pictures (N, 1, SIDE, SIDE), and which way the stripes of each run."""
    labels = rng.integers(0, CLASSES, number)
    row, column = np.mgrid[:SIDE, :SIDE]
    along = np.stack([row, column, row + column])[labels]
    shift = rng.integers(0, 4, (number, 1, 1))
    pictures = ((along + shift) % 4 < 2) + 0.4 * rng.standard_normal(along.shape)
    return pictures[:, None].astype("float32"), labels


def network() -> layers.Sequential:
    return layers.Sequential(
        layers.Conv(1, 8, 3, padding=1, rng=0),
        layers.BatchNorm(8),
        layers.ReLU(),
        layers.MaxPool(2),
        layers.Conv(8, 8, 3, padding=1, rng=1),
        layers.ReLU(),
        layers.Flatten(),
        layers.Linear(8 * (SIDE // 2) ** 2, CLASSES, rng=2),
    )


def main(steps: int = 60) -> float:
    """Train, print the loss, and give the accuracy on pictures that were not trained on."""
    rng = np.random.default_rng(0)
    net = network()
    weights = parameters(net)  # names -> Tensors
    adam = optim.Adam(weights, lr=1e-2)
    for step in range(steps):
        x, labels = stripes(64, rng)
        scores = net(Tensor(x))
        sizes = sum((w**2).sum() for name, w in weights.items() if name.endswith("weight"))
        loss = functional.softmax_cross_entropy(scores, labels) + PENALTY * sizes
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:3}: loss {loss:.3f}")
    x, labels = stripes(500, rng)
    with no_grad():
        found = net.eval()(Tensor(x)).data.argmax(axis=1)
    accuracy = float((found == labels).mean())
    print(f"accuracy on new pictures {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
