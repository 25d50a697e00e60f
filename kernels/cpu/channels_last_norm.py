"""Loops of the norms over channels where channels are last in memory, or where there is no spatial axis, on vectors.

Arrays are flat, in C order: each sample has `lines` lines of `channels` contiguous cells. A column is a channel of a
sample; its number is sample * channels + channel. The lines of a sample are cut into `pieces`; piece u is number u %
pieces of sample u // pieces. Large arrays have x's dtype, halves as bits; factors have the dtype that x is computed in.

Lanes are columns. Sums over RUN_LINES lines are in the dtype that x is computed in; the sums of these are in float64.
Moments are about `shift`, the mean of a piece's first lines, so that a large mean costs no digits."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .past_caches import stored_past_caches
from .vectors import (
    LANES,
    add,
    broadcast,
    equal,
    fence,
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
)

Array = Any
RUN_LINES = 64  # lines that are summed in the dtype that x is computed in
LINES_AT_ONCE = 8  # whose sum is in a register


@kernel()
def _read(x: Array, i: int, count: int) -> Any:
    return load(x, i) if count >= LANES else load_first(x, i, count)


@kernel()
def _write(y: Array, i: int, value: Any, count: int) -> None:
    if count >= LANES:
        store(y, i, value)
    else:
        store_first(y, i, value, count)


@kernel()
def _write_result(y: Array, i: int, value: Any, count: int, past_caches: bool) -> None:
    if past_caches:
        stream(y, i, value)
    else:
        _write(y, i, value, count)


@kernel()
def _zeros(x: Array, number: int) -> Array:
    """Zeros of the dtype that x is computed in."""
    return np.full(number, lane(broadcast(x, 0.0), 0))


@kernel()
def _flush(source: Array, target: Array, target_start: int) -> None:
    """Add the source to the target, from `target_start` on, and set the source to 0."""
    for c in range(0, source.size, LANES):
        count = min(LANES, source.size - c)
        value = add(_read(target, target_start + c, count), to_float64(_read(source, c, count)))
        _write(target, target_start + c, value, count)
        _write(source, c, broadcast(source, 0.0), count)


@kernel()
def _lines_of(piece: int, lines: int, pieces: int) -> tuple[int, int, int]:
    """The sample of a piece, its first line and the line after its last, counted over all samples."""
    sample, part = piece // pieces, piece % pieces
    return sample, sample * lines + lines * part // pieces, sample * lines + lines * (part + 1) // pieces


@kernel()
def _first_means(x: Array, shift: Array, first: int, last: int) -> None:
    """Fill `shift` with the means of lines first to last; 0 for one that is not finite."""
    width, zero = shift.size, broadcast(x, 0.0)
    for c in range(0, width, LANES):
        count, s = min(LANES, width - c), zero
        for i in range(first, last):
            s = add(s, _read(x, i * width + c, count))
        s = mul(s, broadcast(x, 1.0 / (last - first)))
        _write(shift, c, select(equal(sub(s, s), zero), s, zero), count)


@kernel()
def _add_moments(x: Array, shift: Array, s: Array, q: Array, first: int, last: int) -> None:
    """Add x - shift of lines first to last, and its square, to s and q."""
    width = shift.size
    for block in range(first, last, LINES_AT_ONCE):
        for c in range(0, width, LANES):
            count = min(LANES, width - c)
            shifts, sums, squares = _read(shift, c, count), _read(s, c, count), _read(q, c, count)
            for i in range(block, min(block + LINES_AT_ONCE, last)):
                d = sub(_read(x, i * width + c, count), shifts)
                sums, squares = add(sums, d), fma(d, d, squares)
            _write(s, c, sums, count)
            _write(q, c, squares, count)


@kernel()
def _means_of_large(x: Array, mean_part: Array, mean: Array, squares: Array, start: int, first: int, last: int) -> None:
    """The means of columns whose finite values are too large to be added up; the squares of such overflow."""
    channels, small = mean_part.size, broadcast(x, 1.0 / (last - first))
    for c in range(0, channels, LANES):
        count, s = min(LANES, channels - c), broadcast(x, 0.0)
        for i in range(first, last):
            s = fma(_read(x, i * channels + c, count), small, s)
        _write(mean_part, c, s, count)
    for c in range(channels):
        if not np.isfinite(mean[start + c]) and np.isfinite(mean_part[c]):
            mean[start + c], squares[start + c] = mean_part[c], np.inf


@kernel()
def _add_gradient_sums(
    dy: Array, x: Array, shift: Array, parameter_start: int, s: Array, q: Array, first: int, last: int
) -> None:
    """Add dy of lines first to last, and dy * (x - shift), to s and q. shift is read from `parameter_start` on."""
    width = s.size
    for block in range(first, last, LINES_AT_ONCE):
        for c in range(0, width, LANES):
            count = min(LANES, width - c)
            shifts = _read(shift, parameter_start + c, count)
            sums, products = _read(s, c, count), _read(q, c, count)
            for i in range(block, min(block + LINES_AT_ONCE, last)):
                g = _read(dy, i * width + c, count)
                sums = add(sums, g)
                products = fma(g, sub(_read(x, i * width + c, count), shifts), products)
            _write(s, c, sums, count)
            _write(q, c, products, count)


@kernel()
def moments(
    x: Array, mean: Array, squares: Array, channels: int, lines: int, pieces: int, start: int, stop: int
) -> None:
    """The means of the columns of pieces start to stop, and the sums of squares about them. Both must be 0 before."""
    shift, s, q = _zeros(x, channels), _zeros(x, channels), _zeros(x, channels)
    for u in range(start, stop):
        _, first, last = _lines_of(u, lines, pieces)
        _first_means(x, shift, first, min(first + RUN_LINES, last))
        for run in range(first, last, RUN_LINES):
            _add_moments(x, shift, s, q, run, min(run + RUN_LINES, last))
            _flush(s, mean, u * channels)
            _flush(q, squares, u * channels)
        for c in range(channels):
            at, delta = u * channels + c, mean[u * channels + c] / (last - first)
            mean[at] = shift[c] + delta
            about_mean = squares[at] - (last - first) * delta * delta
            squares[at] = 0.0 if about_mean < 0.0 else about_mean
        if not np.isfinite(mean[u * channels : (u + 1) * channels].sum()):
            _means_of_large(x, shift, mean, squares, u * channels, first, last)


@kernel()
def gradient_sums(
    dy: Array, x: Array, shift: Array, sum_dy: Array, sum_dy_shifted: Array, channels: int, lines: int, pieces: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """The sums of dy and of dy * (x - shift) over the columns of pieces start to stop. Both must be 0 before."""
    s, q = _zeros(x, channels), _zeros(x, channels)
    for u in range(start, stop):
        sample, first, last = _lines_of(u, lines, pieces)
        for run in range(first, last, RUN_LINES):
            _add_gradient_sums(dy, x, shift, sample * channels, s, q, run, min(run + RUN_LINES, last))
            _flush(s, sum_dy, u * channels)
            _flush(q, sum_dy_shifted, u * channels)


@kernel()
def scale_shift(
    x: Array, y: Array, shift: Array, scale: Array, offset: Array, channels: int, lines: int, pieces: int, start: int,
    stop: int,
) -> None:  # fmt: skip
    """y = (x - shift) * scale + offset for pieces start to stop."""
    past_caches = stored_past_caches(y) and channels % LANES == 0
    for u in range(start, stop):
        sample, first, last = _lines_of(u, lines, pieces)
        for i in range(first, last):
            for c in range(0, channels, LANES):
                at, k, count = i * channels + c, sample * channels + c, min(LANES, channels - c)
                d = sub(_read(x, at, count), _read(shift, k, count))
                value = fma(d, _read(scale, k, count), _read(offset, k, count))
                _write_result(y, at, value, count, past_caches)
    if past_caches:
        fence()


@kernel()
def input_gradient(
    dy: Array, x: Array, dx: Array, shift: Array, gamma: Array, x_factor: Array, constant: Array, rstd: Array,
    channels: int, lines: int, pieces: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dx = (dy * gamma - (x - shift) * x_factor - constant) * rstd for pieces start to stop."""
    past_caches = stored_past_caches(dx) and channels % LANES == 0
    for u in range(start, stop):
        sample, first, last = _lines_of(u, lines, pieces)
        for i in range(first, last):
            for c in range(0, channels, LANES):
                at, k, count = i * channels + c, sample * channels + c, min(LANES, channels - c)
                through = mul(sub(_read(x, at, count), _read(shift, k, count)), _read(x_factor, k, count))
                rest = add(through, _read(constant, k, count))
                value = sub(mul(_read(dy, at, count), _read(gamma, k, count)), rest)
                _write_result(dx, at, mul(value, _read(rstd, k, count)), count, past_caches)
    if past_caches:
        fence()
