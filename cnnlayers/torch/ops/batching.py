"""How an op runs under torch.vmap: all of the batch in one call where samples do not meet, else one call an entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Args = tuple[Any, ...]


@dataclass(frozen=True)
class Rule:
    """When and how one call can serve a whole batch.

    `samples`: for each tensor argument that has one, its axis of samples; other tensors must be the same for the whole
    batch. `outputs`: the axis of samples of each output. The batch's axis is joined to these axes, or, with `stacked`,
    put before all others (ops that take any leading axes). `shape`: the argument that holds the shape of x, whose first
    entry counts samples. `when`: further conditions. A rule without `samples` is a loop.
    """

    samples: Mapping[int, int] = field(default_factory=dict)
    outputs: tuple[int, ...] = (0,)
    stacked: bool = False
    shape: int | None = None
    when: Callable[[Args], bool] = lambda args: True


LOOP = Rule()


def batched(op: Callable[..., Any], rule: Rule, size: int, dims: Mapping[int, int], args: Args) -> tuple[Any, Any]:
    """The op's outputs for a batch of `size` entries, and the axis of each that runs along the batch. `dims`: that axis
    of each argument that has it."""
    if not rule.samples or not set(dims) <= set(rule.samples) or not rule.when(args):
        return _loop(op, size, dims, args)
    given = list(args)
    for i, axis in rule.samples.items():
        if given[i] is not None:
            given[i] = _joined(given[i], dims.get(i), 0 if rule.stacked else axis, size, rule.stacked)
    if rule.shape is not None:
        first, *rest = given[rule.shape]
        given[rule.shape] = [size * first, *rest]
    found = op(*given)
    several = isinstance(found, tuple)
    outputs = found if several else (found,)
    if not rule.stacked:
        outputs = tuple(_parted(a, axis, size) for a, axis in zip(outputs, rule.outputs, strict=True))
    axes = (0,) * len(outputs) if rule.stacked else rule.outputs
    return (outputs, axes) if several else (outputs[0], axes[0])


def _joined(a: torch.Tensor, dim: int | None, axis: int, size: int, stacked: bool) -> torch.Tensor:
    """A tensor with the batch's axis before `axis`, and joined to it unless `stacked`."""
    same = (*a.shape[:axis], size, *a.shape[axis:])
    a = a.unsqueeze(axis).expand(same) if dim is None else a.movedim(dim, axis)
    return a if stacked else a.reshape(*a.shape[:axis], size * a.shape[axis + 1], *a.shape[axis + 2 :])


def _parted(a: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """The reverse of joining. An output that was not asked for has no cells."""
    if a.ndim == 1 and a.shape[0] == 0:
        return a.expand(size, 0) if axis == 0 else a
    return a.reshape(*a.shape[:axis], size, a.shape[axis] // size, *a.shape[axis + 1 :])


def _loop(op: Callable[..., Any], size: int, dims: Mapping[int, int], args: Args) -> tuple[Any, Any]:
    entries = [op(*(a.select(dims[j], i) if j in dims else a for j, a in enumerate(args))) for i in range(size)]
    if not isinstance(entries[0], tuple):
        return torch.stack(entries), 0
    return tuple(torch.stack(parts) for parts in zip(*entries, strict=True)), (0,) * len(entries[0])
