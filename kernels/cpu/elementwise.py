"""Activations on vectors: relu, leaky ReLU, GELU, sigmoid and tanh. Arguments are the portable code's.

Half types are computed in float32 and rounded once; vector_math.py states the accuracy. relu and leaky ReLU save one
bit an element, in uint8: bit i % 8 of byte i // 8, as numpy.packbits with bitorder "little" has it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends

from .jit import kernel
from .parallel import chunked, flat, prepared, to_lanes
from .past_caches import STREAM_BYTES
from .vector_math import LARGEST_DEVIATION, clipped, normal_cdf, normal_density, sigmoid, tanh
from .vectors import (
    LANES,
    add,
    as_bits,
    bit_and,
    bit_not,
    broadcast,
    equal,
    fence,
    first_lanes,
    fma,
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
    sub,
)

Array = Any
Vector = Any
U = np.uintp
BLOCK = 4096  # elements; chunks begin at a multiple of it, so that their bits are whole bytes
TANH_SCALE, TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU's tanh form
DENSITY = 1 / math.sqrt(2 * math.pi)
LARGEST_TANH = 1e4  # GELU's tanh form is x or 0 beyond it


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return None if all(a.dtype.isnative for a in arrays) else "an array of foreign byte order"


# --------------------------------------------------------------------------------------------------- loads and stores
@kernel()
def read(x: Array, i: int, stop: int) -> Vector:
    """The vector from element i on; the lanes from `stop` on are 0."""
    return load(x, i) if stop - i >= LANES else load_first(x, i, stop - i)


@kernel()
def write(y: Array, i: int, value: Vector, stop: int) -> None:
    """Store a vector from element i on, without the lanes from `stop` on."""
    if stop - i >= LANES:
        store(y, i, value)
    else:
        store_first(y, i, value, stop - i)


@kernel()
def read_last_bits(bits: Array, i: int, stop: int) -> Vector:
    """The mask of elements i to stop, fewer than 16; i is a multiple of 16."""
    two = np.zeros(2, np.uint8)
    for j in range((stop - i + 7) // 8):
        two[j] = bits[i // 8 + j]
    return load_bits(two, 0)


@kernel()
def whole_stop(start: int, stop: int) -> int:
    """Where the last whole vector ends."""
    return stop - (stop - start) % LANES


# ------------------------------------------------------------------------------------------------- relu and leaky ReLU
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


# ------------------------------------------------------------------------------------------- GELU, sigmoid and tanh
@kernel()
def _clipped(x: Array, value: Vector, limit: float) -> Vector:
    """The value in [-limit, limit]; a NaN stays a NaN."""
    return clipped(value, broadcast(x, -limit), broadcast(x, limit))


@kernel()
def _not_below(x: Array, value: Vector, limit: float) -> Vector:
    """The value, or -limit where it is lower; a NaN stays a NaN."""
    low = broadcast(x, -limit)
    return select(less(value, low), low, value)


@kernel()
def _gelu(x: Array, value: Vector) -> Vector:
    """value * P(X <= value): an infinite value times 1, or a large negative one times 0."""
    inside = _clipped(x, value, LARGEST_DEVIATION)
    return mul(_not_below(x, value, LARGEST_DEVIATION), normal_cdf(inside, normal_density(inside)))


@kernel()
def _gelu_slope(x: Array, value: Vector) -> Vector:
    inside = _clipped(x, value, LARGEST_DEVIATION)
    density = normal_density(inside)
    return fma(mul(inside, broadcast(x, DENSITY)), density, normal_cdf(inside, density))


@kernel()
def _twice_tanh_argument(x: Array, value: Vector) -> Vector:
    """(1 + tanh(u)) / 2 is sigmoid(2 u)."""
    cubic = mul(mul(value, value), broadcast(x, 2 * TANH_SCALE * TANH_CUBIC))
    return mul(value, add(cubic, broadcast(x, 2 * TANH_SCALE)))


@kernel()
def _gelu_tanh(x: Array, value: Vector) -> Vector:
    inside = _clipped(x, value, LARGEST_TANH)
    return mul(_not_below(x, value, LARGEST_TANH), sigmoid(_twice_tanh_argument(x, inside)))


@kernel()
def _gelu_tanh_slope(x: Array, value: Vector) -> Vector:
    """s + x * s * (1 - s) * (2 u)' with s = sigmoid(2 u), and 1 - s as sigmoid(-2 u)."""
    inside, zero = _clipped(x, value, LARGEST_TANH), broadcast(x, 0.0)
    u = _twice_tanh_argument(x, inside)
    s, rest = sigmoid(u), sigmoid(sub(zero, u))
    square = mul(mul(inside, inside), broadcast(x, 6 * TANH_SCALE * TANH_CUBIC))
    inner = mul(inside, add(square, broadcast(x, 2 * TANH_SCALE)))
    return fma(mul(s, rest), inner, s)


