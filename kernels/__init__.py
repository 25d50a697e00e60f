"""Which kernel serves an op on an array, and the mode that allows it: auto, off or require.

A kernel is a faster way to the portable code's answer. Only what is known beforehand (no kernel for this dtype, size or
layout) sends a call to the portable code; a failed compile or launch is an error.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend, Block, assigned

from .setting import Setting

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
        return None if self.needs is None else self._needed.unavailable()

    def load(self) -> Any:
        return self._launchers

    @functools.cached_property
    def _needed(self) -> Any:
        return importlib.import_module(str(self.needs))

    @functools.cached_property
    def _launchers(self) -> Any:
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
    **{
        (f"{op}_norm_{part}", "numpy"): Entry(f"cnnlayers.kernels.cpu.{module}", needs="cnnlayers.kernels.cpu.jit")
        for op in ("batch", "group", "instance", "layer", "rms")
        for part, module in (("forward", "norm"), ("backward", "norm_backward"))
    },
    **{
        (f"{op}{part}", "numpy"): Entry("cnnlayers.kernels.cpu.pool", needs="cnnlayers.kernels.cpu.jit")
        for op in ("avg_pool", "sum_pool", "adaptive_avg_pool")
        for part in ("_forward", "_backward")
    },
    **{
        (f"{op}{part}", "numpy"): Entry("cnnlayers.kernels.cpu.max_pool", needs="cnnlayers.kernels.cpu.jit")
        for op in ("max_pool", "adaptive_max_pool")
        for part in ("", "_forward", "_backward")
    },
    **{
        (op, "numpy"): Entry("cnnlayers.kernels.cpu.pad", needs="cnnlayers.kernels.cpu.jit")
        for op in ("pad_forward", "pad_backward")
    },
    **{
        (op, "numpy"): Entry("cnnlayers.kernels.cpu.relu", needs="cnnlayers.kernels.cpu.jit")
        for op in ("relu", "relu_forward", "relu_backward")
    },
    **{
        (step, "numpy"): Entry("cnnlayers.kernels.cpu.conv", needs="cnnlayers.kernels.cpu.jit")
        for step in ("im2col", "col2im", "channel_sums")
    },
    **{
        (f"{form}_{step}", "numpy"): Entry(f"cnnlayers.kernels.cpu.{form}", needs="cnnlayers.kernels.cpu.jit")
        for form in ("depthwise", "winograd")
        for step in ("correlate", "spread", "weight_gradient")
    },
}

_mode = Setting(VARIABLE, MODES, "the kernel mode")
_winograd = Setting("CNNLAYERS_WINOGRAD", ("auto", "off"), "the Winograd option")
# The names of the kernels that the innermost `warmup` has met.
_ahead: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar("cnnlayers_ahead", default=None)


def current_mode() -> str:
    """The mode in force here: the innermost `mode` block's, else `CNNLAYERS_KERNELS` (read once), else "auto"."""
    return _mode.current()


def mode(name: str) -> Block[str]:
    """Run a block, in this thread or async task only, with kernels "auto", "off" or "require"d. Raises ValueError for
    another name."""
    return _mode.block(name)


def winograd_allowed() -> bool:
    """Whether 3×3 convolutions of float32 on the CPU may take Winograd's form, which is faster and a little less exact:
    by the innermost `winograd` block, else `CNNLAYERS_WINOGRAD` (read once), else yes."""
    return _winograd.current() == "auto"


def winograd(name: str) -> Block[str]:
    """Run a block, in this thread or async task only, with Winograd's form "auto" (where it is faster) or "off". Raises
    ValueError for another name."""
    return _winograd.block(name)


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


def ahead(name: str) -> bool:
    """Whether kernels are compiled and not launched, inside `warmup`, which is told this one's name."""
    names = _ahead.get()
    if names is not None:
        names.add(name)
    return names is not None


def warmup(*what: Any, dtype: Any = "float32", **options: Any) -> int:
    """Compile ahead: every kernel that a call launches, forward and backward. Gives their number.

        kernels.warmup(net, (64, 3, 32, 32))           # a layer or a network, in the mode it is in
        kernels.warmup(F.max_pool, x, 3, padding=1)    # an op: inference, forward and backward
        kernels.warmup(lambda: step(images, labels))   # any other function

    what: a layer (a copy of it is run, so that it stays as it is), an op with `<name>_forward` and `<name>_backward`
    beside it in its module, or a function that is called; then what it is called with. Only shapes, dtypes and
    alignment of arrays count; for the first one its shape will do: an array of `dtype` is made on the selected backend.
    options: of the call.

    No CUDA kernel of the library is launched, so values are arbitrary. What else the call does is done: CuPy compiles
    its own kernels for array code, and Numba's for NumPy arrays, compiled by running, are not counted. With kernels
    "off" there is nothing to compile: 0.

    Instead `what` may be calls `(op, backend name, spec)`, or one list of them: each is compiled for every floating
    dtype, and those that have a kernel are counted.

    Raises what the call raises, and what a failed compile does; TypeError for what is no call.
    """
    if not (what and callable(what[0])):
        return _warm_specs(*(what[0] if len(what) == 1 and isinstance(what[0], list) else what))
    call, *args = what
    if current_mode() == "off":
        return 0
    if args and isinstance(args[0], tuple | list):
        b = backends.current()
        args[0] = b.empty(tuple(args[0]), getattr(b.xp, dtype) if isinstance(dtype, str) else dtype)
    names: set[str] = set()
    with assigned(_ahead, lambda: names):
        _run_through(call, args, options)
    return len(names)


def _run_through(call: Any, args: list[Any], options: dict[str, Any]) -> None:
    """The call, and its backward where it has one, with y for dy."""
    if hasattr(call, "backward"):
        twin = copy.deepcopy(call)
        twin.backward(_first(twin(*args, **options)))
        return
    call(*args, **options)
    module = sys.modules.get(getattr(call, "__module__", None) or "")
    name = getattr(call, "__name__", "").removesuffix("_forward")
    forward, backward = (getattr(module, f"{name}_{part}", None) for part in ("forward", "backward"))
    if forward and backward:
        y, ctx = forward(*args, **options)
        if str(_first(y).dtype) != "bool":  # which has no gradient
            backward(_first(y), ctx)


def _first(y: Any) -> Any:
    """y, of a pair with indices as well."""
    return y[0] if isinstance(y, tuple) else y


def _warm_specs(*calls: Any) -> int:
    ready = 0
    for call in calls:
        if not isinstance(call, tuple) or len(call) != 3:
            raise TypeError(
                "warmup takes a layer, an op or a function and its arguments, or calls (op, backend name, spec); "
                f"got {call!r}"
            )
        op, name, spec = call
        entry = TABLE.get((op, name))
        if entry is not None and current_mode() != "off" and entry.unavailable() is None:
            entry.load().warmup(op, spec)
            ready += 1
    return ready
