"""Which kernel serves an op on an array, and the mode that allows it: auto, off or require.

A kernel is a faster way to the portable code's answer. What is known beforehand (no kernel for this dtype, size or
layout) sends a call to the portable code; a failed compile or launch is an error. A kernel that learns from its data
that it cannot serve (a NaN, for some forms of convolution) raises `UnsuitableData`, and another form computes the call.
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

import numpy

from cnnlayers import backends
from cnnlayers.backends import Backend, Block, assigned

from .once import once
from .setting import Setting

MODES = ("auto", "off", "require")
VARIABLE = "CNNLAYERS_KERNELS"


class KernelUnavailable(RuntimeError):
    """Mode "require", and an op that has a kernel cannot use it here; the message says why."""


class UnsuitableData(Exception):
    """Raised by a launcher that finds in its data, while it computes, that it cannot serve the call; the message says
    why. See `attempt`."""


@dataclass(frozen=True)
class Entry:
    """Where a step's kernel is: in `module`, imported at first use. It has a launcher of the step's own name, and
    `refuses(step, spec, *arrays)`: None, or the reason it cannot serve. `CallPlan.run` asks once for a plan and mode
    (`prepare`), so for its steps the answer may depend on the spec, shapes and dtypes alone; `find` and `attempt` ask
    at each call.

    `needs`: a module whose `unavailable()` says why none of this kind can run here, or None."""

    module: str
    needs: str | None = None

    def unavailable(self) -> str | None:
        return None if self.needs is None else self._needed.unavailable()

    @once
    def _needed(self) -> Any:
        return importlib.import_module(str(self.needs))

    @once
    def launchers(self) -> Any:
        return importlib.import_module(self.module)


PASSES = ("_forward", "_backward")
TRIO = ("", *PASSES)
NORMS = "batch_norm group_norm instance_norm"
CONVOLUTION = ("correlate", "correlate_adjoint", "weight_gradient")


def _steps(ops: str, parts: tuple[str, ...] = PASSES) -> tuple[str, ...]:
    return tuple(f"{op}{part}" for op in ops.split() for part in parts)


# The modules of kernels/cpu and kernels/cuda, and the steps that each serves: max_pool_forward is the function of this
# name in max_pool.py. An op that is not here has the portable code alone.
BOTH = {
    "max_pool": _steps("max_pool adaptive_max_pool", TRIO),
    "avg_pool": _steps("avg_pool sum_pool adaptive_avg_pool"),
    "lp_pool": _steps("lp_pool"),
    "max_unpool": _steps("max_unpool"),
    "pad": _steps("pad"),
    "norm_forward": _steps(f"{NORMS} layer_norm rms_norm", ("_forward",)),
    "matmul": ("matmul",),
}
CPU = {
    **BOTH,
    "norm_backward": _steps(f"{NORMS} layer_norm rms_norm", ("_backward",)),
    "elementwise": ("relu", *_steps("relu leaky_relu gelu sigmoid tanh")),
    "softmax": _steps("softmax softmax_cross_entropy"),
    "channel_sums": ("channel_sums",),
    "optim": ("sgd_update", "adam_update"),
    "conv_direct": tuple(f"direct_{step}" for step in CONVOLUTION),
    "winograd": tuple(f"winograd_{step}" for step in CONVOLUTION),
}
CUDA = {
    **BOTH,
    "norm_backward": _steps(NORMS, ("_backward",)),
    "layer_norm_backward": _steps("layer_norm rms_norm", ("_backward",)),
    "local_response_norm": _steps("local_response_norm"),
    "activations": ("relu", *_steps("relu leaky_relu gelu sigmoid tanh dropout")),
    "softmax": _steps("softmax"),
    "cross_entropy": _steps("softmax_cross_entropy"),
    "im2col": ("im2col", "col2im"),
    "cudnn": tuple(f"cudnn_{step}" for step in CONVOLUTION),
}
# (step, backend) -> where its kernel is.
TABLE: dict[tuple[str, str], Entry] = {
    **{
        (step, "numpy"): Entry(f"cnnlayers.kernels.cpu.{module}", needs="cnnlayers.kernels.cpu.jit")
        for module, steps in CPU.items()
        for step in steps
    },
    **{(step, "cupy"): Entry(f"cnnlayers.kernels.cuda.{module}") for module, steps in CUDA.items() for step in steps},
}

_cudnn = Setting("CNNLAYERS_CUDNN", ("auto", "off"), "the cuDNN option")
_mode = Setting(VARIABLE, MODES, "the kernel mode")
_winograd = Setting("CNNLAYERS_WINOGRAD", ("auto", "off"), "the Winograd option")
# The kernels that the innermost `warmup` has made ready: CUDA kernels by name, Numba's by op and dtypes.
_ready: contextvars.ContextVar[set[Any] | None] = contextvars.ContextVar("cnnlayers_ready", default=None)


def current_mode() -> str:
    """The mode in force here: the innermost `mode` block's, else `CNNLAYERS_KERNELS` (read once), else "auto"."""
    return _mode.current()


