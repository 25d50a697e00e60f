"""The graph behind Tensors: what each op left for its backward, and the walk back through it.

A node is numbered when it is made, after everything it was made from. So the nodes behind a result, taken newest first,
are in an order in which each one's gradient is complete before it is used: no recursion, however deep the graph. Nodes
point backward only (never to the Tensor they made), so a graph nobody holds any longer is freed at once.

Sums of gradients are kept in float32 for half types; those over broadcast axes and those of leaves in float64.
"""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy

from cnnlayers import backends
from cnnlayers.backends import Backend, Block, Exclusive, assigned
from cnnlayers.functional.arrays import Array, accumulator_dtype, cast

Gradients: TypeAlias = Callable[[Array], Sequence[Array | None]]  # from dy, those of an op's sources

_recording: contextvars.ContextVar[bool] = contextvars.ContextVar("cnnlayers_recording", default=True)
_numbers = itertools.count()
_depositing = Exclusive()  # several threads' graphs may share a leaf


def no_grad() -> Block[bool]:
    """A block that records nothing: results require no gradient, ops run in their inference form and save nothing.

    It holds for this thread or async task only. `@no_grad()` makes a function's whole body such a block; a generator's
    or coroutine's body whenever it runs, so that its caller records as before while it is suspended.

    Returns
    -------
    context manager and decorator

    Examples
    --------
    >>> from cnnlayers.autograd import Tensor, no_grad
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> with no_grad():
    ...     (x * 2).requires_grad
    False

    References
    ----------
    torch.no_grad
    """
    return assigned(_recording, lambda: False)


def whole(array: Array) -> Array:
    """A plain array: NumPy's 0-d results are scalars, and callers' arrays may be of a subclass."""
    return numpy.asarray(array) if isinstance(array, numpy.generic) else backends.plain(array)


def recording() -> bool:
    """Whether ops record what backward needs: yes, but in a `no_grad` block."""
    return _recording.get()


class Leaf(Protocol):
    """Where a walk ends: a Tensor that the caller made and wants the gradient of."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    grad: Array | None


class Node:
    """One op of the graph. `sources`: what its arguments came from, None for constants; `gradients`: its backward."""

    __slots__ = ("__weakref__", "dtype", "gradients", "number", "op", "shape", "sources")

    def __init__(self, op: str, y: Array, sources: Sequence[Source | None], gradients: Gradients) -> None:
        self.op, self.shape, self.dtype = op, tuple(y.shape), y.dtype
        self.sources = tuple(sources)
        self.gradients: Gradients | None = gradients
        self.number = next(_numbers)

    def free(self) -> None:
        """Let go of everything saved for backward."""
        self.gradients = None  # before the sources: who reads them in the other order sees both or neither
        self.sources = ()


Source: TypeAlias = Node | Leaf


def _behind(start: Source) -> tuple[list[Node], list[Leaf]]:
    """The nodes that made `start`, oldest first, and the leaves; RuntimeError where one was freed."""
    nodes: list[Node] = []
    leaves: list[Leaf] = []
    seen, waiting = {id(start)}, [start]
    while waiting:
        source = waiting.pop()
        if not isinstance(source, Node):
            leaves.append(source)
            continue
        if source.gradients is None:
            raise RuntimeError(
                f"backward has been through this {source.op} before, and what it saved is freed: compute the result"
                " anew, or call the first backward with retain_graph=True (for several losses: once, on their sum)"
            )
        nodes.append(source)
        for behind in source.sources:
            if behind is not None and id(behind) not in seen:
                seen.add(id(behind))
                waiting.append(behind)
    nodes.sort(key=lambda node: node.number)
    return nodes, leaves


def summed(b: Backend, x: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """The sum over some axes, in float64 whatever floating dtype x has."""
    return b.xp.sum(cast(b, x, accumulator_dtype(b, x.dtype)), axis=axes, keepdims=keepdims, dtype=b.xp.float64)


def _unbroadcast(b: Backend, gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an argument of this shape: summed over the axes along which the argument was repeated."""
    if tuple(gradient.shape) == shape:
        return gradient
    before = gradient.ndim - len(shape)
    repeated = [before + i for i, length in enumerate(shape) if length == 1]
    return b.xp.reshape(summed(b, gradient, (*range(before), *repeated), keepdims=True), shape)


def _add(pending: dict[int, Array], source: Source, gradient: Array) -> None:
    b = backends.of(gradient)
    gradient = whole(_unbroadcast(b, gradient, source.shape))
    if id(source) in pending:
        # A parameter may have been used thousands of times, a step's result seldom more than twice.
        wide = accumulator_dtype(b, source.dtype) if isinstance(source, Node) else b.xp.float64
        gradient = cast(b, pending[id(source)], wide) + cast(b, gradient, wide)
    pending[id(source)] = whole(gradient)


@backends.quiet
def walk_back(start: Source, gradient: Array, retain_graph: bool) -> None:
    """Add to the `grad` of every leaf behind `start` its part in `gradient`, start's own.

    Nodes are freed one by one as they are passed, unless retained. The leaves change at the end, all of them or, where
    an op's backward raised, none.
    """
    nodes, leaves = _behind(start)
    pending = {id(start): gradient}
    while nodes:
        node = nodes.pop()
        dy = pending.pop(id(node))
        b = backends.of(dy)
        sources, gradients = node.sources, node.gradients
        if gradients is None:
            raise RuntimeError(f"another thread walked back through this {node.op} at the same time, and freed it")
        with backends.on_device_of(dy):
            for source, part in zip(sources, gradients(cast(b, dy, node.dtype)), strict=True):
                if source is not None:
                    _add(pending, source, part)
        if not retain_graph:
            node.free()
    _depositing(lambda: _deposit(leaves, pending))


def _deposit(leaves: Sequence[Leaf], pending: dict[int, Array]) -> None:
    """Add to each leaf's `grad`."""
    sums = []
    for leaf in leaves:
        found = pending.pop(id(leaf))
        with backends.on_device_of(found):
            # A copy: what came back may be the caller's own gradient, or a view that another leaf gets, too.
            own = backends.of(found).xp.astype(found, leaf.dtype)
            sums.append(own if leaf.grad is None else leaf.grad + own)
    for leaf, total in zip(leaves, sums, strict=True):  # at the end: an exception before it changes none
        leaf.grad = total
