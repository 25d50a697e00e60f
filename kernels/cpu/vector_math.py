"""exp, tanh, powers, the logistic sigmoid and the normal distribution on vectors.

Polynomials and quotients of two, fitted for the smallest maximum of the relative error; the same bits on every CPU.
Maxima of the error, where the result is a normal number, in units of the last place:

| function     | float32 | float64 |
| ------------ | ------- | ------- |
| `exp`        | 1.5     | 1.5     |
| `tanh`       | 2       | 2       |
| `sigmoid`    | 3       | 3       |
| `normal_cdf` | 6       | 8       |

Below -20, where `normal_cdf` is less than 1e-88, its error in float64 rises to 1100 units, 2.4e-13 of the result.

`power`: the C library's, one lane after another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from .vector_memory import LANES_OF_ARRAY, check_array
from .vector_types import FLOATS, I32, I64, LANES, TYPES, call, fill, intrinsic, suffix, vector_of
from .vectors import _operation as operation

SQRT_HALF = math.sqrt(0.5)
LARGEST_DEVIATION = 40.0  # the tail is 0 from 38.6 on, in float32 from 14.2; NORMAL_TAIL is fitted up to 20


@dataclass(frozen=True)
class _Numbers:
    """What the functions of a dtype are made of. Coefficients have the highest power first.

    ln2: two parts; a whole number of them times the first is exact. low, high: beyond them exp(x) is 0 or infinite.
    exp: (exp(r) - 1 - r) / r**2. tanh: two polynomials p and q in x**2; tanh(x) = x + x**3 * p / q below 0.625.
    tail: two polynomials p and q; P(X < -x) = exp(-x**2 / 2) * p / q. bits: of the mantissa."""

    ln2: tuple[float, float]
    low: float
    high: float
    bits: int
    exp: tuple[float, ...]
    tanh: tuple[tuple[float, ...], tuple[float, ...]]
    tail: tuple[tuple[float, ...], tuple[float, ...]]
    integer: Any

    @property
    def round(self) -> float:
        """x + this has the integer nearest to x in its last bits."""
        return 1.5 * 2.0**self.bits


NUMBERS = {
    "float": _Numbers(
        ln2=(0.693145751953125, 1.42860682030941723212e-6), low=-105.0, high=89.0, bits=23, integer=I32,
        exp=(0.0013808847670584005, 0.008371495368595881, 0.04166866795626604, 0.166664968469324, 0.49999991783075814),
        tanh=((-0.005660788606875383, 0.020602007313679182, -0.053729229892602155, 0.1333132895857914,
               -0.3333327831532426), (1.0,)),
        tail=((0.00411625709789737, 0.040632900009106514, 0.1832342043246447, 0.4382937453767697, 0.500000002948613),
              (0.01031780667811857, 0.10185802335501805, 0.469468155113804, 1.202499352657205, 1.6744724717697395,
               1.0)),
    ),
    "double": _Numbers(
        ln2=(0.6931471805598903, 5.497923018708371e-14), low=-746.0, high=710.0, bits=52, integer=I64,
        exp=tuple(1 / math.factorial(k) for k in range(13, 1, -1)),
        tanh=((-0.0001991684524285446, -0.020498583257223427, -0.3333333333333333),
              (0.00020652346491703249, 0.02329104336130051, 0.46149574977166663, 1.0)),
        tail=((1.0510455219205938e-06, 2.957176865680368e-05, 0.00040431127456712525, 0.003484649947184783,
               0.02073603520856185, 0.08813077918513292, 0.26775392007290283, 0.5634668382128896, 0.7534742247934518,
               0.5),
              (2.6345804233092072e-06, 7.412543142567401e-05, 0.0010160926543898872, 0.008808847457658524,
               0.052985722802319266, 0.2294975359453588, 0.7211371647627334, 1.6165758227050115, 2.4659243506446167,
               2.3048330103897676, 1.0)),
    ),
}  # fmt: skip


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

    @property
    def numbers(self) -> _Numbers:
        """What functions of these lanes are made of."""
        return NUMBERS[str(self.value.type.element)]

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

    def clipped(self, low: Any, high: Any) -> _Lanes:
        """A NaN stays a NaN. Each comparison and its choice are one instruction."""
        lowest, highest = self.of(low), self.of(high)
        raised = lowest.where(self.below(lowest), self)
        return highest.where(highest.below(raised), raised)

    def polynomial(self, coefficients: tuple[float, ...]) -> _Lanes:
        """By Horner's rule; the highest power comes first."""
        result = self.of(coefficients[0])
        for c in coefficients[1:]:
            result = result.times_plus(self, c)
        return result

    def as_type(self, element: Any) -> _Lanes:
        """The same bits as other lanes."""
        return _Lanes(self.builder, self.builder.bitcast(self.value, vector_of(element)))


