"""How Numba compiles kernels: in fewer steps than by default, because somebody waits for them at the first call.

A kernel that Python calls is an *entry*: its code is optimised and translated to machine code, with a wrapper for
Python. A kernel that another one calls is a *part* of it: LLVM code that is linked to the entry's. By default Numba
translates each part to machine code too, with two wrappers, which takes as long as the entry itself.

This module needs Numba, and raises ImportError if Numba's internals are different."""

from __future__ import annotations

import functools
import gc
import importlib
from typing import Any

from numba import _dynfunc, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.environment import lookup_environment
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import (
    AnnotateTypes,
    InlineOverloads,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NoPythonSupportedFeatureValidation,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)

# Those of Numba's default that kernels need. Without: closures, context managers, `literal_unroll`, computed arguments
# of exceptions, and the fusion of expressions of whole arrays.
PASSES = (
    RewriteSemanticConstants, DeadBranchPrune, GenericRewrites, ReconstructSSA, DeadBranchPrune, NopythonTypeInference,
    PreLowerStripPhis, InlineOverloads, NoPythonSupportedFeatureValidation, IRLegalization, AnnotateTypes,
)  # fmt: skip
ENVIRONMENT = "_ZN08NumbaEnv"  # how the names of variables for the environments of functions begin


class _Library(JITCodeLibrary):  # type: ignore[misc]
    """The LLVM code of a kernel."""

    def _optimize_functions(self, ll_module: Any) -> None:
        """As Numba's method, without the functions that are only declared, which would take as long."""
        if not hasattr(self._codegen, "_pass_builder"):  # an older Numba
            super()._optimize_functions(ll_module)
            return
        ll_module.data_layout = self._codegen._data_layout
        for function in ll_module.functions:
            if not function.is_declaration:
                passes, builder = self._codegen._function_pass_manager()
                passes.run(function, builder)


class _PartLibrary(_Library):
    """Code that is only linked to that of other kernels. It is optimised first: without that, backward of a 3x3 average
    with stride 2 took 1.8 times as long."""

    def _finalize_final_module(self) -> None:
        """Without machine code."""
        self._finalize_dynamic_globals()
        self._finalized = True


class _EntryLibrary(_Library):
    only_calls = False

    def _optimize_final_module(self) -> None:
        """The parts become functions that no other module can see: what is inlined everywhere is then deleted, and what
        is not cannot be taken for a function of that name in another kernel. Of an entry that only calls its parts,
        which are optimised already, little is left to do: to do it all took an eighth of a first call."""
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "internal"
        if self.only_calls and hasattr(self._codegen, "_pass_builder"):
            passes, builder = self._codegen._module_pass_manager(loop_vectorize=False, slp_vectorize=False, opt=0)
            passes.add_global_dead_code_eliminate_pass()
            passes.run(self._final_module, builder)
        else:
            super()._optimize_final_module()


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerEntry(NativeLowering):  # type: ignore[misc]
    _name = "lower_entry"

    def run_pass(self, state: Any) -> bool:
        codegen = state.targetctx.codegen()
        library = state.library = _EntryLibrary(codegen, state.func_id.func_qualname)
        library.only_calls = hasattr(state.func_id.func, "only_calls")
        library.enable_object_caching()
        super().run_pass(state)
        for variable in library._final_module.global_variables:
            if variable.name.startswith(ENVIRONMENT):
                environment = lookup_environment(variable.name)
                if environment is not None:
                    codegen.set_env(variable.name, environment)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(NativeLowering):  # type: ignore[misc]
    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        library = state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        library.finalize()
        lowered = state["cr"]
        # Numba refers to a function by what Python would call: one without machine code.
        function = _dynfunc.make_function(
            lowered.fndesc.lookup_module(), lowered.fndesc.qualname, "a part of kernels", 0, lowered.env, (library,)
        )
        state.targetctx.insert_user_function(function, lowered.fndesc, [library])
        state["cr"] = lowered._replace(cfunc=function)
        return True


def _compiler(lowering: Any) -> Any:
    class Compiler(CompilerBase):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            from .substitutes import Substitute  # imports much of Numba that compiled code does not need

            self.before = TranslateByteCode, FixupArgs, IRProcessing, Substitute
            super().__init__(*arguments)

        def define_pipelines(self) -> list[PassManager]:
            passes = PassManager("kernel")
            for step in (*self.before, *PASSES, lowering, NoPythonBackend):
                passes.add_pass(step, step.__name__)
            passes.finalize()
            return [passes]

    return Compiler


ENTRY, PART = _compiler(_LowerEntry), _compiler(_LowerPart)


def _no_collections() -> Any:
    """A block in which Python does not collect garbage: a sixth of a compilation's time goes into that."""
    backends: Any = importlib.import_module("cnnlayers.backends")  # compiled code does not depend on it: code_cache.py
    return backends.Block(gc.disable, lambda: gc.enable if gc.isenabled() else gc.isenabled)


class Kernel(CPUDispatcher):  # type: ignore[misc]
    """A function that is compiled at its first call for each set of argument types. Kernels that call it get a part."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        options = {"nopython": True, "boundscheck": None, "no_cfunc_wrapper": True, **options}
        super().__init__(function, targetoptions=options, pipeline_class=ENTRY)

    def compile(self, sig: Any) -> Any:
        with _no_collections():
            return super().compile(sig)

    @functools.cached_property
    def _part(self) -> CPUDispatcher:
        options = {**self.targetoptions, "no_cpython_wrapper": True}
        return CPUDispatcher(self.py_func, targetoptions=options, pipeline_class=PART)

    @functools.cached_property
    def shared(self) -> Any:
        """The kernel `(board, edges, *arguments)` that shares chunks of this one among threads."""
        from .sharing import shared

        return shared(self)

    @property
    def _numba_type_(self) -> Any:
        """The type of the kernel's name in another kernel."""
        return types.Dispatcher(self._part)
