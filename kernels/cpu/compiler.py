"""How Numba compiles kernels: in fewer steps than by default, because somebody waits for them at the first call.

A kernel that Python calls is an *entry*: its code is optimised and translated to machine code, with a wrapper for
Python. A kernel that another one calls is a *part* of it: LLVM code that is linked to the entry's. By default Numba
translates each part to machine code too, with two wrappers, which takes as long as the entry itself.

This module needs Numba, and raises ImportError if Numba's internals are different."""

from __future__ import annotations

import functools
import gc
import importlib
import os
from typing import Any

from numba import _dynfunc, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.cpu import CPUContext
from numba.core.environment import lookup_environment
from numba.core.errors import NumbaError, TypingError
from numba.core.imputils import builtin_registry
from numba.core.lowering import Lower
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.runtime import rtsys
from numba.core.targetconfig import ConfigStack
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

from ..once import once
from .vector_types import OperationType

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


class _Lower(Lower):  # type: ignore[misc]
    """How a kernel becomes LLVM code."""

    def delvar(self, name: str) -> None:
        """As Numba's method, which also sets to 0 what holds no reference to an array."""
        if self.context.enable_nrt and self.context.data_model_manager[self.typeof(name)].contains_nrt_meminfo():
            super().delvar(name)


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerEntry(NativeLowering):  # type: ignore[misc]
    _name = "lower_entry"
    lowering_class = _Lower

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
    lowering_class = _Lower

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


@functools.cache
def _load_some() -> None:
    """Make known to Numba's contexts what kernels need: numbers, tuples, ranges and arrays. All that Numba has takes
    0.3 s more, as it imports SciPy too."""
    for name in ("builtins", "iterators", "numbers", "rangeobj", "slicing", "tupleobj"):
        importlib.import_module(f"numba.cpython.{name}")
    importlib.import_module("numba.np.arrayobj")
    target = cpu_target.target_context
    rtsys.initialize(target)
    target.install_registry(builtin_registry)
    target.typing_context.refresh()


@functools.cache
def _load_all() -> None:
    CPUContext.refresh(cpu_target.target_context)


def _load_new() -> None:
    """What has been registered since: Numba's intrinsics are where they are first used (the one in `int(x)`)."""
    cpu_target.target_context.install_registry(builtin_registry)


_sizes: dict[str, int] = {}  # of LLVM's types, in bytes
_functions: dict[Any, Any] = {}  # what `get_function` has found


def _for_context(found: Any, context: Any) -> Any:
    """A function that was found for another kernel, for this one's context."""
    made = object.__new__(type(found))
    vars(made).update(vars(found), _context=context)
    return made


class _Target(CPUContext):  # type: ignore[misc]
    def get_function(self, fn: Any, sig: Any, _firstcall: bool = True) -> Any:
        """As Numba's method, but what it has found is kept, and not to find these loads nothing: Numba has something in
        their place."""
        key = fn, sig
        found = _functions.get(key)
        if found is None:
            known = fn in ("__array__", "static_getitem", "static_setitem")
            found = super().get_function(fn, sig, _firstcall and not known)
            if isinstance(fn, types.Callable) and not isinstance(fn, types.Dispatcher):
                _functions[key] = found
        return found if found._context is self else _for_context(found, self)

    def get_abi_sizeof(self, kind: Any) -> int:
        """As Numba's method, which compiles a module to find out."""
        name = str(kind)
        if name not in _sizes:
            _sizes[name] = super().get_abi_sizeof(kind)
        return _sizes[name]

    def post_lowering(self, module: Any, library: Any) -> None:
        """As Numba's method, which links its functions for memory to all kernels."""
        if self.enable_nrt:
            super().post_lowering(module, library)


_find_call_type = types.Function.get_call_type
_call_types: dict[Any, Any] = {}


def _get_call_type(function: Any, context: Any, args: Any, kws: Any) -> Any:
    """As Numba's method of a type of functions, but what it has found is kept: it tries one implementation after the
    other, each time, also for `x + y` and `x[i]`."""
    if kws or context is not cpu_target.typing_context:
        return _find_call_type(function, context, args, kws)
    flags = ConfigStack.top_or_none()  # an implementation can depend on them
    key = function, tuple(args), None if flags is None else tuple(map(str, flags._values.items()))
    if key not in _call_types:
        _call_types[key] = _find_call_type(function, context, args, kws)
    return _call_types[key]