def _power_of_two(exponent: Any, builder: Any, numbers: _Numbers) -> _Lanes:
    """2**exponent, for integers that are a normal number's exponent."""
    bias, bits = (
        fill(builder, ir.Constant(numbers.integer, n))
        for n in ((1 << (numbers.integer.width - numbers.bits - 2)) - 1, numbers.bits)
    )
    return _Lanes(builder, builder.shl(builder.add(exponent, bias), bits))


def _exp(x: _Lanes) -> _Lanes:
    """2**n * exp(r) with x = n ln 2 + r. 2**n is applied in two halves, since n may be beyond a number's exponents."""
    builder, numbers, element = x.builder, x.numbers, x.value.type.element
    x = x.clipped(numbers.low, numbers.high)
    shifted = x.times_plus(1 / math.log(2), numbers.round)
    n = shifted - numbers.round
    r = n.times_plus(-numbers.ln2[1], n.times_plus(-numbers.ln2[0], x))
    power = (r * r).times_plus(r.polynomial(numbers.exp), r) + 1.0
    whole = builder.sub(shifted.as_type(numbers.integer).value, x.of(numbers.round).as_type(numbers.integer).value)
    half = builder.ashr(whole, fill(builder, ir.Constant(numbers.integer, 1)))
    rest = builder.sub(whole, half)
    return (
        power
        * _power_of_two(half, builder, numbers).as_type(element)
        * _power_of_two(rest, builder, numbers).as_type(element)
    )


def _each_lane(builder: Any, name: str, value: Any, *others: Any) -> Any:
    """A function of the C library, of one lane after another."""
    result = value
    for i in range(LANES):
        number = ir.Constant(I32, i)
        lanes = [builder.extract_element(v, number) for v in (value, *others)]
        one = call(builder, name, value.type.element, *lanes)
        result = builder.insert_element(result, one, number)
    return result


def emit_exp(builder: Any, x: Any) -> Any:
    return _exp(_Lanes(builder, x)).value


def emit_tanh(builder: Any, x: Any) -> Any:
    lanes = _Lanes(builder, x)
    size, square, (above, below) = lanes.apply("fabs"), lanes * lanes, lanes.numbers.tanh
    large = lanes.of(1.0) - lanes.of(2.0) / (_exp(size + size) + 1.0)
    quotient = square.polynomial(above)
    if len(below) > 1:
        quotient = quotient / square.polynomial(below)
    small = (lanes * square).times_plus(quotient, lanes)
    return small.where(size.below(0.625), large).apply("copysign", lanes).value  # of -0 too


def emit_sigmoid(builder: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), from exp(-abs(x)), which does not overflow."""
    lanes = _Lanes(builder, x)
    power = _exp(lanes.of(-0.0) - lanes.apply("fabs"))
    return (power.where(lanes.below(0.0), 1.0) / (power + 1.0)).value


def emit_normal_density(builder: Any, x: Any) -> Any:
    """exp(-x**2 / 2), without the factor 1 / sqrt(2 pi). What rounding x**2 leaves out is put right."""
    lanes = _Lanes(builder, x)
    square = lanes * lanes
    power = _exp(square * -0.5)
    rest = lanes.times_plus(lanes, lanes.of(-0.0) - square)
    return power.times_plus(rest * -0.5, power).value


def emit_normal_cdf(builder: Any, x: Any, density: Any) -> Any:
    """The probability of a value below x. density: what `normal_density` gives for x; |x| <= LARGEST_DEVIATION."""
    lanes = _Lanes(builder, x)
    size, (above, below) = lanes.apply("fabs"), lanes.numbers.tail
    tail = size.polynomial(above) / size.polynomial(below) * _Lanes(builder, density)
    return tail.where(lanes.below(0.0), lanes.of(1.0) - tail).value


exp = operation(FLOATS, None, 1, "exp(x)", emit_exp)
tanh = operation(FLOATS, None, 1, "tanh(x)", emit_tanh)
sigmoid = operation(FLOATS, None, 1, "1 / (1 + exp(-x))", emit_sigmoid)
power = operation(("float64",), None, 2, "x ** y", lambda builder, x, y: _each_lane(builder, "pow", x, y))
normal_density = operation(FLOATS, None, 1, "exp(-x**2 / 2)", emit_normal_density)
clipped = operation(
    FLOATS, None, 3, "x, or y where x is below it, or z where x is above it; a NaN stays a NaN",
    lambda builder, x, low, high: _Lanes(builder, x).clipped(_Lanes(builder, low), _Lanes(builder, high)).value,
)  # fmt: skip
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
