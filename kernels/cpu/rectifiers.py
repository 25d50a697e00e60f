"""ReLU and leaky ReLU on vectors. Arguments are the portable code's.

Both save one bit an element, in uint8: bit i % 8 of byte i // 8, as numpy.packbits with bitorder "little" has it. Half
types are computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from .elementwise import in_blocks, is_aligned, is_large, refuses, whole_stop
from .jit import kernel
from .parallel import flat, prepared
from .vectors import (
    LANES,
    as_bits,
    bit_and,
    bit_not,
    broadcast,
    equal,
    fence,
    first_lanes,
    integers,
    less,
    less_equal,
    load,
    load_bits,
    load_first,
    load_int,
    load_int_first,
    mul,
    select,
    store,
    store_bits,
    store_first,
    stream,
)

__all__ = ["leaky_relu_backward", "leaky_relu_forward", "refuses", "relu", "relu_backward", "relu_forward"]

Array = Any
Vector = Any
U = np.uintp


# --------------------------------------------------------------------------------------------------------------- loops
@kernel()
def read_last_bits(bits: Array, i: int, stop: int) -> Vector:
    """The mask of elements i to stop, fewer than 16; i is a multiple of 16."""
    two = np.zeros(2, np.uint8)
    for j in range((stop - i + 7) // 8):
        two[j] = bits[i // 8 + j]
    return load_bits(two, 0)


def _make_rectifier(how: str, save: bool) -> Any:
    """how: "leaky", "floats", or "integers": relu of a float's bits as signed integers, so that no NaN is changed and a
    half needs no conversion."""

    @kernel(inlined=True)
    def rectified(x: Array, i: Any, count: int, number: Any) -> tuple[Vector, Vector]:
        """The mask of what passes, x > 0 (leaky ReLU) or not x <= 0, and y. number: the slope, or minus infinity."""
        if how == "integers":  # negative integers are the negative floats, and above minus infinity the NaNs
            bits, zero = load_int(x, i) if count >= LANES else load_int_first(x, i, count), integers(0)
            passes = bit_and(less(integers(number), bits), bit_not(equal(bits, zero)))
            return passes, select(passes, bits, zero)
        value, nothing = load(x, i) if count >= LANES else load_first(x, i, count), broadcast(x, 0.0)
        passes = less(nothing, value) if how == "leaky" else bit_not(less_equal(value, nothing))
        return passes, select(passes, value, mul(value, broadcast(x, number)) if how == "leaky" else nothing)

    @kernel()
    def rectifier(x: Array, y: Array, bits: Array, number: Any, past_caches: bool, start: int, stop: int) -> None:
        """y, and the bits of where x passes. The last byte ends with zeros."""
        fours = stop - (stop - start) % (4 * LANES)
        for i in range(U(start), U(fours), U(4 * LANES)):  # storing bits only after four vectors takes half the time
            p0, y0 = rectified(x, i, LANES, number)
            p1, y1 = rectified(x, i + U(LANES), LANES, number)
            p2, y2 = rectified(x, i + U(2 * LANES), LANES, number)
            p3, y3 = rectified(x, i + U(3 * LANES), LANES, number)
            if past_caches:
                stream(y, i, y0)
                stream(y, i + U(LANES), y1)
                stream(y, i + U(2 * LANES), y2)
                stream(y, i + U(3 * LANES), y3)
            else:
                store(y, i, y0)
                store(y, i + U(LANES), y1)
                store(y, i + U(2 * LANES), y2)
                store(y, i + U(3 * LANES), y3)
            if save:
                store_bits(bits, i // U(8), p0)
                store_bits(bits, i // U(8) + U(2), p1)
                store_bits(bits, i // U(8) + U(4), p2)
                store_bits(bits, i // U(8) + U(6), p3)
        if past_caches:
            fence()
        two = np.empty(2 if save else 0, np.uint8)
        for i in range(fours, stop, LANES):
            count = min(LANES, stop - i)
            passes, value = rectified(x, i, count, number)
            store_first(y, i, value, count)
            if save:
                store_bits(two, 0, bit_and(passes, first_lanes(count)))
                for j in range((count + 7) // 8):
                    bits[i // 8 + j] = two[j]

    return rectifier


RELU = {(how, save): _make_rectifier(how, save) for how in ("integers", "floats") for save in (False, True)}
leaky_relu_saving = _make_rectifier("leaky", True)


def _make_masked(how: str) -> Any:
    @kernel()
    def pick(dy: Array, i: int, count: int, passes: Vector, slope: float) -> Vector:
        """dx. Integers are taken as they are, so that no NaN is changed."""
        if how == "integers":
            whole = load_int(dy, i) if count >= LANES else load_int_first(dy, i, count)
            return select(passes, whole, integers(0))
        value = load(dy, i) if count >= LANES else load_first(dy, i, count)
        return select(passes, value, mul(value, broadcast(dy, slope)) if how == "leaky" else broadcast(dy, 0.0))

    @kernel()
    def masked(dy: Array, bits: Array, dx: Array, slope: float, past_caches: bool, start: int, stop: int) -> None:
        """dx = dy where the bit is 1, else slope * dy or 0."""
        whole = whole_stop(start, stop)
        for i in range(start, whole, LANES):
            value = pick(dy, i, LANES, load_bits(bits, i // 8), slope)
            if past_caches:
                stream(dx, i, value)
            else:
                store(dx, i, value)
        if past_caches:
            fence()
        if whole < stop:
            value = pick(dy, whole, stop - whole, read_last_bits(bits, whole, stop), slope)
            store_first(dx, whole, value, stop - whole)

    return masked


masked, masked_float64, leaky_gradient = _make_masked("integers"), _make_masked("float64"), _make_masked("leaky")


# ------------------------------------------------------------------------------------------------------------ launches
def _rectified(
    kernel_function: Any, x: Array, kind: Any, number: Any, save: bool
) -> Callable[[Array], tuple[Array, Array]]:
    """A function of arrays like x, which the kernel takes as numbers of this kind: y, and the bits (none unless
    `save`)."""
    new, large, nbytes = backends.new_result(x.shape, x.dtype), is_large(x), -(-x.size // 8) if save else 0
    run_in_blocks = in_blocks((x, x))

    def run(x: Array) -> tuple[Array, Array]:
        y, bits = new(), np.empty(nbytes, np.uint8)
        past_caches = large and is_aligned(y)
        run_in_blocks(kernel_function, flat(x).view(kind), y.ravel().view(kind), bits, number, past_caches)
        return y, bits

    return run


def _relu(x: Array, save: bool) -> Callable[[Array], tuple[Array, Array]]:
    if x.dtype == np.float64:
        return _rectified(RELU["floats", save], x, np.float64, 0.0, save)
    kind = np.int16 if x.itemsize == 2 else np.int32
    minus_infinity = int(np.array(-np.inf, x.dtype).view(kind))
    return _rectified(RELU["integers", save], x, kind, minus_infinity, save)


def _bits_of(passes: Array) -> Array:
    """Bits, from bits or bools."""
    return np.packbits(passes, bitorder="little") if passes.dtype == bool else flat(passes)


# ----------------------------------------------------------------------------------------------------------------- ops
@prepared
def relu(spec: None, x: Array) -> Callable[[Array], Array]:
    """y."""
    rectified = _relu(x, False)
    return lambda x: rectified(x)[0]


@prepared
def relu_forward(spec: None, x: Array) -> Callable[[Array], tuple[Array, Array]]:
    """y, and the bits of where x was not <= 0."""
    return _relu(x, True)


@prepared
def relu_backward(spec: None, dy: Array, passes: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    kind = {2: np.uint16, 4: np.int32, 8: np.float64}[dy.dtype.itemsize]
    return _masked(masked_float64 if dy.dtype == np.float64 else masked, dy, kind, 0.0)


def _masked(kernel_function: Any, dy: Array, kind: Any, slope: float) -> Callable[[Array, Array], Array]:
    """A function of arrays like dy, which the kernel takes as numbers of this kind, and of bits or bools."""
    new, large, run_in_blocks = backends.new_result(dy.shape, dy.dtype), is_large(dy), in_blocks((dy, dy))

    def run(dy: Array, passes: Array) -> Array:
        dx = new()
        past_caches = large and is_aligned(dx)
        lanes = flat(dy).view(kind), _bits_of(passes), dx.ravel().view(kind)
        run_in_blocks(kernel_function, *lanes, slope, past_caches)
        return dx

    return run


@prepared
def leaky_relu_forward(slope: float, x: Array) -> Callable[[Array], tuple[Array, Array]]:
    """y, and the bits of where x > 0."""
    return _rectified(leaky_relu_saving, x, as_bits(x).dtype, slope, True)


@prepared
def leaky_relu_backward(slope: float, dy: Array, passes: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _masked(leaky_gradient, dy, as_bits(dy).dtype, slope)
