"""Launchers of depthwise_loops.py: depthwise convolution, one channel a group, of float32 and float64, channels first,
one or two axes.

A sheet's zeros would make NaN of what is not finite, where the definition has no product. Then the launchers raise
`UnsuitableData`, and array code computes the call.

Large images go in bands of rows, so that sheets stay in a core's cache. Samples and channels are shared out between
threads; the weight's gradient by channel alone, so that nobody adds to what another does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.kernels import UnsuitableData

from . import depthwise_loops as loops
from .compile import chunks, flat

Array = Any

LINE = {"length": 1, "out": 1, "kernel": 1, "stride": 1, "dilation": 1, "before": 0}  # the axis that one axis lacks
BAND = 1 << 16  # bytes of a band's sheets, about


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if spec.last or spec.ndim > 2:
        return f"{op} is for channels first and at most two spatial axes"
    if any(a is not None and a.dtype not in (np.float32, np.float64) for a in arrays):
        return f"{op} is compiled for float32 and float64"
    return None


def depthwise_correlate(b: Backend, spec: Any, image: Array, weight: Array, bias: Array | None = None) -> Array:
    """`correlate`'s maps. Raises UnsuitableData for a weight that is not finite."""
    _check_finite(weight, "weight")
    maps = backends.result(spec.maps_shape, image.dtype)
    bias = np.zeros(spec.filters, image.dtype) if bias is None else flat(bias)
    arrays = flat(image), flat(weight), bias, flat(maps)
    _by_plane(loops.correlate, spec, arrays, image.nbytes + maps.nbytes)
    return maps


def depthwise_spread(b: Backend, spec: Any, maps: Array, weight: Array, bias: Array | None = None) -> Array:
    """`spread`'s image. Raises UnsuitableData for a weight that is not finite."""
    _check_finite(weight, "weight")
    image = backends.result(spec.window.layout.shape, maps.dtype)
    bias = np.zeros(spec.channels, maps.dtype) if bias is None else flat(bias)
    run: Any = loops.spread
    turned = _turned(spec)
    if turned is not None:
        run, spec = loops.correlate, turned
        weight = np.reshape(weight, (spec.filters, -1))[:, ::-1]
    _by_plane(run, spec, (flat(maps), flat(weight), bias, flat(image)), image.nbytes + maps.nbytes)
    return image


def _turned(spec: Any) -> Any:
    """The convolution that leads from the maps to the image, if there is one: that of the kernel turned round."""
    if spec.weight_shape[1] > 1 or any(a.stride > 1 for a in spec.window.axes):
        return None
    axes = []
    for a in spec.window.axes:
        before = a.dilation * (a.kernel - 1) - a.before
        axes.append(dataclasses.replace(a, length=a.out, out=a.length, before=before))
    return dataclasses.replace(spec, window=dataclasses.replace(spec.window, axes=tuple(axes)))


def depthwise_weight_gradient(b: Backend, spec: Any, image: Array, maps: Array) -> Array:
    """`weight_gradient`'s result; sums of a run of windows are in the image's dtype, those over runs and planes in
    float64. Raises UnsuitableData if a number is not finite."""
    sizes, seen, room = _sizes(spec, image.itemsize)
    dweight = np.zeros((spec.filters, 1, *spec.window.kernel))
    arrays, channels = (flat(image), flat(maps), flat(dweight)), spec.channels

    def some(start: int, stop: int) -> None:
        with backends.workspace(image.dtype, (room,)) as (sheets,):
            loops.weight_gradient(*arrays, sizes, seen, start, stop, len(image), channels, sheets)

    chunks(channels, (image.nbytes + maps.nbytes), some)
    _check_finite(dweight, "weight's gradient")
    return dweight.astype(image.dtype)


def _check_finite(numbers: Array, name: str) -> None:
    if not np.isfinite(numbers).all():
        raise UnsuitableData(
            f"the {name} holds NaN or infinity, which would spread to other cells; in mode 'auto' array code serves"
        )


def _by_plane(run: Any, spec: Any, arrays: tuple[Array, ...], nbytes: int) -> None:
    dtype = arrays[0].dtype
    sizes, seen, room = _sizes(spec, dtype.itemsize)

    def some(start: int, stop: int) -> None:
        with backends.workspace(dtype, (room,)) as (sheets,):
            run(*arrays, sizes, seen, start, stop, spec.channels, sheets)

    chunks(spec.window.layout.shape[0] * spec.channels, nbytes, some)


@backends.planned
def _sizes(spec: Any, itemsize: int) -> tuple[Array, Array, int]:
    """What the kernels are told: `sizes`; for each column of the kernel the first window that sees a cell, the one
    after the last, and the cell that window 0 sees, be it there or not; and the elements of a band's sheets."""
    across = spec.window.axes[-1]
    down = spec.window.axes[0] if spec.ndim == 2 else dataclasses.replace(across, **LINE)
    beyond = (down.kernel - 1) * down.dilation // down.stride  # rows that lie a stride apart, but for one a window
    band = min(down.out, max(1, BAND // (itemsize * across.kernel * down.stride * across.out) - beyond))
    pitch = band + beyond
    shape = (down.length, across.length, down.out, across.out, down.kernel, across.kernel, spec.weight_shape[1])
    sizes = np.array([*shape, down.stride, across.stride, down.dilation, down.before, band, pitch], np.int64)
    cell = np.arange(across.kernel) * across.dilation - across.before
    first = np.clip(-(cell // across.stride), 0, across.out)
    last = np.clip((across.length - 1 - cell) // across.stride + 1, first, across.out)
    return (
        sizes,
        np.stack([first, last, cell], axis=1).astype(np.int64),
        across.kernel * down.stride * pitch * across.out,
    )
