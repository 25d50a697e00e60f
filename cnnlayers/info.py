"""`cnnlayers info`: what this machine offers, and what would mend what is missing. Nothing here may fail."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import numpy
import threadpoolctl

import cnnlayers
from cnnlayers import backends, functional, kernels
from cnnlayers.kernels.cpu.cache_directory import directory

# The distributions that each extra of pyproject.toml for users brings, with the module that shows them.
EXTRAS = {
    "train": {"scikit-learn": "sklearn", "matplotlib": "matplotlib"},
    "cpu": {"numba": "numba"},
    "cuda13": {"cupy-cuda13x": "cupy"},
    "cuda12": {"cupy-cuda12x": "cupy"},
    "cudnn": {"nvidia-cudnn-frontend": "cudnn"},
    "mpi": {"mpi4py": "mpi4py"},
    "scipy": {"scipy": "scipy"},
    "torch": {"torch": "torch", "ml_dtypes": "ml_dtypes"},
    "onnx": {"torch": "torch", "onnx": "onnx", "onnxscript": "onnxscript"},
    "keras": {"keras": "keras"},
}

# Steps of kernels.TABLE, and what a user calls of which they are a part. Other steps that are no ops are not listed.
CALLED = {
    "direct_correlate": ("conv", "conv_transpose"),
    "im2col": ("conv", "conv_transpose"),
    "sgd_update": ("SGD",),
    "adam_update": ("Adam",),
}
COST = "about six times as long (mean of `cnnlayers bench`)"
WIDTH = 100  # columns of a list, beside its title


def lines() -> Iterator[str]:
    """The report, a line at a time."""
    yield f"cnnlayers {cnnlayers.__version__}"
    for title, rows in (
        (
            "python",
            [f"{platform.python_version()} on {platform.system()} {platform.machine()}, NumPy {numpy.__version__}"],
        ),
        ("backends", _backends()),
        ("devices", _devices()),
        ("threads", [_threads()]),
        ("blas", _blas()),
        ("kernels", _kernels()),
        ("extras", _extras()),
    ):
        for i, row in enumerate(rows):
            yield f"{'' if i else title:<10}{row}"


def _backends() -> Iterator[str]:
    try:
        selected = backends.current().name
    except (ValueError, backends.BackendUnavailable) as error:
        selected = ""
        yield f"none is selected: {error}"
    for name, reason in backends.available().items():
        state = "usable" if reason is None else f"cannot be used: {reason}"
        yield f"{name:<8}{state}{', selected' if name == selected else ''}"


def _devices() -> Iterator[str]:
    yield f"cpu: {os.cpu_count()} cores"
    if backends.available()["cupy"] is None:
        try:
            yield from _gpus()
        except Exception as error:  # a driver may refuse in any way
            yield f"gpu: it does not say what it is ({type(error).__name__}: {error})"


def _gpus() -> Iterator[str]:
    with backends.using("cupy") as b:
        runtime = b.xp.cuda.runtime
        for number in range(runtime.getDeviceCount()):
            found = runtime.getDeviceProperties(number)
            memory = found["totalGlobalMem"] / 2**30
            capability = f"compute capability {found['major']}.{found['minor']}"
            yield f"gpu {number}: {found['name'].decode()}, {memory:.0f} GiB, {capability}"


def _threads() -> str:
    return _setting(lambda: f"{backends.num_threads()} (CNNLAYERS_NUM_THREADS sets it)")


def _blas() -> list[str]:
    found = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    rows = [f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} threads" for lib in found]
    return rows or ["NumPy's own, unknown to threadpoolctl"]


def _setting(read: Callable[[], str]) -> str:
    try:
        return read()
    except ValueError as error:
        return f"not valid: {error}"


def _kernels() -> Iterator[str]:
    yield f"mode {_setting(kernels.current_mode)} (CNNLAYERS_KERNELS sets it)"
    allowed = _setting(lambda: "auto" if kernels.winograd_allowed() else "off")
    yield f"Winograd {allowed} (CNNLAYERS_WINOGRAD sets it)"
    code, cudnn = "cnnlayers.kernels.cpu.code_cache", "cnnlayers.kernels.cuda.cudnn"
    reasons = _reasons({entry.needs for entry in kernels.TABLE.values() if entry.needs} | {code, cudnn})
    allowed = _setting(lambda: "auto" if kernels.cudnn_allowed() else "off")
    usable = f"cannot be used, {reasons[cudnn]}" if cudnn in reasons else "usable"
    yield from textwrap.wrap(f"cuDNN {allowed} (CNNLAYERS_CUDNN sets it): {usable}", WIDTH, subsequent_indent=" " * 8)
    for name in backends.available():
        entries = {op: entry for (op, backend), entry in kernels.TABLE.items() if backend == name}
        steps = {op.removesuffix("_forward").removesuffix("_backward") for op in entries}
        ops = {op for op in steps if op in functional.__all__} | {op for step in steps for op in CALLED.get(step, ())}
        missing = [reasons[needed] for needed in sorted({e.needs for e in entries.values() if e.needs} & {*reasons})]
        if missing:
            yield from (f"{name:<8}none, {reason}" for reason in missing)
            yield f"{'':<8}Array code serves until then: {COST}"
            continue
        served = ", ".join(sorted(ops)) or "none: every op runs as portable array code"
        yield from textwrap.wrap(f"{name:<8}{served}", WIDTH, subsequent_indent=" " * 8)
    if "cnnlayers.kernels.cpu.jit" not in reasons:
        stored = f"not stored: {reasons[code]}" if code in reasons else f"stored in {directory()}"
        yield f"compiled code is {stored}{'' if code in reasons else ' (CNNLAYERS_CACHE_DIR sets it)'}"
        yield "A kernel is compiled at its first call: 1 to 4 seconds for an op, half a second once its code is stored."
        yield "cnnlayers.kernels.warmup does it ahead of the first batch"


_PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        said = importlib.import_module(name).unavailable()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([name, said]), flush=True)
"""


def _reasons(needed: set[str]) -> dict[str, str]:
    """Why each kind of kernels cannot run here, by its module. Kinds that can run are left out. Another process
    imports these modules, because they import what they look for."""
    answers: dict[str, str | None] = dict.fromkeys(needed, "which could not be found out: its import ends Python")
    try:
        # -P: else -c looks in the working directory first, as we may not; in a clone that is a part of the package.
        here = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
        asked = [sys.executable, *here, "-c", _PROBE, *sorted(needed, reverse=True)]
        output = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
        answers.update(json.loads(line) for line in output.splitlines() if line.startswith("["))
    except (OSError, subprocess.TimeoutExpired) as error:
        answers = dict.fromkeys(needed, f"which could not be found out ({type(error).__name__})")
    return {name: reason for name, reason in answers.items() if reason}


def _extras() -> Iterator[str]:
    for extra, parts in EXTRAS.items():
        found = {dist: _version(dist, module) for dist, module in parts.items()}
        missing = [dist for dist, version in found.items() if not version]
        if missing:
            yield f"{extra:<8}without {', '.join(missing)}: pip install 'cnnlayers[{extra}]'"
        else:
            yield f"{extra:<8}" + ", ".join(f"{dist} {version}" for dist, version in found.items())


def _version(distribution: str, module: str) -> str:
    """The installed version, or nothing; the module is looked for, not imported."""
    try:
        return importlib.metadata.version(distribution) if importlib.util.find_spec(module) else ""
    except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: loaded by hand, and no package
        return ""
