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
from typing import Any, Protocol

import numpy

from cnnlayers import backends
from cnnlayers.specs import integer, real

Array = Any
Host = Any  # a NumPy array

DIRECTIONS = 3  # per argument
SHORTER = 5  # steps tried along a direction, each a tenth of the one before
REDRAWN = 4  # directions tried before a kink is thought to be everywhere
ONE_BY_ONE = 512  # elements differenced one at a time when a wrong one is looked for
ROUNDING = 8 * 2.0**-52


class GradientError(AssertionError):
    """A gradient that differs from differences of its function, or a broken promise of the trio; the message says which."""


class _Case(Protocol):
    """What is checked: a function of named arrays, as host arrays in and out, and its gradients."""

    title: str
    names: list[str]
    points: list[Host]

    def value(self, points: Sequence[Host]) -> Host: ...

    def gradients(self, points: Sequence[Host], y: Host, dy: Host) -> list[Host | None]: ...


def gradcheck(
    op: Any, *args: Any, step: float = 1e-3, tol: float = 1e-6, seed: int = 0, **options: Any
) -> dict[str, float]:
    """Check the gradients of an op or a layer; give each one's largest relative difference, by the argument's name.

    op: the inference function of a trio, whose `<name>_forward` and `<name>_backward` stand beside it in its module; or
    the tuple `(op, op_forward, op_backward)`; or a layer, whose dx and every gradient in `layer.grads` are checked (the
    layer itself is left as it is).
    args, options: what the op (or the layer's forward) is called with. Floating arrays are differentiated in the order of
    the op's signature, as many as the backward returns gradients; integer arrays, None and other values are passed on. A
    random generator is copied for each call, so that every call draws the same.
    step: the longest difference step, in units of an array's spread. tol: the difference allowed, relative to the
    gradient's root mean square. seed: of the directions and dy.

    Raises GradientError (an AssertionError) that names the gradient, the worst element and both values; or that says
    which promise was broken: a gradient's shape, dtype or owner, None for what was not given, a context that serves
    twice, arguments that are not written to, a result that repeats. TypeError where no trio is found, ValueError where
    there is nothing to difference.
    """
    step, tol = real(step, "step"), real(tol, "tol")
    rng = numpy.random.default_rng(integer(seed, "seed", 0))
    case = _layer_case(op, args, options) if hasattr(op, "backward") else _trio_case(op, args, options)
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
        if gradient is not None:
            lines = _Lines(case, points, which, dy, y, gradient, step, tol)
            report[case.names[which]] = lines.check(rng) if gradient.size and y.size else 0.0
    return report


def _all_finite(case: _Case) -> None:
    if not case.points:
        raise ValueError(f"{case.title}: no floating array was given, so there is nothing to differentiate")
    for name, point in zip(case.names, case.points, strict=True):
        if not numpy.isfinite(point).all():
            raise ValueError(f"{name} must hold finite numbers to be checked by differences")


def _spread(x: Host) -> float:
    """The size of an array's differences; of its values where all are equal; 1 where all are 0."""
    return float(numpy.std(x) or numpy.abs(x).max(initial=0.0) or 1.0) if x.size else 1.0


def _off_kinks(x: Host, rng: numpy.random.Generator) -> Host:
    """`x`, moved a little where it holds ties or zeros, so that no two elements tie and none is 0."""
    if numpy.unique(x).size == x.size and (x != 0).all():
        return x
    moves = rng.permutation(numpy.linspace(0.5, 1.0, x.size)) * rng.choice((-0.01, 0.01), x.size)
    return x + _spread(x) * moves.reshape(x.shape)


