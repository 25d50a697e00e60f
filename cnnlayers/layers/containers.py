"""Layers made of layers. Their arrays are named as PyTorch does: the part's name, a dot, the array's name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cnnlayers import backends
from cnnlayers.functional.common import Array, cast

from .base import Layer


class _Container(Layer):
    def _adopt(self, **layers: Layer) -> None:
        """Take in layers by name. A layer keeps one context, so no layer may stand in two places."""
        places: dict[int, str] = {}
        for name, layer in layers.items():
            if not isinstance(layer, Layer):
                raise TypeError(f"{type(self).__name__} is made of layers, given one by one; {name} is {layer!r}")
            for prefix, inside in layer._walk(f"{name}."):
                if id(inside) in places:
                    raise ValueError(
                        f"{prefix[:-1]} is the same layer as {places[id(inside)]}; a layer keeps the context of one"
                        " forward: make a second one"
                    )
                places[id(inside)] = prefix[:-1]
            self._children[name] = layer

    def forward(self, x: Array, *args: Any, **options: Any) -> Any:
        try:
            return super().forward(x, *args, **options)
        except BaseException:
            self.release()  # the parts before the one that raised
            raise


class Sequential(_Container):
    """Layers one after another. `net[i]` is a layer, `net[i:j]` a Sequential of the same layers."""

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self._adopt(**{str(i): layer for i, layer in enumerate(layers)})

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._children.values())

    def __getitem__(self, index: int | slice) -> Layer:
        layers = list(self)
        if not isinstance(index, slice):
            return layers[index]
        part = Sequential(*layers[index])
        part.training = self.training
        return part

    def _forward(self, x: Array) -> tuple[Any, Any]:
        for layer in self:
            x = layer.forward(x)
        return x, True

    def _backward(self, dy: Array, ctx: Any) -> Array:
        layers = list(self)
        if not self._needs_dx:  # down to the first that has parameters, and no further
            while layers and not layers[0].params:
                layers.pop(0).release()
        for layer in reversed(layers):
            last = layer is layers[0] and not self._needs_dx
            dy = layer.backward(dy, needs_dx=False) if last else layer.backward(dy)
        return dy


class Residual(_Container):
    """body(x) + shortcut(x); without a shortcut, body(x) + x. The two must have one shape."""

    def __init__(self, body: Layer, shortcut: Layer | None = None) -> None:
        super().__init__()
        self._adopt(body=body, **({} if shortcut is None else {"shortcut": shortcut}))

    def _forward(self, x: Array) -> tuple[Any, Any]:
        shortcut = self._children.get("shortcut")
        y = self._children["body"].forward(x)
        beside = x if shortcut is None else shortcut.forward(x)
        if tuple(y.shape) != tuple(beside.shape):
            raise ValueError(
                f"body and shortcut must give one shape, to be added: got {tuple(y.shape)} and {tuple(beside.shape)}"
            )
        return y + beside, True

    def _backward(self, dy: Array, ctx: Any) -> Array:
        shortcut = self._children.get("shortcut")
        dx = self._children["body"].backward(dy)
        beside = dy if shortcut is None else shortcut.backward(dy)
        return dx + cast(backends.of(dx), beside, dx.dtype)
