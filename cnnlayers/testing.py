"""Gradients checked against differences of the function itself: `gradcheck`, for any op's trio and any layer.

Everything runs in float64. With a fixed random dy, L = sum(dy * y) is differenced along random directions of each
argument, and the slope is compared with sum(gradient * direction); only where the two differ is each element looked at.

A slope counts only where L is smooth: the central differences of a step and of half that step must agree (else the
function bends within the step), and so must their bends, the right slope minus the left (else it bends at the very
point). A step that crosses a kink of a max pool or a relu fails one of the two; it is shortened, and then the direction
is drawn again with fewer elements moving. An array that holds ties or zeros, where such kinks sit, is first moved off
them by about 1 % of its spread.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy

from cnnlayers.specs.arguments import integer, real

from .checked_arrays import (
    GradientError,
    as_float64,
    as_list,
    bits_of,
    check_form,
    copy_of,
    first_of,
    is_array,
    is_differentiable,
    name_of,
    names_of,
)

__all__ = ["GradientError", "gradcheck"]

Array = Any
Host = Any  # a NumPy array
Key: TypeAlias = int | str  # where an argument was given: its position or its keyword
Compared: TypeAlias = tuple[float, float, float]  # a slope by the gradient, by differences, what may lie between

DIRECTIONS = 3  # per argument
SHORTER = 5  # steps tried along a direction, each a tenth of the one before
REDRAWN = 4  # directions tried before a kink is thought to be everywhere
ONE_BY_ONE = 512  # elements differenced one at a time when a wrong one is looked for
ROUNDING = 8 * 2.0**-52


def gradcheck(
    op: Any, *args: Any, step: float = 1e-3, tol: float = 1e-6, seed: int = 0, **options: Any
) -> dict[str, float]:
    """Compare the gradients of an op or a layer with differences of its forward, in float64.

    Parameters
    ----------
    op : function, tuple or Layer
        The inference function of a trio, whose `<name>_forward` and `<name>_backward` stand beside it in its module;
        the tuple `(op, op_forward, op_backward)`; or a layer, whose dx and every gradient in `layer.grads` are checked,
        on copies of it.
    *args, **options
        What the op (or the layer's forward) is called with. Floating and complex arrays (or None in their place) are
        differentiated in the order of the signature, as many as the backward returns gradients; integer arrays and
        other values are passed on. A random generator is copied for each call, so that every call draws the same. A
        complex array counts as its real and imaginary parts, on an axis more (an element's last index is 0 or 1).
    step : float
        The longest difference step, in units of an array's spread.
    tol : float
        The difference allowed, relative to the gradient's root mean square.
    seed : int
        Of the random directions and dy.

    Returns
    -------
    errors : dict
        Each gradient's largest relative difference, by its argument's name.

    Raises
    ------
    GradientError
        An AssertionError that names the gradient, the worst element and both values; or the promise that was broken: a
        gradient's shape, dtype or owner, None for what was not given, a context that serves twice, arguments that are
        not written to, a result that repeats.
    TypeError
        No trio was found.
    ValueError
        There is nothing to difference.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F, testing
    >>> x = np.random.default_rng(0).normal(size=(2, 3, 6, 6))
    >>> testing.gradcheck(F.avg_pool, x, 2)["x"] < 1e-6
    True
    """
    step, tol = real(step, "step"), real(tol, "tol")
    rng = numpy.random.default_rng(integer(seed, "seed", 0))
    case = _LayerCase(op, args, options) if hasattr(op, "backward") else _TrioCase(_trio(op), args, options)
    _all_finite(case)
    y = case.value(case.points)
    dy = rng.standard_normal(y.shape)
    points = [_off_kinks(p, rng) for p in case.points[: len(case.gradients(case.points, y, dy))]]
    y = case.value(points)
    if case.value(points).tobytes() != y.tobytes():
        raise GradientError(f"{case.title}: the same call gave two results; a random op needs a fixed seed")
    if y.size and not numpy.isfinite(y).any():
        raise ValueError(f"{case.title}: the result holds no finite number, so there is nothing to difference")
    report = {}
    for which, gradient in enumerate(case.gradients(points, y, dy)):
        lines = _Lines(case, points, which, y, dy, gradient, (step, tol))
        report[case.names[which]] = lines.check(rng) if gradient.size and y.size else 0.0
    return report


def _all_finite(case: _TrioCase | _LayerCase) -> None:
    if not case.points:
        raise ValueError(f"{case.title}: no floating array was given, so there is nothing to differentiate")
    for name, point in zip(case.names, case.points, strict=True):
        if not numpy.isfinite(point).all():
            raise ValueError(f"{name} must hold finite numbers to be checked by differences")


def _spread(x: Host) -> float:
    """The size of an array's differences; of its values where all are equal; 1 where all are 0."""
    return float(numpy.std(x) or numpy.abs(x).max() or 1.0) if x.size else 1.0


def _off_kinks(x: Host, rng: numpy.random.Generator) -> Host:
    """`x`, moved a little where it holds ties or zeros, so that no two elements tie and none is 0."""
    if numpy.unique(x).size == x.size and (x != 0).all():
        return x
    moves = rng.permutation(numpy.linspace(0.5, 1.0, x.size)) * rng.choice((-0.01, 0.01), x.size)
    return x + _spread(x) * moves.reshape(x.shape)


# --------------------------------------------------------------------------------------------------------- differences
def _excess(compared: Compared) -> float:
    """The difference of the two slopes, as a multiple of what is allowed."""
    by_gradient, by_differences, allowed = compared
    return abs(by_gradient - by_differences) / allowed if allowed else float(by_gradient != by_differences)


class _Lines:
    """L along lines through one argument's point, and its slope there."""

    def __init__(
        self, case: Any, points: list[Host], which: int, y: Host, dy: Host, gradient: Host, limits: tuple[float, float]
    ) -> None:
        self.case, self.points, self.which = case, points, which
        self.x, self.y, self.gradient = points[which], y, gradient
        self.weights = numpy.where(numpy.isfinite(y), dy, 0.0)  # a window without cells gives -inf
        self.step, self.tol = limits[0] * _spread(self.x), limits[1]
        self.size = float((gradient**2).sum() / max(gradient.size, 1)) ** 0.5
        magnitude = float(numpy.abs(numpy.where(self.weights == 0, 0.0, y) * self.weights).sum())
        # What rounding does to L: to y at its end, and to x at its beginning, as far as the function carries that.
        signs = numpy.random.default_rng(0).choice((-ROUNDING, ROUNDING), self.x.shape)
        self.noise = ROUNDING * magnitude + float(numpy.abs(self._rise(self.x * signs)).sum())
        self.rough = self.noise > 1e-4 * (magnitude + self.size * _spread(self.x))  # rounding alone changes L

    def check(self, rng: numpy.random.Generator) -> float:
        """The largest relative difference along the directions; GradientError where one is above the tolerance."""
        wrong = numpy.argwhere(~numpy.isfinite(self.gradient))
        if len(wrong):
            at = tuple(wrong[0].tolist())
            raise GradientError(f"{self._where(at)}: backward gives {self.gradient[at]} where x and y are finite")
        measured = [found for _ in range(DIRECTIONS) if (found := self._along_some_direction(rng))]
        if self.rough or not measured:
            raise GradientError(f"{self._where()}: no step is so short that the function is smooth within it")
        worst = max(measured, key=_excess)
        if not _excess(worst) <= 1:
            self._raise_for_worst_element(worst)
        return self.tol * _excess(worst)

    def _along_some_direction(self, rng: numpy.random.Generator) -> Compared | None:
        for redrawn in range(REDRAWN):
            v = rng.uniform(0.5, 1.0, self.x.size) * rng.choice((-1.0, 1.0), self.x.size)
            # The fewer elements move, the fewer kinks they meet.
            v[rng.permutation(v.size) >= max(1, v.size // 8**redrawn)] = 0.0
            if found := self.compare(v.reshape(self.x.shape)):
                return found
        return None

    def compare(self, v: Host) -> Compared | None:
        """The slopes along v; None where L is not smooth."""
        given = float((self.gradient * v).sum())
        for shorter in range(SHORTER):
            h = self.step * 10.0**-shorter
            slope, bend = self._slope_and_bend(v, h)
            nearer, less = self._slope_and_bend(v, h / 2)
            # One wrong element among many must show: so what is allowed does not grow with the number of elements.
            scale = max(self.size, max(abs(slope), abs(nearer)) / float((v**2).sum()) ** 0.5)
            noise = self.noise / h
            allowed = self.tol * scale + noise
            if abs(slope - nearer) <= allowed / 2 and abs(bend - 2 * less) <= allowed / 2 + 4 * noise:
                return given, (4 * nearer - slope) / 3, allowed  # Richardson's step: the error's h² term cancels
        return None

    def _slope_and_bend(self, v: Host, h: float) -> tuple[float, float]:
        ahead, behind = float(self._rise(h * v).sum()) / h, -float(self._rise(-h * v).sum()) / h
        return (ahead + behind) / 2, ahead - behind

    def _rise(self, move: Host) -> Host:
        """L's terms at the moved point minus those at the point."""
        moved = [self.x + move if i == self.which else p for i, p in enumerate(self.points)]
        with numpy.errstate(invalid="ignore"):  # -inf minus -inf
            rise = self.case.value(moved) - self.y
        return numpy.where(self.weights == 0, 0.0, rise * self.weights)

    def _raise_for_worst_element(self, along: Compared) -> None:
        """Name the worst of the wrong elements. Where every element alone is within the tolerance, all is well."""
        flat = self._suspects().tolist()
        found = [self.compare(self._unit(i)) for i in flat]
        wrong = [(abs(c[0] - c[1]), i, c) for i, c in zip(flat, found, strict=True) if c and not _excess(c) <= 1]
        if wrong:
            off, worst, (given, slope, _) = max(wrong)
            at = tuple(i.item() for i in numpy.unravel_index(worst, self.x.shape))
            raise GradientError(
                f"{self._where(at)}: backward gives {given:.9g}, differences give {slope:.9g} (off by {off:.3g},"
                f" tolerance {self.tol:g}); {len(wrong)} of {len(flat)} elements looked at differ"
            )
        if len(flat) < self.x.size or None in found:
            raise GradientError(
                f"{self._where()}: along a direction backward gives {along[0]:.9g}, differences give {along[1]:.9g},"
                " but no single element was found to differ"
            )

    def _suspects(self) -> Host:
        """Flat indices of the elements to look at: all, or of a large array the part that differs most."""
        flat = numpy.arange(self.x.size)
        while flat.size > ONE_BY_ONE:
            parts = numpy.array_split(flat, 8)
            flat = max(parts, key=lambda part: _excess(self.compare(self._unit(part)) or (0.0, 0.0, 1.0)))
        return flat

    def _unit(self, flat: Any) -> Host:
        v = numpy.zeros(self.x.size)
        v[flat] = 1.0
        return v.reshape(self.x.shape)

    def _where(self, at: tuple[int, ...] | None = None) -> str:
        where = "" if at is None else f" at {at}"
        return f"{self.case.title}: the gradient of {self.case.names[self.which]}{where}"


# --------------------------------------------------------------------------------------------------------------- trios
class _TrioCase:
    """An op's trio as a function of host arrays. `slots`: each candidate's name and where it is given, None if not."""

    def __init__(self, trio: tuple[Any, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.op, self.forward, self.backward = trio
        self.name, self.forward_name, self.title = names_of(trio)
        self.arguments: dict[Key, Any] = dict(enumerate(args))
        self.arguments.update(options)
        self.slots = _candidates(self.op, self.arguments)
        self.names = [name for name, key in self.slots if key is not None]
        self.points = [as_float64(self.arguments[key]) for _, key in self.slots if key is not None]

    def _arguments(self, points: Sequence[Host]) -> dict[Key, Any]:
        """Copies of everything, with the points in their places."""
        keys = [key for _, key in self.slots if key is not None]
        values = {**self.arguments, **dict(zip(keys, points, strict=False))}
        return {key: copy_of(value, self.arguments[key]) for key, value in values.items()}

    @staticmethod
    def _call(function: Callable[..., Any], arguments: dict[Key, Any]) -> Any:
        positional = [v for k, v in arguments.items() if isinstance(k, int)]
        return function(*positional, **{k: v for k, v in arguments.items() if isinstance(k, str)})

    def value(self, points: Sequence[Host]) -> Host:
        return as_float64(first_of(self._call(self.op, self._arguments(points))))

    def gradients(self, points: Sequence[Host], y: Host, dy: Host) -> list[Host]:
        """The gradients of the points, once everything else that a trio promises was found to hold."""
        arguments = self._arguments(points)
        before = {key: bits_of(v) for key, v in arguments.items() if is_array(v)}
        result, ctx = self._call(self.forward, arguments)
        result = first_of(result)
        if not numpy.allclose(as_float64(result), y, rtol=1e-9, atol=1e-9 * _spread(y[numpy.isfinite(y)])):
            raise GradientError(f"{self.forward_name} and {self.name} give different results")
        given = [copy_of(dy, result) for _ in range(2)]
        found, again = (as_list(self.backward(device_dy, ctx)) for device_dy in given)
        if any(bits_of(device_dy) != dy.tobytes() for device_dy in given):
            raise GradientError(f"{self.title} wrote to dy")
        if [g is None or bits_of(g) for g in found] != [g is None or bits_of(g) for g in again]:
            raise GradientError(f"{self.title} gave other gradients when the same context was used again")
        if len(found) > len(self.slots):
            raise GradientError(f"{self.title} gave {len(found)} gradients for {len(self.slots)} arrays")
        slots = self.slots[: len(found)]
        self._unwritten(arguments, before, {key: name for name, key in slots if key is not None})
        for (name, key), gradient in zip(slots, found, strict=True):
            check_form(self.title, name, None if key is None else arguments[key], gradient)
        self.names = [name for name, key in slots if key is not None]
        return [as_float64(g) for g in found if g is not None]

    def _unwritten(self, arguments: dict[Key, Any], before: dict[Key, bytes], names: dict[Key, str]) -> None:
        for key, bits in before.items():
            # Floating arrays without a gradient are running statistics: these are there to be written.
            if (key in names or not is_differentiable(arguments[key])) and bits_of(arguments[key]) != bits:
                raise GradientError(f"{self.forward_name} or {self.title} wrote to {names.get(key, f'argument {key}')}")


def _trio(op: Any) -> tuple[Any, ...]:
    if isinstance(op, tuple):
        if len(op) != 3 or not all(callable(f) for f in op):
            raise TypeError("op as a tuple must be three functions: (op, op_forward, op_backward)")
        return op
    name, module = name_of(op).removesuffix("_forward"), sys.modules.get(getattr(op, "__module__", None) or "")
    trio = tuple(getattr(module, name + end, None) for end in ("", "_forward", "_backward"))
    if not all(callable(f) for f in trio):
        raise TypeError(
            f"op must be a layer, or an op with {name}_forward and {name}_backward beside it in its module; got {op!r}:"
            " functions defined elsewhere go in a tuple, (op, op_forward, op_backward)"
        )
    return trio


def _candidates(op: Callable[..., Any], given: dict[Key, Any]) -> list[tuple[str, Key | None]]:
    """In the signature's order: (name, where it is given) of floating arrays, (name, None) of what was left None."""
    found: list[tuple[str, Key | None]] = []
    positions = sum(isinstance(key, int) for key in given)
    for i, parameter in enumerate(inspect.signature(op).parameters.values()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            found += [(f"{parameter.name}[{k - i}]", k) for k in range(i, positions) if is_differentiable(given[k])]
            continue
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        key: Key = i if positional and i < positions else parameter.name
        value = given.get(key, parameter.default)
        if value is None or is_differentiable(value):
            found.append((parameter.name, None if value is None else key))
    return found


# -------------------------------------------------------------------------------------------------------------- layers
class _LayerCase:
    """A layer as a function of x and its parameters: every call works on a copy of it."""

    def __init__(self, layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.title, self.args, self.options = type(layer).__name__, args, options
        if not hasattr(layer, "map_arrays"):
            raise TypeError(f"a layer must be derived from cnnlayers.layers.Layer, got {self.title}")
        if not args or not is_differentiable(args[0]):
            raise ValueError(f"{self.title}: forward's first argument must be a floating array, to be differentiated")
        self.layer = copy.deepcopy(layer)
        self.layer.map_arrays(lambda a: copy_of(a, a))
        self.names = ["x", *self.layer.params]
        self.points = [as_float64(args[0]), *(as_float64(p) for p in self.layer.params.values())]

    def _forward(self, points: Sequence[Host]) -> tuple[Any, list[Array], Any]:
        """A copy of the layer at the points, the arrays it then works on, and its result."""
        layer = copy.deepcopy(self.layer)
        arrays = [copy_of(points[0], self.args[0]), *layer.params.values()]
        for array, point in zip(arrays[1:], points[1:], strict=True):
            array[...] = copy_of(point, array)
        rest = [copy_of(a, a) for a in self.args[1:]]
        options = {name: copy_of(value, value) for name, value in self.options.items()}
        return layer, arrays, first_of(layer.forward(arrays[0], *rest, **options))

    def value(self, points: Sequence[Host]) -> Host:
        return as_float64(self._forward(points)[2])

    def gradients(self, points: Sequence[Host], y: Host, dy: Host) -> list[Host]:
        layer, arrays, result = self._forward(points)
        device_dy = copy_of(dy, result)
        found = {"x": layer.backward(device_dy), **layer.grads}
        if bits_of(device_dy) != dy.tobytes():
            raise GradientError(f"{self.title}.backward wrote to dy")
        for name, array, point in zip(self.names, arrays, points, strict=True):
            if bits_of(array) != point.tobytes():
                raise GradientError(f"{self.title} wrote to {name}")
            check_form(self.title, name, array, found.get(name))
        return [as_float64(found[name]) for name in self.names]
