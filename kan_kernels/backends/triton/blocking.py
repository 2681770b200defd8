"""Numbers of a case that kernels take as compile-time constants. Pure Python."""

from fractions import Fraction
from functools import cache
from math import factorial

UNIFORM_ORDERS = (1, 2, 3)  # spline orders with fixed polynomials on uniform knots


@cache
def polynomials(order: int, derivative: int) -> tuple[tuple[float, ...], ...]:
    """Return K! times the M-th derivative of a unit cell's K+1 B-splines: coefficients of t^n, n = 0..K-M,
    exact.

    POLY[j] belongs to row first + j. Multiplied by K! they are integers, so they are exact in float32.
    """
    values = [[Fraction(1)]]
    for p in range(1, order + 1):  # the triangle of basis.exact_cell on the knots 1-K..K, as polynomials
        saved, new = [Fraction(0)], []
        for r in range(p):
            scaled = [c / p for c in values[r]]
            new.append(_add(saved, _times(scaled, r + 1, -1)))
            saved = _times(scaled, p - r - 1, 1)
        values = [*new, saved]
    for _ in range(derivative):
        values = [[n * c for n, c in enumerate(value)][1:] for value in values]
    return tuple(tuple(float(factorial(order) * c) for c in value) for value in values)


@cache
def centred(degree: int) -> tuple[tuple[float, ...], ...]:
    """Return [q][p]: the coefficient of v^p in u^q w^(degree-q), u = 1/2 + v and w = 1/2 - v, exact."""
    half, rows = Fraction(1, 2), []
    for q in range(degree + 1):
        row = [Fraction(1)]
        for factor in range(degree):
            row = _add([half * c for c in row], [Fraction(0), *(c if factor < q else -c for c in row)])
        rows.append(tuple(float(c) for c in row))
    return tuple(rows)


def _times(polynomial: list[Fraction], constant: int, slope: int) -> list[Fraction]:
    """Return polynomial * (constant + slope t)."""
    out = [constant * c for c in polynomial] + [Fraction(0)]
    for n, c in enumerate(polynomial):
        out[n + 1] += slope * c
    return out


def _add(a: list[Fraction], b: list[Fraction]) -> list[Fraction]:
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return [c + (shorter[n] if n < len(shorter) else 0) for n, c in enumerate(longer)]


def steps(knots: int) -> int:
    """Count the halvings that find one of knots - 1 cells."""
    return max(knots - 2, 0).bit_length()


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def split(rows: int, programs: int, allowed: int, shortest: int, at_once: int) -> tuple[int, int]:
    """Return (rows of a part, number of parts), for so many programs a part, of which so many run at once."""
    most = max(1, min(ceil_div(2 * at_once, programs), allowed, rows // shortest))
    # the time of a part times its rounds; a part more is two hundredths of the work for its sums
    count = min(range(1, most + 1), key=lambda n: ceil_div(programs * n, at_once) * (50 + n) / n)
    part = ceil_div(ceil_div(rows, count), 64) * 64
    return part, ceil_div(rows, part)
