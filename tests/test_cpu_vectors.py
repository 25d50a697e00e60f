"""kernels/cpu/vectors.py: each operation against NumPy, for each dtype, and what happens outside of an array."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cnnlayers.kernels.cpu import jit

from .implementations import numpy_dtype

pytestmark = pytest.mark.skipif(jit.unavailable() is not None, reason=str(jit.unavailable()))
if jit.unavailable() is None:
    from numba import njit

    from cnnlayers.kernels.cpu import vectors as v

FLOATS = ["float16", "bfloat16", "float32", "float64"]
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3.5]
N = 16
ONLY_X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other CPUs all have the units")


def floats(name: str, number: int, seed: int = 0) -> Any:
    """Random numbers, with special ones among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(number)
    x[rng.permutation(number)[: number // 2]] = rng.choice(SPECIAL, number // 2)
    return x.astype(numpy_dtype(name))


def wide(x: Any) -> Any:
    """What the lanes hold."""
    return x.astype(np.float64 if x.dtype == np.float64 else np.float32)


def same(a: Any, b: Any) -> None:
    """The same numbers, signs of zeros too; a NaN is a NaN."""
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_array_equal(np.signbit(a)[~np.isnan(a)], np.signbit(b)[~np.isnan(b)])


def compiled(*names: str) -> Any:
    """A kernel that stores what an operation makes of vectors from x, y and z."""
    operation = getattr(v, names[0])
    load, store = v.load, v.store

    def one(x: Any, y: Any, z: Any, out: Any) -> None:
        store(out, 0, operation(load(x, 0)))

    def two(x: Any, y: Any, z: Any, out: Any) -> None:
        store(out, 0, operation(load(x, 0), load(y, 0)))

    def three(x: Any, y: Any, z: Any, out: Any) -> None:
        store(out, 0, operation(load(x, 0), load(y, 0), load(z, 0)))

    return njit({"one": one, "two": two, "three": three}[names[1]])


# ------------------------------------------------------------------------------------------------------- loads, stores
@pytest.mark.parametrize("name", FLOATS)
def test_loads_and_stores(name: str) -> None:
    x = floats(name, 40)
    load, store, load_first, store_first = v.load, v.store, v.load_first, v.store_first

    @njit
    def copy(x: Any, out: Any, part: Any, rest: Any, at: int, count: int) -> None:
        store(out, at, load(x, at))
        store(part, 0, load_first(x, at, count))
        store_first(rest, at, load(x, at), count)

    for at, count in ((0, 0), (3, 1), (24, 15), (7, 16)):
        out, part, rest = np.zeros_like(x), np.ones(N, x.dtype), np.full_like(x, 7)
        copy(*map(v.as_bits, (x, out, part, rest)), at, count)
        same(out[at : at + N], x[at : at + N])
        assert not out[:at].any()
        assert not out[at + N :].any()
        same(part, np.concatenate([x[at : at + count], np.zeros(N - count, x.dtype)]))
        expected = np.full_like(x, 7)
        expected[at : at + count] = x[at : at + count]
        same(rest, expected)


@pytest.mark.parametrize("name", [*FLOATS, "uint8", "uint16", "int16", "int32"])
@pytest.mark.parametrize("count", range(4))
def test_a_number_of_lanes_that_the_compiler_knows(name: str, count: int) -> None:
    x = floats(name, 40) if name in FLOATS else np.arange(1, 41).astype(name)
    load, add, store_first, number = v.load, v.add, v.store_first, count

    @njit
    def sums(x: Any, out: Any) -> None:
        store_first(out, 3, add(load(x, 0), load(x, N)), number)

    out, expected = np.full_like(x, 7), np.full_like(x, 7)
    sums(*map(v.as_bits, (x, out)))
    expected[3 : 3 + count] = x[:count] + x[N : N + count]
    same(out, expected)


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect, for a page that cannot be read")
def test_the_first_lanes_do_not_touch_what_lies_behind() -> None:
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    whole = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert protect(whole.ctypes.data + page, page, 0) == 0
    load_first, store_first = v.load_first, v.store_first

    @njit
    def double(x: Any, at: int, count: int) -> None:
        value = load_first(x, at, count)
        store_first(x, at, value, count)

    try:
        for dtype in (np.float32, np.float64, np.uint16, np.int16):
            x = whole[:page].view(dtype)
            for count in range(N + 1):
                double(x, x.size - count, count)
    finally:
        assert protect(whole.ctypes.data + page, page, 3) == 0


@pytest.mark.parametrize("name", ["uint8", "int8", "uint16", "int16", "int32", "int64", "uint64"])
def test_integers(name: str) -> None:
    info = np.iinfo(name)
    x = np.random.default_rng(0).integers(max(info.min, -(2**31)), min(info.max, 2**31 - 1), 40).astype(name)
    load, load_first, store, store_first = v.load_int, v.load_int_first, v.store, v.store_first

    @njit
    def copy(x: Any, lanes: Any, part: Any, out: Any, at: int, count: int) -> None:
        store(lanes, 0, load(x, at))
        store(part, 0, load_first(x, at, count))
        store(out, at, load(x, at))
        store_first(out, 0, load(x, 0), count)

    lanes, part, out = np.empty(N, np.int32), np.empty(N, np.int32), np.zeros_like(x)
    copy(x, lanes, part, out, 9, 5)
    np.testing.assert_array_equal(lanes, x[9 : 9 + N].astype(np.int32))
    np.testing.assert_array_equal(part, np.r_[x[9:14].astype(np.int32), np.zeros(N - 5, np.int32)])
    np.testing.assert_array_equal(out, np.r_[x[:5], np.zeros(4, name), x[9:25], np.zeros(15, name)])


@pytest.mark.parametrize("name", FLOATS)
def test_stores_past_the_caches(name: str) -> None:
    x = floats(name, 64)
    raw = np.zeros(64 * 8 + 128, np.uint8)
    start = -raw.ctypes.data % 128
    out = raw[start : start + x.nbytes].view(x.dtype)
    load, stream, fence = v.load, v.stream, v.fence

    @njit
    def copy(x: Any, out: Any) -> None:
        for i in range(0, 64, 16):
            stream(out, i, load(x, i))
        fence()

    copy(v.as_bits(x), v.as_bits(out))
    same(out, x)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_each_half_number_keeps_its_bits(name: str) -> None:
    x = np.arange(2**16, dtype=np.uint16).view(numpy_dtype(name))  # NaNs with payloads among them
    load, load_first, store, store_first = (
        getattr(v, f"{operation}_every_bit") for operation in ("load", "load_first", "store", "store_first")
    )

    @njit
    def copy(x: Any, out: Any) -> None:
        for i in range(0, x.size, 16):
            store(out, i, load(x, i))

    @njit
    def copy_in_parts(x: Any, out: Any) -> None:
        for i in range(0, x.size, 8):
            store_first(out, i, load_first(x, i, 8), 8)

    for kernel in (copy, copy_in_parts):
        out = np.zeros_like(x)
        kernel(v.as_bits(x), v.as_bits(out))
        np.testing.assert_array_equal(v.as_bits(out), v.as_bits(x))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_types_round_to_nearest_and_keep_nan(name: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2**32, 1 << 14, np.uint32).view(np.float32)
    x = np.concatenate([x, rng.standard_normal(1 << 14).astype(np.float32)])
    out = np.empty(x.size, numpy_dtype(name))
    load, store = v.load, v.store

    @njit
    def convert(x: Any, out: Any) -> None:
        for i in range(0, x.size, 16):
            store(out, i, load(x, i))

    convert(x, v.as_bits(out))
    with np.errstate(all="ignore"):
        expected = x.astype(out.dtype)
    nan = np.isnan(x)
    np.testing.assert_array_equal(np.isnan(out.astype(np.float32)), nan)
    np.testing.assert_array_equal(v.as_bits(out)[~nan], v.as_bits(expected)[~nan])


def test_masks_from_bits() -> None:
    load, store, load_bits, select = v.load, v.store, v.load_bits, v.select

    @njit
    def choose(x: Any, y: Any, bits: Any, out: Any) -> None:
        store(out, 0, select(load_bits(bits, 1), load(x, 0), load(y, 0)))

    x, y = np.random.default_rng(0).standard_normal((2, N)).astype(np.float32)
    bits, out = np.r_[0, np.packbits(x < y, bitorder="little"), 0].astype(np.uint8), np.empty(N, np.float32)
    choose(x, y, bits, out)
    np.testing.assert_array_equal(out, np.minimum(x, y))


# ---------------------------------------------------------------------------------------------------------- operations
ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "evens": lambda x, y: np.r_[x, y][::2],
    "odds": lambda x, y: np.r_[x, y][1::2],
    "interleave_low": lambda x, y: np.stack([x[:8], y[:8]], 1).reshape(-1),
    "interleave_high": lambda x, y: np.stack([x[8:], y[8:]], 1).reshape(-1),
    "maximum": lambda x, y: np.where((y > x) | np.isnan(y) & ~np.isnan(x), y, x),
}
UNARY = {"absolute": np.abs, "square_root": np.sqrt}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("operation", [*ARITHMETIC, *UNARY])
def test_arithmetic(operation: str, name: str) -> None:
    kernel = compiled(operation, "two" if operation in ARITHMETIC else "one")
    for seed in range(20):
        x, y = floats(name, N, seed), floats(name, N, seed + 100)
        out = np.empty(N, wide(x).dtype)
        kernel(*map(v.as_bits, (x, y, x)), out)
        with np.errstate(all="ignore"):
            values = (wide(x), wide(y)) if operation in ARITHMETIC else (wide(x),)
            same(out, (ARITHMETIC | UNARY)[operation](*values))


@pytest.mark.parametrize("name", FLOATS)
def test_fma_is_rounded_once(name: str) -> None:
    rng = np.random.default_rng(0)
    x, y, z = rng.standard_normal((3, N)).astype(numpy_dtype(name))
    z = (-x * y).astype(x.dtype)  # cancels, so that a second rounding shows
    out = np.empty(N, wide(x).dtype)
    compiled("fma", "three")(*map(v.as_bits, (x, y, z)), out)
    if name == "float64":
        from fractions import Fraction

        exact = [float(Fraction(a) * Fraction(b) + Fraction(c)) for a, b, c in zip(x, y, z, strict=True)]
    else:
        exact = wide(x).astype(np.float64) * wide(y) + wide(z)
    same(out, np.asarray(exact).astype(out.dtype))


COMPARISONS = {
    "less": np.less,
    "less_equal": np.less_equal,
    "equal": np.equal,
    "exceeds": lambda x, y: (x > y) | np.isnan(x) & ~np.isnan(y),
}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_comparisons(comparison: str, name: str) -> None:
    compare, load, is_nan = getattr(v, comparison), v.load, v.is_nan
    store, select, integers = v.store, v.select, v.integers

    @njit
    def kernel(x: Any, y: Any, out: Any) -> None:
        store(out, 0, select(compare(load(x, 0), load(y, 0)), integers(1), integers(0)))
        store(out, 16, select(is_nan(load(x, 0)), integers(1), integers(0)))

    for seed in range(20):
        x, y, out = floats(name, N, seed), floats(name, N, seed + 100), np.empty(32, np.uint8)
        kernel(v.as_bits(x), v.as_bits(y), out)
        np.testing.assert_array_equal(out, np.r_[COMPARISONS[comparison](wide(x), wide(y)), np.isnan(wide(x))])


INTEGER = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "maximum": np.maximum,
    "bit_and": np.bitwise_and,
    "bit_or": np.bitwise_or,
    "evens": ARITHMETIC["evens"],
    "interleave_high": ARITHMETIC["interleave_high"],
}


