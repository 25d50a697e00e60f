"""Matrix products whose bits do not depend on the number of threads, and that stay exact however long their sums are.

BLAS splits a product by its thread count, and other splits round otherwise. So on the CPU a product is cut into chunks
by its shape alone, each chunk is computed by BLAS on one thread, and the chunks run side by side on the library's own
pool.

BLAS adds up in the product's own dtype, one block of a sum after another, and in small products one term: a sum of a
million float32 numbers loses two or three digits. So a sum of more than RUN_TERMS terms is cut into runs, and the
products of the runs are added up in float64.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy

from cnnlayers import backends, kernels
from cnnlayers.backends import Backend

from .arrays import Array, cast

T = TypeVar("T")
CHUNK_FLOPS = 16_000_000  # of a chunk of a product, at least, if there are more than two
TWO_CHUNKS_FLOPS = 16_000_000  # of a product in two chunks, at least: 160 µs, a third of which Python needs
# A convolution by columns of no more runs on one thread. Direct loops have a number of their own, in
# kernels/cpu/conv_direct_plan.py: a chunk of theirs costs no call of Python or BLAS.
MIN_PARALLEL_FLOPS = 8_000_000
MOST_CHUNKS = 32
RUN_TERMS = 4096  # terms of a run: adding up the runs' products takes a fortieth of the time of these, at most
RUN, SMALL = 128, 4096  # terms of a run of a small product, and the numbers of one at most
LEAST_SIDE = 192  # rows and columns of a chunk: with 32, packing the factors takes 1.5 to 3 times as long in all


def single_threaded_blas(b: Backend) -> contextlib.AbstractContextManager[None]:
    """A block in which BLAS is on one thread, on NumPy. For an op of several products: to begin and end it takes as
    long as a small product does, and inside of it it costs nothing."""
    return backends.single_threaded_blas() if b.name == "numpy" else contextlib.nullcontext()


def in_chunks(b: Backend, function: Callable[[T], Any], chunks: Sequence[T], flops: float = math.inf) -> None:
    """Call `function` on every chunk: on NumPy with BLAS on one thread, and side by side if all together take more than
    MIN_PARALLEL_FLOPS; elsewhere one after another."""
    if b.name != "numpy":
        for chunk in chunks:
            function(chunk)
        return
    with backends.single_threaded_blas():
        if flops > MIN_PARALLEL_FLOPS:
            backends.run_chunks(function, chunks)
        else:
            for chunk in chunks:
                function(chunk)


def split_evenly(length: int, parts: int) -> list[slice]:
    """`length` cells in at most `parts` runs of one length (the last may be shorter)."""
    step = max(1, -(-length // max(1, parts)))
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


@contextlib.contextmanager
def workspace(b: Backend, shape: tuple[int, ...], dtype: Any) -> Iterator[Array]:
    """An array with any content, the caller's until the block ends."""
    if b.name != "numpy":
        yield b.empty(shape, dtype)
        return
    with backends.workspace(dtype, shape) as (array,):
        yield array


def in_c_order(b: Backend, array: Array) -> Array:
    """The array, on NumPy copied where its elements do not lie in C order."""
    return numpy.ascontiguousarray(array) if b.name == "numpy" else array


def transposed(b: Backend, matrices: Array) -> Array:
    """A view of a matrix, or of a stack of them, with rows as columns."""
    *stack, rows, columns = range(matrices.ndim)
    return b.xp.permute_dims(matrices, (*stack, columns, rows))


def matmul(
    b: Backend,
    x: Array,
    w: Array,
    plus: Array | None = None,
    *,
    uncut: bool = False,
    out: Array | None = None,
) -> Array:
    """x @ w (+ plus) for stacks of matrices (..., m, k) and (..., k, n) of one floating dtype; batch axes broadcast.

    `plus` broadcasts to the product. `uncut`: do not cut the product into chunks, because the caller itself
    runs in one. `out`, of NumPy alone: where the product goes. On CuPy the product of half types is float32.
    """
    if b.name != "numpy":
        wide = x.dtype if x.dtype == b.xp.float64 else b.xp.float32
        product = _product(b, x, w) if _is_short(b, x) else b.xp.astype(_in_runs(b, x, w), wide)
        return product if plus is None else product + plus
    x, w = _for_blas(x), _for_blas(w)
    batch = numpy.broadcast_shapes(x.shape[:-2], w.shape[:-2]) if x.ndim > 2 or w.ndim > 2 else ()
    y = backends.result((*batch, x.shape[-2], w.shape[-1]), x.dtype) if out is None else out

    def compute(job: tuple[Array, Array, Array, Array | None]) -> None:
        x, w, y, plus = job
        if _is_short(b, x):
            numpy.matmul(x, w, out=y)
        else:
            y[...] = _in_runs(b, x, w)
        if plus is not None:
            y += plus

    small = not batch and backends.is_small_product(x.shape[0], x.shape[1], w.shape[1])
    if not (uncut or small) and _by_kernel(b, x, w, plus, y):
        return y
    if uncut or small:
        compute((x, w, y, plus))
    else:
        in_chunks(b, compute, _jobs(x, w, y, plus))
    return y


