"""The ops by their portable code, whatever kernels there are here: what the tests of the CUDA kernels compare with.

`portable.pad_forward(x, 1)` is `cnnlayers.functional.pad_forward(x, 1)` with kernels off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cnnlayers.functional as F
from cnnlayers import kernels


def __getattr__(name: str) -> Callable[..., Any]:
    op = getattr(F, name)

    @functools.wraps(op)
    def run(*args: Any, **options: Any) -> Any:
        with kernels.mode("off"):
            return op(*args, **options)

    return run
