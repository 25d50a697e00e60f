"""PyTorch: eager, without cuDNN, compiled, channels last. float32 means float32: TF32 is off.

Its number of threads is ours. Arrays are shared with it, not copied: NumPy's by the buffer, CuPy's by DLPack.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as T

from cnnlayers import backends, layers
from cnnlayers.backends import Backend

from . import network
from .cases import FORWARD, INFERENCE, STEP
from .contest import Call, Contestant, Refused
from .problem import Array, Problem

Tensor = Any
MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}
COMPILE_SECONDS = 180.0  # of compiling in one run: what comes after it is left out, and said to be


def _of_rank(name: str) -> Callable[[Tensor, dict[str, Tensor], dict[str, Any]], Tensor]:
    """PyTorch's function for the number of spatial axes: `max_pool2d` of "max_pool"."""
    return lambda x, p, o: getattr(T, f"{name}{x.ndim - 2}d")(x, **p, **o)


def _pad(x: Tensor, p: dict[str, Tensor], o: dict[str, Any]) -> Tensor:
    return T.pad(x, [o["padding"]] * (2 * (x.ndim - 2)), MODES[o["mode"]])


def _lp_pool(x: Tensor, p: dict[str, Tensor], o: dict[str, Any]) -> Tensor:
    return T.lp_pool2d(x, o["norm_type"], o["kernel_size"], o["stride"])


def _batch_norm(x: Tensor, p: dict[str, Tensor], o: dict[str, Any]) -> Tensor:
    return T.batch_norm(x, p["running_mean"], p["running_var"], p["gamma"], p["beta"], o["training"])


def _layer_norm(x: Tensor, p: dict[str, Tensor], o: dict[str, Any]) -> Tensor:
    return T.layer_norm(x, (o["normalized_shape"],), p["gamma"], p["beta"])


OPS: dict[str, Callable[[Tensor, dict[str, Tensor], dict[str, Any]], Tensor]] = {
    **{
        name: _of_rank(name)
        for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "conv", "conv_transpose")
    },
    "lp_pool": _lp_pool,
    "pad": _pad,
    "batch_norm": _batch_norm,
    "group_norm": lambda x, p, o: T.group_norm(x, o["num_groups"], p["gamma"], p["beta"]),
    "instance_norm": lambda x, p, o: T.instance_norm(x, weight=p["gamma"], bias=p["beta"]),
    "layer_norm": _layer_norm,
    "rms_norm": lambda x, p, o: T.rms_norm(x, (o["normalized_shape"],), p["gamma"], o["eps"]),
    "relu": lambda x, p, o: T.relu(x),
    "leaky_relu": lambda x, p, o: T.leaky_relu(x),
    "gelu": lambda x, p, o: T.gelu(x),
    "sigmoid": lambda x, p, o: torch.sigmoid(x),
    "tanh": lambda x, p, o: torch.tanh(x),
}
DIFFERENTIATED = ("weight", "bias", "gamma", "beta")


def tensor(b: Backend, array: Array) -> Tensor:
    """The array's memory as a tensor."""
    if backends.dtype_name(b, array) == "bfloat16":  # DLPack carries its bits
        bits: Tensor = torch.from_dlpack(array.view(b.xp.int16))
        return bits.view(torch.bfloat16)
    return torch.from_dlpack(array)


def array(b: Backend, value: Tensor) -> Array:
    """The other way; a tensor's own order of axes is kept."""
    value = value.detach()
    if value.dtype == torch.bfloat16:
        import ml_dtypes

        return b.xp.from_dlpack(value.contiguous().view(torch.int16)).view(ml_dtypes.bfloat16)
    return b.xp.from_dlpack(value)


