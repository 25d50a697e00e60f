"""cnnlayers.keras: Keras's NumPy backend on this library, beside naive loops, and JAX where it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import cnnlayers.keras

from . import keras_suite

needs_keras = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
without_keras = pytest.mark.skipif(importlib.util.find_spec("keras") is not None, reason="Keras is installed")


def values(*shape, dtype="float32"):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.fixture
def nn(monkeypatch):
    """Keras's module of functions, with this library in it."""
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    with cnnlayers.keras.installed():
        yield importlib.import_module("keras.src.backend.numpy.nn")


def python(code, **environment):
    """The code run by a new Python, as if JAX were not installed."""
    paths = [str(keras_suite.ROOT / "tests" / "without"), str(keras_suite.ROOT)]
    kept = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    env = kept | {"WITHOUT": "jax", "PYTHONPATH": os.pathsep.join(paths)} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=keras_suite.ROOT, text=True, capture_output=True, check=False
    )


# --------------------------------------------------------------------------------------------------- installing, errors
@without_keras
def test_keras_missing():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cnnlayers\[keras\]'"):
        cnnlayers.keras.install()


@needs_keras
def test_importing_the_module_does_not_import_keras():
    done = python("import sys, cnnlayers.keras; print([m for m in sys.modules if m.startswith(('keras', 'jax'))])")
    assert done.stdout.strip() == "[]", done.stderr


@needs_keras
def test_install_is_undone_and_may_be_repeated(nn):
    ours = {name: getattr(nn, name) for name in cnnlayers.keras.REPLACED}
    assert all(f.__module__ == "cnnlayers.keras.ops" for f in ours.values())
    with cnnlayers.keras.installed():
        cnnlayers.keras.install()
    assert {name: getattr(nn, name) for name in cnnlayers.keras.REPLACED} == ours


@needs_keras
def test_arguments_are_those_of_keras():
    code = """
import inspect, sys, cnnlayers.keras
from cnnlayers.keras import REPLACED
with cnnlayers.keras.installed():
    nn = sys.modules["keras.src.backend.numpy.nn"]
    ours = {name: getattr(nn, name) for name in REPLACED}
for name in REPLACED:
    for f in (ours[name], getattr(nn, name)):
        print(f.__module__, name, [(p.name, p.default) for p in inspect.signature(f).parameters.values()])
"""
    done = python(code, KERAS_BACKEND="numpy")
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(cnnlayers.keras.REPLACED), done.stderr
    for (ours, mine), (keras, theirs) in zip(lines[::2], lines[1::2], strict=True):
        assert (ours, keras) == ("cnnlayers.keras.ops", "keras.src.backend.numpy.nn")
        assert mine == theirs


@needs_keras
def test_without_jax_keras_works_inside_and_names_jax_outside():
    code = """
import sys, numpy as np, cnnlayers.keras
try:
    import keras
except ModuleNotFoundError as error:
    print("first", error)
with cnnlayers.keras.installed():
    import keras
    print(keras.ops.max_pool(np.arange(4.0).reshape(1, 4, 1), 2).ravel().tolist(), "jax" in sys.modules)
    re, im = keras.ops.fft((np.arange(4.0, dtype="float32"), np.zeros(4, "float32")))
    print(re.tolist(), im.tolist(), re.dtype)
try:
    keras.ops.max_pool(np.zeros((1, 4, 1)), 2)
except ModuleNotFoundError as error:
    print("after", error.name, error)
"""
    first, pooled, fft, after = python(code, KERAS_BACKEND="numpy").stdout.splitlines()
    assert first == "first No module named 'jax'"
    assert pooled == "[1.0, 3.0] False"
    assert fft == "[6.0, -2.0, -2.0, -2.0] [0.0, 2.0, 0.0, -2.0] float32"
    assert after.startswith("after jax ")
    assert "cnnlayers.keras.install()" in after


@needs_keras
@pytest.mark.parametrize(("backend", "said"), [("tensorflow", "got KERAS_BACKEND='tensorflow'"), ("jax", "'jax'")])
def test_another_backend_is_refused(backend, said):
    done = python("import cnnlayers.keras; cnnlayers.keras.install()", KERAS_BACKEND=backend)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: cnnlayers.keras needs Keras's NumPy backend")
    assert said in last


