"""ONNX's own node cases, each through the op of `cnnlayers.functional` that its attributes name."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from .onnx_adapter import LAYERS, OUTPUTS_NOT_GIVEN, check
from .onnx_cases import OPS, Case, node_cases

CASES = {case.name: case for case in node_cases()}

# The cases that the contract cannot express: name -> reason. There is none in onnx 1.19 to 1.23.
EXCLUDED: dict[str, str] = {}

# How many cases each op has in onnx 1.19 to 1.23; a release may add some, and must not silently drop any.
AT_LEAST = {
    "MaxPool": 19,
    "AveragePool": 20,
    "LpPool": 8,
    "GlobalMaxPool": 2,
    "GlobalAveragePool": 2,
    "MaxUnpool": 2,
    "Pad": 6,
    "BatchNormalization": 4,
    "InstanceNormalization": 2,
    "GroupNormalization": 2,
    "LayerNormalization": 19,
    "RMSNormalization": 19,
    "LRN": 2,
    "Conv": 6,
    "ConvTranspose": 11,
}


@pytest.mark.sample(24)
@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in CASES.items() if n not in EXCLUDED])
def test_node_case(impl: Any, case: Case) -> None:
    check(impl, case)


@pytest.mark.parametrize("op", OPS)
def test_no_case_went_missing(op: str) -> None:
    found = Counter(case.nodes[0].op for case in CASES.values())
    assert found[op] >= AT_LEAST[op]


def test_every_exclusion_names_a_case_and_a_reason() -> None:
    assert EXCLUDED.keys() <= CASES.keys()
    assert all(EXCLUDED.values())
    assert len(EXCLUDED) <= 5, "more than five exclusions need a better reason than effort"


def test_every_op_has_an_adapter_and_only_named_outputs_are_left_out() -> None:
    assert set(OPS) == AT_LEAST.keys()
    assert set(OPS) <= LAYERS.keys()
    left_out = {
        name for case in CASES.values() if case.ops == {"LayerNormalization"} for name in list(case.outputs)[1:]
    }
    assert left_out == OUTPUTS_NOT_GIVEN.keys()
