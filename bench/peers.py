"""Which peers there are, whether one can be used here, and how it is made: none is imported before it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .contest import Contestant, Ours


@dataclass(frozen=True)
class Peer:
    """`needs`: the modules it is made of; `install`: what brings them; `said`: what it is, for the table's reader."""

    devices: tuple[str, ...]
    needs: tuple[str, ...]
    install: str
    said: str
    make: Callable[[], Contestant]


def _from(module: str, name: str, *arguments: str) -> Callable[[], Contestant]:
    def make() -> Contestant:
        made: Contestant = getattr(importlib.import_module(f"cnnlayers.bench.{module}"), name)(*arguments)
        return made

    return make


BOTH, CPU, GPU = ("cpu", "gpu"), ("cpu",), ("gpu",)
PEERS = {
    "pytorch": Peer(BOTH, ("torch",), "torch", "PyTorch, eager", _from("peer_torch", "PyTorch")),
    "pytorch-nocudnn": Peer(
        GPU, ("torch",), "torch", "PyTorch's own kernels, cuDNN off", _from("peer_torch", "PyTorch", "nocudnn")
    ),
    "pytorch-compile": Peer(BOTH, ("torch",), "torch", "torch.compile", _from("peer_torch", "PyTorch", "compile")),
    "pytorch-channels-last": Peer(
        BOTH, ("torch",), "torch", "PyTorch on channels-last tensors", _from("peer_torch", "PyTorch", "channels-last")
    ),
    "jax": Peer(BOTH, ("jax",), "jax", "JAX, jit; as many threads as it likes", _from("peer_jax", "Jax")),
    "onnxruntime": Peer(
        CPU, ("onnxruntime", "onnx"), "onnxruntime onnx", "ONNX Runtime", _from("peer_onnx", "OnnxRuntime")
    ),
    "keras-jax": Peer(
        CPU, ("keras", "jax"), "keras jax", "Keras's NumPy backend on JAX", _from("peer_keras", "KerasOnJax")
    ),
    "numpy": Peer(CPU, (), "", "our array code without kernels, on NumPy", lambda: Ours("numpy", "off")),
    "cupy": Peer(GPU, (), "", "our array code without kernels, on CuPy", lambda: Ours("cupy", "off")),
    "im2col": Peer(CPU, (), "", "the tutorials' im2col", _from("peer_tutorial", "Im2col")),
    "naive": Peer(CPU, (), "", "the tutorials' loops", _from("peer_tutorial", "Naive")),
}
# What is measured without --peers, where it is installed. The others are slow to start: they are asked for by name.
DEFAULT = {
    "cpu": ("pytorch", "jax", "onnxruntime", "keras-jax", "numpy", "im2col", "naive"),
    "gpu": ("pytorch", "pytorch-nocudnn", "pytorch-channels-last", "pytorch-compile", "cupy"),
}


def absence(name: str, device: str) -> str | None:
    """Why a peer cannot be used on this device here, or None."""
    peer = PEERS[name]
    if device not in peer.devices:
        return f"it runs on the {' and '.join(peer.devices)} alone"
    missing = [module for module in peer.needs if importlib.util.find_spec(module) is None]
    if missing:
        return f"{' and '.join(missing)} is not installed: pip install {peer.install}"
    if device == "gpu" and name.startswith("pytorch"):
        import torch

        if not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} sees no GPU"
    return None


def found(device: str, asked: Sequence[str] = ()) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants beside this library: those asked for ("none": nobody), else the default ones; and why the absent
    ones are. Raises ValueError for an unknown name, and for one asked for that is absent."""
    unknown = [name for name in asked if name not in PEERS and name != "none"]
    if unknown:
        raise ValueError(f"there is no peer {unknown[0]!r}; there are none, {', '.join(PEERS)}")
    names = [name for name in dict.fromkeys(asked or DEFAULT[device]) if name != "none"]
    absent = {name: reason for name in names if (reason := absence(name, device))}
    if asked and absent:
        name, reason = next(iter(absent.items()))
        raise ValueError(f"peer {name!r} cannot be used: {reason}")
    return [PEERS[name].make() for name in names if name not in absent], absent
