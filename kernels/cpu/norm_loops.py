"""Loops of the norms whose rows, or whose channels of a sample, are contiguous in memory.

A row is a statistics group. Arrays are flat, in C order. A *segment* is one channel of one sample: `length` contiguous
cells; segment n * channels + c is channel c of sample n. Cells have x's compute dtype. Statistics and the
parameters of channels are float64.

Sums over RUN_CELLS cells are in x's dtype, in 16 or 32 lanes; the sums of these are in float64. The sums are of x -
`shift` and of its square, where shift is the first cell of a row, so that a large mean costs no digits. `delta` is the
mean of x - shift. Where delta is more than twice the standard deviation, the variance would lose digits; the sums are
then computed again with the mean as shift.

Only loops that store nothing are compiled so that sums may be reordered. For the others LLVM makes two versions, one
for arrays that may overlap, and both must round alike. All loops use unsigned indices: the test for negative indices
would prevent vectorisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

Array = Any
Number = Any  # of x's dtype, float64 or uint64; Numba compiles a kernel for each
U = np.uint64
RUN_CELLS = U(2048)  # cells that are summed in x's dtype: 64 or 128 in each lane
MAX_SHIFT_ERROR = 4.0  # largest delta**2 / variance; above it the sums are computed again


# -------------------------------------------------------------------------------------------------- cells start to stop
@kernel(relaxed=True)
def _run_moments(x: Array, start: Number, stop: Number, shift: Number) -> tuple[Number, Number]:
    """The sums of x - shift and of its square, over one run of cells."""
    s, q = x.dtype.type(0), x.dtype.type(0)
    for i in range(start, stop):
        d = x[i] - shift
        s += d
        q += d * d
    return s, q


@kernel(relaxed=True)
def _run_products(dy: Array, x: Array, start: Number, stop: Number, shift: Number) -> tuple[Number, Number]:
    """The sums of dy and of dy * (x - shift), over one run of cells."""
    s, q = x.dtype.type(0), x.dtype.type(0)
    for i in range(start, stop):
        s += dy[i]
        q += dy[i] * (x[i] - shift)
    return s, q


@kernel()
def _shifted_moments(
    x: Array, start: Number, parts: Number, size: Number, distance: Number, shift: Number
) -> tuple[float, float]:
    """The means of x - shift and of its square, over `parts` parts of `size` contiguous cells, `distance` apart."""
    s, q, n = 0.0, 0.0, parts * size
    for p in range(parts):
        first = start + p * distance
        for a in range(first, first + size, RUN_CELLS):
            run_sum, run_squares = _run_moments(x, a, min(a + RUN_CELLS, first + size), shift)
            s += run_sum
            q += run_squares
    return s / n, q / n


@kernel()
def _moments(x: Array, start: Number, parts: Number, size: Number, distance: Number) -> tuple[Number, float, float]:
    """The shift, the mean of x - shift, and the variance of these cells.

    If the first cell is not finite, the shift is 0: the sums then contain that cell."""
    shift = x[start] if np.isfinite(x[start]) else x.dtype.type(0)
    for attempt in range(2):
        delta, square = _shifted_moments(x, start, parts, size, distance, shift)
        if attempt == 1 or not delta * delta > MAX_SHIFT_ERROR * (square - delta * delta):
            break
        shift = x.dtype.type(shift + delta)
    var = square - delta * delta
    return shift, delta, 0.0 if var < 0.0 else var


@kernel()
def _gradient_sums(dy: Array, x: Array, start: Number, stop: Number, shift: Number) -> tuple[float, float]:
    """The sums of dy and of dy * (x - shift)."""
    sum_dy, sum_products = 0.0, 0.0
    for a in range(start, stop, RUN_CELLS):
        run_dy, run_products = _run_products(dy, x, a, min(a + RUN_CELLS, stop), shift)
        sum_dy += run_dy
        sum_products += run_products
    return sum_dy, sum_products


@kernel()
def _scale_shift(x: Array, y: Array, start: Number, stop: Number, shift: Number, scale: Number, offset: Number) -> None:
    """y = (x - shift) * scale + offset."""
    for i in range(start, stop):
        y[i] = (x[i] - shift) * scale + offset


@kernel()
def _input_gradient(
    dy: Array,
    x: Array,
    dx: Array,
    start: Number,
    stop: Number,
    shift: Number,
    gamma: Number,
    x_factor: Number,
    constant: Number,
    rstd: Number,
) -> None:
    # Not multiplied out: rstd**3 may overflow float32 although no term of dx does.
    """dx = (dy * gamma - (x - shift) * x_factor - constant) * rstd."""
    for i in range(start, stop):
        dx[i] = (dy[i] * gamma - (x[i] - shift) * x_factor - constant) * rstd


@kernel()
def _flush(source: Array, target: Array, target_start: Number) -> None:
    """Add the source to the target, from `target_start` on, and set the source to 0."""
    for c in range(U(source.size)):
        target[target_start + c] += source[c]
        source[c] = 0.0


# ----------------------------------------------------------------------------------------------- pieces of segments
@kernel()
def moments(x: Array, mean: Array, squares: Array, length: int, pieces: int, start: int, stop: int) -> None:
    """The mean of each piece from start to stop, and the sum of squares about it. Each segment has `pieces` pieces."""
    for u in range(U(start), U(stop)):
        segment, piece = u // U(pieces) * U(length), u % U(pieces)
        first, last = segment + U(length) * piece // U(pieces), segment + U(length) * (piece + U(1)) // U(pieces)
        shift, delta, var = _moments(x, first, U(1), last - first, U(0))
        mean[u] = shift + delta
        squares[u] = var * (last - first)


@kernel()
def gradient_sums(
    dy: Array,
    x: Array,
    shift: Array,
    sum_dy: Array,
    sum_dy_xhat: Array,
    length: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """The sums of dy and of dy * (x - shift) of pieces start to stop. `shift` has a number for each segment."""
    for u in range(U(start), U(stop)):
        segment, piece = u // U(pieces) * U(length), u % U(pieces)
        first, last = segment + U(length) * piece // U(pieces), segment + U(length) * (piece + U(1)) // U(pieces)
        sum_dy[u], sum_dy_xhat[u] = _gradient_sums(dy, x, first, last, shift[u // U(pieces) % U(shift.size)])


@kernel()
def scale_shift(
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
    """y = (x - shift) * scale + offset for pieces start to stop.

    shift, scale and offset have x's dtype and a number for each segment; where they end, the loop starts again from the
    first."""
    for u in range(U(start), U(stop)):
        s, piece = u // U(pieces), u % U(pieces)
        first = s * U(length) + U(length) * piece // U(pieces)
        last = s * U(length) + U(length) * (piece + U(1)) // U(pieces)
        c = s % U(shift.size)
        _scale_shift(x, y, first, last, shift[c], scale[c], offset[c])


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
    length: int,
    pieces: int,
    start: int,
    stop: int,
) -> None:
    """dx = (dy * gamma - (x - shift) * x_factor - constant) * rstd for pieces start to stop, as `scale_shift`."""
    for u in range(U(start), U(stop)):
        s, piece = u // U(pieces), u % U(pieces)
        first = s * U(length) + U(length) * piece // U(pieces)
        last = s * U(length) + U(length) * (piece + U(1)) // U(pieces)
        c = s % U(shift.size)
        _input_gradient(dy, x, dx, first, last, shift[c], gamma[c], x_factor[c], constant[c], rstd[c])


# ------------------------------------------------------------------------------------------------- rows of segments
# A row has `segments` segments, `step` apart: 1 for adjacent channels of a sample, the number of channels for one
# channel of all samples. So the first segment of row r is r // step * step * segments + r % step.
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
    to_dtype, channels, distance, cells = x.dtype.type, U(gamma.size), U(step), U(length)
    parts, size = (U(1), U(segments) * cells) if step == 1 else (U(segments), cells)
    for r in range(U(start), U(stop)):
        first = r // distance * distance * U(segments) + r % distance
        shift, delta, var[r] = _moments(x, first * cells, parts, size, distance * cells)
        mean[r] = shift + delta
        rstd[r] = 1.0 / np.sqrt(var[r] + eps)
        for i in range(U(segments)):
            segment = first + i * distance
            scale, offset = rstd[r] * gamma[segment % channels], beta[segment % channels]
            _scale_shift(
                x,
                y,
                segment * cells,
                (segment + U(1)) * cells,
                shift,
                to_dtype(scale),
                to_dtype(offset - delta * scale),
            )


@kernel()
def rows_backward(
    dy: Array,
    x: Array,
    dx: Array,
    gamma: Array,
    mean: Array,
    rstd: Array,
    sum_dy: Array,
    sum_dy_xhat: Array,
    segments: int,
    step: int,
    length: int,
    start: int,
    stop: int,
) -> None:
    """dx of rows start to stop, and for each of their segments the sums of dy and of dy * xhat."""
    to_dtype, channels, distance, cells = x.dtype.type, U(gamma.size), U(step), U(length)
    n = U(segments) * cells
    for r in range(U(start), U(stop)):
        first = r // distance * distance * U(segments) + r % distance
        shift = to_dtype(mean[r])
        delta, row_dy, row_dy_xhat = mean[r] - shift, 0.0, 0.0
        for i in range(U(segments)):
            segment = first + i * distance
            sum_dy[segment], products = _gradient_sums(dy, x, segment * cells, (segment + U(1)) * cells, shift)
            sum_dy_xhat[segment] = (products - delta * sum_dy[segment]) * rstd[r]
            row_dy += sum_dy[segment] * gamma[segment % channels]
            row_dy_xhat += sum_dy_xhat[segment] * gamma[segment % channels]
        x_factor = rstd[r] * row_dy_xhat / n
        constant, row_rstd = to_dtype(row_dy / n - delta * x_factor), to_dtype(rstd[r])
        for i in range(U(segments)):
            segment = first + i * distance
            weight = to_dtype(gamma[segment % channels])
            _input_gradient(
                dy,
                x,
                dx,
                segment * cells,
                (segment + U(1)) * cells,
                shift,
                weight,
                to_dtype(x_factor),
                constant,
                row_rstd,
            )
