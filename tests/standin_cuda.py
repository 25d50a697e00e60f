"""`cupy.cuda` of the stand-in: a device, streams that do their work at once, pointers, and how kernels are emulated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cnnlayers.backends import PLANS
from cnnlayers.kernels.cuda import compile

from . import simt

# A small device of compute capability 9.0: few processors, so that small arrays fill it.
ATTRIBUTES = {
    "MultiProcessorCount": 4,
    "WarpSize": 32,
    "MaxThreadsPerBlock": 1024,
    "MaxThreadsPerMultiProcessor": 2048,
    "MaxBlocksPerMultiprocessor": 32,
    "MaxSharedMemoryPerBlock": 49152,
    "MaxSharedMemoryPerBlockOptin": 232448,
    "MaxSharedMemoryPerMultiprocessor": 233472,
    "ReservedSharedMemoryPerBlock": 1024,
    "MaxRegistersPerBlock": 65536,
    "MaxRegistersPerMultiprocessor": 65536,
    "MaxGridDimX": 2147483647,
    "MaxGridDimY": 65535,
    "MaxGridDimZ": 65535,
    "L2CacheSize": 4 << 20,
}


@dataclass(frozen=True)
class Settings:
    """How launches run: the emulator's options, and the device's attributes."""

    check: bool = True
    order: str = "random"
    seed: int = 1
    traffic: bool = False
    attributes: Mapping[str, int] = field(default_factory=lambda: ATTRIBUTES)
    compute_capability: str = "90"


@dataclass(frozen=True)
class Launch:
    """A launch that was made."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_mem: int
    stream: int
    traffic: simt.Traffic | None


settings = Settings()
launches: list[Launch] = []  # since the stand-in was installed
recorders: list[list[Launch]] = [launches]
_quiet = [0]


def _forget() -> None:
    """Drop what was worked out from the device's attributes."""
    PLANS.clear()
    compile._function.cache_clear()


@contextlib.contextmanager
def emulating(*, attributes: Mapping[str, int] | None = None, **changes: Any) -> Iterator[list[Launch]]:
    """Other `Settings` in the block, `attributes` changed singly. Gives the launches that the block makes."""
    global settings
    before, made = settings, list[Launch]()
    settings = replace(settings, **changes, attributes={**settings.attributes, **(attributes or {})})
    recorders.append(made)
    if attributes:
        _forget()
    try:
        yield made
    finally:
        settings = before
        recorders.pop()
        if attributes:
            _forget()


@contextlib.contextmanager
def no_host_sync() -> Iterator[None]:
    """A block in which whatever makes the host wait for the device is an error, as while a CUDA graph is captured."""
    _quiet[0] += 1
    try:
        yield
    finally:
        _quiet[0] -= 1


def synchronises(what: str) -> None:
    """Called by all that waits for the device, or copies from or to it."""
    if _quiet[0]:
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} makes the host wait")


class CUDADriverError(RuntimeError):
    """As CuPy's."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


# ------------------------------------------------------------------------------------------------- devices and streams
class Device:
    """Device 0, which may be entered as a context."""

    id = 0
    _current: list[Device]

    def __init__(self, device: Any = None) -> None:
        if device is not None and int(getattr(device, "id", device)) != self.id:
            raise CUDARuntimeError(f"cudaErrorInvalidDevice: invalid device ordinal {device}")

    def __enter__(self) -> Device:
        Device._current.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        Device._current.pop()

    def use(self) -> None:
        Device._current[-1] = self

    def synchronize(self) -> None:
        synchronises("Device.synchronize()")

    @property
    def attributes(self) -> dict[str, int]:
        return dict(settings.attributes)

    @property
    def compute_capability(self) -> str:
        return settings.compute_capability

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None  # type: ignore[assignment]  # CuPy's defines equality alone

    def __int__(self) -> int:
        return self.id

    def __str__(self) -> str:
        return f"<CUDA Device {self.id}>"


Device._current = [Device()]


class Stream:
    """A stream; work on it is done at once."""

    null: Stream
    _current: list[Stream]

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.ptr = 0 if null else id(self)
        self.device_id = -1 if null else Device._current[-1].id

    def __enter__(self) -> Stream:
        Stream._current.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        Stream._current.pop()

    def use(self) -> Stream:
        Stream._current[-1] = self
        return self

    def synchronize(self) -> None:
        synchronises("Stream.synchronize()")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr


Stream.null = Stream(null=True)
Stream._current = [Stream.null]


class Event:
    """A moment on a stream: the host's time when it was recorded."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.time: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        synchronises("Event.synchronize()")

    @property
    def done(self) -> bool:
        return True


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds between two events that were recorded."""
    if start.time is None or end.time is None:
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: an event was not recorded")
    return (end.time - start.time) * 1e3


def current_device_id() -> int:
    return Device._current[-1].id


def get_current_stream(device_id: int = -1) -> Stream:
    return Stream._current[-1]


FEW = 16  # of the addresses that were asked for last are known: a call's
_addresses: dict[int, tuple[np.ndarray, int]] = {}


def pointed_to(address: int) -> tuple[np.ndarray, int]:
    """The bytes of the allocation that an address lies in, and its offset there."""
    root, offset = _addresses[address]
    return root.reshape(-1).view(np.uint8), offset


class MemoryPointer:
    """Where an array's first element lies, plus an offset in bytes."""

    def __init__(self, array: np.ndarray, offset: int = 0) -> None:
        self._array, self._offset = array, offset

    @property
    def ptr(self) -> int:
        if not self._array.size:
            return 0
        root = simt.root(self._array)
        start = root.ctypes.data
        address = (start << 9) + self._array.ctypes.data - start + self._offset  # an allocation starts on 512 bytes
        _addresses.pop(address, None)  # to the end
        _addresses[address] = root, address - (start << 9)
        while len(_addresses) > FEW:
            del _addresses[next(iter(_addresses))]
        return address

    @property
    def device(self) -> Device:
        return Device()

    @property
    def device_id(self) -> int:
        return Device.id

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self._array, self._offset + offset)

    __radd__ = __add__

    def __sub__(self, offset: int) -> MemoryPointer:
        return self + -offset

    def memset_async(self, value: int, size: int, stream: Stream | None = None) -> None:
        """Set the first `size` bytes, on the current stream."""
        flat = self._array.reshape(-1).view(np.uint8)
        if not 0 <= self._offset <= self._offset + size <= flat.size:
            raise CUDARuntimeError(f"cudaErrorInvalidValue: memset of {size} bytes beyond the array's end")
        flat[self._offset : self._offset + size] = value

    def argument(self) -> simt.Pointer:
        return simt.Pointer(self._array, self._offset)
