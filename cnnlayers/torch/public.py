"""What makes a function of this package an op for everybody: its signature, PyTorch's tensor-likes and its tracer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, cast

import torch
from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")
TENSORS = ("x", "weight", "bias", "gamma", "beta", "running_mean", "running_var", "indices", "labels", "target")


def public(op: Callable[P, Any]) -> Callable[[Callable[..., Any]], Callable[P, Any]]:
    """An op of `cnnlayers.torch.functional` with the signature of `op`, that of `cnnlayers.functional`.

    The function gets all arguments by name, defaults included, once it is known that tensors are tensors. PyTorch's
    tensor-likes (torch.fx) may take the call over, and torch.jit.trace is refused.
    """
    signature = inspect.signature(op)
    parameters = list(signature.parameters.values())
    names = [p.name for p in parameters]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    positional = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    tensors = [n for n in names if n in TENSORS and defaults.get(n) is None]  # one norm's beta is a number

    def decorate(run: Callable[..., Any]) -> Callable[P, Any]:
        name = run.__name__

        @functools.wraps(run)
        def call(*args: Any, **options: Any) -> Any:
            given = (*args, *options.values()) if options else args
            if has_torch_function(given):
                return handle_torch_function(call, given, *args, **options)
            if torch.jit.is_tracing():
                raise RuntimeError(
                    f"torch.jit.trace cannot record {name} of cnnlayers.torch: trace the model that was given to"
                    " convert (cnnlayers.torch.revert gives it back), or use torch.export"
                )
            bound = {**defaults, **dict(zip(names, args, strict=False)), **options}
            misfit = len(args) > positional or len(bound) != len(names)
            if misfit or (options and any(n not in names[len(args) :] for n in options)):
                try:
                    signature.bind(*args, **options)
                except TypeError as error:
                    raise TypeError(f"{name}() {error}") from None
            for n in tensors:
                if not (bound[n] is None and n in defaults) and not isinstance(bound[n], torch.Tensor):
                    raise TypeError(f"{n} must be a torch.Tensor, got {type(bound[n]).__name__}")
            return run(**bound)

        call.__doc__ = f"`cnnlayers.functional.{name}` on tensors. {inspect.getdoc(op)}"
        vars(call)["__signature__"] = signature
        return cast("Callable[P, Any]", call)

    return decorate
