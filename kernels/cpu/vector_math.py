"""exp, tanh, powers, the logistic sigmoid and the normal distribution on vectors.

float32: polynomials, fitted for the smallest maximum of the relative error; the same bits on every CPU. Maxima of the
error, where the result is a normal number: `exp` 1.5 ulp, `tanh` 2 ulp, `sigmoid` 3 ulp, `normal_cdf` 5 ulp for x >= -3
and 10 ulp in the tail below. float64: the C library's functions, one lane after another."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

from .vector_memory import LANES_OF_ARRAY, check_array
from .vector_types import FLOATS, I32, LANES, TYPES, call, fill, intrinsic, suffix, vector_of
from .vectors import _operation as operation

LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860682030941723212e-6  # n * LN2_HIGH is exact for |n| < 2**8
ROUND = 1.5 * 2**23  # x + ROUND has the integer nearest to x in its last bits
SQRT2, SQRT_HALF = math.sqrt(2), math.sqrt(0.5)
LARGEST_DEVIATION = 20.0  # the normal distribution's tail is 0 in float32 beyond 14.2
# Coefficients, the highest power first.
EXP = (0.0013808847670584005, 0.008371495368595881, 0.04166866795626604, 0.166664968469324, 0.49999991783075814)
TANH = (
    -0.005660788606875383, 0.020602007313679182, -0.053729229892602155, 0.1333132895857914, -0.3333327831532426,
)  # fmt: skip
NORMAL_TAIL = (
    5.5964042958429736e-05, 0.0002919446601728194, 0.0004250621140324466, -0.00024065754575631628,
    -0.0016736715206113852, -0.002664620461243396, -0.0008616997519852218, 0.006767579199432735,
    0.01795688197443812, 0.009833184291075572, -0.0675685462747118, -0.16806572472831727, 0.6046944915366697,
)  # fmt: skip


class _Lanes:
    """An LLVM vector with Python's operators. A number stands for itself in each lane."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value

    def of(self, number: Any) -> _Lanes:
        """The number in each lane; lanes as they are."""
        if isinstance(number, _Lanes):
            return number
        return _Lanes(self.builder, fill(self.builder, ir.Constant(self.value.type.element, number)))

    def _with(self, name: str, other: Any) -> _Lanes:
        return _Lanes(self.builder, getattr(self.builder, name)(self.value, self.of(other).value))

    def __add__(self, other: Any) -> _Lanes:
        return self._with("fadd", other)

    def __sub__(self, other: Any) -> _Lanes:
        return self._with("fsub", other)

    def __mul__(self, other: Any) -> _Lanes:
        return self._with("fmul", other)

    def __truediv__(self, other: Any) -> _Lanes:
        return self._with("fdiv", other)

    def times_plus(self, factor: Any, term: Any) -> _Lanes:
        """self * factor + term, rounded once."""
        return self.apply("fma", self.of(factor), self.of(term))

    def apply(self, name: str, *others: _Lanes) -> _Lanes:
        """An LLVM intrinsic of the lanes."""
        vector = self.value.type
        called = f"llvm.{name}.v{LANES}{suffix(vector.element)}"
        return _Lanes(self.builder, call(self.builder, called, vector, self.value, *(o.value for o in others)))

    def below(self, other: Any) -> Any:
        """The mask of self < other; False for a NaN."""
        return self.builder.fcmp_ordered("<", self.value, self.of(other).value)

    def where(self, mask: Any, other: Any) -> _Lanes:
        """self where the mask holds, else `other`."""
        return _Lanes(self.builder, self.builder.select(mask, self.value, self.of(other).value))

    def clipped(self, low: float, high: float) -> _Lanes:
        """A NaN stays a NaN."""
        raised = self.of(low).where(self.below(low), self)
        return self.of(high).where(self.of(high).below(raised), raised)

    def polynomial(self, coefficients: tuple[float, ...]) -> _Lanes:
        """By Horner's rule; the highest power comes first."""
        result = self.of(coefficients[0])
        for c in coefficients[1:]:
            result = result.times_plus(self, c)
        return result

    def as_type(self, element: Any) -> _Lanes:
        """The same bits as other lanes."""
        return _Lanes(self.builder, self.builder.bitcast(self.value, vector_of(element)))


def _power_of_two(exponent: Any, builder: Any) -> _Lanes:
    """2**exponent as float32, for int32 from -126 to 127."""
    biased = builder.add(exponent, fill(builder, ir.Constant(I32, 127)))
    return _Lanes(builder, builder.shl(biased, fill(builder, ir.Constant(I32, 23)))).as_type(ir.FloatType())


