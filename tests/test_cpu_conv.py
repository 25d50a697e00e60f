"""Convolution's forms on the CPU: which is taken, Winograd's error, bounds, bits, threads, and data it refuses."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.backends import memory
from cnnlayers.kernels.cpu import jit as cpu

from .cases.conv import FORMS, arrays_of

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=str(cpu.unavailable()))


def results(arrays: list[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
    """y, dx, dweight and dbias."""
    y, ctx = F.conv_forward(*arrays, **options)
    return [y, *F.conv_backward(np.random.default_rng(1).standard_normal(y.shape).astype("float32"), ctx)]


def close(mine: list[np.ndarray], other: list[np.ndarray], bound: float) -> None:
    for a, b in zip(mine, other, strict=True):
        assert a.dtype == b.dtype or b.dtype == np.float64
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


def exact(arrays: list[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
    with kernels.mode("off"):
        return results([a.astype("float64") for a in arrays], options)


# --------------------------------------------------------------------------------------------------------- same answer
def test_a_transposed_convolution_takes_the_same_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnlayers.kernels.cpu import winograd

    called = []
    spread = winograd.winograd_correlate_adjoint
    monkeypatch.setattr(winograd, "winograd_correlate_adjoint", lambda *args: called.append(1) or spread(*args))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((6, 48, 12, 12)).astype("float32"), rng.standard_normal((48, 50, 3, 3)).astype("float32")
    y = F.conv_transpose(x, w, padding=1)
    assert called == [1]
    expected = F.conv_transpose(x.astype("float64"), w.astype("float64"), padding=1)
    assert np.abs(y - expected).max() < 5e-6 * np.abs(expected).max()


# ------------------------------------------------------------------------------------------------------------ Winograd
@pytest.mark.parametrize("shape", [(4, 16, 32, 30), (2, 64, 28, 28), (4, 256, 14, 14)])
def test_winograds_error_is_what_its_docstring_says(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype("float32") for s in (shape, (shape[1], shape[1], 3, 3), (shape[1],))]
    close(results(arrays, {"padding": 1}), exact(arrays, {"padding": 1}), 5e-6)
    with kernels.winograd("off"):
        close(results(arrays, {"padding": 1}), exact(arrays, {"padding": 1}), 1e-6)


def test_off_and_float64_do_not_take_winograds_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnlayers.kernels.cpu import winograd

    def refused(*_: Any) -> None:
        raise AssertionError("Winograd's form was taken")

    for step in ("correlate", "correlate_adjoint", "weight_gradient"):
        monkeypatch.setattr(winograd, f"winograd_{step}", refused)
    arrays, options = arrays_of("winograd")
    with pytest.raises(AssertionError), kernels.winograd("auto"):
        results(arrays, options)
    with kernels.winograd("off"):
        results(arrays, options)
    results([a.astype("float64") for a in arrays], options)
    few = [a[:15, :15] if a.ndim > 1 else a[:15] for a in arrays]
    results([arrays[0][:, :15], *few[1:]], options)


def test_the_option_is_read_once_and_checked() -> None:
    with pytest.raises(ValueError, match="must be one of auto, off; got 'on'"), kernels.winograd("on"):
        pass
    code = "from cnnlayers import kernels; print(kernels.winograd_allowed())"
    for value, said in (("off", "False"), ("auto", "True"), ("", "True"), ("no", "CNNLAYERS_WINOGRAD must be one of")):
        env = os.environ | {"CNNLAYERS_WINOGRAD": value}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert said in ran.stdout + ran.stderr


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_where_the_definition_has_it(odd: float) -> None:
    arrays, options = arrays_of("winograd")
    arrays[0][1, 2, 4, 5] = odd
    y, ctx = F.conv_forward(*arrays, **options)
    dy = np.ones_like(y)
    with kernels.winograd("off"):
        direct, ctx = F.conv_forward(*arrays, **options)
        expected = [direct, *F.conv_backward(dy, ctx)]
    for mine, other in zip([y, *F.conv_backward(dy, ctx)], expected, strict=True):
        np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(other))
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(other))
    assert np.isfinite(y).sum() >= y.size - 9 * 52
    dy[0, 3, 2, 2] = odd
    dx = F.conv_backward(dy, ctx)[0]
    assert np.isfinite(dx).sum() >= dx.size - 9 * 50


def test_a_weights_gradient_has_few_partial_sums_however_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part then has several stretches, for one share of the channels and for two."""
    from cnnlayers.kernels.cpu import winograd

    monkeypatch.setattr(winograd, "MAX_PARTIAL_SUMS", 1)
    made, loop = [], winograd.loops.weight_gradient
    recorder = SimpleNamespace(shared=lambda *args: made.append(args[5].size) or loop.shared(*args))
    monkeypatch.setattr(winograd.loops, "weight_gradient", recorder)
    rng = np.random.default_rng(0)
    for channels, samples in ((17, 36), (64, 30)):
        x, dy = (rng.standard_normal((samples, c, 64, 64)).astype("float32") for c in (channels, 16))
        backends.PLANS.clear()
        _, ctx = F.conv_forward(x, np.zeros((16, channels, 3, 3), "float32"), padding=1)
        dweight = F.conv_backward(dy, ctx, needs_dx=False)[1]
        assert made.pop() == 2 * 36 * 24 * -(-channels // 16) * 16  # points, filters and channels in whole tiles
        with kernels.winograd("off"):
            expected = F.conv_backward(dy, ctx, needs_dx=False)[1]
        np.testing.assert_allclose(dweight, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("form", [name for name in FORMS if name.startswith("depthwise")])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "weight", "dy"])
