"""Loops of the backward of norms with a parameter for each cell of a row: layer and RMS norm, on vectors.

Group and instance norm with very short channels use them too, with the parameters of channels repeated.

Arrays and sums are as in norm_loops.py. gamma and beta have the dtype that x is computed in. Their length is a multiple
of a row's, and where they end, they start again from their first cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import RUN_CELLS
from .past_caches import stored_past_caches
from .vectors import (
    LANES,
    add,
    broadcast,
    fence,
    first_lanes,
    fma,
    lane,
    load,
    load_first,
    mul,
    select,
    store,
    store_first,
    stream,
    sub,
    to_float64,
    total,
)

Array = Any
BATCH_ROWS = 8  # rows whose part of dgamma and dbeta is summed in registers


@kernel()
def _row_sums(
    dy: Array, x: Array, gamma: Array, start: int, cells: int, parameter_start: int, mean: float
) -> tuple[float, float]:
    """The sums of dy * gamma and of dy * gamma * (x - shift) over a row; shift: the mean as x's lanes round it."""
    shift, sum_dy, sum_products = broadcast(x, mean), 0.0, 0.0
    for first in range(0, cells, RUN_CELLS):
        last = min(first + RUN_CELLS, cells)
        s0 = s1 = q0 = q1 = broadcast(x, 0.0)
        j = first
        while j + 2 * LANES <= last:
            g0 = mul(load(dy, start + j), load(gamma, parameter_start + j))
            g1 = mul(load(dy, start + j + LANES), load(gamma, parameter_start + j + LANES))
            s0, s1 = add(s0, g0), add(s1, g1)
            q0 = fma(g0, sub(load(x, start + j), shift), q0)
            q1 = fma(g1, sub(load(x, start + j + LANES), shift), q1)
            j += 2 * LANES
        while j < last:
            count = min(LANES, last - j)
            g0 = mul(load_first(dy, start + j, count), load_first(gamma, parameter_start + j, count))
            products = fma(g0, sub(load_first(x, start + j, count), shift), q0)
            s0, q0 = add(s0, g0), select(first_lanes(count), products, q0)
            j += LANES
        sum_dy += total(add(s0, s1))
        sum_products += total(add(q0, q1))
    return sum_dy, sum_products


@kernel()
def _batch_gradients(
    dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, factors: Array, dgamma: Array,
    dbeta: Array, cells: int, first_row: int, last_row: int, step: int, to: int,
) -> None:  # fmt: skip
    """dx of some rows, `step` apart, with the same parameters, and their part of dgamma and dbeta, added from `to` on.

    factors: of each row the factor of x - shift, and the constant."""
    parameter_start, past_caches = first_row * cells % gamma.size, stored_past_caches(dx) and cells % LANES == 0
    for j in range(0, cells, LANES):
        count = min(LANES, cells - j)
        weight = load_first(gamma, parameter_start + j, count)
        sum_dy_xhat = sum_dy = broadcast(x, 0.0)
        for k in range((last_row - first_row + step - 1) // step):
            r = first_row + k * step
            at, shift, scale = r * cells + j, broadcast(x, mean[r]), broadcast(x, rstd[r])
            offset = broadcast(x, (np.float64(lane(shift, 0)) - mean[r]) * rstd[r])
            whole = count == LANES
            g = load(dy, at) if whole else load_first(dy, at, count)
            d = sub(load(x, at) if whole else load_first(x, at, count), shift)
            sum_dy, sum_dy_xhat = add(sum_dy, g), fma(g, fma(d, scale, offset), sum_dy_xhat)
            rest = fma(d, broadcast(x, factors[2 * k]), broadcast(x, factors[2 * k + 1]))
            value = mul(fma(g, weight, rest), scale)
            if past_caches:
                stream(dx, at, value)
            elif whole:
                store(dx, at, value)
            else:
                store_first(dx, at, value, count)
        old = load_first(dgamma, to + parameter_start + j, count)
        store_first(dgamma, to + parameter_start + j, add(old, to_float64(sum_dy_xhat)), count)
        old = load_first(dbeta, to + parameter_start + j, count)
        store_first(dbeta, to + parameter_start + j, add(old, to_float64(sum_dy)), count)


@kernel()
def per_cell_backward(
    dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, dgamma: Array, dbeta: Array,
    centred: bool, cells: int, pieces: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dx of the rows of pieces start to stop. Each piece adds its part of dgamma and dbeta to its own line of these."""
    rows, step, factors = rstd.size, gamma.size // cells, np.empty(2 * BATCH_ROWS)
    for piece in range(start, stop):
        last = rows * (piece + 1) // pieces
        for batch in range(rows * piece // pieces, last, BATCH_ROWS * step):
            batch_end = min(batch + BATCH_ROWS * step, last)
            for first in range(batch, min(batch + step, last)):
                k = 0
                for r in range(first, batch_end, step):
                    at = r * cells
                    row_dy, row_products = _row_sums(dy, x, gamma, at, cells, at % gamma.size, mean[r])
                    delta = mean[r] - np.float64(lane(broadcast(x, mean[r]), 0))
                    x_factor = rstd[r] * (row_products - delta * row_dy) * rstd[r] / cells
                    factors[k] = -x_factor
                    factors[k + 1] = delta * x_factor - (row_dy / cells if centred else 0.0)
                    k += 2
                _batch_gradients(
                    dy, x, dx, gamma, mean, rstd, factors, dgamma, dbeta, cells, first, batch_end, step,
                    piece * gamma.size,
                )  # fmt: skip
    fence()
