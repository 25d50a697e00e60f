"""Who is measured: a contestant is one way to compute a problem. For each part it gives a function of a copy's number
that does the work once. Here are this library itself and the comparison of results."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from cnnlayers import backends, kernels
from cnnlayers.backends import Backend

from . import keras_networks, network
from .cases import BACKWARD, FORWARD, INFERENCE, KERAS, NETWORKS, STEP
from .problem import Problem, trio

Array = Any
Call = Callable[[int], Any]
# Of the largest value. A convolution's dweight sums 10^5 products: two orders of summing differ by 1e-5 in float32.
TOLERANCE = {"float64": 1e-10, "float32": 5e-5, "float16": 4e-3, "bfloat16": 3e-2}


class Refused(Exception):
    """This contestant does not compute this part of this case; the message says why."""


class Contestant:
    """One way to compute a case. A subclass gives `call`, and `arrays` where its results are not the backend's own."""

    name = ""
    by_events = True  # a GPU's events see its work

    def session(self) -> AbstractContextManager[Any]:
        """The settings it works under, for all that it does."""
        return contextlib.nullcontext()

    def call(self, problem: Problem, part: str) -> Call:
        """What does the part's work once on copy i. Refused where it has none."""
        raise Refused(f"{self.name} computes nothing")

    def arrays(self, problem: Problem, part: str, result: Any) -> list[Array]:
        """What a call gave, as arrays of the problem's backend and layout: [y], or [dx, parameter gradients ...]."""
        return list(result)

    def kept(self, problem: Problem) -> int | None:
        """Bytes kept alive between forward and backward; None where nobody can say."""
        return None

    def finish(self) -> None:
        """Wait for all work, where calls only begin it."""


class Ours(Contestant):
    """This library; `mode` "off" is its array code without any kernel."""

    def __init__(self, name: str = "cnnlayers", mode: str = "") -> None:
        self.name, self.mode = name, mode

    def session(self) -> AbstractContextManager[Any]:
        return kernels.mode(self.mode) if self.mode else contextlib.nullcontext()

    def call(self, problem: Problem, part: str) -> Call:
        op, parameters, options = problem.case.op, problem.parameters, problem.options(part)
        if part == STEP:
            return network.step(problem)
        if op in KERAS:
            return keras_networks.on_this_library(problem)
        if part == INFERENCE:
            inference = trio(op)
            return lambda i: (inference(problem.inputs[i], **parameters, **options),)
        forward = trio(op, "_forward")
        if part == FORWARD:
            return lambda i: forward(problem.inputs[i], **parameters, **options)
        backward = trio(op, "_backward")
        contexts = [forward(x, **parameters, **options)[1] for x in problem.inputs]
        return lambda i: backward(problem.gradients[i], contexts[i])

    def arrays(self, problem: Problem, part: str, result: Any) -> list[Array]:
        if part == BACKWARD:
            found = result if isinstance(result, tuple) else (result,)
            return [a for a in found if a is not None]
        return list(result) if part == STEP else [result[0]]

    def kept(self, problem: Problem) -> int | None:
        if problem.case.op in NETWORKS:
            return None
        forward = trio(problem.case.op, "_forward")
        return int(forward(problem.inputs[0], **problem.parameters, **problem.options(FORWARD))[1].nbytes)


def error(b: Backend, ours: list[Array], theirs: list[Array]) -> float:
    """The largest difference over the largest value, the worst of the arrays; infinite where shapes differ."""
    if [tuple(a.shape) for a in ours] != [tuple(a.shape) for a in theirs]:
        return math.inf
    worst = 0.0
    for a, other in zip(ours, theirs, strict=True):
        wide = b.xp.float64 if backends.dtype_name(b, a) == "float64" else b.xp.float32
        a, other = a.astype(wide), other.astype(wide)
        most = float(b.xp.max(b.xp.abs(other))) if a.size else 0.0
        difference = float(b.xp.max(b.xp.abs(a - other))) if a.size else 0.0
        found = difference / most if most else difference
        worst = found if math.isnan(found) else max(worst, found)
        if math.isnan(worst):
            return math.nan
    return worst


def same_bits(b: Backend, first: list[Array], again: list[Array]) -> Any:
    """Whether two results are the same bit for bit: an array that nobody has waited for yet."""
    unsigned = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
    equal = b.xp.asarray(True)
    for one, other in zip(first, again, strict=True):
        bits = unsigned[one.dtype.itemsize]
        one, other = (b.xp.ascontiguousarray(a).view(bits) for a in (one, other))
        equal = b.xp.logical_and(equal, b.xp.all(one == other))
    return equal