def test_what_is_not_finite_stays_there_in_depthwise_convolution(form: str, odd: float, where: str) -> None:
    arrays, options = arrays_of(form)
    dy = np.ones_like(F.conv(*arrays, **options))
    {"x": arrays[0], "weight": arrays[1], "dy": dy}[where].flat[0] = odd  # at a corner, beside the padding
    found = []
    for mode in ("auto", "off"):
        with kernels.mode(mode), np.errstate(invalid="ignore"):
            y, ctx = F.conv_forward(*arrays, **options)
            found.append([y, *F.conv_backward(dy, ctx)])
    for mine, other in zip(*found, strict=True):
        np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(other))
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(other))


# ------------------------------------------------------------------------------------------------------------- memory
CHECKED = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from tests import test_cpu_conv as here
for form in here.SMALL:
    (x, *parameters), options = here.arrays_of(form)
    x = np.moveaxis(x, -1, 1) if "data_format" in options else x
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for image, layout in ((np.ascontiguousarray(x), "channels_first"), (last, "channels_last")):
        arrays, options = [image, *parameters], dict(options, data_format=layout)
        here.close(here.results(arrays, options), here.exact(arrays, options), 1e-4)
    print(form)
"""
SMALL = [form for form in FORMS if "many chunks" not in form and "bands" not in form]


def test_no_kernel_leaves_its_arrays() -> None:
    # Numba checks every index then, and so do the loads and stores of vectors.
    code = CHECKED.format(root=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = os.environ | {"NUMBA_BOUNDSCHECK": "1", "CNNLAYERS_KERNELS": "auto"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert ran.stdout.splitlines() == SMALL, ran.stderr


# ------------------------------------------------------------------------------------------------------ bits, threads
DIGEST = """
import hashlib, sys
sys.path.insert(0, {root!r})
from tests import test_cpu_conv as here
for form in here.FORMS:
    print(form, *(hashlib.md5(a.tobytes()).hexdigest() for a in here.results(*here.arrays_of(form))))
