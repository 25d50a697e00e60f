"""The norms' kernels beside the array code in float64, wherever there are kernels: every memory layout of the CPU's,
every way over a device of the GPU's. test_norm.py runs through the same launchers, on arrays so small that one way
serves them all; here arrays are cut into many pieces and devices shrink until every way is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F

from . import portable
from .cases.arrays import FORMATS, LAST, ordered
from .cases.norm import CALLS, LAYOUTS, MODES, SOME, TOLERANCE, TRAIN, Call, Case, check
from .implementations import Impl, agree, names

EVERY = {**LAYOUTS, **CALLS}
EACH_CASE = pytest.mark.parametrize("case", EVERY.values(), ids=list(EVERY))


def found(kernel: Impl, case: Case, *arrays: Any, modes: Any = MODES[:1]) -> Iterator[list[Any]]:
    """What the kernels give in each of the case's settings, on the host. Those of CUDA are the ones that it names."""
    for setting in case.on(kernel):
        with setting as made:
            for of in modes:
                results = case.both(kernel.array, *arrays, modes=of)
                if of == MODES[0] and made and isinstance(case, Call) and arrays[0].dtype == np.float32:
                    assert names(made) == " ".join(case.launches).split()
                yield [None if a is None else kernel.numpy(a) for a in results]


@EACH_CASE
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float32", marks=pytest.mark.sample(len(EVERY))),
        *(pytest.param(dtype, marks=pytest.mark.sample(12)) for dtype in ("float16", "bfloat16", "float64")),
    ],
)
def test_every_layout_and_way(kernel: Impl, case: Case, dtype: str, rng: np.random.Generator) -> None:
    """Forward and backward, whose contexts the array code takes and gives."""
    kernel.dtype(dtype)
    arrays = case.drawn(rng, dtype)
    exact = case.exact(*arrays)
    for results in found(kernel, case, *arrays, modes=MODES):
        check(results, exact, dtype, scale=2.0 if kernel.name == "cpu" else 1.0)


@pytest.mark.sample(len(EVERY))
@EACH_CASE
def test_stays_right_at_a_large_mean(kernel: Impl, case: Case, rng: np.random.Generator) -> None:
    """The mean is 1e6 times the standard deviation; float32 holds x to a sixteenth."""
    if "running_mean" in case.options:
        pytest.skip("the mean is not the array's")
    arrays = case.drawn(rng, "float32", 1e6)
    for results in found(kernel, case, *arrays):
        check(results, case.exact(*arrays), "float32", scale=7.0 if kernel.name == "cpu" else 4.0)


@pytest.mark.sample(len(EVERY))
@EACH_CASE
@pytest.mark.filterwarnings("ignore:invalid value")  # the difference of infinities
def test_what_is_not_finite_stays_in_its_row(kernel: Impl, case: Case, rng: np.random.Generator) -> None:
    """At the beginning of the first row and at the end of the last; of an infinity RMS norm makes zeros."""
    for bad in (np.nan, np.inf) if isinstance(case, Call) or kernel.name == "cpu" else (np.nan,):
        x, dy, parameters = case.drawn(rng, "float32")
        x.reshape(-1)[[0, -1]] = bad
        exact = case.exact(x, dy, parameters)
        for results in found(kernel, case, x, dy, parameters):
            assert np.isnan(results[0]).any() or "running_mean" in case.options
            for f, e in zip(results, exact, strict=True):
                np.testing.assert_allclose(
                    f, e, rtol=1e-4, atol=1e-4 * np.max(np.abs(e), where=np.isfinite(e), initial=1)
                )


LARGEST = [
    Case("batch_norm", (3, 4, 5, 5), options=TRAIN),
    Case("batch_norm", (2, 17, 2501), options=TRAIN),
    Case("batch_norm", (6, 8), options=TRAIN),
    Case("batch_norm", (3, 9, 9, 20), options=TRAIN | LAST),
    Case("group_norm", (3, 4, 5, 5), (2,)),
    Case("group_norm", (3, 9, 9, 20), (5,), LAST),
    Case("instance_norm", (3, 4, 5, 5)),
    Case("layer_norm", (6, 70), (70,)),
    *(CALLS[name] for name in SOME),
]


@pytest.mark.sample(8)
@pytest.mark.parametrize("case", LARGEST, ids=str)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_numbers_near_the_largest_give_no_nan(kernel: Impl, case: Case, rng: np.random.Generator) -> None:
    """Their sum overflows, their mean does not. Their variance does in the float32 of CUDA kernels, unless it is 0."""
    ones = [np.ones(case.parameter, "float32"), None]
    x = rng.normal(size=case.shape)
    for values in (np.full_like(x, 3e38), x / np.abs(x).max() * 3e38)[: 2 if kernel.name == "cpu" else 1]:
        values = values.astype("float32")
        values.reshape(-1)[0] = np.nan
        expected = np.isnan(case.exact(values, values, ones)[0])
        for y, *_ in found(kernel, case, values, np.ones_like(values), ones):
            assert 0 < np.isnan(y).sum() < y.size
            np.testing.assert_array_equal(np.isnan(y), expected)


