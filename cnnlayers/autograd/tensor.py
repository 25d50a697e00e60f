"""Tensors: arrays that know what they were made from.

A Tensor holds a plain array of NumPy, CuPy or another array-API library, and its ops run where that array lives, by its
library's own rules of dtypes and broadcasting. Whatever is computed from a Tensor that requires gradient requires it,
too, unless a `no_grad` block is on.

Arrays are shared, not copied: `data` is the array that was given, a basic index, `reshape` or `detach` may give a view.
The graph refers to them as they are. A change in place is not tracked: make one (an optimiser's step, say) after
backward and before the next forward, never between a forward and its backward.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy

from cnnlayers import backends
from cnnlayers.functional._common import Array, cast, check_floating, check_numeric, is_complex, is_float
from cnnlayers.specs.arguments import entries_of, flag, integer, real

from . import ops
from .graph import Gradients, Node, Source, recording, walk_back, whole
from .index import plain_index, take
from .numpy_functions import NumpyFunctions

Operator: TypeAlias = Callable[[Any, Any], Any]
NUMBERS = (int, float, numpy.integer, numpy.floating)  # constants without an owner, whatever the arrays' is


def _numbers(given: tuple[Any, ...], name: str) -> tuple[int, ...]:
    """Ints, given one by one or as one sequence."""
    entries = entries_of(given[0], name) if len(given) == 1 else None
    return tuple(integer(v, name) for v in (given if entries is None else entries))


def _is_operand(value: Any, numbers: bool = True) -> bool:
    """Whether an operator takes this: a Tensor, an array, or a real number."""
    if isinstance(value, int | float):
        return numbers
    return isinstance(value, Tensor) or (hasattr(value, "dtype") and hasattr(value, "shape"))


@backends.quiet
def apply(name: str, op: Callable[..., ops.Result], *operands: Any, **options: Any) -> Tensor:
    """Run one of `ops` on Tensors, arrays and numbers, and record it where any of them requires a gradient."""
    plain = [o.data if isinstance(o, Tensor) else backends.plain(o) for o in operands]
    arrays = [a for a in plain if not isinstance(a, NUMBERS)]
    b = backends.of(*arrays)
    for array in arrays:
        check_numeric(b, array, "an operand")
    if backends.dtype_name(b, arrays[0]) == "bfloat16":  # NumPy would make float32 of it and a Python number
        plain = [b.full((), o, arrays[0].dtype) if isinstance(o, int | float) else o for o in plain]
    with backends.on_device_of(arrays[0]):
        y, gradients = op(b, *plain, **options)
    sources = [o._source if isinstance(o, Tensor) else None for o in operands]
    if not recording() or all(source is None for source in sources) or not is_float(b, y.dtype):
        return Tensor._of(y)
    needed = [g if source is not None else None for g, source in zip(gradients, sources, strict=True)]
    return record(name, y, sources, lambda dy: [None if g is None else g(dy) for g in needed])


def record(name: str, y: Array, sources: Sequence[Source | None], gradients: Gradients) -> Tensor:
    """The result of an op that goes into the graph."""
    y = whole(y)
    return Tensor._of(y, Node(name, y, sources, gradients))


def _operators(name: str, op: Callable[..., ops.Result], *, numbers: bool = True) -> tuple[Operator, Operator]:
    """The operator and its reflection; each leaves what is no array to Python, whose TypeError names the kinds."""

    def run(self: Tensor, other: Any) -> Any:
        return apply(name, op, self, other) if _is_operand(other, numbers) else NotImplemented

    def reflected(self: Tensor, other: Any) -> Any:
        return apply(name, op, other, self) if _is_operand(other, numbers) else NotImplemented

    return run, reflected


def _in_place(compute: Operator) -> Operator:
    """`t += x` is `t = t + x`, but for a leaf: there it would lose the Tensor whose grad backward fills."""

    def run(self: Tensor, other: Any) -> Any:
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
    def run(self: Tensor, other: Any) -> Any:
        if not _is_operand(other):
            return NotImplemented
        plain = other.data if isinstance(other, Tensor) else backends.plain(other)
        backends.of(self.data, None if isinstance(plain, NUMBERS) else plain)
        with backends.on_device_of(self.data):
            return Tensor._of(compare(self.data, plain))

    return run


class Tensor(NumpyFunctions):
    """An array in a graph of ops. `data`: its array; `grad`: the gradient that `backward` has added up, or None.

    data: a floating, integer or bool array of NumPy, CuPy or another array-API library, kept as it is (one of a NumPy
    subclass as a plain view); numbers and sequences of them become an array of the selected backend. requires_grad:
    whether backward shall fill `grad`.
    Only these Tensors, made by the caller, get a `grad`; those computed from them do not keep theirs.

    Raises TypeError: another kind or dtype, `requires_grad` of what is not floating.
    """

    __slots__ = ("__weakref__", "_data", "_grad", "_node", "_wanted")

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            raise TypeError("data is a Tensor already: .detach() gives one without its history, .data its array")
        if isinstance(data, int | float | list | tuple):
            data = backends.asarray(data)
        b = backends.of(data, name="data")
        if is_complex(b, data.dtype):
            raise TypeError(
                f"data must be floating, integer or bool, got {data.dtype}: Tensors are real; for complex arrays call"
                " the forward and backward of cnnlayers.functional, or cnnlayers.torch"
            )
        self._data: Array = whole(check_numeric(b, data, "data"))
        self._node: Node | None = None
        self._wanted = False
        self._grad: Array | None = None
        self.requires_grad = requires_grad

    @classmethod
    def _of(cls, data: Array, node: Node | None = None) -> Tensor:
        """A result: what an op computed, and its node where it was recorded."""
        made = cls.__new__(cls)
        made._data, made._node, made._wanted, made._grad = whole(data), node, False, None
        return made

    @property
    def _source(self) -> Source | None:
        """Where this Tensor's gradient goes: the op it came from, the Tensor itself, or nowhere."""
        return self._node or (self if self._wanted else None)

    # ------------------------------------------------------------------------------------------------------ the array
    @property
    def data(self) -> Array:
        """The array itself. Another one of its shape, dtype and owner may be put in its place."""
        return self._data

    @data.setter
    def data(self, array: Array) -> None:
        self._data = self._like(array, "data")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._data.shape)

    @property
    def dtype(self) -> Any:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(self._data.size)

    def _like(self, array: Array, name: str) -> Array:
        """`array`, if it has this Tensor's owner, shape and dtype. TypeError or ValueError otherwise."""
        backends.of(self._data, array, name=name)
        array = whole(array)
        if array.dtype != self.dtype:
            raise TypeError(f"{name} must have dtype {self.dtype}, got {array.dtype}")
        if tuple(array.shape) != self.shape:
            raise ValueError(f"{name} must have shape {self.shape}, got {tuple(array.shape)}")
        return array

    def item(self) -> Any:
        """The value of a Tensor with one element, as a Python number. ValueError for another size."""
        if self.size != 1:
            raise ValueError(f"only a Tensor with one element is a number, got shape {self.shape}")
        return backends.to_numpy(self._data).item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __repr__(self) -> str:
        note = f", made by {self._node.op}" if self._node else ", requires_grad=True" if self._wanted else ""
        return f"Tensor({self._data!r}{note})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if self.requires_grad:
            raise TypeError("as an array this Tensor would lose its gradient: say .data or .detach() if it may")
        return numpy.array(self._data, dtype=dtype, copy=copy)

    def __reduce__(self) -> Any:
        if self._node is not None:
            raise TypeError("a computed Tensor is not copied or pickled, as its history would be: .detach() it first")
        return Tensor, (self._data, self._wanted), (None, {"_grad": self._grad})

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a 0-d Tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    # -------------------------------------------------------------------------------------------------- the gradient
    @property
    def grad(self) -> Array | None:
        """The sum of the gradients of all backwards since it was None; set it to None to begin anew."""
        return self._grad

    @grad.setter
    def grad(self, array: Array | None) -> None:
        self._grad = None if array is None else self._like(array, "grad")

    @property
    def requires_grad(self) -> bool:
        """Whether backward goes here: as the caller said, or because this was computed from such a Tensor."""
        return self._wanted or self._node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if self._node is not None:
            if not flag(wanted, "requires_grad"):
                raise RuntimeError(f"this Tensor was computed, by {self._node.op}: .detach() gives one without history")
            return
        if flag(wanted, "requires_grad"):
            check_floating(backends.of(self._data), self._data, "data of a Tensor that requires_grad")
        self._wanted = bool(wanted)

    def _through_layer(self, layer: Any, *args: Any, **options: Any) -> Any:
        """`layer(self, ...)`, as layers call it."""
        from .layers import through_layer

        return through_layer(layer, self, *args, **options)

    def detach(self) -> Tensor:
        """A Tensor of the same array, without history: gradients do not pass it."""
        return Tensor._of(self._data)

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add to the `grad` of every Tensor this was computed from, and that requires it, its part of the gradient.

        gradient: that of some loss in this Tensor, an array (or Tensor) of its shape, floating, on its device; a number
        or nothing (1) for a Tensor with one element. What was saved is freed as it is used, unless retain_graph.

        Raises RuntimeError: no graph leads here, or backward went through it before. ValueError: a shape, a gradient
        missing. TypeError: a dtype, an owner, a kind. Where it raises, no `grad` has changed.
        """
        source = self._source
        if source is None:
            raise RuntimeError(
                "nothing requires a gradient here: this Tensor was computed from none with requires_grad=True, or in a"
                " no_grad block, or is detached"
            )
        walk_back(source, self._seed(gradient), flag(retain_graph, "retain_graph"))

    def _seed(self, gradient: Any) -> Array:
        b = backends.of(self._data)
        if gradient is None and self.size != 1:
            raise ValueError(
                f"backward of a Tensor of shape {self.shape} needs its gradient, of that shape; or reduce it to one"
                " number first, by .sum() or .mean()"
            )
        if gradient is None or (isinstance(gradient, NUMBERS) and self.size == 1):
            value = 1.0 if gradient is None else real(gradient, "gradient", finite=False)
            with backends.on_device_of(self._data):
                return b.full(self.shape, value, self.dtype)
        array = gradient.data if isinstance(gradient, Tensor) else gradient
        backends.of(array, name="gradient")
        backends.of(self._data, array)
        array = cast(b, check_floating(b, whole(array), "gradient"), self.dtype)
        return self._like(array, "gradient")

    # ------------------------------------------------------------------------------------------------------ operators
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
        return apply("negative", ops.negative, self)

    def __abs__(self) -> Tensor:
        return apply("abs", ops.absolute, self)

    def __invert__(self) -> Tensor:
        return Tensor._of(~self._data)

    def __getitem__(self, index: Any) -> Tensor:
        b = backends.of(self._data)
        entries = index if isinstance(index, tuple) else (index,)
        plain = plain_index(b, self._data, tuple(e.data if isinstance(e, Tensor) else e for e in entries))
        return apply("indexing", take, self, index=plain)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "the elements of a Tensor are not assigned to, as that would not be tracked: compute a new one (a mask"
            " times the old, say), or write to .data where no gradient is to pass"
        )

    # -------------------------------------------------------------------------------------------------------- methods
    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The sum over all axes, one or several."""
        return apply("sum", ops.total, self, axis=axis, keepdims=flag(keepdims, "keepdims"))

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The mean over all axes, one or several."""
        return apply("mean", ops.mean, self, axis=axis, keepdims=flag(keepdims, "keepdims"))

    def max(self, axis: Any = None, keepdims: bool = False, *, ties: str = "first") -> Tensor:
        """The maximum over all axes, one or several; NaN wins.

        ties: who gets the gradient, as in `max_pool`: the "first" maximum in C order, "all", or "split" equally.
        """
        return self._extreme("max", axis, keepdims, ties)

    def min(self, axis: Any = None, keepdims: bool = False, *, ties: str = "first") -> Tensor:
        """The minimum, as `max`."""
        return self._extreme("min", axis, keepdims, ties)

    def _extreme(self, which: str, axis: Any, keepdims: bool, ties: str) -> Tensor:
        keepdims = flag(keepdims, "keepdims")
        return apply(which, ops.extreme, self, axis=axis, keepdims=keepdims, ties=ties, which=which)

    def reshape(self, *shape: Any) -> Tensor:
        """The elements in another shape, given as a tuple or as numbers; one entry may be -1, what is left."""
        return apply("reshape", ops.reshape, self, shape=_numbers(shape, "shape"))

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in another order, as NumPy: all of them, as a tuple or as numbers; reversed where none is named."""
        order = tuple(reversed(range(self.ndim))) if not axes or axes[0] is None else _numbers(axes, "axes")
        return apply("transpose", ops.transpose, self, axes=order)

    @property
    def T(self) -> Tensor:
        """The axes in reverse."""
        return self.transpose()

    def exp(self) -> Tensor:
        return apply("exp", ops.exp, self)

    def log(self) -> Tensor:
        return apply("log", ops.log, self)

    def sqrt(self) -> Tensor:
        return apply("sqrt", ops.sqrt, self)

    def tanh(self) -> Tensor:
        return apply("tanh", ops.tanh, self)

    def abs(self) -> Tensor:
        return abs(self)

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        """At least low and at most high; the gradient passes where the element lies between them, bounds included."""
        bounds = {"low": low, "high": high}
        given = {name: None if v is None else real(v, name, finite=False) for name, v in bounds.items()}
        return apply("clip", ops.clip, self, **given)

    def astype(self, dtype: Any) -> Tensor:
        """In another dtype of its library; the gradient comes back in this one."""
        return apply("astype", ops.astype, self, dtype=dtype)


def concat(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors (or plain arrays, as constants) one after another along an axis that they have."""
    if not isinstance(tensors, list | tuple) or not all(hasattr(t, "shape") for t in tensors):
        raise TypeError(f"tensors must be a list or tuple of Tensors or arrays, got {type(tensors).__name__}")
    parts = tuple(tensors)
    ndim = len(parts[0].shape) if parts else 0
    number = integer(axis, "axis")
    if not -ndim <= number < ndim:
        raise ValueError(f"axis must be one of the {ndim} axes of the first of at least one Tensor, got {axis}")
    return apply("concat", ops.concat, *parts, axis=number)
