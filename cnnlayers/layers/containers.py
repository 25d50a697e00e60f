"""Layers made of layers. Their arrays are named as PyTorch does: the part's name, a dot, the array's name."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.functional.arrays import Array, cast

from .base import Layer

ORIGIN = "_cnnlayers_origin"  # the attribute of an exception for its `_Origin`


class _Origin:
    """The layer that an exception comes from, and its message there. It keeps no layer alive, and pickles none."""

    def __init__(self, layer: Layer | None = None, message: str = "") -> None:
        self._layer = None if layer is None else weakref.ref(layer)
        self.message = message

    @property
    def layer(self) -> Layer | None:
        return None if self._layer is None else self._layer()

    def __reduce__(self) -> tuple[type[_Origin], tuple[None, str]]:
        return _Origin, (None, self.message)


def _hint(value: Any) -> str:
    """How a value that is no layer becomes layers; "" where that is not known."""
    if isinstance(value, list | tuple):
        return ": unpack it with *"
    return f": call it, {value.__name__}(...)" if isinstance(value, type) and issubclass(value, Layer) else ""


class _Container(Layer):
    """What layers made of layers share. An error inside one of them says which one it comes from."""

    def _adopt(self, **layers: Layer) -> None:
        """Take in layers by name. A layer keeps one context, so no layer may stand in two places."""
        places: dict[int, str] = {}
        for name, layer in layers.items():
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"{type(self).__name__} is made of layers, given one by one; {name} is {layer!r}{_hint(layer)}"
                )
            for prefix, inside in layer.walk(f"{name}."):
                if id(inside) in places:
                    raise ValueError(
                        f"{prefix[:-1]} is the same layer as {places[id(inside)]}; a layer keeps the context of one"
                        " forward: make a second one"
                    )
                places[id(inside)] = prefix[:-1]
            self.children[name] = layer

    def forward(self, x: Array, *args: Any, **options: Any) -> Any:
        try:
            return super().forward(x, *args, **options)
        except BaseException as error:
            self.release()  # the parts before the one that raised
            self._name_layer(error)
            raise

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        try:
            return super().backward(dy, needs_dx=needs_dx)
        except Exception as error:
            self._name_layer(error)
            raise

    def _call(self, layer: Layer, step: Callable[..., Array], *args: Any, **options: Any) -> Array:
        """`step` of a layer inside; an exception remembers the innermost layer that it comes through."""
        try:
            return step(*args, **options)
        except Exception as error:
            origin = getattr(error, ORIGIN, _Origin()).layer
            if not any(at is origin for _, at in layer.walk()):
                with contextlib.suppress(AttributeError):  # an exception without room for it
                    setattr(error, ORIGIN, _Origin(layer, str(error)))
            raise

    def _name_layer(self, error: BaseException) -> None:
        """Put the layer's name, as `state_dict` has it, before the message of an error that comes from inside.

        Containers around this one call this again, and theirs is the longer name.
        """
        origin = getattr(error, ORIGIN, _Origin())
        layer, message = origin.layer, origin.message
        name = next((prefix.rstrip(".") for prefix, at in self.walk() if at is layer and prefix), None)
        if layer is None or name is None:
            return
        place = f"layer {name} ({type(layer).__name__})"
        if not error.args or (len(error.args) == 1 and isinstance(error.args[0], str)):
            error.args = (f"{place}: {message}" if message else place,)
        elif hasattr(error, "add_note"):  # its message is not one text, which could be added to
            error.add_note(f"in {place}")


class Sequential(_Container):
    """Layers one after another. `net[i]` is a layer, `net[i:j]` a Sequential of the same layers.

    Parameters
    ----------
    *layers : Layer
        Any number of them.

    Raises
    ------
    TypeError
        What is no layer.
    ValueError
        A layer that stands in two places.

    Notes
    -----
    x: what the first layer takes; y: what the last one gives.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Sequential
    >>> from cnnlayers.layers import Flatten, Linear
    >>> net = Sequential(Flatten(), Linear(12, 10))
    >>> net(np.zeros((8, 3, 2, 2), np.float32)).shape
    (8, 10)
    >>> sorted(net.params)
    ['1.bias', '1.weight']

    References
    ----------
    torch.nn.Sequential
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self._adopt(**{str(i): layer for i, layer in enumerate(layers)})

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.children.values())

    def __getitem__(self, index: int | slice) -> Layer:
        layers = list(self)
        if not isinstance(index, slice):
            return layers[index]
        part = Sequential(*layers[index])
        part.training = self.training
        return part

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        for layer in self:
            x = self._call(layer, layer.forward, x)
        return x, True

    def compute_backward(self, dy: Array, ctx: Any) -> Array:
        layers = list(self)
        if not self._needs_dx:  # down to the first that has parameters, and no further
            while layers and not layers[0].params:
                layers.pop(0).release()
        for layer in reversed(layers):
            last = layer is layers[0] and not self._needs_dx
            dy = self._call(layer, layer.backward, dy, **({"needs_dx": False} if last else {}))
        return dy


@backends.quiet
def _sum(x: Array, y: Array) -> Array:
    if not (isinstance(x, numpy.ndarray) and isinstance(y, numpy.ndarray)):  # of CuPy, or autograd's
        return x + y
    return numpy.add(x, y, out=backends.of(x).empty(x.shape, numpy.result_type(x, y)))


class Residual(_Container):
    """Residual block: body(x) + shortcut(x).

    Parameters
    ----------
    body : Layer
        The layers whose output is added.
    shortcut : Layer or None
        None adds x itself.

    Raises
    ------
    TypeError
        What is no layer.
    ValueError
        A layer that stands in two places; in forward, results of different shapes.

    Notes
    -----
    x: what body takes; y: what body gives, which shortcut(x) must have the shape of.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Residual
    >>> from cnnlayers.layers import ReLU
    >>> Residual(ReLU())(np.array([-1.0, 2.0]))
    array([-1.,  4.])

    References
    ----------
    He, Zhang, Ren and Sun 2015, https://arxiv.org/abs/1512.03385
    """

    def __init__(self, body: Layer, shortcut: Layer | None = None) -> None:
        super().__init__()
        self._adopt(body=body, **({} if shortcut is None else {"shortcut": shortcut}))

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        body, shortcut = self.children["body"], self.children.get("shortcut")
        y = self._call(body, body.forward, x)
        beside = x if shortcut is None else self._call(shortcut, shortcut.forward, x)
        if tuple(y.shape) != tuple(beside.shape):
            raise ValueError(
                f"body and shortcut must give one shape, to be added: got {tuple(y.shape)} and {tuple(beside.shape)}"
            )
        return _sum(y, beside), True

    def compute_backward(self, dy: Array, ctx: Any) -> Array:
        body, shortcut = self.children["body"], self.children.get("shortcut")
        dx = self._call(body, body.backward, dy)
        beside = dy if shortcut is None else self._call(shortcut, shortcut.backward, dy)
        return _sum(dx, cast(backends.of(dx), beside, dx.dtype))
