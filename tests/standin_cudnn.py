"""A stand-in for nvidia-cudnn-frontend's module `cudnn`: graphs of one convolution, computed by NumPy.

It reads and writes the memory that its caller points to, as the real one does, with the sizes and strides that the
graph states. It refuses what cuDNN refuses: sizes that do not go together, an unbuilt graph, unaligned memory, a handle
that it has not given out.
"""

from __future__ import annotations

import ctypes
import itertools
import types
from typing import Any

import numpy as np

NAMES = {"HALF": "float16", "BFLOAT16": "bfloat16", "FLOAT": "float32", "DOUBLE": "float64"}
NOTES = "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION FFT NONDETERMINISTIC WINOGRAD WINOGRAD_TILE_4x4"
NOTES += " WINOGRAD_TILE_6x6 WINOGRAD_TILE_13x13 STRICT_NAN_PROP"
WORKSPACE = 48


class NotSupported(Exception):
    """cudnnGraphNotSupportedError."""


class Tensor:
    """A graph's tensor; the setters give the tensor, as cuDNN's do."""

    def __init__(self, dim: list[int] | None = None, stride: list[int] | None = None, data_type: str = "") -> None:
        self.dim, self.stride, self.data_type, self.output = dim, stride, data_type, False

    def set_output(self, value: bool) -> Tensor:
        self.output = value
        return self

    def set_data_type(self, value: str) -> Tensor:
        self.data_type = value
        return self

    def set_dim(self, value: list[int]) -> Tensor:
        self.dim = value
        return self

    def set_stride(self, value: list[int]) -> Tensor:
        self.stride = value
        return self

    def array(self, address: int) -> np.ndarray:
        """The memory at an address, as a view with this tensor's sizes and strides."""
        assert self.dim is not None
        assert self.stride is not None
        assert address % 16 == 0
        if self.data_type == "BFLOAT16":
            import ml_dtypes

            dtype = np.dtype(ml_dtypes.bfloat16)
        else:
            dtype = np.dtype(NAMES[self.data_type])
        cells = 1 + sum((d - 1) * s for d, s in zip(self.dim, self.stride, strict=True))
        memory = np.frombuffer((ctypes.c_char * (cells * dtype.itemsize)).from_address(address), dtype)
        return np.lib.stride_tricks.as_strided(memory, self.dim, [s * dtype.itemsize for s in self.stride])


class Cudnn(types.SimpleNamespace):
    """The module. `graphs`: all that were made; `executed`: how often; `fault`: what building a graph raises."""

    def __init__(self) -> None:
        super().__init__(graphs=[], executed=0, fault=None, handles=set(), streams={})
        self.data_type = types.SimpleNamespace(**{name: name for name in NAMES})
        self.heur_mode = types.SimpleNamespace(A="A", FALLBACK="FALLBACK")
        self.numerical_note = types.SimpleNamespace(**{name: name for name in NOTES.split()})
        self.cudnnGraphNotSupportedError = NotSupported
        self._numbers = itertools.count(1)

    def backend_version(self) -> int:
        return 90_800

    def create_handle(self) -> int:
        self.handles.add(number := next(self._numbers))
        return number

    def destroy_handle(self, handle: int) -> None:
        self.handles.remove(handle)

    def set_stream(self, handle: int, stream: int) -> None:
        assert handle in self.handles
        self.streams[handle] = stream

    def pygraph(self, **options: Any) -> Graph:
        self.graphs.append(graph := Graph(self, **options))
        return graph


