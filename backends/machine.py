"""How much memory this process can still get."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# (limit, use) of a container: control groups 2, then 1.
_GROUPS = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, within the container's limit; None where the system does not say
    (outside Linux)."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    for limit, use in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is "max"
            group = Path("/sys/fs/cgroup")
            found.append(int((group / limit).read_text()) - int((group / use).read_text()))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)
