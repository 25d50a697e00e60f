"""What tutorials teach: loops over every window ("naive"), and im2col with one large matrix product or reduction.

Written afresh from their definitions, for comparison alone. Both are float NumPy code without any library of ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cases import BACKWARD, FORWARD, INFERENCE
from .contest import Call, Contestant, Refused
from .problem import Array, Problem

MOST_STEPS = 200_000  # of a loop in Python: about half a second


@dataclass(frozen=True)
class Windows:
    """Square windows of size k over x padded by p, s apart."""

    k: int
    s: int
    p: int

    def padded(self, x: Array, value: float) -> Array:
        return np.pad(x, ((0, 0), (0, 0), (self.p,) * 2, (self.p,) * 2), constant_values=value)

    def cropped(self, dx: Array) -> Array:
        return dx[:, :, self.p : dx.shape[2] - self.p, self.p : dx.shape[3] - self.p]

    def places(self, y_shape: tuple[int, ...]) -> Iterator[tuple[int, int, int, int, tuple[slice, slice]]]:
        """(n, c, i, j, the window) for each of y's cells."""
        for n, c, i, j in np.ndindex(*y_shape):
            yield n, c, i, j, (slice(i * self.s, i * self.s + self.k), slice(j * self.s, j * self.s + self.k))


def windows(problem: Problem) -> Windows:
    options, weight = problem.case.options, problem.case.weight
    k = weight[2] if weight else options["kernel_size"]
    return Windows(k, options.get("stride", 1 if weight else k), options.get("padding", 0))


# --------------------------------------------------------------------------------------------------------------- naive
def naive_pool(w: Windows, op: str, x: Array, y_shape: tuple[int, ...]) -> Array:
    xp, y = w.padded(x, -np.inf if op == "max_pool" else 0), np.empty(y_shape, x.dtype)
    for n, c, i, j, at in w.places(y_shape):
        window = xp[n, c][at]
        y[n, c, i, j] = window.max() if op == "max_pool" else window.sum() / w.k**2
    return y


def naive_pool_backward(w: Windows, op: str, x: Array, dy: Array) -> Array:
    xp = w.padded(x, -np.inf if op == "max_pool" else 0)
    dx = np.zeros_like(xp)
    for n, c, i, j, at in w.places(dy.shape):
        if op == "max_pool":
            a, b = np.unravel_index(xp[n, c][at].argmax(), (w.k, w.k))
            dx[n, c, i * w.s + a, j * w.s + b] += dy[n, c, i, j]
        else:
            dx[n, c][at] += dy[n, c, i, j] / w.k**2
    return w.cropped(dx)


def naive_conv(w: Windows, x: Array, weight: Array, bias: Array, y_shape: tuple[int, ...]) -> Array:
    xp, y = w.padded(x, 0), np.empty(y_shape, x.dtype)
    for n, f, i, j, at in w.places(y_shape):
        y[n, f, i, j] = (xp[n][:, at[0], at[1]] * weight[f]).sum() + bias[f]
    return y


