"""Max pooling.

Rules of the family: a window's maximum is the first in C order among equals (−0.0 and 0.0 are equal); a NaN beats every
number, so the first NaN of a window is its maximum. y holds the bits of that cell. A window that meets no cell of the
input gives −inf (an integer dtype's lowest value), index −1, and passes no gradient.

Saved: the window-local argmax, a tap's place in C order in the smallest unsigned type, not x. Tie rules "all" and
"split" save one bit a tap. Backward adds up, at each input cell, the windows over it in C order, so the bits are the
same wherever it runs; half types are summed in float32.

Sources: torch.nn.functional.max_pool2d (indices, shapes), numpy.argmax (the NaN rule).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, overload

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import MaxPoolSpec, Window, max_pool_spec, window_taps
from cnnlayers.specs.arguments import DataFormat, Padding, Size, Ties

from .arrays import Array, cast, in_accumulator_dtype, masked, sum_widely
from .call_plan import CallPlan, Context, check_backward, on_device, plan_of
from .checks import check_numeric
from .plane_chunks import in_planes
from .window_maxima import flat_cells, maxima


def _isnan(b: Backend, x: Array) -> Array | None:
    """Where x is NaN; None for a dtype that has no NaN."""
    return b.xp.isnan(x) if backends.dtype_name(b, x) in backends.FLOATS else None


def _either(mask: Array, other: Array | None) -> Array:
    return mask if other is None else mask | other


def _each_tap(window: Window) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """(place in C order, windows, cells) for each tap of the whole window, the last first: windows then come in C order
    at every cell."""
    for place, windows, cells in window_taps(window.axes, backwards=True):
        yield place, window.layout.at(*windows), window.layout.at(*cells)


def _ties(b: Backend, window: Window, x: Array, y: Array) -> Array:
    """One bit a tap: which cells of each window equal its maximum. Shape (bytes, *y.shape)."""
    bits = b.zeros(((math.prod(window.kernel) + 7) // 8, *y.shape), b.xp.uint8)
    for place, windows, cells in _each_tap(window):
        value, best = x[cells], y[windows]
        nan = _isnan(b, value)
        hit = _either(value == best, None if nan is None else nan & b.xp.isnan(best))
        at = (place // 8, *windows)
        bits[at] = bits[at] + cast(b, hit, b.xp.uint8) * b.full((), 1 << place % 8, b.xp.uint8)
    return bits


# ------------------------------------------------------------------------------------------------------------ max_pool
@in_planes
def _max_pool_forward(b: Backend, spec: MaxPoolSpec, x: Array) -> tuple[Array, Array | None, Array | None]:
    """y, what backward needs, and the indices if they are wanted."""
    y, argmax = maxima(b, spec.window, x, save=spec.ties == "first" or spec.indices)
    indices = flat_cells(b, spec.window, argmax, b.xp.int64) if spec.indices else None
    return y, argmax if spec.ties == "first" else _ties(b, spec.window, x, y), indices


@in_planes
def _max_pool(b: Backend, spec: MaxPoolSpec, x: Array) -> tuple[Array, Array | None]:
    """y, and the indices if they are wanted."""
    y, argmax = maxima(b, spec.window, x, save=spec.indices)
    return y, flat_cells(b, spec.window, argmax, b.xp.int64) if spec.indices else None


@in_planes
@in_accumulator_dtype
def _max_pool_backward(b: Backend, spec: MaxPoolSpec, dy: Array, saved: Array) -> Array:
    if spec.ties == "split":
        dy = dy / _number_of_ties(b, spec.window, saved, dy.dtype)
    dx = b.zeros(spec.window.layout.shape, dy.dtype)
    disjoint = all(axis.disjoint for axis in spec.window.axes)
    for place, windows, cells in _each_tap(spec.window):
        if spec.ties == "first":
            chosen = saved[windows] == place
        else:
            at = (place // 8, *windows)
            chosen = saved[at] // (1 << place % 8) % 2 == 1
        share = masked(b, dy[windows], chosen)
        dx[cells] = share if disjoint else dx[cells] + share
    return dx


def _number_of_ties(b: Backend, window: Window, bits: Array, dtype: Any) -> Array:
    number = b.zeros(tuple(bits.shape[1:]), dtype)
    for place, windows, _ in _each_tap(window):
        at = (place // 8, *windows)
        number[windows] += cast(b, bits[at] // (1 << place % 8) % 2, dtype)
    return b.xp.where(number == 0, b.zeros((), dtype) + 1, number)


def _max_pool_plan(x: Array, *options: Any) -> CallPlan:
    """The plan of these arguments, which are `max_pool`'s after x."""
    b = backends.of(x)
    check_numeric(b, x, "x")
    spec = max_pool_spec(tuple(x.shape), *options)
    return CallPlan("max_pool", b, x.dtype, spec.window.out_shape, spec)


def _as_bytes(plan: CallPlan, x: Array) -> Array:
    """bool as uint8, which has an order."""
    b = plan.backend
    return cast(b, x, b.xp.uint8) if plan.compute_dtype is None and backends.dtype_name(b, x) == "bool" else x


