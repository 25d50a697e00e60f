"""Padding and cropping of the spatial axes.

Rules of the family: output cell i of an axis shows cell i - before of the input *extended* by the mode's rule. A
negative entry crops; edge and mirrors on the other side do not notice, and wrap repeats what the crop leaves (as
PyTorch's circular). Only values move, so forward keeps bits; backward is forward's exact adjoint. It folds the
borders back one axis after another, the last first; at an input cell it adds to the cell's own gradient those of the
border before, then behind, each from the outermost cell inwards. Half types are summed in float32.

Modes are NumPy's: https://numpy.org/doc/stable/reference/generated/numpy.pad.html
"""

from __future__ import annotations

import math
import operator
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import Pad, pad_spec
from cnnlayers.specs.arguments import DataFormat, PadMode, Pair, Sides, is_bool, real

from .arrays import Array, cast, in_accumulator_dtype, is_complex, sum_widely, writes_in_place
from .call_plan import CallPlan, Context, check_backward, inference_of, on_device, plan_of
from .checks import check_numeric
from .complex_arrays import run_planes
from .window_arrays import axis_index


def _interior(spec: Pad) -> tuple[Any, ...]:
    """Where x lies in the grown array."""
    return spec.layout.at(
        *(slice(before, before + n) for (before, _), n in zip(spec.grow, spec.layout.lengths, strict=True))
    )


def _kept(spec: Pad) -> tuple[Any, ...]:
    """What cropping leaves of the grown array."""
    ends = [
        n + sum(grow) - after for n, grow, (_, after) in zip(spec.layout.lengths, spec.grow, spec.crop, strict=True)
    ]
    return spec.layout.at(*(slice(before, end) for (before, _), end in zip(spec.crop, ends, strict=True)))


def _grown_shape(spec: Pad) -> tuple[int, ...]:
    return spec.layout.with_spatial([n + sum(g) for n, g in zip(spec.layout.lengths, spec.grow, strict=True)])


def _shared(spec: Pad) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The cells of x that y still shows: where they are in y, and where in x."""
    in_y, in_x = [], []
    for n, (grow, _), (before, after) in zip(spec.layout.lengths, spec.grow, spec.crop, strict=True):
        in_y.append(slice(grow, grow + n - before - after))
        in_x.append(slice(before, n - after))
    return spec.layout.at(*in_y), spec.layout.at(*in_x)


def _sides(mode: str, length: int, grow: Pair, crop: Pair) -> list[tuple[slice, slice]]:
    """For the border before and the one behind an axis, where they have cells: these cells of the grown axis, and the
    cells that they show, one each, or the one that all of them show (edge)."""
    before, after = grow
    end, period = before + length, length - sum(crop)
    front = {
        "edge": slice(before, before + 1),
        "reflect": slice(2 * before, before, -1),
        "symmetric": slice(2 * before - 1, before - 1, -1),
        "wrap": slice(period, period + before),
    }
    back = {
        "edge": slice(end - 1, end),
        "reflect": _down(end - 2, after),
        "symmetric": _down(end - 1, after),
        "wrap": slice(end - period, end - period + after),
    }
    sides = [(slice(0, before), front[mode])] if before else []
    return [*sides, (slice(end, end + after), back[mode])] if after else sides


def _down(first: int, number: int) -> slice:
    """So many cells downwards from the first one; a stop below 0 would count from the end."""
    return slice(first, first - number if first >= number else None, -1)


def _pad_forward(b: Backend, spec: Pad, x: Array, value: Any) -> Array:
    cropped = any(sum(pair) for pair in spec.crop)
    if spec.mode == "constant":
        y = b.full(spec.out_shape, value, x.dtype)
        in_y, in_x = _shared(spec)
        y[in_y] = x[in_x]
        return y
    y = b.empty(_grown_shape(spec), x.dtype)
    y[_interior(spec)] = x
    for axis, length, grow, crop in spec.sides:
        for border, shown in _sides(spec.mode, length, grow, crop):
            y[axis_index(axis, border)] = y[axis_index(axis, shown)]
    return b.xp.asarray(y[_kept(spec)], copy=True) if cropped else y


def _pad_complex(plan: CallPlan, x: Array, value: complex) -> Array:
    """Padding of a complex array: as two real planes, whose border is then given the imaginary part of the value."""
    b, spec = plan.backend, plan.spec
    if not writes_in_place(b):  # there, putting parts together may lose a sign
        return _pad_forward(b, spec, x, value)
    y = run_planes(plan, "pad_forward", _pad_forward, x, value.real)
    if repr(value.real) != repr(value.imag):  # which tells -0 from 0
        inside, _ = _shared(spec)
        for axis in spec.layout.spatial:
            for border in (slice(0, inside[axis].start), slice(inside[axis].stop, None)):
                y.imag[axis_index(axis, border)] = value.imag
    return y


def _pad_backward(b: Backend, spec: Pad, dy: Array) -> Array:
    if spec.mode != "constant":
        return _folded(b, spec, dy)
    dx = b.zeros(spec.layout.shape, dy.dtype)
    in_y, in_x = _shared(spec)
    dx[in_x] = dy[in_y]
    return dx


@in_accumulator_dtype
def _folded(b: Backend, spec: Pad, dy: Array) -> Array:
    work = b.zeros(_grown_shape(spec), dy.dtype)
    work[_kept(spec)] = dy
    for axis, length, grow, crop in reversed(spec.sides):
        for border, shown in _sides(spec.mode, length, grow, crop):
            if spec.mode == "edge":
                _add_edge(b, work, axis, border, shown, flipped=border.start > 0)
            else:
                work[axis_index(axis, shown)] += work[axis_index(axis, border)]
    return b.xp.asarray(work[_interior(spec)], copy=True)


def _add_edge(b: Backend, work: Array, axis: int, border: slice, shown: slice, *, flipped: bool) -> None:
    """Add all cells of a border to the one that they show, one after another from the outermost inwards: in the order
    of the array, or `flipped`."""
    cells = work[axis_index(axis, border)]
    terms = b.xp.concat([work[axis_index(axis, shown)], b.xp.flip(cells, axis=axis) if flipped else cells], axis=axis)
    sums = b.xp.cumulative_sum(terms, axis=axis, dtype=work.dtype)
    work[axis_index(axis, shown)] = sums[axis_index(axis, slice(terms.shape[axis] - 1, None))]


def _fill(b: Backend, x: Array, value: Any) -> Any:
    """`value` as a Python number that x's dtype can hold. TypeError for no number, ValueError for one out of range."""
    if type(value) is int and value == 0:
        return value
    value = bool(value) if is_bool(value) else value
    name = backends.dtype_name(b, x)
    if name in backends.INTEGERS or name == "bool":
        low, high = (0, 1) if name == "bool" else (b.xp.iinfo(x.dtype).min, b.xp.iinfo(x.dtype).max)
        try:
            number: float = operator.index(value)  # exact: a large int would lose digits as a float
        except TypeError:
            number = real(value, "value")
        if number != int(number) or not low <= number <= high:
            raise ValueError(f"value must be a whole number from {low} to {high} for {name}, got {value!r}")
        return bool(number) if name == "bool" else int(number)
    largest = 3.3895313892515355e38 if name == "bfloat16" else float(b.xp.finfo(x.dtype).max)
    parts = (value.real, value.imag) if name in backends.COMPLEX and hasattr(value, "imag") else (value,)
    numbers = [float(v) if isinstance(v, bool) else real(v, "value", finite=False) for v in parts]
    if any(largest < abs(number) < float("inf") for number in numbers):
        raise ValueError(f"value must lie within {name}'s range of ±{largest:g}, got {value!r}")
    return complex(*numbers) if name in backends.COMPLEX else numbers[0]


