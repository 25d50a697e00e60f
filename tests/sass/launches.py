"""The launches of a call as the library's own launchers make them, and their kernels as instructions."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from cnnlayers import kernels
from cnnlayers.kernels.cuda import compile as compiler
from cnnlayers.kernels.cuda import launch as launchers

from .. import nvrtc, standin_cupy
from ..kernel_calls import DEVICE, Call, on_device
from .listing import Instruction, parse
from .memory import Memory

ARCH = 90
PARAMETERS = 0x210  # where constant bank 0 has a kernel's arguments on sm_90
OPTIONS = (*compiler.OPTIONS, "-ftz=true", "-lineinfo")  # CuPy adds -ftz


@functools.cache
def disassembler() -> Path | None:
    """nvdisasm: of the wheel nvidia-cuda-nvdisasm, else on PATH."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for found in sorted(Path(folder).glob("*/bin/nvdisasm")):
            return found
    found = shutil.which("nvdisasm")
    return Path(found) if found else None


def unavailable() -> str | None:
    """Why no machine code can be listed here, or None."""
    if nvrtc.location() is None:
        return "no NVRTC: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl"
    return None if disassembler() else "no nvdisasm: pip install nvidia-cuda-nvdisasm"


@functools.cache
def build(stem: str, name: str, text: str | None = None) -> tuple[nvrtc.Kernel, list[Instruction]]:
    """A kernel of a source of the library (or of `text`), compiled as CuPy would for an H200, with line numbers."""
    source = text or compiler.source(stem)
    kernel, mangled, cubin = nvrtc.cubin(source, name, ARCH, options=OPTIONS, filename=f"{stem}.cu")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        words = [str(disassembler()), "-c", "-g", "-hex", file.name]
        listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return kernel, parse(listed)[mangled]


@dataclass
class Launch:
    """A launch of `part` of a call. `arguments` are the stand-in's arrays and NumPy's scalars."""

    stem: str
    kernel: str
    grid: int
    block: int
    arguments: Sequence[Any]
    shared: int = 0
    part: str = ""

    @property
    def warps(self) -> int:
        """Of a block."""
        return -(-self.block // 32)

    def constants(self, memory: Memory) -> bytes:
        """Constant bank 0: sizes of block and grid, each argument on its boundary."""
        bank, at = bytearray(0x1000), PARAMETERS
        sizes = {0: self.block, 4: 1, 8: 1, 0xC: self.grid, 0x10: 1, 0x14: 1}
        for where, n in sizes.items():
            bank[where : where + 4] = np.uint32(n).tobytes()
        for argument in self.arguments:
            array = array_of(argument)
            value = np.uint64(memory.address(array)) if array is not None else np.asarray(argument)
            content = value.tobytes() if argument is not None else bytes(8)
            at += -at % len(content)
            bank[at : at + len(content)] = content
            at += len(content)
        return bytes(bank)


def array_of(argument: Any) -> Any:
    """The NumPy array behind a stand-in's, or None; a NumPy array without axes is a number."""
    held = getattr(argument, "_a", None)
    if held is None and isinstance(argument, np.ndarray) and argument.ndim:
        held = argument
    return held if isinstance(held, np.ndarray) else None


@contextmanager
def recorded(run: bool) -> Iterator[list[Launch]]:
    """The launches that are made in the block; `run`: on the emulator too."""
    made: list[Launch] = []
    real = launchers.kernel

    class Recorder:
        """In place of a compiled kernel."""

        def __init__(self, stem: str, instance: str) -> None:
            self.key = stem, instance
            self.function = real(stem, instance) if run else None

        def __call__(self, grid: tuple[int], block: tuple[int], arguments: Any, shared_mem: int = 0) -> None:
            made.append(Launch(*self.key, grid[0], block[0], arguments, shared_mem))
            if self.function is not None:
                self.function(grid, block, arguments, shared_mem=shared_mem)

    with mock.patch.object(launchers, "kernel", Recorder):
        yield made


_RANDOM = np.random.default_rng(1)
_NORMAL, _TAPS = _RANDOM.normal(size=1 << 18), _RANDOM.integers(0, 4, 1 << 18)


def noise(shape: Any, dtype: Any = float) -> Any:
    """An array of the stand-in's: normal numbers, statistics about 1 (float64), taps 0 to 3 (integers)."""
    a = np.empty(shape, dtype)
    few = _TAPS if a.dtype.kind in "iub" else 1 + _NORMAL / 10 if a.dtype == np.float64 else _NORMAL
    a.reshape(-1)[...] = np.resize(few.astype(a.dtype), a.size)
    return standin_cupy.ndarray(a)


def captured(call: Call, dtype: str) -> list[Launch]:
    """The launches of a call's forward, backward and inference on an H200; no kernel runs."""
    with (
        standin_cupy.installed() as cupy,
        kernels.mode("require"),
        on_device({**DEVICE, **call.device}),
        recorded(run=False) as made,
        np.errstate(all="ignore"),
    ):
        cupy.empty, done = noise, 0
        for part, _ in call.run(cupy, dtype, noise):
            for launch in made[done:]:
                launch.part = part
            done = len(made)
    for launch in made:
        if launch.stem == "max_unpool":
            _indices(launch)
    return made


def _indices(launch: Launch) -> None:
    """In place of noise: the indices that a 2×2 max pool may give, and the cells' owners that they leave."""
    arrays = [array_of(a) for a in launch.arguments]
    small, large = (0, 1) if "claim" in launch.kernel else (3, 1) if "write" in launch.kernel else (1, 0)
    *_, h, w = shape = arrays[small].shape
    corner = 4 * w * np.arange(h)[:, None] + 2 * np.arange(w)
    taps = np.resize(_TAPS, shape)
    arrays[small][...] = cells = corner + taps % 2 + taps // 2 * 2 * w
    if "write" in launch.kernel:
        owner = arrays[large].reshape(-1, 4 * h * w)
        owner[...] = -1
        np.put_along_axis(owner, cells.reshape(len(owner), -1), np.arange(cells.size).reshape(len(owner), -1), 1)
