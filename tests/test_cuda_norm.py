"""The norms' CUDA kernels on the emulator: the order of threads, launches, and what is refused.

Their answers: test_norm_kernels.py. test_cuda_norm_plan.py has the ways over a device, and what they move.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.kernels.cuda import layer_norm_backward, norm_forward

from . import standin_cuda
from .cases.norm import CALLS, EACH_CALL, LAST, TRAIN, Call, check, on_device
from .implementations import on_emulator

pytestmark = on_emulator


# ------------------------------------------------------------------------------------------------- ways, dtypes, orders
@EACH_CALL
def test_the_same_bits_in_any_order_of_threads(cupy: Any, call: Call, rng: np.random.Generator) -> None:
    arrays, bits = call.drawn(rng, "float32"), set()
    for order, seed in (("ascending", 1), ("descending", 1), ("random", 1), ("random", 2)):
        found, _ = on_device(cupy, call, *arrays, order=order, seed=seed)
        bits.add(b"".join(f.tobytes() for f in found if f is not None))
    assert len(bits) == 1


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["batch in two launches", "group", "batch last in three launches", "layer in blocks"])
@pytest.mark.usefixtures("wide_offsets")
def test_64_bit_offsets(cupy: Any, name: str, rng: np.random.Generator) -> None:
    call, arrays = CALLS[name], CALLS[name].drawn(rng, "float32")
    check(on_device(cupy, call, *arrays)[0], call.exact(*arrays), "float32")


# ----------------------------------------------------------------------------------------------------- batch norm's own
def test_running_statistics_that_are_not_contiguous(cupy: Any, rng: np.random.Generator) -> None:
    x, base = rng.normal(size=(4, 3, 5)).astype("float32"), cupy.asarray(np.ones((3, 2), "float32"))
    F.batch_norm(cupy.asarray(x), None, None, base[:, 0], base[:, 1], training=True, momentum=1.0)
    np.testing.assert_allclose(base.get()[:, 0], x.mean(axis=(0, 2)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(base.get()[:, 1], x.var(axis=(0, 2), ddof=1), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- any arrays
def test_gradients_that_nobody_wants_cost_no_launch(cupy: Any) -> None:
    x = cupy.asarray(np.ones((2, 4, 8), "float32"))
    for op, args in (("group_norm", (2,)), ("instance_norm", ()), ("layer_norm", (8,))):
        _, ctx = getattr(F, f"{op}_forward")(x, *args)
        with standin_cuda.emulating() as made:
            _, dgamma, dbeta = getattr(F, f"{op}_backward")(x, ctx)
        assert (len(made), dgamma, dbeta) == (1, None, None)


@pytest.mark.parametrize(
    ("op", "args", "options"),
    [
        ("batch_norm", (), TRAIN),
        ("batch_norm", (), TRAIN | LAST),
        ("batch_norm", (), {}),
        ("group_norm", (2,), {}),
        ("layer_norm", (8,), {}),
    ],
)
def test_nothing_waits_for_the_device(cupy: Any, op: str, args: Any, options: Any) -> None:
    """After a warm-up neither a compilation nor a transfer is left: a CUDA graph can hold the calls."""
    rng = np.random.default_rng(0)
    x, parameters = (
        cupy.asarray(rng.normal(size=(2, 8, 4, 8)).astype("float16")),
        [cupy.asarray(np.ones(8, "float32")) for _ in range(2)],
    )
    if op == "batch_norm":
        parameters += [cupy.asarray(np.ones(8, "float32")) for _ in range(2)]
    before = [p.get().tobytes() for p in parameters]
    assert kernels.warmup(getattr(F, op), x, *args, *parameters, **options) >= 2
    assert [p.get().tobytes() for p in parameters] == before
    with standin_cuda.no_host_sync(), standin_cuda.emulating() as made:
        y, ctx = getattr(F, f"{op}_forward")(x, *args, *parameters, **options)
        getattr(F, f"{op}_backward")(y, ctx)
    assert made


class Ranks:
    def allreduce(self, value: Any) -> Any:
        return value


def test_refusals(cupy: Any) -> None:
    x = cupy.asarray(np.ones((2, 3, 4), "float32"))
    with pytest.raises(kernels.KernelUnavailable, match="several ranks"):
        F.batch_norm(x, training=True, comm=Ranks())
    with pytest.raises(kernels.KernelUnavailable, match="eps of 1e-40 is 0 in float32"):
        F.layer_norm(x, 4, eps=1e-40)
    assert F.layer_norm(cupy.asarray(np.ones((2, 3))), 3, eps=1e-40).get().tolist() == [[0.0] * 3] * 2
    with kernels.mode("auto"):
        assert F.layer_norm(x, 4, eps=1e-40).get().tolist() == np.zeros((2, 3, 4)).tolist()


def test_more_rows_than_the_kernels_can_count_are_refused() -> None:
    def spec(shape: tuple[int, ...], last: int) -> Any:
        rows = types.SimpleNamespace(
            shape=shape,
            view=shape,
            axes=(last,),
            parameter_axes=(last,),
            parameter=shape[last:],
            count=shape[last],
            eps=1e-5,
        )
        return types.SimpleNamespace(rows=rows, comm=None)

    x = np.empty(0, "float32")
    assert norm_forward.refuses("layer_norm_forward", spec((2**31 - 1, 4), 1), x) is None
    assert "too many" in str(norm_forward.refuses("layer_norm_forward", spec((2**31, 4), 1), x))
    assert "too many" in str(layer_norm_backward.refuses("layer_norm_backward", spec((1, 2**31), 1), x))