def mode(name: str) -> Block[str]:
    """A `with` block in which kernels are used or not, in this thread or async task only.

    Parameters
    ----------
    name : {"auto", "off", "require"}
        "auto": an op uses its kernel where that can serve. "off": portable array code alone. "require": an op that has
        a kernel and cannot use it raises KernelUnavailable.

    Raises
    ------
    ValueError
        Another name.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import functional as F, kernels
    >>> with kernels.mode("off"):
    ...     F.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return _mode.block(name)


def winograd_allowed() -> bool:
    """Whether 3×3 convolutions of float32 on the CPU may take Winograd's form, which is faster and a little less exact:
    by the innermost `winograd` block, else `CNNLAYERS_WINOGRAD` (read once), else yes."""
    return _winograd.current() == "auto"


def winograd(name: str) -> Block[str]:
    """A `with` block in which 3×3 convolutions may take Winograd's algorithm or not, in this thread or async task only.

    Parameters
    ----------
    name : {"auto", "off"}
        "auto": where it is faster; it is a little less exact.

    Raises
    ------
    ValueError
        Another name.
    """
    return _winograd.block(name)


def cudnn_allowed() -> bool:
    """Whether convolutions of CuPy arrays may be cuDNN's: by the innermost `cudnn` block, else `CNNLAYERS_CUDNN` (read
    once), else yes."""
    return _cudnn.current() == "auto"


def cudnn(name: str) -> Block[str]:
    """A `with` block in which convolutions of CuPy arrays may be cuDNN's or not, in this thread or async task only.

    Parameters
    ----------
    name : {"auto", "off"}
        "auto": where the extra `cudnn` is installed and cuDNN has a deterministic engine for the call.

    Raises
    ------
    ValueError
        Another name.
    """
    return _cudnn.block(name)


def warming_up() -> bool:
    """Whether this is inside `warmup`."""
    return _ready.get() is not None


@functools.cache
def _has_row(step: str) -> bool:
    return any(step == name for name, _ in TABLE)


def find(step: str, b: Backend, spec: Any, *arrays: Any, required: bool = True) -> Callable[..., Any] | None:
    """The launcher that serves a step ("max_pool_forward") on these arrays, or None for the portable code.

    `required` says that None means portable code: in mode "require" a kernel that cannot serve then raises
    KernelUnavailable. cuDNN's functions are not required, as there are other kernels. Raises LookupError for a step
    that has no row in `TABLE`, for any backend.
    """
    entry = TABLE.get((step, b.name))
    if entry is None and not _has_row(step):
        raise LookupError(f"no row of kernels.TABLE is for {step!r}; an op without kernels calls its portable code")
    chosen = current_mode()
    if entry is None or chosen == "off":
        return None
    refusal = entry.unavailable()
    if refusal is None:
        module = entry.launchers
        refusal = module.refuses(step, spec, *arrays)
        if refusal is None:
            launcher: Callable[..., Any] = getattr(module, step)
            ready = _ready.get()
            if ready is not None and b.name == "numpy":
                ready.add((step, *(str(getattr(a, "dtype", None)) for a in arrays)))
            return launcher
    if chosen == "require" and required:
        raise KernelUnavailable(f"{step} has a {b.name} kernel that cannot serve this call: {refusal}")
    return None


def prepare(step: str, b: Backend, spec: Any, arrays: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The kernel of a step as a function of arrays alone, for all calls whose arrays have these shapes and dtypes; None
    for the portable code.

    A launcher can have an attribute `prepare`, a function of `(spec, *arrays)` that gives it: tables, sizes and chunks
    are then found once, and not at each call. Raises as `find` does.
    """
    launcher = find(step, b, spec, *arrays)
    if launcher is None:
        return None
    make = getattr(launcher, "prepare", None)
    return functools.partial(launcher, b, spec) if make is None else make(spec, *arrays)


