"""Normalisation: batch, group, instance, layer and RMS norm, each a choice of rows for the mathematics of rows.py.

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
from cnnlayers.specs.arguments import DataFormat, Size, flag, grouped, layout, real, trailing

from . import row_chunks
from ._common import (
    Array,
    Context,
    Plan,
    accumulator_dtype,
    cast,
    check_backward,
    check_floating,
    check_parameter,
    common_backend,
    inference_of,
    on_device,
    plan_of,
)
from .norm_math import Norm, Rows, Statistics, batch_rows, group_rows, instance_rows, reciprocal_std, trailing_rows

ALONE = "batch statistics need two; training=False uses the running ones"


def _eps(value: Any) -> float:
    number = real(value, "eps")
    if number < 0:
        raise ValueError(f"eps must not be negative, got {value!r}")
    return number


def _owner(x: Array, **others: Array | None) -> Backend:
    """The owner of all the arrays of a call, x being floating."""
    b = common_backend(x=x, **others)
    check_floating(b, x, "x")
    return b


def _check_group_size(lone: bool, rows: Rows, row: str, remedy: str) -> None:
    """The ValueError where each row is a single value."""
    if lone:
        raise ValueError(f"x must have more than one value per {row}, got shape {rows.shape}: {remedy}")


def _norm(b: Backend, rows: Rows, gamma: Array | None, beta: Array | None, **more: Any) -> Norm:
    """The norm, once its parameters are known to have the right shape and a floating dtype."""
    check_parameter(b, gamma, "gamma", rows.parameter)
    check_parameter(b, beta, "beta", rows.parameter)
    return Norm(rows, None if gamma is None else gamma.dtype, None if beta is None else beta.dtype, **more)


def _forward_own_stats(
    b: Backend, norm: Norm, x: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array]:
    """y, mean and rstd where the rows have statistics of their own."""
    y, stats = row_chunks.forward(b, norm, x, gamma, beta)
    return y, stats.mean, stats.rstd


def _plan(op: str, b: Backend, x: Array, norm: Norm) -> Plan:
    return Plan(op, b, x.dtype, norm.rows.shape, norm)


def _forward(
    plan: Plan, portable: Any, x: Array, gamma: Array | None, beta: Array | None, *more: Any
) -> tuple[Array, Context]:
    y, mean, rstd = plan.run(f"{plan.op}_forward", portable, x, gamma, beta, *more)
    for_dgamma_alone = gamma is None and plan.spec.use_running_stats
    return y, Context(plan, {"x": None if for_dgamma_alone else x, "mean": mean, "rstd": rstd, "gamma": gamma})


def _backward(op: str, dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    b, dy = check_backward(op, dy, ctx, exact=True)
    kept = [ctx.arrays[name] for name in ("x", "mean", "rstd", "gamma")]
    dx, dgamma, dbeta = ctx.plan.run(f"{op}_backward", row_chunks.backward, dy, *kept)
    return cast(b, dx, ctx.dtype), dgamma, dbeta


# --------------------------------------------------------------------------------------------------------------- batch
def _check_running(b: Backend, rows: Rows, mean: Array | None, var: Array | None) -> None:
    """The running statistics, if there are any, must be both, and of the right shape."""
    if (mean is None) != (var is None):
        missing = "running_mean" if mean is None else "running_var"
        raise ValueError(f"running_mean and running_var belong together, got no {missing}: give both or neither")
    for name, array in (("running_mean", mean), ("running_var", var)):
        check_parameter(b, array, name, rows.parameter)


def _check_writeable(**running: Array | None) -> None:
    """ValueError for a read-only array that training would write to."""
    for name, array in running.items():
        if not getattr(getattr(array, "flags", None), "writeable", True):
            raise ValueError(f"{name} is updated in training, got a read-only array: pass a copy")


def _reducing(comm: Any) -> Any:
    if comm is not None and not callable(getattr(comm, "allreduce", None)):
        raise TypeError(f"comm must have an allreduce, as mpi4py's communicators do, got {type(comm).__name__}")
    return comm


def _track(b: Backend, norm: Norm, running: tuple[Array, Array], stats: Statistics) -> None:
    """Update running mean and variance in place by a batch's."""
    var = stats.var * (stats.n / (stats.n - 1)) if norm.unbiased and stats.n > 1 else stats.var
    for old, new in zip(running, (stats.mean, var), strict=True):
        blend = (1.0 - norm.momentum) * cast(b, old, b.xp.float64) + norm.momentum * b.xp.reshape(new, old.shape)
        old[...] = cast(b, blend, old.dtype)


