"""Matrix products whose bits do not depend on the number of threads.

BLAS splits a product by its thread count, and other splits round otherwise. So on the CPU a product is cut into slabs by
its shape alone, each slab is computed by BLAS on one thread, and the slabs run side by side on the library's own pool.
"""

from __future__ import annotations

import numpy

from cnnlayers import backends
from cnnlayers.backends import Backend

from .common import Array

SLAB_FLOPS = 4_000_000  # below this, handing a slab to a thread costs more than it saves
MOST_SLABS = 16


def _cuts(length: int, flops: float) -> list[slice]:
    parts = max(1, min(length, MOST_SLABS, int(flops / SLAB_FLOPS)))
    step = -(-length // parts) if length else 1
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


def matmul(b: Backend, x: Array, w: Array) -> Array:
    """x @ w for stacks of matrices (..., m, k) and (..., k, n) of one floating dtype; batch axes broadcast."""
    if b.name != "numpy":
        return b.xp.matmul(x, w)
    m, k, n = x.shape[-2], x.shape[-1], w.shape[-1]
    batch = numpy.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    y = numpy.empty((*batch, m, n), x.dtype)
    flops = 2.0 * y.size * k
    if batch and batch[0] > 1:
        x, w = (numpy.broadcast_to(a, (*batch, *a.shape[-2:])) for a in (x, w))
        jobs = [(x[cut], w[cut], y[cut]) for cut in _cuts(batch[0], flops)]
    elif m >= n:
        jobs = [(x[..., cut, :], w, y[..., cut, :]) for cut in _cuts(m, flops)]
    else:
        jobs = [(x, w[..., cut], y[..., cut]) for cut in _cuts(n, flops)]
    with backends.one_blas_thread():
        backends.run_slabs(lambda job: numpy.matmul(job[0], job[1], out=job[2]), jobs)
    return y
