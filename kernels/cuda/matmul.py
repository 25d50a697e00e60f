"""Products of stacks of matrices by cuBLAS, read as they lie: transposed matrices are not copied, nor is one that
serves a whole stack (CuPy's matmul copies them). Half types are multiplied as they are; their sums and products are
float32.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cnnlayers.backends import Backend

Array = Any
TYPES = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1}  # CUDA's numbers of types
IN_FLOAT, IN_DOUBLE = 68, 70  # cuBLAS's of the types it computes in; float32 without TF32
DEFAULT = -1  # cuBLAS chooses the algorithm, by shapes alone
LIMIT = 2**31  # cuBLAS counts rows, columns and steps by ints
FACTORS = {dtype: np.array([1, 0], dtype) for dtype in ("float32", "float64")}
ADDRESSES = {dtype: (a.ctypes.data, a.ctypes.data + a.itemsize) for dtype, a in FACTORS.items()}  # of one and zero


@functools.cache
def _name(dtype: Any) -> str:
    return str(dtype)


def refuses(step: str, spec: None, x: Array, w: Array) -> str | None:
    """Why cuBLAS does not compute this product, or None."""
    if x.dtype != w.dtype or _name(x.dtype) not in TYPES:
        return f"a product of {x.dtype} and {w.dtype}"
    if max(*x.shape, *w.shape) >= LIMIT or max(x.ndim, w.ndim) > 4:
        return f"matrices of shapes {x.shape} and {w.shape}"
    return None


def matmul(b: Backend, spec: None, x: Array, w: Array) -> Array:
    """x @ w, (..., m, k) and (..., k, n) with up to two batch axes, which broadcast; in float32 for half types."""
    batch = x.shape[:-2]
    if batch != w.shape[:-2]:
        batch = np.broadcast_shapes(batch, w.shape[:-2])
    wide = b.xp.float64 if x.dtype == np.float64 else b.xp.float32
    product = b.empty((*batch, x.shape[-2], w.shape[-1]), wide)
    if not product.size or not x.shape[-1]:
        product[...] = 0
        return product
    x, w = _readable(b, x), _readable(b, w)
    if len(batch) <= 1:
        _stack(b, x, w, product)
        return product
    y = product.reshape((*(1,) * (2 - len(batch)), *product.shape))
    x, w = (b.xp.broadcast_to(a, (*y.shape[:2], *a.shape[-2:])) for a in (x, w))
    shorter = 0 if y.shape[0] <= y.shape[1] else 1
    for i in range(y.shape[shorter]):  # mostly one
        at = (i,) if shorter == 0 else (slice(None), i)
        _stack(b, x[at], w[at], y[at])
    return product


def _readable(b: Backend, a: Array) -> Array:
    """The array, copied where its matrices have neither rows nor columns of neighbours."""
    return a if _order(a) is not None else b.xp.ascontiguousarray(a)


def _order(a: Array) -> tuple[bool, int] | None:
    """Whether matrices are stored as their transposes, and elements from a row (a column) on. None: neither."""
    (rows, columns), size = a.shape[-2:], a.dtype.itemsize
    by_row, by_column = a.strides[-2:]
    if (columns == 1 or by_column == size) and (rows == 1 or by_row >= columns * size):
        return False, max(columns, by_row // size if rows > 1 else 0)
    if (rows == 1 or by_row == size) and (columns == 1 or by_column >= rows * size):
        return True, max(rows, by_column // size if columns > 1 else 0)
    return None


def _stack(b: Backend, x: Array, w: Array, y: Array) -> None:
    """y[i] = x[i] @ w[i]; one matrix serves all i. cuBLAS stores by columns: to it the product is y's transpose, of w's
    and x's."""
    *number, m, n = y.shape
    (x_turned, x_step), (w_turned, w_step), (_, y_step) = (_order(a) or (False, 0) for a in (x, w, y))
    double = y.dtype == np.float64
    one, zero = ADDRESSES["float64" if double else "float32"]
    kinds = [TYPES[_name(a.dtype)] for a in (w, x, y)]
    apart = [0 if a.ndim == 2 or a.shape[0] == 1 else a.strides[0] // a.dtype.itemsize for a in (w, x, y)]
    b.xp.cuda.cublas.gemmStridedBatchedEx(
        b.xp.cuda.device.get_cublas_handle(), int(w_turned), int(x_turned), n, m, x.shape[-1], one,
        w.data.ptr, kinds[0], w_step, apart[0], x.data.ptr, kinds[1], x_step, apart[1], zero,
        y.data.ptr, kinds[2], y_step, apart[2], number[0] if number else 1, IN_DOUBLE if double else IN_FLOAT, DEFAULT,
    )  # fmt: skip
