"""Loops of the norms whose rows, or whose channels of a sample, lie in memory on end.

Arrays are flat, in C order. A *segment* is the cells of one channel of one sample, `length` of them on end; segment
n * channels + c is the c-th of sample n. Cells are of x's compute dtype; statistics and the parameters of channels are
float64, those of cells (layer and RMS norm) x's dtype.

Sums are of x's dtype over RUN cells, in 16 or 32 lanes, and float64 from there on. They are of x - `shift`, a row's
first cell, which has no large mean, and of its squares. By the first of them, `delta` is what the mean lies beyond the
shift; where that is more than twice the standard deviation, and so would cost digits of the variance, the sums are made
again with the mean for a shift.

Only loops that store nothing are compiled so that their sums may be reordered. Of others LLVM makes two forms, one for
arrays that lie near each other in memory, and both must give the same bits. All loops index by unsigned numbers: a test
for negative ones would keep them from being vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any
Number = Any  # of x's dtype, float64 or uint64: a kernel is compiled for what it is given
U = np.uint64
RUN = U(2048)  # cells whose sum is of x's dtype: 64 or 128 a lane
FAR = 4.0  # delta**2, in variances, from which on the shift is moved
TURNS = U(16)  # sums for a parameter of a cell that are of x's dtype, before they are added to float64 ones


# -------------------------------------------------------------------------------------------------- cells start to stop
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


@kernel(relaxed=True)
def _run_weighted(
    dy: Array, x: Array, gamma: Array, start: Number, stop: Number, own: Number, shift: Number
) -> tuple[Number, Number]:
    """The sums of dy * gamma and of dy * gamma * (x - shift), gamma from `own` on."""
    s, q = x.dtype.type(0), x.dtype.type(0)
    for i in range(stop - start):
        g = dy[start + i] * gamma[own + i]
        s += g
        q += g * (x[start + i] - shift)
    return s, q


@kernel()
def _about(x: Array, start: Number, parts: Number, size: Number, apart: Number, shift: Number) -> tuple[float, float]:
    """The means of x - shift and of its square, over parts of `size` cells on end that begin so far apart."""
    s, q, n = 0.0, 0.0, parts * size
    for p in range(parts):
        first = start + p * apart
        for a in range(first, first + size, RUN):
            some, squares = _run_squares(x, a, min(a + RUN, first + size), shift)
            s += some
            q += squares
    return s / n, q / n


@kernel()
def _moments(x: Array, start: Number, parts: Number, size: Number, apart: Number) -> tuple[Number, float, float]:
    """The shift, the mean of x - shift, and the variance, likewise. Instead of a shift that is not finite it is 0, so
    that the sums show it."""
    shift = x[start] if np.isfinite(x[start]) else x.dtype.type(0)
    for turn in range(2):
        delta, square = _about(x, start, parts, size, apart, shift)
        if turn == 1 or not delta * delta > FAR * (square - delta * delta):
            break
        shift = x.dtype.type(shift + delta)
    var = square - delta * delta
    return shift, delta, 0.0 if var < 0.0 else var


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
        shift, delta, var = _moments(x, first, U(1), last - first, U(0))
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
        plain[u], along[u] = _products(dy, x, first, last, shift[u // U(pieces) % U(shift.size)])


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
    """y = (x - shift) * scale + offset of pieces start to stop; the numbers are each segment's, of x's dtype, and begin
    anew after their end."""
    for u in range(U(start), U(stop)):
        s, piece = u // U(pieces), u % U(pieces)
        first = s * U(length) + U(length) * piece // U(pieces)
        last = s * U(length) + U(length) * (piece + U(1)) // U(pieces)
        c = s % U(shift.size)
        _line(x, y, first, last, shift[c], scale[c], offset[c])


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
        c = s % U(shift.size)
        _slope(dy, x, dx, first, last, shift[c], gamma[c], slope[c], plain[c], rstd[c])


# ------------------------------------------------------------------------------------------- rows of segments, at once
# Row r has so many segments, `step` apart: 1 where they are adjacent channels of a sample, all channels where they are
# one channel of all samples. So its first is the r % step-th after r // step such rows.
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
    step: int,
    length: int,
    start: int,
    stop: int,
) -> None:
    """y and the statistics of rows start to stop."""
    kind, channels, apart, cells = x.dtype.type, U(gamma.size), U(step), U(length)
    parts, size = (U(1), U(segments) * cells) if step == 1 else (U(segments), cells)
    for r in range(U(start), U(stop)):
        first = r // apart * apart * U(segments) + r % apart
        shift, delta, var[r] = _moments(x, first * cells, parts, size, apart * cells)
        mean[r] = shift + delta
        rstd[r] = 1.0 / np.sqrt(var[r] + eps)
        for i in range(U(segments)):
            s = first + i * apart
            scale, offset = rstd[r] * gamma[s % channels], beta[s % channels]
            _line(x, y, s * cells, (s + U(1)) * cells, shift, kind(scale), kind(offset - delta * scale))


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
    step: int,
    length: int,
    start: int,
    stop: int,
) -> None:
    """dx of rows start to stop, and of each of their segments the sums of dy (`plain`) and of dy * xhat (`along`)."""
    kind, channels, apart, cells = x.dtype.type, U(gamma.size), U(step), U(length)
    n = U(segments) * cells
    for r in range(U(start), U(stop)):
        first = r // apart * apart * U(segments) + r % apart
        shift = kind(mean[r])
        delta, p, a = mean[r] - shift, 0.0, 0.0
        for i in range(U(segments)):
            s = first + i * apart
            plain[s], rest = _products(dy, x, s * cells, (s + U(1)) * cells, shift)
            along[s] = (rest - delta * plain[s]) * rstd[r]
            p += plain[s] * gamma[s % channels]
            a += along[s] * gamma[s % channels]
        slope = rstd[r] * a / n
        left, root = kind(p / n - delta * slope), kind(rstd[r])
        for i in range(U(segments)):
            s = first + i * apart
            g = kind(gamma[s % channels])
            _slope(dy, x, dx, s * cells, (s + U(1)) * cells, shift, g, kind(slope), left, root)


# ------------------------------------------------------------------------------------ rows whose cells have parameters
@kernel()
def cells_forward(
    x: Array,
    y: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    rstd: Array,
    eps: float,
    centred: bool,
    cells: int,
    start: int,
    stop: int,
) -> None:
    """y and the statistics of rows start to stop, each of so many cells; gamma and beta, of x's dtype, begin anew after
    their length, a multiple of a row's. Not centred: the mean is taken to be 0."""
    kind, n, period = x.dtype.type, U(cells), U(gamma.size)
    for r in range(U(start), U(stop)):
        at, own = r * n, r * n % period
        shift, delta, var = kind(0), 0.0, 0.0
        if centred:
            shift, delta, var = _moments(x, at, U(1), n, U(0))
        else:
            _, var = _about(x, at, U(1), n, U(0), shift)
        root = 1.0 / np.sqrt(var + eps)
        scale, offset = kind(root), kind(-delta * root)
        for j in range(n):
            y[at + j] = ((x[at + j] - shift) * scale + offset) * gamma[own + j] + beta[own + j]
        mean[r], rstd[r] = shift + delta, root


