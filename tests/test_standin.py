"""The stand-in for CuPy: raw kernels on the emulator, CuPy's packing rules, and the mistakes that CuPy would hide.

What the stand-in and CuPy must do alike is also asked of CuPy itself, where there is a GPU.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends

from . import simt, standin_cuda, standin_cupy
from .standin_cuda import CUDADriverError, CUDARuntimeError

CODE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
struct Pair { int n; float by; };
template <typename T, int V, typename I> __global__ void scale(const T* x, T* y, I n, float by) {
  const I step = I(gridDim.x) * blockDim.x;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) y[i] = T(float(x[i]) * by);
}
__global__ void mangled(float* x) { x[0] = 1; }
extern "C" __global__ void packed(double* out, bool a, long long b, double c, unsigned long long d, const float* null) {
  out[0] = a; out[1] = b; out[2] = c; out[3] = d; out[4] = null == nullptr;
}
extern "C" __global__ void by_value(float* x, Pair p) { for (int i = 0; i < p.n; ++i) x[i] *= p.by; }
#ifdef BROKEN
nonsense
#endif
"""
SCALE = {
    "float32": "scale<float, 4, unsigned>",
    "float16": "scale<__half, 8, unsigned>",
    "bfloat16": "scale<__nv_bfloat16, 8, unsigned>",
}


@pytest.fixture
def cupy() -> Iterator[types.ModuleType]:
    reason = simt.unavailable()
    if reason:
        pytest.skip(reason)
    with standin_cupy.installed() as module:
        yield module


@pytest.fixture(params=["standin", "gpu"])
def either(request: pytest.FixtureRequest) -> Any:
    """The stand-in, then CuPy."""
    if request.param == "standin":
        return request.getfixturevalue("cupy")
    reason = backends.available()["cupy"]
    if reason:
        pytest.skip(f"no GPU here: {reason}")
    return pytest.importorskip("cupy")


def kernel(cupy: types.ModuleType, name: str, **options: Any) -> Any:
    return cupy.RawModule(code=CODE, name_expressions=tuple(SCALE.values()), **options).get_function(name)


@pytest.mark.parametrize("dtype", SCALE)
def test_a_template_by_its_name_expression(either: Any, dtype: str) -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    host = np.arange(-50, 50).astype(kind)
    x, y = either.asarray(host), either.empty(100, kind)
    kernel(either, SCALE[dtype])((2,), (32,), (x, y, np.uint32(100), np.float32(2)))
    assert y.dtype == x.dtype
    assert y.get().tobytes() == (host + host).tobytes()  # 2 * host is float32 where NumPy is old and host bfloat16


def test_scalars_are_packed_by_cupys_rules(either: Any) -> None:
    out = either.zeros(5)
    kernel(either, "packed")((1,), (1,), (out, True, -(1 << 40), 0.1, 1 << 63, None))
    assert out.tolist() == [1, -(1 << 40), 0.1, float(1 << 63), 1]
    kernel(either, "packed")((1,), (1,), [out, np.bool_(False), np.int64(1), np.float64(2), np.uint64(3), out.data])
    assert out.tolist() == [0, 1, 2, 3, 0]


def test_numbers_go_by_their_own_width_and_a_mistaken_one_is_refused(cupy: types.ModuleType) -> None:
    x = cupy.zeros(4, "float32")
    scale = kernel(cupy, SCALE["float32"])
    for n, by, says in (
        (4, np.float32(1), "argument 2: kernel wants u4, caller packs i8"),
        (np.uint32(4), 1.0, "argument 3: kernel wants f4, caller packs f8"),
        (np.uint64(4), np.float32(1), "argument 2: kernel wants u4, caller packs u8"),
        (x.data.ptr, np.float32(1), "argument 2: kernel wants u4"),
    ):
        with pytest.raises(simt.SimtError, match=says):
            scale((1,), (4,), (x, x, n, by))
    with pytest.raises(simt.SimtError, match="argument 0: kernel wants Pf4, caller packs i8"):
        scale((1,), (4,), (x.data.ptr, x, np.uint32(4), np.float32(1)))


def test_of_host_memory_one_element_goes_by_value_and_arrays_are_refused(either: Any) -> None:
    x, by_value = either.asarray(np.ones(4, "float32")), kernel(either, "by_value")
    pair = np.array([(3, 2.5)], [("n", "i4"), ("by", "f4")])
    by_value((1,), (1,), (x, pair))
    assert x.tolist() == [2.5, 2.5, 2.5, 1]
    for host in (np.ones(4, "float32"), np.ones((2, 2))):
        with pytest.raises(TypeError, match=r"numpy\.ndarray of shape"):
            by_value((1,), (1,), (host, pair))
    for strange in ("text", [1], object()):
        with pytest.raises(TypeError, match="Unsupported type"):
            by_value((1,), (1,), (x, strange))


