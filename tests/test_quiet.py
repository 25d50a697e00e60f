"""Values are no business of NumPy's: no op warns or raises because of NaN, infinity, overflow or underflow in its data,
whatever `numpy.errstate` and the warnings' filters say; and results are plain arrays, whatever subclass came in."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnlayers import autograd, cs231n, kernels, layers, models, optim
from cnnlayers import functional as F
from cnnlayers.kernels.cpu import jit as cpu

from .implementations import numpy_dtype

IMAGE = (2, 4, 6, 6)
WIDE = (2, 16, 8, 8)  # of as many channels as Winograd's form wants
TIES = ("first", "all", "split")
RUNNING = {"running_mean": (4,), "running_var": (4,)}
# (op, the shapes of its array arguments by name, its other arguments)
CALLS: list[tuple[str, dict[str, tuple[int, ...]], dict[str, Any]]] = [
    *[("max_pool", {"x": IMAGE}, {"kernel_size": 3, "stride": 2, "padding": 1, "ties": t}) for t in TIES],
    ("max_pool", {"x": IMAGE}, {"kernel_size": 2, "return_indices": True, "data_format": "channels_last"}),
    ("avg_pool", {"x": IMAGE}, {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
    ("avg_pool", {"x": IMAGE}, {"kernel_size": 6, "data_format": "channels_last", "padding": 2}),
    ("sum_pool", {"x": IMAGE}, {"kernel_size": 3, "stride": 1}),
    ("sum_pool", {"x": (2, 3, 40)}, {"kernel_size": 35, "stride": 1}),
    *[("lp_pool", {"x": IMAGE}, {"kernel_size": 3, "stride": 1, "norm_type": p}) for p in (0.5, 1.0, 2.0, 3.0, 100.0)],
    ("adaptive_avg_pool", {"x": IMAGE}, {"output_size": (4, 5)}),
    ("adaptive_avg_pool", {"x": IMAGE}, {"output_size": 1}),
    ("adaptive_max_pool", {"x": IMAGE}, {"output_size": (4, 5)}),
    ("max_unpool", {"x": (1, 1, 2, 2)}, {"indices": np.array([[[[0, 3], [9, 9]]]]), "kernel_size": 2}),
    *[("pad", {"x": IMAGE}, {"padding": 2, "mode": m}) for m in ("constant", "edge", "reflect", "symmetric", "wrap")],
    ("batch_norm", {"x": IMAGE, "gamma": (4,), "beta": (4,), **RUNNING}, {"training": True}),
    ("batch_norm", {"x": IMAGE, "gamma": (4,), "beta": (4,), **RUNNING}, {}),
    ("batch_norm", {"x": (50, 6, 6, 4), "gamma": (4,)}, {"training": True, "data_format": "channels_last", "eps": 0.0}),
    ("group_norm", {"x": IMAGE, "gamma": (4,), "beta": (4,)}, {"num_groups": 2}),
    ("group_norm", {"x": IMAGE, "gamma": (6,), "beta": (6,)}, {"num_groups": 2, "data_format": "channels_last"}),
    ("instance_norm", {"x": IMAGE, "gamma": (4,), "beta": (4,)}, {}),
    ("layer_norm", {"x": IMAGE, "gamma": (6, 6), "beta": (6, 6)}, {"normalized_shape": (6, 6)}),
    ("rms_norm", {"x": IMAGE, "gamma": (6,)}, {"normalized_shape": 6}),
    ("rms_norm", {"x": IMAGE}, {"normalized_shape": 6, "eps": 0.0}),
    ("local_response_norm", {"x": IMAGE}, {"size": 3, "alpha": 0.5, "k": 0.0}),
    ("conv", {"x": IMAGE, "weight": (3, 4, 3, 3), "bias": (3,)}, {"padding": "same"}),
    ("conv", {"x": IMAGE, "weight": (3, 6, 3, 3), "bias": (3,)}, {"data_format": "channels_last"}),
    ("conv", {"x": IMAGE, "weight": (4, 1, 3, 3), "bias": (4,)}, {"groups": 4}),
    ("conv", {"x": IMAGE, "weight": (3, 4, 1, 1)}, {}),
    ("conv", {"x": WIDE, "weight": (16, 16, 3, 3), "bias": (16,)}, {"padding": 1}),
    ("conv_transpose", {"x": IMAGE, "weight": (4, 3, 3, 3), "bias": (3,)}, {"stride": 2}),
    ("linear", {"x": (5, 3), "weight": (2, 3), "bias": (2,)}, {}),
    ("relu", {"x": IMAGE}, {}),
    ("leaky_relu", {"x": IMAGE}, {"negative_slope": 3.0}),
    *[("gelu", {"x": IMAGE}, {"approximate": form}) for form in ("none", "tanh")],
    ("sigmoid", {"x": IMAGE}, {}),
    ("tanh", {"x": IMAGE}, {}),
    ("softmax", {"x": IMAGE}, {"axis": -1}),
    ("mse_loss", {"x": (4, 3)}, {"target": np.zeros((4, 3))}),
    ("dropout", {"x": IMAGE}, {"p": 0.3, "training": True, "rng": 7}),
    ("dropout", {"x": IMAGE}, {}),
    ("softmax_cross_entropy", {"x": (4, 3)}, {"labels": np.array([0, 2, 1, 1])}),
]
NAMED = [f"{op}-{i}" for i, (op, _, _) in enumerate(CALLS)]
MODES = pytest.mark.parametrize("mode", ["auto", "off"])
DTYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
KINDS = ("nan", "infinite", "both infinities", "largest", "smallest", "zero", "everything")


def test_every_op_is_here() -> None:
    ops = {name.removesuffix("_forward") for name in F.__all__ if name.endswith("_forward")}
    assert {op for op, _, _ in CALLS} == ops


def nasty(kind: str, shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    """Numbers of the worst kinds, among some of the ordinary; made without a warning."""
    smallest, largest = 9.2e-41, 3.3895313892515355e38
    if dtype.name != "bfloat16":
        smallest, largest = float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).max)
    values = {
        "nan": [np.nan],
        "infinite": [np.inf],
        "both infinities": [np.inf, -np.inf],
        "largest": [largest, -largest],
        "smallest": [smallest, -smallest],
        "zero": [0.0, -0.0],
        "everything": [np.nan, np.inf, -np.inf, largest, -largest, smallest, 0.0],
    }[kind]
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        ordinary = rng.standard_normal(shape) * (kind not in ("zero", "smallest"))
        worst = rng.choice(np.array(values, "float64"), shape)
        array = np.where(rng.random(shape) < 0.4, worst, ordinary).astype(dtype)
        if kind in ("largest", "smallest", "zero"):
            array[(slice(None), slice(0, 2))[: array.ndim]] = np.array(values[0], "float64").astype(dtype)
    return array


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """A caller who wants to hear of everything, as an error."""
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        yield


def trio(op: str, arrays: dict[str, np.ndarray], options: dict[str, Any], dy_of: Callable[[Any], Any]) -> list[Any]:
    """All arrays that the three functions give."""
    given = {name: a for name, a in arrays.items() if not (op == "softmax_cross_entropy" and name != "x")}
    y = getattr(F, op)(**given, **options)
    result, ctx = getattr(F, f"{op}_forward")(**given, **options)
    outputs = list(result) if isinstance(result, tuple) else [result]
    back = getattr(F, f"{op}_backward")(dy_of(outputs[0]), ctx)
    flat = [*(y if isinstance(y, tuple) else (y,)), *outputs, *(back if isinstance(back, tuple) else (back,))]
    return [a for a in flat if a is not None]


@MODES
@DTYPES
@pytest.mark.parametrize(("op", "shapes", "options"), CALLS, ids=NAMED)
def test_no_op_heeds_its_values(
    op: str, shapes: dict[str, tuple[int, ...]], options: dict[str, Any], dtype: str, mode: str
) -> None:
    kind = numpy_dtype(dtype)
    for worst in KINDS:
        arrays = {name: nasty(worst, shape, kind, seed) for seed, (name, shape) in enumerate(shapes.items())}
        if "running_var" in arrays:
            arrays["running_var"] = abs(arrays["running_var"])
        with strictly(), kernels.mode(mode):
            for a in trio(op, arrays, options, lambda y, worst=worst: nasty(worst, y.shape, kind, 9)):
                assert type(a) is np.ndarray


class Own(np.ndarray):
    """A subclass of somebody's."""