# --------------------------------------------------------------------------------------------------------- differences
class _Lines:
    """L along lines through one argument's point, and its slope there."""

    def __init__(
        self, case: _Case, points: list[Host], which: int, dy: Host, y: Host, gradient: Host, step: float, tol: float
    ) -> None:
        self.case, self.points, self.which, self.tol = case, points, which, tol
        self.x, self.y, self.gradient = points[which], y, gradient
        self.weights = numpy.where(numpy.isfinite(y), dy, 0.0)  # a window without cells gives -inf
        self.step = step * _spread(self.x)
        self.size = float(numpy.sqrt(numpy.mean(gradient**2))) if gradient.size else 0.0
        held = numpy.abs(numpy.where(numpy.isfinite(y), y, 0.0) * self.weights).sum()
        reach = numpy.abs(self.x).max(initial=0.0) * numpy.sqrt((gradient**2).sum())
        self.noise = ROUNDING * float(held + reach)

    def check(self, rng: numpy.random.Generator) -> float:
        """The largest relative difference along the directions; GradientError where one is above the tolerance."""
        wrong = ~numpy.isfinite(self.gradient)
        if wrong.any():
            at = tuple(int(i) for i in numpy.argwhere(wrong)[0])
            raise GradientError(f"{self._said(at)}: backward gives {self.gradient[at]} where x and y are finite")
        worst, measured = 0.0, 0
        for _ in range(DIRECTIONS):
            found = self._along_some_direction(rng)
            if found is not None:
                difference, allowed = found
                if not difference <= allowed:
                    self._blame()
                worst, measured = max(worst, difference / allowed * self.tol), measured + 1
        if not measured:
            raise GradientError(
                f"{self._said()}: no step is short enough for the function to be smooth within it: is it continuous here?"
            )
        return worst

    def _along_some_direction(self, rng: numpy.random.Generator) -> tuple[float, float] | None:
        for redrawn in range(REDRAWN):
            v = rng.uniform(0.5, 1.0, self.x.shape) * rng.choice((-1.0, 1.0), self.x.shape)
            if redrawn:  # the fewer elements move, the fewer kinks they meet
                still = rng.permutation(self.x.size) >= max(1, self.x.size // 8**redrawn)
                v = numpy.where(still.reshape(v.shape), 0.0, v)
            found = self.compare(v)
            if found is not None:
                return abs(found[0] - found[1]), found[2]
        return None

    def compare(self, v: Host) -> tuple[float, float, float] | None:
        """Along v: the slope by the gradient, the slope by differences, what may lie between; None where L is not smooth."""
        given = float((self.gradient * v).sum())
        for shorter in range(SHORTER):
            h = self.step * 10.0**-shorter
            slope, bend = self._slope_and_bend(v, h)
            nearer, less = self._slope_and_bend(v, h / 2)
            scale = max(self.size * float(numpy.sqrt((v**2).sum())), abs(slope), abs(nearer))
            allowed = self.tol * scale + self.noise / h
            if abs(slope - nearer) <= allowed and abs(bend - 2 * less) <= 2 * allowed:
                return given, (4 * nearer - slope) / 3, allowed  # Richardson's step: the error's h² term cancels
        return None

    def _slope_and_bend(self, v: Host, h: float) -> tuple[float, float]:
        ahead, behind = self._change(h * v) / h, -self._change(-h * v) / h
        return (ahead + behind) / 2, ahead - behind

    def _change(self, move: Host) -> float:
        """L at the moved point minus L at the point."""
        moved = [self.x + move if i == self.which else p for i, p in enumerate(self.points)]
        with numpy.errstate(invalid="ignore"):  # -inf minus -inf
            rise = self.case.value(moved) - self.y
        return float(numpy.where(self.weights != 0, rise * self.weights, 0.0).sum())

    def _blame(self) -> None:
        """Look for the wrong elements one by one, and say which is the worst; none may be found where rounding misled."""
        found = []
        for flat in self._suspects():
            compared = self.compare(self._unit([flat]))
            if compared is not None and not abs(compared[0] - compared[1]) <= compared[2]:
                found.append((abs(compared[0] - compared[1]), flat, compared))
        if found:
            off, flat, (given, slope, _) = max(found, key=lambda f: f[0])
            at = tuple(int(i) for i in numpy.unravel_index(flat, self.x.shape))
            raise GradientError(
                f"{self._said(at)}: backward gives {given:.9g}, differences give {slope:.9g} (off by {off:.3g}, tolerance"
                f" {self.tol:g}); {len(found)} of {min(self.x.size, ONE_BY_ONE)} elements looked at differ"
            )

    def _suspects(self) -> Host:
        """Flat indices of the elements to look at: all, or of a large array the part that differs most."""
        flat = numpy.arange(self.x.size)
        while flat.size > ONE_BY_ONE:
            parts = numpy.array_split(flat, 8)
            flat = max(parts, key=lambda part: self._difference(self._unit(part)))
        return flat

    def _difference(self, v: Host) -> float:
        found = self.compare(v)
        return 0.0 if found is None else abs(found[0] - found[1])

    def _unit(self, flat: Any) -> Host:
        v = numpy.zeros(self.x.size)
        v[flat] = 1.0
        return v.reshape(self.x.shape)

    def _said(self, at: tuple[int, ...] | None = None) -> str:
        return f"{self.case.title}: the gradient of {self.case.names[self.which]}" + ("" if at is None else f" at {at}")


# -------------------------------------------------------------------------------------------------------------- trios
class _Trio:
    """An op's trio and its arguments. `slots`: where the candidates for differentiation are, None for those not given."""

    def __init__(self, trio: tuple[Callable[..., Any], ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.op, self.forward, self.backward = trio
        self.title = f"{_name(self.op)}_backward"
        self.given: dict[int | str, Any] = {**dict(enumerate(args)), **options}
        found = _candidates(self.op, self.given)
        self.names = [name for name, key in found if key is not None]
        self.slots = found
        self.points = [_host(self.given[key]) for _, key in found if key is not None]

    def _arguments(self, points: Sequence[Host]) -> dict[int | str, Any]:
        """Copies of everything, the points in their places."""
        keys = [key for _, key in self.slots if key is not None]
        values = {**self.given, **dict(zip(keys, points, strict=False))}
        return {key: _copy(value, self.given[key]) for key, value in values.items()}

    @staticmethod
    def _call(function: Callable[..., Any], arguments: dict[int | str, Any]) -> Any:
        positional = [v for k, v in arguments.items() if isinstance(k, int)]
        return function(*positional, **{k: v for k, v in arguments.items() if isinstance(k, str)})

    def value(self, points: Sequence[Host]) -> Host:
        y = self._call(self.op, self._arguments(points))
        return _host(y[0] if isinstance(y, tuple) else y)

    def gradients(self, points: Sequence[Host], y: Host, dy: Host) -> list[Host | None]:
        arguments = self._arguments(points)
        before = {k: _host(v, v.dtype) for k, v in arguments.items() if _is_array(v)}
        result, ctx = self._call(self.forward, arguments)
        result = result[0] if isinstance(result, tuple) else result
        if not numpy.allclose(_host(result), y, rtol=1e-9, atol=1e-9 * _spread(y), equal_nan=True):
            raise GradientError(f"{_name(self.forward)} and {_name(self.op)} give different results")
        b = backends.of(result)
        device_dy = b.array(dy, b.xp.float64)
        found = _as_list(self.backward(device_dy, ctx))
        again = _as_list(self.backward(device_dy, ctx))
        if [g is not None and _host(g).tobytes() for g in found] != [
            g is not None and _host(g).tobytes() for g in again
        ]:
            raise GradientError(f"{self.title} gave other gradients when the same context was used again")
        slots = self._paired(len(found))
        names = {key: name for name, key in slots if key is not None}
        for key, value in before.items():
            if (key in names or value.dtype.kind in "iu") and not _same(arguments[key], value):
                raise GradientError(
                    f"{_name(self.forward)} or {self.title} wrote to its argument {names.get(key, key)}"
                )
        if not _same(device_dy, dy):
            raise GradientError(f"{self.title} wrote to dy")
        for (name, key), gradient in zip(slots, found, strict=True):
            _check_form(self.title, name, None if key is None else arguments[key], gradient)
        self.names = [name for name, key in slots if key is not None]
        return [_host(g) for g in found if g is not None]

    def _paired(self, number: int) -> list[tuple[str, int | str | None]]:
        """The candidates that `number` gradients belong to."""
        arrays = [slot for slot in self.slots if slot[1] is not None]
        slots = arrays if len(arrays) == number else self.slots
        if len(slots) < number:
            raise GradientError(f"{self.title} returned {number} gradients for {len(arrays)} floating arrays")
        return slots[:number]


def _trio_case(op: Any, args: tuple[Any, ...], options: dict[str, Any]) -> _Trio:
    if isinstance(op, tuple):
        if len(op) != 3 or not all(callable(f) for f in op):
            raise TypeError("op as a tuple must be three functions: (op, op_forward, op_backward)")
        return _Trio(op, args, options)
    name, module = _name(op).removesuffix("_forward"), sys.modules.get(getattr(op, "__module__", None) or "")
    trio = tuple(getattr(module, name + end, None) for end in ("", "_forward", "_backward"))
    if not all(callable(f) for f in trio):
        raise TypeError(
            f"op must be a layer or an op with {name}_forward and {name}_backward beside it in its module; for functions"
            " defined elsewhere pass the tuple (op, op_forward, op_backward)"
        )
    return _Trio(trio, args, options)  # type: ignore[arg-type]


def _candidates(op: Callable[..., Any], given: dict[int | str, Any]) -> list[tuple[str, int | str | None]]:
    """(name, where it is given) of the floating arrays in the signature's order, and (name, None) of arguments left None."""
    found: list[tuple[str, int | str | None]] = []
    parameters = inspect.signature(op).parameters.values()
    positions = sum(isinstance(key, int) for key in given)
    for i, parameter in enumerate(parameters):
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        key: int | str = i if positional and i < positions else parameter.name
        value = given.get(key, parameter.default)
        if parameter.kind is parameter.VAR_POSITIONAL:
            found += [(f"{parameter.name}[{k - i}]", k) for k in range(i, positions) if _is_floating(given[k])]
        elif _is_floating(value):
            found.append((parameter.name, key))
        elif value is None:
            found.append((parameter.name, None))
    return found


# -------------------------------------------------------------------------------------------------------------- layers
class _Layer:
    """A layer and what its forward is called with: x and every parameter are checked, on copies of the layer."""

    def __init__(self, layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.layer = copy.deepcopy(layer)
        self.layer.map_arrays(lambda a: _copy(_host(a), a) if _is_floating(a) else a)
        self.title, self.args, self.options = type(layer).__name__, args, options
        if not args or not _is_floating(args[0]):
            raise ValueError(f"{self.title}: forward's first argument must be a floating array, to be differentiated")
        self.names = ["x", *self.layer.params]
        self.points = [_host(args[0]), *(_host(p) for p in self.layer.params.values())]

    def _at(self, points: Sequence[Host]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        layer = copy.deepcopy(self.layer)
        for array, point in zip(layer.params.values(), points[1:], strict=True):
            array[...] = backends.of(array).array(point, array.dtype)
        rest = [_copy(a, a) for a in self.args[1:]]
        return layer, (_copy(points[0], self.args[0]), *rest), {k: _copy(v, v) for k, v in self.options.items()}

    def value(self, points: Sequence[Host]) -> Host:
        layer, args, options = self._at(points)
        y = layer.forward(*args, **options)
        return _host(y[0] if isinstance(y, tuple) else y)

    def gradients(self, points: Sequence[Host], y: Host, dy: Host) -> list[Host | None]:
        layer, args, options = self._at(points)
        result = layer.forward(*args, **options)
        b = backends.of(result[0] if isinstance(result, tuple) else result)
        device_dy = b.array(dy, b.xp.float64)
        dx = layer.backward(device_dy)
        if not _same(device_dy, dy):
            raise GradientError(f"{self.title}.backward wrote to dy")
        arrays, found = [args[0], *layer.params.values()], [dx]
        for name, array, point in zip(self.names, arrays, points, strict=True):
            if not _same(array, point):
                raise GradientError(f"{self.title} wrote to {name}")
            if name not in ("x", *layer.grads):
                raise GradientError(f"{self.title}.grads has no gradient of {name} after backward")
        found += [layer.grads[name] for name in self.names[1:]]
        for name, array, gradient in zip(self.names, arrays, found, strict=True):
            _check_form(self.title, name, array, gradient)
        return [_host(g) for g in found]


def _layer_case(layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> _Layer:
    if not hasattr(layer, "map_arrays"):
        raise TypeError(f"a layer must be a cnnlayers.layers.Layer, got {type(layer).__name__}: derive it from Layer")
    return _Layer(layer, args, options)


# -------------------------------------------------------------------------------------------------------------- arrays
def _check_form(title: str, name: str, array: Array | None, gradient: Array | None) -> None:
    if array is None or gradient is None:
        if array is not gradient:
            state = (
                "was not given: its gradient must be None" if array is None else "was given, but its gradient is None"
            )
            raise GradientError(f"{title}: {name} {state}")
        return
    if not _is_array(gradient) or backends.of(gradient) != backends.of(array):
        raise GradientError(
            f"{title}: the gradient of {name} must be an array of {name}'s owner, got {type(gradient).__name__}"
        )
    if tuple(gradient.shape) != tuple(array.shape) or gradient.dtype != array.dtype:
        raise GradientError(
            f"{title}: the gradient of {name} must have its shape and dtype, {tuple(array.shape)} and {array.dtype}; got"
            f" {tuple(gradient.shape)} and {gradient.dtype}"
        )


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, numpy.generic)


def _is_floating(value: Any) -> bool:
    return _is_array(value) and backends.dtype_name(backends.of(value), value) in backends.FLOATS


def _host(array: Array, dtype: Any = numpy.float64) -> Host:
    """A copy on the host."""
    host = backends.to_numpy(array)
    return host.astype(dtype if isinstance(dtype, type | numpy.dtype) else host.dtype)


def _copy(value: Any, like: Any) -> Any:
    """`value` for one call: an array on `like`'s backend (float64 if floating), a generator's twin, or the value itself."""
    if _is_array(like):
        b = backends.of(like)
        return b.array(backends.to_numpy(value).copy(), b.xp.float64 if _is_floating(like) else like.dtype)
    return copy.deepcopy(value) if isinstance(value, numpy.random.Generator) else value


def _same(array: Array, host: Host) -> bool:
    return backends.to_numpy(array).tobytes() == host.tobytes()


def _as_list(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]