@kernel()
def _row_backward(
    dy: Array,
    x: Array,
    dx: Array,
    gamma: Array,
    start: Number,
    stop: Number,
    own: Number,
    mean: float,
    rstd: float,
    centred: bool,
) -> None:
    kind, n = x.dtype.type, stop - start
    shift = kind(mean)
    delta, p, a = mean - shift, 0.0, 0.0
    for i in range(start, stop, RUN):
        some, products = _run_weighted(dy, x, gamma, i, min(i + RUN, stop), own + (i - start), shift)
        p += some
        a += products
    slope = rstd * (a - delta * p) * rstd / n
    steep, left, root = kind(slope), kind((p / n if centred else 0.0) - delta * slope), kind(rstd)
    for j in range(n):
        dx[start + j] = (dy[start + j] * gamma[own + j] - (x[start + j] - shift) * steep - left) * root


@kernel()
def _add(
    dy: Array, x: Array, at: Number, n: Number, mean: float, rstd: float, along: Array, plain: Array, own: Number
) -> None:
    """Add a row's dy * xhat and dy to `along` and `plain` from `own` on."""
    kind = x.dtype.type
    shift, scale = kind(mean), kind(rstd)
    offset = kind((shift - mean) * rstd)
    for j in range(n):
        along[own + j] += dy[at + j] * ((x[at + j] - shift) * scale + offset)
        plain[own + j] += dy[at + j]


@kernel()
def _move(source: Array, target: Array, line: Number) -> None:
    """Add the source to the target from `line` on, and clear it."""
    for c in range(U(source.size)):
        target[line + c] += source[c]
        source[c] = 0.0


@kernel()
def cells_backward(
    dy: Array,
    x: Array,
    dx: Array,
    gamma: Array,
    mean: Array,
    rstd: Array,
    dgamma: Array,
    dbeta: Array,
    centred: bool,
    cells: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """dx of the rows of pieces start to stop; each piece adds its part of dgamma and dbeta to a line of its own."""
    n, period, rows = U(cells), U(gamma.size), U(rstd.size)
    along, plain, together = np.zeros(gamma.size, x.dtype), np.zeros(gamma.size, x.dtype), TURNS * (period // n)
    for piece in range(U(start), U(stop)):
        last = rows * (piece + U(1)) // U(pieces)
        for first in range(rows * piece // U(pieces), last, together):
            for r in range(first, min(first + together, last)):
                at, own = r * n, r * n % period
                _row_backward(dy, x, dx, gamma, at, at + n, own, mean[r], rstd[r], centred)
                _add(dy, x, at, n, mean[r], rstd[r], along, plain, own)
            _move(along, dgamma, piece * period)
            _move(plain, dbeta, piece * period)
