"""cudnn.py with a stand-in for cuDNN: convolutions give what array code gives; when cuDNN is not taken; real graphs."""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.kernels.cuda import cudnn as launchers
from cnnlayers.kernels.setting import Setting
from cnnlayers.specs.conv import Conv, conv_window, transposed_window

from . import simt, standin_cuda
from .standin_cudnn import Cudnn, NotSupported

# x's shape, the kernel, filters of a group, stride, padding, dilation, groups, channels last
CASES: dict[str, tuple[Any, ...]] = {
    "1-d": ((2, 4, 17), (5,), 3, 2, 3, 2, 2, False),
    "1-d last": ((2, 17, 4), (3,), 3, 1, 1, 1, 1, True),
    "2-d": ((2, 3, 9, 11), (3, 3), 4, 1, 1, 1, 1, False),
    "last": ((2, 9, 11, 4), (3, 2), 3, 2, 1, 2, 2, True),
    "one sided": ((2, 4, 9, 12), (2, 5), 2, (2, 1), ((0, 3), (4, 1)), (3, 1), 2, False),
    "one sided last": ((2, 9, 12, 4), (2, 5), 2, (2, 1), ((0, 3), (4, 1)), (3, 1), 1, True),
    "1 by 1": ((2, 5, 4, 4), (1, 1), 3, 1, 0, 1, 1, False),
    "depthwise": ((2, 4, 7, 7), (3, 3), 2, 1, 1, 1, 4, False),
    "3-d": ((2, 2, 5, 6, 7), (2, 3, 3), 3, (2, 1, 1), (1, 0, 2), 1, 1, False),
    "unread end": ((1, 2, 8, 8), (3, 3), 2, 2, 0, 1, 1, False),
}
EACH_CASE = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def cudnn(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cudnn]:
    """cuDNN's stand-in in place; arrays of CuPy's stand-in then say where they really lie."""
    module = Cudnn()
    monkeypatch.setitem(sys.modules, "cudnn", module)
    address = property(lambda pointer: pointer._array.ctypes.data + pointer._offset)
    monkeypatch.setattr(standin_cuda.MemoryPointer, "ptr", address)
    monkeypatch.setattr(launchers, "_thread", launchers._Thread())
    launchers.unavailable.cache_clear()
    with kernels.cudnn("auto"):
        yield module
    launchers.unavailable.cache_clear()


def arrays_of(case: str, transposed: bool, dtype: str) -> tuple[Any, ...]:
    """x, weight, bias, dy's maker and the options of a call."""
    shape, kernel, filters, stride, padding, dilation, groups, last = CASES[case]
    channels = shape[-1] if last else shape[1]
    rng = np.random.default_rng(len(case))
    ends = (channels, filters) if transposed else (filters * groups, channels // groups)
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in (shape, (*ends, *kernel), (filters * groups,)))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x, weight, bias, options | {"data_format": "channels_last" if last else "channels_first"}


def results(op: str, x: Any, weight: Any, bias: Any, options: Any, move: Any = lambda a: a) -> list[np.ndarray]:
    """y, dx, dweight, dbias."""
    y, ctx = getattr(F, f"{op}_forward")(move(x), move(weight), move(bias), **options)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(x.dtype)
    return [backends.to_numpy(a) for a in (y, *getattr(F, f"{op}_backward")(move(dy), ctx))]


@EACH_CASE
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_convolutions_give_what_array_code_gives(cupy: Any, cudnn: Cudnn, op: str, case: str, dtype: str) -> None:
    call = arrays_of(case, op == "conv_transpose", dtype)
    with kernels.mode("off"):
        expected = results(op, *call)
    found = results(op, *call, move=cupy.asarray)
    assert cudnn.executed == len(cudnn.graphs) == 3
    assert {t.data_type for g in cudnn.graphs for t in g.tensors} == {launchers.TYPES[dtype]}
    tolerance = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-12}[dtype]
    for f, e in zip(found, expected, strict=True):
        assert (f.dtype, f.shape) == (e.dtype, e.shape)
        np.testing.assert_allclose(
            f.astype("float64"), e.astype("float64"), rtol=tolerance, atol=tolerance * abs(e).max()
        )


