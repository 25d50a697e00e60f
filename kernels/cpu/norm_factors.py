"""What a norm computes between its two passes over x: statistics and factors of rows, from sums over pieces.

A row is a statistics group. Sums have the axes (samples, pieces, fold, groups, channels of a group, inner), flat; a
piece has `counts` cells for each sum, with the axes (pieces, inner). A row extends over all axes but the samples and
the groups; in batch norm over the samples too: then these count as pieces, and there is one sample.

Factors are what the loops over x read. They have the axes (samples, fold, groups, channels of a group, repeats)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any


@kernel(allocates=False)
def scale_shift_factors(
    mean: Array, rstd: Array, gamma: Array, beta: Array, shift: Array, scale: Array, offset: Array,
    fold: int, groups: int, group_size: int, repeats: int,
) -> None:  # fmt: skip
    """The factors of y = (x - shift) * scale + offset, where shift is the mean as x's compute dtype rounds it."""
    at = 0
    for line in range(mean.size // groups * fold):
        for channel in range(groups * group_size):
            r = line // fold * groups + channel // group_size
            for _ in range(repeats):
                shift[at] = mean[r]
                factor = rstd[r] * gamma[channel]
                scale[at] = factor
                offset[at] = beta[channel] - (mean[r] - np.float64(shift[at])) * factor
                at += 1


@kernel(allocates=False)
def combine_moments(
    means: Array, squares: Array, counts: Array, mean: Array, var: Array, rstd: Array, eps: float,
    fold: int, groups: int, group_size: int, inner: int,
) -> None:  # fmt: skip
    """The statistics of each row from the moments of its pieces (Chan, Golub and LeVeque 1979)."""
    pieces = counts.size // inner
    for r in range(mean.size):
        first, sum_, n = r // groups * pieces * fold, 0.0, 0.0
        for line in range(pieces * fold):
            at = ((first + line) * groups + r % groups) * group_size * inner
            for j in range(group_size * inner):
                count = counts[line // fold * inner + j % inner]
                sum_ += count * means[at + j]
                n += count
        mean[r], sum_ = sum_ / n, 0.0
        for line in range(pieces * fold):
            at = ((first + line) * groups + r % groups) * group_size * inner
            for j in range(group_size * inner):
                distance = means[at + j] - mean[r]
                sum_ += squares[at + j] + counts[line // fold * inner + j % inner] * distance * distance
        var[r] = sum_ / n
        rstd[r] = 1.0 / np.sqrt(var[r] + eps)


@kernel(allocates=False)
def combine_gradient_sums(
    sum_dy: Array, sum_dy_shifted: Array, shift: Array, gamma: Array, mean: Array, rstd: Array,
    dgamma: Array, dbeta: Array, row_dy: Array, row_dy_xhat: Array, pieces: int,
    fold: int, groups: int, group_size: int, inner: int, repeats: int,
) -> None:  # fmt: skip
    """dgamma, dbeta and the sums of dy * gamma and of dy * gamma * xhat of each row. All of these are 0 before."""
    for r in range(mean.size):
        first, group = r // groups * pieces * fold, r % groups
        delta = mean[r] - np.float64(shift[(r // groups * fold * groups + group) * group_size * repeats])
        for k in range(group_size):
            channel, s, q = group * group_size + k, 0.0, 0.0
            for line in range(pieces * fold):
                at = (((first + line) * groups + group) * group_size + k) * inner
                for j in range(at, at + inner):
                    s += sum_dy[j]
                    q += sum_dy_shifted[j]
            q = (q - delta * s) * rstd[r]
            dbeta[channel] += s
            dgamma[channel] += q
            row_dy[r] += s * gamma[channel]
            row_dy_xhat[r] += q * gamma[channel]


@kernel(allocates=False)
def input_gradient_factors(
    mean: Array, rstd: Array, gamma: Array, row_dy: Array, row_dy_xhat: Array, n: float,
    shift: Array, weight: Array, x_factor: Array, constant: Array, scale: Array,
    fold: int, groups: int, group_size: int, repeats: int,
) -> None:  # fmt: skip
    """The factors of dx = (dy * weight - (x - shift) * x_factor - constant) * scale, from sums over rows of n cells."""
    at = 0
    for line in range(mean.size // groups * fold):
        for channel in range(groups * group_size):
            r = line // fold * groups + channel // group_size
            slope = rstd[r] * row_dy_xhat[r] / n
            for _ in range(repeats):
                weight[at], x_factor[at], scale[at] = gamma[channel], slope, rstd[r]
                constant[at] = row_dy[r] / n - (mean[r] - np.float64(shift[at])) * slope
                at += 1
