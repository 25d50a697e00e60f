"""What is measured: data, no code that computes. A case is an op, a shape and its options.

Shapes are always written (N, C, *spatial); a case whose options say channels_last has its arrays laid out
(N, *spatial, C).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FORWARD, BACKWARD, INFERENCE, STEP = "forward", "backward", "inference", "step"
TRAINING = (FORWARD, BACKWARD)
ALL = (INFERENCE, FORWARD, BACKWARD)
NETWORKS = ("three_layer_step", "lenet_step", "resnet8_step")  # no ops: whole training steps
KERAS = ("keras_mobilenet_v2", "keras_resnet50", "keras_vgg16")  # no ops: inference of a network of Keras


@dataclass(frozen=True)
class Case:
    """One op on one shape. `weight`: a convolution's weight's shape; `title`: the options, as a reader says them."""

    op: str
    shape: tuple[int, ...]
    title: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: tuple[int, ...] | None = None
    dtype: str = "float32"
    parts: tuple[str, ...] = TRAINING
    group: str = "main"

    @property
    def name(self) -> str:
        """As it stands in the table: "max_pool 2×2 s2, 32×64×112²"."""
        dtype = {"float32": "", "float16": " f16", "bfloat16": " bf16"}.get(self.dtype, f" {self.dtype}")
        return f"{self.op} {self.title}".rstrip() + f"{dtype}, {said(self.shape)}"

    @property
    def channels_last(self) -> bool:
        return self.options.get("data_format") == "channels_last"


def said(shape: Sequence[int]) -> str:
    """(32, 64, 112, 112) as 32×64×112², and (8, 16, 16, 16, 16) as 8×16×16³."""
    if len(shape) > 3 and len(set(shape[2:])) == 1:
        return "×".join(map(str, shape[:2])) + f"×{shape[2]}{'²³'[len(shape) - 4]}"
    return "×".join(map(str, shape))


# options by the name that titles them
POOL2 = {"kernel_size": 2, "stride": 2}
POOL3 = {"kernel_size": 3, "stride": 2, "padding": 1}
POOL1 = {"kernel_size": 3, "stride": 1, "padding": 1}
BN = {"training": True}
LAST = {"data_format": "channels_last"}
GLOBAL = {"output_size": 1}


def _pad(mode: str, width: int = 1) -> dict[str, Any]:
    return {"padding": width, "mode": mode}


def _conv(filters: int, channels: int, *kernel: int) -> tuple[int, ...]:
    return (filters, channels, *kernel)


# ------------------------------------------------------------------------------------------------------------------ CPU
MAIN = (
    Case("max_pool", (32, 64, 112, 112), "2×2 s2", POOL2),
    Case("max_pool", (32, 64, 112, 112), "3×3 s2 p1", POOL3),
    Case("avg_pool", (32, 64, 112, 112), "2×2 s2", POOL2),
    Case("avg_pool", (32, 64, 56, 56), "3×3 s1 p1", POOL1),
    Case("batch_norm", (32, 64, 56, 56), "", BN),
    Case("batch_norm", (32, 256, 14, 14), "", BN),
    Case("group_norm", (32, 64, 56, 56), "32 groups", {"num_groups": 32}),
    Case("group_norm", (32, 256, 14, 14), "32 groups", {"num_groups": 32}),
    Case("layer_norm", (8192, 768), "", {"normalized_shape": 768}),
    Case("pad", (32, 64, 56, 56), "reflect 1", _pad("reflect")),
    Case("pad", (32, 64, 56, 56), "edge 1", _pad("edge")),
    Case("pad", (32, 64, 56, 56), "constant 1", _pad("constant")),
    Case("relu", (32, 64, 56, 56)),
    Case("adaptive_avg_pool", (32, 256, 14, 14), "global", GLOBAL),
    Case("conv", (32, 64, 56, 56), "3×3 64→64", {"padding": 1}, _conv(64, 64, 3, 3)),
    Case("conv", (32, 64, 56, 56), "1×1 64→256", {}, _conv(256, 64, 1, 1)),
    Case("conv", (32, 3, 112, 112), "7×7 s2 3→64", {"stride": 2, "padding": 3}, _conv(64, 3, 7, 7)),
    Case("conv", (32, 64, 56, 56), "3×3 s2 64→128", {"stride": 2, "padding": 1}, _conv(128, 64, 3, 3)),
    Case("conv", (32, 256, 14, 14), "3×3 256→256", {"padding": 1}, _conv(256, 256, 3, 3)),
    Case("conv", (32, 128, 28, 28), "depthwise 3×3", {"padding": 1, "groups": 128}, _conv(128, 1, 3, 3)),
)

# The kinds of calls that are less common: other windows, ranks, layouts, dtypes, groups, sizes.
BREADTH = tuple(
    replace(case, group="breadth")
    for case in (
        Case("max_pool", (32, 256, 14, 14), "global", {"kernel_size": 14}),
        Case("max_pool", (8, 64, 112, 112), "global", {"kernel_size": 112}),
        Case("max_pool", (8, 64, 112, 112), "56×56 s56", {"kernel_size": 56, "stride": 56}),
        Case("max_pool", (8, 64, 16000), "1-D global", {"kernel_size": 16000}),
        Case("max_pool", (32, 64, 4096), "1-D k2 s2", {"kernel_size": 2, "stride": 2}),
        Case("max_pool", (4, 32, 32, 32, 32), "3-D k2 s2", {"kernel_size": 2, "stride": 2}),
        Case("max_pool", (8, 64, 56, 56), "5×5 s1 p2", {"kernel_size": 5, "stride": 1, "padding": 2}),
        Case("max_pool", (32, 64, 56, 56), "3×3 s2 p1 last", POOL3 | LAST),
        Case("max_pool", (32, 64, 56, 56), "2×2 s2", POOL2, dtype="float16"),
        Case("avg_pool", (32, 64, 56, 56), "3×3 s2 p1", POOL3),
        Case("avg_pool", (32, 64, 56, 56), "2×2 s2", POOL2, dtype="float16"),
        Case("avg_pool", (32, 64, 56, 56), "2×2 s2 last", POOL2 | LAST),
        Case("avg_pool", (4, 32, 32, 32, 32), "3-D k2 s2", {"kernel_size": 2, "stride": 2}),
        Case("lp_pool", (32, 64, 56, 56), "p2 2×2 s2", {"kernel_size": 2, "norm_type": 2.0, "stride": 2}),
        Case("adaptive_max_pool", (32, 256, 14, 14), "to 6", {"output_size": 6}),
        Case("adaptive_avg_pool", (32, 256, 14, 14), "to 6", {"output_size": 6}),
        Case("adaptive_avg_pool", (32, 256, 14, 14), "global last", GLOBAL | LAST),
        Case("batch_norm", (32, 64, 56, 56), "last", BN | LAST),
        Case("batch_norm", (4096, 512), "rows", BN),
        Case("batch_norm", (32, 64, 56, 56), "", BN, dtype="float16"),
        Case("instance_norm", (32, 64, 56, 56), "", {}),
        Case("group_norm", (2000, 8, 4, 4), "2 groups", {"num_groups": 2}),
        Case("rms_norm", (4096, 1024), "", {"normalized_shape": 1024, "eps": 1e-6}),
        Case("pad", (32, 64, 56, 56), "reflect 1 last", _pad("reflect") | LAST),
        Case("pad", (32, 64, 4096), "1-D constant 2", _pad("constant", 2)),
        Case("conv", (64, 16, 32, 32), "3×3 16→16", {"padding": 1}, _conv(16, 16, 3, 3)),
        Case("conv", (64, 16, 32, 32), "3×3 s2 16→16", {"stride": 2, "padding": 1}, _conv(16, 16, 3, 3)),
        Case("conv", (64, 6, 14, 14), "5×5 6→16", {}, _conv(16, 6, 5, 5)),
        Case("conv", (2000, 8, 4, 4), "3×3 8→8", {"padding": 1}, _conv(8, 8, 3, 3)),
        Case("conv", (32, 64, 28, 28), "3×3 groups of 4", {"padding": 1, "groups": 16}, _conv(64, 4, 3, 3)),
        Case("conv", (16, 32, 28, 28), "3×3 d2 32→32", {"padding": 2, "dilation": 2}, _conv(32, 32, 3, 3)),
        Case("conv", (16, 32, 28, 28), "3×3 32→32 last", {"padding": 1} | LAST, _conv(32, 32, 3, 3)),
        Case("conv", (16, 32, 1000), "1-D k9 32→32", {"padding": 4}, _conv(32, 32, 9)),
        Case("conv", (2, 16, 16, 16, 16), "3-D k3 16→16", {"padding": 1}, _conv(16, 16, 3, 3, 3)),
        Case("conv_transpose", (16, 32, 14, 14), "4×4 s2 32→16", {"stride": 2, "padding": 1}, _conv(32, 16, 4, 4)),
        *(Case(op, (32, 64, 56, 56)) for op in ("leaky_relu", "gelu", "sigmoid", "tanh")),
        Case("relu", (32, 64, 56, 56), dtype="float16"),
    )
)

# Small calls: most of their time is Python, not memory traffic or arithmetic.
SMALL = tuple(
    replace(case, group="small", shape=shape if len(case.shape) == 4 else (shape[0], 512))
    for shape in ((2, 8, 8, 8), (8, 16, 16, 16))
    for c in (shape[1],)
    for case in (
        Case("max_pool", shape, "2×2 s2", POOL2),
        Case("avg_pool", shape, "2×2 s2", POOL2),
        Case("adaptive_avg_pool", shape, "global", GLOBAL),
        Case("pad", shape, "reflect 1", _pad("reflect")),
        Case("batch_norm", shape, "", BN),
        Case("group_norm", shape, "2 groups", {"num_groups": 2}),
        Case("layer_norm", (8, 512), "", {"normalized_shape": 512}),
        Case("relu", shape),
        Case("gelu", shape),
        Case("conv", shape, f"3×3 {c}→{c}", {"padding": 1}, _conv(c, c, 3, 3)),
        Case("conv", shape, "depthwise 3×3", {"padding": 1, "groups": c}, _conv(c, 1, 3, 3)),
        Case("conv_transpose", shape, f"2×2 s2 {c}→{c}", {"stride": 2}, _conv(c, c, 2, 2)),
    )
)

# Layers as they stand in networks, a batch of 8 (4 and 2 where the pictures are large).
LAYERS = tuple(
    replace(case, group="networks", parts=ALL)
    for case in (
        Case("conv", (8, 3, 224, 224), "ResNet-50 7×7 s2", {"stride": 2, "padding": 3}, (64, 3, 7, 7)),
        Case("max_pool", (8, 64, 112, 112), "ResNet-50 3×3 s2", POOL3),
        Case("conv", (8, 256, 56, 56), "ResNet-50 1×1 256→64", {}, (64, 256, 1, 1)),
        Case("conv", (8, 128, 28, 28), "ResNet-50 3×3 128→128", {"padding": 1}, (128, 128, 3, 3)),
        Case("batch_norm", (8, 256, 56, 56), "ResNet-50", BN),
        Case("adaptive_avg_pool", (8, 2048, 7, 7), "ResNet-50", GLOBAL),
        Case("conv", (2, 64, 224, 224), "VGG-16 3×3 64→64", {"padding": 1}, (64, 64, 3, 3)),
        Case("max_pool", (8, 64, 224, 224), "VGG-16 2×2 s2", POOL2),
        Case("pad", (4, 64, 256, 256), "U-Net reflect 1", _pad("reflect")),
        Case("pad", (2, 3, 388, 388), "U-Net tile 92", _pad("reflect", 92)),
        Case("layer_norm", (4096, 1024), "transformer", {"normalized_shape": 1024}),
        Case("rms_norm", (4096, 1024), "transformer", {"normalized_shape": 1024, "eps": 1e-6}),
    )
)

# Small enough for loops over every window in Python.
TUTORIAL = tuple(
    replace(case, group="tutorial")
    for case in (
        Case("max_pool", (8, 16, 16, 16), "2×2 s2", POOL2),
        Case("avg_pool", (8, 16, 16, 16), "2×2 s2", POOL2),
        Case("conv", (2, 3, 32, 32), "3×3 3→8", {"padding": 1}, (8, 3, 3, 3)),
    )
)

# x has 10^4 ... 10^8 elements: N times 16×25².
SWEEP = tuple(
    Case(op, (10**power, 16, 25, 25), title, options, group="sweep")
    for op, title, options in (
        ("max_pool", "3×3 s2 p1", POOL3),
        ("batch_norm", "", BN),
        ("pad", "reflect 1", _pad("reflect")),
    )
    for power in range(5)
)

# A batch of digits (8×8), of MNIST's size, and of CIFAR's.
STEPS = tuple(
    Case(op, shape, title, parts=(STEP,), group="step")
    for op, shape, title in (
        ("three_layer_step", (64, 1, 8, 8), "32 filters"),
        ("lenet_step", (64, 1, 28, 28), "6, 16 filters"),
        ("three_layer_step", (64, 3, 32, 32), "32 filters"),
        ("resnet8_step", (64, 3, 32, 32), ""),
    )
)
# Keras's NumPy backend, on this library and on JAX, where Keras is installed.
KERAS_CASES = tuple(Case(op, (4, 3, 224, 224), options=LAST, parts=(INFERENCE,), group="keras") for op in KERAS)
CPU = (*MAIN, *BREADTH, *SMALL, *LAYERS, *TUTORIAL, *STEPS, *KERAS_CASES, *SWEEP)

# ------------------------------------------------------------------------------------------------------------------ GPU
_GPU = (
    Case("max_pool", (256, 64, 112, 112), "2×2 s2", POOL2, parts=ALL),
    Case("max_pool", (256, 64, 112, 112), "3×3 s2 p1", POOL3),
    Case("max_pool", (32, 64, 112, 112), "3×3 s2 p1", POOL3),
    Case("max_pool", (256, 64, 56, 56), "3×3 s1 p1", POOL1),
    Case("avg_pool", (256, 64, 112, 112), "2×2 s2", POOL2),
    Case("avg_pool", (256, 64, 56, 56), "3×3 s1 p1", POOL1),
    Case("pad", (256, 64, 112, 112), "constant 1", _pad("constant")),
    Case("pad", (256, 64, 112, 112), "reflect 1", _pad("reflect")),
    Case("batch_norm", (32, 256, 56, 56), "", BN),
    Case("batch_norm", (256, 512, 28, 28), "", BN),
    Case("batch_norm", (256, 256, 56, 56), "", BN),
    Case("batch_norm", (32, 64, 112, 112), "", BN),
    Case("batch_norm", (256, 64, 112, 112), "", BN),
    Case("group_norm", (256, 256, 56, 56), "32 groups", {"num_groups": 32}),
    Case("group_norm", (256, 256, 56, 56), "32 groups last", {"num_groups": 32, **LAST}),
    Case("layer_norm", (8192, 8192), "", {"normalized_shape": 8192}),
    Case("rms_norm", (8192, 8192), "", {"normalized_shape": 8192, "eps": 1e-6}),
    Case("relu", (256, 64, 112, 112)),
    Case("adaptive_avg_pool", (256, 512, 28, 28), "global", GLOBAL),
)

GPU = (
    *(replace(case, dtype=dtype) for case in _GPU for dtype in ("float32", "float16", "bfloat16")),
    next(case for case in STEPS if case.op == "three_layer_step" and case.shape[1] == 3),
    *SWEEP,
    *(
        replace(case, dtype=dtype, parts=ALL, group="networks")
        for case in MAIN
        if case.op == "conv"
        for dtype in ("float32", "float16")
    ),
)

# Each op once or twice, large enough to leave the L2 and small enough for a run of two to three minutes: the most
# informative first.
_MAIN = (
    Case("max_pool", (32, 64, 112, 112), "3×3 s2 p1", POOL3, parts=ALL),
    Case("batch_norm", (32, 64, 112, 112), "", BN),
    Case("conv", (32, 64, 56, 56), "3×3 64→64", {"padding": 1}, (64, 64, 3, 3)),
    Case("avg_pool", (32, 64, 112, 112), "2×2 s2", POOL2),
    Case("layer_norm", (8192, 8192), "", {"normalized_shape": 8192}),
    Case("group_norm", (32, 64, 112, 112), "32 groups", {"num_groups": 32}),
    Case("pad", (32, 64, 112, 112), "reflect 1", _pad("reflect")),
    Case("relu", (32, 64, 112, 112)),
    Case("max_pool", (32, 64, 112, 112), "2×2 s2", POOL2, parts=ALL),
    Case("avg_pool", (32, 64, 112, 112), "3×3 s1 p1", POOL1),
    Case("adaptive_avg_pool", (32, 64, 112, 112), "global", GLOBAL),
    Case("group_norm", (32, 64, 112, 112), "32 groups last", {"num_groups": 32, **LAST}),
    Case("pad", (32, 64, 112, 112), "constant 1", _pad("constant")),
    Case("rms_norm", (8192, 8192), "", {"normalized_shape": 8192, "eps": 1e-6}),
)
GPU_MAIN = tuple(replace(case, dtype=dtype) for case in _MAIN for dtype in ("float16", "float32"))

VARIANTS = ("pytorch-nocudnn", "pytorch-channels-last", "pytorch-compile")
# Which peers a group is measured beside, of those that the run has; None: all of them.
PEERS: Mapping[str, tuple[str, ...] | None] = {
    "main": ("pytorch", *VARIANTS, "jax", "onnxruntime", "numpy", "cupy"),
    "breadth": ("pytorch",),
    "small": ("pytorch",),
    "tutorial": None,
    "networks": ("pytorch", *VARIANTS, "onnxruntime"),
    "step": ("pytorch",),
    "keras": ("keras-jax",),
    "sweep": ("pytorch",),
}


def chosen(device: str, ops: Sequence[str] = (), quick: bool = False, main: bool = False) -> list[Case]:
    """The cases of a device ("cpu" or "gpu") for these ops (all, where none is named); `quick`: small shapes;
    `main`: of a GPU, few cases. Raises ValueError for an op that no case is named after."""
    cases: Sequence[Case] = CPU if device == "cpu" else GPU_MAIN if main else GPU
    known = list(dict.fromkeys(case.op for case in cases))
    unknown = [op for op in ops if op not in known]
    if unknown:
        raise ValueError(f"there is no case named {unknown[0]!r}; there are {', '.join(known)}")
    picked = [case for case in cases if not ops or case.op in ops]
    if not quick:
        return picked
    small = [_small(case) for case in picked]
    return [case for i, case in enumerate(small) if case not in small[:i]]


def _small(case: Case) -> Case:
    """The same op on two samples of a small picture (a sweep: at most 10^6 elements)."""
    n, *rest = case.shape
    if case.group == "sweep":
        return replace(case, shape=(min(n, 100), *rest))
    if case.group in ("small", "step"):
        return case
    if case.group == "keras":
        return replace(case, shape=(1, 3, 64, 64))
    largest = {3: 28, 4: 8}.get(len(rest), 200)
    if len(rest) > 1:
        rest[1:] = [min(length, largest) for length in rest[1:]]
    options = {k: min(v, 4) if k == "padding" else v for k, v in case.options.items()}
    if "kernel_size" in options and len(rest) > 1:
        options["kernel_size"] = min(options["kernel_size"], *rest[1:])
    return replace(case, shape=(min(n, 64 if len(rest) == 1 else 2), *rest), options=options)
