"""Pad's kernels beside the array code, wherever there are kernels: the same bits."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import specs

from . import simt
from .cases.arrays import FORMATS, LAST, any_bits, drawn, gradient, stored
from .cases.pad import PADS
from .implementations import FLOATS, INTEGERS, Impl, agree, numpy_dtype
from .reference.pad import MODES

EACH_MODE = pytest.mark.parametrize("mode", MODES)
FLOAT = np.dtype("float32")


@FORMATS
@EACH_MODE
def test_pads_of_every_kind(kernel: Impl, mode: str, data_format: str) -> None:
    rng = np.random.default_rng(MODES.index(mode))
    made, most = 0, 120 if kernel.name == "cpu" else 30
    while made < most:
        lengths = rng.integers(1, 7, rng.integers(1, 4)).tolist()
        padding = [tuple(pair) for pair in rng.integers(-3, 5, (len(lengths), 2)).tolist()]
        samples, channels = rng.integers(1, 4, 2).tolist()
        shape = (samples, channels, *lengths) if data_format == "channels_first" else (samples, *lengths, channels)
        try:
            specs.pad_spec(shape, padding, mode, data_format)
        except ValueError:  # wider than a period, or more cropped than there is
            continue
        made += 1
        kind = numpy_dtype(str(rng.choice([*FLOATS, *INTEGERS, "bool"])))
        x = kernel.array(any_bits(rng, shape, kind))
        if kernel.name == "cpu" and made % 5 == 4:
            x.flags.writeable = False
        before, x = kernel.numpy(x).tobytes(), stored(x, made % 5)
        agree(kernel, "pad", x, padding, mode, dy=partial(gradient, rng, dtype=kind), data_format=data_format)
        assert kernel.numpy(x).tobytes() == before


@pytest.mark.sample(10)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
@EACH_MODE
def test_every_rank_layout_and_dtype(kernel: Impl, mode: str, dtype: str, rng: np.random.Generator) -> None:
    kind = kernel.dtype(dtype)
    for number, (options, shape, pads) in enumerate(PADS):
        x = kernel.array(drawn(rng, shape, kind))
        with kernel.launches(order=simt.ORDERS[number % 3], seed=number):
            value = 3 if mode == "constant" else 0
            agree(kernel, "pad", x, pads, mode, value, dy=partial(drawn, rng, dtype=kind), **options)


@EACH_MODE
def test_every_small_pad_and_crop(kernel: Impl, mode: str, rng: np.random.Generator) -> None:
    x = kernel.array(drawn(rng, (1, 2, 4), FLOAT))
    for pair in np.ndindex(7, 7):
        pads = [(pair[0] - 3, pair[1] - 3)]
        try:
            specs.pad_spec((1, 2, 4), pads, mode, "channels_first")
        except ValueError:
            continue
        agree(kernel, "pad", x, pads, mode, dy=partial(drawn, rng, dtype=FLOAT))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", -0.0),
        ("float64", np.nan),
        ("float64", -0.0),
        ("float16", 65504),
        ("float16", np.nan),
        ("uint64", 2**64 - 1),
        ("int64", -(2**63)),
        ("int8", -128),
        ("bool", True),
    ],
)
def test_a_fill_value_comes_through_in_its_own_bits(kernel: Impl, dtype: str, value: Any) -> None:
    for length in (0, 5):  # of an axis without cells y is the fill value alone
        agree(kernel, "pad", kernel.array(np.ones((2, 3, length, 4), dtype)), ((1, 2), (-1, 3)), value=value)


@EACH_MODE
def test_pads_of_nothing(kernel: Impl, mode: str) -> None:
    for shape, pads in [
        ((0, 3, 4, 5), ((1, 2), (-1, 0))),
        ((2, 0, 4, 5), ((1, 2), (-1, 0))),
        ((2, 3, 4), ((-2, -2),)),  # every cell is cropped: zeros
        ((2, 3, 4, 4), ((-2, -2), (1, 1))),
        ((2, 3, 4, 4), ((-4, 0), (0, 0))) if mode in ("constant", "edge") else ((2, 3, 4), 0),
    ]:
        agree(kernel, "pad", kernel.array(np.ones(shape, "float32")), pads, mode)


@EACH_MODE
@pytest.mark.parametrize("options", [{}, LAST], ids=["first", "last"])
def test_arrays_on_no_boundary_of_a_pack(kernel: Impl, mode: str, options: Any, rng: np.random.Generator) -> None:
    flat = kernel.array(drawn(rng, (961,), FLOAT))
    for start in range(4):
        agree(kernel, "pad", flat[start : start + 640].reshape(2, 4, 5, 16), 2, mode, **options)


def test_a_lone_gradient_moves_untouched(kernel: Impl) -> None:  # NaN payloads too, which a conversion would lose
    bits = np.arange(0x7C01, 0x7C41, dtype=np.uint16).reshape(1, 1, 8, 8)
    for mode, pads in (("constant", 1), ("edge", ((0, 0), (0, 1))), ("reflect", ((0, 0), (1, 0)))):
        y, ctx = F.pad_forward(kernel.array(bits.view(np.float16)), pads, mode)
        dx = kernel.numpy(F.pad_backward(y, ctx)).view(np.uint16)
        assert np.array_equal(dx[..., 2:7], bits[..., 2:7])
