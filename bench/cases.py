"""What is measured: data, no code that computes. A case is an op, a shape and its options; the targets stand beside it.

Shapes are always written (N, C, H, W); a case whose options say channels_last has its arrays laid out (N, H, W, C).
A target is what this library aims at on the machine that the group names, not a test: nothing fails for missing one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FORWARD, BACKWARD, INFERENCE, STEP = "forward", "backward", "inference", "step"
TRAINING = (FORWARD, BACKWARD)
ALL = (INFERENCE, FORWARD, BACKWARD)
NETWORK = "three_layer_step"  # the one case that is no op: a whole training step
GEOMETRIC_MEAN, LEAST = 2.5, 0.9  # over the CPU's target rows, and of each of them


@dataclass(frozen=True)
class Target:
    """ratio: the peer's time over ours, at least. share: of the measured copy bandwidth, at least."""

    ratio: float | None = None
    share: float | None = None


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
    targets: Mapping[str, Target] = field(default_factory=dict)
    group: str = "targets"

    @property
    def name(self) -> str:
        """As it stands in the table: "max_pool 2×2 s2, 32×64×112²"."""
        return f"{self.op} {self.title}".rstrip() + f", {said(self.shape)}"

    @property
    def channels_last(self) -> bool:
        return self.options.get("data_format") == "channels_last"


def said(shape: Sequence[int]) -> str:
    """(32, 64, 112, 112) as 32×64×112²."""
    if len(shape) == 4 and shape[2] == shape[3]:
        return "×".join(map(str, shape[:2])) + f"×{shape[2]}²"
    return "×".join(map(str, shape))


def _training(forward: float | None, backward: float | None, share: float | None = None) -> dict[str, Target]:
    return {FORWARD: Target(forward, share), BACKWARD: Target(backward, share)}


# options by the name that titles them
POOL2 = {"kernel_size": 2, "stride": 2}
POOL3 = {"kernel_size": 3, "stride": 2, "padding": 1}
POOL1 = {"kernel_size": 3, "stride": 1, "padding": 1}
BN = {"training": True}
LAST = {"data_format": "channels_last"}


def _pad(mode: str, width: int = 1) -> dict[str, Any]:
    return {"padding": width, "mode": mode}


# ----------------------------------------------------------------------------------- CPU, two cores, against PyTorch
CPU_TARGETS = (
    Case("max_pool", (32, 64, 112, 112), "2×2 s2", POOL2, targets=_training(10, 3)),
    Case("max_pool", (32, 64, 112, 112), "3×3 s2 p1", POOL3, targets=_training(10, 3)),
    Case("avg_pool", (32, 64, 112, 112), "2×2 s2", POOL2, targets=_training(5, 5)),
    Case("avg_pool", (32, 64, 56, 56), "3×3 s1 p1", POOL1, targets=_training(5, 5)),
    Case("batch_norm", (32, 64, 56, 56), "", BN, targets=_training(2.5, 1.5)),
    Case("batch_norm", (32, 256, 14, 14), "", BN, targets=_training(2.5, 1.5)),
    Case("group_norm", (32, 64, 56, 56), "32 groups", {"num_groups": 32}, targets=_training(1.2, 1.2)),
    Case("group_norm", (32, 256, 14, 14), "32 groups", {"num_groups": 32}, targets=_training(1.2, 1.2)),
    Case("layer_norm", (8192, 768), "", {"normalized_shape": 768}, targets=_training(1.2, 1.2)),
    Case("pad", (32, 64, 56, 56), "reflect 1", _pad("reflect"), targets=_training(1.0, 3)),
    Case("pad", (32, 64, 56, 56), "edge 1", _pad("edge"), targets=_training(1.0, 3)),
    Case("pad", (32, 64, 56, 56), "constant 1", _pad("constant"), targets=_training(0.9, 0.9)),
    Case("relu", (32, 64, 56, 56), targets=_training(0.9, 0.9)),
    Case("adaptive_avg_pool", (32, 256, 14, 14), "global", {"output_size": 1}, targets=_training(0.9, 0.9)),
    Case("conv", (32, 64, 56, 56), "3×3 64→64", {"padding": 1}, (64, 64, 3, 3), targets=_training(1.8, 1.5)),
    Case("conv", (32, 64, 56, 56), "1×1 64→256", {}, (256, 64, 1, 1), targets=_training(1.5, 1.5)),
    Case(
        "conv", (32, 3, 112, 112), "7×7 s2 3→64", {"stride": 2, "padding": 3}, (64, 3, 7, 7),
        targets=_training(1.3, 1.3),
    ),
    Case(
        "conv", (32, 64, 56, 56), "3×3 s2 64→128", {"stride": 2, "padding": 1}, (128, 64, 3, 3),
        targets=_training(1.0, 1.0),
    ),
    Case("conv", (32, 256, 14, 14), "3×3 256→256", {"padding": 1}, (256, 256, 3, 3), targets=_training(1.0, 1.0)),
    Case(
        "conv", (32, 128, 28, 28), "depthwise 3×3", {"padding": 1, "groups": 128}, (128, 1, 3, 3),
        targets=_training(1.0, 1.0),
    ),
)  # fmt: skip

