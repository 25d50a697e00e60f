"""Launchers of pad.cu: padding and its backward, called as the portable code is.

A mode is passed as numbers, and axes without padding are merged into their neighbours: one kernel serves all modes, and
rows are as long as possible.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .compile import CUDA_TYPE, instance_name
from .launch import BLOCK, PACK_BYTES, Launch, Pass, alignment, contiguous, grid_size, offset_types, prepared

Array = Any
Axis = tuple[int, int, int, int, int]  # pad.cu's: length, out, offset, front, back
WORD = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
STEP = {"constant": 0, "edge": 0, "reflect": -1, "symmetric": -1, "wrap": 1}
MAX_LENGTH = 2**30  # pad.cu's ints hold twice an axis
MISSING = (1, 1, 0, 0, 0)


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    longest = max(max(length, out) for length, out, *_ in _geometry(spec)[0])
    return f"an axis of {longest} cells; the kernels take fewer than {MAX_LENGTH}" if longest >= MAX_LENGTH else None


# ----------------------------------------------------------------------------------------------------------------- ops
def pad_forward(b: Backend, spec: Any, x: Array, value: Any) -> Array:
    """y."""
    return _run(b, spec, "forward", x, np.array(value, x.dtype).tobytes())


def pad_backward(b: Backend, spec: Any, dy: Array) -> Array:
    """dx."""
    return _run(b, spec, "backward", dy, bytes(dy.dtype.itemsize))


def _run(b: Backend, spec: Any, part: str, source: Array, fill: bytes) -> Array:
    source = contiguous(b, source)
    plan = prepared(_make, b, spec, part, source.dtype, alignment(source), fill)
    result = b.empty(plan.shape, source.dtype)
    if plan.launch is not None:
        plan.launch(source, result)
    return result


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


def _make(b: Backend, spec: Any, part: str, dtype: Any, aligned_to: int, fill: bytes) -> Pass:
    """`aligned_to`: bytes to which the array that comes in is aligned; the result is new. `fill`: an element."""
    (axes, inner), size = _geometry(spec), int(dtype.itemsize)
    shape = tuple(spec.out_shape if part == "forward" else spec.layout.shape)
    if not math.prod(shape):
        return Pass(None, shape)
    element_bytes = _element_bytes(inner * size, size, aligned_to)
    copies = part == "forward" or spec.mode == "constant"  # that backward is a forward with x and y exchanged
    if part != "forward" and copies:
        axes = [(out, length, -offset, -1, -1) for length, out, offset, _, _ in axes]
    sizes = [math.prod(s) * size // element_bytes for s in (spec.layout.shape, spec.out_shape)]
    index, offset = offset_types(*sizes)
    numbers = [np.int32(n) for n in (STEP[spec.mode], *itertools.chain.from_iterable(axes))]
    counts = (sizes if part == "forward" else sizes[::-1]) + [inner * size // element_bytes]
    scalars = (*map(offset, counts), *numbers)
    if copies:
        word = min(element_bytes, 8)
        instance = instance_name("pad_forward", WORD[word], element_bytes // word, index)
        scalars = (np.frombuffer(fill * (8 // size), np.uint64)[0], *scalars)
    else:
        name = backends.name_of_dtype(b, dtype)
        element = CUDA_TYPE[name] if name in backends.FLOATS else WORD[size]  # unsigned sums wrap
        instance = instance_name("pad_backward", element, element_bytes // size, index)
    threads = -(-math.prod(shape) * size // PACK_BYTES)
    return Pass(Launch("pad", instance, grid_size(b, threads), BLOCK, scalars), shape)


def _element_bytes(cell: int, itemsize: int, aligned_to: int) -> int:
    """Bytes, up to 16, of the widest element that divides a cell and to which the array is aligned."""
    element_bytes = PACK_BYTES
    while element_bytes > itemsize and (cell % element_bytes or element_bytes > aligned_to):
        element_bytes //= 2
    return element_bytes
