"""Activations on vectors: y = function(x), and dx = dy * slope. Arguments are the portable code's.

ReLU and leaky ReLU save one bit an element, in uint8: bit i % 8 of byte i // 8, as numpy.packbits with bitorder
"little" has it. Half types are computed in float32 and rounded once; vector_math.py states the accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from cnnlayers import backends

from .jit import kernel
from .parallel import chunked, flat, launcher, to_lanes
from .past_caches import STREAM_BYTES
from .vector_ends import read
from .vector_math import apply
from .vector_types import I16, I64, MASK, operation
from .vectors import (
    LANES,
    as_bits,
    bit_and,
    bit_not,
    broadcast,
    equal,
    fence,
    integers,
    less,
    less_equal,
    load_bits,
    load_int,
    load_int_first,
    mul,
    select,
    store,
    store_first,
    stream,
)

Array = Any
Vector = Any
U = np.uintp
BLOCK = 4096  # elements; chunks begin at a multiple of it, so that their bits are whole bytes
GROUP = 64  # elements, whose bits are stored as one number
NO_BITS = np.empty(0, np.uint8)


def refuses(step: str, spec: Any, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    return None if all(a.dtype.isnative for a in arrays) else "an array of foreign byte order"


# --------------------------------------------------------------------------------------------------------------- steps
@operation
def lane_bits(mask: Any) -> Any:
    """A mask as uint64; lane 0 is the lowest bit."""
    return types.uint64(MASK), lambda context, builder, mask: builder.zext(builder.bitcast(mask, I16), I64)


# A step computes a vector of results from elements i to i + count of x. `other`: bits, or numbers that were saved.
@kernel(inlined=True)
def read_integers(x: Array, i: Any, count: int) -> Vector:
    return load_int(x, i) if count >= LANES else load_int_first(x, i, count)


def _make_function(name: str, slope: bool) -> Any:
    @kernel(inlined=True)
    def step(x: Array, other: Array, number: float, i: Any, count: int) -> Vector:
        """function(x), or the slope at what was saved times dy, which is then x."""
        if slope:
            return mul(read(x, i, count), apply(name, read(other, i, count)))
        return apply(name, read(x, i, count))

    return _make_loop(step)


# A rectifier is "leaky", of "floats", or of "integers": relu of a float's bits as signed integers, so that no NaN is
# changed and a half needs no conversion. `number` is the slope, or minus infinity's bits.
def _make_rectifier(how: str, backward: bool, saves: bool) -> Any:
    @kernel(inlined=True)
    def passes(x: Array, number: Any, i: Any, count: int) -> Vector:
        """The mask of x > 0 (leaky) or not x <= 0."""
        if how == "integers":  # negative integers are the negative floats, and above minus infinity the NaNs
            value = read_integers(x, i, count)
            return bit_and(less(integers(number), value), bit_not(equal(value, integers(0))))
        value, zero = read(x, i, count), broadcast(x, 0.0)
        return less(zero, value) if how == "leaky" else bit_not(less_equal(value, zero))

    @kernel(inlined=True)
    def step(x: Array, other: Array, number: Any, i: Any, count: int) -> Vector:
        """y, or dx of dy, which is then x, and of the bits."""
        mask = load_bits(other, i // U(8)) if backward else passes(x, number, i, count)
        if how == "integers":
            return select(mask, read_integers(x, i, count), integers(0))
        value = read(x, i, count)
        return select(mask, value, mul(value, broadcast(x, number)) if how == "leaky" else broadcast(x, 0.0))

    return _make_loop(step, passes if saves else None)


def _make_loop(step: Any, passes: Any = None) -> Any:
    saves = passes is not None

    @kernel(allocates=False)
    def loop(x: Array, other: Array, y: Array, number: Any, past_caches: bool, start: int, stop: int) -> None:
        """y from start to stop, and the bits of what passes. They are stored once for a group of elements, since stores
        that go to one place and the other in turn take 1.5 times as long."""
        whole = stop - (stop - start) % GROUP
        for first in range(U(start), U(whole), U(GROUP)):
            bits = np.uint64(0)
            for k in range(U(0), U(GROUP), U(LANES)):
                value = step(x, other, number, first + k, LANES)
                if saves:
                    bits |= lane_bits(passes(x, number, first + k, LANES)) << k
                if past_caches:
                    stream(y, first + k, value)
                else:
                    store(y, first + k, value)
            if saves:
                other[first // U(GROUP)] = bits
        bits = np.uint64(0)
        for i in range(U(whole), U(stop), U(LANES)):
            count = np.int64(U(stop) - i)
            if saves:
                bits |= lane_bits(passes(x, number, i, count)) << i % U(GROUP)
            store_first(y, i, step(x, other, number, i, count), count)
        if saves and whole < stop:
            other[U(whole) // U(GROUP)] = bits
        if past_caches:
            fence()

    return loop


NAMES = ("gelu", "gelu tanh", "sigmoid", "tanh")
FUNCTIONS = {name: _make_function(name, False) for name in NAMES}
GRADIENTS = {name: _make_function(f"{name} slope", True) for name in NAMES}
RECTIFIER_KINDS = ("integers", "floats", "leaky")
RECTIFIERS, SAVING, MASKED = (
    {how: _make_rectifier(how, backward, saves) for how in RECTIFIER_KINDS}
    for backward, saves in ((False, False), (False, True), (True, False))
)


# ------------------------------------------------------------------------------------------------------------ launches
def _over_elements(loop: Any, x: Array, number: Any = 0.0, view_as: Any = None) -> Callable[[Array, Array], Array]:
    """A function of an array like x and of `other`: the results of a loop, which takes x viewed as that dtype."""
    new, large, view_as = backends.new_result(x.shape, x.dtype), x.nbytes >= STREAM_BYTES, view_as or as_bits(x).dtype
    as_it_is = view_as == x.dtype  # a view of an array takes as long as all checks of a small call's arguments
    in_chunks = chunked(-(-x.size // BLOCK), 2 * x.nbytes, unit=BLOCK, end=x.size)

    def run(x: Array, other: Array) -> Array:
        y = new()
        past_caches = large and y.ctypes.data % 64 == 0  # `stream` needs whole cache lines
        cells, result = flat(x), y.ravel()
        if not as_it_is:
            cells, result = cells.view(view_as), result.view(view_as)
        in_chunks(loop, cells, other, result, number, past_caches)
        return y

    return run


def _make_launchers(op: str) -> tuple[Any, Any]:
    """The launchers, forward and backward, of an op. The spec is "tanh" for GELU's approximation by tanh."""

    @launcher
    def forward(spec: str | None, x: Array) -> Callable[[Array], Array]:
        run = _over_elements(FUNCTIONS["gelu tanh" if spec == "tanh" else op], x)
        return lambda x: run(x, NO_BITS)

    @launcher
    def backward(spec: str | None, dy: Array, saved: Array) -> Callable[[Array, Array], Array]:
        run = _over_elements(GRADIENTS["gelu tanh" if spec == "tanh" else op], dy)
        return lambda dy, saved: run(dy, to_lanes(saved))

    return forward, backward


