"""Kernels compiled for real devices, without one: what the compiler made of them.

By NVRTC, called through ctypes, where the wheels nvidia-cuda-nvrtc, nvidia-cuda-runtime and nvidia-cuda-cccl are
installed or a CUDA toolkit has it; else by nvcc, where that is on PATH.

    compiled = nvrtc.compile_all(source, ["scale<float, 4>"])
    assert all(k.spills == 0 and k.loads[16] for k in compiled)
    print(nvrtc.table(compiled))
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHS = (75, 80, 90, 100, 120)
STANDARD = "-std=c++17"


class CompileError(ValueError):
    """The compiler refused the source; the message is its log."""


@dataclass(frozen=True)
class Kernel:
    """A kernel compiled for sm_<arch>. Sizes are bytes, a thread's; `shared` is static and a block's.

    loads, stores: how many global accesses of each size, in bytes, the PTX has; 16 is the widest before sm_100.
    """

    name: str
    arch: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads

    @property
    def wide(self) -> tuple[bool, bool]:
        """Whether there are (loads, stores) of at least 16 bytes."""
        return max(self.loads, default=0) >= 16, max(self.stores, default=0) >= 16


@dataclass(frozen=True)
class Nvrtc:
    """Where NVRTC is: its library, and folders for -I."""

    library: Path
    include: tuple[Path, ...]


def compile_all(
    source: str,
    kernels: Sequence[str],
    archs: Sequence[int] = ARCHS,
    *,
    options: Sequence[str] = (STANDARD,),
    filename: str = "kernel.cu",
) -> list[Kernel]:
    """The named kernels (names, or name expressions of templates) compiled for each architecture.

    Raises CompileError with the log, RuntimeError where there is no compiler.
    """
    found, nvcc = location(), shutil.which("nvcc")
    if not found and not nvcc:
        raise RuntimeError(str(unavailable()))

    mangled = {} if found else _nvcc_names(source, kernels, options, filename)

    def compiled(arch: int) -> list[Kernel]:
        if found:
            return _by_nvrtc(found, source, kernels, arch, options, filename)
        return _by_nvcc(source, mangled, arch, options, filename)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [kernel for made in pool.map(compiled, archs) for kernel in made]


def cubin(
    source: str, kernel: str, arch: int, *, options: Sequence[str] = (STANDARD,), filename: str = "kernel.cu"
) -> tuple[Kernel, str, bytes]:
    """A kernel compiled by NVRTC, its mangled name, and the binary."""
    found = location()
    if found is None:
        raise RuntimeError("no NVRTC here")
    with _Program(found.library, source, filename) as program:
        mangled = program.compile([kernel], _given(found, arch, options))
        [made] = _kernels(mangled, arch, program.text("ProgramLog"), program.text("PTX"))
        return made, mangled[kernel], program.content("CUBIN")


def unavailable() -> str | None:
    """Why nothing can be compiled here, or None."""
    if location() or shutil.which("nvcc"):
        return None
    return "no CUDA compiler: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl, or put nvcc on PATH"


def compiler() -> str:
    """What compiles here: "NVRTC 13.0", "nvcc 13.0" or "none"."""
    found = location()
    if found:
        major, minor = ctypes.c_int(), ctypes.c_int()
        _load(found.library).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"NVRTC {major.value}.{minor.value}"
    if shutil.which("nvcc"):
        said = re.search(r"release ([\d.]+)", _run(["nvcc", "--version"]).stdout)
        return f"nvcc {said[1]}" if said else "nvcc"
    return "none"


def table(kernels: Sequence[Kernel]) -> str:
    """A Markdown table: a row a kernel and architecture."""
    head = ["kernel", "sm", "registers", "spills", "stack", "shared", "loads", "stores"]
    rows = [head, ["---"] * len(head)]
    for k in kernels:
        rows.append([f"`{k.name}`", *map(str, (k.arch, k.registers, k.spills, k.stack, k.shared))])
        rows[-1] += [
            " ".join(f"{n}×{size}" for size, n in sorted(c.items(), reverse=True)) for c in (k.loads, k.stores)
        ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# ---------------------------------------------------------------------------------------------------------------- NVRTC
@functools.cache
def location() -> Nvrtc | None:
    """NVRTC of the newest wheels, else of a toolkit."""
    spec = importlib.util.find_spec("nvidia")
    places = sorted((Path(p) for p in (spec.submodule_search_locations if spec else None) or ()), reverse=True)
    toolkits = [Path(p) for p in (os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda") if p]
    candidates = [
        *((p / f"cu{major}/lib", [p / f"cu{major}/include"]) for major in (14, 13) for p in places),
        *((p / "cuda_nvrtc/lib", [p / "cuda_runtime/include", p / "cuda_cccl/include"]) for p in places),
        *((p / "lib64", [p / "include"]) for p in toolkits),
    ]
    for folder, include in candidates:
        libraries = [p for p in sorted(folder.glob("libnvrtc.so*")) if "alt" not in p.name]
        if libraries and (include[0] / "cuda_fp16.h").exists():
            folders = (*include, *(p / "cccl" for p in include))
            return Nvrtc(libraries[0], tuple(p for p in folders if p.is_dir()))
    return None


@functools.cache
def _load(library: Path) -> Any:
    nvrtc = ctypes.CDLL(str(library))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc


class _Program:
    """A program of NVRTC's."""

    def __init__(self, library: Path, source: str, filename: str) -> None:
        self._nvrtc, self._handle = _load(library), ctypes.c_void_p()
        self._call("CreateProgram", source.encode(), filename.encode(), 0, None, None, by_reference=True)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *error: object) -> None:
        self._call("DestroyProgram", by_reference=True)

    def _call(self, what: str, *args: Any, by_reference: bool = False, log: bool = False) -> None:
        handle = ctypes.byref(self._handle) if by_reference else self._handle
        status = getattr(self._nvrtc, f"nvrtc{what}")(handle, *args)
        if status:
            said = self._nvrtc.nvrtcGetErrorString(status).decode()
            raise CompileError(f"{said}\n{self.text('ProgramLog')}" if log else said)

    def text(self, what: str) -> str:
        """The program's log or PTX."""
        return self.content(what).partition(b"\0")[0].decode()

    def content(self, what: str) -> bytes:
        """The program's log, PTX or CUBIN, byte by byte."""
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", ctypes.byref(size))
        buffer = ctypes.create_string_buffer(max(1, size.value))
        self._call(f"Get{what}", buffer)
        return buffer.raw

    def compile(self, kernels: Sequence[str], options: Sequence[str]) -> dict[str, str]:
        """Compile, and give the mangled name of each kernel."""
        for name in kernels:
            self._call("AddNameExpression", name.encode())
        encoded = [o.encode() for o in options]
        self._call("CompileProgram", len(encoded), (ctypes.c_char_p * len(encoded))(*encoded), log=True)
        mangled = {}
        for name in kernels:
            lowered = ctypes.c_char_p()
            self._call("GetLoweredName", name.encode(), ctypes.byref(lowered))
            mangled[name] = (lowered.value or b"").decode()
        return mangled


