"""What every op shares: the plan of a call, which chooses between a kernel and portable code, and the context."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from cnnlayers import backends, kernels
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import is_key

from .arrays import Array, accumulator_dtype, bytes_of_dtype, cast, is_complex, is_float, itemsize

P = ParamSpec("P")
R = TypeVar("R")
LARGE = 1 << 30  # bytes of a result for which memory is checked first
MAX_ITEMSIZE = 16  # bytes of an element of the widest dtype, complex128
TABLES = 64  # bytes that the tables of an axis take for each window, while they are made


@dataclass(slots=True, eq=False)
class CallPlan:
    """What the shapes, dtypes and options of a call decide, once they are checked. Calls that agree in them share one
    (`plan_of`), so change none."""

    op: str  # its name
    backend: Backend  # of its arrays
    dtype: Any  # x's
    y_shape: tuple[int, ...]
    spec: Any = None  # what kernels and portable code get
    compute_dtype: Any = field(init=False)  # that x is computed in; None for integers and bool, which are not cast
    complex: bool = field(init=False)  # whether x is
    large: bool = field(init=False)  # whether y may not fit the memory
    # By name and kernel mode.
    steps: dict[tuple[str, str], Callable[..., Any]] = field(init=False, default_factory=dict)
    key: Any = field(init=False, default=None)  # of the plan cache
    # On NumPy, if x is floating or complex: the type of array for which `check_backward` need not look for dy's owner.
    dy_type: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        b, dtype = self.backend, self.dtype
        self.complex = is_complex(b, dtype)
        wide = accumulator_dtype(b, dtype) if is_float(b, dtype) else None
        self.compute_dtype = dtype if self.complex else wide
        self.large = b.name == "numpy" and math.prod(self.y_shape) >= LARGE // MAX_ITEMSIZE

    def run(self, step: str, portable: Callable[..., R], *arrays: Any) -> R:
        """What the kernel of a step computes, if one serves in the mode in force, else the portable function, which is
        called `(b, spec, *arrays)`. The dtypes and shapes of a step's arrays follow from the plan."""
        function = self.steps.get((step, kernels.current_mode()))
        if function is None or kernels.warming_up():
            function = self._make_step(step, portable, arrays)
        result: R = function(*arrays)
        return result

    def _make_step(self, step: str, portable: Callable[..., R], arrays: tuple[Any, ...]) -> Callable[..., R]:
        """A function that computes the step and takes only arrays. It is cached in `steps`, unless its tables are too
        large for the cache of plans."""
        found = kernels.prepare(step, self.backend, self.spec, arrays)
        function = functools.partial(portable, self.backend, self.spec) if found is None else found
        if backends.size_of(function) <= backends.PLANS.largest:
            self.steps[step, kernels.current_mode()] = function
            if self.key is not None:
                backends.PLANS.keep(self.key, self)
        return function

    def check_memory(self) -> None:
        """MemoryError where y cannot fit in the memory that is free. A system that promises more memory than it has
        would end the process instead. CuPy checks by itself."""
        nbytes = math.prod(self.y_shape) * bytes_of_dtype(backends.name_of_dtype(self.backend, self.dtype))
        if nbytes < LARGE:
            return
        needed, free = nbytes + TABLES * max(self.y_shape), backends.available_memory()
        if free is not None and needed > free:
            raise MemoryError(
                f"a result of shape {self.y_shape} and dtype {self.dtype} needs about {needed / 1e9:.1f} GB with its"
                f" tables, and {free / 1e9:.1f} GB of memory are free: ask for a smaller output, or work on a part of x"
                " at a time"
            )


def plan_of(make: Callable[..., CallPlan], arrays: tuple[Array | None, ...], *options: Any) -> CallPlan:
    """`make(*arrays, *options)`: the checks of a call that depend on shapes, dtypes and options alone, and their plan.

    The plans of NumPy's and CuPy's arrays are cached. The types of the options belong to the key, because 1, 1.0 and
    True are equal, and so do the signs of floats. An option that may equal another of its type (a list, a NumPy number,
    (True, 2)) is checked anew each time.
    """
    key: Any = None
    owners, kinds = backends.owner_key(arrays), tuple(map(type, options))
    if owners is not None and is_key(options, kinds):
        if len(arrays) == 1 and arrays[0] is not None:  # a quarter of this function's time less
            key = (make, options, kinds, owners, arrays[0].shape, arrays[0].dtype)
        else:
            key = (make, options, kinds, owners, *[None if a is None else (a.shape, a.dtype) for a in arrays])
        if float in kinds:
            key = (*key, *[math.copysign(1.0, v) for v in options if type(v) is float])
    plan: CallPlan | None = None if key is None else backends.PLANS.find(key)
    if plan is None:
        plan = make(*arrays, *options)
        if owners == () and plan.compute_dtype is not None:
            plan.dy_type = type(arrays[0])
        if key is not None:
            plan.key = key
            backends.PLANS.keep(key, plan)
    if plan.large:
        plan.check_memory()
    return plan


