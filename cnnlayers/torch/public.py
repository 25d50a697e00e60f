"""What makes a function of this package an op for everybody: PyTorch's tensor-likes and its tracer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

from cnnlayers import functional as F


def public(run: Callable[..., Any]) -> Callable[..., Any]:
    """An op of `cnnlayers.torch.functional`: PyTorch's tensor-likes (torch.fx) may take the call over, torch.jit.trace
    is refused."""
    op = run.__name__

    @functools.wraps(run)
    def call(*args: Any, **options: Any) -> Any:
        given = (*args, *options.values()) if options else args
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **options)
        if torch.jit.is_tracing():
            raise RuntimeError(
                f"torch.jit.trace cannot record {op} of cnnlayers.torch: trace the model that was given to convert"
                " (cnnlayers.torch.revert gives it back), or use torch.export"
            )
        return run(*args, **options)

    call.__doc__ = f"`cnnlayers.functional.{op}` on tensors. {inspect.getdoc(getattr(F, op))}"
    return call