@pytest.mark.parametrize("operation", INTEGER)
def test_integer_operations(operation: str) -> None:
    rng, out = np.random.default_rng(0), np.empty(N, np.int32)
    x = rng.integers(-(2**31), 2**31, N).astype(np.int32)
    y = x[::-1].copy()
    compiled(operation, "two")(x, y, x, out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, INTEGER[operation](x, y))


def test_masks_conversions_and_constants() -> None:
    @njit
    def kernel(x: Any, i: Any, f32: Any, f64: Any, ints: Any, masks: Any, count: int) -> None:
        value, first, one, zero = v.load(x, 0), v.first_lanes(count), v.integers(1), v.integers(0)
        v.store(f64, 0, v.to_float64(value))
        v.store(f32, 0, v.as_lanes_of(f32, v.to_float64(value)))
        v.store(f32, 16, v.as_lanes_of(f32, v.load(i, 0)))
        v.store(f32, 32, v.broadcast(x, 2.5))
        v.store(f64, 16, v.to_float64(v.load(i, 0)))
        v.store(ints, 0, v.add(v.integers(count), v.load(i, 0)))
        v.store(ints, 16, v.bit_not(v.load(i, 0)))
        small = v.less(value, v.broadcast(x, 0))
        v.store(masks, 0, v.select(first, one, zero))
        v.store(masks, 16, v.select(v.bit_and(first, v.bit_not(small)), one, zero))
        v.store(masks, 32, v.select(v.bit_or(first, small), one, zero))

    rng = np.random.default_rng(0)
    x, i = rng.standard_normal(N).astype(np.float32), rng.integers(-(2**31), 2**31, N).astype(np.int32)
    f32, f64, ints, masks = np.empty(48, np.float32), np.empty(32), np.empty(32, np.int32), np.empty(48, np.uint8)
    kernel(x, i, f32, f64, ints, masks, 5)
    np.testing.assert_array_equal(f32, np.r_[x, i.astype(np.float32), np.full(N, 2.5, np.float32)])
    np.testing.assert_array_equal(f64, np.r_[x.astype(float), i.astype(float)])
    np.testing.assert_array_equal(ints, np.r_[5 + i, ~i])
    first, small = np.arange(N) < 5, x < 0
    np.testing.assert_array_equal(masks, np.r_[first, first & ~small, first | small])


