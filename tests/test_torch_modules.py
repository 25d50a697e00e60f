"""The modules of cnnlayers.torch beside torch.nn's: what PyTorch's module computes, the converted one computes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import cnnlayers.torch as ours  # noqa: E402

from . import torch_random  # noqa: E402
from .torch_cases import CASES, LOOSE, both_ways, each_device, pair, values  # noqa: E402, F401

BY_CASE = pytest.mark.parametrize(
    ("name", "args", "options", "shape"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)


@BY_CASE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_module_gives_pytorchs_answers(name, args, options, shape, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32  # parameters, and the half types' oracle
    theirs, mine = (module.to(wide) for module in pair(name, args, options))
    assert repr(theirs) == repr(mine)
    assert isinstance(mine, type(theirs))
    x = values(*shape, dtype=dtype)
    for training in (True, False):
        expected = both_ways(theirs.train(training), x.to(wide))
        found = both_ways(mine.train(training), x)
        assert (found[0].dtype, found[1].dtype) == (dtype, dtype)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.to(wide), b, rtol=LOOSE[dtype], atol=4 * LOOSE[dtype])
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for key, state in mine.state_dict().items():
        torch.testing.assert_close(state, theirs.state_dict()[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [("MaxPool2d", (2,), (3, 8, 8)), ("ReflectionPad1d", (2,), (3, 8)), ("InstanceNorm3d", (3,), (3, 2, 4, 4))],
)
def test_a_single_image_without_the_batchs_axis(name, args, shape):
    for a, b in zip(*(both_ways(m, values(*shape)) for m in pair(name, args, {})), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [
        ("MaxPool1d", (2,), (2, 3, 8, 8)),
        ("MaxPool2d", (2,), (2, 3, 4, 8, 8)),
        ("AvgPool3d", (2,), (2, 3, 8)),
        ("AdaptiveMaxPool2d", (1,), (2, 3, 4, 8, 8)),
        ("InstanceNorm1d", (3,), (2, 3, 8, 8)),
        ("ReflectionPad2d", (1,), (8, 8)),
        ("ConstantPad2d", (1, 0.0), (8,)),
    ],
)
def test_an_image_of_other_axes_is_refused(name, args, shape):
    theirs, mine = pair(name, args, {})
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        theirs(values(*shape))
    with pytest.raises(ValueError, match=rf"^{name} needs .* axes.*, got shape \({shape[0]},"):
        mine(values(*shape))


@pytest.mark.parametrize(
    "name", ["MaxPool2d", "ZeroPad2d", "BatchNorm2d", "GroupNorm", "LayerNorm", "LocalResponseNorm"]
)
def test_the_input_may_be_given_by_its_name(name):
    args = {"BatchNorm2d": (3,), "GroupNorm": (1, 3), "LayerNorm": (4,)}.get(name, (2,))
    x = values(2, 3, 4, 4)
    theirs, mine = pair(name, args, {})
    torch.testing.assert_close(mine(input=x), theirs(input=x))


def test_indices_and_unpooling():
    x = values(2, 3, 8, 9)
    for memory in (torch.contiguous_format, torch.channels_last):
        y, indices = ours.MaxPool2d(2, return_indices=True)(x.contiguous(memory_format=memory).requires_grad_())
        expected, places = nn.MaxPool2d(2, return_indices=True)(x)
        assert torch.equal(indices, places)
        assert y.requires_grad
        assert not indices.requires_grad
        wide, theirs = ours.MaxUnpool2d(2)(y, indices, x.shape), nn.MaxUnpool2d(2)(expected, places, x.shape)
        torch.testing.assert_close(wide, theirs)
        assert wide.is_contiguous(memory_format=memory)


@pytest.mark.parametrize(("name", "args"), [("MaxPool2d", (3, 2, 1)), ("BatchNorm2d", (4,)), ("ReflectionPad2d", (1,))])
def test_channels_last_stays_so(name, args):
    theirs, mine = pair(name, args, {})
    x = values(2, 4, 8, 9).contiguous(memory_format=torch.channels_last)
    for i, (a, b) in enumerate(zip(both_ways(mine, x), both_ways(theirs, x), strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        if i < 2:  # y and dx
            assert a.is_contiguous(memory_format=torch.channels_last)


def test_modules_save_load_and_copy():
    module = ours.BatchNorm2d(3)
    module(values(2, 3, 4, 4))
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert type(again) is type(copy.deepcopy(module)) is ours.BatchNorm2d
    assert torch.equal(again.running_mean, module.running_mean)
    assert int(again.num_batches_tracked) == 1


def test_a_batch_that_is_refused_is_not_counted():
    module = ours.BatchNorm2d(3, momentum=None)
    with pytest.raises(ValueError, match="more than one value per channel"):
        module(values(1, 3, 1, 1))
    assert int(module.num_batches_tracked) == 0


def test_what_a_module_has_no_counterpart_for_is_refused():
    with pytest.raises(ValueError, match="no return_indices"):
        ours.AdaptiveMaxPool2d(2, return_indices=True)(values(1, 1, 4, 4))
    with pytest.raises(ValueError, match="no running statistics"):
        ours.InstanceNorm2d(3, track_running_stats=True)(values(1, 3, 4, 4))
    with pytest.raises(AttributeError, match="Conv2d"):
        _ = ours.Conv2d


# ------------------------------------------------------------------------------------------- whatever PyTorch computes
DTYPES = [torch.float32] * 4 + [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.complex64]
RANDOM = [name for name in ours.MODULES if not name.startswith("MaxUnpool")]


def input_of(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> torch.Tensor:
    x = values(*shape) * 9
    memory = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))
    return x.to(dtype).contiguous(memory_format=memory if memory and last else torch.contiguous_format)


def computed(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """All that comes of a call: outputs, gradients where there are any, buffers."""
    gradients = x.dtype.is_floating_point or x.dtype.is_complex
    x = x.detach().clone().requires_grad_(gradients)
    y = module(x)
    found = list(y) if isinstance(y, tuple) else [y]
    if found[0].requires_grad:
        dy = (torch.arange(found[0].numel()) % 17 / 8 - 1).reshape(found[0].shape).to(found[0].dtype)
        wanted = [x, *module.parameters()]
        found += torch.autograd.grad(found[0], wanted, dy, allow_unused=True, materialize_grads=True)
    return found + list(module.buffers())


def check_against_pytorch(theirs: nn.Module, x: torch.Tensor) -> bool:
    """Whether PyTorch's module computes x; the converted one must give the same then."""
    mine, wide = ours.convert(theirs), copy.deepcopy(theirs)
    try:
        expected = computed(theirs, x)
    except Exception:  # whatever PyTorch says of what it does not compute
        return False
    found = computed(mine, x)
    assert [a.dtype for a in found] == [a.dtype for a in expected]
    assert [a.shape for a in found] == [a.shape for a in expected]
    half = x.dtype in (torch.float16, torch.bfloat16)
    if half:  # PyTorch rounds on the way
        expected = computed(wide.float(), x.float())
    loose = LOOSE.get(x.dtype, 1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, rtol=4 * loose, atol=8 * loose, equal_nan=True)
    return True


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.filterwarnings("ignore")
def test_random_arguments_and_inputs(name):
    if not hasattr(nn, name):
        pytest.skip(f"this PyTorch has no {name}")
    axes = int(name[-2]) if name.endswith("d") else 0
    root, draw, computes = name[:-2] if axes else name, torch_random.Draw(5), 0
    for _ in range(60):
        args, options, shape = getattr(draw, root)(axes)
        dtype, training, last = draw.of(*DTYPES), draw.of(True, False), draw.of(True, False)
        try:
            module = getattr(nn, name)(*args, **options).train(training)
        except (ValueError, TypeError):
            continue
        for p in module.parameters():
            nn.init.uniform_(p, 0.5, 1.5)
        if dtype == torch.float64 or (dtype in (torch.float16, torch.bfloat16) and draw.of(True, False)):
            module = module.to(dtype)
        computes += check_against_pytorch(module, input_of(shape, dtype, last))
    assert computes >= 5


