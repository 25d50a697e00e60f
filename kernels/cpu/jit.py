"""How CPU kernels are compiled, and whether they can be.

A kernel is a serial loop over a range of contiguous arrays. Numba compiles it, and it releases the GIL. The compiled
code is stored on disk (code_cache.py) under a key that contains the sources of all modules that the kernel's module
imports, so a changed module makes those kernels alone compile again.

Somebody waits for the first call. What makes it short (compiler.py says why; `python -m cnnlayers.bench.first_calls`
measures):

- A line costs about 10 ms, a call of another kernel 30 ms more for each set of argument types: `store_row(y, 0, n)`
  and `store_row(y, U(0), n)` are two. Pass one kind of integer.
- The operations of vectors.py, `min` and `max` of two numbers, `np.empty`, `np.zeros` and `np.full` become LLVM code
  in the kernel. Any other function of NumPy is one more function to compile, in 50 to 150 ms.
- A constant of an enclosing function removes the branches that it decides; a variable does not. What one call does not
  need should be another kernel.
- `allocates=False` where no array is made: there is no code that counts references."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def unavailable() -> str | None:
    """Why CPU kernels cannot run here; None if they can."""
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError as error:  # not installed, or built for another NumPy
        return f"Numba cannot be imported ({error}): pip install 'cnnlayers[cpu]'"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, and vectors must be compiled"
    if not _has_vector_units():
        return "this CPU (or NUMBA_CPU_NAME) has no fused multiply-add and no conversion of float16"
    return None


# What the vectors of vectors.py need: without a unit for it LLVM calls a slow function for each lane.
VECTOR_CODE = """
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
define <8 x float> @f(<8 x float> %x, <8 x half> %y) {
  %z = fpext <8 x half> %y to <8 x float>
  %w = call <8 x float> @llvm.fma.v8f32(<8 x float> %x, <8 x float> %z, <8 x float> %x)
  ret <8 x float> %w
}
"""


def _has_vector_units() -> bool:
    """Whether Numba's target computes VECTOR_CODE without calling a function."""
    llvm: Any = importlib.import_module("llvmlite.binding")
    triple, cpu, features = (
        importlib.import_module("numba.core.registry").cpu_target.target_context.codegen().magic_tuple()
    )
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    assembly = machine.emit_assembly(llvm.parse_assembly(VECTOR_CODE))
    return not any(name in assembly for name in ("fmaf", "extendhfsf2", "gnu_h2f"))


def kernel(*, inlined: bool = False, allocates: bool = True) -> Callable[[F], F]:
    """Compile the function at its first call for each set of argument types.

    inlined: the kernels that call this one contain its code, for a part of a loop that is short.

    allocates: whether it makes arrays. If it does not, no references to its arrays are counted, which for a short row
    takes longer than the row.

    A kernel may use only constants and other kernels from an enclosing function; anything else is a TypeError."""

    def compile_function(function: F) -> F:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": inlined}
        if not allocates:
            options["_nrt"] = False
        dispatcher = _compiler()(function, options)
        _code_cache()(dispatcher)
        return cast(F, dispatcher)

    return compile_function


# If Numba's internals are different from what these two know, Numba compiles by its default, each process for itself.
@functools.cache
def _compiler() -> Callable[[Any, dict[str, Any]], Any]:
    """What makes a kernel of a function and options."""
    numba: Any = importlib.import_module("numba")
    try:
        kernel: Any = importlib.import_module(".compiler", __package__).Kernel
    except ImportError:
        kernel = None
    return (lambda f, options: numba.njit(**options)(f)) if kernel is None or numba.config.DISABLE_JIT else kernel


@functools.cache
def _code_cache() -> Callable[[Any], None]:
    """What gives a kernel its cache on disk."""
    try:
        attach: Callable[[Any], None] = importlib.import_module(".code_cache", __package__).attach
    except ImportError:
        return lambda dispatcher: None
    return attach
