"""Norms: cases that take every memory layout and every way over a device, their arrays, and the devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.backends import PLANS
from cnnlayers.kernels.cuda import norm_plan

from .. import standin_cuda
from ..implementations import Impl, names, numpy_dtype
from ..reference import norm as reference
from .arrays import LAST

TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 3e-6, "float64": 1e-11}
MODES = [("require", "require"), ("require", "off"), ("off", "require")]  # of forward and of backward


@dataclass(frozen=True)
class Case:
    """A norm of an array of a shape: its arguments after x, and its options."""

    op: str
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op} {self.shape} {' '.join(self.options)}"

    @property
    def parameter(self) -> tuple[int, ...]:
        """The shape of gamma."""
        if self.op in ("layer_norm", "rms_norm"):
            return tuple(map(int, np.atleast_1d(self.args[0])))
        return (self.shape[-1 if self.options.get("data_format") == "channels_last" else 1],)

    def parameters(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Gamma, and beta but for RMS norm."""
        return [rng.normal(1.0, 0.5, self.parameter) for _ in range(1 if self.op == "rms_norm" else 2)]

    def drawn(self, rng: np.random.Generator, dtype: str = "float64", mean: float = 2.0) -> list[Any]:
        """x, dy, and the parameters in float32."""
        x, dy = rng.normal(mean, 1.5, self.shape), rng.normal(size=self.shape)
        arrays = [a.astype(numpy_dtype(dtype)) for a in (x, dy)]
        return [*arrays, [p.astype("float32") for p in self.parameters(rng)]]

    def forward(self, x: Any, *parameters: Any, **options: Any) -> tuple[Any, Any]:
        return getattr(F, f"{self.op}_forward")(x, *self.args, *parameters, **self.options | options)

    def inference(self, x: Any, *parameters: Any, **options: Any) -> Any:
        return getattr(F, self.op)(x, *self.args, *parameters, **self.options | options)

    def backward(self, dy: Any, ctx: Any) -> tuple[Any, ...]:
        return getattr(F, f"{self.op}_backward")(dy, ctx)

    def both(
        self,
        array: Callable[[Any], Any],
        x: Any,
        dy: Any,
        parameters: Any,
        modes: tuple[str, str] = MODES[0],
    ) -> list[Any]:
        """y, dx, dgamma and dbeta; `array` makes the arrays, `modes` are those of forward and of backward."""
        given = [None if p is None else array(p) for p in parameters]
        options = {key: array(v) if isinstance(v, np.ndarray) else v for key, v in self.options.items()}
        with kernels.mode(modes[0]):
            y, ctx = self.forward(array(x), *given, **options)
        with kernels.mode(modes[1]):
            return [y, *self.backward(array(dy), ctx)]

    def reference(self, *parameters: Any, eps: float = 1e-5) -> reference.Norm:
        """The loops."""
        kind = {"batch_norm": "batch", "instance_norm": "instance", "group_norm": "group"}.get(self.op, "trailing")
        size = self.args[0] if kind == "group" else len(self.parameter)
        beta = parameters[1] if len(parameters) > 1 else None
        rows = reference.rows_of(kind, self.shape, size)
        return reference.Norm(rows, parameters[0], beta, eps, centred=self.op != "rms_norm")

    def exact(self, x: Any, dy: Any, parameters: Any) -> list[Any]:
        """The array code's, in float64."""
        with np.errstate(all="ignore"):  # infinities, and numbers near the largest
            return self.both(lambda a: np.asarray(a, np.float64), x, dy, parameters, ("off", "off"))

    def on(self, kernel: Impl) -> list[contextlib.AbstractContextManager[Any]]:
        """The settings that it is to run in there."""
        if kernel.name != "cpu":
            return [contextlib.nullcontext([])] if kernel.name == "gpu" else [device()]
        return [contextlib.nullcontext([]), many_pieces()]


@dataclass(frozen=True)
class Call(Case):
    """A case on a device: what the forward and the backward are to launch there.

    threads: of the largest block, where fewer than a device's let a small array overflow it.
    """

    launches: tuple[str, str] = ("", "")
    device: dict[str, int] = field(default_factory=dict)
    threads: int = 64

    def on(self, kernel: Impl) -> list[contextlib.AbstractContextManager[Any]]:
        return [device(self.device, self.threads)] if kernel.name == "standin" else super().on(kernel)


