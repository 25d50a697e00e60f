"""The emulator's Python side: sources made ready for g++, arguments and their bounds, what is compiled and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import simt
from .simt.kernels import checked_or_plain, floats, needs_emulator

pytestmark = needs_emulator


def test_shared_variables_in_every_form() -> None:
    source = """
template <typename T> struct Traits { using type = T; };
template <typename T, int N> __global__ void forms(T* out) {
  __shared__ T one, many[N < 4 ? 4 : N], grid[2][N / 2 + 1];  // "__shared__ in a comment", and __shared__ int s[2];
  static __shared__ typename Traits<T>::type typed[N];
  alignas(16) __shared__ unsigned char bytes[sizeof(T) * N];
  __shared__ __align__(sizeof(T) * 4) volatile T loud[
      N];
  const char* said = "__shared__ float text[1];"; (void)said; (void)grid;
  const int i = threadIdx.x;
  many[i] = i; typed[i] = i; loud[i] = i; reinterpret_cast<T*>(bytes)[i] = i;
  if (i == 0) one = 1;
  __syncthreads();
  out[i] = many[i] + typed[i] + loud[i] + reinterpret_cast<T*>(bytes)[i] + one;
}
"""
    out = floats(8)
    simt.Module(source, ["forms<float, 8>"]).launch("forms<float, 8>", (1,), (8,), (out,))
    np.testing.assert_array_equal(out, 4 * np.arange(8) + 1)


@pytest.mark.parametrize("declaration", ["__shared__ float a[4], *b;", "#define SHARED __shared__\nSHARED float a[4];"])
def test_a_shared_variable_that_cannot_be_read_is_an_error(declaration: str) -> None:
    with pytest.raises((simt.SourceError, simt.CompileError), match=r"here\.cu:1|__shared__"):
        simt.Module(f"__global__ void k(float* x) {{ {declaration} x[0] = 1; }}", ["k"], filename="here.cu")


def test_lines_stay_where_they_are() -> None:
    source = "template <int N>\n__global__ void __launch_bounds__(\n  N, 1)\n  k(int* x)\n{\n  x[1] = 0;\n}\n"
    with pytest.raises(simt.SimtError, match=r"at mine\.cu:6"):
        simt.Module(source, ["k<64>"], filename="mine.cu").launch("k<64>", (1,), (1,), (np.zeros(1, np.int32),))
    with pytest.raises(simt.CompileError, match=r"mine\.cu:3:.*error: .*nonsense"):
        simt.Module("\n__global__ void k(int* x) {\n  nonsense(x); }", ["k"], filename="mine.cu")


def test_what_the_parameters_are() -> None:
    source = """#include <cuda_fp16.h>
