"""Loops of the norms whose rows, or whose channels of a sample, lie in memory on end.

Arrays are flat, in C order. A *segment* is the cells of one channel of one sample, `length` of them on end; segment
n * channels + c is the c-th of sample n. Cells are of x's compute dtype; statistics and the parameters of channels are
float64, those of cells (layer and RMS norm) x's dtype.

Sums are of x's dtype over RUN cells, in 16 or 32 lanes, and float64 from there on. The mean so found, rounded to x's
dtype, is only the `shift` that the second pass takes away: that one sums x - shift, which has no large mean, and its
squares, and so puts right the mean too, by `delta`.

Only loops that store nothing are compiled so that their sums may be reordered. Of others LLVM makes two forms, one for
arrays that lie near each other in memory, and both must give the same bits. All loops index by unsigned numbers: a test
for negative ones would keep them from being vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compile import kernel

Array = Any
Number = Any  # of x's dtype, float64 or uint64: a kernel is compiled for what it is given
U = np.uint64
RUN = U(512)  # a sum of so many float32 numbers has lost no more than one of them has


# -------------------------------------------------------------------------------------------------- cells start to stop
@kernel(relaxed=True)
def _run_total(x: Array, start: Number, stop: Number) -> Number:
    s = x.dtype.type(0)
    for i in range(start, stop):
        s += x[i]
    return s


@kernel(relaxed=True)
def _run_squares(x: Array, start: Number, stop: Number, shift: Number) -> tuple[Number, Number]:
    s, q = x.dtype.type(0), x.dtype.type(0)
    for i in range(start, stop):
        d = x[i] - shift
        s += d
        q += d * d
    return s, q


@kernel(relaxed=True)
def _run_products(dy: Array, x: Array, start: Number, stop: Number, shift: Number) -> tuple[Number, Number]:
    s, q = x.dtype.type(0), x.dtype.type(0)
    for i in range(start, stop):
        s += dy[i]
        q += dy[i] * (x[i] - shift)
    return s, q


@kernel()
def _near_mean(x: Array, start: Number, stop: Number) -> Number:
    """A number of x's dtype near the mean of the cells; 0 if that is not finite, so that the sums show it."""
    s = 0.0
    for a in range(start, stop, RUN):
        s += _run_total(x, a, min(a + RUN, stop))
    mean = s / (stop - start)
    return x.dtype.type(mean if np.isfinite(mean) else 0.0)


@kernel()
def _moments(x: Array, start: Number, stop: Number, shift: Number) -> tuple[float, float]:
    """Of the numbers x - shift: their mean, and their variance."""
    s, q, n = 0.0, 0.0, stop - start
    for a in range(start, stop, RUN):
        some, squares = _run_squares(x, a, min(a + RUN, stop), shift)
        s += some
        q += squares
    delta = s / n
    var = q / n - delta * delta
    return delta, 0.0 if var < 0.0 else var


@kernel()
def _products(dy: Array, x: Array, start: Number, stop: Number, shift: Number) -> tuple[float, float]:
    """The sums of dy, and of dy * (x - shift)."""
    plain, along = 0.0, 0.0
    for a in range(start, stop, RUN):
        some, products = _run_products(dy, x, a, min(a + RUN, stop), shift)
        plain += some
        along += products
    return plain, along


@kernel()
def _line(x: Array, y: Array, start: Number, stop: Number, shift: Number, scale: Number, offset: Number) -> None:
    for i in range(start, stop):
        y[i] = (x[i] - shift) * scale + offset


@kernel()
def _slope(
    dy: Array,
    x: Array,
    dx: Array,
    start: Number,
    stop: Number,
    shift: Number,
    gamma: Number,
    slope: Number,
    plain: Number,
    rstd: Number,
) -> None:
    # Not multiplied out: rstd**3 may be beyond float32 where no term of dx is.
    for i in range(start, stop):
        dx[i] = (dy[i] * gamma - (x[i] - shift) * slope - plain) * rstd


