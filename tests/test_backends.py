"""Backends: how one is chosen, whose an array is, and the two transfers. tests/standin_cupy.py plays the GPU's part."""

from __future__ import annotations

import array
import asyncio
import os
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from cnnlayers import backends

from . import standin_cupy
from .implementations import numpy_dtype

cupy_probe, selection = backends.cupy_probe, backends.selection


# ------------------------------------------------------------------------------------------------ a stand-in for CuPy


class SecondDevice(standin_cupy.Device):
    """Device 1."""

    id = 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecondDevice)

    def __hash__(self) -> int:
        return 1

    def __str__(self) -> str:
        return "<CUDA Device 1>"


class OnSecondDevice(standin_cupy.ndarray):
    __module__ = "cupy"
    device = SecondDevice()


def fake_cupy(**broken: Any) -> types.ModuleType:
    """The stand-in, with parts of it broken."""
    module = standin_cupy.module()
    module.asarray = broken.get("asarray", module.asarray)
    module.__version__ = broken.get("version", module.__version__)
    module.cuda.runtime.getDeviceCount = broken.get("devices", lambda: 1)
    module.cuda.nvrtc.getVersion = broken.get("nvrtc", lambda: (13, 0))
    return module


def fails(error: Exception) -> Any:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No backend chosen yet and no variable set; as it was afterwards."""
    monkeypatch.delenv("CNNLAYERS_BACKEND", raising=False)
    monkeypatch.setattr(selection, "_process", [])
    monkeypatch.setattr(cupy_probe, "_answer", [])
    return monkeypatch


@pytest.fixture
def gpu(fresh: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A `cupy` that answers."""
    with standin_cupy.installed() as module:
        yield module


# ----------------------------------------------------------------------------------------------- the variable, at first
NO_CUPY = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "cupy":
            raise ModuleNotFoundError("No module named 'cupy'", name="cupy")
sys.meta_path.insert(0, Block())
from cnnlayers import backends
"""


def child(code: str, backend: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new Python that has no CuPy, with CNNLAYERS_BACKEND as given."""
    env = {k: v for k, v in os.environ.items() if k != "CNNLAYERS_BACKEND"}
    if backend is not None:
        env["CNNLAYERS_BACKEND"] = backend
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_CUPY + code], env=env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("value", [None, "", "auto", "numpy"])
def test_the_variable_selects_numpy_where_there_is_no_gpu(value: str | None) -> None:
    ran = child("b = backends.current(); print(b.name, b.xp.__name__, b.device)", value)
    assert (ran.stdout, ran.stderr) == ("numpy numpy cpu\n", "")


def test_the_variable_asking_for_a_cupy_that_is_not_there_says_why_and_what_mends_it() -> None:
    ran = child("backends.current()", "cupy")
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert "BackendUnavailable" in last
    assert "CuPy is not installed" in last
    assert "pip install 'cnnlayers[cuda13]'" in last
    assert "cuda12" in last


def test_the_variable_with_an_unknown_name_is_a_value_error_that_lists_the_names() -> None:
    ran = child("backends.current()", "tpu")
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("ValueError: CNNLAYERS_BACKEND")
    for word in ("auto", "numpy", "cupy", "'tpu'"):
        assert word in last


def test_the_variable_is_not_read_at_import_and_read_once() -> None:
    code = """
import os
os.environ["CNNLAYERS_BACKEND"] = "numpy"
first = backends.current()
os.environ["CNNLAYERS_BACKEND"] = "nonsense"
print(backends.current() is first)
"""
    ran = child(code, "also nonsense")
    assert (ran.stdout, ran.stderr) == ("True\n", "")


def test_probing_prints_and_warns_nothing() -> None:
    ran = child("backends.available(); backends.current()")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "", 0)


# ------------------------------------------------------------------------------------------------------ use and using
@pytest.mark.parametrize("call", [backends.use, lambda name: backends.using(name).__enter__()])
def test_an_unknown_name_lists_the_names(call: Any, fresh: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"auto, numpy, cupy; got 'jax'"):
        call("jax")
    with pytest.raises(TypeError, match="must be a str, got int"):
        call(3)


