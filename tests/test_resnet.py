"""ResNet beside PyTorch's own, as CIFAR's residual networks are commonly written; its names, sizes, training, files."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnlayers
from cnnlayers import backends, cli, models, optim, predict, train
from cnnlayers import functional as F
from cnnlayers.models import ResNet
from cnnlayers.testing import gradcheck


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


def torch_twin(depth: int, channels: int, classes: int, shortcut: str, side: str, last: str) -> Any:
    """The same network in PyTorch. `side`, `last`: what it calls the shortcut and the linear layer."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Padded(nn.Module):
        def __init__(self, before: int, filters: int) -> None:
            super().__init__()
            self.more = (filters - before) // 2

        def forward(self, x: Any) -> Any:
            return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))

    class Block(nn.Module):
        def __init__(self, before: int, filters: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, filters, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(filters)
            self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(filters)
            beside = nn.Sequential()
            if before != filters and shortcut == "padding":
                beside = Padded(before, filters)
            elif before != filters:
                beside = nn.Sequential(nn.Conv2d(before, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
            setattr(self, side, beside)

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + getattr(self, side)(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            before = 16
            for i, filters in enumerate((16, 32, 64), 1):
                blocks = [Block(before, filters, 1 if i == 1 else 2)]
                blocks += [Block(filters, filters, 1) for _ in range((depth - 2) // 6 - 1)]
                setattr(self, f"layer{i}", nn.Sequential(*blocks))
                before = filters
            setattr(self, last, nn.Linear(64, classes))

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return getattr(self, last)(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    for name, a in net.state_dict().items():  # a state that tells one array from another
        if "bn" in name or name.endswith("1.weight") or "running" in name:
            a.copy_(a + 0.3 * torch.rand(a.shape))
    return net


@pytest.mark.parametrize(
    ("depth", "shortcut", "side", "last", "side_length"),
    [
        (8, "projection", "downsample", "fc", 8),
        (14, "projection", "shortcut", "linear", 9),
        (8, "padding", "shortcut", "linear", 7),
        (20, "padding", "downsample", "fc", 16),
    ],
)
def test_torchs_weights_give_torchs_answers(
    depth: int, shortcut: str, side: str, last: str, side_length: int, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    twin = torch_twin(depth, 2, 5, shortcut, side, last).double()
    net = ResNet(depth, (2, 8, 8), 5, shortcut=shortcut).map_arrays(lambda a: a.astype("f8") if a.ndim else a)
    net.load_state_dict(twin.state_dict())
    x, labels = rng.standard_normal((4, 2, side_length, side_length)), rng.integers(0, 5, 4)
    theirs_x = torch.tensor(x, requires_grad=True)
    np.testing.assert_allclose(net.eval()(x), twin.eval()(theirs_x).detach().numpy(), rtol=1e-9, atol=1e-9)
    logits = twin.train()(theirs_x)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    ours = net.train()(x)
    np.testing.assert_allclose(ours, logits.detach().numpy(), rtol=1e-9, atol=1e-9)
    dx = net.backward(F.softmax_cross_entropy_backward(1.0, F.softmax_cross_entropy_forward(ours, labels)[1]))
    np.testing.assert_allclose(dx, theirs_x.grad.numpy(), rtol=1e-6, atol=1e-11)
    for (name, ours_p), (theirs_name, p) in zip(net.grads.items(), twin.named_parameters(), strict=True):
        assert name == theirs_name.replace("shortcut", "downsample").replace("linear", "fc")
        np.testing.assert_allclose(ours_p, p.grad.numpy(), rtol=1e-6, atol=1e-10, err_msg=name)
    for (name, a), theirs in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        np.testing.assert_allclose(a, theirs.numpy(), rtol=1e-9, err_msg=name)  # the running statistics, too


def test_names_are_torchvisions() -> None:
    net = ResNet(14, (1, 8, 8), rng=0)
    twin = torch_twin(14, 1, 10, "projection", "downsample", "fc")
    assert list(net.state_dict()) == list(twin.state_dict())
    assert {n: tuple(a.shape) for n, a in net.params.items()} == {n: tuple(p.shape) for n, p in twin.named_parameters()}
    twin.load_state_dict({name: pytest.importorskip("torch").tensor(a) for name, a in net.state_dict().items()})


@pytest.mark.parametrize(
    ("depth", "shortcut", "parameters"),
    [(20, "padding", 269_722), (20, "projection", 272_474), (56, "padding", 853_018), (8, "projection", 78_042)],
)
def test_as_many_parameters_as_the_paper_has(depth: int, shortcut: str, parameters: int) -> None:
    net = ResNet(depth, shortcut=shortcut, rng=0)
    assert sum(p.size for p in net.params.values()) == parameters
    assert sum(p.ndim == 4 and p.shape[-1] == 3 for p in net.params.values()) + 1 == depth


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 5, 7), (1, 1, 1)])
@pytest.mark.parametrize("shortcut", models.SHORTCUTS)
def test_shapes(impl: Any, shape: tuple[int, int, int], shortcut: str) -> None:
    net = ResNet(8, shape, 4, shortcut=shortcut, rng=1).map_arrays(impl.writable).eval()
    y = net(impl.array(np.ones((2, *shape), np.float32)))
    host = impl.numpy(y, (2, 4), "float32")
    impl.close(net(impl.array(np.ones((3, *shape), np.float32)))[:1, :], host[:1], rtol=1e-4, atol=1e-6)
    assert impl.numpy(net.backward(impl.array(np.ones((3, 4), np.float32))), (3, *shape), "float32").any()
    assert net(impl.array(np.ones((0, *shape), np.float32))).shape == (0, 4)


def test_gradients_of_the_padded_shortcut(rng: np.random.Generator) -> None:
    gradcheck(models._PaddedShortcut(2, 6), rng.standard_normal((2, 2, 5, 4)))


@pytest.mark.parametrize(
    ("depth", "options", "error", "said"),
    [
        (2, {}, ValueError, r"depth must be 6n \+ 2 with n of at least 1 \(8, 14, 20, …\), got 2"),
        (9, {}, ValueError, "got 9"),
        (18, {}, ValueError, "got 18"),
        (-4, {}, ValueError, "got -4"),
        (0, {}, ValueError, "got 0"),
        (8.0, {}, TypeError, "depth must be an int"),
        (True, {}, TypeError, "depth must be an int"),
        ("8", {}, TypeError, "depth must be an int"),
        (8, {"classes": 0}, ValueError, "classes must be at least 1"),
        (8, {"input_shape": (3, 8)}, ValueError, "input_shape needs one entry"),
        (8, {"input_shape": 3}, TypeError, r"input_shape must be a picture.s \(C, H, W\), got 3"),
        (8, {"input_shape": (0, 8, 8)}, ValueError, "input_shape must be at least 1"),
        (8, {"shortcut": "identity"}, ValueError, "shortcut must be one of projection, padding; got 'identity'"),
        (8, {"rng": "seed"}, TypeError, "rng must be"),
    ],
)
def test_wrong_arguments(depth: Any, options: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        ResNet(depth, **options)


def test_states_that_do_not_fit() -> None:
    net = ResNet(8, (1, 8, 8), rng=0)
    state = dict(net.state_dict())
    with pytest.raises(ValueError, match=r"unknown: linear\.weight$"):
        net.load_state_dict(state | {"linear.weight": state["fc.weight"]})
    with pytest.raises(ValueError, match=r"missing: layer1\.1\.conv1\.weight"):
        ResNet(14, (1, 8, 8)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"unknown: layer2\.0\.downsample\.0\.weight"):
        ResNet(8, (1, 8, 8), shortcut="padding").load_state_dict(state)
    with pytest.raises(ValueError, match="unknown: 3"):
        net.load_state_dict(state | {3: state["fc.weight"]})
    with pytest.raises(TypeError, match="state must be a mapping"):
        net.load_state_dict([("fc.weight", 1)])


def test_saved_and_loaded(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((8, 1, 8, 8)).astype("float32")
    net = ResNet(8, (1, 8, 8), 3, rng=0)
    net(x)
    cnnlayers.save(net, tmp_path / "net.safetensors")
    again = cnnlayers.load(ResNet(8, (1, 8, 8), 3, rng=5), tmp_path / "net.safetensors")
    assert np.array_equal(net.eval()(x), again.eval()(x))
    twin = copy.deepcopy(net)
    twin.params["conv1.weight"][...] = 0
    assert net.params["conv1.weight"].any()
    built = models.build("resnet8", {"input_shape": [1, 8, 8], "classes": 3}, rng=0)
    assert np.array_equal(built.params["fc.weight"], net.params["fc.weight"])


def test_a_seed_gives_the_same_weights() -> None:
    first, again, other = (ResNet(8, rng=seed).params for seed in (1, 1, 2))
    assert all(np.array_equal(p, again[name]) for name, p in first.items())
    assert all(not np.array_equal(p, other[name]) for name, p in first.items() if "conv" in name)


def test_it_learns_by_heart(rng: np.random.Generator) -> None:
    x, labels = rng.standard_normal((16, 3, 8, 8)).astype("float32"), rng.integers(0, 10, 16)
    net = ResNet(8, (3, 8, 8), rng=0)
    adam = optim.Adam(net.params, lr=1e-2)
    for _ in range(15):
        loss, ctx = F.softmax_cross_entropy_forward(net(x), labels)
        net.backward(F.softmax_cross_entropy_backward(1.0, ctx))
        adam.step(net.grads)
    assert loss < 0.1


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--model", "resnet8", "--epochs", "4", "--seed", "1"]) == 0
    out = Path("runs/digits-resnet8")
    found = json.loads((out / train.HISTORY).read_text())
    assert (found["settings"]["model"], found["parameters"]) == ("resnet8", 77_754)
    assert found["test"]["accuracy"] > 0.94  # 30 epochs, the default: above 0.98
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy 9")
    assert cli.main(["train", "--resume", "--epochs", "4", "--model", "resnet8"]) == 0
    with pytest.raises(ValueError, match=r"model three-layer \(it was resnet8\)"):
        train.resume({"model": "three-layer"}, out)
    capsys.readouterr()

    from sklearn.datasets import load_digits

    digits = load_digits()
    for i in range(20):
        cells = np.kron(np.rint(digits.images[i] * 255 / 16), np.ones((12, 12))).astype(np.uint8)
        image.fromarray(cells).save(f"{i}.png")
    answers = predict.predict(predict.load(out), [f"{i}.png" for i in range(20)])
    assert np.mean([a[0][0] == str(digits.target[i]) for i, a in enumerate(answers)]) >= 0.9
    assert cli.main(["predict", str(out), "0.png"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["0.png", "0"]


@pytest.mark.parametrize("depth", [18, 34, 101])
def test_imagenets_depths_are_refused_by_name(depth: int) -> None:
    said = rf"got {depth}: ResNet is .* for small pictures such as CIFAR's\. ImageNet's ResNet-18.* torchvision does"
    with pytest.raises(ValueError, match=said):
        ResNet(depth)


@pytest.mark.parametrize(("depth", "blocks"), [(50, 8), (152, 25)])
def test_a_depth_that_imagenets_networks_have_too_warns(depth: int, blocks: int) -> None:
    said = rf"ResNet\({depth}\) is .* small pictures.* {blocks} two-layer blocks .* not ImageNet's ResNet-{depth}\."
    with pytest.warns(UserWarning, match=said) as caught:
        net = ResNet(depth, rng=0)
    assert caught[0].filename == __file__  # the line that asked for it
    assert sum(p.ndim == 4 and p.shape[-1] == 3 for p in net.params.values()) + 1 == depth


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_depths_of_the_paper_do_not_warn(depth: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ResNet(depth, rng=0)


def test_the_docstring_says_which_network_it_is_not() -> None:
    assert "not ImageNet's ResNet-18, -34, -50, -101 or -152" in " ".join(ResNet.__doc__.split())
