"""The CUDA emulator: what it must catch, and where; what it must let pass."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from . import simt
from .simt.kernels import KERNELS, checked_or_plain, every_order, floats, module, needs_emulator, word

pytestmark = needs_emulator


# --------------------------------------------------------------------------------------------------- what it must catch
@dataclass(frozen=True)
class Fault:
    """A kernel of faults.cu: what the report says, and how it is launched."""

    says: str
    blocks: int = 1
    threads: int = 64
    flag: bool = False  # the second argument is a word, not an output
    options: dict[str, Any] = field(default_factory=dict)
    located: bool = True


GRID = {"cooperative": True}
FAULTS = {
    "reads_past_the_end": Fault("out of bounds: read of 4 bytes at byte 256 of argument 0, which has 256"),
    "writes_before_the_start": Fault("out of bounds: write of 4 bytes at byte -4 of argument 1"),
    "writes_its_input": Fault("write to argument 0, which is read-only"),
    "reads_null": Fault("out of bounds: read of 4 bytes at .*, far from every array"),
    "misaligned<float>": Fault("misaligned access .*: 8 bytes off an alignment of 16"),
    "misaligned<__half>": Fault("misaligned access .*: 4 bytes off an alignment of 8"),
    "shared_index": Fault("index 64 out of an array's bounds"),
    "dynamic_shared_index": Fault(
        "out of bounds: write of 4 bytes at byte 512 of shared d, which has 512", options={"shared_mem": 512}
    ),
    "shared_alignment": Fault("misaligned access .*: 4 bytes off an alignment of 16"),
    "local_index": Fault("index 4 out of an array's bounds|index [567] out of an array's bounds"),
    "uninitialised_shared": Fault("read of uninitialised shared s: byte 252 of 256"),
    "missing_barrier": Fault("race on byte .* of shared s"),
    "missing_second_barrier": Fault("race on byte .* of shared s"),
    "missing_warp_barrier": Fault("race on byte .* of shared s"),
    "scatter": Fault("race on byte .* of argument 1"),
    "divergent_barrier": Fault(r"__syncthreads\(\) at .* \(divergent barrier\)"),
    "different_warp_operations": Fault("while lane .* waits in __"),
    "mask_without_the_lane": Fault("lane 0 calls __shfl_down_sync .* with mask fffffffe, which lacks it"),
    "half_a_warp": Fault("deadlock: 32 threads at __syncthreads .*, 32 threads at a warp operation"),
    "same_cell_from_every_block": Fault("race on byte 0 of argument 1: write here, written by thread 0", blocks=3),
    "missing_grid_barrier": Fault("race on byte .* of argument 1", blocks=3, options=GRID),
    "missing_release": Fault("race on byte 0 of argument 0", blocks=3, threads=32, flag=True, options=GRID),
    "missing_acquire": Fault("race on byte 0 of argument 0", blocks=3, threads=32, flag=True, options=GRID),
    "missing_block_barrier": Fault("race on byte .* of argument 0", blocks=3, threads=32, flag=True, options=GRID),
    "leaves_before_the_grid_meets": Fault(
        "deadlock: 128 threads at grid.sync .*, 64 finished", blocks=3, options=GRID, located=False
    ),
    "nobody_raises_the_flag": Fault("no progress", blocks=3, threads=32, flag=True, options=GRID),
    "nobody_opens_the_lock": Fault("no progress", blocks=3, threads=32, flag=True),
    "divides_by_zero": Fault("division by zero"),
    "overflows": Fault("signed integer overflow"),
    "shifts_too_far": Fault("shift by more bits than there are"),
    "fails_an_assertion": Fault(r"assert\(i < .*\) at faults.cu:.* does not hold"),
    "more_threads_than_bounds": Fault("a block of 64 threads, but __launch_bounds__ says 32"),
    "too_much_shared": Fault("49156 bytes of shared memory, the limit is 49152"),
}


def launch_faulty(name: str, order: str, *flags: str) -> None:
    case, dtype = FAULTS[name], np.float16 if "__half" in name else np.float32
    n = case.blocks * case.threads
    x, y = np.zeros(n, dtype), np.zeros(n, dtype)
    x.flags.writeable = case.flag
    second = word() if case.flag else y
    module("faults", *flags).launch(name, (case.blocks,), (case.threads,), (x, second), order=order, **case.options)


def test_every_fault_has_a_kernel_and_every_kernel_a_fault() -> None:
    assert set(module("faults").kernels) == set(FAULTS)


@every_order
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_where_it_is(name: str, order: str) -> None:
    with pytest.raises(simt.SimtError, match=FAULTS[name].says) as caught:
        launch_faulty(name, order)
    if FAULTS[name].located:
        mark = f"// {name.partition('<')[0]}"
        lines = (KERNELS / "faults.cu").read_text().splitlines()
        at = [str(i) for i, line in enumerate(lines, 1) if line.endswith(mark)] or ["0"]
        assert re.search(rf"faults\.cu:({'|'.join(at)})\b", str(caught.value)), f"{caught.value}\nexpected line {at}"


@every_order
@pytest.mark.parametrize("name", FAULTS)
def test_mended_it_passes(name: str, order: str) -> None:
    launch_faulty(name, order, "-DMENDED")


def test_a_fault_says_which_thread() -> None:
    with pytest.raises(simt.SimtError, match=r"^reads_past_the_end: block \(0,0,0\) thread \(63,0,0\): "):
        launch_faulty("reads_past_the_end", "ascending")


def test_a_grid_meets_in_cooperative_launches_alone() -> None:
    with pytest.raises(simt.SimtError, match=r"grid\.sync\(\) at faults\.cu:\d+ in a launch that is not cooperative"):
        module("faults", "-DMENDED").launch("missing_grid_barrier", (1,), (32,), (floats(32), floats(32)))


def test_after_a_fault_the_module_works_on() -> None:
    for _ in range(3):
        with pytest.raises(simt.SimtError, match="deadlock"):
            launch_faulty("leaves_before_the_grid_meets", "random")
        with pytest.raises(simt.SimtError, match="out of bounds"):
            launch_faulty("reads_past_the_end", "random")
    y = floats(64)
    module("faults").launch("fails_an_assertion", (1,), (32,), (np.ones(64, np.float32), y))
    assert y.sum() == 32


# ------------------------------------------------------------------------------------------- what it must let pass
@checked_or_plain
@every_order
@pytest.mark.parametrize(
    ("kernel", "dtype", "lanes"),
    [
        ("scale<float, 4, unsigned>", "float32", 4),
        ("scale<__half, 8, long long>", "float16", 8),
        ("scale<__nv_bfloat16, 2, unsigned>", "uint16", 2),
        ("scale<double, 1, long long>", "float64", 1),
    ],
)
def test_packs_in_a_grid_stride_loop(kernel: str, dtype: str, lanes: int, order: str, check: bool) -> None:
    x, y = np.arange(1024).astype(dtype), np.zeros(1024, dtype)
    expected = 2 * x
    if dtype == "uint16":  # bfloat16: twice is one more in the exponent
        x = (x + 1).astype(np.float32).view(np.uint32) >> 16
        x, expected = x.astype(np.uint16), (x + 128).astype(np.uint16)
    index = np.int64 if "long long" in kernel else np.uint32
    module("styles", check=check).launch(kernel, (3,), (64,), (x, y, index(1024 // lanes)), order=order, seed=7)
    np.testing.assert_array_equal(y, expected)


@checked_or_plain
@every_order
def test_a_tile_in_two_dimensions_and_a_struct_by_value(order: str, check: bool) -> None:
    x, y = np.arange(37 * 50, dtype=np.float32).reshape(37, 50), np.zeros((50, 37), np.float32)
    shape = np.array([(37, 50)], [("rows", "i4"), ("columns", "i4")])[0]
    module("styles", check=check).launch("transpose", (4, 3), (16, 16), (x, y, shape), order=order)
    np.testing.assert_array_equal(y, x.T)


@checked_or_plain
@every_order
@pytest.mark.parametrize(("kernel", "dtype"), [("block_sum<float>", "float32"), ("block_sum<double>", "float64")])
def test_a_reduction_by_shuffles(kernel: str, dtype: str, order: str, check: bool) -> None:
    total = np.zeros(1, dtype)
    args = (np.arange(1000, dtype=dtype), total, np.int32(1000))
    module("styles", check=check).launch(kernel, (3,), (96,), args, order=order)
    assert total[0] == 499500


@checked_or_plain
@every_order
def test_dynamic_shared_memory_and_atomics(order: str, check: bool) -> None:
    x, counts = np.random.default_rng(0).integers(0, 20, 1000, np.uint8), np.zeros(20, np.uint32)
    args = (x, counts, np.int32(1000), np.int32(20))
    module("styles", check=check).launch("histogram", (3,), (64,), args, shared_mem=80, order=order)
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=20))


@checked_or_plain
@every_order
def test_votes_and_shuffles(order: str, check: bool) -> None:
    x, y = np.ones(128, np.float32), np.zeros(128, np.int32)
    x[3:64:2] = -1
    module("styles", check=check).launch("votes", (1,), (128,), (x, y), order=order)
    positive = (x > 0).reshape(4, 32)
    expected = positive.sum(1) + 100 * positive.any(1) + 200 * positive.all(1) + 1000 * positive.sum() + 100000
    expected = expected.repeat(32) + 1000000 * (np.arange(128) % 32 > 0)
    np.testing.assert_array_equal(y, expected)


@checked_or_plain
@every_order
def test_the_last_block_and_a_lock(order: str, check: bool) -> None:
    out, total = floats(1), np.zeros(1, np.int32)
    args = (np.ones(6, np.float32), floats(6), out, word())
    module("styles", check=check).launch("last_block", (6,), (64,), args, order=order)
    module("styles", check=check).launch("locked", (3,), (128,), (word(), total), order=order)
    assert (out[0], total[0]) == (6, 12)


@every_order
@pytest.mark.parametrize("kernel", ["two_phase<false>", "two_phase<true>"])
def test_a_cooperative_grid(kernel: str, order: str) -> None:
    for seed in range(3):
        part, out = floats(5), floats(5 * 64)
        args = (np.arange(1000, dtype=np.float32), part, out, word(), np.int32(1000))
        module("cooperative").launch(kernel, (5,), (64,), args, cooperative=True, order=order, seed=seed)
        assert (out == 499500).all()
        assert (part == -499500).all()


def test_a_seed_gives_an_order_of_its_own() -> None:
    source = """__global__ void arrive(unsigned* next, unsigned* place) {
        place[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1u); }"""
    arrive = simt.Module(source, ["arrive"])

    def places(order: str, seed: int) -> list[int]:
        place = np.zeros(6 * 32, np.uint32)
        arrive.launch("arrive", (6,), (32,), (word(), place), order=order, seed=seed)
        return place.tolist()

    n = list(range(6 * 32))
    assert places("ascending", 1) == n
    assert places("descending", 1) == n[::-1]
    shuffled = [places("random", seed) for seed in (1, 2, 1)]
    assert shuffled[0] == shuffled[2] != shuffled[1]
    assert all(sorted(s) == n for s in shuffled)
    blocks = [sorted(range(6), key=lambda b: s[32 * b]) for s in shuffled]
    assert blocks[0] != sorted(blocks[0])
