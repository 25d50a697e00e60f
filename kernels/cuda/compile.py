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

from cnnlayers.kernels import ahead

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
_INCLUDE = re.compile(r'#include "(\w+\.cuh)"')


class KernelError(RuntimeError):
    """A kernel did not compile or launch; the message names it and gives the compiler's or driver's words."""


@functools.cache
def source(stem: str) -> str:
    """The text of `<stem>.cu` with the library's own headers spliced in, and #line where another file begins, so that
    the compiler names the right one."""
    file = f"{stem}.cu"
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate(_text(file).splitlines(), 1):
        header = _INCLUDE.fullmatch(line)
        if header:
            inside = _text(header[1]).replace("#pragma once", "", 1)  # it is no file of its own any more
            lines += [f'#line 1 "{header[1]}"', inside, f'#line {number + 1} "{file}"']
        else:
            lines.append(line)
    return "\n".join([*lines, ""])


def _text(file: str) -> str:
    return (HERE / file).read_text(encoding="utf-8")


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
        function = module.get_function(instance)
        _ = function.kernel  # loaded on the current device: a launch that is captured in a graph must find it there
    except Exception as error:
        raise KernelError(f"{instance} of {stem}.cu did not compile with {' '.join(OPTIONS)}:\n{error}") from error
    return function


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

    An empty grid is no launch; while kernels are compiled ahead (`cnnlayers.kernels.warmup`) none is made. Raises
    KernelError with the kernel's name, the compiler's options and the launch's shape.
    """
    if grid == 0:
        return
    function = kernel(stem, instance, cooperative=cooperative)
    if ahead(instance):
        return
    try:
        if shared > 48 * 1024:
            function.max_dynamic_shared_size_bytes = shared
        function((grid,), (block,), tuple(arguments), shared_mem=shared)
    except Exception as error:
        raise KernelError(
            f"{instance} of {stem}.cu, compiled with {' '.join(OPTIONS)}, did not launch with grid {grid}, "
            f"block {block}, {shared} bytes shared: {error}"
        ) from error
