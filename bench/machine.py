"""Where and with what a run was made: enough to judge its figures, and to make them again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cnnlayers
from cnnlayers import backends, kernels
from cnnlayers.backends import Backend

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "numpy", "numba", "cupy-cuda12x", "cupy-cuda13x", "torch", "triton", "jax", "jaxlib", "onnxruntime", "ml_dtypes",
)  # fmt: skip


def facts(b: Backend, command: Sequence[str]) -> dict[str, Any]:
    """Machine, versions, commit, threads, date and command."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(command),
        "commit": commit(),
        "device": device(b),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": backends.num_threads(),
        "load": load(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "kernels": kernels.current_mode(),
        "blas": blas(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("CNNLAYERS_", "OMP_", "MKL_"))},
        "versions": versions(),
    }


def load() -> float | None:
    """How many threads wanted a core in the last minute, on average; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def blas() -> list[str]:
    """The BLAS libraries loaded, where threadpoolctl is there to tell."""
    try:
        import threadpoolctl
    except ImportError:
        return []
    found = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    return [f"{library['internal_api']} {library['version']}" for library in found]


def versions() -> dict[str, str]:
    """Of Python, of this library and of what is installed of the packages that matter."""
    found = {"python": platform.python_version(), "cnnlayers": cnnlayers.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None outside a checkout."""
    if not checkout():
        return None
    try:
        short = _git("rev-parse", "--short=12", "HEAD")
        return short + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    ran = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=20)
    return ran.stdout.strip()


def checkout() -> bool:
    """Whether this file lies in the library's own repository, not in an installed package."""
    return (ROOT / ".git").exists() and (ROOT / "bench" / "cases.py").exists()


def results() -> Path:
    """Where results are kept unless told: bench/results of a checkout, else runs/bench here."""
    return ROOT / "bench" / "results" if checkout() else Path("runs") / "bench"


def processor() -> str:
    """The processor's name, as the system tells it."""
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device(b: Backend) -> str:
    """Where the arrays are: the processor, or the GPU with its driver."""
    if b.name != "cupy":
        return processor()
    runtime = b.xp.cuda.runtime
    found = runtime.getDeviceProperties(int(b.device.id))
    capability = f"compute capability {found['major']}.{found['minor']}"
    driver, cuda = (f"{v // 1000}.{v % 1000 // 10}" for v in (runtime.driverGetVersion(), runtime.runtimeGetVersion()))
    return f"{found['name'].decode()}, {capability}, driver {_driver() or 'for CUDA ' + driver}, CUDA {cuda}"


def _driver() -> str | None:
    """The driver's own number, where Linux tells it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    words = [w for w in text.split() if w.count(".") >= 1 and w.replace(".", "").isdigit()]
    return words[0] if words else None