# ----------------------------------------------------------------------------------------------------- batch norm's own
FOLLOWED = {
    "a plane": Case("batch_norm", (4, 6, 5, 4), options=TRAIN),
    "flat": Case("batch_norm", (20, 6), options=TRAIN),
} | {
    name: CALLS[name]
    for name in ("batch in blocks", "batch in two launches", "batch last", "batch last in three launches")
}


@pytest.mark.sample(12)
@pytest.mark.parametrize("case", FOLLOWED.values(), ids=list(FOLLOWED))
@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics_follow_in_the_same_launch(
    kernel: Impl, case: Case, unbiased: bool, rng: np.random.Generator
) -> None:
    x, _, parameters = case.drawn(rng, "float32")
    options = case.options | {"momentum": 0.3, "unbiased": unbiased}
    for dtypes in (("float32", "float32"), ("float64", "float16")):
        wanted = [rng.normal(1.0, 0.2, case.parameter).astype(dtype) for dtype in dtypes]
        running = [kernel.writable(np.repeat(a, 2))[::2] for a in wanted]  # with gaps
        for setting in case.on(kernel)[:1]:
            with setting as made:
                F.batch_norm(kernel.array(x), *map(kernel.array, parameters), *running, **options)
        assert kernel.name != "standin" or not isinstance(case, Call) or names(made) == case.launches[0].split()
        portable.batch_norm(x.astype("float64"), *parameters, *wanted, **options)
        for got, w, dtype in zip(running, wanted, dtypes, strict=True):
            kernel.close(got, w, rtol=1e-3 if dtype == "float16" else 1e-6)


@FORMATS
@pytest.mark.parametrize("given", [(1, 1), (0, 1), (0, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_evaluation(kernel: Impl, data_format: str, given: Any, dtype: str, rng: np.random.Generator) -> None:
    x, dy = (ordered(rng.normal(1e3 if dtype == "float32" else 1.0, 1.0, (3, 5, 6, 8)), data_format) for _ in range(2))
    parameters = [rng.normal(1.0, 0.5, 5).astype("float32") if keep else None for keep in given]
    running = {"running_mean": rng.normal(float(x.mean()), 0.5, 5), "running_var": rng.uniform(0.5, 2.0, 5)}
    case = Case(
        "batch_norm", x.shape, options=running | {"data_format": data_format}
    )  # float64: they keep their digits
    x, dy = x.astype(dtype), dy.astype(dtype)
    for results in found(kernel, case, x, dy, parameters):
        for f, w in zip(results, case.exact(x, dy, parameters), strict=True):
            assert (f is None) == (w is None)
            if f is not None:
                tolerance = TOLERANCE[dtype]
                np.testing.assert_allclose(f.astype(float), w, rtol=tolerance, atol=tolerance * np.abs(w).max())


# ---------------------------------------------------------------------------------------------------------- any arrays
@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "layer_norm"])
def test_strides_and_offsets(kernel: Impl, op: str, rng: np.random.Generator) -> None:
    """Views that are not in C order, and such as begin between packs."""
    args = {"group_norm": (2,), "layer_norm": (8,)}.get(op, ())
    options = TRAIN if op == "batch_norm" else {}
    flat = kernel.array(rng.normal(size=1200).astype("float32"))
    views = [
        flat[:768].reshape(8, 4, 6, 4).transpose(3, 1, 2, 0),
        flat[:768].reshape(4, 4, 6, 8)[::-1, :, ::-1],
        *(flat[start : start + 768].reshape(4, 4, 6, 8) for start in (1, 2, 4)),
    ]
    gammas = kernel.array(np.ones(18, "float32"))
    for x in views:
        gamma = gammas[1:9] if op == "layer_norm" else gammas[: 2 * x.shape[1] : 2]
        agree(kernel, op, x, *args, gamma, None, tolerance=1e-5, **options)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"])
def test_nothing_is_launched_for_nothing(kernel: Impl, op: str, shape: tuple[int, ...]) -> None:
    args = {"group_norm": (2,), "layer_norm": (shape[2],), "rms_norm": (shape[2],)}.get(op, ())
    gamma = kernel.array(np.ones(shape[2] if "layer" in op or "rms" in op else shape[1], "float32"))
    assert agree(kernel, op, kernel.array(np.ones(shape, "float16")), *args, gamma, saved=False) == []
