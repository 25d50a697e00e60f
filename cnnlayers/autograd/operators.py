"""The operators and methods of a Tensor: each is one op of `ops`, or computes with no gradient."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy

from cnnlayers import backends
from cnnlayers.specs.arguments import flag, integers, real

from . import ops
from .index import plain_index, take
from .numpy_functions import NumpyFunctions

if TYPE_CHECKING:
    from .tensor import Tensor

Operator: TypeAlias = Callable[[Any, Any], Any]
NUMBERS = (int, float, numpy.integer, numpy.floating)  # constants without an owner, whatever the arrays' is


def _numbers(given: tuple[Any, ...], name: str) -> tuple[int, ...]:
    """Ints, given one by one or as one sequence."""
    return integers(given[0] if len(given) == 1 else given, name)


def _is_operand(value: Any, numbers: bool = True) -> bool:
    """Whether an operator takes this: a Tensor, an array, or a real number."""
    if isinstance(value, int | float):
        return numbers
    return isinstance(value, Operators) or (hasattr(value, "dtype") and hasattr(value, "shape"))


def _operators(name: str, op: Callable[..., ops.Result], *, numbers: bool = True) -> tuple[Operator, Operator]:
    """The operator and its reflected form (`2 * t`). For an operand that is no array both give NotImplemented, and
    Python then raises a TypeError that names the two types."""

    def run(self: Operators, other: Any) -> Any:
        return self._apply(name, op, self, other) if _is_operand(other, numbers) else NotImplemented

    def reflected(self: Operators, other: Any) -> Any:
        return self._apply(name, op, other, self) if _is_operand(other, numbers) else NotImplemented

    return run, reflected


def _in_place(compute: Operator) -> Operator:
    """`t += x` is `t = t + x`. For a leaf that is an error: the name would then mean another Tensor than the one whose
    `grad` backward fills."""

    def run(self: Operators, other: Any) -> Any:
        if self._wanted:
            raise RuntimeError(
                "this would replace a Tensor that requires gradient by a computed one: to update it, change its array,"
                " as in t.data -= lr * t.grad; to compute with it, give the result another name"
            )
        return compute(self, other)

    return run


def _comparison(compare: Operator) -> Operator:
    """A comparison (or a union of masks), element by element: a Tensor of bools, which has no gradient."""

    @backends.quiet
    def run(self: Operators, other: Any) -> Any:
        if not _is_operand(other):
            return NotImplemented
        plain = other.data if isinstance(other, Operators) else backends.plain(other)
        backends.of(self.data, None if isinstance(plain, NUMBERS) else plain)
        with backends.on_device_of(self.data):
            return self._of(compare(self.data, plain))

    return run


class Operators(NumpyFunctions):
    """What `Tensor` inherits: `_apply` runs and records an op, `_of` makes a Tensor that nothing led to."""

    __slots__ = ()

    _apply: ClassVar[Callable[..., Tensor]]
    _of: ClassVar[Callable[..., Tensor]]
    _wanted: bool

    __add__, __radd__ = _operators("add", ops.add)
    __sub__, __rsub__ = _operators("subtract", ops.subtract)
    __mul__, __rmul__ = _operators("multiply", ops.multiply)
    __truediv__, __rtruediv__ = _operators("divide", ops.divide)
    __pow__, __rpow__ = _operators("power", ops.power)
    __matmul__, __rmatmul__ = _operators("matmul", ops.matmul, numbers=False)
    __iadd__, __isub__, __imul__ = _in_place(__add__), _in_place(__sub__), _in_place(__mul__)
    __itruediv__, __ipow__, __imatmul__ = _in_place(__truediv__), _in_place(__pow__), _in_place(__matmul__)
    __lt__, __le__ = _comparison(operator.lt), _comparison(operator.le)
    __gt__, __ge__ = _comparison(operator.gt), _comparison(operator.ge)
    __eq__, __ne__ = _comparison(operator.eq), _comparison(operator.ne)
    __and__ = __rand__ = _comparison(operator.and_)
    __or__ = __ror__ = _comparison(operator.or_)
    __hash__ = object.__hash__  # by identity, as == compares elements

    def __neg__(self) -> Tensor:
        return self._apply("negative", ops.negative, self)

    def __abs__(self) -> Tensor:
        return self._apply("abs", ops.absolute, self)

    def __invert__(self) -> Tensor:
        return self._of(~self.data)

    def __getitem__(self, index: Any) -> Tensor:
        b = backends.of(self.data)
        entries = index if isinstance(index, tuple) else (index,)
        plain = plain_index(b, self.data, tuple(e.data if isinstance(e, Operators) else e for e in entries))
        return self._apply("indexing", take, self, index=plain)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "the elements of a Tensor are not assigned to, as that would not be tracked: compute a new one (a mask"
            " times the old, say), or write to .data where no gradient is to pass"
        )

    # -------------------------------------------------------------------------------------------------------- methods
    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The sum of the elements.

        Parameters
        ----------
        axis : int, tuple of int or None
            None: all axes.
        keepdims : bool
            Whether the axes stay, with length 1.

        Returns
        -------
        Tensor
        """
        return self._apply("sum", ops.total, self, axis=axis, keepdims=flag(keepdims, "keepdims"))

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The mean of the elements.

        Parameters
        ----------
        axis, keepdims
            As `sum` has them.

        Returns
        -------
        Tensor
        """
        return self._apply("mean", ops.mean, self, axis=axis, keepdims=flag(keepdims, "keepdims"))

    def max(self, axis: Any = None, keepdims: bool = False, *, ties: str = "first") -> Tensor:
        """The maximum; NaN wins.

        Parameters
        ----------
        axis, keepdims
            As `sum` has them.
        ties : {"first", "all", "split"}
            Who gets the gradient, as in `max_pool`: the first maximum in C order, all, or all in equal parts.

        Returns
        -------
        Tensor
        """
        return self._extreme("max", axis, keepdims, ties)

    def min(self, axis: Any = None, keepdims: bool = False, *, ties: str = "first") -> Tensor:
        """The minimum; NaN wins.

        Parameters
        ----------
        axis, keepdims, ties
            As `max` has them.

        Returns
        -------
        Tensor
        """
        return self._extreme("min", axis, keepdims, ties)

    def _extreme(self, which: str, axis: Any, keepdims: bool, ties: str) -> Tensor:
        keepdims = flag(keepdims, "keepdims")
        return self._apply(which, ops.extreme, self, axis=axis, keepdims=keepdims, ties=ties, which=which)

    def reshape(self, *shape: Any) -> Tensor:
        """The elements in another shape.

        Parameters
        ----------
        *shape : int, or one tuple of int
            One entry may be -1: what is left.

        Returns
        -------
        Tensor
        """
        return self._apply("reshape", ops.reshape, self, shape=_numbers(shape, "shape"))

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in another order, as NumPy's.

        Parameters
        ----------
        *axes : int, or one tuple of int
            All of them; none: reversed.

        Returns
        -------
        Tensor
        """
        order = tuple(reversed(range(self.data.ndim))) if not axes or axes[0] is None else _numbers(axes, "axes")
        return self._apply("transpose", ops.transpose, self, axes=order)

    @property
    def T(self) -> Tensor:
        """The axes in reverse."""
        return self.transpose()

    def exp(self) -> Tensor:
        """The exponential of every element."""
        return self._apply("exp", ops.exp, self)

    def log(self) -> Tensor:
        """The natural logarithm of every element."""
        return self._apply("log", ops.log, self)

    def sqrt(self) -> Tensor:
        """The square root of every element."""
        return self._apply("sqrt", ops.sqrt, self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent of every element."""
        return self._apply("tanh", ops.tanh, self)

    def abs(self) -> Tensor:
        """The absolute value of every element."""
        return abs(self)

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        """Each element limited to low and high. The gradient is dy where low <= element <= high, and 0 elsewhere.

        Parameters
        ----------
        low, high : float or None
            None: no bound.

        Returns
        -------
        Tensor
        """
        bounds = {"low": low, "high": high}
        given = {name: None if v is None else real(v, name, finite=False) for name, v in bounds.items()}
        return self._apply("clip", ops.clip, self, **given)

    def astype(self, dtype: Any) -> Tensor:
        """In another dtype of its library; the gradient comes back in this one.

        Parameters
        ----------
        dtype : dtype

        Returns
        -------
        Tensor
        """
        return self._apply("astype", ops.astype, self, dtype=dtype)
