"""The emulator's own test kernels: planted faults, known access patterns, one small correct kernel of each style."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from .. import ORDERS, Module, unavailable

KERNELS = Path(__file__).parent
needs_emulator = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
every_order = pytest.mark.parametrize("order", ORDERS)
checked_or_plain = pytest.mark.parametrize("check", [True, False], ids=["check", "plain"])


@functools.cache
def module(stem: str, *options: str, check: bool = True) -> Module:
    """All the kernels of a file in simt/kernels; templates as its `// instance:` lines name them."""
    source = (KERNELS / f"{stem}.cu").read_text()
    plain = re.findall(r"(?<!>\n)^(?:extern \"C\" )?__global__ void(?: __launch_bounds__\(.*\))? (\w+)\(", source, re.M)
    instances = re.findall(r"^// instance: (.*)$", source, re.M)
    return Module(source, [*plain, *instances], options=options, filename=f"{stem}.cu", check=check)


def floats(n: int) -> np.ndarray:
    return np.zeros(n, np.float32)


def word() -> np.ndarray:
    return np.zeros(1, np.uint32)
