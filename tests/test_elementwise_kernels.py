"""The kernels of activations, the cross-entropy, local response norm and Lp pooling near the array code, wherever there
are kernels: any length, layout and dtype, numbers that are none."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from .cases.arrays import drawn
from .cases.elementwise import ACTIVATIONS, EACH_CALL, NEAR, SHAPES, SOFTMAX, labels
from .implementations import FLOATS, Impl, agree

EACH_OP = pytest.mark.parametrize(("op", "args", "options"), [*ACTIVATIONS, *SOFTMAX], ids=str)
EACH_FLOAT = pytest.mark.parametrize("dtype", FLOATS)


@pytest.mark.sample(24)
@EACH_FLOAT
@EACH_CALL
def test_every_op(
    kernel: Impl, op: str, shape: Any, args: Any, options: Any, dtype: str, rng: np.random.Generator
) -> None:
    kind = kernel.dtype(dtype)
    if kernel.name == "cpu" and op == "lp_pool" and (dtype == "float64" or options.get("norm_type", 2) > 5):
        pytest.skip("powers that could leave float64's range")
    x = kernel.array((2 * rng.standard_normal(shape)).astype(kind))
    if op == "softmax_cross_entropy":
        x[0, :] = x[0, 0]  # several maxima
    dy = None if op == "softmax_cross_entropy" else rng.standard_normal
    given = [kernel.array(a) for a in labels(op, shape)]
    agree(kernel, op, x, *given, *args, dy=dy, tolerance=NEAR[dtype], **options)


@pytest.mark.sample(12)
@EACH_FLOAT
@EACH_OP
def test_any_length_alignment_and_layout(
    kernel: Impl, op: str, args: Any, options: Any, dtype: str, rng: np.random.Generator
) -> None:
    """Packs of all sizes, the elements behind the last pack, strides, and numbers that are none."""
    kind = kernel.dtype(dtype)
    values = (3 * rng.standard_normal((30, 40))).astype(kind)
    values[0, :6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40 if dtype != "float16" else 6e-8]
    whole = kernel.array(values)
    flat = whole.reshape(-1)
    views = [whole.T, whole[::-1, ::2], *(flat[start:stop] for start, stop in ((1, 38), (2, 2), (4, 11), (8, 1200)))]
    for x in (*views, *(kernel.array((3 * rng.standard_normal(shape)).astype(kind)) for shape in SHAPES)):
        if op == "softmax" and (x.ndim <= args[0] or not x.size):
            continue
        agree(kernel, op, x, *args, dy=partial(drawn, rng, dtype=kind), tolerance=NEAR[dtype], **options)


@EACH_OP
def test_special_numbers(kernel: Impl, op: str, args: Any, options: Any) -> None:
    numbers = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-40, -1e-40, 100.0, -100.0]
    for size in (0, 2, 10):
        x = np.array([[n, *([1.0] * size), m] for n in numbers for m in numbers], "float32")
        agree(kernel, op, kernel.array(x), *args, dy=np.ones, tolerance=1e-6, **options)
