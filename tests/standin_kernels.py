"""Raw kernels of the stand-in for CuPy: the library's own launchers run, their kernels on the emulator (tests/simt).

Arguments are packed by CuPy 14's rules. Where CuPy hides a mistake, this refuses it: an empty grid (CuPy launches one
block instead), an array of another device, a number that is not as wide as the kernel's parameter, a device address
passed as a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import simt, standin_cuda
from .standin_cuda import CUDADriverError, CUDARuntimeError, Device, Launch, MemoryPointer

# NVRTC's options that a launcher may give; -D, -U and -I go to g++.
OPTIONS = (
    *("-D", "-U", "-I", "--define-macro=", "--undefine-macro=", "--include-path="),
    *("-std=c++14", "--std=c++14", "-std=c++17", "--std=c++17", "-use_fast_math", "--use_fast_math"),
    *("-ftz=", "--ftz=", "-fmad=", "--fmad=", "-prec-div=", "--prec-div=", "-prec-sqrt=", "--prec-sqrt="),
    *("-default-device", "--device-as-default-execution-space", "-lineinfo", "--generate-line-info", "-w"),
    *("--disable-warnings", "--maxrregcount=", "-maxrregcount=", "--ptxas-options", "--extra-device-vectorization"),
    *("--restrict", "-restrict", "--diag-suppress=", "-diag-suppress=", "--minimal", "--split-compile="),
)


class CompileException(Exception):
    """As CuPy's: `str()` is the compiler's log."""

    def __init__(self, msg: str, source: str, name: str, options: tuple[str, ...], backend: str = "nvrtc") -> None:
        super().__init__(msg)
        self.source, self.name, self.options, self.backend = source, name, options, backend

    def get_message(self) -> str:
        return str(self.args[0])


class _Function:
    """A loaded kernel: what the driver keeps of it."""

    def __init__(self, module: simt.Module, name: str) -> None:
        self.module, self.name = module, name
        self.max_dynamic, self.carveout = simt.DEFAULT_SHARED, -1

    def set_max_dynamic(self, size: int) -> None:
        most = standin_cuda.settings.attributes["MaxSharedMemoryPerBlockOptin"]
        if not 0 <= size <= most:
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: {self.name}: {size} bytes of dynamic shared memory, at most {most}"
            )
        self.max_dynamic = size


class RawKernel:
    """A kernel of CUDA source, called `kernel(grid, block, args, shared_mem=)`."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        *,
        translate_cucomplex: bool = False,
        function: _Function | None = None,
    ) -> None:
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.__name__ = name
        self._function = function

    @property
    def kernel(self) -> _Function:
        if self._function is None:
            module = RawModule(code=self.code, options=self.options)
            self._function = module.get_function(self.name).kernel
        return self._function

    def compile(self, log_stream: Any = None) -> None:
        _ = self.kernel

    @property
    def shared_size_bytes(self) -> int:
        """Of shared arrays in the source: 0, because only a compiler for the device knows."""
        return 0

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self.kernel.max_dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self.kernel.set_max_dynamic(int(size))

    @property
    def preferred_shared_memory_carveout(self) -> int:
        return self.kernel.carveout

    @preferred_shared_memory_carveout.setter
    def preferred_shared_memory_carveout(self, percent: int) -> None:
        self.kernel.carveout = int(percent)

    @property
    def attributes(self) -> dict[str, int]:
        """CuPy's names; what only a compiler for the device knows is -1."""
        unknown = (
            "shared_size_bytes",
            "const_size_bytes",
            "local_size_bytes",
            "num_regs",
            "ptx_version",
            "cache_mode_ca",
        )
        return {
            "max_threads_per_block": standin_cuda.settings.attributes["MaxThreadsPerBlock"],
            "binary_version": int(standin_cuda.settings.compute_capability),
            "max_dynamic_shared_size_bytes": self.max_dynamic_shared_size_bytes,
            "preferred_shared_memory_carveout": self.preferred_shared_memory_carveout,
            **dict.fromkeys(unknown, -1),
        }

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        function, device = self.kernel, Device._current[-1]
        for sizes, name in ((grid, "grid"), (block, "block")):
            if not isinstance(sizes, tuple):
                raise TypeError(f"Argument {name!r} has incorrect type (expected tuple, got {type(sizes).__name__})")
        packed = [_packed(a, device) for a in args]
        self._check(function, grid, block, shared_mem)
        widened = function.max_dynamic > simt.DEFAULT_SHARED
        traffic = function.module.launch(
            self.name,
            grid,
            block,
            packed,
            shared_mem=shared_mem,
            shared_limit=standin_cuda.settings.attributes["MaxSharedMemoryPerBlockOptin"]
            if widened
            else simt.DEFAULT_SHARED,
            order=standin_cuda.settings.order,
            seed=standin_cuda.settings.seed,
            traffic=standin_cuda.settings.traffic,
        )
        on = (stream or standin_cuda.get_current_stream()).ptr
        made = Launch(self.name, grid, block, shared_mem, on, traffic)
        for recorder in standin_cuda.recorders:
            recorder.append(made)

    def _check(self, function: _Function, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
        """Raise for a launch that the device would refuse, or that CuPy would change."""
        if any(n < 1 for n in (*grid, *block)):
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: {self.name} launched with an empty grid or block, {grid} and {block}; "
                "CuPy takes 1 for 0, and a block runs: return before the launch"
            )
        if shared_mem > function.max_dynamic:
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: {self.name} launched with {shared_mem} bytes of dynamic shared memory, "
                f"max_dynamic_shared_size_bytes is {function.max_dynamic}"
            )


