"""Every kernel that the launchers ask for, found by asking them: representative calls run, and no kernel is launched.

What a launcher never asks for is nowhere compiled, and what it begins to ask for is compiled the same day. All sizes of
packs, layouts, ways over the device and widths of offsets are among the calls; dtypes are all that CuPy has.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.backends import FLOATS, INTEGERS, PLANS
from cnnlayers.kernels.cuda import compile as compiler
from cnnlayers.kernels.cuda import launch, norm_plan

from . import standin_cuda, standin_cupy

# An H200's, as far as plans ask; on it arrays of a few million elements take every way that a norm can.
DEVICE = {"MultiProcessorCount": 132, "L2CacheSize": 60 << 20}
LAST = {"data_format": "channels_last"}
TRAIN = {"training": True}
FEW = ("float16", "float32")  # for what differs little from a dtype to the next
BYTES = {"__half": 2, "__nv_bfloat16": 2, "float": 4, "double": 8, "char": 1, "short": 2, "int": 4, "long": 8}


@dataclass(frozen=True)
class Call:
    """An op's trio on an array. `device`: the device's attributes that matter."""

    op: str
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = FLOATS
    device: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        said = [str(self.shape), *map(str, self.args), *(f"{k}={v}" for k, v in self.options.items())]
        return f"{self.op}({', '.join(said)})"

    def run(self, cupy: Any, dtype: str, fill: Any = None) -> Iterator[tuple[str, list[Any]]]:
        """Forward, backward with dy = y, and (but for norms, where it is the forward) inference: after each its name,
        and the arrays that went in, came out or are kept. `fill`: makes x; garbage otherwise."""
        x = (fill or cupy.empty)(self.shape, _dtype(dtype))
        inputs = [x, *self._parameters(cupy, x)]
        first = self.op in ("max_unpool", "conv", "softmax_cross_entropy")
        args = (*inputs[1:2], *self.args) if first else (*self.args, *inputs[1:])
        y, ctx = getattr(F, f"{self.op}_forward")(x, *args, **self.options)
        y = y[0] if isinstance(y, tuple) else y
        kept = [a for a in ctx.arrays.values() if a is not None]
        yield "forward", [*inputs, y, *kept]
        found = getattr(F, f"{self.op}_backward")(y, ctx)
        yield "backward", [y, *kept, *(a for a in (found if isinstance(found, tuple) else (found,)) if a is not None)]
        if not self._has_parameters:
            getattr(F, self.op)(x, *args, **self.options)
            yield "inference", [*inputs, y]

    @property
    def _has_parameters(self) -> bool:
        return self.op.endswith("_norm") and self.op != "local_response_norm"

    def _parameters(self, cupy: Any, x: Any) -> list[Any]:
        if self.op == "max_unpool":
            return [cupy.zeros(self.shape, np.int64)]
        if self.op == "softmax_cross_entropy":
            return [cupy.zeros(self.shape[:1], np.int64)]
        if not self._has_parameters:
            if self.op != "conv":
                return []
            channels = self.shape[-1 if self.options.get("data_format") else 1]
            return [cupy.zeros((8, channels, *([3] * (len(self.shape) - 2))), x.dtype)]
        if self.op in ("layer_norm", "rms_norm"):
            shape: tuple[int, ...] = self.args[0]
        else:
            shape = (self.shape[-1 if self.options.get("data_format") else 1],)
        number = {"rms_norm": 1, "batch_norm": 4}.get(self.op, 2)
        return [cupy.ones(shape, np.float32) for _ in range(number)]


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _pools() -> Iterator[Call]:
    whole = (*FLOATS, *INTEGERS)  # bool is moved as uint8
    for width, window in itertools.product((56, 30, 31), ((2,), (3, 2, 1), (3, 1, 1))):
        for ties in ("first", "all") if width == 56 else ("first",):
            yield Call("max_pool", (2, 2, 30, width), window, {"ties": ties}, FLOATS if width == 56 else FEW)
    for window in ((2,), (3, 2, 1), (3, 1, 1)):
        yield Call("max_pool", (2, 6, 8, 16), window, LAST)
        yield Call("avg_pool", (2, 6, 8, 16), window, LAST)
    yield Call("max_pool", (2, 2, 9, 9), (3,), {"return_indices": True}, whole)
    yield Call("max_pool", (2, 9, 9, 3), (5, 2, 2), {**LAST, "ties": "all"}, whole)
    for op, shape, window in itertools.product(
        ("max_pool", "avg_pool"), ((2, 3, 31), (2, 3, 9, 9), (2, 3, 5, 7, 9)), ((2,), (3, 2, 1), (3, 1, 1))
    ):
        yield Call(op, shape, window, {}, FLOATS if len(shape) == 4 else FEW)
    yield Call("max_pool", (2, 5, 7, 9, 8), (3, 2, 1), {**LAST, "ties": "all"}, FEW)
    yield Call("avg_pool", (2, 9, 9, 3), (3, 2, 1), {**LAST, "count_include_pad": False})
    for side in (40, 300):  # a warp a window; uint16 and uint32 to tell its taps
        yield Call("max_pool", (1, 1, side, side), (side,), {}, FLOATS if side == 40 else FEW)
        yield Call("max_pool", (1, 1, side, side), (side - 1, 1), {}, FEW)
    yield Call("adaptive_max_pool", (1, 2, 13, 40), (5,))
    for window in ((2,), (3, 2, 1), (3, 1, 1)):
        yield Call("avg_pool", (2, 2, 30, 56), window)
    for shape in ((2, 3, 64, 64), (2, 3, 7, 7)):
        yield Call("adaptive_avg_pool", shape, (1,))
    yield Call("adaptive_avg_pool", (2, 9, 40, 3), (1,), LAST, FEW)
    yield Call("adaptive_avg_pool", (2, 9, 40, 16), (1,), LAST)
    yield Call("sum_pool", (2, 3, 40), (40,))  # a warp a window: rows, not planes
    yield Call("avg_pool", (2, 3, 9, 40), ((3, 35),), {}, FEW)
    for op in ("avg_pool", "sum_pool"):
        yield Call(op, (2, 3, 9, 40), (2,))
        yield Call(op, (2, 3, 9, 40), ((9, 40),))
    yield Call("adaptive_avg_pool", (2, 3, 9, 13), (5,))
    yield Call("adaptive_avg_pool", (2, 9, 13, 8), (5,), LAST)
    yield Call("max_unpool", (2, 3, 4, 5), (2,))


def _pads() -> Iterator[Call]:
    for mode in ("constant", "reflect"):
        yield Call("pad", (2, 3, 9, 9), (1, mode), {}, (*FLOATS, *INTEGERS))
        yield Call("pad", (2, 5, 5, 16), (1, mode), LAST, (*FLOATS, *INTEGERS))
        for channels in (2, 4, 8):  # packs of all sizes
            yield Call("pad", (2, 5, 5, channels), (1, mode), LAST, FEW)


def _convs() -> Iterator[Call]:
    floats = ("float16", "float32", "float64")
    yield Call("conv", (2, 4, 9, 12), (None, 1, 1), {}, floats)
    for channels in (32, 18, 17):
        yield Call("conv", (2, 9, 8, channels), (None, 1, 1), LAST, floats)


def _norms() -> Iterator[Call]:
    for shape, options in itertools.product(((4, 640, 4, 4), (64, 160, 14, 14), (32, 64, 56, 56)), (TRAIN, {})):
        yield Call("batch_norm", shape, (), options)
    for shape, options in itertools.product(((4, 640, 7, 7), (32, 160, 7, 6), (16, 64, 35, 35)), (TRAIN, {})):
        yield Call("batch_norm", shape, (), options, FEW[1:])  # packs of one and two
    last = ((32, 56, 56, 64), (16, 14, 14, 256), (8, 7, 7, 30), (64, 35))
    for shape, options in itertools.product(last, (TRAIN, {})):
        form, dtypes = LAST if len(shape) > 2 else {}, FEW if shape[-1] % 8 else FLOATS
        yield Call("batch_norm", shape, (), {**options, **form}, dtypes)
    for shape in ((16, 64, 14, 14), (2, 64, 56, 56), (1, 8, 280, 280)):
        yield Call("group_norm", shape, (4,))
    for shape in ((16, 64, 14, 14), (2, 3, 224, 224), (2, 4, 7, 7)):
        yield Call("instance_norm", shape, (), {}, FEW)
    yield Call("group_norm", (4, 14, 14, 64), (4,), LAST)
    yield Call("instance_norm", (4, 14, 14, 64), (), LAST)
    for op, (rows, cells) in itertools.product(
        ("layer_norm", "rms_norm"), ((2048, 256), (64, 8192), (2, 100_000), (64, 35), (64, 30))
    ):
        yield Call(op, (rows, cells), ((cells,),), {}, FLOATS if cells % 8 == 0 else FEW)


def _single_launches() -> Iterator[Call]:
    for op, args in (
        ("relu", ()),
        ("leaky_relu", ()),
        ("gelu", ()),
        ("gelu", ("tanh",)),
        ("sigmoid", ()),
        ("tanh", ()),
    ):
        yield Call(op, (2, 3, 40), args)
        yield Call(op, (2, 3, 7), args, {}, FEW)  # an element behind the last pack
    yield Call("dropout", (2, 3, 40), (0.5,), {**TRAIN, "rng": 0})
    for shape in ((9, 64), (9, 2000), (2, 20, 5, 8)):
        yield Call("softmax", shape)
        yield Call("softmax", (*shape[:-1], 7), (), {}, FEW)  # packs of one
    for classes in (10, 2000):
        yield Call("softmax_cross_entropy", (40, classes), (), {}, FLOATS if classes == 10 else FEW)
    for size in (5, 50):
        yield Call("local_response_norm", (2, 64, 5, 5), (size,), {}, FLOATS if size == 5 else FEW)
    yield Call("lp_pool", (2, 3, 8, 9), (2,))
    yield Call("lp_pool", (2, 3, 8, 9), (3,), {"stride": 1})
    yield Call("lp_pool", (2, 3, 8, 9), (5,), {"stride": 1}, FEW)
    yield Call("lp_pool", (2, 3, 8, 9), ((8, 9),), {"norm_type": 9.0}, FEW)


CALLS = (*_pools(), *_pads(), *_convs(), *_norms(), *_single_launches())


@dataclass(frozen=True)
class Asked:
    """A kernel that a launcher asked for, and the threads of its largest block."""

    stem: str
    name: str
    threads: int = 0

    @property
    def template(self) -> str:
        return self.name.partition("<")[0]

    @property
    def arguments(self) -> list[str]:
        return self.name.partition("<")[2].removesuffix(">").split(", ")

    @property
    def element(self) -> str:
        return self.arguments[0]

    @property
    def itemsize(self) -> int:
        return next((n for word, n in BYTES.items() if word in self.element.split()), 4)  # "unsigned" alone is 4


@contextmanager
def on_device(attributes: Mapping[str, int], **changes: Any) -> Iterator[list[standin_cuda.Launch]]:
    """The stand-in has these attributes and settings, and plans see them. Gives the launches made."""
    norm_plan._device.cache_clear()
    with standin_cuda.emulating(attributes=attributes, **changes) as made:
        yield made
    norm_plan._device.cache_clear()


def asked_by(calls: tuple[Call, ...] = CALLS, *, device: Mapping[str, int] = DEVICE, wide: bool = True) -> list[Asked]:
    """The kernels that these calls ask for, on a device of these attributes: with 32-bit offsets in each dtype and, if
    `wide` and there are more than a few of these, with 64-bit ones in the first."""
    threads: dict[tuple[str, str], int] = {}

    class Recorder:
        """In place of a compiled kernel: it keeps the size of its largest block."""

        def __init__(self, stem: str, instance: str) -> None:
            self.key = stem, instance

        def __call__(self, grid: tuple[int], block: tuple[int], arguments: Any, shared_mem: int) -> None:
            threads[self.key] = max(block[0], threads.get(self.key, 0))

    with (
        standin_cupy.installed() as cupy,
        kernels.mode("require"),
        mock.patch.object(launch, "kernel", Recorder),
        np.errstate(all="ignore"),
    ):
        for call in calls:
            with on_device({**device, **call.device}):
                for dtype in call.dtypes:
                    list(call.run(cupy, dtype))
                if wide and call.dtypes not in (FEW, FEW[1:]):
                    with far():
                        list(call.run(cupy, call.dtypes[0]))
    return [Asked(*key, block) for key, block in sorted(threads.items())]


@contextmanager
def in_launchers(name: str, function: Any) -> Iterator[None]:
    """Every CUDA launcher that has a function of this name takes this one in its place."""
    with pytest.MonkeyPatch.context() as patch:
        for path in compiler.HERE.glob("*.py"):
            module = importlib.import_module(f"{compiler.__package__}.{path.stem}")
            if hasattr(module, name) and module is not launch:
                patch.setattr(module, name, function)
        PLANS.clear()
        try:
            yield
        finally:
            PLANS.clear()


def far() -> AbstractContextManager[None]:
    """64-bit offsets, as if arrays had over 2**31 elements."""
    return in_launchers("offset_types", lambda *sizes: ("unsigned long long", np.uint64))


def templates() -> dict[str, dict[str, tuple[int, int]]]:
    """Of each source its kernels, and their __launch_bounds__: threads of a block, and blocks of a processor."""
    pattern = re.compile(r"__global__ void __launch_bounds__\((\d+)(?:, (\d+))?\)\s+(\w+)\(")
    found = {}
    for path in sorted(compiler.HERE.glob("*.cu")):
        text = path.read_text()
        bounds = pattern.findall(text)
        if len(bounds) != len(re.findall(r"\b__global__\b", text)):
            raise ValueError(f"{path.name} has a kernel without __launch_bounds__")
        found[path.stem] = {name: (int(threads), int(blocks or 1)) for threads, blocks, name in bounds}
    return found