def _batch_norm_forward(
    b: Backend,
    norm: Norm,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
) -> tuple[Array, Array | None, Array]:
    """y, mean and rstd by the batch's statistics, the running ones updated where there are any, or by the running ones
    where `norm.use_running_stats`."""
    rows = norm.rows
    if norm.use_running_stats:
        # Copies: the context must not follow later updates in place.
        mean, var = (
            b.xp.asarray(b.xp.reshape(r, rows.parameter_view), dtype=b.xp.float64, copy=True)
            for r in (running_mean, running_var)
        )
        rstd = reciprocal_std(b, var, rows.eps)
        return row_chunks.forward_with_running_stats(b, norm, x, gamma, beta, mean, rstd), mean, rstd
    y, stats = row_chunks.forward(b, norm, x, gamma, beta)
    # Only now is the count over all ranks known, to each of them.
    lone = norm.training and stats.n == 1 and rows.parameter != (0,)
    _check_group_size(lone, rows, "channel over all ranks in training", ALONE)
    if norm.training and running_mean is not None and stats.n:
        _track(b, norm, (running_mean, running_var), stats)
    return y, stats.mean, stats.rstd


def _batch_norm_plan(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: Any,
    momentum: Any,
    eps: Any,
    unbiased: Any,
    comm: Any,
    data_format: Any,
) -> Plan:
    b = _owner(x, gamma=gamma, beta=beta, running_mean=running_mean, running_var=running_var)
    rows = batch_rows(layout(tuple(x.shape), data_format, least=0), _eps(eps))
    training, unbiased, momentum = flag(training, "training"), flag(unbiased, "unbiased"), real(momentum, "momentum")
    _check_running(b, rows, running_mean, running_var)
    norm = _norm(
        b,
        rows,
        gamma,
        beta,
        comm=_reducing(comm),
        use_running_stats=running_mean is not None and not training,
        training=training,
        momentum=momentum,
        unbiased=unbiased,
    )
    if comm is None:
        lone = training and rows.count == 1 and rows.parameter != (0,)
        _check_group_size(lone, rows, "channel in training", ALONE)
    return _plan("batch_norm", b, x, norm)


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
    Half types are computed in float32. The variance is that of centred values, computed in a second pass. A NaN makes
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
    return _forward(plan, _batch_norm_forward, *arrays)


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
    return _backward("batch_norm", dy, ctx)


# ------------------------------------------------------------------------------------------------- group and instance
def _group_norm_plan(
    x: Array, gamma: Array | None, beta: Array | None, num_groups: Any, eps: Any, data_format: Any
) -> Plan:
    b = _owner(x, gamma=gamma, beta=beta)
    lay = layout(tuple(x.shape), data_format, least=0)
    rows = group_rows(lay, grouped(lay.channels, num_groups), _eps(eps))
    _check_group_size(rows.count == 1 and 0 not in rows.shape, rows, "group", "take fewer groups")
    return _plan("group_norm", b, x, _norm(b, rows, gamma, beta))