def _by_kernel(b: Backend, x: Array, w: Array, plus: Array | None, y: Array) -> bool:
    """Whether a CPU kernel has computed y = x @ w + plus, by runs of its own where the sums are long."""
    short = _is_short(b, x)
    if x.ndim != 2 or not y.flags.c_contiguous or (not short and y.size <= SMALL):
        return False
    launch = kernels.find("matmul", b, None, x, w, required=False)
    if launch is None or (plus is not None and plus.shape != y.shape[-1:]):
        return False
    if short:
        launch(b, None, x, w, plus, y, slice(0, x.shape[1]))
        return True
    total, part = numpy.zeros(y.shape), numpy.empty_like(y)
    for run in split_evenly(x.shape[1], -(-x.shape[1] // RUN_TERMS)):
        launch(b, None, x, w, None, part, run)
        total += part
    y[...] = total if plus is None else total + plus
    return True


def _product(b: Backend, x: Array, w: Array) -> Array:
    """x @ w, by cuBLAS on CuPy's arrays."""
    launcher = kernels.find("matmul", b, None, x, w, required=False) if b.name == "cupy" else None
    if launcher is not None:
        product: Array = launcher(b, None, x, w)
        return product
    if backends.dtype_name(b, x) in ("float16", "bfloat16"):
        x, w = (cast(b, a, b.xp.float32) for a in (x, w))
    return b.xp.matmul(x, w)


def multiplies_halves(b: Backend, dtype: Any) -> bool:
    """Whether products of this half type are taken as they are, with sums in float32."""
    if b.name != "cupy" or dtype in (b.xp.float32, b.xp.float64):
        return False
    one = b.empty((1, 1), dtype)
    return kernels.find("matmul", b, None, one, one, required=False) is not None


def _is_short(b: Backend, x: Array) -> bool:
    """Whether sums along x's rows may be kept in its dtype from the first term to the last."""
    return bool(x.shape[-1] <= RUN_TERMS or x.dtype == b.xp.float64)


def _in_runs(b: Backend, x: Array, w: Array) -> Array:
    """x @ w in float64, of which each run of terms is a product in x's dtype."""
    if x.shape[-2] * w.shape[-1] <= SMALL:
        return _in_short_runs(b, x, w)
    first, *others = split_evenly(x.shape[-1], -(-x.shape[-1] // RUN_TERMS))
    total = b.xp.astype(_product(b, x[..., first], w[..., first, :]), b.xp.float64)
    for run in others:
        total += _product(b, x[..., run], w[..., run, :])
    return total


def _in_short_runs(b: Backend, x: Array, w: Array) -> Array:
    """The same for a small product: all runs of RUN terms at once, and the rest."""
    runs, rows = x.shape[-1] // RUN, x.ndim - 2
    stacked = b.xp.reshape(x[..., : runs * RUN], (*x.shape[:-1], runs, RUN))
    stacked = b.xp.permute_dims(stacked, (*range(rows), rows + 1, rows, rows + 2))
    products = _product(b, stacked, b.xp.reshape(w[..., : runs * RUN, :], (*w.shape[:-2], runs, RUN, w.shape[-1])))
    total = b.xp.sum(products, axis=-3, dtype=b.xp.float64)
    return total + _product(b, x[..., runs * RUN :], w[..., runs * RUN :, :])


def _jobs(x: Array, w: Array, y: Array, plus: Array | None) -> list[tuple[Array, Array, Array, Array | None]]:
    """The product as products of its parts: first the stack is cut, then y's matrices."""
    flops = 2.0 * y.size * x.shape[-1]
    parts = min(MOST_CHUNKS, max(int(flops / CHUNK_FLOPS), 2 if flops >= TWO_CHUNKS_FLOPS else 1))
    if parts < 2:
        return [(x, w, y, plus)]
    if y.ndim > 2:
        x, w = (numpy.broadcast_to(a, (*y.shape[:-2], *a.shape[-2:])) for a in (x, w))
    plus = None if plus is None else numpy.broadcast_to(plus, y.shape)
    stacks: list[Any] = [(...,)] if y.ndim == 2 else [(cut, ...) for cut in split_evenly(y.shape[0], parts)]
    jobs = []
    cuts = _cuts(y.shape[-2], y.shape[-1], parts // len(stacks))
    for stack, (rows, columns) in itertools.product(stacks, cuts):
        at = (*stack, rows, columns)
        part = None if plus is None else plus[at]
        jobs.append((x[(*stack, rows, slice(None))], w[(*stack, slice(None), columns)], y[at], part))
    return jobs


def _cuts(rows: int, columns: int, most: int) -> list[tuple[slice, slice]]:
    """Slices that cut a matrix into at most `most` parts. The longer side of the parts is halved while each half has
    LEAST_SIDE rows or columns; for the first cut a third of that is enough, so that two threads can work."""
    down = across = 1
    while 2 * down * across <= most:
        height, width = rows // down, columns // across
        if max(height, width) < 2 * LEAST_SIDE / (3 if down * across == 1 else 1):
            break
        if width >= height:
            across *= 2
        else:
            down *= 2
    return list(itertools.product(split_evenly(rows, down), split_evenly(columns, across)))


def _for_blas(a: Array) -> Array:
    """`a`, copied where BLAS could not read its matrices as they lie: some NumPy versions then take a slow loop."""
    if a.size == 0:
        return a
    rows, columns = a.strides[-2:]
    by_rows = columns == a.itemsize and rows >= a.shape[-1] * a.itemsize and rows % a.itemsize == 0
    by_columns = rows == a.itemsize and columns >= a.shape[-2] * a.itemsize and columns % a.itemsize == 0
    return a if by_rows or by_columns else numpy.ascontiguousarray(a)