def attempt(step: str, b: Backend, spec: Any, *arrays: Any) -> Any:
    """What the kernel of a step computes; None if no kernel serves, or if it finds data that it cannot serve.

    Raises KernelUnavailable in mode "require", except where there is no kernel, and in `warmup`, where the data are
    arbitrary.
    """
    launcher = find(step, b, spec, *arrays)
    if launcher is None:
        return None
    try:
        return launcher(b, spec, *arrays)
    except UnsuitableData as error:
        if current_mode() == "require" and _ready.get() is None:
            raise KernelUnavailable(f"{step} has a {b.name} kernel that cannot serve these data: {error}") from error
        return None


def only_compiles(name: str) -> bool:
    """Whether kernels are compiled and not launched, because this is inside `warmup`; it then counts the CUDA kernel of
    this name."""
    ready = _ready.get()
    if ready is not None:
        ready.add(name)
    return ready is not None


def warmup(call: Callable[..., Any], /, *args: Any, dtype: Any = "float32", **options: Any) -> int:
    """Compile ahead: every kernel that a call launches, forward and backward.

    Parameters
    ----------
    call : Layer or function
        A layer or network, in the mode it is in; an op with `<name>_forward` and `<name>_backward` beside it in its
        module, of which all three are compiled for; or any other function, which is simply called.
    *args, **options
        What it is called with. Only shapes, dtypes and alignment of arrays count. In place of the first array its shape
        will do.
    dtype : str
        Of the array that is made for a shape.

    Returns
    -------
    ready : int
        The number of kernels: CUDA kernels by their template arguments; on the CPU the kernels of the dispatch table by
        the dtypes of their arrays. Whether one was ready before makes no difference. With kernels "off" it is 0.

    Raises
    ------
    TypeError
        `call` cannot be called.
    Exception
        What the call raises, and what a failed compile does.

    Notes
    -----
    A layer is copied first, and an op gets copies of its parameters, running statistics and random generators: all stay
    as they are. On the GPU the library's kernels are not launched, but CuPy compiles and launches its own for array
    code. On the CPU the call is computed, because Numba compiles at the first call; nothing warns of its numbers.

    Examples
    --------
    >>> from cnnlayers import functional as F, kernels
    >>> with kernels.mode("off"):
    ...     kernels.warmup(F.max_pool, (8, 3, 32, 32), 2)
    0
    """
    if not callable(call):
        raise TypeError(f"warmup takes a layer, an op or a function, then its arguments; got {call!r}")
    if current_mode() == "off":
        return 0
    inputs = list(args)
    if inputs and isinstance(inputs[0], tuple | list):
        b = backends.current()
        kind = getattr(b.xp, dtype) if isinstance(dtype, str) else dtype
        # The CPU computes with them: ones, because there may be a NaN in memory that nobody has set.
        inputs[0] = b.full(tuple(inputs[0]), 1, kind) if b.name == "numpy" else b.empty(tuple(inputs[0]), kind)
    ready: set[Any] = set()
    with assigned(_ready, lambda: ready):
        _run_through(call, inputs, options)
    return len(ready)


@backends.quiet
def _run_through(call: Any, args: list[Any], options: dict[str, Any]) -> None:
    """The call, and its backward where it has one, with y for dy."""
    if hasattr(call, "backward"):
        twin = copy.deepcopy(call)
        twin.backward(_first(twin(*args, **options)))
        return
    module = sys.modules.get(getattr(call, "__module__", None) or "")
    name = getattr(call, "__name__", "").removesuffix("_forward")
    forward, backward = (getattr(module, f"{name}_{part}", None) for part in ("forward", "backward"))
    if not (forward and backward):
        call(*args, **options)
        return
    args, options = [_copied(a) for a in args], {key: _copied(value) for key, value in options.items()}
    getattr(module, name, call)(*args, **options)
    y, ctx = forward(*args, **options)
    if str(_first(y).dtype) != "bool":  # which has no gradient
        backward(_first(y), ctx)


def _copied(value: Any) -> Any:
    """A copy of an array or a random generator, which an op may change."""
    if isinstance(value, numpy.random.Generator):
        return copy.deepcopy(value)
    return value.copy() if hasattr(value, "dtype") and hasattr(value, "copy") else value


def _first(y: Any) -> Any:
    """y, of a pair with indices as well."""
    return y[0] if isinstance(y, tuple) else y
