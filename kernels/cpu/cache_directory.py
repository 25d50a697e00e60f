"""Where the compiled code of CPU kernels is stored."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "CNNLAYERS_CACHE_DIR"


def directory() -> Path | None:
    """The value of `CNNLAYERS_CACHE_DIR`; else `cnnlayers` in `NUMBA_CACHE_DIR`, else in the user's cache directory. It
    need not exist. None if there is no home directory."""
    own, numbas = os.environ.get(VARIABLE, ""), os.environ.get("NUMBA_CACHE_DIR", "")
    try:
        if own:
            return Path(own).expanduser().absolute()
        return (Path(numbas).absolute() if numbas else _user_cache()) / "cnnlayers"
    except (RuntimeError, OSError):  # no home directory, or a working directory that was deleted
        return None


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return xdg if xdg.is_absolute() else Path.home() / ".cache"  # the XDG specification ignores relative paths