def test_use_selects_for_the_process(gpu: types.ModuleType) -> None:
    backends.use("numpy")
    assert backends.use("cupy").xp is gpu
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(backends.current().name))
    thread.start()
    thread.join()
    assert (backends.current().name, seen) == ("cupy", ["cupy"])


def test_auto_prefers_a_gpu_that_answers(gpu: types.ModuleType) -> None:
    b = backends.current()
    assert (b.name, b.xp, b.device) == ("cupy", gpu, standin_cupy.Device())


def test_a_failed_use_leaves_the_selection_as_it_was(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "cupy", fake_cupy(devices=lambda: 0))
    backends.use("numpy")
    with pytest.raises(backends.BackendUnavailable, match="no CUDA device"):
        backends.use("cupy")
    with pytest.raises(backends.BackendUnavailable), backends.using("cupy"):
        pass
    assert backends.current().name == "numpy"
    assert issubclass(backends.BackendUnavailable, RuntimeError)


def test_using_selects_for_the_block_and_nests(gpu: types.ModuleType) -> None:
    backends.use("numpy")
    with backends.using("cupy") as b:
        assert b is backends.current()
        assert b.xp is gpu
        with backends.using("numpy"):
            assert backends.current().name == "numpy"
        assert backends.current() is b
    assert backends.current().name == "numpy"


def test_using_ends_with_an_exception(gpu: types.ModuleType) -> None:
    backends.use("numpy")
    with pytest.raises(KeyError), backends.using("cupy"):
        raise KeyError
    assert backends.current().name == "numpy"


def test_using_is_seen_by_this_thread_alone(gpu: types.ModuleType) -> None:
    backends.use("numpy")
    inside, seen = threading.Event(), []

    def other() -> None:
        with backends.using("cupy"):
            inside.set()
            time.sleep(0.05)
            seen.append(backends.current().name)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    seen.append(backends.current().name)
    thread.join()
    assert seen == ["numpy", "cupy"]


def test_using_is_seen_by_this_task_alone(gpu: types.ModuleType) -> None:
    backends.use("numpy")

    async def task(name: str) -> list[str]:
        with backends.using(name):
            seen = [backends.current().name]
            await asyncio.sleep(0.01)  # the other task's block opens and closes meanwhile
            return [*seen, backends.current().name]

    async def main() -> list[list[str]]:
        return await asyncio.gather(task("cupy"), task("numpy"), task("cupy"))

    assert asyncio.run(main()) == [["cupy"] * 2, ["numpy"] * 2, ["cupy"] * 2]
    assert backends.current().name == "numpy"


# -------------------------------------------------------------------------------------------------------- available()
BROKEN = {
    "import": (None, "CuPy does not import"),
    "no driver": (fake_cupy(devices=fails(RuntimeError("cudaErrorInsufficientDriver"))), "cudaErrorInsufficientDriver"),
    "no device": (fake_cupy(devices=lambda: 0), "no CUDA device"),
    "no nvrtc": (fake_cupy(nvrtc=fails(RuntimeError("libnvrtc.so.13 was not found"))), "libnvrtc.so.13"),
    "no headers": (fake_cupy(asarray=fails(OSError("cannot open cuda_fp16.h"))), r"cuda_fp16\.h.*brings NVRTC"),
    "wrong answer": (fake_cupy(asarray=lambda a: np.zeros(2)), "gave 2.0"),
    "no cuda": (types.ModuleType("cupy"), "AttributeError"),
    "too old": (fake_cupy(version="14.1.0rc1"), r"CuPy 14\.1\.0rc1 is too old, 14\.2 is needed: pip install --upgrade"),
    "no message": (fake_cupy(devices=fails(RuntimeError())), "RuntimeError"),
}


