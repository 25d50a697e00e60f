"""The machine code's interpreter (tests/sass): it computes what the emulator computes, and counts what can be counted
by hand."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest

from cnnlayers import functional as F
from cnnlayers import kernels
from cnnlayers.bench import cases
from cnnlayers.kernels.cuda import compile as compiler

from . import kernel_calls, simt, standin_cupy
from .kernel_calls import LAST, TRAIN, Call
from .sass import launches, table, verdict
from .sass.device import A100, DEVICES, H200, LATENCY
from .sass.launches import Launch, array_of, build, noise
from .sass.listing import parse
from .sass.memory import Memory
from .sass.warp import Code, run_blocks, run_warp

disassembled = pytest.mark.skipif(launches.unavailable() is not None, reason=str(launches.unavailable()))
emulated = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

ADDS = """template <int N> __global__ void __launch_bounds__(256) adds(const float* x, float* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
#pragma unroll
  for (int k = 0; k < N; ++k) asm volatile("add.f32 %0, %0, 0f3F800000;" : "+f"(v));
  y[i] = v;
}"""
LOADS = """
__global__ void __launch_bounds__(256) one(const float4* __restrict__ x, float4* __restrict__ y) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i];
}
__global__ void __launch_bounds__(256) two(const float4* __restrict__ x, float4* __restrict__ y) {
  const unsigned i = 2 * blockIdx.x * blockDim.x + threadIdx.x;
  const float4 a = x[i], b = x[i + blockDim.x];
  y[i] = a;
  y[i + blockDim.x] = b;
}
__global__ void __launch_bounds__(256) chained(const int4* __restrict__ x, int4* __restrict__ y) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[x[i].x];
}"""
LOOP = """__global__ void __launch_bounds__(256) rows(const float* x, float* y, int n, unsigned size) {
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    float sum = 0;
#pragma unroll 1
    for (int k = 0; k < n; ++k) sum += x[i + k * size];
    y[i] = sum;
  }
}
__global__ void __launch_bounds__(256) halves(const float* x, float* y, int odd) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  float v = x[i];
  if (i % 2 == odd)
#pragma unroll 1
    for (int k = 0; k < 10; ++k) v = v * v + 1;
  else
#pragma unroll 1
    for (int k = 0; k < 7; ++k) v = v * 3 + v;
  y[i] = v;
}"""


def judged(text: str, kernel: str, grid: int, arguments: list[Any]) -> verdict.Verdict:
    return verdict.judge(Launch("small", kernel, grid, 256, arguments), text=text)


def floats(n: int) -> np.ndarray:
    return np.ones(n, np.float32)


def adds(n: int, device: Any = H200) -> verdict.Verdict:
    arguments = [floats(1320 * 256), floats(1320 * 256), np.uint32(1320 * 256)]
    return verdict.judge(Launch("small", f"adds<{n}>", 1320, 256, arguments), device, ADDS)


# --------------------------------------------------------------------------------------------------------------- counts
@disassembled
def test_a_straight_kernel_is_counted_to_the_instruction() -> None:
    few, many = adds(8), adds(40)
    code = build("small", "adds<8>", ADDS)[1]
    last = next(k for k, i in enumerate(code) if i.op == "EXIT" and not i.guard)
    assert few.count == last + 1
    assert sum(i.base == "FADD" for i in code[: last + 1]) == 8
    assert many.count - few.count == 32
    outside = judged(ADDS, "adds<40>", 1, [floats(8), floats(8), np.uint32(0)])
    assert outside.count == next(k for k, i in enumerate(build("small", "adds<40>", ADDS)[1]) if i.guard) + 1


@disassembled
def test_trip_counts_come_from_the_launch() -> None:
    size = 4 * 256 * 6

    def loop(n: int) -> float:
        return judged(LOOP, "rows", 4, [floats(size * n), floats(size), np.int32(n), np.uint32(size)]).count

    few, more, many = loop(3), loop(4), loop(10)
    assert many - more == 6 * (more - few)


@disassembled
def test_a_diverged_warp_issues_both_sides() -> None:
    apart, alone = (judged(LOOP, "halves", 4, [floats(1024), floats(1024), np.int32(odd)]) for odd in (1, -1))
    assert apart.count > alone.count + 10 * 3
    assert apart.lanes < 25
    assert alone.lanes > 30


@disassembled
def test_bytes_in_flight_are_of_the_loads_before_the_first_wait() -> None:
    arrays = [np.zeros((1 << 16, 4), np.int32), np.zeros((1 << 16, 4), np.int32)]
    found = {name: judged(LOADS, name, 100, arrays) for name in ("one", "two", "chained")}
    assert found["two"].flight == 2 * found["one"].flight == 2 * 16 * 256
    assert found["one"].latency == 2 * found["two"].latency
    waits = {}
    for name in found:
        memory = Memory()
        constants = Launch("small", name, 100, 256, arrays).constants(memory)
        waits[name] = run_warp(Code(build("small", name, LOADS)[1]), constants, memory, 50, 0, 256).dram
    dram = LATENCY["DRAM"]
    assert 0.95 * dram < waits["one"] <= dram
    assert waits["two"] < 1.05 * dram
    assert waits["chained"] > 1.9 * dram


def test_control_words_are_read_as_the_compiler_wrote_them() -> None:
    text = """
	.section	.text.f,"ax",@progbits
        /*0000*/                   S2R R3, SR_TID.X ;       /* 0x0000000000037919 */
                                                            /* 0x000e2e0000002100 */
	//## File "/somewhere/f.cu", line 12