def _packed(arg: Any, device: Device) -> Any:
    """A kernel argument as CuPy 14 packs it, for the emulator."""
    if arg is None or isinstance(arg, np.generic):
        return arg
    if isinstance(arg, MemoryPointer):
        return arg.argument()
    if type(arg).__module__ == "cupy" and hasattr(arg, "get"):
        if arg.device.id != device.id:
            raise CUDARuntimeError(
                f"cudaErrorIllegalAddress: an array on device {arg.device.id} in a launch on device {device.id}"
            )
        return arg._a
    if isinstance(arg, np.ndarray):
        if arg.size != 1:
            raise TypeError(
                f"a numpy.ndarray of shape {arg.shape} as a kernel argument: only one element goes by value"
            )
        return arg.reshape(-1)[0]
    if isinstance(arg, bool):
        return np.bool_(arg)
    if isinstance(arg, int):
        return np.int64(arg) if arg < 1 << 63 else np.uint64(arg)
    if isinstance(arg, float):
        return np.float64(arg)
    raise TypeError(f"Unsupported type {type(arg)}")


class RawModule:
    """CUDA source, compiled kernel by kernel when `get_function` asks."""

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        name_expressions: Sequence[str] | None = None,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if code is None:
            raise CUDADriverError(f"CUDA_ERROR_NO_BINARY_FOR_GPU: the emulator runs source, got the path {path}")
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        if name_expressions is not None and backend != "nvrtc":
            raise ValueError("only nvrtc supports retrieving the mangled names for the given name expressions")
        self.code, self.options, self.backend = code, options, backend
        self.name_expressions = None if name_expressions is None else tuple(name_expressions)
        self._functions: dict[str, _Function] = {}

    def compile(self, log_stream: Any = None) -> None:
        for name in self.name_expressions or ():
            self.get_function(name)

    def get_function(self, name: str) -> RawKernel:
        """The kernel of a name expression, or of an `extern "C"` name. CompileException, or CUDADriverError where there
        is none of that name."""
        if name not in self._functions:
            standin_cuda.synchronises(f"loading {name}")
            self._functions[name] = _Function(self._emulated(name), name)
        return RawKernel(
            self.code,
            name,
            self.options,
            self.backend,
            function=self._functions[name],
        )

    def _emulated(self, name: str) -> simt.Module:
        for option in self.options:
            if not option.startswith(OPTIONS):
                raise CompileException(
                    f"nvrtc: error: invalid value or unknown option {option!r}", self.code, name, self.options
                )
        options = [o for o in self.options if o[:2] in ("-D", "-U", "-I")]
        expressed = name in (self.name_expressions or ())
        missing = CUDADriverError(
            f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name} is no name expression of the module"
        )
        try:
            module = simt.Module(self.code, [name], options=options, check=standin_cuda.settings.check)
        except simt.CompileError as error:
            if not expressed and "name_expressions:" in str(error):
                raise missing from error
            raise CompileException(str(error), self.code, name, self.options) from error
        if not expressed and not module.has_symbol(name):
            raise missing
        return module