def _rectifier(loop: Any, x: Array, number: Any, view_as: Any) -> Callable[[Array], tuple[Array, Array]]:
    """y and the bits of what passes."""
    run, nbytes = _over_elements(loop, x, number, view_as), -(-x.size // 8)

    def rectify(x: Array) -> tuple[Array, Array]:
        bits = np.empty(-(-x.size // GROUP), np.uint64)
        return run(x, bits), bits.view(np.uint8)[:nbytes]

    return rectify


def _masked(loop: Any, dy: Array, number: Any, view_as: Any) -> Callable[[Array, Array], Array]:
    """dx of bits or bools. The loop reads pairs of bytes."""
    run = _over_elements(loop, dy, number, view_as)

    def mask(dy: Array, passes: Array) -> Array:
        bits = np.packbits(passes, bitorder="little") if passes.dtype == bool else flat(passes)
        return run(dy, np.append(bits, np.uint8(0)) if bits.size % 2 else bits)

    return mask


def _relu_kind(x: Array) -> tuple[str, Any]:
    """The rectifier of ReLU for an array of this dtype, and the dtype that it takes the array as."""
    return ("floats", None) if x.itemsize == 8 else ("integers", np.int16 if x.itemsize == 2 else np.int32)


# ----------------------------------------------------------------------------------------------------------------- ops
def _relu_number(x: Array, view_as: Any) -> Any:
    """The number that ReLU's loop takes."""
    return np.array(-np.inf, x.dtype).view(view_as).item() if view_as else 0.0


@launcher
def relu(spec: None, x: Array) -> Callable[[Array], Array]:
    """y. Without bits to save, small arrays take 0.8 of the time, and others in the caches 0.9."""
    how, view_as = _relu_kind(x)
    run = _over_elements(RECTIFIERS[how], x, _relu_number(x, view_as), view_as)
    return lambda x: run(x, NO_BITS)


@launcher
def relu_forward(spec: None, x: Array) -> Callable[[Array], tuple[Array, Array]]:
    """y, and the bits of where x was not <= 0."""
    how, view_as = _relu_kind(x)
    return _rectifier(SAVING[how], x, _relu_number(x, view_as), view_as)


@launcher
def relu_backward(spec: None, dy: Array, passes: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    how, view_as = _relu_kind(dy)
    return _masked(MASKED[how], dy, 0.0, view_as)


@launcher
def leaky_relu_forward(slope: float, x: Array) -> Callable[[Array], tuple[Array, Array]]:
    """y, and the bits of where x > 0."""
    return _rectifier(SAVING["leaky"], x, slope, None)


@launcher
def leaky_relu_backward(slope: float, dy: Array, passes: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    return _masked(MASKED["leaky"], dy, slope, None)


gelu_forward, gelu_backward = _make_launchers("gelu")
sigmoid_forward, sigmoid_backward = _make_launchers("sigmoid")
tanh_forward, tanh_backward = _make_launchers("tanh")
