"""Convolution's forms on the CPU: each against the portable code, Winograd's error, bits, threads, and refusals."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.backends import memory
from cnnlayers.kernels.cpu import jit as cpu

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=str(cpu.unavailable()))

# x's shape, filters, kernel, options: each form, with its special cases
FORMS = {
    "winograd": ((6, 50, 11, 12), 52, (3, 3), {"padding": 1}),
    "winograd, groups and uneven padding": ((3, 100, 12, 14), 104, (3, 3), {"padding": ((0, 3), (2, 5)), "groups": 2}),
    "winograd, one row of tiles": ((4, 50, 4, 70), 52, (3, 3), {"padding": 1}),
    "winograd, few filters": ((4, 16, 16, 15), 20, (3, 3), {"padding": 1}),
    "winograd, many chunks": ((9, 70, 30, 33), 72, (3, 3), {}),
    "winograd, bands": ((1, 70, 60, 61), 48, (3, 3), {"padding": (3, 2)}),
    "direct, one row": ((2, 70, 1, 70), 72, (3, 3), {"padding": 1}),
    "direct, large weight": (
        (2, 70, 20, 23),
        72,
        (5, 2),
        {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)},
    ),
    "direct, large weight, one axis": ((2, 150, 157), 160, (3,), {"stride": 2, "padding": 3}),
    "direct, long sums, 7 filters": ((1, 230, 10, 13), 7, (3, 3), {"stride": 2, "padding": 1}),
    "direct, long sums, one filter, last": ((1, 230, 10, 13), 1, (3, 3), {"stride": 2, "padding": 1}),
    "direct, long sums": ((1, 300, 9, 10), 30, (3, 5), {"padding": 1}),
    "direct, long sums, last": ((1, 230, 6, 7), 520, (3, 3), {"padding": 1, "stride": 2}),
    "direct, 1×1": ((3, 40, 6, 7), 30, (1, 1), {}),
    "direct, 1×1, groups": ((3, 60, 6, 7), 64, (1, 1), {"groups": 2}),
    "direct, 1×1, last": ((3, 40, 6, 7), 30, (1, 1), {}),
    "direct, 1×1, last, stride": ((3, 40, 6, 7), 30, (1, 1), {"stride": (2, 3)}),
    "direct": ((3, 5, 13, 12), 7, (3, 2), {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}),
    "direct, groups": ((2, 6, 9, 10), 9, (5, 3), {"padding": 2, "groups": 3}),
    "direct, one axis": ((3, 4, 37), 6, (5,), {"stride": 2, "padding": 3}),
    "direct, three axes": ((2, 3, 5, 6, 7), 4, (2, 3, 2), {"stride": (1, 2, 1), "padding": 1}),
    "direct, tiny maps": ((70, 3, 3, 2), 9, (3, 3), {"padding": 1}),
    "direct, one cell": ((2, 48, 1, 1), 48, (3, 3), {"padding": 1}),
    "direct, small maps": ((5, 50, 7, 5), 60, (3, 3), {"padding": 1}),
    "direct, small maps, stride": ((3, 70, 6, 7), 72, (5, 2), {"stride": (2, 1), "padding": ((1, 0), (2, 1))}),
    "direct, small maps, groups": ((2, 128, 3, 3), 98, (3, 3), {"padding": 1, "groups": 2}),
    "direct, bands": ((1, 6, 150, 170), 5, (3, 3), {"padding": 1, "stride": 2}),
    "direct, bands of one axis": ((1, 16, 9000), 3, (9,), {"padding": (5,), "dilation": 3}),
    "depthwise, three axes": ((2, 3, 5, 9, 7), 6, (2, 3, 3), {"padding": 1, "stride": (1, 3, 2), "groups": 3}),
    "1×1": ((3, 5, 6, 7), 8, (1, 1), {}),
    "depthwise": ((3, 6, 11, 13), 6, (3, 3), {"padding": 1, "groups": 6}),
    "depthwise, stride": ((2, 4, 12, 11), 8, (3, 5), {"stride": (2, 3), "padding": (1, 3), "groups": 4}),
    "depthwise, dilation": ((2, 3, 14, 9), 3, (4, 3), {"padding": ((5, 0), (2, 4)), "dilation": (3, 2), "groups": 3}),
    "depthwise, one axis": ((2, 3, 20), 6, (4,), {"padding": 1, "groups": 3}),
    "depthwise, long rows": ((1, 3, 5, 300), 6, (3, 2), {"padding": 1, "stride": (1, 2), "groups": 3}),
    "depthwise, one long axis": ((2, 2, 501), 2, (5,), {"padding": 1, "stride": 3, "groups": 2}),
    "depthwise, one long axis, pairs": ((2, 2, 333), 4, (4,), {"padding": 3, "stride": 2, "groups": 2}),
    "depthwise, more padding than kernel": ((1, 2, 4, 4), 2, (2, 2), {"padding": 4, "groups": 2}),
    "depthwise, bands": ((1, 2, 90, 100), 2, (7, 7), {"padding": 3, "groups": 2, "stride": (3, 1)}),
    "direct, last": ((3, 20, 13, 12), 9, (3, 2), {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}),
    "direct, last, three filters": ((2, 20, 9, 10), 3, (3, 3), {"padding": 1}),
    "direct, last, 40 filters": ((2, 33, 9, 10), 40, (3, 3), {"padding": 1}),
    "direct, last, groups": ((2, 36, 9, 10), 18, (3, 3), {"padding": 1, "groups": 2}),
    "direct, last, one axis": ((3, 12, 37), 20, (5,), {"stride": 2, "padding": 3}),
    "direct, last, three axes": ((2, 10, 5, 6, 7), 20, (2, 3, 2), {"stride": (1, 2, 1), "padding": 1}),
    "direct, last, bands": ((1, 8, 150, 170), 16, (3, 3), {"padding": 1, "stride": 2}),
    "depthwise, last": ((3, 40, 11, 13), 40, (3, 3), {"padding": 1, "groups": 40}),
    "depthwise, last, stride": ((2, 20, 12, 11), 20, (3, 5), {"stride": (2, 3), "padding": (1, 3), "groups": 20}),
}
BY_FORM = pytest.mark.parametrize("form", FORMS)


def arrays_of(form: str, dtype: str = "float32", seed: int = 0) -> tuple[list[np.ndarray], dict[str, Any]]:
    shape, filters, kernel, options = FORMS[form]
    rng = np.random.default_rng(seed)
    weight = (filters, shape[1] // options.get("groups", 1), *kernel)
    x, *parameters = (rng.standard_normal(s).astype(dtype) for s in (shape, weight, (filters,)))
    if ", last" in form:
        x, options = np.ascontiguousarray(np.moveaxis(x, 1, -1)), options | {"data_format": "channels_last"}
    return [x, *parameters], options


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
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@BY_FORM
def test_every_form_gives_the_portable_answer(form: str, dtype: str) -> None:
    arrays, options = arrays_of(form, dtype)
    with kernels.mode("off"):
        expected = results(arrays, options)
    with kernels.mode("require"):
        mine = results(arrays, options)
    close(mine, expected, {"float16": 5e-3, "float32": 1e-4, "float64": 1e-13}[dtype])


@pytest.mark.parametrize("step", ["same", "wide"])
def test_random_shapes_as_the_portable_code(step: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(40):
        draw = lambda low, high: [int(v) for v in rng.integers(low, high + 1, 2)]  # noqa: E731
        kernel, channels = draw(1, 4), int(rng.integers(1, 6))
        wide = {"stride": draw(1, 3), "dilation": draw(1, 2)} if step == "wide" else {}
        options = {"padding": draw(1, 4), "groups": int(rng.choice([1, channels])), **wide}
        shape = (int(rng.integers(1, 4)), channels, *draw(4, 20))
        x = rng.standard_normal(shape)
        w = rng.standard_normal((2 * channels, channels // options["groups"], *kernel))
        with kernels.mode("off"):
            expected = results([x, w, w[:, 0, 0, 0]], options)
        close(results([x, w, w[:, 0, 0, 0]], options), expected, 1e-13)


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
    for buffer in memory._free.buffers.values():
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
