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


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
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
    """Sort the cells of each window by insertion, together with their taps, and take the middle one; of cells that are
    equal to it the first."""
    count = kernel * kernel
    values, taps = np.empty(count, x.dtype), np.empty(count, np.uint8)
    for plane in range(x.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                unknown = -1
                for tap in range(count):
                    value = x[plane, i * stride + tap // kernel, j * stride + tap % kernel]
                    if value != value and unknown < 0:
                        unknown = tap
                    place = tap
                    while place > 0 and values[place - 1] > value:
                        values[place], taps[place] = values[place - 1], taps[place - 1]
                        place -= 1
                    values[place], taps[place] = value, tap
                middle = count // 2
                while middle > 0 and values[middle - 1] == values[middle]:
                    middle -= 1
                tap = taps[middle] if unknown < 0 else unknown
                y[plane, i, j] = x[plane, i * stride + tap // kernel, j * stride + tap % kernel]
                which[plane, i, j] = tap
