"""What every layer is: named arrays, a mode, and the context of its last forward.

A layer holds state alone (parameters, gradients, running statistics); all arithmetic is in `cnnlayers.functional`.
Names are PyTorch's, nested ones joined by dots ("0.weight"). Arrays are updated in place, so whoever holds one sees its
latest values. A context serves one backward: forward replaces it, backward uses it up.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.functional.arrays import Array
from cnnlayers.specs.arguments import MOST_ELEMENTS, flag, integer

from .state import MissingAttributeErrors, check_prefix, checked_pair, checked_value

# Arrays that `map_arrays` has put others in the place of, by id. They are not kept alive by this.
_replaced: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()


def was_replaced(array: Array) -> bool:
    """Whether a layer had this array, and `to` or `map_arrays` put another in its place."""
    return _replaced.get(id(array)) is array


def _note_replaced(old: Iterable[Array], new: Iterable[Array]) -> None:
    for array in old:
        with contextlib.suppress(TypeError):  # an array library whose arrays take no weak references
            _replaced[id(array)] = array
    for array in new:  # may be one of the old ones
        _replaced.pop(id(array), None)


def write_value(store: dict[str, Array], key: str, value: Array) -> None:
    """Write a value into the array at `key`, or put it there in its place if its dtype is another."""
    old = store[key]
    if value.dtype == old.dtype:
        old[...] = value
    else:
        store[key] = value
        _note_replaced([old], [value])


class Parameters(dict[str, Array]):
    """A layer's live parameters by name. To assign to a name copies the values into the live array; complex ones make
    the parameter of a convolution or linear layer complex, which is another array. A copy or a pickle is a plain
    dict."""

    def __init__(self, layer: Layer) -> None:
        super().__init__({prefix + name: a for prefix, at in layer.walk() for name, a in at.own_params.items()})
        self.layer = layer

    def __reduce__(self) -> tuple[type[dict[str, Array]], tuple[dict[str, Array]]]:
        return dict, (dict(self),)

    def __setitem__(self, name: str, value: Array) -> None:
        if name not in self:
            raise KeyError(f"no parameter {name!r}; there are {', '.join(self) or 'none'}")
        if value is not self[name]:  # `params[name] -= step` has written already
            live, (holder, store, key) = self[name], self.layer.holder_of(self[name])
            write_value(store, key, checked_value(name, live, value, holder.complex_weights))
            super().__setitem__(name, store[key])

    def update(self, *others: Any, **more: Array) -> None:
        """Assign to several names. Nothing is written unless all of them can be."""
        values = dict[str, Array](*others, **more)
        for name, value in values.items():
            if name not in self:
                self[name] = value  # raises
            checked_value(name, self[name], value)
        for name, value in values.items():
            self[name] = value

    def __ior__(self, other: Any) -> Parameters:  # type: ignore[misc, override]
        self.update(other)
        return self

    def _fixed(self, *args: Any, **options: Any) -> Any:
        raise TypeError("a layer has the parameters that it has: none can be added or removed")

    __delitem__ = pop = popitem = clear = setdefault = _fixed


ARRAYS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}  # an op's parameters, a layer's names


class Layer(MissingAttributeErrors):
    """The base of all layers.

    A layer of your own calls `super().__init__()`, fills `own_params` and writes two methods:

    - `compute_forward(x) -> (y, ctx)`, where ctx is anything but None,
    - `compute_backward(dy, ctx) -> dx`, which assigns to `own_grads`.

    `class MyPool(Layer, op="max_pool")` does both by an op of `cnnlayers.functional`: its options are the layer's
    attributes of the same names.

    Attributes
    ----------
    own_params : dict of str to array
        The layer's own parameters, without those of layers inside it.
    own_grads : dict of str to array
        Their gradients, by the last backward.
    own_buffers : dict of str to array
        Other arrays of the state: running statistics.
    children : dict of str to Layer
        The layers inside it.
    training : bool
        Whether it is in training, as a new layer is.

    Notes
    -----
    `params`, `grads` and `state_dict` give the arrays of the layer and of all inside it.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Layer, Sequential, Tanh
    >>> class Scale(Layer):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.own_params["weight"] = np.full(1, 2.0)
    ...     def compute_forward(self, x):
    ...         return x * self.own_params["weight"], x
    ...     def compute_backward(self, dy, ctx):
    ...         self.own_grads = {"weight": np.sum(dy * ctx, keepdims=True)}
    ...         return dy * self.own_params["weight"]
    >>> net = Sequential(Scale())
    >>> net(np.array([3.0])).tolist(), net.backward(np.array([1.0])).tolist(), net.grads["0.weight"].tolist()
    ([6.0], [2.0], [3.0])
    """

    _op_forward: Callable[..., tuple[Any, Any]]
    _op_backward: Callable[..., Any]
    _op_options: tuple[str, ...]  # what the op takes from the layer's attributes
    _op_arrays: tuple[tuple[str, str], ...]  # what it takes from `own_params`, and the name there
    _accepts_needs_dx = False  # whether the op's backward takes needs_dx
    complex_weights = False  # whether parameters may become complex, by an assignment of complex values
    _needs_dx = True  # in the backward under way; `compute_backward` may give None otherwise
    _shared_attributes: tuple[str, ...] = ()  # attributes that a copy of the layer shares

    def __init_subclass__(cls, *, op: str | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if op is None:
            return
        forward, backward = getattr(F, f"{op}_forward"), getattr(F, f"{op}_backward")
        cls._op_forward, cls._op_backward = staticmethod(forward), staticmethod(backward)
        cls._accepts_needs_dx = "needs_dx" in inspect.signature(backward).parameters
        names, own = list(inspect.signature(forward).parameters)[1:], inspect.signature(cls).parameters
        arrays = ARRAYS if "weight" in names or "gamma" in names else {}
        cls._op_arrays = tuple((name, arrays[name]) for name in names if name in arrays)
        cls._op_options = tuple(n for n in names if n not in arrays and (n in own or hasattr(cls, n)))

    def __init__(self) -> None:
        self.training = True
        self.own_params: dict[str, Array] = {}
        self.own_buffers: dict[str, Array] = {}
        self.children: dict[str, Layer] = {}
        self._gradients: dict[str, Array] = {}
        self._tensors: dict[str, Any] = {}  # the parameters as Tensors of cnnlayers.autograd, made when asked for
        self._ctx: Any = None

    @property
    def own_grads(self) -> dict[str, Array]:
        """The gradients of the layer's own parameters, by name."""
        return self._gradients

    @own_grads.setter
    def own_grads(self, gradients: Mapping[str, Array]) -> None:
        new = dict(gradients)
        self._gradients.clear()  # the dict itself stays: Tensors of the parameters refer to it
        self._gradients.update(new)

    def forward(self, x: Array, *args: Any, **options: Any) -> Any:
        """y; the context for `backward` is kept. A context that was pending is discarded, even where this raises.
        Of a Tensor of cnnlayers.autograd y is a Tensor, and the graph keeps the context."""
        if hasattr(x, "_through_layer"):
            return x._through_layer(self, *args, **options)
        self.release()
        y, self._ctx = self._computed(backends.plain(x), *args, **options)
        return y

    def _computed(self, x: Array, *args: Any, **options: Any) -> tuple[Any, Any]:
        """y and the context of `compute_forward`, checked to be a pair."""
        compute: Callable[..., tuple[Any, Any]] = self.compute_forward  # some layers take more than x
        return checked_pair(self, compute(x, *args, **options))

    def __call__(self, x: Array, *args: Any, **options: Any) -> Any:
        return self.forward(x, *args, **options)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """dx; the parameters' gradients replace those in `grads`. Raises RuntimeError unless a forward came before.

        needs_dx: False where x is no layer's output, but data. Then None is given, and work that only dx needs is left
        out: a third of a convolution, and whatever comes before a network's first parameter.
        """
        if self._ctx is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward has no forward to go back through: call forward first, once for each"
                " backward"
            )
        self._needs_dx = flag(needs_dx, "needs_dx")
        dx = self.compute_backward(backends.plain(dy), self._ctx)
        self._ctx = None
        return dx if self._needs_dx else None

    def _call_op(self, x: Array, **options: Any) -> tuple[Any, Any]:
        """y and the context of the layer's op; options take the place of the layer's own."""
        given = {name: getattr(self, name) for name in self._op_options}
        for argument, name in self._op_arrays:
            given[argument] = self.own_params.get(name)
        given.update(options)
        return self._op_forward(x, **given)

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        """y and what `compute_backward` needs."""
        return self._call_op(x)

    def compute_backward(self, dy: Array, ctx: Any) -> Array:
        """dx; the parameters' gradients go to `own_grads`."""
        options = {} if self._needs_dx or not self._accepts_needs_dx else {"needs_dx": False}
        found = self._op_backward(dy, ctx, **options)
        dx, *gradients = found if isinstance(found, tuple) else (found,)
        named = zip(("weight", "bias"), gradients, strict=False)
        self.own_grads = {name: gradient for name, gradient in named if gradient is not None}
        return dx

    # ------------------------------------------------------------------------------------------------------------ state
    def walk(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """This layer and all inside it, each with the prefix of its names."""
        yield prefix, self
        for name, child in self.children.items():
            if child.children:
                yield from child.walk(f"{prefix}{name}.")
            else:  # without a generator of its own
                yield f"{prefix}{name}.", child

    @property
    def params(self) -> Parameters:
        """The parameters by name: live arrays, to be updated in place."""
        return Parameters(self)

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients that the last backward gave, by the parameters' names."""
        return {prefix + name: g for prefix, at in self.walk() for name, g in at.own_grads.items()}

    def state_dict(self) -> dict[str, Array]:
        """Parameters and running statistics by PyTorch's names: live arrays, not copies."""
        return {prefix + name: a for prefix, at in self.walk() for name, a in (at.own_params | at.own_buffers).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Write the arrays of `state` (NumPy's, CuPy's, PyTorch's, …) into this layer's, cast to their dtypes.

        The names must be `state_dict`'s own; only `num_batches_tracked` may be missing. Raises ValueError that lists
        every missing, unknown and misshapen name, TypeError for a value without real numbers; then nothing was changed.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
        own = self.state_dict()
        check_prefix(type(self).__name__, own, [str(name) for name in state])
        missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
        faults = [f"missing: {', '.join(missing)}"] if missing else []
        unknown = [str(n) for n in state if n not in own]
        faults += [f"unknown: {', '.join(unknown)}"] if unknown else []
        found = {}
        for name in (n for n in own if n in state):
            try:
                holder, store, key = self.holder_of(own[name])
                found[name] = store, key, checked_value(name, own[name], state[name], holder.complex_weights)
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ValueError(f"the state does not fit this {type(self).__name__}: {'; '.join(faults)}")
        for store, key, value in found.values():
            write_value(store, key, value)
        return self

    def holder_of(self, array: Array) -> tuple[Layer, dict[str, Array], str]:
        """The layer, among this one and all inside it, that has an array of the state; and where it has it."""
        for _, at in self.walk():
            for store in (at.own_params, at.own_buffers):
                for key, own in store.items():
                    if own is array:
                        return at, store, key
        raise KeyError("the array is none of this layer's: it was replaced")

    # ------------------------------------------------------------------------------------------------------------- mode
    def train(self, mode: bool = True) -> Self:
        """Training mode (or evaluation, with False) for this layer and all inside it; returns the layer."""
        mode = flag(mode, "mode")
        for _, at in self.walk():
            at.training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode for this layer and all inside it; returns the layer."""
        return self.train(False)

    def to(self, backend: str) -> Self:
        """Move parameters and running statistics to a backend ("numpy", "cupy"); returns the layer.

        A pending context and the gradients are dropped. Raises as `backends.using`; then nothing was moved.
        """
        with backends.using(backend):
            return self.map_arrays(backends.asarray)

    def map_arrays(self, function: Callable[[Array], Array]) -> Self:
        """Replace every parameter and running statistic by `function(array)`; returns the layer.

        A pending context and the gradients are dropped. Where `function` raises, nothing is replaced.
        """
        if not callable(function):
            raise TypeError(f"function must be a function of an array, got {type(function).__name__}")
        stores = [store for _, at in self.walk() for store in (at.own_params, at.own_buffers)]
        replaced = [{name: function(array) for name, array in store.items()} for store in stores]
        old = [array for store in stores for array in store.values()]
        for store, new in zip(stores, replaced, strict=True):
            store.update(new)
        _note_replaced(old, [array for new in replaced for array in new.values()])
        for _, at in self.walk():
            at.own_grads = {}
        self.release()
        return self

    def release(self) -> None:
        """Drop the contexts that are pending, here and inside."""
        self._ctx = None
        for child in self.children.values():
            child.release()

    # ----------------------------------------------------------------------------------------------------------- copies
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ctx": None, "_tensors": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A layer with arrays of its own and no pending context."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        for name, value in vars(twin).items():
            if name not in self._shared_attributes:
                setattr(twin, name, copy.deepcopy(value, memo))
        return twin

    def __repr__(self) -> str:
        if self.children:
            inside = "".join(
                f"  ({n}): {repr(child).replace(chr(10), chr(10) + '  ')}\n" for n, child in self.children.items()
            )
            return f"{type(self).__name__}(\n{inside})"
        return f"{type(self).__name__}({', '.join(self._arguments())})"

    def _arguments(self) -> Iterator[str]:
        """The constructor's arguments as they would be typed; keyword-only ones where they are not the default."""
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            value = getattr(self, name, parameter.default)
            default = repr(value) == repr(parameter.default)  # an array of sizes has no truth value
            if parameter.kind is parameter.KEYWORD_ONLY and (name == "rng" or default):
                continue
            bare = parameter.default is parameter.empty and name != "kernel_size"
            yield repr(value) if bare else f"{name}={value!r}"


def shape_of(x: Array) -> tuple[int, ...]:
    """x's shape. TypeError where x is no array."""
    backends.of(x)
    return tuple(x.shape)


def generator(rng: Any) -> numpy.random.Generator:
    """The generator that `rng=` names: None for fresh entropy, a seed, or a generator itself. TypeError otherwise."""
    if isinstance(rng, numpy.random.Generator):
        return rng
    return numpy.random.default_rng(None if rng is None else integer(rng, "rng", 0))


def uniform(rng: numpy.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """PyTorch's initial weights, uniform within ±1/sqrt(fan_in), as float32 on the selected backend.

    They are drawn on the host, so that a seed gives the same weights everywhere.
    """
    if math.prod(shape) >= MOST_ELEMENTS:
        raise ValueError(f"the weight would have shape {shape}, more than the 2**59 elements that fit into an array")
    bound = fan_in**-0.5 if fan_in else 0.0
    return backends.asarray(rng.uniform(-bound, bound, shape).astype(numpy.float32))


def full(shape: tuple[int, ...], value: float) -> Array:
    """A float32 array of one value on the selected backend."""
    return backends.asarray(numpy.full(shape, value, numpy.float32))
