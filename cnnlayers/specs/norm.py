"""Norms: how an array falls into rows, each of which has one mean and variance (a statistics group)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .arguments import Layout, Shape


@dataclass(frozen=True)
class Rows:
    """How an array falls into rows.

    `shape`: x's; `view`: the shape it is looked at in; `axes`: the view's axes that a row runs along; `parameter_axes`:
    the view's axes that gamma and beta run along; `parameter`: the shape of these; `centred`: False in RMS norm.
    """

    shape: Shape
    view: Shape
    axes: Shape
    parameter_axes: Shape
    parameter: Shape
    eps: float
    centred: bool = True

    @property
    def count(self) -> int:
        """Cells of a row."""
        return math.prod(self.view[a] for a in self.axes)

    @property
    def shared(self) -> Shape:
        """The axes along which the cells of a row share one parameter; layer and RMS norm have none."""
        return tuple(a for a in self.axes if a not in self.parameter_axes)

    @property
    def summed_axes(self) -> Shape:
        """The axes that a parameter's gradient is summed over."""
        return tuple(a for a in range(len(self.view)) if a not in self.parameter_axes)

    @property
    def parameter_view(self) -> Shape:
        """The shape in which a parameter broadcasts against the view."""
        return tuple(length if a in self.parameter_axes else 1 for a, length in enumerate(self.view))


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm of an array. `gamma_dtype`, `beta_dtype`: None without the parameter. The rest is batch norm's: `comm`,
    whose ranks share the rows; `use_running_stats`, x is normalised by the running mean and variance; `training`,
    these are updated."""

    rows: Rows
    gamma_dtype: Any
    beta_dtype: Any
    comm: Any = None
    use_running_stats: bool = False
    training: bool = False
    momentum: float = 0.1
    unbiased: bool = True


def norm_of(rows: Rows, gamma: Any, beta: Any = None, **more: Any) -> Norm:
    """The norm with these parameters, arrays or None, of which their dtypes count; `more`: its other fields."""
    gamma_dtype, beta_dtype = (None if p is None else p.dtype for p in (gamma, beta))
    return Norm(rows, gamma_dtype, beta_dtype, **more)


def batch_rows(lay: Layout, eps: float) -> Rows:
    """A row is a channel, over all samples."""
    axes = tuple(a for a in range(len(lay.shape)) if a != lay.channel)
    return Rows(lay.shape, lay.shape, axes, (lay.channel,), (lay.channels,), eps)


def instance_rows(lay: Layout, eps: float) -> Rows:
    """A row is a channel of one sample."""
    return Rows(lay.shape, lay.shape, lay.spatial, (lay.channel,), (lay.channels,), eps)


def group_rows(lay: Layout, groups: int, eps: float) -> Rows:
    """A row is a group of adjacent channels of one sample: the channel axis is looked at as two, (groups, channels)."""
    c = lay.channel
    view = (*lay.shape[:c], groups, lay.channels // groups, *lay.shape[c + 1 :])
    axes = tuple(a for a in range(1, len(view)) if a != c)
    return Rows(lay.shape, view, axes, (c, c + 1), (lay.channels,), eps)


def trailing_rows(shape: Shape, normalized: Shape, eps: float, *, centred: bool = True) -> Rows:
    """A row is what lies along the last axes, and each of its cells has a parameter of its own."""
    axes = tuple(range(len(shape) - len(normalized), len(shape)))
    return Rows(shape, shape, axes, axes, normalized, eps, centred)
