"""A model in evaluation: its outputs, the probabilities of classes, and its figures on a set's test rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy

from cnnlayers import backends, data
from cnnlayers.layers import Layer

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Tested:
    """What the best model does on the test rows.

    Parameters
    ----------
    accuracy : float
        The share of right answers.
    loss : float
        The mean cross-entropy.
    labels : numpy.ndarray
        (rows,) int64.
    probabilities : numpy.ndarray
        (rows, classes) float64.
    """

    accuracy: float
    loss: float
    labels: Any
    probabilities: Any

    @property
    def of_truth(self) -> numpy.ndarray:
        """The probability of each row's own label, (rows,) float64."""
        found: numpy.ndarray = self.probabilities[numpy.arange(len(self.labels)), self.labels]
        return found


def softmax(logits: Any) -> Any:
    """Probabilities, in float64 on the host, from the logits of a batch."""
    powers = numpy.exp(logits - logits.max(axis=1, keepdims=True), dtype=numpy.float64)
    return powers / powers.sum(axis=1, keepdims=True)


def logits_of(model: Layer, x: Any) -> Any:
    """The model's output in evaluation mode. Nothing is saved for a backward pass."""
    y = model.eval()(x)
    model.release()
    return y


def test(model: Layer, dataset: data.Dataset) -> Tested:
    """What the model does on the set's test rows."""
    found = [backends.to_numpy(logits_of(model, x)) for x, _ in data.batches(dataset, dataset.test, EVALUATION_BATCH)]
    probabilities = softmax(numpy.concatenate(found))
    labels = backends.to_numpy(dataset.y)[dataset.test]
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    of_truth = numpy.maximum(probabilities[numpy.arange(len(labels)), labels], numpy.finfo(numpy.float64).tiny)
    return Tested(accuracy, float(-numpy.log(of_truth).mean()), labels, probabilities)