def naive_conv_backward(w: Windows, x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
    xp = w.padded(x, 0)
    dx, dweight, dbias = np.zeros_like(xp), np.zeros_like(weight), np.zeros(len(weight), x.dtype)
    for n, f, i, j, at in w.places(dy.shape):
        dx[n][:, at[0], at[1]] += dy[n, f, i, j] * weight[f]
        dweight[f] += dy[n, f, i, j] * xp[n][:, at[0], at[1]]
        dbias[f] += dy[n, f, i, j]
    return w.cropped(dx), dweight, dbias


# -------------------------------------------------------------------------------------------------------------- im2col
def columns(w: Windows, x: Array, y_shape: tuple[int, ...], value: float = 0.0) -> Array:
    """(C·k·k, H'·W'·N): the cells of every window, by an index array."""
    c = x.shape[1]
    k, i, j = _indices(w, c, y_shape)
    cols = w.padded(x, value)[:, k, i, j]
    return cols.transpose(1, 2, 0).reshape(c * w.k**2, -1)


def spread(w: Windows, cols: Array, shape: tuple[int, ...], y_shape: tuple[int, ...]) -> Array:
    """Add the columns back to where they came from."""
    n, c, height, width = shape
    k, i, j = _indices(w, c, y_shape)
    dx = np.zeros((n, c, height + 2 * w.p, width + 2 * w.p), cols.dtype)
    where: Any = (slice(None), k, i, j)
    np.add.at(dx, where, cols.reshape(c * w.k**2, -1, n).transpose(2, 0, 1))
    return w.cropped(dx)


def _indices(w: Windows, channels: int, y_shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    k, a, b = (v.reshape(-1, 1) for v in np.indices((channels, w.k, w.k)))
    i, j = (v.reshape(1, -1) for v in np.indices(y_shape[2:]))
    return k, i * w.s + a, j * w.s + b


def im2col_pool(w: Windows, op: str, x: Array, y_shape: tuple[int, ...]) -> tuple[Array, Array]:
    """y, and the columns' maxima for backward; every plane is a picture of one channel."""
    n, c, height, width = x.shape
    planes = x.reshape(n * c, 1, height, width)
    cols = columns(w, planes, y_shape, -np.inf if op == "max_pool" else 0.0)
    best = cols.argmax(axis=0)
    y = cols[best, np.arange(best.size)] if op == "max_pool" else cols.mean(axis=0)
    return y.reshape(*y_shape[2:], n, c).transpose(2, 3, 0, 1), best


def im2col_pool_backward(w: Windows, op: str, shape: tuple[int, ...], best: Array, dy: Array) -> Array:
    n, c, height, width = shape
    flat = dy.transpose(2, 3, 0, 1).ravel()
    dcols = np.zeros((w.k**2, flat.size), dy.dtype)
    if op == "max_pool":
        dcols[best, np.arange(flat.size)] = flat
    else:
        dcols += flat / w.k**2
    return spread(w, dcols, (n * c, 1, height, width), dy.shape).reshape(shape)


def im2col_conv(w: Windows, x: Array, weight: Array, bias: Array, y_shape: tuple[int, ...]) -> tuple[Array, Array]:
    cols = columns(w, x, y_shape)
    y = weight.reshape(len(weight), -1) @ cols + bias[:, None]
    return y.reshape(len(weight), *y_shape[2:], len(x)).transpose(3, 0, 1, 2), cols


def im2col_conv_backward(
    w: Windows, shape: tuple[int, ...], weight: Array, cols: Array, dy: Array
) -> tuple[Array, Array, Array]:
    flat = dy.transpose(1, 2, 3, 0).reshape(len(weight), -1)
    dx = spread(w, weight.reshape(len(weight), -1).T @ flat, shape, dy.shape)
    return dx, (flat @ cols.T).reshape(weight.shape), dy.sum(axis=(0, 2, 3))


# --------------------------------------------------------------------------------------------------------- contestants
def _checked(problem: Problem, part: str) -> Windows:
    case = problem.case
    if case.op not in ("max_pool", "avg_pool", "conv") or part not in (INFERENCE, FORWARD, BACKWARD):
        raise Refused("the tutorials have no such op")
    if case.channels_last or case.options.get("groups", 1) != 1 or case.dtype not in ("float32", "float64"):
        raise Refused("the tutorials have no such form")
    return windows(problem)


class Naive(Contestant):
    """Loops over samples, channels and pixels."""

    name = "naive"

    def call(self, problem: Problem, part: str) -> Call:
        w, op, x, dy = _checked(problem, part), problem.case.op, problem.inputs[0], problem.gradients[0]
        steps = math.prod(problem.y_shape)
        if steps > MOST_STEPS:
            raise Refused(f"{steps:,} steps of a loop in Python are too many to wait for")
        if op == "conv":
            weight, bias = problem.parameters["weight"], problem.parameters["bias"]
            if part == BACKWARD:
                return lambda i: naive_conv_backward(w, x, weight, dy)
            return lambda i: (naive_conv(w, x, weight, bias, problem.y_shape),)
        if part == BACKWARD:
            return lambda i: (naive_pool_backward(w, op, x, dy),)
        return lambda i: (naive_pool(w, op, x, problem.y_shape),)


class Im2col(Contestant):
    """Index arrays gather every window into a column. Written for small pictures: it asks for all columns at once."""

    name = "im2col"
    MOST_BYTES = 1 << 26

    def call(self, problem: Problem, part: str) -> Call:
        w, op, x, dy = _checked(problem, part), problem.case.op, problem.inputs[0], problem.gradients[0]
        cells = math.prod(problem.y_shape[2:]) * math.prod(x.shape[:2]) * w.k**2
        if cells * x.itemsize > self.MOST_BYTES:
            raise Refused(f"its columns would take {cells * x.itemsize / 2**20:,.0f} MiB")
        if op == "conv":
            weight, bias = problem.parameters["weight"], problem.parameters["bias"]
            run = functools.partial(im2col_conv, w, x, weight, bias, problem.y_shape)
        else:
            run = functools.partial(im2col_pool, w, op, x, problem.y_shape)
        if part != BACKWARD:
            return lambda i: run()
        kept = run()[1]
        if op == "conv":
            return lambda i: im2col_conv_backward(w, x.shape, weight, kept, dy)
        return lambda i: (im2col_pool_backward(w, op, x.shape, kept, dy),)

    def arrays(self, problem: Problem, part: str, result: Any) -> list[Array]:
        return list(result) if part == BACKWARD else [result[0]]
