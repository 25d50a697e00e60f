"""Max unpooling: values go back to the cells that max pooling's indices name.

Rules: an index counts within its own sample's and channel's plane; where one comes twice the last in C order wins, and
only the winner gets the gradient. Out-of-range indices are an error where that can be seen without stalling a GPU; on a
GPU they are dropped. Source: torch.nn.functional.max_unpool2d (whose repeated indices are not deterministic).
"""

from __future__ import annotations

import math
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import Window, unpool_window
from cnnlayers.specs.arguments import DataFormat, Padding, Size

from .arrays import Array, cast, inverse_order, select
from .call_plan import CallPlan, Context, inference_of, on_device, plan_of, run_backward
from .checks import check_floating, common_backend


def _planes(b: Backend, window: Window, array: Array) -> Array:
    """An array of this layout as one flat row, a plane (sample, channel) after another."""
    lay = window.layout
    order = (0, lay.channel, *lay.spatial)
    return b.xp.reshape(b.xp.permute_dims(array, order), (-1,))


def _from_planes(b: Backend, window: Window, flat: Array, shape: tuple[int, ...]) -> Array:
    """The way back, to `shape` in the window's layout."""
    lay = window.layout
    order = (0, lay.channel, *lay.spatial)
    planes = b.xp.reshape(flat, tuple(shape[a] for a in order))
    # Flattened on the way, because a copy would keep the order in memory.
    return b.xp.reshape(b.xp.reshape(b.xp.permute_dims(planes, inverse_order(order)), (-1,)), shape)


def _last_owner(b: Backend, cell: Array, cells: int) -> Array:
    """For each of `cells` cells, the place of the last entry of `cell` that names it, or −1. An entry `cells` is
    dropped."""
    xp = b.xp
    if b.name == "numpy":
        found = b.full((cells + 1,), -1, xp.int64)
        found[cell] = b.arange(cell.size)  # NumPy assigns in order, so the last one stays
        return found[:cells]
    number = int(cell.shape[0])
    keys = xp.sort(cell * number + b.arange(number))  # by cell, then by place
    named, place = keys // number, keys % number
    last = xp.searchsorted(named, b.arange(cells), side="right") - 1
    seen = xp.where(last >= 0, last, b.zeros((), last.dtype))
    hit = (last >= 0) & (xp.take(named, seen) == b.arange(cells))
    return xp.where(hit, xp.take(place, seen), b.full((), -1, xp.int64))


def _taken(b: Backend, values: Array, places: Array) -> Array:
    """values[places], and 0 where a place is −1."""
    zero = b.zeros((), values.dtype)
    safe = b.xp.where(places >= 0, places, b.zeros((), places.dtype))
    return select(b, places >= 0, b.xp.take(values, safe), zero)


def _cells(b: Backend, window: Window, index: Array) -> Array:
    """The flat place in y's planes of the cell that each entry of `index` names in its own plane, or −1 outside it."""
    plane, entries = math.prod(window.layout.lengths), math.prod(window.out_lengths)
    first = b.arange(int(index.shape[0])) // max(entries, 1) * plane
    return b.xp.where((index >= 0) & (index < plane), index + first, b.full((), -1, b.xp.int64))


def _max_unpool_forward(b: Backend, window: Window, x: Array, indices: Array) -> tuple[Array, Array]:
    """y, and for each entry of x the cell of its plane that shows it, or −1."""
    xp, plane, none = b.xp, math.prod(window.layout.lengths), b.full((), -1, b.xp.int64)
    index = _planes(b, window, cast(b, indices, xp.int64))
    cell, number = _cells(b, window, index), math.prod(window.layout.shape)
    shown = _last_owner(b, xp.where(cell >= 0, cell, b.full((), number, xp.int64)), number)
    won = (cell >= 0) & (_taken(b, shown, cell) == b.arange(int(cell.shape[0])))
    y = _from_planes(b, window, _taken(b, _planes(b, window, x), shown), window.layout.shape)
    reached = cast(b, xp.where(won, index, none), xp.int32 if plane < 2**31 else xp.int64)
    return y, _from_planes(b, window, reached, window.out_shape)


def _max_unpool_backward(b: Backend, window: Window, dy: Array, reached: Array) -> Array:
    cell = _cells(b, window, _planes(b, window, cast(b, reached, b.xp.int64)))
    return _from_planes(b, window, _taken(b, _planes(b, window, dy), cell), window.out_shape)


def _check_indices(b: Backend, window: Window, indices: Array) -> None:
    """Raise for an index outside the plane; not asked on a GPU, where the answer would stall it."""
    plane = math.prod(window.layout.lengths)
    if b.name == "cupy" or math.prod(indices.shape) == 0:
        return
    low, high = int(b.xp.min(indices)), int(b.xp.max(indices))
    if low < 0 or high >= plane:
        raise ValueError(f"indices must be from 0 to {plane - 1} (the output's plane), got {low} to {high}")


def _plan(x: Array, indices: Array, *options: Any) -> CallPlan:
    """The plan of an unpool. options: the arguments of `unpool_window`."""
    for name, array in (("x", x), ("indices", indices)):
        backends.of(array, name=name)  # common_backend passes over None
    b = common_backend(x=x, indices=indices)
    check_floating(b, x, "x")
    if backends.dtype_name(b, indices) not in backends.INTEGERS:
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    if tuple(indices.shape) != tuple(x.shape):
        raise ValueError(f"indices must have x's shape {tuple(x.shape)}, got {tuple(indices.shape)}")
    window = unpool_window(tuple(x.shape), *options)
    return CallPlan("max_unpool", b, x.dtype, window.layout.shape, window)


@on_device
def max_unpool_forward(
    x: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    *,
    output_size: Size | None = None,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Max unpooling: y[indices] = x in the plane of each sample and channel, and 0 elsewhere.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating.
    indices : array
        x's shape, any integer dtype: places in y's flat spatial plane, as `max_pool` gives them, from 0 on. Of entries
        with the same index the last in C order wins.
    kernel_size, stride, padding : int or sequence of int
        Those of the pool that is undone, in cells.
    output_size : sequence of int or None
        y's spatial sizes, or its whole shape, less than a stride away from the default
        (L - 1) * stride - 2 * padding + kernel_size.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        (N, C, *output_size), or channels last; x's dtype.
    ctx : Context
        For `max_unpool_backward`; `max_unpool` returns y alone. It has the place of every entry.

    Raises
    ------
    ValueError
        A bad size, indices of another shape, and on the CPU an index out of range (a GPU drops it).
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> y, indices = F.max_pool(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2, return_indices=True)
    >>> F.max_unpool(y, indices, 2)
    array([[[0., 5., 0., 4.]]])

    References
    ----------
    torch.nn.functional.max_unpool2d
    """
    plan = plan_of(_plan, (x, indices), kernel_size, stride, padding, output_size, data_format)
    _check_indices(plan.backend, plan.spec, indices)
    y, reached = plan.run("max_unpool_forward", _max_unpool_forward, x, indices)
    return y, Context(plan, {"reached": reached})


max_unpool = inference_of(max_unpool_forward)


@on_device
def max_unpool_backward(dy: Array, ctx: Context) -> Array:
    """dx of `max_unpool`: dy at the cell that each entry reached, 0 where another entry overwrote it.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `max_unpool_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    """
    return run_backward("max_unpool", _max_unpool_backward, dy, ctx, "reached")
