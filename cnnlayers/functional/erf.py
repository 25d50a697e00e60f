"""The complementary error function in array code: no array library's standard functions have it.

Cody's rational approximations (W. J. Cody, Rational Chebyshev approximations for the error function, Mathematics of
Computation 23, 1969, pages 631 to 637), which are accurate to the last digits of float64, on three ranges of |x|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cnnlayers.backends import Backend

from .arrays import Array

NEAR, FAR = 0.46875, 4.0  # where one approximation ends and the next begins
LARGEST = 27.5  # erfc is 0 in float64 from here on

# Coefficients of numerators and denominators, the highest power first; a denominator begins with 1.
ERF_NEAR = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
ERFC_MIDDLE = (
    (
        2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
        2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
        3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
    ),
)  # fmt: skip
ERFC_FAR = (
    (
        1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
        1.60837851487422766e-2, 6.58749161529837803e-4,
    ),
    (
        1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)  # fmt: skip


def _ratio(x: Array, numerator: Sequence[float], denominator: Sequence[float]) -> Array:
    """The quotient of two polynomials, by Horner's rule."""
    top, bottom = x * numerator[0] + numerator[1], x * denominator[0] + denominator[1]
    for a, c in zip(numerator[2:], denominator[2:], strict=True):
        top, bottom = top * x + a, bottom * x + c
    return top / bottom


def erfc(b: Backend, x: Array) -> Array:
    """1 - erf(x) = 2 / sqrt(pi) * (the integral of exp(-t**2) from x on), of float32 or float64 x. NaN stays NaN."""
    size = b.xp.abs(x)
    near = 1.0 - x * _ratio(b.xp.clip(size, 0.0, NEAR) ** 2, *ERF_NEAR)
    middle = _ratio(b.xp.clip(size, NEAR, FAR), *ERFC_MIDDLE)
    large = b.xp.clip(size, FAR, LARGEST)
    inverse = 1.0 / (large * large)
    far = (1.0 / math.sqrt(math.pi) - inverse * _ratio(inverse, *ERFC_FAR)) / large
    tail = b.xp.where(size <= FAR, middle, far) * _gaussian(b, b.xp.clip(size, 0.0, LARGEST))
    tail = b.xp.where(size < LARGEST, tail, b.xp.zeros_like(tail))
    tail = b.xp.where(x < 0, 2.0 - tail, tail)
    return b.xp.where(size <= NEAR, near, b.xp.where(x == x, tail, x))


def _gaussian(b: Backend, x: Array) -> Array:
    """exp(-x**2): with x split in two, so that rounding its square costs no digits."""
    head = b.xp.trunc(x * 16.0) / 16.0
    return b.xp.exp(-head * head) * b.xp.exp(-(x - head) * (x + head))