TRAIN = {"training": True}
RUNNING = {"running_mean": np.full(6, 0.5), "running_var": np.full(6, 2.0)}
# Each memory layout of the CPU kernels.
LAYOUTS = {
    "segments": Case("batch_norm", (3, 6, 5, 7), options=TRAIN),
    "one segment": Case("batch_norm", (1, 1, 601), options=TRAIN),
    "blocks of channels": Case("batch_norm", (3, 19, 5, 7), options=TRAIN),
    "blocks of long segments": Case("batch_norm", (2, 17, 2500), options=TRAIN),
    "runs of many samples": Case("batch_norm", (600, 2, 5, 5), options=TRAIN),
    "short segments": Case("batch_norm", (37, 6, 2), options=TRAIN),
    "columns": Case("batch_norm", (70, 80), options=TRAIN),
    "folded columns": Case("batch_norm", (8, 4, 5, 3), options=TRAIN | LAST),
    "odd columns": Case("batch_norm", (3, 7, 5), options=TRAIN | LAST),
    "running statistics": Case("batch_norm", (3, 6, 5, 7), options=RUNNING),
    "running statistics, channels last": Case("batch_norm", (3, 5, 7, 6), options=RUNNING | LAST),
    "running statistics, no spatial axis": Case("batch_norm", (9, 6), options=RUNNING),
    "cached rows": Case("group_norm", (5, 12, 8, 9), (4,)),
    "few rows": Case("group_norm", (2, 6, 7, 11), (2,)),
    "groups of middling channels": Case("group_norm", (5, 12, 5, 5), (4,)),
    "groups of short channels": Case("group_norm", (20, 6, 3), (2,)),
    "flat groups": Case("group_norm", (3, 8), (2,)),
    "groups of columns": Case("group_norm", (3, 4, 5, 6), (2,), LAST),
    "instances": Case("instance_norm", (4, 6, 5, 5)),
    "short instances": Case("instance_norm", (4, 6, 3)),
    "instances of columns": Case("instance_norm", (4, 5, 6), options=LAST),
    "cells": Case("layer_norm", (9, 5, 1100), (1100,)),
    "cells, not centred": Case("rms_norm", (300, 33), (33,), {"eps": 1e-5}),
}
# Small arrays, for loops.
SMALL = {
    "batch": Case("batch_norm", (4, 3, 2, 3), options=TRAIN),
    "batch flat": Case("batch_norm", (5, 3), options=TRAIN),
    "batch 1-d": Case("batch_norm", (2, 3, 5), options=TRAIN),
    "batch 3-d": Case("batch_norm", (2, 3, 2, 1, 2), options=TRAIN),
    "group": Case("group_norm", (2, 6, 2, 3), (3,)),
    "group of all": Case("group_norm", (2, 4, 3), (1,)),
    "group flat": Case("group_norm", (3, 6), (2,)),
    "group 3-d": Case("group_norm", (2, 4, 1, 2, 2), (2,)),
    "instance": Case("instance_norm", (2, 3, 2, 3)),
    "instance 1-d": Case("instance_norm", (2, 3, 4)),
    "instance 3-d": Case("instance_norm", (1, 3, 2, 2, 2)),
    "layer": Case("layer_norm", (4, 5), (5,)),
    "layer of two axes": Case("layer_norm", (2, 3, 2, 4), ((2, 4),)),
    "layer of all": Case("layer_norm", (6,), ([6],)),
    "layer 6-d": Case("layer_norm", (2, 1, 2, 1, 2, 3), ((2, 3),)),
    "rms": Case("rms_norm", (4, 5), (5,), {"eps": 1e-5}),
    "rms of two axes": Case("rms_norm", (3, 2, 4), ((2, 4),), {"eps": 1e-5}),
}
EACH_LAYOUT = pytest.mark.parametrize("case", LAYOUTS.values(), ids=list(LAYOUTS))