@pytest.mark.parametrize(
    ("version", "old"), [("13.6.0", True), ("14.0.1", True), ("14.2", False), ("14.10.0b1", False), ("15.0a1", False)]
)
def test_versions_of_cupy_are_compared_by_number(version: str, old: bool) -> None:
    assert cupy_probe._too_old(version) == old


@pytest.mark.parametrize("case", BROKEN)
def test_available_gives_the_reason_and_never_raises(
    case: str, fresh: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, expected = BROKEN[case]
    fresh.setitem(sys.modules, "cupy", module)
    found = backends.available()
    assert list(found) == ["numpy", "cupy"]
    assert found["numpy"] is None
    with pytest.raises(backends.BackendUnavailable, match=expected) as caught:
        backends.use("cupy")
    assert found["cupy"] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_available_is_none_for_a_cupy_that_works(gpu: types.ModuleType) -> None:
    assert backends.available() == {"numpy": None, "cupy": None}


def test_available_asks_once_a_process(fresh: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    fresh.setitem(sys.modules, "cupy", fake_cupy(devices=lambda: asked.append(1) or 0))
    backends.available()
    backends.available()
    assert len(asked) == 1
    fresh.setitem(sys.modules, "cupy", fake_cupy())
    cupy_probe._answer.clear()
    assert backends.available()["cupy"] is None


def test_a_cupy_without_a_driver_is_not_imported(fresh: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "cupy.py").write_text("raise SystemExit('imported')")
    fresh.syspath_prepend(str(tmp_path))
    fresh.delitem(sys.modules, "cupy", raising=False)
    fresh.setattr(cupy_probe, "_driver_library", lambda: False)
    assert "driver" in str(backends.available()["cupy"])
    assert "cupy" not in sys.modules


def test_a_cupy_that_warns_while_it_fails_is_not_heard(
    fresh: pytest.MonkeyPatch, tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cupy.py").write_text(
        "import warnings; warnings.warn('two CuPys'); raise ImportError('broken\\nbuild')"
    )
    fresh.syspath_prepend(str(tmp_path))
    fresh.delitem(sys.modules, "cupy", raising=False)
    fresh.setattr(cupy_probe, "_driver_library", lambda: True)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert "ImportError: broken" in str(backends.available()["cupy"])
    assert (heard, capfd.readouterr()) == ([], ("", ""))


def test_a_driver_that_hangs_is_given_up_on_and_does_not_silence_warnings(fresh: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    fresh.setitem(sys.modules, "cupy", fake_cupy(devices=lambda: release.wait(60) and 0))
    fresh.setattr(cupy_probe, "TIMEOUT_S", 0.1)
    filters = list(warnings.filters)
    try:
        assert "did not answer" in str(backends.available()["cupy"])  # after 60 s the driver would have said: no device
        assert warnings.filters == filters  # also while the probe still hangs
    finally:
        release.set()


# ---------------------------------------------------------------------------------------------------------------- of()
def test_of_finds_numpys_arrays_and_scalars() -> None:
    expected = backends.Backend("numpy", np, "cpu")
    for a in (np.zeros(2), np.float32(1), np.zeros((0, 3), bool), np.lib.stride_tricks.as_strided(np.zeros(3), (2, 2))):
        assert backends.of(a) == expected
    assert backends.of(None, np.zeros(2), None, np.zeros(1)) == expected


def test_of_finds_another_array_api_library() -> None:
    b = backends.of(strict.asarray([1.0]), strict.asarray(1))
    assert b.xp is strict
    assert b.name == "array_api_strict"
    device = strict.Device("device1")
    assert backends.of(strict.asarray([1.0], device=device)).device == device


def test_of_finds_cupys_arrays_without_selecting_anything(gpu: types.ModuleType) -> None:
    assert backends.of(OnSecondDevice(np.ones(1))) == backends.Backend("cupy", gpu, SecondDevice())


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ((np.zeros(1), strict.zeros(1)), ("numpy", "array_api_strict")),
        ((strict.zeros(1), strict.zeros(1, device=strict.Device("device1"))), ("CPU_DEVICE", "device1")),
    ],
)
def test_mixed_owners_are_a_type_error_that_names_each(arrays: Any, named: tuple[str, ...]) -> None:
    with pytest.raises(TypeError, match="owner") as caught:
        backends.of(*arrays)
    for name in named:
        assert name in str(caught.value)


def test_mixed_gpu_owners_are_refused(gpu: types.ModuleType) -> None:  # cupy#1389, #5795
    with pytest.raises(TypeError, match=r"numpy on cpu, cupy on <CUDA Device 0>"):
        backends.of(np.zeros(1), gpu.asarray([1]))
    with pytest.raises(TypeError, match=r"Device 0.*Device 1"):
        backends.of(gpu.asarray([1]), OnSecondDevice(np.ones(1)))


@pytest.mark.parametrize("value", [[1.0, 2.0], 3.0, "x", b"x", None, object(), array.array("d", [1.0])])
def test_of_refuses_what_is_no_array(value: Any) -> None:
    with pytest.raises(TypeError, match=r"array"):
        backends.of(value)


def test_of_without_arrays_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="at least one array"):
        backends.of()


