"""ONNX Runtime, for inference on the CPU: a model of one node, our number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnxruntime
from onnx import helper

from cnnlayers import backends

from .cases import INFERENCE, Case
from .contest import Call, Contestant, Refused
from .problem import Problem

OPSET = 21
MODES = {"constant": "constant", "edge": "edge", "reflect": "reflect", "wrap": "wrap"}
TYPES = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE, "float16": onnx.TensorProto.FLOAT16}


def _pool(o: dict[str, Any]) -> dict[str, Any]:
    k, p = o["kernel_size"], o.get("padding", 0)
    return {"kernel_shape": [k, k], "strides": [o.get("stride") or k] * 2, "pads": [p] * 4}


def _conv(o: dict[str, Any]) -> dict[str, Any]:
    return {"strides": [o.get("stride", 1)] * 2, "pads": [o.get("padding", 0)] * 4, "group": o.get("groups", 1)}


# op: (the node's type, its attributes from our options, the parameters it takes in this order)
NODES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]], Sequence[str]]] = {
    "max_pool": ("MaxPool", _pool, ()),
    "avg_pool": ("AveragePool", lambda o: _pool(o) | {"count_include_pad": 1}, ()),
    "adaptive_avg_pool": ("GlobalAveragePool", lambda o: {}, ()),
    "pad": ("Pad", lambda o: {"mode": MODES[o["mode"]]}, ()),
    "batch_norm": ("BatchNormalization", lambda o: {}, ("gamma", "beta", "running_mean", "running_var")),
    "layer_norm": ("LayerNormalization", lambda o: {"axis": -1}, ("gamma", "beta")),
    "group_norm": ("GroupNormalization", lambda o: {"num_groups": o["num_groups"]}, ("gamma", "beta")),
    "relu": ("Relu", lambda o: {}, ()),
    "conv": ("Conv", _conv, ("weight", "bias")),
}


class OnnxRuntime(Contestant):
    """Inference only: its sessions have no backward."""

    name = "onnxruntime"

    def call(self, problem: Problem, part: str) -> Call:
        case = problem.case
        if part != INFERENCE:
            raise Refused("computes inference only")
        if case.op not in NODES or case.dtype not in TYPES or case.channels_last:
            raise Refused("has no such op here")
        session = self._session(case, problem)
        feeds = [{"x": x} for x in problem.inputs]
        return lambda i: session.run(None, feeds[i])

    def _session(self, case: Case, problem: Problem) -> Any:
        kind, attributes, names = NODES[case.op]
        held = [onnx.numpy_helper.from_array(problem.parameters[name], name) for name in names]
        if case.op == "pad":
            width = problem.options(INFERENCE)["padding"]
            held = [helper.make_tensor("pads", onnx.TensorProto.INT64, [8], [0, 0, width, width] * 2)]
        node = helper.make_node(
            kind, ["x", *(tensor.name for tensor in held)], ["y"], **attributes(problem.options(INFERENCE))
        )
        x, y = (
            helper.make_tensor_value_info(name, TYPES[case.dtype], shape)
            for name, shape in (("x", case.shape), ("y", problem.y_shape))
        )
        graph = helper.make_graph([node], case.op, [x], [y], held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = backends.num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads rest once a run is over
        return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
