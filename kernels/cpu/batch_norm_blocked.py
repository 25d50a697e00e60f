"""Loops of batch norm over blocks of channels: each block goes through all steps, from the sums to the result.

Arrays, segments and sums are as in norm_loops.py. A block is some neighbouring channels of all samples, few enough that
their cells are still in a core's cache at the last pass. A pass goes sample by sample, because the channels of a block
are contiguous there."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .norm_loops import MAX_SHIFT_ERROR, RUN_CELLS, U, _gradient_sums, _input_gradient, _run_moments, _scale_shift

Array = Any
Number = Any


@kernel()
def _segment_moments(x: Array, first: Number, size: Number, shift: Number) -> tuple[float, float]:
    """The sums of x - shift and of its square over a segment."""
    s, q = 0.0, 0.0
    for a in range(first, first + size, RUN_CELLS):
        run_sum, run_squares = _run_moments(x, a, min(a + RUN_CELLS, first + size), shift)
        s += run_sum
        q += run_squares
    return s, q


@kernel()
def blocks_forward(
    x: Array, y: Array, gamma: Array, beta: Array, mean: Array, var: Array, rstd: Array, eps: float,
    samples: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """y and the statistics of blocks start to stop, each of `block` channels; the last one may have fewer."""
    to_dtype, channels, cells = x.dtype.type, U(gamma.size), U(length)
    shift, s, q = np.empty(block, x.dtype), np.empty(block), np.empty(block)
    number = samples * length
    for u in range(U(start), U(stop)):
        low, high = u * U(block), min((u + U(1)) * U(block), channels)
        for c in range(low, high):
            shift[c - low] = x[c * cells] if np.isfinite(x[c * cells]) else to_dtype(0)
            s[c - low] = q[c - low] = 0.0
        for n in range(U(samples)):
            for c in range(low, high):
                segment_sum, segment_squares = _segment_moments(x, (n * channels + c) * cells, cells, shift[c - low])
                s[c - low] += segment_sum
                q[c - low] += segment_squares
        for c in range(low, high):
            i = c - low
            delta, square = s[i] / number, q[i] / number
            if delta * delta > MAX_SHIFT_ERROR * (square - delta * delta):
                shift[i], s[i], q[i] = to_dtype(shift[i] + delta), 0.0, 0.0
                for n in range(U(samples)):
                    segment_sum, segment_squares = _segment_moments(x, (n * channels + c) * cells, cells, shift[i])
                    s[i] += segment_sum
                    q[i] += segment_squares
                delta, square = s[i] / number, q[i] / number
            mean[c], variance = shift[i] + delta, square - delta * delta
            var[c] = 0.0 if variance < 0.0 else variance
            rstd[c] = 1.0 / np.sqrt(var[c] + eps)
            s[i], q[i] = rstd[c] * gamma[c], beta[c] - delta * (rstd[c] * gamma[c])
        for n in range(U(samples)):
            for c in range(low, high):
                at = (n * channels + c) * cells
                _scale_shift(x, y, at, at + cells, shift[c - low], to_dtype(s[c - low]), to_dtype(q[c - low]))


@kernel()
def blocks_backward(
    dy: Array, x: Array, dx: Array, gamma: Array, mean: Array, rstd: Array, sum_dy: Array, sum_dy_xhat: Array,
    samples: int, length: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dx of blocks start to stop, and for each channel the sums of dy and of dy * xhat."""
    to_dtype, channels, cells = x.dtype.type, U(gamma.size), U(length)
    x_factor, constant = np.empty(block, x.dtype), np.empty(block, x.dtype)
    number = samples * length
    for u in range(U(start), U(stop)):
        low, high = u * U(block), min((u + U(1)) * U(block), channels)
        for c in range(low, high):
            sum_dy[c] = sum_dy_xhat[c] = 0.0
        for n in range(U(samples)):
            for c in range(low, high):
                at = (n * channels + c) * cells
                segment_dy, segment_products = _gradient_sums(dy, x, at, at + cells, to_dtype(mean[c]))
                sum_dy[c] += segment_dy
                sum_dy_xhat[c] += segment_products
        for c in range(low, high):
            delta = mean[c] - to_dtype(mean[c])
            sum_dy_xhat[c] = (sum_dy_xhat[c] - delta * sum_dy[c]) * rstd[c]
            channel_x_factor = rstd[c] * (sum_dy_xhat[c] * gamma[c]) / number
            x_factor[c - low], constant[c - low] = (
                to_dtype(channel_x_factor),
                to_dtype(sum_dy[c] * gamma[c] / number - delta * channel_x_factor),
            )
        for n in range(U(samples)):
            for c in range(low, high):
                at, i = (n * channels + c) * cells, c - low
                weight, channel_rstd = to_dtype(gamma[c]), to_dtype(rstd[c])
                _input_gradient(
                    dy, x, dx, at, at + cells, to_dtype(mean[c]), weight, x_factor[i], constant[i], channel_rstd
                )