# Each way over a device of the CUDA kernels, and what they launch forward and backward.
CALLS = {
    "batch in lanes": Call("batch_norm", (3, 5, 2, 4), options=TRAIN, launches=("norm_forward", "norm_backward")),
    "batch in blocks": Call("batch_norm", (3, 5, 9, 8), options=TRAIN, launches=("norm_forward", "norm_backward")),
    "batch in two launches": Call(
        "batch_norm",
        (3, 4, 28, 28),
        options=TRAIN,
        launches=("norm_moments norm_apply", "norm_sums norm_backward_apply"),
    ),
    "batch in many parts": Call(
        "batch_norm",
        (5, 2, 61, 60),
        options=TRAIN,
        launches=("norm_moments norm_apply", "norm_sums norm_backward_apply"),
    ),
    "batch flat": Call(
        "batch_norm", (37, 12), options=TRAIN, launches=("channels_last_forward", "channels_last_backward")
    ),
    "batch last": Call(
        "batch_norm",
        (4, 3, 4, 200),
        options=TRAIN | LAST,
        launches=("channels_last_forward", "channels_last_backward"),
    ),
    "batch last in three launches": Call(
        "batch_norm",
        (4, 14, 14, 20),
        options=TRAIN | LAST,
        launches=(
            "channels_last_moments channels_last_finish channels_last_apply",
            "channels_last_sums channels_last_backward_finish channels_last_backward_apply",
        ),
    ),
    "instance": Call("instance_norm", (3, 4, 6, 8), launches=("norm_forward", "norm_backward parameter_gradients")),
    "instance last": Call(
        "instance_norm",
        (3, 6, 8, 4),
        options=LAST,
        launches=("channels_last_forward", "channels_last_backward parameter_gradients"),
    ),
    "group": Call(
        "group_norm", (3, 6, 7, 7), (2,), launches=("norm_forward", "group_norm_backward parameter_gradients")
    ),
    "group in two launches": Call(
        "group_norm",
        (2, 6, 28, 28),
        (2,),
        launches=("norm_moments norm_apply", "norm_sums norm_backward_apply parameter_gradients"),
    ),
    "group last": Call(
        "group_norm",
        (2, 6, 8, 12),
        (4,),
        LAST,
        launches=(
            "channels_last_moments channels_last_finish channels_last_apply",
            "channels_last_sums channels_last_backward_finish channels_last_backward_apply parameter_gradients",
        ),
    ),
    "layer in lanes": Call(
        "layer_norm", (37, 24), ((24,),), launches=("norm_forward", "layer_norm_backward reduce_parameter_gradients")
    ),
    "layer in many blocks": Call(
        "layer_norm",
        (300, 24),
        ((24,),),
        launches=("norm_forward", "layer_norm_backward reduce_parameter_gradients"),
        device={"MultiProcessorCount": 20},
    ),
    "layer in blocks": Call(
        "layer_norm",
        (9, 9, 104),
        ((9, 104),),
        launches=("norm_forward", "layer_norm_backward reduce_parameter_gradients"),
    ),
    "layer in two launches": Call(
        "layer_norm", (5, 2200), ((2200,),), launches=("norm_moments norm_apply", "layer_norm_sums layer_norm_apply")
    ),
    "rms": Call(
        "rms_norm",
        (21, 40),
        ((40,),),
        {"eps": 1e-5},
        launches=("norm_forward", "layer_norm_backward reduce_parameter_gradients"),
    ),
    "rms in two launches": Call(
        "rms_norm",
        (2, 2400),
        ((2400,),),
        {"eps": 1e-5},
        launches=("norm_moments norm_apply", "layer_norm_sums layer_norm_apply"),
    ),
}
EACH_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
SOME = ["batch in blocks", "batch in two launches", "batch last", "batch last in three launches", "layer in blocks"]
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


@contextlib.contextmanager
def many_pieces() -> Iterator[list[Any]]:
    """The CPU kernels cut every array into many pieces and chunks."""
    from cnnlayers.kernels.cpu import norm_layout, parallel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_layout, "PIECE_BYTES", 64)
        patch.setattr(norm_layout, "CACHED_ROW_BYTES", 300)
        patch.setattr(norm_layout, "MAX_LINE_CELLS", 0)
        patch.setattr(parallel, "CHUNK_BYTES", 500)
        yield []


def on_device(cupy: Any, call: Call, *arrays: Any, **emulation: Any) -> tuple[list[Any], list[str]]:
    """What the kernels give, on the host, and the kernels that ran."""
    with device(call.device, call.threads, **emulation) as made:
        found = [None if a is None else a.get() for a in call.both(cupy.asarray, *arrays)]
    return found, names(made)


def check(found: list[Any], wanted: list[Any], dtype: str, scale: float = 1.0) -> None:
    for i, (f, w) in enumerate(zip(found, wanted, strict=True)):
        rounded = i < 2  # y and dx have x's dtype, gradients of parameters float32
        assert f.dtype == (numpy_dtype(dtype) if rounded else np.float32)
        tolerance = scale * max(TOLERANCE[dtype] if rounded else 0.0, TOLERANCE["float32"])
        tolerance = scale * TOLERANCE[dtype] if rounded and dtype == "float64" else tolerance
        np.testing.assert_allclose(f.astype(np.float64), w, rtol=tolerance, atol=tolerance * max(1.0, np.abs(w).max()))
