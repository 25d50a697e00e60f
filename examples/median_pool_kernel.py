"""The kernel of median_pool.py: compiled by Numba, for NumPy arrays. It gives the bits of the array code.

A module in `kernels.TABLE` has a launcher of the step's own name, called as the array code is, and `refuses`, which
says beforehand what the launcher cannot serve.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from cnnlayers import backends

Array = Any
CHUNKS = 16  # their borders depend on the shape alone, never on the number of threads


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why the kernel cannot serve this call, or None. Then the array code runs."""
    if len(spec.kernel) != 2:
        return f"{len(spec.kernel)} spatial axes: the kernel takes two"
    return None if all(a.dtype.isnative for a in arrays) else "an array of foreign byte order"


def median_pool_forward(b: backends.Backend, spec: Any, x: Array) -> tuple[Array, Array]:
    """y, and which tap of its window it is."""
    planes = np.ascontiguousarray(x).reshape(-1, *x.shape[2:])
    y = np.empty((len(planes), *spec.out), x.dtype)
    which = np.empty(y.shape, np.uint8)
    edges = [len(planes) * i // CHUNKS for i in range(CHUNKS + 1)]

    def run(i: int) -> None:
        part = slice(edges[i], edges[i + 1])
        medians(planes[part], spec.kernel[0], spec.stride[0], y[part], which[part])

    backends.run_chunks(run, range(CHUNKS))
    shape = (*x.shape[:2], *spec.out)
    return y.reshape(shape), which.reshape(shape)


@numba.njit(nogil=True)
def medians(x: Array, kernel: int, stride: int, y: Array, which: Array) -> None:
    """The cells of a window are counted against each other: the median has as many below it as above.

    A row of windows is worked on at a time, so that the inner loops run over neighbours in memory and the compiler can
    vectorise them. The taps are taken from the last to the first: of equal cells the first one stays.
    """
    count, columns = kernel * kernel, y.shape[2]
    cells = np.empty((count, columns), x.dtype)
    below, equal = np.empty(columns, np.int32), np.empty(columns, np.int32)
    for plane in range(x.shape[0]):
        for i in range(y.shape[1]):
            for tap in range(count):
                row = x[plane, i * stride + tap // kernel, tap % kernel :]
                for j in range(columns):
                    cells[tap, j] = row[j * stride]
            found = which[plane, i]
            for tap in range(count - 1, -1, -1):
                count_below_and_equal(cells, tap, below, equal)
                for j in range(columns):
                    if below[j] <= count // 2 < below[j] + equal[j]:
                        found[j] = tap
            for tap in range(count - 1, -1, -1):  # a NaN is the median of its window
                for j in range(columns):
                    if np.isnan(cells[tap, j]):
                        found[j] = tap
            for j in range(columns):
                y[plane, i, j] = cells[found[j], j]


@numba.njit(nogil=True)
def count_below_and_equal(cells: Array, tap: int, below: Array, equal: Array) -> None:
    """How many cells of each window are below the one at this tap, and how many are equal to it."""
    below[:] = 0
    equal[:] = 0
    for other in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            below[j] += np.int32(cells[other, j] < cells[tap, j])
            equal[j] += np.int32(cells[other, j] == cells[tap, j])
