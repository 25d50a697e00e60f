"""From a .cu file to a compiled kernel, once for each (kernel, template arguments).

The source is compiled as one text: shared headers are inserted into it, because the key of CuPy's disk cache is the
text, not what it includes. Nothing here looks at arrays; the launchers do (max_pool.py, pad.py, norm_forward.py, ...).
"""

from __future__ import annotations

import functools
import re
import sys
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
    **{
        f"int{bits}": cpp_name for bits, cpp_name in ((8, "signed char"), (16, "short"), (32, "int"), (64, "long long"))
    },
    **{f"uint{bits}": f"unsigned {cpp_name}" for bits, cpp_name in ((8, "char"), (16, "short"), (32, "int"))},
    "uint64": "unsigned long long",
}
_INCLUDE = re.compile(r'#include "(\w+\.cuh)"')


class KernelError(RuntimeError):
    """A kernel did not compile or launch; the message has its name and the compiler's or driver's message."""


@functools.cache
def source(stem: str) -> str:
    """The text of `<stem>.cu` with the library's own headers spliced in, and #line where another file begins, so that
    the compiler's messages name the right one."""
    file = f"{stem}.cu"
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate(_text(file).splitlines(), 1):
        header = _INCLUDE.fullmatch(line)
        if header:
            inside = _text(header[1]).replace("#pragma once", "", 1)  # the header is no longer a file of its own
            lines += [f'#line 1 "{header[1]}"', inside, f'#line {number + 1} "{file}"']
        else:
            lines.append(line)
    return "\n".join([*lines, ""])


def _text(file: str) -> str:
    return (HERE / file).read_text(encoding="utf-8")


@functools.lru_cache(maxsize=4096)
def instance_name(kernel: str, *arguments: str | int | bool) -> str:
    """The C++ name of a template's instance: `instance_name("max_pool", "float", 2, True)` is "max_pool<float, 2,
    true>"."""
    texts = [str(a).lower() if isinstance(a, bool) else str(a) for a in arguments]
    return f"{kernel}<{', '.join(texts)}>" if texts else kernel


@functools.cache
def _function(stem: str, instance: str, cupy: Any, device: int) -> Any:
    """The kernel, loaded on the current device, whose number is `device`: a launch that is captured in a graph finds it
    there."""
    try:
        module = cupy.RawModule(code=source(stem), options=OPTIONS, name_expressions=(instance,), backend="nvrtc")
        return module.get_function(instance)
    except Exception as error:
        raise KernelError(f"{instance} of {stem}.cu did not compile with {' '.join(OPTIONS)}:\n{error}") from error


def kernel(stem: str, instance: str) -> Any:
    """The compiled kernel, from memory, CuPy's disk cache or NVRTC, on the current device. Raises KernelError with the
    compiler's log."""
    cupy = sys.modules["cupy"]
    return _function(stem, instance, cupy, cupy.cuda.runtime.getDevice())
