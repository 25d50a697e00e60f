"""The norms' kernels on the emulator: every way over the device, dtype and layout, and what they move.

test_norm.py and test_batch_norm.py run through the same launchers, on arrays so small that one way serves them all.
Here devices shrink until every way is taken.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.kernels.cuda import norm, norm_arrays, norm_backward, norm_cells, norm_last, norm_plan
from cnnlayers.kernels.cuda.compile import OPTIONS, source
from cnnlayers.kernels.cuda.norm_plan import Columns, Device, Rows

from . import nvrtc, simt, standin_cuda, standin_cupy

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 3e-6, "float64": 1e-11}
H200 = Device(processors=132, shared=232448, l2=60 << 20, cooperative=True)


@pytest.fixture
def cupy() -> Iterator[types.ModuleType]:
    with standin_cupy.installed() as module, kernels.mode("require"):
        yield module


def kind(name: str) -> np.dtype:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


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
    "batch in a grid": Call("batch_norm", (4, 2, 24, 24), "norm_forward", "norm_backward", options=TRAIN, device=TIGHT),
    "batch in turns": Call(
        "batch_norm",
        (3, 5, 28, 28),
        "norm_forward",
        "norm_backward",
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
    "batch flat": Call("batch_norm", (37, 12), "last_forward", "last_backward", options=TRAIN),
    "batch last in a grid": Call(
        "batch_norm", (2, 14, 14, 12), "last_forward", "last_backward", options=TRAIN | LAST, device=SNUG
    ),
    "batch last in turns": Call(
        "batch_norm", (4, 9, 9, 200), "last_forward", "last_backward", options=TRAIN | LAST, device=SNUG
    ),
    "batch last in three launches": Call(
        "batch_norm",
        (4, 14, 14, 20),
        "last_moments last_finish last_apply",
        "last_sums last_backward_finish last_backward_apply",
        options=TRAIN | LAST,
        device=ALONE,
    ),
    "instance": Call("instance_norm", (3, 4, 6, 8), "norm_forward", "norm_backward norm_gradients"),
    "instance last": Call("instance_norm", (3, 6, 8, 4), "last_forward", "last_backward norm_gradients", options=LAST),
    "group": Call("group_norm", (3, 6, 7, 7), "norm_forward", "group_norm_backward norm_gradients", (2,)),
    "group in shared memory": Call(
        "group_norm", (3, 6, 20, 20), "norm_forward", "group_norm_backward norm_gradients", (3,)
    ),
    "group in two launches": Call(
        "group_norm",
        (2, 6, 28, 28),
        "norm_moments norm_apply",
        "norm_sums norm_backward_apply norm_gradients",
        (2,),
        device=ALONE,
    ),
    "group last": Call(
        "group_norm",
        (2, 6, 8, 12),
        "last_moments last_finish last_apply",
        "last_sums last_backward_finish last_backward_apply norm_gradients",
        (4,),
        options=LAST,
    ),
    "layer in lanes": Call("layer_norm", (37, 24), "norm_forward", "cells_backward add_columns", ((24,),)),
    "layer in blocks": Call("layer_norm", (9, 9, 104), "norm_forward", "cells_backward add_columns", ((9, 104),)),
    "layer in two launches": Call("layer_norm", (5, 2200), "norm_forward", "cells_sums cells_apply", ((2200,),)),
    "rms": Call("rms_norm", (21, 40), "norm_forward", "cells_backward add_columns", ((40,),), {"eps": 1e-5}),
    "rms in a grid": Call(
        "rms_norm", (2, 1500), "norm_forward", "cells_sums cells_apply", ((1500,),), {"eps": 1e-5}, device=TIGHT
    ),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
SOME = ["batch in shared memory", "batch in a grid", "batch in two launches", "batch last in a grid", "layer in blocks"]
some_calls = pytest.mark.parametrize("call", [CALLS[name] for name in SOME], ids=SOME)


def drawn(call: Call, rng: np.random.Generator, dtype: str = "float64", mean: float = 2.0) -> list[Any]:
    """x, dy, and gamma and beta."""
    x, dy = rng.normal(mean, 1.5, call.shape).astype(kind(dtype)), rng.normal(size=call.shape).astype(kind(dtype))
    return [x, dy, [rng.normal(1.0, 0.5, call.parameter).astype("float32") for _ in range(2)]]


def on_device(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, call: Call, *arrays: Any, **changes: Any
) -> tuple[list[Any], list[str]]:
    """What the kernels give, on the host, and the kernels that ran."""
    for module in (norm_plan, norm_cells):
        monkeypatch.setattr(module, "THREADS", call.threads)
    norm_plan._device.cache_clear()
    with standin_cuda.emulating(attributes=call.device, **changes) as made:
        found = [None if a is None else a.get() for a in call.both(cupy.asarray, *arrays)]
    names: list[str] = []
    for launch in made:  # turns are told once
        name = launch.name.partition("<")[0]
        if name not in names:
            names.append(name)
    return found, names


def expected(call: Call, x: np.ndarray, dy: np.ndarray, parameters: list[np.ndarray]) -> list[Any]:
    """The portable code's, in float64."""
    return call.both(lambda a: np.asarray(a, np.float64), x, dy, parameters)