class Graph:
    """A graph of one node."""

    def __init__(
        self, module: Cudnn, io_data_type: str, intermediate_data_type: str, compute_data_type: str, handle: Any
    ):
        assert intermediate_data_type == compute_data_type
        self.module, self.io, self.sums, self.handle = module, io_data_type, compute_data_type, handle
        self.steps: list[str] = []
        self.notes: set[str] = set()
        self.node, self.tensors = "", ()

    def tensor(self, dim: list[int], stride: list[int], data_type: str) -> Tensor:
        return Tensor(dim, stride, data_type)

    def _convolution(self, node: str, tensors: tuple[Tensor, Tensor], **options: list[int]) -> Tensor:
        assert not self.node
        self.node, self.options = node, options
        self.tensors = (*tensors, Tensor())
        return self.tensors[-1]

    def conv_fprop(self, image: Tensor, weight: Tensor, **options: list[int]) -> Tensor:
        return self._convolution("fprop", (image, weight), **options)

    def conv_dgrad(self, loss: Tensor, filter: Tensor, **options: list[int]) -> Tensor:
        return self._convolution("dgrad", (loss, filter), **options)

    def conv_wgrad(self, image: Tensor, loss: Tensor, **options: list[int]) -> Tensor:
        return self._convolution("wgrad", (image, loss), **options)

    def _parts(self, values: list[Any]) -> tuple[Any, Any, Any]:
        """Three values, of the node's tensors, as those of image, filters, maps."""
        order = {"fprop": (0, 1, 2), "dgrad": (2, 1, 0), "wgrad": (0, 2, 1)}[self.node]
        image, filters, maps = (values[place] for place in order)
        return image, filters, maps

    def validate(self) -> None:
        self.steps.append("validate")
        image, filters, maps = self._parts([t.dim for t in self.tensors])
        assert len(image) in (4, 5), image
        assert image[0] == maps[0]
        assert image[1] % filters[1] == 0
        assert maps[1] == filters[0]
        places = zip(image[2:], filters[2:], *(self.options[n] for n in ("padding", "stride", "dilation")), strict=True)
        assert maps[2:] == [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, s, d in places]

    def build_operation_graph(self) -> None:
        self.steps.append("build_operation_graph")
        if self.module.fault is not None:
            raise self.module.fault

    def create_execution_plans(self, modes: list[str]) -> None:
        assert modes == ["A", "FALLBACK"]
        self.steps.append("create_execution_plans")

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        assert self.steps[-1] == "create_execution_plans"
        self.notes.update(notes)

    def deselect_workspace_greater_than(self, size: int) -> None:
        assert size > WORKSPACE

    def check_support(self) -> None:
        self.steps.append("check_support")

    def build_plans(self) -> None:
        self.steps.append("build_plans")

    def get_workspace_size(self) -> int:
        assert self.steps == [
            "validate",
            "build_operation_graph",
            "create_execution_plans",
            "check_support",
            "build_plans",
        ]
        return WORKSPACE

    def execute(self, pointers: dict[Tensor, int], workspace: int, handle: int) -> None:
        assert handle == self.handle
        assert handle in self.module.streams
        assert workspace
        self.module.executed += 1
        arrays = [tensor.array(pointers[tensor]) for tensor in self.tensors]
        kind = np.float64 if self.sums == "DOUBLE" else np.float32
        *inputs, result = arrays
        image, filters, maps = self._parts([*(a.astype(kind) for a in inputs), np.zeros(result.shape, kind)])
        pads = self.options["padding"]
        padded = np.pad(image, [(0, 0), (0, 0), *((p, p) for p in pads)])
        groups, channels, count = image.shape[1] // filters.shape[1], filters.shape[1], filters.shape[0]
        for g, tap in itertools.product(range(groups), np.ndindex(*filters.shape[2:])):
            places = zip(tap, self.options["stride"], self.options["dilation"], maps.shape[2:], strict=True)
            cells = (slice(t * d, t * d + (out - 1) * s + 1, s) for t, s, d, out in places)
            seen = (slice(None), slice(g * channels, (g + 1) * channels), *cells)
            of = slice(g * count // groups, (g + 1) * count // groups)
            at = (of, slice(None), *tap)
            if self.node == "fprop":
                maps[:, of] += np.einsum("nc...,fc->nf...", padded[seen], filters[at])
            elif self.node == "dgrad":
                padded[seen] += np.einsum("nf...,fc->nc...", maps[:, of], filters[at])
            else:
                flat = (a.reshape(*a.shape[:2], -1) for a in (padded[seen], maps[:, of]))
                filters[at] += np.einsum("ncx,nfx->fc", *flat)
        inner = (slice(None), slice(None), *(slice(p, p + n) for p, n in zip(pads, image.shape[2:], strict=True)))
        result[...] = {"fprop": maps, "dgrad": padded[inner], "wgrad": filters}[self.node]
