"""Convolutional-network layers with explicit forward and backward, on NumPy and CuPy.

`cnnlayers.functional` has the ops, `cnnlayers.layers` the layers, `cnnlayers.backends` says where arrays live. The rest
(autograd, checkpoints, cs231n, models, optim, data, testing, torch, keras, distributed, bench) is imported when it is
first asked for.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

try:
    from . import backends, functional, kernels, layers
except ImportError as error:
    if error.name != __name__ or os.path.isdir(os.path.join(__path__[0], "backends")):  # something else is wrong
        raise
    raise ImportError(
        f"{__path__[0]} is a part of the sources, without cnnlayers.backends, and Python found it before the package"
        " that is installed. Start Python in another folder, or install the sources themselves: pip install -e ."
    ) from None

if TYPE_CHECKING:
    from .checkpoint import load, save
    from .operators import linear_operator

__version__ = "0.1.0"
__all__ = ["__version__", "backends", "functional", "kernels", "layers", "linear_operator", "load", "save"]

_LATER = ("autograd", "bench", "cs231n", "data", "distributed", "keras", "models", "optim", "testing", "torch")
_FUNCTIONS = {"linear_operator": "operators", "load": "checkpoint", "save": "checkpoint"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LATER])
