"""Device functions: the cell of x and the k+1 B-splines that are non-zero on it, and the base activation.

Two ways to the splines. `exact_window` compares x with the knots themselves and runs the triangular Cox-de
Boor scheme (Piegl & Tiller, The NURBS Book, A2.2): any knots, full accuracy, half-open cells to the bit.
`uniform_window` serves operands of 8 to 11 bits on uniform knots where the function is continuous: the cell
is a floor, the values are fixed polynomials, and nothing is loaded but two numbers a feature.

Both return (quad, two, odd, values): values[j] = B_{first+j}^(M)(x), j = 0..K, with first = 4 quad + 2 two +
odd, as `place.py` moves rows by the binary digits of first. x outside the knots, infinite or NaN has a first
that no row has.
"""

import triton
import triton.language as tl


@triton.jit
def find_cell(x, knots, LAST: tl.constexpr, STEPS: tl.constexpr):
    """Return (cell, whether x is on it, last knot): the last cell that begins at or before x, as int32."""
    cell = tl.zeros(x.shape, tl.int32)
    for n in tl.static_range(STEPS):
        probe = cell + (1 << (STEPS - 1 - n))
        above = (probe <= LAST) & (x >= tl.load(knots + tl.minimum(probe, LAST)))
        cell = tl.where(above, probe, cell)
    last_knot = tl.load(knots + LAST).to(x.dtype)
    return cell, (x >= tl.load(knots)) & (x < last_knot), last_knot


@triton.jit
def exact_cell(x, knots, K: tl.constexpr, M: tl.constexpr, LAST: tl.constexpr, STEPS: tl.constexpr):
    """Return (first, values). x: a float32 or float64 tile. knots: pointers to each feature's first knot.

    LAST: the number of knots - 1. STEPS: ceil(log2(LAST)). first is int32.
    """
    cell, inside, last_knot = find_cell(x, knots, LAST, STEPS)
    x = tl.where(inside, x, last_knot)  # keeps inf and NaN out of the products
    values = (tl.where(inside, 1.0, 0.0).to(x.dtype),)
    left = (x,)  # left[j] = t_{cell+1-j} and right[j] = t_{cell+j}, j = 1..K
    right = (x,)
    for j in tl.static_range(1, K + 1):
        left = left + (tl.load(knots + tl.maximum(cell + 1 - j, 0)).to(x.dtype),)
        right = right + (tl.load(knots + tl.minimum(cell + j, LAST)).to(x.dtype),)
    for p in tl.static_range(1, K + 1):
        saved = tl.zeros(x.shape, x.dtype)
        new = ()
        for r in tl.static_range(p):
            width = right[r + 1] - left[p - r]
            if p <= K - M:
                scaled = values[r] * tl.where(width > 0, 1.0 / width, 0.0)
                new = new + (saved + (right[r + 1] - x) * scaled,)
                saved = (x - left[p - r]) * scaled
            else:
                scaled = values[r] * tl.where(width > 0, p / width, 0.0)
                new = new + (saved - scaled,)
                saved = scaled
        values = new + (saved,)
    return tl.where(inside, cell - K, 1 << 28), values


@triton.jit
def exact_window(x, knots, K: tl.constexpr, M: tl.constexpr, LAST: tl.constexpr, STEPS: tl.constexpr):
    """Return `exact_cell`, with first in its binary digits; quad is int32."""
    first, values = exact_cell(x, knots, K, M, LAST, STEPS)
    return first >> 2, (first & 2) != 0, (first & 1) != 0, values


