"""The ops of `cnnlayers.functional` on PyTorch's tensors, by the same names and arguments, each an autograd Function.

`y = op(x, ...)`; a gradient flows to x and, where given, to weight and bias, gamma and beta. Rules of the family:

- Nothing is copied: an op reads and writes PyTorch's own memory, on its current stream.
- What backward needs is saved by PyTorch itself, so its checks of changes in place, its hooks and checkpoints work, and
  its memory is freed as ever. Where no gradient is wanted nothing is saved.
- A tensor that lies in memory channels last is worked on as it lies, and so does y.
- In an autocast region convolutions and `linear` run in its dtype and the loss in float32, as PyTorch's; other ops in
  x's dtype, sums of half types being float32.
- There is no second derivative: asking for one is a RuntimeError, and so is torch.jit.trace.
- dropout draws from PyTorch's generator: torch.manual_seed counts, and a checkpoint repeats the draw. `rng` may also be
  a seed, or a torch.Generator.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cnnlayers import functional as F

from .arrays import DEVICES, array_of, lies_channels_last, on_stream_of, tensor_of

DIFFERENTIABLE = ("x", "weight", "bias", "gamma", "beta")
OF_PRODUCTS = ("conv", "conv_transpose", "linear")  # in an autocast region in low precision
IN_FULL_PRECISION = ("softmax_cross_entropy",)


@dataclass(frozen=True)
class _Call:
    """A call of an op. `tensors`: the names of its differentiable arguments; `rest`: its other arguments."""

    op: str
    tensors: tuple[str, ...]
    rest: dict[str, Any]

    def run(self, form: str, tensors: tuple[torch.Tensor | None, ...]) -> tuple[Any, list[tuple[Any, torch.Tensor]]]:
        """What the op's form ("" or "_forward") gives, and each array that it was given with its tensor; x is first."""
        named = {**dict(zip(self.tensors, tensors, strict=True)), **self.rest}
        arrays = {name: array_of(v) if isinstance(v, torch.Tensor) else v for name, v in named.items()}
        given = [(arrays[name], v) for name, v in named.items() if isinstance(v, torch.Tensor)]
        return getattr(F, self.op + form)(**arrays), given