def _given(nvrtc: Nvrtc, arch: int, options: Sequence[str]) -> list[str]:
    include = [f"-I{p}" for p in nvrtc.include]
    return [*options, *include, f"-arch=sm_{arch}", "--ptxas-options=-v", "--device-as-default-execution-space"]


def _by_nvrtc(
    nvrtc: Nvrtc, source: str, kernels: Sequence[str], arch: int, options: Sequence[str], filename: str
) -> list[Kernel]:
    with _Program(nvrtc.library, source, filename) as program:
        mangled = program.compile(kernels, _given(nvrtc, arch, options))
        return _kernels(mangled, arch, program.text("ProgramLog"), program.text("PTX"))


# ----------------------------------------------------------------------------------------------------------------- nvcc
def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run([str(c) for c in command], text=True, capture_output=True)
    if ran.returncode:
        raise CompileError(f"{ran.stderr}{ran.stdout}\ncommand: {' '.join(map(str, command))}")
    return ran


def _nvcc(source: str, filename: str, options: Sequence[str]) -> tuple[str, str]:
    """nvcc's log, and its PTX."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cu")
        file.write_text(f'#line 1 "{filename}"\n{source}')
        ran = _run(["nvcc", *options, "--keep", f"--keep-dir={folder}", "-o", Path(folder, "kernel.out"), file])
        return ran.stderr, (Path(folder, "kernel.out" if "-ptx" in options else "kernel.ptx")).read_text()


def _nvcc_names(source: str, kernels: Sequence[str], options: Sequence[str], filename: str) -> dict[str, str]:
    """The mangled names, alike on every architecture: the PTX says what a variable with a kernel's address holds."""
    uses = "".join(f'extern "C" {{ __device__ auto* nvrtc_name_{i} = {name}; }}\n' for i, name in enumerate(kernels))
    _, ptx = _nvcc(f"{source}\n{uses}", filename, [*options, f"-arch=sm_{ARCHS[0]}", "-ptx"])
    found = dict(re.findall(r"nvrtc_name_(\d+) = (\w+);", ptx))
    return {name: found[str(i)] for i, name in enumerate(kernels)}


def _by_nvcc(source: str, mangled: dict[str, str], arch: int, options: Sequence[str], filename: str) -> list[Kernel]:
    uses = ", ".join(f"(void*){name}" for name in mangled)  # naming a template makes an instance of it
    code = f"{source}\nvoid* nvrtc_uses[] = {{{uses}}};\n"
    log, ptx = _nvcc(code, filename, [*options, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"])
    return _kernels(mangled, arch, log, ptx)


# ----------------------------------------------------------------------------------------------------- logs and PTX
def _kernels(mangled: dict[str, str], arch: int, log: str, ptx: str) -> list[Kernel]:
    report = r"Compiling entry function '(\w+)'(?s:.*?)Used \d+ registers.*"
    reports = {m[1]: m[0] for m in re.finditer(report, log)}
    bodies = dict(zip(names := re.findall(r"\.entry (\w+)", ptx), re.split(r"\.entry \w+", ptx)[1:], strict=True))
    made = []
    for name, low in mangled.items():
        if low not in reports or low not in names:
            raise CompileError(f"no report on {name} ({low}) in the compiler's log:\n{log}")
        made.append(
            Kernel(
                name,
                arch,
                registers=_number(r"Used (\d+) registers", reports[low]),
                stack=_number(r"(\d+) bytes stack frame", reports[low]),
                spill_stores=_number(r"(\d+) bytes spill stores", reports[low]),
                spill_loads=_number(r"(\d+) bytes spill loads", reports[low]),
                shared=_number(r"(\d+) bytes smem", reports[low]),
                loads=_accesses("ld", bodies[low]),
                stores=_accesses("st", bodies[low]),
            )
        )
    return made


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _accesses(operation: str, body: str) -> Counter[int]:
    """Sizes of a kernel's global accesses: of `ld.global.nc.v4.f32`, 16."""
    sizes: Counter[int] = Counter()
    for modifiers in re.findall(rf"\b{operation}\.global((?:\.[\w:]+)+)\s", body):
        lanes, bits = re.search(r"\.v(\d)\b", modifiers), re.search(r"\.[fbus](\d+)$", modifiers)
        sizes[int(lanes[1] if lanes else 1) * int(bits[1] if bits else 0) // 8] += 1
    return sizes
