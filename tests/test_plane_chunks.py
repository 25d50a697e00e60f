"""Pooling's portable code in chunks: the bits of the whole, whatever the layout, the ties and the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.backends import threads
from cnnlayers.functional import plane_chunks
from cnnlayers.specs import pool_window

SHAPE = (3, 5, 9, 11)
OPS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "max": ("max_pool", (2,), {}),
    "padded max": ("max_pool", (3, 2, 1), {"return_indices": True}),
    "all ties": ("max_pool", (3, 2, 1), {"ties": "all"}),
    "split ties": ("max_pool", ((2, 5), 1), {"ties": "split", "return_indices": True}),
    "average": ("avg_pool", (3, 1, 1), {"count_include_pad": False}),
    "sum": ("sum_pool", (3, 2, 1), {}),
    "adaptive max": ("adaptive_max_pool", ((4, 3),), {}),
    "adaptive average": ("adaptive_avg_pool", (1,), {}),
}


@pytest.fixture(autouse=True)
def array_code() -> Iterator[None]:
    with kernels.mode("off"):
        yield


def run(name: str, x: np.ndarray, data_format: str) -> list[np.ndarray]:
    """All that an op gives, what it saves included."""
    op, args, options = OPS[name]
    given = {**options, "data_format": data_format}
    y, ctx = getattr(F, f"{op}_forward")(x, *args, **given)
    found = [*(y if isinstance(y, tuple) else (y,)), *(a for a in ctx.arrays.values() if a is not None)]
    dy = np.random.default_rng(1).integers(-3, 4, found[0].shape).astype(x.dtype) * np.asarray(-0.5, x.dtype)
    inference = getattr(F, op)(x, *args, **given)
    found += [*(inference if isinstance(inference, tuple) else (inference,))]
    return [*found, getattr(F, f"{op}_backward")(dy, ctx)]


def layouts(x: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    return {
        "channels first": (x, "channels_first"),
        "channels last": (last, "channels_last"),
        "in another order": (np.asfortranarray(x), "channels_first"),
        "every other": (np.repeat(x, 2, axis=3)[..., ::2], "channels_first"),
    }


@pytest.mark.parametrize("chunk", [1, 700, 1_400])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int32"])
@pytest.mark.parametrize("name", OPS)
def test_chunks_have_the_bits_of_the_whole(
    name: str, dtype: str, chunk: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == "int32" and OPS[name][0] != "max_pool":
        pytest.skip("sums are of floating numbers")
    x = rng.integers(-2, 3, SHAPE).astype(dtype)
    if dtype != "int32":
        for value in (np.nan, -np.inf, -0.0):
            x[rng.random(SHAPE) < 0.1] = value
    cut: list[int] = []
    chunks = plane_chunks.run_chunks
    for array, data_format in layouts(x).values():
        if dtype == "int32":  # which have no gradient
            whole, parts = (list(found) for found in integers(name, array, data_format, chunk, monkeypatch))
        else:
            whole = run(name, array, data_format)
            with monkeypatch.context() as patch:
                patch.setattr(plane_chunks, "CHUNK", chunk)
                patch.setattr(threads, "num_threads", lambda: 3)
                patch.setattr(plane_chunks, "run_chunks", lambda f, s: (cut.append(len(s)), chunks(f, s)))
                parts = run(name, array, data_format)
            assert cut
        for a, b in zip(parts, whole, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert a.tobytes() == b.tobytes()


def integers(
    name: str, x: np.ndarray, data_format: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Iterator[np.ndarray]]:
    """y (and indices) of whole numbers, whole and in chunks."""
    op, args, options = OPS[name]
    for size in (1 << 60, chunk):
        with monkeypatch.context() as patch:
            patch.setattr(plane_chunks, "CHUNK", size)
            y = getattr(F, op)(x, *args, **options, data_format=data_format)
        yield iter(y if isinstance(y, tuple) else (y,))


def test_an_error_of_a_chunk_is_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    @plane_chunks.in_planes
    def refuse_nan(b: backends.Backend, window: Any, x: np.ndarray) -> np.ndarray:
        if np.isnan(x).any():
            raise ArithmeticError("a NaN")
        return x

    monkeypatch.setattr(plane_chunks, "CHUNK", 1)
    x = np.ones(SHAPE, "float32")
    window = pool_window(x.shape, 1, None, 0, 1, False, "channels_first")
    np.testing.assert_array_equal(refuse_nan(backends.of(x), window, x), x)
    x[-1] = np.nan
    with pytest.raises(ArithmeticError, match="a NaN"):
        refuse_nan(backends.of(x), window, x)