class Context:
    """What a forward keeps for its backward: opaque to callers but for `nbytes`. It may be used more than once.

    It refers to arrays of the call (a convolution's x and weight, say) and does not copy them: change none of them in
    place before its last backward.
    """

    __slots__ = ("arrays", "plan")

    def __init__(self, plan: CallPlan, arrays: Mapping[str, Array | None] | None = None) -> None:
        self.plan = plan
        self.arrays = arrays or {}

    @property
    def spec(self) -> Any:
        """The options of the call, checked, and its shapes."""
        return self.plan.spec

    @property
    def dtype(self) -> Any:
        """x's."""
        return self.plan.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays saved for backward; an array saved under two names counts once."""
        kept = {id(a): a for a in self.arrays.values() if a is not None}
        return sum(int(a.size) * itemsize(self.plan.backend, a) for a in kept.values())

    def __repr__(self) -> str:
        return f"<{self.plan.op} context: y {self.plan.y_shape}, {self.nbytes:,} bytes kept>"


def check_backward(
    op: str, dy: Array, ctx: Context, *, exact: bool = False, integers: bool = False
) -> tuple[Backend, Array]:
    """Check that `ctx` is this op's and `dy` fits it; give the backend and dy, cast to the dtype x is computed in.

    A floating dy of another precision is cast. `exact`: to x's own dtype, for ops that only move values. `integers`: an
    integer dy of x's dtype will do as well. Raises TypeError (another op's context, another owner, a dtype without a
    gradient), ValueError (the shape).
    """
    if not isinstance(ctx, Context) or ctx.plan.op != op:
        got = f"{ctx.plan.op}_forward's" if isinstance(ctx, Context) else type(ctx).__name__
        raise TypeError(f"{op}_backward needs the context of {op}_forward, got {got}")
    plan, wanted = ctx.plan, ctx.plan.dtype if exact else ctx.plan.compute_dtype
    if type(dy) is plan.dy_type and dy.shape == plan.y_shape and dy.dtype == wanted:
        return plan.backend, dy
    b = backends.of(dy, name="dy")
    if b is not plan.backend and b != plan.backend:
        kept = plan.backend
        raise TypeError(f"dy must have x's owner: dy is {b.name} on {b.device}, x was {kept.name} on {kept.device}")
    if tuple(dy.shape) != plan.y_shape:
        raise ValueError(f"dy must have y's shape {plan.y_shape}, got {tuple(dy.shape)}")
    if plan.compute_dtype is not None and dy.dtype == wanted:
        return b, dy
    if integers and dy.dtype == plan.dtype and backends.dtype_name(b, dy) in backends.INTEGERS:
        return b, dy
    if plan.compute_dtype is None or not (is_float(b, dy.dtype) or (plan.complex and is_complex(b, dy.dtype))):
        if backends.name_of_dtype(b, plan.dtype) == "bool":
            raise TypeError(f"x was bool, and bool has no gradient: {op}_backward got a dy of {dy.dtype}")
        kind = f"have x's dtype {plan.dtype}" if plan.compute_dtype is None else "be floating"
        kind = "be complex or floating" if plan.complex else kind
        raise TypeError(f"dy must {kind}, got {dy.dtype}")
    return b, cast(b, dy, wanted)


def run_backward(op: str, portable: Callable[..., Array], dy: Array, ctx: Context, saved: str) -> Array:
    """dx of an op that saves one array, computed from dy and that."""
    _, dy = check_backward(op, dy, ctx, exact=True)
    return ctx.plan.run(f"{op}_backward", portable, dy, ctx.arrays[saved])


are_plain = (backends.PLAIN | {Context}).issuperset  # of types


def on_device(function: Callable[P, R]) -> Callable[P, R]:
    """Run a public function on the device of its first argument, an array. Arrays of NumPy's subclasses come in as
    plain ones, and NumPy neither warns nor raises about values."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if are_plain(map(type, args)) and (not kwargs or are_plain(map(type, kwargs.values()))):
            return copy_context().run(backends.ignoring, function, args, kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        plain, options = tuple(map(backends.plain, args)), {k: backends.plain(v) for k, v in kwargs.items()}
        with backends.on_device_of(first):
            return copy_context().run(backends.ignoring, function, plain, options)

    return run


def inference_of(forward: Callable[P, tuple[Any, Context]]) -> Callable[P, Any]:
    """The inference function of an op: it calls `forward` and drops the context. For ops that compute nothing extra for
    backward."""

    name = forward.__name__.removesuffix("_forward")

    @functools.wraps(forward)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return forward(*args, **kwargs)[0]
        except TypeError as error:  # Python's own, of a wrong argument, names the function that was called inside
            if str(error).startswith(f"{name}_forward() "):
                error.args = (name + str(error).removeprefix(f"{name}_forward"),)
            raise

    run.__name__ = run.__qualname__ = name
    signature = inspect.signature(forward).replace(return_annotation="Array")
    vars(run)["__signature__"] = signature
    return run