@needs_keras
@pytest.mark.parametrize("version", ["2.15.0", "3.4.1", "3.150.0", "4.0.0"])
def test_an_unknown_version_is_refused(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(RuntimeError, match=rf"serves Keras .*3\.15, got Keras {re.escape(version)}: install one"):
        cnnlayers.keras.install()


# ------------------------------------------------------------------------------------------------ beside naive loops
def sides(length, reach, stride, padding):
    """TensorFlow's rule, which Keras has: windows, and cells put before."""
    if padding == "valid":
        return (length - reach) // stride + 1, 0
    windows = -(-length // stride)
    return windows, max((windows - 1) * stride + reach - length, 0) // 2


def windows(x, size, stride, padding, dilation):
    """(place, the cells in the input that its window sees, their taps) for x of (N, *spatial, C)."""
    lengths = x.shape[1:-1]
    plans = [sides(n, (k - 1) * d + 1, s, padding) for n, k, s, d in zip(lengths, size, stride, dilation, strict=True)]
    for place in itertools.product(*(range(n) for n, _ in plans)):
        seen = []
        for tap in itertools.product(*map(range, size)):
            cell = tuple(
                p * s + t * d - b for p, s, t, d, (_, b) in zip(place, stride, tap, dilation, plans, strict=True)
            )
            if all(0 <= c < n for c, n in zip(cell, lengths, strict=True)):
                seen.append((tap, cell))
        yield place, seen


def out_shape(x, places, channels):
    return (x.shape[0], *(n + 1 for n in max(places)), channels)


def naive_conv(x, kernel, stride, padding, dilation):
    plan = list(windows(x, kernel.shape[:-2], stride, padding, dilation))
    groups = x.shape[-1] // kernel.shape[-2]
    y = np.zeros(out_shape(x, [p for p, _ in plan], kernel.shape[-1]))
    c, f = kernel.shape[-2], kernel.shape[-1] // groups
    for place, seen in plan:
        for tap, cell in seen:
            for g in range(groups):
                part = x[(slice(None), *cell, slice(g * c, g * c + c))].astype(float)
                y[(slice(None), *place, slice(g * f, g * f + f))] += part @ kernel[tap][:, g * f : g * f + f]
    return y


def naive_pool(x, size, stride, padding, of):
    plan = list(windows(x, size, stride, padding, (1,) * len(size)))
    y = np.zeros(out_shape(x, [p for p, _ in plan], x.shape[-1]))
    for place, seen in plan:
        y[(slice(None), *place)] = of(np.stack([x[(slice(None), *cell)] for _, cell in seen]), axis=0)
    return y


def both_formats(run, x, data_format):
    """run(x, data_format) of a channels-last x, its result channels last again."""
    if data_format == "channels_last":
        return run(x, data_format)
    return np.moveaxis(run(np.moveaxis(x, -1, 1), data_format), 1, -1)


RANKS = {1: (9,), 2: (7, 8), 3: (3, 5, 4)}
FORMATS = pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
PADDINGS = pytest.mark.parametrize("padding", ["valid", "same"])
EACH_RANK = pytest.mark.parametrize("ndim", [1, 2, 3])


@needs_keras
@FORMATS
@PADDINGS
@EACH_RANK
@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 2), (2, 3), (3, 1)])
def test_pools(nn, ndim, size, stride, padding, data_format):
    x = values(2, *RANKS[ndim], 3)
    for pool, of in ((nn.max_pool, np.max), (nn.average_pool, np.mean)):
        y = both_formats(lambda x, f, pool=pool: pool(x, size, stride, padding, f), x, data_format)
        want = naive_pool(x, (size,) * ndim, (stride or size,) * ndim, padding, of)
        assert y.dtype == x.dtype
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


