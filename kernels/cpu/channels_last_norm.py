"""Loops of the norms over channels where channels are last in memory, or where there is no spatial axis.

Arrays are flat, in C order: each sample has `lines` lines of `channels` contiguous cells. A column is a channel of a
sample; its number is sample * channels + channel. The lines of a sample are cut into `pieces`; piece u is number u %
pieces of sample u // pieces. Cells, and the numbers they are computed from, have x's compute dtype. So have sums over
RUN_LINES lines; the sums of these are in float64. Indices are unsigned, as in norm_loops.py.

Moments take one pass. `shift` is the first line of a piece; it differs from the mean by at most sqrt(n) standard
deviations, with n lines in the piece. So at worst the variance loses that factor in precision, and hardly ever more
than one digit."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import U, _flush

Array = Any
Number = Any
RUN_LINES = U(64)  # lines that are summed in x's dtype


@kernel()
def _add_moments(x: Array, shift: Array, s: Array, q: Array, first: Number, last: Number) -> None:
    """Add x - shift of lines first to last, and its square, to s and q. Four lines at a time save loads and stores."""
    width = U(shift.size)
    fours = first + (last - first) // U(4) * U(4)
    for i in range(first, fours, U(4)):
        at = i * width
        for c in range(width):
            d0, d1 = x[at + c] - shift[c], x[at + width + c] - shift[c]
            d2, d3 = x[at + U(2) * width + c] - shift[c], x[at + U(3) * width + c] - shift[c]
            s[c] += (d0 + d1) + (d2 + d3)
            q[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for i in range(fours, last):
        for c in range(width):
            d = x[i * width + c] - shift[c]
            s[c] += d
            q[c] += d * d


@kernel()
def _add_gradient_sums(
    dy: Array, x: Array, shift: Array, parameter_start: Number, s: Array, q: Array, first: Number, last: Number
) -> None:
    """Add dy of lines first to last, and dy * (x - shift), to s and q. shift is read from `parameter_start` on."""
    width = U(s.size)
    fours = first + (last - first) // U(4) * U(4)
    for i in range(first, fours, U(4)):
        at = i * width
        for c in range(width):
            g0, g1 = dy[at + c], dy[at + width + c]
            g2, g3 = dy[at + U(2) * width + c], dy[at + U(3) * width + c]
            m = shift[parameter_start + c]
            s[c] += (g0 + g1) + (g2 + g3)
            q[c] += (g0 * (x[at + c] - m) + g1 * (x[at + width + c] - m)) + (
                g2 * (x[at + U(2) * width + c] - m) + g3 * (x[at + U(3) * width + c] - m)
            )
    for i in range(fours, last):
        for c in range(width):
            s[c] += dy[i * width + c]
            q[c] += dy[i * width + c] * (x[i * width + c] - shift[parameter_start + c])


@kernel()
def moments(
    x: Array, mean: Array, squares: Array, channels: int, lines: int, pieces: int, start: int, stop: int
) -> None:
    """The means of the columns of pieces start to stop, and the sums of squares about them. Both must be 0 before."""
    width, shift = U(channels), np.empty(channels, x.dtype)
    s, q = np.zeros(channels, x.dtype), np.zeros(channels, x.dtype)
    for u in range(U(start), U(stop)):
        sample, piece, sums_start = u // U(pieces), u % U(pieces), u * width
        first, last = U(lines) * piece // U(pieces), U(lines) * (piece + U(1)) // U(pieces)
        first, last = sample * U(lines) + first, sample * U(lines) + last
        for c in range(width):
            shift[c] = x[first * width + c] if np.isfinite(x[first * width + c]) else 0.0
        for run in range(first, last, RUN_LINES):
            _add_moments(x, shift, s, q, run, min(run + RUN_LINES, last))
            _flush(s, mean, sums_start)
            _flush(q, squares, sums_start)
        n = last - first
        for c in range(width):
            delta = mean[sums_start + c] / n
            mean[sums_start + c] = shift[c] + delta
            squares_about_mean = squares[sums_start + c] - n * delta * delta
            squares[sums_start + c] = 0.0 if squares_about_mean < 0.0 else squares_about_mean


@kernel()
def gradient_sums(
    dy: Array,
    x: Array,
    shift: Array,
    sum_dy: Array,
    sum_products: Array,
    channels: int,
    lines: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """The sums of dy and of dy * (x - shift) over the columns of pieces start to stop. Both must be 0 before."""
    width = U(channels)
    s, q = np.zeros(channels, x.dtype), np.zeros(channels, x.dtype)
    for u in range(U(start), U(stop)):
        sample, piece, sums_start = u // U(pieces), u % U(pieces), u * width
        first, last = U(lines) * piece // U(pieces), U(lines) * (piece + U(1)) // U(pieces)
        first, last = sample * U(lines) + first, sample * U(lines) + last
        for run in range(first, last, RUN_LINES):
            _add_gradient_sums(dy, x, shift, sample * width, s, q, run, min(run + RUN_LINES, last))
            _flush(s, sum_dy, sums_start)
            _flush(q, sum_products, sums_start)


@kernel()
def scale_shift(
    x: Array,
    y: Array,
    shift: Array,
    scale: Array,
    offset: Array,
    channels: int,
    lines: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """y = (x - shift) * scale + offset for pieces start to stop."""
    width = U(channels)
    for u in range(U(start), U(stop)):
        sample, piece = u // U(pieces), u % U(pieces)
        first, last = U(lines) * piece // U(pieces), U(lines) * (piece + U(1)) // U(pieces)
        first, last = sample * U(lines) + first, sample * U(lines) + last
        parameter_start = sample * width
        for i in range(first, last):
            for c in range(width):
                y[i * width + c] = (x[i * width + c] - shift[parameter_start + c]) * scale[
                    parameter_start + c
                ] + offset[parameter_start + c]


@kernel()
def input_gradient(
    dy: Array,
    x: Array,
    dx: Array,
    shift: Array,
    gamma: Array,
    x_factor: Array,
    constant: Array,
    rstd: Array,
    channels: int,
    lines: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """dx = (dy * gamma - (x - shift) * x_factor - constant) * rstd for pieces start to stop."""
    width = U(channels)
    for u in range(U(start), U(stop)):
        sample, piece = u // U(pieces), u % U(pieces)
        first, last = U(lines) * piece // U(pieces), U(lines) * (piece + U(1)) // U(pieces)
        first, last = sample * U(lines) + first, sample * U(lines) + last
        parameter_start = sample * width
        for i in range(first, last):
            for c in range(width):
                at, k = i * width + c, parameter_start + c
                dx[at] = (dy[at] * gamma[k] - (x[at] - shift[k]) * x_factor[k] - constant[k]) * rstd[k]
