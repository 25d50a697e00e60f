"""From a .cu file to a kernel, on the stand-in: what errors say, and what `kernels.warmup` compiles ahead."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels, layers
from cnnlayers.kernels.cuda import compile as compiler
from cnnlayers.kernels.cuda.launch import launch

from . import standin_cuda, standin_cupy, standin_kernels
from .implementations import on_emulator

pytestmark = on_emulator


@pytest.fixture
def cupy() -> Iterator[types.ModuleType]:
    with standin_cupy.installed() as module, kernels.mode("require"), backends.using("cupy"):
        yield module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where kernels are read from."""
    monkeypatch.setattr(compiler, "HERE", tmp_path)
    for cache in (compiler.source, compiler._function):
        cache.cache_clear()
    yield tmp_path
    for cache in (compiler.source, compiler._function):
        cache.cache_clear()


GOOD = "template <typename T> __global__ void twice(T* x) { x[threadIdx.x] = two<T>() * x[threadIdx.x]; }\n"


def written(folder: Path, header: str, kernel: str = GOOD) -> None:
    folder.joinpath("two.cuh").write_text(header)
    folder.joinpath("twice.cu").write_text(f'// a kernel\n#include "two.cuh"\n\n{kernel}')


def test_each_line_of_the_spliced_source_bears_its_own_file_and_number(folder: Path) -> None:
    written(folder, "// two\n#pragma once\ntemplate <typename T> __device__ T two() { return T(2); }\n")
    assert compiler.source("twice").splitlines()[:9] == [
        '#line 1 "twice.cu"',
        "// a kernel",
        '#line 1 "two.cuh"',
        "// two",
        "",
        "template <typename T> __device__ T two() { return T(2); }",
        "",
        '#line 3 "twice.cu"',
        "",
    ]


@pytest.mark.parametrize("stem", sorted(p.stem for p in compiler.HERE.glob("*.cu")))
def test_no_header_is_left_out(stem: str) -> None:
    """CuPy's disk cache knows only the text it is given."""
    assert '#include "' not in compiler.source(stem)


@pytest.mark.parametrize(
    ("header", "kernel", "place"),
    [
        ("\n\ntemplate <typename T> __device__ T two() { return nonsense; }\n", GOOD, r"two\.cuh:3"),
        ("", "\n" + GOOD, r"twice\.cu:5"),
    ],
)
def test_a_failed_compile_names_kernel_options_and_place(
    cupy: Any, folder: Path, header: str, kernel: str, place: str
) -> None:
    written(folder, header, kernel)
    with pytest.raises(compiler.KernelError, match=place) as error:
        launch("twice", "twice<float>", 1, 32, [cupy.asarray(np.ones(32, "float32"))])
    assert str(error.value).startswith("twice<float> of twice.cu did not compile with -std=c++17:\n")
    assert isinstance(error.value.__cause__, standin_kernels.CompileException)


@pytest.mark.parametrize(
    ("arguments", "shared", "said"),
    [([np.int32(3)], 0, "kernel wants Pf4"), ([], 0, "takes 1 arguments"), (None, 1 << 20, "dynamic shared memory")],
)
def test_a_failed_launch_names_kernel_options_and_shape(
    cupy: Any, folder: Path, arguments: Any, shared: int, said: str
) -> None:
    written(folder, "template <typename T> __device__ T two() { return T(2); }\n")
    if arguments is None:
        arguments = [cupy.asarray(np.ones(32, "float32"))]
    with pytest.raises(compiler.KernelError, match=said) as error:
        launch("twice", "twice<float>", 2, 32, arguments, shared=shared)
    assert str(error.value).startswith(
        "twice<float> of twice.cu, compiled with -std=c++17, did not launch with grid 2, block 32, "
        f"{shared} bytes shared: "
    )


def test_an_empty_grid_compiles_and_launches_nothing(cupy: Any) -> None:
    launch("no_such_file", "none", 0, 32, [])