@pytest.mark.parametrize("name", FLOATS)
def test_loads_of_any_elements(name: str) -> None:
    gather, store, as_lanes_of = v.gather, v.store, v.as_lanes_of

    @njit
    def kernel(x: Any, out: Any, at: int, table: Any, first: int) -> None:
        store(out, 0, as_lanes_of(out, gather(x, at, table, first)))

    rng, x = np.random.default_rng(0), floats(name, 120)
    for at, first in ((0, 0), (7, 3), (100, 20)):
        out, table = np.ones(N, np.float64), rng.integers(-at, 120 - at, 40).astype(np.int32)
        kernel(v.as_bits(x), out, at, table, first)
        np.testing.assert_array_equal(out, x[at + table[first : first + N]].astype(np.float64))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "uint64"])
def test_copies_keep_every_bit(dtype: str) -> None:
    copy_lanes, stream_copy, fence = v.copy_lanes, v.stream_copy, v.fence

    @njit
    def kernel(x: Any, y: Any, to: int) -> None:
        copy_lanes(y, to + 16, x, 3)
        stream_copy(y, to, x, 5)
        fence()

    x = np.random.default_rng(0).integers(0, 256, 40 * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    memory = np.zeros(80, dtype)
    to = -memory.ctypes.data // memory.itemsize % (64 // memory.itemsize)  # the start of a cache line
    kernel(x, memory, to)
    expected = np.zeros(80, dtype)
    expected[to : to + 32] = np.r_[x[5:21], x[3:19]]
    assert memory.tobytes() == expected.tobytes()


def test_the_first_true_lane() -> None:
    first_true, less, load = v.first_true, v.less, v.load

    @njit
    def kernel(x: Any, y: Any) -> int:
        return first_true(less(load(x, 0), load(y, 0)))

    for place in (*range(N), N):
        x, y = np.zeros(N, np.float32), np.zeros(N, np.float32)
        y[place:] = 1
        assert kernel(x, y) == place


def test_slide_lane_total_and_any_lane() -> None:
    @njit
    def kernel(x: Any, y: Any, i: Any, out: Any, sums: Any) -> None:
        a, b = v.load(x, 0), v.load(y, 0)
        v.store(out, 0, v.slide(a, b, 0))
        v.store(out, 16, v.slide(a, b, 5))
        v.store(out, 32, v.slide(a, b, 16))
        sums[0], sums[1], sums[2] = v.total(a), v.total(v.load(i, 0)), v.lane(a, 11)
        sums[3], sums[4] = v.any_lane(v.less(a, b)), v.any_lane(v.less(a, a))

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((2, N)) * 10.0 ** rng.integers(-9, 9, N)).astype(np.float32)
    i, out, sums = rng.integers(-(2**31), 2**31, N).astype(np.int32), np.empty(48, np.float32), np.empty(5)
    kernel(x, y, i, out, sums)
    np.testing.assert_array_equal(out, np.r_[x, np.r_[x, y][5:21], y])
    halves = x.astype(np.float64)
    while halves.size > 1:
        halves = halves[: halves.size // 2] + halves[halves.size // 2 :]
    assert sums.tolist() == [halves[0], i.sum(dtype=np.int64), x[11], (x < y).any(), False]


# ------------------------------------------------------------------------------------------------------------- refusals
def test_other_arrays_and_kinds_are_refused_when_compiled() -> None:
    load, add, equal, select = v.load, v.add, v.equal, v.select

    @njit
    def wrong_array(x: Any) -> None:
        load(x, 0)

    @njit
    def wrong_kinds(x: Any, y: Any) -> None:
        add(load(x, 0), load(y, 0))

    @njit
    def wrong_select(x: Any, y: Any) -> None:
        select(equal(load(x, 0), load(x, 0)), load(x, 0), load(y, 0))

    from numba.core.errors import TypingError

    x = np.zeros(64, np.float32)
    for bad in (x.reshape(4, 16), x[::2], np.zeros(64, np.int64)):
        with pytest.raises((TypeError, TypingError), match="vectors are loaded from flat contiguous arrays"):
            wrong_array(bad)
    with pytest.raises((TypeError, TypingError), match="vectors of one kind"):
        wrong_kinds(x, np.zeros(64))
    with pytest.raises((TypeError, TypingError), match="two vectors of one kind"):
        wrong_select(x, np.zeros(64))


OUTSIDE = """
import numpy as np
from numba import njit
from cnnlayers.kernels.cpu import vectors as v

@njit
def whole(x, i): v.store(x, i, v.load(x, i))
@njit
def stored(x, i): v.store(x, i, v.load(x, 0))
@njit
def part(x, i, n): v.store_first(x, 0, v.load_first(x, i, n), 1)
@njit
def stored_part(x, i, n): v.store_first(x, i, v.load(x, 0), n)
@njit
def ints(x, i): v.store(x, 0, v.load_int(x, i))
@njit
def bits(x, i): v.store(x, 0, v.select(v.load_bits(x, i), v.integers(1), v.integers(0)))

for dtype in (np.float32, np.float64, np.uint16, np.int16):
    x = np.zeros(20, dtype)
    whole(x, 0), whole(x, 4), stored(x, 4), part(x, 19, 1), part(x, 25, 0), stored_part(x, 17, 3)
    for call in (lambda: whole(x, 5), lambda: whole(x, -1), lambda: stored(x, 5), lambda: part(x, 18, 3),
                 lambda: stored_part(x, 18, 3), lambda: stored_part(x, -1, 1)):
        try:
            call()
            print("no error")
        except IndexError:
            pass
b = np.zeros(20, np.uint8)
ints(b, 4), bits(b, 18)
for call in (lambda: ints(b, 5), lambda: bits(b, 19)):
    try:
        call()
        print("no error")
    except IndexError:
        pass
print("done")
"""


def test_with_bounds_checks_an_access_outside_is_an_index_error() -> None:
    env = os.environ | {"NUMBA_BOUNDSCHECK": "1"}
    ran = subprocess.run([sys.executable, "-c", OUTSIDE], env=env, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("done\n", "")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        pytest.param("NUMBA_CPU_NAME", "generic", "no fused multiply-add", marks=ONLY_X86),
        ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT is set"),
    ],
)
def test_the_portable_code_runs_where_vectors_cannot(name: str, value: str, reason: str) -> None:
    code = """
import numpy as np
from cnnlayers import functional as F, kernels
from cnnlayers.kernels.cpu import jit
print(jit.unavailable())
assert F.max_pool(np.arange(16.0).reshape(1, 1, 4, 4), 2).ravel().tolist() == [5, 7, 13, 15]
try:
    with kernels.mode("require"):
        F.max_pool(np.zeros((1, 1, 4, 4)), 2)
except kernels.KernelUnavailable as error:
    print(error)
"""
    env = os.environ | {name: value, "NUMBA_CPU_FEATURES": "", "CNNLAYERS_KERNELS": "auto"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(reason) == 2, ran.stdout


# --------------------------------------------------------------------------------------------------------------- tiles
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("segments", [0, 1, 2])
@pytest.mark.parametrize("tile", ["of all", "of half", "of one"])
def test_a_tile_of_vectors_of_windows_is_sums_of_products(tile: str, segments: int, dtype: str) -> None:
    from cnnlayers.kernels.cpu import vector_tiles as tiles

    rng, count, last, pitch = np.random.default_rng(0), 5, 3, 500
    rows, width = {
        "of all": (tiles.ROWS, tiles.WIDTH),
        "of half": (tiles.ROWS // 2, 2 * tiles.WIDTH),
        "of one": (1, tiles.VECTORS),
    }[tile]
    filters = max(1, rows - 1)
    weight, bias, sheets = (rng.standard_normal(n).astype(dtype) for n in (200, 20, 400))
    places, offsets = rng.integers(0, 150, 10), rng.integers(0, 200, 9)
    targets = np.zeros((10, tiles.TARGET_COLUMNS), np.int64)  # rows of 11 cells and of 3, and of 16 and none
    targets[:, :3], targets[:, 3:] = [0, 11, 0], [240, 3, 13]
    targets[2] = [0, 16, 0, 240, 0, 16]
    targets[:, [0, 3]] += 20 * np.arange(10)[:, None]
    target = np.full(pitch * rows + 1000, 7.0, dtype)

    @njit
    def run(
        weight: Any, bias: Any, sheets: Any, places: Any, offsets: Any, count: int, target: Any, targets: Any
    ) -> None:  # fmt: skip
        filters_by_windows(
            rows, width, segments, weight, 3, bias, 2, sheets, places, 1, last, offsets, 4, count, target, targets, 6,
            pitch, filters,
        )  # fmt: skip

    filters_by_windows = tiles.filters_by_windows
    run(weight, bias, sheets, places, offsets, count, target, targets.ravel())
    expected = np.full(len(target), 7.0, dtype)
    for i in range(rows if segments == 0 else filters):
        for j in range(width):
            v = min(1 + j, last)
            seen = [sheets[places[v] + offsets[4 + k] :][:N] for k in range(count)]
            total = bias[2 + i] + sum(weight[3 + N * k + i] * seen[k] for k in range(count))
            if segments == 0:
                expected[6 + pitch * i + N * j :][:N] = total
            for first, cells, lane in targets[v].reshape(2, 3)[:segments]:
                expected[6 + pitch * i + first :][:cells] = total[lane : lane + cells]
    np.testing.assert_allclose(target, expected, rtol=1e-5 if dtype == "float32" else 1e-14, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tile_of_a_weights_gradient_is_sums_of_products(dtype: str) -> None:
    from cnnlayers.kernels.cpu import vector_tiles as tiles

    rng, count = np.random.default_rng(0), 2
    maps, sheets = (rng.standard_normal(n).astype(dtype) for n in (400, 400))
    places, offsets = rng.integers(0, 150, 5), rng.integers(0, 200, 9)
    sums = np.full(N * tiles.TAPS + 7, 7.0, dtype)

    @njit
    def run(maps: Any, sheets: Any, places: Any, offsets: Any, count: int, sums: Any) -> None:
        tiles.map_by_taps(maps, 3, sheets, places, 1, offsets, 2, count, sums, 1)

    run(maps, sheets, places, offsets, count, sums)
    expected = np.full(len(sums), 7.0, dtype)
    for j in range(tiles.TAPS):
        for k in range(count):
            expected[1 + N * j :][:N] += maps[3 + N * k :][:N] * sheets[places[1 + k] + offsets[2 + j] :][:N]
    np.testing.assert_allclose(sums, expected, rtol=1e-5 if dtype == "float32" else 1e-14, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("width", "depthwise"), [(1, 0), (2, 0), (1, 1)])
@pytest.mark.parametrize(("direct", "more"), [(True, False), (False, False), (False, True)])
def test_a_tile_of_vectors_of_filters_is_sums_of_products(
    direct: bool, more: bool, width: int, depthwise: int, dtype: str
) -> None:
    from cnnlayers.kernels.cpu import vector_tiles as tiles

    rng, windows_by_filters = np.random.default_rng(0), tiles.windows_by_filters
    windows, count, second = tiles.WINDOWS_BY_FILTERS[np.dtype(dtype).itemsize][0], 5, 7 * N
    weight, bias, sheet = (rng.standard_normal(n).astype(dtype) for n in (300, 50, 400))
    starts, offsets = rng.integers(0, 100, 20), rng.integers(0, 200, 9)
    targets, shape = rng.permutation(20) * N * width, 20 * N * width + 9
    target, out = np.full(shape, 7.0, dtype), np.full(shape, 7.0, dtype)

    @njit
    def run(
        sheet: Any, starts: Any, offsets: Any, count: int, weight: Any, second: int, bias: Any, target: Any,
        targets: Any, out: Any, direct: bool, more: bool,
    ) -> None:  # fmt: skip
        windows_by_filters(
            width, depthwise, sheet, starts, 3, 11, offsets, 4, count, weight, 2, second, bias, 1, target, targets, 6,
            out, 5, direct, more,
        )  # fmt: skip

    run(sheet, starts, offsets, count, weight, second, bias, target, targets, out, direct, more)
    expected = np.full(shape, 7.0, dtype)
    for i in range(windows):
        for j in range(width):
            seen = [sheet[starts[3 + i] + 11 + offsets[4 + k] :][: N if depthwise else 1] for k in range(count)]
            terms = [seen[k] * weight[2 + second * j + N * k :][:N] for k in range(count)]
            at = 6 + targets[3 + i] if direct else 5 + N * width * i
            before = expected[at + N * j :][:N] if more else bias[1 + N * j :][:N]
            expected[at + N * j :][:N] = before + np.sum(terms, axis=0)
    untouched = out if direct else target
    assert (untouched == 7.0).all()
    np.testing.assert_allclose(
        target if direct else out, expected, rtol=1e-5 if dtype == "float32" else 1e-14, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (3, 16), (16, 5), (20, 7), (1, 1), (0, 4)])
def test_a_block_is_transposed(rows: int, columns: int, dtype: str) -> None:
    from cnnlayers.kernels.cpu.vector_tiles import transpose

    source, target = np.arange(500, dtype=dtype), np.full(500, -1.0, dtype)

    @njit
    def run(source: Any, rows: int, columns: int, target: Any) -> None:
        transpose(source, 3, 20, rows, columns, target, 2, 21)

    run(source, rows, columns, target)
    expected = np.full(500, -1.0, dtype)
    for i in range(min(rows, N)):
        for j in range(min(columns, N)):
            expected[2 + 21 * j + i] = source[3 + 20 * i + j]
    np.testing.assert_array_equal(target, expected)