def test_of_says_which_argument_is_no_array_and_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"argument 2 .*builtins\.list.*backends\.asarray"):
        backends.of(np.zeros(1), [1.0])
    with pytest.raises(TypeError, match="gamma"):
        backends.of([1.0], name="gamma")


def a_matrix() -> np.matrix:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix([[1.0, 2.0]])


def test_masked_arrays_and_matrices_are_refused() -> None:
    with pytest.raises(TypeError, match="MaskedArray"):
        backends.of(np.ma.masked_array([1.0, 2.0], mask=[True, False]))
    with pytest.raises(TypeError, match="matrix"):
        backends.of(a_matrix())


def test_a_torch_tensor_is_no_array_of_ours() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"torch\.Tensor.*backends\.asarray"):
        backends.of(torch.zeros(1))


# ----------------------------------------------------------------------------------------------------------- transfers
@pytest.mark.parametrize("transfer", [backends.to_numpy, backends.asarray])
@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [3, 4]],
        ((1.5, 2.5),),
        range(3),
        7,
        2.5,
        True,
        np.float32(1.5),
        array.array("f", [1.0, 2.0]),
        bytearray(b"ab"),
        memoryview(np.arange(6.0).reshape(2, 3)),
        [],
        [np.float32(1), np.float32(2)],
    ],
)
def test_sequences_numbers_and_buffers_become_arrays(transfer: Any, value: Any) -> None:
    with backends.using("numpy"):
        found = transfer(value)
    expected = np.asarray(value)
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape, found.tolist()) == (expected.dtype, expected.shape, expected.tolist())


