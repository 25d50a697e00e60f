"""Which kernel serves a call, the modes, and what data a kernel may refuse; a toy kernel stands in for a real one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels

NUMPY = backends.of(np.zeros(1))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A kernel module for `toy_forward` on NumPy for float32 alone; the mode is "auto"."""
    module = types.ModuleType("toy_kernels")
    module.toy_forward = lambda b, spec, x: x * spec
    module.refuses = lambda op, spec, *arrays: None if arrays[0].dtype == np.float32 else f"{op} is for float32"
    monkeypatch.setitem(sys.modules, "toy_kernels", module)
    monkeypatch.setitem(kernels.TABLE, ("toy_forward", "numpy"), kernels.Entry("toy_kernels"))
    monkeypatch.setattr(kernels._mode, "process", ["auto"])
    return module


def find(dtype: str, op: str = "toy_forward") -> Any:
    return kernels.find(op, NUMPY, 3, np.ones(2, dtype))


def test_a_kernel_that_fits_serves(toy: types.ModuleType) -> None:
    assert find("float32") is toy.toy_forward
    assert find("float64") is None


def test_an_op_without_a_kernel_on_a_backend_is_portable_in_every_mode(toy: types.ModuleType) -> None:
    for mode in kernels.MODES:
        with kernels.mode(mode):
            assert kernels.find("toy_forward", backends.Backend("cupy", None, None), 3, np.ones(2, "float32")) is None


def test_an_op_without_any_row_is_not_asked_for(toy: types.ModuleType) -> None:
    for mode in kernels.MODES:
        with kernels.mode(mode), pytest.raises(LookupError, match=r"no row of kernels\.TABLE is for 'another_op'"):
            find("float32", "another_op")


def test_off_uses_no_kernel_and_imports_none(toy: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.TABLE, ("toy_forward", "numpy"), kernels.Entry("no_such_module"))
    with kernels.mode("off"):
        assert find("float32") is None
        assert kernels.warmup(find, "float32") == 0
    with pytest.raises(ModuleNotFoundError):
        find("float32")


def test_require_raises_and_says_why(toy: types.ModuleType) -> None:
    with kernels.mode("require"):
        assert find("float32") is toy.toy_forward
        with pytest.raises(
            kernels.KernelUnavailable, match=r"toy_forward has a numpy kernel .*: toy_forward is for float32"
        ):
            find("float64")
    assert issubclass(kernels.KernelUnavailable, RuntimeError)


def test_a_kernel_that_fails_is_an_error_and_not_a_detour(toy: types.ModuleType) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("compilation failed")

    toy.refuses = broken
    with pytest.raises(RuntimeError, match="compilation failed"):
        find("float32")


def test_modes_nest_and_end_with_an_exception(toy: types.ModuleType) -> None:
    with kernels.mode("off"):
        with kernels.mode("require"):
            assert kernels.current_mode() == "require"
        assert kernels.current_mode() == "off"
        with pytest.raises(KeyError), kernels.mode("auto"):
            raise KeyError
        assert kernels.current_mode() == "off"
    assert kernels.current_mode() == "auto"


def test_a_mode_is_seen_by_this_thread_and_task_alone(toy: types.ModuleType) -> None:
    seen: list[str] = []
    with kernels.mode("off"):
        thread = threading.Thread(target=lambda: seen.append(kernels.current_mode()))
        thread.start()
        thread.join()
    assert seen == ["auto"]

    async def task(name: str) -> str:
        with kernels.mode(name):
            await asyncio.sleep(0.01)
            return kernels.current_mode()

    async def main() -> list[str]:
        return await asyncio.gather(task("off"), task("require"))

    assert asyncio.run(main()) == ["off", "require"]


def test_an_unknown_mode_lists_the_modes() -> None:
    with pytest.raises(ValueError, match="auto, off, require; got 'on'"), kernels.mode("on"):
        pass


@pytest.mark.parametrize(
    ("value", "said"), [("", "auto"), ("off", "off"), ("require", "require"), ("no", "ValueError")]
)
def test_the_variable_is_read_once_at_first_use(value: str, said: str) -> None:
    code = """
import os
from cnnlayers import kernels
first = kernels.current_mode()
os.environ["CNNLAYERS_KERNELS"] = "nonsense"
print(first, kernels.current_mode())
"""
    env = os.environ | {"CNNLAYERS_KERNELS": value}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    if said == "ValueError":
        assert "ValueError: CNNLAYERS_KERNELS must be one of auto, off, require; got 'no'" in ran.stderr
    else:
        assert (ran.stdout, ran.stderr) == (f"{said} {said}\n", "")


def test_an_op_calls_the_kernel_that_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("toy_kernels")
    module.pad_forward = lambda b, spec, x, *rest: np.full(spec.out_shape, 7, x.dtype)
    module.refuses = lambda op, spec, *arrays: None
    monkeypatch.setitem(sys.modules, "toy_kernels", module)
    monkeypatch.setitem(kernels.TABLE, ("pad_forward", "numpy"), kernels.Entry("toy_kernels"))
    x = np.zeros((1, 1, 17), np.float32)  # a shape that no other test pads: plans are kept
    with kernels.mode("auto"):
        assert F.pad(x, 1).tolist() == [[[7.0] * 19]]
    with kernels.mode("off"):
        assert F.pad(x, 1).tolist() == [[[0.0] * 19]]


class Refusing:
    """`toy_forward`, which finds that it cannot serve negative numbers."""

    def __call__(self, b: Any, spec: Any, x: np.ndarray) -> np.ndarray:
        if (x < 0).any():
            raise kernels.UnsuitableData("a number is negative")
        return x * spec


def test_data_that_a_kernel_cannot_serve(toy: types.ModuleType) -> None:
    toy.toy_forward = Refusing()
    good, bad = np.ones(2, "float32"), -np.ones(2, "float32")
    for mode in ("auto", "require"):
        with kernels.mode(mode):
            assert kernels.attempt("toy_forward", NUMPY, 3, good).tolist() == [3, 3]
    for mode in ("auto", "off"):
        with kernels.mode(mode):
            assert kernels.attempt("toy_forward", NUMPY, 3, bad) is None
    said = "toy_forward has a numpy kernel that cannot serve these data: a number is negative"
    with kernels.mode("require"), pytest.raises(kernels.KernelUnavailable, match=said):
        kernels.attempt("toy_forward", NUMPY, 3, bad)
    with kernels.mode("require"):  # where values are arbitrary
        assert kernels.warmup(lambda: kernels.attempt("toy_forward", NUMPY, 3, bad)) == 1


@pytest.mark.parametrize("call", ["foo", ("max_pool", "cupy"), None, [("max_pool", "cupy", None)]])
def test_warmup_takes_something_to_call(call: Any) -> None:
    with pytest.raises(TypeError, match="warmup takes a layer, an op or a function"):
        kernels.warmup(call)
