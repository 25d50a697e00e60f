"""PyTorch's machinery on a converted model, a small one of ResNet-18's kind: each gives what eager PyTorch gives."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import cnnlayers.torch as ours  # noqa: E402
from cnnlayers.torch import convert, functional, revert  # noqa: E402

from .torch_cases import both_ways, each_device, kept, values  # noqa: E402, F401

# PyTorch's own, of its own functions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(inplace=True),
            nn.Conv2d(filters, filters, 3, 1, 1, bias=False),
            nn.BatchNorm2d(filters),
        )
        shortcut = [nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)]
        self.shortcut = nn.Sequential(*shortcut) if stride != 1 or channels != filters else nn.Identity()

    def forward(self, x: Any) -> Any:
        return torch.relu(self.main(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18's stem, two of its stages, its head, few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.stages = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        return self.fc(torch.flatten(self.pool(self.stages(self.stem(x))), 1))


def model(training: bool = False) -> tuple[nn.Module, nn.Module, Any]:
    """PyTorch's own, the converted one, and pictures."""
    torch.manual_seed(0)
    theirs = ResNet().train(training)
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
    return theirs, convert(theirs), values(4, 3, 32, 32)


def gradients(run: Callable[[Any], Any], of: nn.Module, x: Any) -> list[Any]:
    """y, the gradients of the parameters, and the buffers afterwards."""
    of.zero_grad()
    y = run(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in of.parameters()), *of.buffers()]


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


LACKING = None if shutil.which("g++") else "inductor needs g++, and there is none"
INDUCTOR = pytest.param("inductor", True, marks=pytest.mark.skipif(LACKING is not None, reason=str(LACKING)))


@pytest.mark.parametrize(("backend", "training"), [("aot_eager", True), ("aot_eager", False), INDUCTOR])
def test_torch_compile(backend, training):
    torch.compiler.reset()
    theirs, mine, x = model(training)
    compiled = torch.compile(mine, fullgraph=True, backend=backend)
    same(gradients(compiled, mine, x), gradients(theirs, theirs, x))
    with torch.no_grad():
        same(compiled(x), theirs(x))


def test_torch_compile_for_any_batch_size():
    torch.compiler.reset()
    theirs, mine, x = model()
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 3, 2):
        same(gradients(compiled, mine, x[:n]), gradients(theirs, theirs, x[:n]))


def test_every_module_compiles_without_a_break():
    """The others than ResNet's; each in one graph, in training too."""
    for name, args, shape in [
        ("GroupNorm", (2, 4), (2, 4, 3, 3)),
        ("GroupNorm", (2, 2), (2, 2)),
        ("GroupNorm", (2, 4), (2, 4, 2, 2, 2, 2)),
        ("InstanceNorm1d", (3, 1e-5, 0.1, True), (2, 3, 5)),
        ("LayerNorm", (5,), (2, 3, 5)),
        ("RMSNorm", (5,), (2, 3, 5)),
        ("LocalResponseNorm", (3,), (2, 4, 5)),
        ("AvgPool1d", (2,), (2, 3, 5)),
        ("MaxPool3d", (2,), (3, 4, 4, 4)),
        ("AdaptiveMaxPool2d", (2,), (2, 3, 5, 6)),
        ("AdaptiveAvgPool2d", ((2, None),), (2, 3, 5, 6)),
        ("ReflectionPad2d", (1,), (2, 3, 5, 6)),
        ("ConstantPad1d", (1, 0.5), (2, 3, 5)),
        ("CircularPad2d", (1,), (3, 5, 6)),
    ]:
        if not hasattr(nn, name):
            continue
        torch.compiler.reset()
        theirs, x = getattr(nn, name)(*args), values(*shape)
        mine = convert(theirs)
        compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
        same(both_ways(compiled, x), both_ways(theirs, x))


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export(strict):
    theirs, mine, x = model()
    exported = torch.export.export(mine, (x,), strict=strict)
    targets = {str(node.target) for node in exported.graph.nodes}
    assert {"cnnlayers.max_pool.default", "cnnlayers.adaptive_avg_pool.default"} <= targets
    same(exported.module()(x), theirs(x))
    same(exported.run_decompositions().module()(x), theirs(x))
    stream = io.BytesIO()
    torch.export.save(exported, stream)
    stream.seek(0)
    same(torch.export.load(stream).module()(x), theirs(x))


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export_of_training_updates_the_running_statistics_after_loading_too(strict):
    theirs, mine, x = model(training=True)
    stream = io.BytesIO()
    torch.export.save(torch.export.export(mine, (x,), strict=strict), stream)
    stream.seek(0)
    loaded = torch.export.load(stream).module()
    same(loaded(x), theirs(x))
    same(loaded(2 * x), theirs(2 * x))
    expected = dict(theirs.named_buffers())
    assert expected
    for name, found in loaded.named_buffers():
        same(found, expected[name])