def check(found: list[Any], wanted: list[Any], dtype: str, scale: float = 1.0) -> None:
    for i, (f, w) in enumerate(zip(found, wanted, strict=True)):
        rounded = i < 2  # y and dx have x's dtype, gradients of parameters float32
        assert f.dtype == (kind(dtype) if rounded else np.float32)
        tolerance = scale * max(TOLERANCE[dtype] if rounded else 0.0, TOLERANCE["float32"])
        tolerance = scale * TOLERANCE[dtype] if rounded and dtype == "float64" else tolerance
        np.testing.assert_allclose(f.astype(np.float64), w, rtol=tolerance, atol=tolerance * max(1.0, np.abs(w).max()))


# ------------------------------------------------------------------------------------------------- ways, dtypes, orders
@each_call
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_way(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, call: Call, dtype: str, rng: np.random.Generator
) -> None:
    arrays = drawn(call, rng, dtype)
    found, launched = on_device(cupy, monkeypatch, call, *arrays)
    if dtype == "float32":
        assert launched == [*call.forward.split(), *call.backward.split()]
    check(found, expected(call, *arrays), dtype)


@some_calls
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, call: Call, dtype: str, rng: np.random.Generator
) -> None:
    arrays = drawn(call, rng, dtype)
    check(on_device(cupy, monkeypatch, call, *arrays)[0], expected(call, *arrays), dtype)


@each_call
def test_the_same_bits_in_any_order_of_threads(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, call: Call, rng: np.random.Generator
) -> None:
    arrays, bits = drawn(call, rng, "float32"), set()
    for order, seed in (("ascending", 1), ("descending", 1), ("random", 1), ("random", 2)):
        found, _ = on_device(cupy, monkeypatch, call, *arrays, order=order, seed=seed)
        bits.add(b"".join(f.tobytes() for f in found if f is not None))
    assert len(bits) == 1


@pytest.mark.parametrize("name", ["batch in turns", "group", "batch last in turns", "layer in blocks"])
def test_64_bit_offsets(cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str, rng: np.random.Generator) -> None:
    """As if the arrays had over 2**31 elements."""
    for module in (norm, norm_backward, norm_cells, norm_last):
        monkeypatch.setattr(module, "offsets", lambda *sizes: ("unsigned long long", np.uint64))
    arrays = drawn(CALLS[name], rng, "float32")
    check(on_device(cupy, monkeypatch, CALLS[name], *arrays)[0], expected(CALLS[name], *arrays), "float32")


# -------------------------------------------------------------------------------------------------------------- numbers
@each_call
def test_stays_right_at_a_large_mean(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, call: Call, rng: np.random.Generator
) -> None:
    """The mean is 1e6 times the standard deviation; float32 holds x to a sixteenth."""
    x, dy, parameters = drawn(call, rng, "float32", 1e6)
    found, _ = on_device(cupy, monkeypatch, call, x, dy, parameters)
    check(found, expected(call, x, dy, parameters), "float32", scale=4.0)


@each_call
def test_nan_spreads_through_its_row_alone(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, call: Call, rng: np.random.Generator
) -> None:
    x, dy, parameters = drawn(call, rng, "float32")
    x[tuple(n - 1 for n in x.shape)] = np.nan  # the last cell of the last row
    found, _ = on_device(cupy, monkeypatch, call, x, dy, parameters)
    for f, w in zip(found, expected(call, x, dy, parameters), strict=True):
        assert np.array_equal(np.isnan(f), np.isnan(w))
    assert not np.isnan(found[0]).all()


