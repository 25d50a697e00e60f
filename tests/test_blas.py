"""Matrix products in chunks: the right numbers in every shape, and cuts that follow from the shape alone."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends, kernels
from cnnlayers.backends import threads

from .implementations import Impl

blas = importlib.import_module("cnnlayers.functional.blas")

SHAPES = [
    ((5, 7), (7, 3)),
    ((1, 1), (1, 1)),
    ((300, 40), (40, 20)),
    ((20, 40), (40, 300)),
    ((3, 50, 60), (3, 60, 70)),
    ((50, 60), (4, 60, 70)),
    ((4, 50, 60), (60, 70)),
    ((2, 1, 30, 60), (5, 60, 70)),
    ((1, 3, 200, 60), (1, 3, 60, 20)),
    ((0, 5), (5, 3)),
    ((5, 0), (0, 3)),
    ((5, 3), (3, 0)),
    ((0, 5, 4), (4, 6)),
    ((2, 0, 5, 4), (4, 6)),
]


@pytest.mark.parametrize("flops", [1, 10_000, 10**9], ids=["cut small", "cut", "whole"])
@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("whole", [False, True])
def test_products(
    impl: Impl,
    left: tuple[int, ...],
    right: tuple[int, ...],
    flops: int,
    whole: bool,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blas, "CHUNK_FLOPS", flops)
    if flops == 1:
        monkeypatch.setattr(blas, "LEAST_SIDE", 3)
    x, w = rng.standard_normal(left), rng.standard_normal(right)
    b, expected = backends.of(impl.array(x)), x @ w
    y = blas.matmul(b, impl.array(x), impl.array(w), uncut=whole)
    impl.close(y, expected, rtol=1e-12, atol=1e-12)
    for plus in (rng.standard_normal(right[-1]), rng.standard_normal((left[-2], 1))):
        y = blas.matmul(b, impl.array(x), impl.array(w), impl.array(plus), uncut=whole)
        impl.close(y, expected + plus, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a[::2, ::3],
        lambda a: a.T,
        lambda a: a.T[::-2],
        lambda a: a[:1],
        lambda a: a[:, :1],
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: np.broadcast_to(a[:, :1], a.shape),
        lambda a: np.lib.stride_tricks.sliding_window_view(a[0], 7),  # rows overlap
    ],
)
def test_strides_of_any_kind(view: Any, rng: np.random.Generator) -> None:
    x = view(rng.standard_normal((30, 40)))
    b = backends.of(x)
    right, left = rng.standard_normal((x.shape[1], 11)), rng.standard_normal((11, x.shape[0]))
    np.testing.assert_allclose(blas.matmul(b, x, right), x.copy() @ right, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(blas.matmul(b, left, x), left @ x.copy(), rtol=1e-12, atol=1e-12)
    stack = np.stack([x, 2 * x])[::-1]
    np.testing.assert_allclose(blas.matmul(b, left, stack), left @ stack.copy(), rtol=1e-12, atol=1e-12)


def test_what_blas_can_read_is_not_copied(rng: np.random.Generator) -> None:
    a = rng.standard_normal((6, 30, 40))
    for readable in (a, a[::2], a[..., :20], a[:, ::3], np.swapaxes(a, 1, 2), a[::-1]):
        assert blas._for_blas(readable) is readable
    for unreadable in (a[..., ::2], a[:, ::-1], np.broadcast_to(a[:, :1], a.shape)):
        copied = blas._for_blas(unreadable)
        assert copied.flags.c_contiguous
        np.testing.assert_array_equal(copied, unreadable)


def test_cuts_cover_everything_once() -> None:
    for length in (0, 1, 7, 64, 1000):
        for parts in (-1, 0, 1, 3, 7, 2000):
            found = blas.split_evenly(length, parts)
            assert [i for cut in found for i in range(cut.start, cut.stop)] == list(range(length))
            assert len(found) <= max(1, parts)


def number_of_cuts(*shapes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, cores: int) -> int:
    seen: list[int] = []
    monkeypatch.setattr(threads, "num_threads", lambda: cores)
    monkeypatch.setattr(backends, "run_chunks", lambda function, jobs: seen.append(len(jobs)))
    x, w = (np.ones(shape, "float32") for shape in shapes)
    with kernels.mode("off"):
        blas.matmul(backends.of(x), x, w)
    return seen[0]


def test_cuts_depend_on_the_shape_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for shapes, number in (
        (((10, 10), (10, 10)), 1),  # too small to share
        (((8000, 500), (500, 10)), 4),
        (((10, 500), (500, 8000)), 4),
        (((120, 8000), (8000, 120)), 1),  # no longer side
        (((64, 8000), (8000, 128)), 2),
        (((500, 500), (500, 500)), 4),  # both sides
        (((4096, 512), (512, 512)), 32),
        (((64, 200, 200), (200, 200)), 32),
        (((2, 4000, 500), (500, 100)), 32),  # a short stack: its matrices are cut as well
    ):
        for cores in (1, 2, 64):
            assert number_of_cuts(*shapes, monkeypatch=monkeypatch, cores=cores) == number


def test_in_chunks_raises_what_a_chunk_raises(impl: Impl) -> None:
    def fail(chunk: int) -> None:
        if chunk == 2:
            raise ZeroDivisionError(f"chunk {chunk}")

    with pytest.raises(ZeroDivisionError, match="chunk 2"):
        blas.in_chunks(backends.of(impl.array([1.0])), fail, range(4))
