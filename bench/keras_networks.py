"""Three networks of keras.applications in inference, by Keras's NumPy backend: on this library, and as it is, on JAX.

The weights are random, the same for both. Keras takes its backend from the environment when it is first imported, so a
process that has imported it with another one cannot measure these rows.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import keras

from .cases import KERAS, Case
from .problem import Problem

# The class in keras.applications. VGG16 without its dense layers, which are 500 MB of weights and no convolution.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "keras_mobilenet_v2": ("MobileNetV2", {}),
    "keras_resnet50": ("ResNet50", {}),
    "keras_vgg16": ("VGG16", {"include_top": False}),
}


def absence() -> str | None:
    """Why these rows cannot be measured here, or None."""
    try:
        keras.check_version()
    except (ModuleNotFoundError, RuntimeError) as reason:
        return str(reason)
    used = sys.modules["keras"].config.backend() if "keras" in sys.modules else os.environ.get("KERAS_BACKEND", "numpy")
    return None if used == "numpy" else f"Keras's backend is {used}: unset KERAS_BACKEND, or set it to numpy"


def usable(found: list[Case], asked: bool) -> tuple[list[Case], dict[str, str]]:
    """The cases that can be measured here, and why the networks of Keras cannot. ValueError where these were asked for
    by name."""
    reason = absence() if any(case.op in KERAS for case in found) else None
    if reason is None:
        return found, {}
    if asked:
        raise ValueError(f"the cases {', '.join(KERAS)} cannot be measured: {reason}")
    return [case for case in found if case.op not in KERAS], {"Keras's networks": reason}


@functools.lru_cache(maxsize=1)
def model(op: str, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """The network for pictures of this shape, the same each time. Keras is imported by the first call."""
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    with keras.installed():  # where JAX is not installed, Keras cannot be imported outside
        theirs = importlib.import_module("keras")
        name, options = MODELS[op]
        theirs.utils.set_random_seed(0)
        made: Callable[[Any], Any] = getattr(theirs.applications, name)(weights=None, input_shape=shape, **options)
        return made


def on_this_library(problem: Problem) -> Callable[[int], Any]:
    x = problem.inputs[0]
    network = model(problem.case.op, x.shape[1:])

    def run(i: int) -> tuple[Any, ...]:
        with keras.installed():
            return (np.asarray(network(x)),)

    return run
