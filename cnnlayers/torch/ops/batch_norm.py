"""Batch normalisation. No argument is written to: `batch_norm_forward` gives the new running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cnnlayers import functional as F
from cnnlayers.specs.arguments import DataFormat, layout
from cnnlayers.specs.norm import Rows, batch_rows, norm_of

from .batching import LOOP, Rule
from .library import Op, context, dtype_holder, with_forward
from .norms import fake_gradients, statistics_shape
from .windows import FORMAT

Shape = Sequence[int]
OPTIONS = "bool training=False, float momentum=0.1, float eps=1e-5, bool unbiased=True, int communicator=0, " + FORMAT
INPUTS = (
    f"Tensor x, Tensor? gamma=None, Tensor? beta=None, Tensor? running_mean=None, Tensor? running_var=None, {OPTIONS}"
)

# Objects whose `allreduce` joins the batches of all ranks, by the number that an op's argument gives them; 0: none.
_communicators: dict[int, Any] = {}


def number_of(comm: Any) -> int:
    """The number that stands for a communicator in a call; the object stays known for the process's life."""
    if comm is None:
        return 0
    known = next((number for number, other in _communicators.items() if other is comm), None)
    if known is None:
        known = len(_communicators) + 1
        _communicators[known] = comm
    return known


def _rows(shape: Shape, eps: float, data_format: DataFormat) -> Rows:
    return batch_rows(layout(tuple(shape), data_format, least=0), eps)


def _batch_norm_forward(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, *options: Any) -> Any:
    """y, mean, rstd and the running statistics, which are new where they were updated."""
    training, momentum, eps, unbiased, communicator, data_format = options
    running = [a if a is None or not training else a.copy() for a in (mean, var)]
    named = {"training": training, "momentum": momentum, "eps": eps, "unbiased": unbiased, "data_format": data_format}
    y, ctx = F.batch_norm_forward(x, gamma, beta, *running, comm=_communicators.get(communicator), **named)
    return y, ctx.arrays["mean"], ctx.arrays["rstd"], *(running if training else (None, None))


def _fake_forward(x: torch.Tensor, gamma: Any, beta: Any, mean: Any, var: Any, *options: Any) -> Any:
    training, _, eps, _, _, data_format = options
    statistics = statistics_shape(_rows(x.shape, eps, data_format))
    found = (x.new_empty(statistics, dtype=torch.float64) for _ in range(2))
    running = (x.new_empty(0) if a is None or not training else a.new_empty(a.shape) for a in (mean, var))
    return x.new_empty(x.shape), *found, *running


def _backward(
    dy: Any, x: Any, gamma: Any, beta_like: Any, mean: Any, rstd: Any, use_running_stats: bool, *options: Any
) -> Any:
    training, momentum, eps, unbiased, communicator, data_format = options
    more = {"comm": _communicators.get(communicator), "use_running_stats": use_running_stats, "training": training}
    norm = norm_of(_rows(dy.shape, eps, data_format), gamma, beta_like, **more, momentum=momentum, unbiased=unbiased)
    return F.batch_norm_backward(dy, context("batch_norm", dy, norm, x=x, mean=mean, rstd=rstd, gamma=gamma))


def _fake_backward(dy: torch.Tensor, x: Any, gamma: Any, beta_like: Any, *rest: Any) -> Any:
    return fake_gradients(_rows(dy.shape, rest[5], rest[8]), dy, gamma, beta_like)


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
    x, gamma, beta, running_mean, _, *options = inputs
    ctx.use_running_stats, ctx.options = running_mean is not None and not options[0], options
    ctx.beta_dtype = None if beta is None else beta.dtype
    needs_x = not ctx.use_running_stats or gamma is not None
    ctx.save_for_backward(x if needs_x else None, gamma, *outputs[1:3])


def _derive(ctx: Any, dy: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * ctx.number
    x, gamma, mean, rstd = ctx.saved_tensors
    beta_like = dtype_holder(dy, ctx.beta_dtype)
    dx, dgamma, dbeta = batch_norm_backward(dy, x, gamma, beta_like, mean, rstd, ctx.use_running_stats, *ctx.options)
    parameters = None if gamma is None else dgamma, None if beta_like is None else dbeta
    return dx, *parameters, *(None,) * (ctx.number - 3)


EVALUATION = Rule({0: 0}, when=lambda args: args[3] is not None and not args[5])
batch_norm, batch_norm_forward = with_forward(
    "batch_norm", INPUTS, 5, _batch_norm_forward, _fake_forward, (EVALUATION, LOOP)
)
batch_norm_backward = Op(
    "batch_norm_backward(Tensor dy, Tensor? x, Tensor? gamma, Tensor? beta_like, Tensor mean, Tensor rstd,"
    f" bool use_running_stats, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    LOOP,
)
batch_norm.recorded_as(batch_norm_forward, batch_norm_forward.differentiable(_save, _derive))
batch_norm_backward.refuse_second_derivative("batch_norm")