def test_torch_export_for_any_batch_and_picture_size():
    theirs, mine, x = model()
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(mine, (x,), dynamic_shapes=({0: torch.export.Dim("batch"), 2: auto, 3: auto},))
    for other in (x, x[:3, :, 1:, :30]):
        same(exported.module()(other), theirs(other))


@pytest.mark.parametrize("training", [True, False])
def test_torch_fx(training):
    theirs, mine, x = model(training)
    traced = torch.fx.symbolic_trace(mine)
    assert isinstance(traced.get_submodule("stem.3"), ours.MaxPool2d)
    same(gradients(traced, traced, x), gradients(theirs, theirs, x))
    function = torch.fx.symbolic_trace(lambda x, w: functional.relu(functional.conv(x, w, padding="same")))
    assert {str(n.name) for n in function.graph.nodes} >= {"conv", "relu"}
    w = values(4, 3, 3, 3)
    same(function(x, w), nn.functional.conv2d(x, w, padding="same").relu())


def test_meta_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    _, mine, x = model(training=True)
    y = copy.deepcopy(mine).to("meta")(x.to("meta"))
    assert (y.is_meta, y.shape, y.dtype) == (True, (4, 10), x.dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = mine(mode.from_tensor(x))
    assert y.shape == (4, 10)


def test_vmap_and_gradients_a_sample():
    theirs, mine, x = model()
    labels = torch.tensor([1, 0, 9, 5])
    same(torch.vmap(lambda x: mine(x[None])[0])(x), theirs(x))

    def loss(of: nn.Module) -> Callable[..., Any]:
        state = dict(of.named_buffers())

        def run(parameters: Any, x: Any, label: Any) -> Any:
            scores = torch.func.functional_call(of, (parameters, state), (x[None],))
            return nn.functional.cross_entropy(scores, label[None])

        return run

    parameters = {name: p.detach() for name, p in mine.named_parameters()}
    found, expected = (
        torch.vmap(torch.func.grad(loss(m)), in_dims=(None, 0, 0))(parameters, x, labels) for m in (mine, theirs)
    )
    same(found, expected)
    rows = [torch.autograd.functional.jacobian(m, x[:1]) for m in (mine, theirs)]
    same(*rows)
    y = mine(x)
    many = torch.autograd.grad(y, list(mine.parameters()), torch.stack([y, -y]).detach(), is_grads_batched=True)
    same([g[0] for g in many], [-g[1] for g in many])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    from torch.utils.checkpoint import checkpoint

    def run(of: nn.Module, x: Any) -> Any:
        y = of.stem(x)
        for stage in of.stages:
            y = checkpoint(
                lambda y, stage=stage: functional.dropout(stage(y), 0.3, training=True, rng=4),
                y,
                use_reentrant=reentrant,
            )
        return of.fc(of.pool(y).flatten(1))

    theirs, mine, x = model()
    same(gradients(lambda x: run(mine, x), mine, x), gradients(lambda x: run(theirs, x), theirs, x))


def test_hooks():
    theirs, mine, x = model()
    seen: dict[str, list[Any]] = {"mine": [], "theirs": []}
    for name, of in (("mine", mine), ("theirs", theirs)):
        of.stem[3].register_forward_hook(lambda m, args, y, name=name: seen[name].append(y.detach()))
        of.stem[1].register_full_backward_hook(lambda m, dx, dy, name=name: seen[name].extend([*dx, *dy]))
        of.stem[1].weight.register_hook(lambda g, name=name: seen[name].append(g))
        gradients(of, of, x)
    assert len(seen["mine"]) == 4
    same(seen["mine"], seen["theirs"])


@contextlib.contextmanager
def process_group(path: Any) -> Iterator[None]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    theirs, mine, x = model(training=True)
    with process_group(tmp_path):
        parallel = nn.parallel.DistributedDataParallel(mine)
        same(gradients(parallel, mine, x), gradients(theirs, theirs, x))


def test_autocast_and_gradient_scaling(device):
    theirs, mine, x = model(training=True)
    found = []
    for of in (theirs, mine):
        sgd, scaler = torch.optim.SGD(of.parameters(), 0.01), torch.amp.GradScaler(device)
        with torch.autocast(device, torch.bfloat16):
            y = of(x)
            loss = nn.functional.cross_entropy(y, torch.tensor([1, 0, 9, 5]))
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()
        found.append([y.detach(), loss.detach(), *(p.detach() for p in of.parameters())])
    assert [a.dtype for a in found[1]] == [a.dtype for a in found[0]]
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.05)


