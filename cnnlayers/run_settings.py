"""What decides a run's result: its settings, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VALIDATION_SHARE = 0.15
DECAY = 0.93  # of the learning rate, each epoch
# The first learning rate, by data and optimiser: pictures of many cells give sums of many terms, and need small steps.
RATES = {"digits": {"adam": 3e-3, "sgd": 0.05}}
RATES_OF_OTHERS = {"adam": 1e-3, "sgd": 0.01}
# A model's arguments beside the pictures' shape and the number of classes.
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"three-layer": {"hidden": 256, "batch_norm": True}, "resnet8": {}}


@dataclass(frozen=True)
class Settings:
    """What decides a run's result, beside the number of epochs.

    Parameters
    ----------
    data : str
        "digits", or a path as `data.load` takes it.
    model : str
        A name of `models.NAMES`.
    optimizer : {"adam", "sgd"}
    lr : float or None
        The first epoch's learning rate; None for that of `RATES`. It is multiplied by `DECAY` after each epoch.
    batch_size : int
        Pictures in a batch, of all processes together.
    seed : int
        Of the initial weights, the validation split, the order and the augmentation.

    Examples
    --------
    >>> from cnnlayers import train
    >>> train.Settings(model="resnet8", seed=1)
    Settings(data='digits', model='resnet8', optimizer='adam', lr=None, batch_size=64, seed=1)
    """

    data: str = "digits"
    model: str = "three-layer"
    optimizer: str = "adam"
    lr: float | None = None
    batch_size: int = 64
    seed: int = 0
