"""What every launcher does: contiguous memory, alignment, C++ type names, the width of an offset, a grid, the launch.

A launcher works out its launch once for a spec, a dtype and an alignment, and `cached_plan` keeps it: the kernel's
name, the grid and the numbers after the arrays. Each call then looks at alignment, allocates and launches. Nothing here
waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.kernels import only_compiles

from .compile import CUDA_TYPE, OPTIONS, KernelError, kernel

BLOCK = 256  # threads of a block
RESIDENT = 8  # blocks of that size that fit a multiprocessor at most
PACK_BYTES = 16  # the most bytes that one access loads or stores
WAVES = 4  # the most blocks of a grid, in multiples of what the device runs at once; threads then loop


def contiguous(b: Backend, array: Any) -> Any:
    """`array` in C order: itself, or a copy where its strides say otherwise."""
    return array if array.flags.c_contiguous else b.xp.ascontiguousarray(array)


def cuda_type(b: Backend, array: Any) -> str:
    """The C++ name of the elements' type."""
    return CUDA_TYPE[backends.dtype_name(b, array)]


def aligned(array: Any, size: int) -> bool:
    """Whether the array's address is a multiple of `size` bytes, so that packs of that size can be loaded."""
    return bool(array.data.ptr % size == 0)


def alignment(*arrays: Any) -> int:
    """The largest power of two, up to PACK_BYTES, of which all addresses are multiples."""
    bits = PACK_BYTES
    for array in arrays:
        bits |= int(array.data.ptr)
    return bits & -bits


def offset_types(*sizes: int) -> tuple[str, type[np.uint32] | type[np.uint64]]:
    """The C++ and NumPy types of offsets into arrays of so many elements."""
    return ("unsigned", np.uint32) if max(sizes) < 2**31 else ("unsigned long long", np.uint64)


def divisor(number: int) -> tuple[np.uint32, np.uint32]:
    """The multiplier and the shift of common.cuh's Divisor."""
    shift = (number - 1).bit_length()
    return np.uint32(-(-(1 << 31 + shift) // number)), np.uint32(shift)


def grid_size(b: Backend, threads: int, block: int = BLOCK) -> int:
    """Blocks for so many threads, at most WAVES times what the device runs at once: kernels loop over a larger
    array."""
    limit = WAVES * RESIDENT * BLOCK // block * _multiprocessors(b.xp, int(b.device.id))
    return min(-(-threads // block), limit)


@functools.cache
def _multiprocessors(cupy: Any, device: int) -> int:
    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])


class Launch(NamedTuple):
    """A launch without its arrays. `scalars`: the exactly typed NumPy numbers that follow these."""

    stem: str
    kernel: str
    grid: int
    scalars: tuple[Any, ...]
    block: int = BLOCK
    shared: int = 0

    def __call__(self, *arrays: Any) -> None:
        launch(self.stem, self.kernel, self.grid, self.block, (*arrays, *self.scalars), shared=self.shared)


class Pass(NamedTuple):
    """The launch of a forward or backward, and the shape of its result; `launch` None where there is nothing to do."""

    launch: Launch | None
    shape: tuple[int, ...]


_BY_VALUE = (type(None), int, float, str)  # specs of these types are told apart by value, others by identity


def cached_plan(make: Callable[..., Any], b: Backend, spec: Any, *facts: Any) -> Any:
    """`make(b, spec, *facts)`, from the plan cache, or made and stored there together with its spec: so no other spec
    can have the same identity.

    `facts`: all that the result depends on besides the spec and the device; hashable. A spec that is made anew for each
    call gets what was made for the first one that is equal to it.
    """
    key = (make, b.device.id, _identity(spec), *facts)
    found = backends.PLANS.find(key)
    if found is None:
        spec = _first_equal(spec, repr(spec))
        key = (make, b.device.id, _identity(spec), *facts)
        found = backends.PLANS.find(key)
    if found is None:
        found = backends.PLANS.keep(key, (spec, make(b, spec, *facts)))
    return found[1]


def _identity(spec: Any) -> Any:
    return (spec or repr(spec)) if isinstance(spec, _BY_VALUE) else id(spec)  # 0.0 and -0.0 are equal


@functools.lru_cache(maxsize=256)  # by number: specs are small
def _first_equal(spec: Any, text: str) -> Any:
    """The first spec that is equal to this one. `text`: its repr, in which 0.0 and -0.0 differ."""
    return spec


def launch(stem: str, instance: str, grid: int, block: int, arguments: Sequence[Any], *, shared: int = 0) -> None:
    """Run a kernel on the current stream of the current device; `arguments` are arrays and exactly typed NumPy scalars.

    An empty grid launches nothing; nor does `cnnlayers.kernels.warmup`, which only compiles. Raises KernelError with
    the kernel's name, the compiler's options and the launch's shape.
    """
    if grid == 0:
        return
    function = kernel(stem, instance)
    if only_compiles(instance):
        return
    try:
        function((grid,), (block,), tuple(arguments), shared_mem=shared)
    except Exception as error:
        raise KernelError(
            f"{instance} of {stem}.cu, compiled with {' '.join(OPTIONS)}, did not launch with grid {grid}, "
            f"block {block}, {shared} bytes shared: {error}"
        ) from error