def _exp(x: _Lanes) -> _Lanes:
    """2**n * exp(r) with x = n ln 2 + r. 2**n is applied in two halves, since n may be beyond a float32's exponents."""
    builder = x.builder
    x = x.clipped(-105.0, 89.0)
    shifted = x.times_plus(1 / math.log(2), ROUND)
    n = shifted - ROUND
    r = n.times_plus(-LN2_LOW, n.times_plus(-LN2_HIGH, x))
    power = (r * r).times_plus(r.polynomial(EXP), r) + 1.0
    whole = builder.sub(shifted.as_type(I32).value, x.of(ROUND).as_type(I32).value)
    half = builder.ashr(whole, fill(builder, ir.Constant(I32, 1)))
    return power * _power_of_two(half, builder) * _power_of_two(builder.sub(whole, half), builder)


def _each_lane(builder: Any, name: str, value: Any, *others: Any) -> Any:
    """A function of the C library, of one lane after another."""
    result = value
    for i in range(LANES):
        number = ir.Constant(I32, i)
        lanes = [builder.extract_element(v, number) for v in (value, *others)]
        one = call(builder, name, value.type.element, *lanes)
        result = builder.insert_element(result, one, number)
    return result


def _is_float64(value: Any) -> bool:
    return bool(value.type.element == ir.DoubleType())


def _any_exp(x: _Lanes) -> _Lanes:
    return _Lanes(x.builder, _each_lane(x.builder, "exp", x.value)) if _is_float64(x.value) else _exp(x)


def emit_exp(builder: Any, x: Any) -> Any:
    return _any_exp(_Lanes(builder, x)).value


def emit_tanh(builder: Any, x: Any) -> Any:
    if _is_float64(x):
        return _each_lane(builder, "tanh", x)
    lanes = _Lanes(builder, x)
    size = lanes.apply("fabs")
    large = lanes.of(1.0) - lanes.of(2.0) / (_exp(size + size) + 1.0)
    square = lanes * lanes
    small = (lanes * square).times_plus(square.polynomial(TANH), lanes)
    return small.where(size.below(0.625), large.apply("copysign", lanes)).value


def emit_sigmoid(builder: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), from exp(-abs(x)), which does not overflow."""
    lanes = _Lanes(builder, x)
    power = _any_exp(lanes.of(-0.0) - lanes.apply("fabs"))
    return (power.where(lanes.below(0.0), 1.0) / (power + 1.0)).value


def emit_normal_density(builder: Any, x: Any) -> Any:
    """exp(-x**2 / 2), without the factor 1 / sqrt(2 pi). What rounding x**2 leaves out is put right."""
    lanes = _Lanes(builder, x)
    square = lanes * lanes
    power = _any_exp(square * -0.5)
    if _is_float64(x):
        return power.value
    rest = lanes.times_plus(lanes, lanes.of(-0.0) - square)
    return power.times_plus(rest * -0.5, power).value


def emit_normal_cdf(builder: Any, x: Any, density: Any) -> Any:
    """The probability of a value below x. density: what `normal_density` gives for x; |x| <= LARGEST_DEVIATION."""
    lanes = _Lanes(builder, x)
    if _is_float64(x):
        return (_Lanes(builder, _each_lane(builder, "erfc", (lanes * -SQRT_HALF).value)) * 0.5).value
    inverse = lanes.of(1.0) / (lanes.apply("fabs") + SQRT2)
    tail = inverse.times_plus(-2 * SQRT2, 1.0).polynomial(NORMAL_TAIL) * inverse * _Lanes(builder, density)
    return tail.where(lanes.below(0.0), lanes.of(1.0) - tail).value


exp = operation(FLOATS, None, 1, "exp(x)", emit_exp)
tanh = operation(FLOATS, None, 1, "tanh(x)", emit_tanh)
sigmoid = operation(FLOATS, None, 1, "1 / (1 + exp(-x))", emit_sigmoid)
power = operation(("float64",), None, 2, "x ** y", lambda builder, x, y: _each_lane(builder, "pow", x, y))
normal_density = operation(FLOATS, None, 1, "exp(-x**2 / 2)", emit_normal_density)
normal_cdf = operation(FLOATS, None, 2, "the standard normal distribution's function at x", emit_normal_cdf)


@intrinsic
def lanes_like(typing: Any, array: Any, x: Any) -> Any:
    """Floating lanes as `load(array, ...)` gives them: rounded to float32, or widened to float64."""
    kind = LANES_OF_ARRAY[check_array(array, tuple(LANES_OF_ARRAY))]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = TYPES[kind]
        if x == target:
            return arguments[1]
        llvm = context.get_value_type(target)
        return (builder.fptrunc if kind == "float32" else builder.fpext)(arguments[1], llvm)

    return TYPES[kind](array, x), generate
