"""Linear layers, and those that look at each value alone or only rearrange them."""

from __future__ import annotations

import math
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.functional.arrays import Array, is_complex
from cnnlayers.functional.call_plan import CallPlan, Context, check_backward
from cnnlayers.functional.checks import check_numeric
from cnnlayers.specs.arguments import flag, integer, real

from .base import Layer, generator, uniform


class Linear(Layer, op="linear"):
    """Linear map of the last axis: x @ weight.T + bias; see `functional.linear`.

    Parameters
    ----------
    in_features, out_features : int
        The last axis of x and y.
    bias : bool
        Whether the layer has a bias, (out_features,).
    rng : None, int or numpy.random.Generator
        What the initial weights are drawn from.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.linear`.

    Notes
    -----
    x: (..., in_features); y: (..., out_features). The weight is (out_features, in_features). New weights and biases are
    uniform within ±1 / sqrt(in_features), as PyTorch's.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Linear
    >>> Linear(64, 10)(np.zeros((8, 64), np.float32)).shape
    (8, 10)

    References
    ----------
    torch.nn.Linear
    """

    complex_weights = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rng: Any = None) -> None:
        super().__init__()
        self.in_features = integer(in_features, "in_features", 0)
        self.out_features, self.bias = integer(out_features, "out_features", 0), flag(bias, "bias")
        source = generator(rng)
        self.own_params["weight"] = uniform(source, (self.out_features, self.in_features), self.in_features)
        if self.bias:
            self.own_params["bias"] = uniform(source, (self.out_features,), self.in_features)


class ReLU(Layer, op="relu"):
    """Rectified linear unit: max(x, 0).

    Parameters
    ----------
    inplace : bool
        PyTorch's; it changes nothing: an input is never written to.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.relu`.

    Notes
    -----
    x: any shape; y has it.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import ReLU
    >>> ReLU()(np.array([-2.0, 3.0]))
    array([0., 3.])

    References
    ----------
    torch.nn.ReLU
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = flag(inplace, "inplace")


class Flatten(Layer):
    """Joins neighbouring axes into one.

    Parameters
    ----------
    start_dim, end_dim : int
        The first and the last axis that are joined.

    Raises
    ------
    ValueError
        An axis that x does not have, or a start_dim behind end_dim.
    TypeError
        An axis that is no int, an x that is no array of numbers.

    Notes
    -----
    x: any shape that has these axes.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Flatten
    >>> Flatten()(np.zeros((8, 3, 4, 5))).shape
    (8, 60)

    References
    ----------
    torch.nn.Flatten
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = integer(start_dim, "start_dim"), integer(end_dim, "end_dim")

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        b = backends.of(x)
        shape = tuple((x if is_complex(b, x.dtype) else check_numeric(b, x, "x")).shape)
        start, end = self._axis(self.start_dim, "start_dim", shape), self._axis(self.end_dim, "end_dim", shape)
        if start > end:
            raise ValueError(f"start_dim {self.start_dim} lies behind end_dim {self.end_dim} in an x of shape {shape}")
        joined = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
        return b.xp.reshape(x, joined), Context(CallPlan("flatten", b, x.dtype, joined, shape))

    @staticmethod
    def _axis(dim: int, name: str, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= dim < len(shape):
            raise ValueError(f"{name} must be an axis of x, whose shape is {shape}, got {dim}")
        return dim % len(shape)

    def compute_backward(self, dy: Array, ctx: Any) -> Array:
        b, dy = check_backward("flatten", dy, ctx, exact=True)
        return b.xp.reshape(dy, ctx.spec)


class Dropout(Layer, op="dropout"):
    """In training sets each value to 0 with probability p and divides the others by 1 - p.

    Parameters
    ----------
    p : float
        The probability, from 0 to 1.
    inplace : bool
        PyTorch's; it changes nothing: an input is never written to.
    rng : None, int or numpy.random.Generator
        What the masks are drawn from; each forward draws a new one.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.dropout`.

    Notes
    -----
    x: any shape; y has it. In evaluation y is x.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Dropout
    >>> Dropout(0.5).eval()(np.ones(3))
    array([1., 1., 1.])

    References
    ----------
    torch.nn.Dropout
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, rng: Any = None) -> None:
        super().__init__()
        self.p, self.inplace = real(p, "p"), flag(inplace, "inplace")
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be a probability, from 0 to 1, got {p!r}")
        self.rng = generator(rng)

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        seed = int(self.rng.integers(numpy.iinfo(numpy.int32).max)) if self.training else None
        return self._call_op(x, training=self.training, rng=seed)