#include <cuda_bf16.h>
struct Pair { int a, b; };
__global__ void k(const float* a, __half* b, const __nv_bfloat16* c, float4* d, void* e, bool f, char g, unsigned h,
                  long long i, float j, double k, Pair l, __half m) {}"""
    wanted = ["Pf4", "Ph2", "Py2", "PV16", "PV0", "b1", "i1", "u4", "i8", "f4", "f8", "V8", "h2"]
    assert simt.Module(source, ["k"]).parameters("k") == wanted


COPY = """__global__ void copy(const float* x, float* y, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i]; }"""


@checked_or_plain
def test_arguments_of_the_wrong_kind_are_refused(check: bool) -> None:
    copy = simt.Module(COPY, ["copy"], check=check)
    x, y, n = floats(4), floats(4), np.int32(4)
    for args, says in {
        "count": ((x, y), "copy takes 3 arguments, got 2"),
        "int": ((x, y, 4), "argument 2: kernel wants i4, caller packs i8"),
        "wide": ((x, y, np.int64(4)), "argument 2: kernel wants i4, caller packs i8"),
        "float": ((x, y, np.float32(4)), "argument 2: kernel wants i4, caller packs f4"),
        "list": ((x, y, [4]), "argument 2"),
        "none": ((x, y, None), "argument 2: kernel wants i4"),
        "array": ((x, y, np.ones(1, np.int32)), "argument 2: kernel wants i4, caller packs Pi4"),
        "scalar": ((np.float32(1), y, n), "argument 0: kernel wants Pf4, caller packs f4"),
        "double": ((x.astype(np.float64), y, n), "argument 0: kernel wants Pf4, caller packs Pf8"),
        "half": ((x.astype(np.float16), y, n), "argument 0: kernel wants Pf4, caller packs Ph2"),
        "ints": ((x.view(np.int32), y, n), "argument 0: kernel wants Pf4, caller packs Pi4"),
    }.values():
        with pytest.raises(simt.SimtError, match=says):
            copy.launch("copy", (1,), (4,), args)
    with pytest.raises(simt.SimtError, match="none of the module's kernels: copy"):
        copy.launch("paste", (1,), (4,), (x, y, n))
    copy.launch("copy", (1,), (4,), (x, y, np.uint32(4)))


@pytest.mark.parametrize(
    ("grid", "block", "says"),
    [
        ((0,), (32,), r"invalid grid \(0,1,1\)"),
        ((1, 65536), (32,), "invalid grid"),
        ((1,), (1025,), r"invalid block \(1025,1,1\)"),
        ((1,), (1, 1, 65), "invalid block"),
        ((1,), (0,), "invalid block"),
        ((), (1,), "grid must have one to three sizes"),
        ((-1,), (1,), "grid must have sizes that fit"),
    ],
)
def test_launch_shapes_that_no_device_takes(grid: tuple[int, ...], block: tuple[int, ...], says: str) -> None:
    with pytest.raises(simt.SimtError, match=says):
        simt.Module(COPY, ["copy"]).launch("copy", grid, block, (floats(1), floats(1), np.int32(0)))


def test_what_check_mode_alone_can_do_and_how_large_a_cooperative_grid_may_be() -> None:
    args = (floats(1), floats(1), np.int32(0))
    for how in ({"traffic": True}, {"cooperative": True}):
        with pytest.raises(simt.SimtError, match="need Module"):
            simt.Module(COPY, ["copy"], check=False).launch("copy", (1,), (1,), args, **how)
    with pytest.raises(simt.SimtError, match="the emulator holds 30000"):
        simt.Module(COPY, ["copy"]).launch("copy", (1000,), (64,), args, cooperative=True)
    simt.Module(COPY, ["copy"]).launch("copy", (1000,), (64,), args)


@checked_or_plain
def test_views_have_their_own_bounds_and_share_their_memory(check: bool) -> None:
    copy = simt.Module(COPY, ["copy"], check=check)
    whole = np.arange(32, dtype=np.float32)
    copy.launch("copy", (1,), (8,), (whole[3:7], whole[20:24], np.int32(4)))
    expected = np.arange(32)
    expected[20:24] = expected[3:7]
    np.testing.assert_array_equal(whole, expected)
    copy.launch("copy", (1,), (8,), (whole[:16], whole[:16], np.int32(16)))  # one array as input and output
    copy.launch("copy", (1,), (8,), (floats(0), floats(0), np.int32(0)))
    if check:
        for x, byte in ((whole[3:7], 16), (whole[::8], 100)):
            with pytest.raises(simt.SimtError, match=rf"read of 4 bytes at byte {byte} of argument 0"):
                copy.launch("copy", (1,), (32,), (x, floats(32), np.int32(32)))
        with pytest.raises(simt.SimtError, match="read of 4 bytes at byte 0 of argument 0, which has 0"):
            copy.launch("copy", (1,), (1,), (floats(0), floats(1), np.int32(1)))


def test_a_pointer_reaches_its_whole_allocation_from_where_it_points() -> None:
    copy, whole, y = simt.Module(COPY, ["copy"]), np.arange(32, dtype=np.float32), floats(8)
    copy.launch("copy", (1,), (8,), (simt.Pointer(whole[8:10], 16), y, np.int32(8)))
    np.testing.assert_array_equal(y, np.arange(12, 20))
    with pytest.raises(simt.SimtError, match="at byte 128 of argument 0, which has 128"):
        copy.launch("copy", (1,), (8,), (simt.Pointer(whole, 100), y, np.int32(8)))


def test_a_wild_index_meets_no_other_array() -> None:
    source = "__global__ void far(const float* x, float* y, long long by) { y[0] = x[by]; }"
    far, x, y = simt.Module(source, ["far"]), floats(64), floats(64)
    distance = (y.ctypes.data - x.ctypes.data) // 4
    for by in (64, 68, 72, 80, 96, 128, 1 << 20, -1, -4, -64, -(1 << 20), distance, distance + 1):
        with pytest.raises(simt.SimtError, match="out of bounds"):
            far.launch("far", (1,), (1,), (x, y, np.int64(by)))


def test_arrays_lie_far_from_each_other_and_from_the_stack() -> None:
    source = """__global__ void measure(const float* x, const float* y, long long* by) {
        char local; by[0] = &local - (const char*)x; by[1] = (const char*)y - (const char*)x; }"""
    by = np.zeros(2, np.int64)
    simt.Module(source, ["measure"]).launch("measure", (1,), (1,), (floats(1), floats(1), by))
    assert (abs(by) > 1 << 20).all()


def test_what_is_compiled_is_kept_and_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    run = simt.build._run

    def counting(command: Any, stdin: str | None = None) -> Any:
        commands.append(list(map(str, command)))
        return run(command, stdin)

    monkeypatch.setenv("SIMT_CACHE", str(tmp_path))
    monkeypatch.setattr(simt.build, "_runtime", lambda flags: tmp_path / "runtime.o")
    monkeypatch.setattr(simt.build, "_header", lambda flags: Path(simt.__file__).parent / "device" / "device.h")
    monkeypatch.setattr(simt.build, "_run", counting)
    simt.build._emulator()
    (tmp_path / "runtime.o").touch()
    commands.clear()
    made = {simt.build.library(COPY, ["copy"], ["-DA"], "k.cu", True) for _ in range(3)}
    assert len(commands) == 2  # compiled and linked once
    assert len(made) == 1
    made |= {
        simt.build.library(COPY, ["copy"], ["-DB"], "k.cu", True),
        simt.build.library(COPY + " ", ["copy"], [], "k.cu", True),
    }
    assert len(made) == 3
    with pytest.raises(simt.CompileError):
        simt.build.library("nonsense", ["copy"], [], "k.cu", True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["runtime.o", *(p.name for p in made)])