@some_calls
def test_the_largest_numbers_do_not_overflow_the_mean(cupy: Any, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    x = np.full(call.shape, 3e38, "float32")
    found, _ = on_device(cupy, monkeypatch, call, x, np.ones_like(x), [np.ones(call.parameter, "float32"), None])
    np.testing.assert_array_equal(found[0], 0.0)


# ----------------------------------------------------------------------------------------------------- batch norm's own
@pytest.mark.parametrize("name", ["batch in blocks", "batch in turns", "batch in two launches", "batch last in turns"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics_follow_in_the_same_launch(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str, unbiased: bool, rng: np.random.Generator
) -> None:
    call = CALLS[name]
    x, _, parameters = drawn(call, rng, "float32")
    options = call.options | {"momentum": 0.3, "unbiased": unbiased}
    monkeypatch.setattr(norm_plan, "THREADS", call.threads)
    norm_plan._device.cache_clear()
    for dtypes in (("float32", "float32"), ("float64", "float16")):
        running = [rng.normal(1.0, 0.2, call.parameter).astype(dtype) for dtype in dtypes]
        device = [cupy.asarray(a) for a in running]
        with standin_cuda.emulating(attributes=call.device) as made:
            F.batch_norm(cupy.asarray(x), *map(cupy.asarray, parameters), *device, **options)
        assert {m.name.partition("<")[0] for m in made} == set(call.forward.split())
        F.batch_norm(x.astype("float64"), *parameters, *running, **options)
        for got, wanted, dtype in zip(device, running, dtypes, strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got.get(), wanted, rtol=1e-3 if dtype == "float16" else 1e-6)


def test_running_statistics_that_are_not_contiguous(cupy: Any, rng: np.random.Generator) -> None:
    x, base = rng.normal(size=(4, 3, 5)).astype("float32"), cupy.asarray(np.ones((3, 2), "float32"))
    F.batch_norm(cupy.asarray(x), None, None, base[:, 0], base[:, 1], training=True, momentum=1.0)
    np.testing.assert_allclose(base.get()[:, 0], x.mean(axis=(0, 2)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(base.get()[:, 1], x.var(axis=(0, 2), ddof=1), rtol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("given", [(1, 1), (0, 1), (0, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_evaluation(cupy: Any, data_format: str, given: Any, dtype: str, rng: np.random.Generator) -> None:
    shape = (3, 5, 6, 8) if data_format == "channels_first" else (3, 6, 8, 5)
    x, dy = (rng.normal(1e3 if dtype == "float32" else 1.0, 1.0, shape).astype(dtype) for _ in range(2))
    gamma, beta = (rng.normal(1.0, 0.5, 5).astype("float32") if keep else None for keep in given)
    running = rng.normal(float(x.mean()), 0.5, 5), rng.uniform(0.5, 2.0, 5)  # float64: they keep their digits

    def run(array: Any) -> list[Any]:
        parameters = [None if p is None else array(p) for p in (gamma, beta, *running)]
        y, ctx = F.batch_norm_forward(array(x), *parameters, data_format=data_format)
        return [y, *F.batch_norm_backward(array(dy), ctx)]

    with standin_cuda.emulating() as made:
        found = run(cupy.asarray)
    assert len(made) <= 4
    for f, w in zip(found, run(lambda a: np.asarray(a, np.float64)), strict=True):
        assert (f is None) == (w is None)
        if f is not None:
            tolerance = TOLERANCE[dtype]
            np.testing.assert_allclose(f.get().astype(np.float64), w, rtol=tolerance, atol=tolerance * np.abs(w).max())


# ---------------------------------------------------------------------------------------------------------- any arrays
@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "layer_norm"])
def test_strides_and_offsets(cupy: Any, op: str, rng: np.random.Generator) -> None:
    """Views that are not in C order, and such as begin between packs."""
    args = {"group_norm": (2,), "layer_norm": (8,)}.get(op, ())
    options = TRAIN if op == "batch_norm" else {}
    flat = rng.normal(size=1200).astype("float32")
    views = [
        lambda a: a[:768].reshape(8, 4, 6, 4).transpose(3, 1, 2, 0),
        lambda a: a[:768].reshape(4, 4, 6, 8)[::-1, :, ::-1],
        *(lambda a, start=start: a[start : start + 768].reshape(4, 4, 6, 8) for start in (1, 2, 4)),
    ]
    gamma = np.ones(9, "float32")[1:] if op == "layer_norm" else np.ones(8, "float32")[::2]
    for view in views:
        host, device = view(flat), view(cupy.asarray(flat))
        y, ctx = getattr(F, f"{op}_forward")(host.astype("float64"), *args, gamma, None, **options)
        dx, dgamma, _ = getattr(F, f"{op}_backward")(host.astype("float64"), ctx)
        on = cupy.asarray(np.ones(18, "float32"))
        on_gamma = on[1:9] if op == "layer_norm" else on[:8:2]
        got, kept = getattr(F, f"{op}_forward")(device, *args, on_gamma, None, **options)
        got_dx, got_dgamma, none = getattr(F, f"{op}_backward")(device, kept)
        assert none is None
        for f, w in ((got, y), (got_dx, dx), (got_dgamma, dgamma)):
            np.testing.assert_allclose(f.get(), w, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"])
def test_nothing_is_launched_for_nothing(cupy: Any, op: str, shape: tuple[int, ...]) -> None:
    args = {"group_norm": (2,), "layer_norm": (shape[2],), "rms_norm": (shape[2],)}.get(op, ())
    gamma = cupy.asarray(np.ones(shape[2] if "layer" in op or "rms" in op else shape[1], "float32"))
    with standin_cuda.emulating() as made:
        y, ctx = getattr(F, f"{op}_forward")(cupy.asarray(np.ones(shape, "float16")), *args, gamma)
        dx, dgamma, *_ = getattr(F, f"{op}_backward")(y, ctx)
    assert not made
    assert y.shape == dx.shape == shape
    assert not dgamma.get().any()
    assert dgamma.shape == gamma.shape


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
        ("instance_norm", (), {}),
        ("group_norm", (2,), {}),
        ("group_norm", (2,), LAST),
        ("layer_norm", (8,), {}),
        ("rms_norm", (8,), {}),
    ],
)
def test_nothing_waits_for_the_device(cupy: Any, op: str, args: Any, options: Any) -> None:
    """After a warm-up for the spec neither a compilation nor a transfer is left: a CUDA graph can hold the calls."""
    rng = np.random.default_rng(0)
    x, parameters = (
        cupy.asarray(rng.normal(size=(2, 8, 4, 8)).astype("float16")),
        [cupy.asarray(np.ones(8, "float32")) for _ in range(1 if op == "rms_norm" else 2)],
    )
    if op == "batch_norm":
        parameters += [cupy.asarray(np.ones(8, "float32")) for _ in range(2)]
    with kernels.mode("off"):
        spec = getattr(F, f"{op}_forward")(x, *args, *parameters, **options)[1].spec
    assert kernels.warmup((f"{op}_forward", "cupy", spec), (f"{op}_backward", "cupy", spec)) == 2
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
            shape=shape, view=shape, axes=(last,), own=(last,), parameter=shape[last:], count=shape[last], eps=1e-5
        )
        return types.SimpleNamespace(rows=rows, comm=None)

    x = np.empty(0, "float32")
    assert norm.refuses("layer_norm_forward", spec((2**31 - 1, 4), 1), x) is None
    assert "too many" in str(norm.refuses("layer_norm_forward", spec((2**31, 4), 1), x))
    assert "too many" in str(norm_cells.refuses("layer_norm_backward", spec((1, 2**31), 1), x))


# ---------------------------------------------------------------------------------------------------------------- plans
def channels(n: int, c: int, side: int) -> Rows:
    return Rows(c, n, side * side, c, side * side)


@pytest.mark.parametrize(
    ("shape", "itemsize", "way", "blocks"),
    [
        ((32, 64, 56), 2, "grid", 128),  # 64 channels still fill 132 processors
        ((32, 256, 56), 2, "grid", 132),  # two blocks a channel, 66 channels at a time
        ((32, 256, 28), 2, "block", 256),
        ((256, 64, 112), 2, "grid", 132),  # 44 blocks a channel, three channels at a time
        ((32, 2048, 7), 4, "block", 2048),
        ((8, 3, 224), 4, "grid", 132),
        ((256, 1, 512), 4, "parts", 0),  # a channel of 268 MB, twice
    ],
)
def test_the_plan_of_a_backward_on_a_large_device(
    shape: tuple[int, int, int], itemsize: int, way: str, blocks: int
) -> None:
    rows = channels(*shape)
    how = norm_plan.plan(H200, rows, itemsize, norm_plan.pack_of(rows, itemsize), 8, 2)
    assert how.way == way, str(how)
    if way != "parts":
        assert how.grid == blocks, str(how)
        held = how.held * how.threads * 2 * how.pack * itemsize + how.shared
        assert held * how.parts >= rows.segments * rows.cells * itemsize * 2  # all of a channel is on the chip
    if way == "grid":
        assert how.grid <= H200.processors
        assert how.turn * how.parts > 0.9 * H200.processors
    assert how.shared <= H200.shared - norm_plan.STATIC


@pytest.mark.parametrize("processors", [1, 2, 7, 132])
@pytest.mark.parametrize("shared", [1100, 65536, 232448])
@pytest.mark.parametrize("cooperative", [True, False])
def test_plans_fit_any_device_and_leave_no_part_empty(processors: int, shared: int, cooperative: bool) -> None:
    device = Device(processors, shared, 1 << 20, cooperative)
    for count, segments, cells in [(1, 1, 1), (3, 7, 49), (64, 32, 3136), (5, 1, 100_003), (1000, 2, 64)]:
        for itemsize in (2, 4, 8):
            rows = Rows(count, segments, cells, count, cells)
            pack = norm_plan.pack_of(rows, itemsize)
            plans = [norm_plan.plan(device, rows, itemsize, pack, 8, n) for n in (1, 2)]
            plans.append(norm_plan.two_launches(device, rows, itemsize, pack, 4, 2))
            shape = Columns(segments, cells, count, 1)
            plans.append(norm_plan.slabs(device, shape, itemsize, norm_plan.pack_of(shape, itemsize), 8, 2))
            plans.append(norm_plan.group(device, rows, 1, itemsize, pack, 8))
            for how in plans:
                assert how.shared <= max(0, device.shared - norm_plan.STATIC), str(how)
                assert how.threads % 32 == 0
                assert 32 <= how.threads <= norm_plan.THREADS
                for parts in (how.parts, how.stream):
                    assert (parts - 1) * -(-how.packs // parts) < how.packs, str(how)
                if how.way == "grid":
                    assert cooperative
                    assert how.grid <= processors
                if how.way in ("grid", "block", "group"):
                    assert how.held * how.threads * how.parts >= how.packs or how.shared
        for dtype in ("float16", "float64"):
            rows = Rows(count, 1, cells, 1, cells, each=True)
            cells_plan = norm_cells.plan(device, rows, dtype, norm_plan.pack_of(rows, norm_arrays.itemsize(dtype)))
            assert cells_plan.blocks <= max(count, 1), str(cells_plan)


def test_a_plan_says_what_it_does() -> None:
    rows = channels(32, 64, 56)
    assert (
        str(norm_plan.plan(H200, rows, 4, 4, 8, 2))
        == (
            "64 rows of 25,088 packs of 4: one launch, 2 blocks of 512 threads a row, 64 rows at a time, "
            "8 packs a thread in registers, 270,336 bytes shared"
        )
        or "grid" in norm_plan.plan(H200, rows, 4, 4, 8, 2).way
    )
    assert "two launches" in str(norm_plan.two_launches(H200, rows, 4, 4, 4))
    assert "4 threads a row" in str(norm_plan.plan(H200, Rows(1000, 1, 16, 1000, 16), 4, 4, 8))
    assert "runs of 32" in str(norm_plan.group(H200, Rows(512, 1, 3136, 64, 3136), 4, 4, 4, 8))
    last = Columns(1, 32 * 56 * 56, 64, 1)
    assert "slabs of 16 packs of 4 across, 100,352 deep: one launch" in str(norm_plan.slabs(H200, last, 4, 4, 8))
    assert "three launches" in str(norm_plan.through(H200, last, 4))
    assert "go down the rows" in str(norm_cells.plan(H200, Rows(4096, 1, 768, 1, 768, each=True), "float16", 8))


# -------------------------------------------------------------------------------------------------------------- traffic
LEAST = [  # (op, shape, args, options, device, forward's and backward's distinct sectors over the least)
    ("batch_norm", (8, 4, 28, 28), (), TRAIN, {}, 1.05, 1.05),  # a block a channel
    ("batch_norm", (16, 2, 56, 56), (), TRAIN, {}, 1.05, 1.05),  # a cooperative grid, registers and shared memory
    ("batch_norm", (16, 2, 56, 56), (), {}, {}, 1.05, 1.05),  # evaluation
    ("batch_norm", (8, 16, 7, 7), (), TRAIN, {}, 1.05, 1.05),  # no whole packs
    ("batch_norm", (4, 28, 28, 16), (), TRAIN | LAST, {}, 1.05, 1.05),
    ("batch_norm", (16, 2, 56, 56), (), TRAIN, ALONE, 1.52, 1.69),  # read twice: 3 / 2 and 5 / 3
    ("instance_norm", (8, 8, 28, 28), (), {}, {}, 1.05, 1.05),
    ("group_norm", (8, 8, 28, 28), (4,), {}, {}, 1.05, 1.05),
    ("layer_norm", (512, 256), (256,), {}, {}, 1.05, 1.10),  # what 16 blocks leave of dgamma and dbeta
    ("rms_norm", (512, 256), (256,), {}, {}, 1.05, 1.10),
]


@pytest.mark.parametrize("case", LEAST, ids=lambda c: f"{c[0]}-{c[1]}-{c[3]}-{len(c[4])}")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_traffic(cupy: Any, case: Any, dtype: str, rng: np.random.Generator) -> None:
    op, shape, args, options, device, *most = case
    x = cupy.asarray(rng.normal(size=shape).astype(dtype))
    width = shape[-1] if options.get("data_format") or op in ("layer_norm", "rms_norm") else shape[1]
    gamma, *more = (cupy.asarray(np.ones(width, "float32")) for _ in range(4))
    parameters = [gamma] if op == "rms_norm" else [gamma, *more] if op == "batch_norm" else [gamma, more[0]]
    norm_plan._device.cache_clear()
    with standin_cuda.emulating(traffic=True, attributes=device) as made:
        y, ctx = getattr(F, f"{op}_forward")(x, *args, *parameters, **options)
        forward = len(made)
        getattr(F, f"{op}_backward")(y, ctx)
    norm_plan._device.cache_clear()
    for launches, arrays, limit in ((made[:forward], 2, most[0]), (made[forward:], 3, most[1])):
        traffic = launches[0].traffic
        for launch in launches[1:]:
            traffic = traffic + launch.traffic
        distinct = traffic.over(arrays * x.nbytes)[1]
        # statistics and parameters are a few bytes a row, which weigh more beside the fewer bytes of half types
        assert distinct <= limit + (0.1 if dtype == "float16" and limit > 1.05 else 0.03), [m.name for m in launches]


# ------------------------------------------------------------------------------------------------- compiled for devices
def _compiled() -> list[tuple[str, list[str]]]:
    """The most crowded instances of each source."""
    types_ = {
        "float16": ("__half", 8),
        "bfloat16": ("__nv_bfloat16", 8),
        "float32": ("float", 4),
        "float64": ("double", 2),
    }
    wide, found = "unsigned long long", {stem: list[str]() for stem in ("norm", "norm_backward", "norm_cells")}
    found |= {"norm_last": [], "norm_last_backward": []}
    for dtype, (t, v) in types_.items():
        found["norm"] += [f"norm_forward<{t}, {v}, {norm.HELD[dtype]}, {wide}, 2, true, 2>"]
        found["norm_backward"] += [
            f"norm_backward<{t}, {v}, {norm_backward.HELD[dtype]}, {wide}, 2>",
            f"group_norm_backward<{t}, {v}, {norm_backward.HELD[dtype]}, unsigned>",
            f"norm_sums<{t}, {v}, unsigned, true>",
        ]
        found["norm_cells"] += [
            f"cells_backward<{t}, {v}, {norm_cells.HELD[dtype]}, unsigned, 1>",
            f"cells_sums<{t}, {v}, unsigned>",
            f"cells_apply<{t}, {v}, unsigned>",
        ]
        found["norm_last"] += [
            f"last_forward<{t}, {v}, {norm_last.HELD[dtype]}, unsigned, 2>",
            f"last_moments<{t}, {v}, 4, unsigned>",
        ]
        found["norm_last_backward"] += [
            f"last_backward<{t}, {v}, {norm_last.HELD[dtype]}, unsigned, 2>",
            f"last_sums<{t}, {v}, unsigned, true>",
        ]
    return list(found.items())


@pytest.mark.skipif(nvrtc.unavailable() is not None, reason=str(nvrtc.unavailable()))
@pytest.mark.parametrize(("stem", "instances"), _compiled(), ids=lambda v: v if isinstance(v, str) else "")
def test_compiled_for_devices(stem: str, instances: list[str]) -> None:
    """No spills; as many registers as a block's threads leave, which is what plans count on; 16 bytes an access."""
    for made in nvrtc.compile_all(source(stem), instances, options=(*OPTIONS, "-ftz=true"), filename=f"{stem}.cu"):
        assert (made.spills, made.stack) == (0, 0), made
        threads = 256 if made.name.startswith("last_") else 512
        assert made.registers <= 65536 // threads, made
        assert made.wide[0], made
        assert made.wide[1] or made.name.startswith(("last_moments", "cells_sums")), made
