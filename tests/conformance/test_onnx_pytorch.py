"""Models exported from PyTorch, with PyTorch's own outputs: the onnx package ships them in two folders of its data.

A model runs where all its ops are the library's, or only move axes; the others hold an op that the library has not.
"""

from __future__ import annotations

from typing import Any

import pytest

from .onnx_adapter import ADAPTERS, LAYERS, check
from .onnx_cases import DATA, Case, model_cases

# Models to run, by folder, in onnx 1.19 to 1.23.
AT_LEAST = {"pytorch-converted": 55, "pytorch-operator": 7}

# Ops outside the contract: a model that holds one of them is not the library's to run.
NOT_OURS = {"Abs", "Add", "Clip", "Concat", "Div", "Elu", "Exp", "Flatten", "Gather", "LeakyRelu", "LogSoftmax", "Max"}
NOT_OURS |= {"Min", "Mul", "Neg", "PRelu", "Pow", "ReduceMean", "ReduceSum", "Reshape", "Selu", "Sigmoid", "Slice"}
NOT_OURS |= {"Softmax", "Softplus", "Split", "Sqrt", "Sub", "Sum", "Tanh", "Tile"}

MODELS = {kind: {case.name: case for case in model_cases(kind)} for kind in AT_LEAST}


def ours(case: Case) -> bool:
    return case.ops <= ADAPTERS.keys() and bool(case.ops & LAYERS.keys())


@pytest.mark.sample(12)
@pytest.mark.parametrize("case", [pytest.param(c, id=n) for m in MODELS.values() for n, c in m.items() if ours(c)])
def test_model(impl: Any, case: Case) -> None:
    check(impl, case)


@pytest.mark.parametrize("kind", AT_LEAST)
def test_no_model_went_missing(kind: str) -> None:
    if not (DATA / kind).is_dir():
        pytest.skip(f"the installed onnx has no folder {kind} in its data")
    models = MODELS[kind].values()
    assert sum(map(ours, models)) >= AT_LEAST[kind]
    unknown = {c.name: c.ops for c in models if not ours(c) and not c.ops & NOT_OURS and c.ops & LAYERS.keys()}
    assert not unknown, "neither run nor outside the contract"