class _Op(torch.autograd.Function):
    """Any op; what it keeps for backward lies in `saved_tensors`."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: torch.Tensor | None) -> Any:
        (y, context), given = call.run("_forward", tensors)
        own = {id(array): tensor for array, tensor in given}
        kept = {name: a for name, a in context.arrays.items() if a is not None}

        def tensor(array: Any) -> torch.Tensor:  # the op's own argument, where it keeps or returns that
            return own[id(array)] if id(array) in own else tensor_of(array)

        ctx.save_for_backward(*map(tensor, kept.values()))
        ctx.context = replace(context, arrays=dict.fromkeys(context.arrays))
        ctx.kept, ctx.wanted = tuple(kept), len(tensors)
        if isinstance(y, tuple):
            values, indices = map(tensor, y)
            ctx.mark_non_differentiable(indices)
            return values, indices
        return tensor(y)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        gradients = _Gradient.apply(ctx.context, ctx.kept, ctx.needs_input_grad[1], dy, *ctx.saved_tensors)
        return None, *gradients[: ctx.wanted]


class _Gradient(torch.autograd.Function):
    """Any op's backward, whose own backward says that there is none."""

    @staticmethod
    def forward(
        ctx: Any, context: Any, kept: tuple[str, ...], needs_dx: bool, dy: torch.Tensor, *saved: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        ctx.op = context.op
        with on_stream_of(dy):
            arrays = {**context.arrays, **dict(zip(kept, map(array_of, saved), strict=True))}
            options = {} if needs_dx or context.op not in OF_PRODUCTS else {"needs_dx": False}
            found = getattr(F, f"{context.op}_backward")(array_of(dy), replace(context, arrays=arrays), **options)
        gradients = found if isinstance(found, tuple) else (found,)
        return tuple(None if g is None else tensor_of(g) for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        raise RuntimeError(
            f"{ctx.op} of cnnlayers.torch has no second derivative: use torch.nn.functional for what is derived twice"
        )


def _autocast(op: str, tensors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The arguments in the dtype that an autocast region asks for; x is the first."""
    kind = tensors[0].device.type if tensors[0] is not None else ""
    if op not in OF_PRODUCTS + IN_FULL_PRECISION or kind not in DEVICES or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind) if op in OF_PRODUCTS else torch.float32
    return [t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype) for t in tensors]


@torch.compiler.disable
def _apply(op: str, signature: inspect.Signature, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if torch.jit.is_tracing():  # a trace would hold this call's result as a constant
        raise RuntimeError(
            f"torch.jit.trace cannot record {op} of cnnlayers.torch: trace the model that convert was given"
        )
    given = signature.bind(*args, **options).arguments
    names = _differentiable(signature)
    tensors = [given.pop(name, None) for name in names]
    for name, value in zip(names, tensors, strict=True):
        if not (isinstance(value, torch.Tensor) or (value is None and name != "x")):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    tensors = _autocast(op, tensors)
    x = tensors[0]
    last = "data_format" in signature.parameters and "data_format" not in given and lies_channels_last(x)
    if last:
        given["data_format"] = "channels_last"
        tensors[0] = x.movedim(1, -1)
        if isinstance(given.get("indices"), torch.Tensor):
            given["indices"] = given["indices"].movedim(1, -1)
    idle = op == "dropout" and not (given.get("training") and given.get("p", 0.5))
    if op == "dropout" and not idle:
        given["rng"] = _seed(given.get("rng"))
    call = _Call(op, names, given)
    with on_stream_of(x):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors) and not idle:
            y = _Op.apply(call, *tensors)
        else:
            found, passed = call.run("", tuple(tensors))
            if found is passed[0][0]:  # an idle dropout: x itself, as PyTorch's; a view would forbid changes in place
                return x
            y = tuple(map(tensor_of, found)) if isinstance(found, tuple) else tensor_of(found)
    if not last:
        return y
    return tuple(a.movedim(-1, 1) for a in y) if isinstance(y, tuple) else y.movedim(-1, 1)


def _seed(rng: Any) -> int:
    """Dropout's seed: the caller's, or drawn from PyTorch's generator, whose state a checkpoint restores."""
    if rng is None or isinstance(rng, torch.Generator):
        device = "cpu" if rng is None else rng.device
        return int(torch.randint(2**63 - 1, (), generator=rng, device=device))
    if isinstance(rng, bool) or not isinstance(rng, int):
        raise TypeError(
            f"rng must be a seed, a torch.Generator or None (PyTorch's own), got {type(rng).__name__}: a checkpoint"
            " could not repeat its draw"
        )
    return rng


def _differentiable(signature: inspect.Signature) -> tuple[str, ...]:
    """The arguments that backward gives gradients of, in its order. local_response_norm's beta is none: a number, which
    can be given by its name alone."""
    by_place = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return tuple(name for name in by_place if name in DIFFERENTIABLE)


def _on_tensors(plain: Callable[..., Any]) -> Callable[..., Any]:
    op, signature = plain.__name__, inspect.signature(plain)

    @functools.wraps(plain)
    def run(*args: Any, **options: Any) -> Any:
        return _apply(op, signature, args, options)

    run.__module__ = __name__
    run.__doc__ = f"`cnnlayers.functional.{op}` on tensors. {inspect.getdoc(plain)}"
    return run


max_pool = _on_tensors(F.max_pool)
avg_pool = _on_tensors(F.avg_pool)
sum_pool = _on_tensors(F.sum_pool)
lp_pool = _on_tensors(F.lp_pool)
adaptive_avg_pool = _on_tensors(F.adaptive_avg_pool)
adaptive_max_pool = _on_tensors(F.adaptive_max_pool)
max_unpool = _on_tensors(F.max_unpool)
pad = _on_tensors(F.pad)
batch_norm = _on_tensors(F.batch_norm)
group_norm = _on_tensors(F.group_norm)
instance_norm = _on_tensors(F.instance_norm)
layer_norm = _on_tensors(F.layer_norm)
rms_norm = _on_tensors(F.rms_norm)
local_response_norm = _on_tensors(F.local_response_norm)
conv = _on_tensors(F.conv)
conv_transpose = _on_tensors(F.conv_transpose)
linear = _on_tensors(F.linear)
relu = _on_tensors(F.relu)
dropout = _on_tensors(F.dropout)
softmax_cross_entropy = _on_tensors(F.softmax_cross_entropy)
