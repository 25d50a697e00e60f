"""Batch, group, instance, layer and RMS normalisation, and local response normalisation.

`<op>_forward` also gives the mean and the reciprocal standard deviation of each statistics group, float64, which with x
and gamma are what backward needs. batch_norm never writes to its arguments: its forward gives the new running
statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cnnlayers import functional as F
from cnnlayers.functional.local_response_norm import Response
from cnnlayers.specs.arguments import DataFormat, grouped, integer, layout, trailing
from cnnlayers.specs.norm import Rows, group_rows, instance_rows, norm_of, trailing_rows

from .batching import LOOP, Rule
from .library import Op, context, dtype_holder
from .windows import FORMAT, register

Shape = Sequence[int]


def statistics_shape(rows: Rows) -> Shape:
    """The shape of a statistics group's numbers."""
    return tuple(1 if axis in rows.axes else n for axis, n in enumerate(rows.view))


def fake_gradients(rows: Rows, dy: torch.Tensor, *parameters: Any) -> Any:
    """dx and the parameters' gradients; of a parameter that was not given, no cells."""
    found = (dy.new_empty(0) if p is None else p.new_empty(rows.parameter) for p in parameters)
    return dy.new_empty(rows.shape), *found


def _register(
    op: str,
    before: str,
    after: str,
    rows_of: Callable[..., Rows],
    rule: Rule,
    names: Sequence[str],
    *,
    parameters: Sequence[str] = ("gamma", "beta"),
    saved: Sequence[str] = ("mean", "rstd"),
) -> tuple[Op, Op, Op]:
    """Register a norm whose statistics are always its own.

    `before`, `after`: its options before and after the parameters, in the schema. `rows_of(shape, *options)`: its
    statistics groups. `names`: of the options, as F takes them. `saved`: the arrays of its context besides x and gamma.
    """
    first, number = before.count(",") + 1 if before else 0, len(parameters)
    options = f"{before}, {after}" if before else after
    optional = ", ".join(f"Tensor? {p}=None" for p in parameters)
    head = f"Tensor x, {before}, {optional}, {after}" if before else f"Tensor x, {optional}, {after}"
    kept = ", ".join(["Tensor? gamma", "Tensor? beta_like"][:number] + [f"Tensor {name}" for name in saved])

    def results(several: Sequence[str]) -> str:
        return f"(Tensor{', Tensor' * len(several)})"

    def parted(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Options and parameters."""
        return (*args[:first], *args[first + number :]), args[first : first + number]

    def forward(x: Any, *args: Any) -> Any:
        given, values = parted(args)
        named = dict(zip((*names, *parameters), (*given, *values), strict=True))
        y, ctx = getattr(F, f"{op}_forward")(x, **named)
        return y, *(ctx.arrays[name] for name in saved)

    def fake_forward(x: torch.Tensor, *args: Any) -> Any:
        statistics = statistics_shape(rows_of(tuple(x.shape), *parted(args)[0]))
        return x.new_empty(x.shape), *(x.new_empty(statistics, dtype=torch.float64) for _ in saved)

    def backward(dy: Any, x: Any, *args: Any) -> Any:
        values, statistics, given = args[:number], args[number:][: len(saved)], args[number + len(saved) :]
        norm = norm_of(rows_of(tuple(x.shape), *given), *values)
        arrays = {"x": x, "gamma": values[0], "mean": None, **dict(zip(saved, statistics, strict=True))}
        return getattr(F, f"{op}_backward")(dy, context(op, x, norm, **arrays))

    def fake_backward(dy: torch.Tensor, x: torch.Tensor, *args: Any) -> Any:
        return fake_gradients(rows_of(tuple(x.shape), *args[number + len(saved) :]), dy, *args[:number])

    ops = (
        Op(f"{op}({head}) -> Tensor", lambda *args: forward(*args)[0], lambda *args: fake_forward(*args)[0], rule),
        Op(f"{op}_forward({head}) -> {results(saved)}", forward, fake_forward, _for_all(rule, 1 + len(saved))),
        Op(
            f"{op}_backward(Tensor dy, Tensor x, {kept}, {options}) -> {results(parameters)}",
            backward,
            fake_backward,
            LOOP,
        ),
    )

    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        ctx.options, (gamma, *beta) = parted(inputs[1:])
        ctx.save_for_backward(inputs[0], gamma, *outputs[1:])
        ctx.beta_dtypes = [None if b is None else b.dtype for b in beta]

    def derive(ctx: Any, dy: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * ctx.number
        x, gamma, *statistics = ctx.saved_tensors
        values = gamma, *(dtype_holder(dy, dtype) for dtype in ctx.beta_dtypes)
        dx, *found = ops[2](dy, x, *values, *statistics, *ctx.options)
        gradients = (None if p is None else g for p, g in zip(values, found, strict=True))
        return dx, *(None,) * first, *gradients, *(None,) * (ctx.number - 1 - first - number)

    ops[0].recorded_as(ops[1], ops[1].differentiable(save, derive))
    ops[2].refuse_second_derivative(op)
    return ops


def _for_all(rule: Rule, outputs: int) -> Rule:
    """The rule for an op with this number of outputs."""
    return Rule(rule.samples, (0,) * outputs, rule.stacked)


def _groups(shape: Shape, groups: int, eps: float, data_format: DataFormat) -> Rows:
    lay = layout(tuple(shape), data_format, least=0)
    return group_rows(lay, grouped(lay.channels, groups), eps)


group_norm, group_norm_forward, group_norm_backward = _register(
    "group_norm",
    "int num_groups",
    f"float eps=1e-5, {FORMAT}",
    _groups,
    Rule({0: 0}),
    ("num_groups", "eps", "data_format"),
)
instance_norm, instance_norm_forward, instance_norm_backward = _register(
    "instance_norm",
    "",
    f"float eps=1e-5, {FORMAT}",
    lambda shape, eps, data_format: instance_rows(layout(shape, data_format, least=0), eps),
    Rule({0: 0}),
    ("eps", "data_format"),
)
layer_norm, layer_norm_forward, layer_norm_backward = _register(
    "layer_norm",
    "SymInt[] normalized_shape",
    "float eps=1e-5",
    lambda shape, normalized, eps: trailing_rows(shape, trailing(shape, normalized), eps),
    Rule({0: 0}, stacked=True),
    ("normalized_shape", "eps"),
)
rms_norm, rms_norm_forward, rms_norm_backward = _register(
    "rms_norm",
    "SymInt[] normalized_shape",
    "float? eps=None",
    # Backward reads eps nowhere: rstd has it.
    lambda shape, normalized, eps: trailing_rows(shape, trailing(shape, normalized), eps or 0.0, centred=False),
    Rule({0: 0}, stacked=True),
    ("normalized_shape", "eps"),
    parameters=("gamma",),
    saved=("rstd",),
)


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
