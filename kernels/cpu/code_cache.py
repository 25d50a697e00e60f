"""Compiled kernels on disk, so that only the first process compiles.

One file holds one kernel for one set of argument types. Its name contains a hash of everything that the machine code
depends on: the sources of the kernel's module and of all modules of the library that this one imports, the values of
their constants, the versions of Python, NumPy, Numba, llvmlite and the library, Numba's settings, and the processor.
So code of an older source is never used. (Numba's own cache looks only at the file that contains the function, and
writes beside it.)

A file is written under another name and then renamed: processes can share the directory, and one that is killed leaves
no half-written kernel. A file starts with a checksum. A damaged one counts as missing: the kernel is compiled, and the
file replaced. When all files together exceed `LIMIT`, the least recently used ones are deleted.

A kernel never fails because of its cache. Where nothing can be stored, each process compiles for itself, and
`unavailable` says why. This module needs Numba, and raises ImportError if Numba's internals are different.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import os
import pickle
import platform
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy
from llvmlite.binding import address_of_symbol
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from .cache_directory import VARIABLE, directory

FORMAT = 2  # of the files
LIMIT = 256 << 20  # bytes; all kernels of one version take about 16 MB
DAY = 86_400.0  # seconds
CHECKSUM = hashlib.sha256().digest_size
LIBRARY = __name__.partition(".")[0]
COMPILER = tuple(f"{__package__}.{name}" for name in ("compiler", "sharing", "substitutes"))  # of all kernels
# "from ORIGIN import NAMES" or "import MODULES". Looking for them in the text is ten times as fast as parsing it.
IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|.*)|import[ \t]+(.*))", re.MULTILINE)
# Numba's settings that change the machine code. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are part of `magic_tuple`.
SETTINGS = (
    "BOUNDSCHECK", "DEBUG_NRT", "DEBUGINFO_DEFAULT", "DISABLE_INTEL_SVML", "ENABLE_AVX", "ENABLE_PROFILING",
    "EXTEND_VARIABLE_LIFETIMES", "LLVM_REFPRUNE_FLAGS", "LLVM_REFPRUNE_PASS", "LOOP_VECTORIZE", "NRT_STATS", "OPT",
    "SLP_VECTORIZE", "USE_LLVMLITE_MEMORY_MANAGER", "USING_SVML",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ key
@functools.cache
def _module(name: str) -> tuple[str, frozenset[str]]:
    """The hash of a module's source, and the names of the library's modules that it imports. Read once a process, while
    the module is being imported, because a later change of the file is not what this process runs.

    Raises ImportError where there is no source."""
    spec = importlib.util.find_spec(name)
    loader: Any = None if spec is None else spec.loader
    if spec is None or not hasattr(loader, "get_data") or not str(spec.origin).endswith(".py"):
        raise ImportError(f"no source of {name}")
    source = loader.get_data(spec.origin)
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    imported: set[str] = set()
    for origin, names, modules in IMPORT.findall(source.decode()):
        base = importlib.util.resolve_name(origin, package) if origin else ""
        for part in re.findall(r"[\w.]+", names or modules):
            found = f"{base}.{part}" if base else part
            imported.add(found if found in sys.modules else base)
    of_library = frozenset(m for m in imported if m.partition(".")[0] == LIBRARY)
    return hashlib.sha256(source).hexdigest(), of_library


@functools.cache
def _sources(*names: str, without: tuple[str, ...] = ()) -> dict[str, str]:
    """The hashes of these modules' sources and of all that they import, by the names of the modules."""
    hashes: dict[str, str] = {}
    waiting = [*names]
    while waiting:
        module = waiting.pop()
        if module not in hashes and module not in without:
            hashes[module], imported = _module(module)
            waiting += imported
    return dict(sorted(hashes.items()))


def _constants(name: str) -> list[tuple[str, str]]:
    """The names and values of a module's constants as they are now: they become part of the machine code."""
    values = vars(sys.modules[name]) if name in sys.modules else {}
    found = [(n, _constant(v)) for n, v in sorted(values.items()) if not n.startswith("__")]
    return [(n, text) for n, text in found if text is not None]