.L_x_1:
        /*0010*/              @!P0 IMAD R8, R0, UR4, R3 ;   /* 0x0000000400087c24 */
                                                            /* 0x001fe2000f8e0203 */
        /*0020*/                   BRA `(.L_x_1);           /* 0xfffffffc00fc7947 */
                                                            /* 0x000fc0000383ffff */
"""
    first, second, third = parse(text)["f"]
    assert (first.stall, first.result, first.operands, first.wait, first.guard) == (7, 0, 7, 0, "")
    assert (second.stall, second.result, second.wait, second.guard) == (1, 7, 1, "!P0")
    assert (third.target, second.line, second.args) == (16, "f.cu:12", ("R8", "R0", "UR4", "R3"))


# -------------------------------------------------------------------------------------------------------------- verdict
def test_resident_blocks_are_the_occupancy_calculators() -> None:
    asked = ((32, 0, 256), (35, 0, 256), (128, 0, 512), (100, 202_080, 512), (18, 0, 32))
    assert [H200.resident(*a) for a in asked] == [8, 6, 1, 1, 32]
    assert A100.resident(32, 100_000, 256) == 1
    assert len({d.name for d in DEVICES}) == 4


@disassembled
def test_times_are_bytes_and_instructions_over_the_devices_rates() -> None:
    v = adds(2000)
    assert v.moved == 2 * 1320 * 256 * 4
    assert v.memory == pytest.approx(v.moved / 4.3e12 * 1e6)
    assert v.issue == pytest.approx(v.count * 1320 * 8 / (132 * 4) / 1.98e9 * 1e6)
    assert adds(8).bound > 5 * v.bound
    assert v.guess <= v.bound
    assert adds(2000, A100).memory == pytest.approx(v.memory * 4.3e12 / 1.75e12)


def test_launches_are_the_librarys_own() -> None:
    found = launches.captured(Call("max_pool", (32, 64, 56, 56), (2,)), "float16")
    assert [(x.kernel, x.part) for x in found] == [
        ("max_pool_tiled<__half, 2, 2, 8, 1, unsigned>", "forward"),
        ("max_pool_tiled_backward<__half, 2, 2, 8, 1, unsigned>", "backward"),
        ("max_pool_tiled<__half, 2, 2, 8, 0, unsigned>", "inference"),
    ]


def test_the_summary_has_geometric_means_and_the_lowest() -> None:
    class Shares:
        def __init__(self, bound: float, guess: float) -> None:
            self.bound, self.guess = bound, guess

    assert table.summary([Shares(1.0, 0.9), Shares(0.25, 0.1)]) == (  # type: ignore[list-item]
        "2 launches: bound 0.50 (lowest 0.25), guess 0.30 (lowest 0.10)"
    )
    assert table.summary([]) == "0 launches"


@disassembled
def test_predictions_are_of_the_benchmarks_cases() -> None:
    case = next(c for c in cases.GPU_MAIN if (c.op, c.title, c.dtype) == ("max_pool", "2×2 s2", "float32"))
    found = table.judged(table.call_of(case), case.dtype)
    for part in case.parts:
        made = table.prediction(case, found, part)
        assert made["case"] == case.name
        assert 0.7 < made["guess"] <= made["bound"] <= 1
    assert all(table.call_of(c) is None for c in cases.GPU_MAIN if c.op in ("conv", "relu"))


# ------------------------------------------------------------------------------------------------ beside the emulator
def beside_the_emulator(run: Any, tolerance: float = 0.0) -> list[str]:
    """Run the library's launches on the emulator and their machine code on the same arrays; names of the kernels."""
    names: list[str] = []

    class Both:
        def __init__(self, stem: str, instance: str) -> None:
            self.key = stem, instance
            self.function = real(stem, instance)

        def __call__(self, grid: tuple[int], block: tuple[int], arguments: Any, shared_mem: int = 0) -> None:
            stem, instance = self.key
            pairs: dict[Any, Any] = {}
            for a in arguments:
                if (array := array_of(a)) is not None:
                    pairs.setdefault(_key(array), (np.atleast_1d(array.copy()), array))  # 0-d would be a number
            mine = [a if (x := array_of(a)) is None else pairs[_key(x)][0] for a in arguments]
            self.function(grid, block, arguments, shared_mem=shared_mem)
            memory = Memory()
            launch = Launch(stem, instance, grid[0], block[0], mine, shared_mem)
            constants = launch.constants(memory)
            run_blocks(Code(build(stem, instance)[1]), constants, memory, range(grid[0]), block[0])
            memory.copy_back()
            names.append(instance)
            for got, wanted in pairs.values():
                compare(got, wanted, tolerance, instance)

    real = launches.launchers.kernel
    with (
        standin_cupy.installed() as cupy,
        kernels.mode("require"),
        pytest.MonkeyPatch.context() as patch,
        kernel_calls.on_device({}, order="ascending"),
        np.errstate(all="ignore"),
    ):
        patch.setattr(launches.launchers, "kernel", Both)
        run(cupy)
    assert names
    return names


def _key(array: np.ndarray) -> int:
    return array.ctypes.data if array.size else -id(array)


def compare(got: np.ndarray, wanted: np.ndarray, tolerance: float, kernel: str) -> None:
    if tolerance and wanted.dtype.kind in "fV":
        np.testing.assert_allclose(got.astype(float), wanted.astype(float), tolerance, tolerance, err_msg=kernel)
    else:
        assert got.tobytes() == wanted.tobytes(), kernel


BITS = [
    Call("max_pool", (1, 2, 10, 16), (2,)),
    Call("max_pool", (1, 2, 9, 16), (3, 2, 1)),
    Call("max_pool", (1, 2, 9, 16), (3, 1, 1), {"ties": "split"}),
    Call("max_pool", (1, 2, 9, 13), (3, 2, 1), {"return_indices": True}),
    Call("max_pool", (1, 1, 3, 40), ((3, 40),)),
    Call("max_pool", (2, 9, 9, 3), (3, 2, 1), {**LAST, "ties": "all"}),
    Call("adaptive_max_pool", (1, 2, 7, 9), (3,)),
    Call("avg_pool", (1, 2, 9, 16), (3, 1, 1)),
    Call("avg_pool", (1, 2, 10, 16), (2,)),
    Call("avg_pool", (1, 2, 9, 13), (3, 2, 1)),
    Call("avg_pool", (2, 9, 9, 3), (3, 2, 1), LAST),
    Call("sum_pool", (1, 2, 9, 40), ((9, 40),)),
    Call("adaptive_avg_pool", (1, 2, 9, 40), (1,)),
    Call("adaptive_avg_pool", (1, 2, 7, 9), (3,)),
    Call("pad", (1, 2, 9, 12), (1, "constant")),
    Call("pad", (1, 2, 9, 12), (1, "reflect")),
    Call("pad", (1, 2, 9, 13), (3, "edge")),
    Call("pad", (1, 2, 5, 24), (2, "wrap")),
    Call("pad", (1, 2, 4, 5, 12), (1, "reflect")),
    Call("pad", (2, 2, 60), (5, "symmetric")),
    Call("pad", (2, 2, 20, 40), (2, "symmetric")),
    Call("pad", (1, 6, 7, 8), (2, "reflect"), LAST),
    Call("pad", (1, 6, 7, 3), (1, "edge"), LAST),
    Call("max_unpool", (1, 2, 4, 6), (2,)),
    *(Call(op, (2, 3, width)) for op in ("relu", "leaky_relu") for width in (40, 7)),
    Call("dropout", (2, 3, 40), (0.5,), {**TRAIN, "rng": 0}),
    Call("lp_pool", (2, 3, 8, 9), (2,)),
    Call("lp_pool", (2, 3, 8, 9), (3,), {"norm_type": 1.0, "stride": 1}),
]


@disassembled
@emulated
@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("call", BITS, ids=str)
def test_bits_are_the_emulators(call: Call, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    beside_the_emulator(lambda cupy: list(call.run(cupy, dtype, noise)))


FUNCTIONS = [
    *(Call(op, (2, 3, 40)) for op in ("gelu", "sigmoid", "tanh")),
    Call("gelu", (2, 3, 7), ("tanh",)),
    Call("softmax", (9, 64)),
    Call("softmax", (3, 700)),
    Call("softmax", (2, 20, 5, 8)),
    Call("softmax_cross_entropy", (40, 10)),
    Call("local_response_norm", (2, 9, 4, 3), (5,)),
    Call("lp_pool", (2, 3, 8, 9), (3,), {"norm_type": 2.5}),
]
ULPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-6, "float64": 1e-13}


@disassembled
@emulated
@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", list(ULPS))
@pytest.mark.parametrize("call", FUNCTIONS, ids=str)
def test_functions_are_the_emulators_but_for_the_last_bits(call: Call, dtype: str) -> None:
    """The device's exp, erf, log and pow differ from the host's in the last place."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    if (call.op, call.args, dtype) == ("gelu", (), "float64"):
        pytest.skip("its backward keeps numbers on the stack, which is not interpreted")
    beside_the_emulator(lambda cupy: list(call.run(cupy, dtype, noise)), ULPS[dtype])


NORMS = [
    Call("batch_norm", (4, 2, 8, 16), (), TRAIN),  # a block a channel
    Call("batch_norm", (16, 2, 40, 40), (), TRAIN),  # two launches
    Call("batch_norm", (8, 28, 28, 16), (), {**TRAIN, **LAST}),
    Call("batch_norm", (4, 2, 8, 16), ()),
    Call("group_norm", (2, 8, 8, 16), (4,)),
    Call("group_norm", (2, 8, 8, 16), (4,), LAST),
    Call("layer_norm", (8, 256), ((256,),)),
]


@disassembled
@emulated
@pytest.mark.sample(2)
@pytest.mark.parametrize("call", NORMS, ids=str)
def test_norms_are_the_emulators_but_for_the_last_bits(call: Call) -> None:
    """The compiler fuses multiplications and additions, so sums differ in the last place."""

    def run(cupy: Any) -> None:
        x = noise(call.shape, np.float32)
        _, ctx = getattr(F, f"{call.op}_forward")(x, *call.args, *call._parameters(cupy, x), **call.options)
        dy = np.random.default_rng(2).normal(size=call.shape).astype(np.float32)
        getattr(F, f"{call.op}_backward")(standin_cupy.ndarray(dy), ctx)

    beside_the_emulator(run, 2e-4)


@disassembled
@emulated
def test_a_wrong_instruction_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is not the maximum."""
    call, right = Call("max_pool", (1, 2, 10, 16), (2,)), build

    def wrong(stem: str, name: str, text: str | None = None) -> Any:
        source = launches.compiler.source(stem)
        assert source.count("best.v[m] = values[c];") == 1
        return right(stem, name, source.replace("best.v[m] = values[c];", "best.v[m] = values[0];"))

    monkeypatch.setitem(globals(), "build", wrong)
    with pytest.raises(compiler.KernelError, match="max_pool_tiled"):
        beside_the_emulator(lambda cupy: list(call.run(cupy, "float32", noise)))


# ------------------------------------------------------------------------------------------------------ every kernel
@functools.cache
def call_of_each() -> dict[tuple[str, str], Call]:
    """For each kernel of the library (source and template) the smallest call that launches it."""
    found: dict[tuple[str, str], Call] = {}
    for call in sorted(kernel_calls.CALLS, key=lambda call: math.prod(call.shape)):
        alone = dataclasses.replace(call, dtypes=("float32",)) if "float32" in call.dtypes else call
        for kernel in kernel_calls.asked_by((alone,), wide=False):
            found.setdefault((kernel.stem, kernel.template), alone)
    return found


def _launches(call: Call) -> list[Launch]:
    return launches.captured(call, call.dtypes[0])


@pytest.mark.parametrize("stem", sorted(kernel_calls.templates()))
def test_every_kernel_has_a_launch_here(stem: str) -> None:
    assert {template for source, template in call_of_each() if source == stem} == set(kernel_calls.templates()[stem])


@disassembled
@pytest.mark.parametrize("stem", sorted(kernel_calls.templates()))
def test_machine_code_of_every_kernel_runs(stem: str) -> None:
    """Some warps of a launch of each: all of its instructions are known here, and the warps end."""
    for (source, template), call in call_of_each().items():
        if source == stem:
            launch = next(x for x in _launches(call) if (x.stem, x.kernel.partition("<")[0]) == (stem, template))
            v = verdict.judge(launch)
            assert v.count > 0, launch.kernel
            assert v.moved > 0, launch.kernel


# ------------------------------------------------------------------------------------------------------------ the table
# The least bound and guess of a launch and of the geometric means, over the streaming operations at 32×64×112² and
# 32×64×56², and layer and RMS norm, in float16 and float32. The bound is what the machine code allows whatever the
# memory does.
LEAST_BOUND = {
    "max_pool": 0.95, "avg_pool": 0.9, "adaptive_avg_pool": 0.85, "pad": 0.85, "batch_norm": 0.95, "group_norm": 0.85,
    "max_unpool": 0.95, "layer_norm": 0.95, "rms_norm": 0.95,
}  # fmt: skip
LEAST_GUESS, MEANS = 0.6, (0.95, 0.85)
HALVES = ("float16",)  # float32 is further from every limit but memory
# One call of rows of 8192 cells: the six of the table take 55 of the test's 150 seconds of CPU time.
LARGE = Call("rms_norm", (8192, 8192), ((8192,),), {}, HALVES)
NEIGHBOURS = [  # kinds that the table leaves out
    Call("max_pool", (32, 56, 56, 64), (3, 2, 1), LAST, HALVES),
    Call("avg_pool", (32, 56, 56, 64), (3, 2, 1), LAST, HALVES),
    Call("avg_pool", (32, 64, 56, 56), (3, 1, 1), {}, ("bfloat16",)),
    *(Call(op, (32, 64, 57, 57), (2,), {}, HALVES) for op in ("max_pool", "avg_pool")),
    *(Call(op, (32, 64, 57, 57), (3, 2, 1), {}, ("float32",)) for op in ("max_pool", "avg_pool")),
    *(Call(op, (4, 64, 16, 56, 56), (2,), {}, HALVES) for op in ("max_pool", "avg_pool")),
    Call("max_pool", (32, 64, 12544), (2,), {}, ("float32",)),
    Call("adaptive_avg_pool", (64, 7, 7, 2048), (1,), LAST, HALVES),
    Call("pad", (32, 56, 56, 64), (1, "edge"), LAST, HALVES),
    Call("softmax", (32, 64, 56, 56), (1,), {}, HALVES),
    Call("softmax_cross_entropy", (16384, 1000), (), {}, HALVES),
    Call("local_response_norm", (32, 64, 56, 56), (5,), {}, HALVES),
    Call("gelu", (32, 64, 56, 56), (), {}, HALVES),
    Call("instance_norm", (256, 512, 7, 7), (), {}, ("float32",)),
]


@disassembled
def test_streaming_launches_reach_the_goal() -> None:
    counted, missed = [], []
    for call, dtype, found in table.all_judged([c for c in table.CALLS if c.args != LARGE.args] + [LARGE]):
        assert found, call
        for v in found:
            assert v.kernel.spills == 0
            if v.memory < table.SHORTEST:
                continue
            counted.append(v)
            if v.bound < LEAST_BOUND[call.op] or v.guess < LEAST_GUESS:
                missed.append((v.launch.kernel, str(call), dtype, round(v.bound, 3), round(v.guess, 3)))
    assert not missed
    assert all(mean >= least for mean, least in zip(table.means(counted), MEANS, strict=True)), table.summary(counted)


@disassembled
def test_neighbours_of_the_table_reach_its_lowest_guess() -> None:
    pytest.importorskip("ml_dtypes")  # bfloat16 is among the types
    for call, dtype, found in table.all_judged(NEIGHBOURS):
        for v in found:
            assert v.kernel.spills == 0, v.launch.kernel
            assert v.memory < table.SHORTEST or v.guess >= LEAST_GUESS, (v.launch.kernel, str(call), dtype, v.guess)