@kernel()
def _sigmoid(x: Array, value: Vector) -> Vector:
    return sigmoid(value)


@kernel()
def _sigmoid_slope(y: Array, value: Vector) -> Vector:
    """From y."""
    return mul(value, sub(broadcast(y, 1.0), value))


@kernel()
def _tanh(x: Array, value: Vector) -> Vector:
    return tanh(value)


@kernel()
def _tanh_slope(y: Array, value: Vector) -> Vector:
    """From y."""
    one = broadcast(y, 1.0)
    return mul(sub(one, value), add(one, value))


def _make_map(function: Any) -> Any:
    @kernel()
    def mapped(x: Array, y: Array, past_caches: bool, start: int, stop: int) -> None:
        """y = function(x)."""
        whole = whole_stop(start, stop)
        for i in range(start, whole, LANES):
            value = function(x, load(x, i))
            if past_caches:
                stream(y, i, value)
            else:
                store(y, i, value)
        if past_caches:
            fence()
        if whole < stop:
            store_first(y, whole, function(x, load_first(x, whole, stop - whole)), stop - whole)

    return mapped


def _make_gradient(slope: Any) -> Any:
    @kernel()
    def gradient(dy: Array, saved: Array, dx: Array, past_caches: bool, start: int, stop: int) -> None:
        """dx = dy * slope(saved)."""
        whole = whole_stop(start, stop)
        for i in range(start, whole, LANES):
            value = mul(load(dy, i), slope(saved, load(saved, i)))
            if past_caches:
                stream(dx, i, value)
            else:
                store(dx, i, value)
        if past_caches:
            fence()
        if whole < stop:
            count = stop - whole
            last = mul(load_first(dy, whole, count), slope(saved, load_first(saved, whole, count)))
            store_first(dx, whole, last, count)

    return gradient


MAPS = {"gelu": _make_map(_gelu), "gelu tanh": _make_map(_gelu_tanh), "sigmoid": _make_map(_sigmoid),
        "tanh": _make_map(_tanh)}  # fmt: skip
GRADIENTS = {"gelu": _make_gradient(_gelu_slope), "gelu tanh": _make_gradient(_gelu_tanh_slope),
             "sigmoid": _make_gradient(_sigmoid_slope), "tanh": _make_gradient(_tanh_slope)}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ launches
def is_aligned(array: Array) -> bool:
    """Whether an array begins with a cache line, as results must that are stored past the caches."""
    return bool(array.ctypes.data % 64 == 0)


def in_blocks(arrays: tuple[Array, ...]) -> Callable[..., None]:
    """`chunked` for elements of arrays like these, in whole blocks."""
    size = arrays[0].size
    return chunked(-(-size // BLOCK), sum(a.nbytes for a in arrays), unit=BLOCK, end=size)


def _mapped(kernel_function: Any, arrays: tuple[Array, ...], *numbers: float) -> Callable[..., Array]:
    """A function of arrays like these: the result of a kernel, in the first one's shape and dtype."""
    first = arrays[0]
    new, large, run_in_blocks = (
        backends.new_result(first.shape, first.dtype),
        _is_large(first),
        in_blocks((first, *arrays)),
    )

    def run(*arrays: Array) -> Array:
        result = new()
        past_caches = large and is_aligned(result)
        run_in_blocks(kernel_function, *map(to_lanes, arrays), to_lanes(result), *numbers, past_caches)
        return result

    return run


def _is_large(result: Array) -> bool:
    """Whether a result of this size is stored past the caches."""
    return bool(result.nbytes >= STREAM_BYTES)


def _rectified(
    kernel_function: Any, x: Array, kind: Any, number: Any, save: bool
) -> Callable[[Array], tuple[Array, Array]]:
    """A function of arrays like x, which the kernel takes as numbers of this kind: y, and the bits (none unless
    `save`)."""
    new, large, nbytes = backends.new_result(x.shape, x.dtype), _is_large(x), -(-x.size // 8) if save else 0
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
    new, large, run_in_blocks = backends.new_result(dy.shape, dy.dtype), _is_large(dy), in_blocks((dy, dy))

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


@prepared
def gelu_forward(approximate: str, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _mapped(MAPS["gelu" if approximate == "none" else "gelu tanh"], (x,))


@prepared
def gelu_backward(approximate: str, dy: Array, x: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _mapped(GRADIENTS["gelu" if approximate == "none" else "gelu tanh"], (dy, x))


@prepared
def sigmoid_forward(spec: None, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _mapped(MAPS["sigmoid"], (x,))


@prepared
def sigmoid_backward(spec: None, dy: Array, y: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _mapped(GRADIENTS["sigmoid"], (dy, y))


@prepared
def tanh_forward(spec: None, x: Array) -> Callable[[Array], Array]:
    """y."""
    return _mapped(MAPS["tanh"], (x,))


@prepared
def tanh_backward(spec: None, dy: Array, y: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _mapped(GRADIENTS["tanh"], (dy, y))
