"""Linear ops as linear operators of SciPy and CuPy: for iterative solvers, and for PyLops."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.backends import Backend
from cnnlayers.functional.arrays import Array
from cnnlayers.functional.call_plan import CallPlan, Context
from cnnlayers.functional.conv import conv_dx, conv_transpose_dx
from cnnlayers.functional.linear import linear_dx
from cnnlayers.specs.arguments import Shape, entries_of, integer

LINEAR = ("pad", "avg_pool", "sum_pool", "adaptive_avg_pool", "conv", "conv_transpose", "linear")
DTYPES = ("float16", "float32", "float64", "complex64", "complex128")
MODULES = {"numpy": "scipy.sparse.linalg", "cupy": "cupyx.scipy.sparse.linalg"}
DX: dict[str, Callable[..., Array]] = {"conv": conv_dx, "conv_transpose": conv_transpose_dx, "linear": linear_dx}


def linear_operator(
    op: str | Callable[..., Any], shape: Sequence[int], *args: Any, dtype: Any = "float32", **options: Any
) -> Any:
    """A linear op of `cnnlayers.functional` as a linear operator A on vectors.

        A @ x.ravel() = op(x, *args, **options).ravel(),    A.H @ y.ravel() = the adjoint, op's dx for dy = y

    so that <A x, y> = <x, A.H y> to rounding.

    Parameters
    ----------
    op : function or str
        `F.conv`, say, or its name: one of pad, avg_pool, sum_pool, adaptive_avg_pool, conv, conv_transpose, linear.
    shape : sequence of int
        x's shape, with samples and channels as op has it: (N, C, *spatial), for `linear` (..., in).
    *args, **options
        What op takes after x: weight, kernel_size, padding and so on. A bias, or a fill value other than 0, is not
        linear. Where an array is among them its backend is the operator's, else the selected one.
    dtype : str or dtype
        The operator's: float16, float32, float64, complex64 or complex128. Vectors of a longer dtype, and complex
        ones, are computed in theirs: the result has the dtype that NumPy's promotion gives.

    Returns
    -------
    operator : scipy.sparse.linalg.LinearOperator
        Of shape (elements of y, elements of x), with matvec, rmatvec, matmat and rmatmat; on CuPy a
        cupyx.scipy.sparse.linalg.LinearOperator. It refers to the arrays that were given. Its attributes `dims` and
        `dimsd` are the shapes of x and y.

    Raises
    ------
    ValueError
        Another op, one that is not linear, a bias, a fill value, or what op itself raises for the shape and options.
    TypeError
        An op, a shape or a dtype of another kind, or arrays of another library than NumPy and CuPy.
    ImportError
        SciPy is not installed; `pip install 'cnnlayers[scipy]'` brings it.

    Examples
    --------
    >>> import numpy as np
    >>> import cnnlayers
    >>> A = cnnlayers.linear_operator("pad", (1, 1, 3), 1, "reflect")
    >>> A @ np.array([1.0, 2.0, 3.0])
    array([2., 1., 2., 3., 2.])
    >>> A.H @ np.ones(5)
    array([1., 3., 1.])

    References
    ----------
    scipy.sparse.linalg.LinearOperator; Claerbout, "Earth Soundings Analysis", 1992, for the dot-product test.
    """
    name = _name(op)
    b = _backend([*args, *options.values()])
    kind = _dtype(dtype)
    dims = tuple(integer(n, "shape", 0) for n in _entries(shape))
    _check_linear(name, args, options)
    module = _module(b)
    forward = getattr(F, name)
    y, ctx = getattr(F, f"{name}_forward")(b.zeros(dims, getattr(b.xp, kind)), *args, **options)
    dimsd = tuple(y.shape)
    adjoint = _adjoint(name, Context(ctx.plan, {"weight": ctx.arrays.get("weight")}))

    def apply(function: Callable[[Array], Array], source: Shape, vector: Array) -> Array:
        if backends.of(vector, name="the vector") != b:
            raise TypeError(f"the vector must be an array of {b.name} on {b.device}, as the operator's")
        x = b.xp.astype(vector, b.xp.result_type(vector.dtype, getattr(b.xp, kind)), copy=False)
        return b.xp.reshape(function(b.xp.reshape(x, source)), (-1,))

    def matvec(x: Array) -> Array:
        return apply(lambda a: forward(a, *args, **options), dims, x)

    def rmatvec(y: Array) -> Array:
        return apply(adjoint, dimsd, y)

    operator = module.LinearOperator(
        (math.prod(dimsd), math.prod(dims)),
        matvec=matvec,
        rmatvec=rmatvec,
        matmat=_by_columns(b, matvec, dimsd),
        rmatmat=_by_columns(b, rmatvec, dims),
        dtype=numpy.dtype(kind),
    )
    operator.dims, operator.dimsd = dims, dimsd
    return operator


def _name(op: Any) -> str:
    if not isinstance(op, str) and not callable(op):
        raise TypeError(f"op must be an op of cnnlayers.functional or its name, got {op!r} of type {type(op).__name__}")
    name = op if isinstance(op, str) else getattr(op, "__name__", None)
    if not isinstance(name, str) or (
        name not in F.__all__ if isinstance(op, str) else getattr(F, name, None) is not op
    ):
        raise ValueError(
            f"op must be an op of cnnlayers.functional or its name, one of {', '.join(LINEAR)}; got {op!r}"
        )
    if name not in LINEAR:
        raise ValueError(f"{name} is not a linear op of x: a linear operator is made of {', '.join(LINEAR)}")
    return name


def _entries(shape: Any) -> tuple[Any, ...]:
    entries = entries_of(shape, "shape")
    if entries is None:
        raise TypeError(f"shape must be x's shape, a tuple or list of ints, got {shape!r}")
    return entries


def _dtype(dtype: Any) -> str:
    try:
        name: str = numpy.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(DTYPES)}, got {name}")
    return name


def _backend(values: Sequence[Any]) -> Backend:
    """The owner of the arrays among these values; the selected backend where there is none."""
    arrays = [v for v in values if hasattr(v, "dtype") and hasattr(v, "shape") and not isinstance(v, numpy.generic)]
    b = backends.of(*arrays) if arrays else backends.current()
    if b.name not in MODULES:
        raise TypeError(
            f"linear operators are those of SciPy and CuPy, so arrays must be NumPy's or CuPy's, got {b.name}"
        )
    return b


def _check_linear(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """ValueError for arguments with which the op adds something that does not depend on x."""
    if name == "pad":
        value = args[2] if len(args) > 2 else options.get("value", 0)
        if not isinstance(value, str) and value != 0:
            raise ValueError(f"pad with a value other than 0 is not linear, got value {value!r}")
    elif name in DX and (args[1] if len(args) > 1 else options.get("bias")) is not None:
        raise ValueError(f"{name} with a bias is not linear: leave it out, and add it to what the operator gives")


def _module(b: Backend) -> Any:
    try:
        return importlib.import_module(MODULES[b.name])
    except ImportError as error:
        raise ImportError(
            f"linear_operator on {b.name} arrays needs {MODULES[b.name]}, which does not import ({error}): pip install"
            " 'cnnlayers[scipy]'"
        ) from error


def _plan_for(ctx: Context, dtype: Any) -> CallPlan:
    """A context's plan, for an x of this dtype."""
    plan = ctx.plan
    return plan if plan.dtype == dtype else CallPlan(plan.op, plan.backend, dtype, plan.y_shape, plan.spec)


def _adjoint(name: str, ctx: Context) -> Callable[[Array], Array]:
    """dx as a function of dy, in dy's dtype. For ops with a weight without the weight's gradient."""
    if name not in DX:
        backward = getattr(F, f"{name}_backward")
        return lambda dy: backward(dy, Context(_plan_for(ctx, dy.dtype), ctx.arrays))
    weight: Any = ctx.arrays["weight"]

    @backends.quiet
    def dx(dy: Array) -> Array:
        with backends.on_device_of(dy):
            return DX[name](_plan_for(ctx, dy.dtype), dy, weight)

    return dx


def _by_columns(b: Backend, function: Callable[[Array], Array], result: Shape) -> Callable[[Array], Array]:
    """A function of vectors on each column of a matrix. `result`: the shape of what it gives, before it is flat."""

    def run(matrix: Array) -> Array:
        columns = [function(matrix[:, i]) for i in range(matrix.shape[1])]
        return b.xp.stack(columns, axis=1) if columns else b.empty((math.prod(result), 0), matrix.dtype)

    return run
