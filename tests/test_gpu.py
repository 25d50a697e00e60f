"""What only a real device can show. Everything else runs there too, as the `gpu` implementation of the other tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends, kernels
from cnnlayers import functional as F

reason = backends.available()["cupy"]
pytestmark = pytest.mark.skipif(reason is not None, reason=f"no GPU here: {reason}")

# (op, arguments, options) whose forward and backward are repeated; x is (8, 16, 33, 34) and has ties.
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("max_pool", (2,), {}),
    ("max_pool", (3, 2, 1), {}),
    ("max_pool", (3, 1, 1), {"ties": "split"}),
    ("avg_pool", (3, 2, 1), {}),
    ("adaptive_avg_pool", (5,), {}),
    ("adaptive_max_pool", (5,), {}),
    ("pad", (2, "reflect"), {}),
    ("pad", (2, "edge"), {}),
    ("batch_norm", (), {"training": True}),
    ("group_norm", (4,), {}),
    ("layer_norm", ((33, 34),), {}),
    ("rms_norm", ((34,),), {}),
]
BY_CALL = pytest.mark.parametrize(("op", "args", "options"), CALLS, ids=[f"{c[0]}{c[1]}" for c in CALLS])


def some(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).integers(-9, 9, (8, 16, 33, 34)).astype(dtype) / 4


def both_ways(op: str, x: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """y and dx, with dy = y."""
    y, ctx = getattr(F, f"{op}_forward")(x, *args, **options)
    dx = getattr(F, f"{op}_backward")(y, ctx)
    return y, dx[0] if isinstance(dx, tuple) else dx


@BY_CALL
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_same_bits_a_hundred_times_under_load_gpu(op, args, options, dtype):
    import cupy

    x = cupy.asarray(some(dtype))
    first = [a.get().tobytes() for a in both_ways(op, x, args, options)]
    busy = cupy.cuda.Stream(non_blocking=True)
    load = cupy.ones((2048, 2048), cupy.float32)
    for _ in range(100):
        with busy:
            load @ load
        assert [a.get().tobytes() for a in both_ways(op, x, args, options)] == first
    busy.synchronize()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("op", "args", "options"), [c for c in CALLS if c[0] in ("max_pool", "pad")])
def test_cpu_and_gpu_give_the_same_bits_gpu(op, args, options, dtype):
    import cupy

    x = some(dtype)
    x[0, 0, :3, :3], x[1, 1, 5, 5], x[2, 2] = -0.0, np.nan, -np.inf
    on_cpu, on_gpu = both_ways(op, x, args, options), both_ways(op, cupy.asarray(x), args, options)
    for ours, theirs in zip(on_cpu, on_gpu, strict=True):
        assert ours.tobytes() == theirs.get().tobytes()
    if op == "max_pool":
        (_, ours), (_, theirs) = (F.max_pool(a, *args, return_indices=True) for a in (x, cupy.asarray(x)))
        np.testing.assert_array_equal(ours, theirs.get())


@BY_CALL
def test_a_stream_of_the_callers_gpu(op, args, options):
    import cupy

    x = cupy.asarray(some())
    expected = [a.get() for a in both_ways(op, x, args, options)]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        found = both_ways(op, x, args, options)
    stream.synchronize()
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(ours, theirs.get())


def test_a_training_step_is_captured_in_a_graph_gpu():
    """After a warm-up call nothing synchronises with the host or allocates outside the pool."""
    import cupy

    x = cupy.asarray(some())
    gamma, beta = cupy.ones(16, cupy.float32), cupy.zeros(16, cupy.float32)

    def step() -> Any:
        padded, pad = F.pad_forward(x, 1, "reflect")
        normal, norm = F.batch_norm_forward(padded, gamma, beta, training=True)
        active, relu = F.relu_forward(normal)
        y, pool = F.max_pool_forward(active, 2)
        dx = F.relu_backward(F.max_pool_backward(y, pool), relu)
        return F.pad_backward(F.batch_norm_backward(dx, norm)[0], pad)

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(3):
            expected = step()
        stream.synchronize()
        stream.begin_capture()
        captured = step()
        graph = stream.end_capture()
        graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(captured.get(), expected.get())


@pytest.mark.parametrize("op", ["max_pool", "pad", "batch_norm"])
def test_more_than_2_to_the_31_elements_gpu(op):
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    shape = (2, 64, 4096, 4104)
    if free < 12 * math.prod(shape):
        pytest.skip(f"needs {12 * math.prod(shape) / 2**30:.0f} GiB of device memory, {free / 2**30:.0f} are free")
    x = cupy.zeros(shape, cupy.float16)
    x[-1, -1, -1, -1] = 3
    if op == "max_pool":
        y, ctx = F.max_pool_forward(x, 2)
        dx = F.max_pool_backward(y, ctx)
        assert float(y[-1, -1, -1, -1]) == 3
        assert float(dx[-1, -1, -1, -1]) == 3
        assert float(y.max(axis=(1, 2, 3))[0]) == 0
    elif op == "pad":
        y = F.pad(x, 1, "reflect")
        assert float(y[-1, -1, -2, -2]) == 3
        assert float(y[-1, -1, -1, -1]) == 0
    else:
        y = F.batch_norm(x, training=True)
        assert float(y[-1, -1, -1, -1]) > 1000
        assert abs(float(y[0, 0, 0, 0])) < 1e-3


def test_every_kernel_compiles_and_serves_gpu():
    """In mode "require" an op that has a kernel must use it."""
    import cupy

    with kernels.mode("require"):
        for op, args, options in CALLS:
            both_ways(op, cupy.asarray(some()), args, options)
