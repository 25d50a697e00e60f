"""How kernels are compiled: entries and parts, and what stands for min, max and new arrays in them."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cnnlayers.bench import first_calls
from cnnlayers.kernels.cpu import jit

if jit.unavailable() is not None:
    pytest.skip(str(jit.unavailable()), allow_module_level=True)

from numba import types
from numba.core.caching import NullCache

from cnnlayers.kernels.cpu import vector_types


@jit.kernel()
def twice(x: Any) -> Any:
    return 2 * x


@jit.kernel()
def plus_one(x: Any) -> Any:
    return twice(x) + 1


@jit.kernel()
def plus_two(x: Any) -> Any:
    return plus_one(x) + 1


def test_a_kernel_that_only_kernels_call_gets_no_machine_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(plus_two, "_cache", caching.NullCache())  # compiled here, whatever an earlier run has stored
    assert plus_two(3) == 8
    for part in (plus_one, twice):
        assert len(part._part.overloads) == 1  # type: ignore[attr-defined]
    assert len(plus_two.overloads) == 1  # type: ignore[attr-defined]
    assert not plus_one.overloads  # type: ignore[attr-defined]
    [compiled] = plus_two.overloads.values()  # type: ignore[attr-defined]
    functions = [f.name for f in compiled.library.get_defined_functions()]
    assert any("plus_two" in name for name in functions)
    assert not any("twice" in name or "plus_one" in name for name in functions)
    assert plus_one(3) == 7  # and when Python calls it, it does
    assert plus_one(3.5) == 8.0
    assert twice(4) == 8


def test_kernels_of_the_same_name_from_several_processes_are_kept_apart() -> None:
    """What a kernel calls is not visible to others: in two processes such functions can have the same name."""

    def make(number: int) -> Any:
        @jit.kernel()
        def called(x: Any) -> Any:
            for _ in range(x.size):  # long enough not to be inlined
                x[0] = x[0] * 3 + number
            return x[0]

        @jit.kernel()
        def calls(x: Any) -> Any:
            return called(x) + called(x[1:]) + called(x[:1])

        return calls

    for number in (1, 2):
        calls = make(number)
        x = np.ones(3)
        y = x.copy()
        expected = [calls.py_func.__closure__[0].cell_contents.py_func(v) for v in (y, y[1:], y[:1])]
        assert calls(x) == sum(expected)
        [compiled] = calls.overloads.values()
        for function in compiled.library._final_module.functions:
            if "called" in function.name and not function.is_declaration:
                assert function.linkage.name == "internal"


@jit.kernel()
def arrays(n: Any, like: Any) -> Any:
    a, b, c, d = np.empty((n, 2), np.int32), np.zeros((1, 3), np.int64), np.full(n, -np.inf, like.dtype), np.zeros(n)
    a[:, 0], a[:, 1] = 1, 2
    return a, b, c, d, np.full((2, n), 3, np.uint8), np.empty(0, like.dtype), np.full(n, 2.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 5, 1000])
def test_new_arrays_are_those_of_numpy(n: int, dtype: Any) -> None:
    like = np.empty(0, dtype)
    for got, wanted in zip(arrays(n, like), arrays.py_func(n, like), strict=True):
        assert got.dtype == wanted.dtype
        assert got.flags.c_contiguous
        assert got.ctypes.data % 64 == 0 or not got.size
        np.testing.assert_array_equal(got, wanted)


def test_new_arrays_of_other_kinds_are_refused_when_the_kernel_is_compiled() -> None:
    @jit.kernel()
    def new(dtype: Any) -> Any:
        return np.empty(3, dtype)

    with pytest.raises(TypeError, match="take a dtype of numbers in kernels"):
        new(3)


def test_arguments_by_name_are_refused_in_operations() -> None:
    @jit.kernel()
    def new(x: Any) -> Any:
        return np.zeros(3, dtype=x.dtype)

    with pytest.raises(TypeError, match="have no names; got dtype"):
        new(np.ones(1))


collecting: list[bool] = []  # whether garbage is collected, when `noted` is compiled


@vector_types.operation
def noted(fails: Any) -> Any:
    collecting.append(gc.isenabled())
    if fails != types.int64:
        raise TypeError("this is refused")
    return types.int64(fails), lambda context, builder, fails: fails


@pytest.mark.parametrize("argument", [3, 3.5])
@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_a_kernel_is_compiled(enabled: bool, argument: float) -> None:
    @jit.kernel()
    def noting(x: Any) -> Any:
        return noted(x) + argument

    noting._cache = NullCache()  # type: ignore[attr-defined]  # it is compiled here
    collecting.clear()
    noted._numba_type_.signatures.clear()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.nullcontext() if argument == 3 else pytest.raises(TypeError, match="this is refused"):
            noting(argument)
        assert collecting
        assert not any(collecting)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


@jit.kernel()
def least_and_largest(x: Any, y: Any) -> Any:
    return min(x, y), max(x, y), min(x, 2), max(0, y)


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float32])
def test_min_and_max_are_those_of_python(kind: Any) -> None:
    numbers = [0, 1, 2, 100, *([] if kind is np.uint64 else [-1, -7])]
    numbers += [np.nan, np.inf, -0.0] if issubclass(kind, np.floating) else []
    for x in numbers:
        for y in numbers:
            got = np.array(least_and_largest(kind(x), kind(y)), np.float64)
            wanted = np.array(least_and_largest.py_func(kind(x), kind(y)), np.float64)
            np.testing.assert_array_equal(got, wanted)
            np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))


def test_where_numbas_internals_are_different_its_default_compiles() -> None:
    code = """
import sys
sys.modules["cnnlayers.kernels.cpu.compiler"] = None
import numpy as np
from cnnlayers import functional as F
from cnnlayers.kernels.cpu import elementwise
x = np.arange(32, dtype="float32").reshape(1, 1, 4, 8)
print(F.max_pool(x, 2).ravel().tolist(), F.relu(x - 30).ravel().sum(), type(elementwise.MASKED["integers"]).__name__)
"""
    env = os.environ | {"CNNLAYERS_KERNELS": "require", "CNNLAYERS_CACHE_DIR": os.devnull}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[9.0, 11.0, 13.0, 15.0, 25.0, 27.0, 29.0, 31.0] 1.0 CPUDispatcher"


def test_what_first_calls_cost_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    first_calls.main(["relu"])
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["first", "call", "cold", "warm", "start", "files"]
    name, cold, warm, start, files = row.split()
    assert (name, int(files)) == ("relu", 2)  # forward and backward
    assert min(float(cold), float(warm), float(start)) > 0
    with pytest.raises(SystemExit, match="no such op: rely; there are: all of a network, conv"):
        first_calls.main(["rely"])


OF_NUMBA = """
import math
import numpy as np
from cnnlayers.kernels.cpu.jit import kernel

@kernel(allocates=False)
def to_int(x, y):
    for i in range(x.size):
        y[i] = int(x[i])

@kernel(allocates=False)
def logarithm(x, y):
    for i in range(x.size):
        y[i] = math.log1p(x[i])

x, y = np.array([1.5, 0.0, 2.75]), np.zeros(3)
to_int(x, y)
assert y.tolist() == [1, 0, 2], y
logarithm(x, y)
np.testing.assert_allclose(y, np.log1p(x))
"""


def test_what_numba_loads_only_when_needed_is_found() -> None:
    """A process that has compiled nothing has loaded little of Numba."""
    ran = subprocess.run([sys.executable, "-c", OF_NUMBA], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
