"""What a norm computes between its two passes over x: statistics and gradients of rows, from sums over parts of x.

A row is a statistics group. Sums have the axes (samples, lines, groups, channels of a group, inner), flat, and a row
extends over all of them but the samples and the groups. In batch norm it extends over the samples too: then there is
one."""

from __future__ import annotations

from typing import Any

from .jit import kernel
from .norm_loops import finish_variance
from .vectors import broadcast, lane

Array = Any


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
    x: Array, sum_dy: Array, sum_products: Array, gamma: Array, mean: Array, rstd: Array, dgamma: Array, dbeta: Array,
    x_factor: Array, constant: Array, n: float,
    low: int, high: int, lines: int, groups: int, group_size: int, inner: int,
) -> None:  # fmt: skip
    """From the sums of dy and of dy * (x - shift), where shift is the mean as x's lanes round it, for rows low to high,
    each of n cells: dgamma and dbeta of each sample, and the factors of

    dx = (dy * gamma - (x - shift) * x_factor - constant) * rstd.

    dbeta and dgamma may be the arrays of the sums, if there is one line and `inner` is 1."""
    for r in range(low, high):
        delta, row_dy, row_dy_xhat = mean[r] - lane(broadcast(x, mean[r]), 0), 0.0, 0.0
        sample, group, step = r // groups, r % groups, groups * group_size * inner
        for k in range(group_size):
            s, q, weight = 0.0, 0.0, gamma[group * group_size + k]
            for line in range(sample * lines, (sample + 1) * lines):
                first = line * step + (group * group_size + k) * inner
                for j in range(first, first + inner):
                    s += sum_dy[j]
                    q += sum_products[j]
            q = (q - delta * s) * rstd[r]
            dbeta[r * group_size + k], dgamma[r * group_size + k] = s, q
            row_dy += s * weight
            row_dy_xhat += q * weight
        x_factor[r] = rstd[r] * row_dy_xhat / n
        constant[r] = row_dy / n - delta * x_factor[r]
