"""What only a real device can show. Everything else runs there too, as the `gpu` implementation of the other tests.

Each test runs on the stand-in as well, with smaller numbers: there it proves the test, and nothing about a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends, kernels, layers
from cnnlayers import functional as F
from cnnlayers.kernels.cuda import compile as compiler

from . import kernel_calls, simt, standin_cuda, standin_cupy
from .implementations import numpy_dtype

# (op, arguments, options) whose forward and backward are repeated; x is (8, 16, 33, 34), or a part of it, and has ties.
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("max_pool", (2,), {}),
    ("max_pool", (3, 2, 1), {}),
    ("max_pool", (3, 1, 1), {"ties": "all"}),
    ("avg_pool", (3, 2, 1), {}),
    ("adaptive_avg_pool", (5,), {}),
    ("adaptive_max_pool", (5,), {}),
    ("pad", (2, "constant"), {}),
    ("pad", (2, "edge"), {}),
    ("pad", (2, "reflect"), {}),
    ("pad", (2, "symmetric"), {}),
    ("pad", ((3, -1), "wrap"), {}),
    ("batch_norm", (), {"training": True}),
    ("batch_norm", (), {"training": True, "data_format": "channels_last"}),
    ("group_norm", (2,), {}),
    ("layer_norm", ((34,),), {}),
    ("rms_norm", ((34,),), {}),
    ("relu", (), {}),
    ("leaky_relu", (), {}),
    ("gelu", (), {}),
    ("gelu", ("tanh",), {}),
    ("sigmoid", (), {}),
    ("tanh", (), {}),
    ("dropout", (0.5,), {"training": True, "rng": 0}),
    ("local_response_norm", (5,), {}),
    ("lp_pool", (2,), {}),
    ("lp_pool", (3, 2.0, 1), {}),
]


def _said(call: tuple[str, tuple[Any, ...], dict[str, Any]]) -> str:
    return f"{call[0]}{call[1]}{''.join(map(str, call[2].values()))}"


def by_call(calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> pytest.MarkDecorator:
    """All of these on a GPU, every fourth on the stand-in, whose kernels other tests know."""
    chosen = [("gpu", c) for c in calls] + [("standin", c) for c in calls[::4]]
    params = [pytest.param(kind, *c, id=f"{kind}-{_said(c)}") for kind, c in chosen]
    return pytest.mark.parametrize(("cupy", "op", "args", "options"), params, indirect=["cupy"])


BY_CALL = by_call(CALLS)
BY_EXACT = by_call([c for c in CALLS if c[0] in ("max_pool", "pad")])


@pytest.fixture(params=["standin", "gpu"])
def cupy(request: pytest.FixtureRequest) -> Iterator[Any]:
    """CuPy, kernels being required."""
    if request.param == "gpu":
        reason = backends.available()["cupy"]
        if reason:
            pytest.skip(f"no GPU here: {reason}")
        with kernels.mode("require"):
            yield pytest.importorskip("cupy")
    else:
        if simt.unavailable():
            pytest.skip(str(simt.unavailable()))
        with standin_cupy.installed() as module, kernels.mode("require"), backends.using("cupy"):
            yield module


def real(cupy: Any) -> bool:
    return "standin" not in cupy.__version__


def some(cupy: Any, dtype: Any = "float32") -> np.ndarray:
    shape = (8, 16, 33, 34) if real(cupy) else (2, 4, 9, 34)
    return np.random.default_rng(0).integers(-9, 9, shape).astype(np.int8).astype(dtype) / np.dtype(dtype).type(2)


def both_ways(op: str, x: Any, args: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """y and all gradients, with dy = y."""
    y, ctx = getattr(F, f"{op}_forward")(x, *args, **options)
    found = getattr(F, f"{op}_backward")(y, ctx)
    return [y, *(a for a in (found if isinstance(found, tuple) else (found,)) if a is not None)]


# ------------------------------------------------------------------------------------------------------- the same bits
@BY_CALL
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_same_bits_a_hundred_times_under_load(cupy, op, args, options, dtype):
    x = cupy.asarray(some(cupy, dtype))
    first = [a.get().tobytes() for a in both_ways(op, x, args, options)]
    busy = cupy.cuda.Stream(non_blocking=True)
    load = cupy.ones((2048, 2048) if real(cupy) else (2, 2), np.float32)
    for seed in range(100 if real(cupy) else 2):
        with busy:
            _ = load @ load
        with contextlib.nullcontext() if real(cupy) else standin_cuda.emulating(seed=seed):
            assert [a.get().tobytes() for a in both_ways(op, x, args, options)] == first
    busy.synchronize()


@BY_EXACT
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_cpu_and_gpu_give_the_same_bits(cupy, op, args, options, dtype):
    kind = numpy_dtype(dtype)
    x = some(cupy, "float32").astype(kind)
    x[0, 0, :3, :3], x[0, 1, 5, 5], x[1, 2], x[1, 3, 4] = -0.0, np.nan, -np.inf, 1e-41 if dtype == "float32" else 1e-7
    agree(cupy, op, x, args, options)


@BY_EXACT
@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64", "uint64"])
def test_cpu_and_gpu_give_the_same_integers(cupy, op, args, options, dtype):
    agree(cupy, op, some(cupy, "float32").astype(np.int64).astype(dtype), args, options)


def agree(cupy: Any, op: str, x: np.ndarray, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    with kernels.mode("auto"):  # on the CPU array code will do
        on_cpu = both_ways(op, x, args, options)
        indices = F.max_pool(x, *args, return_indices=True)[1] if op == "max_pool" else None
    on_gpu = both_ways(op, cupy.asarray(x), args, options)
    for ours, theirs in zip(on_cpu, on_gpu, strict=True):
        assert (theirs.dtype, bits(theirs.get())) == (ours.dtype, bits(ours))
    if indices is not None:
        found = F.max_pool(cupy.asarray(x), *args, return_indices=True)[1]
        np.testing.assert_array_equal(indices, found.get())


def bits(a: np.ndarray) -> bytes:
    """An array's bits; of NaNs, which a device's half types do not keep in sums, that they are some."""
    return a.tobytes() if a.dtype.kind in "iu" else np.where(np.isnan(a), a.dtype.type(0.125), a).tobytes()


def test_cpu_and_gpu_agree_on_bools(cupy):
    x = some(cupy) > 0
    for op, args in (("max_pool", (3, 2, 1)), ("pad", (2, "reflect"))):
        with kernels.mode("auto"):
            expected = getattr(F, op)(x, *args)
        np.testing.assert_array_equal(expected, getattr(F, op)(cupy.asarray(x), *args).get())


# -------------------------------------------------------------------------------------------------- streams and graphs
@BY_CALL
def test_a_stream_of_the_callers(cupy, op, args, options):
    """Work goes to the current stream, after what lies there already."""
    host = some(cupy)
    expected = [a.get() for a in both_ways(op, cupy.asarray(host), args, options)]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = cupy.zeros(host.shape, host.dtype)
        _ = cupy.ones((4096, 4096), np.float32) @ cupy.ones((4096, 4096), np.float32) if real(cupy) else None
        x += cupy.asarray(host)  # a kernel that launched elsewhere would see zeros
        found = both_ways(op, x, args, options)
    stream.synchronize()
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(ours, theirs.get())


def replayed(cupy: Any, step: Callable[[], Any], change: Callable[[], None]) -> tuple[Any, Any]:
    """What `step` gives after `change`, run in the usual way and as a graph that was captured before."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(3):
            expected = step()
        stream.synchronize()
        if real(cupy):
            # in this mode whatever waits or takes memory from the driver is refused
            stream.begin_capture(mode=cupy.cuda.runtime.streamCaptureModeThreadLocal)
            try:
                result = step()
            finally:
                graph = stream.end_capture()
            change()
            graph.launch(stream)
        else:
            with standin_cuda.no_host_sync():
                step()
            change()
            result = step()
        replay = result.copy()
        expected = step()
        stream.synchronize()
    return replay.get(), expected.get()


