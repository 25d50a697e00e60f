"""NumPy's functions on a Tensor: `array + tensor` is recorded, and what would lose a gradient says so."""

from __future__ import annotations

from typing import Any

# NumPy's functions that are operators, by the operators' names; and those with the operands in the other order.
OPERATORS = {
    **{"add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv", "power": "pow", "matmul": "matmul"},
    **{"bitwise_and": "and", "bitwise_or": "or", "equal": "eq", "not_equal": "ne"},
    **{"less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge"},
}
SWAPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
REFLECTED = {name: f"__{SWAPPED[name]}__" if name in SWAPPED else f"__r{name}__" for name in OPERATORS.values()}
METHODS = {"amax": "max", "amin": "min", "absolute": "abs"}  # by the names that NumPy's functions go by
WITHOUT_GRADIENT = ("shape", "ndim", "size")


class NumpyFunctions:
    """The protocols by which NumPy asks a Tensor."""

    __slots__ = ()

    data: Any
    requires_grad: Any

    class _ArrayUfunc:
        """NumPy asks the class, and gets a function. The operators of other arrays (CuPy's) ask the Tensor, and get
        None: what is left to the Tensor."""

        def __get__(self, tensor: Any, kind: type) -> Any:
            return _of_ufunc if tensor is None else None

    __array_ufunc__ = _ArrayUfunc()

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """The function of the arrays, where no gradient is lost; TypeError otherwise."""
        found: list[NumpyFunctions] = []
        args, options = (_arrays_of(given, found) for given in (args, options))
        if function.__name__ not in WITHOUT_GRADIENT and any(t.requires_grad for t in found):
            raise TypeError(_not_recorded(type(self), function.__name__))
        return function(*args, **options)


def _of_ufunc(tensor: Any, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    """`array + tensor`, which is the Tensor's to answer; TypeError for what is no operator."""
    name = OPERATORS.get(ufunc.__name__)
    if name is None or method != "__call__" or options or len(inputs) != 2:
        raise TypeError(_not_recorded(type(tensor), ufunc.__name__))
    x, y = inputs
    if isinstance(x, NumpyFunctions):
        return getattr(x, f"__{name}__")(y)
    return getattr(y, REFLECTED[name])(x)


def _not_recorded(kind: type, function: str) -> str:
    """Why a function of NumPy does not take a Tensor, and what to call instead."""
    method = METHODS.get(function, function)
    if function == "concatenate":
        way = "call cnnlayers.autograd.concat, or"
    elif callable(getattr(kind, method, None)):
        way = f"call tensor.{method}(), or"
    else:
        way = "compute it by Tensors' operators and methods, or"
    return (
        f"numpy.{function} does not record what it does to an autograd Tensor, so its gradient would be lost: {way}"
        " pass tensor.data where none is to pass"
    )


def _arrays_of(value: Any, found: list[NumpyFunctions]) -> Any:
    """The value with the array in each Tensor's place; the Tensors are added to `found`."""
    if isinstance(value, NumpyFunctions):
        found.append(value)
        return value.data
    if type(value) in (list, tuple):
        return type(value)(_arrays_of(v, found) for v in value)
    if type(value) is dict:
        return {key: _arrays_of(v, found) for key, v in value.items()}
    return value
