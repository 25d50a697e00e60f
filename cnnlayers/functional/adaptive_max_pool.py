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

from .arrays import Array, cast, in_accumulator_dtype, masked, sum_widely
from .call_plan import CallPlan, Context, check_backward, on_device, plan_of
from .checks import check_floating
from .plane_chunks import in_planes
from .window_arrays import axis_index, on_axis, window_ends, window_starts
from .window_maxima import flat_cells, maxima, read_cells, read_slice

WindowRead = tuple[slice, Callable[[Array], Array], "Array | None"]  # see `_windows_over`


@in_planes
def _adaptive_max_pool_forward(b: Backend, spec: AdaptiveWindow, x: Array) -> tuple[Array, Array | None]:
    return maxima(b, spec.regular() or spec, x, save=True)


@in_planes
def _adaptive_max_pool(b: Backend, spec: AdaptiveWindow, x: Array) -> Array:
    return maxima(b, spec.regular() or spec, x, save=False)[0]


@in_planes
@in_accumulator_dtype
def _adaptive_max_pool_backward(b: Backend, spec: AdaptiveWindow, dy: Array, argmax: Array) -> Array:
    """dx. Each window adds its dy to the cell that has its maximum; windows come in C order."""
    lay, ndim, xp = spec.layout, len(spec.layout.shape), b.xp
    maxima_cells = flat_cells(b, spec, argmax, xp.int64)
    cell = b.zeros((1,) * ndim, xp.int64)  # each cell's flat place in its plane
    for dim, axis in spec.placed:
        cell = cell * axis.length + on_axis(b, b.arange(axis.length), dim, ndim)
    dx = b.zeros(lay.shape, dy.dtype)
    for reads in itertools.product(*(_windows_over(b, dim, ndim, axis) for dim, axis in spec.placed)):
        part = lay.at(*(cells for cells, _, _ in reads))
        share, chosen, exists = dy, maxima_cells, b.full((1,) * ndim, True, xp.bool)
        for _, read, mask in reads:
            share, chosen = read(share), read(chosen)
            exists = exists if mask is None else exists & mask
        share = masked(b, share, exists & (chosen == cell[part]))
        for dim, (_, _, mask) in zip(lay.spatial, reads, strict=True):
            if mask is None:
                share = xp.sum(share, axis=dim, keepdims=True, dtype=share.dtype)
        dx[part] += share
    return dx


def _windows_over(b: Backend, dim: int, ndim: int, axis: AdaptiveAxis) -> list[WindowRead]:
    """Some cells of an axis, how to read the windows over them, and which of these windows exist: for all cells the
    first window over each, the second, and so on; or, where the cells are fewer than that, for one cell (mask None) all
    the windows over it."""
    over = axis.adjoint
    if axis.length < over.kernel:
        spans = [over.cells(cell) for cell in range(axis.length)]
        return [(slice(c, c + 1), read_slice(axis_index(dim, span)), None) for c, span in enumerate(spans)]
    first, end = window_starts(b, over), window_ends(b, over)
    found: list[WindowRead] = []
    for nth in range(over.kernel):
        read = read_cells(b, b.xp.clip(first + nth, None, axis.out - 1), dim)
        found.append((slice(None), read, on_axis(b, first + nth < end, dim, ndim)))
    return found


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

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> y, ctx = F.adaptive_max_pool_forward(np.array([[[1.0, 5.0, 2.0, 4.0, 3.0]]]), 2)
    >>> F.adaptive_max_pool_backward(np.ones_like(y), ctx)
    array([[[0., 1., 0., 1., 0.]]])

    References
    ----------
    torch.nn.functional.adaptive_max_pool2d
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
