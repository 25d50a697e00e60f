"""Batch, group, instance, layer and RMS normalisation, and local response normalisation.

`<op>_forward` also gives the mean and the reciprocal standard deviation of each statistics group, float64, which with x
and gamma are what backward needs. batch_norm never writes to its arguments: its forward gives the new running
statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cnnlayers import functional as F
from cnnlayers.functional.local_response_norm import Response
from cnnlayers.specs.arguments import DataFormat, grouped, integer, layout, trailing
from cnnlayers.specs.norm import Rows, group_rows, instance_rows, norm_of, trailing_rows

from .batching import LOOP, Rule
from .library import OPS, Op, context, dtype_holder, with_forward
from .windows import FORMAT, register

Shape = Sequence[int]


def statistics_shape(rows: Rows) -> Shape:
    """The shape of a statistics group's numbers."""
    return tuple(1 if axis in rows.axes else n for axis, n in enumerate(rows.view))


def fake_gradients(rows: Rows, dy: torch.Tensor, *parameters: Any) -> Any:
    """dx and the parameters' gradients; of a parameter that was not given, no cells."""
    found = (dy.new_empty(0) if p is None else p.new_empty(rows.parameter) for p in parameters)
    return dy.new_empty(rows.shape), *found


@dataclass(frozen=True)
class _Norm:
    """A norm whose statistics are always its own.

    before, after: its options before and after the parameters, in the schema; of those before there is one at most.
    names: of the options, as F takes them. rows_of(shape, *options): its statistics groups. saved: the arrays of its
    context besides x and gamma.
    """

    op: str
    before: str
    after: str
    names: str
    rows_of: Callable[..., Rows]
    parameters: Sequence[str] = ("gamma", "beta")
    saved: Sequence[str] = ("mean", "rstd")

    def register(self, rule: Rule) -> Op:
        """Register the norm, its forward and its backward; the norm."""
        parameters = ", ".join(f"Tensor? {p}=None" for p in self.parameters)
        inputs = ", ".join(filter(None, ("Tensor x", self.before, parameters, self.after)))
        values = ", ".join(["Tensor? gamma", "Tensor? beta_like"][: len(self.parameters)])
        arrays = ", ".join(f"Tensor {name}" for name in self.saved)
        needed = ", ".join(filter(None, ("Tensor dy, Tensor x", values, arrays, self.before, self.after)))
        outputs = 1 + len(self.saved)
        rules = rule, Rule(rule.samples, (0,) * outputs, rule.stacked)
        norm, recorded = with_forward(self.op, inputs, outputs, self.forward, self.fake_forward, rules)
        schema = f"{self.op}_backward({needed}) -> (Tensor{', Tensor' * len(self.parameters)})"
        gradient = Op(schema, self.backward, self.fake_backward, LOOP)
        norm.recorded_as(recorded, recorded.differentiable(self.save, self.derive))
        gradient.refuse_second_derivative(self.op)
        return norm

    def parted(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Options and parameters, of the inputs after x."""
        first, last = bool(self.before), bool(self.before) + len(self.parameters)
        return (*args[:first], *args[last:]), args[first:last]

    def forward(self, x: Any, *args: Any) -> Any:
        options, values = self.parted(args)
        named = dict(zip((*self.names.split(), *self.parameters), (*options, *values), strict=True))
        y, ctx = getattr(F, f"{self.op}_forward")(x, **named)
        return y, *(ctx.arrays[name] for name in self.saved)

    def fake_forward(self, x: torch.Tensor, *args: Any) -> Any:
        statistics = statistics_shape(self.rows_of(tuple(x.shape), *self.parted(args)[0]))
        return x.new_empty(x.shape), *(x.new_empty(statistics, dtype=torch.float64) for _ in self.saved)

    def backward(self, dy: Any, x: Any, *args: Any) -> Any:
        values, rest = args[: len(self.parameters)], args[len(self.parameters) :]
        norm = norm_of(self.rows_of(tuple(x.shape), *rest[len(self.saved) :]), *values)
        arrays = {"x": x, "gamma": values[0], "mean": None, **dict(zip(self.saved, rest, strict=False))}
        return getattr(F, f"{self.op}_backward")(dy, context(self.op, x, norm, **arrays))

    def fake_backward(self, dy: torch.Tensor, x: torch.Tensor, *args: Any) -> Any:
        values, options = args[: len(self.parameters)], args[len(self.parameters) + len(self.saved) :]
        return fake_gradients(self.rows_of(tuple(x.shape), *options), dy, *values)

    def save(self, ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        ctx.options, (gamma, *beta) = self.parted(inputs[1:])
        ctx.save_for_backward(inputs[0], gamma, *outputs[1:])
        ctx.beta_dtypes = [None if b is None else b.dtype for b in beta]

    def derive(self, ctx: Any, dy: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * ctx.number
        x, gamma, *statistics = ctx.saved_tensors
        values = gamma, *(dtype_holder(dy, dtype) for dtype in ctx.beta_dtypes)
        dx, *found = OPS[f"{self.op}_backward"](dy, x, *values, *statistics, *ctx.options)
        gradients = [None if p is None else g for p, g in zip(values, found, strict=True)]
        before = (None,) * bool(self.before)
        return dx, *before, *gradients, *(None,) * (ctx.number - 1 - len(before) - len(gradients))


def _groups(shape: Shape, groups: int, eps: float, data_format: DataFormat) -> Rows:
    lay = layout(tuple(shape), data_format, least=0)
    return group_rows(lay, grouped(lay.channels, groups), eps)


def _instances(shape: Shape, eps: float, data_format: DataFormat) -> Rows:
    return instance_rows(layout(tuple(shape), data_format, least=0), eps)


def _last_axes(shape: Shape, normalized_shape: Shape, eps: float) -> Rows:
    return trailing_rows(tuple(shape), trailing(tuple(shape), normalized_shape), eps)


def _uncentred(shape: Shape, normalized_shape: Shape, eps: float | None) -> Rows:
    """Backward reads eps nowhere: rstd has it."""
    return trailing_rows(tuple(shape), trailing(tuple(shape), normalized_shape), eps or 0.0, centred=False)


GROUPS, ENDS, EPS = "int num_groups", "SymInt[] normalized_shape", "normalized_shape eps"
BY_CHANNEL, BY_CELL = Rule({0: 0}), Rule({0: 0}, stacked=True)
OPTIONS = f"float eps=1e-5, {FORMAT}"
group_norm = _Norm("group_norm", GROUPS, OPTIONS, "num_groups eps data_format", _groups).register(BY_CHANNEL)
instance_norm = _Norm("instance_norm", "", OPTIONS, "eps data_format", _instances).register(BY_CHANNEL)
layer_norm = _Norm("layer_norm", ENDS, "float eps=1e-5", EPS, _last_axes).register(BY_CELL)
rms_norm = _Norm("rms_norm", ENDS, "float? eps=None", EPS, _uncentred, ("gamma",), ("rstd",)).register(BY_CELL)


# ------------------------------------------------------------------------------------------------- local_response_norm
def _local_response_norm(x: Any, size: int, alpha: float, beta: float, k: float, data_format: DataFormat) -> Any:
    return F.local_response_norm(x, size, alpha=alpha, beta=beta, k=k, data_format=data_format)


def _response(shape: Shape, size: int, *options: Any) -> tuple[Shape, Callable[[Any], Response]]:
    *numbers, data_format = options
    spec = Response(layout(tuple(shape), data_format, least=0), integer(size, "size", 1), *numbers)
    return shape, lambda x: spec


local_response_norm = register(
    "local_response_norm",
    f"int size, float alpha=1e-4, float beta=0.75, float k=1.0, {FORMAT}",
    _local_response_norm,
    _response,
    "x",
)
