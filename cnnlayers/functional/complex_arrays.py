"""Complex arrays in the linear ops: real arrays of the parts, which the ops' real code and kernels compute.

An op that does not mix channels works on a complex array as on a real one with twice the channels: real and imaginary
parts are planes of their own. On NumPy and CuPy that real array is a view, channels last, of the complex one's memory.

A convolution or linear map with a complex weight is a real one, too: x's channels are the pairs (real, imaginary), and
an entry w of the weight becomes the 2 by 2 matrix [[re w, -im w], [im w, re w]]. Its adjoint is that of the complex
map, dx = W^H dy, and its weight's gradient folds into dy * conj(x). A real weight maps each part alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from cnnlayers import backends, kernels
from cnnlayers.backends import Backend
from cnnlayers.specs.arguments import layout
from cnnlayers.specs.windows import windows_of, with_layout

from .arrays import Array, cast, is_complex, writes_in_place
from .call_plan import CallPlan


def _part_dtype(b: Backend, z: Array) -> Any:
    return b.xp.float32 if backends.dtype_name(b, z) == "complex64" else b.xp.float64


def _parts(b: Backend, z: Array) -> tuple[Array, Array]:
    return b.xp.real(z), b.xp.imag(z)


def _from_parts(b: Backend, real: Array, imag: Array) -> Array:
    dtype = b.xp.complex64 if real.dtype == b.xp.float32 else b.xp.complex128
    if writes_in_place(b):
        z = b.empty(tuple(real.shape), dtype)
        z.real[...] = real
        z.imag[...] = imag
        return z
    imaginary = cast(b, imag, dtype) * 1j  # the array API standard has no way to write to a part
    for value in (math.inf, -math.inf, math.nan):  # whose product with 1j would have NaN for its real part
        here = b.xp.isnan(imag) if value != value else imag == value
        imaginary = b.xp.where(here, b.full((), complex(0, value), dtype), imaginary)
    return cast(b, real, dtype) + imaginary


def _in_c_order(b: Backend, array: Array) -> Array:
    if array.flags.c_contiguous:
        return array
    copy = b.empty(tuple(array.shape), array.dtype)
    copy[...] = array
    return copy


def _pairs(b: Backend, z: Array, axis: int) -> Array:
    """A real array with the pairs (real, imaginary) side by side along an axis, which is twice as long."""
    at = axis % z.ndim
    if at == z.ndim - 1 and writes_in_place(b):
        return _in_c_order(b, z).view(_part_dtype(b, z))
    both = b.xp.stack(_parts(b, z), axis=at + 1)
    return b.xp.reshape(both, (*z.shape[:at], 2 * z.shape[at], *z.shape[at + 1 :]))


def _unpaired(b: Backend, a: Array, axis: int) -> Array:
    """The complex array of `_pairs`."""
    at = axis % a.ndim
    if at == a.ndim - 1 and writes_in_place(b):
        return _in_c_order(b, a).view(b.xp.complex64 if a.dtype == b.xp.float32 else b.xp.complex128)
    both = b.xp.reshape(a, (*a.shape[:at], a.shape[at] // 2, 2, *a.shape[at + 1 :]))
    real, imag = ((slice(None),) * (at + 1) + (part, ...) for part in (0, 1))
    return _from_parts(b, both[real], both[imag])


# ------------------------------------------------------------------------------------------ ops that mix no channels
@functools.lru_cache(maxsize=256)  # a limit on their number is enough: results have a fixed size
def _of_planes(spec: Any) -> Any:
    """The spec on the real array: (samples * channels, *spatial, 2) for channels first, else twice the channels."""
    first, second, *others = windows_of(spec).layout.shape
    last = windows_of(spec).layout.channel > 1
    shape = (first, second, *others[:-1], 2 * others[-1]) if last else (first * second, *others, 2)
    return with_layout(spec, layout(shape, "channels_last"))


def run_planes(plan: CallPlan, step: str, portable: Callable[..., Array], x: Array, *rest: Any) -> Array:
    """What `plan.run` computes, x being real or complex; for ops that compute each plane by itself."""
    if not plan.complex:
        return plan.run(step, portable, x, *rest)
    b, spec = plan.backend, plan.spec
    first = windows_of(spec).layout.channel == 1
    samples, channels, *others = x.shape
    z = b.xp.reshape(x, (samples * channels, *others, 1)) if first else x
    planes, real = _pairs(b, z, -1), _of_planes(spec)
    run = kernels.find(step, b, real, planes) or portable
    y = _unpaired(b, run(b, real, planes, *rest), -1)
    return b.xp.reshape(y, (samples, channels, *y.shape[1:-1])) if first else y


# ---------------------------------------------------------------------------------------- ops with a weight and a bias
def _channel_axis(spec: Any) -> int:
    return -1 if spec is None else int(spec.window.layout.channel)


@functools.lru_cache(maxsize=256)  # a limit on their number is enough: results have a fixed size
def _of_pairs(spec: Any) -> Any:
    """A convolution's spec with twice the channels on both sides; a linear map has none."""
    if spec is None:
        return None
    lay = spec.window.layout
    doubled = dataclasses.replace(lay, shape=lay.with_spatial(lay.lengths, 2 * spec.channels))
    return dataclasses.replace(with_layout(spec, doubled), filters=2 * spec.filters)


