"""Launchers of pad.cu and pad_rows.cu: padding and its backward, called as the portable code is.

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
from .launch import PACK_BYTES, Launch, Pass, alignment, cached_plan, contiguous, divisor, grid_size, offset_types

Array = Any
Axis = tuple[int, int, int, int, int]  # pad.cu's: length, out, offset, front, back
WORD = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
STEP = {"constant": 0, "edge": 0, "reflect": -1, "symmetric": -1, "wrap": 1}
FILL = 2  # pad_rows.cu's: in place of the step of a constant
MAX_SUMS = 8  # that a thread adds up at a time: registers are left for no more
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
    plan = cached_plan(_make, b, spec, part, source.dtype, alignment(source), fill)
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
    shapes = tuple(spec.layout.shape), tuple(spec.out_shape)
    source, shape = shapes if part == "forward" else shapes[::-1]
    if not math.prod(shape):
        return Pass(None, shape)
    copies = part == "forward" or spec.mode == "constant"  # that backward is a forward with x and y exchanged
    if part != "forward" and copies:
        axes = [(out, length, -offset, -1, -1) for length, out, offset, _, _ in axes]
    if inner == 1 and _by_rows(axes, copies, size):
        stem, instance, threads, counts = "pad_rows", *_rows(b, spec.mode, dtype, axes, copies, (source, shape))
    else:
        element_bytes = _element_bytes(inner * size, size, aligned_to)
        stem, instance, threads, counts = (
            "pad",
            *_elements(b, dtype, axes, inner, copies, (source, shape), element_bytes),
        )
    filled = [np.frombuffer(fill * (8 // size), np.uint64)[0]] if copies else []
    numbers = [np.int32(n) for n in (STEP[spec.mode], *itertools.chain.from_iterable(axes))]
    return Pass(Launch(stem, instance, grid_size(b, threads), (*filled, *counts, *numbers)), shape)


Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # of what comes in, and of the result
Kernel = tuple[str, int, list[Any]]  # the instance, its threads, and its numbers before the axes


def _by_rows(axes: list[Axis], copies: bool, itemsize: int) -> bool:
    """Whether pad_rows.cu serves: a pack is in two rows at most; a backward that adds gradients does not crop."""
    if copies:
        return axes[-1][1] >= PACK_BYTES // itemsize
    return all(offset <= 0 and out + offset >= length for length, out, offset, *_ in axes)


def _rows(b: Backend, mode: str, dtype: Any, axes: list[Axis], copies: bool, shapes: Shapes) -> Kernel:
    """Of pad_rows.cu."""
    size, count = int(dtype.itemsize), math.prod(shapes[1])
    pack = PACK_BYTES // size
    index, offset = offset_types(*map(math.prod, shapes))
    lengths = [axis[1 if copies else 0] for axis in reversed(axes)]
    if copies:
        instance = instance_name("pad_rows", WORD[size], pack, FILL if mode == "constant" else STEP[mode], index)
        threads = -(-count // pack)
    else:
        pack = min(pack, MAX_SUMS)
        width, lengths[0] = lengths[0], -(-lengths[0] // pack)
        kinds = (pack, math.gcd(width, pack), STEP[mode], axes[0] != MISSING)
        instance = instance_name("pad_rows_backward", _element(b, dtype), *kinds, index)
        count = threads = count // width * lengths[0]
    return instance, threads, [offset(count), *itertools.chain.from_iterable(map(divisor, lengths))]


def _elements(
    b: Backend, dtype: Any, axes: list[Axis], inner: int, copies: bool, shapes: Shapes, aligned_to: int
) -> Kernel:
    """Of pad.cu."""
    size, counts = int(dtype.itemsize), [math.prod(shape) for shape in shapes]
    few = size == 1 or offset_types(*counts)[0] != "unsigned"
    widest = PACK_BYTES if copies else size * (MAX_SUMS // 2 if few else MAX_SUMS)
    element_bytes = _element_bytes(inner * size, size, min(aligned_to, widest))
    sizes = [count * size // element_bytes for count in counts]
    inner = inner * size // element_bytes
    lengths = [inner, *(axis[1 if copies else 0] for axis in reversed(axes))]
    index, offset = offset_types(*sizes)
    if copies:
        word = min(element_bytes, 8)
        instance = instance_name("pad_forward", WORD[word], element_bytes // word, index)
    else:
        instance = instance_name("pad_backward", _element(b, dtype), element_bytes // size, index)
    threads = -(-counts[1] * size // PACK_BYTES)
    return instance, threads, [*map(offset, (*sizes, inner)), *itertools.chain.from_iterable(map(divisor, lengths))]


def _element(b: Backend, dtype: Any) -> str:
    """The C++ type whose values are added up."""
    name = backends.name_of_dtype(b, dtype)
    return CUDA_TYPE[name] if name in backends.FLOATS else WORD[int(dtype.itemsize)]  # unsigned sums wrap


def _element_bytes(cell: int, itemsize: int, aligned_to: int) -> int:
    """Bytes, up to 16, of the widest element that divides a cell and to which the array is aligned."""
    element_bytes = PACK_BYTES
    while element_bytes > itemsize and (cell % element_bytes or element_bytes > aligned_to):
        element_bytes //= 2
    return element_bytes
