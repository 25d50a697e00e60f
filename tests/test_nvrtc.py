"""The compile harness: small kernels for every architecture, what it reads from the log and the PTX, its errors."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from . import nvrtc

pytestmark = pytest.mark.skipif(nvrtc.unavailable() is not None, reason=str(nvrtc.unavailable()))

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
template <typename T, int V> struct alignas(sizeof(T) * V) Pack { T v[V]; };
template <typename T, int V, typename I, bool Wide = true>
__global__ void __launch_bounds__(256) scale(const Pack<T, V>* __restrict__ x, Pack<T, V>* __restrict__ y, I n) {
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    Pack<T, V> p = x[i];
    for (int v = 0; v < V; ++v) p.v[v] = T(2.f * float(p.v[v]));
    y[i] = p;
  }
}
extern "C" __global__ void turn(float* x) {
  __shared__ float s[256];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = s[255 - threadIdx.x];
}
__global__ void __launch_bounds__(1024, 2) crowded(const float* x, float* y) {  // 64 values in 32 registers
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) y[i * 1024 + threadIdx.x] = v[63 - i] * v[i] + v[(i * 7) % 64];
}
"""
HALF, FLOAT = "scale<__half, 8, unsigned>", "scale<float, 1, unsigned int, false>"
KERNELS = [HALF, FLOAT, "scale<__nv_bfloat16,8,long long>", "turn", "crowded"]


@pytest.fixture(scope="module")
def compiled() -> list[nvrtc.Kernel]:
    return nvrtc.compile_all(SOURCE, KERNELS, options=("-std=c++17", "-lineinfo"), filename="small.cu")


def test_each_kernel_is_compiled_for_each_architecture(compiled: list[nvrtc.Kernel]) -> None:
    assert [(k.name, k.arch) for k in compiled] == [(name, arch) for arch in nvrtc.ARCHS for name in KERNELS]
    assert all(0 < k.registers <= 255 for k in compiled)


def test_registers_spills_stack_and_shared_memory(compiled: list[nvrtc.Kernel]) -> None:
    for k in compiled:
        assert k.shared == (1024 if k.name == "turn" else 0)
        if k.name == "crowded":
            assert k.registers <= 64  # 32 where a processor holds 2048 threads
            assert min(k.spill_stores, k.spill_loads, k.stack) > 0
        else:
            assert (k.spills, k.stack) == (0, 0)


def test_wide_accesses_are_told_from_narrow_ones(compiled: list[nvrtc.Kernel]) -> None:
    for k in compiled:
        if k.name in (FLOAT, "crowded"):
            assert k.wide == (False, False)
            assert set(k.loads) == set(k.stores) == {4}
        elif k.name != "turn":
            assert k.wide == (True, True)
            assert (k.loads[2], k.stores[2]) == (0, 0)


def test_the_table_has_a_row_a_kernel_and_architecture(compiled: list[nvrtc.Kernel]) -> None:
    lines = nvrtc.table(compiled).splitlines()
    assert lines[0] == "| kernel | sm | registers | spills | stack | shared | loads | stores |"
    assert len(lines) == 2 + len(compiled)
    one = nvrtc.Kernel("k<1>", 90, 20, 8, 16, 4, 32, Counter({16: 2, 4: 1}), Counter())
    assert nvrtc.table([one]).splitlines()[2] == "| `k<1>` | 90 | 20 | 20 | 8 | 32 | 2×16 1×4 |  |"


def test_an_error_is_the_compilers_own() -> None:
    with pytest.raises(nvrtc.CompileError, match=r"bad\.cu\(1\): error: identifier .nonsense. is undefined"):
        nvrtc.compile_all("__global__ void f() { nonsense(); }", ["f"], [90], filename="bad.cu")
    with pytest.raises(nvrtc.CompileError, match="no_such_kernel"):
        nvrtc.compile_all("__global__ void f() {}", ["no_such_kernel"], [90])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nvcc_finds_the_same(compiled: list[nvrtc.Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "location", lambda: None)
    assert nvrtc.compiler().startswith("nvcc ")
    again = nvrtc.compile_all(SOURCE, KERNELS, [90])
    before = [k for k in compiled if k.arch == 90]
    assert [(k.name, k.shared, k.wide, k.spills > 0) for k in again] == [
        (k.name, k.shared, k.wide, k.spills > 0) for k in before
    ]


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "location", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "pip install nvidia-cuda-nvrtc" in str(nvrtc.unavailable())
    assert nvrtc.compiler() == "none"
    with pytest.raises(RuntimeError, match="no CUDA compiler"):
        nvrtc.compile_all("", [])