@on_device
def group_norm_forward(
    x: Array,
    num_groups: int,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Group normalisation: y = (x - mean) / sqrt(var + eps) * gamma + beta, for groups of channels of a sample.

    Parameters
    ----------
    x : array
        (N, C), (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); floating.
    num_groups : int
        Each sample's channels are divided into this many groups of C / num_groups neighbours.
    gamma, beta : array or None
        (C,): the scale and shift, floating; None for neither.
    eps : float
        Added to the variance, not negative.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `group_norm_backward`; `group_norm` returns y alone. It refers to x and gamma, and has two numbers a group.

    Raises
    ------
    ValueError
        num_groups that does not divide C, one value per group, a negative eps, another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Notes
    -----
    Half types are computed in float32. The variance is that of centred values, computed in a second pass. A NaN makes
    its whole group NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.group_norm(np.array([[1.0, 3.0, 5.0, 9.0]]), 2, eps=0.0)
    array([[-1.,  1., -1.,  1.]])

    References
    ----------
    Wu and He 2018, https://arxiv.org/abs/1803.08494; torch.nn.functional.group_norm
    """
    plan = plan_of(_group_norm_plan, (x, gamma, beta), num_groups, eps, data_format)
    return _forward(plan, _forward_own_stats, x, gamma, beta)


group_norm = inference_of(group_norm_forward)


@on_device
def group_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `group_norm`.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `group_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma, dbeta : array or None
        (C,), of the parameters' dtypes; None for what was not given.

    Notes
    -----
    With dxhat = dy * gamma and n cells in a group, both sums over the group:

        dx = rstd * (dxhat - sum(dxhat) / n - xhat * sum(dxhat * xhat) / n)
    """
    return _backward("group_norm", dy, ctx)


def _instance_norm_plan(x: Array, gamma: Array | None, beta: Array | None, eps: Any, data_format: Any) -> Plan:
    b = _owner(x, gamma=gamma, beta=beta)
    rows = instance_rows(layout(tuple(x.shape), data_format, least=0), _eps(eps))
    _check_group_size(rows.count == 1 and 0 not in rows.shape, rows, "instance", "it needs two spatial cells or more")
    return _plan("instance_norm", b, x, _norm(b, rows, gamma, beta))


@on_device
def instance_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Instance normalisation: y = (x - mean) / sqrt(var + eps) * gamma + beta, for each channel of a sample.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C), with more than one cell in a plane;
        floating.
    gamma, beta : array or None
        (C,): the scale and shift, floating; None for neither.
    eps : float
        Added to the variance, not negative.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `instance_norm_backward`; `instance_norm` returns y alone. It refers to x and gamma, and has two numbers a
        plane.

    Raises
    ------
    ValueError
        One value per plane, as (N, C) always has, a negative eps, another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Notes
    -----
    Half types are computed in float32. The variance is that of centred values, computed in a second pass. A NaN makes
    its whole plane NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.instance_norm(np.array([[[1.0, 3.0], [5.0, 9.0]]]), eps=0.0)
    array([[[-1.,  1.],
            [-1.,  1.]]])

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky 2016, https://arxiv.org/abs/1607.08022; torch.nn.functional.instance_norm
    """
    plan = plan_of(_instance_norm_plan, (x, gamma, beta), eps, data_format)
    return _forward(plan, _forward_own_stats, x, gamma, beta)


instance_norm = inference_of(instance_norm_forward)


@on_device
def instance_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `instance_norm`: as `group_norm_backward`'s, with one channel a group.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `instance_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma, dbeta : array or None
        (C,), of the parameters' dtypes; None for what was not given.
    """
    return _backward("instance_norm", dy, ctx)


# ------------------------------------------------------------------------------------------------------ layer and RMS
def _layer_norm_plan(x: Array, gamma: Array | None, beta: Array | None, normalized_shape: Any, eps: Any) -> Plan:
    b = _owner(x, gamma=gamma, beta=beta)
    shape = tuple(x.shape)
    rows = trailing_rows(shape, trailing(shape, normalized_shape), _eps(eps))
    return _plan("layer_norm", b, x, _norm(b, rows, gamma, beta))