# -------------------------------------------------------------------------------------------------------------- warmup
@pytest.fixture
def loaded(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were compiled, none of them before the test."""
    names: list[str] = []
    original = standin_kernels.RawModule.get_function

    def get_function(self: Any, name: str) -> Any:
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(standin_kernels.RawModule, "get_function", get_function)
    return names


def net() -> layers.Layer:
    return layers.Sequential(
        layers.ReflectPad(1),
        layers.Conv(2, 4, 3, rng=0),
        layers.BatchNorm(4),
        layers.ReLU(),
        layers.MaxPool(2),
        layers.GroupNorm(2, 4),
        layers.AdaptiveAvgPool(2),
        layers.Flatten(),
        layers.LayerNorm(16),
        layers.Linear(16, 3, rng=0),
    )


def test_after_a_networks_warmup_a_training_step_compiles_nothing(loaded: list[str]) -> None:
    network = net()
    before = {name: a.get().tobytes() for name, a in network.state_dict().items()}
    with standin_cuda.emulating() as made:
        ready = kernels.warmup(network, (2, 2, 8, 8))
    assert made == []  # nothing was launched
    assert ready == len(set(loaded)) >= 10
    assert {name: a.get().tobytes() for name, a in network.state_dict().items()} == before
    assert network.grads == {}
    loaded.clear()
    x = backends.asarray(np.random.default_rng(0).normal(size=(2, 2, 8, 8)).astype("float32"))
    with standin_cuda.emulating() as made:
        y = network(x)
        network.backward(y)
    assert len(made) >= ready
    assert loaded == []
    assert np.isfinite(y.get()).all()


OPS = [
    (F.max_pool, (2, 3, 8, 8), (2,), {}),
    (F.max_pool, (2, 3, 9, 9), (3, 2, 1), {"ties": "split", "return_indices": True}),
    (F.max_pool_forward, (2, 3, 8), (2,), {}),
    (F.pad, (1, 2, 5), (1, "wrap"), {}),
    (F.avg_pool, (1, 5, 4, 2), (2,), {"data_format": "channels_last"}),
    (F.rms_norm, (4, 16), ((16,),), {}),
    (F.instance_norm, (2, 3, 5, 5), (), {}),
]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize(("op", "shape", "args", "options"), OPS)
def test_after_an_ops_warmup_its_trio_compiles_nothing(
    loaded: list[str], cupy: Any, op: Any, shape: Any, args: Any, options: Any, dtype: str
) -> None:
    with standin_cuda.emulating() as made:
        assert kernels.warmup(op, shape, *args, dtype=dtype, **options) == len(set(loaded)) > 0
    assert made == []
    loaded.clear()
    x, name = cupy.asarray(np.ones(shape, dtype)), op.__name__.removesuffix("_forward")
    getattr(F, name)(x, *args, **options)
    y, ctx = getattr(F, f"{name}_forward")(x, *args, **options)
    getattr(F, f"{name}_backward")(y[0] if isinstance(y, tuple) else y, ctx)
    assert loaded == []


def test_warmup_of_any_function_and_of_an_array(cupy: Any) -> None:
    x = cupy.asarray(np.ones((2, 2, 6, 6), "float32"))
    assert kernels.warmup(lambda: F.max_pool(F.pad(x, 1, "edge"), 2)) == 2
    assert kernels.warmup(F.max_pool, x, 2) == kernels.warmup(F.max_pool, x.shape, 2) == 3
    assert kernels.warmup(F.max_pool, x > 0, 2) == 1  # bool has no gradient
    assert kernels.warmup(F.relu, x) == 3
    assert kernels.warmup(F.softmax, x) == 2
    assert F.max_pool(x, 2).get().tolist() == np.ones((2, 2, 3, 3)).tolist()  # launches again


def test_warmup_ends_with_an_exception(cupy: Any) -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        kernels.warmup(F.max_pool, (1, 1, 4, 4), 0)
    assert not kernels.only_compiles("anything")


def test_where_there_are_no_kernels_there_is_nothing_to_compile() -> None:
    with backends.using("numpy"):
        assert kernels.warmup(F.local_response_norm, (1, 4, 2, 2), 3) == 0
    with kernels.mode("off"):
        assert kernels.warmup(F.max_pool, None, 2) == 0
