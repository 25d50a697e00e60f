"""Compiling for the emulator with g++, and keeping what was compiled.

Objects live in $SIMT_CACHE, or in the temporary folder, under a name that is a digest of all that went into them. Each
is written elsewhere and moved into place, so several processes may compile the same at once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .source import rewrite

HERE = Path(__file__).resolve().parent
COMPILER = "g++"

COMMON = [
    *("-std=c++17", "-O2", "-gdwarf-4", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"),
    *("-fno-threadsafe-statics", "-fno-gnu-unique", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function"),
]
# The callbacks, and one for each access that the device makes: no splitting of structs, no joining of scalars, blocks
# in source order.
CHECKED = [
    *("-fsanitize=thread", "-Wno-tsan", "--param=tsan-distinguish-volatile=1", "-fsanitize-coverage=trace-pc"),
    "-fsanitize=alignment,bounds,integer-divide-by-zero,shift,signed-integer-overflow",
    *("-fno-tree-sra", "-fno-tree-loop-vectorize", "-fno-tree-slp-vectorize", "-fno-store-merging"),
    *("-fno-tree-loop-distribute-patterns", "-fno-reorder-blocks", "-fno-reorder-blocks-and-partition"),
]


class CompileError(ValueError):
    """g++ refused the kernel; the message is its own."""


@functools.cache
def unavailable() -> str | None:
    """Why kernels cannot be emulated on this machine, or None."""
    if not sys.platform.startswith("linux"):
        return f"the CUDA emulator runs on Linux, this is {sys.platform}"
    if shutil.which(COMPILER) is None:
        return f"the CUDA emulator needs {COMPILER}, which is not installed"
    try:
        version = int(_run([COMPILER, "-dumpversion"]).stdout.split(".")[0])
    except (CompileError, ValueError) as error:
        return f"{COMPILER} does not say its version: {error}"
    return None if version >= 11 else f"the CUDA emulator needs {COMPILER} 11 or newer, this is {version}"


def library(source: str, kernels: Sequence[str], options: Sequence[str], filename: str, check: bool) -> Path:
    """The shared library of these kernels, compiled unless it is there already.

    Raises CompileError with g++'s messages, SourceError for a construct that the emulator does not know.
    """
    exports = "".join(f"SIMT_EXPORT({i}, {name})\n" for i, name in enumerate(kernels))
    body = f'{_defines(options)}{rewrite(source, filename)}\n#line 1 "name_expressions"\n{exports}'
    flags = [*COMMON, "-DSIMT_CHECK"] if check else COMMON
    hooks = CHECKED if check else []
    made = _cache() / f"{_key(body, *flags, *hooks, *options)}.so"
    if not made.exists():
        runtime, header = _runtime(tuple(flags)), _header((*flags, *hooks))
        with _arriving(made) as so, tempfile.NamedTemporaryFile(suffix=".o") as object_file:
            folders = [*(o for o in options if o.startswith("-I")), f"-I{HERE / 'include'}"]
            paths = [f"-fdebug-prefix-map={a}={b}" for a, b in ((os.getcwd(), "."), (HERE, "emulator"))]
            before: list[str | Path] = [*flags, *hooks, "-include", header, *folders, *paths]
            _run([COMPILER, *before, "-c", "-x", "c++", "-", "-o", object_file.name], body)
            # Without the C++ library, whose many symbols take a linker as long as half a kernel takes the compiler:
            # `load` opens it once for all kernels.
            _run([COMPILER, "-shared", "-nodefaultlibs", object_file.name, runtime, "-lgcc", "-o", so])
    return made


def load(library: Path) -> ctypes.CDLL:
    """The library in this process, and what it needs."""
    _load_needed()
    return ctypes.CDLL(str(library))


@functools.cache
def _load_needed() -> None:
    for name in ("libm.so.6", "libstdc++.so.6"):
        ctypes.CDLL(name, ctypes.RTLD_GLOBAL)


def _defines(options: Sequence[str]) -> str:
    """-D and -U as directives: they concern the kernel, and not the emulator's headers in front of it."""
    lines = []
    for option in options:
        name, _, value = option[2:].partition("=")
        if option.startswith("-D"):
            lines.append(f"#define {name} {value or '1'}\n" if "=" not in option or value else f"#define {name}\n")
        elif option.startswith("-U"):
            lines.append(f"#undef {name}\n")
    return "".join(lines)


def source_line(library: Path, address: int) -> str:
    """Where the code at an address of the library comes from, innermost call first: "file:line < file:line". The
    emulator's own functions are left out."""
    ran = subprocess.run(["addr2line", "-i", "-e", library, hex(address)], text=True, capture_output=True)
    lines = [line.partition(" ")[0].removeprefix("./") for line in ran.stdout.splitlines()]
    return " < ".join(line for line in lines if not line.startswith("emulator/"))


def _runtime(flags: tuple[str, ...]) -> Path:
    made = _cache() / f"{_key('runtime', *flags)}.o"
    if not made.exists():
        with _arriving(made) as path:
            _run([COMPILER, *flags, "-g0", "-c", HERE / "runtime" / "runtime.cpp", "-o", path])
    return made


def _header(flags: tuple[str, ...]) -> Path:
    """device.h with a precompiled twin beside it, which spares each compilation half of its time."""
    made = _cache() / _key("header", *flags) / "device.h"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        real = HERE / "device" / "device.h"
        with _arriving(made.with_name("device.h.gch")) as path:
            _run([COMPILER, *flags, "-x", "c++-header", real, "-o", path])
        with _arriving(made) as path:
            path.write_text(f'#include "{real}"\n')
    return made


def _cache() -> Path:
    folder = os.environ.get("SIMT_CACHE")
    if not folder:
        folder = os.path.join(tempfile.gettempdir(), f"simt-{os.getuid()}")
    return Path(folder)


@functools.cache
def _emulator() -> bytes:
    """All that a compiled object depends on beside its own source: the emulator's files and the compiler."""
    files = sorted(p for folder in ("device", "include", "runtime") for p in (HERE / folder).iterdir())
    return b"\0".join([_run([COMPILER, "--version"]).stdout.encode(), *(p.read_bytes() for p in files)])


def _key(*parts: str) -> str:
    return hashlib.sha256(_emulator() + "\0".join(parts).encode()).hexdigest()[:24]


@contextmanager
def _arriving(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there at the end of the block is moved to `path` at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _run(command: Sequence[str | Path], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run([str(c) for c in command], input=stdin, text=True, capture_output=True)
    if ran.returncode:
        raise CompileError(f"{ran.stderr.strip()}\ncommand: {' '.join(map(str, command))}")
    return ran
