"""exp, powers and activations on vectors: polynomials and quotients of two, fitted for the smallest maximum of the
relative error; the same bits on every CPU.

Maxima of the error, where the result is a normal number, in units of the last place:

| function        | float32 | float64 |
| --------------- | ------- | ------- |
| `exp`           | 1.5     | 1.5     |
| `tanh`          | 2       | 2       |
| `sigmoid`       | 3       | 3       |
| `gelu` above -3 | 6       | 8       |

Below -20, where it is less than 1e-88, the error of `gelu` in float64 rises to 1100 units, 2.4e-13 of the result.

`power`, of float64: 1 unit, and 1 more for each 40 of the exponent's size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from .vector_types import ELEMENTS, I32, I64, LANES, call, fill, operation, suffix, vector_of
from .vectors import lanewise

DOUBLE = ELEMENTS["float64"]
TANH_SCALE, TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU's tanh form
DENSITY = 1 / math.sqrt(2 * math.pi)
LARGEST_TANH = 20.0  # tanh is 1 from there on
HIGHEST_EXP = 710.0  # exp in float64 is infinite there
LOGARITHM = tuple(2 / (2 * k + 3) for k in reversed(range(11)))  # (log((1 + s) / (1 - s)) - 2 s) / s**3, of s**2


@dataclass(frozen=True)
class _Numbers:
    """What the functions of a dtype are made of. Coefficients have the highest power first.

    ln2: two parts; a whole number of them times the first is exact. low: exp is 0 below it. offset: added to exponents
    that may be too low for a normal number. bits: of the mantissa. exp: (exp(r) - 1 - r) / r**2. deviation: x times the
    density of a standard normal X is 0 from there on. tail: two polynomials; P(X > x) = exp(-x**2 / 2) * p / q."""

    ln2: tuple[float, float]
    low: float
    offset: int
    bits: int
    exp: tuple[float, ...]
    deviation: float
    tail: tuple[tuple[float, ...], tuple[float, ...]]
    integer: Any


NUMBERS = {
    "float": _Numbers(
        ln2=(0.693145751953125, 1.42860682030941723212e-6), low=-105.0, offset=64, bits=23, deviation=14.6,
        integer=I32,
        exp=(0.0013808847670584005, 0.008371495368595881, 0.04166866795626604, 0.166664968469324, 0.49999991783075814),
        tail=((0.00411625709789737, 0.040632900009106514, 0.1832342043246447, 0.4382937453767697, 0.500000002948613),
              (0.01031780667811857, 0.10185802335501805, 0.469468155113804, 1.202499352657205, 1.6744724717697395,
               1.0)),
    ),
    "double": _Numbers(
        ln2=(0.6931471805598903, 5.497923018708371e-14), low=-746.0, offset=512, bits=52, deviation=38.7,
        integer=I64,
        exp=tuple(1 / math.factorial(k) for k in range(13, 1, -1)),
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

    def __neg__(self) -> _Lanes:
        return _Lanes(self.builder, self.builder.fneg(self.value))

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

    def equals(self, other: Any) -> Any:
        """The mask of self == other; False for a NaN."""
        return self.builder.fcmp_ordered("==", self.value, self.of(other).value)

    def where(self, mask: Any, other: Any) -> _Lanes:
        """self where the mask holds, else `other`."""
        return _Lanes(self.builder, self.builder.select(mask, self.value, self.of(other).value))

    def size(self, most: float) -> _Lanes:
        """abs(self), and at most `most`; a NaN stays a NaN. A comparison and its choice are one instruction."""
        size, highest = self.apply("fabs"), self.of(most)
        return highest.where(highest.below(size), size)

    def polynomial(self, coefficients: tuple[float, ...]) -> _Lanes:
        """By Horner's rule; the highest power comes first."""
        result = self.of(coefficients[0])
        for c in coefficients[1:]:
            result = result.times_plus(self, c)
        return result

    def as_type(self, element: Any) -> _Lanes:
        """The same bits as other lanes."""
        return _Lanes(self.builder, self.builder.bitcast(self.value, vector_of(element)))


