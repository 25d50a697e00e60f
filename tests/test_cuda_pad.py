"""pad.cu on the emulator: views, the number of launches, and what is refused. Its answers: test_pad_kernels.py."""

from __future__ import annotations

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import specs
from cnnlayers.kernels.cuda import pad as launchers

from . import standin_cuda
from .cases.arrays import drawn
from .cases.pad import PADS
from .implementations import Impl, agree, on_emulator
from .reference.pad import MODES

pytestmark = on_emulator


@pytest.mark.parametrize("mode", MODES)
def test_views(emulator: Impl, mode: str, rng: np.random.Generator) -> None:
    base = emulator.array(drawn(rng, (6, 8, 10, 12), np.dtype("float32")))
    for view in (base.transpose(3, 1, 2, 0), base[::-1, ::2, :, ::-3], base[1:, :, 2:, 1:]):
        agree(emulator, "pad", view, 1, mode)


@pytest.mark.parametrize("mode", MODES)
def test_one_launch_a_pass_and_none_for_an_empty_result(emulator: Impl, mode: str) -> None:
    nothing = [({}, (0, 3, 4, 4), 1), ({}, (2, 0, 4, 4), 1)]
    for options, shape, pads in (*PADS, *nothing):
        with standin_cuda.emulating() as made:
            y, ctx = F.pad_forward(emulator.array(np.ones(shape, "float32")), pads, mode, **options)
            dx = F.pad_backward(y, ctx)
        assert len(made) == (y.size > 0) + (dx.size > 0), made


def test_axes_too_long_for_the_kernels_are_refused() -> None:
    fits = specs.pad_spec((1, 1, 2**30 - 2), ((1, 0),), "constant", "channels_first")
    long = specs.pad_spec((1, 1, 2**30 - 2), 1, "constant", "channels_first")
    beside = specs.pad_spec((1, 1, 2**30, 4), (0, 1), "constant", "channels_first")
    for op in ("pad_forward", "pad_backward"):
        assert launchers.refuses(op, fits) is None
        assert "1073741824 cells" in str(launchers.refuses(op, long))
        assert launchers.refuses(op, beside) is None  # an axis without padding is none for the kernel
