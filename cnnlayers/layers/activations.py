"""Activation layers: they have no parameters."""

from __future__ import annotations

from typing import Any, Literal

from cnnlayers.functional.arrays import Array
from cnnlayers.specs.arguments import flag, integer, real

from .base import Layer


class LeakyReLU(Layer, op="leaky_relu"):
    """Leaky ReLU: x where x > 0, else negative_slope * x.

    Parameters
    ----------
    negative_slope : float
        The factor of values that are not positive.
    inplace : bool
        PyTorch's; it changes nothing: an input is never written to.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.leaky_relu`.

    Notes
    -----
    x: any shape; y has it.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import LeakyReLU
    >>> LeakyReLU(0.5)(np.array([-2.0, 3.0]))
    array([-1.,  3.])

    References
    ----------
    torch.nn.LeakyReLU
    """

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope, self.inplace = real(negative_slope, "negative_slope"), flag(inplace, "inplace")


class GELU(Layer, op="gelu"):
    """GELU: x times the standard normal distribution function of x.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        "tanh" is the usual approximation; see `functional.gelu`.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.gelu`.

    Notes
    -----
    x: any shape; y has it.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import GELU
    >>> GELU()(np.array([-1.0, 1.0])).round(4)
    array([-0.1587,  0.8413])

    References
    ----------
    Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415; torch.nn.GELU
    """

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate: Literal["none", "tanh"] = approximate


class Sigmoid(Layer, op="sigmoid"):
    """Logistic sigmoid: 1 / (1 + exp(-x)).

    Raises
    ------
    TypeError
        x has another dtype than a floating one.

    Notes
    -----
    x: any shape; y has it.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Sigmoid
    >>> Sigmoid()(np.zeros(1))
    array([0.5])

    References
    ----------
    torch.nn.Sigmoid
    """


class Tanh(Layer, op="tanh"):
    """Hyperbolic tangent.

    Raises
    ------
    TypeError
        x has another dtype than a floating one.

    Notes
    -----
    x: any shape; y has it.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Tanh
    >>> Tanh()(np.zeros(1))
    array([0.])

    References
    ----------
    torch.nn.Tanh
    """


class Softmax(Layer, op="softmax"):
    """Softmax: exp(x) / sum(exp(x)), the sum along one axis.

    Parameters
    ----------
    dim : int
        The axis that sums to 1, PyTorch's name for `functional.softmax`'s axis; a negative one counts from the end.

    Raises
    ------
    ValueError, TypeError
        An option that is wrong for every x, when the layer is made; in forward as `functional.softmax`.

    Notes
    -----
    x: any shape with that axis; y has it. Before a cross-entropy no softmax is needed:
    `functional.softmax_cross_entropy` takes scores.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers.layers import Softmax
    >>> Softmax()(np.zeros((1, 2)))
    array([[0.5, 0.5]])

    References
    ----------
    torch.nn.Softmax
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = integer(dim, "dim")

    def compute_forward(self, x: Array) -> tuple[Any, Any]:
        return self._call_op(x, axis=self.dim)
