"""docs/how-to/migration.md: the code of each row of its tables, as it stands there, beside plain loops; its example."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnlayers.cs231n
from cnnlayers import backends
from cnnlayers import functional as F

from . import standin_cupy
from .migration_rows import ROWS
from .reference import conv, pool

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to" / "migration.md").read_text()
EXAMPLE = ROOT / "examples" / "from_cupy_cudnn.py"


def table(title: str) -> list[list[str]]:
    """The cells of the rows of the table under this heading."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    lines = next(part for part in section if part.startswith(title)).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines if line.startswith("|")]
    return rows[2:]  # after the head and the rule


def code(cell: str) -> str:
    return "\n".join(re.findall(r"`([^`]+)`", cell))


CASES = [
    pytest.param(library, title, i, ndim, id=f"{library}-{title}-{i}-{name}-{ndim}d")
    for title, rows in ROWS.items()
    for i, (name, _) in enumerate(rows)
    for library in ("numpy", "cupy")
    for ndim in ((2,) if title == "CS231n" or "_2d" in name or library == "cupy" else (1, 2, 3))
]


@pytest.fixture
def xp(request: pytest.FixtureRequest) -> Iterator[Any]:
    """NumPy, or the stand-in for CuPy."""
    if request.param == "numpy":
        yield np
    else:
        with standin_cupy.installed() as cupy:
            yield cupy


@pytest.mark.parametrize("title", ROWS)
def test_every_row_has_a_test(title: str) -> None:
    names = [re.match(r"`?(?:.*?= )?(\w+)(?=\()|.*", cells[0]) for cells in table(title)]
    assert [found and (found[1] or found[0]) for found in names] == [name for name, _ in ROWS[title]]