def test_a_view_reaches_the_kernel_with_its_own_bounds_and_alignment(cupy: types.ModuleType) -> None:
    code = """extern "C" __global__ void four(const float4* x, float* y) { y[threadIdx.x] = x[threadIdx.x].y; }"""
    four = cupy.RawModule(code=code).get_function("four")
    whole, y = cupy.asarray(np.arange(64, dtype="float32")), cupy.zeros(4, "float32")
    four((1,), (4,), (whole[16:32], y))
    assert y.tolist() == [17, 21, 25, 29]
    with pytest.raises(simt.SimtError, match=r"misaligned access .*: 4 bytes off an alignment of 16"):
        four((1,), (4,), (whole[1:17], y))
    with pytest.raises(simt.SimtError, match="at byte 52 of argument 0, which has 52"):
        four((1,), (4,), (whole[16:29], y))
    four((1,), (4,), (whole.data + 16 * 4, y))  # a bare pointer: the allocation bounds it
    assert y.tolist() == [17, 21, 25, 29]
    with pytest.raises(simt.SimtError, match="out of bounds"):
        four((1,), (4,), (whole[60:].data, y))


def test_what_a_launcher_asks_of_an_array(cupy: types.ModuleType) -> None:
    x = cupy.zeros((4, 6), "float16")
    part = x[1:, ::2]
    assert x.data.ptr % 512 == 0
    assert part.data.ptr == x.data.ptr + 12
    assert (part.nbytes, part.itemsize, part.strides, part.size) == (18, 2, (12, 4), 9)
    assert (x.flags.c_contiguous, part.flags.c_contiguous, x.T.flags.f_contiguous) == (True, False, True)
    assert cupy.zeros(0).data.ptr == 0
    assert not hasattr(x.flags, "writeable")
    assert not hasattr(x, "ctypes")
    other = cupy.zeros((4, 6), "float16")
    assert abs(other.data.ptr - x.data.ptr) >= x.nbytes


def test_launches_are_recorded(cupy: types.ModuleType) -> None:
    x, args = cupy.zeros(256, "float32"), (np.uint32(256), np.float32(1))
    stream = cupy.cuda.Stream(non_blocking=True)
    with standin_cuda.emulating(traffic=True, order="descending") as made:
        kernel(cupy, SCALE["float32"])((2, 1), (64,), (x, x, *args))
        with stream:
            assert cupy.cuda.get_current_stream() == stream
            kernel(cupy, SCALE["float32"])((1,), (128,), (x, x, *args), shared_mem=64)
    kernel(cupy, SCALE["float32"])((1,), (32,), (x, x, *args), stream=stream)
    assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
    first, second = made
    assert (first.name, first.grid, first.block, first.shared_mem) == (SCALE["float32"], (2, 1), (64,), 0)
    assert (first.stream, second.stream, second.shared_mem) == (0, stream.ptr, 64)
    assert first.traffic is not None
    assert first.traffic.bytes == (1024, 1024)
    assert [(m.block, m.stream) for m in standin_cuda.launches] == [
        ((64,), 0),
        ((128,), stream.ptr),
        ((32,), stream.ptr),
    ]
    assert standin_cuda.launches[-1].traffic is None


# ------------------------------------------------------------------------------------ what the driver or NVRTC refuses
def test_names_that_the_module_does_not_have(either: Any) -> None:
    for name in ("mangled", "scale<double, 1, unsigned>", "nobody"):
        with pytest.raises(either.cuda.driver.CUDADriverError, match="CUDA_ERROR_NOT_FOUND"):
            kernel(either, name)
    assert either.RawModule(code=CODE, name_expressions=["mangled"]).get_function("mangled").name == "mangled"
    with pytest.raises(either.cuda.compiler.CompileException, match="no_such_kernel"):
        either.RawModule(code=CODE, name_expressions=["no_such_kernel<3>"]).get_function("no_such_kernel<3>")


def test_a_source_or_option_that_does_not_compile(either: Any) -> None:
    with pytest.raises(either.cuda.compiler.CompileException, match="nonsense") as caught:
        kernel(either, "packed", options=("-std=c++17", "-DBROKEN"))
    assert "nonsense" in caught.value.get_message()
    with pytest.raises(either.cuda.compiler.CompileException, match=r"option.*--no-such-option"):
        kernel(either, "packed", options=("--no-such-option",))
    with pytest.raises(TypeError, match="expected tuple"):
        kernel(either, "packed", options=["-std=c++17"])
    with pytest.raises(TypeError, match="Exactly one of"):
        either.RawModule(name_expressions=("f",))
    with pytest.raises(ValueError, match="only nvrtc"):
        either.RawModule(code=CODE, backend="nvcc", name_expressions=("f",))


