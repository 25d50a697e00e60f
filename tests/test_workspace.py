"""What a call of a compiled kernel takes beside its arguments, its results and what its context keeps is bounded,
whatever the batch."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cnnlayers import functional as F
from cnnlayers import kernels
from cnnlayers.backends import memory, threads

pytest.importorskip("numba")
SMALL = 64_000  # bytes of Python objects, and of tables that depend on the shape alone
CHUNKS = 1 << 20  # sums of the chunks that threads get, or a chunk's cells
BLOCK = 5 << 20  # a convolution's: columns of a chunk, or images with their padding
WINOGRAD = 24 << 20  # transformed tiles
SUMS = 16  # a norm has a few sums a statistics group: a sixteenth of x at these shapes


@dataclass(frozen=True)
class Trio:
    """An op: its name, the shape of a sample, its other arguments (of arrays the shapes), its options, and how many
    bytes its workspace may have."""

    name: str
    x: tuple[int, ...]
    others: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    most: int = SMALL

    @property
    def id(self) -> str:
        return f"{self.name} {self.others} {self.options}"

    def run(self, n: int) -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
        """x of n samples, and the two calls."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, *self.x)).astype(np.float32)
        others = [rng.standard_normal(a).astype(np.float32) if isinstance(a, tuple) else a for a in self.others]
        forward = getattr(F, f"{self.name}_forward")
        backward = getattr(F, f"{self.name}_backward")
        y, *_, ctx = forward(x, *others, **self.options)
        dy = np.ones_like(y)
        return x, lambda: forward(x, *others, **self.options), lambda: backward(dy, ctx)


LAST = {"data_format": "channels_last"}
PLANES, PIXELS = (16, 32, 32), (32, 32, 16)
TRIOS = [
    Trio("max_pool", PLANES, (2,)),
    Trio("max_pool", PLANES, (3,), {"stride": 2, "padding": 1}),
    Trio("max_pool", PLANES, (13,), {"stride": 1, "padding": 6}),
    Trio("max_pool", PLANES, (32,)),
    Trio("max_pool", PIXELS, (3,), {"stride": 2, **LAST}),
    Trio("max_pool", (16, 4096), (9,)),
    Trio("avg_pool", PLANES, (2,)),
    Trio("avg_pool", PLANES, (3,), {"stride": 1, "padding": 1}),
    Trio("avg_pool", PLANES, (7,), {"stride": 2}),
    Trio("avg_pool", PIXELS, (3,), {"stride": 2, **LAST}),
    Trio("lp_pool", PLANES, (2, 2), {}, CHUNKS),
    Trio("adaptive_max_pool", PLANES, (5,)),
    Trio("adaptive_avg_pool", PLANES, (5,)),
    Trio("adaptive_avg_pool", PLANES, (1,)),
    Trio("pad", PLANES, (2,), {"mode": "reflect"}),
    Trio("pad", PLANES, (2,), {"mode": "edge"}),
    Trio("pad", PIXELS, (2,), {"mode": "reflect", **LAST}),
    Trio("batch_norm", PLANES, ((16,), (16,))),
    Trio("batch_norm", PIXELS, ((16,), (16,)), LAST),
    Trio("batch_norm", (512,), ((512,), (512,))),
    Trio("group_norm", PLANES, (4, (16,), (16,))),
    Trio("instance_norm", PLANES, ((16,), (16,))),
    Trio("layer_norm", (512,), (512, (512,), (512,)), {}, CHUNKS),
    Trio("rms_norm", (512,), (512, (512,)), {}, CHUNKS),
    Trio("relu", PLANES),
    Trio("gelu", PLANES),
    Trio("sigmoid", PLANES),
    Trio("softmax", PLANES),
    Trio("conv", PLANES, ((16, 16, 3, 3),), {"padding": 1}, BLOCK),
    Trio("conv", PLANES, ((64, 16, 3, 3),), {"padding": 1, "stride": 2}, BLOCK),
    Trio("conv", (64, 28, 28), ((64, 64, 3, 3),), {"padding": 1}, WINOGRAD),
    Trio("conv", PLANES, ((16, 16, 5, 5),), {"padding": 2}, BLOCK),
    Trio("conv", PLANES, ((64, 16, 1, 1),), {}, BLOCK),
    Trio("conv", PLANES, ((16, 1, 3, 3),), {"padding": 1, "groups": 16}, BLOCK),
    Trio("conv", PIXELS, ((16, 16, 3, 3),), {"padding": 1, **LAST}, BLOCK),
    Trio("conv", (3, 64, 64), ((32, 3, 7, 7),), {"padding": 3, "stride": 2}, BLOCK),
    Trio("conv_transpose", PLANES, ((16, 8, 4, 4),), {"padding": 1, "stride": 2}, BLOCK),
]


def _workspace(call: Callable[[], Any]) -> int:
    """Bytes at a call's peak beside what is there after it. No workspace of an earlier call is at hand."""
    call()
    memory._free.buffers.clear()
    tracemalloc.start()
    result = call()
    memory._free.buffers.clear()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return peak - after


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workspaces are a thread's own."""
    monkeypatch.setattr(threads, "num_threads", lambda: 1)
    with kernels.mode("auto"):
        yield


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("trio", TRIOS, ids=lambda trio: trio.id)
def test_a_workspace_is_bounded_whatever_the_batch(trio: Trio) -> None:
    for n in (16, 128):
        x, forward, backward = trio.run(n)
        for call in (forward, backward):
            assert _workspace(call) <= trio.most + x.nbytes / SUMS


@pytest.mark.usefixtures("one_thread")
def test_a_copy_of_x_would_be_noticed() -> None:
    x, _, _ = Trio("relu", PLANES).run(16)
    assert _workspace(lambda: np.maximum(x, 0).copy()) > SMALL + x.nbytes / SUMS


@pytest.mark.usefixtures("one_thread")
def test_softmax_along_a_long_axis_keeps_few_exponentials() -> None:
    """Whole vectors of them would take 128 MB here, sixteen times what x takes."""
    x = np.zeros((1, 1_000_000, 2), np.float32)
    assert np.allclose(F.softmax(x, 1), 1e-6)
    for count in (10_000, 1_000_000):
        assert _workspace(lambda a=x[:, :count]: F.softmax(a, 1)) <= (4 << 20) + SMALL
