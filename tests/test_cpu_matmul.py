"""Products of two matrices by the CPU kernel, in every layout, and with the same bits on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from cnnlayers import backends, kernels
from cnnlayers.backends import threads
from cnnlayers.functional import blas

jit = pytest.importorskip("cnnlayers.kernels.cpu.jit")
pytestmark = pytest.mark.skipif(jit.unavailable() is not None, reason=str(jit.unavailable()))

SIZES = [(64, 512, 128), (61, 77, 43), (6, 300, 450), (97, 1, 2000), (50, 4097, 130), (14, 257, 70), (33, 30, 1000)]
LAYOUTS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
}
b = backends.of(np.zeros(1))


def served(x: np.ndarray, w: np.ndarray, plus: np.ndarray | None, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The kernel's product."""
    by_kernel, answers = blas._by_kernel, []
    with monkeypatch.context() as patch:
        patch.setattr(blas, "_by_kernel", lambda *args: answers.append(by_kernel(*args)) or answers[-1])
        y = blas.matmul(b, x, w, plus)
    assert answers == [True]
    return y


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_float64(size, layout, dtype, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, terms, columns = size
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, terms), (terms, columns)))
    plus = rng.standard_normal(columns).astype(dtype)
    x, w = LAYOUTS[layout](x), LAYOUTS[layout](w)
    for a in (x, w, plus):
        a.flags.writeable = False
    scale = np.abs(x.astype("float64")) @ np.abs(w.astype("float64")) + 1
    for added in (None, plus):
        expected = x.astype("float64") @ w.astype("float64") + (0 if added is None else added)
        error = np.abs(served(x, w, added, monkeypatch) - expected) / scale
        assert error.max() < (1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_values_that_are_not_finite_stay_in_their_row_and_column(size, rng, monkeypatch) -> None:
    rows, terms, columns = size
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((rows, terms), (terms, columns)))
    x[1, 2], w[3, columns - 1] = np.nan, np.inf
    y = served(x, w.T.copy().T, None, monkeypatch)
    bad = ~np.isfinite(y)
    assert bad[1].all()
    assert bad[:, -1].all()
    assert bad.sum() == rows + columns - 1


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_same_bits_on_any_number_of_threads(size, rng, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, terms, columns = size
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((rows, terms), (terms, columns)))
    found = set()
    for number in (1, 2, 5):
        for module in (threads, backends):
            monkeypatch.setattr(module, "num_threads", lambda number=number: number)
        found |= {served(x, w, None, monkeypatch).tobytes() for _ in range(3)}
    assert len(found) == 1


def test_what_blas_computes() -> None:
    def is_by_kernel(*shape: int) -> bool:
        x, w = np.ones(shape[:2], np.float32), np.ones(shape[1:], np.float32)
        return blas._by_kernel(b, x, w, None, np.empty((shape[0], shape[2]), np.float32))

    with kernels.mode("require"):  # it never fails for want of a kernel
        assert is_by_kernel(64, 64, 64)
        for shape in ((64, 0, 64), (0, 64, 64), (64, 64, 0), (1, 64, 64), (64, 64, 1), (64, 64, 10), (5000, 5000, 64)):
            assert not is_by_kernel(*shape)
    with kernels.mode("off"):
        assert not is_by_kernel(64, 64, 64)
