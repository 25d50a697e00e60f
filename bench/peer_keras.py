"""Keras's NumPy backend as it comes: its pooling and convolutions are JAX's, which uses the machine's cores."""

from __future__ import annotations

import numpy as np

from .cases import KERAS
from .contest import Call, Contestant, Refused
from .keras_networks import model
from .problem import Problem


class KerasOnJax(Contestant):
    name = "keras-jax"

    def call(self, problem: Problem, part: str) -> Call:
        if problem.case.op not in KERAS:
            raise Refused("computes networks of Keras only")
        x = problem.inputs[0]
        network = model(problem.case.op, x.shape[1:])
        return lambda i: (np.asarray(network(x)),)