@pytest.mark.parametrize("transfer", [backends.to_numpy, backends.asarray])
@pytest.mark.parametrize(
    "value",
    [
        "text",
        ["a", "b"],
        [1, "a"],
        None,
        {1: 2},
        {1, 2},
        object(),
        np.array(["a"]),
        np.array([None]),
        np.array([np.datetime64(1, "s")]),
        np.zeros(2, [("a", "f4")]),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_not_made_of_numbers_is_a_type_error(transfer: Any, value: Any) -> None:
    with backends.using("numpy"), pytest.raises(TypeError, match="does not hold numbers"):
        transfer(value)


@pytest.mark.parametrize("transfer", [backends.to_numpy, backends.asarray])
def test_a_masked_array_would_lose_its_mask(transfer: Any) -> None:
    with backends.using("numpy"), pytest.raises(TypeError, match=r"mask.*filled"):
        transfer(np.ma.masked_array([1.0, 2.0], mask=[True, False]))


def test_a_matrix_becomes_an_array_that_ops_take() -> None:
    with backends.using("numpy"):
        found = backends.asarray(a_matrix())
    assert type(found) is np.ndarray
    assert found.shape == (1, 2)


@pytest.mark.parametrize("transfer", [backends.to_numpy, backends.asarray])
def test_what_is_there_already_is_not_copied(transfer: Any) -> None:
    with backends.using("numpy"):
        x = np.arange(6.0).reshape(2, 3).T
        assert transfer(x) is x
        buffer = array.array("d", [1.0, 2.0])
        assert np.shares_memory(transfer(buffer), np.frombuffer(buffer))
        lazy = strict.asarray([1.0, 2.0])
        assert np.shares_memory(transfer(lazy), np.from_dlpack(lazy))


def test_asarray_converts_to_the_dtype_asked_for() -> None:
    with backends.using("numpy"):
        assert backends.asarray([1, 2], np.float32).dtype == np.float32
        x = np.zeros(2, np.float32)
        assert backends.asarray(x, np.float32) is x


def test_torch_tensors_cross_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    with backends.using("numpy"):
        for t in (torch.arange(6.0).reshape(2, 3), torch.ones(2, requires_grad=True), torch.arange(6).reshape(2, 3).T):
            found = backends.asarray(t)
            assert type(found) is np.ndarray
            np.testing.assert_array_equal(found, t.detach().numpy())
            assert np.shares_memory(found, t.detach().numpy())
        assert backends.to_numpy(torch.tensor([True])).dtype == bool
        assert backends.to_numpy(torch.zeros(2, dtype=torch.float16)).dtype == np.float16
        assert backends.to_numpy(torch.tensor(3.0)).shape == ()


def test_torch_tensors_that_are_negated_by_a_mark() -> None:
    """What lies in their memory has the other sign, and DLPack gives that."""
    torch = pytest.importorskip("torch")
    z = torch.complex(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0]))
    for t in (z.conj().imag, z.conj(), z.conj().imag.bfloat16(), z.to(torch.complex128).conj().imag[::1]):
        with backends.using("numpy"):
            for found in (backends.to_numpy(t), backends.asarray(t)):
                assert found.tolist() == t.tolist()


def test_dlpack_exporters_and_array_makers_are_taken() -> None:
    class Dlpack:
        def __init__(self, a: np.ndarray) -> None:
            self.a = a

        def __dlpack__(self, **options: Any) -> Any:
            return self.a.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.a.__dlpack_device__()

    class Maker:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.array([1.0, 2.0])

    class Both(Dlpack):
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self.a

    x = np.arange(4.0)
    assert np.shares_memory(backends.to_numpy(Dlpack(x)), x)
    assert backends.to_numpy(Maker()).tolist() == [1.0, 2.0]
    read_only = np.arange(3.0)
    read_only.flags.writeable = False
    assert backends.to_numpy(Both(read_only)).tolist() == [0.0, 1.0, 2.0]  # some exporters refuse read-only memory


class DeviceExporter:
    """An array on a GPU that answers DLPack and nothing else, as JAX's do; its memory is the stand-in's."""

    def __init__(self, a: Any, requires_grad: bool = False) -> None:
        self.a, self.requires_grad = a, requires_grad

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **options: Any) -> Any:
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        return self.a


class DeviceTensor(DeviceExporter):
    """The same as a PyTorch tensor."""

    def detach(self) -> DeviceTensor:
        return DeviceTensor(self.a)

    def resolve_conj(self) -> DeviceTensor:
        return self

    resolve_neg = resolve_conj


DeviceTensor.__module__ = "torch"


@pytest.mark.parametrize(
    ("kind", "requires_grad"), [(DeviceExporter, False), (DeviceTensor, False), (DeviceTensor, True)]
)
def test_what_another_library_has_on_the_gpu_stays_there(kind, requires_grad, monkeypatch) -> None:
    with standin_cupy.installed() as cupy, backends.using("cupy"):
        monkeypatch.setattr(cupy, "from_dlpack", lambda exporter: exporter.__dlpack__())
        x = cupy.asarray([1.0, 2.0])
        assert backends.asarray(kind(x, requires_grad)) is x
        assert backends.asarray(kind(x, requires_grad), cupy.float32).dtype == np.float32


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float32", "float64", "int64"])
def test_strict_arrays_cross_with_their_dtype(dtype: str) -> None:
    x = strict.asarray(np.array([[0, 1], [1, 0]], dtype))
    found = backends.to_numpy(x)
    assert (found.dtype, found.tolist()) == (np.dtype(dtype), np.array([[0, 1], [1, 0]], dtype).tolist())


