"""Loops of the norms over rows that fit a core's cache: a block of rows goes through all its steps there.

Arrays are as in norm_loops.py, and segments have one part."""

from __future__ import annotations

import functools
from typing import Any

from . import norm_loops
from .jit import kernel
from .norm_factors import combine_gradient_sums
from .norm_loops import finish_variance, gradient_sums

Array = Any
Kernel = Any


@functools.cache
def make_forward(centred: bool, per_cell: bool) -> Kernel:
    """The kernel that fills y and the statistics of blocks start to stop, each of `block` rows or, the last, fewer.

    centred: False for RMS norm. per_cell: gamma and beta have a number for each cell of a row, not of a channel. `var`
    and `rstd` may be one array."""
    moments, results = norm_loops.make_moments(centred), norm_loops.make_results(False, per_cell)

    @kernel()
    def blocks_forward(
        x: Array, y: Array, gamma: Array, beta: Array, mean: Array, var: Array, rstd: Array, eps: float,
        group_size: int, samples: int, length: int, block: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        for low in range(start * block, min(stop * block, mean.size), block):
            high = min(low + block, mean.size)
            moments(x, mean, var, samples, group_size * length, 1, low, high)
            finish_variance(var, rstd, 1.0 * samples * group_size * length, eps, low, high)
            first, last = low * group_size, high * group_size
            results(x, x, y, gamma, beta, beta, mean, rstd, group_size, samples, length, 1, first, last)

    return blocks_forward


_results = norm_loops.make_results(True)


@kernel()
def blocks_backward(
    dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, sum_dy: Array, sum_dy_xhat: Array,
    x_factor: Array, constant: Array,
    groups: int, group_size: int, samples: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Fill dx of blocks start to stop, and of each of their segments the sums of dy and of dy * xhat. x_factor,
    constant: of each row, with any content."""
    n = 1.0 * samples * group_size * length
    for low in range(start * block, min(stop * block, mean.size), block):
        high = min(low + block, mean.size)
        first, last = low * group_size, high * group_size
        gradient_sums(dy, x, gamma, mean, sum_dy, sum_dy_xhat, group_size, samples, length, 1, first, last)
        combine_gradient_sums(
            x, sum_dy, sum_dy_xhat, gamma, mean, rstd, sum_dy_xhat, sum_dy, x_factor, constant, n,
            low, high, 1, groups, group_size, 1,
        )  # fmt: skip
        _results(dy, x, dx, gamma, constant, x_factor, mean, rstd, group_size, samples, length, 1, first, last)
