"""Activations on vectors: relu, leaky ReLU, GELU, sigmoid and tanh. Arguments are the portable code's.

Half types are computed in float32 and rounded once; vector_math.py states the accuracy. relu and leaky ReLU save one
bit an element, in uint8: bit i % 8 of byte i // 8, as numpy.packbits with bitorder "little" has it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend

from .jit import kernel
from .parallel import flat, parallel_chunks
from .vector_math import LARGEST_DEVIATION, normal_cdf, normal_density, sigmoid, tanh
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
    maximum,
    minimum,
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
STREAM_BYTES = 12 << 20  # results from this size on are stored past the caches: relu then takes 0.4 to 0.6 of the time
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
    return maximum(minimum(value, broadcast(x, limit)), broadcast(x, -limit))


@kernel()
def _gelu(x: Array, value: Vector) -> Vector:
    """value * P(X <= value): an infinite value times 1, or a large negative one times 0."""
    inside = _clipped(x, value, LARGEST_DEVIATION)
    return mul(maximum(value, broadcast(x, -LARGEST_DEVIATION)), normal_cdf(inside, normal_density(inside)))


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
    return mul(maximum(value, broadcast(x, -LARGEST_TANH)), sigmoid(_twice_tanh_argument(x, inside)))


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
def to_lanes(array: Array) -> Array:
    """The elements in C order, as kernels take them."""
    return flat(as_bits(np.ascontiguousarray(array)))


def past_caches(result: Array) -> bool:
    """Whether a result is stored past the caches: it is large, and its memory is aligned."""
    return bool(result.nbytes >= STREAM_BYTES and result.ctypes.data % 64 == 0)


def _over_blocks(size: int, nbytes: int, run: Callable[[int, int], Any]) -> None:
    """Call run(start, stop) on chunks of elements, each of whole blocks."""
    blocks = -(-size // BLOCK)
    parallel_chunks(blocks, nbytes, lambda start, stop: run(start * BLOCK, min(stop * BLOCK, size)))


def _map(kernel_function: Any, inputs: tuple[Array, ...], *numbers: float) -> Array:
    """The result of a kernel of these arrays, in the first one's shape and dtype."""
    first = inputs[0]
    result = backends.result(first.shape, first.dtype)
    arrays = [*(to_lanes(a) if a.dtype != np.uint8 else flat(a) for a in inputs), to_lanes(result)]
    stream_result = past_caches(result)
    run = lambda start, stop: kernel_function(*arrays, *numbers, stream_result, start, stop)  # noqa: E731
    _over_blocks(first.size, result.nbytes + sum(a.nbytes for a in inputs), run)
    return result


def _rectified(kernel_function: Any, x: Array, y: Array, number: Any, save: bool) -> Array:
    """The bits (none unless `save`); y is filled."""
    source, result, stream_result = to_lanes(x), to_lanes(y), past_caches(y)
    bits = np.empty(-(-x.size // 8) if save else 0, np.uint8)
    run = lambda start, stop: kernel_function(source, result, bits, number, stream_result, start, stop)  # noqa: E731
    _over_blocks(x.size, 2 * x.nbytes + bits.nbytes, run)
    return bits


def _relu(x: Array, save: bool) -> tuple[Array, Array]:
    y = backends.result(x.shape, x.dtype)
    if x.dtype == np.float64:
        return y, _rectified(RELU["floats", save], x, y, 0.0, save)
    integers_of = np.int16 if x.itemsize == 2 else np.int32
    minus_infinity = int(np.array(-np.inf, x.dtype).view(integers_of))
    source = np.ascontiguousarray(x).view(integers_of)
    return y, _rectified(RELU["integers", save], source, y.view(integers_of), minus_infinity, save)


def _packed(passes: Array) -> Array:
    """Bits, from bits or bools."""
    return np.packbits(passes, bitorder="little") if passes.dtype == bool else passes


# ----------------------------------------------------------------------------------------------------------------- ops
def relu(b: Backend, spec: None, x: Array) -> Array:
    """y."""
    return _relu(x, False)[0]


def relu_forward(b: Backend, spec: None, x: Array) -> tuple[Array, Array]:
    """y, and the bits of where x was not <= 0."""
    return _relu(x, True)


def relu_backward(b: Backend, spec: None, dy: Array, passes: Array) -> Array:
    """dx."""
    bits = np.asarray(dy, order="C")
    if dy.dtype == np.float64:
        return _map(masked_float64, (bits, _packed(passes)), 0.0)
    as_integers = bits.view(np.uint16 if dy.itemsize == 2 else np.int32)
    return _map(masked, (as_integers, _packed(passes)), 0.0).view(dy.dtype)


def leaky_relu_forward(b: Backend, slope: float, x: Array) -> tuple[Array, Array]:
    """y, and the bits of where x > 0."""
    y = backends.result(x.shape, x.dtype)
    return y, _rectified(leaky_relu_saving, x, y, slope, True)


def leaky_relu_backward(b: Backend, slope: float, dy: Array, passes: Array) -> Array:
    """dx."""
    return _map(leaky_gradient, (dy, _packed(passes)), slope)


def gelu_forward(b: Backend, approximate: str, x: Array) -> Array:
    """y."""
    return _map(MAPS["gelu" if approximate == "none" else "gelu tanh"], (x,))


def gelu_backward(b: Backend, approximate: str, dy: Array, x: Array) -> Array:
    """dx."""
    return _map(GRADIENTS["gelu" if approximate == "none" else "gelu tanh"], (dy, x))


def sigmoid_forward(b: Backend, spec: None, x: Array) -> Array:
    """y."""
    return _map(MAPS["sigmoid"], (x,))


def sigmoid_backward(b: Backend, spec: None, dy: Array, y: Array) -> Array:
    """dx."""
    return _map(GRADIENTS["sigmoid"], (dy, y))


def tanh_forward(b: Backend, spec: None, x: Array) -> Array:
    """y."""
    return _map(MAPS["tanh"], (x,))


def tanh_backward(b: Backend, spec: None, dy: Array, y: Array) -> Array:
    """dx."""
    return _map(GRADIENTS["tanh"], (dy, y))
