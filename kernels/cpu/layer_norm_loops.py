"""Loops of the backward of norms with a parameter for each cell of a row: layer and RMS norm, on vectors.

Group and instance norm with very short channels use them too, with the parameters of channels repeated.

Arrays and sums are as in norm_loops.py. gamma has the dtype that x is computed in. Its length is a multiple of a row's,
and where it ends, it starts again from its first cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import norm_loops
from .jit import kernel
from .norm_loops import write
from .past_caches import stored_past_caches
from .vector_ends import read
from .vectors import LANES, add, broadcast, fence, fma, lane, mul, sub, to_float64

Array = Any
U = np.uintp
FACTORS = 5  # of a row: shift, rstd, (shift - mean) * rstd, -x_factor, -constant
BATCH_ROWS = 8  # rows whose part of dgamma and dbeta is summed in registers
_gradient_sums = norm_loops.make_gradient_sums(True)


@kernel(allocates=False)
def _batch_gradients(
    dy: Array, x: Array, dx: Array, gamma: Array, factors: Array, dgamma: Array, dbeta: Array, cells: int,
    low: int, first_row: int, last_row: int, step: int, to: int,
) -> None:  # fmt: skip
    """dx of some rows, `step` apart, with the same parameters, and their part of dgamma and dbeta, added from `to`
    on. factors: those of rows from `low` on."""
    first, past_caches = first_row * cells % gamma.size, stored_past_caches(dx) and cells % LANES == 0
    for j in range(0, cells, LANES):
        count, sum_dy_xhat, sum_dy = cells - j, broadcast(x, 0.0), broadcast(x, 0.0)
        weight = read(gamma, first + j, count)
        for r in range(first_row, last_row, step):
            at, k = r * cells + j, U(FACTORS * (r - low))
            scale = broadcast(x, factors[k + U(1)])
            g, d = read(dy, at, count), sub(read(x, at, count), broadcast(x, factors[k]))
            xhat = fma(d, scale, broadcast(x, factors[k + U(2)]))
            sum_dy, sum_dy_xhat = add(sum_dy, g), fma(g, xhat, sum_dy_xhat)
            rest = fma(d, broadcast(x, factors[k + U(3)]), broadcast(x, factors[k + U(4)]))
            write(dx, at, mul(fma(g, weight, rest), scale), count, past_caches)
        at = to + first + j
        write(dgamma, at, add(read(dgamma, at, count), to_float64(sum_dy_xhat)), count, False)
        write(dbeta, at, add(read(dbeta, at, count), to_float64(sum_dy)), count, False)


@kernel()
def per_cell_backward(
    dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, dgamma: Array, dbeta: Array,
    centred: bool, cells: int, pieces: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dx of the rows of pieces start to stop. Each piece adds its part of dgamma and dbeta to its own line of these."""
    rows, step, small = rstd.size, gamma.size // cells, 1.0 / cells
    sum_dy, sum_products = np.empty(rows), np.empty(rows)
    factors = np.full(FACTORS * BATCH_ROWS * step, lane(broadcast(x, 0.0), 0))
    for piece in range(start, stop):
        last = rows * (piece + 1) // pieces
        for low in range(rows * piece // pieces, last, BATCH_ROWS * step):
            high = min(low + BATCH_ROWS * step, last)
            _gradient_sums(dy, x, gamma, mean, sum_dy, sum_products, 1, 1, cells, 1, low, high)
            for r in range(low, high):  # x_factor and constant as in norm_blocks.combine_gradient_sums
                k = U(FACTORS * (r - low))
                factors[k] = mean[r]
                delta = mean[r] - factors[k]
                x_factor = rstd[r] * (sum_products[r] - delta * sum_dy[r]) * rstd[r] * small
                factors[k + U(1)], factors[k + U(2)], factors[k + U(3)] = rstd[r], -delta * rstd[r], -x_factor
                factors[k + U(4)] = delta * x_factor - (sum_dy[r] * small if centred else 0.0)
            for r in range(low, min(low + step, high)):
                _batch_gradients(
                    dy, x, dx, gamma, factors, dgamma, dbeta, cells, low, r, high, step, piece * gamma.size
                )
    fence()
