"""Which kernel serves an op on an array, and the mode that allows it: auto, off or require.

A kernel is a faster way to the portable code's answer. Only what is known beforehand (no kernel for this dtype, size or
layout) sends a call to the portable code; a failed compile or launch is an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cnnlayers.backends import Backend

MODES = ("auto", "off", "require")
VARIABLE = "CNNLAYERS_KERNELS"


class KernelUnavailable(RuntimeError):
    """Mode "require", and an op that has a kernel cannot use it here; the message says why."""


@dataclass(frozen=True)
class Entry:
    """Where an op's kernel lives: `module`, imported at first use. It has a launcher of the op's own name,
    `refuses(op, spec, *arrays)` (None, or the reason it cannot serve) and `warmup(op, spec)`.

    `needs`: a module whose `unavailable()` says why none of this kind can run here, or None."""

    module: str
    needs: str | None = None

    def unavailable(self) -> str | None:
        return None if self.needs is None else importlib.import_module(self.needs).unavailable()

    def load(self) -> Any:
        return importlib.import_module(self.module)


# (op, backend) -> entry. An op that is not here has the portable code alone.
TABLE: dict[tuple[str, str], Entry] = {
    **{
        (f"{op}{part}", "cupy"): Entry("cnnlayers.kernels.cuda.pool")
        for op in ("max_pool", "adaptive_max_pool")
        for part in ("", "_forward", "_backward")
    },
    **{
        (f"{op}{part}", "cupy"): Entry("cnnlayers.kernels.cuda.avg_pool")
        for op in ("avg_pool", "sum_pool", "adaptive_avg_pool")
        for part in ("_forward", "_backward")
    },
    **{(f"max_unpool_{part}", "cupy"): Entry("cnnlayers.kernels.cuda.unpool") for part in ("forward", "backward")},
    **{(op, "cupy"): Entry("cnnlayers.kernels.cuda.pad") for op in ("pad_forward", "pad_backward")},
    **{(step, "cupy"): Entry("cnnlayers.kernels.cuda.conv") for step in ("im2col", "col2im")},
    **{
        (f"{op}_norm_forward", "cupy"): Entry("cnnlayers.kernels.cuda.norm")
        for op in ("batch", "group", "instance", "layer", "rms")
    },
    **{
        (f"{op}_norm_backward", "cupy"): Entry("cnnlayers.kernels.cuda.norm_backward")
        for op in ("batch", "group", "instance")
    },
    **{(f"{op}_norm_backward", "cupy"): Entry("cnnlayers.kernels.cuda.norm_cells") for op in ("layer", "rms")},
}

_block: contextvars.ContextVar[str | None] = contextvars.ContextVar("cnnlayers_kernels", default=None)
_process: list[str] = []


def _checked(name: str, said_by: str) -> str:
    if name not in MODES:
        raise ValueError(f"{said_by} must be one of {', '.join(MODES)}; got {name!r}")
    return name


def current_mode() -> str:
    """The mode in force here: the innermost `mode` block's, else `CNNLAYERS_KERNELS` (read once), else "auto"."""
    chosen = _block.get()
    if chosen is None:
        if not _process:
            _process.append(_checked(os.environ.get(VARIABLE) or "auto", VARIABLE))
        chosen = _process[0]
    return chosen


@contextlib.contextmanager
def mode(name: str) -> Iterator[None]:
    """Run the block, in this thread or async task only, with kernels "auto", "off" or "require"d. Raises ValueError for
    another name."""
    token = _block.set(_checked(name, "the kernel mode"))
    try:
        yield
    finally:
        _block.reset(token)


def find(op: str, b: Backend, spec: Any, *arrays: Any) -> Callable[..., Any] | None:
    """The launcher that serves `op` on these arrays, or None for the portable code.

    Raises KernelUnavailable in mode "require" where the op has a kernel that cannot serve.
    """
    entry = TABLE.get((op, b.name))
    chosen = current_mode()
    if entry is None or chosen == "off":
        return None
    refusal = entry.unavailable()
    if refusal is None:
        module = entry.load()
        refusal = module.refuses(op, spec, *arrays)
        if refusal is None:
            launcher: Callable[..., Any] = getattr(module, op)
            return launcher
    if chosen == "require":
        raise KernelUnavailable(f"{op} has a {b.name} kernel that cannot serve this call: {refusal}")
    return None


def warmup(*calls: tuple[str, str, Any]) -> int:
    """Compile ahead: each call is `(op, backend name, spec)`. Gives the number of kernels made ready; ops without a
    kernel have nothing to compile. Raises what a failed compile raises, TypeError for what is no such call."""
    ready = 0
    for call in calls:
        if not isinstance(call, tuple) or len(call) != 3:
            raise TypeError(f"warmup takes calls (op, backend name, spec), got {call!r}")
        op, name, spec = call
        entry = TABLE.get((op, name))
        if entry is not None and current_mode() != "off" and entry.unavailable() is None:
            entry.load().warmup(op, spec)
            ready += 1
    return ready