def _matrix(b: Backend, weight: Array) -> Array:
    """A complex weight (rows, columns, ...) as the real one of the pairs, (2 rows, 2 columns, ...)."""
    real, imag = _parts(b, weight)
    both = b.xp.stack([b.xp.stack([real, -imag], axis=2), b.xp.stack([imag, real], axis=2)], axis=1)
    rows, columns, *kernel = weight.shape
    return b.xp.reshape(both, (2 * rows, 2 * columns, *kernel))


def _folded(b: Backend, gradient: Array) -> Array:
    """The gradient of a complex weight from that of its matrix."""
    rows, columns, *kernel = gradient.shape
    g = b.xp.reshape(gradient, (rows // 2, 2, columns // 2, 2, *kernel))
    ((rr, ri), (ir, ii)) = [[g[:, i, :, j, ...] for j in (0, 1)] for i in (0, 1)]
    return _from_parts(b, rr + ii, ir - ri)


def _bias_parts(b: Backend, bias: Array | None) -> tuple[Array | None, Array | None]:
    if bias is None or not is_complex(b, bias.dtype):
        return bias, None
    return _parts(b, bias)


def _bias_pairs(b: Backend, bias: Array | None) -> Array | None:
    if bias is None or is_complex(b, bias.dtype):
        return None if bias is None else _pairs(b, bias, 0)
    return b.xp.reshape(b.xp.stack([bias, b.xp.zeros_like(bias)], axis=1), (-1,))


def run_weighted(plan: CallPlan, real: Callable[..., Array], x: Array, weight: Array, bias: Array | None) -> Array:
    """`real(b, spec, x, weight, bias)`, a convolution's or linear map's forward, for real and complex arrays."""
    b, spec = plan.backend, plan.spec
    if not plan.complex:
        return real(b, spec, x, weight, bias)
    if not is_complex(b, weight.dtype):
        parts = zip(_parts(b, x), _bias_parts(b, bias), strict=True)
        return _from_parts(b, *(real(b, spec, part, weight, part_bias) for part, part_bias in parts))
    axis = _channel_axis(spec)
    y = real(b, _of_pairs(spec), _pairs(b, x, axis), _matrix(b, weight), _bias_pairs(b, bias))
    return _unpaired(b, y, axis)


def run_weighted_backward(
    plan: CallPlan,
    real: Callable[..., tuple[Array | None, Array]],
    dy: Array,
    x: Array,
    weight: Array,
    needs_dx: bool,
) -> tuple[Array | None, Array]:
    """`real(b, spec, dy, x, weight, needs_dx)`, the backward to `run_weighted`: dx and dweight."""
    b, spec = plan.backend, plan.spec
    if not plan.complex:
        return real(b, spec, dy, x, weight, needs_dx)
    if not is_complex(b, weight.dtype):
        found = [real(b, spec, *parts, weight, needs_dx) for parts in zip(_parts(b, dy), _parts(b, x), strict=True)]
        (dx, dweight), (dx_imag, dweight_imag) = found
        return None if dx is None else _from_parts(b, dx, dx_imag), dweight + dweight_imag
    axis = _channel_axis(spec)
    dx, dweight = real(b, _of_pairs(spec), _pairs(b, dy, axis), _pairs(b, x, axis), _matrix(b, weight), needs_dx)
    return None if dx is None else _unpaired(b, dx, axis), _folded(b, dweight)


def conjugate(b: Backend, array: Array) -> Array:
    """The complex conjugate; a real array as it is."""
    return b.xp.conj(array) if is_complex(b, array.dtype) else array


def cast_gradient(b: Backend, gradient: Array, dtype: Any) -> Array:
    """A gradient in its parameter's dtype: of a complex one the real part, where the parameter is real."""
    if is_complex(b, gradient.dtype) and not is_complex(b, dtype):
        gradient = b.xp.real(gradient)
    return cast(b, gradient, dtype)
