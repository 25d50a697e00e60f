"""ONNX's published cases as plain data: graphs of nodes, NumPy inputs, and the NumPy outputs they must give.

Two sources, both inside the PyPI package `onnx`: the node cases, which its modules compute when they are imported (from
a fixed seed, in about eight seconds, mostly for three pools of 32×32×32 cells), and models exported from PyTorch, which
lie in its data folder.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="ONNX's cases come with the package onnx, which is not installed")

# The library's ops whose node cases are run. (GlobalLpPool would be one, and has no published case.)
OPS = (
    *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "MaxUnpool", "Pad"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"),
    *("LRN", "Conv", "ConvTranspose"),
)
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


@dataclass(frozen=True)
class Node:
    """One op of a graph. `inputs`, `outputs`: names of values, "" for one that is left out."""

    op: str
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


@dataclass(frozen=True)
class Case:
    """A graph, what goes in and what must come out, by name; `rtol` and `atol` are those ONNX publishes for it."""

    name: str
    nodes: tuple[Node, ...]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    rtol: float
    atol: float

    @property
    def ops(self) -> set[str]:
        return {node.op for node in self.nodes}

    def run(self, execute: Callable[[Node, list[np.ndarray | None]], tuple[np.ndarray | None, ...]]) -> dict[str, Any]:
        """Every value of the graph by name, each node's outputs found by `execute(node, inputs)`."""
        values: dict[str, Any] = dict(self.inputs)
        for node in self.nodes:
            given = [values[name] if name else None for name in node.inputs]
            values.update(zip(node.outputs, execute(node, given), strict=True))
        return values


def _attribute(proto: Any) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def _array(value: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _case(name: str, graph: Any, inputs: list[Any], outputs: list[Any], rtol: float, atol: float) -> Case:
    """A case from a graph and the values of its inputs that have no initial value, and of its outputs, in order."""
    initial = {tensor.name: _array(tensor) for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in initial]
    nodes = [
        Node(n.op_type, {a.name: _attribute(a) for a in n.attribute}, tuple(n.input), tuple(n.output))
        for n in graph.node
    ]
    given = dict(zip(names, map(_array, inputs), strict=True))
    expected = dict(zip([value.name for value in graph.output], map(_array, outputs), strict=True))
    return Case(name, tuple(nodes), initial | given, expected, rtol, atol)


def node_cases() -> list[Case]:
    """Every case of one node whose op is in OPS. (A case of several nodes is an op written out in simpler ones.)"""
    generator = importlib.import_module("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other ops' cases overflow and divide by zero on purpose
        published = generator.collect_testcases(None)
    return [
        _case(c.name, c.model.graph, *c.data_sets[0], c.rtol, c.atol)
        for c in published
        if len(c.model.graph.node) == 1 and c.model.graph.node[0].op_type in OPS
    ]


def _tensors(folder: Path, kind: str) -> list[Any]:
    """A data set's tensors, in order."""
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [onnx.TensorProto.FromString(path.read_bytes()) for path in files]


def model_cases(kind: str) -> Iterator[Case]:
    """The models of one folder of the data, each with each of its data sets; none where the folder is missing."""
    for folder in sorted((DATA / kind).glob("test_*")):
        graph = onnx.load(folder / "model.onnx").graph
        for data in sorted(folder.glob("test_data_set_*")):
            # The tolerances of the package's own runner for models that state none.
            yield _case(folder.name, graph, _tensors(data, "input"), _tensors(data, "output"), 1e-3, 1e-7)
