"""Loops of the norms with a parameter for each cell of a row: layer and RMS norm.

Group and instance norm with very short channels use them too, with the parameters of channels repeated.

Arrays, sums and indices are as in norm_loops.py. gamma and beta have x's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import RUN_CELLS, U, _flush, _moments, _shifted_moments

Array = Any
Number = Any  # of x's dtype, float64 or uint64; Numba compiles a kernel for each
FLUSH_ROWS = U(16)  # rows that are summed in x's dtype before the sums are added to float64 ones


@kernel(relaxed=True)
def _run_weighted(
    dy: Array, x: Array, gamma: Array, start: Number, stop: Number, parameter_start: Number, shift: Number
) -> tuple[Number, Number]:
    """The sums of dy * gamma and of dy * gamma * (x - shift). gamma is read from `parameter_start` on."""
    s, q = x.dtype.type(0), x.dtype.type(0)
    for i in range(stop - start):
        g = dy[start + i] * gamma[parameter_start + i]
        s += g
        q += g * (x[start + i] - shift)
    return s, q


@kernel()
def per_cell_forward(
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
    """y and the statistics of rows start to stop, each of `cells` cells.

    gamma and beta have x's dtype; their length is a multiple of `cells`, and after it they start again. If not
    `centred`, the mean is taken as 0 (RMS norm)."""
    to_dtype, n, period = x.dtype.type, U(cells), U(gamma.size)
    for r in range(U(start), U(stop)):
        at, parameter_start = r * n, r * n % period
        shift, delta, var = to_dtype(0), 0.0, 0.0
        if centred:
            shift, delta, var = _moments(x, at, U(1), n, U(0))
        else:
            _, var = _shifted_moments(x, at, U(1), n, U(0), shift)
        row_rstd = 1.0 / np.sqrt(var + eps)
        scale, offset = to_dtype(row_rstd), to_dtype(-delta * row_rstd)
        for j in range(n):
            y[at + j] = ((x[at + j] - shift) * scale + offset) * gamma[parameter_start + j] + beta[parameter_start + j]
        mean[r], rstd[r] = shift + delta, row_rstd


@kernel()
def _row_backward(
    dy: Array,
    x: Array,
    dx: Array,
    gamma: Array,
    start: Number,
    stop: Number,
    parameter_start: Number,
    mean: float,
    rstd: float,
    centred: bool,
) -> None:
    """dx of one row."""
    to_dtype, n = x.dtype.type, stop - start
    shift = to_dtype(mean)
    delta, row_dy, row_products = mean - shift, 0.0, 0.0
    for i in range(start, stop, RUN_CELLS):
        run_dy, run_products = _run_weighted(
            dy, x, gamma, i, min(i + RUN_CELLS, stop), parameter_start + (i - start), shift
        )
        row_dy += run_dy
        row_products += run_products
    x_factor = rstd * (row_products - delta * row_dy) * rstd / n
    constant = to_dtype((row_dy / n if centred else 0.0) - delta * x_factor)
    factor, scale = to_dtype(x_factor), to_dtype(rstd)
    for j in range(n):
        g = dy[start + j] * gamma[parameter_start + j]
        dx[start + j] = (g - (x[start + j] - shift) * factor - constant) * scale


@kernel()
def _add_parameter_gradients(
    dy: Array,
    x: Array,
    at: Number,
    n: Number,
    mean: float,
    rstd: float,
    sum_dy_xhat: Array,
    sum_dy: Array,
    parameter_start: Number,
) -> None:
    """Add a row's dy * xhat and dy to the sums, from `parameter_start` on."""
    to_dtype = x.dtype.type
    shift, scale = to_dtype(mean), to_dtype(rstd)
    offset = to_dtype((shift - mean) * rstd)
    for j in range(n):
        sum_dy_xhat[parameter_start + j] += dy[at + j] * ((x[at + j] - shift) * scale + offset)
        sum_dy[parameter_start + j] += dy[at + j]


@kernel()
def per_cell_backward(
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
    """dx of the rows of pieces start to stop. Each piece adds its part of dgamma and dbeta to its own line of these."""
    n, period, rows = U(cells), U(gamma.size), U(rstd.size)
    sum_dy_xhat, sum_dy = np.zeros(gamma.size, x.dtype), np.zeros(gamma.size, x.dtype)
    rows_per_flush = FLUSH_ROWS * (period // n)
    for piece in range(U(start), U(stop)):
        last = rows * (piece + U(1)) // U(pieces)
        for first in range(rows * piece // U(pieces), last, rows_per_flush):
            for r in range(first, min(first + rows_per_flush, last)):
                at, parameter_start = r * n, r * n % period
                _row_backward(dy, x, dx, gamma, at, at + n, parameter_start, mean[r], rstd[r], centred)
                _add_parameter_gradients(dy, x, at, n, mean[r], rstd[r], sum_dy_xhat, sum_dy, parameter_start)
            _flush(sum_dy_xhat, dgamma, piece * period)
            _flush(sum_dy, dbeta, piece * period)
