"""Launchers of pad.cu: padding and its backward, called as the portable code is.

A mode is handed over as numbers, and axes without padding are counted to their neighbours: one kernel serves all modes,
and rows are as long as they can be.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import compile as kernels
from .arrays import BLOCK, aligned, contiguous, ctype, grid, offsets

Array = Any
Axis = tuple[int, int, int, int, int]  # pad.cu's: length, out, offset, front, back
WIDEST = 16  # bytes that a thread stores at once
WORD = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
FLOATS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
STEP = {"constant": 0, "edge": 0, "reflect": -1, "symmetric": -1, "wrap": 1}
LONGEST = 2**30  # pad.cu's ints hold twice an axis
MISSING = (1, 1, 0, 0, 0)


def refuses(op: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    longest = max(max(length, out) for length, out, *_ in _geometry(spec)[0])
    return f"an axis of {longest} cells; the kernels take fewer than {LONGEST}" if longest >= LONGEST else None


# ----------------------------------------------------------------------------------------------------------------- ops
def pad_forward(b: Backend, spec: Any, x: Array, value: Any) -> Array:
    """y."""
    y = b.empty(spec.out_shape, x.dtype)
    axes, inner = _geometry(spec)
    pattern = np.array(value, x.dtype).tobytes() * (8 // x.dtype.itemsize)
    _move(b, x, y, axes, inner, STEP[spec.mode], np.frombuffer(pattern, np.uint64)[0])
    return y


def pad_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    dx = b.empty(spec.layout.shape, dy.dtype)
    axes, inner = _geometry(spec)
    if spec.mode == "constant":  # forward, x and y having changed places
        _move(b, dy, dx, [(out, length, -offset, -1, -1) for length, out, offset, _, _ in axes], inner, 0, np.uint64(0))
    elif dx.size:
        dy, size = contiguous(b, dy), dy.dtype.itemsize
        unit = _unit(inner * size, size, dy)
        index, arguments = _arguments(dy, dx, axes, inner, unit, STEP[spec.mode])
        element = ctype(b, dy) if backends.dtype_name(b, dy) in backends.FLOATS else WORD[size]  # unsigned sums wrap
        instance = _backward(element, unit // size, index)
        kernels.launch("pad", instance, grid(b, -(-dx.nbytes // WIDEST)), BLOCK, (dy, dx, *arguments))
    return dx


# --------------------------------------------------------------------------------------------------------------- plans
def _geometry(spec: Any) -> tuple[list[Axis], int]:
    """The axes D, H and W from the first padded one to the last, and the elements of one cell."""
    sides = list(spec.sides)
    inner = 1 if spec.layout.channel == 1 else int(spec.layout.channels)
    while sides and _whole(sides[-1]):
        inner *= sides.pop()[1]
    sides = list(itertools.dropwhile(_whole, sides))
    axes = [_axis(spec.mode, length, grow, crop) for _, length, grow, crop in sides]
    return [MISSING] * (3 - len(axes)) + axes, inner


def _whole(side: Any) -> bool:
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


def _unit(cell: int, itemsize: int, *arrays: Array) -> int:
    """Bytes, up to 16, of the widest element that divides a cell and on whose boundaries the arrays lie; those of a
    launcher's own arrays are wider."""
    unit = WIDEST
    while unit > itemsize and (cell % unit or not all(aligned(a, unit) for a in arrays)):
        unit //= 2
    return unit


def _forward(unit: int, index: str) -> str:
    word = min(unit, 8)
    return kernels.name("pad_forward", WORD[word], unit // word, index)


def _backward(element: str, lanes: int, index: str) -> str:
    return kernels.name("pad_backward", element, lanes, index)


def _move(b: Backend, x: Array, y: Array, axes: list[Axis], inner: int, step: int, fill: np.uint64) -> None:
    """Launch pad_forward."""
    if y.size:
        x = contiguous(b, x)
        unit = _unit(inner * x.dtype.itemsize, x.dtype.itemsize, x)
        index, arguments = _arguments(x, y, axes, inner, unit, step)
        kernels.launch("pad", _forward(unit, index), grid(b, -(-y.nbytes // WIDEST)), BLOCK, (x, y, fill, *arguments))


def _arguments(
    source: Array, result: Array, axes: list[Axis], inner: int, unit: int, step: int
) -> tuple[str, list[Any]]:
    """The type of offsets, and what both kernels take after their arrays, of elements of `unit` bytes."""
    sizes = source.nbytes // unit, result.nbytes // unit
    index, offset = offsets(*sizes)
    lanes = inner * result.dtype.itemsize // unit
    numbers = [np.int32(n) for n in (step, *itertools.chain.from_iterable(axes))]
    return index, [*map(offset, (*sizes, lanes)), *numbers]
