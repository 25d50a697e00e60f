"""Every op of `cnnlayers.functional` on Tensors.

The table below is all there is of an op: its trio, and which of its arguments have a gradient, in the order in which
its backward gives them. Every argument may be a Tensor or a plain array, which is a constant then; arguments go by
position or by name as in `cnnlayers.functional`, whose docstrings hold here. Running statistics are updated in place,
in the arrays that were given. What comes back is a Tensor, `(y, indices)` two of them.

Where nothing requires a gradient, or in a `no_grad` block, the inference form runs and nothing is saved.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import cnnlayers.functional as F
from cnnlayers.functional.arrays import Array
from cnnlayers.functional.call_plan import Context

from .graph import recording
from .tensor import Tensor, record

P = ParamSpec("P")


def _on_tensors(op: Callable[P, Any], *arguments: str, backward: Callable[..., Any] | None = None) -> Callable[P, Any]:
    """The op of a trio of `cnnlayers.functional`, on Tensors; `arguments` are those that its backward answers, or the
    one that is given here in its place."""
    name: str = op.__name__
    forward, backward = getattr(F, f"{name}_forward"), backward or getattr(F, f"{name}_backward")
    signature = inspect.signature(op)
    spares_dx = "needs_dx" in inspect.signature(backward).parameters

    @functools.wraps(op)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        given = [bound.arguments.get(a) for a in arguments]
        sources = [t._source if isinstance(t, Tensor) and recording() else None for t in given]
        for argument, value in bound.arguments.items():
            if isinstance(value, Tensor):
                if value.requires_grad and argument not in arguments:
                    raise TypeError(f"{name} has no gradient in {argument}: give it as {argument}.detach()")
                bound.arguments[argument] = value.data
        if not any(source is not None for source in sources):
            return _wrapped(op(*bound.args, **bound.kwargs))
        result, ctx = forward(*bound.args, **bound.kwargs)
        y = result[0] if isinstance(result, tuple) else result
        options = {"needs_dx": sources[0] is not None} if spares_dx else {}
        made = record(name, y, sources, functools.partial(_gradients, backward, ctx, options))
        return (made, *map(Tensor._of, result[1:])) if isinstance(result, tuple) else made

    run.__module__ = __name__
    return run


def _wrapped(result: Any) -> Any:
    return tuple(map(Tensor._of, result)) if isinstance(result, tuple) else Tensor._of(result)


def _gradients(
    backward: Callable[..., Any], ctx: Context, options: dict[str, Any], dy: Array
) -> tuple[Array | None, ...]:
    found = backward(dy, ctx, **options)
    return found if isinstance(found, tuple) else (found,)


def _mse_loss_backward(dy: Array, ctx: Context) -> tuple[Array, Array]:
    """The gradients of x and of the target, which is x's with the other sign."""
    dx = F.mse_loss_backward(dy, ctx)
    return dx, -dx


_max_pool: Callable[..., Any] = F.max_pool  # without its overloads, of which a type checker would take the first
max_pool = _on_tensors(_max_pool, "x")
avg_pool = _on_tensors(F.avg_pool, "x")
sum_pool = _on_tensors(F.sum_pool, "x")
lp_pool = _on_tensors(F.lp_pool, "x")
adaptive_avg_pool = _on_tensors(F.adaptive_avg_pool, "x")
adaptive_max_pool = _on_tensors(F.adaptive_max_pool, "x")
max_unpool = _on_tensors(F.max_unpool, "x")
pad = _on_tensors(F.pad, "x")
batch_norm = _on_tensors(F.batch_norm, "x", "gamma", "beta")
group_norm = _on_tensors(F.group_norm, "x", "gamma", "beta")
instance_norm = _on_tensors(F.instance_norm, "x", "gamma", "beta")
layer_norm = _on_tensors(F.layer_norm, "x", "gamma", "beta")
rms_norm = _on_tensors(F.rms_norm, "x", "gamma")
local_response_norm = _on_tensors(F.local_response_norm, "x")
conv = _on_tensors(F.conv, "x", "weight", "bias")
conv_transpose = _on_tensors(F.conv_transpose, "x", "weight", "bias")
linear = _on_tensors(F.linear, "x", "weight", "bias")
relu = _on_tensors(F.relu, "x")
leaky_relu = _on_tensors(F.leaky_relu, "x")
gelu = _on_tensors(F.gelu, "x")
sigmoid = _on_tensors(F.sigmoid, "x")
tanh = _on_tensors(F.tanh, "x")
softmax = _on_tensors(F.softmax, "x")
dropout = _on_tensors(F.dropout, "x")
softmax_cross_entropy = _on_tensors(F.softmax_cross_entropy, "x")
mse_loss = _on_tensors(F.mse_loss, "x", "target", backward=_mse_loss_backward)
