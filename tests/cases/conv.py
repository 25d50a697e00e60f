"""Convolutions: a shape for each form that computes them, with its special cases, and their arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import channels_last

# Of each form on a CPU: x's shape with channels first, filters, kernel, options. The name begins with the form.
FORMS = {
    "winograd": ((6, 50, 11, 12), 52, (3, 3), {"padding": 1}),
    "winograd, groups and uneven padding": ((3, 100, 12, 14), 104, (3, 3), {"padding": ((0, 3), (2, 5)), "groups": 2}),
    "winograd, one row of tiles": ((4, 50, 4, 70), 52, (3, 3), {"padding": 1}),
    "winograd, few filters": ((4, 16, 16, 15), 20, (3, 3), {"padding": 1}),
    "winograd, many chunks": ((9, 70, 30, 33), 72, (3, 3), {}),
    "winograd, bands": ((1, 70, 60, 61), 48, (3, 3), {"padding": (3, 2)}),
    "direct, one row": ((2, 70, 1, 70), 72, (3, 3), {"padding": 1}),
    "direct, large weight": (
        (2, 70, 20, 23),
        72,
        (5, 2),
        {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)},
    ),
    "direct, large weight, one axis": ((2, 150, 157), 160, (3,), {"stride": 2, "padding": 3}),
    "direct, long sums, 7 filters": ((1, 230, 10, 13), 7, (3, 3), {"stride": 2, "padding": 1}),
    "direct, long sums, one filter, last": ((1, 230, 10, 13), 1, (3, 3), {"stride": 2, "padding": 1}),
    "direct, long sums": ((1, 300, 9, 10), 30, (3, 5), {"padding": 1}),
    "direct, long sums, last": ((1, 230, 6, 7), 520, (3, 3), {"padding": 1, "stride": 2}),
    "direct, 1×1": ((3, 40, 6, 7), 30, (1, 1), {}),
    "direct, 1×1, groups": ((3, 60, 6, 7), 64, (1, 1), {"groups": 2}),
    "direct, 1×1, last": ((3, 40, 6, 7), 30, (1, 1), {}),
    "direct, 1×1, last, stride": ((3, 40, 6, 7), 30, (1, 1), {"stride": (2, 3)}),
    "direct": ((3, 5, 13, 12), 7, (3, 2), {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}),
    "direct, groups": ((2, 6, 9, 10), 9, (5, 3), {"padding": 2, "groups": 3}),
    "direct, one axis": ((3, 4, 37), 6, (5,), {"stride": 2, "padding": 3}),
    "direct, three axes": ((2, 3, 5, 6, 7), 4, (2, 3, 2), {"stride": (1, 2, 1), "padding": 1}),
    "direct, tiny maps": ((70, 3, 3, 2), 9, (3, 3), {"padding": 1}),
    "direct, one cell": ((2, 48, 1, 1), 48, (3, 3), {"padding": 1}),
    "direct, small maps": ((5, 50, 7, 5), 60, (3, 3), {"padding": 1}),
    "direct, small maps, stride": ((3, 70, 6, 7), 72, (5, 2), {"stride": (2, 1), "padding": ((1, 0), (2, 1))}),
    "direct, small maps, groups": ((2, 128, 3, 3), 98, (3, 3), {"padding": 1, "groups": 2}),
    "direct, bands": ((1, 6, 150, 170), 5, (3, 3), {"padding": 1, "stride": 2}),
    "direct, bands of one axis": ((1, 16, 9000), 3, (9,), {"padding": (5,), "dilation": 3}),
    "depthwise, three axes": ((2, 3, 5, 9, 7), 6, (2, 3, 3), {"padding": 1, "stride": (1, 3, 2), "groups": 3}),
    "1×1": ((3, 8, 40, 41), 8, (1, 1), {}),
    "direct, small 1×1": ((3, 5, 6, 7), 8, (1, 1), {}),
    "depthwise, 32 channels": ((3, 32, 11, 13), 32, (3, 3), {"padding": 1, "groups": 32}),
    "depthwise, 16 channels, cells apart": ((3, 16, 11, 13), 16, (3, 1), {"stride": 2, "groups": 16}),
    "depthwise": ((3, 6, 11, 13), 6, (3, 3), {"padding": 1, "groups": 6}),
    "depthwise, stride": ((2, 4, 12, 11), 8, (3, 5), {"stride": (2, 3), "padding": (1, 3), "groups": 4}),
    "depthwise, dilation": ((2, 3, 14, 9), 3, (4, 3), {"padding": ((5, 0), (2, 4)), "dilation": (3, 2), "groups": 3}),
    "depthwise, one axis": ((2, 3, 20), 6, (4,), {"padding": 1, "groups": 3}),
    "depthwise, long rows": ((1, 3, 5, 300), 6, (3, 2), {"padding": 1, "stride": (1, 2), "groups": 3}),
    "depthwise, one long axis": ((2, 2, 501), 2, (5,), {"padding": 1, "stride": 3, "groups": 2}),
    "depthwise, one long axis, pairs": ((2, 2, 333), 4, (4,), {"padding": 3, "stride": 2, "groups": 2}),
    "depthwise, more padding than kernel": ((1, 2, 4, 4), 2, (2, 2), {"padding": 4, "groups": 2}),
    "depthwise, bands": ((1, 2, 90, 100), 2, (7, 7), {"padding": 3, "groups": 2, "stride": (3, 1)}),
    "direct, last": ((3, 20, 13, 12), 9, (3, 2), {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}),
    "direct, last, three filters": ((2, 20, 9, 10), 3, (3, 3), {"padding": 1}),
    "direct, last, 40 filters": ((2, 33, 9, 10), 40, (3, 3), {"padding": 1}),
    "direct, last, groups": ((2, 36, 9, 10), 18, (3, 3), {"padding": 1, "groups": 2}),
    "direct, last, one axis": ((3, 12, 37), 20, (5,), {"stride": 2, "padding": 3}),
    "direct, last, three axes": ((2, 10, 5, 6, 7), 20, (2, 3, 2), {"stride": (1, 2, 1), "padding": 1}),
    "direct, last, bands": ((1, 8, 150, 170), 16, (3, 3), {"padding": 1, "stride": 2}),
    "depthwise, last": ((3, 40, 11, 13), 40, (3, 3), {"padding": 1, "groups": 40}),
    "depthwise, last, stride": ((2, 20, 12, 11), 20, (3, 5), {"stride": (2, 3), "padding": (1, 3), "groups": 20}),
}
# Of columns on a GPU, with channels last in runs and not: x's shape, kernel, stride, padding, dilation, groups, format.
COLUMNS = {
    "1-d": ((2, 4, 37), (5,), 2, 3, 2, 2, "channels_first"),
    "2-d": ((2, 3, 9, 11), (3, 3), 1, 1, 1, 1, "channels_first"),
    "one sided": ((2, 4, 9, 12), (2, 5), (2, 1), ((0, 3), (4, 0)), (3, 1), 2, "channels_first"),
    "narrow": ((3, 2, 7, 3), (4, 2), 3, 3, 1, 1, "channels_first"),
    "3-d": ((2, 2, 5, 6, 7), (2, 3, 3), (2, 1, 1), (1, 0, 2), 1, 1, "channels_first"),
    "last": ((2, 9, 8, 6), (3, 2), 2, 1, 2, 2, "channels_last"),
    "runs": ((2, 7, 6, 32), (3, 3), 1, 1, 1, 2, "channels_last"),
    "odd runs": ((2, 5, 6, 17), (2, 3), 2, 2, 1, 1, "channels_last"),
    "even runs": ((1, 3, 5, 4, 18), (2, 2, 2), 1, 1, 2, 1, "channels_last"),
}


def arrays_of(form: str, dtype: Any = "float32", seed: int = 0) -> tuple[list[np.ndarray], dict[str, Any]]:
    shape, filters, kernel, options = FORMS[form]
    rng = np.random.default_rng(seed)
    weight = (filters, shape[1] // options.get("groups", 1), *kernel)
    x, *parameters = (rng.standard_normal(s).astype(dtype) for s in (shape, weight, (filters,)))
    if ", last" in form:
        x, options = channels_last(x), options | {"data_format": "channels_last"}
    return [x, *parameters], options
