"""Models: what ThreeLayerConvNet is made of, beside PyTorch's twin, and how a description makes it again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cnnlayers import backends, models
from cnnlayers import functional as F
from cnnlayers.models import ThreeLayerConvNet


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


@pytest.mark.parametrize("batch_norm", [False, True])
def test_parts_and_names(batch_norm: bool) -> None:
    net = ThreeLayerConvNet((3, 9, 7), classes=5, filters=4, kernel_size=3, hidden=6, batch_norm=batch_norm, rng=0)
    kinds = [type(part).__name__ for part in net]
    assert kinds == ["Conv", *["BatchNorm"] * batch_norm, "ReLU", "MaxPool", "Flatten", "Linear", "ReLU", "Linear"]
    shapes = [tuple(p.shape) for p in net.params.values()]
    assert shapes == [(4, 3, 3, 3), (4,), *[(4,), (4,)] * batch_norm, (6, 4 * 4 * 3), (6,), (5, 6), (5,)]
    assert net(np.zeros((2, 3, 9, 7), np.float32)).shape == (2, 5)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_as_torch(batch_norm: bool, kernel_size: int, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    net = ThreeLayerConvNet((2, 8, 6), 5, 4, kernel_size, 7, batch_norm, rng=0)
    twin = nn.Sequential(
        nn.Conv2d(2, 4, kernel_size, padding="same"),
        *([nn.BatchNorm2d(4)] if batch_norm else []),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 3, 7), nn.ReLU(), nn.Linear(7, 5),
    )  # fmt: skip
    net.load_state_dict(twin.state_dict())
    x, labels = rng.standard_normal((6, 2, 8, 6)).astype("float32"), rng.integers(0, 5, 6)
    theirs_x = torch.tensor(x, requires_grad=True)
    loss = nn.functional.cross_entropy(twin(theirs_x), torch.tensor(labels))
    loss.backward()
    ours, ctx = F.softmax_cross_entropy_forward(net(x), labels)
    dx = net.backward(F.softmax_cross_entropy_backward(np.ones((), np.float32), ctx))
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(dx, theirs_x.grad.numpy(), atol=1e-6)
    for name, p in twin.named_parameters():
        np.testing.assert_allclose(net.grads[name], p.grad.numpy(), atol=2e-6, err_msg=name)
    np.testing.assert_allclose(net.eval()(x), twin.eval()(torch.tensor(x)).detach().numpy(), atol=1e-5)


def test_a_seed_gives_the_same_weights() -> None:
    first, again, other = (ThreeLayerConvNet((1, 8, 8), rng=seed) for seed in (1, 1, 2))
    for name, p in first.params.items():
        assert np.array_equal(p, again.params[name])
        assert not np.array_equal(p, other.params[name])


def test_a_description_makes_it_again() -> None:
    arguments = {"input_shape": [1, 8, 8], "classes": 3, "batch_norm": True}
    net = models.build("three-layer", arguments, rng=4)
    twin = ThreeLayerConvNet((1, 8, 8), 3, batch_norm=True, rng=4)
    assert all(np.array_equal(a, twin.state_dict()[name]) for name, a in net.state_dict().items())
    with pytest.raises(ValueError, match=r"no model 'resnet'; there are three-layer, resnet8"):
        models.build("resnet", {})


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"input_shape": (8, 8)}, ValueError, "input_shape needs one entry"),
        ({"input_shape": (1, 1, 8)}, ValueError, "window covers 2 cells"),
        ({"input_shape": (1, 8, 0)}, ValueError, "input_shape must be at least 1, got 0"),
        ({"classes": 0}, ValueError, "classes must be at least 1"),
        ({"filters": 1.5}, TypeError, "filters must be an int"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
        ({"hidden": -1}, ValueError, "hidden must be at least 1"),
        ({"batch_norm": "yes"}, TypeError, "batch_norm must be True or False"),
        ({"rng": "seed"}, TypeError, "rng must be"),
    ],
)
def test_wrong_arguments(options: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        ThreeLayerConvNet(**{"input_shape": (1, 8, 8)} | options)
