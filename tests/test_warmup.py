"""`kernels.warmup` on the CPU: what it compiles, counts and leaves as it was. test_cuda_compile.py has CuPy's part."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import backends, kernels, layers
from cnnlayers.kernels.cpu import jit

pytestmark = pytest.mark.skipif(jit.unavailable() is not None, reason=str(jit.unavailable()))


@pytest.fixture(autouse=True)
def modes() -> Any:
    with kernels.mode("auto"), backends.using("numpy"):
        yield


def network() -> layers.Sequential:
    return layers.Sequential(
        layers.ReflectPad(1),
        layers.Conv(3, 16, 3, padding=1, rng=0),
        layers.BatchNorm(16),
        layers.ReLU(),
        layers.Conv(16, 16, 3, padding=1, rng=1),
        layers.GroupNorm(4, 16),
        layers.MaxPool(2),
        layers.Dropout(0.5, rng=np.random.default_rng(3)),
        layers.AdaptiveAvgPool(2),
        layers.Flatten(),
        layers.LayerNorm(64),
        layers.Linear(64, 5, rng=2),
    )


def compiled() -> int:
    """The kernels, each with its argument types, that are compiled in this process."""
    dispatchers = [d for d in gc.get_objects() if type(d).__name__ == "CPUDispatcher"]
    return sum(len(d.overloads) for d in dispatchers if d.py_func.__module__.startswith("cnnlayers"))


def bits(net: layers.Layer) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in net.state_dict().items()}


def test_after_a_networks_warmup_a_training_step_compiles_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    net, shape = network(), (4, 3, 12, 12)
    before = bits(net)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        ready = kernels.warmup(net, shape)
    assert capfd.readouterr() == ("", "")
    assert bits(net) == before
    assert net.grads == {}
    number = compiled()
    assert ready >= 15
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    y = net(x)
    assert np.isfinite(net.backward(y)).all()
    assert compiled() == number
    assert kernels.warmup(net, shape) == ready
    # The generator of dropout is where it was too.
    other = network()
    assert other(x).tobytes() == y.tobytes()


@pytest.mark.parametrize(
    ("op", "args", "options", "ready"),
    [
        (F.max_pool, (2,), {}, 3),
        (F.max_pool_forward, (2,), {}, 3),
        (F.adaptive_max_pool, (2,), {}, 3),
        (F.avg_pool, (2,), {}, 2),
        (F.relu, (), {}, 3),
        (F.pad, (1, "edge"), {}, 2),
        (F.group_norm, (2,), {}, 2),
        (F.batch_norm, (), {}, 2),
        (F.conv, (np.ones((4, 4, 2, 2), "float32"), np.ones(4, "float32")), {}, 4),  # three steps, dbias
        (F.conv, (np.ones((4, 1, 3, 3), "float32"),), {"groups": 4}, 3),
        (F.linear, (np.ones((4, 8), "float32"),), {}, 0),
        (F.local_response_norm, (3,), {}, 0),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_an_op_is_counted_with_its_backward_whether_compiled_before_or_not(
    op: Any, args: Any, options: Any, ready: int
) -> None:
    assert kernels.warmup(op, (2, 4, 8, 8), *args, **options) == ready
    assert kernels.warmup(op, np.ones((2, 4, 8, 8), "float32"), *args, **options) == ready
    with kernels.mode("off"):
        assert kernels.warmup(op, (2, 4, 8, 8), *args, **options) == 0


def test_each_dtype_counts() -> None:
    def call() -> None:
        for dtype in ("float32", "float64", "float64"):
            F.relu(np.ones(3, dtype))

    assert kernels.warmup(call) == 2
    assert kernels.warmup(F.relu, (3,), dtype=np.float64) == 3


def test_other_arguments_stay_as_they_are() -> None:
    mean, var = np.zeros(4, "float32"), np.ones(4, "float32")
    x = np.random.default_rng(0).standard_normal((2, 4, 5)).astype("float32")
    kernels.warmup(F.batch_norm, x, None, None, mean, running_var=var, training=True)
    assert (mean.tolist(), var.tolist()) == ([0] * 4, [1] * 4)
    generator, same = np.random.default_rng(1), np.random.default_rng(1)
    kernels.warmup(F.dropout, x, 0.5, training=True, rng=generator)
    assert generator.random() == same.random()


NUMBERS = [0.0, np.nan, np.inf, 1e-45, 3e38, -3e38]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(
    ("op", "args"),
    [
        (F.batch_norm, ()),
        (F.layer_norm, (8,)),
        (F.lp_pool, (2,)),
        (F.sum_pool, (2,)),
        (F.conv, (np.ones((16, 16, 3, 3), "float32"),)),
        (F.conv, (np.ones((16, 1, 3, 3), "float32"), None, 1, 0, 1, 16)),
        (F.local_response_norm, (3,)),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_nothing_warns_of_the_numbers_nor_are_they_required_to_be_finite(op: Any, args: Any, value: float) -> None:
    x = np.full((2, 16, 8, 8), value, "float32")
    with warnings.catch_warnings(), np.errstate(all="raise"), kernels.mode("require"):
        warnings.simplefilter("error")
        kernels.warmup(op, x, *args)


def test_an_exception_ends_the_warmup() -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        kernels.warmup(F.max_pool, (1, 1, 4, 4), 0)
    assert not kernels.only_compiles("anything")