@overload
def max_pool(
    x: Array, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, dilation: Size = 1, *,
    ceil_mode: bool = False, ties: Ties = "first", data_format: DataFormat = "channels_first",
    return_indices: Literal[False] = False,
) -> Array: ...  # fmt: skip
@overload
def max_pool(
    x: Array, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, dilation: Size = 1, *,
    ceil_mode: bool = False, ties: Ties = "first", data_format: DataFormat = "channels_first",
    return_indices: Literal[True],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def max_pool(
    x: Array, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, dilation: Size = 1, *,
    ceil_mode: bool = False, ties: Ties = "first", data_format: DataFormat = "channels_first",
    return_indices: bool,
) -> Array | tuple[Array, Array]: ...  # fmt: skip
@on_device
def max_pool(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    ceil_mode: bool = False,
    ties: Ties = "first",
    return_indices: bool = False,
    data_format: DataFormat = "channels_first",
) -> Array | tuple[Array, Array]:
    """Max pooling: y = the largest cell of each window.

    This form saves nothing; `max_pool_forward` is for training.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating,
        integer or bool.
    kernel_size, stride, dilation : int or sequence of int
        In cells, an int or one per spatial axis. stride None is kernel_size.
    padding : int, sequence or str
        An int, one per axis, a (before, after) pair per axis, "valid", "same", "same_lower" or "full". Padding never
        is the maximum.
    ceil_mode : bool
        Also windows that overhang the end, if they start inside the input or its left padding.
    ties : {"first", "all", "split"}
        Who gets the gradient among equal maxima: the first in C order, all of them, or each an equal part.
    return_indices : bool
        Give `(y, indices)`.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        (N, C, *windows), or channels last; x's dtype.
    indices : array
        With return_indices: int64, y's shape, each maximum's place in the flat, unpadded spatial plane.

    Raises
    ------
    ValueError
        A size below 1, padding not smaller than the effective kernel, a window larger than the padded input, another
        number of axes.
    TypeError
        Another dtype or kind of argument.

    Notes
    -----
    A NaN is larger than every number, and -0.0 and 0.0 are equal. y has the bits of the cell that `indices` names. A
    window that meets no cell (dilation can do that) gives -inf, an integer dtype's lowest value, and index -1.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.max_pool(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2)
    array([[[5., 4.]]])
    >>> F.max_pool(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2, return_indices=True)[1]
    array([[[1, 3]]])

    References
    ----------
    torch.nn.functional.max_pool2d
    """
    options = kernel_size, stride, padding, dilation, ceil_mode, ties, return_indices, data_format
    plan = plan_of(_max_pool_plan, (x,), *options)
    y, indices = plan.run("max_pool", _max_pool, _as_bytes(plan, x))
    y = y if plan.compute_dtype is not None else cast(plan.backend, y, x.dtype)
    return (y, indices) if return_indices else y


@overload
def max_pool_forward(
    x: Array, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, dilation: Size = 1, *,
    ceil_mode: bool = False, ties: Ties = "first", data_format: DataFormat = "channels_first",
    return_indices: Literal[False] = False,
) -> tuple[Array, Context]: ...  # fmt: skip
@overload
def max_pool_forward(
    x: Array, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, dilation: Size = 1, *,
    ceil_mode: bool = False, ties: Ties = "first", data_format: DataFormat = "channels_first",
    return_indices: Literal[True],
) -> tuple[tuple[Array, Array], Context]: ...  # fmt: skip
@overload
def max_pool_forward(
    x: Array, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, dilation: Size = 1, *,
    ceil_mode: bool = False, ties: Ties = "first", data_format: DataFormat = "channels_first",
    return_indices: bool,
) -> tuple[Array | tuple[Array, Array], Context]: ...  # fmt: skip
@on_device
def max_pool_forward(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    ceil_mode: bool = False,
    ties: Ties = "first",
    return_indices: bool = False,
    data_format: DataFormat = "channels_first",
) -> tuple[Array | tuple[Array, Array], Context]:
    """`max_pool` for training: y, or `(y, indices)`, and the context.

    Parameters, results and errors are those of `max_pool`.

    Returns
    -------
    y : array
        Or `(y, indices)` with return_indices.
    ctx : Context
        For `max_pool_backward`. It has the place of each maximum in its window, one byte an output to 256 taps (ties
        "first"), or one bit a tap ("all", "split"); not x.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> y, ctx = F.max_pool_forward(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2)
    >>> F.max_pool_backward(np.ones_like(y), ctx)
    array([[[0., 1., 0., 1.]]])

    References
    ----------
    torch.nn.functional.max_pool2d
    """
    options = kernel_size, stride, padding, dilation, ceil_mode, ties, return_indices, data_format
    plan = plan_of(_max_pool_plan, (x,), *options)
    y, saved, indices = plan.run("max_pool_forward", _max_pool_forward, _as_bytes(plan, x))
    y = y if plan.compute_dtype is not None else cast(plan.backend, y, x.dtype)
    return ((y, indices) if return_indices else y), Context(plan, {"saved": saved})


@on_device
def max_pool_backward(dy: Array, ctx: Context) -> Array:
    """dx of `max_pool`: each cell gets dy of the windows whose maximum it is, by the tie rule.

    Parameters
    ----------
    dy : array
        y's shape (of the values, also where indices were returned), floating.
    ctx : Context
        From `max_pool_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.

    Notes
    -----
    A cell adds its windows in C order, half types in float32: the bits are the same wherever this runs.
    """
    if isinstance(ctx, Context) and ctx.plan.compute_dtype is None and getattr(ctx.spec, "ties", None) == "split":
        raise TypeError(
            f"max_pool's ties='split' divides gradients among equal maxima, and x was {ctx.dtype}, which cannot be"
            " divided: use ties='first' or ties='all', or a floating x"
        )
    b, dy = check_backward("max_pool", dy, ctx, exact=True, integers=True)
    dy = sum_widely(b, dy, ctx.spec.window.overlap)
    dx = ctx.plan.run("max_pool_backward", _max_pool_backward, dy, ctx.arrays["saved"])
    return cast(b, dx, ctx.dtype)
