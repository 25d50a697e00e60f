"""The form in which a convolution is computed, and the kernels for the whole of one.

A *form* is an algorithm together with the code that runs it: direct loops, Winograd's, columns (im2col) and a matrix
product, a matrix product alone, elementwise products, or cuDNN's. A *step* is one of the three functions of
correlation.py: "correlate", "correlate_adjoint" or "weight_gradient".
"""

from __future__ import annotations

from typing import Any

from cnnlayers import kernels
from cnnlayers.backends import Backend
from cnnlayers.specs.conv import DIRECT_POINTWISE, SMALL_POINTWISE, Conv

from .arrays import Array


def form_of(b: Backend, spec: Conv, dtype: Any, step: str) -> str:
    """The form of a convolution's step to try first, by shape, dtype, backend and the Winograd option.

    Where its kernel cannot serve, "point", "depthwise" or "columns" computes the call, as the shape has it.

    On CuPy: "cudnn", which serves where the extra is installed and cuDNN has a deterministic engine.

    "point": a matrix product of the array as it is. On NumPy with kernels: "direct", vector loops (1.1 to 4 times as
    fast as columns, and with the same bits on every CPU; kernels/cpu/conv_direct.py says what its vectors go over);
    "winograd" for 3×3 with stride 1, where specs/conv.py says that it pays. "depthwise": elementwise products, tap by
    tap. "columns": im2col and a matrix product.
    """
    if b.name == "cupy":
        return "cudnn"
    if spec.pointwise and not spec.depthwise:
        vectors = spec.targets(step) >= DIRECT_POINTWISE or spec.flops < SMALL_POINTWISE
        return "direct" if b.name == "numpy" and vectors else "point"
    if b.name == "numpy":
        winograd = step in spec.winograd and dtype == b.xp.float32 and kernels.winograd_allowed()
        return "winograd" if winograd else "direct"
    return "depthwise" if spec.depthwise else "columns"


def by_kernel(step: str, b: Backend, spec: Conv, *arrays: Array) -> Array | None:
    """A step's result by a kernel for the whole of it, or None: then the code of correlation.py computes it."""
    form = form_of(b, spec, arrays[0].dtype, step)
    if form == "cudnn":
        launcher = kernels.find(f"cudnn_{step}", b, spec, *arrays, required=False)
        return None if launcher is None else launcher(b, spec, *arrays)
    return kernels.attempt(f"{form}_{step}", b, spec, *arrays) if form in ("direct", "winograd") else None