COMPUTED: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...], Any]] = [
    ("GroupNorm", (3, 3), {}, (2, 3), torch.float32),  # one value a group
    ("GroupNorm", (4, 4), {}, (3, 4, 1, 1), torch.float16),
    ("GroupNorm", (2, 4), {}, (2, 4, 2, 3, 2, 3), torch.float32),  # four spatial axes
    ("GroupNorm", (2, 2), {}, (2, 2, 1, 1, 1, 1, 1), torch.float32),
    ("LocalResponseNorm", (3,), {}, (2, 4, 2, 3, 2, 3), torch.float32),
    ("BatchNorm2d", (3,), {"track_running_stats": True}, (1, 3, 1, 1), torch.float32),  # evaluation alone
    ("LayerNorm", (2,), {}, (2, 3, 2, 2, 2, 2, 2), torch.float32),
    ("LayerNorm", (3,), {"eps": -1e-9}, (2, 3), torch.float32),
    ("AvgPool2d", (3,), {"stride": 2}, (2, 3, 7, 7), torch.int64),
    ("MaxPool1d", (4,), {"ceil_mode": True}, (2, 3, 3), torch.float32),
    ("MaxPool2d", ((3,),), {"stride": (2,), "padding": (1,)}, (2, 3, 7, 8), torch.float32),
    ("AdaptiveAvgPool1d", (1,), {}, (2, 3, 0), torch.float32),
    ("ConstantPad1d", (1, 1.5), {}, (2, 3, 4), torch.int64),
    ("ConstantPad2d", (1, None), {}, (2, 3, 4, 4), torch.float32),
    ("CircularPad1d", (1,), {}, (2, 3, 4), torch.complex64),
    ("ReplicationPad3d", ((-1, -1, 1, -2, 3, 2),), {}, (4, 4, 1, 7), torch.float32),
]