class PyTorch(Contestant):
    """`variant`: "" (eager), "nocudnn", "compile" or "channels-last"."""

    def __init__(self, variant: str = "") -> None:
        self.variant = variant
        self.name = "pytorch" + (f"-{variant}" if variant else "")
        self.compiling = 0.0
        torch.set_num_threads(backends.num_threads())

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        with torch.backends.cudnn.flags(enabled=self.variant != "nocudnn", benchmark=True, allow_tf32=False):
            yield

    def call(self, problem: Problem, part: str) -> Call:
        if part == STEP:
            return self._step(problem)
        function = OPS.get(problem.case.op)
        if function is None:
            raise Refused("has no such op here")
        parameters = {name: self._parameter(tensor(problem.b, a.copy())) for name, a in problem.parameters.items()}
        options = {k: v for k, v in problem.options(part).items() if k != "data_format"}
        inputs = [self._tensor(problem, x) for x in problem.inputs]
        run = self._compiled(lambda x, p: function(x, p, options))
        if part == INFERENCE:
            return self._warm(_without_gradients(lambda i: run(inputs[i], parameters)))
        wanted = [parameters[name].requires_grad_() for name in DIFFERENTIATED if name in parameters]
        inputs = [x.requires_grad_() for x in inputs]
        if part == FORWARD:
            return self._warm(lambda i: run(inputs[i], parameters))
        started = time.perf_counter()
        outputs = [run(x, parameters) for x in inputs]
        gradients = [self._tensor(problem, dy) for dy in problem.gradients]
        self._spent(started)
        return self._warm(
            lambda i: torch.autograd.grad(outputs[i], [inputs[i], *wanted], gradients[i], retain_graph=True)
        )

    def _tensor(self, problem: Problem, a: Array) -> Tensor:
        """x or dy as PyTorch wants it, (N, C, *spatial): a channels-last array becomes such a tensor without a copy."""
        found = tensor(problem.b, a)
        if problem.case.channels_last:
            return found.movedim(-1, 1)
        if self.variant == "channels-last":
            if found.ndim != 4:
                raise Refused("channels last needs (N, C, H, W)")
            return found.contiguous(memory_format=torch.channels_last)
        return found

    def _parameter(self, found: Tensor) -> Tensor:
        if self.variant == "channels-last" and found.ndim == 4:
            return found.contiguous(memory_format=torch.channels_last)
        return found

    def _compiled(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if self.variant != "compile":
            return run
        if self.compiling > COMPILE_SECONDS:
            raise Refused(f"{COMPILE_SECONDS:.0f} s of compiling are spent")
        import torch._functorch.config

        torch._functorch.config.donated_buffer = False  # else a graph serves one backward only
        torch._dynamo.reset()
        compiled: Callable[..., Tensor] = torch.compile(run, dynamic=False)
        return compiled

    def _warm(self, call: Call) -> Call:
        """The call after its first run, in which a compiler works."""
        if self.variant == "compile":
            started = time.perf_counter()
            call(0)
            self._spent(started)
        return call

    def _spent(self, started: float) -> None:
        self.compiling += time.perf_counter() - started

    def arrays(self, problem: Problem, part: str, result: Any) -> list[Array]:
        first, *rest = result if isinstance(result, tuple) else (result,)
        if problem.case.channels_last:
            first = first.movedim(1, -1)
        return [array(problem.b, value) for value in (first, *rest)]

    def kept(self, problem: Problem) -> int | None:
        """The storages that autograd holds on to, each counted once."""
        storages: dict[int, int] = {}

        def note(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            _ = self.call(problem, FORWARD)(0)
        return sum(storages.values())

    def _step(self, problem: Problem) -> Call:
        """The eager network with the same weights; its gradients in the same order."""
        net = _module(network.model(problem))
        x, labels = (tensor(problem.b, a) for a in (problem.inputs[0], problem.gradients[0]))
        net.to(x.device)
        sgd = torch.optim.SGD(net.parameters(), network.LR, network.MOMENTUM)

        def run(i: int) -> tuple[Tensor, ...]:
            sgd.zero_grad()
            loss = T.cross_entropy(net(x), labels)
            loss.backward()
            sgd.step()
            return (loss, *(p.grad for p in net.parameters()))

        return run


class _Residual(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    def __init__(self, body: Any, shortcut: Any = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))


LEAVES: dict[type, Callable[[Any], Any]] = {
    layers.Conv: lambda at: torch.nn.Conv2d(
        at.in_channels, at.out_channels, at.kernel_size, at.stride, at.padding, bias=at.bias
    ),
    layers.Linear: lambda at: torch.nn.Linear(at.in_features, at.out_features),
    layers.BatchNorm: lambda at: torch.nn.BatchNorm2d(at.num_features),
    layers.MaxPool: lambda at: torch.nn.MaxPool2d(at.kernel_size),
    layers.GlobalAvgPool: lambda at: torch.nn.AdaptiveAvgPool2d(1),
    layers.Flatten: lambda at: torch.nn.Flatten(),
    layers.ReLU: lambda at: torch.nn.ReLU(),
}


def _module(layer: layers.Layer) -> Any:
    """PyTorch's module for a layer of a network, with copies of its weights; its parameters come in the same order."""
    inside = [_module(child) for child in layer.children.values()]
    if inside:
        return _Residual(*inside) if isinstance(layer, layers.Residual) else torch.nn.Sequential(*inside)
    made = LEAVES[type(layer)](layer)
    made.load_state_dict({name: torch.tensor(backends.to_numpy(a)) for name, a in layer.state_dict().items()})
    return made


def _without_gradients(call: Call) -> Call:
    def run(i: int) -> Any:
        with torch.no_grad():
            return call(i)

    return run
