"""Loops of the norms over channels where channels come last, or there is no spatial axis.

Arrays are flat, in C order: samples of `depth` places, each of `channels` cells on end. A sample's places fall into
`pieces`; piece u is the u % pieces-th of sample u // pieces. Numbers of a column (a channel of a sample) lie like
sample * channels + channel. Cells, and the numbers they are computed from, are of x's compute dtype; so are sums over
RUN lines, and float64 from there on. Indices are unsigned, as in norm_loops.py.

Moments take one pass: `shift` is a piece's first line, which no more than the root of its lines' number of standard
deviations can lie from its mean. So at worst that factor of digits is lost, and hardly ever more than one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any
Number = Any
U = np.uint64
RUN = U(64)  # lines whose sums are of x's dtype


@kernel()
def _add_moments(x: Array, shift: Array, s: Array, q: Array, first: Number, last: Number) -> None:
    """Add x - shift of lines first to last, and its square, to s and q; four lines at a time save loads and stores."""
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
def _add_products(
    dy: Array, x: Array, shift: Array, own: Number, s: Array, q: Array, first: Number, last: Number
) -> None:
    """Likewise dy and dy * (x - shift), `shift` from `own` on."""
    width = U(s.size)
    fours = first + (last - first) // U(4) * U(4)
    for i in range(first, fours, U(4)):
        at = i * width
        for c in range(width):
            g0, g1 = dy[at + c], dy[at + width + c]
            g2, g3 = dy[at + U(2) * width + c], dy[at + U(3) * width + c]
            m = shift[own + c]
            s[c] += (g0 + g1) + (g2 + g3)
            q[c] += (g0 * (x[at + c] - m) + g1 * (x[at + width + c] - m)) + (
                g2 * (x[at + U(2) * width + c] - m) + g3 * (x[at + U(3) * width + c] - m)
            )
    for i in range(fours, last):
        for c in range(width):
            s[c] += dy[i * width + c]
            q[c] += dy[i * width + c] * (x[i * width + c] - shift[own + c])


@kernel()
def _move(source: Array, target: Array, line: Number) -> None:
    """Add the source to the target from `line` on, and clear it."""
    for c in range(U(source.size)):
        target[line + c] += source[c]
        source[c] = 0.0


@kernel()
def moments(
    x: Array, mean: Array, squares: Array, channels: int, depth: int, pieces: int, start: int, stop: int
) -> None:
    """Of pieces start to stop, their columns' means and sums of squares about them. mean and squares must be 0."""
    width, shift = U(channels), np.empty(channels, x.dtype)
    s, q = np.zeros(channels, x.dtype), np.zeros(channels, x.dtype)
    for u in range(U(start), U(stop)):
        sample, piece, line = u // U(pieces), u % U(pieces), u * width
        first, last = U(depth) * piece // U(pieces), U(depth) * (piece + U(1)) // U(pieces)
        first, last = sample * U(depth) + first, sample * U(depth) + last
        for c in range(width):
            shift[c] = x[first * width + c] if np.isfinite(x[first * width + c]) else 0.0
        for a in range(first, last, RUN):
            _add_moments(x, shift, s, q, a, min(a + RUN, last))
            _move(s, mean, line)
            _move(q, squares, line)
        n = last - first
        for c in range(width):
            delta = mean[line + c] / n
            mean[line + c] = shift[c] + delta
            left = squares[line + c] - n * delta * delta
            squares[line + c] = 0.0 if left < 0.0 else left


@kernel()
def sums(
    dy: Array,
    x: Array,
    shift: Array,
    plain: Array,
    along: Array,
    channels: int,
    depth: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """Of pieces start to stop, their columns' sums of dy and of dy * (x - shift). plain and along must be 0."""
    width = U(channels)
    s, q = np.zeros(channels, x.dtype), np.zeros(channels, x.dtype)
    for u in range(U(start), U(stop)):
        sample, piece, line = u // U(pieces), u % U(pieces), u * width
        first, last = U(depth) * piece // U(pieces), U(depth) * (piece + U(1)) // U(pieces)
        first, last = sample * U(depth) + first, sample * U(depth) + last
        for a in range(first, last, RUN):
            _add_products(dy, x, shift, sample * width, s, q, a, min(a + RUN, last))
            _move(s, plain, line)
            _move(q, along, line)


@kernel()
def lines(
    x: Array,
    y: Array,
    shift: Array,
    scale: Array,
    offset: Array,
    channels: int,
    depth: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """y = (x - shift) * scale + offset of pieces start to stop."""
    width = U(channels)
    for u in range(U(start), U(stop)):
        sample, piece = u // U(pieces), u % U(pieces)
        first, last = U(depth) * piece // U(pieces), U(depth) * (piece + U(1)) // U(pieces)
        first, last = sample * U(depth) + first, sample * U(depth) + last
        own = sample * width
        for i in range(first, last):
            for c in range(width):
                y[i * width + c] = (x[i * width + c] - shift[own + c]) * scale[own + c] + offset[own + c]


@kernel()
def slopes(
    dy: Array,
    x: Array,
    dx: Array,
    shift: Array,
    gamma: Array,
    slope: Array,
    plain: Array,
    rstd: Array,
    channels: int,
    depth: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """dx = (dy * gamma - (x - shift) * slope - plain) * rstd of pieces start to stop."""
    width = U(channels)
    for u in range(U(start), U(stop)):
        sample, piece = u // U(pieces), u % U(pieces)
        first, last = U(depth) * piece // U(pieces), U(depth) * (piece + U(1)) // U(pieces)
        first, last = sample * U(depth) + first, sample * U(depth) + last
        own = sample * width
        for i in range(first, last):
            for c in range(width):
                at, k = i * width + c, own + c
                dx[at] = (dy[at] * gamma[k] - (x[at] - shift[k]) * slope[k] - plain[k]) * rstd[k]
