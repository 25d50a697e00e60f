"""The compiled CPU kernels of pad and relu: chunks, threads, relu's bits. Pad's answers: test_pad_kernels.py."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.backends import threads

from .cases.arrays import any_bits, gradient, stored
from .implementations import FLOATS, Impl, agree, numpy_dtype, on_cpu_kernels
from .reference.pad import MODES

pytestmark = on_cpu_kernels
ON_CPU = Impl("cpu", np)


# ------------------------------------------------------------------------------------------------------------------ pad
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_the_bits_of_a_large_pad_do_not_depend_on_the_threads(
    mode: str, dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.standard_normal((3, 11, 80, 83)).astype(dtype)  # some chunks
    with kernels.mode("off"):
        y, ctx = F.pad_forward(x, ((3, 2), (1, 4)), mode)
        expected = y.tobytes(), F.pad_backward(y, ctx).tobytes()
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        with kernels.mode("require"):
            y, ctx = F.pad_forward(x, ((3, 2), (1, 4)), mode)
            assert (y.tobytes(), F.pad_backward(y, ctx).tobytes()) == expected


# ----------------------------------------------------------------------------------------------------------------- relu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (3, 4, 5, 6), (0, 4), (3, 90_001)])
def test_relu_has_the_portable_values(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    kind = numpy_dtype(dtype)
    for style in range(4 if shape else 1):
        x = np.array(gradient(rng, shape, kind) if shape else -1.5, kind)
        if x.size > 10:
            x.reshape(-1)[[1, 3, 4, -1]] = np.array([np.nan, -np.nan, -np.inf, np.nan]).astype(kind)
        x = stored(x, style) if shape else x
        x.flags.writeable = False
        with kernels.mode("require"):
            agree(ON_CPU, "relu", x, dy=partial(any_bits, rng, dtype=kind), tolerance=0.0, near_dx=None)
            y = F.relu(x)
        assert not np.signbit(y[y == 0].astype("float64")).any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_relu_of_every_kind_of_number(dtype: str) -> None:
    kind = numpy_dtype(dtype)
    small = 2.0**-24 if dtype == "float16" else 2.0**-126
    x = np.array([small, 1, np.inf, np.nan, -small, -1, -np.inf, -np.nan, 0, -0.0] * 9).astype(kind)  # and vector tails
    with kernels.mode("require"):
        y, ctx = F.relu_forward(x)
    passed = np.array([1, 1, 1, 1, 0, 0, 0, 1, 0, 0] * 9, bool)
    ON_CPU.same(ctx.arrays["passes"], np.packbits(passed, bitorder="little"))
    bits = f"u{kind.itemsize}"
    ON_CPU.same(y.view(bits), np.where(passed, x.view(bits), 0).astype(bits))


# ----------------------------------------------------------------------------------------------------------------- both
def test_many_threads_may_call_at_once(rng: np.random.Generator) -> None:
    xs = [rng.standard_normal((2, 8, 96, 97)).astype("float32") for _ in range(6)]

    def call(x: np.ndarray) -> tuple[bytes, bytes]:
        y, ctx = F.pad_forward(x, 2, "reflect")
        return F.pad_backward(y, ctx).tobytes(), F.relu(y).tobytes()

    expected = [call(x) for x in xs]
    found: dict[int, bool] = {}

    def work(i: int) -> None:
        found[i] = all(call(xs[i]) == expected[i] for _ in range(10))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == dict.fromkeys(range(len(xs)), True)
