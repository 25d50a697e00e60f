"""Convolutions by NVIDIA's cuDNN, through its Python package (nvidia-cudnn-frontend, the extra `cudnn`).

The three functions of functional/correlation.py (`correlate`, `correlate_adjoint`, `weight_gradient`), for the
convolutions of specs/conv.py. Each thread builds a graph of one node for a function, spec, dtype and device, and keeps
it. cuDNN's own heuristics choose its engine, never a timing, and engines are left out

- whose sums depend on the order in which blocks finish: results are the same bits in every run;
- of Winograd's algorithm and of Fourier transforms: a NaN would spread to cells that do not see it;
- that take float32 in fewer bits (TF32, bfloat16): only half types are multiplied by tensor cores.

Sums are in float32, in float64 for float64. Where padding differs before and after, the image is padded first. One
spatial axis is two for cuDNN, the first of one cell.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import threading
import warnings
from dataclasses import dataclass
from typing import Any

from cnnlayers import backends, kernels
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import Shape
from cnnlayers.specs.conv import Conv

from .launch import aligned, contiguous

Array = Any
ALIGNMENT = 16  # bytes: what cuDNN takes an array's address to be a multiple of
LEAST_VERSION = 90_000  # of cuDNN: version 9
MOST_WORKSPACE = 256 << 20  # bytes
KEPT = 256  # plans of a thread
NOTES = (  # engines that have one of these are left out
    "NONDETERMINISTIC",
    "WINOGRAD",
    "WINOGRAD_TILE_4x4",
    "WINOGRAD_TILE_6x6",
    "WINOGRAD_TILE_13x13",
    "FFT",
    "REDUCED_PRECISION_REDUCTION",
    "DOWN_CONVERT_INPUTS",
)
FUNCTIONS = {  # the node of each function: its name, its two inputs and its output, with the names of the inputs
    "cudnn_correlate": ("conv_fprop", {"image": "image", "weight": "filters"}, "maps"),
    "cudnn_correlate_adjoint": ("conv_dgrad", {"loss": "maps", "filter": "filters"}, "image"),
    "cudnn_weight_gradient": ("conv_wgrad", {"image": "image", "loss": "maps"}, "filters"),
}
TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}
INSTALL = "pip install 'cnnlayers[cudnn]' nvidia-cudnn-cu13 (or -cu12, as CuPy's)"


@functools.cache
def unavailable() -> str | None:
    """Why cuDNN cannot be used here; None if it can."""
    try:
        cudnn = importlib.import_module("cudnn")
    except Exception as error:  # not installed, or without the library that it loads
        return f"cuDNN's package cannot be imported ({error}): {INSTALL}"
    missing = [
        name for name in ("pygraph", "create_handle", "set_stream", "backend_version") if not hasattr(cudnn, name)
    ]
    if missing:
        return f"the module cudnn is not nvidia-cudnn-frontend's, it lacks {', '.join(missing)}: {INSTALL}"
    try:
        version = int(cudnn.backend_version())
    except Exception as error:  # the package is there, the library is not
        return f"cuDNN's library cannot be loaded ({error}): {INSTALL}"
    return None if version >= LEAST_VERSION else f"cuDNN {version} is too old, {LEAST_VERSION} is needed: {INSTALL}"


def refuses(step: str, spec: Conv, *arrays: Array) -> str | None:
    """Why cuDNN does not compute this call, or None. Of the arrays the first two count."""
    if not kernels.cudnn_allowed():
        return "cuDNN is off (kernels.cudnn or CNNLAYERS_CUDNN)"
    reason = unavailable()
    if reason is not None:
        return reason
    if spec.empty:
        return "there is nothing to compute"
    first, second = arrays[:2]
    if first.dtype != second.dtype:
        return f"its arrays have two dtypes, {first.dtype} and {second.dtype}"
    return _plan(step, spec, first).refusal


def cudnn_correlate(b: Backend, spec: Conv, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """The image's maps."""
    plan = _plan("cudnn_correlate", spec, image)
    return _plus(b, spec, plan.run(b, plan.padded(b, image), _filters(b, spec, weight)), bias)