def _constant(value: Any) -> str | None:
    """A text that is the same in each process, for a value that Numba can compile into a kernel; None for others."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | numpy.generic | numpy.dtype):
        return repr(value)
    if isinstance(value, numpy.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, tuple | frozenset):
        parts = [_constant(v) for v in value]
        if None not in parts:
            return repr(parts if isinstance(value, tuple) else sorted(map(str, parts)))
    return None


def _variables(function: Any) -> list[tuple[str, Any]]:
    """The names of an enclosing function's variables that a kernel uses, and the values of constants or the kernels.
    TypeError for what has no key."""
    found: list[tuple[str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        value = cell.cell_contents
        part = getattr(value, "py_func", None) or _constant(value)
        if part is None:
            raise TypeError(
                "of an enclosing function's variables a kernel may use constants and kernels;"
                f" {function.__qualname__} uses {name}, a {type(value).__name__}"
            )
        found.append((name, part))
    return found


def _code(function: Any) -> tuple[Any, ...]:
    """The parts of the key that come from the sources of a kernel and of the kernels among its variables, from their
    modules' constants, and from its enclosing function. The kernels' names contain hashes of their own variables."""
    modules, texts, waiting = {function.__module__}, list[Any](), [function]
    while waiting:
        for name, part in _variables(waiting.pop()):
            if not isinstance(part, str):
                modules.add(part.__module__)
                waiting.append(part)
            texts.append((name, part if isinstance(part, str) else (part.__module__, part.__qualname__)))
    names = tuple(sorted(modules))
    # Without those of the compiler and of what it alone imports, which are there only once something is compiled.
    constants = [_constants(name) for name in _sources(*names, without=COMPILER)]
    return names, function.__qualname__, _sources(*names, *COMPILER), constants, texts


@functools.cache
def _versions() -> tuple[str, ...]:
    packages = (sys.modules[LIBRARY], numba, llvmlite, numpy)
    return (sys.version, platform.machine(), str(sys.implementation.cache_tag), *(p.__version__ for p in packages))


def _key(function: Any, signature: Any, codegen: Any) -> str:
    settings = [str(getattr(numba.config, name, None)) for name in SETTINGS]
    parts = FORMAT, _code(function), str(signature), codegen.magic_tuple(), settings, _versions()
    return hashlib.sha256(repr(parts).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- files
def _read(path: Path) -> bytes | None:
    """The file's contents without the checksum; None if it is missing or damaged."""
    try:
        contents = path.read_bytes()
    except FileNotFoundError:
        return None
    checksum, data = contents[:CHECKSUM], contents[CHECKSUM:]
    if hashlib.sha256(data).digest() != checksum:
        return None
    if time.time() - path.stat().st_mtime > DAY:
        with contextlib.suppress(OSError):  # a directory that can only be read
            os.utime(path)  # the time of the last use
    return data


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(hashlib.sha256(data).digest() + data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def tidy(folder: Path, limit: int = LIMIT) -> None:
    """Delete the least recently used kernels until the others take at most `limit` bytes, and files that killed
    processes left unfinished."""
    kernels, now = [], time.time()
    for path in itertools.chain(folder.glob("*.nbc"), folder.glob("*.tmp")):
        with contextlib.suppress(OSError):  # another process has deleted it
            state = path.stat()
            if path.suffix == ".nbc":
                kernels.append((state.st_mtime, state.st_size, path))
            elif now - state.st_mtime > DAY:
                path.unlink()
    total = 0
    for _, size, path in sorted(kernels, reverse=True):
        total += size
        if total > limit:
            with contextlib.suppress(OSError):
                path.unlink()


_tidy_once = functools.cache(tidy)


# ---------------------------------------------------------------------------------------------------------------- cache
class CodeCache(NullCache):  # type: ignore[misc]
    """The cache of one kernel, with the methods that Numba's dispatcher calls. Errors in here are not the caller's: the
    kernel is then compiled, as it would be without a cache."""

    def __init__(self, function: Any) -> None:
        self.function = function
        _sources(function.__module__, *COMPILER)  # as they are now

    @property
    def cache_path(self) -> str:
        return str(directory() or "")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel for argument types, or None."""
        with contextlib.suppress(Exception):
            return self.load(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store what was compiled."""
        with contextlib.suppress(Exception):
            self.save(sig, data)

    def load(self, signature: Any, target_context: Any) -> Any:
        data = _read(self._path(signature, target_context.codegen()))
        if data is None:
            return None
        rtsys.initialize(target_context)  # Numba's functions for memory, which compiled code calls
        stored, called, reduced = pickle.loads(data)
        if any(address_of_symbol(name) is None for name in called):
            # Numba makes all its functions known, which takes half of a first call (not its `refresh`: compiler.py).
            type(target_context).refresh(target_context)
        return CompileResult._rebuild(target_context, *reduced) if stored == signature else None

    def save(self, signature: Any, result: Any) -> None:
        if not result.library.has_dynamic_globals:  # addresses in this process
            path, functions = self._path(signature, result.codegen), result.library._final_module.functions
            called = [f.name for f in functions if f.is_declaration and not f.name.startswith("llvm.")]
            _write(path, dumps((signature, called, result._reduce())))
            _tidy_once(path.parent)

    def _path(self, signature: Any, codegen: Any) -> Path:
        folder = directory()
        if folder is None:
            raise FileNotFoundError("there is no home directory")
        kernel = f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"
        return folder / f"{kernel}-{_key(self.function, signature, codegen)[:40]}.nbc"


def attach(kernel: Any) -> None:
    """Give a kernel that `numba.njit` has made its cache, if its sources can be read.

    A kernel that uses variables of an enclosing function gets a hash of them into its name, because the symbol of its
    machine code is made of the name: two such kernels from two processes could have one symbol, and the first one that
    is loaded would be called for both."""
    if hasattr(kernel, "_cache"):  # not so with NUMBA_DISABLE_JIT
        with contextlib.suppress(ImportError, OSError, ValueError):
            function = kernel.py_func
            if variables := _variables(function):
                texts = [(n, p if isinstance(p, str) else f"{p.__module__}.{p.__qualname__}") for n, p in variables]
                function.__qualname__ += f"_{hashlib.sha256(repr(texts).encode()).hexdigest()[:16]}"
            kernel._cache = CodeCache(function)


def _nothing() -> None:
    """The kernel that `unavailable` stores."""


def unavailable() -> str | None:
    """Why compiled kernels are not stored here; None if they are. Compiles, stores and loads one to find out."""
    kernel = numba.njit(_nothing)
    if not hasattr(kernel, "_cache"):
        return "Numba compiles nothing (NUMBA_DISABLE_JIT)"
    try:
        kernel()
        [result] = kernel.overloads.values()
        cache = CodeCache(_nothing)
        cache.save((), result)
        if cache.load((), kernel.targetctx) is None:
            return f"what was stored in {directory()} cannot be read"
    except OSError as error:
        return f"{directory() or 'no home directory'}: {error.strerror or error}; {VARIABLE} can name another directory"
    except Exception as error:
        return f"the internals of Numba {numba.__version__} are different ({type(error).__name__}: {error})"
    return None
