"""What a launcher asks of its arrays: contiguous memory, alignment, C++ names, the width of an offset, a grid.

Nothing here waits for the device.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE

BLOCK = 256  # threads
RESIDENT = 8  # blocks of that size that a processor holds at most
WAVES = 4  # times the device is filled before threads take a second element


def contiguous(b: Backend, array: Any) -> Any:
    """`array` in C order: itself, or a copy where its strides say otherwise."""
    return array if array.flags.c_contiguous else b.xp.ascontiguousarray(array)


def ctype(b: Backend, array: Any) -> str:
    """The C++ name of the elements' type."""
    return CUDA_TYPE[backends.dtype_name(b, array)]


def aligned(array: Any, size: int) -> bool:
    """Whether packs of `size` bytes may be read from the array's first element on."""
    return bool(array.data.ptr % size == 0)


def offsets(*sizes: int) -> tuple[str, type[np.uint32] | type[np.uint64]]:
    """The C++ and NumPy types of offsets into arrays of so many elements."""
    return ("unsigned", np.uint32) if max(sizes) < 2**31 else ("unsigned long long", np.uint64)


def grid(b: Backend, threads: int, block: int = BLOCK) -> int:
    """Blocks for so many threads, which a grid-stride loop may cut down to a few for each processor of the device."""
    most = WAVES * RESIDENT * BLOCK // block * _processors(b.xp, int(b.device.id))
    return min(-(-threads // block), most)


@functools.cache
def _processors(cupy: Any, device: int) -> int:
    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])
