"""Loops of the norms in which each cell of a row has a parameter of its own: layer and RMS norm.

Arrays are flat, in C order, rows on end. gamma and beta, of x's compute dtype, begin anew after their length, which is
a multiple of a row's. Sums and `shift` are as in norm_loops.py, the first loops of which are here again: compiled code
kept on disk is renewed by its own file alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compile import kernel

Array = Any
Number = Any
U = np.uint64
RUN = U(512)
TURNS = U(16)  # sums for a parameter that are of x's dtype, before they are added to float64 ones


@kernel(relaxed=True)
def _total(x: Array, start: Number, stop: Number) -> Number:
    s = x.dtype.type(0)
    for i in range(start, stop):
        s += x[i]
    return s


@kernel(relaxed=True)
def _squares(x: Array, start: Number, stop: Number, shift: Number) -> tuple[Number, Number]:
    s, q = x.dtype.type(0), x.dtype.type(0)
    for i in range(start, stop):
        d = x[i] - shift
        s += d
        q += d * d
    return s, q


@kernel(relaxed=True)
def _weighted(
    dy: Array, x: Array, gamma: Array, start: Number, stop: Number, own: Number, shift: Number
) -> tuple[Number, Number]:
    """The sums of dy * gamma and of dy * gamma * (x - shift), gamma from `own` on."""
    s, q = x.dtype.type(0), x.dtype.type(0)
    for i in range(stop - start):
        g = dy[start + i] * gamma[own + i]
        s += g
        q += g * (x[start + i] - shift)
    return s, q


@kernel()
def cells_forward(
    x: Array,
    y: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    rstd: Array,
    eps: float,
    centred: bool,
    cells: int,
    start: int,
    stop: int,
) -> None:
    """y and the statistics of rows start to stop, each of so many cells. Not centred: the mean is taken to be 0."""
    kind, n, period = x.dtype.type, U(cells), U(gamma.size)
    for r in range(U(start), U(stop)):
        at, end, own = r * n, r * n + n, r * n % period
        s, q, sum_of_squares = 0.0, 0.0, 0.0
        if centred:
            for a in range(at, end, RUN):
                s += _total(x, a, min(a + RUN, end))
        shift = kind(s / n if np.isfinite(s) else 0.0)
        for a in range(at, end, RUN):
            some, squares = _squares(x, a, min(a + RUN, end), shift)
            q += some
            sum_of_squares += squares
        delta = q / n if centred else 0.0
        var = sum_of_squares / n - delta * delta
        root = 1.0 / np.sqrt((0.0 if var < 0.0 else var) + eps)
        scale, offset = kind(root), kind(-delta * root)
        for j in range(n):
            y[at + j] = ((x[at + j] - shift) * scale + offset) * gamma[own + j] + beta[own + j]
        mean[r], rstd[r] = shift + delta, root


@kernel()
def _row_backward(
    dy: Array,
    x: Array,
    dx: Array,
    gamma: Array,
    start: Number,
    stop: Number,
    own: Number,
    mean: float,
    rstd: float,
    centred: bool,
) -> None:
    kind, n = x.dtype.type, stop - start
    shift = kind(mean)
    delta, p, a = mean - shift, 0.0, 0.0
    for i in range(start, stop, RUN):
        some, products = _weighted(dy, x, gamma, i, min(i + RUN, stop), own + (i - start), shift)
        p += some
        a += products
    slope = rstd * (a - delta * p) * rstd / n
    steep, left, root = kind(slope), kind((p / n if centred else 0.0) - delta * slope), kind(rstd)
    for j in range(n):
        dx[start + j] = (dy[start + j] * gamma[own + j] - (x[start + j] - shift) * steep - left) * root


@kernel()
def _add(
    dy: Array, x: Array, at: Number, n: Number, mean: float, rstd: float, along: Array, plain: Array, own: Number
) -> None:
    """Add a row's dy * xhat and dy to `along` and `plain` from `own` on."""
    kind = x.dtype.type
    shift, scale = kind(mean), kind(rstd)
    offset = kind((shift - mean) * rstd)
    for j in range(n):
        along[own + j] += dy[at + j] * ((x[at + j] - shift) * scale + offset)
        plain[own + j] += dy[at + j]


@kernel()
def _move(source: Array, target: Array, line: Number) -> None:
    """Add the source to the target from `line` on, and clear it."""
    for c in range(U(source.size)):
        target[line + c] += source[c]
        source[c] = 0.0


@kernel()
def cells_backward(
    dy: Array,
    x: Array,
    dx: Array,
    gamma: Array,
    mean: Array,
    rstd: Array,
    dgamma: Array,
    dbeta: Array,
    centred: bool,
    cells: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """dx of the rows of pieces start to stop; each piece adds its part of dgamma and dbeta to a line of its own."""
    n, period, rows = U(cells), U(gamma.size), U(rstd.size)
    along, plain, together = np.zeros(gamma.size, x.dtype), np.zeros(gamma.size, x.dtype), TURNS * (period // n)
    for piece in range(U(start), U(stop)):
        last = rows * (piece + U(1)) // U(pieces)
        for first in range(rows * piece // U(pieces), last, together):
            for r in range(first, min(first + together, last)):
                at, own = r * n, r * n % period
                _row_backward(dy, x, dx, gamma, at, at + n, own, mean[r], rstd[r], centred)
                _add(dy, x, at, n, mean[r], rstd[r], along, plain, own)
            _move(along, dgamma, piece * period)
            _move(plain, dbeta, piece * period)