def test_half_values_with_float32_weights_are_computed_in_float32(cupy: Any, cudnn: Cudnn) -> None:
    x, weight, bias, options = arrays_of("2-d", False, "float16")
    weight, bias = weight.astype("float32"), bias.astype("float32")
    with kernels.mode("off"):
        expected = results("conv", x, weight, bias, options)
    found = results("conv", x, weight, bias, options, cupy.asarray)
    assert {t.data_type for g in cudnn.graphs for t in g.tensors} == {"FLOAT"}
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=2e-3, atol=1e-4)


def test_complex_convolutions_are_computed_by_parts(cupy: Any, cudnn: Cudnn) -> None:
    x, weight, bias, options = arrays_of("2-d", False, "float32")
    x, weight, bias = (a * np.complex64(1 + 0.5j) for a in (x, weight, bias))
    with kernels.mode("off"):
        expected = F.conv(x, weight, bias, **options)
    found = F.conv(*(cupy.asarray(a) for a in (x, weight, bias)), **options).get()
    assert cudnn.executed
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_engines_that_are_left_out(cupy: Any, cudnn: Cudnn, dtype: str) -> None:
    results("conv", *arrays_of("2-d", False, dtype), move=cupy.asarray)
    for graph in cudnn.graphs:
        assert {"NONDETERMINISTIC", "WINOGRAD", "FFT", "DOWN_CONVERT_INPUTS"} < graph.notes
        assert ("TENSOR_CORE" in graph.notes) == (dtype == "float32")
        assert graph.sums == ("DOUBLE" if dtype == "float64" else "FLOAT")


@pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))
@pytest.mark.parametrize("forbidden", ["block", "variable", "portable"])
def test_cudnn_can_be_forbidden(cupy: Any, cudnn: Cudnn, forbidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = arrays_of("2-d", False, "float32")
    with kernels.mode("off"):
        expected = results("conv", *call)
    monkeypatch.undo()  # the emulated kernels need the stand-in's own addresses
    monkeypatch.setitem(sys.modules, "cudnn", cudnn)
    with kernels.cudnn("off") if forbidden == "block" else kernels.mode("off" if forbidden == "portable" else "auto"):
        if forbidden == "variable":
            monkeypatch.setattr(kernels, "cudnn_allowed", lambda: False)
        found = results("conv", *call, move=cupy.asarray)
    assert not cudnn.graphs
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-5)


def test_the_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNLAYERS_CUDNN", "off")
    assert Setting("CNNLAYERS_CUDNN", ("auto", "off"), "the cuDNN option").current() == "off"
    monkeypatch.setenv("CNNLAYERS_CUDNN", "on")
    with pytest.raises(ValueError, match="auto, off"):
        Setting("CNNLAYERS_CUDNN", ("auto", "off"), "the cuDNN option").current()