def cudnn_correlate_adjoint(b: Backend, spec: Conv, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """The maps' image under the adjoint."""
    plan = _plan("cudnn_correlate_adjoint", spec, maps)
    return _plus(b, spec, plan.unpadded(b, plan.run(b, maps, _filters(b, spec, weight))), bias)


def cudnn_weight_gradient(b: Backend, spec: Conv, image: Array, maps: Array) -> Array:
    """The weight's gradient."""
    plan = _plan("cudnn_weight_gradient", spec, image)
    filters = plan.run(b, plan.padded(b, image), maps)
    if spec.last:
        filters = b.xp.permute_dims(filters, (0, filters.ndim - 1, *range(1, filters.ndim - 1)))
    return contiguous(b, filters)


def _filters(b: Backend, spec: Conv, weight: Array) -> Array:
    """A weight with its axes in the order of the arrays': channels last where theirs are."""
    return b.xp.permute_dims(weight, (0, *range(2, weight.ndim), 1)) if spec.last else weight


def _plus(b: Backend, spec: Conv, array: Array, bias: Array | None) -> Array:
    """array + bias, in array's dtype."""
    if bias is None:
        return array
    bias = b.xp.reshape(bias, (-1, *(() if spec.last else (1,) * spec.ndim)))
    if bias.dtype != array.dtype:  # half types: cuDNN has rounded its sums; that with the bias is rounded once more
        return b.array(array + bias, array.dtype)
    array += bias
    return array


# ---------------------------------------------------------------------------------------------------------------- plans
@dataclass(frozen=True)
class Sizes:
    """A convolution as cuDNN takes it: two or three spatial axes, the same padding on both sides of each."""

    image: Shape  # (N, C, *spatial), padded by `more`
    filters: Shape  # (F, C / groups, *kernel)
    maps: Shape  # (N, F, *out)
    padding: Shape
    stride: Shape
    dilation: Shape
    more: tuple[tuple[int, int], ...]  # cells by which the image is padded first, a pair for each of its spatial axes


def sizes_of(spec: Conv) -> Sizes:
    """The sizes of a spec's convolution."""
    axes, one = spec.window.axes, (1,) * (spec.ndim == 1)
    padding = [min(a.before, a.after) for a in axes]
    more = tuple((a.before - pad, a.after - pad) for a, pad in zip(axes, padding, strict=True))
    lengths = [a.length + sum(pair) for a, pair in zip(axes, more, strict=True)]
    samples = spec.window.layout.shape[0]
    return Sizes(
        (samples, spec.channels, *one, *lengths),
        (spec.filters, spec.channels // spec.groups, *one, *spec.window.kernel),
        (samples, spec.filters, *one, *spec.window.out_lengths),
        (*(0 for _ in one), *padding),
        (*one, *(a.stride for a in axes)),
        (*one, *(a.dilation for a in axes)),
        more,
    )


def graph_of(cudnn: Any, op: str, sizes: Sizes, last: bool, dtype: str, handle: int | None) -> tuple[Any, ...]:
    """A function's graph and its three tensors, the output at the end. `last`: arrays lie with channels last."""
    node, inputs, output = FUNCTIONS[op]
    kind, sums = (getattr(cudnn.data_type, TYPES[name]) for name in (dtype, _sums_dtype(dtype)))
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=sums, compute_data_type=sums, handle=handle)
    tensors = {}
    for name, part in inputs.items():
        shape = getattr(sizes, part)
        tensors[name] = graph.tensor(dim=list(shape), stride=_strides(shape, last), data_type=kind)
    options = {name: list(getattr(sizes, name)) for name in ("padding", "stride", "dilation")}
    result = getattr(graph, node)(**tensors, **options)
    shape = getattr(sizes, output)  # the adjoint's cannot be known from its inputs, and strides would be channels last
    result.set_output(True).set_data_type(kind).set_dim(list(shape)).set_stride(_strides(shape, last))
    return graph, *tensors.values(), result


def choose_engine(cudnn: Any, graph: Any, dtype: str) -> None:
    """Let cuDNN choose the engine of a graph; raises where none of those that are wanted can compute it."""
    notes = [*NOTES, "TENSOR_CORE"] if dtype == "float32" else NOTES
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.deselect_numeric_notes([getattr(cudnn.numerical_note, name) for name in notes])
    graph.deselect_workspace_greater_than(MOST_WORKSPACE)
    graph.check_support()
    graph.build_plans()


def _sums_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _strides(shape: Shape, last: bool) -> list[int]:
    """The strides, in elements, of an array of shape (N, C, *spatial) that lies in C order, or with channels last."""
    order = [*range(len(shape) - 1, -1, -1)]
    if last:
        order = [1, *(axis for axis in order if axis != 1)]
    strides, step = [0] * len(shape), 1
    for axis in order:
        strides[axis], step = step, step * shape[axis]
    return strides


def _unfit(spec: Conv, sizes: Sizes) -> str | None:
    """Why a convolution is none of cuDNN's, by its sizes."""
    if min(sizes.padding) < 0 or min(min(pair) for pair in sizes.more) < 0:
        return "its padding is negative"
    for a in spec.window.axes:
        cells = a.length + a.before + a.after - a.dilation * (a.kernel - 1) - 1
        if cells // a.stride + 1 != a.out:
            return "its outputs are not as many as its sizes give"
    return None


class _Plan:
    """One function of a convolution for one dtype on one device: a graph with its engine, or why there is none."""

    def __init__(self, op: str, spec: Conv, dtype: str, device: int) -> None:
        self.name, self.more, sizes = f"{op} {dtype}", sizes_of(spec).more, sizes_of(spec)
        self.last, self.image_shape = spec.last, spec.window.layout.shape
        self.refusal, self.failed = _unfit(spec, sizes), False
        if self.refusal is not None:
            return
        cudnn: Any = importlib.import_module("cudnn")
        try:
            self.handle = _handle(cudnn, device)
            self.graph, *self.tensors = graph_of(cudnn, op, sizes, spec.last, dtype, self.handle.number)
            choose_engine(cudnn, self.graph, dtype)
        except Exception as error:
            self.refusal = f"cuDNN has no engine for it: {error}"
            self.failed = not _says_unsupported(cudnn, error)
            if self.failed:
                text = f"cuDNN failed; the library's own code computes this convolution ({self.name}, {spec}): {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            return
        self.workspace_bytes = max(1, int(self.graph.get_workspace_size()))
        samples, channels, *cells = getattr(sizes, FUNCTIONS[op][2])
        cells = cells[1:] if spec.ndim == 1 else cells
        self.result_shape = (samples, *cells, channels) if spec.last else (samples, channels, *cells)

    def run(self, b: Backend, *inputs: Array) -> Array:
        """The graph's output for its two inputs, all with their axes in the order of the spec's arrays."""
        result = b.empty(self.result_shape, inputs[0].dtype)
        if kernels.only_compiles(self.name):
            return result
        arrays = [*(_aligned(b, a) for a in inputs), result]
        workspace = b.empty((self.workspace_bytes,), b.xp.uint8)
        self.handle.use_stream(b.xp.cuda.get_current_stream().ptr)
        pointers = {tensor: int(a.data.ptr) for tensor, a in zip(self.tensors, arrays, strict=True)}
        self.graph.execute(pointers, int(workspace.data.ptr), handle=self.handle.number)
        return result

    def padded(self, b: Backend, image: Array) -> Array:
        """An image with the cells that its padding has more on one side."""
        if not any(map(any, self.more)):
            return image
        result = b.zeros(self._with_more(tuple(image.shape)), image.dtype)
        result[self._inner()] = image
        return result

    def unpadded(self, b: Backend, image: Array) -> Array:
        """The adjoint of `padded`."""
        return contiguous(b, image[self._inner()]) if any(map(any, self.more)) else image

    def _pairs(self) -> list[tuple[int, int]]:
        none = (0, 0)
        return [none, *self.more, none] if self.last else [none, none, *self.more]

    def _with_more(self, shape: Shape) -> Shape:
        return tuple(length + sum(pair) for length, pair in zip(shape, self._pairs(), strict=True))

    def _inner(self) -> tuple[slice, ...]:
        pairs = zip(self.image_shape, self._pairs(), strict=True)
        return tuple(slice(before, before + length) for length, (before, _) in pairs)


def _says_unsupported(cudnn: Any, error: Exception) -> bool:
    return isinstance(error, cudnn.cudnnGraphNotSupportedError) or "NOT_SUPPORTED" in str(error)


def _aligned(b: Backend, array: Array) -> Array:
    """The array in C order at an address that cuDNN takes."""
    array = contiguous(b, array)
    return array if aligned(array, ALIGNMENT) else array.copy()


# ------------------------------------------------------------------------------------------------- what a thread keeps
class _Handle:
    """A cuDNN handle of the current device, destroyed with this object."""

    def __init__(self, cudnn: Any) -> None:
        self._cudnn, self.number = cudnn, cudnn.create_handle()

    def use_stream(self, stream: int) -> None:
        """What the handle launches goes to this stream."""
        self._cudnn.set_stream(self.number, stream)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # Python may be ending
            self._cudnn.destroy_handle(self.number)


class _Thread(threading.local):
    """A thread's handles by device, and its plans by call, the least recently used first."""

    def __init__(self) -> None:
        self.handles: dict[int, _Handle] = {}
        self.plans: collections.OrderedDict[Any, _Plan] = collections.OrderedDict()


_thread = _Thread()


def _handle(cudnn: Any, device: int) -> _Handle:
    if device not in _thread.handles:
        _thread.handles[device] = _Handle(cudnn)
    return _thread.handles[device]


def _plan(op: str, spec: Conv, array: Array) -> _Plan:
    """The plan of a call on the current device, made at its first use."""
    b = backends.of(array)
    key = (op, spec, backends.dtype_name(b, array), int(b.device.id))
    plan = _thread.plans.get(key)
    if plan is None:
        plan = _Plan(*key)
        if plan.failed:  # for lack of memory, perhaps: the next call tries again
            return plan
        _thread.plans[key] = plan
        if len(_thread.plans) > KEPT:
            _thread.plans.popitem(last=False)
    _thread.plans.move_to_end(key)
    return plan
