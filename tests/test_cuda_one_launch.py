"""Activations, dropout, softmax, the cross-entropy, local response norm and Lp pooling on the emulator: one launch each
pass.

Their answers: test_elementwise_kernels.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.kernels.cuda import cross_entropy

from . import standin_cuda
from .cases.elementwise import EACH_CALL, labels
from .implementations import FLOATS, numpy_dtype, on_emulator

pytestmark = on_emulator

ULPS = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 4e-6, "float64": 1e-13}


def passes(op: str, x: Any, dy: Any, args: Any, options: Any) -> tuple[Any, Any]:
    y, ctx = getattr(F, f"{op}_forward")(x, *args, **options)
    return y, getattr(F, f"{op}_backward")(dy if y.shape else 0.7, ctx)


def near(got: Any, expected: Any, tolerance: float) -> None:
    got, expected = (a.get() for a in (got, expected))
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    got, expected = got.astype("float64"), expected.astype("float64")
    most = np.max(np.abs(expected), where=np.isfinite(expected), initial=1e-3)
    np.testing.assert_allclose(got, expected, rtol=4 * tolerance, atol=tolerance * most)


@EACH_CALL
def test_one_launch_a_pass_and_the_same_bits_in_any_order(
    cupy: Any, op: str, shape: Any, args: Any, options: Any, rng: np.random.Generator
) -> None:
    """Of Lp pooling's overlapping windows the norms have a launch before the gradient's."""
    x = cupy.asarray(rng.standard_normal(shape).astype("float32"))
    args, seen = (*map(cupy.asarray, labels(op, shape)), *args), set()
    for order in ("ascending", "random"):
        with standin_cuda.emulating(order=order) as made:
            y, ctx = getattr(F, f"{op}_forward")(x, *args, **options)
            assert len(made) == 1
            dx = getattr(F, f"{op}_backward")(y, ctx)
            assert len(made) == (3 if made[-1].name.startswith("lp_pool_gather") else 2)
        seen.add((y.get().tobytes(), dx.get().tobytes()))
    assert len(seen) == 1


@pytest.mark.parametrize(
    "op", ["relu", "leaky_relu", "gelu", "sigmoid", "tanh", "softmax", "local_response_norm", "lp_pool"]
)
def test_inference_is_one_launch(cupy: Any, op: str) -> None:
    x, args = cupy.asarray(np.ones((2, 3, 4), "float32")), (2,) if op in ("local_response_norm", "lp_pool") else ()
    with standin_cuda.emulating() as made:
        getattr(F, op)(x, *args)
    assert len(made) == 1


def test_overlapping_windows_of_lp_pool_have_their_norms_first(cupy: Any, rng: np.random.Generator) -> None:
    x = cupy.asarray(rng.standard_normal((2, 3, 9, 9)).astype("float32"))
    with kernels.mode("off"):
        y, ctx = F.lp_pool_forward(x, 5, 3.0, 1)
        expected = F.lp_pool_backward(y, ctx)
    with standin_cuda.emulating() as made:
        near(F.lp_pool_backward(y, F.lp_pool_forward(x, 5, 3.0, 1)[1]), expected, ULPS["float32"])
    assert [launch.name.partition("<")[0] for launch in made] == ["lp_pool", "lp_pool", "lp_pool_gather"]


# ---------------------------------------------------------------------------------------------------------- activations
@pytest.mark.parametrize("dtype", FLOATS)
def test_relu_moves_bits(cupy: Any, dtype: str) -> None:
    """A NaN's payload and subnormal numbers pass as they are."""
    kind, word = numpy_dtype(dtype), f"u{numpy_dtype(dtype).itemsize}"
    sign = 1 << 8 * kind.itemsize - 1
    positive = [*range(1, 100), sign - 1, sign - 3]  # subnormal numbers, and NaNs
    x = np.array([*positive, 0, sign, *(sign + n for n in range(1, 100)), 2 * sign - 2], word)
    expected = np.array([*positive, *([0] * 101), 2 * sign - 2], word)  # of what is negative only a NaN passes
    y, ctx = F.relu_forward(cupy.asarray(x.view(kind)))
    assert y.get().view(word).tolist() == expected.tolist()
    assert F.relu_backward(y, ctx).get().view(word).tolist() == expected.tolist()


