"""Loops of batch norm over blocks of channels, each block in one go, from the sums to the end.

What norm_loops.py says of arrays, segments and sums holds here. A block is some neighbouring channels of all samples,
so few that its cells stay in a core's cache from the first pass to the last; a pass goes sample by sample, where they
lie on end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import FAR, RUN, U, _line, _products, _run_squares, _slope

Array = Any
Number = Any


@kernel()
def _squares(x: Array, first: Number, size: Number, shift: Number) -> tuple[float, float]:
    """The sums of x - shift and of its square over a segment."""
    s, q = 0.0, 0.0
    for a in range(first, first + size, RUN):
        some, squares = _run_squares(x, a, min(a + RUN, first + size), shift)
        s += some
        q += squares
    return s, q


@kernel()
def blocks_forward(
    x: Array, y: Array, gamma: Array, beta: Array, mean: Array, var: Array, rstd: Array, eps: float,
    samples: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """y and the statistics of blocks start to stop, each of `block` channels, the last perhaps of fewer."""
    kind, channels, cells = x.dtype.type, U(gamma.size), U(length)
    shift, s, q = np.empty(block, x.dtype), np.empty(block), np.empty(block)
    number = samples * length
    for u in range(U(start), U(stop)):
        low, high = u * U(block), min((u + U(1)) * U(block), channels)
        for c in range(low, high):
            shift[c - low] = x[c * cells] if np.isfinite(x[c * cells]) else kind(0)
            s[c - low] = q[c - low] = 0.0
        for n in range(U(samples)):
            for c in range(low, high):
                some, squares = _squares(x, (n * channels + c) * cells, cells, shift[c - low])
                s[c - low] += some
                q[c - low] += squares
        for c in range(low, high):
            i = c - low
            delta, square = s[i] / number, q[i] / number
            if delta * delta > FAR * (square - delta * delta):
                shift[i], s[i], q[i] = kind(shift[i] + delta), 0.0, 0.0
                for n in range(U(samples)):
                    some, squares = _squares(x, (n * channels + c) * cells, cells, shift[i])
                    s[i] += some
                    q[i] += squares
                delta, square = s[i] / number, q[i] / number
            mean[c], spread = shift[i] + delta, square - delta * delta
            var[c] = 0.0 if spread < 0.0 else spread
            rstd[c] = 1.0 / np.sqrt(var[c] + eps)
            s[i], q[i] = rstd[c] * gamma[c], beta[c] - delta * (rstd[c] * gamma[c])
        for n in range(U(samples)):
            for c in range(low, high):
                at = (n * channels + c) * cells
                _line(x, y, at, at + cells, shift[c - low], kind(s[c - low]), kind(q[c - low]))


@kernel()
def blocks_backward(
    dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, plain: Array, along: Array,
    samples: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dx of blocks start to stop, and of each channel the sums of dy (`plain`) and of dy * xhat (`along`)."""
    kind, channels, cells = x.dtype.type, U(gamma.size), U(length)
    slope, left = np.empty(block, x.dtype), np.empty(block, x.dtype)
    number = samples * length
    for u in range(U(start), U(stop)):
        low, high = u * U(block), min((u + U(1)) * U(block), channels)
        for c in range(low, high):
            plain[c] = along[c] = 0.0
        for n in range(U(samples)):
            for c in range(low, high):
                at = (n * channels + c) * cells
                some, products = _products(dy, x, at, at + cells, kind(mean[c]))
                plain[c] += some
                along[c] += products
        for c in range(low, high):
            delta = mean[c] - kind(mean[c])
            along[c] = (along[c] - delta * plain[c]) * rstd[c]
            steep = rstd[c] * (along[c] * gamma[c]) / number
            slope[c - low], left[c - low] = kind(steep), kind(plain[c] * gamma[c] / number - delta * steep)
        for n in range(U(samples)):
            for c in range(low, high):
                at, i = (n * channels + c) * cells, c - low
                g, root = kind(gamma[c]), kind(rstd[c])
                _slope(dy, x, dx, at, at + cells, kind(mean[c]), g, slope[i], left[i], root)