def test_transfers_to_and_from_the_gpu(gpu: types.ModuleType) -> None:
    backends.use("cupy")
    x = gpu.asarray([1.0, 2.0])
    assert backends.to_numpy(x).tolist() == [1.0, 2.0]
    backends.asarray(x)[0] = 5.0
    assert x.get().tolist() == [5.0, 2.0]  # not copied: it was there already
    made = backends.asarray([1, 2], np.float32)
    assert isinstance(made, gpu.ndarray)
    assert made.dtype == np.float32
    with backends.using("numpy"):
        assert type(backends.asarray(x)) is np.ndarray
    with pytest.raises(TypeError, match="does not hold numbers"):
        backends.asarray("text")


# ---------------------------------------------------------------------------------------------------- making new arrays
@pytest.mark.parametrize(
    "example", [np.zeros(1), strict.zeros(1, device=strict.Device("device1"))], ids=["np", "strict"]
)
def test_a_backend_makes_arrays_where_it_is(example: Any) -> None:
    b = backends.of(example)
    made = {
        "empty": b.empty((2, 3), b.xp.float32),
        "zeros": b.zeros((2, 3), b.xp.float32),
        "full": b.full((2, 3), 7, b.xp.float32),
        "array": b.array([[1, 2, 3], [4, 5, 6]], b.xp.float32),
    }
    for name, a in made.items():
        assert backends.of(a) == b, name
        assert (tuple(a.shape), backends.dtype_name(b, a)) == ((2, 3), "float32"), name
    assert backends.to_numpy(made["zeros"]).tolist() == [[0] * 3] * 2
    assert backends.to_numpy(made["full"]).tolist() == [[7] * 3] * 2
    assert backends.to_numpy(made["array"]).tolist() == [[1, 2, 3], [4, 5, 6]]
    count = b.arange(4)
    assert (backends.of(count) == b, backends.dtype_name(b, count)) == (True, "int64")
    assert backends.to_numpy(count).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", [*backends.FLOATS, *backends.COMPLEX, *backends.INTEGERS, "bool"])
def test_dtypes_go_by_their_array_api_names(name: str) -> None:
    dtype = numpy_dtype(name)
    numpy_backend = backends.of(np.zeros(1))
    assert backends.dtype_name(numpy_backend, np.zeros(1, dtype)) == name
    assert backends.name_of_dtype(numpy_backend, dtype) == name
    if hasattr(strict, name):
        b = backends.of(strict.zeros(1))
        assert backends.dtype_name(b, strict.zeros(1, dtype=getattr(strict, name))) == name


@pytest.mark.parametrize("dtype", ["clongdouble", "longdouble", "S1", "O", "M8[s]", ">f4"])
def test_other_dtypes_are_none_of_ours(dtype: str) -> None:
    known = (*backends.FLOATS, *backends.COMPLEX, *backends.INTEGERS, "bool")
    assert backends.dtype_name(backends.of(np.zeros(1)), np.zeros(1, dtype)) not in known


def test_bytes_are_a_buffer_of_uint8() -> None:
    np.testing.assert_array_equal(backends.to_numpy(b"abc"), np.array([97, 98, 99], np.uint8))


def test_a_bfloat16_tensor_keeps_its_dtype() -> None:
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    host = backends.to_numpy(torch.tensor([1.0, -2.5], dtype=torch.bfloat16))
    assert host.dtype == ml_dtypes.bfloat16
    assert host.tolist() == [1.0, -2.5]
