"""Batch normalisation, over one process or, with `comm`, over all ranks. The rules are those of norm.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import DataFormat, flag, layout, real
from cnnlayers.specs.norm import Norm, Rows, batch_rows

from .arrays import Array, cast
from .call_plan import CallPlan, Context, inference_of, on_device, plan_of
from .checks import check_parameter
from .norm import checked_eps, norm_backend, norm_backward, norm_forward, norm_plan, single_values_error
from .norm_math import Statistics, forward_with_computed_stats, forward_with_running_stats, reciprocal_std

NEEDS_TWO_VALUES = "batch statistics need two; training=False uses the running ones"


def _check_running(b: Backend, rows: Rows, mean: Array | None, var: Array | None) -> None:
    """The running statistics, if there are any, must be both, and of the right shape."""
    if (mean is None) != (var is None):
        missing = "running_mean" if mean is None else "running_var"
        raise ValueError(f"running_mean and running_var belong together, got no {missing}: give both or neither")
    for name, array in (("running_mean", mean), ("running_var", var)):
        check_parameter(b, array, name, rows.parameter)


def _check_writeable(**running: Array | None) -> None:
    """ValueError for a read-only array that training would write to, or for two that share memory."""
    for name, array in running.items():
        if not getattr(getattr(array, "flags", None), "writeable", True):
            raise ValueError(f"{name} is updated in training, got a read-only array: pass a copy")
    mean, var = running.values()
    if mean is not None and backends.share_memory(mean, var):
        raise ValueError("running_mean and running_var share memory, and training updates each in place: pass copies")


def _checked_comm(comm: Any) -> Any:
    if comm is not None and not callable(getattr(comm, "allreduce", None)):
        raise TypeError(f"comm must have an allreduce, as mpi4py's communicators do, got {type(comm).__name__}")
    return comm


def _update_running_stats(b: Backend, norm: Norm, running: Sequence[Array], stats: Statistics) -> None:
    """Update running mean and variance in place by a batch's."""
    var = stats.var * (stats.n / (stats.n - 1)) if norm.unbiased and stats.n > 1 else stats.var
    for old, new in zip(running, (stats.mean, var), strict=True):
        blend = (1.0 - norm.momentum) * cast(b, old, b.xp.float64) + norm.momentum * b.xp.reshape(new, old.shape)
        old[...] = cast(b, blend, old.dtype)


def _batch_norm_forward(
    b: Backend, norm: Norm, x: Array, gamma: Array | None, beta: Array | None, *running: Array
) -> tuple[Array, Array | None, Array]:
    """y, mean and rstd by the batch's statistics, the running mean and variance updated unless they are None; or by
    these where `norm.use_running_stats`."""
    rows = norm.rows
    if norm.use_running_stats:
        # Copies: the context must not follow later updates in place.
        mean, var = (b.xp.asarray(b.xp.reshape(r, rows.parameter_view), dtype=b.xp.float64, copy=True) for r in running)
        rstd = reciprocal_std(b, var, rows.eps)
        return forward_with_running_stats(b, norm, x, gamma, beta, mean, rstd), mean, rstd
    y, stats = forward_with_computed_stats(b, norm, x, gamma, beta)
    if norm.training and stats.n == 1 and rows.parameter != (0,):  # only now is the count over all ranks known
        raise single_values_error(rows, "channel over all ranks in training", NEEDS_TWO_VALUES)
    if norm.training and running[0] is not None and stats.n:
        _update_running_stats(b, norm, running, stats)
    return y, stats.mean, stats.rstd


def _batch_norm_plan(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array | None, var: Array | None, *options: Any
) -> CallPlan:
    """The plan of a batch norm. mean, var: the running ones; options: training, momentum, eps, unbiased, comm and
    data_format."""
    training, momentum, eps, unbiased, comm, data_format = options
    b = norm_backend(x, gamma=gamma, beta=beta, running_mean=mean, running_var=var)
    rows = batch_rows(layout(tuple(x.shape), data_format, least=0), checked_eps(eps))
    training, unbiased, momentum = flag(training, "training"), flag(unbiased, "unbiased"), real(momentum, "momentum")
    _check_running(b, rows, mean, var)
    plan = norm_plan(
        "batch_norm",
        b,
        x,
        rows,
        gamma,
        beta,
        comm=_checked_comm(comm),
        use_running_stats=mean is not None and not training,
        training=training,
        momentum=momentum,
        unbiased=unbiased,
    )
    if comm is None and training and rows.count == 1 and rows.parameter != (0,):
        raise single_values_error(rows, "channel in training", NEEDS_TWO_VALUES)
    return plan


@on_device
def batch_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased: bool = True,
    comm: Any = None,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Batch normalisation: y = (x - mean) / sqrt(var + eps) * gamma + beta, for each channel.

    Parameters
    ----------
    x : array
        (N, C), (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); floating.
    gamma, beta : array or None
        (C,): the scale and shift, floating; None for neither.
    running_mean, running_var : array or None
        (C,), floating, both or neither. In training they are updated in place:
        new = (1 - momentum) * old + momentum * batch. In evaluation they are the mean and variance.
    training : bool
        Use the mean and variance of the batch. Without running statistics evaluation does so, too.
    momentum : float
        The weight of the batch in the running statistics, any real number.
    eps : float
        Added to the variance, not negative.
    unbiased : bool
        Whether the running variance divides by n - 1; the variance that normalises always divides by n.
    comm : communicator or None
        mpi4py's, or another with its `allreduce`: the batch is that of all ranks, and all of them must call.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `batch_norm_backward`; `batch_norm` returns y alone. It refers to x and gamma, and has mean and 1 / sqrt(var
        + eps) of each channel.

    Raises
    ------
    ValueError
        One value per channel in training, one running array without the other or read-only in training, a negative eps,
        another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Notes
    -----
    Half types are computed in float32. The variance is that of centred values. A NaN makes
    its whole channel NaN. An empty batch leaves the running statistics as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.batch_norm(np.array([[1.0], [3.0]]), training=True, eps=0.0)
    array([[-1.],
           [ 1.]])

    References
    ----------
    Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; torch.nn.functional.batch_norm
    """
    arrays = x, gamma, beta, running_mean, running_var
    plan = plan_of(_batch_norm_plan, arrays, training, momentum, eps, unbiased, comm, data_format)
    if training:
        _check_writeable(running_mean=running_mean, running_var=running_var)
    return norm_forward(plan, _batch_norm_forward, *arrays)


batch_norm = inference_of(batch_norm_forward)


@on_device
def batch_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `batch_norm`.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `batch_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma, dbeta : array or None
        (C,), of the parameters' dtypes; None for what was not given.

    Notes
    -----
    With xhat = (x - mean) * rstd, rstd = 1 / sqrt(var + eps) and n cells in a channel:

        dbeta = sum(dy)
        dgamma = sum(dy * xhat)
        dx = gamma * rstd * (dy - dbeta / n - xhat * dgamma / n)

    and dx = gamma * rstd * dy where running statistics were used. With comm all ranks must call: the sums inside dx are
    those of all ranks, dgamma and dbeta are this rank's own part.
    """
    return norm_backward("batch_norm", dy, ctx)