def test_copies_and_pickles():
    _, mine, x = model()
    for again in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert isinstance(again.stem[3], ours.MaxPool2d)
        same(again(x), mine(x))


def test_revert_undoes_convert():
    theirs, mine, x = model(training=True)
    kinds = [type(m) for m in theirs.modules()]
    back = revert(mine)
    assert [type(m) for m in back.modules()] == kinds != [type(m) for m in mine.modules()]
    same(gradients(back, back, x), gradients(theirs, theirs, x))
    assert revert(mine, inplace=True) is mine
    assert [type(m) for m in mine.modules()] == kinds

    class Own(ours.MaxPool2d):
        pass

    assert type(revert(Own(2))) is Own
    assert type(revert(ours.MaxPool2d(2))) is nn.MaxPool2d
    with pytest.raises(TypeError, match=r"revert needs a torch\.nn\.Module, got int"):
        revert(3)


def test_a_compiled_graph_saves_a_byte_an_output_of_max_pooling():
    torch.compiler.reset()
    x = values(4, 8, 16, 16).requires_grad_()
    compiled = torch.compile(ours.MaxPool2d(2), fullgraph=True, backend="aot_eager")
    compiled(x)
    assert kept(lambda: compiled(x)) == 4 * 8 * 8 * 8


def test_dropout_compiles_and_is_seeded():
    torch.compiler.reset()
    x = torch.ones(64, 64).requires_grad_()
    compiled = torch.compile(lambda x: functional.dropout(x, 0.5, training=True), fullgraph=True, backend="aot_eager")
    y = compiled(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(compiled(x).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_communicator_joins_the_statistics():
    class Two:
        """Two ranks with the same data."""

        def allreduce(self, array: Any) -> Any:
            return array * 2

    x, alone = values(3, 2, 4, 4).requires_grad_(), values(3, 2, 4, 4).requires_grad_()
    comm, running = Two(), [torch.zeros(2), torch.ones(2)]
    y = functional.batch_norm(x, running_mean=running[0], running_var=running[1], training=True, comm=comm)
    expected = functional.batch_norm(torch.cat([alone, alone]), training=True)[:3]
    same(y, expected)
    (y**3).sum().backward()
    (functional.batch_norm(torch.cat([alone, alone]), training=True) ** 3).sum().backward()
    same(x.grad, alone.grad / 2)
    unbiased = torch.cat([alone, alone]).detach().var((0, 2, 3))
    same(running[1], 0.9 + 0.1 * unbiased)
    with pytest.raises(TypeError, match="comm must have an allreduce"):
        functional.batch_norm(x, training=True, comm=3)
