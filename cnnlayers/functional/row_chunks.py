"""norm_math.py's functions for the norms; on NumPy a chunk of whole rows at a time, on the library's threads.

What is made on the way then stays in a core's cache. A chunk is some samples, or some channels in batch norm, whose
rows run over all samples. Where it ends depends on the shape alone, so bits do not depend on the number of threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from cnnlayers.backends import Backend, run_chunks
from cnnlayers.specs.norm import Norm

from . import norm_math
from ._common import Array, cast, itemsize
from .norm_math import Statistics, forward_with_batch_stats

CHUNK = 600_000  # bytes of x, about


def _axis(norm: Norm) -> int | None:
    """The axis that chunks are cut along; None where there is but one row, or ranks must meet once."""
    rows = norm.rows
    if norm.comm is not None:
        return None
    if 0 not in rows.axes:
        return 0
    return None if rows.parameter_axes == rows.axes else rows.parameter_axes[0]


def _cuts(b: Backend, norm: Norm, x: Array | None) -> tuple[int, list[slice]]:
    """The axis and the chunks along it; none where the array is better left whole."""
    axis = _axis(norm)
    if b.name != "numpy" or axis is None or x is None:
        return 0, []
    length = x.shape[axis]
    number = min(length, x.size * itemsize(b, x) // CHUNK)
    return axis, [slice(length * i // number, length * (i + 1) // number) for i in range(number)] if number > 1 else []


def _part(norm: Norm, axis: int, cut: slice, **changed: Any) -> Norm:
    """The norm of a chunk."""
    rows, length = norm.rows, cut.stop - cut.start

    def shorter(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:axis], length, *shape[axis + 1 :])

    parameter = (length,) if axis in rows.parameter_axes else rows.parameter
    rows = dataclasses.replace(rows, shape=shorter(rows.shape), view=shorter(rows.view), parameter=parameter)
    return dataclasses.replace(norm, rows=rows, **changed)


def _parameters_of(norm: Norm, axis: int, cut: slice, *parameters: Array | None) -> list[Array | None]:
    """A chunk's part of the parameters."""
    return [p if p is None or axis not in norm.rows.parameter_axes else p[cut] for p in parameters]


def _run(cuts: list[slice], work: Callable[[slice], Any]) -> list[Any]:
    """What the work gives for each chunk, in their order."""
    results: list[Any] = [None] * len(cuts)

    def one(index: int) -> None:
        results[index] = work(cuts[index])

    run_chunks(one, range(len(cuts)))
    return results


def forward(b: Backend, norm: Norm, x: Array, gamma: Array | None, beta: Array | None) -> tuple[Array, Statistics]:
    """As `norm_math.forward_with_batch_stats`."""
    axis, cuts = _cuts(b, norm, x)
    if not cuts:
        return forward_with_batch_stats(b, norm, x, gamma, beta)
    y = b.empty(tuple(x.shape), x.dtype)

    def work(cut: slice) -> Statistics:
        at = (slice(None),) * axis + (cut,)
        y[at], stats = forward_with_batch_stats(
            b, _part(norm, axis, cut), x[at], *_parameters_of(norm, axis, cut, gamma, beta)
        )
        return stats

    mean, rstd, var, counts = zip(*_run(cuts, work), strict=True)
    joined = [None if a[0] is None else b.xp.concat(a, axis=axis) for a in (mean, rstd, var)]
    return y, Statistics(joined[0], joined[1], joined[2], counts[0])


def forward_with_running_stats(
    b: Backend, norm: Norm, x: Array, gamma: Array | None, beta: Array | None, mean: Array, rstd: Array
) -> Array:
    """As norm_math.forward_with_running_stats."""
    axis, cuts = _cuts(b, norm, x)
    if not cuts:
        return norm_math.forward_with_running_stats(b, norm, x, gamma, beta, mean, rstd)
    y = b.empty(tuple(x.shape), x.dtype)

    def work(cut: slice) -> None:
        at = (slice(None),) * axis + (cut,)
        arrays = *_parameters_of(norm, axis, cut, gamma, beta), mean[at], rstd[at]
        y[at] = norm_math.forward_with_running_stats(b, _part(norm, axis, cut), x[at], *arrays)

    _run(cuts, work)
    return y


def backward(
    b: Backend, norm: Norm, dy: Array, x: Array | None, mean: Array | None, rstd: Array, gamma: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """As norm_math.backward_with_running_stats where `norm.use_running_stats`, else as backward_with_batch_stats."""
    whole: Any = (
        norm_math.backward_with_running_stats if norm.use_running_stats else norm_math.backward_with_batch_stats
    )
    axis, cuts = _cuts(b, norm, x)
    if not cuts or x is None:
        result: tuple[Array, Array | None, Array | None] = whole(b, norm, dy, x, mean, rstd, gamma)
        return result
    dx = b.empty(tuple(x.shape), x.dtype)
    wide = {
        name: None if getattr(norm, name) is None else b.xp.float64 for name in ("gamma_dtype", "beta_dtype")
    }  # until all chunks are put together

    def work(cut: slice) -> tuple[Array | None, Array | None]:
        at = (slice(None),) * axis + (cut,)
        statistics = None if mean is None else mean[at], rstd[at]
        part = _part(norm, axis, cut, **wide)
        dx[at], *gradients = whole(b, part, dy[at], x[at], *statistics, *_parameters_of(norm, axis, cut, gamma))
        return gradients[0], gradients[1]

    dgammas, dbetas = zip(*_run(cuts, work), strict=True)
    joined = [_joined(b, axis in norm.rows.parameter_axes, parts) for parts in (dgammas, dbetas)]
    dtypes = norm.gamma_dtype, norm.beta_dtype
    dgamma, dbeta = (None if a is None else cast(b, a, t) for a, t in zip(joined, dtypes, strict=True))
    return dx, dgamma, dbeta


def _joined(b: Backend, separate: bool, parts: tuple[Array | None, ...]) -> Array | None:
    """A parameter's gradient from those of all chunks, which have a part of the parameter each, or all of it."""
    if parts[0] is None:
        return None
    return b.xp.concat(parts) if separate else b.xp.sum(b.xp.stack(parts), axis=0)