# Layers as they stand in networks, a batch of 8 (4 and 2 where the pictures are large).
NETWORKS = tuple(
    replace(case, group="networks", parts=ALL)
    for case in (
        Case("conv", (8, 3, 224, 224), "ResNet-50 stem 7×7 s2", {"stride": 2, "padding": 3}, (64, 3, 7, 7)),
        Case("max_pool", (8, 64, 112, 112), "ResNet-50 3×3 s2 p1", POOL3),
        Case("conv", (8, 256, 56, 56), "ResNet-50 1×1 256→64", {}, (64, 256, 1, 1)),
        Case("conv", (8, 128, 28, 28), "ResNet-50 3×3 128→128", {"padding": 1}, (128, 128, 3, 3)),
        Case("batch_norm", (8, 256, 56, 56), "ResNet-50", BN),
        Case("adaptive_avg_pool", (8, 2048, 7, 7), "ResNet-50 global", {"output_size": 1}),
        Case("conv", (2, 64, 224, 224), "VGG-16 3×3 64→64", {"padding": 1}, (64, 64, 3, 3)),
        Case("max_pool", (8, 64, 224, 224), "VGG-16 2×2 s2", POOL2),
        Case("pad", (4, 64, 256, 256), "U-Net reflect 1", _pad("reflect")),
        Case("pad", (2, 3, 388, 388), "U-Net mirrored tile 92", _pad("reflect", 92)),
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

STEPS = (Case(NETWORK, (64, 3, 32, 32), "32 filters", parts=(STEP,), group="step"),)
CPU = (*CPU_TARGETS, *NETWORKS, *TUTORIAL, *STEPS, *SWEEP)

# --------------------------------------------------------------------- GPU: the fastest PyTorch variant in the same run
# (case, its targets in float32, its targets in the half types)
_GPU: tuple[tuple[Case, Mapping[str, Target], Mapping[str, Target]], ...] = (
    (
        Case("max_pool", (256, 64, 112, 112), "2×2 s2", POOL2, parts=ALL),
        {INFERENCE: Target(1.4, 0.9), FORWARD: Target(1.3, 0.9), BACKWARD: Target(2.0, 0.9)},
        {INFERENCE: Target(1.8, 0.9), FORWARD: Target(1.6, 0.9), BACKWARD: Target(2.3, 0.9)},
    ),
    (
        Case("max_pool", (256, 64, 112, 112), "3×3 s2 p1", POOL3),
        {BACKWARD: Target(2.0, 0.8)},
        {BACKWARD: Target(2.3, 0.8)},
    ),
    (Case("max_pool", (32, 64, 112, 112), "3×3 s2 p1", POOL3), {}, {}),
    (Case("max_pool", (256, 64, 56, 56), "3×3 s1 p1", POOL1), {}, {}),
    (Case("avg_pool", (256, 64, 112, 112), "2×2 s2", POOL2), _training(1, 1, 0.9), _training(1, 1, 0.9)),
    (Case("avg_pool", (256, 64, 56, 56), "3×3 s1 p1", POOL1), _training(1, 1, 0.9), _training(1, 1, 0.9)),
    (Case("pad", (256, 64, 112, 112), "constant 1", _pad("constant")), _training(1.3, 1.3, 0.9),
     _training(1.3, 1.3, 0.9)),
    (Case("pad", (256, 64, 112, 112), "reflect 1", _pad("reflect")), {BACKWARD: Target(2.0, 0.9)},
     {BACKWARD: Target(2.0, 0.9)}),
    (Case("batch_norm", (32, 256, 56, 56), "", BN), _training(1.4, 1.5, 0.85), _training(1.5, 1.6, 0.85)),
    (Case("batch_norm", (256, 512, 28, 28), "", BN), _training(1.4, 1.5, 0.85), _training(1.5, 1.6, 0.85)),
    (Case("batch_norm", (256, 256, 56, 56), "", BN), _training(1.4, 1.5, 0.85), _training(1.5, 1.6, 0.85)),
    (Case("batch_norm", (32, 64, 112, 112), "", BN), _training(1.4, 1.5, 0.85), _training(1.5, 1.6, 0.85)),
    (Case("batch_norm", (256, 64, 112, 112), "", BN), _training(2, 2, 0.8), _training(2, 2, 0.8)),
    (Case("group_norm", (256, 256, 56, 56), "32 groups", {"num_groups": 32}), _training(1.4, 1.5, 0.8),
     _training(1.4, 1.5, 0.8)),
    (Case("group_norm", (256, 256, 56, 56), "32 groups, channels last", {"num_groups": 32, **LAST}),
     _training(2, 2, 0.8), _training(2, 2, 0.8)),
    (Case("layer_norm", (8192, 8192), "", {"normalized_shape": 8192}), _training(1, 1, 0.85), _training(1, 1, 0.85)),
    (Case("rms_norm", (8192, 8192), "", {"normalized_shape": 8192, "eps": 1e-6}), {}, {}),
    (Case("relu", (256, 64, 112, 112)), {}, {}),
    (Case("adaptive_avg_pool", (256, 512, 28, 28), "global", {"output_size": 1}), {}, {}),
)  # fmt: skip

GPU = (
    *(
        replace(case, dtype=dtype, targets=single if dtype == "float32" else half)
        for case, single, half in _GPU
        for dtype in ("float32", "float16", "bfloat16")
    ),
    replace(STEPS[0], targets={STEP: Target(1.0)}),
    *SWEEP,
    *(
        replace(case, dtype=dtype, parts=ALL)
        for case in CPU_TARGETS
        if case.op == "conv"
        for dtype in ("float32", "float16")
        for case in (replace(case, targets={}, group="networks"),)
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
    Case("adaptive_avg_pool", (32, 64, 112, 112), "global", {"output_size": 1}),
    Case("group_norm", (32, 64, 112, 112), "32 groups, channels last", {"num_groups": 32, **LAST}),
    Case("pad", (32, 64, 112, 112), "constant 1", _pad("constant")),
    Case("rms_norm", (8192, 8192), "", {"normalized_shape": 8192, "eps": 1e-6}),
)
GPU_MAIN = tuple(replace(case, dtype=dtype) for case in _MAIN for dtype in ("float16", "float32"))

VARIANTS = ("pytorch-nocudnn", "pytorch-channels-last", "pytorch-compile")
# Which peers a group is measured beside, of those that the run has; None: all of them.
PEERS: Mapping[str, tuple[str, ...] | None] = {
    "targets": ("pytorch", *VARIANTS, "jax", "onnxruntime", "numpy", "cupy"),
    "tutorial": None,
    "networks": ("pytorch", *VARIANTS, "onnxruntime"),
    "step": ("pytorch",),
    "sweep": ("pytorch",),
}


def chosen(device: str, ops: Sequence[str] = (), quick: bool = False, main: bool = False) -> list[Case]:
    """The cases of a device ("cpu" or "gpu") for these ops (all, where none is named); `quick`: small shapes, which
    have no targets; `main`: of a GPU, few cases. Raises ValueError for an op that no case is named after."""
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
    if len(rest) == 3:
        rest[1:] = [min(length, 28) for length in rest[1:]]
    options = {k: min(v, 4) if k == "padding" else v for k, v in case.options.items()}
    return replace(case, shape=(min(n, 64 if len(rest) == 1 else 2), *rest), options=options, targets={})