@on_device
def layer_norm_forward(
    x: Array, normalized_shape: Size, gamma: Array | None = None, beta: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, Context]:
    """Layer normalisation: y = (x - mean) / sqrt(var + eps) * gamma + beta, over the last axes.

    Parameters
    ----------
    x : array
        Any shape of at least one axis, floating.
    normalized_shape : int or sequence of int
        The lengths of the last axes, which share a mean and a variance.
    gamma, beta : array or None
        normalized_shape: the scale and shift, floating; None for neither.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `layer_norm_backward`; `layer_norm` returns y alone. It refers to x and gamma, and has two numbers a row.

    Raises
    ------
    ValueError
        A normalized_shape that x's shape does not end with, a negative eps, another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Notes
    -----
    Half types are computed in float32. The variance is that of centred values, computed in a second pass. A NaN makes
    its whole row NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.layer_norm(np.array([[1.0, 3.0], [5.0, 9.0]]), 2, eps=0.0)
    array([[-1.,  1.],
           [-1.,  1.]])

    References
    ----------
    Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450; torch.nn.functional.layer_norm
    """
    plan = plan_of(_layer_norm_plan, (x, gamma, beta), normalized_shape, eps)
    return _forward(plan, _forward_own_stats, x, gamma, beta)


layer_norm = inference_of(layer_norm_forward)


@on_device
def layer_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `layer_norm`: dx as `group_norm_backward`'s, with sums over the last axes.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `layer_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma, dbeta : array or None
        normalized_shape, of the parameters' dtypes; None for what was not given.
    """
    return _backward("layer_norm", dy, ctx)


def _rms_norm_plan(x: Array, gamma: Array | None, normalized_shape: Any, eps: Any) -> Plan:
    b = _owner(x, gamma=gamma)
    small = _eps(float(b.xp.finfo(accumulator_dtype(b, x.dtype)).eps) if eps is None else eps)
    shape = tuple(x.shape)
    rows = trailing_rows(shape, trailing(shape, normalized_shape), small, centred=False)
    return _plan("rms_norm", b, x, _norm(b, rows, gamma, None))


@on_device
def rms_norm_forward(
    x: Array, normalized_shape: Size, gamma: Array | None = None, *, eps: float | None = None
) -> tuple[Array, Context]:
    """RMS normalisation: y = x / sqrt(mean(x**2) + eps) * gamma, the mean over the last axes.

    Parameters
    ----------
    x : array
        Any shape of at least one axis, floating.
    normalized_shape : int or sequence of int
        The lengths of the last axes, which share a mean square.
    gamma : array or None
        normalized_shape: the scale, floating.
    eps : float or None
        Added to the mean square, not negative. None is the epsilon of the dtype that x is computed in: 2**-52 for
        float64, 2**-23 for float32 and half types.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `rms_norm_backward`; `rms_norm` returns y alone. It refers to x and gamma, and has a number a row.

    Raises
    ------
    ValueError
        A normalized_shape that x's shape does not end with, a negative eps, another shape.
    TypeError
        Another dtype or kind of argument, arrays of different owners.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.rms_norm(np.array([[3.0, 4.0, 0.0, 0.0]]), 4, eps=0.0)
    array([[1.2, 1.6, 0. , 0. ]])

    References
    ----------
    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467; torch.nn.functional.rms_norm
    """
    plan = plan_of(_rms_norm_plan, (x, gamma), normalized_shape, eps)
    return _forward(plan, _forward_own_stats, x, gamma, None)


rms_norm = inference_of(rms_norm_forward)


@on_device
def rms_norm_backward(dy: Array, ctx: Context) -> tuple[Array, Array | None]:
    """Gradients of `rms_norm`.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `rms_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.
    dgamma : array or None
        normalized_shape, of gamma's dtype; None without gamma.

    Notes
    -----
    With dxhat = dy * gamma and n cells in a row: dx = rstd * (dxhat - xhat * sum(dxhat * xhat) / n).
    """
    dx, dgamma, _ = _backward("rms_norm", dy, ctx)
    return dx, dgamma
