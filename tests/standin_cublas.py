"""`cupy.cuda.cublas` of the stand-in: a strided product on memory that is named by addresses, as cuBLAS takes it."""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np

from .standin_cuda import pointed_to

KINDS = {2: "float16", 0: "float32", 1: "float64"}
calls: list[tuple[Any, ...]] = []  # (transposed, transposed, m, n, k, number) of each product


class CUBLASError(RuntimeError):
    """As CuPy's."""


def _dtype(kind: int) -> np.dtype:
    if kind == 14:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(KINDS[kind])


def _view(address: int, kind: int, step: int, apart: int, shape: tuple[int, int, int]) -> np.ndarray:
    """(number, columns, rows) of matrices that are stored by columns. CUBLASError where they leave their memory."""
    memory, offset = pointed_to(address)
    dtype, (number, columns, rows) = _dtype(kind), shape
    if step < max(1, rows):
        raise CUBLASError(f"CUBLAS_STATUS_INVALID_VALUE: a leading dimension of {step} for {rows} rows")
    last = offset + ((number - 1) * apart + (columns - 1) * step + rows) * dtype.itemsize
    if last > memory.size:
        raise CUBLASError(f"CUBLAS_STATUS_EXECUTION_FAILED: byte {last} of {memory.size}")
    strides = tuple(n * dtype.itemsize for n in (apart, step, 1))
    return np.ndarray(shape, dtype, memory, offset, strides)


def gemm_strided_batched_ex(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, a: int, a_kind: int, lda: int,
    a_apart: int, b: int, b_kind: int, ldb: int, b_apart: int, beta: int, c: int, c_kind: int, ldc: int, c_apart: int,
    number: int, compute: int, algorithm: int,
) -> None:  # fmt: skip
    """C = alpha op(A) op(B) + beta C, matrices stored by columns."""
    wide = np.float64 if compute == 70 else np.float32
    if (compute, c_kind) not in ((68, 0), (70, 1)) or a_kind != b_kind or (c_kind == 1) != (a_kind == 1):
        raise CUBLASError(f"CUBLAS_STATUS_NOT_SUPPORTED: types {a_kind}, {b_kind}, {c_kind}, computed in {compute}")
    real = ctypes.c_double if compute == 70 else ctypes.c_float
    factors = [real.from_address(address).value for address in (alpha, beta)]
    first = _view(a, a_kind, lda, a_apart, (number, m, k) if transa else (number, k, m)).astype(wide)
    second = _view(b, b_kind, ldb, b_apart, (number, k, n) if transb else (number, n, k)).astype(wide)
    first = first.swapaxes(1, 2) if transa else first  # (number, k, m)
    second = second.swapaxes(1, 2) if transb else second  # (number, n, k)
    result = _view(c, c_kind, ldc, c_apart, (number, n, m))
    product = factors[0] * (second @ first)
    result[...] = product if factors[1] == 0 else product + factors[1] * result
    calls.append((transa, transb, m, n, k, number))


def module() -> types.SimpleNamespace:
    return types.SimpleNamespace(gemmStridedBatchedEx=gemm_strided_batched_ex)
