"""What the tests of the norms' kernels share: calls that take every way over a device, and devices to take them on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.backends import PLANS
from cnnlayers.kernels.cuda import norm_plan

from .. import standin_cuda
from ..implementations import numpy_dtype

TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 3e-6, "float64": 1e-11}


@dataclass(frozen=True)
class Call:
    """A norm of an array on a device: what the forward and the backward are to launch there.

    threads: of the largest block, where fewer than a device's let a small array overflow it.
    """

    op: str
    shape: tuple[int, ...]
    forward: str
    backward: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    device: dict[str, int] = field(default_factory=dict)
    threads: int = 64

    @property
    def parameter(self) -> tuple[int, ...]:
        if self.op in ("layer_norm", "rms_norm"):
            return tuple(self.args[0])
        return (self.shape[-1 if self.options.get("data_format") == "channels_last" else 1],)

    def both(self, array: Any, x: np.ndarray, dy: np.ndarray, parameters: Any, **options: Any) -> list[Any]:
        """y, dx, dgamma and dbeta; `array` makes the arrays."""
        given = [None if p is None else array(p) for p in parameters[: 1 if self.op == "rms_norm" else 2]]
        y, ctx = getattr(F, f"{self.op}_forward")(array(x), *self.args, *given, **self.options | options)
        return [y, *getattr(F, f"{self.op}_backward")(array(dy), ctx)]


LAST = {"data_format": "channels_last"}
TRAIN = {"training": True}
TIGHT = {"MaxSharedMemoryPerBlockOptin": 2048}
SNUG = {"MaxSharedMemoryPerBlockOptin": 10_000}
ALONE = TIGHT | {"CooperativeLaunch": 0, "L2CacheSize": 40_000}
CALLS = {
    "batch in lanes": Call("batch_norm", (3, 5, 2, 4), "norm_forward", "norm_backward", options=TRAIN),
    "batch in blocks": Call("batch_norm", (3, 5, 9, 8), "norm_forward", "norm_backward", options=TRAIN),
    "batch in shared memory": Call("batch_norm", (4, 3, 32, 24), "norm_forward", "norm_backward", options=TRAIN),
    "batch in a grid": Call(
        "batch_norm", (5, 2, 24, 24), "cooperative_forward", "cooperative_backward", options=TRAIN, device=TIGHT
    ),
    "batch in turns": Call(
        "batch_norm",
        (3, 5, 28, 28),
        "cooperative_forward",
        "cooperative_backward",
        options=TRAIN,
        device=TIGHT | {"MultiProcessorCount": 8},
    ),
    "batch in two launches": Call(
        "batch_norm",
        (3, 4, 28, 28),
        "norm_moments norm_apply",
        "norm_sums norm_backward_apply",
        options=TRAIN,
        device=ALONE,
    ),
    "batch flat": Call("batch_norm", (37, 12), "channels_last_forward", "channels_last_backward", options=TRAIN),
    "batch last in a grid": Call(
        "batch_norm",
        (4, 14, 14, 12),
        "cooperative_channels_last_forward",
        "cooperative_channels_last_backward",
        options=TRAIN | LAST,
        device=SNUG,
    ),
    "batch last in turns": Call(
        "batch_norm",
        (4, 9, 9, 200),
        "cooperative_channels_last_forward",
        "cooperative_channels_last_backward",
        options=TRAIN | LAST,
        device=SNUG,
    ),
    "batch last in three launches": Call(
        "batch_norm",
        (4, 14, 14, 20),
        "channels_last_moments channels_last_finish channels_last_apply",
        "channels_last_sums channels_last_backward_finish channels_last_backward_apply",
        options=TRAIN | LAST,
        device=ALONE,
    ),
    "instance": Call("instance_norm", (3, 4, 6, 8), "norm_forward", "norm_backward parameter_gradients"),
    "instance last": Call(
        "instance_norm",
        (3, 6, 8, 4),
        "channels_last_forward",
        "channels_last_backward parameter_gradients",
        options=LAST,
    ),
    "group": Call("group_norm", (3, 6, 7, 7), "norm_forward", "group_norm_backward parameter_gradients", (2,)),
    "group in shared memory": Call(
        "group_norm", (3, 6, 20, 20), "norm_forward", "group_norm_backward parameter_gradients", (3,)
    ),
    "group in two launches": Call(
        "group_norm",
        (2, 6, 28, 28),
        "norm_moments norm_apply",
        "norm_sums norm_backward_apply parameter_gradients",
        (2,),
        device=ALONE,
    ),
    "group last": Call(
        "group_norm",
        (2, 6, 8, 12),
        "channels_last_moments channels_last_finish channels_last_apply",
        "channels_last_sums channels_last_backward_finish channels_last_backward_apply parameter_gradients",
        (4,),
        options=LAST,
    ),
    "layer in lanes": Call(
        "layer_norm", (37, 24), "norm_forward", "layer_norm_backward reduce_parameter_gradients", ((24,),)
    ),
    "layer in blocks": Call(
        "layer_norm", (9, 9, 104), "norm_forward", "layer_norm_backward reduce_parameter_gradients", ((9, 104),)
    ),
    "layer in two launches": Call(
        "layer_norm", (5, 2200), "norm_forward", "layer_norm_sums layer_norm_apply", ((2200,),)
    ),
    "rms": Call(
        "rms_norm", (21, 40), "norm_forward", "layer_norm_backward reduce_parameter_gradients", ((40,),), {"eps": 1e-5}
    ),
    "rms in a grid": Call(
        "rms_norm",
        (2, 2400),
        "cooperative_forward",
        "layer_norm_sums layer_norm_apply",
        ((2400,),),
        {"eps": 1e-5},
        device=TIGHT,
    ),
}
EACH_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
SOME = ["batch in shared memory", "batch in a grid", "batch in two launches", "batch last in a grid", "layer in blocks"]
SOME_CALLS = pytest.mark.parametrize("call", [CALLS[name] for name in SOME], ids=SOME)


@contextlib.contextmanager
def device(
    attributes: dict[str, int] | None = None, threads: int = norm_plan.THREADS, **emulation: Any
) -> Iterator[list[standin_cuda.Launch]]:
    """A device with these attributes, whose blocks have so many threads at most. Gives the launches made there."""
    norm_plan._device.cache_clear()
    with pytest.MonkeyPatch.context() as patch, standin_cuda.emulating(attributes=attributes, **emulation) as made:
        patch.setattr(norm_plan, "THREADS", threads)
        PLANS.clear()  # of blocks of other sizes
        yield made
    norm_plan._device.cache_clear()
    PLANS.clear()


def names(made: list[standin_cuda.Launch]) -> list[str]:
    """The kernels of launches in their order; those of several turns are told once."""
    return list(dict.fromkeys(launch.name.partition("<")[0] for launch in made))


def drawn(call: Call, rng: np.random.Generator, dtype: str = "float64", mean: float = 2.0) -> list[Any]:
    """x, dy, and gamma and beta."""
    x, dy = (
        rng.normal(mean, 1.5, call.shape).astype(numpy_dtype(dtype)),
        rng.normal(size=call.shape).astype(numpy_dtype(dtype)),
    )
    return [x, dy, [rng.normal(1.0, 0.5, call.parameter).astype("float32") for _ in range(2)]]


def on_device(cupy: Any, call: Call, *arrays: Any, **emulation: Any) -> tuple[list[Any], list[str]]:
    """What the kernels give, on the host, and the kernels that ran."""
    with device(call.device, call.threads, **emulation) as made:
        found = [None if a is None else a.get() for a in call.both(cupy.asarray, *arrays)]
    return found, names(made)


def expected(call: Call, x: np.ndarray, dy: np.ndarray, parameters: list[np.ndarray]) -> list[Any]:
    """The portable code's, in float64."""
    with kernels.mode("off"):
        return call.both(lambda a: np.asarray(a, np.float64), x, dy, parameters)


def check(found: list[Any], wanted: list[Any], dtype: str, scale: float = 1.0) -> None:
    for i, (f, w) in enumerate(zip(found, wanted, strict=True)):
        rounded = i < 2  # y and dx have x's dtype, gradients of parameters float32
        assert f.dtype == (numpy_dtype(dtype) if rounded else np.float32)
        tolerance = scale * max(TOLERANCE[dtype] if rounded else 0.0, TOLERANCE["float32"])
        tolerance = scale * TOLERANCE[dtype] if rounded and dtype == "float64" else tolerance
        np.testing.assert_allclose(f.astype(np.float64), w, rtol=tolerance, atol=tolerance * max(1.0, np.abs(w).max()))
