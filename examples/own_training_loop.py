"""A training loop of one's own: layers, a loss, an optimiser, evaluation, and the weights saved.

    python examples/own_training_loop.py [--epochs 8] [--lr 0.003] [--out digits.safetensors]

It trains on scikit-learn's handwritten digits, which need no download: pip install 'cnnlayers[train]'. Nothing here is
hidden in a trainer. For a GPU, `backends.use("cupy")` before anything else is all that changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import cnnlayers
from cnnlayers import data, layers, optim
from cnnlayers import functional as F

BATCH = 64


def network(channels: int, classes: int) -> layers.Sequential:
    """For pictures of 8×8 cells; `rng` seeds the initial weights."""
    return layers.Sequential(
        layers.Conv(channels, 16, 3, padding=1, rng=0),
        layers.BatchNorm(16),
        layers.ReLU(),
        layers.MaxPool(2),
        layers.Flatten(),
        layers.Dropout(0.2, rng=1),
        layers.Linear(16 * 4 * 4, classes, rng=2),
    )


def train_epoch(
    net: layers.Layer, adam: optim.Optimizer, digits: data.Dataset, rows: np.ndarray, rng: np.random.Generator
) -> float:
    """Every row once, in a new order; the mean loss."""
    net.train()
    total = 0.0
    for x, labels in data.batches(digits, rows, BATCH, rng):  # with rng: shuffled, and distorted a little
        scores = net(x)
        loss, ctx = F.softmax_cross_entropy_forward(scores, labels)
        dscores = F.softmax_cross_entropy_backward(1.0, ctx)
        net.backward(dscores, needs_dx=False)  # the gradient of the pictures is not needed
        adam.step(net.grads)
        total += float(loss) * len(x)
    return total / len(rows)


def accuracy(net: layers.Layer, digits: data.Dataset, rows: np.ndarray) -> float:
    """In evaluation: batch norm takes its running statistics, and dropout does nothing."""
    net.eval()
    right = sum(int((net(x).argmax(axis=1) == labels).sum()) for x, labels in data.batches(digits, rows, 512))
    return right / len(rows)


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, help="where to save the best weights (default: nowhere)")
    arguments = parser.parse_args()

    digits = data.load_digits()
    rows, held = digits.hold_out(0.15, seed=0)
    net = network(digits.shape[0], len(digits.classes))
    adam, rng, best = optim.Adam(net.params, lr=arguments.lr), np.random.default_rng(0), 0.0
    for epoch in range(1, arguments.epochs + 1):
        loss = train_epoch(net, adam, digits, rows, rng)
        validation = accuracy(net, digits, held)
        print(f"epoch {epoch}: loss {loss:.3f}, validation {100 * validation:.1f} %")
        if arguments.out is not None and validation > best:
            cnnlayers.save(net, arguments.out)
        best = max(best, validation)
    if arguments.out is not None:
        cnnlayers.load(net, arguments.out)
    tested = accuracy(net, digits, digits.test)
    print(f"test accuracy {100 * tested:.1f} %")
    return tested


if __name__ == "__main__":
    main()
