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
from cnnlayers.specs.norm import Norm, Rows, group_rows, instance_rows, trailing_rows

from .batching import LOOP, Rule
from .library import Op, context
from .windows import FORMAT, register

Shape = Sequence[int]
PARAMETERS = "Tensor? gamma=None, Tensor? beta=None"


def statistics_shape(rows: Rows) -> Shape:
    """The shape of a statistics group's numbers."""
    return tuple(1 if axis in rows.axes else n for axis, n in enumerate(rows.view))


def norm_of(rows: Rows, gamma: Any, beta_like: Any, **more: Any) -> Norm:
    gamma_dtype, beta_dtype = (None if p is None else p.dtype for p in (gamma, beta_like))
    return Norm(rows, gamma_dtype, beta_dtype, **more)


def fake_gradients(rows: Rows, dy: torch.Tensor, gamma: Any, beta_like: Any) -> Any:
    """dx, dgamma and dbeta; of a parameter that was not given, no cells."""
    given = [dy.new_empty(0) if p is None else p.new_empty(rows.parameter) for p in (gamma, beta_like)]
    return dy.new_empty(rows.shape), *given


def _beta_like(dy: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor | None:
    """Stands for beta, of which backward needs the dtype alone."""
    return None if dtype is None else dy.new_empty(0, dtype=dtype)


def _register(
    op: str, before: str, after: str, rows_of: Callable[..., Rows], rule: Rule, names: Sequence[str]
) -> tuple[Op, Op, Op]:
    """Register a norm whose statistics are always its own.

    `before`, `after`: its options before and after gamma and beta, in the schema. `rows_of(shape, *options)`: its
    statistics groups. `names`: of the options, as F takes them.
    """
    first = before.count(",") + 1 if before else 0
    head = f"Tensor x, {before}{', ' if before else ''}{PARAMETERS}, {after}"

    def parted(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any, Any]:
        return (*args[:first], *args[first + 2 :]), args[first], args[first + 1]

    def forward(x: Any, *args: Any) -> Any:
        options, gamma, beta = parted(args)
        y, ctx = getattr(F, f"{op}_forward")(x, gamma=gamma, beta=beta, **dict(zip(names, options, strict=True)))
        return y, ctx.arrays["mean"], ctx.arrays["rstd"]

    def fake_forward(x: torch.Tensor, *args: Any) -> Any:
        statistics = statistics_shape(rows_of(tuple(x.shape), *parted(args)[0]))
        return x.new_empty(x.shape), *(x.new_empty(statistics, dtype=torch.float64) for _ in range(2))

    def backward(dy: Any, x: Any, gamma: Any, beta_like: Any, mean: Any, rstd: Any, *options: Any) -> Any:
        rows = rows_of(tuple(x.shape), *options)
        norm = norm_of(rows, gamma, beta_like)
        return getattr(F, f"{op}_backward")(dy, context(op, x, norm, x=x, mean=mean, rstd=rstd, gamma=gamma))

    def fake_backward(dy: torch.Tensor, x: torch.Tensor, gamma: Any, beta: Any, *rest: Any) -> Any:
        return fake_gradients(rows_of(tuple(x.shape), *rest[2:]), dy, gamma, beta)

    options = f"{before}, {after}" if before else after
    ops = (
        Op(
            f"{op}({head}) -> Tensor",
            lambda *args: forward(*args)[0],
            lambda x, *args: fake_forward(x, *args)[0],
            rule,
        ),
        Op(f"{op}_forward({head}) -> (Tensor, Tensor, Tensor)", forward, fake_forward, _threefold(rule)),
        Op(
            f"{op}_backward(Tensor dy, Tensor x, Tensor? gamma, Tensor? beta_like, Tensor mean, Tensor rstd, {options})"
            " -> (Tensor, Tensor, Tensor)",
            backward,
            fake_backward,
            LOOP,
        ),
    )

    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        ctx.options, gamma, beta = parted(inputs[1:])
        ctx.save_for_backward(inputs[0], gamma, *outputs[1:])
        ctx.beta_dtype = None if beta is None else beta.dtype

    def derive(ctx: Any, dy: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * ctx.number
        x, gamma, mean, rstd = ctx.saved_tensors
        beta = _beta_like(dy, ctx.beta_dtype)
        dx, dgamma, dbeta = ops[2](dy, x, gamma, beta, mean, rstd, *ctx.options)
        parameters = (None if gamma is None else dgamma, None if beta is None else dbeta)
        return dx, *(None,) * first, *parameters, *(None,) * (ctx.number - 3 - first)

    ops[0].recorded_as(ops[1], ops[1].differentiable(save, derive))
    ops[2].last(op)
    return ops


def _threefold(rule: Rule) -> Rule:
    return Rule(rule.samples, (0, 0, 0), rule.stacked)


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


# ------------------------------------------------------------------------------------------------------------ rms_norm
def _rms_rows(x: Any, normalized: Shape, eps: float | None) -> Rows:
    # Backward reads eps nowhere: rstd has it.
    return trailing_rows(tuple(x.shape), trailing(tuple(x.shape), normalized), eps or 0.0, centred=False)


def _rms_norm_forward(x: Any, normalized: Shape, gamma: Any, eps: float | None) -> Any:
    y, ctx = F.rms_norm_forward(x, normalized, gamma, eps=eps)
    return y, ctx.arrays["rstd"]


def _fake_rms_norm_forward(x: torch.Tensor, normalized: Shape, gamma: Any, eps: float | None) -> Any:
    statistics = statistics_shape(_rms_rows(x, normalized, eps))
    return x.new_empty(x.shape), x.new_empty(statistics, dtype=torch.float64)


def _rms_norm_backward(dy: Any, x: Any, gamma: Any, rstd: Any, normalized: Shape, eps: float | None) -> Any:
    norm = norm_of(_rms_rows(x, normalized, eps), gamma, None)
    return F.rms_norm_backward(dy, context("rms_norm", x, norm, x=x, mean=None, rstd=rstd, gamma=gamma))


def _fake_rms_norm_backward(dy: torch.Tensor, x: torch.Tensor, gamma: Any, rstd: Any, *options: Any) -> Any:
    return fake_gradients(_rms_rows(x, *options), dy, gamma, None)[:2]


def _save_rms(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
    x, normalized, gamma, eps = inputs
    ctx.save_for_backward(x, gamma, outputs[1])
    ctx.options = normalized, eps


def _derive_rms(ctx: Any, dy: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 4
    x, gamma, rstd = ctx.saved_tensors
    dx, dgamma = rms_norm_backward(dy, x, gamma, rstd, *ctx.options)
    return dx, None, None if gamma is None else dgamma, None


RMS = "SymInt[] normalized_shape, Tensor? gamma=None, float? eps=None"
rms_norm = Op(
    f"rms_norm(Tensor x, {RMS}) -> Tensor",
    lambda *args: _rms_norm_forward(*args)[0],
    lambda *args: _fake_rms_norm_forward(*args)[0],
    Rule({0: 0}, stacked=True),
)
rms_norm_forward = Op(
    f"rms_norm_forward(Tensor x, {RMS}) -> (Tensor, Tensor)",
    _rms_norm_forward,
    _fake_rms_norm_forward,
    Rule({0: 0}, (0, 0), stacked=True),
)
rms_norm_backward = Op(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor? gamma, Tensor rstd, SymInt[] normalized_shape, float? eps=None)"
    " -> (Tensor, Tensor)",
    _rms_norm_backward,
    _fake_rms_norm_backward,
    LOOP,
)
rms_norm.recorded_as(rms_norm_forward, rms_norm_forward.differentiable(_save_rms, _derive_rms))
rms_norm_backward.last("rms_norm")


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