@needs_keras
@FORMATS
@EACH_RANK
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_adaptive_pools(nn, ndim, size, data_format):
    x = values(2, *RANKS[ndim], 3)
    for pool, of in ((nn.adaptive_max_pool, np.max), (nn.adaptive_average_pool, np.mean)):
        y = both_formats(lambda x, f, pool=pool: pool(x, (size,) * ndim, f), x, data_format)
        assert y.shape == (2, *(size,) * ndim, 3)
        for place in np.ndindex(*(size,) * ndim):
            spans = [slice(i * n // size, -(-(i + 1) * n // size)) for i, n in zip(place, RANKS[ndim], strict=True)]
            want = of(x[(slice(None), *spans)], axis=tuple(range(1, ndim + 1)))
            np.testing.assert_allclose(y[(slice(None), *place)], want, rtol=1e-5, atol=1e-6)


@needs_keras
@FORMATS
@PADDINGS
@EACH_RANK
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_convolutions(nn, ndim, stride, dilation, padding, data_format):
    x, k, options = values(2, *RANKS[ndim], 4), (2, 3, 2)[:ndim], (stride, padding)
    steps = (stride,) * ndim, padding, (dilation,) * ndim
    for groups in (1, 2):
        kernel = values(*k, 4 // groups, 6)
        y = both_formats(lambda x, f, kernel=kernel: nn.conv(x, kernel, *options, f, dilation), x, data_format)
        np.testing.assert_allclose(y, naive_conv(x, kernel, *steps), rtol=1e-4, atol=1e-5)
    each = values(*k, 4, 2)
    want = naive_conv(x, each.reshape(*k, 1, 8), *steps)
    y = both_formats(lambda x, f: nn.depthwise_conv(x, each, *options, f, dilation), x, data_format)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    point = values(*(1,) * ndim, 8, 3)
    y = both_formats(lambda x, f: nn.separable_conv(x, each, point, *options, f, dilation), x, data_format)
    np.testing.assert_allclose(y, want @ point[(0,) * ndim], rtol=1e-4, atol=1e-4)


@needs_keras
@FORMATS
@PADDINGS
@EACH_RANK
@pytest.mark.parametrize(
    ("k", "stride", "dilation"), [(1, 2, 1), (2, 1, 1), (2, 3, 1), (3, 1, 2), (3, 2, 1), (4, 3, 1)]
)
def test_transposed_convolutions(nn, ndim, k, stride, dilation, padding, data_format):
    """By Keras's rule of the output's length, and its place: with padding "same" and stride 1 that of the adjoint."""
    from keras.src.backend.common.backend_utils import (
        compute_conv_transpose_output_shape,
        compute_conv_transpose_padding_args_for_jax,
    )

    x, kernel = values(2, *RANKS[ndim], 3), values(*(k,) * ndim, 2, 3)
    for extra in (None, *range(stride)):
        if (padding, extra) == ("same", 0) and k % 2 == 0:
            continue  # Keras counts one cell fewer than there are strides
        pads = compute_conv_transpose_padding_args_for_jax(x.shape, kernel.shape, stride, padding, extra, dilation)
        spread = np.zeros((2, *((n - 1) * stride + 1 for n in RANKS[ndim]), 3))
        spread[(slice(None), *(slice(None, None, stride),) * ndim)] = x
        padded = np.pad(spread, [(0, 0), *pads, (0, 0)])
        turned = np.swapaxes(np.flip(kernel, tuple(range(ndim))), -1, -2)
        want = naive_conv(padded, turned, (1,) * ndim, "valid", (dilation,) * ndim)
        y = both_formats(
            lambda x, f, extra=extra: nn.conv_transpose(x, kernel, stride, padding, extra, f, dilation), x, data_format
        )
        shape = compute_conv_transpose_output_shape(
            x.shape, kernel.shape[:-2], 2, stride, padding, extra, dilation_rate=dilation
        )
        assert y.shape == tuple(shape)
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


@needs_keras
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
@pytest.mark.parametrize("given", [(), ("offset",), ("scale",), ("offset", "scale")])
def test_batch_normalization(nn, axis, given):
    x = values(3, 4, 5, 6)
    size = x.shape[axis]
    mean, variance = values(size), values(size) ** 2
    more = {name: values(size) for name in given}
    y = nn.batch_normalization(x, mean, variance, axis, epsilon=0.01, **more)
    shape = [size if i == axis % 4 else 1 for i in range(4)]
    want = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 0.01)
    want = want * more.get("scale", np.ones(size)).reshape(shape) + more.get("offset", np.zeros(size)).reshape(shape)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- dtypes, refusals
@needs_keras
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "int32", "uint8", "bool"])
def test_dtypes(nn, dtype):
    x = (np.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3) % 3).astype(dtype)
    kernel = (np.arange(3 * 3 * 3 * 2).reshape(3, 3, 3, 2) % 2).astype(dtype)
    floating = np.dtype(dtype).kind not in "iub"
    exact = x.astype("float64")
    for pool, of in ((nn.max_pool, np.max), (nn.adaptive_max_pool, np.max), (nn.average_pool, np.mean)):
        y = pool(x, 2) if pool is not nn.adaptive_max_pool else pool(x, 3)
        assert y.dtype == (np.dtype(dtype) if floating or of is np.max else np.dtype("float64"))
        want = naive_pool(exact, (2, 2), (2, 2), "valid", of).astype(y.dtype)
        np.testing.assert_array_equal(y.astype("float64"), want.astype("float64"))
    y = nn.conv(x, kernel)
    want = naive_conv(exact, kernel.astype("float64"), (1, 1), "valid", (1, 1))
    assert y.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(y.astype("float64"), want.astype(dtype).astype("float64"))
    stat = np.ones(3, "float32")
    y = nn.batch_normalization(x, stat, stat, -1)
    assert y.dtype == np.result_type(dtype, "float32")
    np.testing.assert_allclose(y.astype("float64"), (exact - 1) / np.sqrt(1.001), rtol=1e-6, atol=1e-6)


