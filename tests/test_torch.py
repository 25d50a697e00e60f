"""The functions of cnnlayers.torch and `convert` beside PyTorch: the same answers, less kept, its machinery at work."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import cnnlayers.torch as ours  # noqa: E402
from cnnlayers import functional as F  # noqa: E402
from cnnlayers.torch import convert, functional  # noqa: E402
from cnnlayers.torch.arrays import array_of, tensor_of  # noqa: E402

from .torch_cases import both_ways, each_device, kept, values  # noqa: E402, F401

# ----------------------------------------------------------------------------------------------------------- functions
# op, shapes of its tensors, options
FUNCTIONS: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("max_pool", [(2, 2, 5, 6)], {"kernel_size": 3, "stride": 2, "padding": ((1, 0), (0, 1))}),
    ("max_pool", [(2, 2, 5, 6)], {"kernel_size": 2, "ties": "split", "data_format": "channels_last"}),
    ("avg_pool", [(2, 2, 5, 6)], {"kernel_size": 2, "padding": "same"}),
    ("sum_pool", [(2, 2, 5, 6)], {"kernel_size": 2}),
    ("lp_pool", [(2, 2, 5, 6)], {"kernel_size": 2, "norm_type": 3.0}),
    ("adaptive_avg_pool", [(2, 2, 5, 6)], {"output_size": 3}),
    ("adaptive_max_pool", [(2, 2, 5, 6)], {"output_size": 3}),
    ("pad", [(2, 2, 5, 6)], {"padding": 1, "mode": "symmetric"}),
    ("batch_norm", [(3, 2, 4, 4), (2,), (2,)], {"training": True}),
    ("group_norm", [(2, 4, 3, 3), (), (4,), (4,)], {"num_groups": 2}),
    ("instance_norm", [(2, 2, 4, 4), (2,)], {}),
    ("layer_norm", [(2, 3, 4), (), (4,), (4,)], {"normalized_shape": 4}),
    ("layer_norm", [(2, 3, 4), (), (), (4,)], {"normalized_shape": 4}),  # beta without gamma
    ("batch_norm", [(3, 2, 4), (), (2,)], {"training": True}),
    ("rms_norm", [(2, 3, 4), (), (4,)], {"normalized_shape": 4}),
    ("local_response_norm", [(2, 5, 3)], {"size": 3, "beta": 0.6}),
    ("conv", [(2, 4, 5, 5), (6, 2, 3, 3), (6,)], {"padding": "same", "groups": 2}),
    ("conv_transpose", [(2, 4, 3, 3), (4, 2, 3, 3), (2,)], {"stride": 2, "output_padding": 1}),
    ("linear", [(3, 4), (5, 4), (5,)], {}),
    ("relu", [(3, 4)], {}),
    ("leaky_relu", [(3, 4)], {"negative_slope": 0.2}),
    ("gelu", [(3, 4)], {}),
    ("sigmoid", [(3, 4)], {}),
    ("tanh", [(3, 4)], {}),
    ("softmax", [(3, 4)], {"axis": -1}),
    ("mse_loss", [(3, 4), (3, 4)], {}),
    ("dropout", [(3, 4)], {"p": 0.4, "training": True, "rng": 3}),
]


def test_every_op_is_there():
    trios = {name.removesuffix("_forward") for name in dir(F) if name.endswith("_forward")}
    assert {name for name in trios if callable(getattr(functional, name, None))} == trios
    used = {op for op, *_ in FUNCTIONS}
    assert trios - used == {"max_unpool", "softmax_cross_entropy"}  # which have tests of their own


@pytest.mark.parametrize(("op", "shapes", "options"), FUNCTIONS, ids=[f"{i}-{c[0]}" for i, c in enumerate(FUNCTIONS)])
def test_gradcheck_and_no_second_derivative(op, shapes, options):
    names = list(inspect.signature(getattr(F, op)).parameters)[: len(shapes)]
    given = {n: values(*s, dtype=torch.float64).requires_grad_() for n, s in zip(names, shapes, strict=True) if s}

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        return getattr(functional, op)(**dict(zip(given, tensors, strict=True)), **options)

    tensors = tuple(given.values())
    assert torch.autograd.gradcheck(call, tensors)
    (dx,) = torch.autograd.grad(call(*tensors).square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op} of cnnlayers.torch has no second derivative"):
        dx.square().sum().backward()


def test_the_loss_and_a_bad_label():
    x, labels = values(4, 5).requires_grad_(), torch.tensor([0, 4, 2, 2])
    loss, expected = functional.softmax_cross_entropy(x, labels), nn.functional.cross_entropy(x, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (loss, expected)))
    if x.device.type == "cpu":
        with pytest.raises(ValueError, match="labels"):
            functional.softmax_cross_entropy(x, labels + 3)


@pytest.mark.parametrize("options", [{}, {"training": True, "p": 0.0}], ids=str)
def test_a_dropout_that_drops_nothing_gives_x_itself(options):
    x = values(3, 4).requires_grad_()
    y = x * 1.0
    assert functional.dropout(y, **options) is y
    (dx,) = torch.autograd.grad(nn.functional.relu_(functional.dropout(y, **options)).sum(), x)
    assert torch.equal(dx, (x > 0).to(x.dtype))
    with torch.no_grad():
        assert functional.dropout(y, **options) is y
    with pytest.raises(ValueError, match="p must be a probability"):
        functional.dropout(y, p=2.0)


def test_a_tensor_that_is_negated_by_a_mark_alone():
    real = values(2, 3, 4, 4)
    x = torch.complex(real, -real).conj().imag.requires_grad_()  # real, but its memory holds -real
    assert x.is_neg()
    y = functional.max_pool(x, 2)
    assert torch.equal(y, nn.functional.max_pool2d(real, 2))
    (dx,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad(nn.functional.max_pool2d(x, 2).sum(), x)
    assert torch.equal(dx, wanted)
    w = torch.complex(real[:, :, :3, :3], -real[:, :, :3, :3]).conj().imag.requires_grad_()
    (dw,) = torch.autograd.grad(functional.conv(x, w).sum(), w)
    (wanted,) = torch.autograd.grad(nn.functional.conv2d(x, w).sum(), w)
    torch.testing.assert_close(dw, wanted, rtol=1e-4, atol=1e-5)


def test_nothing_is_saved_where_no_gradient_is_wanted(monkeypatch):
    monkeypatch.setattr(F, "max_pool_forward", None)
    x = values(1, 1, 4, 4)
    assert functional.max_pool(x, 2).shape == (1, 1, 2, 2)
    with torch.no_grad():
        assert not functional.max_pool(x.requires_grad_(), 2).requires_grad
    with pytest.raises(TypeError):
        functional.max_pool(x, 2)


def test_nothing_is_copied_on_the_way():
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.int64):
        x = torch.ones(4, 6, device="cpu", dtype=dtype)
        array = array_of(x.T)
        assert array.__array_interface__["data"][0] == x.data_ptr()
        assert tensor_of(array).data_ptr() == x.data_ptr()
        assert tensor_of(array).dtype == dtype


def test_arguments_that_are_no_tensors_here_are_refused(device):
    for module in (ours.MaxPool2d(2), ours.ZeroPad2d(1), ours.GroupNorm(1, 3)):
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
            module([1.0])
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got ndarray"):
        functional.relu(np.ones(3))
    with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor, got list"):
        functional.linear(values(2, 3), [[1.0]])
    with pytest.raises(TypeError, match="dense, on the CPU or a CUDA device"):
        functional.relu(torch.eye(3).to_sparse())


# --------------------------------------------------------------------------------------------- PyTorch's own machinery
def test_max_pool_keeps_a_byte_an_output_and_not_x():
    x = values(4, 8, 16, 16).requires_grad_()
    outputs = 4 * 8 * 8 * 8
    assert kept(lambda: ours.MaxPool2d(2)(x)) == outputs
    assert kept(lambda: nn.MaxPool2d(2)(x)) >= 8 * outputs


def test_a_change_in_place_of_what_backward_needs_is_noticed():
    x = values(2, 3, 4, 4).requires_grad_()
    hidden = x * 1
    y = ours.GroupNorm(1, 3)(hidden)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    labels = torch.tensor([0, 2])
    loss = functional.softmax_cross_entropy(values(2, 3).requires_grad_(), labels)
    labels.fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_is_pytorchs_own_error_and_retain_graph_works():
    x = values(2, 3, 4, 4).requires_grad_()
    y = ours.BatchNorm2d(3)(x).square().sum()
    (first,), (second,) = (torch.autograd.grad(y, x, retain_graph=keep) for keep in (True, False))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x)


def test_checkpoints_and_compiled_models_run():
    from torch.utils.checkpoint import checkpoint

    model = nn.Sequential(ours.GroupNorm(1, 3), nn.ReLU(), ours.MaxPool2d(2))
    x = values(2, 3, 4, 4)
    expected = both_ways(model, x)
    for run in (lambda x: checkpoint(model, x, use_reentrant=False), torch.compile(model, backend="eager")):
        t = x.clone().requires_grad_()
        y = run(t)
        y.backward((torch.arange(y.numel()) % 17 / 8 - 1).reshape(y.shape))
        torch.testing.assert_close([y, t.grad], expected[:2])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("rng", [None, 3])
def test_a_checkpoint_repeats_dropouts_draw(reentrant, rng):
    from torch.utils.checkpoint import checkpoint

    def run(x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, 0.5, training=True, rng=rng)

    for _ in range(3):
        x = torch.ones(64, 64).requires_grad_()
        y = checkpoint(run, x, use_reentrant=reentrant)
        y.sum().backward()
        assert torch.equal(x.grad, y.detach())  # 2 where x was kept, 0 where it was dropped
        assert 0.4 < float((y > 0).float().mean()) < 0.6


def test_dropout_draws_from_pytorchs_generator():
    x = torch.ones(32, 32)

    def draw(rng: Any = None) -> torch.Tensor:
        return functional.dropout(x, 0.5, training=True, rng=rng)

    torch.manual_seed(4)
    first, second = draw(), draw()
    torch.manual_seed(4)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)
    assert torch.equal(draw(7), draw(7))
    own = torch.Generator(x.device)
    of_generator = [draw(own.manual_seed(2)), draw(own), draw(own.manual_seed(2))]
    assert torch.equal(of_generator[0], of_generator[2])
    assert not torch.equal(of_generator[0], of_generator[1])
    for rng in (np.random.default_rng(0), 1.5, True):
        with pytest.raises(TypeError, match=r"rng must be a seed, a torch\.Generator or None"):
            draw(rng)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_and_scripting_are_refused_by_name():
    x = values(1, 1, 8, 8)
    for model in (convert(network()).eval(), ours.MaxPool2d(2), nn.Sequential(nn.Sequential(ours.GroupNorm(1, 1)))):
        with pytest.raises(
            RuntimeError, match=r"torch\.jit\.trace cannot record \w+ of cnnlayers\.torch: trace the model"
        ):
            torch.jit.trace(model, x)
        with pytest.raises(
            RuntimeError, match=r"torch\.jit\.script cannot compile \w+ of cnnlayers\.torch: script the"
        ):
            torch.jit.script(model)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record max_pool of cnnlayers\.torch"):
        torch.jit.trace(lambda x: functional.max_pool(x, 2), x)


def test_autocast(device):
    x, weight = values(2, 3, 6, 6).requires_grad_(), values(4, 3, 3, 3).requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        y = functional.conv(x, weight)
        normal = ours.BatchNorm2d(4)(y)
        pooled = ours.MaxPool2d(2)(normal)
        loss = functional.softmax_cross_entropy(
            functional.linear(pooled.flatten(1), values(5, 16)), torch.tensor([1, 4])
        )
    assert {y.dtype, normal.dtype, pooled.dtype} == {torch.bfloat16}
    assert loss.dtype == torch.float32
    loss.backward()
    assert (x.grad.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        expected = nn.functional.conv2d(x, weight)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


# ------------------------------------------------------------------------------------------------------------- convert
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ReflectionPad2d(1),
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def trained(model: nn.Module, steps: int = 15) -> list[float]:
    """The losses of a few steps."""
    x, labels = values(32, 1, 8, 8), torch.arange(32) % 10
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        sgd.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        sgd.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_converted_model_trains_to_the_same_loss_and_keeps_less():
    model = network()
    converted = convert(model)
    x = values(32, 1, 8, 8)
    assert kept(lambda: converted(x)) < kept(lambda: model(x))
    model, converted = network(), convert(network())
    theirs, mine = trained(model), trained(converted)
    assert mine[-1] < mine[0] / 2
    np.testing.assert_allclose(mine, theirs, rtol=1e-3)
    assert mine == trained(convert(network()))  # to the last bit
    assert list(converted.state_dict()) == list(model.state_dict())
    model.load_state_dict(converted.state_dict())
    torch.testing.assert_close(model.eval()(x), converted.eval()(x), rtol=1e-4, atol=1e-4)


def test_convert_leaves_the_original_alone_unless_told():
    class Mine(nn.MaxPool2d):
        pass

    model = nn.Sequential(
        nn.MaxPool2d(2),
        nn.Sequential(nn.BatchNorm2d(3), Mine(2)),
        nn.AdaptiveMaxPool2d(2, return_indices=True),
        nn.InstanceNorm2d(3, track_running_stats=True),
    )
    kinds = [type(m) for m in model.modules()]
    converted = convert(model)
    assert [type(m) for m in model.modules()] == kinds
    changed = {i: type(m) for i, m in enumerate(converted.modules()) if type(m) is not kinds[i]}
    assert changed == {1: ours.MaxPool2d, 3: ours.BatchNorm2d}
    assert converted[1][0].weight is not model[1][0].weight
    assert convert(model, inplace=True) is model
    assert isinstance(model[0], ours.MaxPool2d)
    assert type(convert(nn.MaxPool2d(2))) is ours.MaxPool2d
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, got function"):
        convert(network)