"""


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    code = DIGEST.format(root=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    said = set()
    for threads in (1, 2, 5):
        env = os.environ | {"CNNLAYERS_NUM_THREADS": str(threads), "CNNLAYERS_KERNELS": "auto"}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        said.add(ran.stdout)
    assert len(said) == 1


TARGETS = {
    "AVX-512": {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx512f,+avx512vl,+avx512dq,+fma,+f16c"},
    "AVX2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"},
}


def features_of_this_cpu() -> list[str]:
    import llvmlite.binding

    return [name for name, present in llvmlite.binding.get_host_cpu_features().items() if present]


@pytest.mark.skipif(
    not {"avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512dq"}.issubset(
        features_of_this_cpu() if not cpu.unavailable() else ()
    ),
    reason="this CPU has no AVX-512, so that there is one target only",
)
def test_convolutions_by_vectors_have_the_same_bits_on_every_cpu() -> None:
    code = DIGEST.format(root=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    said = []
    for target in TARGETS.values():
        env = os.environ | target | {"CNNLAYERS_KERNELS": "auto"}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        lines = [line.split() for line in ran.stdout.splitlines() if not line.startswith("1×1")]
        said.append(lines)
    assert said[0] == said[1]
    assert len(said[0]) == len(FORMS) - 1


def test_concurrent_calls_do_not_disturb_each_other() -> None:
    expected = {form: results(*arrays_of(form)) for form in FORMS}
    wrong: list[str] = []

    def work(start: int) -> None:
        for form in [*FORMS][start:] + [*FORMS][:start]:
            mine = results(*arrays_of(form))
            if any(a.tobytes() != b.tobytes() for a, b in zip(mine, expected[form], strict=True)):
                wrong.append(form)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_results_are_not_workspace() -> None:
    arrays, options = arrays_of("direct")
    mine = results(arrays, options)
    copies = [a.copy() for a in mine]
    for form in FORMS:
        results(*arrays_of(form, seed=1))
    for _, buffer in itertools.chain(*memory._free.buffers.values()):
        buffer[...] = 255
        assert not any(np.shares_memory(buffer, a) for a in mine)
    close(mine, copies, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_too() -> None:
    arrays, options = arrays_of("winograd, many chunks")
    expected = results(arrays, options)
    child = os.fork()
    if child == 0:
        same = all(a.tobytes() == b.tobytes() for a, b in zip(results(arrays, options), expected, strict=True))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ------------------------------------------------------------------------------------------------- refusals, warmup
def test_the_form_follows_from_the_shape() -> None:
    forms = importlib.import_module("cnnlayers.functional.conv_form")
    b = backends.of(np.ones(1))
    for name in FORMS:
        arrays, options = arrays_of(name)
        spec = F.conv_forward(*arrays, **options)[1].spec
        expected = {"1×1": "point", "depthwise": "direct"}.get(name.partition(",")[0], name.partition(",")[0])
        for step in spec.terms:
            assert forms.form_of(b, spec, np.float32, step) == expected
            with kernels.winograd("off"):
                assert forms.form_of(b, spec, np.float32, step) == expected.replace("winograd", "direct")
            assert forms.form_of(b, spec, np.float64, step) == ("point" if expected == "point" else "direct")


# ------------------------------------------------------------------------------- data that these forms cannot serve
# Which argument holds a number that is not finite, and the steps whose kernels then cannot serve.
SPOILED = [
    ("winograd", "x", {"forward", "dweight"}),
    ("winograd", "weight", {"forward", "dx"}),
    ("winograd", "dy", {"dx", "dweight"}),
    ("direct", "x", {"dweight"}),
    ("direct", "weight", {"forward"}),
    ("direct", "dy", {"dweight"}),
    ("depthwise", "x", {"dweight"}),
    ("depthwise", "weight", {"forward", "dx"}),
    ("depthwise", "dy", {"dweight"}),
    ("depthwise, stride", "weight", {"forward", "dx"}),
]


def step_of(name: str, x: Any, w: Any, dy: Any, options: dict[str, Any]) -> np.ndarray:
    """One step of a convolution by itself."""
    if name == "forward":
        return F.conv(x, w, **options)
    with kernels.mode("off"):
        ctx = F.conv_forward(x, w, **options)[1]
    if name == "dx":  # the weight's gradient is of finite arrays, or is what cannot be served
        return F.conv_transpose(dy, w, **options)
    return F.conv_backward(dy, ctx, needs_dx=False)[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("form", "where", "spoiled"), SPOILED)
def test_what_a_kernel_finds_in_its_data_is_refused_or_computed_otherwise(
    form: str, where: str, spoiled: set[str], value: float
) -> None:
    (x, w, _), options = arrays_of(form)
    dy = F.conv(x, w, **options)
    arrays = {"x": x, "weight": w, "dy": dy}
    arrays[where].flat[40] = value
    steps = ["forward", "dweight"] + (["dx"] if "stride" not in options else [])
    for step in steps:
        with kernels.mode("off"):
            expected = step_of(step, x, w, dy, options)
        assert np.isfinite(expected).any()
        with kernels.mode("auto"):
            same_with_nan(step_of(step, x, w, dy, options), expected)
        with kernels.mode("require"):
            if step in spoiled:
                kernel = "winograd" if form == "winograd" else "direct"
                name = f"{kernel}_.* has a numpy kernel that cannot serve these data: .*NaN"
                with pytest.raises(kernels.KernelUnavailable, match=name):
                    step_of(step, x, w, dy, options)
            else:
                same_with_nan(step_of(step, x, w, dy, options), expected)
        if form == "winograd":
            with kernels.mode("auto"), kernels.winograd("off"):
                same_with_nan(step_of(step, x, w, dy, options), expected)


def same_with_nan(mine: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(mine), np.isnan(other))
    largest = np.abs(other[np.isfinite(other)]).max()
    np.testing.assert_allclose(mine, other, rtol=2e-4, atol=5e-6 * largest)  # Winograd's bound


def test_backward_needs_both_gradients_to_be_served() -> None:
    (x, w, _), options = arrays_of("winograd")
    y, ctx = F.conv_forward(x, w, **options)
    y[0, 0, 0, 0] = np.nan
    with kernels.mode("require"), pytest.raises(kernels.KernelUnavailable, match="winograd_correlate_adjoint"):
        F.conv_backward(y, ctx)
    with kernels.mode("auto"):
        dx, dw, _ = F.conv_backward(y, ctx)
    assert np.isfinite(dx).any()
    assert np.isnan(dx).any()
    assert np.isnan(dw[0]).all()
    assert np.isfinite(dw[1:]).all()


def test_an_overflow_in_winograds_transforms_alone_is_refused_or_computed_otherwise() -> None:
    (x, w, _), options = arrays_of("winograd")
    x, w = x * np.float32(4e37), w * np.float32(1e-3)  # the transform's sums are past float32, the result is not
    with kernels.mode("auto"):
        y = F.conv(x, w, **options)
    assert np.isfinite(y).all()
    with kernels.mode("require"), pytest.raises(kernels.KernelUnavailable, match=r"kernels\.winograd\('off'\)"):
        F.conv(x, w, **options)