@pytest.mark.parametrize(("fault", "warned"), [(NotSupported("none"), 0), (RuntimeError("it broke"), 1)])
def test_what_cudnn_does_not_compute_the_librarys_own_code_does(
    cupy: Any, cudnn: Cudnn, fault: Exception, warned: int
) -> None:
    cudnn.fault = fault
    spec = Conv(conv_window((2, 3, 9, 11), (3, 3), 1, 1, 1, "channels_first"), 4, 1)
    x, weight = cupy.asarray(np.ones((2, 3, 9, 11), "float32")), cupy.asarray(np.ones((4, 3, 3, 3), "float32"))
    b = backends.of(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # the second call asks no more, but after a failure it tries again
            assert kernels.find("cudnn_correlate", b, spec, x, weight, None, required=False) is None
        assert str(fault) in str(launchers.refuses("cudnn_correlate", spec, x, weight))
    assert len(cudnn.graphs) == 1 + 2 * warned
    assert [w.category for w in caught] == [RuntimeWarning] * 3 * warned


def test_sizes_that_are_none_of_cudnns_are_refused(cupy: Any, cudnn: Cudnn) -> None:
    window = transposed_window((1, 2, 3, 3), (2, 2), 1, 0, 1, 2, "channels_first", channels=2)
    x, weight = (cupy.asarray(np.ones(shape, "float32")) for shape in ((1, 2, 3, 3), (2, 2, 2, 2)))
    said = launchers.refuses("cudnn_correlate_adjoint", Conv(window, 2, 1), x, weight)
    assert said == "its outputs are not as many as its sizes give"
    assert not cudnn.graphs


def test_plans_are_kept_and_bounded(cupy: Any, cudnn: Cudnn, monkeypatch: pytest.MonkeyPatch) -> None:
    call = arrays_of("2-d", False, "float32")
    for _ in range(3):
        results("conv", *call, move=cupy.asarray)
    assert (len(cudnn.graphs), cudnn.executed) == (3, 9)
    monkeypatch.setattr(launchers, "KEPT", 4)
    for case in ("last", "1 by 1"):
        results("conv", *arrays_of(case, False, "float32"), move=cupy.asarray)
    assert len(launchers._thread.plans) <= 4


def test_each_thread_has_a_handle_and_the_current_stream_is_used(cupy: Any, cudnn: Cudnn) -> None:
    call = arrays_of("2-d", False, "float32")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        results("conv", *call, move=cupy.asarray)
    [handle] = cudnn.handles
    assert cudnn.streams[handle] == stream.ptr
    thread = threading.Thread(target=lambda: seen.append(launchers._handle(cudnn, 0).number))
    seen: list[int] = []
    thread.start()
    thread.join()
    assert len({handle, *seen}) == 2
    assert cudnn.handles == {handle}  # the ended thread's is destroyed


def test_an_array_that_is_not_aligned_is_copied(cupy: Any, cudnn: Cudnn) -> None:
    x, weight, bias, options = arrays_of("2-d", False, "float32")
    base = cupy.asarray(np.concatenate([np.zeros(1, "float32"), x.ravel()]))
    found = F.conv(base[1:].reshape(x.shape), cupy.asarray(weight), cupy.asarray(bias), **options)
    with kernels.mode("off"):
        np.testing.assert_allclose(found.get(), F.conv(x, weight, bias, **options), rtol=1e-5, atol=1e-5)


def test_warmup_builds_and_does_not_compute(cupy: Any, cudnn: Cudnn) -> None:
    x, weight, bias, options = arrays_of("2-d", False, "float32")
    ready = kernels.warmup(F.conv, *(cupy.asarray(a) for a in (x, weight, bias)), **options)
    assert len(cudnn.graphs) == 3
    assert cudnn.executed == 0
    assert ready >= 3


def test_reasons_for_which_there_is_no_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(module: Any) -> str | None:
        monkeypatch.setitem(sys.modules, "cudnn", module)
        launchers.unavailable.cache_clear()
        return launchers.unavailable()

    try:
        assert "cannot be imported" in str(reason(None))
        assert "not nvidia-cudnn-frontend's" in str(reason(object()))
        old = Cudnn()
        monkeypatch.setattr(Cudnn, "backend_version", lambda self: 8_907)
        assert "8907 is too old" in str(reason(old))
    finally:
        launchers.unavailable.cache_clear()


def _real() -> Any:
    """nvidia-cudnn-frontend with a cuDNN library, or a skip."""
    sys.modules.pop("cudnn", None)
    try:
        module = importlib.import_module("cudnn")
        module.backend_version()
    except Exception as error:
        pytest.skip(f"no cuDNN here: {error}")
    return module


@EACH_CASE
@pytest.mark.parametrize("op", launchers.FUNCTIONS)
def test_cudnn_itself_finds_the_graphs_valid(op: str, case: str) -> None:
    module = _real()
    shape, kernel, filters, stride, padding, dilation, groups, last = CASES[case]
    data_format = "channels_last" if last else "channels_first"
    spec = Conv(conv_window(shape, kernel, stride, padding, dilation, data_format), filters * groups, groups)
    sizes = launchers.sizes_of(spec)
    for dtype in launchers.TYPES:
        graph, *tensors = launchers.graph_of(module, op, sizes, last, dtype, None)
        graph.validate()
        names = [*launchers.FUNCTIONS[op][1].values(), launchers.FUNCTIONS[op][2]]
        assert [t.get_dim() for t in tensors] == [list(getattr(sizes, name)) for name in names]
        assert [t.get_stride() for t in tensors] == [launchers._strides(getattr(sizes, n), last) for n in names]