# --------------------------------------------------------------------------------------- segments, a piece at a time
@kernel()
def moments(x: Array, mean: Array, squares: Array, length: int, pieces: int, start: int, stop: int) -> None:
    """Of pieces start to stop, each segment in so many: their means, and sums of squares about them."""
    for u in range(U(start), U(stop)):
        segment, piece = u // U(pieces) * U(length), u % U(pieces)
        first, last = segment + U(length) * piece // U(pieces), segment + U(length) * (piece + U(1)) // U(pieces)
        shift = _near_mean(x, first, last)
        delta, var = _moments(x, first, last, shift)
        mean[u] = shift + delta
        squares[u] = var * (last - first)


@kernel()
def sums(
    dy: Array, x: Array, shift: Array, plain: Array, along: Array, length: int, pieces: int, start: int, stop: int
) -> None:
    """Of pieces start to stop: the sums of dy and of dy * (x - shift), `shift` being each segment's."""
    for u in range(U(start), U(stop)):
        segment, piece = u // U(pieces) * U(length), u % U(pieces)
        first, last = segment + U(length) * piece // U(pieces), segment + U(length) * (piece + U(1)) // U(pieces)
        plain[u], along[u] = _products(dy, x, first, last, shift[u // U(pieces)])


@kernel()
def lines(
    x: Array,
    y: Array,
    shift: Array,
    scale: Array,
    offset: Array,
    length: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """y = (x - shift) * scale + offset of pieces start to stop; the numbers are each segment's, of x's dtype."""
    for u in range(U(start), U(stop)):
        s, piece = u // U(pieces), u % U(pieces)
        first = s * U(length) + U(length) * piece // U(pieces)
        last = s * U(length) + U(length) * (piece + U(1)) // U(pieces)
        _line(x, y, first, last, shift[s], scale[s], offset[s])


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
    length: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """dx = (dy * gamma - (x - shift) * slope - plain) * rstd of pieces start to stop, likewise."""
    for u in range(U(start), U(stop)):
        s, piece = u // U(pieces), u % U(pieces)
        first = s * U(length) + U(length) * piece // U(pieces)
        last = s * U(length) + U(length) * (piece + U(1)) // U(pieces)
        _slope(dy, x, dx, first, last, shift[s], gamma[s], slope[s], plain[s], rstd[s])


# -------------------------------------------------------------------------------- adjacent channels a row, row by row
@kernel()
def rows_forward(
    x: Array,
    y: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    var: Array,
    rstd: Array,
    eps: float,
    segments: int,
    length: int,
    start: int,
    stop: int,
) -> None:
    """y and the statistics of rows start to stop, each of so many segments."""
    kind, n, channels = x.dtype.type, U(segments) * U(length), U(gamma.size)
    for r in range(U(start), U(stop)):
        shift = _near_mean(x, r * n, r * n + n)
        delta, var[r] = _moments(x, r * n, r * n + n, shift)
        mean[r] = shift + delta
        rstd[r] = 1.0 / np.sqrt(var[r] + eps)
        for s in range(r * U(segments), (r + U(1)) * U(segments)):
            scale, offset = rstd[r] * gamma[s % channels], beta[s % channels]
            _line(x, y, s * U(length), (s + U(1)) * U(length), shift, kind(scale), kind(offset - delta * scale))


@kernel()
def rows_backward(
    dy: Array,
    x: Array,
    dx: Array,
    gamma: Array,
    mean: Array,
    rstd: Array,
    plain: Array,
    along: Array,
    segments: int,
    length: int,
    start: int,
    stop: int,
) -> None:
    """dx of rows start to stop, and of each of their segments the sums of dy (`plain`) and of dy * xhat (`along`)."""
    kind, n, channels = x.dtype.type, U(segments) * U(length), U(gamma.size)
    for r in range(U(start), U(stop)):
        shift = kind(mean[r])
        delta, p, a = mean[r] - shift, 0.0, 0.0
        for s in range(r * U(segments), (r + U(1)) * U(segments)):
            plain[s], rest = _products(dy, x, s * U(length), (s + U(1)) * U(length), shift)
            along[s] = (rest - delta * plain[s]) * rstd[r]
            p += plain[s] * gamma[s % channels]
            a += along[s] * gamma[s % channels]
        slope = rstd[r] * a / n
        left, root = kind(p / n - delta * slope), kind(rstd[r])
        for s in range(r * U(segments), (r + U(1)) * U(segments)):
            g = kind(gamma[s % channels])
            _slope(dy, x, dx, s * U(length), (s + U(1)) * U(length), shift, g, kind(slope), left, root)