def test_an_empty_grid_is_refused(cupy: types.ModuleType) -> None:
    x = cupy.zeros(0, "float32")
    args = (x, x, np.uint32(0), np.float32(1))
    for grid, block in (((0,), (32,)), ((1, 0), (32,)), ((1,), (0,)), ((-1,), (1,))):
        with pytest.raises(CUDADriverError, match=r"CUDA_ERROR_INVALID_VALUE: scale.* empty grid or block"):
            kernel(cupy, SCALE["float32"])(grid, block, args)
    with pytest.raises(TypeError, match="'grid' has incorrect type"):
        kernel(cupy, SCALE["float32"])([1], (32,), args)


def test_shared_memory_beyond_48_kib_is_asked_for_first(cupy: types.ModuleType) -> None:
    code = """extern "C" __global__ void fill(int n) { extern __shared__ char s[]; __shared__ char t[16];
        for (int i = 0; i < n; ++i) t[i % 16] = s[i] = 1; }"""
    fill = cupy.RawModule(code=code).get_function("fill")
    assert (fill.max_dynamic_shared_size_bytes, fill.attributes["max_dynamic_shared_size_bytes"]) == (49152, 49152)
    fill((1,), (1,), (np.int32(49136),), shared_mem=49136)
    with pytest.raises(simt.SimtError, match="49168 bytes of shared memory, the limit is 49152"):
        fill((1,), (1,), (np.int32(1),), shared_mem=49152)
    with pytest.raises(CUDADriverError, match="max_dynamic_shared_size_bytes is 49152"):
        fill((1,), (1,), (np.int32(1),), shared_mem=65536)
    fill.max_dynamic_shared_size_bytes = 65536
    fill((1,), (1,), (np.int32(65536),), shared_mem=65536)
    most = cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
    with pytest.raises(CUDADriverError, match=f"at most {most}"):
        fill.max_dynamic_shared_size_bytes = most + 1


def test_an_array_of_another_device_is_a_fault(cupy: types.ModuleType) -> None:
    class Second(standin_cupy.Device):
        id = 1

    class OnSecond(standin_cupy.ndarray):
        __module__ = "cupy"
        device = Second()

    x, args = OnSecond(np.zeros(4, "float32")), (np.uint32(4), np.float32(1))
    with pytest.raises(CUDARuntimeError, match="an array on device 1 in a launch on device 0"):
        kernel(cupy, SCALE["float32"])((1,), (4,), (x, x, *args))
    with x.device:
        kernel(cupy, SCALE["float32"])((1,), (4,), (x, x, *args))
    assert cupy.cuda.runtime.getDevice() == 0


def test_what_makes_the_host_wait_is_an_error_where_that_is_forbidden(cupy: types.ModuleType) -> None:
    x, scale = cupy.ones(4, "float32"), kernel(cupy, SCALE["float32"])
    waits = {
        "get": lambda: x.get(),
        "item": lambda: x[0].item(),
        "float": lambda: float(x[0]),
        "bool": lambda: bool(x[0] > 1),
        "int": lambda: int(x[0]),
        "asnumpy": lambda: cupy.asnumpy(x),
        "to_numpy": lambda: backends.to_numpy(x),
        "upload": lambda: cupy.asarray(np.ones(3)),
        "stream": lambda: cupy.cuda.get_current_stream().synchronize(),
        "device": lambda: cupy.cuda.Device().synchronize(),
        "compile": lambda: kernel(cupy, SCALE["float16"]),
    }
    for wait in waits.values():
        wait()
        with standin_cuda.no_host_sync(), pytest.raises(CUDARuntimeError, match="makes the host wait"):
            wait()
    with standin_cuda.no_host_sync():
        y = cupy.zeros(4, "float32") + x
        scale((1,), (4,), (x, y, np.uint32(4), np.float32(3)))
    assert y.tolist() == [3, 3, 3, 3]


def test_bfloat16_is_widened_where_cupy_has_no_form_for_it(cupy: types.ModuleType) -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x = cupy.asarray(np.array([1, -2, 3]).astype(bfloat16))
    assert cupy.where(x > 0, x, x).dtype == cupy.clip(x, -1, 1).dtype == np.float32
    assert (x + x).dtype == cupy.maximum(x, -x).dtype == cupy.sum(x).dtype == bfloat16
