"""Tensors: arrays that know what they were made from.

A Tensor holds a plain array of NumPy, CuPy or another array-API library, and its ops run where that array lives, by its
library's own rules of dtypes and broadcasting. Whatever is computed from a Tensor that requires gradient requires it,
too, unless a `no_grad` block is on.

Arrays are shared, not copied: `data` is the array that was given, a basic index, `reshape` or `detach` may give a view.
The graph refers to them as they are. A change in place is not tracked: make one (an optimiser's step, say) after
backward and before the next forward, never between a forward and its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.functional.arrays import Array, cast, is_complex, is_float
from cnnlayers.functional.checks import check_floating, check_numeric
from cnnlayers.specs.arguments import flag, integer, real

from . import ops
from .graph import Gradients, Node, Source, recording, walk_back, whole
from .operators import NUMBERS, Operators


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


class Tensor(Operators):
    """An array in a graph of ops.

    Parameters
    ----------
    data : array, number or sequence of numbers
        A floating, integer or bool array of NumPy, CuPy or another array-API library, kept as it is (one of a NumPy
        subclass as a plain view); numbers and sequences of them become an array of the selected backend.
    requires_grad : bool
        Whether backward fills `grad`. Only these Tensors, made by the caller, get a `grad`; those computed from them do
        not keep theirs.

    Raises
    ------
    TypeError
        Another kind or dtype; `requires_grad` of what is not floating.

    Examples
    --------
    >>> from cnnlayers.autograd import Tensor
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4.])

    References
    ----------
    torch.Tensor
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

    _apply = staticmethod(apply)

    @staticmethod
    def _of(data: Array, node: Node | None = None) -> Tensor:
        """A result: what an op computed, and its node where it was recorded."""
        made = Tensor.__new__(Tensor)
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
        """The length of every axis."""
        return tuple(self._data.shape)

    @property
    def dtype(self) -> Any:
        """The array's dtype, of its own library."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
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
        """The value of a Tensor with one element.

        Returns
        -------
        int, float or bool

        Raises
        ------
        ValueError
            Another size.
        """
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
        """A Tensor of the same array, without history: gradients do not pass it.

        Returns
        -------
        Tensor
        """
        return Tensor._of(self._data)

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add to the `grad` of every Tensor this was computed from, and that requires it, its part of the gradient.

        Parameters
        ----------
        gradient : array, Tensor, number or None
            That of some loss in this Tensor: of its shape, floating, on its device. A number, or None (1), for a Tensor
            with one element.
        retain_graph : bool
            Whether what was saved stays for another backward; else it is freed as it is used.

        Raises
        ------
        RuntimeError
            No graph leads here, or backward went through it before.
        ValueError
            Another shape, or a gradient missing.
        TypeError
            A dtype, an owner, a kind. Where it raises, no `grad` has changed.
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


def concat(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors one after another along an axis that they have.

    Parameters
    ----------
    tensors : list or tuple of Tensor or array
        Arrays are constants.
    axis : int

    Returns
    -------
    Tensor

    Raises
    ------
    TypeError
        What is no list or tuple of Tensors or arrays.
    ValueError
        An axis that they do not have, shapes that differ elsewhere.

    Examples
    --------
    >>> from cnnlayers.autograd import Tensor, concat
    >>> concat([Tensor([1.0]), Tensor([2.0, 3.0])])
    Tensor(array([1., 2., 3.]))

    References
    ----------
    numpy.concatenate
    """
    if not isinstance(tensors, list | tuple) or not all(hasattr(t, "shape") for t in tensors):
        raise TypeError(f"tensors must be a list or tuple of Tensors or arrays, got {type(tensors).__name__}")
    parts = tuple(tensors)
    ndim = len(parts[0].shape) if parts else 0
    number = integer(axis, "axis")
    if not -ndim <= number < ndim:
        raise ValueError(f"axis must be one of the {ndim} axes of the first of at least one Tensor, got {axis}")
    return apply("concat", ops.concat, *parts, axis=number)
