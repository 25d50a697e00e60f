"""CUDA kernels run on the CPU, for tests: an unmodified .cu file, one fiber a device thread.

    module = simt.Module(source, ["scale<float, 4>"])
    module.launch("scale<float, 4>", (grid,), (block,), (x, y, np.uint32(n)))

In check mode, the default, a launch ends with a SimtError that names the thread and the place in the source for: an
access out of bounds or misaligned, a write to a read-only array, an uninitialised read of shared memory, a race in a
block or between blocks (a missing grid.sync, or a fence missing on either side of a flag), a divergent barrier, a
deadlock, a spin that nobody ends, a warp operation that lanes do not share, an index outside a local array, a division
by zero, a signed overflow, more threads than __launch_bounds__ or more shared memory than the limit. Arguments of the
wrong width are refused in either mode. `traffic=True` counts the 32-byte sectors that each warp's accesses touch.

Limits. Lanes do not run in lockstep, and `__threadfence_block` does nothing. Two readers a byte are remembered: a write
that races with a third can pass. A cooperative grid has at most 30,000 threads; whether a real device holds it is not
asked. Traffic is that of the source as g++ sees it (nvcc may still hoist, drop or narrow a load: tests/nvrtc.py reads
its PTX); `memcpy` counts in words; of an array passed twice the later argument counts. There is no inline PTX, no
textures, clusters or thread tiles. Without check mode a spin on a volatile word never ends.

device/ is CUDA C++ for g++, include/ stands for the toolkit's headers, runtime/ schedules and checks.
"""

from .build import CompileError, unavailable
from .module import DEFAULT_SHARED, ORDERS, Module, Pointer, SimtError, root
from .source import SourceError
from .traffic import SECTOR, Traffic

__all__ = [
    "DEFAULT_SHARED",
    "ORDERS",
    "SECTOR",
    "CompileError",
    "Module",
    "Pointer",
    "SimtError",
    "SourceError",
    "Traffic",
    "root",
    "unavailable",
]