def _power(x: _Lanes, offset: Any, minus: Callable[[_Lanes], _Lanes] | None = None) -> tuple[_Lanes, _Lanes]:
    """2**(n + offset) and exp(r) - 1, with x = n ln 2 + r. minus: the exact x minus a number near it; x is rounded."""
    numbers, integer = x.numbers, x.numbers.integer
    # Its last bits are n + offset and the bias of exponents. They are shifted to where a number has its exponent.
    shift = offset + (1.5 * 2.0**numbers.bits + (1 << (integer.width - numbers.bits - 2)) - 1)
    shifted = x.times_plus(1 / math.log(2), shift)
    n = shifted - shift
    high = n.times_plus(-numbers.ln2[0], x) if minus is None else minus(n * numbers.ln2[0])
    low = n * -numbers.ln2[1]
    r = high + low
    bits = fill(x.builder, ir.Constant(integer, numbers.bits))
    power = _Lanes(x.builder, x.builder.shl(shifted.as_type(integer).value, bits)).as_type(x.value.type.element)
    return power, (r * r).times_plus(r.polynomial(numbers.exp), low) + high  # without the rounding of r


def _exp(x: _Lanes, minus: Callable[[_Lanes], _Lanes] | None = None) -> _Lanes:
    """exp(x) times 2**offset: where the power of two is too low for a normal number, the product with it is not."""
    power, more = _power(x, x.numbers.offset, minus)
    return power.times_plus(more, power)


def _exp_of_negative(x: _Lanes) -> _Lanes:
    """exp(x) for x <= 0; a NaN stays a NaN."""
    lowest = x.of(x.numbers.low)
    return _exp(lowest.where(x.below(lowest), x)) * 2.0**-x.numbers.offset


def _tanh(x: _Lanes) -> _Lanes:
    """(1 - e) / (1 + e) with e = exp(-2 abs(x)), as h + h * t, in which h = (1 - e) / 2 and t is the quotient: the
    rounding of small quotients then hardly matters."""
    power, more = _power(x.size(LARGEST_TANH) * -2.0, 0)
    minus_one = power.times_plus(more, power - 1.0)
    half = minus_one * -0.5
    quotient = minus_one / power.times_plus(more, power + 1.0)
    return half.times_plus(-quotient, half).apply("copysign", x)  # of -0 too


def _sigmoid(x: _Lanes) -> _Lanes:
    """1 / (1 + exp(-x)), from exp(-abs(x)), which does not overflow."""
    power = _exp_of_negative(-x.apply("fabs"))
    return power.where(x.below(0.0), 1.0) / (power + 1.0)


Tail = Callable[[_Lanes], tuple[_Lanes, _Lanes]]


def _normal_tail(size: _Lanes) -> tuple[_Lanes, _Lanes]:
    """P(X > size) of a standard normal X, and size times its density there."""
    half, scale = size * -0.5, 2.0**-size.numbers.offset
    power = _exp(half * size, lambda number: half.times_plus(size, -number))  # exp(-size**2 / 2) / scale
    above, below = size.numbers.tail
    tail = size.polynomial(tuple(c * scale for c in above)) / size.polynomial(below) * power
    return tail, size * (DENSITY * scale) * power


def _tanh_form_tail(size: _Lanes) -> tuple[_Lanes, _Lanes]:
    """What GELU's tanh form has in place of `_normal_tail`: s = sigmoid(-u), and size * s * (1 - s) * u'."""
    square = size * size
    power = _exp_of_negative(-(size * square.times_plus(2 * TANH_SCALE * TANH_CUBIC, 2 * TANH_SCALE)))
    rest = size.of(1.0) / (power + 1.0)
    tail = power * rest
    return tail, tail * rest * (size * square.times_plus(6 * TANH_SCALE * TANH_CUBIC, 2 * TANH_SCALE))


def _gelu(x: _Lanes, tail_at: Tail) -> _Lanes:
    """x * P(X <= x) is x - x * P(X > x) for a positive x, and x * P(X > -x) for a negative one."""
    size = x.size(x.numbers.deviation)
    return (-size).times_plus(tail_at(size)[0], x.of(-0.0).where(x.below(0.0), x))


def _gelu_slope(x: _Lanes, tail_at: Tail) -> _Lanes:
    tail, by_density = tail_at(x.size(x.numbers.deviation))
    below_zero = tail - by_density
    return below_zero.where(x.below(0.0), x.of(1.0) - below_zero)