def run(source: str, xp: Any, given: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The variables that this code leaves, arrays on the host."""
    arrays = {name: xp.asarray(v.copy()) if isinstance(v, np.ndarray) else v for name, v in given.items()}
    names = {"F": F, "xp": xp} | more | arrays
    exec(compile(source, "docs/how-to/migration.md", "exec"), names)
    kind = type(xp.asarray(0))
    return {name: backends.to_numpy(v) if isinstance(v, kind) else v for name, v in names.items()}


@pytest.mark.parametrize(("xp", "title", "i", "ndim"), CASES, indirect=["xp"])
def test_a_row_computes_what_loops_do(xp: Any, rng: np.random.Generator, title: str, i: int, ndim: int) -> None:
    given, expected = ROWS[title][i][1](rng, ndim)
    theirs, here, _ = table(title)[i]
    sources = [(code(here), {})]
    if title == "CS231n":
        sources.append((code(theirs), vars(cnnlayers.cs231n)))
    for source, more in sources:
        found = run(source, xp, given, more)
        checked = [name for name in expected if re.search(rf"\b{name}\b", source)]
        assert checked, f"no result in: {source}"
        for name in checked:
            want = expected[name](found) if callable(expected[name]) else expected[name]
            np.testing.assert_allclose(found[name], want, rtol=1e-9, atol=1e-11, err_msg=f"{name} of {source}")


# ---------------------------------------------------------------------------------------------------------- the example
def loops() -> tuple[types.ModuleType, types.ModuleType]:
    """cupy.cudnn and cupy.cuda.cudnn, as much of them as the page's framework calls, in plain loops on NumPy."""
    cudnn, constants = types.ModuleType("cupy.cudnn"), types.ModuleType("cupy.cuda.cudnn")
    constants.CUDNN_ACTIVATION_RELU, constants.CUDNN_POOLING_MAX = 1, 0

    def op(x: Any, W: Any, pad: Any, stride: Any, dilation: Any, groups: int) -> conv.Conv:
        return conv.Conv(x.shape[2:], W.shape[2:], stride, tuple((p, p) for p in pad), dilation, groups)

    def convolution_forward(
        x: Any, W: Any, b: Any, y: Any, pad: Any, stride: Any, dilation: Any, groups: int, *, auto_tune, tensor_core
    ) -> None:
        y[...] = conv.maps(op(x, W, pad, stride, dilation, groups), x, W) + b.reshape(-1, 1, 1)

    def convolution_backward_filter(
        x: Any,
        gy: Any,
        gW: Any,
        pad: Any,
        stride: Any,
        dilation: Any,
        groups: int,
        *,
        deterministic,
        auto_tune,
        tensor_core,
    ) -> None:
        gW[...] = conv.dweight(op(x, gW, pad, stride, dilation, groups), x, gy)

    def convolution_backward_data(
        W: Any,
        x: Any,
        b: Any,
        y: Any,
        pad: Any,
        stride: Any,
        dilation: Any,
        groups: int,
        *,
        deterministic,
        auto_tune,
        tensor_core,
    ) -> None:
        assert b is None
        y[...] = conv.image(op(y, W, pad, stride, dilation, groups), x, W)

    def windows(x: Any, ksize: Any, stride: Any, pad: Any) -> pool.Pool:
        return pool.Pool(x.shape[2:], ksize, stride, tuple((p, p) for p in pad), (1,) * len(ksize))

    def pooling_forward(x: Any, y: Any, ksize: Any, stride: Any, pad: Any, mode: int) -> Any:
        assert mode == constants.CUDNN_POOLING_MAX
        y[...] = pool.max_pool(x, windows(x, ksize, stride, pad))[0]
        return y

    def pooling_backward(x: Any, y: Any, gy: Any, ksize: Any, stride: Any, pad: Any, mode: int) -> Any:
        return pool.max_pool_backward(gy, x, windows(x, ksize, stride, pad))

    def activation_forward(x: Any, mode: int, coef: float = 0.0) -> Any:
        assert mode == constants.CUDNN_ACTIVATION_RELU
        return np.where(x > 0, x, 0)

    def activation_backward(x: Any, y: Any, gy: Any, mode: int, coef: float = 0.0) -> Any:
        return np.where(y > 0, gy, 0)

    vars(cudnn).update({name: value for name, value in locals().items() if name.endswith(("ward", "filter", "data"))})
    return cudnn, constants


def frameworks() -> tuple[str, str]:
    """The page's framework for cupy.cudnn, and for this library."""
    section = PAGE.split("### A worked example")[1].split("\n## ")[0]
    before, after = re.findall(r"```py(?:thon)?\n(.*?)```", section, re.DOTALL)
    return before, after


def example() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("from_cupy_cudnn", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_has_the_framework_of_the_page() -> None:
    classes = frameworks()[1].split("\n\n\n", 1)[1]
    assert classes.startswith("class Conv")
    assert classes in EXAMPLE.read_text()


def test_both_versions_of_the_framework_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example()
    after = module.train(steps=4, batch=6, xp=np)
    cupy, cuda = types.ModuleType("cupy"), types.ModuleType("cupy.cuda")
    cudnn, constants = loops()
    vars(cupy).update(cudnn=cudnn, cuda=cuda, empty=np.empty, empty_like=np.empty_like)
    for name, value in {"": cupy, ".cudnn": cudnn, ".cuda": cuda, ".cuda.cudnn": constants}.items():
        monkeypatch.setitem(sys.modules, f"cupy{name}", value)
    theirs: dict[str, Any] = {}
    exec(compile(frameworks()[0], "docs/how-to/migration.md", "exec"), theirs)
    for name in ("Conv", "ReLU", "MaxPool"):
        monkeypatch.setattr(module, name, theirs[name])
    before = module.train(steps=4, batch=6, xp=np)
    np.testing.assert_allclose(after, before, rtol=1e-4)
    assert len(set(after)) == 4


@pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)
def test_the_example_learns(xp: Any) -> None:
    losses = example().train(steps=30 if xp is np else 3, batch=32 if xp is np else 4, xp=xp)
    assert all(isinstance(loss, float) for loss in losses)
    if xp is np:
        assert losses[-1] < 0.5 * losses[0]
