"""Local response normalisation: each cell is divided by a power of what its neighbours in the channel axis hold.

    y[c] = x[c] / d[c]**beta,    d[c] = k + alpha / size * sum(x[j]**2 for j from c - size // 2 to c + (size - 1) // 2)

Channels outside the array count as 0, and alpha is divided by size (as PyTorch does; the paper does not). Loops run
over the window's offsets, of which no more are taken than there are channels. Half types are computed in float32. The
context keeps x alone: d is worked out again. A NaN spreads to the cells whose window holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import DataFormat, Layout, integer, layout, real

from .arrays import Array, accumulator_dtype, cast, in_accumulator_dtype, sum_dtype
from .call_plan import CallPlan, Context, inference_of, on_device, plan_of, run_backward
from .checks import check_floating


@dataclass(frozen=True)
class Response:
    """Local response normalisation of an array; `size`, `alpha`, `beta` and `k` as in the module's docstring."""

    layout: Layout
    size: int
    alpha: float
    beta: float
    k: float


def _channels(lay: Layout, start: int, stop: int) -> tuple[slice, ...]:
    return tuple(slice(start, stop) if axis == lay.channel else slice(None) for axis in range(len(lay.shape)))


def _window_sums(b: Backend, lay: Layout, a: Array, before: int, after: int) -> Array:
    """For each channel c, the sum of a's channels from c - before to c + after."""
    n = lay.channels
    sums = b.xp.astype(a, sum_dtype(b, before + 1 + after, a.dtype), copy=True)
    for offset in (*range(-min(before, n - 1), 0), *range(1, min(after, n - 1) + 1)):
        low, high = max(0, -offset), min(n, n - offset)
        sums[_channels(lay, low, high)] += a[_channels(lay, low + offset, high + offset)]
    return cast(b, sums, a.dtype)


def _denominator(b: Backend, spec: Response, x: Array) -> Array:
    sums = _window_sums(b, spec.layout, x * x, spec.size // 2, (spec.size - 1) // 2)
    return spec.alpha / spec.size * sums + spec.k


@in_accumulator_dtype
def _local_response_norm_forward(b: Backend, spec: Response, x: Array) -> Array:
    return x * _denominator(b, spec, x) ** -spec.beta


def _local_response_norm_backward(b: Backend, spec: Response, dy: Array, x: Array) -> Array:
    narrow, wide = x.dtype, accumulator_dtype(b, x.dtype)
    dx = _gradient(b, spec, cast(b, dy, wide), cast(b, x, wide))
    return cast(b, dx, narrow)


def _gradient(b: Backend, spec: Response, dy: Array, x: Array) -> Array:
    # x[j] reaches y[j] itself, and by d every y[c] whose window holds j: those windows are c's own, mirrored.
    d = _denominator(b, spec, x)
    direct = dy * d**-spec.beta
    gathered = _window_sums(b, spec.layout, direct * x / d, (spec.size - 1) // 2, spec.size // 2)
    return direct - 2.0 * spec.alpha * spec.beta / spec.size * x * gathered


def _plan(x: Array, size: Any, alpha: Any, beta: Any, k: Any, data_format: DataFormat) -> CallPlan:
    b = backends.of(x)
    check_floating(b, x, "x")
    lay = layout(tuple(x.shape), data_format, least=0)
    spec = Response(lay, integer(size, "size", 1), real(alpha, "alpha"), real(beta, "beta"), real(k, "k"))
    return CallPlan("local_response_norm", b, x.dtype, lay.shape, spec)


@on_device
def local_response_norm_forward(
    x: Array,
    size: int,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    data_format: DataFormat = "channels_first",
) -> tuple[Array, Context]:
    """Local response normalisation: y = x / (k + alpha / size * s)**beta.

    s is the sum of x**2 over `size` neighbouring channels.

    Parameters
    ----------
    x : array
        (N, C), (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); floating.
    size : int
        Channels in a window, at least 1; of an even number the larger half lies before.
    alpha, beta, k : float
        Finite numbers.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        x's shape and dtype.
    ctx : Context
        For `local_response_norm_backward`; `local_response_norm` returns y alone. It refers to x.

    Raises
    ------
    ValueError
        A size below 1, or a number that is not finite.
    TypeError
        Another dtype or kind of argument.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.local_response_norm(np.array([[1.0, 2.0]]), 1, alpha=1.0, beta=1.0)
    array([[0.5, 0.4]])

    References
    ----------
    Krizhevsky, Sutskever and Hinton 2012, section 3.3; torch.nn.functional.local_response_norm
    """
    plan = plan_of(_plan, (x,), size, alpha, beta, k, data_format)
    y = plan.run("local_response_norm_forward", _local_response_norm_forward, x)
    return y, Context(plan, {"x": x})


local_response_norm = inference_of(local_response_norm_forward)


@on_device
def local_response_norm_backward(dy: Array, ctx: Context) -> Array:
    """dx of `local_response_norm`.

    Parameters
    ----------
    dy : array
        y's shape, floating.
    ctx : Context
        From `local_response_norm_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.

    Notes
    -----
    With d = k + alpha / size * s: dx = dy / d**beta - 2 * alpha * beta / size * x * (the sum of dy * x / d**(beta + 1)
    over the windows that hold the cell).
    """
    return run_backward("local_response_norm", _local_response_norm_backward, dy, ctx, "x")
