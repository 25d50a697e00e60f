"""Normalisation row by row and cell by cell; its gradient is the row's Jacobian, written out.

Arrays are (N, C, *spatial), but for the layer and RMS norms, which take any. Everything is computed in float64.
"""

from __future__ import annotations

import math

import numpy as np

Cell = tuple[int, ...]
Row = list[tuple[Cell, Cell]]  # cells of x, each with its place in gamma and beta


def rows_of(kind: str, shape: tuple[int, ...], size: int = 1) -> list[Row]:
    """The rows of a norm: "batch", "instance", "group" (of `size` groups), "trailing" (over the last `size` axes)."""
    found: dict[Cell, Row] = {}
    for cell in np.ndindex(*shape):
        if kind == "trailing":
            row, place = cell[: len(shape) - size], cell[len(shape) - size :]
        else:
            n, c = cell[:2]
            row, place = {"batch": (c,), "instance": (n, c), "group": (n, c * size // shape[1])}[kind], (c,)
        found.setdefault(row, []).append((cell, place))
    return list(found.values())


class Norm:
    """A norm of these rows. `centred`: not in RMS norm; `given`: a mean and a variance for each row, in evaluation."""

    def __init__(self, rows, gamma=None, beta=None, eps=1e-5, centred=True, given=None):
        self.rows, self.gamma, self.beta, self.eps = rows, gamma, beta, eps
        self.centred, self.running = centred, given

    def statistics(self, x, r):
        cells = [float(x[cell]) for cell, _ in self.rows[r]]
        if self.running is not None:
            return float(self.running[0][r]), float(self.running[1][r])
        mean = math.fsum(cells) / len(cells) if self.centred else 0.0
        return mean, math.fsum((v - mean) ** 2 for v in cells) / len(cells)

    def xhat(self, x, r):
        mean, var = self.statistics(x, r)
        return [(float(x[cell]) - mean) / math.sqrt(var + self.eps) for cell, _ in self.rows[r]]

    def forward(self, x):
        y = np.zeros(x.shape)
        for r, row in enumerate(self.rows):
            for (cell, place), v in zip(row, self.xhat(x, r), strict=True):
                y[cell] = v * (1.0 if self.gamma is None else self.gamma[place])
                y[cell] += 0.0 if self.beta is None else self.beta[place]
        return y

    def backward(self, dy, x):
        """dx, dgamma, dbeta."""
        dy, x = np.float64(dy), np.float64(x)
        dx, shape = np.zeros(x.shape), np.max([place for row in self.rows for _, place in row], axis=0) + 1
        dgamma, dbeta = np.zeros(shape), np.zeros(shape)
        for r, row in enumerate(self.rows):
            xhat, rstd, n = self.xhat(x, r), 1 / math.sqrt(self.statistics(x, r)[1] + self.eps), len(row)
            for i, (cell, place) in enumerate(row):
                dgamma[place] += dy[cell] * xhat[i]
                dbeta[place] += dy[cell]
                dxhat = dy[cell] * (1.0 if self.gamma is None else self.gamma[place])
                for j, (other, _) in enumerate(row):
                    slope = float(i == j)
                    if self.running is None:
                        slope -= (float(self.centred) + xhat[i] * xhat[j]) / n
                    dx[other] += dxhat * rstd * slope
        return dx, dgamma, dbeta


def _window(c, channels, size):
    return [j for j in range(c - size // 2, c + (size - 1) // 2 + 1) if 0 <= j < channels]


def local_response(x, dy, size, alpha, beta, k):
    """y, dx of local response normalisation."""
    x, dy = np.float64(x), np.float64(dy)
    y, dx = np.zeros(x.shape), np.zeros(x.shape)
    for n, c, *place in np.ndindex(*x.shape):
        window = [(n, j, *place) for j in _window(c, x.shape[1], size)]
        here = (n, c, *place)
        d = k + alpha / size * sum(x[cell] ** 2 for cell in window)
        y[here] = x[here] / d**beta
        dx[here] += dy[here] / d**beta
        for cell in window:
            dx[cell] -= dy[here] * x[here] * beta * d ** (-beta - 1) * alpha / size * 2 * x[cell]
    return y, dx
