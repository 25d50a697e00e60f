"""`cnnlayers.linear_operator`: the op on vectors, its exact adjoint, what it refuses; the example of deblurring."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnlayers
import cnnlayers.functional as F
from cnnlayers import backends, kernels

from . import standin_cupy

ROOT = Path(__file__).parents[1]
DTYPES = ["float32", "float64", "complex64", "complex128"]


def noise(rng: np.random.Generator, shape: Any, dtype: str) -> np.ndarray:
    real, imag = rng.standard_normal((2, *np.atleast_1d(shape)))
    return (real + 1j * imag).astype(dtype) if dtype.startswith("complex") else real.astype(dtype)


def weight(*shape: int, real: bool = False) -> Any:
    """A weight, to be made for a dtype."""
    return lambda dtype: noise(np.random.default_rng(1), shape, "float64" if real else dtype)


CASES = [
    ("conv", (2, 4, 6, 5), (weight(6, 2, 3, 2),), {"stride": (2, 1), "padding": 1, "groups": 2}),
    ("conv", (1, 6, 5, 4), (weight(3, 4, 3, 3, real=True),), {"padding": "same", "data_format": "channels_last"}),
    ("conv", (1, 3, 9), (weight(2, 3, 3),), {"dilation": 2}),
    ("conv", (2, 4, 5, 5), (weight(4, 1, 3, 3),), {"groups": 4}),
    ("conv_transpose", (2, 4, 4, 3), (weight(4, 3, 3, 2),), {"stride": 2, "padding": 1, "output_padding": (1, 0)}),
    ("conv_transpose", (1, 3, 4, 2), (weight(2, 3, 2, 2, real=True),), {"data_format": "channels_last"}),
    ("linear", (2, 3, 5), (weight(4, 5),), {}),
    ("linear", (5,), (weight(4, 5, real=True),), {}),
    ("avg_pool", (1, 2, 5, 6), (3, 2, 1), {"ceil_mode": True}),
    ("sum_pool", (1, 2, 3, 4, 5), (2, 1), {}),
    ("adaptive_avg_pool", (1, 5, 6, 2), ((2, 4),), {"data_format": "channels_last"}),
    *(("pad", (1, 2, 4, 5), (((2, 1), (0, 3)), mode), {}) for mode in ("constant", "edge", "reflect", "wrap")),
    ("pad", (1, 2, 4, 5), (((-1, 2), (1, -1)), "symmetric", 0), {}),
]
cases = pytest.mark.parametrize(("op", "shape", "args", "options"), CASES)


def made(args: Any, dtype: str) -> tuple[Any, ...]:
    return tuple(a(dtype) if callable(a) else a for a in args)


@pytest.fixture(autouse=True)
def _scipy() -> None:
    pytest.importorskip("scipy")


# ----------------------------------------------------------------------------------------------- the op and its adjoint
@cases
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_op_and_its_exact_adjoint(
    rng: np.random.Generator, dtype: str, op: str, shape: Any, args: Any, options: Any
) -> None:
    given = made(args, dtype)
    for mode in ("off", "auto"):
        with kernels.mode(mode):
            a = cnnlayers.linear_operator(op, shape, *given, dtype=dtype, **options)
            x, y = noise(rng, a.shape[1], dtype), noise(rng, a.shape[0], dtype)
            expected = getattr(F, op)(x.reshape(shape), *given, **options)
            assert (a.dims, a.dimsd) == (shape, expected.shape)
            np.testing.assert_array_equal(a @ x, expected.ravel())
            _, ctx = getattr(F, f"{op}_forward")(x.reshape(shape), *given, **options)
            dx = getattr(F, f"{op}_backward")(y.reshape(expected.shape), ctx)
            dx = dx[0] if isinstance(dx, tuple) else dx
            eps = float(np.finfo(dtype).eps)
            np.testing.assert_allclose(a.H @ y, dx.ravel(), rtol=500 * eps, atol=100 * eps)
            assert (a @ x).dtype == (a.H @ y).dtype == a.dtype == dtype
            scale = np.linalg.norm(a @ x) * np.linalg.norm(y)
            assert abs(np.vdot(y, a @ x) - np.vdot(a.H @ y, x)) <= 50 * eps * scale


@cases
def test_products_with_matrices(rng: np.random.Generator, op: str, shape: Any, args: Any, options: Any) -> None:
    a = cnnlayers.linear_operator(getattr(F, op), shape, *made(args, "complex128"), dtype="complex128", **options)
    dense = a.matmat(np.eye(a.shape[1]))
    assert dense.shape == a.shape
    np.testing.assert_allclose(a.rmatmat(np.eye(a.shape[0])), dense.conj().T, rtol=0, atol=1e-13)
    x = noise(rng, (a.shape[1], 3), "complex128")
    np.testing.assert_allclose(a @ x, dense @ x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.T @ (a @ x), dense.T @ (dense @ x), rtol=0, atol=1e-10)
    assert a.matmat(x[:, :0]).shape == (a.shape[0], 0)


def test_longer_and_complex_vectors_keep_their_digits(rng: np.random.Generator) -> None:
    a = cnnlayers.linear_operator("avg_pool", (1, 1, 6), 3)
    assert a.dtype == np.float32
    for dtype in DTYPES:
        x = noise(rng, 6, dtype)
        assert (a @ x).dtype == dtype
        np.testing.assert_allclose(
            a @ x, x.reshape(2, 3).mean(axis=1), rtol=1e-6 if dtype.endswith(("32", "64")) else 1e-14
        )
    np.testing.assert_array_equal(a @ np.arange(6), [1, 4])
    b = cnnlayers.linear_operator("conv", (1, 1, 4), np.ones((1, 1, 2), "float32"), dtype=np.float32)
    y = 1 + 1e-12 * rng.standard_normal(3)
    np.testing.assert_allclose(b.H @ y, np.convolve(y, [1, 1]), rtol=1e-15)


def test_solvers(rng: np.random.Generator) -> None:
    from scipy.sparse.linalg import cg, lsqr

    w = noise(rng, (1, 1, 3, 3), "complex128") * 0.1
    w[0, 0, 1, 1] += 2
    a = cnnlayers.linear_operator("conv", (1, 1, 6, 6), w, padding=1, dtype="complex128")
    x = noise(rng, 36, "complex128")
    np.testing.assert_allclose(lsqr(a, a @ x, atol=1e-13, btol=1e-13)[0], x, rtol=1e-8)
    found, info = cg(a.H @ a, a.H @ (a @ x), rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose(found, x, rtol=1e-8)


def test_pylops(rng: np.random.Generator) -> None:
    pylops = pytest.importorskip("pylops")
    kernel = np.outer([1.0, 2, 1], [1.0, 2, 1]) / 16
    pad = cnnlayers.linear_operator("pad", (1, 1, 16, 16), 1, "reflect", dtype="float64")
    blur = pylops.aslinearoperator(
        cnnlayers.linear_operator("conv", pad.dimsd, kernel[None, None], dtype="float64") @ pad
    )
    assert pylops.utils.dottest(blur, *blur.shape, rtol=1e-10)
    smooth = np.add.outer(np.arange(16.0), np.arange(16.0)).ravel()
    second = pylops.Laplacian((16, 16), dtype="float64")
    invert = pylops.optimization.leastsquares.regularized_inversion
    found = invert(blur, blur @ smooth, [second], epsRs=[1e-3], iter_lim=200)[0]
    assert np.linalg.norm(found - smooth) < 0.02 * np.linalg.norm(smooth)


# ------------------------------------------------------------------------------------------------------------- on CuPy
class Recorded:
    """What cupyx.scipy.sparse.linalg.LinearOperator is given."""

    def __init__(self, shape: Any, **given: Any) -> None:
        self.shape, self.given = shape, given


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    name = ""
    for part in ("cupyx", "scipy", "sparse", "linalg"):
        name = f"{name}.{part}".lstrip(".")
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[name].LinearOperator = Recorded  # type: ignore[attr-defined]
    with standin_cupy.installed() as standin:
        yield standin


def test_on_cupy(cupy: Any, rng: np.random.Generator) -> None:
    w, x, y = (noise(rng, s, "complex64") for s in ((3, 2, 3), 2 * 6, 3 * 4))
    a = cnnlayers.linear_operator("conv", (1, 2, 6), cupy.asarray(w), dtype="complex64")
    host = cnnlayers.linear_operator("conv", (1, 2, 6), w, dtype="complex64")
    assert isinstance(a, Recorded)
    assert (a.shape, a.given["dtype"]) == (host.shape, host.dtype)
    for name, vector, expected in (("matvec", x, host @ x), ("rmatvec", y, host.H @ y)):
        found = a.given[name](cupy.asarray(vector))
        assert backends.of(found).name == "cupy"
        np.testing.assert_allclose(backends.to_numpy(found), expected, rtol=1e-5, atol=1e-5)
        columns = a.given[name.replace("vec", "mat")](cupy.asarray(np.stack([vector, 2 * vector], axis=1)))
        np.testing.assert_allclose(backends.to_numpy(columns)[:, 1], 2 * expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="the vector must be an array of cupy"):
        a.given["matvec"](x)
    with backends.using("cupy"):
        assert isinstance(cnnlayers.linear_operator("pad", (1, 1, 3), 1), Recorded)


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("given", "options", "error", "said"),
    [
        (
            ("max_pool", (1, 1, 4), 2),
            {},
            ValueError,
            "max_pool is not a linear op of x: a linear operator is made of pad",
        ),
        ((F.relu, (1, 1, 4)), {}, ValueError, "relu is not a linear op"),
        ((F.batch_norm, (1, 1, 4)), {}, ValueError, "batch_norm is not a linear op"),
        (("convolve", (1, 1, 4)), {}, ValueError, "op must be an op of cnnlayers.functional or its name"),
        ((np.pad, (1, 1, 4)), {}, ValueError, "op must be an op of cnnlayers.functional"),
        ((3, (1, 1, 4)), {}, TypeError, "op must be an op"),
        (("pad", (1, 1, 4), 1, "constant", 2.0), {}, ValueError, "value other than 0 is not linear, got value 2.0"),
        (("pad", (1, 1, 4), 1), {"value": 1j, "dtype": "complex64"}, ValueError, "value other than 0"),
        (("linear", (4,), np.ones((2, 4)), np.ones(2)), {}, ValueError, "linear with a bias is not linear"),
        (("conv", (1, 1, 4), np.ones((1, 1, 2))), {"bias": np.ones(1)}, ValueError, "conv with a bias"),
        (("conv", (1, 2, 4), np.ones((1, 1, 2))), {}, ValueError, "x must have 1 channels"),
        (("conv", (1, 1, 4), np.ones((1, 1, 2), complex)), {}, TypeError, "weight must be real"),
        (("pad", 5, 1), {}, TypeError, "shape must be x's shape, a tuple or list of ints, got 5"),
        (("pad", (1, 1, 4.5), 1), {}, TypeError, "shape must be an int"),
        (("pad", (1, 1, -4), 1), {}, ValueError, "shape must be at least 0"),
        (("pad", (1, 4), 1), {}, ValueError, "x must have batch, channels"),
        (("pad", (1, 1, 4)), {}, TypeError, "padding"),
        (("pad", (1, 1, 4), 1), {"dtype": "int32"}, TypeError, "dtype must be one of float16, .* got int32"),
        (("pad", (1, 1, 4), 1), {"dtype": "floaty"}, TypeError, "dtype must be one of float16"),
    ],
)
def test_what_it_refuses(given: Any, options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        cnnlayers.linear_operator(*given, **options)


def test_vectors_of_another_length() -> None:
    a = cnnlayers.linear_operator("pad", (1, 1, 4), 1)
    for vector in (np.ones(5), np.ones((2, 2))):
        with pytest.raises(ValueError, match="dimension mismatch"):
            a @ vector


def test_another_array_library() -> None:
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match="arrays must be NumPy's or CuPy's, got array_api_strict"):
        cnnlayers.linear_operator("linear", (2,), strict.ones((2, 2)))


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match=r"scipy.sparse.linalg.*pip install 'cnnlayers\[scipy\]'"):
        cnnlayers.linear_operator("pad", (1, 1, 4), 1)


def test_scipy_is_imported_by_the_call_alone() -> None:
    code = "import sys, cnnlayers; cnnlayers.linear_operator; print('scipy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "False\n"


# ------------------------------------------------------------------------------------------------------------- example
@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example programs can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_the_example_restores_a_picture(tmp_path: Path, examples: None) -> None:
    deblur = importlib.import_module("deblur")
    file = tmp_path / "deblur.png" if importlib.util.find_spec("matplotlib") else None
    errors = deblur.main(None if file is None else str(file))
    taken, black, reflected = errors.values()
    assert reflected < 0.7 * taken < taken < black
    if file is not None:
        assert file.read_bytes().startswith(b"\x89PNG")


def test_the_example_with_pylops_keeps_edges(examples: None) -> None:
    pytest.importorskip("pylops")
    taken, least_squares, variation = importlib.import_module("deblur_pylops").main().values()
    assert variation < 0.7 * least_squares < least_squares < taken
