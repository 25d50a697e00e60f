"""What is computed: a case's arrays. A problem has several copies of its large arrays on a GPU, so that a run does not
find in the cache what the run before left there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cnnlayers import functional as F
from cnnlayers.backends import Backend

from .cases import FORWARD, INFERENCE, KERAS, NETWORKS, Case

Array = Any
CLASSES = 10  # of the network's step


def dtype_of(b: Backend, name: str) -> Any:
    """The backend's dtype of this name. ImportError for bfloat16 without ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@dataclass
class Problem:
    """A case's arrays: `inputs[i]` and `gradients[i]` (x and dy) of copy i; the parameters, which all copies share."""

    case: Case
    b: Backend
    inputs: list[Array]
    parameters: dict[str, Array]
    gradients: list[Array] = field(default_factory=list)
    y_shape: tuple[int, ...] = ()

    @property
    def copies(self) -> int:
        return len(self.inputs)

    def options(self, part: str) -> dict[str, Any]:
        """The op's options; inference of a batch norm is by its running statistics."""
        options = dict(self.case.options)
        if part == INFERENCE and "training" in options:
            options["training"] = False
        return options


def problem(case: Case, b: Backend, cache: int = 0, seed: int = 0) -> Problem:
    """Random arrays for a case; as many copies as make their bytes four times `cache`, between 1 and 8."""
    rng = b.xp.random.default_rng(seed)

    def some(shape: tuple[int, ...], dtype: str = case.dtype) -> Array:
        return b.xp.asarray((rng.random(shape, dtype=np.float32) - np.float32(0.5)) * 4, dtype=dtype_of(b, dtype))

    x_shape = (case.shape[0], *case.shape[2:], case.shape[1]) if case.channels_last else case.shape
    x = some(x_shape)
    copies = min(8, max(1, math.ceil(4 * cache / max(1, x.nbytes))))
    if case.op in KERAS:
        return Problem(case, b, [x], {})
    if case.op in NETWORKS:  # dy is the labels
        return Problem(case, b, [x], {}, [b.xp.arange(case.shape[0]) % CLASSES])
    inputs = [x, *(some(x_shape) for _ in range(copies - 1))]
    made = Problem(case, b, inputs, _parameters(case, some))
    made.y_shape = tuple(trio(case.op, "_forward")(x, **made.parameters, **made.options(FORWARD))[1].plan.y_shape)
    made.gradients = [some(made.y_shape) for _ in inputs]
    return made


def _parameters(case: Case, some: Callable[..., Array]) -> dict[str, Array]:
    """An op's parameters, in x's dtype; a batch norm's in float32, as mixed-precision training has them."""
    if case.weight is not None:
        weight = some(case.weight)
        weight *= 1 / math.sqrt(math.prod(case.weight[1:]))
        filters = case.weight[1] * case.options.get("groups", 1) if case.op == "conv_transpose" else case.weight[0]
        return {"weight": weight, "bias": some((filters,))}
    if case.op == "batch_norm":
        names = ("gamma", "beta", "running_mean", "running_var")
        found = {name: some((case.shape[1],), "float32") for name in names}
        return found | {"running_var": found["running_var"] ** 2 + 1}
    if case.op in ("group_norm", "instance_norm", "layer_norm"):
        return {name: some((case.shape[1],)) for name in ("gamma", "beta")}
    return {"gamma": some((case.shape[1],))} if case.op == "rms_norm" else {}


def trio(op: str, form: str = "") -> Callable[..., Any]:
    """A function of the op's trio: the form is "", "_forward" or "_backward"."""
    function: Callable[..., Any] = getattr(F, op + form)
    return function
