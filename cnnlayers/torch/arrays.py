"""PyTorch's tensors as NumPy's or CuPy's arrays and back, without a copy, and on PyTorch's current stream."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import numpy
import torch

from cnnlayers import backends

Array = Any
DEVICES = ("cpu", "cuda")


def array_of(tensor: torch.Tensor) -> Array:
    """The tensor's own memory as an array of NumPy or, on a GPU, CuPy. bfloat16 needs ml_dtypes.

    Raises TypeError for a tensor elsewhere, or one that is not plain memory; BackendUnavailable for one on a GPU where
    there is no CuPy.
    """
    tensor = tensor.detach()
    if tensor.is_cpu and tensor.layout is torch.strided and tensor.dtype is not torch.bfloat16 and not tensor.is_neg():
        return tensor.numpy()
    if tensor.is_neg():  # by a mark alone, as z.conj().imag is: its memory has the other sign
        tensor = tensor.resolve_neg()
    if tensor.layout != torch.strided or tensor.device.type not in DEVICES:
        raise TypeError(f"a tensor must be dense, on the CPU or a CUDA device, got {tensor.layout}, {tensor.device}")
    if tensor.device.type == "cpu":
        return backends.to_numpy(tensor)
    cupy = _cupy()
    if tensor.dtype == torch.bfloat16:
        return cupy.from_dlpack(tensor.view(torch.int16)).view(importlib.import_module("ml_dtypes").bfloat16)
    return cupy.from_dlpack(tensor)


def tensor_of(array: Array) -> torch.Tensor:
    """An array's own memory as a tensor."""
    on_host = type(array) is numpy.ndarray
    bits = array.view("int16") if array.dtype.kind == "V" else array  # bfloat16 is no kind of NumPy's own
    tensor = torch.from_numpy(bits) if on_host else torch.from_dlpack(bits)
    return tensor if bits is array else tensor.view(torch.bfloat16)


def fresh_tensor_of(array: Array, inputs: list[Array]) -> torch.Tensor:
    """An op's result as a contiguous tensor that shares no memory with the op's inputs: a copy where it would."""
    flags, on_host = array.flags, type(array) is numpy.ndarray
    if not flags.c_contiguous:
        return tensor_of(backends.of(array).xp.ascontiguousarray(array))
    new = on_host and flags.owndata and all(array is not a for a in inputs)
    if not new and any(backends.of(array).xp.may_share_memory(array, a) for a in inputs):
        array = array.copy()
    tensor = tensor_of(array)
    return tensor if array.size else tensor.new_empty(array.shape)  # NumPy's strides are 0 where there are no cells


class _Stream:
    """PyTorch's current stream of a device, as CUDA's stream protocol has it."""

    def __init__(self, device: torch.device) -> None:
        self.pointer = torch.cuda.current_stream(device).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


@contextlib.contextmanager
def on_stream_of(tensor: torch.Tensor) -> Any:
    """A block in which CuPy works on the tensor's device and on PyTorch's current stream there."""
    if tensor.device.type != "cuda":
        yield
        return
    cupy, stream = _cupy(), _Stream(tensor.device)
    of_cupy = cupy.cuda.Stream.from_external(stream) if stream.pointer else cupy.cuda.Stream.null
    with cupy.cuda.Device(tensor.device.index), of_cupy:
        yield


def _cupy() -> Any:
    reason = backends.available()["cupy"]
    if reason is not None:
        raise backends.BackendUnavailable(f"a tensor on a GPU needs CuPy, which cannot be used: {reason}")
    return importlib.import_module("cupy")


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether a tensor of images is stored with its channels last, and not also with its channels first.

    Read off the strides, which are known under vmap and in traces as well.
    """
    if tensor.layout != torch.strided or not 4 <= tensor.ndim <= 5 or tensor.is_contiguous():
        return False
    expected = 1
    for axis in (1, *range(tensor.ndim - 1, 1, -1), 0):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != expected:
            return False
        expected *= tensor.shape[axis]
    return True