def _plan(x: Array, padding: Sides, mode: PadMode, data_format: DataFormat) -> CallPlan:
    b = backends.of(x)
    if not is_complex(b, x.dtype):
        check_numeric(b, x, "x")
    spec = pad_spec(tuple(x.shape), padding, mode, data_format)
    return CallPlan("pad", b, x.dtype, spec.out_shape, spec)


@on_device
def pad_forward(
    x: Array, padding: Sides, mode: PadMode = "constant", value: Any = 0, *, data_format: DataFormat = "channels_first"
) -> tuple[Array, Context]:
    """Pad or crop the spatial axes: y[i] = extended x[i - before] on each axis.

    Parameters
    ----------
    x : array
        (N, C, *spatial) or, with data_format "channels_last", (N, *spatial, C); one to three spatial axes; floating,
        complex, integer or bool.
    padding : int, sequence of int or of pairs
        Cells, an int, one per spatial axis or a (before, after) pair per axis; negative entries crop.
    mode : {"constant", "edge", "reflect", "symmetric", "wrap"}
        NumPy's names; "replicate" and "circular" are PyTorch's for "edge" and "wrap".
    value : number
        What constant cells hold; it must fit x's dtype.
    data_format : {"channels_first", "channels_last"}
        The order of x's and y's axes.

    Returns
    -------
    y : array
        x's shape with the spatial axes changed; x's dtype.
    ctx : Context
        For `pad_backward`; `pad` returns y alone. It has no array.

    Raises
    ------
    ValueError
        Reflect padding not smaller than its axis, wrap or symmetric padding larger than it, edge padding of an axis
        without cells, more cropped than there is, a value that the dtype cannot hold or that is given to another mode.
    TypeError
        Another dtype or kind of argument.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F
    >>> F.pad(np.array([[[1.0, 2.0, 3.0]]]), 1, "reflect")
    array([[[2., 1., 2., 3., 2.]]])

    References
    ----------
    numpy.pad; torch.nn.functional.pad
    """
    plan = plan_of(_plan, (x,), padding, mode, data_format)
    fill = _fill(plan.backend, x, value)
    if fill != 0 and plan.spec.mode != "constant":
        raise ValueError(f"value belongs to mode 'constant', got {value!r} with mode {mode!r}")
    y = _pad_complex(plan, x, fill) if plan.complex else plan.run("pad_forward", _pad_forward, x, fill)
    return y, Context(plan)


pad = inference_of(pad_forward)


@on_device
def pad_backward(dy: Array, ctx: Context) -> Array:
    """dx of `pad`, its exact adjoint: each cell of x adds dy of all the cells that showed it.

    Parameters
    ----------
    dy : array
        y's shape, floating or complex.
    ctx : Context
        From `pad_forward`; it may serve more than once.

    Returns
    -------
    dx : array
        x's shape and dtype.

    Notes
    -----
    Cropped cells get 0.
    """
    b, dy = check_backward("pad", dy, ctx, exact=True, integers=True)
    if ctx.spec.mode == "edge":
        dy = sum_widely(b, dy, math.prod(1 + sum(grow) for grow in ctx.spec.grow))
    return cast(b, run_planes(ctx.plan, "pad_backward", _pad_backward, dy), ctx.dtype)
