"""Layers on Tensors: `layer(tensor)` goes into the graph, and a layer's parameters are Tensors that backward fills.

`layer(x)` of a Tensor gives a Tensor. Each layer is one node; a layer made of layers is the graph of its parts. Every
call has a context of its own, kept by the graph and not by the layer: one layer may be called several times before a
backward, and `layer.backward` has nothing to do.

`parameters(net)` gives the parameters as Tensors, by the names of `net.params`. They show the layer's live arrays and
its gradients: what a Tensor's backward adds to `grad` is in `net.grads`, too. Gradients add up until they are set to
None, by the Tensor's `grad` or an optimiser's `zero_grad`; `layer.backward`, in contrast, replaces them.
"""

from __future__ import annotations

from typing import Any

from cnnlayers import backends
from cnnlayers.functional.arrays import Array

from .graph import recording
from .tensor import Tensor, record


class Parameter(Tensor):
    """A layer's parameter as a Tensor; `parameters` gives them.

    `data` is the layer's live array, and assigning to it writes into that array; `grad` is what `layer.grads` gives.
    `requires_grad = False` leaves the parameter out of graphs.

    Parameters
    ----------
    layer : Layer
    name : str
        Its own name of the parameter.
    """

    __slots__ = ("_arrays", "_gradients", "_name")

    def __init__(self, layer: Any, name: str) -> None:
        self._arrays, self._gradients, self._name = layer.own_params, layer._gradients, name
        super().__init__(layer.own_params[name], requires_grad=True)

    @property
    def _data(self) -> Array:
        return self._arrays[self._name]

    @_data.setter
    def _data(self, array: Array) -> None:
        if array is not self._arrays[self._name]:
            self._arrays[self._name][...] = array

    @property
    def _grad(self) -> Array | None:
        return self._gradients.get(self._name)

    @_grad.setter
    def _grad(self, array: Array | None) -> None:
        self._gradients.pop(self._name, None)
        if array is not None:
            self._gradients[self._name] = array


def parameters(layer: Any) -> dict[str, Tensor]:
    """The parameters of a layer or network as Tensors: always the same Tensors.

    Parameters
    ----------
    layer : Layer

    Returns
    -------
    dict of str to Tensor
        By the names of `layer.params`; an optimiser takes them as they are.

    Raises
    ------
    TypeError
        What is no layer.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.autograd import Tensor, parameters
    >>> from cnnlayers.layers import Linear
    >>> net = Linear(2, 1, rng=0)
    >>> net(Tensor(np.ones((3, 2), np.float32))).sum().backward()
    >>> {name: tensor.grad for name, tensor in parameters(net).items()}
    {'weight': array([[3., 3.]], dtype=float32), 'bias': array([3.], dtype=float32)}
    """
    if not hasattr(layer, "walk"):
        raise TypeError(f"parameters takes a layer of cnnlayers.layers, got {type(layer).__name__}")
    return {prefix + name: tensor for prefix, at in layer.walk() for name, tensor in _own(at).items()}


def _own(layer: Any) -> dict[str, Tensor]:
    """The parameters that are the layer's own, made at first use."""
    for name in layer.own_params:
        if name not in layer._tensors:
            layer._tensors[name] = Parameter(layer, name)
    own: dict[str, Tensor] = {name: layer._tensors[name] for name in layer.own_params}
    return own


def through_layer(layer: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    """`layer(x, ...)`, recorded where x or a parameter requires a gradient. What other arguments are Tensors is data
    (indices, say), without a gradient."""
    if layer.children:
        return layer.compute_forward(x, *args, **options)[0]
    own = _own(layer)
    args = tuple(_constant(layer, a) for a in args)
    options = {name: _constant(layer, a) for name, a in options.items()}
    result, ctx = layer._computed(x.data, *args, **options)
    y, *others = result if isinstance(result, tuple) else (result,)
    sources = [t._source if recording() else None for t in (x, *own.values())]
    if all(source is None for source in sources):
        made = Tensor._of(y)
    else:
        made = record(type(layer).__name__, y, sources, _backward_of(layer, ctx, list(own), sources[0] is not None))
    return (made, *map(Tensor._of, others)) if isinstance(result, tuple) else made


def _constant(layer: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise TypeError(
                f"{type(layer).__name__} has a gradient in its first argument alone: give others as .detach()"
            )
        return value.data
    return value


def _backward_of(layer: Any, ctx: Any, names: list[str], needs_dx: bool) -> Any:
    """The layer's backward as a function of dy, which leaves the layer's own gradients as they are."""

    def gradients(dy: Array) -> list[Array | None]:
        held, wanted = dict(layer.own_grads), layer._needs_dx
        try:
            layer._needs_dx = needs_dx
            dx = layer.compute_backward(backends.plain(dy), ctx)
            found = layer.own_grads
            missing = [name for name in names if name not in found]
            if missing or (needs_dx and not hasattr(dx, "dtype")):
                what = f"no gradient of {', '.join(missing)} in own_grads" if missing else f"{type(dx).__name__} for dx"
                raise TypeError(
                    f"{type(layer).__name__}.compute_backward gave {what}: it must return dx alone, an array, and"
                    " assign to own_grads the gradient of every parameter, by its name in own_params"
                )
            return [dx if needs_dx else None, *(found[name] for name in names)]
        finally:
            layer.own_grads, layer._needs_dx = held, wanted

    return gradients
