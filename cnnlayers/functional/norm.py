"""Normalisation: batch, group, instance, layer and RMS norm, each a choice of rows for the mathematics of norm_math.py.

| norm     | a row, normalised on its own                           | gamma and beta       |
| -------- | ------------------------------------------------------ | -------------------- |
| batch    | a channel over all samples (and, with comm, all ranks) | one pair a channel   |
| group    | a group of adjacent channels of a sample               | one pair a channel   |
| instance | a channel of a sample                                  | one pair a channel   |
| layer    | what lies along the last axes                          | one pair a cell      |
| RMS      | the same, neither centred nor shifted                  | gamma alone          |

Rules of the family: y has x's shape, dtype and layout. The variance is the biased one; only the running variance may be
the unbiased. Statistics are float64, other arithmetic float32, or float64 where x is. A row of one cell, whose y would
be beta whatever x is, is refused by batch norm in training, by group and instance norm; an empty x is not. The context
keeps x itself, not xhat, with gamma and the statistics of each row.
"""

from __future__ import annotations

from typing import Any

from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import real
from cnnlayers.specs.norm import Norm, Rows, norm_of

from .arrays import Array, cast
from .call_plan import CallPlan, Context, check_backward
from .checks import check_floating, check_parameter, common_backend
from .norm_math import backward_with_computed_stats, backward_with_running_stats, forward_with_computed_stats


def checked_eps(value: Any) -> float:
    number = real(value, "eps")
    if number < 0:
        raise ValueError(f"eps must not be negative, got {value!r}")
    return number


def norm_backend(x: Array, **others: Array | None) -> Backend:
    """The owner of all the arrays of a call, x being floating."""
    b = common_backend(x=x, **others)
    check_floating(b, x, "x")
    return b


def single_values_error(rows: Rows, row: str, remedy: str) -> ValueError:
    """What to raise where each row is a single value, which is its own mean."""
    return ValueError(f"x must have more than one value per {row}, got shape {rows.shape}: {remedy}")


def forward_saving_stats(
    b: Backend, norm: Norm, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array]:
    """y, and the mean and rstd that were computed from x, for the context."""
    y, stats = forward_with_computed_stats(b, norm, x, gamma, beta)
    return y, stats.mean, stats.rstd


def norm_plan(
    op: str, b: Backend, x: Array, rows: Rows, gamma: Array | None, beta: Array | None, **more: Any
) -> CallPlan:
    """The plan of a norm, once its parameters are known to have the right shape and a floating dtype. `more`: fields of
    `Norm` that are batch norm's."""
    check_parameter(b, gamma, "gamma", rows.parameter)
    check_parameter(b, beta, "beta", rows.parameter)
    return CallPlan(op, b, x.dtype, rows.shape, norm_of(rows, gamma, beta, **more))


def norm_forward(
    plan: CallPlan, portable: Any, x: Array, gamma: Array | None, beta: Array | None, *more: Any
) -> tuple[Array, Context]:
    y, mean, rstd = plan.run(f"{plan.op}_forward", portable, x, gamma, beta, *more)
    x_unused = gamma is None and plan.spec.use_running_stats  # backward would need x for dgamma alone
    return y, Context(plan, {"x": None if x_unused else x, "mean": mean, "rstd": rstd, "gamma": gamma})


def norm_backward(op: str, dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    b, dy = check_backward(op, dy, ctx, exact=True)
    kept = [ctx.arrays[name] for name in ("x", "mean", "rstd", "gamma")]
    portable = backward_with_running_stats if ctx.spec.use_running_stats else backward_with_computed_stats
    dx, dgamma, dbeta = ctx.plan.run(f"{op}_backward", portable, dy, *kept)
    return cast(b, dx, ctx.dtype), dgamma, dbeta
