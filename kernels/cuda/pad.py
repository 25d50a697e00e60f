"""Launchers of pad.cu: padding and its backward, called as the portable code is.

A mode is passed as numbers, and axes without padding are merged into their neighbours: one kernel serves all modes, and
rows are as long as possible.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import instance_name
from .launch import BLOCK, aligned, contiguous, cuda_type, grid_size, launch, offset_types

Array = Any
Axis = tuple[int, int, int, int, int]  # pad.cu's: length, out, offset, front, back
PACK_BYTES = 16  # the most bytes that one access loads or stores
WORD = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
STEP = {"constant": 0, "edge": 0, "reflect": -1, "symmetric": -1, "wrap": 1}
MAX_LENGTH = 2**30  # pad.cu's ints hold twice an axis
MISSING = (1, 1, 0, 0, 0)


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    longest = max(max(length, out) for length, out, *_ in _geometry(spec)[0])
    return f"an axis of {longest} cells; the kernels take fewer than {MAX_LENGTH}" if longest >= MAX_LENGTH else None


# ----------------------------------------------------------------------------------------------------------------- ops
def pad_forward(b: Backend, spec: Any, x: Array, value: Any) -> Array:
    """y."""
    y = b.empty(spec.out_shape, x.dtype)
    axes, inner = _geometry(spec)
    pattern = np.array(value, x.dtype).tobytes() * (8 // x.dtype.itemsize)
    _launch_forward(b, x, y, axes, inner, STEP[spec.mode], np.frombuffer(pattern, np.uint64)[0])
    return y


def pad_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    dx = b.empty(spec.layout.shape, dy.dtype)
    axes, inner = _geometry(spec)
    if spec.mode == "constant":  # the forward, with x and y exchanged
        _launch_forward(
            b, dy, dx, [(out, length, -offset, -1, -1) for length, out, offset, _, _ in axes], inner, 0, np.uint64(0)
        )
    elif dx.size:
        dy, size = contiguous(b, dy), dy.dtype.itemsize
        element_bytes = _element_bytes(inner * size, size, dy)
        index, arguments = _arguments(dy, dx, axes, inner, element_bytes, STEP[spec.mode])
        element = (
            cuda_type(b, dy) if backends.dtype_name(b, dy) in backends.FLOATS else WORD[size]
        )  # unsigned sums wrap
        instance = _backward(element, element_bytes // size, index)
        launch("pad", instance, grid_size(b, -(-dx.nbytes // PACK_BYTES)), BLOCK, (dy, dx, *arguments))
    return dx


# --------------------------------------------------------------------------------------------------------------- plans
def _geometry(spec: Any) -> tuple[list[Axis], int]:
    """The axes D, H and W from the first padded one to the last, and the elements of one cell."""
    sides = list(spec.sides)
    inner = 1 if spec.layout.channel == 1 else int(spec.layout.channels)
    while sides and _unpadded(sides[-1]):
        inner *= sides.pop()[1]
    sides = list(itertools.dropwhile(_unpadded, sides))
    axes = [_axis(spec.mode, length, grow, crop) for _, length, grow, crop in sides]
    return [MISSING] * (3 - len(axes)) + axes, inner


def _unpadded(side: Any) -> bool:
    _, _, grow, crop = side
    return not any((*grow, *crop))


def _axis(mode: str, length: int, grow: tuple[int, int], crop: tuple[int, int]) -> Axis:
    period = length - sum(crop)
    front, back = {
        "constant": (-1, -1),
        "edge": (0, length - 1),
        "reflect": (1, length - 2),
        "symmetric": (0, length - 1),
        "wrap": (period - 1, length - period),
    }[mode]
    return length, period + sum(grow), crop[0] - grow[0], front, back


def _element_bytes(cell: int, itemsize: int, *arrays: Array) -> int:
    """Bytes, up to 16, of the widest element that divides a cell and to which the arrays are aligned. New arrays always
    are."""
    element_bytes = PACK_BYTES
    while element_bytes > itemsize and (cell % element_bytes or not all(aligned(a, element_bytes) for a in arrays)):
        element_bytes //= 2
    return element_bytes


def _forward(element_bytes: int, index: str) -> str:
    word = min(element_bytes, 8)
    return instance_name("pad_forward", WORD[word], element_bytes // word, index)


def _backward(element: str, lanes: int, index: str) -> str:
    return instance_name("pad_backward", element, lanes, index)


def _launch_forward(b: Backend, x: Array, y: Array, axes: list[Axis], inner: int, step: int, fill: np.uint64) -> None:
    """Launch pad_forward."""
    if y.size:
        x = contiguous(b, x)
        element_bytes = _element_bytes(inner * x.dtype.itemsize, x.dtype.itemsize, x)
        index, arguments = _arguments(x, y, axes, inner, element_bytes, step)
        launch(
            "pad",
            _forward(element_bytes, index),
            grid_size(b, -(-y.nbytes // PACK_BYTES)),
            BLOCK,
            (x, y, fill, *arguments),
        )


def _arguments(
    source: Array, result: Array, axes: list[Axis], inner: int, element_bytes: int, step: int
) -> tuple[str, list[Any]]:
    """The type of offsets, and what both kernels take after their arrays, of elements of `element_bytes` bytes."""
    sizes = source.nbytes // element_bytes, result.nbytes // element_bytes
    index, offset = offset_types(*sizes)
    lanes = inner * result.dtype.itemsize // element_bytes
    numbers = [np.int32(n) for n in (step, *itertools.chain.from_iterable(axes))]
    return index, [*map(offset, (*sizes, lanes)), *numbers]
