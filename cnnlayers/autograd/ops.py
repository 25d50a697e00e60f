"""The ops of Tensor's own operators and methods: arithmetic, products, reductions, shapes.

Each is a function of arrays that gives its result and, for each array argument, the function from dy to that argument's
gradient. Only the functions that are needed are kept, and with them only what they refer to: so each refers to as
little as it can. A gradient may have the shape and dtype of the result: the graph sums it over broadcast axes and casts
it. Results have the dtype that the arrays' own library gives; Python numbers take the array's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

from cnnlayers.backends import Backend
from cnnlayers.functional.arrays import Array, accumulator_dtype, cast, inverse_order, is_float
from cnnlayers.functional.blas import matmul as blas_matmul
from cnnlayers.functional.blas import transposed
from cnnlayers.specs.arguments import entries_of, integer

from .graph import summed

Result: TypeAlias = tuple[Array, tuple[Callable[[Array], Array], ...]]


def _same(dy: Array) -> Array:
    return dy


# ----------------------------------------------------------------------------------------------------------- arithmetic
def add(b: Backend, x: Array, y: Array) -> Result:
    return x + y, (_same, _same)


def subtract(b: Backend, x: Array, y: Array) -> Result:
    return x - y, (_same, lambda dy: -dy)


def multiply(b: Backend, x: Array, y: Array) -> Result:
    return x * y, (lambda dy: dy * y, lambda dy: dy * x)


def divide(b: Backend, x: Array, y: Array) -> Result:
    z = x / y
    return z, (lambda dy: dy / y, lambda dy: -dy * (z / y))


def power(b: Backend, x: Array, p: Array) -> Result:
    """x**p, with slope 0 in x where p is 0, and slope 0 in p where x is 0 and p is not negative."""
    z = x**p

    def dx(dy: Array) -> Array:
        if isinstance(p, Real):
            return dy * (p * x ** (p - 1 if p else p))
        return dy * (p * x ** b.xp.where(p == 0, p, p - 1))

    def dp(dy: Array) -> Array:
        base = b.full((), x, z.dtype) if isinstance(x, Real) else cast(b, x, z.dtype)
        flat = (base == 0) & (p >= 0)
        return dy * (z * b.xp.log(b.xp.where(flat, b.full((), 1, z.dtype), base)))

    return z, (dx, dp)


def negative(b: Backend, x: Array) -> Result:
    return -x, (lambda dy: -dy,)


def absolute(b: Backend, x: Array) -> Result:
    return b.xp.abs(x), (lambda dy: dy * b.xp.sign(x),)


def exp(b: Backend, x: Array) -> Result:
    y = b.xp.exp(x)
    return y, (lambda dy: dy * y,)


def log(b: Backend, x: Array) -> Result:
    return b.xp.log(x), (lambda dy: dy / x,)


def sqrt(b: Backend, x: Array) -> Result:
    y = b.xp.sqrt(x)
    return y, (lambda dy: dy / (2 * y),)


def tanh(b: Backend, x: Array) -> Result:
    y = b.xp.tanh(x)
    return y, (lambda dy: dy * (1 - y * y),)


def clip(b: Backend, x: Array, low: float | None, high: float | None) -> Result:
    """x, but at least low and at most high; the gradient passes where x lies between them, bounds included."""

    def dx(dy: Array) -> Array:
        inside = (x >= (-math.inf if low is None else low)) & (x <= (math.inf if high is None else high))
        return b.xp.where(inside, dy, b.zeros((), dy.dtype))

    y = b.xp.clip(x, low, high)
    return (cast(b, y, x.dtype) if is_float(b, x.dtype) else y), (dx,)


def astype(b: Backend, x: Array, dtype: Any) -> Result:
    return b.xp.astype(x, dtype), (_same,)


# ------------------------------------------------------------------------------------------------------ matrix products
def matmul(b: Backend, x: Array, y: Array) -> Result:
    """x @ y, of vectors, matrices and stacks of them, with broadcasting; half types are summed in float32."""
    if not x.ndim or not y.ndim:
        raise ValueError(f"@ needs arrays with axes, got shapes {tuple(x.shape)} and {tuple(y.shape)}: * scales")
    dtype = b.xp.result_type(x, y)
    if not is_float(b, dtype):
        return b.xp.matmul(x, y), (_same, _same)
    row, column = x.ndim == 1, y.ndim == 1
    x2 = b.xp.expand_dims(x, axis=0) if row else x
    y2 = b.xp.expand_dims(y, axis=1) if column else y
    _check_product(x, y, x2, y2)
    z2 = _product(b, x2, y2, dtype)
    one_matrix = y2.ndim == 2 < x2.ndim
    shape = tuple(z2.shape)
    cut = (*shape[:-2], *([] if row else [shape[-2]]), *([] if column else [shape[-1]]))

    def dx(dy: Array) -> Array:
        return _product(b, b.xp.reshape(dy, shape), transposed(b, y2), dtype)

    def dy_(dy: Array) -> Array:
        left, right = x2, b.xp.reshape(dy, shape)
        if one_matrix:  # for a whole stack: one long product instead of a stack to be summed
            left, right = (b.xp.reshape(a, (math.prod(a.shape[:-1]), a.shape[-1])) for a in (left, right))
        found = _product(b, transposed(b, left), right, dtype)
        return found[..., 0] if column else found

    return b.xp.reshape(z2, cut), (dx, dy_)


def _check_product(x: Array, y: Array, x2: Array, y2: Array) -> None:
    stacks = zip(reversed(x2.shape[:-2]), reversed(y2.shape[:-2]), strict=False)
    if x2.shape[-1] != y2.shape[-2] or any(m != n and 1 not in (m, n) for m, n in stacks):
        raise ValueError(
            f"@ needs (..., n, k) and (..., k, m) with axes before that broadcast, got {tuple(x.shape)} and"
            f" {tuple(y.shape)}"
        )


def _product(b: Backend, x: Array, y: Array, dtype: Any) -> Array:
    wide = accumulator_dtype(b, dtype)
    return cast(b, blas_matmul(b, cast(b, x, wide), cast(b, y, wide)), dtype)


# ----------------------------------------------------------------------------------------------------------- reductions
def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """`axis` (None for all, an int or several) as ascending axis numbers. ValueError for what x does not have."""
    entries = entries_of(axis, "axis")
    wanted = range(ndim) if axis is None else (axis,) if entries is None else entries
    numbers = [integer(a, "axis") for a in wanted]
    if any(not -ndim <= a < ndim for a in numbers) or len({a % ndim for a in numbers}) != len(numbers):
        raise ValueError(f"axis must name different axes of the {ndim} there are, got {axis!r}")
    return tuple(sorted(a % ndim for a in numbers))


def _reduced_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape once these axes are reduced to length 1."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _broadcast_back(b: Backend, dy: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    return b.xp.broadcast_to(b.xp.reshape(dy, _reduced_shape(shape, axes)), shape)


def total(b: Backend, x: Array, axis: Any, keepdims: bool) -> Result:
    shape, axes = tuple(x.shape), _axes(axis, x.ndim)
    if is_float(b, x.dtype):
        y = cast(b, b.array(summed(b, x, axes, keepdims), b.xp.float64), x.dtype)
    else:
        y = b.xp.sum(x, axis=axes, keepdims=keepdims)
    return y, (lambda dy: _broadcast_back(b, dy, shape, axes),)


def mean(b: Backend, x: Array, axis: Any, keepdims: bool) -> Result:
    shape, axes = tuple(x.shape), _axes(axis, x.ndim)
    count = math.prod(shape[a] for a in axes)
    if is_float(b, x.dtype):
        y = cast(b, b.array(summed(b, x, axes, keepdims), b.xp.float64) / b.full((), count, b.xp.float64), x.dtype)
    else:
        y = b.xp.mean(x, axis=axes, keepdims=keepdims)

    def dx(dy: Array) -> Array:  # in float32 for half types: a count beyond float16's range is infinite there
        return _broadcast_back(b, cast(b, dy, accumulator_dtype(b, dy.dtype)) / count, shape, axes)

    return y, (dx,)


def extreme(b: Backend, x: Array, axis: Any, keepdims: bool, ties: str, which: str) -> Result:
    """The maximum or minimum ("max", "min"); NaN wins. `ties`: who gets the gradient, as in `max_pool`."""
    if ties not in ("first", "all", "split"):
        raise ValueError(f"ties must be 'first', 'all' or 'split', got {ties!r}")
    shape, axes = tuple(x.shape), _axes(axis, x.ndim)
    if 0 in (shape[a] for a in axes):
        raise ValueError(f"{which} of no elements is not defined: shape {shape}, axis {axis!r}")
    reduce = b.xp.max if which == "max" else b.xp.min
    y = b.array(reduce(x, axis=axes, keepdims=True), x.dtype)

    def dx(dy: Array) -> Array:
        here = (x == y) | b.xp.isnan(x)
        if ties == "first":
            here = _first(b, here, axes)
        dy = _broadcast_back(b, dy, shape, axes)
        if ties == "split":
            dy = dy / summed(b, cast(b, here, dy.dtype), axes, keepdims=True)
        return b.xp.where(here, dy, b.zeros((), dy.dtype))

    left = tuple(n for a, n in enumerate(shape) if a not in axes)
    return (y if keepdims else b.xp.reshape(y, left)), (dx,)


def _first(b: Backend, here: Array, axes: tuple[int, ...]) -> Array:
    """Of the true cells along the axes together, the first one in C order."""
    order = (*(a for a in range(here.ndim) if a not in axes), *axes)
    there = b.xp.permute_dims(here, order)
    shape = tuple(there.shape)
    kept, count = shape[: here.ndim - len(axes)], math.prod(shape[here.ndim - len(axes) :])
    rows = b.xp.astype(b.xp.reshape(there, (*kept, count)), b.xp.uint8)
    first = b.xp.expand_dims(b.xp.argmax(rows, axis=-1), axis=-1)
    there = b.xp.reshape(b.arange(count) == first, shape)
    return b.xp.permute_dims(there, inverse_order(order))


# --------------------------------------------------------------------------------------------------------------- shapes
def reshape(b: Backend, x: Array, shape: tuple[int, ...]) -> Result:
    before = tuple(x.shape)
    return b.xp.reshape(x, shape), (lambda dy: b.xp.reshape(dy, before),)


def transpose(b: Backend, x: Array, axes: tuple[int, ...]) -> Result:
    if len(axes) != x.ndim or len(_axes(axes, x.ndim)) != x.ndim:
        raise ValueError(f"transpose needs every axis once, got {axes} for shape {tuple(x.shape)}")
    order = tuple(integer(a, "axes") % x.ndim for a in axes)
    return b.xp.permute_dims(x, order), (lambda dy: b.xp.permute_dims(dy, inverse_order(order)),)


def concat(b: Backend, *parts: Array, axis: int) -> Result:
    y = b.xp.concat(parts, axis=axis)
    before = (slice(None),) * (axis % y.ndim)
    ends = list(itertools.accumulate((int(p.shape[axis]) for p in parts), initial=0))
    spans = [(*before, slice(*ends), ...) for ends in itertools.pairwise(ends)]
    return y, tuple(lambda dy, span=span: dy[span] for span in spans)