class _Types:
    """Numba's typing context for one kernel. It keeps what it has found of functions, and does not look whether a
    function has an attribute `__call__`. That is half of the time that Numba needs to find the types."""

    def __init__(self, context: Any) -> None:
        self.context, self.signatures = context, dict[Any, Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def refresh(self) -> None:
        _load_some()

    def resolve_getattr(self, kind: Any, name: str) -> Any:
        found = self.context.resolve_getattr(kind, name)
        if found is None:
            _load_all()
            found = self.context.resolve_getattr(kind, name)
        return found

    def resolve_function_type(self, function: Any, args: Any, kws: Any) -> Any:
        if kws or not isinstance(function, types.Function | types.Dispatcher | OperationType):
            return self.context.resolve_function_type(function, args, kws)
        key = function, tuple(args)
        if key not in self.signatures:
            try:
                self.signatures[key] = function.get_call_type(self.context, args, kws)
            except TypingError:
                _load_all()
                self.signatures[key] = function.get_call_type(self.context, args, kws)
        return self.signatures[key]


class _Steps(PassManager):  # type: ignore[misc]
    def _runPass(self, index: int, step: Any, state: Any) -> None:
        """As Numba's method, without what it does between two steps: events, times, and an analysis that those steps
        which need it make themselves."""
        step.analysis = self._analysis
        step.run_initialization(state)
        step.run_pass(state)
        step.run_finalizer(state)


def _compiler(lowering: Any) -> Any:
    class Compiler(CompilerBase):  # type: ignore[misc]
        def __init__(self, context: Any, *others: Any) -> None:
            from .substitutes import Substitute  # imports much of Numba that compiled code does not need

            self.before = TranslateByteCode, FixupArgs, IRProcessing, Substitute
            super().__init__(_Types(context), *others)
            self.state.targetctx.__class__ = _Target
            del self.state.targetctx.refresh  # see _compiling

        def define_pipelines(self) -> list[PassManager]:
            passes = _Steps("kernel")
            for step in (*self.before, *PASSES, lowering, NoPythonBackend):
                passes.add_pass(step, step.__name__)
            passes.finalize()
            return [passes]

    return Compiler


ENTRY, PART = _compiler(_LowerEntry), _compiler(_LowerPart)


def _compiling() -> Any:
    """A block in which Python does not collect garbage, which takes a sixth of a compilation's time, and Numba does not
    load all that it has: `_load_some` does."""
    backends: Any = importlib.import_module("cnnlayers.backends")  # compiled code does not depend on it: code_cache.py
    target = vars(cpu_target.target_context)

    def prepare() -> Any:
        collects = gc.isenabled()

        def undo() -> None:
            target.pop("refresh", None)
            types.Function.get_call_type = _find_call_type
            if collects:
                gc.enable()

        return undo

    def enter() -> None:
        gc.disable()
        types.Function.get_call_type = _get_call_type
        target["refresh"] = _load_new  # for Numba's own functions, which its own compiler compiles

    return backends.Block(enter, prepare)


if hasattr(os, "register_at_fork"):  # a fork waits until no other thread compiles: its child would find Numba locked
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


class Kernel(CPUDispatcher):  # type: ignore[misc]
    """A function that is compiled at its first call for each set of argument types. Kernels that call it get a part."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        options = {"nopython": True, "boundscheck": None, "no_cfunc_wrapper": True, **options}
        super().__init__(function, targetoptions=options, pipeline_class=ENTRY)

    def compile(self, sig: Any) -> Any:
        with global_compiler_lock, _compiling():
            loaded = _load_all.cache_info().currsize > 0
            try:
                return super().compile(sig)
            except (NotImplementedError, NumbaError):
                if loaded:
                    raise
                _load_all()
                return super().compile(sig)

    @once
    def _part(self) -> CPUDispatcher:
        options = {**self.targetoptions, "no_cpython_wrapper": True}
        return CPUDispatcher(self.py_func, targetoptions=options, pipeline_class=PART)

    @once
    def shared(self) -> Any:
        """The kernel `(board, edges, *arguments)` that shares chunks of this one among threads."""
        from .sharing import shared

        return shared(self)

    @property
    def _numba_type_(self) -> Any:
        """The type of the kernel's name in another kernel."""
        return types.Dispatcher(self._part)