def _log(x: _Lanes) -> tuple[_Lanes, _Lanes]:
    """log(x) for x >= 0 in float64, as the sum of a number and a much smaller one; any number for an infinity."""
    builder, (ln2, ln2_rest) = x.builder, x.numbers.ln2
    subnormal = x.below(2.0**-1022)
    bits = (x * 2.0**54).where(subnormal, x).as_type(I64).value

    def constant(number: int) -> Any:
        return ir.Constant(vector_of(I64), [number] * LANES)

    # x = 2**n * m, m from sqrt(1/2) to sqrt(2): from there on the number of bits 52 and up is n + 1023.
    power = builder.lshr(builder.add(bits, constant((1023 << 52) - 0x3FE6A09E667F3BCD)), constant(52))
    n = _Lanes(builder, builder.or_(power, constant(0x433 << 52))).as_type(DOUBLE) - (2.0**52 + 1023)
    n = n + x.of(-54.0).where(subnormal, 0.0)
    bits = builder.sub(bits, builder.shl(builder.sub(power, constant(1023)), constant(52)))
    m = _Lanes(builder, bits).as_type(DOUBLE)
    # log(m) = 2 s + 2 s**3 / 3 + 2 s**5 / 5 + …, s = (m - 1) / (m + 1), with the rest of each rounding.
    above, below = m - 1.0, m + 1.0
    inverse = x.of(1.0) / below
    s = above * inverse
    s_rest = ((-s).times_plus(below, above) - s * (m - (below - 1.0))) * inverse
    square = s * s
    high, twice = n * ln2, s + s
    total = high + twice
    rest = (s * square).times_plus(square.polynomial(LOGARITHM), n.times_plus(ln2_rest, s_rest + s_rest))
    rest = rest + (twice - (total - high))
    log = total + rest
    return log, rest - (log - total)


def _pow(x: _Lanes, exponent: _Lanes) -> _Lanes:
    """x**exponent for x >= 0 in float64, exponent not 0; a NaN stays a NaN."""
    log, log_rest = _log(x)
    infinity = x.of(math.inf)
    log = (-infinity).where(x.equals(0.0), infinity.where(x.equals(math.inf), log))
    product = log * exponent
    rest = log_rest.times_plus(exponent, log.times_plus(exponent, -product))
    low, high = x.of(x.numbers.low), x.of(HIGHEST_EXP)
    below, above = product.below(low), high.below(product)
    rest = x.of(0.0).where(below, x.of(0.0).where(above, rest))
    product = low.where(below, high.where(above, product))
    # Of 2**n the exponent is at first nearer to 0 by 512, so that n may be too low or too high for a normal number.
    offset = x.of(512.0).where(product.below(0.0), -512.0)
    power, more = _power(product, offset, lambda number: (product - number) + rest)
    result = power.times_plus(more, power) * x.of(2.0**-512).where(product.below(0.0), 2.0**512)
    return result.where(x.equals(x), x)


FUNCTIONS: dict[str, Callable[[_Lanes], _Lanes]] = {
    "exp": _exp_of_negative,
    "tanh": _tanh,
    "tanh slope": lambda y: (y.of(1.0) - y) * (y + 1.0),  # from y
    "sigmoid": _sigmoid,
    "sigmoid slope": lambda y: y * (y.of(1.0) - y),
    "gelu": lambda x: _gelu(x, _normal_tail),
    "gelu slope": lambda x: _gelu_slope(x, _normal_tail),
    "gelu tanh": lambda x: _gelu(x, _tanh_form_tail),
    "gelu tanh slope": lambda x: _gelu_slope(x, _tanh_form_tail),
}
power = lanewise(("float64",), 2, lambda builder, x, y: _pow(_Lanes(builder, x), _Lanes(builder, y)).value)  # x ** y


@operation
def apply(name: Any, x: Any) -> Any:
    """A function of floating lanes, by its name in FUNCTIONS, a constant."""
    function = FUNCTIONS[name.literal_value]
    return x(name, x), lambda context, builder, name, x: function(_Lanes(builder, x)).value
