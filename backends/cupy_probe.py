"""Can CuPy be used here, and if not, why?

Finding out must neither hang nor print, so the cheap questions come first (is it installed, is there a driver library),
and the rest (import, devices, one compiled kernel) is asked in a thread that is waited for, not for ever. CuPy without
NVRTC imports and then fails at its first kernel: only running one tells. The answer is kept for the process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .block import Block, Exclusive

TIMEOUT_S = 60.0
OLDEST = (14, 2)  # 14.0 compiles kernels that are found by name anew in every process
INSTALL = "pip install 'cnnlayers[cuda13]' (or 'cnnlayers[cuda12]' for a CUDA 12 driver)"

_asking = Exclusive()
_answer: list[str | None] = []


def reason() -> str | None:
    """None where CuPy works, else why it does not and what mends it."""
    return _asking(_asked)


def _asked() -> str | None:
    if not _answer:
        _answer.append(_find_out())
    return _answer[0]


def module() -> ModuleType:
    """CuPy itself, imported; only after `reason()` was None."""
    return importlib.import_module("cupy")


def _find_out() -> str | None:
    if "cupy" not in sys.modules:
        try:
            found = importlib.util.find_spec("cupy")
        except (ImportError, ValueError):
            found = None
        if found is None:
            return f"CuPy is not installed: {INSTALL}"
        if not _driver_library():
            return "no NVIDIA driver was found (libcuda does not load): install the driver; CuPy itself is installed"
    answers: list[str | None] = []
    asker = threading.Thread(target=lambda: answers.append(_ask()), name="cnnlayers-cupy-probe", daemon=True)
    with _without_warnings():  # here, not in the thread: one that hangs would restore no filters
        asker.start()
        asker.join(TIMEOUT_S)
    return answers[0] if answers else f"CuPy did not answer within {TIMEOUT_S:.0f} s: see whether nvidia-smi answers"


def _without_warnings() -> Block[None]:
    def prepare() -> Callable[[], None]:
        filters = list(warnings.filters)

        def undo() -> None:
            warnings.resetwarnings()  # which also forgets what was decided by the filters so far
            warnings.filters[:] = filters  # type: ignore[index]

        return undo

    return Block(lambda: warnings.simplefilter("ignore"), prepare)


def _driver_library() -> bool:
    names = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _ask() -> str | None:
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # whatever a broken install raises is the reason
        return f"CuPy does not import ({_brief(error)}): {INSTALL}"
    try:
        if _too_old(cupy.__version__):
            wanted = ".".join(map(str, OLDEST))
            return f"CuPy {cupy.__version__} is too old, {wanted} is needed: pip install --upgrade {INSTALL[12:]}"
        devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"CUDA does not start ({_brief(error)}): install or update the NVIDIA driver"
    if devices < 1:
        return "the driver shows no CUDA device: see nvidia-smi and CUDA_VISIBLE_DEVICES"
    return _compiler(cupy)


def _too_old(version: str) -> bool:
    numbers = [re.match(r"\d*", part)[0] for part in version.split(".")[:2]]  # type: ignore[index]  # matches anything
    return tuple(int(n or 0) for n in numbers) < OLDEST


def _compiler(cupy: Any) -> str | None:
    try:
        # A kernel may come from CuPy's disk cache, so NVRTC is asked for its version as well.
        cupy.cuda.nvrtc.getVersion()
        total = float((cupy.asarray([1.0, 2.0]) + 1.0).sum())
    except Exception as error:
        return f"CuPy cannot compile or run a kernel ({_brief(error)}): {INSTALL}, which brings NVRTC and its headers"
    return (
        None
        if total == 5.0
        else f"CuPy's first kernel gave {total} where 5.0 was right: see nvidia-smi for device errors"
    )


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
