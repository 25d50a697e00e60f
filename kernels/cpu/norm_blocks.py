"""Statistics and gradients of the norms' rows from sums over parts of x, and loops over rows that fit a core's cache:
a block of them goes through all steps there.

Arrays are as in norm_loops.py, and the segments of blocks have one part. Sums of parts have the axes (samples, lines,
groups, channels of a group, inner), flat, and a row extends over all of them but the samples and the groups. In batch
norm it extends over the samples too: then there is one."""

from __future__ import annotations

import functools
from typing import Any

from . import norm_loops
from .jit import kernel
from .norm_loops import finish_variance, gradient_sums
from .vectors import broadcast, lane

Array = Any
Kernel = Any


@kernel(allocates=False)
def combine_moments(
    means: Array, squares: Array, counts: Array, mean: Array, var: Array, rstd: Array, eps: float,
    low: int, high: int, lines: int, groups: int, group_size: int, inner: int,
) -> None:  # fmt: skip
    """The statistics of rows low to high from the moments of their parts (Chan, Golub and LeVeque 1979). `counts`: the
    cells of a part, with the axes (lines, inner)."""
    n = 0.0
    for r in range(low, high):
        sample, group, center, total, n = r // groups, r % groups, 0.0, 0.0, 0.0
        for line in range(lines):
            first = ((sample * lines + line) * groups + group) * group_size * inner
            for k in range(group_size):
                for j in range(inner):
                    at, count = first + k * inner + j, counts[line * inner + j]
                    distance = means[at] - center
                    if n > 0.0:
                        total += distance * distance * (count * n / (count + n))
                    n += count
                    center += distance * (count / n)
                    total += squares[at]
        mean[r], var[r] = center, total
    finish_variance(var, rstd, n, eps, low, high)


@kernel(allocates=False)
def combine_gradient_sums(
    x: Array, sum_dy: Array, sum_products: Array, gamma: Array, mean: Array, rstd: Array, x_factor: Array,
    constant: Array, n: float, group_size: int, low: int, high: int,
) -> None:  # fmt: skip
    """From the sums of dy and of dy * (x - shift) over each channel of a sample, where shift is the mean as x's lanes
    round it, for rows low to high, each of n cells: the sums of dy * xhat, instead of the latter, and the factors of

    dx = (dy * gamma - (x - shift) * x_factor - constant) * rstd."""
    channel, small = low * group_size % gamma.size, 1.0 / n
    for r in range(low, high):
        delta, scale, row_dy, row_dy_xhat = mean[r] - lane(broadcast(x, mean[r]), 0), rstd[r], 0.0, 0.0
        for j in range(r * group_size, (r + 1) * group_size):
            channel_dy, weight = sum_dy[j], gamma[channel]
            sum_products[j] = channel_dy_xhat = (sum_products[j] - delta * channel_dy) * scale
            row_dy += channel_dy * weight
            row_dy_xhat += channel_dy_xhat * weight
            channel = channel + 1 if channel + 1 < gamma.size else 0
        x_factor[r] = factor = scale * row_dy_xhat * small
        constant[r] = row_dy * small - delta * factor


# -------------------------------------------------------------------------------------------------------------- blocks
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
    group_size: int, samples: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Fill dx of blocks start to stop, and of each of their segments the sums of dy and of dy * xhat. x_factor,
    constant: of each row, with any content."""
    n = 1.0 * samples * group_size * length
    for low in range(start * block, min(stop * block, mean.size), block):
        high = min(low + block, mean.size)
        first, last = low * group_size, high * group_size
        gradient_sums(dy, x, gamma, mean, sum_dy, sum_dy_xhat, group_size, samples, length, 1, first, last)
        combine_gradient_sums(x, sum_dy, sum_dy_xhat, gamma, mean, rstd, x_factor, constant, n, group_size, low, high)
        _results(dy, x, dx, gamma, constant, x_factor, mean, rstd, group_size, samples, length, 1, first, last)