def as_memmap(a: np.ndarray, folder: Path) -> np.ndarray:
    shown = np.memmap(folder / f"{len(list(folder.iterdir()))}.bin", a.dtype, "w+", shape=a.shape)
    shown[...] = a
    return shown


@MODES
@pytest.mark.parametrize("subclass", ["memmap", "own"])
@pytest.mark.parametrize(("op", "shapes", "options"), CALLS, ids=NAMED)
def test_results_are_plain_arrays(
    op: str, shapes: dict[str, tuple[int, ...]], options: dict[str, Any], subclass: str, mode: str, tmp_path: Path
) -> None:
    make = {
        "memmap": lambda a: as_memmap(a, tmp_path),
        "own": lambda a: a.view(Own),
    }[subclass]
    rng = np.random.default_rng(0)
    plain = {name: rng.uniform(0.5, 1.5, shape).astype("float32") for name, shape in shapes.items()}
    arrays = {name: make(a.copy()) for name, a in plain.items()}
    others = {k: make(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    with kernels.mode(mode):
        found = trio(op, arrays, others, make)
        expected = trio(op, plain, options, lambda y: y)
    for a, other in zip(found, expected, strict=True):
        assert type(a) is np.ndarray
        assert a.tobytes() == other.tobytes()
    for name in ("running_mean", "running_var"):  # written to in place
        if name in arrays:
            np.testing.assert_array_equal(np.asarray(arrays[name]), plain[name])


@pytest.mark.parametrize("kind", [np.matrix, np.ma.MaskedArray])
def test_arrays_with_rules_of_their_own_are_refused(kind: Any) -> None:
    x = np.ones((4, 4), "float32")
    for call in (lambda a: F.relu(a), lambda a: F.linear(x, a), lambda a: F.relu_backward(a, F.relu_forward(x)[1])):
        with pytest.raises(TypeError, match=kind.__name__):
            call(x.view(kind))


# ---------------------------------------------------------------------------------------- layers, and what is on top
LAYERS = [
    (layers.MaxPool(3, 2, 1), IMAGE),
    (layers.GlobalAvgPool(), IMAGE),
    (layers.LpPool(3.0, 2), IMAGE),
    (layers.BatchNorm(4), IMAGE),
    (layers.BatchNorm(4).eval(), IMAGE),
    (layers.RMSNorm(6), IMAGE),
    (layers.Conv(4, 3, 3, rng=0), IMAGE),
    (layers.Linear(6, 3, rng=0), IMAGE),
    (layers.Flatten(), IMAGE),
    (layers.Dropout(0.3, rng=0), IMAGE),
    (layers.Residual(layers.Conv(4, 4, 3, padding=1, rng=0)), IMAGE),
    (layers.Residual(layers.ReLU()), IMAGE),
    (layers.Sequential(), IMAGE),
    (models.ThreeLayerConvNet((3, 8, 8), 5, 4, rng=0), (2, 3, 8, 8)),
    (models.ResNet(8, (3, 8, 8), 5, shortcut="padding", rng=0), (2, 3, 8, 8)),
]


@MODES
@pytest.mark.parametrize(
    ("layer", "shape"), LAYERS, ids=[f"{type(layer).__name__}-{i}" for i, (layer, _) in enumerate(LAYERS)]
)
def test_no_layer_heeds_its_values(layer: layers.Layer, shape: tuple[int, ...], mode: str) -> None:
    for dtype in ("float16", "float32"):
        for worst in KINDS:
            x = nasty(worst, shape, np.dtype(dtype)).view(Own)
            with strictly(), kernels.mode(mode):
                y = layer(x)
                dx = layer.backward(nasty(worst, y.shape, y.dtype, 1).view(Own))
            assert type(y) is type(dx) is np.ndarray
            assert all(type(g) is np.ndarray for g in layer.grads.values())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_no_tensor_heeds_its_values(dtype: str) -> None:
    for worst in KINDS:
        x = autograd.Tensor(nasty(worst, (3, 4), np.dtype(dtype)).view(Own), requires_grad=True)
        w = autograd.Tensor(nasty(worst, (4, 3), np.dtype(dtype), 1), requires_grad=True)
        with strictly():
            y = (
                (x @ w).exp() / x.sum()
                - (x * 1e5).max()
                + abs(x).log().mean()
                + (x**3).sqrt().sum()
                + x[[0, 0, 2]].sum()
            )
            assert type((x > 0).data) is type((x * x.data.view(Own)).data) is np.ndarray
            y.backward(nasty(worst, y.shape, np.dtype(dtype), 2).view(Own))
        assert type(x.data) is type(x.grad) is type(y.data) is np.ndarray


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_optimiser_heeds_its_values(make: Any, dtype: str) -> None:
    for worst in KINDS:
        p = nasty(worst, (8,), np.dtype(dtype))
        with strictly():
            optimizer = make({"p": p}, lr=0.1, weight_decay=0.1)
            for _ in range(3):
                optimizer.step({"p": nasty(worst, (8,), np.dtype(dtype), 1)})


def test_the_courses_losses_are_quiet() -> None:
    labels = np.array([0, 2, 1, 1])
    for worst in KINDS:
        x = nasty(worst, (4, 3), np.dtype("float32")).view(Own)
        with strictly():
            for loss in (cs231n.softmax_loss, cs231n.svm_loss):
                assert type(loss(x, labels)[1]) is np.ndarray
            net = cs231n.ThreeLayerConvNet((3, 8, 8), 4, 3, 5, 3, reg=0.1)
            net.loss(nasty(worst, (4, 3, 8, 8), np.dtype("float32")), labels)


def test_a_0d_array_comes_back_as_an_array() -> None:
    for x in (np.float32(-3.0), np.array(-3.0, "float32")):
        y, ctx = F.relu_forward(x)
        assert type(y) is type(F.relu_backward(y, ctx)) is np.ndarray


CHILD = """
import numpy as np
from cnnlayers import kernels, layers, models
np.seterr(all="raise")
net = models.ResNet(8, (3, 16, 16), 5, rng=0)
print(kernels.warmup(net, (4, 3, 16, 16)), kernels.warmup(layers.Sequential(net, layers.Dropout()), (4, 3, 16, 16)))
"""


def test_warmup_is_quiet(tmp_path: Path) -> None:
    """Compiling, too, with nothing in Numba's cache."""
    if cpu.unavailable():
        pytest.skip(str(cpu.unavailable()))
    done = subprocess.run([sys.executable, "-W", "error", "-c", CHILD], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