@pytest.mark.parametrize(("name", "args", "options", "shape", "dtype"), COMPUTED)
def test_what_this_librarys_op_alone_would_refuse(name, args, options, shape, dtype):
    module = getattr(nn, name)(*args, **options).eval()
    assert check_against_pytorch(module, input_of(shape, dtype, last=False))


def test_one_value_a_group_gives_beta_and_spreads_nan():
    module = nn.GroupNorm(2, 2)
    nn.init.uniform_(module.bias, 1, 2)
    x = torch.tensor([[3.0, -5.0], [float("nan"), 7.0]])
    y = ours.convert(module)(x)
    torch.testing.assert_close(y[0], module.bias.detach(), rtol=0, atol=1e-3)
    assert y.isnan().tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 0.01, 1e-4])
def test_rms_norm_takes_the_epsilon_of_what_it_computes_in(dtype, eps, scale):
    if not hasattr(nn, "RMSNorm"):
        pytest.skip("this PyTorch has no RMSNorm")
    x = (values(4, 16) * scale).to(dtype)
    theirs = nn.RMSNorm(16, eps=eps)
    nn.init.uniform_(theirs.weight, 0.5, 1.5)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    small = eps or (2.0**-52 if wide == torch.float64 else 2.0**-23)
    expected = torch.nn.functional.rms_norm(x.to(wide), (16,), theirs.weight.to(wide), small)
    for module in (ours.convert(theirs), ours.convert(theirs.to(dtype))):
        y = module(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.to(wide), expected, rtol=4 * LOOSE[dtype], atol=LOOSE[dtype])
    plain = torch.nn.functional.rms_norm(x.to(wide), (16,), None, small)
    torch.testing.assert_close(
        ours.functional.rms_norm(x, 16, eps=eps).to(wide), plain, rtol=4 * LOOSE[dtype], atol=LOOSE[dtype]
    )


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch's RMSNorm, once a process
@pytest.mark.parametrize(("name", "args", "options", "shape"), CASES, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_module_in_an_autocast_region_gives_pytorchs_dtype_and_values(name, args, options, shape, dtype, device):
    theirs, mine = pair(name, args, options)
    x = values(*shape, dtype=dtype)
    with torch.autocast(device, torch.bfloat16):
        expected, found = theirs(x), mine(x)
    assert found.dtype == expected.dtype
    loose = max(LOOSE[found.dtype], LOOSE[dtype])
    torch.testing.assert_close(found, expected, rtol=4 * loose, atol=8 * loose)
