"""Kernels of a .cu file, launched on NumPy arrays. The structures are those of runtime/interface.h."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import build
from .traffic import Traffic

ORDERS = ("ascending", "descending", "random")
DEFAULT_SHARED = 48 * 1024  # bytes a block may have without asking for more
_LETTERS = {"float16": "h2", "bfloat16": "y2"}
_lock = threading.Lock()  # a library keeps a launch's state in variables, and there is one device
_reserved: list[tuple[int | None, int]] = []


class SimtError(RuntimeError):
    """A fault of a kernel or of its launch."""


@dataclass(frozen=True)
class Pointer:
    """A device pointer into the allocation of `array`, `offset` bytes from the array's first element. The kernel may
    touch the whole allocation, as on the device; pass the array itself to hold it to the array."""

    array: np.ndarray
    offset: int = 0


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("host", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("phase", ctypes.c_size_t),
        ("device", ctypes.c_void_p),
    )


class _Range(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("buffer", ctypes.c_size_t),
        ("start", ctypes.c_size_t),
        ("offset", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("writable", ctypes.c_uint32),
        ("argument", ctypes.c_uint32),
        ("count", ctypes.c_void_p),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_size_t),
        ("shared_limit", ctypes.c_size_t),
        ("order", ctypes.c_uint),
        ("cooperative", ctypes.c_uint),
        ("seed", ctypes.c_uint64),
        ("memory", ctypes.c_void_p),
        ("spacing", ctypes.c_size_t),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("n_buffers", ctypes.c_size_t),
        ("ranges", ctypes.POINTER(_Range)),
        ("n_ranges", ctypes.c_size_t),
    )


class Module:
    """The named kernels of `source`, compiled for the CPU.

    kernels: names or name expressions, such as "scale<__half, 8, unsigned>". options: -D, -U and -I for the compiler.
    filename: what faults call the source. check: see the package's docstring; without it a kernel runs some seven times
    faster and a fault may end the process.

    Raises CompileError with g++'s messages, SourceError for a construct that the emulator does not know, SimtError
    where kernels cannot be emulated at all.
    """

    def __init__(
        self,
        source: str,
        kernels: Sequence[str],
        *,
        options: Sequence[str] = (),
        filename: str = "kernel.cu",
        check: bool = True,
    ) -> None:
        reason = build.unavailable()
        if reason:
            raise SimtError(reason)
        self.kernels = list(dict.fromkeys(kernels))
        self.check = check
        self.path: Path = build.library(source, self.kernels, options, filename, check)
        self._library = build.load(self.path)
        self._library.simt_error.restype = ctypes.c_char_p
        self._library.simt_error_pc.restype = ctypes.c_size_t

    def has_symbol(self, name: str) -> bool:
        """Whether the source defines an unmangled function (`extern "C"`) of that name."""
        return hasattr(self._library, name)

    def parameters(self, kernel: str) -> list[str]:
        """Of each parameter: a letter (i u f as NumPy's kinds, b bool, h half, y bfloat16, V any other) and its size in
        bytes; of a pointer, P before what it points to."""
        text = ctypes.create_string_buffer(4096)
        self._call("parameters", kernel)(text, ctypes.c_size_t(len(text)))
        return text.value.decode().split()

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        shared_limit: int = DEFAULT_SHARED,
        cooperative: bool = False,
        order: str = "ascending",
        seed: int = 1,
        traffic: bool = False,
    ) -> Traffic | None:
        """Run the kernel over the grid, and give its traffic where that is asked for.

        args: NumPy arrays (pointers; a read-only one may not be written), `Pointer`s, None (a null pointer), and
        exactly typed NumPy scalars or structs. shared_limit: bytes of static and dynamic shared memory a block may
        have. order: in which threads, and blocks, run: "ascending", "descending" or "random" with `seed`.

        Raises SimtError for a fault, naming the thread and the place in the source.
        """
        if (traffic or cooperative) and not self.check:
            raise SimtError(f"{kernel}: traffic counts and cooperative launches need Module(..., check=True)")
        if order not in ORDERS:
            raise SimtError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        packed = _Arguments(kernel, self.parameters(kernel), args, traffic)
        config = _Launch(
            _three(grid, "grid"),
            _three(block, "block"),
            shared_mem,
            shared_limit,
            ORDERS.index(order),
            cooperative,
            seed,
            *self._memory(),
            packed.buffers,
            len(packed.buffers),
            packed.ranges,
            len(packed.ranges),
        )
        with _lock:
            if self._call("run", kernel)(ctypes.byref(config), packed.values):
                raise SimtError(f"{kernel}: {self._fault()}")
        return packed.traffic() if traffic else None

    def _memory(self) -> tuple[int | None, int]:
        """The device's memory, which every module shares: its address, and how far apart buffers lie."""
        with _lock:
            if not _reserved:
                spacing = ctypes.c_size_t()
                self._library.simt_reserve.restype = ctypes.c_void_p
                _reserved.append((self._library.simt_reserve(ctypes.byref(spacing)), spacing.value))
            return _reserved[0]

    def _call(self, what: str, kernel: str) -> Any:
        if kernel not in self.kernels:
            raise SimtError(f"{kernel} is none of the module's kernels: {', '.join(self.kernels)}")
        return getattr(self._library, f"simt_{what}_{self.kernels.index(kernel)}")

    def _fault(self) -> str:
        said = self._library.simt_error().decode()
        address = self._library.simt_error_pc()
        return f"{said}\n  at {build.source_line(self.path, address)}" if address else said


def _three(sizes: Sequence[int], name: str) -> Any:
    if not 1 <= len(sizes) <= 3:
        raise SimtError(f"{name} must have one to three sizes, got {tuple(sizes)}")
    if any(not 0 <= int(n) < 1 << 32 for n in sizes):
        raise SimtError(f"{name} must have sizes that fit 32 bits, got {tuple(sizes)}")
    return (ctypes.c_uint * 3)(*(int(n) for n in (*sizes, 1, 1)[:3]))


def root(array: np.ndarray) -> np.ndarray:
    """The array that owns a view's memory: on the device, where the allocation starts."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _letter(dtype: np.dtype) -> str:
    """A dtype as `Module.parameters` writes a type."""
    plain = dtype.kind if dtype.kind in "iufb" else "V"
    return _LETTERS.get(dtype.name, f"{plain}{dtype.itemsize}")


def _same_type(wanted: str, got: str) -> bool:
    """Whether a value may be passed as it is: signs do not matter, structs are compared by size."""
    if (wanted[0] in "iu" and got[0] in "iu") or "V" in (wanted[0], got[0]):
        return wanted[1:] == got[1:]
    return wanted == got


def _may_point_to(wanted: str, got: str) -> bool:
    """Whether a pointer parameter may take an array: bytes, integers and 16-bit floats by size; void and structs
    (packs of values) take all."""
    if wanted[0] == "V":
        return True
    bits = "iubhy" if wanted[1:] in ("1", "2") else "iu"
    return wanted == got or (wanted[1:] == got[1:] and wanted[0] in bits and got[0] in bits)


class _Arguments:
    """Values, buffers and ranges of a launch; keeps alive what their pointers point to."""

    def __init__(self, kernel: str, wanted: list[str], args: Sequence[Any], traffic: bool) -> None:
        if len(wanted) != len(args):
            raise SimtError(f"{kernel} takes {len(wanted)} arguments, got {len(args)}")
        arrays = {i: a.array if isinstance(a, Pointer) else a for i, a in enumerate(args) if _is_array(a)}
        self._counts = np.zeros((len(args), 4, 2), np.uint64)  # requests, bytes, sectors, distinct; read, written
        self._kept: list[np.ndarray] = []
        self._arrays = arrays
        self._roots: dict[int, tuple[int, int, int]] = {}  # address of the allocation -> buffer, low, high
        bounds = {i: _bounds(args[i]) for i in arrays}
        for i, array in arrays.items():
            start = root(array).ctypes.data
            number, low, high = self._roots.get(start, (len(self._roots), *bounds[i]))
            self._roots[start] = number, min(low, bounds[i][0]), max(high, bounds[i][1])
        self.buffers = (_Buffer * len(self._roots))(
            *(_Buffer(low, high - low, low - start, None) for start, (_, low, high) in self._roots.items())
        )
        self.values = (ctypes.c_void_p * max(1, len(args)))()
        ranges = []
        for i, (want, arg) in enumerate(zip(wanted, args, strict=True)):
            self.values[i] = self._value(f"{kernel} argument {i}", want, arg)
            if i in arrays:
                count = self._counts[i].ctypes.data if traffic else None
                ranges.append(self._range(i, arg, bounds[i], count))
        self.ranges = (_Range * len(ranges))(*ranges)

    def _value(self, name: str, want: str, arg: Any) -> int:
        """The address of the argument's bytes. SimtError where the kernel would read them as something else."""
        if _is_array(arg) or arg is None:
            typed = isinstance(arg, np.ndarray)
            got = f"P{_letter(arg.dtype)}" if typed else "P"
            fits = want[0] == "P" and (not typed or _may_point_to(want[1:], got[1:]))
            value = np.zeros(1, np.uintp)
        else:
            value = np.array([arg])
            got = _letter(value.dtype)
            fits = want[0] != "P" and value.dtype.kind != "O" and _same_type(want, got)
        if not fits:
            raise SimtError(f"{name}: kernel wants {want}, caller packs {got} ({type(arg).__name__})")
        self._kept.append(value)
        return value.ctypes.data

    def _range(self, i: int, arg: Any, bounds: tuple[int, int], count: int | None) -> _Range:
        array = self._arrays[i]
        number, low, _ = self._roots[root(array).ctypes.data]
        start = array.ctypes.data + (arg.offset if isinstance(arg, Pointer) else 0)
        size = bounds[1] - bounds[0]
        return _Range(self.values[i], number, start - low, bounds[0] - low, size, array.flags.writeable, i, count)

    def traffic(self) -> Traffic:
        """The launch's traffic, once it has run."""

        def read(counts: np.ndarray, args: dict[int, Traffic]) -> Traffic:
            requests, size, sectors, distinct = ((int(r), int(w)) for r, w in counts)
            return Traffic(requests, size, sectors, distinct, args)

        return read(self._counts.sum(0), {i: read(self._counts[i], {}) for i in self._arrays})


def _is_array(arg: Any) -> bool:
    return isinstance(arg, np.ndarray | Pointer)


def _bounds(arg: Any) -> tuple[int, int]:
    """The first address that may be accessed, and the one behind the last."""
    array = root(arg.array) if isinstance(arg, Pointer) else arg
    if not array.size:
        return array.ctypes.data, array.ctypes.data
    low, high = np.lib.array_utils.byte_bounds(array)
    return int(low), int(high)
