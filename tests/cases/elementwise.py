"""Activations, dropout, softmax, the cross-entropy, local response norm and Lp pooling, whose kernels take one launch a
pass (Lp pooling above 16 taps two).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .arrays import LAST

NEAR = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 1e-5, "float64": 2e-13}
TRAIN = {"training": True, "rng": 3}
# op, arguments, options
ACTIVATIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("relu", (), {}),
    ("leaky_relu", (0.1,), {}),
    ("gelu", (), {}),
    ("gelu", ("tanh",), {}),
    ("sigmoid", (), {}),
    ("tanh", (), {}),
    ("dropout", (0.3,), TRAIN),
]
SOFTMAX = [("softmax", (axis,), {}) for axis in (-1, 0, 1)]
SHAPES = [(1, 1), (5, 7, 3), (3, 16), (2, 3, 47), (2, 901), (0, 4)]
# op, x's shape, arguments, options
CALLS: list[tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = [
    *((op, (3, 7, 5), args, options) for op, args, options in ACTIVATIONS),
    ("softmax", (9, 10), (-1,), {}),  # lanes of a warp a row
    ("softmax", (3, 700), (-1,), {}),  # a block a row
    ("softmax", (2, 9001), (1,), {}),  # in several turns
    ("softmax", (3, 7, 5), (1,), {}),
    ("softmax", (2, 33, 8, 12), (1,), {}),
    ("softmax", (1, 300, 9), (1,), {}),  # columns in several turns
    ("softmax_cross_entropy", (5, 10), (), {}),
    ("softmax_cross_entropy", (300, 3), (), {}),  # several blocks
    ("softmax_cross_entropy", (3, 1500), (), {}),  # in several turns
    ("softmax_cross_entropy", (3, 9001), (), {}),  # a block a row
    ("softmax_cross_entropy", (3, 33), (), {}),
    ("softmax_cross_entropy", (1, 1), (), {}),
    ("local_response_norm", (2, 9, 4, 3), (5,), {"alpha": 0.5}),
    ("local_response_norm", (2, 9), (4,), {"alpha": 0.5, "k": 2.0}),
    ("local_response_norm", (2, 3, 70), (3,), {"alpha": 0.5, **LAST}),  # more channels than a run has
    ("local_response_norm", (1, 80, 2), (70,), {"alpha": 0.5, "beta": 0.6}),
    ("local_response_norm", (2, 3, 4), (1000,), {"alpha": 0.5}),
    ("lp_pool", (2, 3, 9, 8), (2,), {}),
    ("lp_pool", (2, 3, 9, 8), (3,), {"norm_type": 1.0, "stride": 2, "padding": 1}),
    ("lp_pool", (2, 3, 9, 8), (3,), {"norm_type": 3.0, "stride": 1}),
    ("lp_pool", (2, 9, 8, 3), (2,), {"norm_type": 1.5, "stride": 3, **LAST}),  # gaps between windows
    ("lp_pool", (2, 3, 11), (3,), {"norm_type": 9.0, "dilation": 2}),
    ("lp_pool", (2, 3, 4, 5, 4), (2,), {"norm_type": 0.5, "ceil_mode": True}),
    ("lp_pool", (2, 3, 6, 7), ((6, 7),), {}),  # a warp a window
    ("lp_pool", (2, 3, 6, 7), ((6, 7),), {"norm_type": 7.0}),
]
EACH_CALL = pytest.mark.parametrize(("op", "shape", "args", "options"), CALLS)


def labels(op: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    """What the cross-entropy takes besides x."""
    return [np.random.default_rng(1).integers(0, shape[1], shape[0])] if op == "softmax_cross_entropy" else []
