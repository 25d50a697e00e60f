"""ONNX's ops in the words of `cnnlayers.functional`: one small function an op, from its attributes to our options.

Where the two differ:
- ONNX counts a pool's indices over the whole tensor, we over each spatial plane; storage_order=1 counts columns first.
- ONNX's pools have stride 1 by default, and its averages leave the padding out.
- ONNX's momentum is the weight of the old running statistic, ours of the new one; ONNX stores the biased variance.
- ONNX pads any axis, we pad spatial ones: no published case pads the batch or the channels.
- ONNX's transposed convolution takes an output shape, we take the padding that leads to it.
- LayerNormalization also gives the mean and the inverse deviation, our layer_norm does not (OUTPUTS_NOT_GIVEN).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnlayers import functional as F

from .onnx_cases import Case, Node

if TYPE_CHECKING:
    from ..implementations import Impl

Arrays = tuple[np.ndarray | None, ...]
AUTO_PAD = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}
DEFAULT_EPSILON = 1e-5

# Outputs that the contract's ops do not give: the adapter answers None for them, and nothing is compared.
OUTPUTS_NOT_GIVEN = {
    "Mean": "layer_norm gives y; the statistics stay in its context, which is opaque",
    "InvStdDev": "layer_norm gives y; the statistics stay in its context, which is opaque",
}


@dataclass(frozen=True)
class Runner:
    """Calls ops on one implementation, in one data format, by the inference or the training form; NumPy in and out."""

    impl: Impl
    data_format: str
    training: bool

    def call(self, op: str, *args: Any, **options: Any) -> Any:
        """F.op or F.op_forward on copies of the arrays in `args`, and on `options` as they are."""
        given = [self.impl.array(a) if isinstance(a, np.ndarray) else a for a in args]
        y = getattr(F, f"{op}_forward")(*given, **options)[0] if self.training else getattr(F, op)(*given, **options)
        return tuple(map(self.impl.numpy, y)) if isinstance(y, tuple) else self.impl.numpy(y)

    def spatial(self, op: str, x: np.ndarray, *args: Any, **options: Any) -> Any:
        """The same for an op with a data format: x goes in, and what comes out is put back, channels first."""
        y = self.call(op, self.laid_out(x), *args, data_format=self.data_format, **options)
        if self.data_format == "channels_first":
            return y
        return tuple(np.moveaxis(a, -1, 1) for a in y) if isinstance(y, tuple) else np.moveaxis(y, -1, 1)

    def laid_out(self, x: np.ndarray) -> np.ndarray:
        """A channels-first array in the data format of this runner."""
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if self.data_format == "channels_last" else x


def pairs(pads: Any) -> tuple[tuple[int, int], ...]:
    """ONNX's (all befores, all afters) as a (before, after) pair per axis."""
    half = len(pads) // 2
    return tuple((int(before), int(after)) for before, after in zip(pads[:half], pads[half:], strict=True))


def window_options(node: Node, ndim: int) -> dict[str, Any]:
    """Stride, padding and dilation of a pool or a convolution."""
    auto = node.get("auto_pad", "NOTSET")
    padding = pairs(node.get("pads", [0] * (2 * ndim))) if auto == "NOTSET" else AUTO_PAD[auto]
    return {"stride": node.get("strides", 1), "padding": padding, "dilation": node.get("dilations", 1)}


def pool_options(node: Node, x: np.ndarray) -> dict[str, Any]:
    ceil_mode = bool(node.get("ceil_mode", 0))
    return {"kernel_size": node.get("kernel_shape"), "ceil_mode": ceil_mode, **window_options(node, x.ndim - 2)}


