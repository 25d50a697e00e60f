"""torch.onnx.export of cnnlayers' ops: the answers of ONNX's reference evaluator are the eager ones."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch import nn  # noqa: E402

import cnnlayers.torch as ours  # noqa: E402
from cnnlayers.torch import functional as T  # noqa: E402


class Call(nn.Module):
    """An op of cnnlayers.torch.functional as a module, its tensors after x being buffers."""

    def __init__(self, op, options, tensors):
        super().__init__()
        self.op, self.options, self.names = op, options, list(tensors)
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return getattr(T, self.op)(x, **self.options, **{name: getattr(self, name) for name in self.names})


def exported(model, *inputs, **options):
    return torch.onnx.export(
        model.eval(),
        inputs,
        dynamo=True,
        custom_translation_table=ours.onnx_translations(),
        verbose=False,
        **options,
    ).model_proto


def values(*shape):
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32"))


def check(model, x, proto=None):
    proto = exported(model, x) if proto is None else proto
    onnx.checker.check_model(proto, full_check=True)
    assert all(node.domain == "" for node in proto.graph.node), "standard operators alone"
    (y,) = ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x.numpy()})
    with torch.no_grad():
        want = model(x).numpy()
    assert (y.shape, y.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


PLANE = (2, 4, 7, 8)
LAST = {"data_format": "channels_last"}
WINDOWS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": (2, 3), "stride": 2, "padding": ((1, 0), (0, 2))},
    {"kernel_size": 2, "stride": 1, "dilation": (2, 3), "padding": 1},
    {"kernel_size": 3, "stride": 2, "dilation": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": "same"},
    {"kernel_size": 2, "stride": 1, "padding": "same_lower"},
    {"kernel_size": 3, "padding": "full"},
    {"kernel_size": 2, **LAST},
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    ("op", "more"),
    [
        ("max_pool", {}),
        ("avg_pool", {}),
        ("avg_pool", {"count_include_pad": False}),
        ("avg_pool", {"divisor_override": 3}),
        ("sum_pool", {}),
    ],
)
def test_pools(op, more, window):
    check(Call(op, window | more, {}), values(*PLANE))


@pytest.mark.parametrize("shape", [(2, 3, 9), (1, 2, 4, 5, 6)])
@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_pools_of_other_ranks(op, shape):
    check(Call(op, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, {}), values(*shape))


@pytest.mark.parametrize("size", [1, (7, 4), (1, 2), (None, 1)])
@pytest.mark.parametrize("op", ["adaptive_avg_pool", "adaptive_max_pool"])
def test_adaptive_pools(op, size):
    check(Call(op, {"output_size": size}, {}), values(*PLANE))


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("padding", [1, ((2, 0), (1, 3)), ((-1, 2), (0, -2))])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
def test_pads(mode, padding, data_format):
    options = {"padding": padding, "mode": mode, "data_format": data_format}
    check(Call("pad", options | ({"value": 1.5} if mode == "constant" else {}), {}), values(2, 6, 7, 8))


@pytest.mark.parametrize("more", [{}, LAST], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_norms(affine, more):
    x, channels = (
        values(4, 4, 6, 4),
        4,
    )  # as many samples as channels: the evaluator's LRN stops at the number of samples
    given = {"gamma": values(channels), "beta": values(channels)} if affine else {}
    stats = {"running_mean": values(channels), "running_var": values(channels) ** 2}
    check(Call("batch_norm", more, given | stats), x)
    check(Call("group_norm", {"num_groups": 2} | more, given), x)
    check(Call("instance_norm", more, given), x)
    check(Call("layer_norm", {"normalized_shape": 4}, given), x)
    check(Call("rms_norm", {"normalized_shape": 4}, {k: v for k, v in given.items() if k == "gamma"}), x)
    check(Call("local_response_norm", {"size": 3, "alpha": 0.5} | more, {}), x)


# No groups in conv_transpose: the evaluator computes them wrongly, unless each has one channel and one filter.
@pytest.mark.parametrize(
    ("op", "weight", "options"),
    [
        ("conv", (6, 2, 3, 3), {"groups": 2, "padding": "same", "stride": 2}),
        ("conv", (3, 4, 2, 3), {"padding": ((1, 0), (2, 1)), "dilation": 2}),
        ("conv", (3, 8, 3, 3), {"padding": 1, **LAST}),
        ("conv_transpose", (4, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        ("conv_transpose", (4, 3, 3, 2), {"stride": (2, 1), "padding": ((1, 0), (0, 1))}),
        ("linear", (5, 8), {}),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps(op, weight, options, bias):
    filters = weight[1] * options.get("groups", 1) if op == "conv_transpose" else weight[0]
    check(Call(op, options, {"weight": values(*weight)} | ({"bias": values(filters)} if bias else {})), values(*PLANE))


@pytest.mark.parametrize(
    ("op", "options"),
    [
        *(("relu", {}), ("leaky_relu", {"negative_slope": 0.2}), ("sigmoid", {}), ("tanh", {}), ("softmax", {})),
        *(("softmax", {"axis": -1}), ("gelu", {}), ("gelu", {"approximate": "tanh"})),
    ],
)
def test_activations(op, options):
    check(Call(op, options, {}), values(*PLANE))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.norm = nn.GroupNorm(2, channels)

    def forward(self, x):
        return torch.relu(x + self.norm(self.inner(x)))


def resnet():
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    return nn.Sequential(
        *stem, Block(8), nn.AvgPool2d(2), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def test_a_converted_resnet_whose_batch_is_open():
    model, x = ours.convert(resnet()).eval(), values(2, 3, 14, 14)
    proto = exported(model, x, dynamic_shapes=({0: torch.export.Dim("batch")},))
    check(model, x, proto)
    check(model, values(5, 3, 14, 14), proto)


@pytest.mark.parametrize(
    ("op", "options", "why"),
    [
        ("adaptive_avg_pool", {"output_size": 3}, r"output_size must divide the axes, got \(3, 3\) for \(7, 8\)"),
        ("lp_pool", {"kernel_size": 2, "norm_type": 1.5}, "whole norms, got norm_type=1.5"),
        ("local_response_norm", {"size": 4}, "got size=4"),
        ("batch_norm", {"training": True}, "only evaluation"),
        ("max_pool", {"kernel_size": 2, "return_indices": True}, "no operator with this result"),
    ],
)
def test_what_onnx_has_no_operator_for(op, options, why):
    with pytest.raises(Exception, match=f"cnnlayers.{op}.* cannot be exported to ONNX: .*{why}"):
        exported(Call(op, options, {}), values(*PLANE))


def test_open_spatial_sizes():
    with pytest.raises(Exception, match="only the batch may be left open"):
        exported(
            Call("max_pool", {"kernel_size": 1}, {}), values(*PLANE), dynamic_shapes=({2: torch.export.Dim("height")},)
        )