@needs_keras
def test_refusals(nn):
    x, kernel = values(1, 4, 4, 4), values(3, 3, 3, 2)
    with pytest.raises(ValueError, match="evenly divisible by kernel's in_channels"):
        nn.conv(x, kernel)
    with pytest.raises(ValueError, match="must match the kernel's input"):
        nn.depthwise_conv(x, kernel)
    with pytest.raises(ValueError, match="must be 'same' or 'valid'"):
        nn.max_pool(x, 2, padding="full")
    for run in (nn.conv, nn.depthwise_conv):
        with pytest.raises(ValueError, match=r"empty output: the kernel with its dilation spans \(5, 5\) cells"):
            run(values(1, 4, 4, 3), kernel, dilation_rate=2)


@needs_keras
def test_inputs_are_left_as_they_are(nn):
    x, kernel = values(1, 6, 6, 2), values(3, 3, 2, 2)
    x.setflags(write=False)
    kernel.setflags(write=False)
    nn.conv(x, kernel)
    nn.conv_transpose(x, kernel, 2, "same")
    assert nn.max_pool(x[:, ::-1], 2).flags.writeable


# ------------------------------------------------------------------------------------------------ models, Keras's tests
@needs_keras
def test_a_model_gives_the_answers_of_jax(nn, tmp_path):
    pytest.importorskip("jax")
    code = """
import contextlib, sys, numpy as np, cnnlayers.keras
folder, ours = sys.argv[1:]
with cnnlayers.keras.installed() if ours else contextlib.nullcontext():
    import keras
    keras.utils.set_random_seed(1)
    model = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3), alpha=0.35, classes=10)
    x = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype("float32")
    np.save(f"{folder}/{ours or 'jax'}.npy", model(x))
"""
    for ours in ("ours", ""):
        environment = os.environ | {"KERAS_BACKEND": "numpy"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path), ours], env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "ours.npy"), np.load(tmp_path / "jax.npy"), rtol=1e-4, atol=1e-6)


@needs_keras
@pytest.mark.whole
def test_the_benchmarks_networks_agree_with_keras_on_jax(tmp_path):
    """In a process of its own: Keras takes its backend from the environment."""
    from cnnlayers.bench import cases
    from cnnlayers.bench.measure import OURS

    peer = "keras-jax" if importlib.util.find_spec("jax") else "none"
    arguments = ["bench", "--quick", "--ops", *cases.KERAS, "--peers", peer, "--out", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "cnnlayers", *arguments],
        check=True,
        timeout=600,
        env=os.environ | {"KERAS_BACKEND": "numpy"},
    )
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [row["op"] for row in rows] == list(cases.KERAS)
    for row in rows:
        assert row["times"][OURS]["median"] > 0
        assert row["same_bits"]
        assert peer == "none" or row["errors"][peer] <= row["tolerance"]


@needs_keras
@pytest.mark.whole
def test_kerass_own_tests_pass_without_jax():
    pytest.importorskip("absl")
    done = keras_suite.run(capture=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= 700