# ---------------------------------------------------------------------------------------------------- pools and padding
def max_pool(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    options = pool_options(node, x)
    if len(node.outputs) == 1:
        return (run.spatial("max_pool", x, **options),)
    y, indices = run.spatial("max_pool", x, return_indices=True, **options)
    assert indices.dtype == np.int64
    lengths, (n, c) = x.shape[2:], x.shape[:2]
    if node.get("storage_order", 0):
        indices = np.ravel_multi_index(np.unravel_index(indices, lengths), lengths, order="F")
    planes = np.arange(n * c).reshape(n, c, *(1 for _ in lengths))
    return y, planes * math.prod(lengths) + indices


def avg_pool(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    count_include_pad = bool(node.get("count_include_pad", 0))
    return (run.spatial("avg_pool", x, count_include_pad=count_include_pad, **pool_options(node, x)),)


def lp_pool(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    return (run.spatial("lp_pool", x, norm_type=node.get("p", 2), **pool_options(node, x)),)


def global_max_pool(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    return (run.spatial("adaptive_max_pool", x, 1),)


def global_avg_pool(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    return (run.spatial("adaptive_avg_pool", x, 1),)


def max_unpool(run: Runner, node: Node, x: np.ndarray, indices: np.ndarray, output_shape: Any = None) -> Arrays:
    """ONNX's indices lie flat in the tensor whose size follows from the window, whatever output shape is asked."""
    kernel = node.get("kernel_shape")
    strides = node.get("strides", [1] * len(kernel))
    pads = pairs(node.get("pads", [0] * (2 * len(kernel))))
    axes = zip(x.shape[2:], strides, pads, kernel, strict=True)
    lengths = tuple((n - 1) * s - sum(pad) + k for n, s, pad, k in axes)
    options: dict[str, Any] = {"kernel_size": kernel, "stride": strides, "padding": pads}
    local = indices % math.prod(lengths)
    if output_shape is not None:
        options["output_size"] = tuple(int(n) for n in output_shape[2:])
        local = np.ravel_multi_index(np.unravel_index(local, lengths), options["output_size"])
    return (run.spatial("max_unpool", x, run.laid_out(local), **options),)


def pad(run: Runner, node: Node, x: np.ndarray, pads: Any = None, value: Any = None, axes: Any = None) -> Arrays:
    pads = pairs(node.get("pads") if pads is None else pads)
    value = node.get("value", 0) if value is None else value.item()
    named = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    by_axis = dict(zip(named, pads, strict=True))
    every = [by_axis.get(axis, (0, 0)) for axis in range(x.ndim)]
    assert every[:2] == [(0, 0), (0, 0)], "padding of batch or channels: view them as spatial axes here"
    return (run.spatial("pad", x, tuple(every[2:]), node.get("mode", "constant"), value),)


# ------------------------------------------------------------------------------------------------------- normalisation
def batch_norm(run: Runner, node: Node, x: np.ndarray, scale: Any, bias: Any, mean: Any, var: Any) -> Arrays:
    eps = node.get("epsilon", DEFAULT_EPSILON)
    if not node.get("training_mode", 0):
        return (run.spatial("batch_norm", x, scale, bias, mean, var, eps=eps),)
    running = {"running_mean": run.impl.writable(mean), "running_var": run.impl.writable(var)}
    options = {"training": True, "momentum": 1 - node.get("momentum", 0.9), "eps": eps, "unbiased": False}
    y = run.spatial("batch_norm", x, scale, bias, **running, **options)
    return (y, *map(run.impl.numpy, running.values()))


def instance_norm(run: Runner, node: Node, x: np.ndarray, scale: Any, bias: Any) -> Arrays:
    return (run.spatial("instance_norm", x, scale, bias, eps=node.get("epsilon", DEFAULT_EPSILON)),)


def group_norm(run: Runner, node: Node, x: np.ndarray, scale: Any, bias: Any) -> Arrays:
    eps = node.get("epsilon", DEFAULT_EPSILON)
    return (run.spatial("group_norm", x, node.get("num_groups"), scale, bias, eps=eps),)


def layer_norm(run: Runner, node: Node, x: np.ndarray, scale: Any, bias: Any = None) -> Arrays:
    shape, eps = x.shape[node.get("axis", -1) :], node.get("epsilon", DEFAULT_EPSILON)
    return (run.call("layer_norm", x, shape, scale, bias, eps=eps), *(None for _ in node.outputs[1:]))


def rms_norm(run: Runner, node: Node, x: np.ndarray, scale: Any) -> Arrays:
    shape, eps = x.shape[node.get("axis", -1) :], node.get("epsilon", DEFAULT_EPSILON)
    return (run.call("rms_norm", x, shape, scale, eps=eps),)


def local_response_norm(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    alpha, beta, k = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    return (run.spatial("local_response_norm", x, node.get("size"), alpha=alpha, beta=beta, k=k),)


# --------------------------------------------------------------------------------------------------------- convolution
def conv(run: Runner, node: Node, x: np.ndarray, weight: np.ndarray, bias: Any = None) -> Arrays:
    options = window_options(node, x.ndim - 2)
    return (run.spatial("conv", x, weight, bias, groups=node.get("group", 1), **options),)


def conv_transpose(run: Runner, node: Node, x: np.ndarray, weight: np.ndarray, bias: Any = None) -> Arrays:
    """The padding follows from a wanted output shape; where it would be negative, it is output padding instead."""
    ndim = x.ndim - 2
    auto = node.get("auto_pad", "NOTSET")
    strides, dilations = node.get("strides", [1] * ndim), node.get("dilations", [1] * ndim)
    extra = list(node.get("output_padding", [0] * ndim))
    padding = list(pairs(node.get("pads", [0] * (2 * ndim))))
    wanted = node.get("output_shape")
    if wanted is None and auto.startswith("SAME"):
        wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    for i in range(ndim) if wanted is not None else ():
        full = strides[i] * (x.shape[2 + i] - 1) + dilations[i] * (weight.shape[2 + i] - 1) + 1
        total = full + extra[i] - wanted[i]
        extra[i] += max(0, -total)
        small, large = max(0, total) // 2, max(0, total) - max(0, total) // 2
        padding[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    options = {"stride": strides, "padding": padding, "output_padding": extra, "dilation": dilations}
    return (run.spatial("conv_transpose", x, weight, bias, groups=node.get("group", 1), **options),)


# ----------------------------------------------------------------------- what stands between the layers of whole models
def matmul(run: Runner, node: Node, a: np.ndarray, b: np.ndarray) -> Arrays:
    return (run.call("linear", a, b.T),)


def gemm(run: Runner, node: Node, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Arrays:
    """`linear` where it is one: a vector as bias; a bias of weight 0 is none, and a matrix is added to the result."""
    assert node.get("alpha", 1.0) == 1.0
    assert node.get("beta", 1.0) in (0.0, 1.0)
    assert not node.get("transA", 0)
    weight = b if node.get("transB", 0) else b.T
    if not node.get("beta", 1.0):
        return (run.call("linear", a, weight),)
    return (run.call("linear", a, weight, c),) if c.ndim == 1 else (run.call("linear", a, weight) + c,)


def relu(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    return (run.call("relu", x),)


def unsqueeze(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    return (np.expand_dims(x, tuple(node.get("axes"))),)


def squeeze(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    return (np.squeeze(x, tuple(node.get("axes"))),)


def transpose(run: Runner, node: Node, x: np.ndarray) -> Arrays:
    return (np.transpose(x, node.get("perm")),)


def constant(run: Runner, node: Node) -> Arrays:
    return (node.get("value"),)


LAYERS: dict[str, Callable[..., Arrays]] = {
    "MaxPool": max_pool,
    "AveragePool": avg_pool,
    "LpPool": lp_pool,
    "GlobalMaxPool": global_max_pool,
    "GlobalAveragePool": global_avg_pool,
    "MaxUnpool": max_unpool,
    "Pad": pad,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "LRN": local_response_norm,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Relu": relu,
}
ADAPTERS = LAYERS | {"Unsqueeze": unsqueeze, "Squeeze": squeeze, "Transpose": transpose, "Constant": constant}

# These only move or compare values, so they must give ONNX's to the last bit.
EXACT = {"MaxPool", "GlobalMaxPool", "MaxUnpool", "Pad", "Relu", "Unsqueeze", "Squeeze", "Transpose", "Constant"}
NO_DATA_FORMAT = {"LayerNormalization", "RMSNormalization", "Gemm", "MatMul", "Relu"}


def check(impl: Impl, case: Case) -> None:
    """Assert that the library gives the case's outputs: in both data formats, by inference and by training form."""
    formats = ("channels_first",) if case.ops <= NO_DATA_FORMAT else ("channels_first", "channels_last")
    for data_format in formats:
        for training in (False, True):
            run = Runner(impl, data_format, training)
            values = case.run(lambda node, inputs, run=run: ADAPTERS[node.op](run, node, *inputs))
            _compare(case, values, f"{case.name}, {data_format}, {'training' if training else 'inference'} form")


def _compare(case: Case, values: dict[str, Any], what: str) -> None:
    compared = 0
    for name, expected in case.outputs.items():
        y = values[name]
        if y is None:
            assert name in OUTPUTS_NOT_GIVEN, f"{what}: no {name}"
            continue
        assert y.dtype == expected.dtype, f"{what}: {name} is {y.dtype}, expected {expected.dtype}"
        assert y.shape == expected.shape, f"{what}: {name} has shape {y.shape}, expected {expected.shape}"
        if case.ops <= EXACT:
            np.testing.assert_array_equal(y, expected, err_msg=f"{what}: {name}")
        else:
            np.testing.assert_allclose(y, expected, rtol=case.rtol, atol=case.atol, err_msg=f"{what}: {name}")
        compared += 1
    assert compared, f"{what}: nothing was compared"