def test_a_training_step_is_captured_in_a_graph(cupy):
    """Three layers, the loss's gradient and the update: after a warm-up nothing waits for the host."""
    x = cupy.asarray(some(cupy))
    channels = x.shape[1]
    gamma, beta = cupy.ones(channels, np.float32), cupy.zeros(channels, np.float32)

    def step() -> Any:
        padded, pad = F.pad_forward(x, 1, "reflect")
        normal, norm = F.batch_norm_forward(padded, gamma, beta, training=True)
        active, relu = F.relu_forward(normal)
        y, pool = F.max_pool_forward(active, 2)
        dx, dgamma, dbeta = F.batch_norm_backward(F.relu_backward(F.max_pool_backward(y, pool), relu), norm)
        gamma[...] = gamma - np.float32(0) * dgamma  # the same in each run
        beta[...] = beta - np.float32(0) * dbeta
        return F.pad_backward(dx, pad)

    replay, expected = replayed(cupy, step, lambda: x.__imul__(np.float32(2)))
    np.testing.assert_array_equal(replay, expected)
    assert np.isfinite(replay).all()


def test_a_whole_networks_training_step_is_captured_in_a_graph(cupy):
    """With convolution and linear layers too, where CuPy lets their matrix products be captured."""
    with backends.using("cupy"):
        net = layers.Sequential(
            layers.Conv(4, 4, 3, padding=1, rng=0),
            layers.BatchNorm(4),
            layers.ReLU(),
            layers.MaxPool(2),
            layers.Flatten(),
            layers.Linear(4 * 4 * 4, 3, rng=1),
        )
    x = cupy.asarray(np.random.default_rng(0).standard_normal((4, 4, 8, 8)).astype("float32"))
    labels = cupy.asarray(np.arange(4) % 3)

    def step() -> Any:
        _, ctx = F.softmax_cross_entropy_forward(net(x), labels)
        dx = net.backward(F.softmax_cross_entropy_backward(1.0, ctx))
        for name, array in net.params.items():
            array -= np.float32(0) * net.grads[name]
        return dx

    try:
        replay, expected = replayed(cupy, step, lambda: x.__imul__(np.float32(2)))
    except NotImplementedError as error:
        pytest.skip(f"CuPy {cupy.__version__} does not capture matrix products: {error}")
    np.testing.assert_allclose(replay, expected, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------------- large arrays
@pytest.mark.parametrize("op", ["max_pool", "pad", "batch_norm"])
def test_more_than_2_to_the_31_elements(cupy, op):
    """Values at both ends of the array, and where 32-bit offsets would have turned over."""
    shape = (2, 64, 4096, 4104) if real(cupy) else (2, 4, 16, 24)
    if real(cupy):
        free, _ = cupy.cuda.runtime.memGetInfo()
        if free < 14 * math.prod(shape):
            pytest.skip(f"needs {14 * math.prod(shape) / 2**30:.0f} GiB of device memory, {free / 2**30:.0f} are free")
    x = cupy.zeros(shape, np.float16)
    marks = {(0, 0, 2, 2): 1.0, (1, shape[1] - 1, shape[2] - 4, 6): 2.0, (-1, -1, -2, -2): 3.0}
    for place, value in marks.items():
        x[place] = value
    with contextlib.nullcontext() if real(cupy) else kernel_calls.far():
        {"max_pool": large_pool, "pad": large_pad, "batch_norm": large_norm}[op](x, marks)


def large_pool(x: Any, marks: dict[tuple[int, ...], float]) -> None:
    y, ctx = F.max_pool_forward(x, 2)
    dx = F.max_pool_backward(y, ctx)
    for (n, c, h, w), value in marks.items():
        assert float(y[n, c, h // 2, w // 2]) == value
        assert float(dx[n, c, h, w]) == value
    for a in (y, dx):
        assert int((a != 0).sum()) == len(marks)


def large_pad(x: Any, marks: dict[tuple[int, ...], float]) -> None:
    y, ctx = F.pad_forward(x, 1, "reflect")
    dx = F.pad_backward(y, ctx)
    for (n, c, h, w), value in marks.items():
        assert float(y[n, c, h + (h >= 0) - (h < 0), w + (w >= 0) - (w < 0)]) == value
    assert float(y[-1, -1, -1, -1]) == 3  # the mirror of row -2 and column -2 of x
    assert float(dx[-1, -1, -2, -2]) == 12  # itself, beside it, below it, and the corner
    assert float(dx[0, 0, 2, 2]) == 1
    assert int((dx != 0).sum()) == len(marks)


def large_norm(x: Any, marks: dict[tuple[int, ...], float]) -> None:
    last, other = (-1, -1, -2, -2), (1, -1, -4, 6)  # of one channel
    y, ctx = F.batch_norm_forward(x, training=True)
    n = x.size // x.shape[1]
    values = [v for (_, c, _, _), v in marks.items() if c in (-1, x.shape[1] - 1)]
    mean = sum(values) / n
    rstd = 1 / math.sqrt(sum(v * v for v in values) / n - mean * mean + 1e-5)
    high, low = ((float(x[place]) - mean) * rstd for place in (last, other))
    assert (float(y[last]), float(y[other])) == pytest.approx((high, low), rel=2e-3)
    assert float(y[0, -1, 0, 0]) == pytest.approx(-mean * rstd, rel=2e-3, abs=1e-6)
    y[...] = 0
    y[last] = 1  # as dy
    dx, _, _ = F.batch_norm_backward(y, ctx)
    wanted = rstd * (1 - 1 / n - high * high / n), rstd * (-1 / n - low * high / n)
    assert (float(dx[last]), float(dx[other])) == pytest.approx(wanted, rel=5e-3)


# ----------------------------------------------------------------------------------------------------- several devices
def test_each_device_serves_its_own_arrays(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device; this needs two")
    host = some(cupy)
    for op, args, options in CALLS:
        expected = [a.get() for a in both_ways(op, cupy.asarray(host), args, options)]
        with cupy.cuda.Device(1):
            x = cupy.asarray(host)
        found = both_ways(op, x, args, options)  # device 0 is current
        assert cupy.cuda.Device().id == 0
        for ours, theirs in zip(expected, found, strict=True):
            assert theirs.device.id == 1
            np.testing.assert_array_equal(ours, theirs.get())
    with pytest.raises(TypeError, match="one owner"):
        F.batch_norm(cupy.asarray(host), gamma=x[0, :, 0, 0], training=True)


# --------------------------------------------------------------------------------------------------- CuPy as we take it
PACKING = r"""
#include <cuda_fp16.h>
struct Pair { int a; double b; };
extern "C" __global__ void pack(double* out, signed char i1, short i2, int i4, long long i8, unsigned char u1,
    unsigned short u2, unsigned u4, unsigned long long u8, float f4, double f8, __half f2, bool b, Pair pair,
    const double* from, const double* none, long long whole, double number, bool flag) {
  const double values[] = {
      double(i1), double(i2), double(i4), double(i8), double(u1), double(u2), double(u4), double(u8), double(f4), f8,
      double(__half2float(f2)), double(b), double(pair.a), pair.b, from[0], double(none == nullptr), double(whole),
      number, double(flag)};
  for (int i = 0; i < 19; ++i) out[i] = values[i];
}
"""


@pytest.mark.smoke
def test_arguments_are_packed_as_the_stand_in_packs_them(cupy):
    """Typed scalars, a struct, views, null, and Python's numbers: int64, float64 and bool."""
    kernel = cupy.RawKernel(PACKING, "pack")
    out, numbers = cupy.zeros(19, np.float64), cupy.asarray(np.arange(8.0))
    signed = [np.int8(-3), np.int16(-300), np.int32(-70_000), np.int64(-(2**40))]
    unsigned = [np.uint8(200), np.uint16(60_000), np.uint32(3 << 30), np.uint64(3 << 40)]
    floats = [np.float32(0.5), np.float64(1e300), np.float16(1.5), np.bool_(True)]
    pair = np.array((7, 2.5), np.dtype([("a", "i4"), ("b", "f8")], align=True))[()]
    kernel((1,), (1,), (out, *signed, *unsigned, *floats, pair, numbers[5:], None, -(2**35), 0.1, True))
    expected = [-3, -300, -70_000, -(2**40), 200, 60_000, 3 << 30, 3 << 40, 0.5, 1e300, 1.5, 1, 7, 2.5, 5]
    assert out.get().tolist() == [*expected, 1, -(2**35), 0.1, 1]


@pytest.mark.parametrize("wrong", [[1], "1", np.arange(2)], ids=["list", "str", "two elements"])
def test_arguments_that_the_stand_in_refuses(cupy, wrong):
    kernel = cupy.RawKernel('extern "C" __global__ void one(double* out, int n) { out[0] = n; }', "one")
    with pytest.raises((TypeError, ValueError)):
        kernel((1,), (1,), (cupy.zeros(1, np.float64), wrong))


@pytest.mark.smoke
def test_what_the_launchers_ask_of_cupy_is_there(cupy):
    """Attributes and methods, under these names."""
    has = cupy.cuda.Device().attributes
    for name in ("MultiProcessorCount",):
        assert isinstance(has[name], int), name
    x = cupy.zeros((2, 3), np.float32)
    assert x.data.ptr % 256 == 0
    assert (x.flags.c_contiguous, x.T.flags.c_contiguous) == (True, False)
    assert cupy.RawModule(code=PACKING, name_expressions=("pack",), options=("-std=c++17",)).get_function("pack")


def test_an_error_of_the_compiler_comes_with_file_and_line(cupy, tmp_path, monkeypatch):
    tmp_path.joinpath("bad.cuh").write_text("\n__device__ int one() { return nonsense; }\n")
    tmp_path.joinpath("bad.cu").write_text('#include "bad.cuh"\n__global__ void bad(int* x) { x[0] = one(); }\n')
    monkeypatch.setattr(compiler, "HERE", tmp_path)
    with pytest.raises(compiler.KernelError, match=r"(?s)^bad of bad\.cu .*-std=c\+\+17.*bad\.cuh[(:]2.*nonsense"):
        compiler.kernel("bad", "bad")
    compiler.source.cache_clear()


# --------------------------------------------------------------------------------------------------------- all kernels
def by_op(dtypes: slice, some: slice = slice(None)) -> pytest.MarkDecorator:
    """The representative calls of each op, or some of them, in these of their dtypes; on the stand-in small ones."""
    groups: dict[str, list[Any]] = {}
    for call in kernel_calls.CALLS:
        groups.setdefault(call.op + call.options.get("data_format", "").removeprefix("channels"), []).append(call)
    params = []
    for kind, (op, calls) in itertools.product(("standin", "gpu"), groups.items()):
        for n, call in enumerate(calls[some]):
            if kind == "gpu" or math.prod(call.shape) < 200:
                served = call.dtypes[dtypes] if kind == "gpu" else call.dtypes[:1]
                params.append(pytest.param(kind, call, served, id=f"{kind}-{op}-{n}"))
    return pytest.mark.parametrize(("cupy", "call", "dtypes"), params, indirect=["cupy"])


def compiled_and_served(cupy: Any, call: kernel_calls.Call, dtypes: tuple[str, ...]) -> None:
    """The call runs, and the driver says of its kernels: no local memory, blocks that fit."""
    for dtype in dtypes:
        list(call.run(cupy, dtype, cupy.ones))
    if real(cupy):
        cupy.cuda.Device().synchronize()
        for kernel in kernel_calls.asked_by((dataclasses.replace(call, dtypes=dtypes),), wide=False):
            compiled = compiler.kernel(kernel.stem, kernel.name)
            assert compiled.local_size_bytes == 0, kernel
            assert compiled.max_threads_per_block >= kernel.threads, kernel


@pytest.mark.smoke
@by_op(slice(1))
def test_every_kernel_compiles_and_serves(cupy, call, dtypes):
    compiled_and_served(cupy, call, dtypes)


@by_op(slice(1, 4))
def test_every_kernel_compiles_and_serves_other_dtypes(cupy, call, dtypes):
    compiled_and_served(cupy, call, dtypes)


@pytest.mark.sanitize
@by_op(slice(1), slice(1))
def test_a_call_of_each_op(cupy, call, dtypes):
    compiled_and_served(cupy, call, dtypes)
