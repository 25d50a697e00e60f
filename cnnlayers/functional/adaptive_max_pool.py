"""Adaptive max pooling: max_pool's maximum over windows that share an axis out evenly.

The rules are max_pool's: the first maximum of a window is saved as a place within it and gets the gradient; NaN wins.
Source: torch.nn.functional.adaptive_max_pool2d.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import AdaptiveAxis, AdaptiveWindow, adaptive_window
from cnnlayers.specs.arguments import DataFormat, OutputSize

from ._common import (
    Array,
    CallPlan,
    Context,
    cast,
    check_backward,
    check_floating,
    in_accumulator_dtype,
    masked,
    on_device,
    plan_of,
    sum_widely,
)
from .plane_chunks import in_planes
from .window_arrays import axis_index, on_axis, window_ends, window_starts
from .window_maxima import flat_cells, maxima, read_cells, read_slice

Asked = tuple[slice, Callable[[Array], Array], "Array | None"]


@in_planes
def _adaptive_max_pool_forward(b: Backend, spec: AdaptiveWindow, x: Array) -> tuple[Array, Array | None]:
    return maxima(b, spec.regular() or spec, x, save=True)


@in_planes
def _adaptive_max_pool(b: Backend, spec: AdaptiveWindow, x: Array) -> Array:
    return maxima(b, spec.regular() or spec, x, save=False)[0]


@in_planes
@in_accumulator_dtype
def _adaptive_max_pool_backward(b: Backend, spec: AdaptiveWindow, dy: Array, argmax: Array) -> Array:
    """Each cell asks the windows that cover it, in C order, whether it is their maximum."""
    lay, ndim, xp = spec.layout, len(spec.layout.shape), b.xp
    flat = flat_cells(b, spec, argmax, xp.int64)
    mine = b.zeros((1,) * ndim, xp.int64)
    for where, axis in spec.placed:
        mine = mine * axis.length + on_axis(b, b.arange(axis.length), where, ndim)
    dx = b.zeros(lay.shape, dy.dtype)
    for asked in itertools.product(*(_windows_over(b, where, ndim, axis) for where, axis in spec.placed)):
        part = lay.at(*(cells for cells, _, _ in asked))
        share, at, counted = dy, flat, b.full((1,) * ndim, True, xp.bool)
        for _, windows, mask in asked:
            share, at = windows(share), windows(at)
            counted = counted if mask is None else counted & mask
        share = masked(b, share, counted & (at == mine[part]))
        for where, (_, _, mask) in zip(lay.spatial, asked, strict=True):
            if mask is None:
                share = xp.sum(share, axis=where, keepdims=True, dtype=share.dtype)
        dx[part] += share
    return dx


def _windows_over(b: Backend, where: int, ndim: int, axis: AdaptiveAxis) -> list[Asked]:
    """Which cells of an axis are asked for, the windows over them, and which of these there are: for all cells the
    first window over each, the second, and so on; or, where the cells are fewer than that, for one cell (mask None) all
    the windows over it."""
    over = axis.adjoint
    if axis.length < over.kernel:
        spans = [over.cells(cell) for cell in range(axis.length)]
        return [(slice(c, c + 1), read_slice(axis_index(where, span)), None) for c, span in enumerate(spans)]
    first, end = window_starts(b, over), window_ends(b, over)
    return [
        (
            slice(None),
            read_cells(b, b.xp.clip(first + nth, None, axis.out - 1), where),
            on_axis(b, first + nth < end, where, ndim),
        )
        for nth in range(over.kernel)
    ]


def _plan(x: Array, output_size: OutputSize, data_format: DataFormat) -> CallPlan:
    b = backends.of(x)
    check_floating(b, x, "x")
    spec = adaptive_window(tuple(x.shape), output_size, data_format)
    return CallPlan("adaptive_max_pool", b, x.dtype, spec.out_shape, spec)


@on_device
def adaptive_max_pool(x: Array, output_size: OutputSize, *, data_format: DataFormat = "channels_first") -> Array:
    """Max pooling to a given size: window o of an axis is the cells floor(o*L/out) to ceil((o+1)*L/out).

    This form saves nothing; `adaptive_max_pool_forward` is for training.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating.
    output_size : int, None or sequence of them
        Windows, for all spatial axes or one per axis; None keeps an axis.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        (N, C, *output_size), or channels last; x's dtype.

    Raises
    ------
    ValueError
        A size below 1, or another number of axes.
    TypeError
        Another dtype or kind of argument.

    Notes
    -----
    The first maximum of a window gets its gradient; a NaN is larger than every number.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.adaptive_max_pool(np.array([[[1.0, 5.0, 2.0, 4.0, 3.0]]]), 2)
    array([[[5., 4.]]])

    References
    ----------
    torch.nn.functional.adaptive_max_pool2d
    """
    return plan_of(_plan, (x,), output_size, data_format).run("adaptive_max_pool", _adaptive_max_pool, x)


@on_device
def adaptive_max_pool_forward(
    x: Array, output_size: OutputSize, *, data_format: DataFormat = "channels_first"
) -> tuple[Array, Context]:
    """`adaptive_max_pool` for training: y and the context.

    Parameters and errors are those of `adaptive_max_pool`.

    Returns
    -------
    y : array
        As `adaptive_max_pool` gives it.
    ctx : Context
        For `adaptive_max_pool_backward`. It has the place of each maximum in its window, not x.
    """
    plan = plan_of(_plan, (x,), output_size, data_format)
    y, argmax = plan.run("adaptive_max_pool_forward", _adaptive_max_pool_forward, x)
    return y, Context(plan, {"argmax": argmax})


@on_device
def adaptive_max_pool_backward(dy: Array, ctx: Context) -> Array:
    """dx of `adaptive_max_pool`: dy at each window's first maximum, added where windows overlap.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `adaptive_max_pool_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    b, dy = check_backward("adaptive_max_pool", dy, ctx, exact=True)
    dy = sum_widely(b, dy, ctx.spec.overlap)
    dx = ctx.plan.run("adaptive_max_pool_backward", _adaptive_max_pool_backward, dy, ctx.arrays["argmax"])
    return cast(b, dx, ctx.dtype)
