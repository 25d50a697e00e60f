"""What the tests of cnnlayers.torch share: the devices, values without ties, and a module of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import cnnlayers.torch as ours  # noqa: E402
from cnnlayers import backends  # noqa: E402


@pytest.fixture(name="device", params=["cpu", "gpu"], autouse=True)
def each_device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "gpu":
        reason = backends.available()["cupy"]
        if reason or not torch.cuda.is_available():
            pytest.skip(f"no GPU here: {reason or 'PyTorch sees none'}")
    name = "cuda" if request.param == "gpu" else "cpu"
    with torch.device(name):
        yield name


def values(*shape: int, dtype: Any = torch.float32) -> torch.Tensor:
    """Random values without ties, so that nobody's rule for them matters."""
    size = int(np.prod(shape))
    order = torch.randperm(size, generator=torch.Generator("cpu").manual_seed(size), device="cpu")
    return ((order + 0.3) / max(size, 1) * 4 - 2).reshape(shape).to(torch.get_default_device(), dtype)


def kept(run: Callable[[], Any]) -> int:
    """Bytes that PyTorch saves for backward while `run` runs; parameters are not counted."""
    seen: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, nn.Parameter):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(seen.values())


CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("MaxPool1d", (3, 2, 1), {}, (2, 3, 11)),
    ("MaxPool2d", (2,), {}, (2, 3, 8, 9)),
    ("MaxPool2d", ((3, 2), (2, 1), (1, 0)), {"ceil_mode": True, "dilation": (1, 2)}, (2, 3, 8, 9)),
    ("MaxPool3d", (2,), {}, (2, 3, 4, 5, 6)),
    ("AvgPool1d", (3, 2, 1), {}, (2, 3, 11)),
    ("AvgPool2d", (3, 2, 1), {"count_include_pad": False, "ceil_mode": True}, (2, 3, 8, 9)),
    ("AvgPool2d", (2,), {"divisor_override": 3}, (2, 3, 8, 9)),
    ("AvgPool3d", (2,), {}, (2, 3, 4, 5, 6)),
    ("AdaptiveAvgPool1d", (4,), {}, (2, 3, 11)),
    ("AdaptiveAvgPool2d", ((3, None),), {}, (2, 3, 8, 9)),
    ("AdaptiveAvgPool3d", (2,), {}, (2, 3, 4, 5, 6)),
    ("AdaptiveMaxPool1d", (4,), {}, (2, 3, 11)),
    ("AdaptiveMaxPool2d", ((3, 4),), {}, (2, 3, 8, 9)),
    ("AdaptiveMaxPool3d", (2,), {}, (2, 3, 4, 5, 6)),
    ("ConstantPad1d", ((1, 2), 0.5), {}, (2, 3, 11)),
    ("ConstantPad2d", ((1, -2, 0, 3), 0.5), {}, (2, 3, 8, 9)),
    ("ConstantPad3d", (1, 2.0), {}, (2, 3, 4, 5, 6)),
    ("ZeroPad2d", (2,), {}, (2, 3, 8, 9)),
    ("ZeroPad1d", ((1, 2),), {}, (11,)),
    ("ZeroPad2d", (1,), {}, (2, 3, 4, 5, 6)),
    ("ConstantPad3d", ((1, 0, 2, 0, 0, 1), 2.0), {}, (2, 0, 2, 4, 5, 6)),
    ("ReflectionPad1d", ((3, 1),), {}, (2, 3, 11)),
    ("ReflectionPad2d", ((1, 2, 3, 0),), {}, (2, 3, 8, 9)),
    ("ReflectionPad3d", (1,), {}, (2, 3, 4, 5, 6)),
    ("ReplicationPad1d", (2,), {}, (2, 3, 11)),
    ("ReplicationPad2d", ((1, 2, 3, 0),), {}, (2, 3, 8, 9)),
    ("ReplicationPad3d", (1,), {}, (2, 3, 4, 5, 6)),
    ("CircularPad1d", ((2, 1),), {}, (2, 3, 11)),
    ("CircularPad2d", ((1, 2, 3, 0),), {}, (2, 3, 8, 9)),
    ("CircularPad3d", (1,), {}, (2, 3, 4, 5, 6)),
    ("BatchNorm1d", (5,), {}, (6, 5)),
    ("BatchNorm1d", (3,), {"affine": False}, (2, 3, 11)),
    ("BatchNorm2d", (3,), {"momentum": None}, (2, 3, 8, 9)),
    ("BatchNorm2d", (3,), {"track_running_stats": False, "eps": 1e-3}, (2, 3, 8, 9)),
    ("BatchNorm3d", (3,), {"momentum": 0.3}, (2, 3, 4, 5, 6)),
    ("InstanceNorm1d", (3,), {"affine": True}, (2, 3, 11)),
    ("InstanceNorm2d", (3,), {}, (2, 3, 8, 9)),
    ("InstanceNorm3d", (3,), {"affine": True}, (2, 3, 4, 5, 6)),
    ("GroupNorm", (2, 6), {}, (2, 6, 8, 9)),
    ("GroupNorm", (3, 6), {"affine": False}, (2, 6, 8, 9)),
    ("LayerNorm", ((8, 9),), {}, (2, 3, 8, 9)),
    ("LayerNorm", (9,), {"elementwise_affine": False}, (2, 3, 8, 9)),
    ("RMSNorm", (9,), {}, (2, 3, 8, 9)),
    ("LocalResponseNorm", (3,), {"alpha": 0.1}, (2, 6, 8, 9)),
]
LOOSE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def pair(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """PyTorch's module and this library's, with the same random parameters."""
    if not hasattr(nn, name):
        pytest.skip(f"this PyTorch has no {name}")
    theirs, mine = getattr(nn, name)(*args, **options), getattr(ours, name)(*args, **options)
    for p in theirs.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def both_ways(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """y, and the gradients of x and the parameters for a dy that every dtype can hold."""
    x = x.detach().requires_grad_()
    y = module(x)
    dy = (torch.arange(y.numel()) % 17 / 8 - 1).reshape(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]
