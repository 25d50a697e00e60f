"""From a .cu file to a launchable kernel, once a (kernel, template arguments).

The source travels whole: shared headers are spliced in, because CuPy's disk cache is keyed by the text it is given, not
by what that includes. Nothing here looks at arrays; launchers do (pool.py, pad.py, norm.py, conv.py).
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OPTIONS = ("-std=c++17",)
CUDA_TYPE = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
    "bool": "unsigned char",
    **{f"int{bits}": name for bits, name in ((8, "signed char"), (16, "short"), (32, "int"), (64, "long long"))},
    **{f"uint{bits}": f"unsigned {name}" for bits, name in ((8, "char"), (16, "short"), (32, "int"))},
    "uint64": "unsigned long long",
}
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


class KernelError(RuntimeError):
    """A kernel did not compile or launch; the message names it and gives the compiler's or driver's words."""


@functools.cache
def source(stem: str) -> str:
    """The text of `<stem>.cu` with the library's own headers spliced in."""
    text = (HERE / f"{stem}.cu").read_text(encoding="utf-8")

    def spliced(match: re.Match[str]) -> str:
        return (HERE / match.group(1)).read_text(encoding="utf-8").replace("#pragma once\n", "")

    return _INCLUDE.sub(spliced, text)


def name(kernel: str, *arguments: str | int | bool) -> str:
    """The C++ name of a template's instance: `name("pool", "float", 2, True)` is "pool<float, 2, true>"."""
    said = [str(a).lower() if isinstance(a, bool) else str(a) for a in arguments]
    return f"{kernel}<{', '.join(said)}>" if said else kernel


@functools.cache
def _function(stem: str, instance: str, cooperative: bool, cupy: Any) -> Any:
    try:
        module = cupy.RawModule(
            code=source(stem),
            options=OPTIONS,
            name_expressions=(instance,),
            backend="nvrtc",
            enable_cooperative_groups=cooperative,
        )
        return module.get_function(instance)
    except Exception as error:
        raise KernelError(f"{instance} of {stem}.cu did not compile with {' '.join(OPTIONS)}:\n{error}") from error


def kernel(stem: str, instance: str, *, cooperative: bool = False) -> Any:
    """The compiled kernel, from memory, CuPy's disk cache or NVRTC. Raises KernelError with the compiler's log."""
    return _function(stem, instance, cooperative, sys.modules["cupy"])


def launch(
    stem: str,
    instance: str,
    grid: int,
    block: int,
    arguments: Sequence[Any],
    *,
    shared: int = 0,
    cooperative: bool = False,
) -> None:
    """Run a kernel on the current stream of the current device; `arguments` are arrays and exactly typed NumPy scalars.

    An empty grid is no launch. Raises KernelError with the kernel's name and launch shape.
    """
    if grid == 0:
        return
    function = kernel(stem, instance, cooperative=cooperative)
    try:
        if shared > 48 * 1024:
            function.max_dynamic_shared_size_bytes = shared
        function((grid,), (block,), tuple(arguments), shared_mem=shared)
    except Exception as error:
        raise KernelError(
            f"{instance} of {stem}.cu did not launch with grid {grid}, block {block}, {shared} bytes shared: {error}"
        ) from error
