"""Launchers of depthwise_loops.py: depthwise convolution (one channel a group) of float32 and float64, channels first,
one or two spatial axes.

The loops multiply the zeros of the padding, so a weight or cell that is not finite would give NaN where the definition
has no product. The launchers then raise `UnsuitableData`, and array code computes the call.

Large images are computed in bands of rows, so that a band's sheets fit a core's cache. Chunks are samples and channels;
for the weight's gradient channels alone, so that no two threads add to the same weight."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.kernels import UnsuitableData

from . import depthwise_loops as loops
from .parallel import flat, parallel_chunks

Array = Any

MISSING_AXIS = {
    "length": 1,
    "out": 1,
    "kernel": 1,
    "stride": 1,
    "dilation": 1,
    "before": 0,
}  # for a missing vertical axis
BAND_BYTES = 1 << 16  # of a band's sheets, about


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if spec.last or spec.ndim > 2:
        return f"{op} is for channels first and at most two spatial axes"
    if any(a is not None and a.dtype not in (np.float32, np.float64) for a in arrays):
        return f"{op} is compiled for float32 and float64"
    return None


def depthwise_correlate(b: Backend, spec: Any, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """The maps of `correlate`. Raises UnsuitableData for a weight that is not finite."""
    _check_finite(weight, "weight")
    maps = backends.result(spec.maps_shape, image.dtype)
    bias = np.zeros(spec.filters, image.dtype) if bias is None else flat(bias)
    arrays = flat(image), flat(weight), bias, flat(maps)
    _by_plane(loops.correlate, spec, arrays, image.nbytes + maps.nbytes)
    return maps


def depthwise_correlate_adjoint(b: Backend, spec: Any, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """The image of the adjoint of `correlate`. Raises UnsuitableData for a weight that is not finite."""
    _check_finite(weight, "weight")
    image = backends.result(spec.window.layout.shape, maps.dtype)
    bias = np.zeros(spec.channels, maps.dtype) if bias is None else flat(bias)
    run: Any = loops.correlate_adjoint
    flipped = _flipped(spec)
    if flipped is not None:
        run, spec = loops.correlate, flipped
        weight = np.reshape(weight, (spec.filters, -1))[:, ::-1]
    _by_plane(run, spec, (flat(maps), flat(weight), bias, flat(image)), image.nbytes + maps.nbytes)
    return image


def _flipped(spec: Any) -> Any:
    """The convolution with the flipped kernel, from the maps to the image; None if the adjoint is not such a
    convolution."""
    if spec.weight_shape[1] > 1 or any(a.stride > 1 for a in spec.window.axes):
        return None
    axes = []
    for a in spec.window.axes:
        before = a.dilation * (a.kernel - 1) - a.before
        axes.append(dataclasses.replace(a, length=a.out, out=a.length, before=before))
    return dataclasses.replace(spec, window=dataclasses.replace(spec.window, axes=tuple(axes)))


def depthwise_weight_gradient(b: Backend, spec: Any, image: Array, maps: Array) -> Array:
    """The weight's gradient. Raises UnsuitableData if a number is not finite.

    The sums of RUN_WINDOWS windows are in the image's dtype, the sums of these in float64."""
    sizes, ranges, workspace_size = _loop_arguments(spec, image.itemsize)
    dweight = np.zeros((spec.filters, 1, *spec.window.kernel))
    arrays, channels = (flat(image), flat(maps), flat(dweight)), spec.channels

    def compute(start: int, stop: int) -> None:
        with backends.workspace(image.dtype, (workspace_size,)) as (sheets,):
            loops.weight_gradient(*arrays, sizes, ranges, start, stop, len(image), channels, sheets)

    parallel_chunks(channels, (image.nbytes + maps.nbytes), compute)
    _check_finite(dweight, "weight's gradient")
    return dweight.astype(image.dtype)


def _check_finite(numbers: Array, name: str) -> None:
    if not np.isfinite(numbers).all():
        raise UnsuitableData(
            f"the {name} has NaN or infinity, which would change other cells; in mode 'auto' array code computes it"
        )


def _by_plane(run: Any, spec: Any, arrays: tuple[Array, ...], nbytes: int) -> None:
    """Run a loop over chunks of planes."""
    dtype = arrays[0].dtype
    sizes, ranges, workspace_size = _loop_arguments(spec, dtype.itemsize)

    def compute(start: int, stop: int) -> None:
        with backends.workspace(dtype, (workspace_size,)) as (sheets,):
            run(*arrays, sizes, ranges, start, stop, spec.channels, sheets)

    parallel_chunks(spec.window.layout.shape[0] * spec.channels, nbytes, compute)


@backends.planned
def _loop_arguments(spec: Any, itemsize: int) -> tuple[Array, Array, int]:
    """`sizes`; `ranges`, for each column of the kernel the first window that sees a cell, the one after the last, and
    the cell under window 0, which may be outside the image; and the elements of a band's sheets."""
    horizontal = spec.window.axes[-1]
    vertical = spec.window.axes[0] if spec.ndim == 2 else dataclasses.replace(horizontal, **MISSING_AXIS)
    extra_rows = (
        (vertical.kernel - 1) * vertical.dilation // vertical.stride
    )  # rows of a sheet besides one for each window
    band = min(
        vertical.out,
        max(1, BAND_BYTES // (itemsize * horizontal.kernel * vertical.stride * horizontal.out) - extra_rows),
    )
    pitch = band + extra_rows
    shape = (
        vertical.length,
        horizontal.length,
        vertical.out,
        horizontal.out,
        vertical.kernel,
        horizontal.kernel,
        spec.weight_shape[1],
    )
    sizes = np.array(
        [*shape, vertical.stride, horizontal.stride, vertical.dilation, vertical.before, band, pitch], np.int64
    )
    cell = np.arange(horizontal.kernel) * horizontal.dilation - horizontal.before
    first = np.clip(-(cell // horizontal.stride), 0, horizontal.out)
    last = np.clip((horizontal.length - 1 - cell) // horizontal.stride + 1, first, horizontal.out)
    return (
        sizes,
        np.stack([first, last, cell], axis=1).astype(np.int64),
        horizontal.kernel * vertical.stride * pitch * horizontal.out,
    )