@triton.jit
def uniform_window(x, scale, offset, K: tl.constexpr, M: tl.constexpr, POLY: tl.constexpr):
    """Return the window where x * scale + offset counts quarters of first, as a float; quad is float32.

    POLY[j]: coefficients of K! values[j] in the position t in the cell, see blocking.py. The factor K! is the
    caller's.
    """
    y = x * scale + offset
    quad = tl.floor(y)
    u = y - quad
    two = u >= 0.5
    u = tl.where(two, u - 0.5, u)
    odd = u >= 0.25
    t = tl.where(odd, u * 4.0 - 1.0, u * 4.0)
    s = 1.0 - t
    values = ()
    for j in tl.static_range(K + 1):
        if 2 * j < K:  # the mirror image of values[K-j], where powers of s cancel nothing
            values = values + (horner(s, POLY, K - j, 1 - 2 * (M % 2)),)
        else:
            values = values + (horner(t, POLY, j, 1),)
    if M > 0:
        chain = 4.0 * scale
        factor = chain
        for _ in tl.static_range(M - 1):
            factor = factor * chain
        scaled = ()
        for j in tl.static_range(K + 1):
            scaled = scaled + (values[j] * factor,)
        values = scaled
    return quad, two, odd, values


@triton.jit
def horner(t, POLY: tl.constexpr, J: tl.constexpr, SIGN: tl.constexpr):
    """Return SIGN * sum_n C[n] t^n with C = POLY[J]."""
    C: tl.constexpr = POLY[J]
    N: tl.constexpr = len(C)
    value = tl.full(t.shape, SIGN * C[N - 1], t.dtype)
    for n in tl.static_range(N - 1):
        value = value * t
        if C[N - 2 - n] != 0.0:
            value = value + SIGN * C[N - 2 - n]
    return value


@triton.jit
def window(
    x, i, grid, table, features,
    K: tl.constexpr, M: tl.constexpr, POLY: tl.constexpr, LAST: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Return the window of a tile x[.., i]: uniform where `table` has (scale, offset), else exact."""
    if table is not None:
        scale, offset = tl.load(table + i), tl.load(table + features + i)
        quad, two, odd, values = uniform_window(x, scale[None, :], offset[None, :], K, M, POLY)
    else:
        knots = grid + (i.to(tl.int64) * (LAST + 1))[None, :] + tl.zeros(x.shape, tl.int32)
        quad, two, odd, values = exact_window(x, knots, K, M, LAST, STEPS)
    return quad, two, odd, values


@triton.jit
def short_logistic(x):
    """Return (s, 1 - s) to float32's rounding of numbers up to 1: all that 8 to 11 bits can hold."""
    s = 1.0 / (1.0 + tl.exp2(x * -1.44269504))
    return s, 1.0 - s


@triton.jit
def logistic(x):
    """Return (s, 1 - s), both to full relative accuracy; 0 and 1 where exp leaves the normal numbers."""
    bound = 700.0 if x.dtype == tl.float64 else 87.0
    z = tl.minimum(tl.maximum(x, -bound), bound)
    if x.dtype == tl.float64:
        e = tl.exp(-z)
    else:  # exp(-z) = 2^(high + low): low is what the rounding of -z log2(e) lost
        high = z * -1.44269504
        low = tl.fma(z, -1.44269504, -high) + z * -1.925963e-8
        e = tl.exp2(high)
        e = e + e * (low * 0.6931472)
    s = 1.0 / (1.0 + e)
    c = e * s
    below, above = x < -bound, x > bound
    return tl.where(below, 0.0, tl.where(above, 1.0, s)), tl.where(below, 1.0, tl.where(above, 0.0, c))


@triton.jit
def base_activation(x, BASE: tl.constexpr, M: tl.constexpr, SHORT: tl.constexpr):
    """Return the base's M-th derivative at x: silu^(M) = x s^(M) + M s^(M-1), or the identity's.

    The derivatives of the logistic function come by Leibniz's rule from s' = s (1 - s).
    """
    if BASE == 2:
        if M == 0:
            value = x
        else:
            value = tl.where(x == x, 1.0 if M == 1 else 0.0, x)
    else:
        if SHORT:
            s, c = short_logistic(x)
        else:
            s, c = logistic(x)
        if M == 0:
            value = x * s
        else:
            sigma = (s, s * c)
            for n in tl.static_range(1, M):
                following = sigma[n] * (c - s)
                binomial = 1.0
                for i in tl.static_range(1, n):
                    binomial = binomial * (n - i + 1) / i
                    following -= (sigma[i] * sigma[n - i]) * binomial
                sigma = sigma + (following,)
            value = x * sigma[M] + sigma[M - 1] * M
    return value
