"""This library beside PyTorch (extra `torch`): its ops as PyTorch's own (`torch.ops.cnnlayers.*`) on PyTorch's memory,
drop-in modules, and `convert`, which puts them into a model.

    from cnnlayers.torch import MaxPool2d, convert, functional

    model = convert(model)  # the same answers; one byte an output kept by max pooling; the same bits every run
    model = revert(model)  # PyTorch's own modules again
    y = functional.max_pool(x, 3, 2, 1, ties="split")  # with the choices that PyTorch does not give
"""

from typing import Any

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError("cnnlayers.torch needs PyTorch: pip install 'cnnlayers[torch]'", name="torch") from error

from . import functional
from .modules import MODULES, convert, revert
from .onnx import onnx_translations

__all__ = ["convert", "functional", "onnx_translations", "revert", *MODULES]


def __getattr__(name: str) -> Any:
    """The modules, `MaxPool2d` and so on, by PyTorch's names."""
    try:
        return MODULES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