# -------------------------------------------------------------------------------------------------------------- dropout
# The first block of Philox4x32-10 for the key and counter 0, from Random123's known answers (kat_vectors).
KNOWN = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_random_numbers_are_philoxs(cupy: Any) -> None:
    drawn = backends.uniform(backends.of(cupy.asarray(np.ones(1))), (2, 2), 0).get()
    assert drawn.dtype == np.float32
    assert (drawn.reshape(-1) * 2**24).tolist() == [word >> 8 for word in KNOWN]


def test_seeds_generators_and_new_masks(cupy: Any) -> None:
    x = cupy.asarray(np.ones(5000, "float32"))

    def mask(rng: Any) -> bytes:
        return F.dropout(x, 0.5, training=True, rng=rng).get().tobytes()

    assert mask(7) == mask(7) != mask(8)
    assert mask(2**64 + 7) == mask(2**64 + 7) != mask(7)
    assert mask(None) != mask(None)
    one, other = (cupy.random.default_rng(1) for _ in range(2))
    assert [mask(one), mask(one)] == (found := [mask(other), mask(other)])
    assert found[0] != found[1]


@pytest.mark.parametrize("p", [1e-9, 0.25, 0.999, 1])
def test_shares_and_scales(cupy: Any, p: float) -> None:
    x = cupy.asarray(np.full(20_001, np.nan if p == 1 else 2.0, "float32"))
    y, ctx = F.dropout_forward(x, p, training=True, rng=5)
    kept = y.get() != 0
    assert abs(kept.mean() - (1 - p)) < 0.01
    assert kept.tolist() == ctx.arrays["mask"].get().tolist()
    np.testing.assert_allclose(y.get()[kept], 2 / (1 - p) if p < 1 else 0, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------- cross-entropy
@pytest.mark.parametrize("kind", backends.INTEGERS)
def test_labels_of_any_integer_dtype(cupy: Any, kind: str, rng: np.random.Generator) -> None:
    x, labels = cupy.asarray(rng.standard_normal((6, 5)).astype("float32")), np.array([0, 4, 2, 2, 1, 3])
    wanted = passes("softmax_cross_entropy", x, 0.7, (cupy.asarray(labels),), {})
    with standin_cuda.emulating() as made:
        got = passes("softmax_cross_entropy", x, 0.7, (cupy.asarray(labels.astype(kind)),), {})
    assert len(made) == 2
    assert [a.get().tobytes() for a in got] == [a.get().tobytes() for a in wanted]


def test_a_block_takes_several_rows(cupy: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(cross_entropy, "MOST_BLOCKS", 2)
    x, labels = rng.standard_normal((5, 1031)).astype("float32"), rng.integers(0, 1031, 5)
    found = passes("softmax_cross_entropy", cupy.asarray(x), 0.7, (cupy.asarray(labels),), {})
    with kernels.mode("off"):
        expected = passes("softmax_cross_entropy", cupy.asarray(x), 0.7, (cupy.asarray(labels),), {})
    for f, e in zip(found, expected, strict=True):
        near(f, e, 1e-6)


@pytest.mark.parametrize("strange", [-1, 5, 2**40])
def test_a_label_out_of_range_makes_the_loss_and_its_row_nan(cupy: Any, strange: int) -> None:
    x, labels = cupy.asarray(np.ones((3, 5), "float32")), cupy.asarray(np.array([1, strange, 2]))
    loss, dx = passes("softmax_cross_entropy", x, 1.0, (labels,), {})
    assert np.isnan(loss.get())
    assert np.isnan(dx.get()).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("classes", [5, 1500, 9000])
def test_what_is_not_finite_and_what_is_confident(cupy: Any, classes: int) -> None:
    labels = cupy.asarray(np.zeros(1, int))
    rows = ([np.nan], np.nan), ([np.inf], np.nan), ([0.0, -np.inf], None), ([20.0], None), ([200.0], None)
    for row, wanted in rows:
        x = np.zeros((1, classes), "float32")
        x[0, : len(row)] = row
        with kernels.mode("off"):
            expected = passes("softmax_cross_entropy", cupy.asarray(x), 1.0, (labels,), {})
        loss, dx = passes("softmax_cross_entropy", cupy.asarray(x), 1.0, (labels,), {})
        assert wanted is None or np.isnan(loss.get())
        np.testing.assert_allclose(loss.get(), expected[0].get(), rtol=1e-6)
        np.testing.assert_allclose(dx.get(), expected[1].get(), rtol=1e-6)
